"""Export requests drawn by chance, and the ways in which one is spoilt.

Three kinds of change: places of bytes (overwritten, cut, dropped, filled in, repeated, zeroed);
in protobuf a field (its tag, wire type, length, number, place, copies, content), with the lengths
around it kept true or left lying; in JSON a value, key or bracket (another type, depth, size, a
repeated key, text that is no UTF-8). A seed and a number make the same request and change.
"""

import re
import struct
from typing import NamedTuple

from exports import as_json, log_request, metric_request, spoil
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

START = 1_700_000_000_000_000_000
WORDS = (
    "GET /cart", "", "x", "é€😀", 'say "no"\\', "\u2028\x7f", "a" * 40, "200", "true", "[1",
    "\x00\t\n",
)  # fmt: skip
KEYS = (
    "http.route", "http.response.status_code", "thread.id", "thread.name", "db.system",
    "peer.service",
    "k", "", "exception.type", "task.id", "process.pid", "rpc.service", "error.type",
)  # fmt: skip
BYTE_KINDS = ("flip", "flip", "cut", "drop", "insert", "repeat", "zero")


# --- requests -----------------------------------------------------------------------------


def trace_request_by_chance(rng, *, spans=3):
    """Draw a trace request of one to `spans` spans."""
    request = ExportTraceServiceRequest()
    for _ in range(1 if rng.random() < 0.8 else 2):
        owner = request.resource_spans.add()
        owner.resource.attributes.add(key="service.name").value.string_value = "shop"
        _add_attributes(rng, owner.resource.attributes, 1)
        group = owner.scope_spans.add()
        group.scope.name = rng.choice(("lib", ""))
        if rng.random() < 0.3:
            group.scope.version, group.schema_url, owner.schema_url = (
                "1.2",
                "https://s",
                "https://r",
            )
            owner.resource.dropped_attributes_count = rng.randrange(3)
            _add_attributes(rng, group.scope.attributes, 2)
        for _ in range(rng.randint(1, spans)):
            _add_span(rng, group)
    return request


def _add_span(rng, group):
    start = START + rng.randrange(10**9)
    span = group.spans.add(
        trace_id=rng.randbytes(16),
        span_id=rng.randbytes(8),
        name=rng.choice(WORDS),
        kind=rng.choice((0, 1, 2, 3, 5, 9)),
        start_time_unix_nano=start,
        end_time_unix_nano=start + rng.randrange(10**6),
    )
    if rng.random() < 0.6:
        span.parent_span_id = rng.randbytes(8)
    if rng.random() < 0.3:
        span.trace_state, span.flags = "a=b", rng.choice((1, 0x101, 0x301))
        span.dropped_events_count, span.dropped_links_count = rng.randrange(3), rng.randrange(3)
    if rng.random() < 0.4:
        span.status.code, span.status.message = rng.choice((0, 1, 2, 7)), rng.choice(WORDS)
    _add_attributes(rng, span.attributes, 3)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        event = span.events.add(name=rng.choice(("exception", "error", "e")), time_unix_nano=start)
        event.attributes.add(key="exception.type").value.string_value = "Boom"
        _add_attributes(rng, event.attributes, 1)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        link = span.links.add(trace_id=rng.randbytes(16), span_id=rng.randbytes(8), flags=0x301)
        _add_attributes(rng, link.attributes, 1)


def _add_attributes(rng, target, most):
    for key in rng.sample(KEYS, rng.randint(0, most)):
        _fill(rng, target.add(key=key).value, 0)


def _fill(rng, value, depth):
    match rng.randrange(10 if depth < 3 else 6):
        case 0 | 1:
            value.string_value = rng.choice(WORDS)
        case 2:
            value.int_value = rng.choice((0, 200, -1, 2**63 - 1, -(2**63)))
        case 3:
            value.double_value = rng.choice((0.0, -0.0, 3.0, 1e300, 0.1, float("inf"), 1e-7))
        case 4:
            value.bool_value = rng.random() < 0.5
        case 5:
            value.bytes_value = rng.randbytes(rng.randrange(5))
        case 6 | 7:
            value.array_value.SetInParent()
            for _ in range(rng.randrange(3)):
                _fill(rng, value.array_value.values.add(), depth + 1)
        case 8:
            value.kvlist_value.SetInParent()
            for key in rng.sample(KEYS, rng.randrange(3)):
                _fill(rng, value.kvlist_value.values.add(key=key).value, depth + 1)
        case _:
            pass


def requests_by_chance(rng, n, *, traces_only=False):
    """Draw `n` requests, mostly of traces."""
    made = []
    for _ in range(n):
        draw = 1.0 if traces_only else rng.random()
        if draw < 0.1:
            made.append(log_request(span=rng.randrange(1, 99), n=rng.randint(1, 2)))
        elif draw < 0.2:
            made.append(metric_request(value=rng.random()))
        else:
            made.append(trace_request_by_chance(rng))
    return made


# --- bytes --------------------------------------------------------------------------------


def spoil_bytes(rng, data, *, places=4):
    """Change one to `places` places, whatever stands there."""
    for _ in range(rng.randint(1, places)):
        where = rng.random()
        noise = rng.randbytes(rng.choice((1, 1, 1, 2, 4, 8, 24)))
        data = spoil(data, where, rng.choice(BYTE_KINDS), noise, zeros=2)
    return data


# --- protobuf -----------------------------------------------------------------------------


def varint(value):
    """Write a varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


class Field(NamedTuple):
    """A field: where its tag, its content and what is behind it begin, and the fields around it."""

    tag: int
    start: int
    end: int
    number: int
    kind: int
    around: tuple


def fields_of(data, start=0, end=None, around=()):
    """List the fields of a message at every depth where content can be read as fields."""
    end = len(data) if end is None else end
    found = []
    while start < end:
        tag = start
        key, start = read_varint(data, start, end)
        kind = key & 7
        if key >> 3 == 0 or start < 0:
            return None
        if kind == 0:
            _, stop = read_varint(data, start, end)
        elif kind == 2:
            size, start = read_varint(data, start, end)
            stop = start + size
        else:
            stop = start + {1: 8, 5: 4}.get(kind, 1 << 60)
        if start < 0 or stop < 0 or stop > end:
            return None
        field = Field(tag, start, stop, key >> 3, kind, around)
        found.append(field)
        if kind == 2 and stop > start:
            found += fields_of(data, start, stop, (*around, field)) or []
        start = stop
    return found


def read_varint(data, place, end):
    """Return a varint and the place behind it, which is -1 if there is none."""
    value = shift = 0
    while 0 <= place < end and shift < 64:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    return 0, -1


NUMBERS = (0, 1, 2, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
WRONG_TEXT = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x00", b"\xef\xbb\xbf")


def spoil_field(rng, data, fields):
    """Change one field of a protobuf message; `fields` is what `fields_of` says of it."""
    field = rng.choice(fields)
    tag, start, end, number, kind, around = field
    whole, content = data[tag:end], data[start:end]
    key, true = varint(number << 3 | kind), True
    match rng.randrange(15):
        case 0:  # another wire type, the content left as it is
            new = varint(number << 3 | rng.randrange(8)) + data[tag + len(key) : end]
        case 1:  # another field number
            new = varint(rng.choice((0, 1, 2, 3, 5, 15, 16, 1000, 2**29 - 1)) << 3 | kind)
            new += data[tag + len(key) : end]
        case 2:  # another type of the right form
            new = _any_field(rng, number)
        case 3:  # twice
            new = whole + whole
        case 4:  # gone
            new = b""
        case 5:  # a field that nobody knows, before it
            new = _any_field(rng, rng.choice((17, 99, 1000, 2**29 - 1, number))) + whole
        case 6:  # its length lies
            new = key + varint(rng.choice((*NUMBERS, len(content) + 1, max(0, len(content) - 1))))
            new += content
        case 7:  # a length or number that takes more bytes than it needs, or too many
            new = key + _long_varint(rng, len(content)) + content if kind == 2 else whole
            new = key + _long_varint(rng, 1) if kind == 0 else new
        case 8:  # text that is no UTF-8
            place = rng.randint(0, len(content))
            new = content[:place] + rng.choice(WRONG_TEXT) + content[place:]
            new = key + varint(len(new)) + new if kind == 2 else whole
        case 9:  # a number at the edge
            new = _edge_field(rng, number, kind, content)
        case 10:  # put behind its neighbour's copy
            other = rng.choice(fields)
            new = data[other.tag : other.end] + whole
        case 11:  # a group
            new = (
                varint(number << 3 | 3)
                + whole
                + (varint(number << 3 | 4) if rng.random() < 0.7 else b"")
            )
        case 12:  # deep
            new = _deep(rng, number, whole)
        case 13:  # cut, and the lengths around it left lying
            new, true = whole[: rng.randrange(len(whole))], False
        case _:
            new, true = spoil_bytes(rng, whole, places=2), rng.random() < 0.5
    return _put(data, tag, end, new, around if true else ())


def _put(data, low, high, new, around):
    """Put bytes in the place of others, with the lengths of the fields around them made true."""
    for outer in reversed(around):
        content = data[outer.start : low] + new + data[high : outer.end]
        new = varint(outer.number << 3 | 2) + varint(len(content)) + content
        low, high = outer.tag, outer.end
    return data[:low] + new + data[high:]


def _any_field(rng, number):
    kind = rng.choice((0, 1, 2, 2, 5))
    key = varint(number << 3 | kind)
    if kind == 0:
        return key + varint(rng.choice(NUMBERS))
    if kind == 2:
        body = rng.randbytes(rng.choice((0, 1, 8, 16)))
        return key + varint(len(body)) + body
    return key + rng.randbytes(8 if kind == 1 else 4)


def _edge_field(rng, number, kind, content):
    key, value = varint(number << 3 | kind), rng.choice(NUMBERS)
    if kind == 0:
        return key + varint(value)
    if kind == 1:
        edges = (
            value.to_bytes(8, "little"),
            struct.pack("<d", rng.choice((1e308, float("nan"), 5e-324))),
        )
        return key + rng.choice(edges)
    if kind == 5:
        return key + (value & 0xFFFFFFFF).to_bytes(4, "little")
    body = rng.choice((b"", bytes(len(content)), content[:-1], content + b"\0", content * 3))
    return key + varint(len(body)) + body


def _long_varint(rng, value):
    digits = varint(value)
    filled = digits[:-1] + bytes([digits[-1] | 0x80]) + b"\x80" * rng.choice((0, 1, 7, 8, 9, 20))
    return filled + rng.choice((b"\x00", b"\x01", b"\x7f"))


def _deep(rng, number, whole):
    times = rng.choice((3, 3, 3, 3, 3, 3, 3, 30, 30, 120))
    if rng.random() < 0.5:  # arrays within arrays, as a value of an attribute
        body = b""
        for _ in range(times):
            body = _frame(5, _frame(1, body))
        return _frame(9, _frame(1, b"k") + _frame(2, body))
    for _ in range(times):
        whole = _frame(number, whole)
    return whole


def _frame(number, body):
    return varint(number << 3 | 2) + varint(len(body)) + body


# --- JSON ---------------------------------------------------------------------------------

TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[\[\]{}]')

JSON_VALUES = (
    b"null", b"true", b"false", b"0", b"-1", b"1.5", b"1e3", b"1e400", b"-0", b"0.0", b"007", b"1.",
    b"123456789012345678901234567890", b"18446744073709551615", b"18446744073709551616",
    b"-9223372036854775808", b"9223372036854775808", b"4294967296", b"NaN", b"Infinity",
    b"-Infinity",
    b'""', b'"x"', b'"1"', b'"-1"', b'" 7 "', b'"1e3"', b'"0x10"', b'"NaN"', b'"true"',
    b'"SPAN_KIND_SERVER"',
    b'"STATUS_CODE_ERROR"', b'"SERVER"', b"[]", b"{}", b"[null]", b"[[]]", b'[{}]', b'{"a":1}',
    b'{"":null}',
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\xff\xfe"', b'"\xc3"',
    b'"\xed\xa0\x80"', b'"\\x"', b'"\\u12"', b'"\t"', b'"unclosed', b"'x'", b"tru", b"0x1F",
    b"+1", b".5", b"",
    b"1_000", b"/**/1", b'"AAECAwQFBgc="', b'"0102030405060708090a0b0c0d0e0f10"',
    b'"AQIDBAUGBwgJCgsMDQ4PEA=="',
    b'"0102030405060708"', b'"ABCDEF0123456789"', b'"xyz"', b'"AQIDBAUGBwg"', b'"_-_-"',
)  # fmt: skip
JSON_KEYS = (
    b"spans", b"traceId", b"spanId", b"parentSpanId", b"name", b"kind", b"startTimeUnixNano",
    b"attributes",
    b"key", b"value", b"stringValue", b"intValue", b"doubleValue", b"boolValue", b"arrayValue",
    b"kvlistValue",
    b"bytesValue", b"values", b"events", b"links", b"status", b"code", b"message", b"scope",
    b"resource",
    b"scopeSpans", b"instrumentationLibrarySpans", b"resourceSpans", b"resourceLogs", b"flags",
    b"traceState",
    b"trace_id", b"start_time_unix_nano", b"string_value", b"batches", b"data", b"x", b"",
    b"__proto__",
)  # fmt: skip


class Token(NamedTuple):
    """A value or key of a JSON text; an array or object ends with its closing bracket."""

    start: int
    end: int
    is_key: bool


def tokens_of(text):
    """List the values and keys of a JSON text."""
    found, opened = [], []
    for match in TOKENS.finditer(text):
        sign = text[match.start()]
        if sign in b"[{":
            opened.append(len(found))
            found.append(Token(match.start(), match.end(), False))
        elif sign in b"]}":
            at = opened.pop()
            found[at] = found[at]._replace(end=match.end())
        else:
            is_key = text[match.end() : match.end() + 8].lstrip()[:1] == b":"
            found.append(Token(*match.span(), is_key))
    return found


def spoil_value(rng, text, tokens):
    """Change one value or key of a JSON text; `tokens` is what `tokens_of` says of it."""
    start, end, is_key = rng.choice(tokens)
    old = text[start:end]
    if is_key:
        match rng.randrange(6):
            case 0:  # the same key again, with another value
                new = old + b":" + rng.choice(JSON_VALUES) + b"," + old
            case 1:
                new = b'"%s":%s,' % (rng.choice(JSON_KEYS), rng.choice(JSON_VALUES)) + old
            case 2:
                new = re.sub(rb"[A-Z]", lambda found: b"_" + found[0].lower(), old)
            case 3:
                new = rng.choice(
                    (b"", b"x", b"1", b'"\\u0073pans"', b'"\xff"', b'"\\ud800"', old.upper())
                )
            case _:
                new = b'"%s"' % rng.choice(JSON_KEYS)
    else:
        match rng.randrange(9):
            case 0:  # a number as a text, a text as what stands in it
                new = old[1:-1] if old[:1] == b'"' else b'"%s"' % old
            case 1:
                new = _nested(rng, old)
            case 2:
                new = rng.choice(
                    (old + b"," + old, b"[" + old + b"]", b'{"x":' + old + b"}", old + old)
                )
            case 3:
                new = (
                    rng.choice((b"\xef\xbb\xbf", b"\0", b"\x1e", b",", b"}", b"]", b'"', b"\\"))
                    + old
                )
            case 4:
                new = spoil_bytes(rng, old, places=2)
            case _:
                new = rng.choice(JSON_VALUES)
    return text[:start] + new + text[end:]


def _nested(rng, old):
    times = rng.choice((2, 20, 101, 1100))
    if rng.random() < 0.3:
        return b'{"arrayValue":{"values":[' * times + old + b"]}}" * times
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")))
    return opening * times + old + closing * times


# --- seeds --------------------------------------------------------------------------------


class Seeds:
    """Some requests, in both encodings, ready to be spoilt.

    Parameters
    ----------
    rng : random.Random
        Draws them.
    n : int
        How many.
    """

    def __init__(self, rng, n, *, traces_only=False, protobuf=True):
        requests = requests_by_chance(rng, n, traces_only=traces_only)
        if protobuf:
            self.bodies = [request.SerializeToString() for request in requests]
            self.parts = [fields_of(body) for body in self.bodies]
        else:
            self.bodies = [as_json(request) for request in requests]
            self.parts = [tokens_of(body) for body in self.bodies]
        self._spoil = spoil_field if protobuf else spoil_value

    def replace(self, bodies):
        """Take other JSON texts for seeds."""
        self.bodies, self.parts = bodies, [tokens_of(body) for body in bodies]

    def mutant(self, rng, *, whole=0.6):
        """Spoil one of them: with the odds `whole` by its structure, else its bytes, or both."""
        at = rng.randrange(len(self.bodies))
        body, parts = self.bodies[at], self.parts[at]
        draw = rng.random()
        if draw < whole:
            return self._spoil(rng, body, parts)
        if draw < whole + 0.1:
            return spoil_bytes(rng, self._spoil(rng, body, parts), places=1)
        return spoil_bytes(rng, body)
