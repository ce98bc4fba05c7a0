"""The chain-integrity SLI: how many traces tell their errors from end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.hops import find_error_hops
from tracelab.exceptions import ParameterError
from tracelab.structure import find_breaks
from tracelab.traceset import TraceSet, require_traces

BROKEN_VERDICTS: Final = ("swallowed", "flattened", "truncated", "replaced", "status_lost")
BREAK_SEVERITIES: Final = ("warning", "error")


@dataclass(frozen=True)
class Tiers:
    """Limits of the SLI; a value at a limit belongs to the better side.

    Parameters
    ----------
    target : float
        At or above it all is well (99.5 %).
    p1_below : float
        Below it the tier is P1, from it up to the target P2. It is a setting of the
        team that is called; 99.0 % is only a default.
    p2_windows : int
        Consecutive windows that must stand below the target before P2 is called; 1 with
        windows of 5 minutes means "for 5 minutes".
    """

    target: float = 0.995
    p1_below: float = 0.99
    p2_windows: int = 1


def chain_integrity(
    traces: TraceSet,
    *,
    hops: pl.DataFrame | None = None,
    breaks: pl.DataFrame | None = None,
    every: str = "5m",
    tiers: Tiers | None = None,
    broken_verdicts: Sequence[str] = BROKEN_VERDICTS,
    min_confidence: float = 0.5,
) -> pl.DataFrame:
    """Measure the share of traces whose chain is whole, per window and service.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    hops, breaks : pl.DataFrame, optional
        Schemas ERROR_HOPS and BREAKS of the same capture; computed where not given.
    every : str
        Window, a polars duration; a trace belongs to the window in which it starts.
    tiers : Tiers, optional
        Limits; the defaults of `Tiers` where not given.
    broken_verdicts : sequence of str
        Hop verdicts that break a chain; the default leaves out what is whole or open.
    min_confidence : float
        Verdicts and breaks below it make a trace undetermined instead of broken.

    Returns
    -------
    pl.DataFrame
        Schema INTEGRITY, sorted by (window_start, service_name), the row of all services
        (null) first. sli = (traces − broken − undetermined) / (traces − undetermined),
        null where nothing was determined; coverage = share of determined traces.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet, `every` is no duration, a verdict is unknown, or limits
        are out of order.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    tiers = tiers or Tiers()
    unknown = [word for word in broken_verdicts if word not in schema.HOP_VERDICTS]
    if unknown:
        raise ParameterError(
            f"unknown verdicts {', '.join(unknown)}; known are {', '.join(schema.HOP_VERDICTS)}"
        )
    if not 0 <= tiers.p1_below <= tiers.target <= 1:
        raise ParameterError(
            "limits must satisfy 0 <= p1_below <= target <= 1, "
            f"not {tiers.p1_below} and {tiers.target}"
        )
    if breaks is None:
        breaks = find_breaks(traces)
    if hops is None:
        hops = find_error_hops(traces, breaks=breaks)
    schema.require_columns(hops, schema.ERROR_HOPS, name="hops")
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    if traces.spans.is_empty():
        return schema.empty(schema.INTEGRITY)
    touched = _touched(traces.spans, every)
    marks = _marks(hops, breaks, list(broken_verdicts), min_confidence)
    per_service = _count(touched, marks, ["trace_id", "service_name"])
    whole = (
        touched.select("trace_id", "window_start")
        .unique()
        .with_columns(pl.lit(None, pl.String).alias("service_name"))
    )
    overall = _count(
        whole,
        marks.with_columns(pl.lit(None, pl.String).alias("service_name")).unique(),
        ["trace_id"],
    )
    table = pl.concat([overall, per_service]).sort("window_start", "service_name", nulls_last=False)
    return schema.conform(_with_tier(table, tiers), schema.INTEGRITY)


def merge_integrity(*tables: pl.DataFrame, tiers: Tiers | None = None) -> pl.DataFrame:
    """Add up INTEGRITY tables of parts of one capture, such as the buckets of a store.

    Parameters
    ----------
    *tables : pl.DataFrame
        Schema INTEGRITY of parts that hold whole traces, of one window.
    tiers : Tiers, optional
        Limits; the defaults of `Tiers` where not given.

    Returns
    -------
    pl.DataFrame
        Schema INTEGRITY: sums, with the SLI and the tier of the whole.

    Raises
    ------
    SchemaError
        If a table lacks a column.
    """
    for table in tables:
        schema.require_columns(table, schema.INTEGRITY, name="integrity")
    if not tables:
        return schema.empty(schema.INTEGRITY)
    summed = (
        pl.concat(tables)
        .group_by("window_start", "service_name")
        .agg(pl.col("traces", "broken", "undetermined").sum())
        .sort("window_start", "service_name", nulls_last=False)
    )
    return schema.conform(_with_tier(summed, tiers or Tiers()), schema.INTEGRITY)


def _touched(spans: pl.DataFrame, every: str) -> pl.DataFrame:
    """Which service each trace touches, and the window in which the trace starts."""
    timed = spans.filter(pl.col("start_time").is_not_null())
    try:
        starts = (
            timed.group_by("trace_id")
            .agg(pl.col("start_time").min())
            .with_columns(pl.col("start_time").dt.truncate(every).alias("window_start"))
        )
    except (pl.exceptions.InvalidOperationError, pl.exceptions.ComputeError) as error:
        raise ParameterError(f"every={every!r} is no duration such as '5m': {error}") from error
    return (
        timed.select("trace_id", pl.col("service_name").fill_null(""))
        .unique()
        .join(starts.select("trace_id", "window_start"), on="trace_id", how="inner")
    )


def _marks(
    hops: pl.DataFrame, breaks: pl.DataFrame, words: list[str], min_confidence: float
) -> pl.DataFrame:
    """Rows (trace, service, broken or undetermined): each hop counts at both its services."""
    bad = pl.col("verdict").is_in(words)
    open_ = (pl.col("verdict") == "not_determinable") | (
        bad & (pl.col("confidence") < min_confidence)
    )
    by_hop = hops.filter(bad | open_).select(
        "trace_id",
        pl.concat_list("child_service", "parent_service").alias("service_name"),
        (bad & (pl.col("confidence") >= min_confidence)).alias("broken"),
    )
    serious = breaks.filter(pl.col("severity").is_in(BREAK_SEVERITIES))
    sure = (pl.col("confidence") >= min_confidence) & ~pl.col("at_capture_edge").fill_null(
        value=False
    )
    by_break = serious.select(
        "trace_id",
        pl.concat_list("service_name", "from_service", "to_service").alias("service_name"),
        sure.fill_null(value=False).alias("broken"),
    )
    return (
        pl.concat([by_hop, by_break])
        .explode("service_name")
        .with_columns(pl.col("service_name").fill_null(""))
        .unique()
    )


def _count(touched: pl.DataFrame, marks: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    """Count traces, broken ones, and those that are open; broken wins over open."""
    state = marks.group_by(key).agg(pl.col("broken").any())
    return (
        touched.join(state, on=key, how="left")
        .group_by("window_start", "service_name")
        .agg(
            pl.len().cast(pl.Int64).alias("traces"),
            (pl.col("broken") == True).sum().cast(pl.Int64).alias("broken_"),  # noqa: E712
            (pl.col("broken") == False).sum().cast(pl.Int64).alias("undetermined"),  # noqa: E712
        )
        .rename({"broken_": "broken"})
    )


def _with_tier(table: pl.DataFrame, tiers: Tiers) -> pl.DataFrame:
    judged = pl.col("traces") - pl.col("undetermined")
    sli = pl.when(judged > 0).then((judged - pl.col("broken")) / judged)
    low = (pl.col("sli") < tiers.target).fill_null(value=False)
    lasting = low.cast(pl.Int8).rolling_min(tiers.p2_windows).over("service_name").fill_null(0) == 1
    return table.with_columns(
        sli.alias("sli"), (judged / pl.col("traces")).alias("coverage")
    ).with_columns(
        pl.when(pl.col("sli").is_null())
        .then(pl.lit(None, pl.String))
        .when(pl.col("sli") < tiers.p1_below)
        .then(pl.lit("P1"))
        .when(lasting)
        .then(pl.lit("P2"))
        .otherwise(pl.lit("ok"))
        .alias("tier")
    )
