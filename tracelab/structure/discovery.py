"""Callers that were never seen to call an operation: what speaks for them beyond chance.

Where every call of a hop loses its context, no intact call tells the delay law, and nothing
but time couples caller and callee. Time couples much else: load that comes and goes, two jobs
of one timetable, two requests of one browser. So a caller class must account for the callees
themselves, not merely overlap them more than chance has it: the number of pairs at some delays
is compared with the same count after the callees were moved in time, and backwards in time.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.calls import CallerClass, by_process, candidate_pairs
from tracelab.structure.codes import pair_codes
from tracelab.structure.enclosure import enclosed_by, enclosure
from tracelab.structure.laws import Law, pair_ranges, warp
from tracelab.structure.peers import Peers
from tracelab.structure.skeleton import (
    CLIENT,
    CONSUMER,
    INTERNAL,
    ONE_CLOCK_NS,
    PRODUCER,
    SERVER,
    Bools,
    Floats,
    Ints,
    Skeleton,
)
from tracelab.structure.spine import ROOT

MIN_CALLS: Final = 6
"""A caller that was never seen to call an operation is believed from this many calls on."""

MIN_SURPRISE: Final = 22.0
"""Least surprise, in nats, of so many pairs by chance: a tail of 1e-9, for dozens of classes
and hundreds of delays are tried."""

MIN_AFTER: Final = 30.0
"""The same where only the other direction in time tells chance."""

MAX_SHARE: Final = 1.5
"""A callee has one caller: far more pairs than callees beyond chance are bursts, not calls."""

MIN_SHARE: Final = 0.3
"""Least share of the callees (across the network: or of the calls) that a class accounts for."""

SIBLING_SHARE: Final = 0.8
"""A common caller accounts for nearly as many callees as the work beside them does."""

USUALLY_AROUND: Final = 0.8
"""Least share of callees that a root outlasts for it to be one that may have called them."""

MAX_CLASSES: Final = 6
MAX_TRIED: Final = 10

_LATELY_NS: Final = 20_000_000
"""A caller that ended this long ago may still have handed the work over."""

_QUEUED_NS: Final = 30_000_000_000
"""A message may wait this long before it is taken up."""

_SAMPLE: Final = 1_500
_BUDGET: Final = 600_000
"""Pairs to count per class, moved ones included."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A caller class that may call an operation though it was never seen to.

    Parameters
    ----------
    group : CallerClass
        The class and its free rows.
    law : Law
        First guess of its delays.
    share : float
        Share of the callees that it accounts for.
    surprise : float
        How unlikely chance makes it, in nats.
    share_error : float
        Standard error of the share.
    """

    group: CallerClass
    law: Law
    share: float
    surprise: float
    share_error: float = 0.0


def discover_callers(
    skeleton: Skeleton,
    op: int,
    callees: Ints,
    *,
    local: bool,
    tolerance_ns: int,
    peers: Peers | None = None,
) -> list[Suspect]:
    """Find caller classes that account for callees whose callers were never seen.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    op : int
        The operation of the callees.
    callees : ndarray of int64
        Rows in order of start.
    local : bool
        Whether the caller must be in the callee's process.
    tolerance_ns : int
        How far a callee may start before its caller.
    peers : Peers, optional
        What peer addresses say; asked of callers in other processes alone.

    Returns
    -------
    list of Suspect
        At most `MAX_CLASSES`, the most surprising first.

    Raises
    ------
    ValueError
        Never.
    """
    if callees.size < MIN_CALLS:
        return []
    if local and int(skeleton.op_kind[op]) == INTERNAL and _ticks(skeleton.start[callees]):
        return []  # a timetable of its own explains whatever it coincides with
    candidates = (
        _beside(skeleton, op, callees)
        if local or peers is None
        else _afar(skeleton, op, callees, peers)
    )
    found, others = [], []
    for code, rows in candidates:
        durations = skeleton.end[rows] - skeleton.start[rows]
        window = int(np.quantile(durations, 0.99) * 1.2) + _LATELY_NS
        if int(skeleton.kind[rows[0]]) == PRODUCER:
            # How long a message waits, no span of its sender tells.
            first, last = skeleton.window
            window = max(window, min(_QUEUED_NS, (last - first) // 10))
        group = CallerClass(code, rows, None, window)
        suspect = _weigh(skeleton, callees, group, local=local, tolerance_ns=tolerance_ns)
        if suspect is not None:
            found.append(suspect)
        others.append(group)
    if local:
        found = found or _who_enclose(skeleton, callees, others, tolerance_ns=tolerance_ns)
        found = _not_beside(skeleton, callees, found)
    found.sort(key=lambda suspect: (-suspect.surprise, suspect.group.code))
    return found[:MAX_CLASSES]


def _not_beside(skeleton: Skeleton, callees: Ints, found: list[Suspect]) -> list[Suspect]:
    """Leave out lost work that runs beside the callees where a caller of both is suspect too.

    Two jobs that one request hands to a pool begin together, more closely than either follows
    the request; each is a root, and neither waits for the other.
    """
    beside = [_is_lost_work(skeleton, callees, suspect.group.rows) for suspect in found]
    common = max((s.share for s, lost in zip(found, beside, strict=True) if not lost), default=0.0)
    return [
        suspect
        for suspect, lost in zip(found, beside, strict=True)
        if not lost or common < SIBLING_SHARE * min(suspect.share, 1.0)
    ]


def _is_lost_work(skeleton: Skeleton, callees: Ints, rows: Ints) -> bool:
    """Whether a class is of roots that nothing entered by, and that do not outlast the callees."""
    entered = np.isin(skeleton.kind[rows], (SERVER, CONSUMER))
    if float(((skeleton.state[rows] == ROOT) & ~entered).mean()) < 0.5:
        return False
    asked = outlasted = 0
    for mine, callers in by_process(skeleton, callees, rows):
        last = np.searchsorted(skeleton.start[callers], skeleton.start[mine], side="right") - 1
        mine, last = mine[last >= 0], last[last >= 0]
        asked += mine.size
        outlasted += int((skeleton.end[callers[last]] >= skeleton.end[mine]).sum())
    return outlasted < USUALLY_AROUND * asked


def _ticks(starts: Ints) -> bool:
    """Tell whether times follow a timetable: most gaps are multiples of one period."""
    gaps = np.diff(starts)
    gaps = gaps[gaps > 0]
    if gaps.size < 3:
        return False
    period = float(np.median(gaps))
    beats = gaps / period
    off = np.abs(beats - np.rint(beats))
    return bool(np.mean((off < 0.05) & (np.rint(beats) >= 1)) >= 0.8)


def _beside(skeleton: Skeleton, op: int, callees: Ints) -> list[tuple[int, Ints]]:
    """Caller classes of the callees' processes, those first that are open oftener than usual."""
    codes, counts = np.unique(skeleton.process[callees], return_counts=True)
    codes = codes[np.argsort(-counts, kind="stable")][:64]
    rows = np.sort(np.concatenate([skeleton.by_process.rows(int(code)) for code in codes]))
    rows = rows[skeleton.timed[rows]]
    # What hangs under another root of this operation shares its timetable, not a context;
    # and what such roots usually call is a callee of theirs that lost its own context.
    below = skeleton.op[skeleton.top[rows]] == op
    classes = skeleton.caller_class[rows]
    size = int(classes.max()) + 1 if rows.size else 1
    total = np.bincount(classes, minlength=size)
    often = np.bincount(classes[below], minlength=size) > 0.1 * total
    keep = ~below & ~often[classes]
    rows, classes = rows[keep], classes[keep]
    if not rows.size:
        return []
    sample = callees[:: max(callees.size // 300, 1)]
    present = _present(skeleton, sample, rows, size)
    likely = np.flatnonzero(present >= 0.5 * MIN_SHARE)
    length = max(skeleton.window[1] - skeleton.window[0], 1) * codes.size
    busy = skeleton.end[rows] - skeleton.start[rows] + _LATELY_NS
    usual = 1.0 - np.exp(-np.bincount(classes, weights=busy, minlength=size)[likely] / length)
    spread = np.sqrt(usual * (1.0 - usual) / sample.size) + 0.01
    likely = likely[np.argsort(-(present[likely] - usual) / spread, kind="stable")][:MAX_TRIED]
    return [(int(code), rows[classes == code]) for code in likely]


def _present(skeleton: Skeleton, sample: Ints, rows: Ints, size: int) -> Floats:
    """Share of callees at whose start a span of a class was open or had just ended, per class."""
    durations = skeleton.end[rows] - skeleton.start[rows]
    window = int(np.quantile(durations, 0.99)) + _LATELY_NS
    hits = np.zeros(size)
    for mine, near in by_process(skeleton, sample, rows):
        begins = skeleton.start[near]
        at = skeleton.start[mine]
        high = np.searchsorted(begins, at + ONE_CLOCK_NS, side="right")
        low = np.maximum(np.searchsorted(begins, at - window), high - 2_000)
        owner, position = pair_ranges(low, high)
        lately = skeleton.end[near[position]] >= at[owner] - _LATELY_NS
        owner, position = owner[lately], position[lately]
        pairs = np.unique(owner * size + skeleton.caller_class[near[position]])
        hits += np.bincount(pairs % size, minlength=size)
    return hits / max(sample.size, 1)


def _afar(skeleton: Skeleton, op: int, callees: Ints, peers: Peers) -> list[tuple[int, Ints]]:
    """Caller classes across the network or a queue whose names and peers allow the hop."""
    wanted = CLIENT if int(skeleton.op_kind[op]) == SERVER else PRODUCER
    unserved = skeleton.unserved_by_class
    likely = []
    for code in np.flatnonzero(unserved.counts >= max(MIN_CALLS, callees.size // 10)).tolist():
        row = int(unserved.rows(code)[0])
        if skeleton.kind[row] != wanted:
            continue
        says = peers.verdict(op, row)
        if says >= 0:
            distance = abs(float(np.log(unserved.counts[code] / callees.size)))
            likely.append((-says, distance, code))
    found = []
    for _, _, code in sorted(likely)[:MAX_TRIED]:
        mine = unserved.rows(code)
        below = skeleton.op[skeleton.top[mine]] == op
        free = mine[~below]
        if free.size >= MIN_CALLS and below.mean() <= 0.1:
            found.append((code, free))
    return found


def _weigh(
    skeleton: Skeleton,
    callees: Ints,
    group: CallerClass,
    *,
    local: bool,
    tolerance_ns: int,
) -> Suspect | None:
    """Compare the number of pairs at each delay with chance; None where chance will do."""
    each = _pairs_each(skeleton, callees, group, local)
    many = int(np.clip(_BUDGET / (10 * max(each, 1e-3)), 200, _SAMPLE))
    sample = callees[:: max(callees.size // many, 1)]
    pairs = candidate_pairs(
        skeleton, sample, [group], same_process=local, tolerance_ns=tolerance_ns
    )
    waits = _may_wait(skeleton, sample, pairs.caller, pairs.start_gap, tolerance_ns)
    gaps = pairs.start_gap[waits]
    if gaps.size < MIN_CALLS:
        return None
    # Calls that one request makes side by side are met together, and are no burst.
    together = pair_codes(pairs.callee[waits], skeleton.trace[pairs.caller[waits]], skeleton.n)
    most = MAX_SHARE * gaps.size / pl.Series(together).n_unique()
    observed = _histogram(gaps)
    shifts = _shifts(skeleton, group.window_ns, int(np.clip(2_000 / sample.size, 8, 500)))
    bounds = (-tolerance_ns, group.window_ns)
    places = by_process(skeleton, sample, group.rows) if local else [(sample, group.rows)]
    begun = [(*place, skeleton.start[place[1]]) for place in places]
    moved = np.stack([_histogram(_moved_gaps(skeleton, begun, bounds, shift)) for shift in shifts])
    if int(skeleton.kind[callees[0]]) in (CLIENT, PRODUCER):
        # A job on a timetable meets its own call again one period later: that is no chance.
        totals = moved.sum(axis=1)
        moved = moved[np.argsort(totals, kind="stable")[: int(np.ceil(0.9 * totals.size))]]
    # Bursts of traffic make callers and callees meet whichever comes first; calls do not.
    mirrored = _histogram(-_moved_gaps(skeleton, begun, (-group.window_ns, tolerance_ns), 0))
    surprise, share, error = _surprise(observed, moved, mirrored, sample.size)
    accounted = share * callees.size
    if (
        surprise < MIN_SURPRISE
        or share > most
        or accounted < MIN_SHARE * _least(callees, group, local)
    ):
        return None
    excess = observed - np.maximum(moved.mean(axis=0), mirrored)
    weight = np.clip(excess, 0, None) / np.maximum(observed, 1e-9)
    law = Law.fit(gaps, weight[_bins(gaps)])
    return Suspect(group, law, share, surprise, error)


def _who_enclose(
    skeleton: Skeleton, callees: Ints, groups: list[CallerClass], *, tolerance_ns: int
) -> list[Suspect]:
    """Find classes that enclose the callees, where no delay is common enough to tell."""
    found = []
    for group in groups:
        sample = callees[:: max(callees.size // _SAMPLE, 1)]
        surprise, share = enclosure(skeleton, sample, group.rows)
        if surprise < MIN_SURPRISE or share < MIN_SHARE:
            continue
        pairs = candidate_pairs(
            skeleton, sample, [group], same_process=True, tolerance_ns=tolerance_ns
        )
        within = enclosed_by(skeleton, sample[pairs.callee], pairs.caller)
        if within.any():
            law = Law.fit(pairs.start_gap[within])
            found.append(Suspect(group, law, share, surprise))
    return found


def _least(callees: Ints, group: CallerClass, local: bool) -> int:
    return callees.size if local else min(callees.size, group.rows.size)


def _pairs_each(skeleton: Skeleton, callees: Ints, group: CallerClass, local: bool) -> float:
    """Mean number of candidate pairs per callee."""
    length = max(skeleton.window[1] - skeleton.window[0], 1)
    places = np.unique(skeleton.process[callees]).size if local else 1
    return group.rows.size / places * min(group.window_ns / length, 1.0)


def _shifts(skeleton: Skeleton, window_ns: int, many: int) -> list[int]:
    """List moves in time: the shortest that uncouple caller and callee, to both sides."""
    length = max(skeleton.window[1] - skeleton.window[0], 1)
    step = window_ns + 50_000_000
    # On a short capture moves come around its end; an odd step keeps them apart.
    return [(number // 2 + 2) * (step if number % 2 else -step) % length for number in range(many)]


def _surprise(
    observed: Floats, moved: Floats, mirrored: Floats, n: int
) -> tuple[float, float, float]:
    """Largest surprise over runs of delay bins, the share of callees behind it, and its error.

    Chernoff's bound on a Poisson tail, widened where the moved counts scatter more than that.
    """
    many = moved.shape[0]
    seen = np.concatenate([[0.0], np.cumsum(observed)])
    chance = np.concatenate([np.zeros((many, 1)), np.cumsum(moved, axis=1)], axis=1)
    back = np.concatenate([[0.0], np.cumsum(mirrored)])
    # Where traffic comes in bursts a move leaves them: only the other direction tells chance.
    # Calls begun within the clocks' tolerance are met in both directions: they are no bursts.
    behind = int(_bins(np.zeros(1, np.int64))[0]) + 1
    before, usual = back[-1] - back[behind], chance[:, -1] - chance[:, behind]
    bursts = bool(before > 3 * usual.mean() + 1.5)
    best, share, error = 0.0, 0.0, 0.0
    for width in (1, 2, 4, 8, 16, 32, 64, observed.size):
        count = seen[width:] - seen[:-width]
        nulls = chance[:, width:] - chance[:, :-width]
        mean = (nulls.sum(axis=0) + 0.5) / many
        wide = np.maximum(nulls.var(axis=0, ddof=1), mean) * (1 + 1 / many) / mean
        mean = np.maximum(mean, back[width:] - back[:-width])
        over = np.maximum(count, mean)
        tail = (over * np.log(over / mean) - over + mean) / wide
        if bursts:
            tail = np.minimum(tail, _more_often_after(count, back[width:] - back[:-width], n))
        at = int(np.argmax(tail))
        best = max(best, float(tail[at]))
        sure = tail >= MIN_SURPRISE
        if sure.any():
            most = np.flatnonzero(sure)[np.argmax((over - mean)[sure])]
            if (over - mean)[most] / n > share:
                share = float((over - mean)[most]) / n
                error = float(np.sqrt(wide[most] * mean[most])) / n
    return best, share, error


def _more_often_after(count: Floats, back: Floats, n: int) -> Floats:
    """Surprise that callees follow callers so much oftener than they precede them.

    One comparison in place of many moves, so less of it is asked for; pairs of one callee with
    several callers of a burst are no evidence of their own.
    """
    both = np.maximum(count + back, 1.0)
    after = np.maximum(count, 1e-9)
    before = np.maximum(back, 1e-9)
    tail = count * np.log(2 * after / both) + back * np.log(2 * before / both)
    each = np.maximum(both / (2 * n), 1.0)
    return np.where(count > back, tail / each, 0.0) * (MIN_SURPRISE / MIN_AFTER)


_BIN: Final = 0.2
_BIN_REACH: Final = 18.0


def _bins(gaps: Ints) -> Ints:
    return np.clip(
        ((warp(gaps) + _BIN_REACH) / _BIN).astype(np.int64), 0, int(2 * _BIN_REACH / _BIN)
    )


def _histogram(gaps: Ints) -> Floats:
    return np.bincount(_bins(gaps), minlength=int(2 * _BIN_REACH / _BIN) + 1).astype(np.float64)


def _moved_gaps(
    skeleton: Skeleton, places: list[tuple[Ints, Ints, Ints]], bounds: tuple[int, int], shift: int
) -> Ints:
    """Delays from callers to callees of a place within bounds, the callees moved in time.

    A place is its callees, its callers and when they start.

    What is moved out of the capture comes in again at its other end.
    """
    first, last = skeleton.window
    length = max(last - first, 1)
    gaps = []
    for mine, rows, begins in places:
        moved = (skeleton.start[mine] - first + shift) % length + first
        low = np.searchsorted(begins, moved - bounds[1])
        high = np.searchsorted(begins, moved - bounds[0], side="right")
        owner, position = pair_ranges(low, high)
        gap = moved[owner] - begins[position]
        slack = min(-bounds[0], bounds[1])
        gaps.append(gap[_may_wait(skeleton, mine, rows[position], gap, slack)])
    return np.concatenate(gaps)


def _may_wait(skeleton: Skeleton, callees: Ints, callers: Ints, gaps: Ints, slack: int) -> Bools:
    """Tell which callers last long enough to wait for what begins so much later.

    A server is called by a client that waits for it. Of several calls that a request makes one
    after the other, only one waits when a server begins: the others are no pairs by chance.
    """
    if int(skeleton.kind[callees[0]]) != SERVER:
        return np.ones(gaps.size, bool)
    lasts: Bools = np.abs(gaps) <= skeleton.end[callers] - skeleton.start[callers] + slack
    return lasts
