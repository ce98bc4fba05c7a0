import json

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from otlp_samples import block_of, requests
from polars.testing import assert_frame_equal
from test_decode_proto import logs_message, metrics_message, request_with

from tracelab.exceptions import ParameterError
from tracelab.io.chunk import ROW
from tracelab.io.decode import decode_block
from tracelab.io.write_otlp import OtlpWriter, write_otlp
from tracelab.traceset import TraceSet

SETTINGS = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
SPAN_KEY = ["trace_id", "span_id"]
ENCODINGS = ("json", "proto")


def traces_of(*messages, encoding="proto"):
    chunk = decode_block(block_of([*messages], encoding), source="x")
    return TraceSet(
        chunk.spans.drop(ROW),
        chunk.events.drop(ROW),
        chunk.links.drop(ROW),
        chunk.logs,
        chunk.metrics,
    )


def messages_in(path, encoding):
    content = path.read_bytes()
    if encoding == "json":
        return content.splitlines()
    messages, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        messages.append(content[at + 4 : at + 4 + size])
        at += 4 + size
    return messages


def again(path, encoding):
    return traces_of(*messages_in(path, encoding), encoding=encoding)


def assert_same_capture(found, wanted):
    for name, key in (
        ("spans", SPAN_KEY),
        ("events", [*SPAN_KEY, "event_index"]),
        ("links", [*SPAN_KEY, "linked_span_id", "attributes"]),
        ("logs", ["time", "observed_time", "body"]),
        ("metrics", ["metric_name", "time"]),
    ):
        one, other = getattr(found, name), getattr(wanted, name)
        assert_frame_equal(one.sort(key, maintain_order=True), other.sort(key, maintain_order=True))


def number_spans(request):
    """Give every span ids of its own: events of doubled ids go with the first span."""
    number = 0
    for owner in request.resource_spans:
        for group in owner.scope_spans:
            for span in group.spans:
                number += 1
                span.trace_id, span.span_id = b"t" * 16, number.to_bytes(8, "big")


@pytest.mark.parametrize("encoding", ENCODINGS)
@SETTINGS
@given(request=requests)
def test_what_is_written_reads_as_the_same_tables(tmp_path, encoding, request):
    number_spans(request)
    traces = traces_of(request.SerializeToString())
    path = tmp_path / "out"
    write_otlp(traces, path, encoding=encoding, spans_per_message=2)
    assert_same_capture(again(path, encoding), traces)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_logs_and_metrics_are_written_too(tmp_path, encoding):
    traces = traces_of(
        logs_message().SerializeToString(),
        metrics_message().SerializeToString(),
        request_with().SerializeToString(),
    )
    path = tmp_path / "out"
    write_otlp(traces, path, encoding=encoding)
    assert_same_capture(again(path, encoding), traces)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_writer_takes_captures_one_after_the_other_and_appends(tmp_path, encoding):
    path = tmp_path / "out"
    parts = [traces_of(request_with(span_id=bytes([n] * 8)).SerializeToString()) for n in (1, 2, 3)]
    with OtlpWriter(path, encoding=encoding) as writer:
        writer.write(parts[0])
        writer.write(parts[1])
    with OtlpWriter(path, encoding=encoding, append=True) as writer:
        writer.write(parts[2])
    assert again(path, encoding).spans["span_id"].to_list() == ["01" * 8, "02" * 8, "03" * 8]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_messages_hold_one_resource_and_scope_and_no_more_than_asked(tmp_path, encoding):
    request = request_with()
    for number in range(5):
        request.resource_spans[0].scope_spans[0].spans.add(
            trace_id=b"t" * 16, span_id=bytes([number] * 8), kind=1
        )
    other = request_with(name="other")
    other.resource_spans[0].resource.attributes.add(key="service.name").value.string_value = "shop"
    path = tmp_path / "out"
    write_otlp(
        traces_of(request.SerializeToString(), other.SerializeToString()),
        path,
        encoding=encoding,
        spans_per_message=4,
    )
    chunk = decode_block(block_of(messages_in(path, encoding), encoding), source="x")
    assert sorted(chunk.messages["spans"].to_list()) == [1, 2, 4]


def test_json_is_the_collectors_dialect(tmp_path):
    request = request_with(start_time_unix_nano=5, flags=257)
    request.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="n").value.int_value = 7
    path = tmp_path / "out"
    write_otlp(traces_of(request.SerializeToString()), path)
    span = json.loads(path.read_text())["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert span == {
        "traceId": "74" * 16,
        "spanId": "73" * 8,
        "flags": 257,
        "name": "GET /",
        "kind": 2,
        "startTimeUnixNano": "5",
        "attributes": [{"key": "n", "value": {"intValue": "7"}}],
    }


def test_ids_that_are_no_hex_stay_in_json_and_are_refused_in_protobuf(tmp_path):
    traces = traces_of(request_with().SerializeToString())
    traces = traces.with_tables(spans=traces.spans.with_columns(span_id=pl.lit("span-1")))
    write_otlp(traces, tmp_path / "out")
    assert again(tmp_path / "out", "json").spans["span_id"].to_list() == ["span-1"]
    with pytest.raises(ParameterError, match="'span-1' is no hex"):
        write_otlp(traces, tmp_path / "out", encoding="proto")


def test_events_from_logs_are_not_written_twice(tmp_path):
    traces = traces_of(logs_message().SerializeToString(), request_with().SerializeToString())
    event = {
        "trace_id": traces.spans["trace_id"],
        "span_id": traces.spans["span_id"],
        "event_index": [0],
        "name": ["exception"],
        "attributes": ["{}"],
        "origin": ["log"],
    }
    events = pl.concat([traces.events, pl.DataFrame(event)], how="diagonal_relaxed")
    write_otlp(traces.with_tables(events=events.select(traces.events.columns)), tmp_path / "out")
    found = again(tmp_path / "out", "json")
    assert found.events.is_empty()
    assert found.logs.height == 2


@pytest.mark.parametrize(("name", "value"), [("encoding", "xml"), ("spans_per_message", 0)])
def test_an_argument_out_of_range_is_told(tmp_path, name, value):
    with pytest.raises(ParameterError, match=name):
        OtlpWriter(tmp_path / "out", **{name: value})


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_empty_capture_gives_an_empty_file(tmp_path, encoding):
    write_otlp(traces_of(), tmp_path / "out", encoding=encoding)
    assert (tmp_path / "out").read_bytes() == b""


@given(st.lists(st.sampled_from(["json", "proto"]), min_size=2, max_size=2))
@SETTINGS
def test_both_encodings_say_the_same(tmp_path, order):
    traces = traces_of(
        metrics_message().SerializeToString(), request_with(name='"\\\n').SerializeToString()
    )
    for encoding in order:
        write_otlp(traces, tmp_path / encoding, encoding=encoding)
        assert_same_capture(again(tmp_path / encoding, encoding), traces)
