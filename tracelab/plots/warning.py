"""Early warning: bursts and rises over time, leads, rules."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from tracelab import schema
from tracelab.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    figure,
    label,
    nothing_to_show,
)

_VERDICT_VALUE = {"rejected": 0.0, "undecidable": 0.5, "accepted": 1.0}


def bursts(
    red: pl.DataFrame,
    *,
    trigger_service: str,
    target_service: str,
    bursts: pl.DataFrame,
    rises: pl.DataFrame,
    max_points: int = 5000,
) -> go.Figure:
    """Draw the trigger's 5xx over the target's slow requests, with the onsets of both.

    Parameters
    ----------
    red : pl.DataFrame
        Schema RED.
    trigger_service, target_service : str
        The pair; whole services.
    bursts, rises : pl.DataFrame
        Schemas BURSTS and RISES.
    max_points : int
        Bins that are drawn per series; neighbours are summed beyond that.

    Returns
    -------
    plotly.graph_objects.Figure
        Upper panel 5xx per bin, lower panel the bucket edge at the target's 95th percentile,
        triangles at onsets.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(red, schema.RED, name="red")
    schema.require_columns(bursts, schema.BURSTS, name="bursts")
    schema.require_columns(rises, schema.RISES, name="rises")
    title = (
        f"5xx of {label(trigger_service, limit=40)} "
        f"over latency of {label(target_service, limit=40)}"
    )
    upper = _whole(red, trigger_service, max_points)
    lower = _whole(red, target_service, max_points)
    if not upper.height or not lower.height:
        return nothing_to_show(title, "One of the two services has no series.")
    chart = figure(title=title, height=520)
    chart.add_bar(
        x=upper["time"].to_list(), y=upper["errors_5xx"].to_list(), name="5xx per bin",
        marker={"color": ORANGE, "line": {"width": 0}}, yaxis="y2",
    )  # fmt: skip
    chart.add_scatter(
        x=lower["time"].to_list(), y=lower["p95_ms"].to_list(), name="p95 bucket, ms",
        mode="lines", line={"color": BLUE, "width": 1},
    )  # fmt: skip
    for table, service, name, color, axis in (
        (bursts, trigger_service, "burst onset", VERMILION, "y2"),
        (rises, target_service, "rise onset", GREEN, "y"),
    ):
        onsets = table.filter(pl.col("service_name") == service, pl.col("span_name").is_null())
        chart.add_scatter(
            x=onsets["start_time"].to_list(),
            y=[0] * onsets.height,
            mode="markers",
            marker={"symbol": "triangle-up", "size": 11, "color": color},
            name=name,
            yaxis=axis,
        )
    chart.update_layout(
        yaxis={"domain": [0, 0.46], "title": "ms", "rangemode": "tozero"},
        yaxis2={"domain": [0.54, 1], "title": "5xx", "anchor": "x", "rangemode": "tozero"},
        bargap=0,
    )
    return chart


def lead_lag(aligned: pl.DataFrame, lead: dict[str, Any]) -> go.Figure:
    """Draw the target's mean around the trigger's bursts, with its null band and the lag.

    Parameters
    ----------
    aligned : pl.DataFrame
        Columns offset_s, slow_ratio, null_low, null_high, n_bursts, as
        `tracelab.align_on_bursts` returns.
    lead : dict
        One row of LEAD_LAGS.

    Returns
    -------
    plotly.graph_objects.Figure
        Mean, band, and the lag with its 95 % interval as a shaded stretch.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    needed = ("offset_s", "slow_ratio", "null_low", "null_high", "n_bursts")
    schema.require_columns(aligned, needed, name="aligned")
    title = (
        f"{label(lead['target_service'], limit=40)} around bursts of "
        f"{label(lead['trigger_service'], limit=40)}: {label(lead['verdict'])}"
    )
    if not aligned.height:
        return nothing_to_show(title, "No burst, or no series of the target.")
    minutes = (aligned["offset_s"] / 60).to_list()
    chart = figure(title=title)
    chart.add_scatter(
        x=minutes, y=aligned["null_high"].to_list(), mode="lines", line={"width": 0},
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    chart.add_scatter(
        x=minutes, y=aligned["null_low"].to_list(), mode="lines", line={"width": 0},
        fill="tonexty", fillcolor="rgba(138,138,138,0.3)", name="by chance (95 %)",
        hoverinfo="skip",
    )  # fmt: skip
    chart.add_scatter(
        x=minutes, y=aligned["slow_ratio"].to_list(), mode="lines", line={"color": BLUE},
        name=f"mean over {aligned['n_bursts'][0]:,} bursts",
    )  # fmt: skip
    chart.add_vline(x=0, line={"color": VERMILION}, annotation_text="burst")
    if lead.get("lag_s") is not None:
        chart.add_vline(x=lead["lag_s"] / 60, line={"color": GREEN, "dash": "dash"})
        if lead.get("lag_low_s") is not None and lead.get("lag_high_s") is not None:
            chart.add_vrect(
                x0=lead["lag_low_s"] / 60, x1=lead["lag_high_s"] / 60, fillcolor=GREEN,
                opacity=0.2, line_width=0, annotation_text=f"lag {lead['lag_s'] / 60:.1f} min",
            )  # fmt: skip
    chart.update_xaxes(title_text="minutes after the onset of a burst")
    chart.update_yaxes(title_text="share of slow requests", tickformat=".1%")
    return chart


def lag_matrix(lead_lags: pl.DataFrame, *, max_services: int = 40) -> go.Figure:
    """Draw every pair tried: trigger by target, by verdict.

    Parameters
    ----------
    lead_lags : pl.DataFrame
        Schema LEAD_LAGS.
    max_services : int
        Services with the smallest q that are drawn.

    Returns
    -------
    plotly.graph_objects.Figure
        A heat map of verdicts; hover text gives p, q, lag and reason.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(lead_lags, schema.LEAD_LAGS, name="lead_lags")
    title = "Every pair tried: does a burst of the row precede a rise of the column?"
    if not lead_lags.height:
        return nothing_to_show(title, "No pair of services to try.")
    best = lead_lags.sort("accepted", "q_value", "p_value", descending=[True, False, False])
    best = best.unique(["trigger_service", "target_service"], keep="first", maintain_order=True)
    rows = best["trigger_service"].unique(maintain_order=True).to_list()[:max_services]
    columns = best["target_service"].unique(maintain_order=True).to_list()[:max_services]
    cells = {(row["trigger_service"], row["target_service"]): row for row in best.to_dicts()}
    chart = figure(title=title, height=220 + 24 * len(rows), margin_l=160)
    chart.add_heatmap(
        z=[
            [_VERDICT_VALUE.get(cells.get((a, b), {}).get("verdict", "")) for b in columns]
            for a in rows
        ],
        x=[label(name or "?", limit=30) for name in columns],
        y=[label(name or "?", limit=30) for name in rows],
        zmin=0,
        zmax=1,
        colorscale=[[0, "#E5E5E5"], [0.5, SKY], [1, VERMILION]],
        showscale=False,
        text=[[label(cells.get((a, b), {}).get("verdict")) for b in columns] for a in rows],
        texttemplate="%{text}" if len(columns) <= 12 else None,
        hovertext=[[_pair_hover(cells.get((a, b))) for b in columns] for a in rows],
        hoverinfo="text",
        xgap=2,
        ygap=2,
    )
    chart.update_yaxes(autorange="reversed", showgrid=False, title_text="trigger")
    chart.update_xaxes(showgrid=False, title_text="target")
    return chart


def rule_backtest(scores: pl.DataFrame, rules: Sequence[Any] = ()) -> go.Figure:
    """Draw precision and recall of rules and baselines on time they had not seen.

    Parameters
    ----------
    scores : pl.DataFrame
        Schema RULE_SCORES.
    rules : sequence of WarningRule
        Names in the hover text.

    Returns
    -------
    plotly.graph_objects.Figure
        One point per rule (or baseline) and fold.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(scores, schema.RULE_SCORES, name="scores")
    title = "Rules on time they had not seen"
    judged = scores.filter(pl.col("recall").is_not_null())
    if not judged.height:
        return nothing_to_show(title, "No rule was judged on later time.")
    texts = {rule.rule_id: str(rule) for rule in rules}
    chart = figure(title=title)
    for name, part, color, symbol in (
        ("rule", judged.filter(~pl.col("rule_id").str.contains("/", literal=True)), BLUE, "circle"),
        ("baseline", judged.filter(pl.col("rule_id").str.contains("/", literal=True)), GREY, "x"),
    ):
        rows = part.to_dicts()
        if rows:
            chart.add_scatter(
                x=[row["recall"] for row in rows],
                y=[row["precision"] or 0 for row in rows],
                mode="markers",
                marker={"size": 12, "color": color, "symbol": symbol},
                name=name,
                hovertext=[
                    f"{label(texts.get(row['rule_id'], row['rule_id']), limit=200)}<br>"
                    f"fold {row['fold']}: {row['n_fires']} fires, {row['n_targets']} rises, "
                    f"{row['false_alarms_per_day'] or 0:.2f} false alarms a day"
                    for row in rows
                ],
                hoverinfo="text",
            )
    chart.update_xaxes(title_text="recall", range=[-0.05, 1.05])
    chart.update_yaxes(title_text="precision", range=[-0.05, 1.05])
    return chart


def _pair_hover(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not tried"
    lag = "" if row["lag_s"] is None else f"<br>lag {row['lag_s'] / 60:.1f} min"
    q_value = "" if row["q_value"] is None else f", q {row['q_value']:.3g}"
    p_value = "" if row["p_value"] is None else f"<br>p {row['p_value']:.3g}{q_value}"
    return (
        f"{label(row['trigger_service'])} → {label(row['target_service'])}<br>"
        f"{label(row['verdict'])}: {label(row['reason'])}{p_value}{lag}"
    )


def _whole(red: pl.DataFrame, service: str, max_points: int) -> pl.DataFrame:
    rows = red.filter(pl.col("service_name") == service, pl.col("span_name").is_null()).sort("time")
    if not rows.height:
        return rows.with_columns(pl.lit(None, pl.Float64).alias("p95_ms"))
    fold = -(-rows.height // max_points)
    # The bucket that holds the 95th percentile: its upper edge, the highest edge above it.
    reached = pl.col("duration_counts").list.eval(
        pl.element().cum_sum() < 0.95 * pl.element().sum()
    )
    position = reached.list.sum()
    edge = pl.col("bucket_edges_ns").list.get(
        pl.min_horizontal(position, pl.col("bucket_edges_ns").list.len() - 1), null_on_oob=True
    )
    known = pl.col("duration_counts").list.sum() > 0
    return (
        rows.with_columns(pl.when(known).then(edge / 1e6).alias("p95_ms"))
        .with_columns((pl.int_range(pl.len()) // fold).alias("_part"))
        .group_by("_part", maintain_order=True)
        .agg(
            pl.col("time").first(),
            # A silent bin stays a gap; a sum would draw it as no failure.
            pl.when(pl.col("errors_5xx").count() > 0).then(pl.col("errors_5xx").sum()),
            pl.col("p95_ms").max(),
        )
    )
