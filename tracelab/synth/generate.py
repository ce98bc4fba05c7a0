"""Make captures: in memory, or any size on disk."""

from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import polars as pl

from tracelab.exceptions import ParameterError
from tracelab.io.write_otlp import OtlpWriter
from tracelab.synth.failures import inject_errors
from tracelab.synth.traffic import Stage, build_stage, play_traffic, to_ns
from tracelab.traceset import TraceSet

_CHUNK_TRACES: Final = 8_000
"""Traces that are played and written at a time: some 100,000 spans, 500 MB at the peak."""
_FLUSH: Final = "5s"
"""How often the SDKs' batch processors export by default."""


def synthesize_traces(
    *,
    seed: int,
    traces: int = 1000,
    services: int = 12,
    concurrency: float = 4.0,
    handoff_ms: float = 0.3,
    queue_delay_s: float = 0.2,
    error_rate: float = 0.03,
    skew_ms: float = 0.05,
    start: datetime | None = None,
) -> TraceSet:
    """Play a random fleet: its topology, SDKs, processes and latencies all follow the seed.

    Parameters
    ----------
    seed : int
        The same seed and arguments give the same tables.
    traces : int
        How many requests enter the fleet. Jobs that tick, and consumers that start a trace of
        their own with a link, come on top.
    services : int
        How many services the fleet has; 3 to 40 look natural.
    concurrency : float
        Mean number of traces in flight at once.
    handoff_ms : float
        Mean wait of a thread or task between being handed over and starting.
    queue_delay_s : float
        Median time that a message spends in a queue; the spread is wide.
    error_rate : float
        Share of traces in which something fails; use 0 and `inject_errors` to have the truth
        of each hop.
    skew_ms : float
        Standard deviation of the hosts' clock errors.
    start : datetime, optional
        When the capture begins; naive times are UTC.

    Returns
    -------
    TraceSet
        Spans, links, and events of the errors.

    Raises
    ------
    ParameterError
        If an argument is out of its range.
    """
    if traces < 1:
        raise ParameterError(f"traces is {traces}; at least one is needed")
    stage = build_stage(
        seed=seed,
        services=services,
        concurrency=concurrency,
        handoff_ms=handoff_ms,
        queue_delay_s=queue_delay_s,
        skew_ms=skew_ms,
    )
    clean = play_traffic(stage, traces=traces, start_ns=to_ns(start))
    return inject_errors(clean, seed=seed, rate=error_rate)[0] if error_rate else clean


def write_synthetic(
    path: str | Path,
    *,
    seed: int,
    spans: int,
    encoding: Literal["json", "proto"] = "proto",
    services: int = 12,
    concurrency: float = 20.0,
    error_rate: float = 0.01,
) -> int:
    """Write a synthetic capture of any size as OTLP, in bounded memory.

    Spans come in the order in which SDKs export: batches of one process, by end time.

    Parameters
    ----------
    path : str or Path
        File to write, as the Collector's file exporter writes it.
    seed : int
        The same seed and arguments give the same bytes.
    spans : int
        How many spans to write; the last trace may be cut short.
    encoding : {"json", "proto"}
        JSON lines, or protobuf with a length before each message.
    services, concurrency, error_rate : int, float, float
        As in `synthesize_traces`.

    Returns
    -------
    int
        Number of traces written.

    Raises
    ------
    ParameterError
        If an argument is out of its range.
    OSError
        If the file cannot be written.
    """
    if spans < 1:
        raise ParameterError(f"spans is {spans}; at least one is needed")
    stage = build_stage(
        seed=seed,
        services=services,
        concurrency=concurrency,
        handoff_ms=0.3,
        queue_delay_s=0.2,
        skew_ms=0.05,
    )
    left, traces, chunk = spans, 0, 0
    with OtlpWriter(path, encoding=encoding) as writer:
        while left > 0:
            part = _chunk(stage, chunk, error_rate)
            part = part.with_tables(spans=part.spans.head(left))
            for flush in _flushes(part.spans):
                writer.write(part.with_tables(spans=flush))
            left -= part.spans.height
            traces += part.n_traces
            chunk += 1
    return traces


def _chunk(stage: Stage, chunk: int, error_rate: float) -> TraceSet:
    clean = play_traffic(stage, traces=_CHUNK_TRACES, chunk=chunk, start_ns=to_ns(None))
    seed = stage.seed * 1_000_003 + chunk
    return inject_errors(clean, seed=seed, rate=error_rate)[0] if error_rate else clean


def _flushes(spans: pl.DataFrame) -> list[pl.DataFrame]:
    """Part spans as they leave: flush by flush, process by process, by end time."""
    process = ["service_name", "service_instance_id", "host_name", "process_pid"]
    when = pl.col("end_time").dt.truncate(_FLUSH).alias("flush")
    ordered = spans.with_columns(when).sort("flush", *process, "end_time", "span_id")
    return ordered.partition_by("flush", maintain_order=True, include_key=False)
