import itertools

import networkx as nx
import pytest

from tests.building import Capture, span_id, trace_id
from tracelab.exceptions import UnknownTraceError
from tracelab.structure import (
    ancestors,
    build_service_graph,
    build_span_graph,
    critical_path,
    error_path,
    find_breaks,
    self_times,
)

ROOT, FIRST, SECOND, ASYNC = (span_id(number) for number in (1, 2, 3, 4))


def fan_out():
    return (
        Capture()
        .span(1, 1, start=0, duration=100, kind="SERVER", service="a")
        .span(1, 2, 1, start=10, duration=40, kind="CLIENT", service="a")
        .span(1, 3, 1, start=20, duration=60, kind="SERVER", service="b")
        .span(1, 4, 1, start=90, duration=500, name="background")
    )


def test_spans_and_calls_become_nodes_and_edges():
    graph = build_span_graph(fan_out().traces(), trace_id(1))
    assert isinstance(graph, nx.DiGraph)
    assert set(graph) == {ROOT, FIRST, SECOND, ASYNC}
    assert graph.edges[ROOT, SECOND]["relation"] == "parent"
    assert graph.edges[ROOT, SECOND]["boundary"] == "network"


def test_a_missing_parent_is_a_node_that_says_so():
    graph = build_span_graph(Capture().span(1, 2, 9).traces(), trace_id(1))
    assert graph.nodes[span_id(9)]["missing"]
    assert ancestors(graph, span_id(2)) == [span_id(9)]


def test_a_link_to_another_trace_is_an_edge_of_its_own_kind():
    capture = Capture().span(1, 1).span(2, 2).link(2, 2, 1, 1)
    graph = build_span_graph(capture.traces(), trace_id(2))
    assert graph.edges[f"{trace_id(1)}:{span_id(1)}", span_id(2)]["relation"] == "link"


def test_an_unknown_trace_is_named():
    with pytest.raises(UnknownTraceError, match="no trace"):
        build_span_graph(fan_out().traces(), trace_id(7))


def test_the_critical_path_covers_the_root_without_gaps():
    path = critical_path(build_span_graph(fan_out().traces(), trace_id(1)))
    spans = [(part["span_id"], part["duration_ns"] // 1_000_000) for part in path]
    assert spans == [(ROOT, 10), (FIRST, 10), (SECOND, 60), (ROOT, 10), (ASYNC, 10)]
    assert all(a["end_time"] == b["start_time"] for a, b in itertools.pairwise(path))


def test_the_critical_path_of_a_circle_ends():
    capture = Capture().span(1, 1, 2).span(1, 2, 1)
    assert critical_path(build_span_graph(capture.traces(), trace_id(1)))


def test_self_time_counts_overlapping_children_once():
    times = self_times(fan_out().traces())
    own = dict(times.select("span_id", "self_time_ns").rows())
    assert own[ROOT] == (100 - 70 - 10) * 1_000_000
    assert own[FIRST] == 40_000_000


def test_the_error_path_runs_from_the_origin_to_the_last_failed_caller():
    capture = (
        Capture()
        .span(1, 1, duration=9)
        .span(1, 2, 1, status_code="ERROR")
        .span(1, 3, 2, status_code="ERROR")
        .span(1, 4, 1, status_code="ERROR")
    )
    graph = build_span_graph(capture.traces(), trace_id(1))
    assert error_path(graph) == [span_id(3), span_id(2)]


def test_the_service_graph_counts_calls():
    graph = build_service_graph(fan_out().traces())
    assert graph.edges["a", "b"]["calls"] == 1
    assert graph.nodes["a"]["spans"] == 2


def test_breaks_count_on_the_hop_of_the_service_graph():
    capture = Capture()
    for number in range(40):
        capture.span(number + 1, 1, start=number * 50, kind="CLIENT", service="a")
        if number != 20:
            capture.span(
                number + 1, 2, 1, start=number * 50 + 1, duration=5, kind="SERVER", service="b"
            )
    traces = capture.traces()
    graph = build_service_graph(traces, find_breaks(traces))
    assert graph.edges["a", "b"]["breaks"] == 1
    assert graph.edges["a", "b"]["break_rate"] == pytest.approx(1 / 40)
