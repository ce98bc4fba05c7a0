"""Plant breaks into any capture, and tell what was planted."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.synth import contexts, counts, damage, losses, verdicts
from tracelab.synth.plot import Plot, build_plot
from tracelab.traceset import TraceSet

DEFAULT_RATES: Final[dict[str, float]] = {
    "context_not_propagated": 0.02,
    "context_leak": 0.005,
    "span_never_ended": 0.05,
    "uninstrumented_hop": 0.05,
    "sampled_out": 0.08,
    "queue_overflow": 0.15,
    "export_failure": 0.01,
    "process_exit": 0.08,
    "capture_edge": 0.01,
    "random_loss": 0.0,
    "clock_skew": 0.1,
    "parent_cycle": 0.0005,
    "invalid_id": 0.001,
    "truncated_value": 0.1,
    "duplicate_export": 0.01,
    "duplicate_conflict": 0.001,
}
"""What each rate is a share of: hops (context_not_propagated), inner spans (context_leak,
parent_cycle, invalid_id), operations (span_never_ended), services (uninstrumented_hop,
sampled_out, truncated_value), processes (queue_overflow, process_exit), batches
(export_failure, duplicate_export), all spans (capture_edge, random_loss,
duplicate_conflict), hosts
(clock_skew)."""

_STEPS: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
    ("context_not_propagated", contexts.cut_contexts),
    ("context_leak", contexts.leak_contexts),
    ("process_exit", losses.kill_processes),
    ("sampled_out", losses.sample_out),
    ("uninstrumented_hop", losses.remove_hops),
    ("span_never_ended", losses.leave_unended),
    ("queue_overflow", losses.overflow_queues),
    ("export_failure", losses.fail_exports),
    ("capture_edge", losses.cut_window),
    ("random_loss", losses.drop_spans),
)


def inject_breaks(
    traces: TraceSet,
    *,
    seed: int,
    rates: Mapping[str, float] | None = None,
    telling: float = 0.3,
) -> tuple[TraceSet, pl.DataFrame]:
    """Plant breaks of every kind, cause and boundary into a capture, and tell the truth.

    Each break is made the way it comes about: a full queue refuses the newest span (in Python
    it throws out the oldest), a failed export loses a run of one process that is contiguous by
    end time, a ratio sampler decides by trace id, a lost context gives the whole subtree a new
    trace id, a leaked one hangs it below an earlier request of the same worker.

    Parameters
    ----------
    traces : TraceSet
        A capture that is taken to be sound, synthetic or real. It is not changed.
    seed : int
        The same capture, seed and rates give the same damage.
    rates : mapping of str to float, optional
        Shares to plant by cause, keys of `DEFAULT_RATES`; those left out are not planted.
        All of `DEFAULT_RATES` if not given.
    telling : float
        Share of the services whose SDK counts in metrics what it dropped or could not send,
        as newer SDKs do; the points are added to the capture's metrics.

    Returns
    -------
    tuple of TraceSet and pl.DataFrame
        The damaged capture, and schema `TRUTH`: one row per break, lost spans that nothing in
        the capture shows included (not observable), and legal look-alikes.

    Raises
    ------
    ParameterError
        If a rate is unknown or no share, or `telling` is none.
    """
    chosen = dict(DEFAULT_RATES if rates is None else rates)
    for name, rate in chosen.items():
        if name not in DEFAULT_RATES:
            raise ParameterError(f"unknown rate {name}; known are {', '.join(DEFAULT_RATES)}")
        if not 0 <= rate <= 1:
            raise ParameterError(f"rate {name} is {rate}; a share is 0 to 1")
    if not 0 <= telling <= 1:
        raise ParameterError(f"telling is {telling}; a share is 0 to 1")
    plot = build_plot(traces)
    if not plot.n:
        return traces, schema.empty(schema.TRUTH)
    if any(chosen.values()):
        plot.tells = counts.tells_of_itself(
            plot, share=telling, rng=np.random.default_rng([seed, 15])
        )
    for number, (name, plant) in enumerate(_STEPS):
        if chosen.get(name, 0) > 0:
            plant(plot, rate=chosen[name], rng=np.random.default_rng([seed, 10, number]))
    told = counts.count_spans(plot)
    truth = [verdicts.lost_truth(plot)]
    truth += [verdicts.context_truth(plot, table) for table in plot.truth]
    truth.append(verdicts.legal_truth(plot, most=2000, rng=np.random.default_rng([seed, 11])))
    for number, (name, harm) in enumerate(
        (
            ("clock_skew", damage.skew_clocks),
            ("parent_cycle", damage.bend_parents),
            ("invalid_id", damage.spoil_ids),
        )
    ):
        if chosen.get(name, 0) > 0:
            rng = np.random.default_rng([seed, 12, number])
            truth.append(harm(plot, rate=chosen[name], rng=rng))
    spans, more = _damaged_rows(_write_spans(plot), chosen, seed)
    rows = pl.concat([schema.conform(table, schema.TRUTH) for table in [*truth, *more]])
    broken = _carry(traces, plot, spans)
    metrics = pl.concat([broken.metrics, told])
    return broken.with_tables(metrics=metrics), _only_exported(rows)


def _damaged_rows(
    spans: pl.DataFrame, rates: Mapping[str, float], seed: int
) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Clip values and repeat spans."""
    truth = []
    if rates.get("truncated_value", 0) > 0:
        rng = np.random.default_rng([seed, 13])
        spans, clipped = damage.clip_values(spans, rate=rates["truncated_value"], rng=rng)
        truth.append(clipped)
    exact = rates.get("duplicate_export", 0.0)
    conflicting = rates.get("duplicate_conflict", 0.0)
    if exact or conflicting:
        rng = np.random.default_rng([seed, 14])
        spans, repeated = damage.repeat_spans(spans, exact=exact, conflicting=conflicting, rng=rng)
        truth.append(repeated)
    return spans, truth


def _write_spans(plot: Plot) -> pl.DataFrame:
    """Give the kept rows their ids and times."""
    known = plot.spans["start_time"].is_not_null() & plot.spans["end_time"].is_not_null()
    table = plot.spans.with_columns(
        plot.ids["trace_id"], plot.ids["span_id"], plot.ids["parent_span_id"]
    ).with_columns(
        pl.when(known)
        .then(pl.Series(plot.start).cast(schema.TIME))
        .otherwise("start_time")
        .alias("start_time"),
        pl.when(known)
        .then(pl.Series(plot.end).cast(schema.TIME))
        .otherwise("end_time")
        .alias("end_time"),
    )
    return table.filter(pl.Series(plot.lost == 0))


def _carry(traces: TraceSet, plot: Plot, spans: pl.DataFrame) -> TraceSet:
    """Let events, links and logs follow their spans."""
    before = traces.spans.select("trace_id", "span_id")
    moves = before.hstack(plot.ids.select(to_trace="trace_id", to_span="span_id")).with_columns(
        shift=pl.Series(plot.start) - traces.spans["start_time"].cast(pl.Int64).fill_null(0),
        kept=pl.Series(plot.lost == 0),
    )
    moves = moves.unique(["trace_id", "span_id"], keep="first")

    def follow(table: pl.DataFrame, *, timed: bool) -> pl.DataFrame:
        found = table.join(moves, on=["trace_id", "span_id"], how="left", maintain_order="left")
        moved = found.filter(pl.col("kept").fill_null(value=True)).with_columns(
            trace_id=pl.coalesce("to_trace", "trace_id"),
            span_id=pl.coalesce("to_span", "span_id"),
        )
        if timed:
            moved = moved.with_columns(
                time=(pl.col("time").cast(pl.Int64) + pl.col("shift").fill_null(0)).cast(
                    schema.TIME
                )
            )
        return moved.select(table.columns)

    targets = moves.select(
        linked_trace_id="trace_id", linked_span_id="span_id", to_trace="to_trace"
    )
    links = (
        follow(traces.links, timed=False)
        .join(targets, on=["linked_trace_id", "linked_span_id"], how="left", maintain_order="left")
        .with_columns(linked_trace_id=pl.coalesce("to_trace", "linked_trace_id"))
        .select(traces.links.columns)
    )
    logs = traces.logs
    if logs.height:  # a log is exported on its own: it stays though its span is lost
        logs = (
            logs.join(moves, on=["trace_id", "span_id"], how="left", maintain_order="left")
            .with_columns(trace_id=pl.coalesce("to_trace", "trace_id"))
            .select(logs.columns)
        )
    return traces.with_tables(
        spans=spans,
        events=follow(traces.events, timed=True),
        links=links,
        logs=logs,
        ingest=schema.empty(schema.INGEST),
    )


def _only_exported(truth: pl.DataFrame) -> pl.DataFrame:
    """Sort the truth; one row per kind and span."""
    shown = truth.filter(pl.col("span_id").is_not_null()).unique(
        ["kind", "trace_id", "span_id"], keep="first", maintain_order=True
    )
    silent = truth.filter(pl.col("span_id").is_null())
    return pl.concat([shown, silent]).sort("trace_id", "span_id", "kind", nulls_last=True)
