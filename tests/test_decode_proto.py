import datetime
import json

import numpy as np
import otlp_oracle as oracle
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from otlp_samples import block_of, requests

from tracelab import schema
from tracelab.io.chunk import MESSAGES, ROW
from tracelab.io.decode import LiftedKeys, decode_block
from tracelab.io.wire import frame, message_signal, varint

JSON_COLUMNS = ("attributes", "resource_attributes", "scope_attributes")
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def assert_rows(table, expected, like):
    assert table.drop(ROW).schema == like
    assert table.height == len(expected)
    plain = table.with_columns(pl.col(pl.Datetime("ns", "UTC")).cast(pl.Int64))
    for row, wanted in zip(plain.iter_rows(named=True), expected, strict=True):
        for column in like:
            found, value = row[column], wanted[column]
            if column in JSON_COLUMNS:
                assert oracle.same_json(found, value), (column, found, value)
            elif isinstance(value, str) and value[:1] in "[{0123456789-" and value != found:
                assert oracle.same_json(found, json.loads(value)), (column, found, value)
            else:
                assert found == value, (column, found, value)


def request_with(**span):
    request = trace_pb2.TracesData()
    request.resource_spans.add().scope_spans.add().spans.add(
        **{"trace_id": b"t" * 16, "span_id": b"s" * 8, "name": "GET /", "kind": 2, **span}
    )
    return request


def decoded(*messages, **knobs):
    return decode_block(block_of([*messages]), source="x", **knobs)


@SETTINGS
@given(st.lists(requests, min_size=1, max_size=3))
def test_native_decoding_equals_a_plain_loop_field_by_field(made):
    messages = [request.SerializeToString() for request in made]
    chunk = decode_block(block_of(messages, gap=b"\x00\x00\x00\x01"), source="x", first_row=7)
    spans, events, links = oracle.span_rows(messages)
    assert_rows(chunk.spans, spans, schema.SPANS)
    assert_rows(chunk.events, events, schema.EVENTS)
    assert_rows(chunk.links, links, schema.LINKS)
    assert chunk.spans[ROW].to_list() == list(range(7, 7 + len(spans)))
    assert chunk.messages.schema == MESSAGES
    assert chunk.messages["spans"].to_list() == [len(oracle.span_rows([m])[0]) for m in messages]
    assert chunk.messages["good"].all()


@SETTINGS
@given(requests, st.data())
def test_any_cut_or_changed_byte_is_a_row_and_never_a_crash(request, data):
    message = bytearray(request.SerializeToString() or b"\x0a\x00")
    for _ in range(data.draw(st.integers(0, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(message[: data.draw(st.integers(0, len(message)))])
    good = request_with().SerializeToString()
    chunk = decoded(good, broken, good)
    assert chunk.messages.height == 3
    assert chunk.messages["good"].to_list()[::2] == [True, True]
    assert chunk.messages["spans"].to_list()[::2] == [1, 1]
    if not chunk.messages["good"][1]:
        assert chunk.rejects.height > 0


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
@example(b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
@example(b"\x0b")
def test_arbitrary_bytes_are_never_a_crash(message):
    chunk = decoded(message)
    assert chunk.messages.height == 1
    assert chunk.spans.schema[ROW] == pl.UInt64


def test_a_broken_span_costs_only_itself():
    request = request_with(name="first")
    group = request.resource_spans[0].scope_spans[0]
    request.resource_spans[0].resource.attributes.add(
        key="service.name"
    ).value.string_value = "shop"
    good = [group.spans[0].SerializeToString()] + [
        trace_pb2.Span(trace_id=b"t" * 16, span_id=b"u" * 8, name=name, kind=3).SerializeToString()
        for name in ("second", "third")
    ]
    broken = good[1][:-1] + b"\x7f\xff"
    spans = b"".join(frame(2, span) for span in (good[0], broken, good[2]))
    resource = frame(1, request.resource_spans[0].resource.SerializeToString())
    message = frame(1, resource + frame(2, spans))
    chunk = decoded(message)
    assert chunk.spans["name"].to_list() == ["first", "third"]
    assert chunk.spans["service_name"].to_list() == ["shop", "shop"]
    assert chunk.spans_rejected == 1
    assert chunk.messages["good"].to_list() == [False]
    assert chunk.rejects["offset"].to_list() == [message.index(broken)]
    assert "broken leaf" in chunk.rejects["reason"][0]


def test_a_torn_message_keeps_the_spans_before_the_tear():
    request = request_with(name="0")
    for number in range(1, 5):
        request.resource_spans[0].scope_spans[0].spans.add(
            trace_id=b"t" * 16, span_id=bytes([number] * 8), name=str(number), kind=1
        )
    message = request.SerializeToString()
    chunk = decoded(message[: len(message) - 40])
    assert chunk.spans["name"].to_list() == ["0", "1", "2"]
    assert chunk.spans_rejected == 1
    assert not chunk.messages["good"][0]


def test_invalid_utf8_in_a_name_costs_one_character_and_is_told():
    message = request_with(name="ab").SerializeToString().replace(b"ab", b"a\xff")
    chunk = decoded(message)
    assert chunk.spans["name"].to_list() == ["a\ufffd"]
    assert "invalid UTF-8 in name of a span" in chunk.rejects["reason"][0]
    assert chunk.messages["good"].to_list() == [True]


def test_legacy_library_spans_of_field_1000_are_read():
    group = frame(
        2, request_with(name="old").resource_spans[0].scope_spans[0].spans[0].SerializeToString()
    )
    legacy = varint(1000 << 3 | 2) + varint(len(group)) + group
    chunk = decoded(frame(1, legacy), request_with(name="new").SerializeToString())
    assert chunk.spans["name"].to_list() == ["old", "new"]


def test_legacy_spans_beside_modern_ones_are_ignored():
    modern = request_with(name="new").resource_spans[0].scope_spans[0].SerializeToString()
    legacy = varint(1000 << 3 | 2) + varint(len(modern)) + modern
    assert decoded(frame(1, frame(2, modern) + legacy)).spans["name"].to_list() == ["new"]


def test_unknown_fields_are_ignored():
    message = request_with().SerializeToString() + frame(900, b"later")
    assert decoded(message).spans.height == 1


def test_duplicate_keys_keep_the_last_value_and_are_reported():
    request = request_with()
    span = request.resource_spans[0].scope_spans[0].spans[0]
    for value in (1, 2, 3):
        span.attributes.add(key="n").value.int_value = value
    chunk = decoded(request.SerializeToString())
    assert chunk.spans["attributes"][0] == '{"n":3}'
    assert chunk.rejects["reason"].to_list() == [
        "duplicate attribute key 'n' on 2 spans; the last value is kept"
    ]


def test_a_time_beyond_int64_is_null_and_reported():
    chunk = decoded(
        request_with(start_time_unix_nano=2**64 - 1, end_time_unix_nano=5).SerializeToString()
    )
    assert chunk.spans["start_time"].to_list() == [None]
    assert chunk.spans["duration_ns"].to_list() == [None]
    assert "18446744073709551615" in chunk.rejects["reason"][0]


def test_an_end_before_the_start_gives_a_negative_duration():
    chunk = decoded(request_with(start_time_unix_nano=9, end_time_unix_nano=5).SerializeToString())
    assert chunk.spans["duration_ns"].to_list() == [-4]


@pytest.mark.parametrize("depth", [5, 99, 150, 3000])
def test_depth_is_followed_to_a_hundred_levels_and_told_beyond(depth):
    body = common_pb2.AnyValue(int_value=1).SerializeToString()
    for _ in range(depth):
        body = frame(5, frame(1, body))
    attribute = frame(9, frame(1, b"deep") + frame(2, body))
    span = frame(1, b"t" * 16) + frame(2, b"s" * 8) + frame(5, b"n") + b"\x30\x01" + attribute
    chunk = decoded(frame(1, frame(2, frame(2, span))))
    text = chunk.spans["attributes"][0]
    if depth <= 100:
        assert text == '{"deep":' + "[" * depth + "1" + "]" * depth + "}"
        assert chunk.rejects.is_empty()
    else:
        assert text == '{"deep":' + "[" * 100 + "null" + "]" * 100 + "}"
        assert "nested deeper" in chunk.rejects["reason"][0]


def test_a_broken_nested_value_costs_only_itself():
    attributes = frame(9, frame(1, b"bad") + frame(2, frame(5, b"\x0a\x7f")))
    attributes += frame(9, frame(1, b"ok") + frame(2, frame(5, frame(1, frame(1, b"x")))))
    span = frame(1, b"t" * 16) + frame(2, b"s" * 8) + b"\x30\x01" + attributes
    chunk = decoded(frame(1, frame(2, frame(2, span))))
    assert chunk.spans["attributes"][0] == '{"bad":null,"ok":["x"]}'
    assert "is broken" in chunk.rejects["reason"][0]


def test_keys_of_task_tenant_and_request_can_be_chosen():
    request = request_with()
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.attributes.add(key="fiber").value.int_value = 12
    header = span.attributes.add(key="x-corp").value.array_value
    header.values.add(string_value="a")
    header.values.add(string_value="b")
    span.attributes.add(key="rid").value.string_value = "r-1"
    keys = LiftedKeys(task=("fiber",), tenant=("x-corp",), request_id=("rid",))
    row = decoded(request.SerializeToString(), keys=keys).spans.row(0, named=True)
    assert (row["task_id"], row["tenant_id"], row["request_id"]) == ("12", "a,b", "r-1")


def logs_message():
    request = logs_pb2.LogsData()
    owner = request.resource_logs.add()
    owner.resource.attributes.add(key="service.name").value.string_value = "shop"
    group = owner.scope_logs.add()
    group.scope.name = "lib"
    log = group.log_records.add(
        time_unix_nano=5,
        severity_number=17,
        severity_text="ERROR",
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        flags=1,
    )
    log.body.string_value = "it broke"
    for key, value in (
        ("exception.type", "ValueError"),
        ("exception.stacktrace", "a\nb"),
        ("event.name", "boom"),
        ("thread.id", "7"),
    ):
        log.attributes.add(key=key).value.string_value = value
    other = group.log_records.add(observed_time_unix_nano=6, event_name="own")
    other.body.kvlist_value.values.add(key="k").value.int_value = 3
    return request


def test_log_records_become_rows():
    chunk = decoded(logs_message().SerializeToString())
    assert chunk.logs.schema == schema.LOGS
    first, second = chunk.logs.to_dicts()
    assert first["exception_type"] == "ValueError"
    assert first["exception_stacktrace"] == "a\nb"
    assert first["event_name"] == "boom"
    assert first["thread_id"] == 7
    assert first["body"] == "it broke"
    assert first["service_name"] == "shop"
    assert first["trace_id"] == "74" * 16
    assert second["trace_id"] is None
    assert second["body"] == '{"k":3}'
    assert second["event_name"] == "own"
    assert second["time"] is None
    assert second["observed_time"] is not None


def metrics_message():
    request = metrics_pb2.MetricsData()
    group = request.resource_metrics.add().scope_metrics.add()
    gauge = group.metrics.add(name="queue", unit="1").gauge.data_points.add(
        time_unix_nano=5, as_int=3
    )
    gauge.exemplars.add(time_unix_nano=7, as_double=1.5, span_id=b"12345678")
    total = group.metrics.add(name="sent").sum
    total.is_monotonic, total.aggregation_temporality = True, 2
    total.data_points.add(start_time_unix_nano=1, time_unix_nano=5, as_double=2.5)
    histogram = group.metrics.add(name="seconds").histogram
    histogram.aggregation_temporality = 1
    histogram.data_points.add(
        count=3, sum=4.5, explicit_bounds=[1, 2], bucket_counts=[1, 1, 1], min=0.5
    ).attributes.add(key="le").value.bool_value = True
    fine = group.metrics.add(name="fine").exponential_histogram.data_points.add(scale=2, count=1)
    fine.positive.offset = -3
    fine.positive.bucket_counts.append(4)
    group.metrics.add(name="old").summary.data_points.add(count=2).quantile_values.add(
        quantile=0.5, value=3
    )
    group.metrics.add(name="no points")
    return request


def test_metric_points_of_every_type_become_rows():
    chunk = decoded(metrics_message().SerializeToString())
    assert chunk.metrics.schema == schema.METRIC_POINTS
    rows = {row["metric_name"]: row for row in chunk.metrics.to_dicts()}
    assert rows["queue"]["value"] == 3.0
    assert rows["queue"]["temporality"] is None
    assert '"span_id":"3132333435363738"' in rows["queue"]["exemplars"]
    assert (rows["sent"]["is_monotonic"], rows["sent"]["temporality"]) == (True, "CUMULATIVE")
    assert rows["seconds"]["bucket_counts"] == [1, 1, 1]
    assert rows["seconds"]["attributes"] == '{"le":true}'
    assert rows["seconds"]["temporality"] == "DELTA"
    assert rows["fine"]["positive_offset"] == -3
    assert rows["fine"]["positive_bucket_counts"] == [4]
    assert rows["old"]["quantiles"] == [0.5]
    assert rows["old"]["quantile_values"] == [3.0]
    assert set(rows) == {"queue", "sent", "seconds", "fine", "old"}


def test_signals_may_be_mixed_in_one_block():
    chunk = decoded(
        metrics_message().SerializeToString(),
        request_with(name="a").SerializeToString(),
        logs_message().SerializeToString(),
        request_with(name="b").SerializeToString(),
    )
    assert chunk.spans["name"].to_list() == ["a", "b"]
    assert chunk.logs.height == 2
    assert chunk.metrics.height == 5
    assert chunk.messages["spans"].to_list() == [0, 1, 0, 1]
    assert chunk.messages["first_row"].to_list() == [0, 0, 1, 1]
    assert chunk.messages["good"].all()


@pytest.mark.parametrize(
    ("message", "signal"),
    [
        (request_with(start_time_unix_nano=3), "traces"),
        (trace_pb2.TracesData(), "traces"),
        (logs_message(), "logs"),
        (metrics_message(), "metrics"),
    ],
)
def test_the_signal_shows_in_the_wire_types(message, signal):
    assert message_signal(message.SerializeToString()) == signal


def test_a_metric_whose_name_and_description_look_like_ids_is_still_a_metric():
    request = metrics_pb2.MetricsData()
    metric = (
        request.resource_metrics.add()
        .scope_metrics.add()
        .metrics.add(name="n" * 16, description="d" * 8, unit="s")
    )
    metric.sum.data_points.add(time_unix_nano=5)
    assert message_signal(request.SerializeToString()) == "metrics"


def test_times_are_utc_nanoseconds():
    chunk = decoded(
        request_with(
            start_time_unix_nano=1_700_000_000_000_000_001, end_time_unix_nano=0
        ).SerializeToString()
    )
    assert chunk.spans["start_time"].cast(pl.Int64).to_list() == [1_700_000_000_000_000_001]
    assert chunk.spans["start_time"][0].tzinfo is not None
    assert chunk.spans["end_time"].to_list() == [None]
    assert chunk.spans["start_time"][0].astimezone(datetime.UTC).year == 2023


def test_an_empty_block_gives_empty_tables():
    empty = np.array([], dtype=np.int64)
    chunk = decode_block(type(block_of([]))("proto", b"", empty, empty, empty), source="x")
    assert chunk.spans.is_empty()
    assert chunk.messages.is_empty()
