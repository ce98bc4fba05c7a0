"""From the chunks of all sources to one capture: duplicates, log exceptions, canonical order.

The same rows in any order of files and chunks give the same tables.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.io.chunk import ROW, Chunk
from tracelab.traceset import TraceSet

_CONTENT: Final = "_content"
_SLOT_SEED: Final = 2026
"""Of the hash that splits traces; a store's buckets are told by another."""

_IDS: Final = ("trace_id", "span_id")
_EXCEPTION: Final = ("exception_type", "exception_message", "exception_stacktrace")


def gather(chunks: Iterable[Chunk]) -> Chunk:
    """Lay chunks of any number of sources end to end, with `ROW` made unique.

    Parameters
    ----------
    chunks : Iterable[Chunk]
        Chunks whose `ROW` is unique within each source; the chunks of a source need not
        stand together.

    Returns
    -------
    Chunk
        With `ROW` unique over all; ``messages`` is empty.

    Raises
    ------
    SchemaError
        If a table does not fit its schema.
    """
    spans, events, links = [], [], []
    logs, metrics, rejects = [], [], []
    base = 0
    rejected = 0
    for chunk in chunks:
        if chunk.spans.height:
            first = int(chunk.spans[ROW].min())  # type: ignore[arg-type]
            last = int(chunk.spans[ROW].max())  # type: ignore[arg-type]
            moved = (pl.col(ROW).cast(pl.Int64) + (base - first)).cast(pl.UInt64)
            spans.append(chunk.spans.with_columns(moved))
            events.append(chunk.events.with_columns(moved))
            links.append(chunk.links.with_columns(moved))
            base += last - first + 1
        logs.append(chunk.logs)
        metrics.append(chunk.metrics)
        rejects.append(chunk.rejects)
        rejected += chunk.spans_rejected
    none = Chunk()
    return Chunk(
        spans=pl.concat([none.spans, *spans]),
        events=pl.concat([none.events, *events]),
        links=pl.concat([none.links, *links]),
        logs=pl.concat([none.logs, *logs]),
        metrics=pl.concat([none.metrics, *metrics]),
        rejects=pl.concat([none.rejects, *rejects]),
        spans_rejected=rejected,
    )


def split_traces(chunk: Chunk, max_spans: int) -> Iterator[Chunk]:
    """Split a chunk into chunks of whole traces, one after the other.

    Parameters
    ----------
    chunk : Chunk
        All rows of its traces, `ROW` unique.
    max_spans : int
        About how many spans a piece may have; a single trace is never split.

    Yields
    ------
    Chunk
        Its traces, with their events, links and logs; whatever belongs to no trace stands in
        the first.

    Raises
    ------
    ZeroDivisionError
        If `max_spans` is 0.
    """
    n = -(-chunk.spans.height // max_spans)
    if n <= 1:
        yield chunk
        return
    trace = pl.col("trace_id")
    slot = pl.when(trace.is_null()).then(0).otherwise(trace.hash(_SLOT_SEED) % n)
    for number in range(n):
        of_traces = {
            name: getattr(chunk, name).filter(slot == number)
            for name in ("spans", "events", "links", "logs")
        }
        yield replace(chunk, **of_traces) if number == 0 else Chunk(**of_traces)


def finalise(
    chunk: Chunk, *, ingest: pl.DataFrame | None = None, distinct: bool = False
) -> TraceSet:
    """Resolve duplicates, join exceptions of logs to spans, and order the tables.

    Parameters
    ----------
    chunk : Chunk
        All rows, `ROW` unique (see `gather`).
    ingest : pl.DataFrame, optional
        One accounting row per source; its ``spans_kept``, ``spans_duplicate`` and
        ``spans_conflicting`` are filled in.
    distinct : bool
        No two spans have the same ids, which is known already: no contents need comparing.

    Returns
    -------
    TraceSet
        Of spans that are equal in everything but their source (events and links included)
        one is kept, that of the source that sorts first. Spans that share their ids but not
        their content are all kept. A log record or data point that several sources hold is
        kept as often as the source that holds it most often does.

    Raises
    ------
    Nothing of its own.
    """
    content = pl.lit(0, pl.UInt64) if distinct else _contents(chunk)
    hashed = chunk.spans.with_columns(content.alias(_CONTENT))
    kept = hashed if distinct else _drop_duplicates(hashed)
    if kept.height < hashed.height:
        rows = kept.select(ROW)
        events = chunk.events.join(rows, on=ROW, how="semi")
        links = chunk.links.join(rows, on=ROW, how="semi")
    else:
        events, links = chunk.events, chunk.links
    kept = kept.sort("trace_id", "start_time", "span_id", _CONTENT, maintain_order=True)
    order = kept.select(ROW).with_row_index("_order")
    logs = _ordered(_drop_copies(chunk.logs), ["time", "observed_time", *_IDS])
    events = _ordered_rows(events, order, ["event_index"])
    return TraceSet(
        spans=kept.select(schema.SPANS.names()),
        events=_with_log_exceptions(events, logs, kept),
        links=_ordered_rows(links, order, []).select(schema.LINKS.names()),
        logs=logs,
        metrics=_ordered(_drop_copies(chunk.metrics), ["metric_name", "time"]),
        rejects=chunk.rejects.sort(
            "source", "offset", "line", "reason", "excerpt", maintain_order=True
        ),
        ingest=_accounted(ingest, hashed, kept),
    )


def _contents(chunk: Chunk) -> pl.Series:
    """Hash each span with its events and links; equal spans have equal numbers."""
    public = [name for name in schema.SPANS.names() if name != "source"]
    total = chunk.spans.select(public).hash_rows(seed=1).to_numpy().copy()
    rows = chunk.spans[ROW].to_numpy()
    if not len(rows):
        return pl.Series(total)
    order = np.argsort(rows, kind="stable") if np.any(rows[1:] < rows[:-1]) else None
    for table, seed in ((chunk.events, 2), (chunk.links, 3)):
        if not table.height:
            continue
        owners = table[ROW].to_numpy()
        part = table.drop(*_IDS, ROW)
        if seed == 3:
            part = part.with_columns(_place_within(owners))
        hashes = part.hash_rows(seed=seed).to_numpy()
        sorted_rows = rows if order is None else rows[order]
        at = np.searchsorted(sorted_rows, owners)
        if order is not None:
            at = order[at]
        # A sum wraps, and does not depend on the order of its terms.
        np.add.at(total, at, hashes)
    return pl.Series(total)


def _place_within(owners: np.ndarray) -> pl.Series:
    """Count the rows of each owner from 0."""
    return (
        pl.DataFrame({"owner": owners})
        .select(pl.int_range(pl.len()).over("owner").alias("_place"))
        .to_series()
    )


def _drop_duplicates(spans: pl.DataFrame) -> pl.DataFrame:
    repeated = spans[_CONTENT].is_duplicated()
    if not repeated.any():
        return spans
    losers = (
        spans.filter(repeated)
        .select(_CONTENT, "source", ROW)
        .sort("source", ROW)
        .filter(pl.col(_CONTENT).is_first_distinct().not_())
    )
    return spans.join(losers, on=ROW, how="anti", maintain_order="left")


def _drop_copies(table: pl.DataFrame) -> pl.DataFrame:
    """Keep of equal rows as many as the source that has most of them."""
    if table["source"].n_unique() < 2:
        return table
    content = table.drop("source").hash_rows(seed=4).alias(_CONTENT)
    repeated = content.is_duplicated()
    if not repeated.any():
        return table
    copies = pl.int_range(pl.len()).over(_CONTENT, "source").alias("_copy")
    wanted = (
        pl.DataFrame([content, table["source"]])
        .with_row_index("_at")
        .filter(repeated)
        .with_columns(copies)
        .sort("source", "_at")
        .filter(pl.struct(_CONTENT, "_copy").is_first_distinct().not_())
    )
    return (
        table.with_row_index("_at").join(wanted, on="_at", how="anti", maintain_order="left")
    ).drop("_at")


def _ordered(table: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    content = table.drop("source").hash_rows(seed=5).alias(_CONTENT)
    ordered = table.with_columns(content).sort(*by, _CONTENT, "source", maintain_order=True)
    return ordered.drop(_CONTENT)


def _ordered_rows(table: pl.DataFrame, order: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Bring rows of spans into the spans' own order; rows of a span keep theirs."""
    joined = table.join(order, on=ROW, how="inner", maintain_order="left")
    return joined.sort("_order", *by, maintain_order=True)


def log_exceptions(logs: pl.DataFrame, spans: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Make events of the exceptions in log records of these spans.

    Parameters
    ----------
    logs : pl.DataFrame
        Schema LOGS.
    spans : pl.DataFrame
        Columns ``trace_id`` and ``span_id``.
    events : pl.DataFrame
        Schema EVENTS: the span events. An exception that stands there already (same type,
        message and stack trace on the same span, as senders that write both signals have
        it) is left out.

    Returns
    -------
    pl.DataFrame
        Schema EVENTS, ``origin`` log, numbered on behind each span's own events in order of
        time.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(logs, schema.LOGS, name="logs")
    schema.require_columns(events, schema.EVENTS, name="events")
    found = logs.filter(
        pl.any_horizontal(pl.col(_EXCEPTION).is_not_null()),
        pl.all_horizontal(pl.col(_IDS).is_not_null()),
    )
    if not found.height:
        return schema.empty(schema.EVENTS)
    keys = [*_IDS, *_EXCEPTION]
    found = found.join(spans.select(_IDS).unique(), on=_IDS, how="semi", maintain_order="left")
    found = found.join(events, on=keys, how="anti", nulls_equal=True, maintain_order="left")
    taken = events.group_by(_IDS).agg(pl.col("event_index").max().alias("_taken"))
    rank = pl.int_range(1, pl.len() + 1).over(*_IDS)
    numbered = (
        found.with_columns(pl.coalesce("time", "observed_time").alias("time"))
        .sort(*_IDS, "time", maintain_order=True)
        .join(taken, on=_IDS, how="left", maintain_order="left")
        .with_columns(
            (pl.col("_taken").fill_null(-1) + rank).alias("event_index"),
            pl.coalesce("event_name", pl.lit("exception")).alias("name"),
            pl.lit("log").alias("origin"),
        )
    )
    present = [name for name in schema.EVENTS.names() if name in numbered.columns]
    return schema.conform(numbered.select(present), schema.EVENTS)


def _with_log_exceptions(
    events: pl.DataFrame, logs: pl.DataFrame, spans: pl.DataFrame
) -> pl.DataFrame:
    own = events.select(schema.EVENTS.names())
    added = log_exceptions(logs, spans, own)
    if not added.height:
        return own
    first = spans.select(*_IDS).with_row_index("_order").unique(_IDS, keep="first")
    together = pl.concat(
        [
            own.with_columns(events["_order"]),
            added.join(first, on=_IDS, how="left", maintain_order="left").select(
                *schema.EVENTS.names(), "_order"
            ),
        ]
    )
    return together.sort("_order", "event_index", maintain_order=True).drop("_order")


def _accounted(
    ingest: pl.DataFrame | None, decoded: pl.DataFrame, kept: pl.DataFrame
) -> pl.DataFrame:
    if ingest is None:
        return schema.empty(schema.INGEST)
    conflicting = (
        kept.filter(pl.struct(_IDS).is_duplicated() & (pl.col("span_id") != ""))
        .group_by("source")
        .agg(pl.len().cast(pl.Int64).alias("_conflicting"))
    )
    kept_counts = kept.group_by("source").agg(pl.len().cast(pl.Int64).alias("_kept"))
    joined = ingest.join(kept_counts, on="source", how="left", maintain_order="left").join(
        conflicting, on="source", how="left", maintain_order="left"
    )
    return (
        joined.with_columns(
            pl.col("_kept").fill_null(0).alias("spans_kept"),
            pl.col("_conflicting").fill_null(0).alias("spans_conflicting"),
        )
        .with_columns((pl.col("spans_decoded") - pl.col("spans_kept")).alias("spans_duplicate"))
        .select(schema.INGEST.names())
        .sort("source")
    )
