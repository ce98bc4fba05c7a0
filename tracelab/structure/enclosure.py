"""Work that always lies within spans of one kind, beyond what chance and bursts make of it.

Delays tell caller and callee apart from strangers only where they are much alike. A caller that
waits for its callee encloses it whatever the delay. How often chance encloses is counted close
by, after small moves in time, so that bursts of traffic are part of it.
"""

from typing import Final

import numpy as np

from tracelab.structure.skeleton import Bools, Ints, Skeleton

_MOVES: Final = (1, 2, 4, 8, 16, 32)
"""Moves to both sides, in lengths of a caller and a callee: none still overlaps its own."""

_ENOUGH: Final = 4
"""Least moves that leave half of the callees in the capture: longer callers prove nothing."""

_EACH: Final = 2
"""Callees per caller, at most: a stream that lasts through everything encloses everything."""

_TOLERANCE_NS: Final = 100_000


def enclosure(skeleton: Skeleton, callees: Ints, callers: Ints) -> tuple[float, float]:
    """Weigh that callees lie within spans of their process that may have called them.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees, callers : ndarray of int64
        Rows in order of start.

    Returns
    -------
    surprise : float
        Chernoff's bound on the binomial tail, in nats.
    share : float
        Of the callees, those that must have been called, if chance encloses the others as usual.

    Raises
    ------
    ValueError
        Never.
    """
    if callees.size > _EACH * callers.size:
        return 0.0, 0.0
    length = sum(
        int(np.quantile(skeleton.end[rows] - skeleton.start[rows], 0.95))
        for rows in (callees, callers)
    )
    enclosed, _ = _count(skeleton, callees, callers, 0)
    chances = []
    for move in _MOVES:
        met = [_count(skeleton, callees, callers, sign * move * length) for sign in (-1, 1)]
        hits, tried = (sum(column) for column in zip(*met, strict=True))
        if tried >= callees.size:
            chances.append((hits + 1) / (tried + 2))
    # The worst of them: who comes in bursts meets others of the burst close by.
    share, chance = enclosed / callees.size, max(chances, default=1.0)
    if len(chances) < _ENOUGH or share <= chance:
        return 0.0, 0.0
    surprise = share * np.log(share / chance)
    if share < 1:
        surprise += (1 - share) * np.log((1 - share) / (1 - chance))
    return float(callees.size * surprise), (share - chance) / (1 - chance)


def _count(skeleton: Skeleton, callees: Ints, callers: Ints, move: int) -> tuple[int, int]:
    """How many callees, moved in time, some caller encloses, and how many stay in the capture."""
    low, high = skeleton.window
    enclosed = tried = 0
    for code in np.unique(skeleton.process[callees]).tolist():
        mine = callees[skeleton.process[callees] == code]
        theirs = callers[skeleton.process[callers] == code]
        start, end = skeleton.start[mine] + move, skeleton.end[mine] + move
        inside: Bools = (start >= low) & (end <= high)
        tried += int(inside.sum())
        if theirs.size:
            place = np.searchsorted(skeleton.start[theirs] - _TOLERANCE_NS, start, side="right")
            latest = np.maximum.accumulate(skeleton.end[theirs]) + _TOLERANCE_NS
            within = (place > 0) & (end <= latest[np.maximum(place - 1, 0)])
            enclosed += int((within & inside).sum())
    return enclosed, tried


def enclosed_by(skeleton: Skeleton, callees: Ints, callers: Ints) -> Bools:
    """Tell which pairs of rows lie one within the other.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees, callers : ndarray of int64
        Rows, pair by pair.

    Returns
    -------
    ndarray of bool
        True where the caller lasts at least as long as the callee.

    Raises
    ------
    ValueError
        If they differ in length.
    """
    within: Bools = (skeleton.end[callees] <= skeleton.end[callers] + _TOLERANCE_NS) & (
        skeleton.start[callees] >= skeleton.start[callers] - _TOLERANCE_NS
    )
    return within
