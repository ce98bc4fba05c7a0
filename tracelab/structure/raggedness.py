"""Whether a capture begins and stops for all processes at one moment, or for each at its own.

Processes export in batches, each at moments of its own. What stops a capture between two batches
leaves the last seconds of one process in it and those of another out: its edge is ragged. A
capture that is cut by the times of its spans has a sharp edge: each process is heard up to it,
and a span that is missing there was lost.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.losses import EXPORT_DELAY_NS
from tracelab.structure.skeleton import Ints, Skeleton

_REACH: Final = 8
"""Multiples of the export delay from an edge within which the pauses of a process are measured."""

_LEAST: Final = 10
"""Least pauses of a process from which it is known how long it is usually silent."""

_UNUSUAL: Final = 0.05
"""A silence at an edge is unusual if one as long is met at fewer moments than this share."""

_SEEN_RAGGED, _SEEN_SHARP = 0.7, 0.1
"""Share of busy processes with an unusual silence where the edge is ragged: all but those whose
last batch went just then. Where it is sharp: those that are unusual by chance, or fell silent."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge of a capture, or of several that were made alike.

    Parameters
    ----------
    odds : float
        That the edge is ragged, against a sharp one.
    """

    odds: float


def measure_edges(skeleton: Skeleton) -> tuple[Edge, Edge]:
    """Tell how ragged the begin and the end of a capture are.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    tuple of Edge
        Begin and end.

    Raises
    ------
    ValueError
        Never.
    """
    if not skeleton.timed.any():
        return Edge(1.0), Edge(1.0)
    edges = skeleton.horizons
    return Edge(_odds(skeleton, edges.low, 1)), Edge(_odds(skeleton, edges.high, -1))


def _odds(skeleton: Skeleton, moments: Ints, sign: int) -> float:
    """Weigh the silences of all processes next to their edges against their usual pauses."""
    away = sign * (skeleton.end - moments[skeleton.process])
    rows = np.flatnonzero(skeleton.timed & (away <= _REACH * EXPORT_DELAY_NS))
    silence, pause = pl.col("away").first(), pl.col("away").diff().drop_nulls()
    processes = (
        pl.DataFrame({"process": skeleton.process[rows], "away": away[rows]})
        .sort("process", "away")
        .group_by("process")
        .agg(
            silence=silence,
            pauses=pl.len() - 1,
            longer=_share_longer(pause, silence),
            longest=_share_longer(pause, pl.lit(EXPORT_DELAY_NS // 4)),
        )
        # What stopped before says nothing of the edge; what is often silent says little.
        .filter(
            pl.col("silence").is_between(1, EXPORT_DELAY_NS)
            & (pl.col("pauses") >= _LEAST)
            & (pl.col("longest") < _UNUSUAL)
        )
    )
    # Replicas that nothing tells apart are silent together only for a short while.
    single = skeleton.processes.select(
        pl.col("service_instance_id").is_not_null() | pl.col("process_pid").is_not_null()
    ).to_series()
    unusual = (processes["longer"] < _UNUSUAL).to_numpy()
    single_here = single.gather(processes["process"]).to_numpy()
    ragged = np.log(_SEEN_RAGGED / _SEEN_SHARP) * unusual.sum()
    sharp = np.log((1 - _SEEN_RAGGED) / (1 - _SEEN_SHARP)) * (~unusual & single_here).sum()
    return float(np.exp(np.clip(ragged + sharp, -7, 7)))


def _share_longer(pause: pl.Expr, than: pl.Expr) -> pl.Expr:
    """Share of moments from which on a process is silent for longer than this."""
    beyond = (pause - than).clip(lower_bound=0).sum()
    return beyond / pause.sum().clip(lower_bound=1)
