"""Break rates per hop, service, SDK and scope version: which of them breaks more than the rest."""

from typing import Final

import polars as pl

from tracelab import schema
from tracelab.structure.edges import parent_edges
from tracelab.structure.rates import q_values, wilson_interval, worse_than_rest
from tracelab.structure.spine import build_spine
from tracelab.traceset import TraceSet

COHORTS: Final = pl.Schema(
    {
        "dimension": pl.String,
        "cohort": pl.String,
        "checked": pl.Int64,
        "broken": pl.Int64,
        "rate": pl.Float64,
        "rate_low": pl.Float64,
        "rate_high": pl.Float64,
        "p_value": pl.Float64,
        "q_value": pl.Float64,
        "worse": pl.Boolean,
    }
)
"""The table of `break_cohorts`."""

COUNTED: Final = (
    "orphan_span",
    "detached_root",
    "wrong_parent",
    "missing_server",
    "sampling_gap",
)
"""Kinds that break a hop."""


def break_cohorts(traces: TraceSet, breaks: pl.DataFrame, *, max_q: float = 0.05) -> pl.DataFrame:
    """Count breaks among the hops that were checked, per group of spans that share something.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    breaks : pl.DataFrame
        Schema `BREAKS`, from `find_breaks` on the same capture. Information is not counted.
    max_q : float
        A cohort is ``worse`` than the rest of its dimension at or below this false-discovery
        rate (Benjamini and Hochberg over all cohorts of the table).

    Returns
    -------
    pl.DataFrame
        Schema `COHORTS`: one row for ``all``, then dimensions ``hop``, ``service``,
        ``operation``, ``sdk`` and ``scope``, most certain first. ``checked`` is the number of
        hops: spans with a parent in the capture, and broken ones. 0 broken of N is a finding
        too: the interval says how far it can be trusted.

    Raises
    ------
    SchemaError
        If `breaks` lacks a column.
    """
    schema.require_columns(breaks, ("kind", "severity", "trace_id", "span_id"), name="breaks")
    hops = _hops(traces, breaks)
    total, broken = hops.height, int(hops["broken"].sum())
    tables = [_counts(hops.with_columns(cohort=pl.lit("all")), "all")]
    for dimension, words in _DIMENSIONS.items():
        tables.append(_counts(hops.with_columns(cohort=words), dimension))
    table = pl.concat(tables)
    hits, trials = table["broken"].to_numpy(), table["checked"].to_numpy()
    low, high = wilson_interval(hits, trials)
    p_values = worse_than_rest(hits, trials, broken, total)
    adjusted = q_values(p_values)
    order = {name: number for number, name in enumerate(["all", *_DIMENSIONS])}
    return schema.conform(
        table.with_columns(
            rate=pl.col("broken") / pl.col("checked"),
            rate_low=pl.Series(low),
            rate_high=pl.Series(high),
            p_value=pl.Series(p_values),
            q_value=pl.Series(adjusted),
            worse=pl.Series(adjusted <= max_q),
            _order=pl.col("dimension").replace_strict(order, return_dtype=pl.Int64),
        )
        .sort("_order", "p_value", "cohort")
        .drop("_order"),
        COHORTS,
    )


def _either(*columns: str) -> pl.Expr:
    return pl.concat_str([pl.col(name).fill_null("?") for name in columns], separator=" ")


_DIMENSIONS: Final[dict[str, pl.Expr]] = {
    "hop": pl.concat_str(
        [pl.col("from_service").fill_null("?"), pl.col("to_service").fill_null("?")],
        separator=" → ",
    ),
    "service": pl.col("service_name").fill_null("?"),
    "operation": _either("service_name", "name"),
    "sdk": _either("sdk_language", "sdk_version"),
    "scope": _either("scope_name", "scope_version"),
}


def _hops(traces: TraceSet, breaks: pl.DataFrame) -> pl.DataFrame:
    """Every checked hop once, with the facts of its child span (of a call: its client)."""
    counted = (
        breaks.filter(pl.col("kind").is_in(COUNTED) & (pl.col("severity") != "info"))
        .select("trace_id", "span_id", "from_service", "to_service")
        .unique(["trace_id", "span_id"], keep="first", maintain_order=True)
    )
    whole = (
        parent_edges(traces, build_spine(traces))
        .select(
            "trace_id",
            span_id="child_span_id",
            from_service="parent_service",
            to_service="child_service",
        )
        .join(counted, on=["trace_id", "span_id"], how="anti", maintain_order="left")
    )
    facts = traces.spans.select(
        "trace_id",
        "span_id",
        "name",
        "service_name",
        "sdk_language",
        "sdk_version",
        "scope_name",
        "scope_version",
    ).unique(["trace_id", "span_id"], keep="first", maintain_order=True)
    both = pl.concat(
        [
            whole.with_columns(broken=pl.lit(value=False)),
            counted.with_columns(broken=pl.lit(value=True)),
        ]
    )
    return both.join(facts, on=["trace_id", "span_id"], how="left", maintain_order="left")


def _counts(hops: pl.DataFrame, dimension: str) -> pl.DataFrame:
    return (
        hops.group_by("cohort")
        .agg(pl.len().cast(pl.Int64).alias("checked"), pl.col("broken").sum().cast(pl.Int64))
        .select(pl.lit(dimension).alias("dimension"), "cohort", "checked", "broken")
        .sort("cohort")
    )
