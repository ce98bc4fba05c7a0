"""Bursts: intervals in which a kind of failure arrives far above its usual rate."""

from typing import Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.signals.grid import Series, duration_ns, grid_times, iterate_series
from tracelab.signals.tails import Excess, find_runs, onset_bins, onset_offset, score_excess

TRIGGERS: Final[dict[str, str]] = {
    "5xx": "errors_5xx",
    "error": "errors",
    "break": "breaks",
    "swallowed": "swallowed",
    "retry": "retries",
}
"""Kinds of trigger and the column of RED that counts them."""


def detect_error_bursts(
    red: pl.DataFrame,
    *,
    trigger: str = "5xx",
    window: str = "2m",
    baseline: str = "6h",
    guard: str = "10m",
    merge: str = "10m",
    min_score: float = 5.0,
    min_errors: float = 3.0,
    min_ratio: float = 3.0,
) -> pl.DataFrame:
    """Find intervals in which 5xx responses arrive far above their usual rate.

    Parameters
    ----------
    red : pl.DataFrame
        Schema `RED`, one row per (service_name, span_name, time).
    trigger : str
        What is counted: 5xx, error, break, swallowed or retry.
    window : str
        Length of the window that is scored.
    baseline, guard : str
        The usual share is that of the `baseline` that ended `guard` before the bin, so that a
        burst does not raise its own expectation.
    merge : str
        Bursts nearer than this are one.
    min_score : float
        -log10 of the negative-binomial tail probability that opens a burst.
    min_errors, min_ratio : float
        Effect-size guard: least count, and least multiple of the expected count. A tail alone
        flags harmless excesses where traffic is high. The ratio must hold without the fullest
        bin of the window as well: a single bin is a blip.

    Returns
    -------
    pl.DataFrame
        Schema `BURSTS`, sorted by (service_name, span_name, start_time). `start_time` is the
        back-dated onset, `detected_time` when the window first crossed, `observed` and
        `expected` count from onset to end.

    Raises
    ------
    SchemaError
        If `red` lacks a column of `RED` or is not on one grid.
    ParameterError
        If `trigger` is unknown or a window is no duration.

    Notes
    -----
    Counts are compared with a negative binomial whose dispersion is estimated from the series,
    since error counts scatter more than a Poisson law and the more so the higher the traffic.
    """
    if trigger not in TRIGGERS:
        raise ParameterError(f"trigger={trigger!r} is none of {', '.join(TRIGGERS)}")
    spans = {
        "window": duration_ns(window, name="window"),
        "lookback": duration_ns(baseline, name="baseline"),
        "guard": duration_ns(guard, name="guard"),
    }
    merge_ns = duration_ns(merge, name="merge")
    tables = [schema.empty(schema.BURSTS)]
    for series in iterate_series(red):
        if series.rows[TRIGGERS[trigger]].null_count() == series.rows.height:
            continue
        excess = score_excess(
            series.column(TRIGGERS[trigger]),
            series.column("requests"),
            **bins_of(spans, series.bin_ns),
            min_events=min_errors,
            min_ratio=min_ratio,
            beyond_one_bin=True,
        )
        runs = find_runs(
            excess.score > min_score, merge_gap=max(round(merge_ns / series.bin_ns), 1)
        )
        if len(runs):
            tables.append(event_table(series, excess, runs))
    return pl.concat(tables)


def bins_of(spans: dict[str, int], bin_ns: int) -> dict[str, int]:
    """Return windows in bins, at least one each."""
    return {name: max(round(length / bin_ns), 1) for name, length in spans.items()}


def event_table(series: Series, excess: Excess, runs: np.ndarray) -> pl.DataFrame:
    """Return the runs of one series as BURSTS rows, with back-dated onsets.

    Parameters
    ----------
    series : Series
        The series.
    excess : Excess
        Its scores.
    runs : ndarray, shape (n_runs, 2)
        First and last bin above the threshold.

    Returns
    -------
    pl.DataFrame
        Schema `BURSTS`.

    Raises
    ------
    Nothing.
    """
    bin_s = series.bin_ns / 1e9
    onsets = onset_bins(
        excess,
        runs,
        back=max(round(720 / bin_s), 1),
        ahead=max(round(120 / bin_s), 0),
    )
    offset = onset_offset(excess, runs, onsets, bin_s)
    n = len(runs)
    starts = onsets * series.bin_ns + offset * 1e9
    detected = (runs[:, 0] + 1) * series.bin_ns
    sums = {
        name: np.concatenate(([0.0], np.cumsum(values)))
        for name, values in (("observed", excess.events), ("expected", excess.expected))
    }
    return pl.DataFrame(
        {
            "service_name": pl.Series([series.service_name] * n, dtype=pl.String),
            "span_name": pl.Series([series.span_name] * n, dtype=pl.String),
            "start_time": grid_times(series.start_ns, np.minimum(starts, detected)),
            "detected_time": grid_times(series.start_ns, detected),
            "end_time": grid_times(series.start_ns, (runs[:, 1] + 1) * series.bin_ns),
            "score": [float(excess.score[a : b + 1].max()) for a, b in runs],
            "observed": sums["observed"][runs[:, 1] + 1] - sums["observed"][onsets],
            "expected": sums["expected"][runs[:, 1] + 1] - sums["expected"][onsets],
        },
        schema=schema.BURSTS,
    )
