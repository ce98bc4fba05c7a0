"""Work that always lies within spans of one kind, beyond what chance and bursts make of it.

Delays tell caller and callee apart from strangers only where they are much alike. A caller that
waits for its callee encloses it whatever the delay. How often chance encloses is counted close
by, after small moves in time, so that bursts of traffic are part of it.
"""

from typing import Final

import numpy as np

from tracelab.structure.calls import by_process
from tracelab.structure.skeleton import ONE_CLOCK_NS, Bools, Ints, Skeleton

_MOVES: Final = (1, 2, 4, 8, 16, 32)
"""Moves to both sides, in lengths of a caller and a callee: none still overlaps its own."""

_ENOUGH: Final = 4
"""Least moves that leave half of the callees in the capture: longer callers prove nothing."""

_EACH: Final = 2
"""Callees per caller, at most: a stream that lasts through everything encloses everything."""


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
    places = [_Place(skeleton, *both) for both in by_process(skeleton, callees, callers)]
    share = sum(place.enclosed(0)[0] for place in places) / callees.size
    # The worst of them: who comes in bursts meets others of the burst close by.
    chance, known = 0.0, 0
    for move in _MOVES:
        met = [place.enclosed(sign * move * length) for sign in (-1, 1) for place in places]
        hits, tried = (sum(column) for column in zip(*met, strict=True))
        if tried >= callees.size:
            known += 1
            chance = max(chance, (hits + 1) / (tried + 2))
            if share <= chance:
                return 0.0, 0.0
    if known < _ENOUGH:
        return 0.0, 0.0
    surprise = share * np.log(share / chance)
    if share < 1:
        surprise += (1 - share) * np.log((1 - share) / (1 - chance))
    return float(callees.size * surprise), (share - chance) / (1 - chance)


class _Place:
    """Callees and callers of one process."""

    def __init__(self, skeleton: Skeleton, callees: Ints, callers: Ints) -> None:
        self._window = skeleton.window
        self._start, self._end = skeleton.start[callees], skeleton.end[callees]
        self._begun = skeleton.start[callers] - ONE_CLOCK_NS
        self._latest = np.maximum.accumulate(skeleton.end[callers]) + ONE_CLOCK_NS

    def enclosed(self, move: int) -> tuple[int, int]:
        """How many callees, moved in time, some caller encloses; how many stay in the capture."""
        low, high = self._window
        start, end = self._start + move, self._end + move
        inside: Bools = (start >= low) & (end <= high)
        tried = int(inside.sum())
        if not self._begun.size:
            return 0, tried
        place = np.searchsorted(self._begun, start, side="right")
        within = (place > 0) & (end <= self._latest[np.maximum(place - 1, 0)])
        return int((within & inside).sum()), tried


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
    within: Bools = (skeleton.end[callees] <= skeleton.end[callers] + ONE_CLOCK_NS) & (
        skeleton.start[callees] >= skeleton.start[callers] - ONE_CLOCK_NS
    )
    return within
