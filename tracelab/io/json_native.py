"""OTLP JSON to levels by Arrow's own JSON reader, for messages that fit one plain schema.

The reader is given every field by name and type, and refuses whatever else it meets. What it
refuses is read leniently elsewhere; nothing is inferred, because inference nulls what it does
not expect and runs out of stack on deep nesting. The schema follows the dialect of the block:
key case, and which of the numbers and enums are written as text.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from tracelab.io.attributes import (
    Index,
    KeyValues,
    arrow_text,
    double_texts,
    escape_texts,
    series,
    several,
    text_bounds,
)
from tracelab.io.canonical import enum_numbers
from tracelab.io.levels import Level, Logs, Spans
from tracelab.io.wire import Signal


class RefusedError(ValueError):
    """Messages that do not fit the plain schema."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a block writes what JSON leaves open.

    Parameters
    ----------
    snake_case : bool
        Keys are ``resource_spans`` instead of ``resourceSpans``.
    times_as_text, integers_as_text : bool
        64-bit integers are JSON strings.
    kinds_as_text, codes_as_text, severities_as_text : bool
        Enums are names.
    absent : frozenset of str
        Rare kinds of attribute values that do not occur: the parser would write a null of
        each beside every attribute.
    """

    snake_case: bool = False
    times_as_text: bool = True
    integers_as_text: bool = True
    kinds_as_text: bool = False
    codes_as_text: bool = False
    severities_as_text: bool = False
    absent: frozenset[str] = frozenset()


_MARKS: Final = {
    "times_as_text": re.compile(rb'"(?:(?:start|end)?_?[tT]ime_?[uU]nix_?[nN]ano)"\s*:\s*(["0-9])'),
    "integers_as_text": re.compile(rb'"int_?[vV]alue"\s*:\s*(["0-9-])'),
    "kinds_as_text": re.compile(rb'"kind"\s*:\s*(["0-9])'),
    "codes_as_text": re.compile(rb'"code"\s*:\s*(["0-9])'),
    "severities_as_text": re.compile(rb'"severity_?[nN]umber"\s*:\s*(["0-9])'),
}
_SNAKE: Final = re.compile(rb'"(?:scope|instrumentation_library)_(?:spans|logs)"|"time_unix_nano"')


_RARE: Final = ("boolValue", "doubleValue", "arrayValue", "bytesValue")
_RARE_TYPES: Final = {
    "boolValue": pa.bool_(),
    "doubleValue": pa.float64(),
    "arrayValue": pa.null(),
    "bytesValue": pa.string(),
}
_SAMPLE_BYTES: Final = 1 << 16


def sniff_dialect(content: bytes, *, whole: bool = False) -> Dialect:
    """Tell the dialect of a block from the first place where each choice shows.

    Parameters
    ----------
    content : bytes
        Messages.
    whole : bool
        Look for the choices everywhere; else in the beginning only, which is enough for what
        one program wrote, and a wrong guess is refused by the reader.

    Returns
    -------
    Dialect
        The Collector's own where nothing shows.

    Raises
    ------
    Nothing of its own.
    """
    usual = Dialect()
    sample = content if whole else content[:_SAMPLE_BYTES]
    choices = {}
    for name, mark in _MARKS.items():
        found = mark.search(sample)
        choices[name] = getattr(usual, name) if found is None else found[1] == b'"'
    snake_case = _SNAKE.search(sample) is not None
    absent = frozenset(
        name for name in _RARE if f'"{_named(name, snake_case=snake_case)}"'.encode() not in content
    )
    return Dialect(snake_case=snake_case, absent=absent, **choices)


def _named(name: str, *, snake_case: bool) -> str:
    return name if not snake_case else re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", name)


@cache
def _schema(signal: Signal, dialect: Dialect) -> pa.Schema:
    def struct(fields: dict[str, pa.DataType]) -> pa.StructType:
        return pa.struct(
            [
                (_named(name, snake_case=dialect.snake_case), of_type)
                for name, of_type in fields.items()
                if name not in dialect.absent
            ]
        )

    text, count = pa.string(), pa.uint32()
    time = text if dialect.times_as_text else pa.uint64()
    scalars = {
        "stringValue": text,
        "boolValue": pa.bool_(),
        "intValue": text if dialect.integers_as_text else pa.int64(),
        "doubleValue": pa.float64(),
    }
    array = struct({"values": pa.list_(struct(scalars))})
    value = struct({**scalars, "arrayValue": array, "bytesValue": text})
    attributes = pa.list_(struct({"key": text, "value": value}))
    common = {"attributes": attributes, "droppedAttributesCount": count}
    ids = {"traceId": text, "spanId": text}
    event = struct({"timeUnixNano": time, "name": text, **common})
    link = struct({**ids, "traceState": text, "flags": count, **common})
    code = text if dialect.codes_as_text else pa.int32()
    leaf = {
        "traces": {
            **ids,
            "parentSpanId": text,
            "traceState": text,
            "flags": count,
            "name": text,
            "kind": text if dialect.kinds_as_text else pa.int32(),
            "startTimeUnixNano": time,
            "endTimeUnixNano": time,
            **common,
            "events": pa.list_(event),
            "droppedEventsCount": count,
            "links": pa.list_(link),
            "droppedLinksCount": count,
            "status": struct({"code": code, "message": text}),
        },
        "logs": {
            **ids,
            "timeUnixNano": time,
            "observedTimeUnixNano": time,
            "severityNumber": text if dialect.severities_as_text else pa.int32(),
            "severityText": text,
            "body": value,
            "flags": count,
            "eventName": text,
            **common,
        },
    }[signal]
    scopes, leaves = _NAMES[signal][1:]
    scope = struct({"name": text, "version": text, **common})
    group = struct({"scope": scope, leaves: pa.list_(struct(leaf)), "schemaUrl": text})
    owner = struct({"resource": struct(common), scopes: pa.list_(group), "schemaUrl": text})
    root = _named(_NAMES[signal][0], snake_case=dialect.snake_case)
    return pa.schema([(root, pa.list_(owner))])


_NAMES: Final[dict[Signal, tuple[str, str, str]]] = {
    "traces": ("resourceSpans", "scopeSpans", "spans"),
    "logs": ("resourceLogs", "scopeLogs", "logRecords"),
}


def read_messages(
    messages: list[bytes], sources: Index, signal: Signal, dialect: Dialect
) -> Spans | Logs:
    """Read messages of one signal.

    Parameters
    ----------
    messages : list of bytes
        One JSON document each.
    sources : ndarray of int64
        Number of each message within its block.
    signal : {"traces", "logs"}
        What all of them carry.
    dialect : Dialect
        How they are written.

    Returns
    -------
    Spans or Logs

    Raises
    ------
    RefusedError
        If any of them does not fit the schema; none is read then.
    """
    content = b"\n".join(
        message.replace(b"\n", b" ") if b"\n" in message else message for message in messages
    )
    try:
        content.decode()  # Arrow's reader takes bytes that are no UTF-8 as they are
        table = pj.read_json(
            pa.BufferReader(content),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(content) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=_schema(signal, dialect), unexpected_field_behavior="error"
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise RefusedError(str(error)) from None
    if table.num_rows != len(messages):
        raise RefusedError("not one document per message")
    column = table.column(0).combine_chunks()
    if column.null_count:
        raise RefusedError("a message that holds nothing")
    reader = _Reader(dialect)
    try:
        return reader.spans(column, sources) if signal == "traces" else reader.logs(column, sources)
    except pa.ArrowInvalid as error:
        raise RefusedError(str(error)) from None


class _Reader:
    """Lays a parsed table out in levels."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    def field(self, struct: pa.StructArray, name: str) -> pa.Array:
        if name in self.dialect.absent:
            return pa.nulls(len(struct), _RARE_TYPES[name])
        return struct.field(
            struct.type.get_field_index(_named(name, snake_case=self.dialect.snake_case))
        )

    def text(self, struct: pa.StructArray, name: str) -> pl.Series:
        array = self.field(struct, name)
        return series(array if array.null_count == 0 else pc.fill_null(array, ""))

    def number(self, struct: pa.StructArray, name: str, words: str = "") -> pl.Series:
        """Read a number; `words` names the enum whose names may stand for it."""
        array = self.field(struct, name)
        if pa.types.is_string(array.type):
            array = _numbers_of_words(array, words) if words else array.cast(pa.uint64())
        return series(array if array.null_count == 0 else pc.fill_null(array, 0))

    def attributes(self, struct: pa.StructArray) -> KeyValues:
        pairs, offsets = _items(self.field(struct, "attributes"))
        keys = self.field(pairs, "key")
        keys = keys if keys.null_count == 0 else pc.fill_null(keys, "")
        return KeyValues(offsets, keys, *self.values(self.field(pairs, "value")))

    def scalars(self, values: pa.StructArray) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array]:
        integers = self.field(values, "intValue")
        return (
            self.field(values, "stringValue"),
            self.field(values, "boolValue"),
            integers.cast(pa.int64()) if pa.types.is_string(integers.type) else integers,
            self.field(values, "doubleValue"),
        )

    def values(self, values: pa.StructArray) -> tuple[pa.Array, ...]:
        arrays, encoded = self.field(values, "arrayValue"), self.field(values, "bytesValue")
        scalars = self.scalars(values)
        _single(*scalars, arrays, encoded)
        texts = pa.nulls(len(values), pa.string())
        if encoded.null_count < len(encoded):
            texts = _bytes_texts(encoded)
        if arrays.null_count < len(arrays):
            texts = pc.coalesce(texts, self.array_texts(arrays))
        return (*scalars, texts)

    def array_texts(self, arrays: pa.StructArray) -> pa.StringArray:
        lists = self.field(arrays, "values")
        items = lists.values
        strings, booleans, integers, doubles = scalars = self.scalars(items)
        _single(*scalars)
        texts = pc.coalesce(
            pc.binary_join_element_wise('"', escape_texts(strings), '"', ""),
            booleans.cast(pa.string()),
            integers.cast(pa.string()),
            arrow_text(double_texts(series(doubles))),
            "null",
        )
        joined = pc.binary_join(pa.ListArray.from_arrays(lists.offsets, texts), ",")
        whole = pc.binary_join_element_wise("[", joined, "]", "")
        return pc.if_else(pc.is_valid(arrays), whole, pa.scalar(None, pa.string()))

    def bodies(self, values: pa.StructArray) -> pl.Series:
        strings, booleans, integers, doubles, texts = self.values(values)
        return series(
            pc.coalesce(
                strings,
                booleans.cast(pa.string()),
                integers.cast(pa.string()),
                arrow_text(double_texts(series(doubles))),
                texts,
            )
        )

    def envelope(
        self, column: pa.ListArray, signal: Signal, sources: Index
    ) -> tuple[Level, Level, pa.StructArray, Index]:
        _, scopes_name, leaves_name = _NAMES[signal]
        owners, offsets = _items(column)
        message = np.repeat(sources, np.diff(offsets))
        resource = self.field(owners, "resource")
        resources = Level(
            message,
            message,
            {
                "schema_url": self.text(owners, "schemaUrl"),
                "dropped_attributes_count": self.number(resource, "droppedAttributesCount"),
            },
            self.attributes(resource),
        )
        groups, offsets = _items(self.field(owners, scopes_name))
        owner = _parents(offsets)
        scope = self.field(groups, "scope")
        scopes = Level(
            owner,
            message[owner],
            {
                "name": self.text(scope, "name"),
                "version": self.text(scope, "version"),
                "schema_url": self.text(groups, "schemaUrl"),
                "dropped_attributes_count": self.number(scope, "droppedAttributesCount"),
            },
            self.attributes(scope),
        )
        leaves, offsets = _items(self.field(groups, leaves_name))
        return resources, scopes, leaves, _parents(offsets)

    def spans(self, column: pa.ListArray, sources: Index) -> Spans:
        resources, scopes, leaves, group = self.envelope(column, "traces", sources)
        message = scopes.message[group]
        status = self.field(leaves, "status")
        spans = Level(
            group,
            message,
            {
                "trace_id": _ids(self.text(leaves, "traceId"), 16),
                "span_id": _ids(self.text(leaves, "spanId"), 8),
                "parent_span_id": _ids(self.text(leaves, "parentSpanId"), 8),
                "name": self.text(leaves, "name"),
                "trace_state": self.text(leaves, "traceState"),
                "flags": self.number(leaves, "flags"),
                "kind": self.number(leaves, "kind", "SpanKind"),
                "start_time": self.number(leaves, "startTimeUnixNano"),
                "end_time": self.number(leaves, "endTimeUnixNano"),
                "dropped_attributes_count": self.number(leaves, "droppedAttributesCount"),
                "dropped_events_count": self.number(leaves, "droppedEventsCount"),
                "dropped_links_count": self.number(leaves, "droppedLinksCount"),
                "status_code": self.number(status, "code", "StatusCode"),
                "status_message": self.text(status, "message"),
            },
            self.attributes(leaves),
        )
        items, offsets = _items(self.field(leaves, "events"))
        span = _parents(offsets)
        events = Level(
            span,
            message[span],
            {
                "name": self.text(items, "name"),
                "time": self.number(items, "timeUnixNano"),
                "dropped_attributes_count": self.number(items, "droppedAttributesCount"),
            },
            self.attributes(items),
        )
        items, offsets = _items(self.field(leaves, "links"))
        span = _parents(offsets)
        links = Level(
            span,
            message[span],
            {
                "linked_trace_id": _ids(self.text(items, "traceId"), 16),
                "linked_span_id": _ids(self.text(items, "spanId"), 8),
                "trace_state": self.text(items, "traceState"),
                "flags": self.number(items, "flags"),
                "dropped_attributes_count": self.number(items, "droppedAttributesCount"),
            },
            self.attributes(items),
        )
        return Spans(resources, scopes, spans, events, links)

    def logs(self, column: pa.ListArray, sources: Index) -> Logs:
        resources, scopes, leaves, group = self.envelope(column, "logs", sources)
        logs = Level(
            group,
            scopes.message[group],
            {
                "trace_id": _ids(self.text(leaves, "traceId"), 16),
                "span_id": _ids(self.text(leaves, "spanId"), 8),
                "time": self.number(leaves, "timeUnixNano"),
                "observed_time": self.number(leaves, "observedTimeUnixNano"),
                "severity_number": self.number(leaves, "severityNumber", "SeverityNumber"),
                "severity_text": self.text(leaves, "severityText"),
                "event_name": self.text(leaves, "eventName"),
                "flags": self.number(leaves, "flags"),
                "dropped_attributes_count": self.number(leaves, "droppedAttributesCount"),
                "body": self.bodies(self.field(leaves, "body")),
            },
            self.attributes(leaves),
        )
        return Logs(resources, scopes, logs)


def _items(column: pa.ListArray) -> tuple[pa.StructArray, Index]:
    """Return the items of a list column and where each row's begin."""
    items = column.values
    if items.null_count:
        raise RefusedError("null in place of an object")
    return items, column.offsets.to_numpy().astype(np.int64)


def _single(*columns: pa.Array) -> None:
    if several(columns).size:
        raise RefusedError("a value of several types")


def _parents(offsets: Index) -> Index:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _numbers_of_words(array: pa.Array, enum: str) -> pa.Array:
    known = enum_numbers(enum)
    distinct = array.dictionary_encode()
    numbers = []
    for word in distinct.dictionary.to_pylist():
        if word not in known and not word.lstrip("-").isdigit():
            raise RefusedError(f"unknown {enum} {word!r}")
        numbers.append(known[word] if word in known else int(word))
    return pa.array(numbers, pa.int32()).take(distinct.indices)


def _bytes_texts(encoded: pa.StringArray) -> pa.StringArray:
    """Write base64 as JSON does here; only the plain padded form is taken."""
    texts = series(encoded)
    plain = texts.str.contains(r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")
    if not plain.all():
        raise RefusedError("bytes in another alphabet")
    return arrow_text(pl.select(pl.lit('{"bytes":"') + texts + pl.lit('"}')).to_series())


_LOWER_HEX: Final = np.zeros(256, dtype=np.bool_)
_LOWER_HEX[list(b"0123456789abcdef")] = True


def _ids(texts: pl.Series, size: int) -> pl.Series:
    """Bring ids to lower-case hex; base64 only where the length says so, the rest stays."""
    bounds, content = text_bounds(arrow_text(texts))
    lengths = np.diff(bounds)
    usual = (lengths == 2 * size) | (lengths == 0)
    if usual.all() and _LOWER_HEX[content[bounds[0] : bounds[-1]]].all():
        return texts
    frame = pl.DataFrame({"id": texts}).with_columns(
        decoded=pl.when(pl.col("id").str.len_bytes() == 4 * -(-size // 3)).then(
            pl.col("id").str.decode("base64", strict=False)
        )
    )
    column: Any = pl.col("id")
    return frame.select(
        pl.when(pl.col("decoded").bin.size() == size)
        .then(pl.col("decoded").bin.encode("hex"))
        .when(column.str.contains(r"^(?:[0-9a-fA-F]{2})*$"))
        .then(column.str.to_lowercase())
        .otherwise(column)
        .alias("id")
    )["id"]
