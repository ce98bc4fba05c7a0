"""When processes lived and fell silent."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.missing import Missing, edges_around
from tracelab.structure.skeleton import Bools, Ints, Skeleton

SILENT: Final = 15.0
"""Spans that a process would have ended, at its own pace, while it was silent: at 15 the chance
that it just had nothing to do is below one in a million."""

PAUSE: Final = 3.0
"""The same for a process that has a successor: one that goes on is seldom silent for three."""

EXPORT_DELAY_NS: Final = 6_000_000_000
"""Batch processors send every 5 s by default (OpenTelemetry specification): a process that is
silent for less at the end of the capture may simply not have sent yet."""


_HAND_OVER_NS: Final = 1_000_000_000
"""How long after its successor's first span a process may still be called."""

_NEVER: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Of the process of each missing span.

    Parameters
    ----------
    first, last : ndarray of int64
        End of its first and last exported span; of its service where the process is unknown,
        of the capture where that is unknown too.
    exited : ndarray of bool
        It stopped clearly before the capture did.
    replaced : ndarray of bool
        Another process of its service began after it.
    arrived : ndarray of bool
        It began clearly after the capture did: nothing of it can have been exported before.
    """

    first: Ints
    last: Ints
    exited: Bools
    replaced: Bools
    arrived: Bools

    def heard_from(self, low: Ints) -> Ints:
        """Tell since when what a process ended is in the capture.

        Parameters
        ----------
        low : ndarray of int64
            Begin of the capture, entry by entry.

        Returns
        -------
        ndarray of int64
            The first end of its spans; the begin of the capture for one that arrived later.

        Raises
        ------
        ValueError
            If the lengths differ.
        """
        since: Ints = np.where(self.arrived, low, self.first)
        return since


def find_lifetimes(skeleton: Skeleton, missing: Missing) -> Lifetimes:
    """Look up when the processes of missing spans sent their first and last span.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.

    Returns
    -------
    Lifetimes
        Entry by entry of `missing`.

    Raises
    ------
    ValueError
        Never.
    """
    table = process_table(skeleton)
    n = missing.row.size
    low, high = edges_around(skeleton, missing)
    first, last = low.copy(), high.copy()
    exited, replaced, arrived = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool)
    services = table.group_by("service").agg(pl.col("first").min(), pl.col("last").max())
    by_service = {row[0]: row[1:] for row in services.rows()}
    for service, (begin, end) in by_service.items():
        mine = (missing.service == service) & (missing.process < 0)
        first[mine], last[mine] = np.maximum(low[mine], begin), np.minimum(high[mine], end)
    by_process = np.full((int(skeleton.processes.height) + 1, 5), -1, dtype=np.int64)
    order = table["process"].to_numpy()
    by_process[order] = (
        table.select("first", "last", "exited", "replaced", "arrived").cast(pl.Int64).to_numpy()
    )
    known = missing.process >= 0
    mine = missing.process[known]
    first[known], last[known] = by_process[mine, 0], by_process[mine, 1]
    exited[known], replaced[known] = by_process[mine, 2] == 1, by_process[mine, 3] == 1
    arrived[known] = by_process[mine, 4] == 1
    return Lifetimes(first, last, exited, replaced, arrived)


def process_table(skeleton: Skeleton) -> pl.DataFrame:
    """Tell when each process began and ended its spans, and whether it went away.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    pl.DataFrame
        process, service, start (of the first span), first and last (end), spans, exited,
        replaced, arrived, called_until (when its successors had taken over its calls).

    Raises
    ------
    ValueError
        Never.
    """
    table = skeleton.lives
    if not table.height:
        return table.with_columns(
            exited=pl.lit(value=False),
            replaced=pl.lit(value=False),
            arrived=pl.lit(value=False),
            called_until=pl.lit(_NEVER, pl.Int64),
        )
    hosts = skeleton.processes["host_name"].gather(table["process"].to_numpy())
    silence = pl.Series(skeleton.horizons.high[table["process"].to_numpy()]) - table["last"]
    absence = table["first"] - pl.Series(skeleton.horizons.low[table["process"].to_numpy()])
    pace = pl.col("spans") / (pl.col("last") - pl.col("start") + 1)
    table = table.with_columns(
        host=hosts,
        quiet=silence * pace > PAUSE,
        gone=(silence * pace > SILENT) & (silence > EXPORT_DELAY_NS),
        arrived=(absence * pace > SILENT) & (absence > EXPORT_DELAY_NS),
    )
    later = table.join(table, on="service", how="inner", suffix="_other").filter(
        (pl.col("process") != pl.col("process_other"))
        & pl.col("quiet")
        & (pl.col("start_other") > pl.col("last") - 1_000_000_000)
        & (pl.col("start_other") - pl.col("last") < 120_000_000_000)
        & (pl.col("host").is_null() | (pl.col("host") == pl.col("host_other")))
    )
    successors = later.group_by("process").agg(pl.col("start_other").max().alias("_successor"))
    replaced = pl.col("_successor").is_not_null()
    taken_over = pl.max_horizontal("_successor", "last") + _HAND_OVER_NS
    return (
        table.join(successors, on="process", how="left", maintain_order="left")
        .with_columns(
            replaced=replaced,
            exited=pl.col("gone") | replaced,
            called_until=pl.when(replaced).then(taken_over).otherwise(_NEVER),
        )
        .drop("gone", "host", "quiet", "_successor")
    )
