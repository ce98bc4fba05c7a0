"""Goroutines of a profile matched to the spans they work for."""

from datetime import datetime
from typing import Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.evidence import SPAN
from tracelab.errors_chain.goroutine_evidence import (
    by_elimination,
    by_id,
    by_labels,
    by_panic,
    by_words,
    inwards,
)
from tracelab.errors_chain.goroutine_time import infer_time
from tracelab.exceptions import ParameterError
from tracelab.schema import ColumnType
from tracelab.traceset import TraceSet, require_traces

_NEEDED: Final = ("goroutine_id", "count", "state", "functions", "labels", "wait_minutes")
_COLUMNS: Final[dict[str, ColumnType]] = {
    "goroutine": pl.Int64,
    "goroutine_id": pl.Int64,
    "state": pl.String,
    "top_function": pl.String,
    "candidate": pl.Int64,
    "trace_id": pl.String,
    "span_id": pl.String,
    "service_name": pl.String,
    "span_name": pl.String,
    "confidence": pl.Float64,
    "evidence": schema.TEXTS,
}
_MUCH_WEAKER: Final = 0.6
_MATCHES: Final = pl.Schema(_COLUMNS)


def match_goroutines(
    traces: TraceSet,
    goroutines: pl.DataFrame,
    *,
    time: datetime | None = None,
    service: str | None = None,
    top: int = 5,
) -> pl.DataFrame:
    """Rank for each goroutine the spans it may be working for.

    Parameters
    ----------
    traces : TraceSet
        The capture; a span stands in it only once it has ended.
    goroutines : pl.DataFrame
        What `read_goroutine_profile` gives.
    time : datetime, optional
        When the profile was taken; else the profile's own time (texts have none); else the
        moment at which the open spans explain the profile best, if there is one such moment.
        Without any, time gives no evidence, and the candidates are weak ones. The time of
        the file is not asked: copies change it.
    service : str, optional
        The service whose profile it is; else all Go services come in question, and as ids
        of goroutines are counted from 1 in every process, one id leads to all of them.
    top : int
        Most candidates per goroutine.

    Returns
    -------
    pl.DataFrame
        goroutine (row of the profile), goroutine_id, state, top_function, candidate (1 is
        the best), trace_id, span_id, service_name, span_name, confidence (probability that
        this is the span; candidates that cannot be told apart share it), evidence.
        Goroutines without a candidate are left out.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet, or `top` is below 1.
    SchemaError
        If the profile lacks a column.
    """
    require_traces(traces)
    if top < 1:
        raise ParameterError(f"top is {top}; at least 1 candidate is needed")
    schema.require_columns(goroutines, _NEEDED, name="goroutines")
    spans = _spans(traces, service)
    callers = _callers(traces, service)
    known = time if time is not None else _own_time(goroutines)
    numbered = _number(goroutines)
    taken = known if known is not None else infer_time(numbered, spans)
    guessed = known is None
    if taken is not None:
        moment = (
            pl.lit(taken).cast(schema.TIME)
            if taken.tzinfo is None
            else pl.lit(taken).dt.convert_time_zone("UTC").cast(schema.TIME)
        )
        open_then = (pl.col("start_time") <= moment) & (pl.col("end_time") >= moment)
    else:
        moment, open_then = pl.lit(None, schema.TIME), pl.lit(None, pl.Boolean)
    spans, callers = (part.with_columns(open_then.alias("open")) for part in (spans, callers))
    numbered = numbered.with_columns(moment.alias("moment"))
    certain = pl.concat(
        [
            by_id(numbered, spans, traces),
            by_panic(numbered, spans, traces),
            by_labels(numbered, spans),
        ]
    )
    alike = by_words(numbered, spans, guessed=guessed)
    # a request that never ended left no span: its caller may have
    calling = by_words(numbered, callers, guessed=guessed).with_columns(
        pl.col("strength") * 0.7,
        pl.concat_str("why", pl.lit("; the calling side, its server span is not there")),
    )
    some = pl.concat([certain, alike, calling])
    left = by_elimination(numbered, spans, some)
    deeper = inwards(pl.concat([alike, left]), spans, claims=alike, goroutines=numbered)
    found = pl.concat([certain, deeper, calling])
    told = pl.concat([spans, callers]).unique(SPAN, keep="first", maintain_order=True)
    return _rank(found, numbered, told, top)


def compare_goroutines(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Count goroutines per stack in two profiles: what grew may leak.

    Parameters
    ----------
    before, after : pl.DataFrame
        What `read_goroutine_profile` gives, of one process.

    Returns
    -------
    pl.DataFrame
        functions (innermost first), count_before, count_after, growth; most grown first.

    Raises
    ------
    SchemaError
        If a profile lacks a column.
    """
    for name, table in (("before", before), ("after", after)):
        schema.require_columns(table, ("functions", "count"), name=name)
    sides = [
        table.group_by(pl.col("functions").list.join(" < ").alias("stack")).agg(
            pl.col("functions").first(), pl.col("count").sum()
        )
        for table in (before, after)
    ]
    both = sides[0].join(sides[1], on="stack", how="full", suffix="_after", coalesce=True)
    return (
        both.select(
            pl.coalesce("functions", "functions_after").alias("functions"),
            pl.col("count").fill_null(0).alias("count_before"),
            pl.col("count_after").fill_null(0),
            "stack",
        )
        .with_columns((pl.col("count_after") - pl.col("count_before")).alias("growth"))
        .sort(["growth", "stack"], descending=[True, False])
        .drop("stack")
    )


def _number(goroutines: pl.DataFrame) -> pl.DataFrame:
    """Give each row its number, and the columns that an older profile may lack."""
    panic = [] if "panic" in goroutines.columns else [pl.lit(None, pl.String).alias("panic")]
    return (
        goroutines.with_row_index("goroutine")
        .with_columns(pl.col("goroutine").cast(pl.Int64), *panic)
        .with_columns(
            pl.duration(minutes=pl.col("wait_minutes").fill_null(0), time_unit="ns").alias("waited")
        )
    )


def _own_time(goroutines: pl.DataFrame) -> datetime | None:
    if "time" not in goroutines.columns:
        return None
    value = goroutines["time"].max()
    return value if isinstance(value, datetime) else None


def _spans(traces: TraceSet, service: str | None) -> pl.DataFrame:
    language = pl.col("sdk_language").fill_null("go") == "go"
    return traces.spans.filter(
        pl.col("service_name") == service if service is not None else language
    ).unique(SPAN, keep="first", maintain_order=True)


def _callers(traces: TraceSet, service: str | None) -> pl.DataFrame:
    """Client spans that have no child: whom they called is not exported."""
    called = traces.spans.select("trace_id", pl.col("parent_span_id").alias("span_id"))
    other = pl.lit(value=True)
    if service is not None:
        other = pl.col("service_name").ne_missing(pl.lit(service))
    return (
        traces.spans.filter(other, pl.col("kind") == "CLIENT")
        .unique(SPAN, keep="first", maintain_order=True)
        .join(called, on=SPAN, how="anti")
    )


def _rank(
    found: pl.DataFrame, goroutines: pl.DataFrame, spans: pl.DataFrame, top: int
) -> pl.DataFrame:
    """Order candidates: the innermost, strongest evidence, then what had been open longest."""
    if found.is_empty():
        return schema.empty(_MATCHES)
    told = spans.select(
        *SPAN,
        "service_name",
        pl.col("name").alias("span_name"),
        "start_time",
        "parent_span_id",
        (pl.col("kind") == "SERVER").alias("entry"),
    )
    merged = (
        found.group_by("goroutine", *SPAN)
        .agg(
            (1 - (1 - pl.col("strength")).product()).alias("strength"),
            pl.col("why").unique().sort().alias("evidence"),
        )
        .join(told, on=SPAN, how="inner")
    )
    # of one goroutine's nested spans the innermost is where it stands, unless the evidence
    # for it is much weaker: it may be another goroutine's
    inner = merged.group_by("goroutine", "trace_id", pl.col("parent_span_id").alias("span_id")).agg(
        pl.col("strength").max().alias("inner_strength")
    )
    merged = merged.join(inner, on=["goroutine", *SPAN], how="left").with_columns(
        (pl.col("inner_strength") >= _MUCH_WEAKER * pl.col("strength"))
        .fill_null(value=False)
        .alias("outer")
    )
    ordered = (
        _in_order(merged, goroutines)
        .sort(
            "goroutine",
            "outer",
            pl.col("strength").round(3),
            "in_order",
            "start_time",
            "span_id",
            descending=[False, False, True, True, False, False],
        )
        .with_columns(
            (pl.int_range(pl.len(), dtype=pl.Int64).over("goroutine") + 1).alias("candidate"),
            pl.len().over("goroutine", "outer", pl.col("strength").round(3)).alias("ties"),
        )
    )
    share = pl.col("strength") / pl.col("ties")
    confidence = pl.when("outer").then(share.clip(0, 0.3)).otherwise(share)
    return (
        ordered.filter(pl.col("candidate") <= top)
        .join(
            goroutines.select(
                "goroutine",
                "goroutine_id",
                "state",
                pl.col("functions").list.first().alias("top_function"),
            ),
            on="goroutine",
        )
        .with_columns(confidence.round(4).alias("confidence"))
        .select(list(_MATCHES))
        .sort("goroutine", "candidate")
    )


def _in_order(merged: pl.DataFrame, goroutines: pl.DataFrame) -> pl.DataFrame:
    """Pair goroutines of one stack with as many spans that tie, first with first.

    Ids of goroutines grow, and panics are printed one after the other: the order is some
    evidence where nothing else tells them apart, and changes no confidence.
    """
    nothing = pl.lit(value=False)
    best = merged.filter(
        ~pl.col("outer"),
        pl.col("strength").round(3)
        == pl.col("strength").round(3).filter(~pl.col("outer")).max().over("goroutine"),
    )
    rows = goroutines.filter(pl.col("goroutine_id").is_not_null()).select(
        "goroutine",
        pl.concat_str(pl.col("functions").list.join(" < "), pl.col("panic").fill_null("")).alias(
            "stack"
        ),
        pl.when(pl.col("panic").is_null())
        .then("goroutine_id")
        .otherwise("goroutine")
        .alias("place"),
    )
    tied = best.join(rows, on="goroutine", how="inner")
    spans = tied.select("stack", *SPAN, "start_time").unique()
    paired = (
        rows.join(tied.select("goroutine").unique(), on="goroutine", how="semi")
        .with_columns(
            pl.col("place").rank("ordinal").over("stack").alias("rank"),
            pl.len().over("stack").alias("n"),
        )
        .join(
            spans.with_columns(
                pl.struct("start_time", "span_id").rank("ordinal").over("stack").alias("rank"),
                pl.len().over("stack").alias("n"),
            ),
            on=["stack", "rank", "n"],
            how="inner",
        )
        .filter(pl.col("n") > 1)
        .select("goroutine", *SPAN, "n", pl.lit(value=True).alias("in_order"))
    )
    order = pl.format("in the order of {} alike", "n")
    return merged.join(paired, on=["goroutine", *SPAN], how="left").with_columns(
        pl.col("in_order").fill_null(nothing),
        pl.when(pl.col("in_order").fill_null(nothing))
        .then(pl.concat_list("evidence", order))
        .otherwise("evidence")
        .alias("evidence"),
    )
