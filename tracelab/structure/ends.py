"""Missing spans at an end: of the capture, or of the process that they belong to."""

import numpy as np

from tracelab.structure.case import MIN_ODDS, Case
from tracelab.structure.censoring import open_odds, over_odds
from tracelab.structure.losses import EXPORT_DELAY_NS, Lifetimes
from tracelab.structure.missing import Missing
from tracelab.structure.skeleton import FAR, Bools, Floats, Skeleton
from tracelab.structure.spine import INTACT


def weigh_ends(
    skeleton: Skeleton, missing: Missing, lifetimes: Lifetimes, odds: Floats, case: Case
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
    case : Case
        Weights and words, changed here.

    Raises
    ------
    IndexError
        If a row of `missing` does not exist.
    """
    width = np.maximum(missing.end_high - missing.end_low, 1)
    after = np.clip((missing.end_high - lifetimes.last) / width, 0, 1)
    before = np.clip((lifetimes.first - missing.end_low) / width, 0, 1)
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
        _both(40 * after_exit, odds)[exits & lifetimes.replaced],
        "open when its process sent its last span; a new process of the service follows",
    )
    plain = exits & ~lifetimes.replaced
    case.put(
        "process_exit",
        plain,
        _both(15 * after_exit, odds)[plain],
        "open when its process sent its last span, long before the capture's end",
    )
    # It answered after its last export: that batch may have been refused as well.
    refused = answered & ~revived
    case.put(
        "export_failure",
        refused,
        _both(np.full(exits.size, 8.0), odds)[refused],
        "its process exported nothing after it",
    )
    text = "answered after an outage, by a process that exported nothing"
    case.put("export_failure", revived, 6.0, text)
    late = ~lifetimes.exited & (after > 0)
    # A server span is over with its call, but a batch waits some seconds for its export.
    waits = late & missing.call
    case.put(
        "capture_edge",
        waits,
        25 * after[waits],
        "its process had exported nothing later yet when the capture stopped",
    )
    late &= ~missing.call
    case.put("capture_edge", late, 25 * after[late], "still open when the capture stopped")
    # Durations have long tails: a slow span may have been open still.
    for likelier, text in (
        (
            open_odds(skeleton, missing, lifetimes),
            "likelier open still when the capture stopped than lost",
        ),
        (
            over_odds(skeleton, missing, lifetimes),
            "likelier over before the capture began than lost",
        ),
    ):
        likely = likelier >= MIN_ODDS
        case.put("capture_edge", likely, np.minimum(likelier[likely], 10.0), text)
    # What was exported before the capture began ended before the first export in it.
    begun = missing.end_low <= skeleton.window[0] + EXPORT_DELAY_NS
    early = (before > 0) & begun & missing.call
    text = "over before its process exported anything here"
    case.put("capture_edge", early, 25 * before[early], text)
    early = (before > 0) & begun & ~missing.call
    case.put("capture_edge", early, 25 * before[early], "ended before the capture began")
    cut = missing.end_low - skeleton.window[0] < 0
    case.put("capture_edge", cut, 25.0, "ended before the capture began")


def _both(*odds: Floats) -> Floats:
    """Odds that all of several things are so, each of which is doubtful by itself."""
    doubt = sum(1 / np.maximum(each, 1e-9) for each in odds)
    both: Floats = 1 / np.asarray(doubt)
    return both


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
