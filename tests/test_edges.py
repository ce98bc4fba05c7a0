import pytest

from tests.building import Capture
from tracelab.structure import span_edges

LOCAL = {"parent_is_remote": False}
REMOTE = {"parent_is_remote": True}


def edge(parent: dict, child: dict) -> tuple[str, str]:
    capture = Capture().span(1, 1, **parent).span(1, 2, 1, start=1, duration=2, **child)
    row = span_edges(capture.traces()).row(0, named=True)
    return row["boundary"], row["boundary_evidence"]


@pytest.mark.parametrize(
    ("boundary", "parent", "child"),
    [
        ("same", {}, LOCAL),
        ("same", {"thread_id": 1}, {"thread_id": 1, **LOCAL}),
        ("thread", {"thread_id": 1}, {"thread_id": 2, **LOCAL}),
        (
            "thread",
            {"thread_id": 1, "thread_name": "a"},
            {"thread_id": 1, "thread_name": "b"},
        ),
        ("task", {"task_id": "7"}, {"task_id": "9", **LOCAL}),
        ("task", {"task_id": "7", "thread_id": 1}, {"task_id": "9", "thread_id": 1}),
        ("network", {"kind": "CLIENT"}, {"kind": "SERVER", "service": "b"}),
        ("network", {"kind": "CLIENT"}, {"kind": "SERVER", **REMOTE}),
        ("network", {"host_name": "x"}, {"host_name": "y", "service": "b"}),
        ("process", {"host_name": "x"}, {"host_name": "x", "service": "b", **REMOTE}),
        ("process", {"process_pid": 1, "host_name": "x"}, {"process_pid": 2, "host_name": "x"}),
        (
            "process",
            {"kind": "CLIENT", "server_address": "127.0.0.1"},
            {"kind": "SERVER", **REMOTE},
        ),
        ("queue", {"kind": "PRODUCER"}, {"kind": "CONSUMER", "service": "b"}),
        ("queue", {}, {"kind": "CONSUMER", "service": "b", **REMOTE}),
        ("same", {"kind": "CONSUMER"}, {"kind": "CONSUMER", **LOCAL}),
        ("same", {"service": "a"}, {"service": "b", **LOCAL}),
    ],
)
def test_the_boundary_is_read_from_what_the_spans_say(boundary, parent, child):
    assert edge(parent, child)[0] == boundary


def test_a_goroutine_is_read_from_a_recorded_go_stack():
    capture = Capture().span(1, 1, task_id="18").span(1, 2, 1, **LOCAL)
    capture.event(1, 2, exception_stacktrace="goroutine 34 [running]:\nmain.work()")
    edges = span_edges(capture.traces())
    assert edges["boundary"].to_list() == ["task"]


def test_gaps_are_child_minus_parent():
    capture = Capture().span(1, 1, duration=10).span(1, 2, 1, start=2, duration=3)
    row = span_edges(capture.traces()).row(0, named=True)
    assert (row["start_gap_ns"], row["end_gap_ns"]) == (2_000_000, -5_000_000)


def test_a_link_is_an_edge_from_the_linked_span():
    capture = Capture().span(1, 1, kind="PRODUCER").span(2, 2, kind="CONSUMER").link(2, 2, 1, 1)
    row = span_edges(capture.traces()).row(0, named=True)
    assert (row["relation"], row["boundary"]) == ("link", "queue")
    assert row["parent_span_id"].endswith("1")
    assert row["child_span_id"].endswith("2")


def test_an_orphan_has_no_edge():
    assert span_edges(Capture().span(1, 1, 5).traces()).height == 0
