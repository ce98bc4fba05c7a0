"""One trace over time."""

from collections import defaultdict
from typing import Any, Final

import plotly.graph_objects as go
import polars as pl

from tracelab import schema
from tracelab.plots.style import (
    INK,
    SEVERITY_COLOR,
    VERMILION,
    figure,
    label,
    nothing_to_show,
    service_colors,
)
from tracelab.structure import span_edges
from tracelab.structure.tree import tree_order
from tracelab.traceset import TraceSet

MAX_SPANS: Final = 5000
MAX_NAMED: Final = 60
"""Spans that are named beside their bars; of more, the hover text tells."""
_MARKED_BOUNDARIES: Final = ("task", "thread", "process", "network", "queue")


def waterfall(
    traces: TraceSet,
    trace_id: str,
    *,
    breaks: pl.DataFrame | None = None,
    edges: pl.DataFrame | None = None,
    critical_path: list[str] | None = None,
    max_spans: int = MAX_SPANS,
) -> go.Figure:
    """Draw the spans of one trace over time, with breaks, errors and proposed parents.

    Parameters
    ----------
    traces : TraceSet
        A capture that holds the trace.
    trace_id : str
        The trace.
    breaks : pl.DataFrame, optional
        Schema BREAKS; those of this trace are marked. Traces that a proposed parent ties to
        this one are drawn with it where the capture holds them, each below the span that
        probably called it, joined by a dashed line.
    edges : pl.DataFrame, optional
        Schema EDGES; found from the trace when left out.
    critical_path : list of str, optional
        Span ids to outline.
    max_spans : int
        Beyond this, the first spans in reading order are drawn and the title says how many
        are left out.

    Returns
    -------
    plotly.graph_objects.Figure
        One bar per span, one trace of the figure per service; hover text holds the ids.

    Raises
    ------
    UnknownTraceError
        If the trace is not in the capture.
    SchemaError
        If a table lacks a column.
    """
    trace = traces.trace(trace_id)
    title = f"Trace {label(trace_id, limit=40)}"
    own = trace.spans["trace_id"][0]
    found = None if breaks is None else _of_trace(breaks, own)
    spans = trace.spans if found is None else _with_tied(traces, trace.spans, found)
    drawn = spans["trace_id"].unique()
    n_tied = len(drawn) - 1
    if n_tied:
        title += f" and {n_tied} that probably belong{'s' if n_tied == 1 else ''} to it"
    spans = tree_order(spans)
    timed = spans.filter(pl.col("start_time").is_not_null())
    if not timed.height:
        return nothing_to_show(title, "No span of this trace carries a start time.")
    left_out = timed.height - max_spans
    timed = timed.head(max_spans).with_columns(
        ((pl.col("start_time") - pl.col("start_time").min()).dt.total_nanoseconds() / 1e6).alias(
            "_offset_ms"
        ),
        (pl.col("duration_ns").fill_null(0).clip(lower_bound=0) / 1e6).alias("_duration_ms"),
        pl.int_range(pl.len()).alias("_row"),
    )
    edges = span_edges(traces.select_traces(drawn)) if edges is None else edges
    rows = timed.to_dicts()
    boundaries = dict(
        edges.filter(pl.col("trace_id").is_in(drawn.implode()), pl.col("relation") == "parent")
        .select("child_span_id", "boundary")
        .iter_rows()
    )
    if left_out > 0:
        title += f" · first {max_spans:,} of {max_spans + left_out:,} spans"
    shown = figure(
        title=title,
        height=max(240, min(140 + 20 * len(rows), 1000)),
        barmode="overlay",
        bargap=0.15,
    )
    # By the capture's services, so that a service keeps its colour from trace to trace.
    colors = service_colors(traces.spans["service_name"].unique().to_list())
    _add_bars(shown, rows, boundaries, colors)
    _add_path(shown, rows, critical_path or [])
    _add_errors(shown, rows)
    if breaks is not None:
        _add_breaks(
            shown, rows, breaks.filter(pl.col("trace_id").is_in(drawn.implode())).to_dicts()
        )
    shown.update_xaxes(title_text="milliseconds since the first span")
    shown.update_yaxes(autorange="reversed", showgrid=False, showticklabels=False)
    if len(rows) <= MAX_NAMED:
        _add_names(shown, rows)
    return shown


def _of_trace(breaks: pl.DataFrame, trace_id: str) -> pl.DataFrame:
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    return breaks.filter(
        (pl.col("trace_id") == trace_id)
        | (pl.col("proposed_trace_id") == trace_id).fill_null(value=False)
    )


def _with_tied(traces: TraceSet, spans: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """Add the traces that proposed parents tie to a trace, hung where they probably belong."""
    crossing = found.filter((pl.col("trace_id") != pl.col("proposed_trace_id")).fill_null(False))
    others = pl.concat([crossing["trace_id"], crossing["proposed_trace_id"]]).unique()
    tied = traces.select_traces(others).spans
    if not tied.height:
        return spans
    proposed = crossing.select("trace_id", "span_id", _parent="proposed_span_id").unique(
        ["trace_id", "span_id"], keep="first", maintain_order=True
    )
    whole = pl.concat([spans, tied]).unique(maintain_order=True)
    keys = ["trace_id", "span_id"]
    return whole.join(proposed, on=keys, how="left", maintain_order="left").select(
        pl.exclude("_parent", "parent_span_id"), pl.coalesce("parent_span_id", "_parent")
    )


def _add_names(shown: go.Figure, rows: list[dict[str, Any]]) -> None:
    """Write the spans' names as a tree; labels of an axis would be flush right."""
    shown.update_layout(
        margin_l=300,
        annotations=[
            {
                "text": "\u00a0\u00a0" * min(row["depth"], 12)
                + label(f"{row['service_name'] or '?'} · {row['name']}", limit=36),
                "x": 0, "xref": "paper", "xanchor": "left", "xshift": -290,
                "y": row["_row"], "yref": "y", "align": "left",
                "showarrow": False, "font": {"size": 12},
            }
            for row in rows
        ],
    )  # fmt: skip


def _hover(row: dict[str, Any], boundary: str | None) -> str:
    parts = [
        label(f"{row['service_name'] or '?'} · {row['name']}"),
        f"{row['_offset_ms']:.3f} ms + {row['_duration_ms']:.3f} ms · {label(row['kind'])} "
        f"· {label(row['status_code'])}",
        f"span {label(row['span_id'])}",
        f"parent {label(row['parent_span_id']) or 'none (root)'}",
        f"trace {label(row['trace_id'])}",
    ]
    if boundary:
        parts.append(f"boundary to its parent: {label(boundary)}")
    return "<br>".join(parts)


def _add_bars(
    shown: go.Figure,
    rows: list[dict[str, Any]],
    boundaries: dict[str, str],
    colors: dict[str | None, str],
) -> None:
    by_service: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_service[row["service_name"]].append(row)
    longest = max(row["_offset_ms"] + row["_duration_ms"] for row in rows)
    for service in sorted(by_service, key=lambda name: name or ""):
        group = by_service[service]
        crossed = [boundaries.get(row["span_id"]) in _MARKED_BOUNDARIES for row in group]
        shown.add_bar(
            name=label(service or "no service name"),
            orientation="h",
            y=[row["_row"] for row in group],
            base=[row["_offset_ms"] for row in group],
            # A span of length zero still needs a visible bar.
            x=[max(row["_duration_ms"], longest / 500) for row in group],
            marker={
                "color": colors[service],
                "line": {"color": INK, "width": [1.2 if cross else 0 for cross in crossed]},
            },
            hovertext=[_hover(row, boundaries.get(row["span_id"])) for row in group],
            hoverinfo="text",
            customdata=[[row["trace_id"], row["span_id"]] for row in group],
        )


def _add_path(shown: go.Figure, rows: list[dict[str, Any]], path: list[str]) -> None:
    wanted = set(path)
    on_path = [row for row in rows if row["span_id"] in wanted]
    if on_path:
        xs: list[float | None] = []
        ys: list[float | None] = []
        for row in on_path:
            xs += [row["_offset_ms"], row["_offset_ms"] + row["_duration_ms"], None]
            ys += [row["_row"] + 0.42, row["_row"] + 0.42, None]
        shown.add_scatter(
            x=xs, y=ys, mode="lines", line={"color": INK, "width": 3}, name="critical path",
            hoverinfo="skip",
        )  # fmt: skip


def _add_errors(shown: go.Figure, rows: list[dict[str, Any]]) -> None:
    failed = [row for row in rows if row["status_code"] == "ERROR"]
    if failed:
        shown.add_scatter(
            x=[row["_offset_ms"] + row["_duration_ms"] for row in failed],
            y=[row["_row"] for row in failed],
            mode="markers",
            marker={"symbol": "x", "size": 9, "color": VERMILION},
            name="status ERROR",
            hovertext=[
                f"ERROR {label(row['status_message'])}<br>span {label(row['span_id'])}"
                for row in failed
            ],
            hoverinfo="text",
        )


def _add_breaks(shown: go.Figure, rows: list[dict[str, Any]], breaks: list[dict[str, Any]]) -> None:
    at = {(row["trace_id"], row["span_id"]): row for row in rows}
    breaks = [{**found, "_at": at.get((found["trace_id"], found["span_id"]))} for found in breaks]
    marked = [found for found in breaks if found["_at"] is not None]
    for severity in ("error", "warning", "info"):
        chosen = [found for found in marked if found["severity"] == severity]
        if not chosen:
            continue
        shown.add_scatter(
            x=[found["_at"]["_offset_ms"] for found in chosen],
            y=[found["_at"]["_row"] for found in chosen],
            mode="markers",
            marker={
                "symbol": "diamond",
                "size": 11,
                "color": SEVERITY_COLOR[severity],
                "line": {"color": INK, "width": 1},
            },
            name=f"break ({severity})",
            hovertext=[_break_hover(found) for found in chosen],
            hoverinfo="text",
        )
    xs: list[float | None] = []
    ys: list[float | None] = []
    for found in marked:
        child = found["_at"]
        parent = at.get((found["proposed_trace_id"], found["proposed_span_id"]))
        if parent is not None:
            ended = parent["_offset_ms"] + parent["_duration_ms"]
            xs += [min(child["_offset_ms"], ended), child["_offset_ms"], None]
            ys += [parent["_row"], child["_row"], None]
    if xs:
        shown.add_scatter(
            x=xs, y=ys, mode="lines", line={"color": INK, "dash": "dash"},
            name="proposed parent", hoverinfo="skip",
        )  # fmt: skip


def _break_hover(found: dict[str, Any]) -> str:
    # Beside an unknown cause the number would be read as how sure that is.
    sure = "" if found["cause"] == "unknown" else f" ({found['confidence']:.2f})"
    parts = [
        f"{label(found['kind'])}: {label(found['cause'])}{sure}",
        *(f"· {label(text)}" for text in (found["evidence"] or ())[:6]),
        *(f"not excluded: {label(text)}" for text in (found["alternatives"] or ())[:3]),
        f"span {label(found['span_id'])}",
    ]
    if found["proposed_span_id"]:
        parts.append(
            f"probably called by {label(found['proposed_trace_id'])} / "
            f"{label(found['proposed_span_id'])} ({found['proposed_confidence'] or 0:.2f})"
        )
    return "<br>".join(parts)
