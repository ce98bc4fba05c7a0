"""What other tools put around OTLP JSON, and taking it off.

Top-level values are cut out as raw bytes, so that a wrapped message costs one pass of a
native parser and no copy of its spans as objects.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tracelab.io.jaeger import jaeger_request

REQUEST: Final = re.compile(
    rb'\{[ \t\r\n]*"resource(?:Spans|_spans|Logs|_logs|Metrics|_metrics)"[ \t\r\n]*:'
)
"""Where an export request begins in JSON text."""

PLAIN: Final = re.compile(rb"[ \t\r\n]*" + REQUEST.pattern)
"""Beginning of an export request that needs nothing taken off."""

KNOWN: Final = re.compile(
    rb'"(?:resource(?:Spans|_spans|Logs|_logs|Metrics|_metrics)|(?:scope|instrumentationLibrary)'
    rb"(?:Spans|Logs|Metrics)|(?:scope|instrumentation_library)_(?:spans|logs|metrics)|batches"
    rb'|traceID)"[ \t\r\n]*:'
)
"""A key that only exports have; used where a message is too long to be looked at as a whole."""

_REQUEST_KEYS: Final = frozenset(
    f"resource{word}" for word in ("Spans", "_spans", "Logs", "_logs", "Metrics", "_metrics")
)
_BARE_KEYS: Final = {
    "scopeSpans": "resourceSpans",
    "scope_spans": "resourceSpans",
    "instrumentationLibrarySpans": "resourceSpans",
    "instrumentation_library_spans": "resourceSpans",
    "scopeLogs": "resourceLogs",
    "scope_logs": "resourceLogs",
    "instrumentationLibraryLogs": "resourceLogs",
    "instrumentation_library_logs": "resourceLogs",
    "scopeMetrics": "resourceMetrics",
    "scope_metrics": "resourceMetrics",
    "instrumentationLibraryMetrics": "resourceMetrics",
    "instrumentation_library_metrics": "resourceMetrics",
}
_MAX_DEPTH: Final = 4
_SHOWN_KEYS: Final = 6


class NotAnExportError(ValueError):
    """A JSON value that is no export in any known wrapping."""


class BrokenJsonError(NotAnExportError):
    """Text that is no JSON value."""


@dataclass(frozen=True, slots=True)
class Request:
    """One export request, unwrapped.

    Parameters
    ----------
    body : bytes
        OTLP JSON in any dialect, or empty where there is only a `note`.
    wrapping : str
        Form it came in.
    note : str, optional
        What the wrapping says about its content and the reader should know.
    """

    body: bytes
    wrapping: str
    note: str | None = None


def unwrap(message: bytes) -> list[Request]:
    """Take the wrapping off a JSON value.

    Parameters
    ----------
    message : bytes
        One JSON value.

    Returns
    -------
    list of Request
        One per export request inside; empty for an array without elements.

    Raises
    ------
    NotAnExportError
        If it is broken JSON, or no export.
    """
    return list(_unwrap(message, _MAX_DEPTH))


def is_json(text: bytes) -> bool:
    """Tell whether a text is one JSON value."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _unwrap(message: bytes, depth: int) -> Iterator[Request]:
    if PLAIN.match(message):
        yield Request(message, "otlp-json")
        return
    value = _split(message)
    if isinstance(value, list):
        if depth == 0:
            raise NotAnExportError("nested too deep")
        for element in value:
            yield from _unwrap(element, depth - 1)
        return
    yield from _unwrap_object(message, value, depth)


def _unwrap_object(message: bytes, value: dict[str, bytes], depth: int) -> Iterator[Request]:
    if not value or not _REQUEST_KEYS.isdisjoint(value):
        yield Request(message, "otlp-json")
        return
    if "spans" in value and ("processes" in value or "traceID" in value):
        yield Request(_json_of(jaeger_request(_objects(message))), "jaeger-json")
        return
    for key, wanted in _BARE_KEYS.items():
        if key in value:
            yield Request(b'{"%s":[%s]}' % (wanted.encode(), message), "otlp-json-bare")
            return
    if "batches" in value:
        yield Request(b'{"resourceSpans":%s}' % value["batches"], "tempo-json")
        return
    for key, wrapping in (("trace", "tempo-json"), ("result", "jaeger-v3-json"), ("data", None)):
        if depth and key in value and value[key][:1] in (b"{", b"["):
            for request in _unwrap(value[key], depth - 1):
                yield request if wrapping is None else Request(request.body, wrapping)
            if key == "trace":
                yield from _partial(value)
            return
    keys = ", ".join(list(value)[:_SHOWN_KEYS])
    raise NotAnExportError(f"a JSON object with the keys {keys}, which is no known export")


def _json_of(request: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(request)
    except UnicodeEncodeError:
        # A lone surrogate stays escaped, for the decoder to judge.
        return json.dumps(request).encode()


def _partial(value: dict[str, bytes]) -> Iterator[Request]:
    status = value.get("status", b'"COMPLETE"')
    if status in (b'"PARTIAL"', b"1"):
        text = json.loads(value.get("message", b'""').decode("utf-8", "replace"))
        yield Request(b"", "tempo-json", f"Tempo calls this trace partial: {str(text)[:200]}")


def _split(message: bytes) -> dict[str, bytes] | list[bytes]:
    """Cut the top level of a JSON value into the raw bytes of its members."""
    first = message.lstrip()[:1]
    kind: Any = list[msgspec.Raw] if first == b"[" else dict[str, msgspec.Raw]
    try:
        value = msgspec.json.decode(message, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        loose = _loose(message, error)
        if isinstance(loose, list):
            return [json.dumps(element).encode() for element in loose]
        return {key: json.dumps(element).encode() for key, element in loose.items()}
    if isinstance(value, list):
        return [bytes(element) for element in value]
    return {key: bytes(element) for key, element in value.items()}


def _loose(message: bytes, error: Exception) -> dict[str, Any] | list[Any]:
    """Decode what only the standard library accepts: NaN, Infinity, lone surrogates."""
    try:
        value = json.loads(message.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise BrokenJsonError(f"broken JSON: {error}") from error
    if not isinstance(value, dict | list):
        raise NotAnExportError(f"a JSON {type(value).__name__}, which is no export") from error
    return value


def _objects(message: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        value = _loose(message, error)
    assert isinstance(value, dict)
    return value
