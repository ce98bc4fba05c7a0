"""Which process of its service a missing span belonged to, and how surely."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.codes import entries_by_code
from tracelab.structure.gaps import ends_of
from tracelab.structure.losses import EXPORT_DELAY_NS, process_table
from tracelab.structure.missing import Missing
from tracelab.structure.raggedness import Edge
from tracelab.structure.skeleton import Floats, Ints, Skeleton

_CLOCK_NS: Final = 50_000_000
"""What the clocks of two hosts of one site may differ by at worst, corrected ones among them."""

_LOSING: Final = 0.05
"""How often a process loses all its spans at a moment, before anything is seen of it."""

_SHORT: Final = 20
"""A pace is taken over at least one in so many parts of the capture: what a process that lived
for a moment did then tells little of what it did later."""

_STAYS: Final = 50.0
"""Highest odds that a trace stays with the one process of a service that it met."""

_SAMPLE: Final = 200_000
"""Spans from which it is read how many processes of a service a trace meets."""

CERTAIN: Final = 1000.0
"""Odds of a process that is known."""


@dataclass(frozen=True, slots=True)
class Owners:
    """The likely process of each missing span.

    Parameters
    ----------
    process : ndarray of int64
        -1 where nothing is known of the service.
    odds : ndarray of float64
        Of this process against all others of the service.
    """

    process: Ints
    odds: Floats


def find_owners(skeleton: Skeleton, missing: Missing, begin: Edge) -> Owners:
    """Weigh the processes of each missing span's service.

    A process is as likely as the spans that it may have lost at that moment are many: its pace,
    times the probability that a silence as long as the one around that moment is a loss. One
    that had fallen silent for good can have lost what it did in the few seconds between its last
    export and its end. A trace that met one process of the service mostly stays with it.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.
    begin : Edge
        The begin of the capture: where it is ragged, a process may have lived before its first
        export there.

    Returns
    -------
    Owners
        Entry by entry of `missing`.

    Raises
    ------
    ValueError
        Never.
    """
    process = missing.process.copy()
    odds = np.where(process >= 0, CERTAIN, 0.0)
    table = process_table(skeleton)
    several = table.filter(pl.len().over("service") > 1)
    asked = ~missing.local & (missing.service >= 0)
    stays = _staying(skeleton, several["service"].unique().sort().to_numpy())
    for service, mine in entries_by_code(missing.service, asked):
        known = process[mine] >= 0
        rivals = (several if known.all() else table).filter(pl.col("service") == service)
        if not rivals.height:
            continue
        codes = rivals["process"].to_numpy()
        scores = np.stack(
            [
                _losses_due(skeleton, missing, mine, rival, begin)
                for rival in rivals.iter_rows(named=True)
            ]
        )
        scores *= np.where(codes[:, None] == missing.process[mine], stays[service], 1.0)
        best = scores.argmax(0)
        entry = np.arange(mine.size)
        top, all_of_them = scores[best, entry], scores.sum(0)
        some = top > 0
        process[mine[some]] = codes[best[some]]
        against = np.maximum(all_of_them - top, top / CERTAIN)
        odds[mine[some]] = (top / np.maximum(against, 1e-30))[some]
    return Owners(process, odds)


def _losses_due(
    skeleton: Skeleton, missing: Missing, mine: Ints, rival: dict[str, int], begin: Edge
) -> Floats:
    """Spans that a process may have lost per second at each entry's time; 0 where it was gone."""
    edges = skeleton.horizons
    low, high = (int(edge[rival["process"]]) for edge in (edges.low, edges.high))
    first, last, begun = rival["first"], rival["last"], skeleton.start[missing.row[mine]]
    middle = ((missing.end_low + missing.end_high) // 2)[mine]
    ends = ends_of(skeleton, rival["process"])
    life = max(last - rival["start"], (high - low) // _SHORT, 1)
    pace = rival["spans"] / life
    at = np.searchsorted(ends, middle)
    before = np.where(at > 0, ends[np.maximum(at - 1, 0)], low)
    after = np.where(at < ends.size, ends[np.minimum(at, ends.size - 1)], high)
    opening = first <= low + EXPORT_DELAY_NS
    early = (middle < first) & opening
    alive = np.where(early, begin.odds / (1 + begin.odds), begun >= rival["start"] - _CLOCK_NS)
    alive *= ~missing.call[mine] | (begun <= rival["called_until"])
    # Behind its last export it lived for as long as a batch waits, at most.
    over = np.clip((begun - last) / EXPORT_DELAY_NS, 0, 1)
    silent = np.exp(-np.clip((after - before) * pace, 0, 50))
    losing = _LOSING / (_LOSING + (1 - _LOSING) * silent)
    due: Floats = 1e9 * pace * losing * (1 - over) * alive
    return due


def _staying(skeleton: Skeleton, services: Ints) -> Floats:
    """By service: the odds that a trace meets one of its processes only."""
    wanted = np.zeros(len(skeleton.services), bool)
    wanted[services] = True
    odds = np.ones(len(skeleton.services))
    if not services.size:
        return odds
    few = skeleton.trace % (1 + skeleton.n // _SAMPLE) == 0
    rows = np.flatnonzero(few & wanted[skeleton.service])
    met = (
        pl.DataFrame(
            {
                "service": skeleton.service[rows],
                "trace": skeleton.trace[rows],
                "process": skeleton.process[rows],
            }
        )
        .group_by("service", "trace")
        .agg((pl.col("process").n_unique() > 1).alias("several"))
        .group_by("service")
        .agg(pl.len().alias("n"), pl.col("several").sum())
    )
    several, many = met["several"].to_numpy(), met["n"].to_numpy()
    odds[met["service"].to_numpy()] = np.clip((many - several + 1) / (several + 1), 1.0, _STAYS)
    return odds
