"""OTLP protobuf to levels: one native call per block, by lean twins of OTLP's descriptors.

The twins are derived from opentelemetry-proto's own descriptors with three changes. Text is
declared as bytes, so that one invalid name does not cost its whole message. Arrays and maps
inside an attribute are declared as bytes, so that depth costs nothing until it is there; they
are decoded level by level, again natively. The ``instrumentation_library_spans`` of OTLP
0.15 to 0.18 (field 1000) is known.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import descriptor_pb2, descriptor_pool
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from ptars import HandlerPool

from tracelab import schema
from tracelab.io.attributes import (
    Index,
    KeyValues,
    arrow_text,
    attribute_texts,
    double_texts,
    escape_texts,
    joined_key_values,
    series,
    text_bounds,
)
from tracelab.io.levels import Decoded, Level, Logs, Metrics, Problems, Spans
from tracelab.io.wire import (
    Signal,
    message_signal,
    salvage_message,
    with_scopes_for_libraries,
)

MAX_DEPTH: Final = 100
"""Arrays and maps nested deeper are not followed; protobuf's own readers stop at 100 too."""

LEGACY_FIELD: Final = 1000
_LEGACY_NAME: Final = "instrumentation_library_spans"

_FILES: Final = (common_pb2, resource_pb2, trace_pb2, logs_pb2, metrics_pb2)
_LEFT_OUT: Final = {"string_value_strindex", "key_strindex", "entity_refs"}
_PACKAGE: Final = "tracelab.lean"
_Field = descriptor_pb2.FieldDescriptorProto


def _lean_message(message: descriptor_pb2.DescriptorProto) -> None:
    kept = [item for item in message.field if item.name not in _LEFT_OUT]
    del message.field[:]
    message.field.extend(kept)
    for item in message.field:
        if item.type_name:
            item.type_name = item.type_name.replace(".opentelemetry.proto", f".{_PACKAGE}")
        nested = message.name == "AnyValue" and item.type == _Field.TYPE_MESSAGE
        if nested or item.type == _Field.TYPE_STRING:
            item.type = _Field.TYPE_BYTES
            item.ClearField("type_name")
    for nested_message in message.nested_type:
        _lean_message(nested_message)
    if message.name == "ResourceSpans":
        message.field.add(
            name=_LEGACY_NAME,
            number=LEGACY_FIELD,
            type=_Field.TYPE_BYTES,
            label=_Field.LABEL_REPEATED,
        )
        del message.reserved_range[:]


def _lean_file(module: Any) -> descriptor_pb2.FileDescriptorProto:
    twin = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(twin)
    twin.name = twin.name.replace("opentelemetry/", "tracelab/")
    twin.package = twin.package.replace("opentelemetry.proto", _PACKAGE)
    dependencies = [name.replace("opentelemetry/", "tracelab/") for name in twin.dependency]
    del twin.dependency[:]
    twin.dependency.extend(dependencies)
    for message in twin.message_type:
        _lean_message(message)
    return twin


@cache
def _handlers() -> tuple[HandlerPool, descriptor_pool.DescriptorPool]:
    pool = descriptor_pool.DescriptorPool()
    files = []
    for module in _FILES:
        twin = _lean_file(module)
        pool.Add(twin)
        files.append(pool.FindFileByName(twin.name))
    return HandlerPool(files), pool


@cache
def handler(name: str) -> Any:
    """Return the native decoder of a message, e.g. ``trace.v1.Span``."""
    handlers, pool = _handlers()
    return handlers.get_for_message(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@dataclass
class _Reader:
    """Turns native columns into series, noting what is not valid text."""

    problems: Problems

    def text(self, array: pa.Array, message: Index, noun: str) -> pa.StringArray:
        """Read bytes as UTF-8; invalid bytes become U+FFFD and a reject row."""
        texts = pa.StringArray.from_buffers(len(array), *_text_buffers(array))
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid:
            return self._mended(array, message, noun)
        return texts

    def _mended(self, array: pa.Array, message: Index, noun: str) -> pa.StringArray:
        texts = []
        for row, value in enumerate(array.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(value.decode(errors="replace"))
                self.problems.add(
                    message[row],
                    f"invalid UTF-8 in {noun}; the bytes in question became U+FFFD",
                    texts[-1],
                )
        return pa.array(texts, pa.string())


def _text_buffers(array: pa.Array) -> tuple[pa.Buffer, pa.Buffer, pa.Buffer | None, int, int]:
    validity, offsets, content = array.buffers()
    return offsets, content, validity, array.null_count, array.offset


def hex_ids(array: pa.Array) -> pl.Series:
    """Write binary ids of any length as lower-case hex."""
    bounds, content = text_bounds(array)
    used = content[bounds[0] : bounds[-1]]
    digits = _HEX[used]
    offsets = ((bounds - bounds[0]) * 2).astype(np.int32)
    return series(
        pa.StringArray.from_buffers(len(array), pa.py_buffer(offsets), pa.py_buffer(digits))
    )


_HEX: Final = np.frombuffer(
    "".join(f"{byte:02x}" for byte in range(256)).encode(), dtype=np.uint16
)


def _children(column: pa.ListArray) -> tuple[pa.Array, Index]:
    """Return the items of a list column and the row that holds each."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.values, np.repeat(np.arange(len(column)), np.diff(offsets))


def _field(struct: pa.StructArray, name: str) -> pa.Array:
    return struct.field(struct.type.get_field_index(name))


class _Values:
    """AnyValues of one block, decoded level by level."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader

    def key_values(
        self, column: pa.ListArray, message: Index, noun: str, depth: int = 0
    ) -> KeyValues:
        """Read a column of attribute lists; `message` is that of each owner."""
        offsets = column.offsets.to_numpy().astype(np.int64)
        pairs = column.values
        of_pair = np.repeat(message, np.diff(offsets))
        keys = self.reader.text(_field(pairs, "key"), of_pair, f"an attribute key of {noun}")
        return KeyValues(
            offsets, keys, *self.columns(_field(pairs, "value"), of_pair, noun, depth)
        )

    def columns(
        self, values: pa.StructArray, message: Index, noun: str, depth: int = 0
    ) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array, pa.Array]:
        """Split AnyValues by type; bytes, arrays and maps become JSON text."""
        strings = self.reader.text(
            _field(values, "string_value"), message, f"an attribute value of {noun}"
        )
        texts = pa.nulls(len(values), pa.string())
        for name, write in (
            ("bytes_value", self._bytes_texts),
            ("array_value", self._array_texts),
            ("kvlist_value", self._map_texts),
        ):
            column = _field(values, name)
            if column.null_count == len(column):
                continue
            rows = np.flatnonzero(pc.is_valid(column).to_numpy(zero_copy_only=False))
            written = write(column.take(pa.array(rows)), message[rows], noun, depth)
            pick = np.zeros(len(values), dtype=np.int64)
            pick[rows] = np.arange(rows.size)
            absent = np.ones(len(values), dtype=np.bool_)
            absent[rows] = False
            texts = pc.coalesce(texts, written.take(pa.array(pick, mask=absent)))
        return (
            strings,
            _field(values, "bool_value"),
            _field(values, "int_value"),
            _field(values, "double_value"),
            texts,
        )

    def texts(
        self, values: pa.StructArray, message: Index, noun: str, depth: int
    ) -> pa.StringArray:
        """Write AnyValues as JSON."""
        strings, booleans, integers, doubles, texts = self.columns(values, message, noun, depth)
        quoted = pc.binary_join_element_wise('"', escape_texts(strings), '"', "")
        return pc.coalesce(
            quoted,
            booleans.cast(pa.string()),
            integers.cast(pa.string()),
            arrow_text(double_texts(series(doubles))),
            texts,
            "null",
        )

    def _bytes_texts(
        self, column: pa.Array, _message: Index, _noun: str, _depth: int
    ) -> pa.StringArray:
        encoded = series(column).bin.encode("base64")
        return arrow_text(pl.select(pl.lit('{"bytes":"') + encoded + pl.lit('"}')).to_series())

    def _array_texts(
        self, column: pa.Array, message: Index, noun: str, depth: int
    ) -> pa.StringArray:
        lists, good = self._decoded("common.v1.ArrayValue", column, message, noun, depth)
        if lists is None:
            return pa.nulls(len(column), pa.string())
        items, owner = _children(lists)
        texts = self.texts(items, message[good][owner], noun, depth + 1)
        joined = pc.binary_join(pa.ListArray.from_arrays(lists.offsets, texts), ",")
        return _spread(pc.binary_join_element_wise("[", joined, "]", ""), good, len(column))

    def _map_texts(
        self, column: pa.Array, message: Index, noun: str, depth: int
    ) -> pa.StringArray:
        lists, good = self._decoded("common.v1.KeyValueList", column, message, noun, depth)
        if lists is None:
            return pa.nulls(len(column), pa.string())
        pairs = self.key_values(lists, message[good], noun, depth + 1)
        repeated = pairs.repeated()
        if repeated.size:
            pairs = pairs.without(repeated)
        return _spread(arrow_text(attribute_texts(pairs)), good, len(column))

    def _decoded(
        self, name: str, column: pa.Array, message: Index, noun: str, depth: int
    ) -> tuple[pa.ListArray | None, Index]:
        """Decode nested values; those that are broken or too deep are left out and noted."""
        problems = self.reader.problems
        if depth >= MAX_DEPTH:
            for row in message:
                problems.add(row, f"a value of {noun} is nested deeper than {MAX_DEPTH}; null")
            return None, np.empty(0, dtype=np.int64)
        good = np.arange(len(column))
        try:
            batch = handler(name).array_to_record_batch(column)
        except ValueError:
            kept = []
            for row, value in enumerate(column.to_pylist()):
                try:
                    handler(name).list_to_record_batch([value])
                    kept.append(row)
                except ValueError as error:
                    problems.add(message[row], f"a value of {noun} is broken: {error}; null")
            good = np.array(kept, dtype=np.int64)
            batch = handler(name).array_to_record_batch(column.take(pa.array(good)))
        return batch.column(0), good


def _spread(texts: pa.StringArray, rows: Index, size: int) -> pa.StringArray:
    if len(rows) == size:
        return texts
    pick = np.zeros(size, dtype=np.int64)
    absent = np.ones(size, dtype=np.bool_)
    pick[rows] = np.arange(len(rows))
    absent[rows] = False
    return texts.take(pa.array(pick, mask=absent))


class _Levels:
    """Builds the levels of one native batch."""

    def __init__(self, problems: Problems) -> None:
        self.reader = _Reader(problems)
        self.values = _Values(self.reader)

    def level(
        self,
        rows: pa.StructArray,
        parent: Index,
        message: Index,
        noun: str,
        *,
        texts: tuple[str, ...] = (),
        ids: tuple[str, ...] = (),
        numbers: dict[str, str] | None = None,
        attributes: pa.Array | None = None,
    ) -> Level:
        """Read some fields of a struct array; `numbers` maps column to field."""
        columns = {
            name: series(self.reader.text(_field(rows, name), message, f"{name} of {noun}"))
            for name in texts
        }
        columns.update({name: hex_ids(_field(rows, name)) for name in ids})
        columns.update(
            {name: series(_field(rows, of)) for name, of in (numbers or {}).items()}
        )
        lists = _field(rows, "attributes") if attributes is None else attributes
        return Level(parent, message, columns, self.values.key_values(lists, message, noun))

    def envelope(
        self, batch: pa.RecordBatch, scopes_name: str, leaves_name: str, sources: Index
    ) -> tuple[Level, Level, pa.Array, Index]:
        """Read resources and scopes; return the leaves and the scope of each too."""
        owners, message = _children(batch.column(0))
        message = sources[message]
        resource = _field(owners, "resource")
        resources = self.level(
            owners,
            message,
            message,
            "a resource",
            texts=("schema_url",),
            attributes=_field(resource, "attributes"),
        )
        resources.columns["dropped_attributes_count"] = series(
            _field(resource, "dropped_attributes_count")
        )
        groups, owner = _children(_field(owners, scopes_name))
        scope = _field(groups, "scope")
        of_scope = message[owner]
        scopes = self.level(
            scope,
            owner,
            of_scope,
            "a scope",
            texts=("name", "version"),
            numbers={"dropped_attributes_count": "dropped_attributes_count"},
        )
        scopes.columns["schema_url"] = series(
            self.reader.text(_field(groups, "schema_url"), of_scope, "schema_url of a scope")
        )
        leaves, group = _children(_field(groups, leaves_name))
        return resources, scopes, leaves, group


def read_spans(batch: pa.RecordBatch, sources: Index, problems: Problems) -> Spans:
    """Lay trace messages out in levels.

    Parameters
    ----------
    batch : pa.RecordBatch
        What the native decoder made of the messages.
    sources : ndarray of int64
        Number of each message within its block.
    problems : Problems
        Takes what could not be kept.

    Returns
    -------
    Spans

    Raises
    ------
    Nothing of its own.
    """
    levels = _Levels(problems)
    resources, scopes, leaves, group = levels.envelope(batch, "scope_spans", "spans", sources)
    message = scopes.message[group]
    status = _field(leaves, "status")
    spans = levels.level(
        leaves,
        group,
        message,
        "a span",
        texts=("name", "trace_state"),
        ids=("trace_id", "span_id", "parent_span_id"),
        numbers={
            "flags": "flags",
            "kind": "kind",
            "start_time": "start_time_unix_nano",
            "end_time": "end_time_unix_nano",
            "dropped_attributes_count": "dropped_attributes_count",
            "dropped_events_count": "dropped_events_count",
            "dropped_links_count": "dropped_links_count",
        },
    )
    spans.columns["status_code"] = series(pc.fill_null(_field(status, "code"), 0))
    spans.columns["status_message"] = series(
        levels.reader.text(_field(status, "message"), message, "a status message")
    )
    items, span = _children(_field(leaves, "events"))
    events = levels.level(
        items,
        span,
        message[span],
        "an event",
        texts=("name",),
        numbers={
            "time": "time_unix_nano",
            "dropped_attributes_count": "dropped_attributes_count",
        },
    )
    items, span = _children(_field(leaves, "links"))
    links = levels.level(
        items,
        span,
        message[span],
        "a link",
        texts=("trace_state",),
        ids=("trace_id", "span_id"),
        numbers={
            "flags": "flags",
            "dropped_attributes_count": "dropped_attributes_count",
        },
    )
    for name in ("trace_id", "span_id"):
        links.columns[f"linked_{name}"] = links.columns.pop(name)
    return Spans(resources, scopes, spans, events, links)


def read_logs(batch: pa.RecordBatch, sources: Index, problems: Problems) -> Logs:
    """Lay log messages out in levels.

    Parameters
    ----------
    batch, sources, problems
        As for `read_spans`.

    Returns
    -------
    Logs

    Raises
    ------
    Nothing of its own.
    """
    levels = _Levels(problems)
    resources, scopes, leaves, group = levels.envelope(
        batch, "scope_logs", "log_records", sources
    )
    message = scopes.message[group]
    logs = levels.level(
        leaves,
        group,
        message,
        "a log record",
        texts=("severity_text", "event_name"),
        ids=("trace_id", "span_id"),
        numbers={
            "flags": "flags",
            "severity_number": "severity_number",
            "time": "time_unix_nano",
            "observed_time": "observed_time_unix_nano",
            "dropped_attributes_count": "dropped_attributes_count",
        },
    )
    logs.columns["body"] = _bodies(levels, _field(leaves, "body"), message)
    return Logs(resources, scopes, logs)


def _bodies(levels: _Levels, values: pa.StructArray, message: Index) -> pl.Series:
    strings, booleans, integers, doubles, texts = levels.values.columns(
        values, message, "a log body"
    )
    return series(
        pc.coalesce(
            strings,
            booleans.cast(pa.string()),
            integers.cast(pa.string()),
            arrow_text(double_texts(series(doubles))),
            texts,
        )
    )


_POINTS: Final = {
    "gauge": "number",
    "sum": "number",
    "histogram": "histogram",
    "exponential_histogram": "exponential_histogram",
    "summary": "summary",
}
_TEMPORALITIES: Final = ("UNSPECIFIED", "DELTA", "CUMULATIVE")


def read_metrics(batch: pa.RecordBatch, sources: Index, problems: Problems) -> Metrics:
    """Lay metric messages out in levels.

    Parameters
    ----------
    batch, sources, problems
        As for `read_spans`.

    Returns
    -------
    Metrics

    Raises
    ------
    Nothing of its own.
    """
    levels = _Levels(problems)
    resources, scopes, leaves, group = levels.envelope(batch, "scope_metrics", "metrics", sources)
    message = scopes.message[group]
    metrics = levels.level(
        leaves,
        group,
        message,
        "a metric",
        texts=("name", "unit"),
        attributes=_field(leaves, "metadata"),
    )
    types = pl.Series([None] * len(leaves), dtype=pl.String)
    temporality = types.clone()
    monotonic = pl.Series([None] * len(leaves), dtype=pl.Boolean)
    points = []
    for name in _POINTS:
        body = _field(leaves, name)
        here = pl.Series(pc.is_valid(body).to_numpy(zero_copy_only=False))
        types = types.set(here, name)
        if name in ("sum", "histogram", "exponential_histogram"):
            words = _temporality_words(series(_field(body, "aggregation_temporality")))
            temporality = words.zip_with(here, temporality)
        if name == "sum":
            monotonic = series(_field(body, "is_monotonic")).zip_with(here, monotonic)
        points.append(_read_points(levels, name, body, message))
    metrics.columns.update(
        {"metric_type": types, "temporality": temporality, "is_monotonic": monotonic}
    )
    return Metrics(resources, scopes, metrics, _joined(points))


def _temporality_words(numbers: pl.Series) -> pl.Series:
    return numbers.replace_strict(
        list(range(len(_TEMPORALITIES))), list(_TEMPORALITIES), default=None, return_dtype=pl.String
    )


def _read_points(levels: _Levels, name: str, body: pa.StructArray, message: Index) -> Level:
    """Read the points of one type; columns of other types are left out."""
    items, metric = _children(_field(body, "data_points"))
    of_point = message[metric]
    level = levels.level(
        items,
        metric,
        of_point,
        "a metric point",
        numbers={"start_time": "start_time_unix_nano", "time": "time_unix_nano", "flags": "flags"},
    )
    columns = level.columns
    if _POINTS[name] == "number":
        whole = series(_field(items, "as_int")).cast(pl.Float64)
        columns["value"] = pl.select(
            pl.coalesce(series(_field(items, "as_double")), whole)
        ).to_series()
    else:
        columns["count"] = _int64(_field(items, "count"))
        columns["sum"] = series(_field(items, "sum"))
    if name == "histogram":
        columns["explicit_bounds"] = series(_field(items, "explicit_bounds"))
        columns["bucket_counts"] = _int64_lists(_field(items, "bucket_counts"))
    if name == "exponential_histogram":
        columns["scale"] = series(_field(items, "scale"))
        columns["zero_count"] = _int64(_field(items, "zero_count"))
        columns["zero_threshold"] = series(_field(items, "zero_threshold"))
        for side in ("positive", "negative"):
            buckets = _field(items, side)
            columns[f"{side}_offset"] = series(_field(buckets, "offset"))
            columns[f"{side}_bucket_counts"] = _int64_lists(_field(buckets, "bucket_counts"))
    if name in ("histogram", "exponential_histogram"):
        columns["min"] = series(_field(items, "min"))
        columns["max"] = series(_field(items, "max"))
    if name == "summary":
        quantiles = _field(items, "quantile_values")
        for column, of in (("quantiles", "quantile"), ("quantile_values", "value")):
            values = _field(quantiles.values, of)
            columns[column] = series(pa.ListArray.from_arrays(quantiles.offsets, values))
    else:
        columns["exemplars"] = _exemplar_texts(levels, _field(items, "exemplars"), of_point)
    return level


def _int64(array: pa.Array) -> pl.Series:
    return series(array).cast(pl.Int64, strict=False)


def _int64_lists(array: pa.ListArray) -> pl.Series:
    return series(array).cast(pl.List(pl.Int64), strict=False)


def _exemplar_texts(levels: _Levels, lists: pa.ListArray, message: Index) -> pl.Series:
    """Write exemplars as a JSON array of objects; null where there is none."""
    items, owner = _children(lists)
    if len(items) == 0:
        return pl.Series([None] * len(lists), dtype=pl.String)
    attributes = levels.values.key_values(
        _field(items, "filtered_attributes"), message[owner], "an exemplar"
    )
    repeated = attributes.repeated()
    if repeated.size:
        attributes = attributes.without(repeated)
    written = pl.DataFrame(
        {
            "time": series(_field(items, "time_unix_nano")),
            "double": double_texts(series(_field(items, "as_double"))),
            "int": series(_field(items, "as_int")).cast(pl.String),
            "trace_id": hex_ids(_field(items, "trace_id")),
            "span_id": hex_ids(_field(items, "span_id")),
            "attributes": attribute_texts(attributes),
        }
    ).select(
        pl.concat_str(
            pl.lit('{"time_unix_nano":'),
            "time",
            pl.lit(',"value":'),
            pl.coalesce("double", "int", pl.lit("null")),
            pl.lit(',"trace_id":"'),
            "trace_id",
            pl.lit('","span_id":"'),
            "span_id",
            pl.lit('","attributes":'),
            "attributes",
            pl.lit("}"),
        )
    )
    texts = arrow_text(written.to_series())
    joined = pc.binary_join(pa.ListArray.from_arrays(lists.offsets, texts), ",")
    whole = series(pc.binary_join_element_wise("[", joined, "]", ""))
    return whole.set(whole == "[]", None)


def _joined(levels: list[Level]) -> Level:
    """Lay the points of all types end to end, columns that a type lacks null."""
    tables = [pl.DataFrame(level.columns) for level in levels]
    like = {
        name: dtype
        for name, dtype in schema.METRIC_POINTS.items()
        if any(name in table.columns for table in tables)
    }
    like["start_time"] = like["time"] = pl.UInt64()
    rows = pl.concat(
        [
            table.select(
                (pl.col(name) if name in table.columns else pl.lit(None)).cast(dtype).alias(name)
                for name, dtype in like.items()
            )
            for table in tables
        ]
    )
    return Level(
        np.concatenate([level.parent for level in levels]),
        np.concatenate([level.message for level in levels]),
        {column.name: column for column in rows},
        joined_key_values([level.attributes for level in levels]),
    )


_MESSAGES: Final[dict[Signal, tuple[str, str]]] = {
    "traces": ("trace.v1.TracesData", "trace.v1.Span"),
    "logs": ("logs.v1.LogsData", "logs.v1.LogRecord"),
    "metrics": ("metrics.v1.MetricsData", "metrics.v1.Metric"),
}


def decode_messages(messages: list[bytes], problems: Problems) -> Decoded:
    """Decode the messages of a block, whatever signals they carry.

    Parameters
    ----------
    messages : list of bytes
        Export requests of traces, logs and metrics.
    problems : Problems
        Takes what could not be kept.

    Returns
    -------
    Decoded

    Raises
    ------
    Nothing of its own.
    """
    by_signal: dict[Signal, list[int]] = {}
    for number, message in enumerate(messages):
        by_signal.setdefault(message_signal(message), []).append(number)
    decoded = Decoded()
    for signal, numbers in by_signal.items():
        sources = np.array(numbers, dtype=np.int64)
        part = [messages[number] for number in numbers]
        decode_signal(signal, part, sources, problems, decoded)
    return decoded


def decode_signal(
    signal: Signal, messages: list[bytes], sources: Index, problems: Problems, decoded: Decoded
) -> None:
    """Decode messages of one signal into `decoded`.

    Parameters
    ----------
    signal : {"traces", "logs", "metrics"}
        What all the messages carry.
    messages : list of bytes
        Export requests.
    sources : ndarray of int64
        Number of each message within its block.
    problems : Problems
        Takes what could not be kept.
    decoded : Decoded
        Takes the levels.

    Raises
    ------
    Nothing of its own.
    """
    batch = _native(signal, messages, sources.tolist(), problems, decoded)
    if signal == "traces":
        decoded.spans = read_spans(batch, sources, problems)
    elif signal == "logs":
        decoded.logs = read_logs(batch, sources, problems)
    else:
        decoded.metrics = read_metrics(batch, sources, problems)


def _native(
    signal: Signal,
    messages: list[bytes],
    numbers: list[int],
    problems: Problems,
    decoded: Decoded,
) -> pa.RecordBatch:
    decode = handler(_MESSAGES[signal][0]).list_to_record_batch
    try:
        batch = decode(messages)
    except ValueError:
        messages = [
            _readable(signal, message, number, problems, decoded)
            for message, number in zip(messages, numbers, strict=True)
        ]
        batch = decode(messages)
    if signal == "traces" and len(_field(batch.column(0).values, _LEGACY_NAME).values):
        batch = decode([with_scopes_for_libraries(message) for message in messages])
    return batch


def _readable(
    signal: Signal, message: bytes, number: int, problems: Problems, decoded: Decoded
) -> bytes:
    """Return the message itself if it can be read, else what can be saved of it."""
    whole, leaf = _MESSAGES[signal]
    try:
        handler(whole).list_to_record_batch([message])
    except ValueError:
        saved = salvage_message(
            message,
            leaf=handler(leaf),
            resource=handler("resource.v1.Resource"),
            scope=handler("common.v1.InstrumentationScope"),
        )
        for position, reason, excerpt in saved.losses:
            problems.add(number, reason, excerpt.hex(), position=position)
        decoded.bad.add(number)
        if signal == "traces":
            decoded.spans_rejected += saved.leaves_lost
        return saved.data
    return message
