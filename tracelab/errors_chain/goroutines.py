"""Goroutines of a profile matched to the spans they work for."""

from datetime import datetime
from typing import Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.evidence import SPAN
from tracelab.errors_chain.retries import attribute
from tracelab.exceptions import ParameterError
from tracelab.schema import ColumnType
from tracelab.traceset import TraceSet

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
_MATCHES: Final = pl.Schema(_COLUMNS)
_FOREIGN: Final = (
    r"^(?:runtime|net|net/http|internal/.*|sync|time|os|io|bufio|syscall|testing|reflect|context"
    r"|database/sql|golang\.org/.*|google\.golang\.org/.*|go\.opentelemetry\.io/.*)[./]"
)
"""Packages that every goroutine passes through: their functions tell nothing."""

_MAX_NESTED: Final = 16
_MIN_WORD: Final = 4
_RARE: Final = 50
"""Most spans that a word may name to lead anywhere where the profile's time is not known."""

_HEADER: Final = r"^goroutine (\d+) "


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
        When the profile was taken; else the profile's own time (texts have none); without
        either, time gives no evidence, and the candidates are weak ones.
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
        If `top` is below 1.
    SchemaError
        If the profile lacks a column.
    """
    if top < 1:
        raise ParameterError(f"top is {top}; at least 1 candidate is needed")
    schema.require_columns(goroutines, _NEEDED, name="goroutines")
    numbered = goroutines.with_row_index("goroutine").with_columns(
        pl.col("goroutine").cast(pl.Int64)
    )
    spans = _spans(traces, service)
    callers = _callers(traces, service)
    taken = time if time is not None else _own_time(goroutines)
    if taken is not None:
        moment = (
            pl.lit(taken).cast(schema.TIME)
            if taken.tzinfo is None
            else pl.lit(taken).dt.convert_time_zone("UTC").cast(schema.TIME)
        )
        open_then = (pl.col("start_time") <= moment) & (pl.col("end_time") >= moment)
    else:
        open_then = pl.lit(None, pl.Boolean)
    spans, callers = (part.with_columns(open_then.alias("open")) for part in (spans, callers))
    found = pl.concat(
        [
            _by_id(numbered, spans, traces),
            _by_labels(numbered, spans),
            _inwards(_by_words(numbered, spans), spans),
            # a request that never ended left no span: its caller may have
            _by_words(numbered, callers).with_columns(
                pl.col("strength") * 0.7,
                pl.concat_str("why", pl.lit("; the calling side, its server span is not there")),
            ),
        ]
    )
    return _rank(found, numbered, pl.concat([spans, callers]), top)


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
    """Client spans of other services that have no child: whom they called is not exported."""
    called = traces.spans.select("trace_id", pl.col("parent_span_id").alias("span_id"))
    other = (
        pl.col("service_name").ne_missing(pl.lit(service))
        if service is not None
        else pl.col("sdk_language").fill_null("go") != "go"
    )
    return (
        traces.spans.filter(other, pl.col("kind") == "CLIENT")
        .unique(SPAN, keep="first", maintain_order=True)
        .join(called, on=SPAN, how="anti")
    )


def _by_id(goroutines: pl.DataFrame, spans: pl.DataFrame, traces: TraceSet) -> pl.DataFrame:
    """Join on the goroutine's id, from an attribute or from the header of a recorded stack."""
    stated = spans.select(*SPAN, pl.col("task_id").cast(pl.Int64, strict=False).alias("id"))
    recorded = (
        traces.events.select(
            *SPAN, pl.col("exception_stacktrace").str.extract(_HEADER, 1).cast(pl.Int64).alias("id")
        )
        .filter(pl.col("id").is_not_null())
        .join(spans.select(SPAN), on=SPAN, how="semi")
    )
    ids = pl.concat([stated.filter(pl.col("id").is_not_null()), recorded]).unique()
    opened = spans.select(*SPAN, "open")
    processes = max(1, spans.select("service_name", "service_instance_id").n_unique())
    # a server's goroutine takes one request after the other: without a time, any of them
    strength = pl.when(pl.col("open")).then(0.97).otherwise(0.4) / processes
    why = pl.format("the span ran on goroutine {}", "goroutine_id")
    if processes > 1:
        why = pl.format("{} of one of {} processes", why, pl.lit(processes))
    return (
        goroutines.filter(pl.col("goroutine_id").is_not_null())
        .join(ids, left_on="goroutine_id", right_on="id", how="inner")
        .join(opened, on=SPAN, how="left")
        # ids are never used twice in one process: a span that was over cannot be meant
        .filter(pl.col("open").fill_null(value=True))
        .select(
            "goroutine",
            *SPAN,
            strength.alias("strength"),
            why.alias("why"),
        )
    )


def _by_labels(goroutines: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Join on pprof labels that hold a span id, a trace id or a request id."""
    values = (
        goroutines.filter(pl.col("labels").is_not_null())
        .select(
            "goroutine",
            pl.col("labels").str.extract_all(r'"(?:[^"\\]|\\.)*"').alias("label"),
        )
        .explode("label")
        .with_columns(pl.col("label").str.strip_chars('"').str.to_lowercase())
        .filter(pl.col("label").str.len_bytes() >= 6)
    )
    parts = []
    for column, strength in (("span_id", 0.99), ("trace_id", 0.9), ("request_id", 0.85)):
        keyed = spans.select(
            pl.col("trace_id"),
            pl.col("span_id"),
            "open",
            pl.col(column).str.to_lowercase().alias("label"),
        ).filter(pl.col("label").is_not_null())
        parts.append(
            values.join(keyed, on="label", how="inner")
            .filter(pl.col("open").fill_null(value=True) | (column == "span_id"))
            .select(
                "goroutine",
                *SPAN,
                pl.lit(strength).alias("strength"),
                pl.lit(f"a pprof label holds the {column.replace('_', ' ')}").alias("why"),
            )
        )
    return pl.concat(parts)


def _by_words(goroutines: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Join functions to spans by words of their names, rare words counting more.

    Only spans that were open when the profile was taken come in question; where that time
    is not known, only words that few spans have.
    """
    nothing = pl.DataFrame(
        schema={
            "goroutine": pl.Int64,
            "trace_id": pl.String,
            "span_id": pl.String,
            "strength": pl.Float64,
            "why": pl.String,
        }
    )
    opened = spans.filter(pl.col("open").fill_null(value=True))
    if opened.is_empty():
        return nothing
    functions = (
        goroutines.select("goroutine", "functions")
        .explode("functions")
        .filter(~pl.col("functions").str.contains(_FOREIGN))
    )
    mine = _words(functions, pl.col("functions").str.extract(r"([^/]*)$", 1), ["goroutine"])
    told = pl.concat_str(
        "name", "http_route", "rpc_method", _path(), separator=" ", ignore_nulls=True
    )
    theirs = _words(opened, told, SPAN)
    if mine.is_empty() or theirs.is_empty():
        return nothing
    weight = theirs.group_by("word").agg(
        (1.0 / pl.len()).alias("weight"), pl.len().alias("spans_named")
    )
    timed = pl.col("open").fill_null(value=False)
    return (
        mine.join(theirs, on="word", how="inner")
        .join(weight, on="word")
        .join(opened.select(*SPAN, "open"), on=SPAN)
        .filter(timed | (pl.col("spans_named") <= _RARE))
        .group_by("goroutine", *SPAN)
        .agg(pl.col("weight").sum(), pl.col("word").unique().sort(), timed.first().alias("timed"))
        .select(
            "goroutine",
            *SPAN,
            (pl.when("timed").then(0.55).otherwise(0.25) + 0.3 * pl.col("weight").clip(0, 1)).alias(
                "strength"
            ),
            pl.format(
                "{} named alike: {}",
                pl.when("timed").then(pl.lit("open then, and")).otherwise(pl.lit("at any time,")),
                pl.col("word").list.join(", "),
            ).alias("why"),
        )
    )


def _inwards(found: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Go from a request that was open to the one span within it that was open, too."""
    opened = spans.filter(pl.col("open").fill_null(value=False))
    only = (
        opened.group_by("trace_id", "parent_span_id", "service_name", "service_instance_id")
        .agg(pl.col("span_id").first().alias("inner"), pl.len().alias("n"))
        .filter(pl.col("n") == 1)
    )
    steps = opened.select(*SPAN, "service_name", "service_instance_id").join(
        only,
        left_on=[*SPAN, "service_name", "service_instance_id"],
        right_on=["trace_id", "parent_span_id", "service_name", "service_instance_id"],
        nulls_equal=True,
    )
    levels = [found]
    for _ in range(_MAX_NESTED):
        deeper = levels[-1].join(steps.select(*SPAN, "inner"), on=SPAN, how="inner")
        if deeper.is_empty():
            break
        levels.append(
            deeper.with_columns(
                pl.col("inner").alias("span_id"),
                pl.col("strength") * 0.95,
                pl.concat_str(
                    pl.lit("the one span open within another: "),
                    pl.col("why").str.strip_prefix("the one span open within another: "),
                ).alias("why"),
            ).drop("inner")
        )
    return pl.concat(levels)


def _path() -> pl.Expr:
    return pl.coalesce(attribute("url.path"), attribute("url.full"), attribute("http.url"))


def _words(table: pl.DataFrame, text: pl.Expr, key: list[str]) -> pl.DataFrame:
    return (
        table.select(*key, text.str.replace_all(r"([a-z0-9])([A-Z])", "$1 $2").alias("text"))
        .with_columns(pl.col("text").str.to_lowercase().str.extract_all(r"[a-z]+").alias("word"))
        .explode("word")
        .filter(
            pl.col("word").str.len_bytes() >= _MIN_WORD,
            ~pl.col("word").is_in(["main", "func", "handler", "serve", "http", "server"]),
        )
        .select(*key, "word")
        .unique()
    )


def _rank(
    found: pl.DataFrame, goroutines: pl.DataFrame, spans: pl.DataFrame, top: int
) -> pl.DataFrame:
    """Order candidates: strongest evidence, then the innermost span that was open."""
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
    # of one goroutine's nested spans the innermost is where it stands
    inner = merged.select(
        "goroutine", "trace_id", pl.col("parent_span_id").alias("span_id")
    ).unique()
    merged = merged.join(
        inner.with_columns(pl.lit(value=True).alias("outer")),
        on=["goroutine", *SPAN],
        how="left",
    ).with_columns(pl.col("outer").fill_null(value=False))
    ordered = merged.sort(
        "goroutine",
        "outer",
        "strength",
        "start_time",
        "span_id",
        descending=[False, False, True, True, False],
    ).with_columns(
        (pl.int_range(pl.len(), dtype=pl.Int64).over("goroutine") + 1).alias("candidate"),
        pl.len().over("goroutine", "outer", pl.col("strength").round(3)).alias("ties"),
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
