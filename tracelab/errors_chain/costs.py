"""What hidden failures cost: successful requests that contain them, and the time spent."""

from typing import Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.evidence import SPAN
from tracelab.errors_chain.hops import find_error_hops
from tracelab.errors_chain.intervals import wilson
from tracelab.structure import span_edges
from tracelab.traceset import TraceSet, require_traces

_MAX_LEVELS: Final = 64
_ENTRY_KINDS: Final = ["SERVER", "CONSUMER"]
_NEEDED: Final = (
    *SPAN,
    "service_name",
    "name",
    "kind",
    "status_code",
    "http_response_status_code",
    "start_time",
    "end_time",
    "duration_ns",
)


def swallow_costs(
    traces: TraceSet, *, hops: pl.DataFrame | None = None, edges: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Measure what swallowed and retried errors cost each endpoint.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    hops, edges : pl.DataFrame, optional
        Schemas ERROR_HOPS and EDGES of the same capture; computed where not given.

    Returns
    -------
    pl.DataFrame
        One row per endpoint (service_name, span_name of SERVER and CONSUMER spans, of roots
        where a trace has neither): requests, successful, hiding (successful requests below
        which an error was swallowed or recovered), hiding_ratio with its 95 % interval,
        swallowed, recovered, depth_median, depth_max (hops between the endpoint and the
        failure), hidden_ns (time of the failed attempts, parallel ones counted once per
        request), blocking_ns (the part during which nothing else below the same parent
        ran: an upper bound of what it adds to the critical path), blocking_ratio of the
        duration of the hiding requests. Most costly first.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    if edges is None:
        edges = span_edges(traces)
    if hops is None:
        hops = find_error_hops(traces, edges=edges)
    schema.require_columns(hops, schema.ERROR_HOPS, name="hops")
    schema.require_columns(edges, schema.EDGES, name="edges")
    spans = traces.spans.select(_NEEDED).unique(SPAN, keep="first", maintain_order=True)
    up = (
        edges.filter(pl.col("relation") == "parent")
        .select("trace_id", pl.col("child_span_id").alias("span_id"), "parent_span_id")
        .unique(SPAN, keep="first")
    )
    entries = _entries(spans, up)
    hidden = hops.filter(
        pl.col("verdict").is_in(["swallowed", "recovered"]), pl.col("via_break_id").is_null()
    ).select(
        "trace_id",
        pl.col("child_span_id").alias("span_id"),
        pl.col("parent_span_id").alias("below"),
        "verdict",
    )
    found = _climb(hidden, entries, up)
    timed = _timed(found, spans, up)
    per_request = timed.group_by("trace_id", "entry").agg(
        (pl.col("verdict") == "swallowed").sum().alias("swallowed"),
        (pl.col("verdict") == "recovered").sum().alias("recovered"),
        pl.col("depth").max().alias("depth"),
        pl.col("hidden").sum().alias("hidden"),
        pl.col("blocking").sum().alias("blocking"),
    )
    low, high = wilson(pl.col("hiding"), pl.col("successful"))
    good = pl.col("good")
    hides = good & pl.col("depth").is_not_null()
    return (
        entries.join(per_request, left_on=SPAN, right_on=["trace_id", "entry"], how="left")
        .group_by("service_name", "span_name")
        .agg(
            pl.len().cast(pl.Int64).alias("requests"),
            good.sum().cast(pl.Int64).alias("successful"),
            hides.sum().cast(pl.Int64).alias("hiding"),
            pl.col("swallowed", "recovered").filter(hides).sum().cast(pl.Int64),
            pl.col("depth").filter(hides).median().alias("depth_median"),
            pl.col("depth").filter(hides).max().cast(pl.Int64).alias("depth_max"),
            pl.col("hidden").filter(hides).sum().cast(pl.Int64).alias("hidden_ns"),
            pl.col("blocking").filter(hides).sum().cast(pl.Int64).alias("blocking_ns"),
            pl.col("duration_ns").filter(hides).sum().alias("hiding_duration"),
        )
        .with_columns(
            (pl.col("hiding") / pl.col("successful")).alias("hiding_ratio"),
            low.alias("hiding_low"),
            high.alias("hiding_high"),
            pl.when(pl.col("hiding_duration") > 0)
            .then(pl.col("blocking_ns") / pl.col("hiding_duration"))
            .alias("blocking_ratio"),
        )
        .drop("hiding_duration")
        .sort(
            ["blocking_ns", "hiding", "service_name", "span_name"],
            descending=[True, True, False, False],
        )
    )


def _entries(spans: pl.DataFrame, up: pl.DataFrame) -> pl.DataFrame:
    serving = pl.col("kind").is_in(_ENTRY_KINDS)
    has_entry = serving.any().over("trace_id")
    root = spans.join(up, on=SPAN, how="anti").select(*SPAN, pl.lit(value=True).alias("root"))
    code = pl.col("http_response_status_code")
    return (
        spans.join(root, on=SPAN, how="left")
        .filter(serving | (~has_entry & pl.col("root").fill_null(value=False)))
        .select(
            *SPAN,
            "service_name",
            pl.col("name").alias("span_name"),
            "duration_ns",
            (
                (pl.col("status_code") != "ERROR").fill_null(value=True)
                & (code.is_null() | (code < 400))
            ).alias("good"),
        )
    )


def _climb(hidden: pl.DataFrame, entries: pl.DataFrame, up: pl.DataFrame) -> pl.DataFrame:
    """Find every endpoint above each hidden failure, and how many hops above."""
    at = hidden.with_columns(pl.col("below").alias("at"))
    known = entries.select(
        "trace_id", pl.col("span_id").alias("at"), pl.lit(value=True).alias("hit")
    )
    steps = up.rename({"span_id": "at", "parent_span_id": "next"})
    parts = []
    for depth in range(1, _MAX_LEVELS + 1):
        if at.is_empty():
            break
        met = at.join(known, on=["trace_id", "at"], how="semi")
        parts.append(met.with_columns(pl.col("at").alias("entry"), pl.lit(depth).alias("depth")))
        at = at.join(steps, on=["trace_id", "at"], how="inner").drop("at").rename({"next": "at"})
    if not parts:
        parts = [at.with_columns(pl.col("at").alias("entry"), pl.lit(0).alias("depth"))]
    return pl.concat(parts).drop("at")


def _timed(found: pl.DataFrame, spans: pl.DataFrame, up: pl.DataFrame) -> pl.DataFrame:
    """Add the time of each failed attempt, and the part in which no sibling ran."""
    when = spans.select(
        *SPAN,
        pl.col("start_time").dt.timestamp("ns").alias("start"),
        pl.col("end_time").dt.timestamp("ns").alias("end"),
    )
    failed = found.select("trace_id", "span_id", "below").unique().join(when, on=SPAN, how="inner")
    siblings = (
        up.join(
            failed,
            left_on=["trace_id", "parent_span_id"],
            right_on=["trace_id", "below"],
            how="semi",
        )
        .join(when, on=SPAN, how="inner")
        .select(
            "trace_id",
            pl.col("parent_span_id").alias("below"),
            pl.col("span_id").alias("other"),
            pl.col("start").alias("other_start"),
            pl.col("end").alias("other_end"),
        )
    )
    overlap = (
        pl.min_horizontal("end", "other_end") - pl.max_horizontal("start", "other_start")
    ).clip(lower_bound=0)
    shared = (
        failed.join(siblings, on=["trace_id", "below"], how="left")
        .with_columns(
            pl.when(pl.col("other") != pl.col("span_id")).then(overlap).otherwise(0).alias("shared")
        )
        .group_by(*SPAN)
        .agg(pl.col("shared").max())
    )
    timed = failed.join(shared, on=SPAN, how="left").with_columns(
        (pl.col("end") - pl.col("start")).alias("hidden")
    )
    return found.join(
        timed.select(
            *SPAN, "hidden", (pl.col("hidden") - pl.col("shared").fill_null(0)).alias("blocking")
        ),
        on=SPAN,
        how="left",
    )
