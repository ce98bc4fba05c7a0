"""Jaeger's own JSON into OTLP JSON.

The rules are those of Jaeger's own translation to OTLP: tags become attributes, ``span.kind``,
``error`` and ``otel.*`` tags become fields, logs become events, processes become resources.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

_KINDS: Final = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
_STATUS: Final = {"OK": 1, "ERROR": 2}
_NS_PER_US: Final = 1000
_INT64: Final = 2**63
_MOST_DIGITS: Final = 20

Json = dict[str, Any]


def jaeger_request(trace: Mapping[str, Any]) -> Json:
    """Translate one trace.

    Parameters
    ----------
    trace : mapping
        An element of ``data``: ``traceID``, ``spans``, ``processes``, ``warnings``.

    Returns
    -------
    dict
        An export request as OTLP JSON. Span warnings stand in the attribute
        ``@jaeger@warnings``, the trace's own on each of its spans' resources. Fields that
        are not what Jaeger writes are passed on as they are, to be judged by the decoder.

    Raises
    ------
    Nothing of its own.
    """
    processes = _mapping(trace.get("processes"))
    groups: dict[tuple[str, str, str], list[Any]] = {}
    resources: dict[str, Json] = {}
    entries = trace.get("spans")
    for span in entries if isinstance(entries, list) else []:
        if not isinstance(span, Mapping):
            # Passed on as it is: the decoder says what it is not.
            resources.setdefault("", {})
            groups.setdefault(("", "", ""), []).append(span)
            continue
        process = span.get("process")
        key = str(span.get("processID", "")) if process is None else json.dumps(process)
        if key not in resources:
            found = _mapping(processes.get(key) if process is None else process)
            resources[key] = _resource(found, trace.get("warnings"))
        converted, scope = _span(span, str(trace.get("traceID", "")))
        groups.setdefault((key, *scope), []).append(converted)
    by_process: dict[str, list[Json]] = {}
    for (key, name, version), spans in groups.items():
        scope_spans: Json = {"spans": spans}
        if name or version:
            scope_spans["scope"] = {"name": name, "version": version}
        by_process.setdefault(key, []).append(scope_spans)
    return {
        "resourceSpans": [
            {"resource": resources[key], "scopeSpans": scopes} for key, scopes in by_process.items()
        ]
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects of an array."""
    entries = value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _resource(process: Mapping[str, Any], warnings: Any) -> Json:
    attributes = []
    name = process.get("serviceName")
    if name not in (None, ""):
        attributes.append({"key": "service.name", "value": {"stringValue": str(name)}})
    attributes += [
        _attribute(tag) for tag in _objects(process.get("tags")) if tag.get("key") != "service.name"
    ]
    if isinstance(warnings, list) and warnings:
        attributes.append(_warnings(warnings))
    return {"attributes": attributes}


def _warnings(warnings: Iterable[Any]) -> Json:
    values = [{"stringValue": str(warning)} for warning in warnings]
    return {"key": "@jaeger@warnings", "value": {"arrayValue": {"values": values}}}


def _attribute(tag: Mapping[str, Any]) -> Json:
    return {"key": str(tag.get("key", "")), "value": _value(tag)}


def _value(tag: Mapping[str, Any]) -> Json:
    """Give the declared type its way where the value fits, and keep the value as text else."""
    value, kind = tag.get("value"), tag.get("type")
    if kind == "int64" and _is_integer(value):
        return {"intValue": str(value)}
    if kind == "float64" and isinstance(value, int | float) and not isinstance(value, bool):
        return {"doubleValue": value}
    if kind == "bool" and (isinstance(value, bool) or value in ("true", "false")):
        return {"boolValue": value is True or value == "true"}
    if kind == "binary" and isinstance(value, str):
        return {"bytesValue": value}
    return _plain_value(value)


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        digits = value.removeprefix("-")
        return digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS
    return isinstance(value, int) and not isinstance(value, bool)


def _plain_value(value: Any) -> Json:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case str():
            return {"stringValue": value}
        case None:
            return {}
        case _:
            return {"stringValue": json.dumps(value, ensure_ascii=False)}


def _padded(identifier: Any, width: int) -> str:
    text = "" if identifier is None else str(identifier)
    return text.rjust(width, "0") if text and len(text) < width and _is_hex(text) else text


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)


def _nanoseconds(microseconds: Any) -> int | None:
    """Return a number of microseconds as nanoseconds; None if it is no number."""
    if isinstance(microseconds, bool):
        return None
    if isinstance(microseconds, str) and _is_integer(microseconds):
        microseconds = int(microseconds)
    if isinstance(microseconds, int):
        return microseconds * _NS_PER_US
    if isinstance(microseconds, float) and abs(microseconds) < _INT64:
        return round(microseconds * _NS_PER_US)
    return None


def _as_time(nanoseconds: int | None, value: Any) -> Any:
    """Write a time as OTLP does; what is no time is left for the decoder to judge."""
    return value if nanoseconds is None else str(nanoseconds)


def _span(span: Mapping[str, Any], trace_id: str) -> tuple[Json, tuple[str, str]]:
    own_trace = _padded(span.get("traceID", trace_id), 32)
    parent, links = _references(span, own_trace)
    start, duration = _nanoseconds(span.get("startTime")), _nanoseconds(span.get("duration"))
    told = span.get("duration")
    end = (
        None
        if start is None or (duration is None and told is not None)
        else start + (duration or 0)
    )
    converted: Json = {
        "traceId": own_trace,
        "spanId": _padded(span.get("spanID"), 16),
        "name": str(span.get("operationName", "")),
        "startTimeUnixNano": _as_time(start, span.get("startTime")),
        "endTimeUnixNano": _as_time(end, told if start is not None else None),
        "events": [_event(log) for log in _objects(span.get("logs"))],
        "links": links,
    }
    if parent:
        converted["parentSpanId"] = parent
    if isinstance(span.get("flags"), int) and not isinstance(span.get("flags"), bool):
        converted["flags"] = span["flags"]
    scope = _take_fields(_objects(span.get("tags")), converted)
    warnings = span.get("warnings")
    if isinstance(warnings, list) and warnings:
        converted["attributes"].append(_warnings(warnings))
    return converted, scope


def _references(span: Mapping[str, Any], trace_id: str) -> tuple[str, list[Json]]:
    """Choose the parent: the first child-of of this trace, or an only follows-from."""
    references = [
        (
            _padded(reference.get("traceID", trace_id), 32),
            _padded(reference.get("spanID"), 16),
            str(reference.get("refType", "CHILD_OF")).upper(),
        )
        for reference in _objects(span.get("references"))
    ]
    parent = _padded(span.get("parentSpanID"), 16)
    if parent.strip("0"):
        references.insert(0, (trace_id, parent, "CHILD_OF"))
    else:
        parent = ""
    own = [reference for reference in references if reference[0] == trace_id]
    chosen = next((reference for reference in own if reference[2] == "CHILD_OF"), None)
    if chosen is None and len(references) == 1 and own:
        chosen = own[0]
    others = [reference for reference in dict.fromkeys(references) if reference != chosen]
    links = [
        {
            "traceId": linked_trace,
            "spanId": linked_span,
            "attributes": [{"key": "opentracing.ref_type", "value": {"stringValue": kind.lower()}}],
        }
        for linked_trace, linked_span, kind in others
    ]
    return (chosen[1] if chosen else parent), links


def _take_fields(tags: list[Any], converted: Json) -> tuple[str, str]:
    """Move the tags that OTLP has fields for; the others become attributes."""
    attributes: list[Json] = []
    status: Json = {}
    failed = False
    scope = {"otel.scope.name": "", "otel.scope.version": ""}
    for tag in tags:
        key, value = str(tag.get("key", "")), tag.get("value")
        if key == "span.kind" and isinstance(value, str) and value.lower() in _KINDS:
            converted["kind"] = _KINDS[value.lower()]
        elif key == "otel.status_code" and isinstance(value, str) and value.upper() in _STATUS:
            status["code"] = _STATUS[value.upper()]
        elif key in ("otel.status_description", "otel.status_message") and value is not None:
            status["message"] = str(value)
        elif key == "w3c.tracestate" and isinstance(value, str):
            converted["traceState"] = value
        elif key in ("otel.library.name", "otel.library.version"):
            scope[key.replace("library", "scope")] = str(value)
        elif key in scope:
            scope[key] = str(value)
        else:
            failed |= key == "error" and (value is True or value == "true")
            attributes.append(_attribute(tag))
    if failed:
        status.setdefault("code", 2)
    if status:
        converted["status"] = status
    converted["attributes"] = attributes
    return scope["otel.scope.name"], scope["otel.scope.version"]


def _event(log: Mapping[str, Any]) -> Json:
    """Make an event; its name is the field ``event``, as OpenTracing has it."""
    fields = _objects(log.get("fields"))
    named = next((field for field in fields if field.get("key") == "event"), None)
    return {
        "timeUnixNano": _as_time(_nanoseconds(log.get("timestamp")), log.get("timestamp")),
        "name": "" if named is None else str(named.get("value", "")),
        "attributes": [_attribute(field) for field in fields if field is not named],
    }
