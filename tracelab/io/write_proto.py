"""Spans back to OTLP protobuf by the native encoder, a whole batch at a time."""

import json
from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.io.attribute_pairs import AttributePairs
from tracelab.io.attributes import Index, arrow_text
from tracelab.io.canonical import encode_value
from tracelab.io.envelope import enum_numbers_of, message_bounds
from tracelab.io.lean import handler

_ODD_HEX: Final = "id {!r} is no hex, which protobuf cannot carry; pass encoding='json'"


def proto_messages(
    spans: pl.DataFrame, events: pl.DataFrame, links: pl.DataFrame, spans_per_message: int
) -> Iterator[bytes]:
    """Write spans as export requests.

    Parameters
    ----------
    spans : pl.DataFrame
        Schema SPANS, sorted so that spans of one resource and scope stand together.
    events, links : pl.DataFrame
        Schemas EVENTS and LINKS with the column ``row``, the number of their span, sorted by it.
    spans_per_message : int
        Most spans in one request.

    Yields
    ------
    bytes
        One request.

    Raises
    ------
    ParameterError
        If an id is no hex.
    """
    if spans.is_empty():
        return
    native = handler("trace.v1.TracesData")
    owners = native.schema().field("resource_spans").type
    groups = _child(owners.value_type, "scope_spans")
    leaves = _child(groups.value_type, "spans")
    bounds = message_bounds(spans, spans_per_message)
    firsts = spans[[start for start, _ in bounds]]
    each = np.arange(len(bounds) + 1)
    written = _spans(spans, events, links, leaves.value_type)
    group = _struct(
        groups.value_type,
        scope=_struct(
            _child(groups.value_type, "scope"),
            name=_text(firsts["scope_name"]),
            version=_text(firsts["scope_version"]),
            attributes=_attributes(firsts["scope_attributes"]),
            dropped_attributes_count=_count(firsts["scope_dropped_attributes_count"]),
        ),
        spans=_lists(leaves, np.array([*(start for start, _ in bounds), spans.height]), written),
        schema_url=_text(firsts["scope_schema_url"]),
    )
    owner = _struct(
        owners.value_type,
        resource=_struct(
            _child(owners.value_type, "resource"),
            attributes=_attributes(firsts["resource_attributes"]),
            dropped_attributes_count=_count(firsts["resource_dropped_attributes_count"]),
        ),
        scope_spans=_lists(groups, each, group),
        schema_url=_text(firsts["resource_schema_url"]),
    )
    batch = pa.RecordBatch.from_arrays([_lists(owners, each, owner)], schema=native.schema())
    for message in native.record_batch_to_array(batch):
        yield message.as_py()


def _spans(
    spans: pl.DataFrame, events: pl.DataFrame, links: pl.DataFrame, of_type: pa.StructType
) -> pa.StructArray:
    event_type, link_type = _child(of_type, "events"), _child(of_type, "links")
    event = _struct(
        event_type.value_type,
        time_unix_nano=_time(events["time"]),
        name=_text(events["name"]),
        attributes=_attributes(events["attributes"]),
        dropped_attributes_count=_count(events["dropped_attributes_count"]),
    )
    link = _struct(
        link_type.value_type,
        trace_id=_id(links["linked_trace_id"]),
        span_id=_id(links["linked_span_id"]),
        trace_state=_text(links["trace_state"]),
        attributes=_attributes(links["attributes"]),
        dropped_attributes_count=_count(links["dropped_attributes_count"]),
        flags=_count(links["flags"]),
    )
    numbers = spans.select(
        enum_numbers_of("kind", schema.KINDS).alias("kind"),
        enum_numbers_of("status_code", schema.STATUS_CODES).alias("code"),
    )
    return _struct(
        of_type,
        trace_id=_id(spans["trace_id"]),
        span_id=_id(spans["span_id"]),
        trace_state=_text(spans["trace_state"]),
        parent_span_id=_id(spans["parent_span_id"]),
        flags=_count(spans["flags"]),
        name=_text(spans["name"]),
        kind=numbers["kind"].to_arrow(),
        start_time_unix_nano=_time(spans["start_time"]),
        end_time_unix_nano=_time(spans["end_time"]),
        attributes=_attributes(spans["attributes"]),
        dropped_attributes_count=_count(spans["dropped_attributes_count"]),
        events=_lists(event_type, _offsets(events, spans.height), event),
        dropped_events_count=_count(spans["dropped_events_count"]),
        links=_lists(link_type, _offsets(links, spans.height), link),
        dropped_links_count=_count(spans["dropped_links_count"]),
        status=_struct(
            _child(of_type, "status"),
            message=_text(spans["status_message"]),
            code=numbers["code"].to_arrow(),
        ),
    )


def _child(of_type: pa.StructType, name: str) -> pa.DataType:
    return of_type.field(of_type.get_field_index(name)).type


def _struct(of_type: pa.StructType, **arrays: pa.Array) -> pa.StructArray:
    """Build a struct of the native encoder's type; fields not given are empty lists."""
    size = len(next(iter(arrays.values())))
    fields = [of_type.field(at) for at in range(of_type.num_fields)]
    return pa.StructArray.from_arrays(
        [
            arrays[one.name].cast(one.type)
            if one.name in arrays and not pa.types.is_nested(one.type)
            else arrays[one.name]
            if one.name in arrays
            else _empty(one.type, size)
            for one in fields
        ],
        fields=fields,
    )


def _empty(of_type: pa.DataType, size: int) -> pa.Array:
    if pa.types.is_list(of_type):
        none = pa.array([], of_type.value_type)
        return _lists(of_type, np.zeros(size + 1, dtype=np.int64), none)
    return pa.nulls(size, of_type)


def _lists(of_type: pa.ListType, offsets: Index, items: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), items, type=of_type)


def _offsets(rows: pl.DataFrame, n_owners: int) -> Index:
    counts = np.bincount(rows["row"].to_numpy().astype(np.int64), minlength=n_owners)
    offsets: Index = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return offsets


def _text(texts: pl.Series) -> pa.Array:
    return arrow_text(texts.fill_null("")).cast(pa.binary())


def _count(numbers: pl.Series) -> pa.Array:
    return numbers.fill_null(0).cast(pl.UInt32).to_arrow()


def _time(times: pl.Series) -> pa.Array:
    return times.cast(pl.Int64).fill_null(0).cast(pl.UInt64, wrap_numerical=True).to_arrow()


def _id(ids: pl.Series) -> pa.Array:
    decoded = ids.fill_null("").str.decode("hex", strict=False)
    odd = decoded.is_null()
    if odd.any():
        raise ParameterError(_ODD_HEX.format(ids.filter(odd)[0]))
    return decoded.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.binary())


def _unescaped(texts: pl.Series) -> pl.Series:
    """Take the quotes off JSON strings; only those with escapes are parsed."""
    inner = texts.str.slice(1, None).str.head(-1)
    escaped = inner.str.contains("\\", literal=True)
    if not escaped.any():
        return inner
    distinct = texts.filter(escaped).unique().to_list()
    known = {text: json.loads(text) for text in distinct}
    return inner.zip_with(~escaped, texts.replace(known))


def _attributes(texts: pl.Series) -> pa.ListArray:
    """Turn attribute columns into lists of the native encoder's key-values."""
    pairs = AttributePairs(texts)
    of_type = handler("common.v1.KeyValueList").schema().field("values").type
    value_type = _child(of_type.value_type, "value")
    values = pairs.values
    first = values.str.slice(0, 1)
    quoted = first == '"'
    nested = {text: encode_value(value) for text, value in pairs.nested_values().items()}
    boolean = first.is_in(["t", "f"])
    numeric = first.is_in(list("-0123456789"))
    double = numeric & values.str.contains("[.eE]")
    columns = {
        "string_value": _where(quoted, _unescaped(values.filter(quoted))).cast(pl.Binary),
        "bool_value": _where(boolean, values.filter(boolean) == "true"),
        "int_value": _where(numeric & ~double, values.filter(numeric & ~double).cast(pl.Int64)),
        "double_value": _where(double, values.filter(double).cast(pl.Float64)),
    }
    arrays = {
        name: column.to_arrow(compat_level=pl.CompatLevel.oldest())
        for name, column in columns.items()
    }
    if nested:
        of_text = pl.DataFrame(
            [(text, *pair) for text, pair in nested.items()],
            schema={"text": pl.String, "field": pl.String, "content": pl.Binary},
            orient="row",
        )
        joined = pl.DataFrame({"text": values}).join(
            of_text, on="text", how="left", maintain_order="left"
        )
        for name in ("array_value", "kvlist_value", "bytes_value"):
            content = joined.select(
                pl.when(pl.col("field") == name).then(pl.col("content"))
            ).to_series()
            arrays[name] = content.to_arrow(compat_level=pl.CompatLevel.oldest())
    items = _struct(
        of_type.value_type,
        key=_text(_unescaped(pairs.keys)),
        value=_struct(value_type, **arrays),
    )
    return _lists(of_type, pairs.offsets, items)


def _where(here: pl.Series, values: pl.Series) -> pl.Series:
    """Put values where `here` is true, null elsewhere."""
    if here.all():
        return values
    rows = here.cum_sum() - 1
    return values.gather(pl.select(pl.when(here).then(rows)).to_series())
