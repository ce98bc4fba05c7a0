"""What the target does around the trigger's bursts: an event-aligned mean with its null."""

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.signals.bursts import detect_error_bursts
from tracelab.signals.grid import duration_ns, iterate_series
from tracelab.signals.rises import slow_edge


def align_on_bursts(
    red: pl.DataFrame,
    *,
    trigger_service: str,
    target_service: str,
    trigger_operation: str | None = None,
    target_operation: str | None = None,
    before: str = "15m",
    after: str = "60m",
    shuffles: int = 200,
    seed: int = 0,
) -> pl.DataFrame:
    """Average the target's share of slow requests around the trigger's burst onsets.

    The band comes from the same bursts shifted in a circle by random times: what the mean
    would look like if bursts and latency had nothing to do with each other. It is a picture,
    not the test: `find_lead_lags` decides.

    Parameters
    ----------
    red : pl.DataFrame
        Schema `RED`.
    trigger_service, target_service : str
        The pair.
    trigger_operation, target_operation : str or None
        Operations; None is the whole service.
    before, after : str
        Stretch around an onset.
    shuffles : int
        Shifted copies behind the band.
    seed : int
        Seed of the shifts.

    Returns
    -------
    pl.DataFrame
        Columns offset_s, slow_ratio, null_low, null_high (2.5 % and 97.5 %), n_bursts; no
        rows where one of the two has no series or the trigger no burst.

    Raises
    ------
    SchemaError
        If `red` lacks a column.
    ParameterError
        If `before` or `after` is no duration.
    """
    schema.require_columns(red, schema.RED, name="red")
    columns = {
        "offset_s": pl.Float64,
        "slow_ratio": pl.Float64,
        "null_low": pl.Float64,
        "null_high": pl.Float64,
        "n_bursts": pl.Int64,
    }
    keys = {(trigger_service, trigger_operation), (target_service, target_operation)}
    series = {one.key: one for one in iterate_series(red) if one.key in keys}
    if len(series) < len(keys):
        return pl.DataFrame(schema=columns)
    target = series[target_service, target_operation]
    counts, edges = target.histogram()
    cut = slow_edge(counts, edges, 0.95)
    bursts = detect_error_bursts(red).filter(
        pl.col("service_name") == trigger_service,
        pl.col("span_name").eq_missing(pl.lit(trigger_operation, pl.String)),
    )
    if cut is None or not bursts.height:
        return pl.DataFrame(schema=columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts[:, cut + 1 :].sum(axis=1) / counts.sum(axis=1)
    onsets = (bursts["start_time"].cast(pl.Int64).to_numpy() - target.start_ns) // target.bin_ns
    offsets = np.arange(
        -(duration_ns(before, name="before") // target.bin_ns),
        duration_ns(after, name="after") // target.bin_ns + 1,
    )
    shifts = np.random.default_rng(seed).integers(0, target.n_bins, size=shuffles)
    null = np.stack(
        [_mean_around(share, (onsets + shift) % target.n_bins, offsets) for shift in shifts]
    )
    low, high = np.nanquantile(np.nan_to_num(null), (0.025, 0.975), axis=0)
    return pl.DataFrame(
        {
            "offset_s": offsets * (target.bin_ns / 1e9),
            "slow_ratio": _mean_around(share, onsets, offsets),
            "null_low": low,
            "null_high": high,
            "n_bursts": np.full(len(offsets), len(onsets)),
        },
        schema=columns,
    )


def _mean_around(share: np.ndarray, onsets: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    index = onsets[:, None] + offsets[None, :]
    inside = (index >= 0) & (index < len(share))
    values = np.where(inside, share[np.clip(index, 0, len(share) - 1)], np.nan)
    known = (~np.isnan(values)).sum(axis=0)
    total = np.nansum(values, axis=0)
    mean: np.ndarray = np.divide(total, known, out=np.full(len(offsets), np.nan), where=known > 0)
    return mean
