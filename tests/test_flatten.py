import json

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from otlp_samples import block_of
from test_decode_proto import request_with

from tracelab.io.attributes import (
    KeyValues,
    attribute_texts,
    double_texts,
    escape_texts,
    joined_key_values,
    lift_integers,
    lift_texts,
    no_attributes,
)
from tracelab.io.decode import decode_block

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)


def key_values(owners):
    """Attributes of owners given as lists of (key, value); a dict or list counts as written."""
    flat = [pair for owner in owners for pair in owner]

    def of(kind, arrow):
        return pa.array([value if type(value) is kind else None for _, value in flat], arrow)

    return KeyValues(
        np.cumsum([0, *(len(owner) for owner in owners)]),
        pa.array([key for key, _ in flat], pa.string()),
        of(str, pa.string()),
        of(bool, pa.bool_()),
        of(int, pa.int64()),
        of(float, pa.float64()),
        pa.array(
            [json.dumps(v) if isinstance(v, dict | list) else None for _, v in flat], pa.string()
        ),
    )


@settings(deadline=None)
@given(st.lists(texts | st.none(), max_size=6))
def test_escaped_texts_are_what_json_writes_between_its_quotes(values):
    escaped = escape_texts(pa.array(values, pa.string())).to_pylist()
    assert escaped == [
        None if v is None else json.dumps(v, ensure_ascii=False)[1:-1] for v in values
    ]


def test_a_slice_is_escaped_by_its_own_rows():
    array = pa.array(['"', "plain", "\n", '"'])[1:3]
    assert escape_texts(array).to_pylist() == ["plain", "\\n"]


@settings(deadline=None)
@given(st.lists(st.dictionaries(texts, plain, max_size=4), max_size=5))
def test_attribute_texts_parse_back_to_what_was_given(owners):
    written = attribute_texts(key_values([list(owner.items()) for owner in owners])).to_list()
    assert [json.loads(text) for text in written] == owners
    for text, owner in zip(written, owners, strict=True):
        types = [type(value) for value in json.loads(text).values()]
        assert types == [type(value) for value in owner.values()]
        assert list(json.loads(text)) == list(owner)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (1e300, "1e+300"),
        (0.1, "0.1"),
        (float("nan"), '"NaN"'),
        (float("inf"), '"Infinity"'),
        (float("-inf"), '"-Infinity"'),
    ],
)
def test_doubles_show_a_fraction_or_an_exponent_and_are_json(value, text):
    assert double_texts(pl.Series([value])).to_list() == [text]


def test_the_last_of_repeated_keys_is_kept():
    kv = key_values([[("a", 1), ("b", 2), ("a", 3)], [("a", 4)], [("a", 5), ("a", 6), ("a", 7)]])
    assert kv.repeated().tolist() == [0, 4, 5]
    assert attribute_texts(kv.without(kv.repeated())).to_list() == [
        '{"b":2,"a":3}',
        '{"a":4}',
        '{"a":7}',
    ]


def test_the_preferred_spelling_is_lifted():
    kv = key_values(
        [[("old", "o"), ("new", "n")], [("old", "o")], [], [("new", 7)], [("new", True)]]
    )
    assert lift_texts(kv, ("new", "old")).to_list() == ["n", "o", None, "7", "true"]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (7, 7),
        ("7", 7),
        (" 7 ", 7),
        ("7.0", 7),
        (7.0, 7),
        ("x", None),
        ("", None),
        (True, None),
        ([], None),
    ],
)
def test_integers_are_lifted_from_numbers_and_digits(value, number):
    assert lift_integers(key_values([[("n", value)]]), ("n",)).to_list() == [number]


@pytest.mark.parametrize(
    ("value", "text"),
    [(["a"], "a"), (["a", "b"], "a,b"), ([], ""), ([1], "[1]"), ({"k": 1}, '{"k": 1}')],
)
def test_header_values_are_joined_by_commas(value, text):
    assert lift_texts(key_values([[("h", value)]]), ("h",)).to_list() == [text]


def test_owners_laid_end_to_end_keep_their_attributes():
    parts = [key_values([[("a", 1)], []]), no_attributes(2), key_values([[("b", "x"), ("a", 2)]])]
    assert attribute_texts(joined_key_values(parts)).to_list() == [
        '{"a":1}',
        "{}",
        "{}",
        "{}",
        '{"b":"x","a":2}',
    ]


def row_of(**attributes):
    request = request_with()
    span = request.resource_spans[0].scope_spans[0].spans[0]
    for key, value in attributes.items():
        span.attributes.add(key=key.replace("__", ".")).value.string_value = value
    chunk = decode_block(block_of([request.SerializeToString()]), source="x")
    return chunk.spans.row(0, named=True)


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("http__status_code", "http_response_status_code"),
        ("http__response__status_code", "http_response_status_code"),
        ("thread__id", "thread_id"),
        ("http__resend_count", "resend_count"),
    ],
)
def test_numbers_of_old_and_new_conventions_meet_in_one_column(key, column):
    assert row_of(**{key: "404"})[column] == 404


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("http__method", "http_request_method"),
        ("net__peer__name", "server_address"),
        ("messaging__destination", "messaging_destination"),
        ("rpc__system", "rpc_system"),
        ("http__request__header__x-tenant-id", "tenant_id"),
    ],
)
def test_texts_of_old_and_new_conventions_meet_in_one_column(key, column):
    assert row_of(**{key: "v"})[column] == "v"


def event_of(name, **attributes):
    request = request_with()
    event = request.resource_spans[0].scope_spans[0].spans[0].events.add(name=name)
    for key, value in attributes.items():
        event.attributes.add(key=key.replace("__", ".")).value.string_value = value
    return decode_block(block_of([request.SerializeToString()]), source="x").events.row(
        0, named=True
    )


def test_the_old_ruby_event_is_read_as_an_exception():
    row = event_of("error", error__type="ArgumentError", error__message="no", error__stack="a.rb:1")
    assert (row["exception_type"], row["exception_message"]) == ("ArgumentError", "no")
    assert row["exception_stacktrace"] == "a.rb:1"


def test_error_type_on_another_event_is_no_exception():
    assert event_of("retry", error__type="timeout")["exception_type"] is None


@pytest.mark.parametrize(("text", "value"), [("True", True), ("false", False), ("maybe", None)])
def test_escaped_is_read_from_text(text, value):
    assert event_of("exception", exception__escaped=text)["exception_escaped"] is value


@pytest.mark.parametrize(
    ("flags", "remote"),
    [(0, None), (1, None), (0x100, False), (0x101, False), (0x300, True), (0x200, None)],
)
def test_remoteness_is_known_only_where_the_flag_says_so(flags, remote):
    chunk = decode_block(block_of([request_with(flags=flags).SerializeToString()]), source="x")
    assert chunk.spans["parent_is_remote"].to_list() == [remote]
