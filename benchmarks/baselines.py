"""What a competent user would write without tracelab: the same columns, one span at a time.

Each function takes a file of the benchmark and a folder, writes SPANS and EVENTS as Parquet
there (where it says so), and returns the number of spans it saw.
"""

import base64
from pathlib import Path

import orjson
import polars as pl
import pyarrow.json as pj
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tracelab import schema, semconv

_KINDS = dict(enumerate(schema.KINDS))
_CODES = dict(enumerate(schema.STATUS_CODES))
_LIFTED = list(semconv.SPAN_ATTRIBUTES.items())
_RESOURCE = list(semconv.RESOURCE_ATTRIBUTES.items())
_EXCEPTION = [(column, keys[0]) for column, keys in semconv.EXCEPTION_ATTRIBUTES.items()]
_INTEGERS = {"thread_id", "http_response_status_code", "resend_count", "process_pid"}
_UTC = pl.Datetime("ns", "UTC")


class _Columns:
    """Lists that grow side by side and become Parquet."""

    def __init__(self) -> None:
        self.spans = {name: [] for name in schema.SPANS}
        self.events = {name: [] for name in schema.EVENTS}

    def write(self, folder: Path) -> int:
        for name, columns, like in (
            ("spans", self.spans, schema.SPANS),
            ("events", self.events, schema.EVENTS),
        ):
            table = pl.DataFrame(
                {
                    column: pl.Series(
                        values, dtype=pl.Int64 if like[column] == _UTC else like[column]
                    )
                    for column, values in columns.items()
                }
            ).with_columns(pl.col(column).cast(_UTC) for column in like if like[column] == _UTC)
            table.write_parquet(folder / f"{name}.parquet")
        return len(self.spans["name"])


def _lift(attributes: dict, wanted: list) -> dict:
    made = {}
    for column, keys in wanted:
        value = None
        for key in keys:
            if key in attributes:
                value = attributes[key]
                break
        if value is not None:
            if column in _INTEGERS:
                value = int(value) if str(value).lstrip("-").isdigit() else None
            elif isinstance(value, list):
                value = ",".join(map(str, value))
            elif not isinstance(value, str):
                value = str(value)
        made[column] = value
    return made


def _proto_value(value):
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_proto_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _proto_value(pair.value) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return {"bytes": base64.b64encode(value.bytes_value).decode()}
    return getattr(value, kind)


def _proto_attributes(pairs) -> dict:
    return {pair.key: _proto_value(pair.value) for pair in pairs}


def _text(attributes: dict) -> str:
    return orjson.dumps(attributes).decode()


def loop_over_proto(path: Path, folder: Path) -> int:
    """Read length-prefixed messages by opentelemetry-proto, span by span, into Parquet."""
    made = _Columns()
    with path.open("rb") as file:
        while head := file.read(4):
            message = file.read(int.from_bytes(head, "big"))
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(message)
            for owner in request.resource_spans:
                resource = _proto_attributes(owner.resource.attributes)
                by_resource = {
                    **_lift(resource, _RESOURCE),
                    "resource_attributes": _text(resource),
                    "resource_dropped_attributes_count": owner.resource.dropped_attributes_count,
                    "resource_schema_url": owner.schema_url or None,
                    "source": path.name,
                }
                for group in owner.scope_spans:
                    scope = group.scope
                    envelope = {
                        **by_resource,
                        "scope_name": scope.name or None,
                        "scope_version": scope.version or None,
                        "scope_attributes": _text(_proto_attributes(scope.attributes)),
                        "scope_dropped_attributes_count": scope.dropped_attributes_count,
                        "scope_schema_url": group.schema_url or None,
                    }
                    for span in group.spans:
                        _add_proto_span(made, envelope, span)
    return made.write(folder)


def _add_proto_span(made: _Columns, envelope: dict, span) -> None:
    attributes = _proto_attributes(span.attributes)
    start, end, flags = span.start_time_unix_nano, span.end_time_unix_nano, span.flags
    status = span.status
    trace_id, span_id = span.trace_id.hex(), span.span_id.hex()
    row = {
        **envelope,
        **_lift(attributes, _LIFTED),
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_span_id": span.parent_span_id.hex() or None,
        "trace_state": span.trace_state or None,
        "flags": flags,
        "parent_is_remote": bool(flags & 0x200) if flags & 0x100 else None,
        "name": span.name,
        "kind": _KINDS.get(span.kind, str(span.kind)),
        "start_time": start or None,
        "end_time": end or None,
        "duration_ns": end - start if start and end else None,
        "status_code": _CODES.get(status.code, str(status.code)),
        "status_message": status.message or None,
        "attributes": _text(attributes),
        "dropped_attributes_count": span.dropped_attributes_count,
        "dropped_events_count": span.dropped_events_count,
        "dropped_links_count": span.dropped_links_count,
    }
    for name, column in made.spans.items():
        column.append(row[name])
    for index, event in enumerate(span.events):
        told = _proto_attributes(event.attributes)
        _add_event(
            made,
            trace_id,
            span_id,
            index,
            event.time_unix_nano,
            event.name,
            told,
            event.dropped_attributes_count,
        )


def _add_event(made, trace_id, span_id, index, time, name, told, dropped) -> None:
    escaped = told.get("exception.escaped")
    row = {
        "trace_id": trace_id,
        "span_id": span_id,
        "event_index": index,
        "time": time or None,
        "name": name,
        "attributes": _text(told),
        "dropped_attributes_count": dropped,
        "origin": "span_event",
        **{column: told.get(key) for column, key in _EXCEPTION},
    }
    row["exception_escaped"] = None if escaped is None else str(escaped).lower() == "true"
    for column, values in made.events.items():
        values.append(row[column])


def _json_value(value):
    if "stringValue" in value:
        return value["stringValue"]
    if "intValue" in value:
        return int(value["intValue"])
    if "boolValue" in value:
        return value["boolValue"]
    if "doubleValue" in value:
        return value["doubleValue"]
    if "arrayValue" in value:
        return [_json_value(item) for item in value["arrayValue"].get("values", ())]
    if "kvlistValue" in value:
        return _json_attributes(value["kvlistValue"].get("values", ()))
    if "bytesValue" in value:
        return {"bytes": value["bytesValue"]}
    return None


def _json_attributes(pairs) -> dict:
    return {pair["key"]: _json_value(pair.get("value", {})) for pair in pairs}


def loop_over_json(path: Path, folder: Path) -> int:
    """Read JSON lines by orjson, span by span, into Parquet."""
    made = _Columns()
    with path.open("rb") as file:
        for line in file:
            for owner in orjson.loads(line)["resourceSpans"]:
                told = owner.get("resource", {})
                resource = _json_attributes(told.get("attributes", ()))
                by_resource = {
                    **_lift(resource, _RESOURCE),
                    "resource_attributes": _text(resource),
                    "resource_dropped_attributes_count": told.get("droppedAttributesCount", 0),
                    "resource_schema_url": owner.get("schemaUrl") or None,
                    "source": path.name,
                }
                for group in owner.get("scopeSpans", ()):
                    scope = group.get("scope", {})
                    attributes = _json_attributes(scope.get("attributes", ()))
                    envelope = {
                        **by_resource,
                        "scope_name": scope.get("name") or None,
                        "scope_version": scope.get("version") or None,
                        "scope_attributes": _text(attributes),
                        "scope_dropped_attributes_count": scope.get("droppedAttributesCount", 0),
                        "scope_schema_url": group.get("schemaUrl") or None,
                    }
                    for span in group.get("spans", ()):
                        _add_json_span(made, envelope, span)
    return made.write(folder)


def _add_json_span(made: _Columns, envelope: dict, span: dict) -> None:
    get = span.get
    attributes = _json_attributes(get("attributes", ()))
    start, end = int(get("startTimeUnixNano", 0)), int(get("endTimeUnixNano", 0))
    flags, status = get("flags", 0), get("status", {})
    code, kind = status.get("code", 0), get("kind", 0)
    trace_id, span_id = get("traceId", "").lower(), get("spanId", "").lower()
    row = {
        **envelope,
        **_lift(attributes, _LIFTED),
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_span_id": get("parentSpanId") or None,
        "trace_state": get("traceState") or None,
        "flags": flags,
        "parent_is_remote": bool(flags & 0x200) if flags & 0x100 else None,
        "name": get("name", ""),
        "kind": _KINDS.get(kind, str(kind)),
        "start_time": start or None,
        "end_time": end or None,
        "duration_ns": end - start if start and end else None,
        "status_code": _CODES.get(code, str(code)),
        "status_message": status.get("message") or None,
        "attributes": _text(attributes),
        "dropped_attributes_count": get("droppedAttributesCount", 0),
        "dropped_events_count": get("droppedEventsCount", 0),
        "dropped_links_count": get("droppedLinksCount", 0),
    }
    for name, column in made.spans.items():
        column.append(row[name])
    for index, event in enumerate(get("events", ())):
        _add_event(
            made,
            trace_id,
            span_id,
            index,
            int(event.get("timeUnixNano", 0)),
            event.get("name", ""),
            _json_attributes(event.get("attributes", ())),
            event.get("droppedAttributesCount", 0),
        )


def parse_json_by_orjson(path: Path, _folder: Path) -> int:
    """Only parse, with orjson; nothing is built."""
    with path.open("rb") as file:
        return sum(
            len(group["spans"])
            for line in file
            for owner in orjson.loads(line)["resourceSpans"]
            for group in owner["scopeSpans"]
        )


def parse_json_by_pyarrow(path: Path, _folder: Path) -> int:
    """Only parse, with Arrow's reader, all cores, 4 MB blocks; nothing is flattened."""
    table = pj.read_json(path, read_options=pj.ReadOptions(use_threads=True, block_size=1 << 22))
    owners = table.column(0).combine_chunks().flatten()
    return len(owners.field("scopeSpans").flatten().field("spans").flatten())


def query_json_by_duckdb(path: Path, _folder: Path) -> int:
    """Count the spans by DuckDB's reader, which builds them all."""
    import duckdb

    query = """
        SELECT count(s.name), count(s.attributes), count(s.startTimeUnixNano)
        FROM (
            SELECT unnest(g.spans) AS s FROM (
                SELECT unnest(o.scopeSpans) AS g FROM (
                    SELECT unnest(resourceSpans) AS o
                    FROM read_json(?, format = 'newline_delimited', maximum_object_size = 67108864)
                )
            )
        )
    """
    return int(duckdb.execute(query, [str(path)]).fetchone()[0])
