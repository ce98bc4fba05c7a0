"""A capture back to OTLP, as the Collector's file exporter writes it."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.io.attribute_pairs import AttributePairs, joined_arrays
from tracelab.io.attributes import Index
from tracelab.io.envelope import ENVELOPE, enum_numbers_of, message_bounds
from tracelab.io.write_other import log_requests, metric_requests
from tracelab.io.write_proto import proto_messages
from tracelab.traceset import TraceSet

_BATCH: Final = 100_000
"""Spans that are turned into text at a time; some 100 MB of memory."""

Encoding = Literal["json", "proto"]


class OtlpWriter:
    """Writes captures, one after the other, into one OTLP file.

    Parameters
    ----------
    path : str or Path
        File to write.
    encoding : {"json", "proto"}
        JSON lines, or protobuf with a length of four bytes before each message.
    spans_per_message : int
        Most spans in one export request; the SDKs' batch processors send 512.
    append : bool
        Write behind what the file holds.

    Raises
    ------
    ParameterError
        If an argument is out of its range.
    OSError
        If the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        encoding: Encoding = "json",
        spans_per_message: int = 512,
        append: bool = False,
    ) -> None:
        if encoding not in ("json", "proto"):
            raise ParameterError(f"encoding {encoding!r} is none of json, proto")
        if spans_per_message < 1:
            raise ParameterError(f"spans_per_message {spans_per_message} is less than 1")
        self._encoding = encoding
        self._spans_per_message = spans_per_message
        self._file = Path(path).open("ab" if append else "wb")  # noqa: SIM115

    def write(self, traces: TraceSet) -> None:
        """Write one capture: its spans with events and links, its logs, its metrics.

        Events that came from log records are written as those log records. An event or link
        whose span is not in the capture has no place in OTLP and is left out; where a span
        id stands twice, events and links go with its first span.

        Parameters
        ----------
        traces : TraceSet
            What to write.

        Raises
        ------
        ParameterError
            If an id is no hex and the encoding is protobuf, which cannot carry it.
        OSError
            If the file cannot be written.
        """
        for part in _batches(traces):
            for message in self._span_messages(*part):
                self._put(message)
        for request in (*log_requests(traces.logs), *metric_requests(traces.metrics)):
            self._put_request(request)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _span_messages(
        self, spans: pl.DataFrame, events: pl.DataFrame, links: pl.DataFrame
    ) -> Iterator[bytes]:
        if self._encoding == "json":
            return _json_messages(spans, events, links, self._spans_per_message)
        return proto_messages(spans, events, links, self._spans_per_message)

    def _put(self, message: bytes) -> None:
        if self._encoding == "json":
            self._file.write(message + b"\n")
        else:
            self._file.write(struct.pack(">I", len(message)) + message)

    def _put_request(self, request: dict[str, object]) -> None:
        if self._encoding == "json":
            text = json.dumps(request, ensure_ascii=False, separators=(",", ":"))
            self._put(text.encode())
            return
        from tracelab.io.canonical import Ids, encode_request

        for _, message in encode_request(request, Ids()):
            self._put(message)


def write_otlp(
    traces: TraceSet,
    path: str | Path,
    *,
    encoding: Encoding = "json",
    spans_per_message: int = 512,
) -> None:
    """Write a capture as one OTLP file.

    Reading the file gives the same tables again: attributes of every kind, events, links,
    counts of what was dropped, trace states, flags, schema urls, scopes and resources, logs
    and metrics. Numbers that JSON lacks (NaN) come back as the texts the tables hold.

    Parameters
    ----------
    traces : TraceSet
        What to write.
    path : str or Path
        File to write; it is replaced.
    encoding : {"json", "proto"}
        JSON lines, or protobuf with a length of four bytes before each message.
    spans_per_message : int
        Most spans in one export request; the SDKs' batch processors send 512.

    Raises
    ------
    ParameterError
        If an argument is out of its range, or an id is no hex and the encoding is protobuf.
    OSError
        If the file cannot be written.
    """
    with OtlpWriter(path, encoding=encoding, spans_per_message=spans_per_message) as writer:
        writer.write(traces)


def _batches(traces: TraceSet) -> Iterator[tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]]:
    """Cut a capture into batches of spans with their events and links, numbered by span."""
    spans = traces.spans.select(list(schema.SPANS))
    rows = (
        spans.select("trace_id", "span_id")
        .with_row_index("row")
        .unique(["trace_id", "span_id"], keep="first")
    )
    own = traces.events.filter(pl.col("origin") != "log")
    events = _with_rows(own, rows, ["event_index"])
    links = _with_rows(traces.links, rows, [])
    for start in range(0, spans.height, _BATCH):
        part = spans.slice(start, _BATCH)
        order = (
            part.select(
                pl.struct(*ENVELOPE).rank("dense").alias("group"),
                pl.int_range(pl.len()).alias("row"),
            )
            .sort("group", "row")
            .get_column("row")
        )
        place = np.empty(part.height, dtype=np.int64)
        place[order.to_numpy()] = np.arange(part.height)
        yield part[order], _of_part(events, start, place), _of_part(links, start, place)


def _with_rows(table: pl.DataFrame, rows: pl.DataFrame, order: list[str]) -> pl.DataFrame:
    if table.is_empty():
        return table.with_columns(pl.lit(0, pl.UInt32).alias("row"))
    return (
        table.with_row_index("_position")
        .join(rows, on=["trace_id", "span_id"], how="inner")
        .sort("row", *order, "_position")
        .drop("_position")
    )


def _of_part(table: pl.DataFrame, start: int, place: Index) -> pl.DataFrame:
    rows = table["row"]
    low, high = rows.search_sorted(start), rows.search_sorted(start + len(place))
    part = table.slice(low, high - low)
    if part.is_empty():
        return part
    moved = place[part["row"].to_numpy().astype(np.int64) - start]
    return part.with_columns(pl.Series("row", moved)).sort("row", maintain_order=True)


def _member(name: str, written: pl.Expr, present: pl.Expr) -> pl.Expr:
    """Write ``"name":text,`` where present, else nothing."""
    return pl.when(present).then(pl.lit(f'"{name}":') + written + pl.lit(",")).otherwise(pl.lit(""))


def _text_member(name: str, column: str) -> pl.Expr:
    value = pl.col(column)
    return _member(name, _quoted(value), value.is_not_null() & (value != ""))


def _quoted(value: pl.Expr) -> pl.Expr:
    return pl.lit('"') + value.str.replace_many(_ESCAPED, _ESCAPES) + pl.lit('"')


_ESCAPED: Final = [chr(code) for code in (*range(0x20), ord('"'), ord("\\"))]
_ESCAPES: Final = [json.dumps(char)[1:-1] for char in _ESCAPED]


def _time_member(name: str, column: str) -> pl.Expr:
    value = pl.col(column)
    written = pl.lit('"') + value.cast(pl.Int64).cast(pl.String) + pl.lit('"')
    return _member(name, written, value.is_not_null())


def _count_member(name: str, column: str) -> pl.Expr:
    value = pl.col(column)
    return _member(name, value.cast(pl.String), value.fill_null(0) != 0)


def _array_member(name: str, column: str) -> pl.Expr:
    return _member(name, pl.col(column), pl.col(column) != "[]")


def _object(*members: pl.Expr) -> pl.Expr:
    """Join members into an object; every member ends in a comma."""
    joined = pl.concat_str(*members)
    return pl.lit("{") + joined.str.strip_suffix(",") + pl.lit("}")


def _json_texts(spans: pl.DataFrame, events: pl.DataFrame, links: pl.DataFrame) -> pl.Series:
    """Write each span as OTLP JSON."""
    event_texts = events.with_columns(
        AttributePairs(events["attributes"]).otlp_json().alias("attributes")
    ).select(
        _object(
            _time_member("timeUnixNano", "time"),
            _text_member("name", "name"),
            _array_member("attributes", "attributes"),
            _count_member("droppedAttributesCount", "dropped_attributes_count"),
        )
    )
    link_texts = links.with_columns(
        AttributePairs(links["attributes"]).otlp_json().alias("attributes")
    ).select(
        _object(
            _text_member("traceId", "linked_trace_id"),
            _text_member("spanId", "linked_span_id"),
            _text_member("traceState", "trace_state"),
            _array_member("attributes", "attributes"),
            _count_member("droppedAttributesCount", "dropped_attributes_count"),
            _count_member("flags", "flags"),
        )
    )
    return (
        spans.with_columns(
            AttributePairs(spans["attributes"]).otlp_json().alias("attributes"),
            _arrays_of(event_texts, events, spans.height).alias("events"),
            _arrays_of(link_texts, links, spans.height).alias("links"),
            enum_numbers_of("kind", schema.KINDS).alias("kind"),
            enum_numbers_of("status_code", schema.STATUS_CODES).alias("status_code"),
        )
        .with_columns(
            _object(
                _count_member("code", "status_code"), _text_member("message", "status_message")
            ).alias("status")
        )
        .select(
            _object(
                _text_member("traceId", "trace_id"),
                _text_member("spanId", "span_id"),
                _text_member("traceState", "trace_state"),
                _text_member("parentSpanId", "parent_span_id"),
                _count_member("flags", "flags"),
                _text_member("name", "name"),
                _count_member("kind", "kind"),
                _time_member("startTimeUnixNano", "start_time"),
                _time_member("endTimeUnixNano", "end_time"),
                _array_member("attributes", "attributes"),
                _count_member("droppedAttributesCount", "dropped_attributes_count"),
                _array_member("events", "events"),
                _count_member("droppedEventsCount", "dropped_events_count"),
                _array_member("links", "links"),
                _count_member("droppedLinksCount", "dropped_links_count"),
                _member("status", pl.col("status"), pl.col("status") != "{}"),
            )
        )
        .to_series()
    )


def _arrays_of(texts: pl.DataFrame, rows: pl.DataFrame, n_owners: int) -> pl.Series:
    return joined_arrays(texts.to_series(), rows["row"].to_numpy().astype(np.int64), n_owners)


def _envelope_texts(spans: pl.DataFrame) -> pl.DataFrame:
    """Write what stands before and behind the spans of each row's resource and scope."""
    written = spans.with_columns(
        AttributePairs(spans["resource_attributes"]).otlp_json().alias("resource_attributes"),
        AttributePairs(spans["scope_attributes"]).otlp_json().alias("scope_attributes"),
    )
    resource = _object(
        _array_member("attributes", "resource_attributes"),
        _count_member("droppedAttributesCount", "resource_dropped_attributes_count"),
    )
    scope = _object(
        _text_member("name", "scope_name"),
        _text_member("version", "scope_version"),
        _array_member("attributes", "scope_attributes"),
        _count_member("droppedAttributesCount", "scope_dropped_attributes_count"),
    )
    closing = {
        column: pl.when(pl.col(column).is_not_null())
        .then(pl.lit(',"schemaUrl":') + _quoted(pl.col(column)))
        .otherwise(pl.lit(""))
        for column in ("scope_schema_url", "resource_schema_url")
    }
    return written.select(
        pl.concat_str(
            pl.lit('{"resourceSpans":[{"resource":'),
            resource,
            pl.lit(',"scopeSpans":[{"scope":'),
            scope,
            pl.lit(',"spans":['),
        ).alias("before"),
        pl.concat_str(
            pl.lit("]"),
            closing["scope_schema_url"],
            pl.lit("}]"),
            closing["resource_schema_url"],
            pl.lit("}]}"),
        ).alias("behind"),
    )


def _json_messages(
    spans: pl.DataFrame, events: pl.DataFrame, links: pl.DataFrame, spans_per_message: int
) -> Iterator[bytes]:
    texts = _json_texts(spans, events, links)
    bounds = message_bounds(spans, spans_per_message)
    firsts = spans[[start for start, _ in bounds]]
    for (start, stop), (before, behind) in zip(
        bounds, _envelope_texts(firsts).iter_rows(), strict=True
    ):
        yield f"{before}{','.join(texts[start:stop].to_list())}{behind}".encode()
