"""What a lenient reader may keep of damaged requests, told slowly by Google's own decoders.

Protobuf: twins of opentelemetry-proto's descriptors in which text is bytes, and arrays and maps
inside of a value are bytes too, so that neither costs its message; and a plain walk over a broken
message, leaf by leaf. JSON: the standard library's parser, and OTLP's mapping field by field.
"""

import base64
import json
import math
import re
from functools import cache

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

MAX_DEPTH = 100
_FIELD = descriptor_pb2.FieldDescriptorProto


class Losses:
    """Counts what a twin's rows lack: text that was no UTF-8, values that were broken or too deep."""

    count = 0
    foreign = False
    """Whether a part was refused that holds what only other versions of protobuf have."""


# --- protobuf -----------------------------------------------------------------------------


@cache
def _pool():
    pool = descriptor_pool.DescriptorPool()
    for module in (common_pb2, resource_pb2, trace_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            _loosen(message)
        pool.Add(file)
    return pool


_NOT_READ = {"entity_refs", "string_value_strindex", "key_strindex"}


def _loosen(message):
    kept = [field for field in message.field if field.name not in _NOT_READ]
    del message.field[:]
    message.field.extend(kept)
    for field in message.field:
        nested = message.name == "AnyValue" and field.type == _FIELD.TYPE_MESSAGE
        if nested or field.type == _FIELD.TYPE_STRING:
            field.type = _FIELD.TYPE_BYTES
            field.ClearField("type_name")
    for inner in message.nested_type:
        _loosen(inner)


@cache
def twin(name):
    """Class of the lenient twin of a message, e.g. ``trace.v1.Span``."""
    return message_factory.GetMessageClass(
        _pool().FindMessageTypeByName(f"opentelemetry.proto.{name}")
    )


def nested(kind, content, depth):
    """Decode an array or map inside of a value; None if it is broken."""
    name = {"array_value": "ArrayValue", "kvlist_value": "KeyValueList"}[kind]
    made = None if depth >= MAX_DEPTH else _part(f"common.v1.{name}", content)
    Losses.count += made is None
    Losses.foreign |= made is None and is_foreign(content, twin(f"common.v1.{name}").DESCRIPTOR)
    return made


def text(content):
    """Read bytes as text, with U+FFFD for what is none."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        Losses.count += 1
        return content.decode(errors="replace")


def _decoded(kind, content):
    try:
        return kind.FromString(content)
    except DecodeError:
        return None


def _part(name, content):
    """Decode a part of a broken message, as `whole_request` does the whole."""
    kind = twin(name)
    made = _decoded(kind, content)
    if made is None:
        made = _decoded(kind, _shortest(content, kind.DESCRIPTOR))
        Losses.foreign |= made is None and is_foreign(content, kind.DESCRIPTOR)
    return made


def whole_request(message):
    """Decode a request as the twin; None if it is broken.

    Google's decoder takes no length of more than five bytes, others do: it is asked again about
    the message with each number as short as it can be.
    """
    kind = twin("trace.v1.TracesData")
    request = _decoded(kind, message)
    if request is None:
        short = _shortest(message, kind.DESCRIPTOR)
        request = None if short == message else _decoded(kind, short)
    return request


def _shortest(message, descriptor):
    """Write a message's lengths in as few bytes as they need, as deep as it can be read."""
    parts = []
    for number, kind, start, stop, whole in _fields(message, 0, len(message)):
        if not whole:
            return message
        content = message[start:stop]
        if kind == 2:
            field = descriptor.fields_by_number.get(number)
            if field is not None and field.message_type is not None:
                content = _shortest(content, field.message_type)
            content = _as_varint(len(content)) + content
        parts.append(_as_varint(number << 3 | kind) + content)
    return b"".join(parts)


def is_foreign(message, descriptor=trace_pb2.TracesData.DESCRIPTOR):
    """Tell whether a message has what protobuf 3 has not: groups, field numbers of 2**29 and more."""
    for number, kind, start, stop, _ in _fields(message, 0, len(message), groups=True):
        field = descriptor.fields_by_number.get(number)
        if kind in (3, 4) or number >= 1 << 29:
            return True
        known = kind == 2 and field is not None and field.message_type is not None
        if known and is_foreign(message[start:stop], field.message_type):
            return True
    return False


def _as_varint(value):
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _varint(data, place, end):
    value = 0
    for count in range(10):
        if place >= end:
            return None
        value |= (data[place] & 0x7F) << (7 * count)
        place += 1
        if data[place - 1] < 0x80:
            # As decoders do: what exceeds 64 bits is dropped.
            return value & 0xFFFFFFFFFFFFFFFF, place
    return None


def _fields(data, place, end, *, groups=False):
    """Yield number, wire type, bounds, and whether it is whole; a broken one is the last.

    With `groups`, the wire type of the broken one is told whatever it is; else it is 0 where there
    is no content that may be gone into.
    """
    while place < end:
        tag = _varint(data, place, end)
        if tag is None or tag[0] >> 3 == 0:
            yield 0, 0, end, end, False
            return
        number, kind = tag[0] >> 3, tag[0] & 7
        start, size = tag[1], None
        if kind == 0:
            value = _varint(data, start, end)
            stop = None if value is None else value[1]
        elif kind == 2:
            size = _varint(data, start, end)
            start, stop = (end, None) if size is None else (size[1], size[1] + size[0])
        else:
            stop = {1: start + 8, 5: start + 4}.get(kind)
        if stop is None or stop > end:
            yield number, kind if groups or size is not None else 0, start, end, False
            return
        yield number, kind, start, stop, True
        place = stop


def saved_request(message):
    """Put together what is whole in a broken request; return it and the number of lost spans."""
    request = twin("trace.v1.TracesData")()
    lost = 0
    for number, kind, start, stop, _ in _fields(message, 0, len(message)):
        if number == 1 and kind == 2:
            lost += _save_owner(request.resource_spans.add(), message, start, stop)
    return request, lost


def _save_owner(owner, message, start, stop):
    """Save a resource and its groups; parts that stand twice are laid end to end, as on the wire.

    `MergeFrom` is not the same: there an empty text does not replace one that came before.
    """
    lost, resources = 0, []
    for number, kind, begin, end, whole in _fields(message, start, stop):
        if kind != 2:
            continue
        if number == 2:
            lost += _save_group(owner.scope_spans.add(), message, begin, end)
        elif number == 1 and whole:
            resources.append(message[begin:end])
        elif number == 3 and whole:
            owner.schema_url = message[begin:end]
    _lay_end_to_end(owner.resource, "resource.v1.Resource", resources)
    return lost


def _lay_end_to_end(made, name, contents):
    readable = [content for content in contents if _part(name, content) is not None]
    if readable:
        made.CopyFrom(_part(name, b"".join(readable)))


def _save_group(group, message, start, stop):
    lost, scopes = 0, []
    for number, kind, begin, end, whole in _fields(message, start, stop):
        if number == 2 and kind == 2 and not whole:
            lost += 1
        elif kind != 2 or not whole:
            continue
        elif number == 2:
            span = _part("trace.v1.Span", message[begin:end])
            if span is None:
                lost += 1
            else:
                group.spans.append(span)
        elif number == 1:
            scopes.append(message[begin:end])
        elif number == 3:
            group.schema_url = message[begin:end]
    _lay_end_to_end(group.scope, "common.v1.InstrumentationScope", scopes)
    return lost


# --- JSON ---------------------------------------------------------------------------------

_D = FieldDescriptor
_IDS = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
_ALIASES = {
    "resource_spans": ("batches",),
    "scope_spans": ("instrumentationLibrarySpans", "instrumentation_library_spans"),
    "scope": ("instrumentationLibrary", "instrumentation_library"),
}
_BITS = {
    _D.TYPE_UINT32: (0, 2**32 - 1),
    _D.TYPE_FIXED32: (0, 2**32 - 1),
    _D.TYPE_FIXED64: (0, 2**64 - 1),
    _D.TYPE_INT64: (-(2**63), 2**63 - 1),
    _D.TYPE_INT32: (-(2**31), 2**31 - 1),
    _D.TYPE_ENUM: (-(2**31), 2**31 - 1),
}


class RefusedError(Exception):
    """A value that its field cannot take."""


class Plain:
    """A message as plain attributes, with protobuf's defaults."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self._kind = None

    def __getattr__(self, name):
        field = self._descriptor.fields_by_name[name]
        if field.is_repeated:
            value = []
        elif field.message_type is not None:
            value = Plain(field.message_type)
        else:
            value = b"" if field.type == _D.TYPE_BYTES else field.default_value
        setattr(self, name, value)
        return value

    def WhichOneof(self, _):  # noqa: N802 - protobuf's own name
        return self._kind


@cache
def _keys(descriptor):
    return {
        key: field
        for field in descriptor.fields
        for key in (field.json_name, field.name, *_ALIASES.get(field.name, ()))
    }


class JsonRequest:
    """A request read from JSON: the message, and what had to be left out.

    Raises
    ------
    ValueError, RecursionError
        If there is no request in it.
    """

    def __init__(self, message):
        self.losses = 0
        self.spans_lost = 0
        text = message.decode(errors="replace")
        try:
            message.decode()
        except UnicodeDecodeError:
            self.losses += 1
        document = json.loads(text, object_pairs_hook=self._unique)
        if not isinstance(document, dict):
            raise ValueError("no object")
        roots = ("resourceLogs", "resource_logs", "resourceMetrics", "resource_metrics")
        known = {**_keys(trace_pb2.TracesData.DESCRIPTOR), **dict.fromkeys(roots)}
        if known.keys().isdisjoint(document):
            raise ValueError("no request")
        self.message = self._read(document, trace_pb2.TracesData.DESCRIPTOR, 0)

    def _unique(self, pairs):
        made = dict(pairs)
        self.losses += len(made) < len(pairs)
        return made

    def _read(self, value, descriptor, depth):
        made = Plain(descriptor)
        for key, part in value.items():
            field = _keys(descriptor).get(key)
            if field is None or part is None:
                continue
            try:
                if field.is_repeated:
                    getattr(made, field.name).extend(self._items(part, field, depth))
                else:
                    setattr(made, field.name, self._one(part, field, depth))
                    if field.containing_oneof is not None:
                        self.losses += made._kind not in (None, field.name)
                        made._kind = field.name
            except RefusedError:
                self.losses += 1
        return made

    def _items(self, part, field, depth):
        if not isinstance(part, list):
            raise RefusedError
        made = []
        for item in part:
            try:
                if item is None and field.message_type.name == "AnyValue":
                    made.append(Plain(field.message_type))
                else:
                    made.append(self._one(item, field, depth))
            except RefusedError:
                self.losses += 1
                self.spans_lost += field.name == "spans"
        return made

    def _one(self, part, field, depth):
        match field.type:
            case _D.TYPE_MESSAGE:
                if not isinstance(part, dict) or depth > 100:
                    raise RefusedError
                return self._read(part, field.message_type, depth + 1)
            case _D.TYPE_STRING:
                return self._text(part)
            case _D.TYPE_BYTES:
                if field.name not in _IDS:
                    return _bytes(part)
                if not isinstance(part, str):
                    raise RefusedError
                return _id(self._text(part), _IDS[field.name])
            case _D.TYPE_BOOL:
                if part in ("true", "false") or isinstance(part, bool):
                    return part in ("true", True)
                raise RefusedError
            case _D.TYPE_DOUBLE:
                return _double(part)
            case _D.TYPE_ENUM if isinstance(part, str) and not part.lstrip("-").isdigit():
                for value in field.enum_type.values:
                    if part in (value.name, re.sub("^(SPAN_KIND|STATUS_CODE)_", "", value.name)):
                        return value.number
                raise RefusedError
        number = _integer(part)
        low, high = _BITS[field.type]
        if not low <= number <= high:
            raise RefusedError
        return number

    def _text(self, part):
        if isinstance(part, dict | list):
            raise RefusedError
        if not isinstance(part, str):
            self.losses += 1
            return json.dumps(part)
        clean = part.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        self.losses += clean != part
        return clean


def _id(part, size):
    if len(part) != 2 * size and len(part) == 4 * -(-size // 3):
        try:
            decoded = base64.b64decode(part, validate=True)
        except ValueError:
            return part
        if len(decoded) == size:
            return decoded
    if len(part) % 2 == 0 and all(digit in "0123456789abcdefABCDEF" for digit in part):
        return part.lower()
    return part


def _bytes(part):
    if not isinstance(part, str):
        raise RefusedError
    plain = part.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise RefusedError from None


def _double(part):
    if isinstance(part, bool) or not isinstance(part, int | float | str):
        raise RefusedError
    try:
        return float(part)
    except (ValueError, OverflowError):
        raise RefusedError from None


def _integer(part):
    if isinstance(part, bool):
        raise RefusedError
    if isinstance(part, int):
        return part
    if isinstance(part, str) and re.fullmatch("[+-]?[0-9]{1,40}", part.strip()):
        return int(part)
    number = _double(part)
    if math.isfinite(number) and number == int(number) and abs(number) <= 2**53:
        return int(number)
    raise RefusedError
