"""What the fast decoder accepts, compared with a slow reference, field by field.

Messages are decoded together by `decode_block`, and one by one by `tests/otlp_oracle.py` over
opentelemetry-proto's own classes, or over the standard library's JSON.

* Protobuf, read as good: opentelemetry-proto decodes it too, to the same spans, events and links.
  If it refuses the message for text that is no UTF-8, or for what is nested in a value, its twin
  that declares these as bytes is asked, and there must be a reject.
* Protobuf, read as broken: the twin refuses the message as well; the spans that were kept are those
  that the twin decodes one by one, and the others are counted as rejected.
* JSON: the same rows as the reference makes; where the reference had to leave something out there
  is a reject, and what it cannot read at all gives no row, and a reject.
"""

import json

import numpy as np
import otlp_lenient as lenient
import otlp_oracle as oracle
import polars as pl
from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1 import trace_pb2

from tracelab import schema
from tracelab.io.chunk import ROW, Block
from tracelab.io.decode import decode_block
from tracelab.io.wire import message_signal

OBJECTS = {"attributes", "resource_attributes", "scope_attributes"}
_LEGACY_TAG = b"\xc2\x3e"
"""Field 1000, which today's opentelemetry-proto does not know: such messages are not compared."""


_PLAIN = {
    *("trace_id", "span_id", "parent_span_id", "trace_state", "flags", "name", "kind"),
    *("start_time", "end_time", "duration_ns", "status_code", "status_message", "time"),
    *("scope_name", "scope_version", "linked_trace_id", "linked_span_id", "event_index"),
}
"""Columns that come of no attribute."""


class DifferenceError(AssertionError):
    """A message that the decoders do not agree on."""

    def __init__(self, message, what):
        super().__init__(f"message {message}: {what}")
        self.message = message


def block_of(messages, encoding):
    """Lay messages end to end."""
    lengths = np.array([len(message) for message in messages], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return Block(encoding, b"".join(messages), starts, lengths, starts)


def compare(messages, encoding):
    """Decode messages both ways; return how many were compared.

    Raises
    ------
    DifferenceError
        At the first message that differs.
    """
    block = block_of(messages, encoding)
    chunk = decode_block(block, source="x")
    good = chunk.messages["good"].to_list()
    found = _Found(chunk, block)
    expect = _of_json if encoding == "json" else _of_protobuf
    expected, lost, sure = {}, 0, True
    for number, message in enumerate(messages):
        outcome = expect(number, message, good[number], number in found.noted)
        if outcome is None:
            sure = False
            continue
        expected[number], spans_lost = outcome
        lost += spans_lost
        height, wanted = found.heights[number], len(expected[number][0])
        if height != wanted:
            raise DifferenceError(number, f"{height} spans instead of {wanted}")
    found.keep(expected)
    while True:
        try:
            _equal(found, expected)
            break
        except DifferenceError as difference:
            if encoding == "json" or not _take_twin(messages, expected, difference.message):
                raise
    if sure and lost != chunk.spans_rejected:
        raise DifferenceError(-1, f"{chunk.spans_rejected} spans rejected instead of {lost}")
    return len(expected)


def _of_protobuf(number, message, good, noted):
    if _LEGACY_TAG in message or message_signal(message) != "traces":
        return None
    try:
        request, losses = trace_pb2.TracesData.FromString(message), None
    except DecodeError:
        request, losses = lenient.whole_request(message), lenient.Losses.count
    if losses is not None and good and lenient.is_foreign(message):
        return None
    if request is None:
        if good:
            raise DifferenceError(number, "read as good, but opentelemetry-proto refuses it")
        lenient.Losses.foreign = False
        saved, lost = lenient.saved_request(message)
        rows = oracle.request_rows([saved])
        return None if lenient.Losses.foreign else (rows, lost)
    if not good:
        if noted and lenient.is_foreign(message):
            return None
        raise DifferenceError(number, "refused, but opentelemetry-proto reads it")
    rows = oracle.request_rows([request])
    if losses not in (None, lenient.Losses.count) and not noted:
        raise DifferenceError(number, "read otherwise, but without a reject")
    return rows, 0


def _take_twin(messages, expected, number):
    """Let the twin say what is wanted of a message of which opentelemetry-proto says otherwise.

    It does where an array or map stands twice in one value: protobuf lays the two end to end,
    tracelab takes the last.
    """
    twin = lenient.whole_request(messages[number]) if number >= 0 else None
    rows = expected[number] if twin is None else oracle.request_rows([twin])
    changed = bool(rows != expected[number])
    expected[number] = rows
    return changed


def _of_json(number, message, good, noted):
    try:
        request = lenient.JsonRequest(message)
    except (ValueError, RecursionError):
        if good or not noted:
            raise DifferenceError(
                number, "no JSON request, but read as one, or not noted"
            ) from None
        return ([], [], []), 0
    if request.losses and not noted:
        raise DifferenceError(number, "something was left out without a reject")
    if request.spans_lost and good:
        raise DifferenceError(number, "a span was left out of a message that is called good")
    return oracle.request_rows([request.message]), request.spans_lost


class _Found:
    """Rows of a chunk, message by message."""

    def __init__(self, chunk, block):
        self.chunk = chunk
        self.heights = chunk.messages["spans"].to_list()
        # Empty messages share their start with the next one.
        told = np.searchsorted(block.starts, chunk.rejects["offset"].to_numpy(), side="right") - 1
        several = chunk.rejects["reason"].str.contains("several types").to_numpy()
        self.noted = set(told.tolist())
        self.loose = set(told[several].tolist())
        self.tables = []

    def keep(self, messages):
        """Keep the rows of some messages."""
        here = np.zeros(len(self.heights), dtype=bool)
        here[list(messages)] = True
        rows = pl.Series(np.flatnonzero(np.repeat(here, self.heights)), dtype=pl.UInt64).implode()
        self.tables = [
            table.filter(pl.col(ROW).is_in(rows))
            for table in (self.chunk.spans, self.chunk.events, self.chunk.links)
        ]


def _equal(found, expected):
    """Compare column by column; look for the message only where one differs."""
    schemas = (schema.SPANS, schema.EVENTS, schema.LINKS)
    for at, (table, like) in enumerate(zip(found.tables, schemas, strict=True)):
        rows = [row for rows in expected.values() for row in rows[at]]
        owners = [number for number, rows in expected.items() for _ in rows[at]]
        if table.height != len(rows):
            raise DifferenceError(-1, f"{table.height} rows instead of {len(rows)} in table {at}")
        for column in like:
            values = table[column]
            if values.dtype == schema.TIME:
                values = values.cast(pl.Int64)
            wanted = [row[column] for row in rows]
            values = values.to_list()
            if column in OBJECTS:
                wanted_texts = [_text(value) for value in wanted]
                if values != wanted_texts:
                    _equal_objects(values, wanted, wanted_texts, owners, column, found.loose)
            elif values != wanted:
                loose = found.loose if column not in _PLAIN else ()
                _equal_values(values, wanted, owners, column, loose)


def _text(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _equal_objects(values, wanted, texts, owners, column, loose):
    for value, want, text, owner in zip(values, wanted, texts, owners, strict=True):
        if value != text and owner not in loose and not oracle.same_json(value, want):
            raise DifferenceError(owner, f"{column} {value[:200]!r} instead of {text[:200]!r}")


def _equal_values(values, wanted, owners, column, loose):
    for value, want, owner in zip(values, wanted, owners, strict=True):
        if value == want or owner in loose:
            continue
        if isinstance(want, str) and isinstance(value, str) and want[:1] in '[{0123456789-"':
            try:
                if oracle.same_json(value, json.loads(want)):
                    continue
            except ValueError:
                pass
        raise DifferenceError(owner, f"{column} {value!r:.200} instead of {want!r:.200}")
