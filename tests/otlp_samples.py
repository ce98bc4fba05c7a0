"""Random OTLP requests, hostile ones included, and blocks of them."""

import base64
import json

import numpy as np
from google.protobuf import json_format
from hypothesis import strategies as st
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from tracelab import semconv
from tracelab.io.chunk import Block

KNOWN_KEYS = sorted(
    {key for keys in semconv.SPAN_ATTRIBUTES.values() for key in keys}
    | {key for keys in semconv.RESOURCE_ATTRIBUTES.values() for key in keys}
    | {key for keys in semconv.EXCEPTION_ATTRIBUTES.values() for key in keys}
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    [
        "",
        '"',
        "\\",
        "\x00",
        "\n\t\r",
        "é€😀",
        "\u2028",
        "true",
        "200",
        " 7 ",
        "x" * 300,
        '{"a":1}',
        "[",
    ]
)
keys = st.sampled_from(KNOWN_KEYS) | texts
counts = st.sampled_from([0, 1, 2**32 - 1])
times = st.sampled_from([0, 1, 1_700_000_000_000_000_000, 2**63 - 1, 2**63, 2**64 - 1])
trace_ids = st.binary(min_size=16, max_size=16) | st.sampled_from([b"", bytes(16), b"abc"])
span_ids = st.binary(min_size=8, max_size=8) | st.sampled_from([b"", bytes(8), b"\xff"])
flags = st.sampled_from([0, 1, 0x100, 0x101, 0x300, 0x301, 2**32 - 1])

values = st.recursive(
    st.builds(common_pb2.AnyValue)
    | st.builds(common_pb2.AnyValue, string_value=texts)
    | st.builds(common_pb2.AnyValue, bool_value=st.booleans())
    | st.builds(common_pb2.AnyValue, int_value=st.integers(-(2**63), 2**63 - 1))
    | st.builds(common_pb2.AnyValue, double_value=st.floats())
    | st.builds(
        common_pb2.AnyValue, double_value=st.sampled_from([0.0, -0.0, 3.0, 1e16, 1e-7, 5e-324])
    )
    | st.builds(common_pb2.AnyValue, bytes_value=st.binary(max_size=5)),
    lambda inner: (
        st.builds(
            lambda items: common_pb2.AnyValue(array_value=common_pb2.ArrayValue(values=items)),
            st.lists(inner, max_size=3),
        )
        | st.builds(
            lambda items: common_pb2.AnyValue(kvlist_value=common_pb2.KeyValueList(values=items)),
            st.lists(st.builds(common_pb2.KeyValue, key=texts, value=inner), max_size=3),
        )
    ),
    max_leaves=4,
)
attributes = st.lists(st.builds(common_pb2.KeyValue, key=keys, value=values), max_size=4)
events = st.builds(
    trace_pb2.Span.Event,
    time_unix_nano=times,
    name=st.sampled_from(["exception", "error", "", "ünï"]),
    attributes=attributes,
    dropped_attributes_count=counts,
)
links = st.builds(
    trace_pb2.Span.Link,
    trace_id=trace_ids,
    span_id=span_ids,
    trace_state=texts,
    attributes=attributes,
    dropped_attributes_count=counts,
    flags=flags,
)
spans = st.builds(
    trace_pb2.Span,
    trace_id=trace_ids,
    span_id=span_ids,
    parent_span_id=span_ids,
    trace_state=texts,
    flags=flags,
    name=texts,
    kind=st.integers(0, 7),
    start_time_unix_nano=times,
    end_time_unix_nano=times,
    attributes=attributes,
    dropped_attributes_count=counts,
    events=st.lists(events, max_size=2),
    dropped_events_count=counts,
    links=st.lists(links, max_size=2),
    dropped_links_count=counts,
    status=st.none() | st.builds(trace_pb2.Status, message=texts, code=st.integers(0, 4)),
)


def _group(name, version, pairs, dropped, members, url):
    made = trace_pb2.ScopeSpans(spans=members, schema_url=url)
    if name is not None:
        made.scope.name, made.scope.version = name, version
        made.scope.attributes.extend(pairs)
        made.scope.dropped_attributes_count = dropped
    return made


def _owner(pairs, dropped, groups, url):
    made = trace_pb2.ResourceSpans(scope_spans=groups, schema_url=url)
    if pairs is not None:
        made.resource.attributes.extend(pairs)
        made.resource.dropped_attributes_count = dropped
    return made


groups = st.builds(
    _group, st.none() | texts, texts, attributes, counts, st.lists(spans, max_size=3), texts
)
owners = st.builds(_owner, st.none() | attributes, counts, st.lists(groups, max_size=2), texts)
requests = st.builds(trace_pb2.TracesData, resource_spans=st.lists(owners, max_size=2))


def block_of(messages, encoding="proto", gap=b""):
    lengths = np.array([len(message) for message in messages], dtype=np.int64)
    starts = np.cumsum(lengths + len(gap)) - lengths
    buffer = b"".join(gap + message for message in messages)
    lines = np.arange(1, len(messages) + 1) if encoding == "json" else None
    return Block(encoding, buffer, starts, lengths, starts, lines)


def json_document(request):
    """Canonical OTLP JSON of a request, by protobuf's own JSON writer."""

    def with_hex(item):
        if isinstance(item, dict):
            return {
                key: base64.b64decode(part).hex()
                if key in ("traceId", "spanId", "parentSpanId")
                else with_hex(part)
                for key, part in item.items()
            }
        if isinstance(item, list):
            return [with_hex(part) for part in item]
        return item

    return with_hex(json_format.MessageToDict(request, use_integers_for_enums=True))


def json_message(request):
    return json.dumps(json_document(request), ensure_ascii=False).encode()
