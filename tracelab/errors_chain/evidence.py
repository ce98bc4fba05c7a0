"""What each span says about failing: status, exceptions, HTTP codes, error.type."""

from typing import Final

import polars as pl

from tracelab import semconv
from tracelab.errors_chain.comparing import mask
from tracelab.errors_chain.retries import attribute, cancelled, peer, settings, target
from tracelab.traceset import TraceSet

SPAN: Final = ["trace_id", "span_id"]

END_TOLERANCE_NS: Final = 2_000_000
"""An exception recorded this close before a span's end left the span (a panic recorded by
``span.End``, a ``with`` block that was left): scheduling noise is far below."""

MAX_RECORDS: Final = 4
"""Most exception records of one span that are compared, the newest: each attempt of a
retry may leave one."""

SIDE: Final = ("type", "message", "inner", "language", "truncated", "has_stack", "recorded")
_INNER: Final = pl.List(pl.Struct({"type": pl.String, "message": pl.String}))


def failing_spans(traces: TraceSet, records: pl.DataFrame) -> pl.DataFrame:
    """Return the spans that show any evidence of an error, with that evidence.

    Columns: trace_id, span_id, is_error, is_5xx, is_4xx, has_exception, has_log, is_weak
    (an exception that left the span, without status), fails, escaped.
    """
    spans = traces.spans
    recorded = records.group_by(SPAN).agg(
        (pl.col("origin") != "log").any().alias("has_exception"),
        (pl.col("origin") == "log").any().alias("has_log"),
        pl.col("time").filter(pl.col("origin") != "log").max().alias("last_exception"),
        pl.col("escaped").any().alias("escaped"),
    )
    code = pl.col("http_response_status_code")
    low, high = semconv.HTTP_SERVER_ERROR_MIN, semconv.HTTP_SERVER_ERROR_MAX
    is_error = pl.col("status_code") == "ERROR"
    marked = is_error | (code >= 400) | pl.col("error_type").is_not_null()
    exceptional = recorded.select(SPAN)
    found = pl.concat(
        [
            spans.filter(marked.fill_null(value=False)),
            spans.filter(~marked.fill_null(value=False)).join(exceptional, on=SPAN, how="semi"),
        ]
    ).unique(SPAN, keep="first", maintain_order=True)
    gap = pl.col("end_time") - pl.col("last_exception")
    left = pl.col("escaped").fill_null(value=False) | (
        gap <= pl.duration(nanoseconds=END_TOLERANCE_NS)
    )
    unset = pl.col("status_code").fill_null("UNSET") == "UNSET"
    return (
        found.join(recorded, on=SPAN, how="left")
        .with_columns(
            pl.col("has_exception", "has_log").fill_null(value=False),
            is_error.fill_null(value=False).alias("is_error"),
            code.is_between(low, high).fill_null(value=False).alias("is_5xx"),
            code.is_between(400, 499).fill_null(value=False).alias("is_4xx"),
        )
        .with_columns(
            (
                pl.col("has_exception") & unset & left.fill_null(value=False) & ~pl.col("is_5xx")
            ).alias("is_weak")
        )
        .with_columns(
            (
                pl.col("is_error")
                | (pl.col("is_5xx") & (pl.col("status_code") != "OK").fill_null(value=True))
                | pl.col("is_weak")
            ).alias("fails")
        )
        .select(
            *SPAN,
            *("is_error", "is_5xx", "is_4xx", "has_exception", "has_log", "is_weak", "fails"),
            pl.col("escaped").fill_null(value=False),
        )
    )


def exception_records(traces: TraceSet, exceptions: pl.DataFrame) -> pl.DataFrame:
    """Return one row per recorded exception: its head, what is below it, where it stood."""
    head = exceptions.filter(pl.col("position") == 0)
    key = [*SPAN, "event_index"]
    below = (
        exceptions.filter(pl.col("position") > 0)
        .with_columns(mask(pl.col("message")).alias("message"))
        .group_by(key, maintain_order=True)
        .agg(
            pl.struct("type", "message").head(50).alias("inner"),
            pl.col("truncated").any().alias("cut_below"),
        )
    )
    events = traces.events.select(
        *key, "time", "origin", pl.col("exception_escaped").alias("escaped")
    )
    return (
        head.join(below, on=key, how="left")
        .join(events, on=key, how="left")
        .select(
            *key,
            pl.col("type").alias("raw_type"),
            pl.col("message").alias("raw_message"),
            "type",
            mask(pl.col("message")).alias("message"),
            pl.col("inner").cast(_INNER),
            "language",
            (pl.col("truncated") | pl.col("cut_below").fill_null(value=False)).alias("truncated"),
            (pl.col("frame_count") > 0).fill_null(value=False).alias("has_stack"),
            pl.lit(value=True).alias("recorded"),
            pl.col("origin").fill_null("span_event"),
            "time",
            pl.col("escaped").fill_null(value=False),
        )
        .sort(key)
    )


def told_by_spans(spans: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    """Return what each of these spans tells of its error, newest record first.

    A span without a record tells by its status message; one without either is not here.
    """
    newest = (
        records.join(spans.select(SPAN), on=SPAN, how="semi")
        .sort([*SPAN, "event_index"], descending=[False, False, True])
        .group_by(SPAN, maintain_order=True)
        .head(MAX_RECORDS)
        .with_columns(pl.int_range(pl.len()).over(SPAN).alias("age"))
    )
    by_status = (
        spans.filter(pl.col("status_message").str.len_bytes() > 0, pl.col("status_code") == "ERROR")
        .join(newest.select(SPAN), on=SPAN, how="anti")
        .select(
            *SPAN,
            pl.lit(None, pl.String).alias("raw_type"),
            pl.col("status_message").alias("raw_message"),
            pl.lit(None, pl.String).alias("type"),
            mask(pl.col("status_message")).alias("message"),
            pl.lit(None, _INNER).alias("inner"),
            pl.col("sdk_language").alias("language"),
            pl.lit(value=False).alias("truncated"),
            pl.lit(value=False).alias("has_stack"),
            pl.lit(value=False).alias("recorded"),
            pl.lit(None, newest.schema["time"]).alias("time"),
            pl.lit(0, newest.schema["age"]).alias("age"),
        )
    )
    return pl.concat([newest.select(by_status.columns), by_status])


def attempts(spans: pl.DataFrame, evidence: pl.DataFrame) -> pl.DataFrame:
    """Return spans with what tells one attempt of an operation from another."""
    code = pl.col("http_response_status_code")
    return spans.join(evidence.select(*SPAN, "fails"), on=SPAN, how="left").with_columns(
        pl.col("fails").fill_null(value=False),
        pl.col("name").str.replace_all(r"\d+", "#").alias("operation"),
        pl.col("start_time").dt.timestamp("ns").alias("start"),
        pl.col("end_time").dt.timestamp("ns").alias("end"),
        target().alias("target"),
        peer().alias("peer"),
        settings().alias("settings"),
        pl.coalesce("resend_count", attribute("app.attempt").cast(pl.Int64, strict=False)).alias(
            "resend"
        ),
        cancelled(pl.col("status_message")).alias("cancelled"),
        (~pl.col("fails").fill_null(value=False) & (code.is_null() | (code < 400))).alias(
            "succeeded"
        ),
    )
