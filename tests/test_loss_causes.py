"""What made spans go missing: for each sign of a cause, a look-alike that must not show it."""

import numpy as np
import polars as pl
import pytest

from tests.building import Capture
from tests.test_structure_causes import LOCAL, REMOTE, calls, exporting, loud, served_by
from tracelab import schema
from tracelab.structure import find_breaks
from tracelab.structure.missing import find_missing
from tracelab.structure.owners import find_owners
from tracelab.structure.raggedness import measure_edges
from tracelab.structure.skeleton import Skeleton


def skeleton_of(capture: Capture) -> Skeleton:
    return Skeleton.of(capture.traces())


def causes(capture: Capture, **tables: pl.DataFrame) -> dict[str, int]:
    found = find_breaks(capture.traces(**tables))
    found = found.filter(pl.col("kind").is_in(["orphan_span", "missing_server"]))
    return dict(found.group_by("cause").len().rows())


def test_calls_that_go_unanswered_in_one_spell_only_lack_their_server_span():
    lost = set(range(60, 84, 2)) | {61, 67, 71}
    missed = loud(calls(110, lost=lost))
    assert missed["kind"].to_list() == ["missing_server"] * len(lost)


def test_as_many_unanswered_calls_at_all_times_are_those_of_a_silent_instance():
    rng = np.random.default_rng(1)
    strewn = set(rng.choice(np.arange(2, 110), size=15, replace=False).tolist())
    assert loud(calls(110, lost=strewn)).height == 0


def replicas(alive: list[tuple[str, int, int]], *, lost: set[int]) -> Capture:
    """Requests to b, answered by the instances that take turns while they live."""
    capture = Capture()
    for number in range(1, 301):
        at = number * 60.0
        capture.span(number, 1, start=at, duration=10, kind="SERVER", name="GET /", service="a")
        capture.span(
            number, 2, 1, start=at + 1, duration=8, kind="CLIENT", name="GET", service="a", **LOCAL
        )
        here = [name for name, first, last in alive if first <= number <= last]
        if number in lost or not here:
            continue
        capture.span(
            number, 3, 2, start=at + 2, duration=5, kind="SERVER", name="GET /b", service="b",
            service_instance_id=here[number % len(here)], **REMOTE,
        )  # fmt: skip
    return capture


def owners(capture: Capture) -> list[tuple[str, float]]:
    skeleton = skeleton_of(capture)
    missing = find_missing(skeleton, np.zeros(skeleton.n))
    found = find_owners(skeleton, missing, measure_edges(skeleton)[0])
    names = skeleton.processes["service_instance_id"]
    return [(names[int(code)], odds) for code, odds in zip(found.process, found.odds, strict=True)]


def test_what_is_lost_as_a_process_ends_was_most_likely_its_own():
    lost = set(range(151, 156))
    told = owners(replicas([("old", 1, 150), ("new", 156, 300)], lost=lost))
    assert [name for name, _ in told] == ["old"] * 5
    assert min(odds for _, odds in told) > 5


def test_a_busy_process_loses_more_than_one_that_was_seen_for_a_moment():
    lost = set(range(151, 171))
    told = owners(replicas([("busy", 1, 300), ("brief", 100, 104)], lost=lost))
    assert [name for name, _ in told] == ["busy"] * 20


def exporting_each_five_seconds(*, ragged: bool) -> Capture:
    """Eight busy services; with a ragged edge, each is heard from and up to a batch of its own."""
    rng = np.random.default_rng(4)
    capture = Capture()
    for service in range(8):
        phase = 5_000 * rng.random() if ragged else 0.0
        for number, at in enumerate(np.cumsum(rng.exponential(50, 1_200)).tolist()):
            if phase <= at <= 50_000 - phase:
                capture.span(
                    10_000 * service + number + 1, 1, start=at, service=f"s{service}",
                    service_instance_id=f"s{service}-1",
                )  # fmt: skip
    return capture


def test_an_edge_at_which_processes_fall_silent_one_by_one_is_ragged():
    begin, end = measure_edges(skeleton_of(exporting_each_five_seconds(ragged=True)))
    assert begin.odds > 20
    assert end.odds > 20


def test_an_edge_up_to_which_all_processes_are_heard_is_sharp():
    begin, end = measure_edges(skeleton_of(exporting_each_five_seconds(ragged=False)))
    assert begin.odds < 0.05
    assert end.odds < 0.05


def test_losses_in_several_gaps_that_are_close_are_those_of_a_full_queue():
    scattered = exporting([(300 + 9 * k, 300 + 9 * k + 5) for k in range(6)])
    given = causes(scattered)
    assert max(given, key=given.get) == "queue_overflow"
    assert "export_failure" not in given
    assert "queue_overflow" not in causes(exporting([(300, 330)]))


def counted_failures(service: str) -> pl.DataFrame:
    """One point of the metric in which an SDK counts what it could not send."""
    point = {
        "metric_name": "otel.sdk.exporter.span.exported",
        "service_name": service,
        "attributes": '{"error.type":"503"}',
        "value": 40.0,
        "temporality": "DELTA",
    }
    return schema.conform(pl.DataFrame([point]), schema.METRIC_POINTS)


def test_counted_failures_explain_losses_in_a_gap_and_none_beside_exported_spans():
    metrics = counted_failures("svc")
    assert causes(exporting([(401, 463)]), metrics=metrics).keys() == {"export_failure"}
    single = exporting([(place, place + 1) for place in range(100, 800, 60)])
    given = causes(single, metrics=metrics)
    assert given["unknown"] > given.get("export_failure", 0)


def failing(*, missing: str) -> Capture:
    """Calls to c; some fail, and some of the client spans are never exported."""
    capture = Capture()
    for number in range(1, 201):
        at = number * 50.0
        fails = number % 10 == 0 if missing == "failed" else number > 180
        gone = fails
        capture.span(number, 1, start=at, duration=20, kind="SERVER", name="GET /", service="b")
        if not gone:
            capture.span(
                number, 2, 1, start=at + 1, duration=15, kind="CLIENT", name="GET", service="b",
                **LOCAL,
            )  # fmt: skip
        capture.span(
            number, 3, 2, start=at + 2, duration=5, kind="SERVER", name="GET /c", service="c",
            status_code="ERROR" if fails else "UNSET", **REMOTE,
        )  # fmt: skip
    return capture


def test_client_spans_that_are_missing_only_where_the_call_failed_were_never_ended():
    assert causes(failing(missing="failed")).get("span_never_ended", 0) >= 18


def test_client_spans_that_are_missing_from_some_time_on_are_not_told_by_the_failures_since():
    assert "span_never_ended" not in causes(failing(missing="late"))


def test_callers_that_are_missing_in_stretches_were_lost():
    stretches = {number for number in range(1, 201) if number % 40 < 12}
    given = causes(served_by(stretches, spans_of_b=200))
    assert given.get("uninstrumented_hop", 0) == 0


@pytest.mark.parametrize(("others", "told"), [(False, True), (True, False)])
def test_an_answer_to_another_call_than_it_names_tells_of_a_hop_where_no_call_is_lost(others, told):
    capture = calls(60, lost={12, 25, 44, 51} if others else set())
    for row in capture.spans:
        if row["service_name"] == "b" and row["trace_id"].endswith(("1e", "28")):
            row["parent_span_id"] = f"{4_000_000:016x}"
    found = find_breaks(capture.traces()).filter(pl.col("kind") == "orphan_span")
    assert ((found["cause"] == "uninstrumented_hop") & (found["confidence"] > 0.8)).all() == told
