"""One flattening for every encoding: levels of decoded messages in, tables out.

A decoder lays its messages out in levels (resource, scope, span, event, link, ...); each row
of a level knows its row in the level above and the message it came from. Nothing here loops
over rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from tracelab import schema, semconv
from tracelab.io.attributes import Index, KeyValues, attribute_texts, lift, lift_texts
from tracelab.io.chunk import ROW, Chunk
from tracelab.io.levels import Level, Logs, Metrics, Problems, Spans

INT64_MAX: Final = 2**63 - 1
_INTEGERS: Final = {
    "thread_id",
    "http_response_status_code",
    "resend_count",
    "process_pid",
}
_FLAG_REMOTE_KNOWN: Final = 0x100
_FLAG_REMOTE: Final = 0x200
_ZERO_SPAN: Final = "0" * 16
_ZERO_TRACE: Final = "0" * 32


@dataclass(frozen=True, slots=True)
class LiftedKeys:
    """Attribute keys that the caller's services use for what has no convention.

    Parameters
    ----------
    task, tenant, request_id : tuple of str
        Keys of ``task_id``, ``tenant_id`` and ``request_id``, the preferred one first.
    """

    task: tuple[str, ...] = semconv.SPAN_ATTRIBUTES["task_id"]
    tenant: tuple[str, ...] = semconv.SPAN_ATTRIBUTES["tenant_id"]
    request_id: tuple[str, ...] = semconv.SPAN_ATTRIBUTES["request_id"]

    def span_attributes(self) -> dict[str, tuple[str, ...]]:
        """Return the lifted span columns and their keys."""
        return {
            **semconv.SPAN_ATTRIBUTES,
            "task_id": self.task,
            "tenant_id": self.tenant,
            "request_id": self.request_id,
        }


def _dedupe(level: Level, noun: str, problems: Problems) -> Level:
    """Drop attributes that a later one overrides, and say so once per message and key."""
    kv = level.attributes
    rows = kv.repeated()
    if rows.size == 0:
        return level
    told = (
        pl.DataFrame({"message": level.message[kv.owners[rows]], "code": kv.codes[rows]})
        .group_by("message", "code", maintain_order=True)
        .len()
    )
    for message, code, count in told.iter_rows():
        problems.add(
            message,
            f"duplicate attribute key {kv.names[code]!r} on {count} "
            f"{noun}{'s' if count > 1 else ''}; the last value is kept",
        )
    return replace(level, attributes=kv.without(rows))


def _times(level: Level, name: str, noun: str, problems: Problems) -> pl.Series:
    """Turn unsigned nanoseconds into times; 0 and what Int64 cannot hold become null."""
    values = level.columns[name]
    beyond = values > INT64_MAX
    if beyond.any():
        for row in beyond.arg_true().to_list():
            problems.add(
                level.message[row],
                f"{noun} {name} {values[row]} is beyond the range of times; read as null",
            )
        values = values.set(beyond, 0)
    numbers = values.to_numpy().view(np.int64)
    times = pl.Series(name, numbers).cast(schema.TIME)
    zero = numbers == 0
    return times.set(pl.Series(zero), None) if zero.any() else times


def _words(numbers: pl.Series, words: Sequence[str]) -> pl.Series:
    """Turn enum numbers into words; an unknown number stays as text."""
    known = pl.Series(words)
    inside = (numbers >= 0) & (numbers < len(words))
    if inside.all():
        return known.gather(numbers.cast(pl.UInt32))
    texts = known.gather(numbers.set(~inside, 0).cast(pl.UInt32))
    return texts.zip_with(inside, numbers.cast(pl.String))


def _optional(texts: pl.Series) -> pl.Series:
    """Read empty text as absent, as protobuf means it."""
    empty = texts == ""
    return texts.set(empty, None) if empty.any() else texts


def _parent_ids(texts: pl.Series) -> pl.Series:
    absent = (texts == "") | (texts == _ZERO_SPAN)
    return texts.set(absent, None) if absent.any() else texts


def _remote(flags: pl.Series) -> pl.Series:
    numbers = flags.to_numpy()
    known = (numbers & _FLAG_REMOTE_KNOWN) != 0
    remote = pl.Series((numbers & _FLAG_REMOTE) != 0)
    return remote if known.all() else remote.set(pl.Series(~known), None)


def _resource_columns(resources: Level) -> pl.DataFrame:
    kv = resources.attributes
    columns = lift(kv, semconv.RESOURCE_ATTRIBUTES, _INTEGERS)
    return pl.DataFrame(
        [
            *columns,
            attribute_texts(kv).alias("resource_attributes"),
            resources.columns["dropped_attributes_count"].alias(
                "resource_dropped_attributes_count"
            ),
            _optional(resources.columns["schema_url"]).alias("resource_schema_url"),
        ]
    )


def _scope_columns(scopes: Level) -> pl.DataFrame:
    return pl.DataFrame(
        [
            _optional(scopes.columns["name"]).alias("scope_name"),
            _optional(scopes.columns["version"]).alias("scope_version"),
            attribute_texts(scopes.attributes).alias("scope_attributes"),
            scopes.columns["dropped_attributes_count"].alias("scope_dropped_attributes_count"),
            _optional(scopes.columns["schema_url"]).alias("scope_schema_url"),
        ]
    )


def _envelope(resources: Level, scopes: Level, leaves: Level, problems: Problems) -> pl.DataFrame:
    """Repeat what resource and scope say beside each leaf."""
    resources = _dedupe(resources, "resource", problems)
    scopes = _dedupe(scopes, "scope", problems)
    by_scope = pl.concat(
        [_resource_columns(resources)[scopes.parent], _scope_columns(scopes)], how="horizontal"
    )
    return by_scope[leaves.parent]


def _sources(source: str | pl.Series, level: Level) -> pl.Series:
    if isinstance(source, str):
        return pl.repeat(source, len(level), dtype=pl.String, eager=True)
    return source.gather(level.message)


def _table(columns: dict[str, pl.Series], *frames: pl.DataFrame, like: pl.Schema) -> pl.DataFrame:
    everything = dict(columns)
    for frame in frames:
        everything.update({name: frame[name] for name in frame.columns})
    return pl.DataFrame([everything[name].alias(name) for name in like])


def flatten_spans(
    decoded: Spans, *, source: str | pl.Series, first_row: int, keys: LiftedKeys, problems: Problems
) -> Chunk:
    """Build SPANS, EVENTS and LINKS.

    Parameters
    ----------
    decoded : Spans
        Trace messages in levels.
    source : str or pl.Series
        What the column ``source`` says: of all messages, or message by message.
    first_row : int
        Number of the first span within its source.
    keys : LiftedKeys
        Configurable attribute keys.
    problems : Problems
        Takes what could not be kept.

    Returns
    -------
    Chunk
        With spans, events and links only.

    Raises
    ------
    Nothing of its own.
    """
    spans = _dedupe(decoded.spans, "span", problems)
    plain = spans.columns
    start = _times(spans, "start_time", "span", problems)
    end = _times(spans, "end_time", "span", problems)
    rows = pl.Series(ROW, np.arange(first_row, first_row + len(spans), dtype=np.uint64))
    columns = {
        **{
            name: plain[name]
            for name in (
                "trace_id",
                "span_id",
                "flags",
                "name",
                "dropped_attributes_count",
                "dropped_events_count",
                "dropped_links_count",
            )
        },
        "parent_span_id": _parent_ids(plain["parent_span_id"]),
        "trace_state": _optional(plain["trace_state"]),
        "parent_is_remote": _remote(plain["flags"]),
        "kind": _words(plain["kind"], schema.KINDS),
        "start_time": start,
        "end_time": end,
        "duration_ns": end.cast(pl.Int64) - start.cast(pl.Int64),
        "status_code": _words(plain["status_code"], schema.STATUS_CODES),
        "status_message": _optional(plain["status_message"]),
        "attributes": attribute_texts(spans.attributes),
        "source": _sources(source, spans),
        ROW: rows,
    }
    lifted = lift(spans.attributes, keys.span_attributes(), _INTEGERS)
    columns.update({column.name: column for column in lifted})
    table = _table(
        columns,
        _envelope(decoded.resources, decoded.scopes, spans, problems),
        like=with_row(schema.SPANS),
    )
    ids = table.select("trace_id", "span_id", ROW)
    return Chunk(
        spans=table,
        events=_events(decoded.events, ids, problems),
        links=_links(decoded.links, ids, problems),
    )


def with_row(table: pl.Schema) -> pl.Schema:
    """Return a schema with the running number of the span behind its columns."""
    return pl.Schema([*table.items(), (ROW, pl.UInt64())])


def _index_within(parent: Index) -> pl.Series:
    """Count the rows of each parent from 0; rows of a parent stand together."""
    if len(parent) == 0:
        return pl.Series(values=[], dtype=pl.Int64)
    first = np.concatenate([[True], parent[1:] != parent[:-1]])
    starts = np.flatnonzero(first)
    return pl.Series(np.arange(len(parent)) - np.repeat(starts, np.diff([*starts, len(parent)])))


def _exception_columns(kv: KeyValues, old: pl.Series | None) -> dict[str, pl.Series]:
    """Read the exception's attributes; the old spellings only where `old` is true."""
    columns = {}
    for column, spellings in semconv.EXCEPTION_ATTRIBUTES.items():
        texts = lift_texts(kv, spellings[:1])
        if old is not None and len(spellings) > 1 and old.any():
            texts = texts.zip_with(~old | texts.is_not_null(), lift_texts(kv, spellings[1:]))
        columns[column] = texts
    return columns


def _events(level: Level, ids: pl.DataFrame, problems: Problems) -> pl.DataFrame:
    events = _dedupe(level, "event", problems)
    plain = events.columns
    exception = _exception_columns(events.attributes, plain["name"] == "error")
    escaped = exception["exception_escaped"].str.to_lowercase()
    exception["exception_escaped"] = escaped.replace_strict(
        ["true", "false"], [True, False], default=None, return_dtype=pl.Boolean
    )
    columns = {
        "event_index": _index_within(events.parent),
        "time": _times(events, "time", "event", problems),
        "name": plain["name"],
        "attributes": attribute_texts(events.attributes),
        "dropped_attributes_count": plain["dropped_attributes_count"],
        "origin": pl.repeat("span_event", len(events), dtype=pl.String, eager=True),
        **exception,
    }
    like = with_row(schema.EVENTS)
    return _table(columns, ids[events.parent], like=like)


def _links(level: Level, ids: pl.DataFrame, problems: Problems) -> pl.DataFrame:
    links = _dedupe(level, "link", problems)
    plain = links.columns
    columns = {
        "linked_trace_id": plain["linked_trace_id"],
        "linked_span_id": plain["linked_span_id"],
        "trace_state": _optional(plain["trace_state"]),
        "flags": plain["flags"],
        "linked_is_remote": _remote(plain["flags"]),
        "attributes": attribute_texts(links.attributes),
        "dropped_attributes_count": plain["dropped_attributes_count"],
    }
    like = with_row(schema.LINKS)
    return _table(columns, ids[links.parent], like=like)


def flatten_logs(
    decoded: Logs, *, source: str | pl.Series, keys: LiftedKeys, problems: Problems
) -> pl.DataFrame:
    """Build LOGS.

    An empty or all-zero trace or span id on a log record means that it stands outside of any
    trace, so it is null.

    Parameters
    ----------
    decoded : Logs
        Log messages in levels; column ``body`` is text.
    source : str or pl.Series
        What the column ``source`` says: of all messages, or message by message.
    keys : LiftedKeys
        Configurable attribute keys.
    problems : Problems
        Takes what could not be kept.

    Returns
    -------
    pl.DataFrame
        Schema LOGS.

    Raises
    ------
    Nothing of its own.
    """
    logs = _dedupe(decoded.logs, "log record", problems)
    plain, kv = logs.columns, logs.attributes
    wanted = {
        name: spellings
        for name, spellings in keys.span_attributes().items()
        if name in ("thread_id", "thread_name", "task_id")
    }
    exception = _exception_columns(kv, None)
    del exception["exception_escaped"]
    event_name = _optional(plain["event_name"])
    if event_name.null_count():
        event_name = event_name.zip_with(event_name.is_not_null(), lift_texts(kv, ("event.name",)))
    trace_id, span_id = plain["trace_id"], plain["span_id"]
    columns = {
        "trace_id": trace_id.set((trace_id == "") | (trace_id == _ZERO_TRACE), None),
        "span_id": _parent_ids(span_id),
        "time": _times(logs, "time", "log record", problems),
        "observed_time": _times(logs, "observed_time", "log record", problems),
        "severity_number": plain["severity_number"],
        "severity_text": _optional(plain["severity_text"]),
        "event_name": event_name,
        "body": plain["body"],
        "flags": plain["flags"],
        "attributes": attribute_texts(kv),
        "dropped_attributes_count": plain["dropped_attributes_count"],
        "source": _sources(source, logs),
        **exception,
        **{column.name: column for column in lift(kv, wanted, _INTEGERS)},
    }
    envelope = _envelope(decoded.resources, decoded.scopes, logs, problems)
    return _table(columns, envelope, like=schema.LOGS)


def flatten_metrics(
    decoded: Metrics, *, source: str | pl.Series, problems: Problems
) -> pl.DataFrame:
    """Build METRIC_POINTS.

    Parameters
    ----------
    decoded : Metrics
        Metric messages in levels.
    source : str or pl.Series
        What the column ``source`` says: of all messages, or message by message.
    problems : Problems
        Takes what could not be kept.

    Returns
    -------
    pl.DataFrame
        Schema METRIC_POINTS.

    Raises
    ------
    Nothing of its own.
    """
    points = _dedupe(decoded.points, "metric point", problems)
    metrics = decoded.metrics
    own = pl.DataFrame(
        [
            metrics.columns["name"].alias("metric_name"),
            metrics.columns["metric_type"].alias("metric_type"),
            _optional(metrics.columns["unit"]).alias("unit"),
            metrics.columns["temporality"].alias("temporality"),
            metrics.columns["is_monotonic"].alias("is_monotonic"),
        ]
    )
    envelope = _envelope(decoded.resources, decoded.scopes, metrics, problems)
    columns = {
        **points.columns,
        "start_time": _times(points, "start_time", "metric point", problems),
        "time": _times(points, "time", "metric point", problems),
        "attributes": attribute_texts(points.attributes),
        "source": _sources(source, points),
    }
    return _table(columns, own[points.parent], envelope[points.parent], like=schema.METRIC_POINTS)
