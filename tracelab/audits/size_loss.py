"""Whether the share of traces with missing spans rises with the size of their errors."""

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.errors_chain.parsing import parse_exceptions
from tracelab.exceptions import ParameterError
from tracelab.schema import ColumnType
from tracelab.structure import find_breaks
from tracelab.traceset import TraceSet, require_traces

Floats = npt.NDArray[np.float64]

MEASURES: Final = ("message_bytes", "stack_bytes", "chain_depth", "trace_spans")
MIN_CASES: Final = 8
"""Least traces with and without loss: below it an interval says nothing."""

_STEPS: Final = 50
_COLUMNS: Final[dict[str, ColumnType]] = {
    "measure": pl.String,
    "n_traces": pl.Int64,
    "n_loss": pl.Int64,
    "rho": pl.Float64,
    "rho_low": pl.Float64,
    "rho_high": pl.Float64,
    "p_value": pl.Float64,
    "log_odds_per_doubling": pl.Float64,
    "log_odds_low": pl.Float64,
    "log_odds_high": pl.Float64,
    "verdict": pl.String,
}
_RESULT: Final = pl.Schema(_COLUMNS)


def audit_size_loss(
    traces: TraceSet,
    *,
    breaks: pl.DataFrame | None = None,
    exceptions: pl.DataFrame | None = None,
    max_p: float = 0.01,
) -> pl.DataFrame:
    """Test whether traces with longer errors lose more spans.

    Parameters
    ----------
    traces : TraceSet
        The capture; traces with at least one exception are compared with each other.
    breaks, exceptions : pl.DataFrame, optional
        Schemas BREAKS and EXCEPTIONS of the same capture; computed where not given.
    max_p : float
        Largest p-value that is called an effect; divided by the number of measures
        (Bonferroni).

    Returns
    -------
    pl.DataFrame
        Per measure (longest message and stack in bytes, depth of the cause chain, spans
        of the trace): Spearman's rho with 95 % interval and p-value, within traces that
        begin with the same operation (operations differ in both for other reasons); the
        change of the log-odds of loss per doubling (logistic fit on log2(1 + size)) with
        95 % interval; verdict: rises | falls | no_effect | undecidable (too few cases or no
        spread). Orphans not at the capture's edge count as loss.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet, or `max_p` is not between 0 and 1.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    if not 0 < max_p < 1:
        raise ParameterError(f"max_p is {max_p}; it must lie between 0 and 1")
    if exceptions is None:
        exceptions = parse_exceptions(traces)
    if breaks is None:
        breaks = find_breaks(traces)
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    schema.require_columns(exceptions, schema.EXCEPTIONS, name="exceptions")
    cases = _cases(traces, breaks, exceptions)
    rows = [_test(measure, cases, max_p / len(MEASURES)) for measure in MEASURES]
    return pl.DataFrame(rows, schema=_RESULT, orient="row")


def _cases(traces: TraceSet, breaks: pl.DataFrame, exceptions: pl.DataFrame) -> pl.DataFrame:
    lost = breaks.filter(
        pl.col("kind") == "orphan_span", ~pl.col("at_capture_edge").fill_null(value=False)
    ).select(pl.col("trace_id").unique(), pl.lit(value=True).alias("loss"))
    depth = exceptions.group_by("trace_id").agg(pl.col("position").max().alias("chain_depth"))
    size = traces.events.group_by("trace_id").agg(
        pl.col("exception_message").str.len_bytes().max().fill_null(0).alias("message_bytes"),
        pl.col("exception_stacktrace").str.len_bytes().max().fill_null(0).alias("stack_bytes"),
    )
    begun = pl.concat_str(pl.col("service_name").fill_null(""), "name", separator=" ")
    spans = (
        traces.spans.sort("start_time", "span_id")
        .group_by("trace_id", maintain_order=True)
        .agg(pl.len().alias("trace_spans"), begun.first().alias("stratum"))
        .with_columns(pl.col("stratum").rank("dense").cast(pl.UInt32))
    )
    return (
        depth.join(size, on="trace_id")
        .join(spans, on="trace_id")
        .join(lost, on="trace_id", how="left")
        .with_columns(pl.col("loss").fill_null(value=False))
        .sort("trace_id")
    )


def _test(measure: str, cases: pl.DataFrame, max_p: float) -> dict[str, object]:
    from scipy import stats

    size = cases[measure].cast(pl.Float64).to_numpy()
    loss = cases["loss"].to_numpy().astype(np.float64)
    n, k = len(loss), int(loss.sum())
    row: dict[str, object] = {"measure": measure, "n_traces": n, "n_loss": k}
    if min(k, n - k) < MIN_CASES or np.ptp(size) == 0:
        return {**row, "verdict": "undecidable"}
    group = cases["stratum"].to_physical().to_numpy()
    ranks = _centred(stats.rankdata(size), group)
    shares = _centred(loss, group)
    if np.ptp(ranks) == 0 or np.ptp(shares) == 0:
        return {**row, "verdict": "undecidable"}
    rho, p_value = stats.pearsonr(ranks, shares)
    spread = 1.959964 * np.sqrt((1 + rho * rho / 2) / (n - 3))  # Bonett and Wright (2000)
    low, high = np.tanh(np.arctanh(np.clip(rho, -0.999999, 0.999999)) + np.array([-spread, spread]))
    slope, error = fit_logistic(_centred(np.log2(1 + size), group), loss)
    sure = p_value <= max_p and abs(slope) > 1.959964 * error
    verdict = ("rises" if slope > 0 else "falls") if sure else "no_effect"
    return {
        **row,
        "rho": float(rho),
        "rho_low": float(low),
        "rho_high": float(high),
        "p_value": float(p_value),
        "log_odds_per_doubling": slope,
        "log_odds_low": slope - 1.959964 * error,
        "log_odds_high": slope + 1.959964 * error,
        "verdict": verdict,
    }


def _centred(values: Floats, group: npt.NDArray[np.uint32]) -> Floats:
    """Take each group's mean off: operations differ in size and loss for other reasons."""
    counts = np.bincount(group)
    means = np.bincount(group, weights=values) / np.maximum(counts, 1)
    centred: Floats = values - means[group]
    return centred


def fit_logistic(x: Floats, y: Floats) -> tuple[float, float]:
    """Fit log-odds = a + b x by Newton's method, with Firth's penalty; returns b and its error.

    The penalty keeps the fit finite where x separates the cases completely.
    """
    design = np.column_stack([np.ones_like(x), x - x.mean()])
    beta = np.zeros(2)
    inverse: npt.NDArray[np.floating] = np.eye(2)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        weight = p * (1 - p)
        information = design.T @ (design * weight[:, None])
        inverse = np.linalg.pinv(information)
        hat = weight * np.einsum("ij,jk,ik->i", design, inverse, design)
        step = inverse @ (design.T @ (y - p + hat * (0.5 - p)))
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return float(beta[1]), float(np.sqrt(max(inverse[1, 1], 0.0)))
