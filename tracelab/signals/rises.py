"""Rises: intervals in which far more requests than usual are slow."""

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.signals.bursts import bins_of, event_table
from tracelab.signals.grid import Floats, Ints, duration_ns, iterate_series
from tracelab.signals.histogram import quantile_of_counts
from tracelab.signals.tails import find_runs, score_excess


def detect_latency_rises(
    red: pl.DataFrame,
    *,
    quantile: float = 0.95,
    window: str = "3m",
    baseline: str = "2h",
    guard: str = "10m",
    merge: str = "8m",
    lasting: str = "1m",
    min_score: float = 6.0,
    min_slow: float = 5.0,
    min_ratio: float = 1.8,
) -> pl.DataFrame:
    """Find intervals in which the tail of the latency is far above its usual weight.

    Requests above a fixed bucket edge, the one nearest the long-run `quantile`, are counted
    and held against their trailing share. A p99 of a few hundred requests is a noisy order
    statistic; this count is not. The p99 before and after is reported, for people.

    Parameters
    ----------
    red : pl.DataFrame
        Schema `RED`, one row per (service_name, span_name, time).
    quantile : float
        Long-run quantile whose nearest bucket edge separates slow requests.
    window : str
        Length of the window that is scored.
    baseline, guard : str
        The usual share is that of the `baseline` that ended `guard` before the bin.
    merge : str
        Rises nearer than this are one.
    lasting : str
        Shortest time above the threshold.
    min_score : float
        -log10 of the negative-binomial tail probability.
    min_slow, min_ratio : float
        Effect-size guard: least count, and least multiple of the expected count.

    Returns
    -------
    pl.DataFrame
        Schema `RISES`, sorted by (service_name, span_name, start_time).

    Raises
    ------
    SchemaError
        If `red` lacks a column of `RED` or is not on one grid.
    ParameterError
        If a window is no duration.
    """
    spans = {
        "window": duration_ns(window, name="window"),
        "lookback": duration_ns(baseline, name="baseline"),
        "guard": duration_ns(guard, name="guard"),
    }
    merge_ns, lasting_ns = duration_ns(merge, name="merge"), duration_ns(lasting, name="lasting")
    tables = [schema.empty(schema.RISES)]
    for series in iterate_series(red):
        counts, edges = series.histogram()
        cut = slow_edge(counts, edges, quantile)
        if cut is None:
            continue
        excess = score_excess(
            counts[:, cut + 1 :].sum(axis=1),
            counts.sum(axis=1),
            **bins_of(spans, series.bin_ns),  # type: ignore[arg-type]
            min_events=min_slow,
            min_ratio=min_ratio,
        )
        runs = find_runs(
            excess.score > min_score,
            merge_gap=max(round(merge_ns / series.bin_ns), 1),
            min_length=max(round(lasting_ns / series.bin_ns), 1),
        )
        if len(runs):
            events = event_table(series, excess, runs)
            onsets = (
                events["start_time"].cast(pl.Int64).to_numpy() - series.start_ns
            ) // series.bin_ns
            reach = max(round(15 * 60 * 1e9 / series.bin_ns), 1)
            before, after = _p99_around(counts, edges, onsets, runs[:, 1], reach)
            tables.append(
                events.with_columns(
                    pl.Series("p99_before_ns", before, dtype=pl.Float64),
                    pl.Series("p99_after_ns", after, dtype=pl.Float64),
                )
            )
    return pl.concat(tables)


def slow_edge(counts: Floats, edges: Ints, quantile: float) -> int | None:
    """Return the number of the bucket edge nearest a long-run quantile.

    Parameters
    ----------
    counts : ndarray, shape (n_bins, n_buckets)
        Duration counts, NaN rows where silent.
    edges : ndarray of int64
        Upper edges of all buckets but the last.
    quantile : float
        Quantile of all durations.

    Returns
    -------
    int or None
        Index into `edges`; None without edges or requests.

    Raises
    ------
    Nothing.
    """
    total = np.nansum(counts, axis=0)
    if not len(edges) or total.sum() <= 0:
        return None
    value = quantile_of_counts(total, edges, quantile)
    return int(np.argmin(np.abs(np.log(np.maximum(edges, 1)) - np.log(max(value, 1.0)))))


def _p99_around(
    counts: Floats, edges: Ints, onsets: Ints, ends: Ints, reach: int
) -> tuple[list[float | None], list[float | None]]:
    before: list[float | None] = []
    after: list[float | None] = []
    for onset, end in zip(onsets, ends, strict=True):
        for found, part in (
            (before, counts[max(onset - reach, 0) : max(onset, 0)]),
            (after, counts[max(onset, 0) : end + 1]),
        ):
            merged = np.nansum(part, axis=0) if len(part) else np.zeros(counts.shape[1])
            found.append(quantile_of_counts(merged, edges, 0.99) if merged.sum() > 0 else None)
    return before, after
