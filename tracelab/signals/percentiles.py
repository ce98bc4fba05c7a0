"""Rises in exported percentiles, where no counts exist to test."""

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.signals.grid import Floats, duration_ns
from tracelab.signals.tails import find_runs


def detect_percentile_rises(
    points: pl.DataFrame,
    *,
    value: str,
    time: str = "time",
    service_name: str | None = None,
    baseline: str = "2h",
    guard: str = "5m",
    lasting: str = "2m",
    merge: str = "8m",
    min_score: float = 3.5,
    min_ratio: float = 1.5,
) -> pl.DataFrame:
    """Find intervals in which an exported percentile is far above its trailing median.

    For dashboards' series that hold percentiles but no counts. A percentile of few requests is
    a noisy order statistic and nothing tells how many there were, so this stays outside the
    lead-lag pipeline: use `detect_latency_rises` wherever histograms exist.

    Parameters
    ----------
    points : pl.DataFrame
        One row per moment of one service.
    value, time : str
        Columns with the percentile (any unit, above 0) and the moment.
    service_name : str, optional
        Name for the result.
    baseline, guard : str
        Median and spread are those of the `baseline` that ended `guard` before the moment.
    lasting : str
        Shortest time above the threshold.
    merge : str
        Rises nearer than this are one.
    min_score : float
        Robust z-score of the logarithm: distance from the median over 1.4826 times the median
        absolute deviation.
    min_ratio : float
        Least multiple of the median.

    Returns
    -------
    pl.DataFrame
        Schema `RISES`; `observed` is the highest value, `expected` the trailing median, both in
        the unit of `value`; the p99 columns are null.

    Raises
    ------
    SchemaError
        If a column is missing.
    ParameterError
        If a window is no duration or the moments are fewer than three.
    """
    schema.require_columns(points, (value, time), name="points")
    rows = points.select(
        pl.col(time).cast(schema.TIME).cast(pl.Int64), pl.col(value).cast(pl.Float64)
    )
    rows = rows.drop_nulls().filter(pl.col(value) > 0).sort(time)
    if rows.height < 3:
        raise ParameterError(f"points holds {rows.height} usable moments; at least 3 are needed")
    at, level = rows[time].to_numpy(), np.log(rows[value].to_numpy())
    step = float(np.median(np.diff(at)))
    reach = duration_ns(baseline, name="baseline"), duration_ns(guard, name="guard")
    usual, spread = _trailing(at, level, *reach)
    score = (level - usual) / spread
    high = (score > min_score) & (level - usual > np.log(min_ratio))
    runs = find_runs(
        high,
        merge_gap=max(round(duration_ns(merge, name="merge") / step), 1),
        min_length=max(round(duration_ns(lasting, name="lasting") / step), 1),
    )
    return schema.conform(
        pl.DataFrame(
            {
                "service_name": [service_name] * len(runs),
                "start_time": [int(at[first]) for first, _ in runs],
                "detected_time": [int(at[min(first + 1, last)]) for first, last in runs],
                "end_time": [int(at[last]) for _, last in runs],
                "score": [float(score[a : b + 1].max()) for a, b in runs],
                "observed": [float(np.exp(level[a : b + 1].max())) for a, b in runs],
                "expected": [float(np.exp(usual[a])) for a, _ in runs],
            }
        ),
        schema.RISES,
    )


def _trailing(at: Floats, level: Floats, reach: int, guard: int) -> tuple[Floats, Floats]:
    """Return trailing median and robust spread; those of the whole where little came before."""
    usual = np.full(len(at), np.median(level))
    spread = np.full(len(at), np.median(np.abs(level - np.median(level))))
    lows = np.searchsorted(at, at - guard - reach)
    highs = np.searchsorted(at, at - guard, side="right")
    for row in np.flatnonzero(highs - lows >= 20):
        part = level[lows[row] : highs[row]]
        usual[row] = np.median(part)
        spread[row] = np.median(np.abs(part - usual[row]))
    return usual, np.maximum(1.4826 * spread, 0.02)
