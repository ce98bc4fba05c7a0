"""One trace, or all services, as a networkx graph; where its time went."""

from typing import TYPE_CHECKING, Any

import polars as pl

from tracelab import schema
from tracelab.exceptions import UnknownTraceError
from tracelab.structure.edges import parent_edges, span_edges
from tracelab.structure.spine import INTACT, build_spine
from tracelab.traceset import TraceSet

if TYPE_CHECKING:
    import networkx as nx

SELF_TIMES = pl.Schema(
    {
        "trace_id": pl.String,
        "span_id": pl.String,
        "duration_ns": pl.Int64,
        "self_time_ns": pl.Int64,
    }
)
"""The table of `self_times`."""

_NODE_COLUMNS = (
    "name",
    "kind",
    "service_name",
    "start_time",
    "end_time",
    "duration_ns",
    "status_code",
    "parent_span_id",
)


def build_span_graph(
    traces: TraceSet, trace_id: str, breaks: pl.DataFrame | None = None
) -> "nx.DiGraph[str]":
    """Build the graph of one trace: spans as nodes, calls as edges.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    trace_id : str
        The trace.
    breaks : pl.DataFrame, optional
        Schema `BREAKS`; proposed parents of this trace's spans, and spans of other traces whose
        proposed parent is here, become edges of relation ``proposed``.

    Returns
    -------
    nx.DiGraph
        Nodes are span ids (of other traces: ``"trace_id:span_id"``) with the columns of the
        span and ``missing`` (True for a parent that is not in the capture). Edges run from
        parent to child with ``relation`` (parent, link, proposed), ``boundary`` and, for
        proposed ones, ``confidence`` and ``break_id``. Cycles of parent links stay as they are.

    Raises
    ------
    UnknownTraceError
        If no span carries this trace id.
    """
    import networkx as nx  # 0.2 s to import; finding breaks does without

    part = traces.trace(trace_id)
    graph: nx.DiGraph[str] = nx.DiGraph(trace_id=part.spans["trace_id"][0])
    for row in part.spans.select("span_id", *_NODE_COLUMNS).iter_rows(named=True):
        graph.add_node(row.pop("span_id"), missing=False, **row)
    for row in span_edges(part).iter_rows(named=True):
        parent, child = row["parent_span_id"], row["child_span_id"]
        if row["relation"] == "link" and graph.has_edge(parent, child):
            continue
        graph.add_edge(
            parent,
            child,
            relation=row["relation"],
            boundary=row["boundary"],
            boundary_evidence=row["boundary_evidence"],
        )
    _add_missing(graph, part.spans)
    _add_links(graph, part)
    if breaks is not None:
        _add_proposals(graph, breaks, part.spans["trace_id"][0])
    return graph


def _add_missing(graph: "nx.DiGraph[str]", spans: pl.DataFrame) -> None:
    orphans = spans.filter(
        pl.col("parent_span_id").is_not_null()
        & ~pl.col("parent_span_id").is_in(spans["span_id"].implode())
    )
    for child, parent in orphans.select("span_id", "parent_span_id").rows():
        graph.add_node(parent, missing=True)
        graph.add_edge(parent, child, relation="parent", boundary="unknown")


def _add_links(graph: "nx.DiGraph[str]", part: TraceSet) -> None:
    """Links to other traces; those within the trace are edges already."""
    own = graph.graph["trace_id"]
    for row in part.links.iter_rows(named=True):
        if row["linked_trace_id"] == own and row["linked_span_id"] in graph:
            continue
        other = f"{row['linked_trace_id']}:{row['linked_span_id']}"
        graph.add_node(other, missing=True)
        graph.add_edge(other, row["span_id"], relation="link", boundary="unknown")


def _add_proposals(graph: "nx.DiGraph[str]", breaks: pl.DataFrame, trace_id: str) -> None:
    proposed = breaks.filter(
        pl.col("proposed_span_id").is_not_null()
        & ((pl.col("trace_id") == trace_id) | (pl.col("proposed_trace_id") == trace_id))
    )
    for row in proposed.iter_rows(named=True):
        child = _node(row["trace_id"], row["span_id"], trace_id)
        parent = _node(row["proposed_trace_id"], row["proposed_span_id"], trace_id)
        for node in (child, parent):
            if node not in graph:
                graph.add_node(node, missing=False)
        graph.add_edge(
            parent,
            child,
            relation="proposed",
            boundary=row["boundary"],
            confidence=row["proposed_confidence"],
            break_id=row["break_id"],
        )


def _node(trace_id: str, span_id: str, own: str) -> str:
    return span_id if trace_id == own else f"{trace_id}:{span_id}"


def critical_path(graph: "nx.DiGraph[str]") -> list[dict[str, Any]]:
    """Tell which spans the end of a trace waited for, and how long.

    Walks back from the end of the root that ends last: within a span the child that ended last
    before the moment is what it waited for; children that end after their parent (fire and
    forget) are cut at the parent's end, because nobody waited for the rest.

    Parameters
    ----------
    graph : nx.DiGraph
        From `build_span_graph`.

    Returns
    -------
    list of dict
        Segments in order of time, without gaps: ``span_id``, ``start_time``, ``end_time`` and
        ``duration_ns``. Empty for a trace without times.

    Raises
    ------
    UnknownTraceError
        If the graph holds no span.
    """
    spans = {
        node: facts
        for node, facts in graph.nodes(data=True)
        if facts.get("start_time") is not None and facts.get("end_time") is not None
    }
    if not graph.number_of_nodes():
        raise UnknownTraceError("the graph holds no span; build it with build_span_graph")
    if not spans:
        return []
    children: dict[str, list[str]] = {node: [] for node in spans}
    has_parent = set()
    for parent, child, facts in graph.edges(data=True):
        if facts["relation"] == "parent" and parent in spans and child in spans and parent != child:
            children[parent].append(child)
            has_parent.add(child)
    roots = [node for node in spans if node not in has_parent] or list(spans)
    last = max(roots, key=lambda node: (spans[node]["end_time"], node))
    segments: list[tuple[str, Any, Any]] = []
    seen = {last}
    # A stack of (span, moment up to which it is still to be explained), latest first.
    stack = [(last, spans[last]["end_time"], spans[last]["start_time"])]
    while stack:
        node, moment, floor = stack.pop()
        begin = max(spans[node]["start_time"], floor)
        waited = [
            child
            for child in children[node]
            if child not in seen
            and spans[child]["start_time"] < moment
            and spans[child]["end_time"] > begin
        ]
        if not waited:
            if moment > begin:
                segments.append((node, begin, moment))
            continue
        child = max(waited, key=lambda other: (min(spans[other]["end_time"], moment), other))
        seen.add(child)
        child_end = min(spans[child]["end_time"], moment)
        child_begin = max(spans[child]["start_time"], begin)
        if moment > child_end:
            segments.append((node, child_end, moment))
        stack.append((node, child_begin, floor))
        stack.append((child, child_end, child_begin))
    segments.sort(key=lambda part: (part[1], part[2]))
    return [
        {
            "span_id": node,
            "start_time": begin,
            "end_time": end,
            "duration_ns": int((end - begin).total_seconds() * 1e6) * 1000,
        }
        for node, begin, end in segments
    ]


def error_path(graph: "nx.DiGraph[str]") -> list[str]:
    """Tell which spans an error passed through, from its origin to the root.

    Parameters
    ----------
    graph : nx.DiGraph
        From `build_span_graph`.

    Returns
    -------
    list of str
        Span ids from the deepest failed span upward, as long as the parents failed too; of
        several the longest, then the earliest. Empty if nothing failed.

    Raises
    ------
    UnknownTraceError
        If the graph holds no span.
    """
    if not graph.number_of_nodes():
        raise UnknownTraceError("the graph holds no span; build it with build_span_graph")
    failed = {node for node, facts in graph.nodes(data=True) if facts.get("status_code") == "ERROR"}
    above = {
        child: parent
        for parent, child, facts in graph.edges(data=True)
        if facts["relation"] == "parent" and parent in failed and child in failed
    }
    best: list[str] = []
    for node in sorted(failed - set(above.values())) or sorted(failed):
        path, here = [node], node
        while here in above and above[here] not in path:
            here = above[here]
            path.append(here)
        if len(path) > len(best):
            best = path
    return best


def self_times(traces: TraceSet) -> pl.DataFrame:
    """Tell how long each span worked itself: its duration without the time of its children.

    Children that overlap each other count once, and only as far as they lie within their
    parent.

    Parameters
    ----------
    traces : TraceSet
        The capture.

    Returns
    -------
    pl.DataFrame
        ``trace_id``, ``span_id``, ``duration_ns``, ``self_time_ns``, in the order of the spans;
        null where times are missing.

    Raises
    ------
    SchemaError
        Never for a `TraceSet`.
    """
    spine = build_spine(traces).spans.with_row_index("row")
    times = spine.select("start", "end")
    kids = spine.filter((pl.col("state") == INTACT) & (pl.col("row") != pl.col("parent_row")))
    parent = times[kids["parent_row"].to_numpy()]
    inside = (
        pl.DataFrame(
            {
                "parent": kids["parent_row"],
                "start": pl.select(pl.max_horizontal(kids["start"], parent["start"])).to_series(),
                "end": pl.select(pl.min_horizontal(kids["end"], parent["end"])).to_series(),
            }
        )
        .drop_nulls()
        .filter(pl.col("end") > pl.col("start"))
        .sort("parent", "start", "end")
    )
    reached = pl.col("end").cum_max().shift(1).over("parent")
    covered = (
        inside.with_columns(begin=pl.max_horizontal("start", reached.fill_null(0)))
        .group_by("parent")
        .agg((pl.col("end") - pl.col("begin")).clip(lower_bound=0).sum().alias("covered"))
    )
    joined = (
        spine.select(pl.col("row").cast(pl.Int64), duration_ns=pl.col("end") - pl.col("start"))
        .join(covered, left_on="row", right_on="parent", how="left", maintain_order="left")
        .with_columns(self_time_ns=pl.col("duration_ns") - pl.col("covered").fill_null(0))
    )
    return traces.spans.select("trace_id", "span_id").hstack(
        joined.select("duration_ns", "self_time_ns")
    )


def build_service_graph(traces: TraceSet, breaks: pl.DataFrame | None = None) -> "nx.DiGraph[str]":
    """Build the graph of services: who calls whom, how often, and how often that broke.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    breaks : pl.DataFrame, optional
        Schema `BREAKS`; those with both ends known and a severity above info count.

    Returns
    -------
    nx.DiGraph
        Nodes are service names with ``spans`` and ``errors``; edges have ``calls``,
        ``boundary`` (the most frequent), ``breaks`` and ``break_rate`` (breaks among calls and
        breaks). Calls within a service are left out.

    Raises
    ------
    SchemaError
        If `breaks` lacks a column.
    """
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    services = traces.spans.group_by(pl.col("service_name").fill_null("unknown")).agg(
        pl.len().alias("spans"), (pl.col("status_code") == "ERROR").sum().alias("errors")
    )
    for name, spans, errors in services.sort("service_name").rows():
        graph.add_node(name, spans=spans, errors=errors)
    edges = parent_edges(traces, build_spine(traces)).select(
        pl.col("parent_service", "child_service").fill_null("unknown"), "boundary"
    )
    calls = (
        edges.filter(pl.col("parent_service") != pl.col("child_service"))
        .group_by("parent_service", "child_service")
        .agg(pl.len().alias("calls"), pl.col("boundary").mode().sort().first())
        .sort("parent_service", "child_service")
    )
    for parent, child, count, boundary in calls.rows():
        graph.add_edge(parent, child, calls=count, boundary=boundary, breaks=0, break_rate=0.0)
    if breaks is not None:
        schema.require_columns(breaks, ("from_service", "to_service", "severity"), name="breaks")
        _count_breaks(graph, breaks)
    return graph


def _count_breaks(graph: "nx.DiGraph[str]", breaks: pl.DataFrame) -> None:
    hops = (
        breaks.filter(
            (pl.col("severity") != "info")
            & pl.col("from_service").is_not_null()
            & pl.col("to_service").is_not_null()
            & (pl.col("from_service") != pl.col("to_service"))
        )
        .group_by("from_service", "to_service")
        .len()
        .sort("from_service", "to_service")
    )
    for parent, child, count in hops.rows():
        if not graph.has_edge(parent, child):
            graph.add_edge(parent, child, calls=0, boundary="unknown")
        edge = graph.edges[parent, child]
        edge["breaks"] = count
        edge["break_rate"] = count / (edge["calls"] + count)


def ancestors(graph: "nx.DiGraph[str]", span_id: str) -> list[str]:
    """List the ancestors of a span by parent links, nearest first.

    Parameters
    ----------
    graph : nx.DiGraph
        From `build_span_graph`.
    span_id : str
        A node.

    Returns
    -------
    list of str
        Missing parents included; a cycle is walked once.

    Raises
    ------
    UnknownTraceError
        If the span is not in the graph.
    """
    if span_id not in graph:
        raise UnknownTraceError(f"no span {span_id} in trace {graph.graph.get('trace_id')}")
    found: list[str] = []
    here = span_id
    while True:
        parents = [
            parent
            for parent, _, facts in graph.in_edges(here, data=True)
            if facts["relation"] == "parent"
        ]
        if not parents or parents[0] in found or parents[0] == span_id:
            return found
        here = parents[0]
        found.append(here)
