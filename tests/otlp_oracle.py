"""A slow plain twin of the decoder: one loop over opentelemetry-proto's own objects."""

import base64
import json
import math

import otlp_lenient as lenient
from opentelemetry.proto.trace.v1 import trace_pb2

from tracelab import schema, semconv

INT64_MAX = 2**63 - 1


def value_of(value, depth=0):
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind in ("array_value", "kvlist_value"):
        inner = getattr(value, kind)
        if isinstance(inner, bytes):  # a lenient twin: what is nested is decoded one by one
            inner = lenient.nested(kind, inner, depth)
        if inner is None:
            return None
        if kind == "kvlist_value":
            return attributes_of(inner.values, depth + 1)
        return [value_of(item, depth + 1) for item in inner.values]
    if kind == "string_value":
        return text_of(value.string_value)
    if kind == "bytes_value":
        return {"bytes": base64.b64encode(value.bytes_value).decode()}
    plain = getattr(value, kind)
    if isinstance(plain, float) and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain


def text_of(text):
    """Text as it is, or bytes read as text with U+FFFD for what is none."""
    return text if isinstance(text, str) else lenient.text(text)


def id_of(identifier):
    """Bytes as hex; an id of JSON that is no hex stands as it came."""
    return identifier if isinstance(identifier, str) else identifier.hex()


def attributes_of(pairs, depth=0):
    made = {}
    for pair in pairs:
        key = text_of(pair.key)
        made.pop(key, None)
        made[key] = value_of(pair.value, depth)
    return made


def _kinds_of(pairs):
    return {text_of(pair.key): pair.value.WhichOneof("value") for pair in pairs}


def first(attributes, keys, *, raw):
    """Value of the first key that stands, as the lifted columns show it."""
    for key in keys:
        if key in attributes:
            value = attributes[key]
            break
    else:
        return None
    if raw.get(key) == "double_value" and isinstance(value, str):
        return {"NaN": "NaN", "Infinity": "inf", "-Infinity": "-inf"}[value]
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value


def span_rows(messages, source="x"):
    return request_rows(map(trace_pb2.TracesData.FromString, messages), source)


def request_rows(requests, source="x"):
    """Rows of spans, events and links of requests, whatever decoded them."""
    rows, events, links = [], [], []
    for request in requests:
        for owner in request.resource_spans:
            for group in owner.scope_spans:
                for span in group.spans:
                    rows.append(_span(owner, group, span, source))
                    ids = rows[-1]["trace_id"], rows[-1]["span_id"]
                    events += [_event(*ids, index, one) for index, one in enumerate(span.events)]
                    links += [_link(*ids, one) for one in span.links]
    return rows, events, links


def _time(nanoseconds):
    return None if nanoseconds == 0 or nanoseconds > INT64_MAX else nanoseconds


def _remote(flags):
    return bool(flags & 0x200) if flags & 0x100 else None


def _word(number, words):
    return words[number] if 0 <= number < len(words) else str(number)


def _parent(identifier):
    text = id_of(identifier)
    return None if text in ("", "0" * 16) else text


def _span(owner, group, span, source):
    start, end = _time(span.start_time_unix_nano), _time(span.end_time_unix_nano)
    return {
        "trace_id": id_of(span.trace_id),
        "span_id": id_of(span.span_id),
        "parent_span_id": _parent(span.parent_span_id),
        "trace_state": text_of(span.trace_state) or None,
        "flags": span.flags,
        "parent_is_remote": _remote(span.flags),
        "name": text_of(span.name),
        "kind": _word(span.kind, schema.KINDS),
        "start_time": start,
        "end_time": end,
        "duration_ns": None if start is None or end is None else end - start,
        "status_code": _word(span.status.code, schema.STATUS_CODES),
        "status_message": text_of(span.status.message) or None,
        "scope_name": text_of(group.scope.name) or None,
        "scope_version": text_of(group.scope.version) or None,
        "attributes": attributes_of(span.attributes),
        "resource_attributes": attributes_of(owner.resource.attributes),
        "scope_attributes": attributes_of(group.scope.attributes),
        "dropped_attributes_count": span.dropped_attributes_count,
        "dropped_events_count": span.dropped_events_count,
        "dropped_links_count": span.dropped_links_count,
        "resource_dropped_attributes_count": owner.resource.dropped_attributes_count,
        "scope_dropped_attributes_count": group.scope.dropped_attributes_count,
        "source": source,
        "resource_schema_url": text_of(owner.schema_url) or None,
        "scope_schema_url": text_of(group.schema_url) or None,
        **_lifted(span.attributes, semconv.SPAN_ATTRIBUTES),
        **_lifted(owner.resource.attributes, semconv.RESOURCE_ATTRIBUTES),
    }


INTEGERS = {"thread_id", "http_response_status_code", "resend_count", "process_pid"}


def _lifted(pairs, wanted):
    attributes = attributes_of(pairs)
    raw = _kinds_of(pairs)
    made = {}
    for column, keys in wanted.items():
        value = first(attributes, keys, raw=raw)
        if column in INTEGERS:
            made[column] = _integer(value)
        else:
            made[column] = _text(value)
    return made


def _integer(value):
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value == int(value) and abs(value) < 1e15 else None
    try:
        number = int(str(value).strip().removesuffix(".0"))
    except ValueError:
        return None
    return number if -INT64_MAX - 1 <= number <= INT64_MAX else None


def _text(value):
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _event(trace_id, span_id, index, event):
    attributes = attributes_of(event.attributes)
    raw = _kinds_of(event.attributes)
    made = {
        "trace_id": trace_id,
        "span_id": span_id,
        "event_index": index,
        "time": _time(event.time_unix_nano),
        "name": text_of(event.name),
        "attributes": attributes,
        "dropped_attributes_count": event.dropped_attributes_count,
        "origin": "span_event",
    }
    for column, keys in semconv.EXCEPTION_ATTRIBUTES.items():
        spellings = keys if made["name"] == "error" else keys[:1]
        told = [key for key in spellings if attributes.get(key) is not None]
        made[column] = _text(first(attributes, told, raw=raw))
    escaped = (made["exception_escaped"] or "").lower()
    made["exception_escaped"] = {"true": True, "false": False}.get(escaped)
    return made


def _link(trace_id, span_id, link):
    return {
        "trace_id": trace_id,
        "span_id": span_id,
        "linked_trace_id": id_of(link.trace_id),
        "linked_span_id": id_of(link.span_id),
        "trace_state": text_of(link.trace_state) or None,
        "flags": link.flags,
        "linked_is_remote": _remote(link.flags),
        "attributes": attributes_of(link.attributes),
        "dropped_attributes_count": link.dropped_attributes_count,
    }


def same_json(text, value):
    """Tell whether a text holds a value: same order of keys, integers apart from doubles."""

    def ordered(item):
        if isinstance(item, dict):
            return [(key, ordered(part)) for key, part in item.items()]
        if isinstance(item, list):
            return [ordered(part) for part in item]
        return (type(item).__name__, item)

    return ordered(json.loads(text)) == ordered(value)
