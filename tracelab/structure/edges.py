"""Parent and link edges of all traces, and the boundary that each of them crosses."""

import polars as pl

from tracelab import schema
from tracelab.structure.spine import CROSSINGS, INTACT, Spine, build_spine, take_rows
from tracelab.traceset import TraceSet


def span_edges(traces: TraceSet, *, spine: Spine | None = None) -> pl.DataFrame:
    """List every parent-to-child and link edge with the boundary it crosses.

    The boundary is read from what the spans say: kinds (a producer's message read by a
    consumer, a client's call answered by a server), the is-remote bits of the flags, host,
    process and service identity, then thread and task ids within one process.
    `boundary_evidence` names what decided.

    Parameters
    ----------
    traces : TraceSet
        A capture. A parent that is not in it makes no edge; `find_breaks` lists those.
    spine : Spine, optional
        That of `build_spine`, where it was built already; it saves half the work.

    Returns
    -------
    pl.DataFrame
        Schema `EDGES`: parent edges in the order of the child spans, then link edges (from
        the linked span, as parent, to the span that carries the link) in the order of
        ``traces.links``. Gaps are null where a time is unknown.

    Raises
    ------
    SchemaError
        If a table lacks a column (a `TraceSet` made by hand is checked when it is made).
    """
    spine = build_spine(traces) if spine is None else spine
    return pl.concat([parent_edges(traces, spine), link_edges(traces)])


def parent_edges(traces: TraceSet, spine: Spine) -> pl.DataFrame:
    """List the parent edges of a capture whose spine is known.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    spine : Spine
        Its spine, rows in the order of ``traces.spans``.

    Returns
    -------
    pl.DataFrame
        Schema `EDGES`.

    Raises
    ------
    SchemaError
        Never for tables of a `TraceSet`.
    """
    intact = spine.spans.with_row_index("row").filter(pl.col("state") == INTACT)
    names = ["span_id", "service_name", "start_time", "end_time"]
    child = traces.spans.select("trace_id", *names).pipe(take_rows, intact["row"])
    parent = traces.spans.select(names).pipe(take_rows, intact["parent_row"])
    words = pl.DataFrame(CROSSINGS, schema=["boundary", "boundary_evidence"], orient="row")
    both = child.hstack(parent.rename({name: f"parent_{name}" for name in names}))
    return both.hstack(take_rows(words, intact["crossing"])).select(
        "trace_id",
        "parent_span_id",
        child_span_id="span_id",
        relation=pl.lit("parent"),
        boundary="boundary",
        parent_service="parent_service_name",
        child_service="service_name",
        boundary_evidence="boundary_evidence",
        start_gap_ns=_gap("start_time", "parent_start_time"),
        end_gap_ns=_gap("end_time", "parent_end_time"),
    )


def link_edges(traces: TraceSet) -> pl.DataFrame:
    """List the link edges of a capture; the linked span stands as parent.

    Parameters
    ----------
    traces : TraceSet
        The capture; a linked span that is not in it has a null service.

    Returns
    -------
    pl.DataFrame
        Schema `EDGES`. ``trace_id`` is that of the span that carries the link.

    Raises
    ------
    SchemaError
        Never for tables of a `TraceSet`.
    """
    if not traces.links.height:
        return schema.empty(schema.EDGES)
    columns = ["service_name", "kind", "start_time", "end_time"]
    links = traces.links.select("trace_id", "span_id", "linked_trace_id", "linked_span_id")
    ends = pl.concat(
        [
            links.select("trace_id", "span_id"),
            links.select(trace_id="linked_trace_id", span_id="linked_span_id"),
        ]
    )
    spans = (
        traces.spans.select("trace_id", "span_id", *columns)
        .join(ends, on=["trace_id", "span_id"], how="semi")
        .unique(["trace_id", "span_id"], keep="first", maintain_order=True)
    )
    links = links.join(spans, on=["trace_id", "span_id"], how="left", maintain_order="left").join(
        spans.rename({name: f"linked_{name}" for name in spans.columns}),
        on=["linked_trace_id", "linked_span_id"],
        how="left",
        maintain_order="left",
    )
    queue = (pl.col("kind") == "CONSUMER") | (pl.col("linked_kind") == "PRODUCER")
    return links.select(
        "trace_id",
        parent_span_id="linked_span_id",
        child_span_id="span_id",
        relation=pl.lit("link"),
        boundary=pl.when(queue).then(pl.lit("queue")).otherwise(pl.lit("unknown")),
        parent_service="linked_service_name",
        child_service="service_name",
        boundary_evidence=pl.when(queue)
        .then(pl.lit("link of a producer or consumer span"))
        .otherwise(pl.lit("a link says nothing of the boundary")),
        start_gap_ns=_gap("start_time", "linked_start_time"),
        end_gap_ns=_gap("end_time", "linked_end_time"),
    )


def _gap(child: str, parent: str) -> pl.Expr:
    return pl.col(child).cast(pl.Int64) - pl.col(parent).cast(pl.Int64)
