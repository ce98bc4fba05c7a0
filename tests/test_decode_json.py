import base64
import json
import re

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from otlp_samples import block_of, json_document, json_message, requests
from polars.testing import assert_frame_equal
from test_decode_proto import logs_message, metrics_message, request_with

from tracelab.io import decode_json
from tracelab.io.canonical import Losses, canonical_request, parse_json
from tracelab.io.decode import decode_block
from tracelab.io.json_native import RefusedError

TABLES = ("spans", "events", "links", "logs", "metrics")
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def decoded(*messages, gap=b"\n"):
    return decode_block(block_of([*messages], "json", gap), source="x")


def assert_same_tables(one, other):
    for table in TABLES:
        assert_frame_equal(getattr(one, table), getattr(other, table))


def snake(item):
    if isinstance(item, dict):
        return {
            re.sub("[A-Z]", lambda m: "_" + m[0].lower(), key): snake(part)
            for key, part in item.items()
        }
    return [snake(part) for part in item] if isinstance(item, list) else item


def leniently(*messages):
    """The same block with Arrow's reader out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_json, "read_messages", _refuse)
        return decoded(*messages)


def _refuse(*_args):
    raise RefusedError("not today")


def simple_document(**span):
    document = json_document(request_with(start_time_unix_nano=5, end_time_unix_nano=9))
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0].update(span)
    return document


def only_native(*messages):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_json, "_decode_leniently", _refuse)
        return decoded(*messages)


@SETTINGS
@given(st.lists(requests, min_size=1, max_size=3))
def test_json_and_protobuf_give_the_same_tables(made):
    plain = decode_block(block_of([one.SerializeToString() for one in made]), source="x")
    messages = [
        json_message(one) if one.resource_spans else b'{"resourceSpans":[]}' for one in made
    ]
    assert_same_tables(decoded(*messages), plain)
    assert_same_tables(leniently(*messages), plain)


def test_logs_and_metrics_in_json_equal_those_in_protobuf():
    made = [logs_message(), metrics_message(), request_with()]
    plain = decode_block(block_of([one.SerializeToString() for one in made]), source="x")
    assert_same_tables(decoded(*[json_message(one) for one in made]), plain)
    assert_same_tables(leniently(*[json_message(one) for one in made]), plain)


def test_plain_messages_never_leave_the_native_reader():
    document = simple_document(
        attributes=[
            {"key": "a", "value": {"stringValue": "x"}},
            {"key": "b", "value": {"intValue": "9223372036854775807"}},
            {"key": "c", "value": {"doubleValue": 3}},
            {
                "key": "d",
                "value": {"arrayValue": {"values": [{"stringValue": 'q"'}, {"intValue": "1"}]}},
            },
            {"key": "e", "value": {"bytesValue": "/+8="}},
            {"key": "f", "value": {"arrayValue": {}}},
            {"key": "g", "value": {}},
        ]
    )
    chunk = only_native(json.dumps(document).encode(), json_message(request_with(name="2")))
    assert chunk.spans["attributes"][0] == (
        '{"a":"x","b":9223372036854775807,"c":3.0,"d":["q\\"",1],"e":{"bytes":"/+8="},"f":[],"g":null}'
    )


@pytest.mark.parametrize("pretty", [False, True])
def test_snake_case_numbers_and_enum_names_stay_native(pretty):
    span = {
        "kind": "SPAN_KIND_SERVER",
        "status": {"code": "STATUS_CODE_ERROR", "message": "no"},
        "startTimeUnixNano": 1700000000000000001,
        "endTimeUnixNano": 1700000000000000002,
        "attributes": [{"key": "n", "value": {"intValue": -7}}],
    }
    message = json.dumps(snake(simple_document(**span)), indent=2 if pretty else None).encode()
    row = only_native(message, message).spans.row(1, named=True)
    assert (row["kind"], row["status_code"], row["status_message"]) == ("SERVER", "ERROR", "no")
    assert row["attributes"] == '{"n":-7}'
    assert row["duration_ns"] == 1
    assert_same_tables(only_native(message), leniently(message))


@pytest.mark.parametrize(
    "span",
    [
        {"kind": "SERVER", "status": {"code": "ERROR"}},
        {"kind": "2"},
        {"flags": "769"},
        {"startTimeUnixNano": "5", "endTimeUnixNano": 9},
        {
            "attributes": [
                {
                    "key": "m",
                    "value": {
                        "kvlistValue": {"values": [{"key": "k", "value": {"boolValue": True}}]}
                    },
                }
            ]
        },
        {
            "attributes": [
                {"key": "m", "value": {"doubleValue": "NaN"}},
                {"key": "i", "value": {"doubleValue": "-Infinity"}},
            ]
        },
        {"unknownField": {"deep": [1, 2]}},
        {"parentSpanId": None, "attributes": None, "status": None, "name": None},
    ],
)
def test_dialects_are_read_and_a_good_neighbour_is_not_touched(span):
    good = json_message(request_with(name="good"))
    chunk = decoded(good, json.dumps(simple_document(**span)).encode(), good)
    assert chunk.spans.height == 3
    assert chunk.messages["good"].all()
    assert chunk.rejects.is_empty()
    assert chunk.spans["name"].to_list()[::2] == ["good", "good"]


def test_each_dialect_says_what_it_says():
    document = simple_document(
        flags="769",
        kind="SPAN_KIND_CLIENT",
        traceId=base64.b64encode(bytes(range(16))).decode(),
        spanId=base64.b64encode(bytes(range(8))).decode(),
        parentSpanId=base64.b64encode(bytes(8)).decode(),
        attributes=[
            {"key": "nan", "value": {"doubleValue": float("nan")}},
            {
                "key": "map",
                "value": {
                    "kvlistValue": {
                        "values": [
                            {
                                "key": "k",
                                "value": {
                                    "arrayValue": {
                                        "values": [{"arrayValue": {"values": [{"intValue": 1}]}}]
                                    }
                                },
                            }
                        ]
                    }
                },
            },
            {"key": "url", "value": {"bytesValue": "_-8"}},
        ],
    )
    row = decoded(json.dumps(document).encode()).spans.row(0, named=True)
    assert row["trace_id"] == bytes(range(16)).hex()
    assert row["span_id"] == bytes(range(8)).hex()
    assert row["parent_span_id"] is None
    assert row["parent_is_remote"] is True
    assert row["kind"] == "CLIENT"
    assert row["attributes"] == '{"nan":"NaN","map":{"k":[[1]]},"url":{"bytes":"/+8="}}'


@pytest.mark.parametrize("reader", [decoded, leniently])
@pytest.mark.parametrize(
    ("given_id", "read"),
    [
        ("ABCDEF0123456789", "abcdef0123456789"),
        ("AAECAwQFBgc=", "0001020304050607"),
        ("abc", "abc"),
        ("ABC", "ABC"),
        ("not-hex!", "not-hex!"),
        ("ABCD", "abcd"),
        ("", ""),
    ],
)
def test_ids_are_hex_or_stay_as_they_came(reader, given_id, read):
    link = {"traceId": "00" * 16, "spanId": given_id}
    document = simple_document(spanId=given_id, links=[link])
    other = simple_document(spanId="11" * 8)
    chunk = reader(*[json.dumps(one).encode() for one in (other, document, other)])
    assert chunk.spans["span_id"].to_list() == ["11" * 8, read, "11" * 8]
    assert chunk.links["linked_span_id"].to_list() == [read]
    assert chunk.links["span_id"].to_list() == [read]


def test_library_spans_and_batches_are_aliases():
    span = simple_document()["resourceSpans"][0]["scopeSpans"][0]["spans"]
    old = {
        "batches": [
            {
                "instrumentationLibrarySpans": [
                    {"instrumentationLibrary": {"name": "lib"}, "spans": span}
                ]
            }
        ]
    }
    chunk = decoded(json.dumps(old).encode())
    assert chunk.spans["scope_name"].to_list() == ["lib"]


def broken_lines():
    good = json_message(request_with(name="good"))
    yield good[:-3]
    yield b"\x00" * 50
    yield b"{}"
    yield b"[]"
    yield b"null"
    yield b'{"resourceSpans":5}'[:-1]
    yield b'{"resourceSpans":' + b"[" * 100_000
    yield b'{"resourceSpans":[{"resource":' + b'{"a":' * 100_000
    yield b'{"resourceSpans":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}"
    yield b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    yield b'{"resourceSpans":[]}{"resourceSpans":[]}'
    yield b'{"resourceSpans":[' + b"9" * 5000 + b"]}"


@pytest.mark.parametrize("line", [*broken_lines()], ids=range(12))
def test_a_broken_line_costs_only_itself(line):
    good = json_message(request_with(name="good"))
    chunk = decoded(good, line, good)
    assert chunk.spans["name"].to_list() == ["good", "good"]
    assert chunk.messages["spans"].to_list() == [1, 0, 1]
    assert chunk.rejects.height >= 1
    assert chunk.rejects["line"].unique().to_list() == [2]
    assert chunk.rejects["offset"][0] == 1 + len(good) + 1


def test_many_broken_lines_among_good_ones_keep_the_order():
    good = [json_message(request_with(name=str(number))) for number in range(60)]
    lines = [line if number % 3 else line[:-5] for number, line in enumerate(good)]
    chunk = decoded(*lines)
    assert chunk.spans["name"].to_list() == [str(n) for n in range(60) if n % 3]
    assert chunk.messages["good"].to_list() == [n % 3 != 0 for n in range(60)]


def test_a_malformed_span_costs_only_itself():
    document = simple_document()
    spans = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans += [None, "span", dict(spans[0], name="last")]
    chunk = decoded(json.dumps(document).encode())
    assert chunk.spans["name"].to_list() == ["GET /", "last"]
    assert chunk.spans_rejected == 2
    assert chunk.messages["good"].to_list() == [False]
    assert chunk.rejects.height == 2


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ({"startTimeUnixNano": str(2**64)}, "startTimeUnixNano"),
        ({"startTimeUnixNano": 2**64}, "startTimeUnixNano"),
        ({"startTimeUnixNano": "soon"}, "startTimeUnixNano"),
        ({"startTimeUnixNano": 2**63}, "beyond the range"),
        ({"kind": "SPAN_KIND_FRIEND"}, "kind"),
        ({"name": {"a": 1}}, "name"),
        ({"attributes": [{"key": "n", "value": {"intValue": str(2**64)}}]}, "intValue"),
        ({"attributes": {"n": 1}}, "attributes"),
        ({"name": "\ud800x"}, "surrogate"),
    ],
)
def test_a_field_that_cannot_be_read_is_a_row_and_its_span_stays(span, reason):
    chunk = decoded(json.dumps(simple_document(**span)).encode())
    assert chunk.spans.height == 1
    assert chunk.messages["good"].to_list() == [True]
    assert any(reason in row for row in chunk.rejects["reason"])


def test_duplicate_json_keys_keep_the_last_value_and_are_reported():
    message = json_message(request_with()).replace(b'"kind": 2', b'"kind": 2, "kind": 3')
    chunk = decoded(message)
    assert chunk.spans["kind"].to_list() == ["CLIENT"]
    assert "duplicate JSON key kind" in chunk.rejects["reason"][0]


def test_invalid_utf8_becomes_a_mark_and_a_row():
    message = json_message(request_with(name="ab")).replace(b"ab", b"a\xff")
    chunk = decoded(json_message(request_with(name="ok")), message)
    assert chunk.spans["name"].to_list() == ["ok", "a\ufffd"]
    assert "invalid UTF-8" in chunk.rejects["reason"][0]


def test_spans_in_a_message_that_begins_with_logs_keep_the_order_of_rows():
    both = {**json_document(logs_message()), **json_document(request_with(name="second"))}
    chunk = decoded(
        json_message(request_with(name="first")),
        json.dumps(both).encode(),
        json_message(request_with(name="third")),
    )
    assert chunk.spans["name"].to_list() == ["first", "second", "third"]
    assert chunk.logs.height == 2


@given(
    st.text(max_size=60)
    | st.sampled_from(
        ['{"resourceSpans":[{}]}', '{"resourceSpans":[{"scopeSpans":[{"spans":[{}]}]}]}']
    )
)
@settings(max_examples=150, deadline=None)
def test_arbitrary_text_is_never_a_crash(text):
    chunk = decoded(text.encode(errors="surrogatepass"))
    assert chunk.messages.height == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceSpans",
                    "scopeSpans",
                    "spans",
                    "key",
                    "value",
                    "stringValue",
                    "attributes",
                    "links",
                    "arrayValue",
                    "values",
                    "kvlistValue",
                    "traceId",
                    "kind",
                    "status",
                    "events",
                    "resource",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_otlp_keys_with_any_values_are_never_a_crash(value):
    message = json.dumps({"resourceSpans": value}).encode()
    chunk = decoded(message, json_message(request_with(name="good")))
    assert chunk.spans["name"].to_list()[-1] == "good"


@SETTINGS
@given(requests)
def test_the_canonical_form_of_a_canonical_request_is_itself(request):
    document = canonical_request(
        parse_json(
            json_message(request) if request.resource_spans else b'{"resourceSpans":[]}', Losses()
        )
    )
    losses = Losses()
    again = canonical_request(document, losses)
    assert json.dumps(again) == json.dumps(document)
    assert losses.rows == []


def test_the_reason_names_what_is_missing():
    chunk = decoded(b'{"hello": 1}')
    assert "no resourceSpans" in chunk.rejects["reason"][0]
    assert chunk.spans.height == 0
    assert chunk.spans.schema["start_time"] == pl.Datetime("ns", "UTC")
