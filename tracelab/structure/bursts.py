"""Bursts in which a process loses spans and exports others: what a full queue does."""

from typing import Final

import numpy as np

from tracelab.structure.gaps import CHANCE, distinct_entries, ends_of
from tracelab.structure.missing import Missing
from tracelab.structure.owners import Owners
from tracelab.structure.skeleton import Bools, Floats, Ints, Skeleton

_REACH: Final = 20
"""Exported spans between two losses from which they are of different bursts."""

_SURE: Final = 5.0
"""Odds of a process from which a missing span is counted as its own."""

_IN_ONE: Final = 0.9
"""Share of the spans of a lost batch whose estimated end reaches the one gap that it left: ends
are known between their 5th and 95th percentile."""

_BY_CHANCE: Final = 0.5
"""The same share of spans that were lost in several gaps, for the one that most of them reach."""

_LEAST: Final = 3
"""Least spans of which a burst is made."""


def scattered_losses(
    skeleton: Skeleton, missing: Missing, owners: Owners, explained: Bools
) -> Floats:
    """Weigh, for spans lost in bursts, that they were lost in several gaps and not in one.

    A lost batch leaves one gap in the ends of its process, and the spans in it end there. A
    full queue lets some through in between. Losses without a pattern make no bursts, and what
    is never ended is one operation.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing, with its likely process.
    owners : Owners
        How likely that is.
    explained : ndarray of bool
        What has a cause that lies in its operation or service; it is passed over.

    Returns
    -------
    ndarray of float64
        How much likelier several gaps are than one, entry by entry; 0 for what is in no burst.

    Raises
    ------
    ValueError
        Never.
    """
    weight = np.zeros(missing.row.size)
    sure = np.flatnonzero((owners.odds >= _SURE) & ~explained)
    sure = sure[np.argsort(missing.process[sure], kind="stable")]
    codes, begin = np.unique(missing.process[sure], return_index=True)
    for code, mine in zip(codes.tolist(), np.split(sure, begin[1:]), strict=False):
        if mine.size >= _LEAST:
            ends = ends_of(skeleton, code)
            once = np.isin(mine, distinct_entries(skeleton, missing, mine))
            for burst in _bursts(ends, missing, mine, once):
                weight[burst] = _several_gaps(ends, missing, burst, once[np.isin(mine, burst)])
    return weight


def _bursts(ends: Ints, missing: Missing, mine: Ints, once: Bools) -> list[Ints]:
    """Find runs of losses that are denser than elsewhere, of more than one operation."""
    when = (missing.end_low[mine] + missing.end_high[mine]) // 2
    order = np.argsort(when, kind="stable")
    place = np.searchsorted(ends, when[order])
    lost = int(once.sum())
    found = []
    runs = np.split(order, np.flatnonzero(np.diff(place) > _REACH) + 1)
    for run in runs:
        many, around = int(once[run].sum()), int(np.ptp(np.searchsorted(ends, when[run])))
        if many < _LEAST or np.unique(missing.op[mine[run]]).size < 2:
            continue
        others = lost - many + 1
        due = (many + around) * others / (others + max(ends.size - around, 0))
        # Chernoff's bound of the Poisson tail, for as many runs as there are.
        bound = due - many + many * np.log(many / due)
        if many > due and bound > np.log(len(runs) / CHANCE):
            found.append(np.sort(mine[run]))
    return found


def _several_gaps(ends: Ints, missing: Missing, burst: Ints, once: Bools) -> float:
    """Likelihood of several gaps against one, by how many spans reach the one that most do."""
    first = np.searchsorted(ends, missing.end_low[burst[once]])
    last = np.searchsorted(ends, missing.end_high[burst[once]])
    low = int(first.min())
    steps = np.zeros(int(last.max()) - low + 2)
    np.add.at(steps, first - low, 1)
    np.add.at(steps, last - low + 1, -1)
    inside = int(np.cumsum(steps).max())
    outside = first.size - inside
    odds = (_BY_CHANCE / _IN_ONE) ** inside * ((1 - _BY_CHANCE) / (1 - _IN_ONE)) ** outside
    return float(odds)
