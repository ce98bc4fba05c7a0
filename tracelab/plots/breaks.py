"""Breaks over hops and causes, and rates by cohort."""

import plotly.graph_objects as go
import polars as pl

from tracelab import schema
from tracelab.plots.style import BLUE, INK, VERMILION, figure, label, nothing_to_show

_SERIOUS = ("error", "warning")


def break_matrix(
    breaks: pl.DataFrame, *, include_info: bool = False, max_hops: int = 30
) -> go.Figure:
    """Draw how many breaks each hop has, by cause.

    Parameters
    ----------
    breaks : pl.DataFrame
        Schema BREAKS.
    include_info : bool
        Also count informational rows (late children, client roots, skew).
    max_hops : int
        Hops with the most breaks that are drawn.

    Returns
    -------
    plotly.graph_objects.Figure
        A heat map, hop by "kind: cause", with the counts written in.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    title = "Breaks by hop and cause"
    shown = breaks if include_info else breaks.filter(pl.col("severity").is_in(_SERIOUS))
    if not shown.height:
        return nothing_to_show(title, "No break of severity warning or error.")
    counted = (
        shown.with_columns(
            pl.coalesce("from_service", pl.lit("?")).alias("_from"),
            pl.coalesce("to_service", "service_name", pl.lit("?")).alias("_to"),
            pl.concat_str("kind", pl.lit(": "), "cause").alias("_why"),
        )
        .group_by("_from", "_to", "_why")
        .len()
    )
    hops = (
        counted.group_by("_from", "_to")
        .agg(pl.col("len").sum())
        .sort("len", "_from", "_to", descending=[True, False, False])
    )
    left_out = max(hops.height - max_hops, 0)
    hops = hops.head(max_hops)
    reasons = counted["_why"].unique().sort().to_list()
    cells = {(a, b, why): n for a, b, why, n in counted.iter_rows()}
    rows = list(hops.select("_from", "_to").iter_rows())
    values = [[cells.get((a, b, why)) for why in reasons] for a, b in rows]
    chart = figure(
        title=title + (f" · {left_out} more hops" if left_out else ""),
        height=200 + 26 * len(rows),
        margin_l=220,
    )
    chart.add_heatmap(
        z=values,
        x=[label(why) for why in reasons],
        y=[f"{label(a, limit=30)} → {label(b, limit=30)}" for a, b in rows],
        texttemplate="%{z}",
        colorscale=[[0, "#FDE6D8"], [1, VERMILION]],
        showscale=False,
        hovertemplate="%{y}<br>%{x}<br>%{z} breaks<extra></extra>",
        xgap=2,
        ygap=2,
    )
    chart.update_yaxes(autorange="reversed", showgrid=False)
    chart.update_xaxes(showgrid=False)
    return chart


def cohorts(cohort_rates: pl.DataFrame, *, max_rows: int = 30) -> go.Figure:
    """Draw break rates by cohort with their intervals.

    Parameters
    ----------
    cohort_rates : pl.DataFrame
        Columns dimension, cohort, checked, broken, rate, rate_low, rate_high and worse, as
        `tracelab.break_cohorts` returns.
    max_rows : int
        Cohorts that are drawn: the worse ones first, then those with the highest rates.
        Hops and operations without a break are counted in the title where others have some.

    Returns
    -------
    plotly.graph_objects.Figure
        One point with its interval per cohort; those that are worse than the rest in the
        colour of defects.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    needed = (
        "dimension", "cohort", "checked", "broken", "rate", "rate_low", "rate_high", "worse",
    )  # fmt: skip
    schema.require_columns(cohort_rates, needed, name="cohort_rates")
    title = "Break rate by cohort, 95 % intervals"
    if not cohort_rates.height:
        return nothing_to_show(title, "Nothing was checked.")
    checked = cohort_rates.filter(pl.col("rate").is_not_null())
    # There are many places, nearly all of them intact; there are few versions to compare.
    intact = (pl.col("broken") == 0) & pl.col("dimension").is_in(("operation", "hop"))
    drawn = checked if checked["broken"].sum() == 0 else checked.filter(~intact)
    if drawn.height < checked.height:
        title += f" · {checked.height - drawn.height:,} places without a break left out"
    rows = (
        drawn.sort("worse", "rate", "dimension", "cohort", descending=[True, True, False, False])
        .head(max_rows)
        .to_dicts()
    )
    names = [
        f"{label(row['dimension'], limit=24)}: {label(row['cohort'], limit=40)}" for row in rows
    ]
    outlying = [row["worse"] for row in rows]
    chart = figure(title=title, height=160 + 24 * len(rows), margin_l=280)
    chart.add_scatter(
        x=[row["rate"] for row in rows],
        y=names,
        mode="markers",
        marker={"size": 9, "color": [VERMILION if out else BLUE for out in outlying]},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [row["rate_high"] - row["rate"] for row in rows],
            "arrayminus": [row["rate"] - row["rate_low"] for row in rows],
            "color": INK,
        },
        hovertext=[
            f"{name}<br>{row['broken']:,} of {row['checked']:,} ({row['rate']:.2%})"
            for name, row in zip(names, rows, strict=True)
        ],
        hoverinfo="text",
        showlegend=False,
    )
    chart.update_xaxes(tickformat=".1%", rangemode="tozero")
    chart.update_yaxes(autorange="reversed")
    return chart
