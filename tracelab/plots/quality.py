"""What came in, and what did not."""

import plotly.graph_objects as go
import polars as pl

from tracelab import schema
from tracelab.plots.style import BLUE, GREY, ORANGE, VERMILION, figure, label, nothing_to_show


def ingest_quality(ingest: pl.DataFrame, *, max_sources: int = 40) -> go.Figure:
    """Draw what became of the spans of each source.

    Parameters
    ----------
    ingest : pl.DataFrame
        Schema INGEST.
    max_sources : int
        Sources with the most spans that are drawn.

    Returns
    -------
    plotly.graph_objects.Figure
        Stacked bars per source: kept, duplicate, rejected spans and rejected messages.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(ingest, schema.INGEST, name="ingest")
    title = "What came in, by source"
    if not ingest.height:
        return nothing_to_show(title, "This capture carries no accounting.")
    rows = ingest.sort("spans_decoded", "source", descending=[True, False]).head(max_sources)
    left_out = ingest.height - rows.height
    names = [label(_end_of(source)) for source in rows["source"]]
    chart = figure(
        title=title + (f" · {left_out} more sources" if left_out else ""),
        height=180 + 26 * rows.height,
        barmode="stack",
        margin_l=260,
    )
    for column, name, color in (
        ("spans_kept", "kept", BLUE),
        ("spans_duplicate", "duplicate", GREY),
        ("spans_rejected", "rejected spans", VERMILION),
        ("messages_rejected", "rejected messages", ORANGE),
    ):
        chart.add_bar(
            y=names, x=rows[column].fill_null(0).to_list(), name=name, orientation="h",
            marker={"color": color},
        )  # fmt: skip
    chart.update_yaxes(autorange="reversed", type="category")
    return chart


def _end_of(source: str | None) -> str:
    text = source or "?"
    return text if len(text) <= 36 else f"…{text[-35:]}"
