"""What became of errors: flow to the root, one chain, integrity over time."""

import plotly.graph_objects as go
import polars as pl

from tracelab import schema
from tracelab.plots.style import (
    GREEN,
    GREY,
    ORANGE,
    SERVICE_COLORS,
    VERDICT_COLOR,
    VERMILION,
    figure,
    label,
    nothing_to_show,
    service_colors,
)

_TIER_COLOR = {"ok": GREEN, "P2": ORANGE, "P1": VERMILION}


def error_flow(error_hops: pl.DataFrame, *, max_flows: int = 60) -> go.Figure:
    """Draw the way of errors from the service of origin to where they end, by verdict.

    Parameters
    ----------
    error_hops : pl.DataFrame
        Schema ERROR_HOPS.
    max_flows : int
        Most frequent flows that are drawn.

    Returns
    -------
    plotly.graph_objects.Figure
        A Sankey diagram: service of the failing child, verdict, service of the parent.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(error_hops, schema.ERROR_HOPS, name="error_hops")
    title = "What became of each error on its way to the root"
    flows = (
        error_hops.group_by("child_service", "verdict", "parent_service")
        .len()
        .sort(
            "len",
            "child_service",
            "verdict",
            "parent_service",
            descending=[True, False, False, False],
        )
        .head(max_flows)
    )
    if not flows.height:
        return nothing_to_show(title, "No error was followed.")
    nodes: dict[tuple[str, str], int] = {}
    sources, targets, values, colors = [], [], [], []
    for child, verdict, parent, count in flows.iter_rows():
        start = nodes.setdefault(("from", child or "?"), len(nodes))
        middle = nodes.setdefault(("verdict", verdict), len(nodes))
        end = nodes.setdefault(("to", parent or "no parent"), len(nodes))
        sources += [start, middle]
        targets += [middle, end]
        values += [count, count]
        colors += [_faint(VERDICT_COLOR.get(verdict, GREY))] * 2
    chart = figure(title=title, height=max(360, 26 * len(nodes)))
    chart.add_sankey(
        arrangement="snap",
        node={
            "label": [label(name, limit=40) for _, name in nodes],
            "color": [
                VERDICT_COLOR.get(name, GREY) if role == "verdict" else SERVICE_COLORS[0]
                for role, name in nodes
            ],
            "pad": 14,
        },
        link={"source": sources, "target": targets, "value": values, "color": colors},
    )
    return chart


def chain_ledger(error_hops: pl.DataFrame, error_id: str) -> go.Figure:
    """Draw the hops of one error from its origin towards the root.

    Parameters
    ----------
    error_hops : pl.DataFrame
        Schema ERROR_HOPS.
    error_id : str
        The error.

    Returns
    -------
    plotly.graph_objects.Figure
        One step per hop, coloured by verdict, with both records in the hover text.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(error_hops, schema.ERROR_HOPS, name="error_hops")
    title = f"Ledger of error {label(error_id, limit=40)}"
    rows = error_hops.filter(pl.col("error_id") == error_id).sort("hop").to_dicts()
    if not rows:
        return nothing_to_show(title, "No such error.")
    chart = figure(title=title, height=140 + 60 * len(rows), margin_l=30, showlegend=False)
    steps = list(range(len(rows)))
    chart.add_scatter(
        x=steps,
        y=[-step for step in steps],
        mode="lines+markers+text",
        line={"color": GREY},
        marker={
            "size": 16,
            "color": [VERDICT_COLOR.get(row["verdict"], GREY) for row in rows],
        },
        text=[
            f"{label(row['child_service'], limit=24)} → {label(row['parent_service'], limit=24)}"
            f" ({label(row['boundary'])}): {label(row['verdict'])}"
            for row in rows
        ],
        textposition="middle right",
        hovertext=[
            f"below: {label(row['child_type'])} {label(row['child_message'])}<br>"
            f"above: {label(row['parent_type'])} {label(row['parent_message'])}<br>"
            f"span {label(row['child_span_id'])} → {label(row['parent_span_id'])}"
            for row in rows
        ],
        hoverinfo="text",
    )
    chart.update_xaxes(visible=False, range=[-0.5, len(rows) + 2.5])
    chart.update_yaxes(visible=False)
    return chart


def integrity_timeline(integrity: pl.DataFrame, *, target: float = 0.995) -> go.Figure:
    """Draw the chain-integrity SLI over time, per service and for all.

    Parameters
    ----------
    integrity : pl.DataFrame
        Schema INTEGRITY.
    target : float
        The objective, drawn as a line.

    Returns
    -------
    plotly.graph_objects.Figure
        One line per service; the markers of the line over all services show the tier.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(integrity, schema.INTEGRITY, name="integrity")
    title = "Chain integrity: share of traces whose chain is whole"
    if not integrity["sli"].count():
        return nothing_to_show(title, "No window in which it could be determined.")
    chart = figure(title=title)
    services = integrity["service_name"].unique().sort(nulls_last=False).to_list()
    colors = service_colors(services)
    for service in services[:20]:
        rows = integrity.filter(pl.col("service_name").eq_missing(pl.lit(service, pl.String))).sort(
            "window_start"
        )
        whole = service is None
        chart.add_scatter(
            x=rows["window_start"].to_list(),
            y=rows["sli"].to_list(),
            name="all services" if whole else label(service, limit=40),
            mode="lines+markers",
            line={
                "width": 3 if whole else 1,
                "color": GREY if whole else colors[service],
            },
            marker={
                "size": 8 if whole else 4,
                "color": [_TIER_COLOR.get(tier, GREY) for tier in rows["tier"]] if whole else None,
            },
            hovertext=[
                f"{traces:,} traces, {broken:,} broken, {unknown:,} undetermined"
                for traces, broken, unknown in rows.select(
                    "traces", "broken", "undetermined"
                ).iter_rows()
            ],
        )
    chart.add_hline(y=target, line={"dash": "dash", "color": GREY}, annotation_text="target")
    chart.update_yaxes(tickformat=".1%")
    return chart


def _faint(color: str) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"
