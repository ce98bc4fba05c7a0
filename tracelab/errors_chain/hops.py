"""What became of each error on its way to the root: one row per hop, with its verdict."""

from typing import Any, Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.comparing import POSITIVE, compare_pairs
from tracelab.errors_chain.evidence import (
    SIDE,
    SPAN,
    attempts,
    exception_records,
    failing_spans,
    told_by_spans,
)
from tracelab.errors_chain.failures import number_failures
from tracelab.errors_chain.parsing import parse_exceptions
from tracelab.errors_chain.passing import find_passages
from tracelab.errors_chain.retries import find_recoveries
from tracelab.errors_chain.verdicts import judge
from tracelab.structure import find_breaks, span_edges
from tracelab.traceset import TraceSet, require_traces

_READ: Final = [
    *SPAN,
    *("parent_span_id", "name", "kind", "start_time", "end_time", "duration_ns", "status_code"),
    *("status_message", "service_name", "sdk_language", "http_response_status_code"),
    *("error_type", "resend_count", "rpc_system", "server_address", "attributes"),
]
_FLAGS: Final = ["is_error", "is_5xx", "is_4xx", "has_exception", "has_log", "is_weak", "fails"]


def find_error_hops(
    traces: TraceSet,
    *,
    edges: pl.DataFrame | None = None,
    breaks: pl.DataFrame | None = None,
    exceptions: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Follow each error from the span where it began towards the root.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    edges, breaks, exceptions : pl.DataFrame, optional
        Schemas EDGES, BREAKS and EXCEPTIONS of the same capture; computed where not given.

    Returns
    -------
    pl.DataFrame
        Schema ERROR_HOPS, sorted by (error_id, hop, child_span_id). One row per failing span
        that has a parent: ``verdict`` says what the parent's record made of the error,
        ``confidence`` is the probability of that verdict. ``swallowed`` and ``recovered``
        are statements of fact, not of blame: a fallback may be the design. Where a hop was
        bridged by a proposed parent, ``via_break_id`` names the break and the confidence
        holds both. ``latency_cost_ns`` is the time spent below a swallowed or recovered hop.

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
    if breaks is None:
        breaks = find_breaks(traces)
    if exceptions is None:
        exceptions = parse_exceptions(traces)
    schema.require_columns(edges, schema.EDGES, name="edges")
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    schema.require_columns(exceptions, schema.EXCEPTIONS, name="exceptions")
    records = exception_records(traces, exceptions)
    evidence = failing_spans(traces, records)
    failing = evidence.filter("fails")
    if failing.is_empty():
        return schema.empty(schema.ERROR_HOPS)
    up = _parents(edges, breaks)
    touched = _touched(failing, up)
    spans = (
        traces.spans.filter(pl.col("trace_id").is_in(touched.implode()))
        .select(_READ)
        .unique(SPAN, keep="first", maintain_order=True)
    )
    hops = _hops(failing, spans, up, evidence)
    hops = _with_relation(hops, spans, records)
    hops = _with_recovery(hops, spans, up, evidence)
    hops, passages = find_passages(hops, spans, up, evidence, records)
    judged = judge(hops)
    return _finish(pl.concat([judged, passages], how="diagonal"), spans, records)


def _touched(failing: pl.DataFrame, up: pl.DataFrame) -> pl.Series:
    """Traces with failing spans, those of proposed parents, and what else hangs on these."""
    carried = up.filter(pl.col("via_break_id").is_not_null())
    beyond = carried.join(failing, on=SPAN, how="semi")["up_trace"]
    traces = pl.concat([failing["trace_id"], beyond]).unique()
    beside = carried.filter(pl.col("up_trace").is_in(traces.implode()))["trace_id"]
    return pl.concat([traces, beside]).unique()


def _parents(edges: pl.DataFrame, breaks: pl.DataFrame) -> pl.DataFrame:
    """Return one parent per span: the recorded one, else the most probable proposed one."""
    recorded = edges.filter(pl.col("relation") == "parent").select(
        "trace_id",
        pl.col("child_span_id").alias("span_id"),
        pl.col("trace_id").alias("up_trace"),
        pl.col("parent_span_id").alias("up_span"),
        "boundary",
        pl.lit(None, pl.String).alias("via_break_id"),
        pl.lit(1.0).alias("bridge"),
    )
    proposed = (
        breaks.filter(pl.col("proposed_span_id").is_not_null(), pl.col("span_id").is_not_null())
        .sort("proposed_confidence", "break_id", descending=[True, False], nulls_last=True)
        .unique(SPAN, keep="first", maintain_order=True)
        .select(
            *SPAN,
            pl.coalesce("proposed_trace_id", "trace_id").alias("up_trace"),
            pl.col("proposed_span_id").alias("up_span"),
            "boundary",
            pl.col("break_id").alias("via_break_id"),
            pl.col("proposed_confidence").fill_null(0.5).alias("bridge"),
            pl.col("kind").alias("break_kind"),
        )
    )
    # a context that leaked has a recorded parent, and it is the wrong one
    leaked = proposed.filter(pl.col("break_kind") == "wrong_parent")
    kept = recorded.unique(SPAN, keep="first", maintain_order=True).join(
        leaked, on=SPAN, how="anti"
    )
    added = proposed.join(kept, on=SPAN, how="anti").drop("break_kind")
    return pl.concat([kept, added])


def _hops(
    failing: pl.DataFrame, spans: pl.DataFrame, up: pl.DataFrame, evidence: pl.DataFrame
) -> pl.DataFrame:
    """One row per failing span that names or has been given a parent, with both sides."""
    children = (
        failing.join(spans, on=SPAN, how="left")
        .join(up, on=SPAN, how="left")
        .with_columns(
            pl.col("up_trace").fill_null(pl.col("trace_id")),
            pl.col("up_span").fill_null(pl.col("parent_span_id").replace("", None)),
            pl.col("bridge").fill_null(1.0),
            pl.col("boundary").fill_null("unknown"),
        )
        .filter(
            pl.col("up_span").is_not_null(),
            (pl.col("up_span") != pl.col("span_id")) | (pl.col("up_trace") != pl.col("trace_id")),
        )
        .sort(SPAN)
        .with_row_index("row")
    )
    parents = spans.join(evidence, on=SPAN, how="left").select(
        pl.col("trace_id").alias("up_trace"),
        pl.col("span_id").alias("up_span"),
        pl.lit(value=True).alias("up_present"),
        *(
            pl.col(name).alias(f"up_{name}")
            for name in _READ
            if name not in (*SPAN, "parent_span_id", "attributes")
        ),
        *(pl.col(name).fill_null(value=False).alias(f"up_{name}") for name in _FLAGS),
    )
    return children.join(parents, on=["up_trace", "up_span"], how="left").with_columns(
        pl.col("up_present").fill_null(value=False),
        *(pl.col(f"up_{name}").fill_null(value=False) for name in _FLAGS),
    )


def _with_relation(hops: pl.DataFrame, spans: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    """Compare what child and parent tell; the best of the parent's records counts."""
    told = told_by_spans(spans, records)
    mine = told.filter(pl.col("age") == 0).select(
        *SPAN, "raw_type", "raw_message", *(pl.col(name).alias(f"c_{name}") for name in SIDE)
    )
    theirs = told.select(
        pl.col("trace_id").alias("up_trace"),
        pl.col("span_id").alias("up_span"),
        pl.col("raw_type").alias("up_raw_type"),
        pl.col("raw_message").alias("up_raw_message"),
        "age",
        pl.col("time").alias("told_at"),
        *(pl.col(name).alias(f"p_{name}") for name in SIDE),
    )
    hops = hops.join(mine, on=SPAN, how="left").with_columns(
        (pl.col("c_type").is_not_null() | pl.col("c_message").is_not_null()).alias("tells")
    )
    told_up = theirs.select("up_trace", "up_span").unique()
    pairs = (
        hops.filter("tells")
        .select("row", "up_trace", "up_span", *(f"c_{name}" for name in SIDE))
        .join(theirs, on=["up_trace", "up_span"], how="inner")
    )
    best = best_relation(compare_pairs(pairs))
    newest = theirs.filter(pl.col("age") == 0).select(
        "up_trace", "up_span", "up_raw_type", "up_raw_message"
    )
    return (
        hops.join(best, on="row", how="left")
        .join(newest, on=["up_trace", "up_span"], how="left")
        .with_columns(
            pl.coalesce("best_raw_type", "up_raw_type").alias("up_raw_type"),
            pl.coalesce("best_raw_message", "up_raw_message").alias("up_raw_message"),
        )
        .join(
            told_up.with_columns(pl.lit(value=True).alias("up_tells")),
            on=["up_trace", "up_span"],
            how="left",
        )
        .with_columns(pl.col("up_tells").fill_null(value=False))
    )


def best_relation(pairs: pl.DataFrame) -> pl.DataFrame:
    """Keep per row the strongest relation among the records that were compared."""
    rank = {word: place for place, word in enumerate((*POSITIVE, "replaced", "not_determinable"))}
    return (
        pairs.with_columns(pl.col("relation").replace_strict(rank, default=9).alias("rank"))
        .sort("row", "rank", "age")
        .group_by("row", maintain_order=True)
        .first()
        .select(
            "row",
            "relation",
            "relation_confidence",
            "relation_reason",
            *(
                pl.col(f"up_raw_{name}").alias(f"best_raw_{name}")
                for name in ("type", "message")
                if f"up_raw_{name}" in pairs.columns
            ),
            *(["told_at"] if "told_at" in pairs.columns else []),
        )
    )


def _with_recovery(
    hops: pl.DataFrame, spans: pl.DataFrame, up: pl.DataFrame, evidence: pl.DataFrame
) -> pl.DataFrame:
    """Add the sibling that made the failed span good, and whether another failure counts."""
    parents = hops.select("up_trace", "up_span").unique()
    children = up.join(parents, on=["up_trace", "up_span"], how="semi").join(
        spans, on=SPAN, how="inner"
    )
    siblings = attempts(children, evidence)
    failed = hops.select("row", *SPAN).join(siblings, on=SPAN, how="inner")
    found = find_recoveries(failed, siblings)
    positive = pl.col("relation").is_in(POSITIVE).fill_null(value=False)
    after = (
        siblings.select("up_trace", "up_span", pl.col("start").alias("other_start"))
        .group_by("up_trace", "up_span")
        .agg(pl.col("other_start").max().alias("last_start"))
    )
    ended = spans.select(
        "trace_id",
        pl.col("span_id").alias("recovered_by"),
        pl.col("end_time").alias("recovered_at"),
    )
    arrived = (
        hops.filter(positive)
        .select(
            pl.col("up_trace").alias("trace_id"),
            pl.col("up_span").alias("span_id"),
            pl.lit(value=True).alias("holds_arrival"),
        )
        .unique()
    )
    return (
        hops.join(found, on="row", how="left")
        .join(after, on=["up_trace", "up_span"], how="left")
        .with_columns(
            positive.any().over("up_trace", "up_span").alias("up_explained"),
            (pl.col("last_start") > pl.col("end_time").dt.timestamp("ns")).alias("work_after"),
        )
        .join(ended, on=["trace_id", "recovered_by"], how="left")
        .join(arrived, on=SPAN, how="left")
        .with_columns(pl.col("holds_arrival").fill_null(value=False))
    )


def _finish(hops: pl.DataFrame, spans: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    if hops.is_empty():
        return schema.empty(schema.ERROR_HOPS)
    numbered = number_failures(hops)
    costly = pl.col("verdict").is_in(["swallowed", "recovered"])
    evidence: Any = pl.concat_list(
        pl.col("reason", "reason_more", "reason_bridge").fill_null("")
    ).list.filter(pl.element() != "")
    return schema.conform(
        numbered.select(
            "error_id",
            pl.col("hop").cast(pl.Int64),
            pl.col("start_time").alias("time"),
            "trace_id",
            pl.col("span_id").alias("child_span_id"),
            pl.col("up_span").alias("parent_span_id"),
            pl.col("service_name").alias("child_service"),
            pl.col("up_service_name").alias("parent_service"),
            "boundary",
            "verdict",
            pl.coalesce("raw_type", "error_type").alias("child_type"),
            pl.col("raw_message").alias("child_message"),
            pl.col("up_raw_type").alias("parent_type"),
            pl.col("up_raw_message").alias("parent_message"),
            pl.when(pl.col("verdict") == "recovered")
            .then("recovered_by_any")
            .alias("recovered_by_span_id"),
            pl.when(costly).then("duration_ns").alias("latency_cost_ns"),
            "via_break_id",
            pl.col("confidence").clip(0.0, 1.0).round(4),
            evidence.alias("evidence"),
        ),
        schema.ERROR_HOPS,
    ).sort("error_id", "hop", "child_span_id")
