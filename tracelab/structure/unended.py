"""Spans that were started and never ended: parents that one operation alone lacks, at any time."""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.case import Case
from tracelab.structure.missing import Missing
from tracelab.structure.skeleton import FAR, Bools, Floats, Ints, Skeleton

_PARTS: Final = 10
"""Parts of the capture in which losses are counted, to see whether they gather in one."""

_GATHERED: Final = 0.6
"""Share of an operation's losses in one part of the capture from which they have a time of their
own, which a code path has not; unless the operation's other spans gather there as well."""


def weigh_unended(skeleton: Skeleton, missing: Missing, case: Case) -> None:
    """Weigh whether orphans lack a parent that their operation lacks always, or where it fails.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.
    case : Case
        Weights and words, changed here.

    Raises
    ------
    IndexError
        If a row of `missing` does not exist.
    """
    intact = skeleton.intact
    far = FAR[skeleton.crossing[intact]]
    local = np.flatnonzero(~missing.call & missing.local)
    remote = np.flatnonzero(~missing.call & ~missing.local)
    if local.size:
        _operations(skeleton, missing, local, intact[~far], case)
    if not (local.size or remote.size) or not skeleton.column("error").any():
        return
    for failed in (_failed_traces(skeleton), _failed_below(skeleton)):
        _error_paths(skeleton, missing, local, intact[~far], failed, case)
        _error_paths(skeleton, missing, remote, intact[far], failed, case)


def _operations(skeleton: Skeleton, missing: Missing, mine: Ints, near: Ints, case: Case) -> None:
    """One operation's parents are missing, those of others in the process are not."""
    n_ops, n_services = skeleton.ops.height, len(skeleton.services)
    op = skeleton.op[missing.row[mine]]
    service = skeleton.service[missing.row[mine]]
    # What the capture's edge may have cut off was not lost by the program.
    inner = ~case.at_edge[mine]
    lost = np.bincount(op[inner], minlength=n_ops)
    held = np.bincount(skeleton.op[near], minlength=n_ops)
    rate = lost / np.maximum(lost + held, 1)
    # Operations whose parents are always missing say nothing of how often the service loses
    # spans for other reasons: they may have one missing parent between them.
    usual = rate < 0.9
    home = skeleton.op_service
    lost_else = np.bincount(home, weights=lost * usual, minlength=n_services)
    seen_else = np.bincount(home, weights=(lost + held) * usual, minlength=n_services)
    other_lost = lost_else[service] - lost[op] * usual[op]
    other_seen = seen_else[service] - (lost + held)[op] * usual[op]
    other = other_lost / np.maximum(other_seen, 1)
    alone = other < 0.5
    case.put(
        "span_never_ended",
        mine[(lost[op] >= 3) & (rate[op] >= 0.9) & alone],
        25.0,
        "every local parent of this operation is missing, at any time; others are there",
    )
    # Poisson bound: far more than the other operations of the service let expect.
    expected = (lost + held)[op] * np.maximum(other, 1 / np.maximum(other_seen, 1))
    timely = _timely(skeleton, missing.row[mine[inner]], near)
    case.put(
        "span_never_ended",
        mine[
            (lost[op] >= 5)
            & (other_seen >= 50)
            & (lost[op] > 5 * expected + 5 * np.sqrt(expected))
            & ~timely[op]
        ],
        6.0,
        "parents of this operation are missing far oftener than others of the service",
    )


def _error_paths(
    skeleton: Skeleton, missing: Missing, mine: Ints, near: Ints, failed: Bools, case: Case
) -> None:
    """Parents of an operation are missing where something failed, and are there else."""
    n_ops = skeleton.ops.height
    op = skeleton.op[missing.row[mine]]
    inner = ~case.at_edge[mine]
    bad, good = failed[missing.row[mine]], failed[near]
    lost = np.bincount(op[inner], minlength=n_ops)
    held = np.bincount(skeleton.op[near], minlength=n_ops)
    lost_bad = np.bincount(op[bad & inner], minlength=n_ops)
    held_bad = np.bincount(skeleton.op[near[good]], minlength=n_ops)
    rate_bad = lost_bad / np.maximum(lost_bad + held_bad, 1)
    held_good = np.maximum(lost + held - lost_bad - held_bad, 1)
    rate_good = (lost - lost_bad) / held_good
    # Where all that is left of an operation failed, nothing tells that failing is the reason.
    told = held_good >= 3
    timely = _timely(skeleton, missing.row[mine[bad & inner]], near)
    case.put(
        "span_never_ended",
        mine[
            bad
            & (lost_bad[op] >= 3)
            & (rate_bad[op] >= 0.6)
            & (rate_good[op] <= 0.1 * rate_bad[op])
            & told[op]
            & ~timely[op]
        ],
        20.0,
        "parents of this operation are missing where the trace holds an error, else not",
    )


def _timely(skeleton: Skeleton, lost: Ints, held: Ints) -> Bools:
    """By operation: whether its losses have a time of their own, which a code path has not.

    They gather in one part of the capture, where others do not; or the middle halves of both do
    not overlap in time.
    """
    low, high = skeleton.window

    def parts(rows: Ints) -> Floats:
        place = (skeleton.start[rows] - low) * _PARTS // max(high - low + 1, 1)
        key = skeleton.op[rows] * _PARTS + np.clip(place, 0, _PARTS - 1)
        counts = np.bincount(key, minlength=skeleton.ops.height * _PARTS).reshape(-1, _PARTS)
        share: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return share

    def middle(rows: Ints) -> pl.DataFrame:
        start = pl.DataFrame({"op": skeleton.op[rows], "start": skeleton.start[rows]})
        return start.group_by("op").agg(
            early=pl.col("start").quantile(0.25), late=pl.col("start").quantile(0.75)
        )

    held = held[np.isin(skeleton.op[held], np.unique(skeleton.op[lost]))]
    mine, others = parts(lost), parts(held)
    fullest, every = mine.argmax(axis=1), np.arange(mine.shape[0])
    most = mine[every, fullest]
    timely: Bools = (most > _GATHERED) & (most > 2 * others[every, fullest])
    apart = (
        middle(lost)
        .join(middle(held), on="op", suffix="_held")
        .filter((pl.col("early") > pl.col("late_held")) | (pl.col("late") < pl.col("early_held")))
    )
    timely[apart["op"].to_numpy()] = True
    return timely


def _failed_traces(skeleton: Skeleton) -> Bools:
    """Rows of traces that hold an error."""
    failed = np.zeros(skeleton.traces.height, dtype=bool)
    failed[skeleton.trace[skeleton.column("error")]] = True
    rows: Bools = failed[skeleton.trace]
    return rows


def _failed_below(skeleton: Skeleton) -> Bools:
    """Rows that failed, or below which something did."""
    failed = skeleton.column("error").copy()
    rows = np.flatnonzero(failed)
    while rows.size:
        above = skeleton.parent[rows]
        above = np.unique(above[above >= 0])
        rows = above[~failed[above]]
        failed[rows] = True
    return failed
