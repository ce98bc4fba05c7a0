"""Groups of attempts: who retried what, how often, and what that multiplied to."""

from typing import Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.evidence import attempts, exception_records, failing_spans
from tracelab.errors_chain.parsing import parse_exceptions
from tracelab.errors_chain.retries import TOLERANCE_NS, attribute
from tracelab.exceptions import ParameterError
from tracelab.schema import ColumnType
from tracelab.structure import span_edges
from tracelab.traceset import TraceSet, require_traces

_SPAN: Final = ["trace_id", "span_id"]
_ENVOY: Final = '"component":"proxy"'
_COLUMNS: Final[dict[str, ColumnType]] = {
    "trace_id": pl.String,
    "parent_span_id": pl.String,
    "service_name": pl.String,
    "operation": pl.String,
    "source": pl.String,
    "attempts": pl.Int64,
    "failed": pl.Int64,
    "succeeded": pl.Boolean,
    "time": schema.TIME,
    "duration_ns": pl.Int64,
    "span_ids": pl.List(pl.String),
    "amplification": pl.Float64,
}
_RESULT: Final = pl.Schema(_COLUMNS)


def find_retry_groups(
    traces: TraceSet,
    *,
    edges: pl.DataFrame | None = None,
    exceptions: pl.DataFrame | None = None,
    max_gap_s: float = 60.0,
) -> pl.DataFrame:
    """Find attempts of one request: siblings that follow a failed one, or a stated count.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    edges, exceptions : pl.DataFrame, optional
        Schemas EDGES and EXCEPTIONS of the same capture; computed where not given.
    max_gap_s : float
        Longest pause between two attempts; longer ones are two requests.

    Returns
    -------
    pl.DataFrame
        trace_id, parent_span_id, service_name, operation, source (resend_count: an
        attribute states it; siblings: a failed call is followed by one of the same kind,
        name and target; envoy: the proxy states its own retries), attempts, failed,
        succeeded (the last one), time, duration_ns, span_ids, amplification (attempts of
        this group times those of the groups around it: what one request became).

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet, or `max_gap_s` is not above 0.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    if max_gap_s <= 0:
        raise ParameterError(f"max_gap_s is {max_gap_s}; it must be above 0")
    if edges is None:
        edges = span_edges(traces)
    if exceptions is None:
        exceptions = parse_exceptions(traces)
    schema.require_columns(edges, schema.EDGES, name="edges")
    schema.require_columns(exceptions, schema.EXCEPTIONS, name="exceptions")
    evidence = failing_spans(traces, exception_records(traces, exceptions))
    suspect = pl.concat(
        [
            evidence.filter("fails").select("trace_id"),
            traces.spans.filter(_states_a_count()).select("trace_id"),
        ]
    )
    up = (
        edges.filter(pl.col("relation") == "parent")
        .select("trace_id", pl.col("child_span_id").alias("span_id"), "parent_span_id")
        .join(suspect, on="trace_id", how="semi")
        .unique(_SPAN, keep="first", maintain_order=True)
    )
    spans = (
        traces.spans.join(suspect, on="trace_id", how="semi")
        .unique(_SPAN, keep="first", maintain_order=True)
        .drop("parent_span_id")
    )
    groups = pl.concat([_siblings(spans, up, evidence, max_gap_s), _stated(spans, up, evidence)])
    return _amplify(groups, up).sort("time", "trace_id", "parent_span_id", "operation")


def _states_a_count() -> pl.Expr:
    return pl.col("attributes").str.contains('"retry.count"', literal=True) | (
        pl.col("resend_count") > 0
    )


def _siblings(
    spans: pl.DataFrame, up: pl.DataFrame, evidence: pl.DataFrame, max_gap_s: float
) -> pl.DataFrame:
    """Group calls below one parent: each next attempt starts after a failed one."""
    calls = spans.filter(pl.col("kind").is_in(["CLIENT", "SERVER"])).join(up, on=_SPAN, how="inner")
    # only below parents where something failed or an attempt is counted can there be a retry
    suspect = pl.concat(
        [
            calls.join(evidence.filter("fails"), on=_SPAN, how="semi"),
            calls.filter(pl.col("resend_count") > 0),
        ]
    ).select("trace_id", "parent_span_id")
    calls = calls.join(suspect, on=["trace_id", "parent_span_id"], how="semi")
    several = pl.len().over("trace_id", "parent_span_id", "kind") > 1
    tried = attempts(calls.filter(several), evidence)
    place = ["trace_id", "parent_span_id", "kind", "service_name", "operation", "target"]
    ordered = tried.sort(*place, "start", "span_id", nulls_last=True)
    previous = pl.col("fails").shift(1).over(place)
    gap = pl.col("start") - pl.col("end").shift(1).over(place)
    again = (previous & (gap >= -TOLERANCE_NS) & (gap <= max_gap_s * 1e9)) | (
        pl.col("resend").fill_null(0) > pl.col("resend").shift(1).over(place).fill_null(0)
    ) & (pl.col("resend") > 0)
    return (
        ordered.with_columns(again.fill_null(value=False).alias("again"))
        .with_columns((~pl.col("again")).cum_sum().over(place).alias("group"))
        .group_by(*place, "group", maintain_order=True)
        .agg(
            pl.when((pl.col("resend") > 0).any())
            .then(pl.lit("resend_count"))
            .otherwise(pl.lit("siblings"))
            .alias("source"),
            pl.len().cast(pl.Int64).alias("attempts"),
            pl.col("fails").sum().cast(pl.Int64).alias("failed"),
            pl.col("fails").last().not_().alias("succeeded"),
            pl.col("start_time").min().alias("time"),
            (pl.col("end").max() - pl.col("start").min()).alias("duration_ns"),
            pl.col("span_id").alias("span_ids"),
            pl.col("name").first().alias("first_name"),
        )
        .filter(pl.col("attempts") > 1)
        .with_columns(pl.col("first_name").alias("operation"), pl.lit(1.0).alias("amplification"))
        .select(list(_RESULT))
    )


def _stated(spans: pl.DataFrame, up: pl.DataFrame, evidence: pl.DataFrame) -> pl.DataFrame:
    """Single spans on which a proxy states how often it retried."""
    count = attribute("retry.count").cast(pl.Int64, strict=False)
    proxied = pl.col("attributes").str.contains(_ENVOY, literal=True)
    return (
        spans.filter(_states_a_count())
        .filter((count > 0) | ((pl.col("resend_count") > 0) & proxied))
        .join(up, on=_SPAN, how="left")
        .join(evidence.select(*_SPAN, "fails"), on=_SPAN, how="left")
        .with_columns(
            (pl.coalesce(count, "resend_count") + 1).alias("attempts"),
            pl.col("fails").fill_null(value=False),
        )
        .select(
            "trace_id",
            "parent_span_id",
            "service_name",
            pl.col("name").alias("operation"),
            pl.lit("envoy").alias("source"),
            "attempts",
            (pl.col("attempts") - 1 + pl.col("fails").cast(pl.Int64)).alias("failed"),
            (~pl.col("fails")).alias("succeeded"),
            pl.col("start_time").alias("time"),
            "duration_ns",
            pl.concat_list("span_id").alias("span_ids"),
            pl.lit(1.0).alias("amplification"),
        )
        .select(list(_RESULT))
    )


def _amplify(groups: pl.DataFrame, up: pl.DataFrame) -> pl.DataFrame:
    """Multiply the attempts of nested groups: retries above retries."""
    numbered = groups.with_row_index("group")
    member = numbered.select("trace_id", "span_ids", pl.col("attempts").alias("outer")).explode(
        "span_ids"
    )
    at = numbered.select("group", "trace_id", pl.col("parent_span_id").alias("at")).filter(
        pl.col("at").is_not_null()
    )
    steps = up.rename({"span_id": "at", "parent_span_id": "next"})
    factors = []
    for _ in range(64):
        if at.is_empty():
            break
        factors.append(
            at.join(member, left_on=["trace_id", "at"], right_on=["trace_id", "span_ids"]).select(
                "group", "outer"
            )
        )
        at = at.join(steps, on=["trace_id", "at"], how="inner").drop("at").rename({"next": "at"})
    empty = pl.DataFrame(schema={"group": pl.UInt32, "outer": pl.Int64})
    around = pl.concat([empty, *factors]).group_by("group").agg(pl.col("outer").product())
    return (
        numbered.join(around, on="group", how="left")
        .with_columns(
            (pl.col("attempts") * pl.col("outer").fill_null(1))
            .cast(pl.Float64)
            .alias("amplification")
        )
        .select(list(_RESULT))
    )
