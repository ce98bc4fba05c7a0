"""Spans that the capture's edges cut off: open when it stopped, or over before it began.

How long an operation's parents outlast their children is known from the whole ones. An orphan
near the end of the capture is no loss if, by that law, its parent is likelier to be open still
than to be among the spans that get lost anyway.
"""

from functools import cached_property
from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.codes import entries_by_code, mix64, sorted_by_code
from tracelab.structure.losses import EXPORT_DELAY_NS, Lifetimes
from tracelab.structure.missing import Missing, edges_around
from tracelab.structure.rates import wilson_interval
from tracelab.structure.skeleton import Bools, Floats, Ints, Skeleton

_TAIL_SHARE: Final = 0.02
"""Share of the longest values from which the tail of a law is read."""

_STEEPEST: Final = 4.0
"""Latencies have power-law tails; a handful of values may look steeper than they are."""

_ENOUGH: Final = 5
"""Least values from which anything is said of a law."""

_SAMPLE: Final = 2_000_000
"""Spans from which laws are read."""

_BINS: Final = 24
"""Steps of distance from an edge in which shares of missing spans are counted."""

_LEAST_CUT: Final = 0.005
"""Least share of a service's spans that goes when one of its replicas is cut off: one of two
hundred."""

_LEAST_ALONE: Final = 0.05
"""The same where only one span is missing: a batch seldom holds one."""

_SILENT: Final = 0.01
"""Share of pauses that are longer, below which a parent without a further sign was lost."""

_LOSES: Final = (5, 0.05)
"""Least such parents, and least share of them, from which an operation is known to lose its
parents wherever the capture ends."""

_RATHER_LOST: Final = 0.2
"""Odds of a span open at the end below which one of such an operation was lost."""

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
    span = missing.span ^ mix64(skeleton.trace_ids(missing.row)[1])
    alone = mix64(missing.row.astype(np.uint64))
    family: Ints = np.unique(np.where(missing.call, alone, span), return_inverse=True)[1]
    return family


def open_odds(skeleton: Skeleton, missing: Missing, lifetimes: Lifetimes) -> tuple[Floats, Bools]:
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
    odds : ndarray of float64
        Entry by entry; 0 for processes that stopped before the capture.
    lost : ndarray of bool
        It is likelier lost, since its operation is known to lose parents far from the end, too.

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
    left = lifetimes.last - np.where(orphan, latest[family], end)
    asked = skeleton.timed[missing.row] & ~lifetimes.exited
    final = asked & orphan & (left > 0) & (end == latest[family])
    odds, loses = _odds(skeleton, missing, (asked & missing.call) | final, left, sign=1)
    odds[orphan & asked & (left <= 0)] = np.inf
    active = orphan & asked & _still_active(family, end, orphan, left)
    odds[active] = np.maximum(odds[active], 10.0)
    # One span has one fate: what one of its children tells holds for all.
    best = np.zeros(latest.size)
    np.maximum.at(best, family[orphan], odds[orphan])
    odds[orphan] = best[family[orphan]]
    known = np.zeros(latest.size, bool)
    known[family[loses]] = True
    return odds, known[family] & orphan & (odds < _RATHER_LOST)


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
    low, _ = edges_around(skeleton, missing)
    since = skeleton.end[missing.row] - lifetimes.heard_from(low)
    return _odds(skeleton, missing, orphan & (since > 0), since, sign=-1)[0]


def _odds(
    skeleton: Skeleton, missing: Missing, asked: Bools, age: Ints, *, sign: int
) -> tuple[Floats, Bools]:
    """Compare, per entry, the law's survival at an age with the share that is lost anyway.

    And tell where that is the share of parents which an operation lost long before the end.
    """
    odds, loses = np.zeros(missing.row.size), np.zeros(missing.row.size, bool)
    low, high = skeleton.window
    near = np.flatnonzero(asked & (age < high - low))
    if not near.size:
        return odds, loses
    loss = _loss_shares(skeleton, missing)
    parents = _Pauses(skeleton, sign)
    for call in (False, True):
        mine = near[missing.call[near] == call]
        keys = (skeleton.caller_class if call else skeleton.op)[missing.row[mine]]
        servers = _server_gaps(skeleton, keys) if call else {}
        for code, entries in entries_by_code(keys):
            group = mine[entries]
            gaps = sign * servers.get(code, _NO_GAPS) if call else parents.of(code)
            alive = survival(gaps, age[group].astype(np.float64), outliers=parents.outliers)
            if sign > 0 and not call and gaps.size >= _ENOUGH:
                gone = int((alive < _SILENT).sum())
                share = gone / (gone + parents.many(code))
                if gone >= _LOSES[0] and share >= _LOSES[1]:
                    loss[group], loses[group] = np.maximum(loss[group], share), True
            odds[group] = alive / loss[group]
    return odds, loses


_NO_GAPS: Final = np.zeros(0, np.int64)


class _Pauses:
    """How long after a child the next sign of its parent comes: another child, or its own end.

    Before the capture's begin (``sign`` -1): how long the child outlasts its parent.
    """

    def __init__(self, skeleton: Skeleton, sign: int) -> None:
        rows, self._each = skeleton.once(_some_children)
        parent, end = skeleton.parent[rows], skeleton.end[rows]
        until = skeleton.end[parent]
        if sign > 0:
            order = np.lexsort((end, parent))
            rows, parent, end, until = (each[order] for each in (rows, parent, end, until))
            again = parent[1:] == parent[:-1]
            until[:-1][again] = end[1:][again]
        order = sorted_by_code(skeleton.op[rows])
        self._gaps: Ints = sign * (until - end)[order]
        self._parent = parent[order]
        self._begin = np.searchsorted(skeleton.op[rows][order], np.arange(skeleton.ops.height + 1))

    @cached_property
    def outliers(self) -> Floats:
        """How far the longest of each operation reach beyond where its tail begins, in order."""
        many = np.diff(self._begin)
        op = np.repeat(np.arange(many.size), many)
        gaps = self._gaps.astype(np.float64)
        for of_op in np.split(gaps, self._begin[1:-1]):
            of_op.sort()
        first = self._begin[1:] - _in_tail(many)
        least = gaps[np.maximum(first, 0)[op]]
        told = (np.arange(gaps.size) >= first[op]) & (many[op] >= _ENOUGH) & (least > 0)
        return np.sort(gaps[told] / least[told])

    def of(self, op: int) -> Ints:
        """Return those of an operation."""
        return self._gaps[self._begin[op] : self._begin[op + 1]]

    def many(self, op: int) -> int:
        """Return how many parents there are of an operation."""
        return self._each * np.unique(self._parent[self._begin[op] : self._begin[op + 1]]).size


def _some_children(skeleton: Skeleton) -> tuple[Ints, int]:
    """Return all children of a sample of parents, and of how many parents each is one.

    All would cost seconds of sorting at tens of millions.
    """
    rows = skeleton.intact
    rows = rows[skeleton.timed[rows]]
    each = 1 + rows.size // _SAMPLE
    return rows[skeleton.parent[rows] % each == 0], each


def _server_gaps(skeleton: Skeleton, classes: Ints) -> dict[int, Ints]:
    """How long the servers outlast the calls of some classes."""
    asked = np.zeros(int(skeleton.caller_class.max(initial=0)) + 1, bool)
    asked[classes] = True
    rows = skeleton.intact
    of = skeleton.caller_class[skeleton.parent[rows]]
    return {
        code: skeleton.end[rows[mine]] - skeleton.end[skeleton.parent[rows[mine]]]
        for code, mine in entries_by_code(of, asked[of])
    }


def cut_odds(skeleton: Skeleton, missing: Missing) -> Floats:
    """Tell how much likelier each missing span lies in a batch cut off at an edge than lost.

    Each process sends its batches at moments of its own, and a capture starts and stops for all
    at once: near its edges the last (first) batch of one replica is there and that of another
    is not. Which replica a missing span belonged to is often not known, nor how many there are
    where nothing tells instances apart. What shows is the share of missing spans, which rises
    towards the edge and is compared with that of the same service far from it.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing, each with the process that is known, not guessed.

    Returns
    -------
    ndarray of float64
        Odds, entry by entry; 0 where the process is known, as its own first and last span tell.
    """
    lows, highs = edges_around(skeleton, missing)
    zones = np.minimum(EXPORT_DELAY_NS, (highs - lows) // 4)
    when = (missing.end_low + missing.end_high) // 2
    odds = np.zeros(missing.row.size)
    near = (when < lows + zones) | (when > highs - zones)
    asked = near & skeleton.timed[missing.row] & ~_told_apart(skeleton, missing) & (zones > 0)
    if not asked.any():
        return odds
    once = np.zeros(missing.row.size, bool)
    once[np.unique(families(skeleton, missing), return_index=True)[1]] = True
    _, capture = np.unique(np.stack([missing.service, lows, highs]), axis=1, return_inverse=True)
    capture = capture.reshape(-1)
    known, ends = -2, _NO_GAPS
    for code in np.unique(capture[asked]).tolist():
        alike = capture == code
        mine = np.flatnonzero(asked & alike)
        low, high, zone = (int(each[mine[0]]) for each in (lows, highs, zones))
        lost = when[once & alike]
        # Captures are numbered service by service.
        if missing.service[mine[0]] != known:
            known = int(missing.service[mine[0]])
            ends = _ends(skeleton, known)
        held = ends[(ends >= low) & (ends <= high)]
        usual = _share_between(lost, held, low + zone, high - zone)
        for lost_at, held_at, at in (
            (lost - low, held - low, when[mine] - low),
            (high - lost, high - held, high - when[mine]),
        ):
            share = _rising_share(lost_at, held_at, zone)
            step = np.clip(at * _BINS // zone, 0, _BINS)
            fitted = np.append(share, 0.0)[step]
            least = _LEAST_CUT if ((lost_at >= 0) & (lost_at < zone)).sum() > 1 else _LEAST_ALONE
            more = np.where(fitted >= least, (fitted - usual) / usual, 0.0)
            odds[mine] = np.maximum(odds[mine], more)
    return odds


def _ends(skeleton: Skeleton, service: int) -> Ints:
    """When the spans of a service ended; those of all services for -1."""
    rows = np.flatnonzero(skeleton.timed)
    if service >= 0:
        rows = skeleton.rows_of_service(service)
        rows = rows[skeleton.timed[rows]]
    ends: Ints = skeleton.end[rows]
    return ends


def _told_apart(skeleton: Skeleton, missing: Missing) -> Bools:
    """Whether the process of a missing span is known, and is one process for certain."""
    single = skeleton.processes.select(
        pl.col("service_instance_id").is_not_null() | pl.col("process_pid").is_not_null()
    )
    certain = np.append(single.to_series().to_numpy(), False)
    many = skeleton.processes["service_name"].value_counts()
    alone = skeleton.processes["service_name"].is_in(
        many.filter(pl.col("count") == 1)["service_name"].implode()
    )
    only = np.append(alone.to_numpy(), False)
    told: Bools = certain[missing.process] & (missing.local | only[missing.process])
    return told


def _share_between(lost: Ints, held: Ints, low: int, high: int) -> float:
    """Share of spans that are missing between two moments; never 0."""
    n_lost = int(((lost >= low) & (lost <= high)).sum())
    n_held = int(((held >= low) & (held <= high)).sum())
    return (n_lost + _FEW) / (n_lost + n_held + 1)


def _rising_share(lost: Ints, held: Ints, zone: int) -> Floats:
    """Share of missing spans by distance from an edge, never falling towards it.

    Isotonic regression (Barlow, Bartholomew, Bremner and Brunk, 1972), but nowhere more than
    what is missing nearer to the edge allows: a batch lost shortly before it is no cut.
    """
    from scipy.optimize import isotonic_regression  # 0.2 s, and seldom needed

    gone, kept = (
        np.bincount(np.clip(each[each < zone] * _BINS // zone, 0, _BINS - 1), minlength=_BINS)
        for each in (lost, held)
    )
    both = gone + kept
    seen = both > 0
    if not seen.any():
        return np.zeros(_BINS)
    fit = isotonic_regression(gone[seen] / both[seen], weights=both[seen], increasing=False).x
    place = np.maximum(np.cumsum(seen) - 1, 0)
    _, most = wilson_interval(np.cumsum(gone), np.cumsum(both))
    nearer = np.concatenate([[1.0], most[:-1]])
    share: Floats = np.minimum(np.asarray(fit)[place], np.minimum.accumulate(nearer))
    return share


def survival(values: Ints, at: Floats, *, outliers: Floats | None = None) -> Floats:
    """Share of values above some thresholds, continued beyond the largest by a power law.

    Parameters
    ----------
    values : ndarray of int64
        A sample.
    at : ndarray of float64
        Thresholds above 0.
    outliers : ndarray of float64, optional
        Of many samples, how far the longest values reach beyond where the tail begins, as a
        ratio, in order. One in thousands may hang for a reason of its own, and a single sample
        seldom shows that; no tail is thinner than that of all together.

    Returns
    -------
    ndarray of float64
        Threshold by threshold; 0 from fewer than five values.

    Raises
    ------
    ValueError
        Never.
    """
    if values.size < _ENOUGH:
        return np.zeros(at.size)
    ordered = np.sort(values)
    share = 1 - np.searchsorted(ordered, at, side="right") / ordered.size
    top = ordered[-int(_in_tail(ordered.size)) :].astype(np.float64)
    if top[0] <= 0:
        return share
    reach = np.maximum(at, top[0]) / top[0]
    slope = 1 / max(float(np.log(top / top[0]).mean()), 1 / _STEEPEST)
    tail = reach**-slope
    if outliers is not None and outliers.size:
        beyond = outliers.size - np.searchsorted(outliers, reach, side="right")
        tail = np.maximum(tail, beyond / outliers.size)
    tail *= top.size / ordered.size
    return np.where(at > top[0], np.maximum(share, tail), share)


def _in_tail(many: Ints | int) -> Ints:
    """How many of so many values are the longest, from which the tail of their law is read."""
    tail: Ints = np.maximum(4, (_TAIL_SHARE * np.asarray(many)).astype(np.int64))
    return tail


def _loss_shares(skeleton: Skeleton, missing: Missing) -> Floats:
    """Share of parents that other operations lose in the middle of the capture, per entry.

    Those of an operation itself may be long ones that the end cut off.
    """
    low, high = skeleton.window
    middle = (low + (high - low) // 4, low + 3 * (high - low) // 4)

    def inside(rows: Ints) -> Bools:
        end = skeleton.end[rows]
        within: Bools = (end > middle[0]) & (end < middle[1])
        return within

    once = np.zeros(missing.row.size, bool)
    once[np.unique(families(skeleton, missing), return_index=True)[1]] = True
    op = skeleton.op[missing.row]
    lost = once & ~missing.call & inside(missing.row)
    own = np.bincount(op[lost], minlength=skeleton.ops.height)
    total = int(lost.sum()) + int(inside(skeleton.intact).sum()) + 1
    shares: Floats = (lost.sum() - own[op] + _FEW) / total
    return shares


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
