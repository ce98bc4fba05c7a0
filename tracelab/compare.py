"""Two captures compared: what breaks more often, what less, and what cannot be told."""

from math import erfc, sqrt
from typing import Any, Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.structure.rates import q_values, wilson_interval
from tracelab.survey import Survey, survey

COMPARISON: Final = pl.Schema(
    {
        "measure": pl.String,
        "from_service": pl.String,
        "to_service": pl.String,
        "before": pl.Int64,
        "before_checked": pl.Int64,
        "before_rate": pl.Float64,
        "before_low": pl.Float64,
        "before_high": pl.Float64,
        "after": pl.Int64,
        "after_checked": pl.Int64,
        "after_rate": pl.Float64,
        "after_low": pl.Float64,
        "after_high": pl.Float64,
        "difference": pl.Float64,
        "difference_low": pl.Float64,
        "difference_high": pl.Float64,
        "q_value": pl.Float64,
        "verdict": pl.String,
    }
)
"""The table of `compare_captures`: rates with 95 % Wilson intervals, their difference with
Newcombe's interval, and ``better``, ``worse`` or ``no clear change``."""

_CHAIN: Final = "broken_chain"
_LOSSES: Final = ("swallowed", "flattened", "truncated", "replaced", "status_lost")
_KEY: Final = ("measure", "from_service", "to_service")


def compare_captures(
    before: Any, after: Any, *, max_q: float = 0.05, window: str = "5m"
) -> pl.DataFrame:
    """Compare break rates, fates of errors and chain integrity of two captures.

    Parameters
    ----------
    before, after : TraceSet or TraceStore
        The captures.
    max_q : float
        False-discovery rate at which a change is called better or worse.
    window : str
        Window of the chain-integrity SLI.

    Returns
    -------
    pl.DataFrame
        Schema `COMPARISON`, changes for the worse first. Breaks are counted per kind and hop
        against the spans of the called service, error verdicts per hop against the hops
        followed, broken chains against the traces that could be judged.

    Raises
    ------
    ParameterError
        If `max_q` is no probability.

    References
    ----------
    .. [1] R. G. Newcombe, "Interval estimation for the difference between independent
       proportions", Statistics in Medicine 17, 1998 (method 10).
    """
    if not 0 < max_q < 1:
        raise ParameterError(f"max_q is {max_q}; a false-discovery rate lies between 0 and 1")
    seen = [survey(side, every="30s", window=window) for side in (before, after)]
    counts = [_counts(side) for side in seen]
    keys = pl.concat([table.select(_KEY) for table in counts]).unique()
    rows = keys
    for side, table, suffix in zip(seen, counts, ("", "_right"), strict=True):
        placed = _with_checked(keys.join(table, on=_KEY, how="left", nulls_equal=True), side)
        rows = rows.join(
            placed.rename({"count": f"count{suffix}", "checked": f"checked{suffix}"}),
            on=_KEY,
            how="left",
            nulls_equal=True,
        )
    rows = rows.filter((pl.col("checked") > 0) & (pl.col("checked_right") > 0)).sort(_KEY)
    return _judge(rows, max_q) if rows.height else pl.DataFrame(schema=COMPARISON)


def _counts(seen: Survey) -> pl.DataFrame:
    """Rows (measure, hop, count) of one capture."""
    breaks = seen.breaks.filter(pl.col("severity") != "info").select(
        pl.col("kind").alias("measure"),
        "from_service",
        pl.coalesce("to_service", "service_name").alias("to_service"),
    )
    errors = seen.errors.hops.filter(pl.col("verdict").is_in(_LOSSES)).select(
        pl.col("verdict").alias("measure"),
        pl.col("child_service").alias("from_service"),
        pl.col("parent_service").alias("to_service"),
    )
    chains = _whole(seen).select(
        pl.lit(_CHAIN).alias("measure"),
        pl.lit(None, pl.String).alias("from_service"),
        pl.lit(None, pl.String).alias("to_service"),
        pl.col("broken").sum().alias("count"),
    )
    found = pl.concat([breaks, errors]).group_by(_KEY).agg(pl.len().cast(pl.Int64).alias("count"))
    return pl.concat([found, chains.head(1)])


def _with_checked(rows: pl.DataFrame, seen: Survey) -> pl.DataFrame:
    """Add what was checked: spans of the called service, hops followed, traces judged."""
    spans = seen.operations.group_by(pl.col("service_name").alias("to_service")).agg(
        pl.col("spans").sum()
    )
    followed = seen.errors.hops.group_by(
        pl.col("child_service").alias("from_service"),
        pl.col("parent_service").alias("to_service"),
    ).agg(pl.len().cast(pl.Int64).alias("hops"))
    judged = _whole(seen).select((pl.col("traces") - pl.col("undetermined")).sum()).item()
    return (
        rows.join(spans, on="to_service", how="left", nulls_equal=True)
        .join(followed, on=["from_service", "to_service"], how="left", nulls_equal=True)
        .select(
            *_KEY,
            pl.col("count").fill_null(0),
            pl.when(pl.col("measure") == _CHAIN)
            .then(judged)
            .when(pl.col("measure").is_in(_LOSSES))
            .then("hops")
            .otherwise("spans")
            .fill_null(0)
            .cast(pl.Int64)
            .alias("checked"),
        )
    )


def _whole(seen: Survey) -> pl.DataFrame:
    return seen.errors.integrity.filter(pl.col("service_name").is_null())


def _judge(rows: pl.DataFrame, max_q: float) -> pl.DataFrame:
    a, n = rows["count"].to_numpy(), rows["checked"].to_numpy()
    b, m = rows["count_right"].to_numpy(), rows["checked_right"].to_numpy()
    # A break may be counted more often than its service has spans (spans without service).
    a, b = np.minimum(a, n), np.minimum(b, m)
    p, q = a / n, b / m
    low_a, high_a = wilson_interval(a, n)
    low_b, high_b = wilson_interval(b, m)
    difference = q - p
    low = difference - ((q - low_b) ** 2 + (high_a - p) ** 2) ** 0.5
    high = difference + ((high_b - q) ** 2 + (p - low_a) ** 2) ** 0.5
    pooled = (a + b) / (n + m)
    spread = (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5
    score = [abs(d) / s if s > 0 else 0.0 for d, s in zip(difference, spread, strict=True)]
    p_values = pl.Series([erfc(value / sqrt(2)) for value in score], dtype=pl.Float64)
    table = rows.select(
        *_KEY,
        before="count",
        before_checked="checked",
        before_rate=pl.lit(pl.Series(p)),
        before_low=pl.lit(pl.Series(low_a)),
        before_high=pl.lit(pl.Series(high_a)),
        after="count_right",
        after_checked="checked_right",
        after_rate=pl.lit(pl.Series(q)),
        after_low=pl.lit(pl.Series(low_b)),
        after_high=pl.lit(pl.Series(high_b)),
        difference=pl.lit(pl.Series(difference)),
        difference_low=pl.lit(pl.Series(low)),
        difference_high=pl.lit(pl.Series(high)),
        q_value=pl.lit(pl.Series(q_values(p_values.to_numpy()))),
    ).with_columns(
        pl.when(pl.col("q_value") > max_q)
        .then(pl.lit("no clear change"))
        .when(pl.col("difference") > 0)
        .then(pl.lit("worse"))
        .otherwise(pl.lit("better"))
        .alias("verdict")
    )
    rank = pl.col("verdict").replace_strict({"worse": 0, "better": 1}, default=2)
    return schema.conform(table, COMPARISON).sort(rank, "q_value", *_KEY, nulls_last=True)
