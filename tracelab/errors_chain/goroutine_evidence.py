"""What ties a goroutine to a span: its id, its labels, its panic, the words of its functions."""

from typing import Final

import polars as pl

from tracelab.errors_chain.evidence import SPAN
from tracelab.errors_chain.goroutine_time import function_words, join_words, words_of
from tracelab.errors_chain.retries import attribute
from tracelab.traceset import TraceSet

FOUND: Final = pl.Schema(
    {
        "goroutine": pl.Int64,
        "trace_id": pl.String,
        "span_id": pl.String,
        "strength": pl.Float64,
        "why": pl.String,
    }
)
"""One row per goroutine, span and piece of evidence."""

_MAX_NESTED: Final = 16
_RARE: Final = 50
"""Most spans that a word may name to lead anywhere where the profile's time is not known."""

_HEADER: Final = r"^goroutine (\d+) "
_SERVING: Final = (
    r"^(?:net/http\.serverHandler\.ServeHTTP|net/http\.\(\*conn\)\.serve$"
    r"|google\.golang\.org/grpc\.\(\*Server\)\.process)"
)
"""Functions below which a goroutine serves a request."""


def by_id(goroutines: pl.DataFrame, spans: pl.DataFrame, traces: TraceSet) -> pl.DataFrame:
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
        # ids are never used twice in one process: a span that was over cannot be meant,
        # but a panic is printed after its span has ended
        .filter(pl.col("open").fill_null(value=True) | pl.col("panic").is_not_null())
        .select("goroutine", *SPAN, strength.alias("strength"), why.alias("why"))
    )


def by_panic(goroutines: pl.DataFrame, spans: pl.DataFrame, traces: TraceSet) -> pl.DataFrame:
    """Join the text of a panic to the exceptions that spans recorded as it passed them."""
    panics = goroutines.filter(pl.col("panic").is_not_null()).select(
        "goroutine", pl.col("panic").str.strip_chars().alias("said")
    )
    recorded = (
        traces.events.select(*SPAN, pl.col("exception_message").str.strip_chars().alias("said"))
        .filter(pl.col("said").is_in(panics["said"].implode()))
        .unique()
        .join(spans.select(SPAN), on=SPAN, how="semi")
    )
    return panics.join(recorded, on="said", how="inner").select(
        "goroutine",
        *SPAN,
        pl.lit(0.9).alias("strength"),
        pl.format("the span recorded this panic: {}", pl.col("said").str.slice(0, 120)).alias(
            "why"
        ),
    )


def by_labels(goroutines: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
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


def by_words(goroutines: pl.DataFrame, spans: pl.DataFrame, *, guessed: bool) -> pl.DataFrame:
    """Join functions to spans by words of their names, rare words counting more.

    Only spans that were open when the profile was taken come in question, for as long as
    the goroutine had been waiting; where that time is not known, only words that few spans
    have. A time that was only inferred (`guessed`) makes the evidence weaker.
    """
    opened = spans.filter(pl.col("open").fill_null(value=True))
    mine = function_words(goroutines)
    told = pl.concat_str(
        "name", "http_route", "rpc_method", _path(), separator=" ", ignore_nulls=True
    )
    theirs = words_of(opened, told, SPAN)
    if mine.is_empty() or theirs.is_empty():
        return FOUND.to_frame()
    weight = theirs.group_by("word").agg(
        (1.0 / pl.len()).alias("weight"), pl.len().alias("spans_named")
    )
    timed = pl.col("open").fill_null(value=False)
    base = pl.when("timed").then(0.45 if guessed else 0.55).otherwise(0.25)
    when = "open when the profile seems to have been taken" if guessed else "open then"
    return (
        join_words(mine, theirs)
        .join(weight, left_on="word_named", right_on="word")
        .join(opened.select(*SPAN, "open", "start_time", "end_time"), on=SPAN)
        .join(goroutines.select("goroutine", "waited", "moment"), on="goroutine")
        .filter(timed | (pl.col("spans_named") <= _RARE), _was_waiting())
        .group_by("goroutine", *SPAN)
        .agg(
            pl.col("weight").sum(),
            pl.col("word_named").unique().sort(),
            timed.first().alias("timed"),
        )
        .select(
            "goroutine",
            *SPAN,
            (base + 0.3 * pl.col("weight").clip(0, 1)).alias("strength"),
            pl.format(
                "{} named alike: {}",
                pl.when("timed").then(pl.lit(f"{when}, and")).otherwise(pl.lit("at any time,")),
                pl.col("word_named").list.join(", "),
            ).alias("why"),
        )
    )


def _was_waiting() -> pl.Expr:
    """Tell whether the span had lasted for as long as the goroutine had been waiting."""
    lasted = pl.coalesce(
        pl.col("moment") - pl.col("start_time"), pl.col("end_time") - pl.col("start_time")
    )
    return (pl.col("waited").cast(pl.Int64) == 0) | (lasted >= pl.col("waited"))


def by_elimination(
    goroutines: pl.DataFrame, spans: pl.DataFrame, found: pl.DataFrame
) -> pl.DataFrame:
    """Give goroutines that serve requests, and no word tells which, the requests left over."""
    serving = goroutines.filter(
        pl.col("functions").list.eval(pl.element().str.contains(_SERVING)).list.any(),
        ~pl.col("goroutine").is_in(found["goroutine"].implode()),
        # a connection that waits for its next request serves none
        pl.col("functions")
        .list.eval(~pl.element().str.contains(r"^(?:runtime|net|bufio|internal/|io\.|sync)"))
        .list.any(),
    ).select("goroutine")
    claimed = found.select("trace_id").unique()
    left = spans.filter(
        pl.col("open").fill_null(value=False), pl.col("kind").is_in(["SERVER", "CONSUMER"])
    ).join(claimed, on="trace_id", how="anti")
    return serving.join(left.select(SPAN), how="cross").select(
        "goroutine",
        *SPAN,
        pl.lit(0.35).alias("strength"),
        pl.lit("it serves a request; of those open then, no other goroutine is known for it").alias(
            "why"
        ),
    )


def inwards(
    found: pl.DataFrame, spans: pl.DataFrame, *, claims: pl.DataFrame, goroutines: pl.DataFrame
) -> pl.DataFrame:
    """Go from a request that was open to the one span within it that was open, too.

    Not into a span that words give (`claims`) to goroutines of another stack only: one
    that waits for a worker is not where the worker is.
    """
    stacks = goroutines.select("goroutine", pl.col("functions").list.join(" < ").alias("stack"))
    named = claims.join(stacks, on="goroutine").select(*SPAN, "stack").unique()
    own = named.with_columns(pl.lit(value=True).alias("own"))
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
        deeper = (
            deeper.with_columns(pl.col("inner").alias("span_id"))
            .join(stacks, on="goroutine")
            .join(own, on=[*SPAN, "stack"], how="left")
            .join(named.select(SPAN).unique().with_columns(claimed=True), on=SPAN, how="left")
            .filter(pl.col("own").fill_null(value=False) | pl.col("claimed").is_null())
            .drop("stack", "own", "claimed")
        )
        if deeper.is_empty():
            break
        levels.append(
            deeper.with_columns(
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
