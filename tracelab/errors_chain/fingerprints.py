"""Errors grouped by what they are: normalised type, message and topmost functions."""

from typing import Final

import polars as pl

from tracelab.errors_chain.comparing import mask
from tracelab.errors_chain.evidence import SPAN
from tracelab.errors_chain.parsing import parse_with_frames
from tracelab.traceset import TraceSet, require_traces

MAX_EXAMPLES: Final = 5
_QUOTED: Final = r"'[^']{1,200}'|\"[^\"]{1,200}\""


def find_error_groups(traces: TraceSet) -> pl.DataFrame:
    """Group recorded exceptions that are the same error in different requests.

    Parameters
    ----------
    traces : TraceSet
        The capture.

    Returns
    -------
    pl.DataFrame
        fingerprint (stable across captures), type, message (normalised), top_function,
        language, errors, traces, services, first_time, last_time, origins (traces in which
        it was the first error), origin_ratio, example_trace_ids, example_message; most
        frequent first. Numbers, ids and quoted values do not tell groups apart.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet.
    SchemaError
        If a table of the capture lacks a column.
    """
    require_traces(traces)
    links = parse_with_frames(traces)
    heads = links.filter(pl.col("position") == 0).sort(*SPAN, "event_index")
    events = traces.events.select(*SPAN, "event_index", "time")
    spans = traces.spans.select(*SPAN, "service_name", "start_time").unique(SPAN, keep="first")
    normal = mask(pl.col("message").str.replace_all(_QUOTED, "'…'")).str.slice(0, 300)
    functions = (
        pl.col("frames")
        .list.eval(pl.element().str.replace_all(r"\d+|0x[0-9a-f]+", "#"))
        .list.join(" < ")
    )
    named = (
        heads.join(events, on=[*SPAN, "event_index"], how="left")
        .join(spans, on=SPAN, how="left")
        .with_columns(
            pl.coalesce("time", "start_time").alias("time"),
            normal.alias("normal_message"),
            functions.fill_null("").alias("functions"),
            pl.col("type").fill_null("").alias("normal_type"),
        )
    )
    key = ["normal_type", "normal_message", "functions"]
    first = pl.col("time") == pl.col("time").min().over("trace_id")
    return (
        named.with_columns(first.fill_null(value=False).alias("is_first"))
        .sort("time", *SPAN, "event_index")
        .group_by(key, maintain_order=True)
        .agg(
            pl.col("language").first(),
            pl.col("top_function").first(),
            pl.len().cast(pl.Int64).alias("errors"),
            pl.col("trace_id").n_unique().cast(pl.Int64).alias("traces"),
            pl.col("service_name").drop_nulls().unique().sort().alias("services"),
            pl.col("time").min().alias("first_time"),
            pl.col("time").max().alias("last_time"),
            pl.col("trace_id").filter("is_first").n_unique().cast(pl.Int64).alias("origins"),
            pl.col("trace_id")
            .unique(maintain_order=True)
            .head(MAX_EXAMPLES)
            .alias("example_trace_ids"),
            pl.col("message").first().str.slice(0, 1000).alias("example_message"),
        )
        .with_columns(
            _digest(key).alias("fingerprint"),
            (pl.col("origins") / pl.col("traces")).alias("origin_ratio"),
            pl.col("normal_type").replace("", None).alias("type"),
            pl.col("normal_message").alias("message"),
        )
        .select(
            *("fingerprint", "type", "message", "top_function", "language", "errors", "traces"),
            *("services", "first_time", "last_time", "origins", "origin_ratio"),
            *("example_trace_ids", "example_message"),
        )
        .sort(["errors", "fingerprint"], descending=[True, False])
    )


def _digest(columns: list[str]) -> pl.Expr:
    """Hash a few thousand group keys by a hash that no library version changes."""
    from hashlib import sha256

    def digest(text: str) -> str:
        return sha256(text.encode("utf-8", "replace")).hexdigest()[:12]

    whole = pl.concat_str([pl.col(name).fill_null("") for name in columns], separator="\x1f")
    return whole.map_elements(digest, return_dtype=pl.String)
