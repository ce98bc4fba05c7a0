"""Protobuf's wire format by hand: only for what the native decoder cannot answer.

Which signal a message carries, what can be saved of a message that is broken, and the
``instrumentation_library_spans`` of old senders.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

Signal = Literal["traces", "logs", "metrics"]

VARINT: Final = 0
FIXED64: Final = 1
LEN: Final = 2
FIXED32: Final = 5

_LEGACY_TAG: Final = b"\xc2\x3e"  # field 1000, length-delimited
_SCOPES_TAG: Final = b"\x12"  # field 2, length-delimited

_NO_METRIC: Final = frozenset({4, 13, 15})
"""Fields that a span has and a metric has not: parent_span_id, links, status."""

_SCHEMA_URL: Final = (3, LEN)
"""Of resources and scopes alike. What else stands beside their parts is not read, and may be what
the message is refused for."""

_LEAF_TYPES: Final[dict[Signal, dict[int, int]]] = {
    "traces": {
        **dict.fromkeys((1, 2, 3, 4, 5, 9, 11, 13, 15), LEN),
        **dict.fromkeys((6, 10, 12, 14), VARINT),
        7: FIXED64,
        8: FIXED64,
        16: FIXED32,
    },
    "logs": {
        **dict.fromkeys((3, 5, 6, 9, 10, 12), LEN),
        **dict.fromkeys((2, 7), VARINT),
        1: FIXED64,
        11: FIXED64,
        8: FIXED32,
    },
    "metrics": dict.fromkeys((1, 2, 3, 5, 7, 9, 10, 11, 12), LEN),
}


Check = Callable[[bytes], object]


class WireError(ValueError):
    """A place from which a message cannot be read on."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


def read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Read a varint.

    Parameters
    ----------
    data : bytes
        The memory.
    position, end : int
        Where it begins, and where the memory that may be read ends.

    Returns
    -------
    value, position : int
        The number, of which bits beyond the 64th are dropped, and the place behind it.

    Raises
    ------
    WireError
        If it is cut, or longer than ten bytes.
    """
    value = shift = 0
    start = position
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
        if shift > 63:
            raise WireError(start, "a number of more than ten bytes")
    raise WireError(start, "cut inside a number")


def walk_fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Walk the fields of a message.

    Parameters
    ----------
    data : bytes
        The memory.
    position, end : int
        Bounds of the message.

    Yields
    ------
    number, wire type, start of the tag, start of the value, end of the value

    Raises
    ------
    WireError
        At the first field that does not fit.
    """
    while position < end:
        start = position
        tag, position = read_varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WireError(start, "field number 0")
        if kind == LEN:
            size, position = read_varint(data, position, end)
            stop = position + size
        elif kind == VARINT:
            stop = read_varint(data, position, end)[1]
        elif kind == FIXED64:
            stop = position + 8
        elif kind == FIXED32:
            stop = position + 4
        else:
            raise WireError(start, f"wire type {kind}")
        if stop > end:
            raise WireError(start, f"field {number} reaches {stop - end} bytes beyond its message")
        yield number, kind, start, position, stop
        position = stop


def _first_leaves(data: bytes, limit: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the first leaves (spans, log records or metrics)."""
    found = 0
    for number, kind, _, start, stop in walk_fields(data, 0, len(data)):
        if number != 1 or kind != LEN:
            continue
        for number_2, kind_2, _, start_2, stop_2 in walk_fields(data, start, stop):
            if number_2 not in (2, 1000) or kind_2 != LEN:
                continue
            for number_3, kind_3, _, start_3, stop_3 in walk_fields(data, start_2, stop_2):
                if number_3 == 2 and kind_3 == LEN:
                    yield start_3, stop_3
                    found += 1
                    if found >= limit:
                        return


def message_signal(data: bytes) -> Signal:
    """Tell which signal an export request carries, from the wire types of its first leaves.

    The three kinds of request share their envelope; a span has its times at 7 and 8 as eight
    bytes, a log record at 1 and 11, a metric has only length-delimited fields.

    Parameters
    ----------
    data : bytes
        One message.

    Returns
    -------
    {"traces", "logs", "metrics"}
        ``traces`` where nothing tells (a message without leaves).

    Raises
    ------
    Nothing of its own; a broken message is judged by what can be read of it.
    """
    possible: list[Signal] = ["traces", "logs", "metrics"]
    try:
        for start, stop in _first_leaves(data, 3):
            lengths = {}
            for number, kind, _, at, end in walk_fields(data, start, stop):
                fits = [name for name in possible if _LEAF_TYPES[name].get(number, kind) == kind]
                possible = fits or possible
                if len(possible) == 1:
                    return possible[0]
                lengths[number] = end - at
            if "traces" in possible and lengths.get(1) == 16 and lengths.get(2, 8) == 8:
                return "traces"
            if "metrics" in possible and 1 in lengths and _NO_METRIC.isdisjoint(lengths):
                return "metrics"
    except WireError:
        pass
    return possible[0]


def with_scopes_for_libraries(data: bytes) -> bytes:
    """Rename field 1000 of resources to ``scope_spans`` where they have no ``scope_spans``.

    OTLP 0.15 to 0.18 asked readers to do so.

    Parameters
    ----------
    data : bytes
        A whole trace message.

    Returns
    -------
    bytes
        The message as today's readers want it; as it is if it cannot be walked through.

    Raises
    ------
    Nothing of its own.
    """
    try:
        return _with_scopes(data)
    except WireError:
        return data


def _with_scopes(data: bytes) -> bytes:
    parts = []
    for number, kind, tag, start, stop in walk_fields(data, 0, len(data)):
        if number != 1 or kind != LEN:
            parts.append(data[tag:stop])
            continue
        fields = list(walk_fields(data, start, stop))
        modern = any(number_2 == 2 for number_2, *_ in fields)
        body = b"".join(
            _SCOPES_TAG + varint(stop_2 - start_2) + data[start_2:stop_2]
            if number_2 == 1000 and not modern
            else data[tag_2:stop_2]
            for number_2, _, tag_2, start_2, stop_2 in fields
        )
        parts.append(frame(1, body))
    return b"".join(parts)


def varint(value: int) -> bytes:
    """Write a varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def frame(number: int, body: bytes) -> bytes:
    """Write a length-delimited field."""
    return varint(number << 3 | LEN) + varint(len(body)) + body


@dataclass
class Salvage:
    """What was saved of a broken message.

    Parameters
    ----------
    data : bytes
        A message that holds all leaves that can be read.
    losses : list of tuple
        Position in the broken message, reason, bytes at that place.
    leaves_lost : int
        Leaves that were seen and could not be read.
    """

    data: bytes = b""
    losses: list[tuple[int, str, bytes]] = field(default_factory=list)
    leaves_lost: int = 0


def salvage_message(data: bytes, *, leaf: Check, resource: Check, scope: Check) -> Salvage:
    """Save what can be read of a broken message, leaf by leaf.

    Containers that reach beyond their end are read as far as they go.

    Parameters
    ----------
    data : bytes
        A message that the native decoder refused.
    leaf, resource, scope : callable
        Raise `ValueError` for a part of that kind that is broken.

    Returns
    -------
    Salvage

    Raises
    ------
    Nothing of its own.
    """
    result = Salvage()

    def readable(check: Check, start: int, stop: int, noun: str) -> bool:
        try:
            check(data[start:stop])
        except ValueError as error:
            result.losses.append((start, f"broken {noun}: {error}", data[start:stop][:64]))
            return False
        return True

    def scopes_of(start: int, stop: int) -> bytes:
        def take(number: int, kind: int, tag: int, at: int, end: int) -> bytes:
            if number == 1 and kind == LEN:
                return data[tag:end] if readable(scope, at, end, "scope") else b""
            if number == 2 and kind == LEN:
                if readable(leaf, at, end, "leaf"):
                    return data[tag:end]
                result.leaves_lost += 1
            return data[tag:end] if (number, kind) == _SCHEMA_URL else b""

        return _rebuilt(data, start, stop, take, result, {})

    def owners_of(start: int, stop: int) -> bytes:
        def take(number: int, kind: int, tag: int, at: int, end: int) -> bytes:
            if number == 1 and kind == LEN:
                return data[tag:end] if readable(resource, at, end, "resource") else b""
            return data[tag:end] if (number, kind) == _SCHEMA_URL else b""

        return _rebuilt(data, start, stop, take, result, {2: scopes_of, 1000: scopes_of})

    result.data = _rebuilt(data, 0, len(data), lambda *_: b"", result, {1: owners_of})
    return result


def _rebuilt(
    data: bytes,
    position: int,
    end: int,
    take: Callable[[int, int, int, int, int], bytes],
    result: Salvage,
    inside: dict[int, Callable[[int, int], bytes]],
) -> bytes:
    """Copy the fields that can be read; go into containers, even into one that is cut."""
    parts = []
    while position < end:
        try:
            number, kind, tag, start, stop = next(walk_fields(data, position, end))
        except WireError as error:
            number, start, stop = _cut_container(data, position, end)
            lost_leaf = not inside and number == 2
            result.losses.append(
                (error.position, f"broken message: {error.reason}", data[position : position + 64])
            )
            if number in inside:
                parts.append(frame(number, inside[number](start, stop)))
            elif lost_leaf:
                result.leaves_lost += 1
            break
        if number in inside and kind == LEN:
            parts.append(frame(number, inside[number](start, stop)))
        else:
            parts.append(take(number, kind, tag, start, stop))
        position = stop
    return b"".join(parts)


def _cut_container(data: bytes, position: int, end: int) -> tuple[int, int, int]:
    """Return number and bounds of a length-delimited field that reaches beyond `end`."""
    try:
        tag, position = read_varint(data, position, end)
        if tag & 7 != LEN:
            return 0, end, end
        _, position = read_varint(data, position, end)
    except WireError:
        return 0, end, end
    return tag >> 3, position, end
