"""Proposed parents written into a capture: as links and attributes, never as parents."""

from typing import Final

import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.traceset import TraceSet

PREFIX: Final = "tracelab.proposed_parent"


def propose_links(
    traces: TraceSet, breaks: pl.DataFrame, *, min_confidence: float = 0.8
) -> TraceSet:
    """Add the proposed parent of each break to its span, as a link and as attributes.

    Raw parents stay as they are: a viewer shows the link, and whoever reads the attributes
    knows that it was inferred, by what, and how surely.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    breaks : pl.DataFrame
        Schema BREAKS of the same capture.
    min_confidence : float
        Least `proposed_confidence` of a proposal that is written.

    Returns
    -------
    TraceSet
        The capture with further LINKS rows, and with the attributes
        ``tracelab.proposed_parent.{trace_id,span_id,confidence,break_id}`` on the spans.

    Raises
    ------
    ParameterError
        If `min_confidence` is no probability.
    SchemaError
        If `breaks` lacks a column.
    """
    if not 0 <= min_confidence <= 1:
        raise ParameterError(f"min_confidence is {min_confidence}; a probability is 0 to 1")
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    proposals = (
        breaks.filter(
            pl.col("proposed_span_id").is_not_null(),
            pl.col("proposed_confidence") >= min_confidence,
        )
        .sort("proposed_confidence", "break_id", descending=[True, False])
        .unique(["trace_id", "span_id"], keep="first", maintain_order=True)
        .with_columns(pl.coalesce("proposed_trace_id", "trace_id").alias("proposed_trace_id"))
    )
    added = schema.conform(
        proposals.select(
            "trace_id",
            "span_id",
            pl.col("proposed_trace_id").alias("linked_trace_id"),
            pl.col("proposed_span_id").alias("linked_span_id"),
            _note().alias("attributes"),
        ),
        schema.LINKS,
    )
    notes = proposals.select("trace_id", "span_id", _note().alias("_note"))
    known = pl.col("attributes").fill_null("{}")
    extended = (
        pl.when(known == "{}")
        .then(pl.col("_note"))
        .otherwise(
            known.str.strip_suffix("}") + pl.lit(",") + pl.col("_note").str.strip_prefix("{")
        )
    )
    spans = traces.spans.join(
        notes, on=["trace_id", "span_id"], how="left", maintain_order="left"
    ).with_columns(
        pl.when(pl.col("_note").is_null())
        .then("attributes")
        .otherwise(extended)
        .alias("attributes")
    )
    return traces.with_tables(spans=spans.drop("_note"), links=pl.concat([traces.links, added]))


def _note() -> pl.Expr:
    return pl.struct(
        pl.col("proposed_trace_id").alias(f"{PREFIX}.trace_id"),
        pl.col("proposed_span_id").alias(f"{PREFIX}.span_id"),
        pl.col("proposed_confidence").round(4).alias(f"{PREFIX}.confidence"),
        pl.col("break_id").alias(f"{PREFIX}.break_id"),
    ).struct.json_encode()
