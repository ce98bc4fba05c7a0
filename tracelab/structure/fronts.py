"""Response codes that come from something in front of a peer: a limiter, a cache, a sidecar."""

from typing import Final

import numpy as np

from tracelab.structure.skeleton import Bools, Floats, Ints, Skeleton

_NEAR: Final = 5
"""Calls on either side that tell how many server spans their peer loses at that time."""

_BY_CHANCE: Final = 0.1
"""Highest probability that calls which all lack a server span were all lost: even one such call is
no loss where only one in ten near it is. A code that the server is never seen to send is no sign
that it sent it."""

_FAR_BELOW: Final = 0.5
"""Most of the answers due that a code may have and still come from something in front."""

_DEVIATIONS: Final = 4.0
"""Least distance from what the losses nearby explain, where some calls with the code are
answered: a limiter before the peer has a twin within it."""


def answered_in_front(skeleton: Skeleton, calls: Ints, callee: Ints) -> Bools:
    """Find calls whose response code their peer hardly ever gives.

    Where calls with other codes have a server span and those with this one have none, something
    before the peer gave it, which records nothing. No code is special. Losses at the peer take
    calls with other codes at the same time as well, so that those nearby tell what losses explain.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    calls : ndarray of int64
        Rows of calls, in order of time.
    callee : ndarray of int64
        Service that usually answers, call by call; -1 where none does.

    Returns
    -------
    ndarray of bool
        Call by call; only such as have no server span.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    found = np.zeros(calls.size, bool)
    code = skeleton.column("code")[calls].astype(np.int64)
    place = np.flatnonzero((callee >= 0) & (code > 0) & ~skeleton.column("turned_away")[calls])
    served = skeleton.served[calls]
    kind, which = np.unique(callee[place] * (1 << 16) + code[place], return_inverse=True)
    open_calls = np.bincount(which[~served[place]], minlength=kind.size)
    for number in np.flatnonzero(open_calls):
        of_peer = place[callee[place] == kind[number] >> 16]
        mine = code[of_peer] == kind[number] & 0xFFFF
        others, these = of_peer[~mine], of_peer[mine]
        if served[others].sum() < _NEAR:
            continue
        lost = _lost_nearby(others, ~served[others], these)
        if _from_before(lost, served[these]):
            found[these[~served[these]]] = True
    return found


def _lost_nearby(others: Ints, lost: Bools, these: Ints) -> Floats:
    """Share of the nearest calls with other codes that have no server span, call by call."""
    at = np.searchsorted(others, these)
    low, high = np.maximum(at - _NEAR, 0), np.minimum(at + _NEAR, others.size)
    before = np.append(0, np.cumsum(lost))
    shares: Floats = (before[high] - before[low] + 0.5) / (high - low + 1)
    return shares


def _from_before(lost: Floats, served: Bools) -> bool:
    """Whether losses like those nearby hardly ever leave so few calls with a server span."""
    if not served.any():
        return bool(np.log(lost).sum() <= np.log(_BY_CHANCE))
    due, spread = (1 - lost).sum(), np.sqrt((lost * (1 - lost)).sum())
    few = served.sum() <= _FAR_BELOW * due
    return bool(few and due - served.sum() >= _DEVIATIONS * spread)
