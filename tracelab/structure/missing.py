"""Spans that must have been there: what each of them left behind in the capture.

A missing span shows in two ways: a child names it as its parent, or a client that is normally
answered has no server span. Each trace it left is one row; the causes are judged on all of them
together.
"""

from dataclasses import dataclass, fields

import numpy as np
import polars as pl

from tracelab.structure.boundaries import orphan_boundaries
from tracelab.structure.codes import count_pairs
from tracelab.structure.skeleton import FAR, Bools, Floats, Ints, Narrow, Skeleton
from tracelab.structure.unanswered import most_frequent, unanswered_calls


@dataclass(frozen=True, slots=True)
class Missing:
    """What missing spans left behind, one entry per orphan or unanswered client.

    Parameters
    ----------
    row : ndarray of int64
        The orphan, or the client.
    call : ndarray of bool
        True for clients.
    local : ndarray of bool
        The missing span was in the orphan's process.
    service, process, op : ndarray of int64
        Where the missing span belongs, as far as intact traces tell; -1 where they do not.
    end_low, end_high : ndarray of int64
        Between which times it probably ended.
    span : ndarray of uint64
        Its id as a number; 0 for clients.
    firm : ndarray of bool
        Nothing more is needed to say that a span is missing. A call that is answered elsewhere,
        but not always, is not firm: only a pattern of sampling makes it a finding.
    boundary, said_by : pl.Series
        Of the hop, and what tells it.
    """

    row: Ints
    call: Bools
    local: Bools
    service: Ints
    process: Ints
    op: Ints
    end_low: Ints
    end_high: Ints
    span: np.ndarray[tuple[int], np.dtype[np.uint64]]
    firm: Bools
    boundary: pl.Series
    said_by: pl.Series

    def select(self, keep: Bools) -> "Missing":
        """Return the entries to keep.

        Parameters
        ----------
        keep : ndarray of bool
            One per entry.

        Returns
        -------
        Missing
            In the same order.

        Raises
        ------
        IndexError
            If there is not one flag per entry.
        """
        mask = pl.Series(keep, dtype=pl.Boolean)
        return Missing(
            **{
                part.name: (
                    getattr(self, part.name).filter(mask)
                    if isinstance(getattr(self, part.name), pl.Series)
                    else getattr(self, part.name)[keep]
                )
                for part in fields(self)
            }
        )


def edges_around(skeleton: Skeleton, missing: Missing) -> tuple[Ints, Ints]:
    """Tell when the capture began and stopped in which each missing span should have been.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.

    Returns
    -------
    tuple of ndarray of int64
        First and last end of a span there, entry by entry: as its process was heard, or, where
        that is not known, that of the span which misses it.

    Raises
    ------
    ValueError
        Never.
    """
    process = np.where(missing.process >= 0, missing.process, skeleton.process[missing.row])
    return skeleton.horizons.low[process], skeleton.horizons.high[process]


def find_missing(skeleton: Skeleton, claimed: Narrow) -> Missing:
    """List what missing spans left behind.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    claimed : ndarray of float32
        Per row, how many detached roots it probably called: those clients were answered.

    Returns
    -------
    Missing
        Orphans first, then unanswered clients, each in order of time.

    Raises
    ------
    ValueError
        Never.
    """
    orphans = skeleton.orphans
    words = skeleton.once(orphan_boundaries)
    local = words["local"].to_numpy()
    service, op = _callers(skeleton, orphans, local)
    low, high = _parent_end(skeleton, orphans)
    calls, callee, callee_op, firm, call_words = unanswered_calls(skeleton, claimed)
    rows = np.concatenate([orphans, calls])
    services = np.concatenate([service, callee])
    call = np.arange(rows.size) >= orphans.size
    call_low, call_high = _server_end(skeleton, calls)
    own = np.concatenate([local, np.zeros(calls.size, bool)])
    process = np.where(own, skeleton.process[rows], _only_process(skeleton, services))
    process = _process_by_trace(skeleton, rows, services, process)
    return Missing(
        row=rows,
        call=call,
        local=own,
        service=services,
        process=process,
        op=np.concatenate([op, callee_op]),
        end_low=np.concatenate([low, call_low]),
        end_high=np.concatenate([high, call_high]),
        span=np.where(call, 0, skeleton.column("parent")[rows]).astype(np.uint64),
        firm=np.concatenate([np.ones(orphans.size, bool), firm]),
        boundary=pl.concat([words["boundary"], call_words["boundary"]]),
        said_by=pl.concat([words["said_by"], call_words["said_by"]]),
    )


def _callers(skeleton: Skeleton, orphans: Ints, local: Bools) -> tuple[Ints, Ints]:
    """Service and operation of the missing parents, from what is usual."""
    intact = skeleton.intact
    parent = skeleton.parent[intact]
    far = FAR[skeleton.crossing[intact]]
    n_ops, n_services = skeleton.ops.height, len(skeleton.services)
    op = np.full(orphans.size, -1)
    service = np.where(local, skeleton.service[orphans], -1)
    for is_local in (True, False):
        edges = far != is_local
        usual_op, _ = most_frequent(skeleton.op[intact[edges]], skeleton.op[parent[edges]], n_ops)
        mine = local == is_local
        op[mine] = usual_op[skeleton.op[orphans[mine]]]
    known = (~local) & (op >= 0)
    service[known] = skeleton.op_service[op[known]]
    usual_service, share = most_frequent(
        skeleton.service[intact[far]], skeleton.service[parent[far]], n_services
    )
    fall_back = (~local) & (op < 0) & (share[skeleton.service[orphans]] > 0.8)
    service[fall_back] = usual_service[skeleton.service[orphans[fall_back]]]
    return service, op


def _gap_bounds(keys: Ints, gaps: Ints, size: int) -> tuple[Floats, Floats]:
    """5th and 95th percentile of a gap per key; NaN where there are fewer than three."""
    table = (
        pl.DataFrame({"key": keys, "gap": gaps})
        .group_by("key")
        .agg(
            pl.len(),
            pl.col("gap").quantile(0.05).alias("low"),
            pl.col("gap").quantile(0.95).alias("high"),
        )
        .filter(pl.col("len") >= 3)
    )
    low, high = np.full(size, np.nan), np.full(size, np.nan)
    low[table["key"].to_numpy()] = table["low"].to_numpy()
    high[table["key"].to_numpy()] = table["high"].to_numpy()
    return low, high


def _parent_end(skeleton: Skeleton, orphans: Ints) -> tuple[Ints, Ints]:
    """Between which times the missing parents ended, from intact spans of the operation."""
    wanted = np.zeros(skeleton.ops.height, bool)
    wanted[skeleton.op[orphans]] = True
    intact = skeleton.intact
    intact = intact[wanted[skeleton.op[intact]] & skeleton.timed[intact]]
    gaps = skeleton.end[skeleton.parent[intact]] - skeleton.end[intact]
    low, high = _gap_bounds(skeleton.op[intact], gaps, skeleton.ops.height)
    # Without a model a caller waits for its callee and ends soon after.
    duration = skeleton.end[orphans] - skeleton.start[orphans]
    op = skeleton.op[orphans]
    after_low = np.where(np.isnan(low[op]), 0.0, low[op])
    after_high = np.where(np.isnan(high[op]), duration + 1e6, high[op])
    end = skeleton.end[orphans]
    return (end + after_low).astype(np.int64), (end + np.maximum(after_high, after_low)).astype(
        np.int64
    )


def _server_end(skeleton: Skeleton, calls: Ints) -> tuple[Ints, Ints]:
    """Between which times the missing servers ended: within the client's wait."""
    return skeleton.start[calls].copy(), skeleton.end[calls].copy()


def _only_process(skeleton: Skeleton, services: Ints) -> Ints:
    """Process of a service that has only one; -1 elsewhere."""
    pairs = count_pairs(skeleton.service, skeleton.process)
    single = pairs.filter(pl.len().over("key") == 1)
    only = np.full(len(skeleton.services) + 1, -1)
    only[single["key"].to_numpy()] = single["value"].to_numpy()
    return only[services]


def _process_by_trace(skeleton: Skeleton, rows: Ints, services: Ints, process: Ints) -> Ints:
    """Take the one process of the service that took part in the trace, where it is not known."""
    open_rows = np.flatnonzero((process < 0) & (services >= 0))
    if not open_rows.size:
        return process
    asked = pl.DataFrame(
        {
            "entry": open_rows,
            "trace": skeleton.trace[rows[open_rows]],
            "service": services[open_rows],
        }
    )
    wanted = np.zeros(len(skeleton.services), bool)
    wanted[services[open_rows]] = True
    there = np.flatnonzero(wanted[skeleton.service])
    seen = (
        pl.DataFrame(
            {
                "trace": skeleton.trace[there],
                "service": skeleton.service[there],
                "process": skeleton.process[there],
            }
        )
        .join(asked.select("trace", "service").unique(), on=["trace", "service"], how="semi")
        .group_by("trace", "service")
        .agg(pl.col("process").n_unique().alias("many"), pl.col("process").first())
        .filter(pl.col("many") == 1)
    )
    met = asked.join(seen, on=["trace", "service"], how="inner")
    filled = process.copy()
    filled[met["entry"].to_numpy()] = met["process"].to_numpy()
    return filled
