"""Any dialect of OTLP JSON to the canonical one, and that to protobuf.

Which fields there are is read from opentelemetry-proto's descriptors. Dialects differ in
key case (camelCase, snake_case), in old names (``instrumentationLibrarySpans``, ``batches``),
in how 64-bit integers, enums and ids are written. The canonical form is the one of the OTLP
specification: camelCase, hex ids, integer enums, 64-bit integers as decimal strings.
"""

import base64
import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from tracelab.io.wire import FIXED32, FIXED64, LEN, VARINT, Signal, varint

MAX_DEPTH: Final = 100
_ID_LENGTHS: Final = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*")
_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "resource_spans": ("batches",),
    "scope_spans": ("instrumentationLibrarySpans", "instrumentation_library_spans"),
    "scope_logs": ("instrumentationLibraryLogs", "instrumentation_library_logs"),
    "scope_metrics": ("instrumentationLibraryMetrics", "instrumentation_library_metrics"),
    "scope": ("instrumentationLibrary", "instrumentation_library"),
}
_LEAVES: Final = {"spans", "log_records", "metrics"}
_ROOTS: Final[dict[Signal, Descriptor]] = {
    "traces": trace_pb2.TracesData.DESCRIPTOR,
    "logs": logs_pb2.LogsData.DESCRIPTOR,
    "metrics": metrics_pb2.MetricsData.DESCRIPTOR,
}
_D: Final = FieldDescriptor
_RANGES: Final = {
    _D.TYPE_UINT64: (0, 2**64 - 1),
    _D.TYPE_FIXED64: (0, 2**64 - 1),
    _D.TYPE_INT64: (-(2**63), 2**63 - 1),
    _D.TYPE_SINT64: (-(2**63), 2**63 - 1),
    _D.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    _D.TYPE_UINT32: (0, 2**32 - 1),
    _D.TYPE_FIXED32: (0, 2**32 - 1),
    _D.TYPE_INT32: (-(2**31), 2**31 - 1),
    _D.TYPE_SINT32: (-(2**31), 2**31 - 1),
    _D.TYPE_ENUM: (-(2**31), 2**31 - 1),
}
_WIDE: Final = {_D.TYPE_UINT64, _D.TYPE_FIXED64, _D.TYPE_INT64, _D.TYPE_SFIXED64, _D.TYPE_SINT64}


@dataclass
class Losses:
    """What could not be taken over from one message.

    Parameters
    ----------
    rows : list of tuple of str
        Reason and excerpt.
    leaves : int
        Spans, log records or metrics that were left out.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    leaves: int = 0

    def add(self, reason: str, value: Any) -> None:
        """Note one loss."""
        self.rows.append((reason, repr(value)[:200]))


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of a message, as far as JSON and the wire need it."""

    name: str
    json_name: str
    type: int
    repeated: bool
    message: str
    number: int
    enum: dict[str, int]
    choice: str
    """Name of the group of fields of which only one can be set; empty outside of any."""


@cache
def _fields(message: str) -> dict[str, _Field]:
    """Return the fields of a message by every key that may stand for them."""
    found = {}
    for item in _descriptors()[message].fields:
        names = (
            {value.name: value.number for value in item.enum_type.values}
            if item.enum_type is not None
            else {}
        )
        one = _Field(
            item.name,
            item.json_name,
            item.type,
            item.is_repeated,
            "" if item.message_type is None else item.message_type.full_name,
            item.number,
            {**names, **{_short(name): number for name, number in names.items()}},
            "" if item.containing_oneof is None else item.containing_oneof.name,
        )
        for key in (item.json_name, item.name, *_ALIASES.get(item.name, ())):
            found[key] = one
    return found


def _short(name: str) -> str:
    """Cut the prefix off an enum's name: ``SPAN_KIND_SERVER`` is ``SERVER``."""
    for prefix in ("SPAN_KIND_", "STATUS_CODE_", "AGGREGATION_TEMPORALITY_", "SEVERITY_NUMBER_"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


@cache
def _descriptors() -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}

    def visit(descriptor: Descriptor) -> None:
        if descriptor.full_name not in found:
            found[descriptor.full_name] = descriptor
            for item in descriptor.fields:
                if item.message_type is not None:
                    visit(item.message_type)

    for root in _ROOTS.values():
        visit(root)
    return found


@cache
def enum_numbers(name: str) -> dict[str, int]:
    """Return the numbers of an OTLP enum by its names, with and without prefix.

    Parameters
    ----------
    name : str
        E.g. ``SpanKind``.

    Returns
    -------
    dict of str to int

    Raises
    ------
    KeyError
        If OTLP has no such enum.
    """
    for descriptor in _descriptors().values():
        for item in descriptor.fields:
            if item.enum_type is not None and item.enum_type.name == name:
                return dict(_fields(descriptor.full_name)[item.name].enum)
    raise KeyError(name)


def parse_json(message: bytes, losses: Losses) -> Any:
    """Parse one JSON message with everything that only a lenient reader accepts.

    ``NaN``, lone surrogates (they become U+FFFD) and invalid UTF-8 (likewise) are taken;
    of a key that stands twice in an object the last value is kept. All but ``NaN`` is noted.

    Parameters
    ----------
    message : bytes
        One JSON document.
    losses : Losses
        Takes what was lost.

    Returns
    -------
    Any
        The document.

    Raises
    ------
    ValueError
        If it is no JSON.
    RecursionError
        If it is nested too deep for the parser.
    """
    try:
        text = message.decode()
    except UnicodeDecodeError as error:
        text = message.decode(errors="replace")
        losses.add("invalid UTF-8; the bytes in question became U+FFFD", str(error))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            losses.add(f"duplicate JSON key {', '.join(twice)}; the last value is kept", "")
        return made

    return json.loads(text, object_pairs_hook=unique)


def canonical_request(document: Any, losses: Losses | None = None) -> dict[str, Any]:
    """Bring an export request of any dialect into canonical OTLP JSON.

    Parameters
    ----------
    document : Any
        A parsed export request: traces, logs, metrics, or several of them.
    losses : Losses, optional
        Takes what had to be left out; a field that cannot be read costs only itself.

    Returns
    -------
    dict
        With ``resourceSpans``, ``resourceLogs``, ``resourceMetrics`` as far as they are there.

    Raises
    ------
    ValueError
        If the document is no JSON object, or holds none of these three.
    """
    losses = losses or Losses()
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    made: dict[str, Any] = {}
    for root in _ROOTS.values():
        made.update(_message(document, root.full_name, losses, 0))
    if not made and not any(
        key in _fields(root.full_name) for root in _ROOTS.values() for key in document
    ):
        raise ValueError("no resourceSpans, resourceLogs or resourceMetrics in it")
    return made


def _message(value: dict[str, Any], name: str, losses: Losses, depth: int) -> dict[str, Any]:
    fields = _fields(name)
    made: dict[str, Any] = {}
    for key, part in value.items():
        one = fields.get(key)
        if one is None or part is None:
            continue
        try:
            read = (
                _repeated(part, one, losses, depth)
                if one.repeated
                else _single(part, one, losses, depth)
            )
        except ValueError as error:
            losses.add(f"{one.json_name}: {error}; left out", part)
            continue
        if one.choice:
            _unset_others(made, one, fields, losses)
        if one.repeated and one.json_name in made:
            made[one.json_name] += read
        else:
            made[one.json_name] = read
    return made


def _unset_others(
    made: dict[str, Any], one: _Field, fields: dict[str, _Field], losses: Losses
) -> None:
    """Of fields of which only one can be set, the last is kept."""
    for other in [key for key in made if fields[key].choice == one.choice]:
        losses.add(f"{other} beside {one.json_name}; the last is kept", made.pop(other))


def _repeated(part: Any, one: _Field, losses: Losses, depth: int) -> list[Any]:
    if not isinstance(part, list):
        raise ValueError("not an array")
    made: list[Any] = []
    for item in part:
        try:
            if item is None and one.type != _D.TYPE_MESSAGE:
                raise ValueError("null")
            if item is None and one.message.endswith(".AnyValue"):
                made.append({})
                continue
            made.append(_single(item, one, losses, depth))
        except ValueError as error:
            losses.add(f"an item of {one.json_name}: {error}; left out", item)
            losses.leaves += one.name in _LEAVES
    return made


def _single(part: Any, one: _Field, losses: Losses, depth: int) -> Any:
    if one.type == _D.TYPE_MESSAGE:
        if not isinstance(part, dict):
            raise ValueError("not an object")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        return _message(part, one.message, losses, depth + 1)
    if one.type == _D.TYPE_STRING:
        return _text(part, one, losses)
    if one.type == _D.TYPE_BYTES:
        if one.name not in _ID_LENGTHS:
            return _bytes(part)
        if not isinstance(part, str):
            raise ValueError("not a text")
        return _id(_text(part, one, losses), _ID_LENGTHS[one.name])
    if one.type == _D.TYPE_BOOL:
        return _boolean(part)
    if one.type == _D.TYPE_DOUBLE:
        return _double(part)
    if one.type == _D.TYPE_ENUM and isinstance(part, str) and not part.lstrip("-").isdigit():
        if part not in one.enum:
            raise ValueError("unknown name")
        return one.enum[part]
    number = _integer(part)
    low, high = _RANGES[one.type]
    if not low <= number <= high:
        raise ValueError(f"{number} does not fit its type")
    return str(number) if one.type in _WIDE else number


def _text(part: Any, one: _Field, losses: Losses) -> str:
    if isinstance(part, str):
        if not part.isascii() and any("\ud800" <= char <= "\udfff" for char in part):
            losses.add(f"{one.json_name}: lone surrogate became U+FFFD", part)
            return part.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return part
    if isinstance(part, (dict, list)):
        raise ValueError("not a text")
    losses.add(f"{one.json_name}: not a text; read as one", part)
    return json.dumps(part)


def _id(part: str, size: int) -> str:
    """Read an id as hex; base64 only where its length says so."""
    if len(part) != 2 * size and len(part) == 4 * -(-size // 3):
        try:
            decoded = base64.b64decode(part, validate=True)
        except ValueError:
            return part
        if len(decoded) == size:
            return decoded.hex()
    return part.lower() if _HEX.fullmatch(part) else part


def _bytes(part: Any) -> str:
    if not isinstance(part, str):
        raise ValueError("not a text")
    plain = part.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        decoded = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise ValueError("not base64") from None
    return base64.b64encode(decoded).decode()


def _boolean(part: Any) -> bool:
    if isinstance(part, bool):
        return part
    if part in ("true", "false"):
        return bool(part == "true")
    raise ValueError("not a boolean")


def _integer(part: Any) -> int:
    if isinstance(part, bool):
        raise ValueError("not an integer")
    if isinstance(part, int):
        return part
    if isinstance(part, str) and re.fullmatch(r"[+-]?[0-9]{1,40}", part.strip()):
        return int(part)
    if isinstance(part, (float, str)):
        number = _double(part)
        if math.isfinite(number) and number == int(number) and abs(number) <= 2**53:
            return int(number)
    raise ValueError("not an integer")


def _double(part: Any) -> float:
    if isinstance(part, bool) or not isinstance(part, (int, float, str)):
        raise ValueError("not a number")
    try:
        return float(part)
    except (ValueError, OverflowError):
        raise ValueError("not a number") from None


@dataclass
class Ids:
    """Ids that are no hex, which protobuf cannot carry: they are put back after decoding.

    Parameters
    ----------
    kept : list of tuple
        Message type, running number among its rows, field, the id as it came.
    rows : dict
        Number of rows so far of each message type that has ids.
    """

    kept: list[tuple[str, int, str, str]] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)


def encode_request(request: dict[str, Any], ids: Ids) -> Iterator[tuple[Signal, bytes]]:
    """Write a canonical request as protobuf, one message for each signal in it.

    Parameters
    ----------
    request : dict
        What `canonical_request` returned.
    ids : Ids
        Takes ids that are no hex.

    Yields
    ------
    signal : {"traces", "logs", "metrics"}
    message : bytes

    Raises
    ------
    Nothing of its own.
    """
    for signal, root in _ROOTS.items():
        name = root.fields[0].json_name
        if name in request:
            yield signal, _encode_message({name: request[name]}, root.full_name, ids)


def encode_value(value: dict[str, Any]) -> tuple[str, bytes]:
    """Write a canonical AnyValue that holds an array, a map or bytes as protobuf.

    Parameters
    ----------
    value : dict
        ``arrayValue``, ``kvlistValue`` or ``bytesValue``.

    Returns
    -------
    field : str
        Name of the AnyValue's field.
    content : bytes
        What stands in that field.

    Raises
    ------
    KeyError
        If it is a plain value.
    """
    if "bytesValue" in value:
        return "bytes_value", base64.b64decode(value["bytesValue"])
    package = "opentelemetry.proto.common.v1"
    if "arrayValue" in value:
        return "array_value", _encode_message(value["arrayValue"], f"{package}.ArrayValue", Ids())
    return "kvlist_value", _encode_message(value["kvlistValue"], f"{package}.KeyValueList", Ids())


def _encode_message(value: dict[str, Any], message: str, ids: Ids) -> bytes:
    fields = _fields(message)
    parts: list[bytes] = []
    counted = message.rsplit(".", 1)[-1] in ("Span", "Link", "LogRecord")
    row = 0
    if counted:
        row = ids.rows.get(message, 0)
        ids.rows[message] = row + 1
    for key, part in value.items():
        one = fields[key]
        if counted and one.name in _ID_LENGTHS and not _HEX.fullmatch(part):
            ids.kept.append((message, row, one.name, part))
            continue
        items = part if one.repeated else (part,)
        parts += [_encode_field(item, one, ids) for item in items]
    return b"".join(parts)


def _encode_field(item: Any, one: _Field, ids: Ids) -> bytes:
    if one.type == _D.TYPE_MESSAGE:
        body = _encode_message(item, one.message, ids)
    elif one.type == _D.TYPE_STRING:
        body = item.encode()
    elif one.type == _D.TYPE_BYTES:
        body = (
            bytes.fromhex(item if _HEX.fullmatch(item) else "")
            if one.name in _ID_LENGTHS
            else base64.b64decode(item)
        )
    else:
        kind, write = _NUMBERS[one.type]
        return varint(one.number << 3 | kind) + write(item)
    return varint(one.number << 3 | LEN) + varint(len(body)) + body


def _varint(item: Any) -> bytes:
    return varint(int(item) & (2**64 - 1))


_NUMBERS: Final[dict[int, tuple[int, Callable[[Any], bytes]]]] = {
    _D.TYPE_DOUBLE: (FIXED64, lambda item: struct.pack("<d", item)),
    _D.TYPE_FIXED64: (FIXED64, lambda item: struct.pack("<Q", int(item))),
    _D.TYPE_SFIXED64: (FIXED64, lambda item: struct.pack("<q", int(item))),
    _D.TYPE_FIXED32: (FIXED32, lambda item: struct.pack("<I", item)),
    _D.TYPE_BOOL: (VARINT, _varint),
    _D.TYPE_ENUM: (VARINT, _varint),
    _D.TYPE_INT64: (VARINT, _varint),
    _D.TYPE_UINT64: (VARINT, _varint),
    _D.TYPE_INT32: (VARINT, _varint),
    _D.TYPE_UINT32: (VARINT, _varint),
    _D.TYPE_SINT64: (VARINT, lambda item: varint((int(item) << 1) ^ (int(item) >> 63))),
    _D.TYPE_SINT32: (VARINT, lambda item: varint((item << 1) ^ (item >> 31))),
}
