"""Jaeger's own JSON: the same trace as OTLP, and the rules of its references, tags and ids."""

import io
import json

import pytest
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab.io.jaeger import jaeger_request

TRACE = "0af7651916cd43dd8448eb211c80319c"


def jaeger_span(span="b1", **fields):
    return {
        "traceID": TRACE,
        "spanID": span,
        "operationName": "GET /cart",
        "references": [],
        "startTime": 1_700_000_000_000_001,
        "duration": 1_500,
        "tags": [],
        "logs": [],
        "processID": "p1",
        **fields,
    }


def child_of(span, trace=TRACE, kind="CHILD_OF"):
    return {"refType": kind, "traceID": trace, "spanID": span}


def read(*spans, processes=None, wrap=True, **fields):
    processes = processes or {"p1": {"serviceName": "cart", "tags": []}}
    trace = {"traceID": TRACE, "spans": list(spans), "processes": processes, **fields}
    value = {"data": [trace], "total": 0, "errors": None} if wrap else trace
    return tl.read_traces(io.BytesIO(json.dumps(value).encode()))


def only(table):
    assert table.height == 1
    return table.row(0, named=True)


def test_times_are_microseconds():
    span = only(read(jaeger_span()).spans)
    assert span["start_time"].timestamp() == pytest.approx(1_700_000_000.000001)
    assert span["duration_ns"] == 1_500_000


def test_a_span_that_starts_at_zero_keeps_its_end():
    span = only(read(jaeger_span(startTime=0, duration=100)).spans)
    assert span["end_time"].timestamp() == pytest.approx(0.0001)


@pytest.mark.parametrize("trace_id", ["f7651916cd43dd", "1", TRACE])
def test_short_ids_are_padded_on_the_left(trace_id):
    references = [child_of("2", trace=trace_id)]
    span = only(read(jaeger_span("1", traceID=trace_id, references=references)).spans)
    assert span["trace_id"] == trace_id.rjust(32, "0")
    assert (span["span_id"], span["parent_span_id"]) == ("1".rjust(16, "0"), "2".rjust(16, "0"))


def test_an_id_that_is_no_hex_stays_as_it_came():
    span = only(read(jaeger_span("S", traceID="T")).spans)
    assert (span["trace_id"], span["span_id"]) == ("T", "S")


def test_the_first_child_of_this_trace_is_the_parent_and_the_others_are_links():
    other = "f" * 32
    references = [
        child_of("ff", trace=other),
        child_of("aa"),
        child_of("bb"),
        child_of("cc", kind="FOLLOWS_FROM"),
    ]
    traces = read(jaeger_span(references=references))
    assert only(traces.spans)["parent_span_id"] == "aa".rjust(16, "0")
    assert traces.links.select("linked_trace_id", "linked_span_id", "attributes").rows() == [
        (other, "ff".rjust(16, "0"), '{"opentracing.ref_type":"child_of"}'),
        (TRACE, "bb".rjust(16, "0"), '{"opentracing.ref_type":"child_of"}'),
        (TRACE, "cc".rjust(16, "0"), '{"opentracing.ref_type":"follows_from"}'),
    ]


def test_an_only_follows_from_is_the_parent():
    traces = read(jaeger_span(references=[child_of("aa", kind="FOLLOWS_FROM")]))
    assert only(traces.spans)["parent_span_id"] == "aa".rjust(16, "0")
    assert traces.links.height == 0


def test_an_only_follows_from_of_another_trace_is_a_link():
    traces = read(jaeger_span(references=[child_of("aa", trace="e" * 32, kind="FOLLOWS_FROM")]))
    assert only(traces.spans)["parent_span_id"] is None
    assert only(traces.links)["linked_trace_id"] == "e" * 32


def tag(key, value, kind="string"):
    return {"key": key, "type": kind, "value": value}


def test_tags_become_fields_and_attributes_of_their_type():
    tags = [
        tag("span.kind", "server"),
        tag("http.status_code", 503, "int64"),
        tag("big", "9223372036854775222", "int64"),
        tag("ratio", 2, "float64"),
        tag("blob", "AAAwOQ==", "binary"),
        tag("flag", True, "bool"),
        tag("otel.scope.name", "lib"),
        tag("otel.status_code", "ERROR"),
        tag("otel.status_description", "it broke"),
        tag("error", True, "bool"),
    ]
    span = only(read(jaeger_span(tags=tags, flags=1)).spans)
    assert (span["kind"], span["scope_name"], span["flags"]) == ("SERVER", "lib", 1)
    assert (span["status_code"], span["status_message"]) == ("ERROR", "it broke")
    assert span["http_response_status_code"] == 503
    assert json.loads(span["attributes"]) == {
        "http.status_code": 503,
        "big": 9223372036854775222,
        "ratio": 2.0,
        "blob": {"bytes": "AAAwOQ=="},
        "flag": True,
        "error": True,
    }


@pytest.mark.parametrize(
    ("error", "status"), [(True, "ERROR"), ("true", "ERROR"), (False, "UNSET")]
)
def test_the_error_tag_sets_the_status(error, status):
    kind = "string" if isinstance(error, str) else "bool"
    assert only(read(jaeger_span(tags=[tag("error", error, kind)])).spans)["status_code"] == status


def test_logs_become_events_named_by_their_event_field():
    fields = [tag("event", "exception"), tag("exception.type", "ValueError")]
    log = {"timestamp": 1_700_000_000_000_002, "fields": fields}
    event = only(read(jaeger_span(logs=[log])).events)
    assert (event["name"], event["exception_type"]) == ("exception", "ValueError")
    assert event["time"].timestamp() == pytest.approx(1_700_000_000.000002)


def test_processes_become_resources():
    process = {
        "serviceName": "cart",
        "tags": [tag("host.name", "h1"), tag("process.pid", 7, "int64")],
    }
    other = {"serviceName": "stock", "tags": []}
    traces = read(
        jaeger_span("a"), jaeger_span("b", processID="p2"), processes={"p1": process, "p2": other}
    )
    assert traces.spans.select("service_name", "host_name", "process_pid").rows() == [
        ("cart", "h1", 7),
        ("stock", None, None),
    ]


def test_warnings_are_kept():
    traces = read(jaeger_span(warnings=["clock skew"]), warnings=["trace is cut"])
    span = only(traces.spans)
    assert json.loads(span["attributes"]) == {"@jaeger@warnings": ["clock skew"]}
    assert json.loads(span["resource_attributes"])["@jaeger@warnings"] == ["trace is cut"]


def test_a_bare_trace_reads_like_a_wrapped_one():
    wrapped, bare = read(jaeger_span()), read(jaeger_span(), wrap=False)
    assert_frame_equal(wrapped.spans, bare.spans)
    assert bare.ingest["form"].to_list() == ["jaeger-json-lines"]


def test_several_documents_in_one_file_are_all_read():
    documents = [
        {"data": [{"traceID": TRACE, "spans": [jaeger_span(f"{n:x}")], "processes": {}}]}
        for n in range(1, 6)
    ]
    for data in (
        "\n".join(json.dumps(each) for each in documents),
        "\n".join(json.dumps(each, indent=2) for each in documents),
        "".join(json.dumps(each) for each in documents),
        json.dumps(documents),
    ):
        assert tl.read_traces(io.BytesIO(data.encode())).spans.height == 5


@pytest.mark.parametrize(
    "spoilt",
    [
        {"tags": None},
        {"logs": "none"},
        {"references": {}},
        {"tags": [3, {"key": None}]},
        {"duration": "long"},
        {"startTime": None},
        {"startTime": 1.7e15},
        {"startTime": 10**30},
        {"spanID": None},
        {"flags": "1"},
        {"processID": ["p1"]},
        {"operationName": None},
    ],
)
def test_a_spoilt_field_costs_at_most_its_span(spoilt):
    traces = read(jaeger_span("a"), jaeger_span("b", **spoilt))
    assert "a".rjust(16, "0") in traces.spans["span_id"].to_list()
    assert traces.spans.height == 2 or traces.rejects.height


def test_a_span_that_is_no_object_is_reported():
    traces = read(jaeger_span("a"), "not a span", 7)
    assert traces.spans.height == 1
    assert traces.rejects.height


def test_jaegers_own_translation_of_a_trace_gives_the_same_spans(shared_data, tmp_path):
    import tarfile

    with tarfile.open(shared_data / "jaegertracing-jaeger__fixtures.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    pair = [next(tmp_path.rglob(f"otlp2jaeger-{end}.json")) for end in ("in", "out")]
    otlp, jaeger = (tl.read_traces(path) for path in pair)
    columns = [
        "trace_id", "span_id", "parent_span_id", "name", "kind", "status_code",
        "service_name", "scope_name", "duration_ns", "attributes",
    ]  # fmt: skip
    assert_frame_equal(otlp.spans.select(columns), jaeger.spans.select(columns))
    assert otlp.ingest["spans_duplicate"][0] == jaeger.ingest["spans_duplicate"][0] == 1


def test_an_empty_trace_gives_an_empty_request():
    assert jaeger_request({}) == {"resourceSpans": []}
