"""Export requests built with opentelemetry-proto, and every container form they come in."""

import base64
import gzip
import json
import sys

from google.protobuf import json_format
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

START = 1_700_000_000_000_000_000
_IDS = {"traceId", "spanId", "parentSpanId"}
_ENUMS = {"kind", "code", "severityNumber", "aggregationTemporality"}


def trace_request(spans, *, service="shop", scope="lib"):
    """Build a request out of dicts of span fields (``events`` and ``links`` are counts)."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    if service is not None:
        _attribute(resource_spans.resource.attributes, "service.name", service)
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = scope
    for fields in spans:
        _add_span(scope_spans, **fields)
    return request


def _add_span(
    scope_spans, trace=1, span=1, parent=0, name="work", start=START, took=1_000,
    kind=2, failed=False, events=0, links=0, attributes=(),
):  # fmt: skip
    target = scope_spans.spans.add()
    target.trace_id = trace.to_bytes(16, "big")
    target.span_id = span.to_bytes(8, "big")
    if parent:
        target.parent_span_id = parent.to_bytes(8, "big")
    target.name = name
    target.kind = kind
    target.start_time_unix_nano = start
    target.end_time_unix_nano = start + took
    target.status.code = 2 if failed else 0
    for key, value in attributes:
        _attribute(target.attributes, key, value)
    for number in range(events):
        event = target.events.add(name="exception", time_unix_nano=start + number)
        _attribute(event.attributes, "exception.type", f"Error{number}")
    for number in range(links):
        target.links.add(trace_id=bytes([7]) * 16, span_id=bytes([number + 1]) * 8)


def _attribute(attributes, key, value):
    entry = attributes.add(key=key)
    match value:
        case bool():
            entry.value.bool_value = value
        case int():
            entry.value.int_value = value
        case float():
            entry.value.double_value = value
        case bytes():
            entry.value.bytes_value = value
        case list():
            entry.value.array_value.SetInParent()
            for element in value:
                entry.value.array_value.values.add(string_value=element)
        case _:
            entry.value.string_value = value


def log_request(*, trace=1, span=1, time=START + 5, exception="Boom", message="no", n=1):
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    _attribute(resource_logs.resource.attributes, "service.name", "shop")
    scope_logs = resource_logs.scope_logs.add()
    for number in range(n):
        record = scope_logs.log_records.add(
            time_unix_nano=time + number, severity_number=17, severity_text="ERROR"
        )
        record.body.string_value = "it failed"
        if trace:
            record.trace_id = trace.to_bytes(16, "big")
            record.span_id = span.to_bytes(8, "big")
        if exception:
            _attribute(record.attributes, "exception.type", exception)
            _attribute(record.attributes, "exception.message", message)
    return request


def metric_request(*, value=1.5, time=START):
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    _attribute(resource_metrics.resource.attributes, "service.name", "shop")
    metric = resource_metrics.scope_metrics.add().metrics.add(name="queue.size", unit="1")
    metric.gauge.data_points.add(as_double=value, time_unix_nano=time)
    return request


def as_json(request, *, indent=None):
    """Encode as OTLP JSON: hex ids, integer enums."""
    document = json_format.MessageToDict(request, use_integers_for_enums=True)
    separators = None if indent else (",", ":")
    return json.dumps(_hex_ids(document), indent=indent, separators=separators).encode()


def _hex_ids(value):
    if isinstance(value, list):
        return [_hex_ids(element) for element in value]
    if isinstance(value, dict):
        return {
            key: base64.b64decode(entry).hex() if key in _IDS else _hex_ids(entry)
            for key, entry in value.items()
        }
    return value


def framed(bodies):
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


def zstd_frames(data, parts=1):
    step = max(1, -(-len(data) // parts))
    return b"".join(
        zstd.compress(data[place : place + step]) for place in range(0, len(data) or 1, step)
    )


def _gzip_members(data):
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


COMPRESSIONS = {
    "none": lambda data: data,
    "zstd": zstd.compress,
    "zstd many frames": lambda data: zstd_frames(data, 3),
    "gzip": gzip.compress,
    "gzip members": _gzip_members,
    "zstd in gzip": lambda data: gzip.compress(zstd.compress(data)),
}

LAYOUTS = {
    "json lines": lambda requests: b"".join(as_json(each) + b"\n" for each in requests),
    "json lines without last end": lambda requests: b"\n".join(map(as_json, requests)),
    "json lines with CRLF": lambda requests: b"".join(as_json(each) + b"\r\n" for each in requests),
    "json documents": lambda requests: b"\n".join(as_json(each, indent=2) for each in requests),
    "json array": lambda requests: b"[" + b",".join(map(as_json, requests)) + b"]",
    "json one after another": lambda requests: b"".join(map(as_json, requests)),
    "proto frames": lambda requests: framed(each.SerializeToString() for each in requests),
    "proto request": lambda requests: b"".join(each.SerializeToString() for each in requests),
    "zstd per message, proto": lambda requests: framed(
        zstd.compress(each.SerializeToString()) for each in requests
    ),
    "zstd per message, json": lambda requests: framed(
        zstd.compress(as_json(each)) for each in requests
    ),
}

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_values = st.one_of(
    _texts,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(max_size=6),
    st.lists(_texts, max_size=3),
)
_spans = st.fixed_dictionaries(
    {
        "trace": st.integers(1, 3),
        "span": st.integers(1, 6),
        "parent": st.integers(0, 6),
        "name": _texts,
        "start": st.integers(START, START + 1_000_000),
        "took": st.integers(0, 1_000),
        "kind": st.integers(0, 5),
        "failed": st.booleans(),
        "events": st.integers(0, 2),
        "links": st.integers(0, 2),
        "attributes": st.lists(
            st.tuples(st.sampled_from(["a", "b", "thread.id", "http.route"]), _values),
            max_size=3,
            unique_by=lambda pair: pair[0],
        ),
    }
)
requests = st.lists(
    st.builds(
        trace_request,
        st.lists(_spans, min_size=1, max_size=4),
        service=st.sampled_from([None, "shop", "stock"]),
    ),
    min_size=1,
    max_size=5,
)
"""Lists of trace requests, often with spans that share ids, sometimes equal ones."""


def spoil(data, where, kind, noise, *, zeros=40):
    """Change bytes at a place that is told as a share of their number."""
    place = int(where * len(data))
    size = len(noise)
    head, tail = data[:place], data[place:]
    match kind:
        case "flip":
            data = head + noise + tail[size:]
        case "cut":
            data = head or data
        case "drop":
            data = head + tail[size * 3 :]
        case "insert":
            data = head + noise + tail
        case "repeat":
            data = head + tail[: size * 9] + tail
        case "zero":
            data = head + bytes(size * zeros) + tail[size:]
    return data
