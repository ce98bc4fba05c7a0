"""Missing spans at an end: of the capture, or of the process that they belong to."""

from typing import Final

import numpy as np

from tracelab.structure.case import MIN_ODDS, Case, both
from tracelab.structure.censoring import open_odds, over_odds
from tracelab.structure.losses import EXPORT_DELAY_NS, Lifetimes
from tracelab.structure.missing import Missing, edges_around
from tracelab.structure.raggedness import Edge
from tracelab.structure.skeleton import FAR, Bools, Floats, Ints, Skeleton
from tracelab.structure.spine import INTACT

_LEAST_SHARE: Final = 0.02
"""Least share of the time in which a span may have ended beyond an edge, from which it may have
been cut off there."""


def weigh_ends(
    skeleton: Skeleton,
    missing: Missing,
    lifetimes: Lifetimes,
    odds: Floats,
    cut: Floats,
    edges: tuple[Edge, Edge],
    case: Case,
) -> None:
    """Weigh whether the span ended after its process's last exported one, or before the first.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.
    lifetimes : Lifetimes
        Of the processes, entry by entry.
    odds : ndarray of float64
        That this is its process.
    cut : ndarray of float64
        Odds that it lies in a batch that was cut off, from `cut_odds`.
    edges : tuple of Edge
        Begin and end of the capture, from `measure_edges`.
    case : Case
        Weights and words, changed here.

    Raises
    ------
    IndexError
        If a row of `missing` does not exist.
    """
    after = _share_after(missing, lifetimes.last)
    # A process cannot have taken up what began long after it fell silent.
    in_time = skeleton.start[missing.row] <= lifetimes.last + EXPORT_DELAY_NS
    exits = lifetimes.exited & (after > 0) & in_time
    revived = _after_outage(skeleton, missing, lifetimes, exits & missing.call)
    answered = exits & missing.call
    exits &= ~revived
    after_exit = after * _beyond_usual(skeleton, missing, exits)
    case.put(
        "process_exit",
        exits & lifetimes.replaced,
        both(40 * after_exit, odds)[exits & lifetimes.replaced],
        "open when its process sent its last span; a new process of the service follows",
    )
    plain = exits & ~lifetimes.replaced
    case.put(
        "process_exit",
        plain,
        both(15 * after_exit, odds)[plain],
        "open when its process sent its last span, long before the capture's end",
    )
    # It answered after its last export: that batch may have been refused as well. Without a
    # successor nothing says that it ended.
    refused = answered & ~revived
    case.put(
        "export_failure",
        refused,
        both(np.where(lifetimes.replaced, 8.0, 25.0), odds)[refused],
        "its process exported nothing after it",
    )
    text = "answered after an outage, by a process that exported nothing"
    case.put("export_failure", revived, 6.0, text)
    _weigh_edges(skeleton, missing, lifetimes, cut, edges, case)


def _weigh_edges(
    skeleton: Skeleton,
    missing: Missing,
    lifetimes: Lifetimes,
    cut: Floats,
    edges: tuple[Edge, Edge],
    case: Case,
) -> None:
    """Weigh whether a span was open when the capture stopped, or over before it began."""
    begin, end = edges
    low, high = edges_around(skeleton, missing)
    middle = low / 2 + high / 2
    ragged = np.where((missing.end_low + missing.end_high) / 2 < middle, begin.odds, end.odds)
    case.put_edge(
        cut >= MIN_ODDS,
        np.minimum(cut, 40.0),
        both(np.minimum(cut, 40.0), ragged),
        "spans of its service are missing near the capture's edge far oftener than elsewhere",
    )
    beyond = _share_after(missing, lifetimes.last)
    likelier, lost = open_odds(skeleton, missing, lifetimes)
    late = ~lifetimes.exited & (beyond >= _LEAST_SHARE) & ~lost
    weight = np.maximum(
        both(_edge_weight(beyond), end.odds),
        _edge_weight(_share_after(missing, high)),
    )
    # A server span is over with its call, but a batch waits some seconds for its export.
    for where, text in (
        (
            late & missing.call,
            "its process had exported nothing later yet when the capture stopped",
        ),
        (late & ~missing.call, "still open when the capture stopped"),
    ):
        case.put_edge(where, 25 * beyond, weight, text)
    # Durations have long tails: a slow span may have been open still.
    likelier = np.minimum(likelier, 10.0)
    text = "likelier open still when the capture stopped than lost"
    case.put_edge(likelier >= MIN_ODDS, likelier, likelier, text)
    likelier = np.minimum(over_odds(skeleton, missing, lifetimes), 10.0)
    text = "likelier over before the capture began than lost"
    case.put_edge(likelier >= MIN_ODDS, likelier, both(likelier, begin.odds), text)
    # What was exported before the capture began ended before the first export in it.
    begun = missing.end_low <= low + EXPORT_DELAY_NS
    before = _share_before(missing, lifetimes.heard_from(low))
    early = begun & (before >= _LEAST_SHARE)
    cut_before = missing.end_low < low
    certain = np.where(cut_before, 25.0, 25 * before)
    early |= cut_before
    weight = np.maximum(
        both(_edge_weight(before), begin.odds),
        _edge_weight(_share_before(missing, low)),
    )
    for where, text in (
        (early & missing.call, "over before its process exported anything here"),
        (early & ~missing.call, "ended before the capture began"),
    ):
        case.put_edge(where, certain, weight, text)


def _edge_weight(share: Floats) -> Floats:
    """Weigh the edge by the odds that the span ended beyond it: there every span is missing."""
    weight: Floats = np.minimum(8 * share / np.maximum(1 - share, 1e-9), 25.0)
    return weight


def _share_after(missing: Missing, moment: Ints) -> Floats:
    """Share of the time in which each span may have ended that lies behind a moment."""
    width = np.maximum(missing.end_high - missing.end_low, 1)
    share: Floats = np.clip((missing.end_high - moment) / width, 0, 1)
    return share


def _share_before(missing: Missing, moment: Ints) -> Floats:
    """Share of the time in which each span may have ended that lies before a moment."""
    width = np.maximum(missing.end_high - missing.end_low, 1)
    share: Floats = np.clip((moment - missing.end_low) / width, 0, 1)
    return share


def _after_outage(
    skeleton: Skeleton, missing: Missing, lifetimes: Lifetimes, asked: Bools
) -> Bools:
    """Whether a call was answered after three in a row that failed, since the process's last span.

    Nobody was there then, or a gateway said so: another process answered it, whose exports
    failed as well.
    """
    found = np.zeros(asked.size, bool)
    entries = np.flatnonzero(asked)
    classes = skeleton.caller_class[missing.row[entries]]
    for code in np.unique(classes).tolist():
        mine = entries[classes == code]
        rows = skeleton.by_class.rows(code)
        failed = skeleton.column("turned_away")[rows]
        third = failed[2:] & failed[1:-1] & failed[:-2]
        gone = skeleton.start[rows[2:][third]]
        since = np.searchsorted(gone, lifetimes.last[mine])
        until = np.searchsorted(gone, skeleton.start[missing.row[mine]])
        found[mine] = until > since
    return found


def _beyond_usual(skeleton: Skeleton, missing: Missing, exits: Bools) -> Floats:
    """Share of the remote parents lost at an exit that would be there at other times, per entry.

    Parents of an operation that are missing all the time, as those are that nothing records, are
    missing while some process exits, too.
    """
    share = np.ones(exits.size)
    asked = exits & ~missing.call & ~missing.local
    if not asked.any():
        return share
    ops = skeleton.op[missing.row]
    for op in np.unique(ops[asked]).tolist():
        mine = ~missing.call & ~missing.local & (ops == op)
        then = skeleton.start[missing.row[mine & asked]]
        rows = skeleton.by_op.rows(op)
        rows = rows[skeleton.state[rows] == INTACT]
        begun = skeleton.start[rows[FAR[skeleton.crossing[rows]]]]
        held = int(((begun >= then.min()) & (begun <= then.max())).sum())
        lost_then, lost_else = then.size, int(mine.sum()) - then.size
        at_exit = lost_then / (lost_then + held)
        usual = lost_else / (lost_else + begun.size - held + 1)
        share[mine & asked] = max(0.0, 1.0 - usual / at_exit)
    return share
