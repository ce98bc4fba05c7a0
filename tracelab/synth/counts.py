"""What SDKs count of their own work: metrics that tell of spans that were dropped or not sent."""

from typing import Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.synth.plot import Flags, Plot

TOLD_BY_COUNTS: Final = ("queue_overflow", "export_failure")
"""Causes of loss that an SDK sees, and counts if it counts at all."""
_NEVER_QUEUED: Final = ("span_never_ended", "uninstrumented_hop", "sampled_out", "process_exit")
_POINTS: Final = 12
"""Points a process writes over the capture: enough to follow, few beside the spans."""
_SERIES: Final = (
    (
        "otel.sdk.processor.span.processed",
        "batching_span_processor/0",
        "queue_overflow",
        "queue_full",
    ),
    ("otel.sdk.exporter.span.exported", "otlp_http_span_exporter/0", "export_failure", "503"),
)


def tells_of_itself(plot: Plot, *, share: float, rng: np.random.Generator) -> Flags:
    """Mark the spans of services whose SDK exports counts of its own work."""
    services = np.unique(plot.service)
    chosen = services[rng.random(len(services)) < share]
    return np.isin(plot.service, chosen)


def count_spans(plot: Plot) -> pl.DataFrame:
    """Write the counts of all processes that tell of themselves, as cumulative sums.

    Names and attributes are those of OpenTelemetry's conventions for SDK metrics.
    """
    causes = np.array([cause for cause, _ in plot.losses])[plot.lost]
    rows = np.flatnonzero(plot.tells & ~np.isin(causes, _NEVER_QUEUED))
    if not len(rows):
        return schema.empty(schema.METRIC_POINTS)
    low, high = int(plot.end.min()), int(plot.end.max())
    step = max(1, (high - low) // _POINTS + 1)
    base = pl.DataFrame(
        {
            "process": plot.process[rows],
            "bin": (plot.end[rows] - low) // step,
            "cause": pl.Series(causes[rows], dtype=pl.String),
        }
    )
    points = pl.concat([_points(base, *series) for series in _SERIES])
    first = pl.DataFrame({"process": plot.process, "row": np.arange(plot.n), "begun": plot.start})
    heads = first.group_by("process").agg(pl.col("row").first(), pl.col("begun").min())
    names = ["service_name", "service_namespace", "service_instance_id", "resource_attributes"]
    who = plot.spans.select(names)[heads["row"].cast(pl.UInt32)]
    table = points.join(heads.hstack(who), on="process", how="left").with_columns(
        metric_type=pl.lit("sum"),
        unit=pl.lit("{span}"),
        temporality=pl.lit("CUMULATIVE"),
        is_monotonic=pl.lit(value=True),
        start_time=pl.col("begun").cast(schema.TIME),
        time=(low + (pl.col("bin") + 1) * step).cast(schema.TIME),
        scope_name=pl.lit("opentelemetry.sdk"),
        source=pl.lit("synth"),
    )
    table = table.select(name for name in table.columns if name in schema.METRIC_POINTS)
    keys = ["metric_name", "service_name", "service_instance_id", "attributes", "time"]
    return schema.conform(table, schema.METRIC_POINTS).sort(keys, nulls_last=True)


def _points(
    base: pl.DataFrame, metric: str, component: str, cause: str, error: str
) -> pl.DataFrame:
    """Sum up one metric bin by bin, failures apart; what was dropped is never exported."""
    seen = base if cause == "queue_overflow" else base.filter(pl.col("cause") != "queue_overflow")
    failed = pl.col("cause") == cause
    counted = seen.group_by("process", "bin", failed.alias("failed")).agg(value=pl.len())
    series = counted.select("process", "failed").unique()
    bins = pl.DataFrame({"bin": np.arange(_POINTS, dtype=np.int64)})
    whole = (
        series.join(bins, how="cross")
        .join(counted, on=["process", "bin", "failed"], how="left")
        .sort("process", "failed", "bin")
    )
    name = f'{{"otel.component.name":"{component}"'
    return whole.select(
        "process",
        "bin",
        metric_name=pl.lit(metric),
        value=pl.col("value").fill_null(0).cum_sum().over("process", "failed").cast(pl.Float64),
        attributes=pl.when("failed")
        .then(pl.lit(f'{name},"error.type":"{error}"}}'))
        .otherwise(pl.lit(f"{name}}}")),
    )
