"""How much of the traffic was sampled, per service, and where that does not fit together."""

from typing import Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.structure.detached import find_detached_roots
from tracelab.structure.missing import find_missing
from tracelab.structure.rates import wilson_interval
from tracelab.structure.sampled_callers import blame_sampled_callers
from tracelab.structure.sampling import MIN_SEPARATION, sampled_out
from tracelab.structure.skeleton import Skeleton
from tracelab.traceset import TraceSet

SAMPLING_AUDIT: Final = pl.Schema(
    {
        "service_name": pl.String,
        "sdk_language": pl.String,
        "sdk_version": pl.String,
        "traces": pl.Int64,
        "missing_traces": pl.Int64,
        "ratio": pl.Float64,
        "ratio_low": pl.Float64,
        "ratio_high": pl.Float64,
        "reading": pl.String,
        "separation": pl.Float64,
        "sampled": pl.Boolean,
        "tracestate_ratio": pl.Float64,
        "adjusted_traces": pl.Float64,
        "adjusted_low": pl.Float64,
        "adjusted_high": pl.Float64,
    }
)
"""The table of `audit_sampling`."""


def audit_sampling(traces: TraceSet) -> pl.DataFrame:
    """Estimate each service's effective sampling ratio from who is missing where.

    Parameters
    ----------
    traces : TraceSet
        The capture.

    Returns
    -------
    pl.DataFrame
        Schema `SAMPLING_AUDIT`, one row per service, sorted. ``missing_traces`` are those in
        which a caller or callee shows that the service took part; ``ratio`` is the share of
        traces in which it is there, with a 95 % interval; ``sampled`` says that a threshold on
        the trace id explains it (``reading``, ``separation``), else the ratio is one of losses
        or missing instrumentation. ``tracestate_ratio`` is what consistent sampling wrote
        (``ot=th``). ``adjusted_traces`` corrects the count for both.

    Raises
    ------
    SchemaError
        Never for a `TraceSet`.
    """
    skeleton = Skeleton.of(traces)
    skeleton.drop_copies()
    if not skeleton.n:
        return schema.empty(SAMPLING_AUDIT)
    missing = find_missing(skeleton, find_detached_roots(skeleton).claimed)
    missing = blame_sampled_callers(skeleton, missing)
    separation, reading = sampled_out(skeleton, missing)
    facts = (
        traces.spans.with_columns(_threshold(pl.col("trace_state")).alias("threshold"))
        .group_by(pl.col("service_name").fill_null(""))
        .agg(
            pl.col("sdk_language").drop_nulls().mode().sort().first(),
            pl.col("sdk_version").drop_nulls().mode().sort().first(),
            pl.col("trace_id").n_unique().alias("traces"),
            (1 - pl.col("threshold").mean()).alias("tracestate_ratio"),
        )
        .sort("service_name")
    )
    absent, names, scores = [], [], []
    trace_of = skeleton.trace[missing.row]
    for service in facts["service_name"]:
        code = skeleton.services.index(service)
        mine = missing.service == code
        present = np.unique(skeleton.trace[skeleton.rows_of_service(code)])
        absent.append(int(np.setdiff1d(np.unique(trace_of[mine]), present).size))
        tested = np.flatnonzero(mine & (separation > 0))
        names.append(reading[tested[0]] if tested.size else None)
        scores.append(float(separation[tested[0]]) if tested.size else None)
    table = facts.with_columns(
        missing_traces=pl.Series(absent, dtype=pl.Int64),
        reading=pl.Series(names, dtype=pl.String),
        separation=pl.Series(scores, dtype=pl.Float64),
    )
    there = table["traces"].to_numpy().astype(np.int64)
    low, high = wilson_interval(there, there + table["missing_traces"].to_numpy())
    whole = pl.col("tracestate_ratio").fill_null(1.0).clip(lower_bound=1e-9)
    return schema.conform(
        table.with_columns(
            ratio=pl.col("traces") / (pl.col("traces") + pl.col("missing_traces")),
            ratio_low=pl.Series(low),
            ratio_high=pl.Series(high),
            sampled=(pl.col("separation") >= MIN_SEPARATION).fill_null(value=False),
        ).with_columns(
            adjusted_traces=pl.col("traces") / pl.col("ratio") / whole,
            adjusted_low=pl.col("traces") / pl.col("ratio_high") / whole,
            adjusted_high=pl.col("traces") / pl.col("ratio_low").clip(lower_bound=1e-9) / whole,
            service_name=pl.when(pl.col("service_name") != "").then("service_name"),
        ),
        SAMPLING_AUDIT,
    )


def _threshold(trace_state: pl.Expr) -> pl.Expr:
    """Rejection threshold of consistent sampling as a share; trailing zeros are left out."""
    digits = trace_state.str.extract(r"(?:^|,)\s*ot=(?:[^,]*;)?th:([0-9a-f]{1,14})")
    number = digits.str.pad_end(14, "0").str.to_integer(base=16, strict=False)
    return number.cast(pl.Float64) / 2.0**56
