"""Cause chains of all exception events of a capture, each distinct text parsed once."""

from typing import Any, Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.chain import Chain, Link
from tracelab.errors_chain.languages import go
from tracelab.errors_chain.stacktrace import OTHER_NAMES, link_row, parse_chain
from tracelab.traceset import TraceSet, require_traces

_EVENT: Final = ["trace_id", "span_id", "event_index"]
_TEXT: Final = ["language", "stack", "text_type", "text_message"]
_PARSED: Final[dict[str, schema.ColumnType]] = {
    **{
        name: dtype
        for name, dtype in schema.EXCEPTIONS.items()
        if name not in (*_EVENT, "language")
    },
    "found": pl.String,
    "frames": pl.List(pl.String),
}


def parse_exceptions(traces: TraceSet) -> pl.DataFrame:
    """Read the cause chain of every exception that was recorded, on a span or in a log.

    Parameters
    ----------
    traces : TraceSet
        The capture; the language comes from the SDK of the span, else from the text.

    Returns
    -------
    pl.DataFrame
        Schema EXCEPTIONS, sorted by event and position: position 0 is the error that was
        recorded, the others what it came from, as far as the text tells. A text that was
        cut is marked ``truncated``; what was cut off is not guessed.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet.
    SchemaError
        If a table of the capture lacks a column.
    """
    require_traces(traces)
    return parse_with_frames(traces).select(list(schema.EXCEPTIONS))


def parse_with_frames(traces: TraceSet) -> pl.DataFrame:
    """Parse as `parse_exceptions` does, with the topmost functions of each error."""
    events = exception_events(traces)
    if events.is_empty():
        return pl.DataFrame(schema={**schema.EXCEPTIONS, "frames": pl.List(pl.String)})
    multiline = pl.col("exception_message").str.contains("\n", literal=True)
    joined = pl.col("exception_type").is_in(sorted(go.JOIN_TYPES))
    # a traceback cut within a cause does not name the error that was recorded
    open_end = (
        pl.col("stack").str.contains("Traceback (most recent", literal=True)
        & ~pl.col("stack").str.ends_with("\n")
    ).fill_null(value=False)
    needs_text = pl.col("stack").is_not_null() | (
        multiline & pl.col("exception_message").is_not_null()
    )
    keyed = events.with_columns(
        pl.when(multiline | joined | open_end).then("exception_type").alias("text_type"),
        pl.when(multiline | open_end).then("exception_message").alias("text_message"),
        needs_text.fill_null(value=False).alias("needs_text"),
    )
    heads = keyed.filter(~pl.col("needs_text")).select(
        *_EVENT,
        pl.lit(0, pl.Int64).alias("position"),
        pl.lit(None, pl.Int64).alias("parent_position"),
        pl.lit("head").alias("relation"),
        pl.col("exception_type").alias("type"),
        pl.col("exception_message").alias("message"),
        pl.lit(None, pl.String).alias("top_function"),
        pl.lit(None, pl.String).alias("top_file"),
        pl.lit(None, pl.Int64).alias("top_line"),
        pl.lit(0, pl.Int64).alias("frame_count"),
        pl.lit(value=False).alias("truncated"),
        "language",
        pl.lit(None, pl.List(pl.String)).alias("frames"),
    )
    return pl.concat([heads, _parsed(keyed.filter("needs_text"))]).sort(*_EVENT, "position")


def exception_events(traces: TraceSet) -> pl.DataFrame:
    """Return the events that record an exception, with the language of their span's SDK."""
    recorded = pl.any_horizontal(
        pl.col("exception_type", "exception_message", "exception_stacktrace").is_not_null()
    )
    events = traces.events.filter(recorded).with_columns(
        pl.col("exception_stacktrace").replace("", None).alias("stack")
    )
    languages = (
        traces.spans.select("trace_id", "span_id", "sdk_language")
        .filter(pl.col("sdk_language").is_not_null())
        .unique(["trace_id", "span_id"], keep="any")
    )
    return events.join(languages, on=["trace_id", "span_id"], how="left").with_columns(
        pl.col("sdk_language").replace(OTHER_NAMES).alias("language")
    )


def _parsed(events: pl.DataFrame) -> pl.DataFrame:
    """Parse each distinct text once and join the links back to the events."""
    # two texts meet in 64 bits with a chance of 3e-8 among a million
    hashed = events.with_columns(
        pl.col("stack").hash(0).alias("h1"),
        pl.struct(pl.col(_TEXT).exclude("stack"), pl.col("stack").str.len_bytes())
        .hash(1)
        .alias("h2"),
    )
    key = ["h1", "h2"]
    distinct = hashed.unique(key, keep="first", maintain_order=True).select(*key, *_TEXT)
    columns: dict[str, list[Any]] = {name: [] for name in (*key, *_PARSED)}
    for h1, h2, language, stack, type_name, message in distinct.iter_rows():
        text = message if stack is None else stack
        found, chain = parse_chain(text, language=language, type_name=type_name, message=message)
        rows = [link_row(link) for link in chain] or [
            link_row(link) for link in _bare(type_name, message, found)
        ]
        if found == "go" and stack is not None:
            members = go.join_members(type_name, message)[1:]
            rows += [{**link_row(member), "parent_position": 0} for member in members]
        for position, row in enumerate(rows):
            for name, value in (
                ("h1", h1),
                ("h2", h2),
                ("found", found),
                ("position", position),
                *row.items(),
            ):
                columns[name].append(value)
    links = pl.DataFrame(columns, schema=pl.Schema({"h1": pl.UInt64, "h2": pl.UInt64, **_PARSED}))
    head = pl.col("position") == 0
    recorded_type, recorded_message = pl.col("exception_type"), pl.col("exception_message")
    return (
        hashed.select(*_EVENT, *key, "language", "exception_type", "exception_message")
        .join(links, on=key, how="inner", maintain_order="left_right")
        .with_columns(
            pl.when(head & recorded_type.is_not_null())
            .then(recorded_type)
            .otherwise("type")
            .alias("type"),
            pl.when(head & recorded_message.is_not_null())
            .then(recorded_message)
            .otherwise("message")
            .alias("message"),
            pl.coalesce("found", "language").alias("language"),
        )
        .select(*schema.EXCEPTIONS, "frames")
    )


def _bare(type_name: str | None, message: str | None, language: str | None) -> Chain:
    joined = go.join_members(type_name, message) if language in (None, "go") else []
    return joined or [Link()]
