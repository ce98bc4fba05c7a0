"""Services and spans as graphs."""

from collections import defaultdict
from typing import Any

import plotly.graph_objects as go
import polars as pl

from tracelab import schema
from tracelab.plots.style import (
    BLUE,
    GREY,
    INK,
    VERMILION,
    figure,
    label,
    nothing_to_show,
    service_colors,
)
from tracelab.structure.tree import tree_order
from tracelab.traceset import TraceSet


def service_map(edges: pl.DataFrame, breaks: pl.DataFrame) -> go.Figure:
    """Draw which service calls which, with the share of broken calls on each hop.

    Parameters
    ----------
    edges : pl.DataFrame
        Schema EDGES, or one row per distinct hop with the number of calls in a column
        ``calls``.
    breaks : pl.DataFrame
        Schema BREAKS.

    Returns
    -------
    plotly.graph_objects.Figure
        Callers left of callees; a hop's width grows with its calls, its colour shows breaks.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(edges, ("parent_service", "child_service"), name="edges")
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    weight = pl.col("calls").sum() if "calls" in edges.columns else pl.len()
    title = "Service map: calls, and broken calls per hop"
    calls = (
        edges.filter(
            pl.col("parent_service").is_not_null(),
            pl.col("child_service").is_not_null(),
            pl.col("parent_service") != pl.col("child_service"),
        )
        .group_by(pl.col("parent_service").alias("a"), pl.col("child_service").alias("b"))
        .agg(weight.alias("calls"))
    )
    broken = (
        breaks.filter(
            pl.col("severity") != "info",
            pl.col("from_service").is_not_null(),
            pl.col("to_service").is_not_null(),
            pl.col("from_service") != pl.col("to_service"),
        )
        .group_by(pl.col("from_service").alias("a"), pl.col("to_service").alias("b"))
        .agg(pl.len().alias("broken"))
    )
    hops = (
        calls.join(broken, on=["a", "b"], how="full", coalesce=True)
        .with_columns(pl.col("calls", "broken").fill_null(0).cast(pl.Int64))
        .sort("a", "b")
        .to_dicts()
    )
    if not hops:
        return nothing_to_show(title, "No call between two services in this capture.")
    places = _layered({hop["a"] for hop in hops} | {hop["b"] for hop in hops}, hops)
    most = max(hop["calls"] + hop["broken"] for hop in hops)
    chart = figure(title=title, height=max(320, 90 * _tallest(places)), showlegend=False)
    for hop in hops:
        (x0, y0), (x1, y1) = places[hop["a"]], places[hop["b"]]
        total = hop["calls"] + hop["broken"]
        text = (
            f"{label(hop['a'])} → {label(hop['b'])}<br>{hop['calls']:,} intact, "
            f"{hop['broken']:,} broken ({hop['broken'] / total:.1%})"
        )
        chart.add_scatter(
            x=[x0, (x0 + x1) / 2, x1],
            y=[y0, (y0 + y1) / 2, y1],
            mode="lines+text" if hop["broken"] else "lines",
            text=["", f"{hop['broken'] / total:.1%} broken", ""],
            textposition="top center",
            line={
                "width": 1 + 6 * total / most,
                "color": VERMILION if hop["broken"] else GREY,
            },
            hovertext=text,
            hoverinfo="text",
        )
    chart.add_scatter(
        x=[places[name][0] for name in places],
        y=[places[name][1] for name in places],
        mode="markers+text",
        marker={"size": 22, "color": BLUE, "line": {"color": INK, "width": 1}},
        text=[label(name, limit=40) for name in places],
        textposition="bottom center",
        hoverinfo="text",
    )
    chart.update_xaxes(visible=False)
    chart.update_yaxes(visible=False)
    return chart


def span_graph(
    traces: TraceSet, trace_id: str, *, breaks: pl.DataFrame | None = None, max_spans: int = 500
) -> go.Figure:
    """Draw the spans of one trace as a graph, proposed parents dashed.

    Parameters
    ----------
    traces : TraceSet
        A capture that holds the trace.
    trace_id : str
        The trace.
    breaks : pl.DataFrame, optional
        Schema BREAKS.
    max_spans : int
        First spans in reading order that are drawn.

    Returns
    -------
    plotly.graph_objects.Figure
        Depth to the right, reading order downwards.

    Raises
    ------
    UnknownTraceError
        If the trace is not in the capture.
    """
    trace = traces.trace(trace_id)
    rows = tree_order(trace.spans).head(max_spans).to_dicts()
    place = {row["span_id"]: (row["depth"], -position) for position, row in enumerate(rows)}
    left_out = trace.spans.height - len(rows)
    chart = figure(
        title=f"Spans of trace {label(trace_id, limit=40)}"
        + (f" · first {len(rows):,}, {left_out:,} left out" if left_out else ""),
        height=min(140 + 22 * len(rows), 1200),
    )
    _lines(chart, [(row["parent_span_id"], row["span_id"]) for row in rows], place, "parent")
    links = trace.links.filter(pl.col("linked_trace_id") == pl.col("trace_id"))
    pairs = list(links.select("linked_span_id", "span_id").iter_rows())
    _lines(chart, pairs, place, "link", dash="dot")
    if breaks is not None:
        found = breaks.filter(pl.col("trace_id").is_in(trace.spans["trace_id"].unique().implode()))
        pairs = list(found.select("proposed_span_id", "span_id").iter_rows())
        _lines(chart, pairs, place, "proposed parent", dash="dash", color=VERMILION)
    colors = service_colors(traces.spans["service_name"].unique().to_list())
    chart.add_scatter(
        x=[place[row["span_id"]][0] for row in rows],
        y=[place[row["span_id"]][1] for row in rows],
        mode="markers+text" if len(rows) <= 80 else "markers",
        marker={
            "size": 11,
            "color": [colors[row["service_name"]] for row in rows],
            "line": {
                "color": [VERMILION if row["status_code"] == "ERROR" else INK for row in rows],
                "width": 2,
            },
        },
        text=[label(f"{row['service_name'] or '?'} · {row['name']}", limit=40) for row in rows],
        textposition="middle right",
        hovertext=[
            f"{label(row['service_name'])} · {label(row['name'])}<br>span {label(row['span_id'])}"
            for row in rows
        ],
        hoverinfo="text",
        name="span",
    )
    deepest = max((row["depth"] for row in rows), default=0)
    chart.update_xaxes(visible=False, range=[-0.5, deepest + 3])
    chart.update_yaxes(visible=False)
    return chart


def _lines(
    chart: go.Figure,
    pairs: list[tuple[Any, Any]],
    place: dict[str, tuple[int, int]],
    name: str,
    *,
    dash: str = "solid",
    color: str = GREY,
) -> None:
    xs: list[float | None] = []
    ys: list[float | None] = []
    for parent, child in pairs:
        if parent in place and child in place:
            (x0, y0), (x1, y1) = place[parent], place[child]
            xs += [x0, x0, x1, None]
            ys += [y0, y1, y1, None]
    if xs:
        chart.add_scatter(
            x=xs, y=ys, mode="lines", name=name, hoverinfo="skip",
            line={"dash": dash, "color": color, "width": 1.5},
        )  # fmt: skip


def _layered(names: set[str], hops: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Place callers left of callees; callers on a cycle keep the layer they got first."""
    callers: dict[str, set[str]] = defaultdict(set)
    for hop in hops:
        callers[hop["b"]].add(hop["a"])
    layer = dict.fromkeys(names, 0)
    for _ in range(len(names)):
        moved = False
        for name in sorted(names):
            wanted = max((layer[caller] + 1 for caller in callers[name]), default=0)
            if layer[name] < wanted < len(names):
                layer[name] = wanted
                moved = True
        if not moved:
            break
    rows: dict[int, list[str]] = defaultdict(list)
    for name in sorted(names):
        rows[layer[name]].append(name)
    ranks = {value: rank for rank, value in enumerate(sorted(rows))}
    return {
        name: (float(ranks[value]), -(position - (len(column) - 1) / 2))
        for value, column in rows.items()
        for position, name in enumerate(column)
    }


def _tallest(places: dict[str, tuple[float, float]]) -> int:
    columns: dict[float, int] = defaultdict(int)
    for x, _ in places.values():
        columns[x] += 1
    return max(columns.values())
