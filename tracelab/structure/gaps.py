"""Gaps between the spans that a process exported, in which others are missing: what made them.

A refused batch takes all spans of one stretch of end times and leaves its neighbours alone. A
full queue takes whatever ends until the next batch is drawn from it, again and again: as many
spans come through between two gaps as a batch holds. One gap alone may be either.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from tracelab.structure.codes import mix64
from tracelab.structure.missing import Missing
from tracelab.structure.skeleton import Bools, Floats, Ints, Skeleton

HOLE: Final = 8.0
"""A gap is wide if it lasts for this many spans at the pace around it: chance makes such a gap
between independent spans once in 3,000."""

CHANCE: Final = 0.01
"""How often losses without a pattern may fill some gap of a process with missing spans."""

CLOSE: Final = 4.0
"""A full queue takes in one batch and refuses what comes until the next is drawn: the spans it
lets through are at most this many times those it loses, or it would lose a fifth and less."""

ALONE, CLOSE_BY, BETWEEN, STEADY = range(4)
"""How a gap stands to others: by itself, close to one, close to one on either side, or one of
several with equally many exported spans between them."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gap of each missing span.

    Parameters
    ----------
    found : ndarray of bool
        It ended in a gap that losses without a pattern do not make.
    many : ndarray of int64
        Missing spans that are known to have ended in that gap.
    wide : ndarray of bool
        The gap is long for the pace of its process.
    company : ndarray of int64
        ALONE, CLOSE_BY, BETWEEN or STEADY.
    room : ndarray of float64
        How many spans of its process, at its mean pace, fit into the longest gap in which it
        may have ended; infinite before its first and behind its last one, or where it is not
        known.
    """

    found: Bools
    many: Ints
    wide: Bools
    company: Ints
    room: Floats


def find_gaps(skeleton: Skeleton, missing: Missing, explained: Bools) -> Gaps:
    """Find for each missing span the gap in its process's exports in which it ended.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing, with its likely process.
    explained : ndarray of bool
        What has a cause that lies in its operation or service: it may end anywhere, and is in
        no gap.

    Returns
    -------
    Gaps
        Entry by entry of `missing`.

    Raises
    ------
    ValueError
        Never.
    """
    n = missing.row.size
    gaps = Gaps(
        found=np.zeros(n, bool),
        many=np.zeros(n, np.int64),
        wide=np.zeros(n, bool),
        company=np.zeros(n, np.int64),
        room=np.full(n, np.inf),
    )
    order = np.argsort(missing.process, kind="stable")
    codes, begin = np.unique(missing.process[order], return_index=True)
    for code, mine in zip(codes, np.split(order, begin[1:]), strict=True):
        if code >= 0:
            once = np.isin(mine, distinct_entries(skeleton, missing, mine))
            once &= ~explained[mine]
            _fill(gaps, ends_of(skeleton, int(code)), missing, mine, once)
    gaps.found[explained] = False
    return gaps


def ends_of(skeleton: Skeleton, process: int) -> Ints:
    """Return when the spans of a process ended, sorted.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    process : int
        Row in its `processes`.

    Returns
    -------
    ndarray of int64
        Nanoseconds since the epoch.

    Raises
    ------
    ValueError
        Never.
    """
    rows = skeleton.by_process.rows(process)
    # Rows are in order of start, so that ends are nearly in order.
    ends: Ints = np.sort(skeleton.end[rows[skeleton.timed[rows]]], kind="stable")
    return ends


def distinct_entries(skeleton: Skeleton, missing: Missing, entries: Ints) -> Ints:
    """Return one entry per missing span: several orphans may have lost one parent.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.
    entries : ndarray of int64
        Those to look at.

    Returns
    -------
    ndarray of int64
        Some of `entries`.

    Raises
    ------
    IndexError
        If an entry does not exist.
    """
    rows, span = missing.row[entries], missing.span[entries]
    ids = np.where(span > 0, span ^ mix64(skeleton.trace_ids(rows)[1]), rows.astype("u8"))
    return entries[np.unique(ids, return_index=True)[1]]


def _fill(gaps: Gaps, ends: Ints, missing: Missing, mine: Ints, once: Bools) -> None:
    """Look at one process: gap `k` lies between its ends `k` and `k + 1`."""
    if ends.size < 8:
        return
    low, high = missing.end_low[mine], missing.end_high[mine]
    home = np.searchsorted(ends, (low + high) // 2) - 1
    inner = (home >= 0) & (home < ends.size - 1)
    length = np.diff(ends)
    gaps.room[mine] = _room(ends, length, low, high)
    # An end that is known less well than the gap is long tells nothing of it.
    inner[inner] &= (high - low)[inner] <= 2 * np.maximum(length[home[inner]], 1)
    many = np.bincount(home[inner & once], minlength=length.size)
    usual = _usual(length)
    wide = _wide(length, usual)
    lost = max(int(once.sum()), 1)
    share = lost / (lost + ends.size)
    enough = max(3.0, np.log(ends.size / CHANCE) / -np.log(share))
    chosen = np.flatnonzero((many >= enough) | (wide & (many >= 2)))
    if not chosen.size:
        return
    company = np.zeros(length.size, np.int64)
    # Work comes in bursts: the pace around a gap may be far above that of the whole life.
    pace = np.maximum(usual[chosen], length.mean())
    due = np.maximum(many[chosen], length[chosen] / np.maximum(pace, 1.0))
    company[chosen] = _company(chosen, due)
    at, near = _nearest(ends, chosen, home, low, high)
    hit = mine[near]
    gaps.found[hit] = True
    gaps.many[hit] = many[at[near]]
    gaps.wide[hit] = wide[at[near]]
    gaps.company[hit] = company[at[near]]


def _room(ends: Ints, length: Ints, low: Ints, high: Ints) -> Floats:
    """Give the longest gap that each time between two ends touches, in spans at the mean pace."""
    first = np.searchsorted(ends, low) - 1
    behind = np.searchsorted(ends, high)
    inner = (first >= 0) & (behind < ends.size)
    # `reduceat` takes pairs: from the first gap that is touched to the one behind the last.
    bounds = np.stack([first, np.maximum(behind, first + 1)], axis=1)[inner].ravel()
    longest = np.maximum.reduceat(np.append(length, 0), bounds)[::2] if bounds.size else bounds
    room = np.full(low.size, np.inf)
    room[inner] = longest / max(float(length.mean()), 1.0)
    return room


def _usual(length: Ints) -> Floats:
    """Mean gap between the twelve ends before and behind each gap."""
    reach, place = 12, np.arange(length.size)
    total = np.concatenate([[0], np.cumsum(length)])
    low = np.maximum(place - reach, 0)
    high = np.minimum(place + reach + 1, length.size)
    mean: Floats = (total[high] - total[low] - length) / np.maximum(high - low - 1, 1)
    return mean


def _wide(length: Ints, usual: Floats) -> Bools:
    """Gaps that the pace around them makes improbable.

    Where work comes in bursts, long gaps are usual; a hole is twice the longest usual one.
    """
    if length.size < 23:
        return np.zeros(length.size, bool)
    wide: Bools = (length > HOLE * np.maximum(usual, 1.0)) & (
        length > 2 * np.quantile(length, 0.985)
    )
    return wide


def _company(chosen: Ints, due: Floats) -> Ints:
    """Tell how each gap stands to the ones before and behind it."""
    runs = np.diff(chosen)
    near = runs <= CLOSE * np.maximum(due[:-1], due[1:])
    sides = np.zeros(chosen.size, np.int64)
    sides[1:] += near
    sides[:-1] += near
    alike = (np.abs(np.diff(runs)) <= np.maximum(1, 0.02 * runs[1:])) & near[1:] & near[:-1]
    for shift in range(3):
        sides[shift : shift + alike.size][alike] = STEADY
    return sides


def _nearest(ends: Ints, chosen: Ints, home: Ints, low: Ints, high: Ints) -> tuple[Ints, Bools]:
    """Give the chosen gap of each end: its own, or one that it may have fallen into as well."""
    at = chosen[np.minimum(np.searchsorted(chosen, home), chosen.size - 1)]
    before = chosen[np.maximum(np.searchsorted(chosen, home, side="right") - 1, 0)]
    reached = (ends[at] < high) & (ends[at + 1] > low)
    reached_before = (ends[before] < high) & (ends[before + 1] > low)
    at = np.where(reached | ~reached_before, at, before)
    narrow = (high - low) <= 2 * np.maximum(ends[at + 1] - ends[at], 1)
    return at, (reached | reached_before) & narrow
