"""Errors that pass through spans which say nothing: look further up before judging."""

from typing import Final

import polars as pl

from tracelab.errors_chain.comparing import POSITIVE, compare_pairs
from tracelab.errors_chain.evidence import SIDE, SPAN, told_by_spans

MAX_LEVELS: Final = 32
"""Most silent spans that are looked through; real call trees have few between two that
record errors."""

_FALLBACK: Final = r"(?i)fall.?back|degraded|from cache|stale"


def find_passages(
    hops: pl.DataFrame,
    spans: pl.DataFrame,
    up: pl.DataFrame,
    evidence: pl.DataFrame,
    records: pl.DataFrame,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Find where an error stands again above spans that say nothing.

    Returns
    -------
    hops : pl.DataFrame
        With ``above_relation`` (null: no failing span further up; ``none``: one that fails
        without or with another text) and ``fallback_by``.
    passages : pl.DataFrame
        Judged rows for the silent spans in between: their own hop to the next span.
    """
    hops = _with_fallback(hops, spans, up)
    quiet = ~pl.any_horizontal("up_is_error", "up_is_5xx", "up_has_exception", "up_is_4xx")
    waiting = hops.filter(
        quiet, "up_present", pl.col("recovered_by").is_null(), pl.col("fallback_by").is_null()
    ).select("row", pl.col("up_trace").alias("trace_id"), pl.col("up_span").alias("span_id"))
    shows = evidence.filter(pl.any_horizontal("is_error", "is_5xx", "has_exception")).select(
        *SPAN, pl.lit(value=True).alias("shows")
    )
    steps = up.filter(pl.col("via_break_id").is_null(), pl.col("boundary") != "queue")
    walked: list[pl.DataFrame] = []
    found: list[pl.DataFrame] = []
    for level in range(MAX_LEVELS):
        climbed = waiting.join(steps, on=SPAN, how="inner").join(
            shows, left_on=["up_trace", "up_span"], right_on=SPAN, how="left"
        )
        if climbed.is_empty():
            break
        climbed = climbed.with_columns(pl.lit(level).alias("level"))
        walked.append(climbed)
        found.append(climbed.filter(pl.col("shows").is_not_null()))
        waiting = climbed.filter(pl.col("shows").is_null()).select(
            "row", pl.col("up_trace").alias("trace_id"), pl.col("up_span").alias("span_id")
        )
    if not found or not sum(part.height for part in found):
        return hops.with_columns(pl.lit(None, pl.String).alias("above_relation")), hops.head(
            0
        ).select(*SPAN)
    above = pl.concat(found).select("row", "up_trace", "up_span")
    relations = _relations(hops, above, spans, records)
    hops = hops.join(relations, on="row", how="left")
    passed = relations.filter(pl.col("above_relation").is_in(POSITIVE))
    path = pl.concat(walked).join(passed, on="row", how="inner")
    return hops, _passages(path, hops, spans)


def _relations(
    hops: pl.DataFrame, above: pl.DataFrame, spans: pl.DataFrame, records: pl.DataFrame
) -> pl.DataFrame:
    """Compare each waiting child with the failing span found above it."""
    told = told_by_spans(
        spans.join(above, left_on=SPAN, right_on=["up_trace", "up_span"], how="semi"), records
    ).select(
        pl.col("trace_id").alias("up_trace"),
        pl.col("span_id").alias("up_span"),
        "age",
        *(pl.col(name).alias(f"p_{name}") for name in SIDE),
    )
    pairs = (
        hops.filter("tells")
        .select("row", *(f"c_{name}" for name in SIDE))
        .join(above, on="row", how="inner")
        .join(told, on=["up_trace", "up_span"], how="inner")
    )
    best = (
        compare_pairs(pairs)
        .filter(pl.col("relation").is_in(POSITIVE))
        .sort("row", "age")
        .unique("row", keep="first", maintain_order=True)
        .select("row", pl.col("relation").alias("above_relation"), "relation_confidence")
    )
    return (
        above.select("row")
        .join(best, on="row", how="left")
        .select(
            "row",
            pl.col("above_relation").fill_null("none"),
            pl.col("relation_confidence").alias("above_confidence"),
        )
    )


def _passages(path: pl.DataFrame, hops: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Rows for silent spans that let an error pass, each once."""
    names = [*SPAN, "name", "service_name", "start_time", "end_time", "duration_ns"]
    child = spans.select(names)
    parent = spans.select(
        pl.col("trace_id").alias("up_trace"),
        pl.col("span_id").alias("up_span"),
        pl.col("service_name").alias("up_service_name"),
    )
    last = pl.col("shows").is_not_null()
    return (
        path.sort("above_confidence", "row", descending=[True, False])
        .unique(SPAN, keep="first", maintain_order=True)
        .join(child, on=SPAN, how="inner")
        .join(parent, on=["up_trace", "up_span"], how="inner")
        .join(hops.select("row", "raw_type", "raw_message"), on="row", how="left")
        .with_columns(
            pl.when(last).then("above_relation").otherwise(pl.lit("status_lost")).alias("verdict"),
            (pl.col("above_confidence") * 0.9).alias("confidence"),
            pl.when(last)
            .then(pl.lit("the error passed this silent span and stands again on its parent"))
            .otherwise(pl.lit("the error passed this span and its parent without a word"))
            .alias("reason"),
        )
        .drop("row", "level", "shows", "above_relation", "above_confidence", "bridge")
    )


def _with_fallback(hops: pl.DataFrame, spans: pl.DataFrame, up: pl.DataFrame) -> pl.DataFrame:
    """Find a later sibling whose name says that it is a fallback."""
    named = (
        spans.filter(
            pl.col("name").str.contains(_FALLBACK), pl.col("status_code").fill_null("") != "ERROR"
        )
        .join(up.select(*SPAN, "up_trace", "up_span"), on=SPAN, how="inner")
        .select(
            "up_trace",
            "up_span",
            pl.col("span_id").alias("fallback_by"),
            pl.col("start_time").alias("at"),
        )
    )
    found = (
        hops.select("row", "up_trace", "up_span", "end_time")
        .join(named, on=["up_trace", "up_span"], how="inner")
        .filter(pl.col("at") >= pl.col("end_time") - pl.duration(milliseconds=1))
        .sort("row", "at", "fallback_by")
        .unique("row", keep="first", maintain_order=True)
        .select("row", "fallback_by")
    )
    return hops.join(found, on="row", how="left").with_columns(
        pl.coalesce("recovered_by", "fallback_by").alias("recovered_by_any")
    )
