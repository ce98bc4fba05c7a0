"""Small forms of damage that once ended a reading, or was read as something else."""

import io
import json

import pytest
from exports import START, as_json, framed, trace_request
from otlp_samples import block_of

import tracelab as tl
from tracelab.io import SourceReader
from tracelab.io.chunk import ROW
from tracelab.io.decode import decode_block
from tracelab.io.wire import frame, read_varint, varint

SPAN = frame(1, b"t" * 16) + frame(2, b"s" * 8)
SCOPES = frame(2, frame(2, SPAN))
SOUND = frame(1, SCOPES)


def decoded(message):
    return decode_block(block_of([message, SOUND]), source="x")


def read(data):
    return tl.read_traces(io.BytesIO(data))


def value_field(*fields):
    """Return a trace message with one attribute ``k`` of these fields."""
    attribute = frame(9, frame(1, b"k") + frame(2, b"".join(fields)))
    return frame(1, frame(2, frame(2, SPAN + attribute)))


# --- protobuf -----------------------------------------------------------------------------

NEAR_2_64 = b"\xff" * 9 + b"\x01"


@pytest.mark.parametrize(
    "message",
    [
        frame(1, b"\x0a" + NEAR_2_64),
        frame(1, frame(2, frame(2, SPAN + b"\x0a" + NEAR_2_64))),
        value_field(b"\x2a" + varint(11) + b"\x0a" + NEAR_2_64),
    ],
    ids=["resource", "span", "array in a value"],
)
def test_a_length_that_wraps_around_is_a_reject(message):
    chunk = decoded(message)
    assert chunk.rejects.height > 0
    assert chunk.messages["spans"][1] == 1


def test_bits_beyond_the_64th_of_a_number_are_dropped_as_decoders_do():
    padded = b"\x89" + b"\x80" * 8 + b"\x64"
    assert read_varint(padded, 0, len(padded)) == (9, len(padded))


def test_a_field_number_that_protobuf_has_not_costs_only_itself():
    beyond = varint(1 << 40 | 2) + b"\x01x"
    for message in (
        frame(1, beyond + SCOPES),
        beyond + SOUND,
        frame(1, frame(2, beyond + frame(2, SPAN))),
    ):
        chunk = decoded(message)
        assert chunk.messages["spans"].to_list() == [1, 1]
        assert chunk.messages["good"][0] or chunk.rejects.height > 0


def test_what_is_broken_in_the_field_of_old_senders_is_a_reject():
    chunk = decoded(frame(1, frame(1000, b"\x12\x7fbroken")))
    assert chunk.messages["good"].to_list() == [False, True]
    assert chunk.rejects.height > 0
    group = b"\x0b"  # a group's beginning stands beside it: the message cannot be walked through
    assert decoded(frame(1, frame(1000, frame(2, SPAN)) + group)).messages["spans"][1] == 1


def test_a_value_of_several_types_is_one_of_them_and_noted():
    text, number = frame(1, b"a"), b"\x18\x07"
    for fields in ((text, number), (number, text)):
        chunk = decoded(value_field(*fields))
        assert json.loads(chunk.spans["attributes"][0]) in ({"k": "a"}, {"k": 7})
        assert "several types" in chunk.rejects["reason"][0]
    nested = frame(5, frame(1, frame(1, b"a") + b"\x18\x07"))
    chunk = decoded(value_field(nested))
    assert json.loads(chunk.spans["attributes"][0])["k"][0] in ("a", 7)
    assert chunk.rejects.height == 1
    chunk = decoded(value_field(text))
    assert chunk.rejects.height == 0


# --- JSON ---------------------------------------------------------------------------------


def request_with(value, **span):
    document = {
        "traceId": "0" * 31 + "1",
        "spanId": "0" * 15 + "1",
        "attributes": [{"key": "k", "value": value}],
        **span,
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [document]}]}]}


@pytest.mark.parametrize("odd", [{}, {"kind": "ODD"}], ids=["natively", "leniently"])
def test_a_json_value_of_several_types_is_the_last_of_them_and_noted(odd):
    for value in ({"stringValue": "a", "intValue": "7"}, {"doubleValue": 1.5, "intValue": "7"}):
        traces = read(json.dumps(request_with(value, **odd)).encode())
        assert json.loads(traces.spans["attributes"][0]) == {"k": 7}
        assert traces.rejects["reason"].str.contains("the last is kept").any()
    items = {"arrayValue": {"values": [{"stringValue": "a", "boolValue": True}]}}
    traces = read(json.dumps(request_with(items, **odd)).encode())
    assert json.loads(traces.spans["attributes"][0]) == {"k": [True]}


def test_half_of_a_surrogate_pair_in_an_id_is_noted():
    traces = read(json.dumps(request_with({}, traceId="\ud800")).encode())
    assert traces.spans["trace_id"].to_list() == ["\ufffd"]
    assert "surrogate" in traces.rejects["reason"][0]


def test_an_id_that_is_no_text_of_ascii_is_kept_as_it_came():
    link = {"traceId": "1" * 32, "spanId": "600885'\u042a\ufffd4b1"}  # as long as base64 of an id
    odd = {"name": "\ud800"}  # so that it is not read as a table
    traces = read(json.dumps(request_with({}, spanId="\xe9" * 12, links=[link], **odd)).encode())
    assert traces.spans["span_id"].to_list() == ["\xe9" * 12]
    assert traces.links["linked_span_id"].to_list() == [link["spanId"]]


def test_half_of_a_surrogate_pair_in_jaegers_json_is_noted():
    span = {"traceID": "a", "spanID": "1", "operationName": "\ud800", "startTime": 1, "duration": 1}
    trace = {"data": [{"traceID": "a", "spans": [span], "processes": {}}]}
    traces = read(json.dumps(trace).encode())
    assert traces.spans["name"].to_list() == ["\ufffd"]
    assert "surrogate" in traces.rejects["reason"][0]


@pytest.mark.parametrize(
    "value",
    [
        {"\ud800": 1},
        {"trace": request_with({}), "status": "PARTIAL", "message": "\ud800"},
        request_with({"\ud800": 1}),
    ],
    ids=["unknown key", "message of Tempo", "key of a value"],
)
def test_half_of_a_surrogate_pair_can_be_told(value):
    sound = as_json(trace_request([{"span": 1}]))
    traces = read(sound + b"\n" + json.dumps(value).encode() + b"\n")
    assert traces.spans.height > 0
    traces.rejects.write_csv()


def test_half_of_a_surrogate_pair_in_a_repeated_key_can_be_told():
    twice = json.dumps(request_with({})).replace('"k"', '"k", "\\ud800": 1, "\\ud800": 2')
    assert read(twice.encode()).rejects["reason"].str.contains("ud800").any()


# --- many at a time -----------------------------------------------------------------------


def sound_and_broken(n):
    """Frames of which every other one is broken from its first byte on, or further behind."""
    bodies = []
    for number in range(n):
        body = trace_request([{"span": number + 1, "start": START}]).SerializeToString()
        bodies.append(body)
        bodies.append([b"\xff" + body, body[:-9] + b"\x07" * 9][number % 2])
    return bodies


def test_broken_frames_among_sound_ones_cost_no_block_each():
    bodies = sound_and_broken(300)
    reader = SourceReader(io.BytesIO(framed(bodies)))
    chunks = list(reader.chunks())
    assert len(chunks) <= 2
    messages = chunks[0].messages
    starts = [4]
    for body in bodies:
        starts.append(starts[-1] + len(body) + 4)
    whole = messages.filter(messages["good"])
    assert set(starts[:-1:2]) <= set(whole["offset"].to_list())
    rejects = {*chunks[0].rejects["offset"].to_list(), *chunks[-1].rejects["offset"].to_list()}
    for start, body in zip(starts[1::2], bodies[1::2], strict=False):
        assert any(start - 4 <= offset < start + len(body) for offset in rejects)


def public(table):
    return table.drop(ROW, strict=False).rows()


@pytest.mark.parametrize("block", [200, 5_000])
def test_broken_frames_are_the_same_in_blocks_of_any_size(block):
    data = framed(sound_and_broken(40))
    whole, cut = (SourceReader(io.BytesIO(data), block_bytes=size) for size in (1 << 20, block))
    one, many = list(whole.chunks()), list(cut.chunks())
    for table in ("spans", "rejects"):
        ours = [row for chunk in one for row in public(getattr(chunk, table))]
        assert ours == [row for chunk in many for row in public(getattr(chunk, table))]
    assert whole.accounting().equals(cut.accounting())


def test_whole_spans_of_many_broken_lines_are_kept():
    sound = as_json(trace_request([{"span": 1}, {"span": 2}]))
    torn = sound[: sound.rindex(b'{"traceId"') + 20]
    traces = read(b"\n".join([sound, *[torn.replace(b"01", b"%02x" % n, 1) for n in range(3, 60)]]))
    assert traces.spans.height == 2 + 57
    assert traces.ingest["messages_rejected"][0] == 57


def test_documents_behind_a_broken_one_are_read():
    sound = [as_json(trace_request([{"span": n + 1}]), indent=2) for n in range(20)]
    broken = [document.replace(b'"name": "work"', b'"name": "wo"rk"') for document in sound]
    data = b"\n".join(part for pair in zip(sound, broken, strict=True) for part in pair)
    traces = read(data)
    assert traces.spans["span_id"].n_unique() == 20
    assert traces.ingest["messages_rejected"][0] > 0


def test_a_span_of_odd_ids_and_no_times_is_no_metric():
    span = frame(1, bytes(16)) + frame(2, b"\xff") + frame(4, bytes(8))
    assert decoded(frame(1, frame(2, frame(2, span)))).spans.height == 2
