"""Spans that the capture's edges cut off: open when it stopped, or over before it began.

How long an operation's parents outlast their children is known from the whole ones. An orphan
near the end of the capture is no loss if, by that law, its parent is likelier to be open still
than to be among the spans that get lost anyway.
"""

from typing import Final

import numpy as np

from tracelab.structure.losses import Lifetimes
from tracelab.structure.missing import Missing
from tracelab.structure.skeleton import Bools, Floats, Ints, Skeleton, mix64

_TAIL_SHARE: Final = 0.02
"""Share of the longest values from which the tail of a law is read."""

_STEEPEST: Final = 4.0
"""Latencies have power-law tails; a handful of values may look steeper than they are."""

_FEW: Final = 0.5
"""Losses counted where none was seen: half of one, the usual continuity correction."""


def families(skeleton: Skeleton, missing: Missing) -> Ints:
    """Give each missing span a number that all its orphans share.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.

    Returns
    -------
    ndarray of int64
        Entry by entry of `missing`; each unanswered call has a number of its own.

    Raises
    ------
    ValueError
        Never.
    """
    span = missing.span ^ mix64(skeleton.column("trace_lo")[missing.row])
    alone = mix64(missing.row.astype(np.uint64))
    family: Ints = np.unique(np.where(missing.call, alone, span), return_inverse=True)[1]
    return family


def open_odds(skeleton: Skeleton, missing: Missing, lifetimes: Lifetimes) -> Floats:
    """Tell how much likelier each missing span was open at the end than lost on the way.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.
    lifetimes : Lifetimes
        Of their processes.

    Returns
    -------
    ndarray of float64
        Odds, entry by entry; 0 for calls and for processes that stopped before the capture.

    Raises
    ------
    ValueError
        Never.
    """
    orphan = ~missing.call & skeleton.timed[missing.row]
    family = families(skeleton, missing)
    end = skeleton.end[missing.row]
    latest = np.full(family.max(initial=-1) + 1, np.iinfo(np.int64).min)
    np.maximum.at(latest, family[orphan], end[orphan])
    left = lifetimes.last - latest[family]
    odds = _odds(skeleton, missing, orphan & ~lifetimes.exited & (left > 0), left, sign=1)
    odds[orphan & ~lifetimes.exited & (left <= 0)] = np.inf
    active = orphan & ~lifetimes.exited & _still_active(family, end, orphan, left)
    odds[active] = np.maximum(odds[active], 10.0)
    # One span has one fate: what one of its children tells holds for all.
    best = np.zeros(latest.size)
    np.maximum.at(best, family[orphan], odds[orphan])
    odds[orphan] = best[family[orphan]]
    return odds


def over_odds(skeleton: Skeleton, missing: Missing, lifetimes: Lifetimes) -> Floats:
    """Tell how much likelier each missing span was over before the capture began than lost.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.
    lifetimes : Lifetimes
        Of their processes.

    Returns
    -------
    ndarray of float64
        Odds, entry by entry; 0 for calls.

    Raises
    ------
    ValueError
        Never.
    """
    orphan = ~missing.call & skeleton.timed[missing.row]
    since = skeleton.end[missing.row] - lifetimes.first
    return _odds(skeleton, missing, orphan & (since > 0), since, sign=-1)


def _odds(skeleton: Skeleton, missing: Missing, asked: Bools, age: Ints, *, sign: int) -> Floats:
    """Compare, per entry, the law's survival at an age with the share that is lost anyway."""
    odds = np.zeros(missing.row.size)
    low, high = skeleton.window
    near = np.flatnonzero(asked & (age < (high - low) // 2))
    if not near.size:
        return odds
    loss = _loss_share(skeleton, missing)
    ops = skeleton.op[missing.row[near]]
    order = np.argsort(ops, kind="stable")
    codes, begin = np.unique(ops[order], return_index=True)
    for code, group in zip(codes.tolist(), np.split(near[order], begin[1:]), strict=True):
        rows = skeleton.by_op.rows(code)
        rows = rows[(skeleton.parent[rows] >= 0) & skeleton.timed[rows]]
        gaps = sign * (skeleton.end[skeleton.parent[rows]] - skeleton.end[rows])
        odds[group] = survival(gaps, age[group].astype(np.float64)) / loss
    return odds


def survival(values: Ints, at: Floats) -> Floats:
    """Share of values above some thresholds, continued beyond the largest by a power law.

    Parameters
    ----------
    values : ndarray of int64
        A sample.
    at : ndarray of float64
        Thresholds above 0.

    Returns
    -------
    ndarray of float64
        Threshold by threshold; 0 from fewer than five values.

    Raises
    ------
    ValueError
        Never.
    """
    if values.size < 5:
        return np.zeros(at.size)
    ordered = np.sort(values).astype(np.float64)
    share = 1 - np.searchsorted(ordered, at, side="right") / ordered.size
    top = ordered[-max(4, int(_TAIL_SHARE * ordered.size)) :]
    if top[0] <= 0:
        return share
    slope = 1 / max(float(np.log(top / top[0]).mean()), 1 / _STEEPEST)
    tail = (top.size / ordered.size) * (np.maximum(at, top[0]) / top[0]) ** -slope
    beyond: Floats = np.where(at > top[0], np.maximum(share, tail), share)
    return beyond


def _loss_share(skeleton: Skeleton, missing: Missing) -> float:
    """Share of parents that are missing in the middle of the capture, away from its edges."""
    low, high = skeleton.window
    middle = (low + (high - low) // 4, low + 3 * (high - low) // 4)

    def inside(rows: Ints) -> int:
        end = skeleton.end[rows]
        return int(((end > middle[0]) & (end < middle[1])).sum())

    lost, held = inside(missing.row[~missing.call]), inside(skeleton.intact)
    return (lost + _FEW) / (lost + held + 1)


def _still_active(family: Ints, end: Ints, orphan: Bools, left: Ints) -> Bools:
    """Spans that got children all along, no longer ago than they usually paused."""
    order = np.lexsort((end, family))
    order = order[orphan[order]]
    same = family[order][1:] == family[order][:-1]
    pause = np.where(same, np.diff(end[order]), 0)
    size = int(family.max(initial=-1)) + 1
    longest, many = np.zeros(size, np.int64), np.bincount(family[orphan], minlength=size)
    np.maximum.at(longest, family[order][1:], pause)
    active: Bools = (many[family] >= 3) & (left <= 2 * longest[family])
    return active
