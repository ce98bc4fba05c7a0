import polars as pl

from tests.building import Capture, span_id, trace_id
from tracelab import schema
from tracelab.structure import find_breaks, reduce_bucket, resolve_breaks
from tracelab.synth import inject_breaks, synthesize_traces
from tracelab.traceset import TraceSet


def kinds(capture: Capture) -> dict[str, list[str]]:
    found = find_breaks(capture.traces())
    schema.require_columns(found, schema.BREAKS, name="breaks")
    rows = found.select("kind", "span_id").rows()
    return {kind: [span for other, span in rows if other == kind] for kind, _ in rows}


def test_a_whole_trace_has_no_break():
    capture = Capture().span(1, 1, kind="SERVER").span(1, 2, 1, start=1, duration=2)
    assert find_breaks(capture.traces()).height == 0


def test_no_span_is_no_break():
    assert find_breaks(Capture().traces()).height == 0


def test_a_span_without_its_parent_is_an_orphan_with_the_missing_id():
    capture = Capture().span(1, 1, kind="SERVER").span(1, 2, 7, parent_is_remote=True)
    found = find_breaks(capture.traces())
    row = found.row(0, named=True)
    assert (row["kind"], row["trace_id"], row["span_id"], row["missing_span_id"]) == (
        "orphan_span",
        trace_id(1),
        span_id(2),
        span_id(7),
    )
    assert row["boundary"] == "network"


def test_two_spans_with_one_id_are_reported_once():
    capture = Capture().span(1, 1).span(1, 1, duration=20).span(1, 2, 1)
    found = find_breaks(capture.traces())
    assert found.select("kind", "cause", "span_id").rows() == [
        ("duplicate_span_id", "duplicate_export", span_id(1))
    ]


def test_a_span_that_came_twice_is_not_called_two_spans():
    twice = Capture().span(1, 1, name="x").span(1, 1, name="x", attributes="{}")
    other = Capture().span(1, 1, name="x").span(1, 1, name="y")
    (said,), (said_of_two,) = (find_breaks(each.traces())["evidence"] for each in (twice, other))
    assert "different spans" not in said[0]
    assert said_of_two[0] == "2 different spans carry this id"


def test_a_self_parent_and_a_circle_are_cycles():
    capture = (
        Capture()
        .span(1, 1, 1)
        .span(2, 1, 3, start=0)
        .span(2, 2, 1, start=1)
        .span(2, 3, 2, start=2)
        .span(2, 4, 3, start=2)
    )
    assert kinds(capture)["parent_cycle"] == [span_id(1), span_id(1)]


def test_ids_that_are_no_hex_are_invalid():
    capture = Capture().span("xyz", "q").span(1, 0).span(1, 1)
    assert sorted(kinds(capture)["invalid_id"]) == [span_id(0), "q"]


def test_a_child_after_its_parents_end_is_information():
    capture = Capture().span(1, 1, duration=5).span(1, 2, 1, start=6)
    found = find_breaks(capture.traces())
    assert found.select("kind", "severity").rows() == [("late_child", "info")]


def test_a_break_has_the_same_id_in_any_order_of_rows():
    capture = Capture().span(1, 1, 5).span(2, 2, 6).span(3, 3, 3)
    traces = capture.traces()
    turned = traces.with_tables(spans=traces.spans.reverse())
    assert find_breaks(traces).equals(find_breaks(turned))


def test_buckets_in_any_order_give_the_breaks_of_the_whole():
    whole, _ = inject_breaks(synthesize_traces(seed=3, traces=400), seed=3)
    part = whole.spans["trace_id"].hash(1) % 3

    def bucket(number: int) -> TraceSet:
        ids = whole.spans.filter(part == number)["trace_id"].unique()
        metrics = whole.metrics if number == 0 else whole.metrics.clear()  # belong to no trace
        return whole.select_traces(ids).with_tables(metrics=metrics)

    reduced = [reduce_bucket(bucket(number)) for number in (2, 0, 1)]
    assert resolve_breaks(reduced).equals(find_breaks(whole))


def test_a_circle_of_many_spans_and_equal_ids_end_quickly():
    spans = 20_000
    capture = Capture()
    for number in range(1, spans + 1):
        capture.span(1, number, number % spans + 1, start=number / 1000)
    circle = find_breaks(capture.traces())
    assert circle.filter(circle["kind"] == "parent_cycle").height == 1
    equal = capture.traces().spans.with_columns(
        span_id=pl.lit(span_id(1)), parent_span_id=pl.lit(span_id(1))
    )
    same = find_breaks(capture.traces().with_tables(spans=equal))
    assert set(same["kind"]) == {"duplicate_span_id", "parent_cycle"}


def test_spans_without_times_are_no_obstacle():
    capture = Capture().span(1, 1).span(1, 2, 1).span(2, 3, 9)
    for row in capture.spans:
        row["start_time"] = row["end_time"] = row["duration_ns"] = None
    found = find_breaks(capture.traces())
    assert found.select("kind", "time").rows() == [("orphan_span", None)]
