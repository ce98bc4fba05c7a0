"""One trace as an indented tree of text: services, times, boundaries, breaks, errors."""

from collections import defaultdict
from typing import Any, Final

import polars as pl

from tracelab import html, schema
from tracelab.structure.tree import tree_order
from tracelab.traceset import TraceSet

MAX_LINES: Final = 2000
_QUIET_BOUNDARIES: Final = ("same", "unknown")


def render_trace_tree(
    trace: TraceSet,
    *,
    edges: pl.DataFrame,
    breaks: pl.DataFrame,
    hops: pl.DataFrame | None = None,
    max_lines: int = MAX_LINES,
) -> str:
    """Render one trace as a tree.

    Parameters
    ----------
    trace : TraceSet
        Spans and events of one trace.
    edges, breaks : pl.DataFrame
        Schemas EDGES and BREAKS; rows of other traces are passed over.
    hops : pl.DataFrame, optional
        Schema ERROR_HOPS; verdicts are printed beside the failing child.
    max_lines : int
        Longest tree; what is left out is counted.

    Returns
    -------
    str
        One line per span: offset and duration in milliseconds, service, name, marks.
        Children of spans that are not in the capture stand below a ``(missing …)`` line.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(edges, schema.EDGES, name="edges")
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    marks = _marks(trace, edges, breaks, hops)
    first = trace.spans["start_time"].min()
    lines: list[str] = []
    above: str | None = None
    for row in tree_order(trace.spans).head(max_lines).iter_rows(named=True):
        if row["below_missing"] and row["parent_span_id"] != above:
            above = row["parent_span_id"]
            lines.append(f"(missing span {html.plain(above, limit=40)})")
        lines.append(_line(row, first, marks))
    if trace.spans.height > max_lines:
        lines.append(f"… {trace.spans.height - max_lines:,} more spans")
    return "\n".join(lines) + "\n"


def _marks(
    trace: TraceSet, edges: pl.DataFrame, breaks: pl.DataFrame, hops: pl.DataFrame | None
) -> dict[str, list[str]]:
    ids = trace.spans["trace_id"].unique().implode()
    marks: dict[str, list[str]] = defaultdict(list)
    here = edges.filter(pl.col("trace_id").is_in(ids), pl.col("relation") == "parent")
    for child, boundary in here.select("child_span_id", "boundary").iter_rows():
        if boundary not in _QUIET_BOUNDARIES:
            marks[child].append(f"⇢ {boundary}")
    for row in breaks.filter(pl.col("trace_id").is_in(ids)).iter_rows(named=True):
        if row["span_id"] is None:
            continue
        # Beside an unknown cause the number would be read as how sure that is.
        sure = "" if row["cause"] == "unknown" else f", {row['confidence']:.2f}"
        text = f"✗ {row['kind']}: {row['cause']} ({row['boundary']}{sure})"
        if row["proposed_span_id"]:
            text += (
                f" — probably called by {html.plain(row['proposed_trace_id'], limit=40)}"
                f"/{html.plain(row['proposed_span_id'], limit=20)}"
                f" ({row['proposed_confidence'] or 0:.2f})"
            )
        marks[row["span_id"]].append(text)
    if hops is not None:
        found = hops.filter(pl.col("trace_id").is_in(ids), pl.col("verdict") != "kept")
        for child, verdict in found.select("child_span_id", "verdict").iter_rows():
            marks[child].append(f"↑ error {verdict}")
    errors = trace.events.filter(pl.col("exception_type").is_not_null())
    for span, kind, message in errors.select(
        "span_id", "exception_type", "exception_message"
    ).iter_rows():
        marks[span].append(f"! {html.plain(kind, limit=80)}: {html.plain(message, limit=120)}")
    return marks


def _line(row: dict[str, Any], first: Any, marks: dict[str, list[str]]) -> str:
    offset = (
        "      ?"
        if row["start_time"] is None or first is None
        else f"{(row['start_time'] - first).total_seconds() * 1000:7.1f}"
    )
    duration = "?" if row["duration_ns"] is None else f"{row['duration_ns'] / 1e6:.1f}"
    status = " ERROR" if row["status_code"] == "ERROR" else ""
    code = row["http_response_status_code"]
    status += f" {code}" if code is not None else ""
    service = html.plain(row["service_name"] or "?", limit=60)
    name = html.plain(row["name"], limit=100)
    tail = "".join(f"  {mark}" for mark in marks.get(row["span_id"], ()))
    indent = "  " * min(row["depth"], 40)
    return f"{offset} ms {indent}{service} · {name} [{duration} ms]{status}{tail}"
