"""Why spans are missing: each cause's evidence becomes a weight, the weights a probability.

A weight says how much likelier what is seen is under this cause than under losses of which
nothing more is known. They are compared on the missing spans of all traces together, because
most causes show only as a pattern: one operation, one process, one stretch of time, one side of
a trace-id threshold.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.bursts import scattered_losses
from tracelab.structure.case import Case
from tracelab.structure.censoring import cut_odds
from tracelab.structure.ends import weigh_ends
from tracelab.structure.gaps import ALONE, BETWEEN, CLOSE_BY, STEADY, Gaps, find_gaps
from tracelab.structure.losses import Lifetimes, find_lifetimes
from tracelab.structure.missing import Missing
from tracelab.structure.owners import find_owners
from tracelab.structure.raggedness import measure_edges
from tracelab.structure.sampling import MIN_SEPARATION
from tracelab.structure.skeleton import Bools, Floats, Ints, Skeleton
from tracelab.structure.unended import weigh_unended
from tracelab.structure.unrecorded import weigh_hops

Hints = dict[str, tuple[set[str], bool]]

CAUSES: Final = (
    "capture_edge",
    "process_exit",
    "span_never_ended",
    "queue_overflow",
    "export_failure",
    "sampled_out",
    "uninstrumented_hop",
)

_PATTERNS: Final = ("span_never_ended", "sampled_out", "uninstrumented_hop")
"""Causes that lie in an operation or a service, whatever its processes export."""

_EXPLAINED: Final = 8.0
"""Weight of such a cause from which a missing span is no sign that its process lost others."""

_ALWAYS_POSSIBLE: Final = {
    "queue_overflow": 0.15,
    "export_failure": 0.15,
    "span_never_ended": 0.1,
}
"""Causes that no evidence excludes stay among the alternatives."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The likeliest cause of each missing span.

    Parameters
    ----------
    cause : pl.Series
        ``unknown`` below the floor.
    confidence : ndarray of float64
        Probability that the cause is right; of the likeliest one where it is ``unknown``.
    evidence, alternatives : pl.Series
        What speaks for the cause, null where nothing does; what else it could be, likeliest
        first.
    at_edge : ndarray of bool
        The missing span was probably open at the capture's edge.
    """

    cause: pl.Series
    confidence: Floats
    evidence: pl.Series
    alternatives: pl.Series
    at_edge: Bools


def judge_causes(
    skeleton: Skeleton,
    missing: Missing,
    separation: Floats,
    readings: list[str],
    hints: Hints,
    *,
    min_confidence: float,
) -> Judgement:
    """Find the likeliest cause of each missing span.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.
    separation : ndarray of float64
        How well a trace-id threshold explains each, from `sampled_out`.
    readings : list of str
        The reading of the trace id that does.
    hints : dict
        What self-telemetry proves, from `loss_hints`.
    min_confidence : float
        Below, the cause is ``unknown``.

    Returns
    -------
    Judgement
        Entry by entry of `missing`.

    Raises
    ------
    ValueError
        Never.
    """
    n = missing.row.size
    case = Case(
        {cause: np.full(n, _ALWAYS_POSSIBLE.get(cause, 0.02)) for cause in CAUSES},
        cut_off=np.zeros(n),
    )
    cut = cut_odds(skeleton, missing)
    edges = measure_edges(skeleton)
    owners = find_owners(skeleton, missing, edges[0])
    missing = replace(missing, process=owners.process)
    lifetimes = find_lifetimes(skeleton, missing)
    weigh_ends(skeleton, missing, lifetimes, owners.odds, cut, edges, case)
    _sampling(separation, readings, case)
    weigh_hops(skeleton, missing, case)
    weigh_unended(skeleton, missing, case)
    explained = case.strongest(_PATTERNS) >= _EXPLAINED
    gaps = find_gaps(skeleton, missing, explained)
    _exports(skeleton, missing, gaps, lifetimes, case)
    scattered = scattered_losses(skeleton, missing, owners, explained)
    case.put(
        "queue_overflow",
        scattered >= 1,
        np.minimum(2 * scattered[scattered >= 1], 20.0),
        "its process lost spans of several operations in a short time, and exported others between",
    )
    _counters(skeleton, missing, hints, gaps, case)
    _same_span(skeleton, missing, case)
    return _weigh(case, n, min_confidence)


def _sampling(found: Floats, reading: list[str], case: Case) -> None:
    sure = np.flatnonzero(found >= MIN_SEPARATION)
    for name in sorted({reading[entry] for entry in sure}):
        mine = sure[[reading[entry] == name for entry in sure]]
        case.put(
            "sampled_out",
            mine,
            60.0,
            f"a threshold on the trace id ({name}) parts traces with the service from those "
            "without it",
        )


_GAPS: Final = tuple(
    (company, wide, overflow, failure, words)
    for company, words, weights in (
        (ALONE, "its process exported nothing while it ended", ((1.5, 1.5), (0.7, 20.0))),
        (
            CLOSE_BY,
            "its process lost all spans for a while, and again soon after or before",
            ((5.0, 1.0), (3.0, 2.8)),
        ),
        (
            BETWEEN,
            "its process lost all spans for a while, again and again",
            ((10.0, 1.5), (10.0, 1.5)),
        ),
        (
            STEADY,
            "its process lost all spans for a while, again and again, and exported equally many "
            "each time between",
            ((30.0, 0.5), (30.0, 0.5)),
        ),
    )
    for wide, (overflow, failure) in enumerate(weights)
)
"""What gaps in the exports of a process say for a full queue, and for a failed export. One gap
alone, long for the pace of the process, is what a refused batch leaves; a queue that is full
stays full for more than one batch."""


def _exports(
    skeleton: Skeleton, missing: Missing, gaps: Gaps, lifetimes: Lifetimes, case: Case
) -> None:
    """Stretches of time of one process in which all, or unusually many, spans are missing."""
    inside = (missing.end_high >= lifetimes.first) & (missing.end_low <= lifetimes.last)
    for company, wide, overflow, failure, words in _GAPS:
        mine = gaps.found & inside & (gaps.company == company) & (gaps.wide == wide)
        case.put("export_failure", mine, failure, words)
        case.put("queue_overflow", mine, overflow, words)


def _same_span(skeleton: Skeleton, missing: Missing, case: Case) -> None:
    """Give an unanswered call the cause of the orphans within it: they miss one span."""
    calls = np.flatnonzero(missing.call)
    below = np.flatnonzero(~missing.call & missing.local)
    if not calls.size or not below.size:
        return
    asked = pl.DataFrame(
        {
            "call": calls,
            "trace": skeleton.trace[missing.row[calls]],
            "service": missing.service[calls],
        }
    )
    told = pl.DataFrame(
        {
            "orphan": below,
            "trace": skeleton.trace[missing.row[below]],
            "service": missing.service[below],
        }
    )
    met = asked.join(told, on=["trace", "service"], how="inner").sort("call", "orphan")
    call, orphan = met["call"].to_numpy(), met["orphan"].to_numpy()
    start = skeleton.start[missing.row[orphan]]
    inside = (start >= skeleton.start[missing.row[call]] - 1_000_000) & (
        start <= skeleton.end[missing.row[call]]
    )
    call, first = np.unique(call[inside], return_index=True)
    orphan = orphan[inside][first]
    case.copy_entries(call, orphan)


_TIGHT: Final = {"queue_overflow": 3.0, "export_failure": 6.0}
"""Spans that fit into a gap where it is as likely that none was lost there: chance makes gaps of
three times the mean one time in twenty. A full queue often loses but a few, a refused batch
seldom less than a dozen."""


def _counters(skeleton: Skeleton, missing: Missing, hints: Hints, gaps: Gaps, case: Case) -> None:
    """SDKs and Collectors that counted losses of their own.

    Whatever a queue or an exporter loses leaves a gap: where the process went on exporting all
    the while, what is missing is none of what the SDK counted.
    """
    names = {name: code for code, name in enumerate(skeleton.services)}
    for cause, (services, collector) in hints.items():
        codes = [names[name] for name in sorted(services) if name in names]
        mine = np.isin(missing.service, codes)
        # Behind its last export, and before its first, a process has other reasons for silence.
        tight = _TIGHT[cause]
        room = np.where(np.isinf(gaps.room), tight / 2, gaps.room) ** 2
        fits = np.where(gaps.found, 1.0, room / (room + tight**2))
        seen = np.where(gaps.found, case.weights[cause] / _ALWAYS_POSSIBLE[cause], 1.0)
        weight = np.clip(4.0 * seen, 4.0, 40.0) * fits
        case.put(cause, mine, weight[mine], "its SDK counted such losses")
        if collector and not codes:
            case.put(cause, np.ones(mine.size, bool), 1.2, "the Collector counted such losses")


def _weigh(case: Case, n: int, min_confidence: float) -> Judgement:
    weights = np.stack([case.weights[cause] for cause in CAUSES])
    best = weights.argmax(0)
    top = weights.max(0) if n else np.zeros(0)
    sure = top / (weights.sum(0) + 1.0)
    # What a ragged edge would explain better is no defect for certain.
    edge = best == CAUSES.index("capture_edge")
    known = (sure >= min_confidence) & (edge | (top >= case.cut_off))
    nothing = np.zeros(n, np.int32)
    words = np.stack([case.words.get(cause, nothing) for cause in CAUSES])[best, np.arange(n)]
    names = pl.Series(CAUSES)
    picked = names.gather(best)
    said = pl.Series(case.texts, dtype=pl.String).gather(words)
    said = said.set(pl.Series(~known | (words == 0)), None)
    return Judgement(
        cause=picked.set(pl.Series(~known), "unknown"),
        confidence=np.minimum(sure, 0.98),
        evidence=said,
        alternatives=_alternatives(weights, best, known),
        at_edge=case.at_edge,
    )


def _alternatives(weights: Floats, best: Ints, known: Bools) -> pl.Series:
    """Causes that stay possible beside the best, likeliest first."""
    order = np.argsort(-weights, axis=0, kind="stable")
    entry = np.arange(best.size)
    least = np.maximum(0.05 * weights[best, entry], 0.1)
    ranked = np.take_along_axis(weights, order, axis=0)
    keep = (ranked >= least) & ~(known & (order == best))
    names = pl.Series(CAUSES, dtype=pl.String)
    columns = [
        names.gather(order[rank]).set(pl.Series(~keep[rank]), None).alias(str(rank))
        for rank in range(len(CAUSES))
    ]
    return pl.DataFrame(columns).select(pl.concat_list(pl.all()).list.drop_nulls()).to_series()
