"""Read the Collector's files with the standard library, apart from tracelab's own readers.

The lab's truth must not lean on the code that it will judge, so this reader is slow, small and
knows only the forms that the lab writes.
"""

import gzip
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backports import zstd
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass
class ExportedSpan:
    """One span of an export, as plain values."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: int
    start_ns: int
    end_ns: int
    flags: int
    status: int
    service: str
    instance: str
    host: str | None
    attributes: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)


def _value(value: dict[str, Any]) -> Any:
    for key, inner in value.items():
        return int(inner) if key == "intValue" else inner
    return None


def _attributes(pairs: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {pair["key"]: _value(pair.get("value", {})) for pair in pairs or []}


def _spans(request: dict[str, Any]) -> Iterator[ExportedSpan]:
    for resource_spans in request.get("resourceSpans", []):
        resource = _attributes(resource_spans.get("resource", {}).get("attributes"))
        for scope in resource_spans.get("scopeSpans", []):
            for span in scope.get("spans", []):
                yield ExportedSpan(
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_span_id=span.get("parentSpanId") or None,
                    name=span.get("name", ""),
                    kind=span.get("kind", 0),
                    start_ns=int(span.get("startTimeUnixNano", 0)),
                    end_ns=int(span.get("endTimeUnixNano", 0)),
                    flags=int(span.get("flags", 0)),
                    status=span.get("status", {}).get("code", 0),
                    service=resource.get("service.name", ""),
                    instance=resource.get("service.instance.id", ""),
                    host=resource.get("host.name"),
                    attributes=_attributes(span.get("attributes")),
                    events=[event.get("name", "") for event in span.get("events", [])],
                )


def _from_proto(message: bytes) -> dict[str, Any]:
    """Turn a protobuf message into the shape of OTLP JSON, with hex ids."""
    import base64

    request = MessageToDict(TracesData.FromString(message), use_integers_for_enums=True)
    for resource in request.get("resourceSpans", []):
        for scope in resource.get("scopeSpans", []):
            for span in scope.get("spans", []):
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = base64.b64decode(span[key]).hex()
    return request


def _frames(data: bytes) -> Iterator[bytes]:
    position = 0
    while position + 4 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        yield data[position + 4 : position + 4 + length]
        position += 4 + length


def read_requests(path: Path) -> Iterator[dict[str, Any]]:
    """Give each export request of one file as OTLP JSON."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if data[:4] == ZSTD:
        data = zstd.decompress(data)
    if not data:
        return
    if data[:1] == b"{":
        for line in io.BytesIO(data):
            yield json.loads(line)
        return
    for frame in _frames(data):
        message = zstd.decompress(frame) if frame[:4] == ZSTD else frame
        yield json.loads(message) if message[:1] == b"{" else _from_proto(message)


def read_counter(run: Path, name: str) -> float:
    """Give the highest value that a counter reached in a run's metrics, over all its series."""
    values = [0.0]
    for request in read_requests(run / "metrics.jsonl.gz"):
        for resource in request.get("resourceMetrics", []):
            for scope in resource.get("scopeMetrics", []):
                for metric in scope.get("metrics", []):
                    if metric["name"] == name:
                        points = metric.get("sum", {}).get("dataPoints", [])
                        values += [
                            float(point.get("asInt", point.get("asDouble", 0))) for point in points
                        ]
    return max(values)


def export_files(run: Path) -> list[Path]:
    """Give the files of a run that hold traces, in order."""
    return sorted(path for path in run.iterdir() if path.name.startswith("traces"))


def read_spans(run: Path) -> list[ExportedSpan]:
    """Read all spans of a run's trace files."""
    return [
        span
        for path in export_files(run)
        for request in read_requests(path)
        for span in _spans(request)
    ]
