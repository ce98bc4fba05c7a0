"""Tenants: traces that mix them, and how each one fares."""

from typing import Final

import polars as pl

from tracelab import schema
from tracelab.audits.headers import HEADERS, header_value, says_header
from tracelab.audits.integrity import BREAK_SEVERITIES, BROKEN_VERDICTS
from tracelab.errors_chain.hops import find_error_hops
from tracelab.errors_chain.intervals import wilson
from tracelab.structure import find_breaks
from tracelab.traceset import TraceSet, require_traces

_SPAN: Final = ["trace_id", "span_id"]


def find_mixed_tenants(traces: TraceSet, *, key: str = "x-tenant-id") -> pl.DataFrame:
    """Find traces in which spans carry different tenants.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    key : str
        Header that names the tenant; ``tenant.id`` attributes are read beside it.

    Returns
    -------
    pl.DataFrame
        trace_id, time, tenants (sorted), n_spans (that name one), first_tenant,
        span_id, service_name, tenant (of the first span that differs); one row per mixed
        trace, sorted by time. Batch work for several tenants may be meant to mix them.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    named = _named(traces, key).sort("trace_id", "start_time", "span_id")
    first = pl.col("tenant").first().over("trace_id")
    return (
        named.with_columns(first.alias("first_tenant"))
        .with_columns((pl.col("tenant") != pl.col("first_tenant")).alias("other"))
        .group_by("trace_id", maintain_order=True)
        .agg(
            pl.col("start_time").min().alias("time"),
            pl.col("tenant").unique().sort().alias("tenants"),
            pl.len().cast(pl.Int64).alias("n_spans"),
            pl.col("first_tenant").first(),
            pl.col("span_id", "service_name").filter("other").first(),
            pl.col("tenant").filter("other").first(),
        )
        .filter(pl.col("tenants").list.len() > 1)
        .sort("time", "trace_id")
    )


def tenant_rates(
    traces: TraceSet,
    *,
    key: str = "x-tenant-id",
    hops: pl.DataFrame | None = None,
    breaks: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Count traces, failing traces and broken traces per tenant.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    key : str
        Header that names the tenant.
    hops, breaks : pl.DataFrame, optional
        Schemas ERROR_HOPS and BREAKS of the same capture; computed where not given.

    Returns
    -------
    pl.DataFrame
        tenant (null: traces that name none), traces, failing, failing_ratio, broken,
        broken_ratio, each ratio with _low and _high (95 % Wilson interval); a mixed trace
        counts for each of its tenants.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    if breaks is None:
        breaks = find_breaks(traces)
    if hops is None:
        hops = find_error_hops(traces, breaks=breaks)
    schema.require_columns(hops, schema.ERROR_HOPS, name="hops")
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    failing = traces.spans.filter(pl.col("status_code") == "ERROR")["trace_id"].unique().implode()
    broken = pl.concat(
        [
            hops.filter(pl.col("verdict").is_in(BROKEN_VERDICTS))["trace_id"],
            breaks.filter(pl.col("severity").is_in(BREAK_SEVERITIES))["trace_id"],
        ]
    )
    bad = broken.drop_nulls().unique().implode()
    tenants = _named(traces, key).select("trace_id", "tenant").unique()
    table = (
        traces.spans.select("trace_id")
        .unique()
        .join(tenants, on="trace_id", how="left")
        .group_by("tenant")
        .agg(
            pl.len().cast(pl.Int64).alias("traces"),
            pl.col("trace_id").is_in(failing).sum().cast(pl.Int64).alias("failing"),
            pl.col("trace_id").is_in(bad).sum().cast(pl.Int64).alias("broken"),
        )
    )
    for name in ("failing", "broken"):
        low, high = wilson(pl.col(name), pl.col("traces"))
        table = table.with_columns(
            (pl.col(name) / pl.col("traces")).alias(f"{name}_ratio"),
            low.alias(f"{name}_low"),
            high.alias(f"{name}_high"),
        )
    return table.sort("tenant", nulls_last=True)


def _named(traces: TraceSet, key: str) -> pl.DataFrame:
    names = HEADERS.get(key, ())
    value = header_value(key, names)
    said = says_header(key, names)
    if key == "x-tenant-id":  # the lifted column knows the keys configured at reading
        lifted = pl.col("tenant_id").str.strip_chars('[]" ').replace("", None)
        value = pl.coalesce(value, lifted)
        said |= pl.col("tenant_id").is_not_null()
    return (
        traces.spans.select(*_SPAN, "start_time", "service_name", "tenant_id", "attributes")
        .unique(_SPAN, keep="first", maintain_order=True)
        .filter(said)
        .select(*_SPAN, "start_time", "service_name", value.alias("tenant"))
        .filter(pl.col("tenant").is_not_null())
    )
