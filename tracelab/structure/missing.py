"""Spans that must have been there: what each of them left behind in the capture.

A missing span shows in two ways: a child names it as its parent, or a client that is normally
answered has no server span. Each trace it left is one row; the causes are judged on all of them
together.
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.boundaries import usual_boundaries
from tracelab.structure.skeleton import (
    CLIENT,
    CONSUMER,
    SERVER,
    Bools,
    Floats,
    Ints,
    Skeleton,
    mix64,
)
from tracelab.structure.spine import CROSSINGS, take_rows

FAR: Final = np.array([word in ("network", "process", "queue") for word, _ in CROSSINGS])
"""Whether a crossing leaves the process, by code."""

MIN_ANSWERED: Final = 0.9
"""Least share of answered calls at which a call without its server span stands out."""


MOST_PAUSED: Final = 0.8
"""Most calls that may lack their server span where it paused: a peer that answers fewer is not
one that normally answers."""

MOST_OFTEN_PAUSED: Final = 0.95
"""The same where it answered again and again, everything for a while."""

_OFTEN: Final = 4
"""Stretches with answers from which a peer answers again and again."""

_NEAR: Final = 8
"""Calls to either side over which the share of unanswered ones is taken."""

_MUTE: Final = 0.25
"""Least share of unanswered calls in a stretch: one replica of four is silent."""

_LEAST: Final = 8
"""Least answered and unanswered calls from which stretches are told from chance."""


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


def find_missing(skeleton: Skeleton, claimed: Floats) -> Missing:
    """List what missing spans left behind.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    claimed : ndarray of float64
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
    words = usual_boundaries(skeleton, orphans)
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


def _mode(keys: Ints, values: Ints, size: int) -> tuple[Ints, Floats]:
    """Most frequent value per key (-1 where there is none) and its share."""
    counts = (
        pl.DataFrame({"key": keys, "value": values})
        .group_by("key", "value")
        .len()
        .with_columns(share=pl.col("len") / pl.col("len").sum().over("key"))
        .sort("key", "len", "value", descending=[False, True, False])
        .unique("key", keep="first", maintain_order=True)
    )
    mode, share = np.full(size, -1), np.zeros(size)
    mode[counts["key"].to_numpy()] = counts["value"].to_numpy()
    share[counts["key"].to_numpy()] = counts["share"].to_numpy()
    return mode, share


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
        usual_op, _ = _mode(skeleton.op[intact[edges]], skeleton.op[parent[edges]], n_ops)
        mine = local == is_local
        op[mine] = usual_op[skeleton.op[orphans[mine]]]
    known = (~local) & (op >= 0)
    service[known] = skeleton.op_service[op[known]]
    usual_service, share = _mode(
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
    pairs = (
        np.unique(np.stack([skeleton.service, skeleton.process], axis=1), axis=0)
        if (skeleton.n < 100_000)
        else _service_processes(skeleton)
    )
    many = np.bincount(pairs[:, 0], minlength=len(skeleton.services))
    only = np.full(len(skeleton.services) + 1, -1)
    single = pairs[many[pairs[:, 0]] == 1]
    only[single[:, 0]] = single[:, 1]
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


def _service_processes(skeleton: Skeleton) -> Ints:
    first = pl.DataFrame({"process": skeleton.process}).with_row_index("row").unique("process")
    rows = first["row"].to_numpy().astype(np.int64)
    return np.stack([skeleton.service[rows], skeleton.process[rows]], axis=1)


def unanswered_calls(
    skeleton: Skeleton, claimed: Floats
) -> tuple[Ints, Ints, Ints, Bools, pl.DataFrame]:
    """Find client spans that are normally answered by a server span, and are not here.

    A call that failed without any response is not expected to have one. A share of unanswered
    calls that the callee's own losses explain is expected; beyond it the class also calls
    something that is not instrumented, and nothing can be said of a single call.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    claimed : ndarray of float64
        Per row, how many detached roots it probably called.

    Returns
    -------
    tuple
        Rows, the callee's service, the callee's operation, whether a server span is certainly
        due, and a table of ``boundary`` and ``said_by``.

    Raises
    ------
    ValueError
        Never.
    """
    clients = np.flatnonzero((skeleton.kind == CLIENT) & skeleton.timed)
    served = skeleton.intact
    kind = skeleton.kind[served]
    served = served[((kind == SERVER) | (kind == CONSUMER)) & (kind != CLIENT)]
    parents = skeleton.parent[served]
    classes = skeleton.caller_class
    size = int(classes.max()) + 1 if skeleton.n else 1
    by_client = skeleton.kind[parents] == CLIENT
    callee = usual_callees(skeleton)
    total = np.bincount(classes[clients], minlength=size)
    good = np.bincount(classes[clients[skeleton.served[clients]]], minlength=size)
    open_calls = clients[~skeleton.served[clients] & (claimed[clients] < 0.1)]
    code = classes[open_calls]
    to = np.where(callee[code] >= 0, skeleton.op_service[callee[code]], -1)
    loss = _loss_rates(skeleton)
    allowed = np.clip(2.5 * loss[to] + 0.05, 1 - MIN_ANSWERED, MOST_PAUSED)
    lacking = 1 - good[code] / np.maximum(total[code], 1)
    usual = (good[code] >= 3) & (lacking <= allowed) & skeleton.column("answered")[open_calls]
    # Orphans of the caller's own service, the call among them, say nothing of a callee.
    told = (
        (to >= 0) & (to != skeleton.service[open_calls]) & orphans_within(skeleton, open_calls, to)
    )
    paused = _pauses(skeleton, clients)[open_calls]
    # A gateway in between answers with an error of its own where the peer is away.
    usual |= paused & ~skeleton.column("error")[open_calls]
    firm = usual | (told & (good[code] >= 3))
    keep = (good[code] >= 3) & (to >= 0) & (firm | skeleton.column("answered")[open_calls])
    keep &= ~_answered_astray(skeleton, open_calls, callee[code])
    rows, crossing = open_calls[keep], np.full(size, 7)
    seen, _ = _mode(
        classes[parents[by_client]], skeleton.crossing[served[by_client]].astype(np.int64), size
    )
    crossing = np.where(seen >= 0, seen, crossing)
    words = pl.DataFrame(CROSSINGS, schema=["boundary", "said_by"], orient="row")
    return (
        rows,
        to[keep],
        callee[code[keep]],
        firm[keep],
        take_rows(words, pl.Series(crossing[code[keep]])),
    )


def _loss_rates(skeleton: Skeleton) -> Floats:
    """Share of local parents that are missing, per service; the last entry, 0, is for -1."""
    size = len(skeleton.services)
    words = usual_boundaries(skeleton, skeleton.orphans)
    lost = np.bincount(
        skeleton.service[skeleton.orphans[words["local"].to_numpy()]], minlength=size
    )
    near = skeleton.intact[~FAR[skeleton.crossing[skeleton.intact]]]
    there = np.bincount(skeleton.service[near], minlength=size)
    # A rate from a handful of edges is no rate; leaf services lose as the others do.
    seen = lost + there
    overall = lost.sum() / max(int(seen.sum()), 1)
    rates = np.where(seen >= 20, lost / np.maximum(seen, 1), overall)
    return np.append(rates, 0.0)


def _pauses(skeleton: Skeleton, clients: Ints) -> Bools:
    """Rows of calls in a stretch without answers, before and behind which calls were answered.

    A peer of which some instances are not instrumented, or not sampled, leaves its unanswered
    calls strewn evenly over the traces; a peer whose spans got lost leaves stretches of them
    (Wald and Wolfowitz, 1940: too few runs), or of which many go unanswered, if one of several
    replicas is silent. One call per trace is taken, because the calls of
    a trace may all go to one instance.
    """
    key = skeleton.trace[clients] ^ mix64(skeleton.caller_class[clients].astype(np.uint64)).view(
        np.int64
    )
    first = pl.Series(key).is_first_distinct().to_numpy()
    every = skeleton.caller_class
    size = int(every.max(initial=-1)) + 1
    rows = clients[first]
    rows = rows[np.argsort(every[rows], kind="stable")]
    codes, answered = every[rows], skeleton.served[rows]
    same = codes[1:] == codes[:-1]
    many = np.bincount(codes, minlength=size)
    good = np.bincount(codes, weights=answered, minlength=size)
    turns = np.bincount(codes[1:], weights=same & (answered[1:] != answered[:-1]), minlength=size)
    due = 1 + 2 * good * (many - good) / np.maximum(many, 1)
    spread = np.sqrt(np.maximum((due - 1) * (due - 2), 0) / np.maximum(many - 1, 1))
    start = np.cumsum(many) - many
    place = np.arange(rows.size)
    uneven = (turns + 1 < due - 4 * spread) | _clumped(codes, place - start[codes], answered, many)
    few = (good >= _LEAST) & (many - good >= _LEAST) & uneven
    # On either side of a stretch there are somewhere three calls in a row with an answer.
    row = np.zeros(rows.size, bool)
    row[2:] = answered[2:] & answered[1:-1] & answered[:-2] & same[1:] & same[:-1]
    before = np.cumsum(row) - row
    offset = np.append(before, before[-1:] + row[-1:])
    earlier = before - offset[start[codes]]
    behind = offset[start[codes] + many[codes]] - before
    again = row.copy()
    again[1:] &= ~row[:-1]
    often = np.bincount(codes, weights=again, minlength=size) >= _OFTEN
    lacking = 1 - good / np.maximum(many, 1)
    few &= lacking <= np.where(often, MOST_OFTEN_PAUSED, MOST_PAUSED)
    # Of several replicas one may be silent: the calls to the others are answered in between.
    open_before = np.append(0, np.cumsum(~answered))
    low = np.maximum(place - _NEAR, start[codes])
    high = np.minimum(place + _NEAR + 1, start[codes] + many[codes])
    mute = ~answered & (open_before[high] - open_before[low] >= _MUTE * (high - low))
    found = np.zeros(skeleton.n, bool)
    inside = few[codes] & mute & (earlier > 0) & (behind > 0)
    chosen = pl.Series(key[first]).filter(pl.Series(np.isin(clients[first], rows[inside])))
    found[clients] = pl.Series(key).is_in(chosen.implode()).to_numpy()
    return found


def _clumped(codes: Ints, place: Ints, answered: Bools, many: Ints) -> Bools:
    """Whether a class's unanswered calls gather in some stretches of its calls.

    Pearson's test of homogeneity over stretches of equal length, at four standard deviations.
    """
    stretch = place // (2 * _NEAR)
    counted = (
        pl.DataFrame({"code": codes, "stretch": stretch, "open": ~answered})
        .group_by("code", "stretch")
        .agg(pl.len().alias("n"), pl.col("open").sum())
        .with_columns(share=pl.col("open").sum().over("code") / pl.col("n").sum().over("code"))
        .with_columns(
            ((pl.col("open") - pl.col("n") * pl.col("share")) ** 2)
            / (pl.col("n") * pl.col("share") * (1 - pl.col("share")))
        )
        .group_by("code")
        .agg(pl.col("open").sum().alias("sum"), (pl.len() - 1).alias("free"))
    )
    clumped = np.zeros(many.size, bool)
    free = counted["free"].to_numpy().astype(float)
    found = counted["sum"].to_numpy() > free + 4 * np.sqrt(2 * free)
    clumped[counted["code"].to_numpy()[found]] = True
    return clumped


def usual_callees(skeleton: Skeleton) -> Ints:
    """Tell which operation usually answers the calls of each caller class.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    ndarray of int64
        By caller class; -1 where none ever does.

    Raises
    ------
    ValueError
        Never.
    """
    served = skeleton.intact
    kind, parents = skeleton.kind[served], skeleton.parent[served]
    answers = ((kind == SERVER) | (kind == CONSUMER)) & (skeleton.kind[parents] == CLIENT)
    classes = skeleton.caller_class
    size = int(classes.max()) + 1 if skeleton.n else 1
    return _mode(classes[parents[answers]], skeleton.op[served[answers]], size)[0]


def called_astray(skeleton: Skeleton, orphans: Ints) -> Bools:
    """Tell which orphans answer a call of their trace that names them not as its answer.

    The call is there, nothing else answers it, and its kind of call is usually answered by this
    very operation: what stood between the two gave a parent of its own.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    orphans : ndarray of int64
        Rows of orphans.

    Returns
    -------
    ndarray of bool
        Orphan by orphan.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    found = np.zeros(orphans.size, bool)
    asked = np.flatnonzero((skeleton.kind[orphans] == SERVER) & skeleton.timed[orphans])
    traces = pl.Series(skeleton.trace[orphans[asked]]).unique()
    calls = np.flatnonzero((skeleton.kind == CLIENT) & ~skeleton.served & skeleton.timed)
    calls = calls[pl.Series(skeleton.trace[calls]).is_in(traces.implode()).to_numpy()]
    if not calls.size:
        return found
    open_calls = pl.DataFrame(
        {
            "trace": skeleton.trace[calls],
            "op": usual_callees(skeleton)[skeleton.caller_class[calls]],
            "call": calls,
        }
    )
    told = pl.DataFrame(
        {"entry": asked, "trace": skeleton.trace[orphans[asked]], "op": skeleton.op[orphans[asked]]}
    )
    met = told.join(open_calls, on=["trace", "op"], how="inner")
    entry, call = met["entry"].to_numpy(), met["call"].to_numpy()
    start = skeleton.start[orphans[entry]]
    inside = (start >= skeleton.start[call] - 5_000_000) & (start <= skeleton.end[call])
    found[entry[inside]] = True
    return found


def _answered_astray(skeleton: Skeleton, calls: Ints, callee: Ints) -> Bools:
    """Whether the server span is in the trace after all, under another or a missing parent."""
    kind = skeleton.kind
    parent = skeleton.parent
    # A parent that starts after its child is none: such links come of cycles.
    earlier = skeleton.start[parent] <= skeleton.start
    by_client = (parent >= 0) & (kind[parent] == CLIENT) & earlier
    astray = np.flatnonzero((kind == SERVER) & ~by_client & skeleton.timed)
    table = pl.DataFrame(
        {
            "trace": skeleton.trace[astray],
            "op": skeleton.op[astray],
            "start": skeleton.start[astray],
        }
    )
    asked = pl.DataFrame({"trace": skeleton.trace[calls], "op": callee}).with_row_index("call")
    met = asked.join(table, on=["trace", "op"], how="inner")
    at = met["call"].to_numpy()
    start = met["start"].to_numpy()
    inside = (start >= skeleton.start[calls[at]] - 5_000_000) & (start <= skeleton.end[calls[at]])
    found = np.zeros(calls.size, bool)
    found[at[inside]] = True
    return found


def orphans_within(skeleton: Skeleton, calls: Ints, to: Ints) -> Bools:
    """Tell whether orphans of a service lie within calls: their servers are lost, not elsewhere.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    calls : ndarray of int64
        Rows.
    to : ndarray of int64
        The called service, call by call.

    Returns
    -------
    ndarray of bool
        Call by call: whether its trace has such an orphan in its time.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    orphans = skeleton.orphans
    table = pl.DataFrame(
        {
            "trace": skeleton.trace[orphans],
            "service": skeleton.service[orphans],
            "start": skeleton.start[orphans],
        }
    )
    asked = pl.DataFrame({"trace": skeleton.trace[calls], "service": to}).with_row_index("call")
    met = asked.join(table, on=["trace", "service"], how="inner")
    at = met["call"].to_numpy()
    inside = (met["start"].to_numpy() >= skeleton.start[calls[at]] - 1_000_000) & (
        met["start"].to_numpy() <= skeleton.end[calls[at]]
    )
    told = np.zeros(calls.size, bool)
    told[at[inside]] = True
    return told
