"""What the intact calls to an operation tell: who makes them, when, and how many each."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from tracelab.structure.codes import entries_by_code
from tracelab.structure.skeleton import Ints, Skeleton

REGULAR: Final = 0.8
"""Least share of callers that make one number of calls for that number to be a rule."""


@dataclass(frozen=True, slots=True)
class Intact:
    """What intact calls of one caller class to the operation look like.

    Parameters
    ----------
    start_gap, end_gap : ndarray of int64
        Callee start minus caller start, caller end minus callee end.
    duration : ndarray of int64
        How long the callees took.
    per_caller : float
        Calls per caller that calls at all.
    """

    start_gap: Ints
    end_gap: Ints
    duration: Ints
    per_caller: float


def known_calls(skeleton: Skeleton, rows: Ints, *, least: int = 2) -> dict[int, Intact]:
    """Learn from the intact calls to an operation, per caller class.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    rows : ndarray of int64
        Intact rows of the operation.
    least : int
        Caller classes with fewer calls are left out: an odd link or two is no rule.

    Returns
    -------
    dict of int to Intact
        By caller class. Links to a parent that began after its child do not count.

    Raises
    ------
    IndexError
        If a row has no parent.
    """
    parent = skeleton.parent[rows]
    causal = skeleton.start[parent] <= skeleton.start[rows] + 5_000_000
    rows, parent = rows[causal], parent[causal]
    classes = skeleton.caller_class[parent]
    known = {}
    for code, mine in entries_by_code(classes):
        if mine.size < least:
            continue
        callee, caller = rows[mine], parent[mine]
        start, end = skeleton.start[callee], skeleton.end[callee]
        known[code] = Intact(
            start_gap=start - skeleton.start[caller],
            end_gap=skeleton.end[caller] - end,
            duration=end - start,
            per_caller=float(mine.size) / np.unique(caller).size,
        )
    return known


def callers_with_room(skeleton: Skeleton, rows: Ints, intact: Ints, per_caller: float) -> Ints:
    """Leave out callers that have made all the calls to an operation that callers make.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    rows : ndarray of int64
        Rows of one caller class.
    intact : ndarray of int64
        Intact rows of the operation.
    per_caller : float
        Calls per caller of the class that calls at all.

    Returns
    -------
    ndarray of int64
        Of `rows`. All of them, where callers make now more, now fewer calls.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    parents, calls = np.unique(skeleton.parent[intact], return_counts=True)
    if per_caller <= 1.3:
        return rows[~np.isin(rows, parents, assume_unique=True)]
    place = np.minimum(np.searchsorted(parents, rows), parents.size - 1)
    made = np.where(parents[place] == rows, calls[place], 0)
    calling = made[made > 0]
    if not calling.size:
        return rows
    usual = np.median(calling)
    return rows[made < usual] if (calling == usual).mean() >= REGULAR else rows
