"""Make captures: in memory, or any size on disk."""

from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.io.write_otlp import OtlpWriter
from tracelab.synth.failures import inject_errors
from tracelab.synth.habits import every_habit
from tracelab.synth.traffic import Stage, build_stage, play_traffic, to_ns
from tracelab.traceset import TraceSet

_CHUNK_TRACES: Final = 8_000
"""Traces that are played and written at a time: some 100,000 spans, 500 MB at the peak."""
_FLUSH: Final = "5s"
"""How often the SDKs' batch processors export by default."""
_SKEW_NS: Final = 1_000_000_000
"""More than any host's clock is behind: no span of a later chunk ends earlier than this."""


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
    sampling: float = 1.0,
    habits: Collection[str] | None = None,
    start: datetime | None = None,
) -> TraceSet:
    """Play a random fleet: its topology, SDKs, processes and latencies all follow the seed.

    Parameters
    ----------
    seed : int
        The same seed and arguments give the same tables.
    traces : int
        How many requests enter the fleet. Jobs that tick, probes, and consumers that start a
        trace of their own with a link, come on top.
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
    sampling : float
        Share of traces that their root's sampler keeps; the threshold then travels in
        tracestate (``ot=th:``).
    habits : collection of str, optional
        Legal habits of the fleet that look like breaks, out of `HABITS`; all if not given.
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
        habits=every_habit(habits),
        sampling=sampling,
        traces=traces,
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
    habits: Collection[str] | None = None,
) -> int:
    """Write a synthetic capture of any size as OTLP, in bounded memory.

    Spans come in the order in which SDKs export: flush by flush of all processes, batches of
    one process by end time. The capture stops for all processes at one moment: it holds the
    `spans` spans that ended first, and a span still open then is absent, as in a real capture
    that is stopped while its children were exported.

    Parameters
    ----------
    path : str or Path
        File to write, as the Collector's file exporter writes it.
    seed : int
        The same seed and arguments give the same bytes.
    spans : int
        How many spans to write, exactly; traces open at the end are cut short.
    encoding : {"json", "proto"}
        JSON lines, or protobuf with a length before each message.
    services, concurrency, error_rate, habits : int, float, float, collection of str
        As in `synthesize_traces`.

    Returns
    -------
    int
        Number of traces of which at least one span was written.

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
        habits=every_habit(habits),
        spans=spans,
    )
    open_spans: TraceSet | None = None
    begun = pl.Series("trace_id", [], pl.String)
    left, traces, chunk = spans, 0, 0
    with OtlpWriter(path, encoding=encoding) as writer:
        while left > 0:
            part = _chunk(stage, chunk, error_rate)
            part = part if open_spans is None else _join(open_spans, part)
            chunk += 1
            done, later = _settled(part.spans, stage, chunk, left)
            for flush in _flushes(done):
                writer.write(part.with_tables(spans=flush))
            left -= done.height
            written = done["trace_id"].unique()
            traces += written.len() - int(written.is_in(begun.implode()).sum())
            begun = pl.concat([begun, written]).unique()
            begun = begun.filter(begun.is_in(later["trace_id"].implode()))
            open_spans = _keep(part, later)
    return traces


def _chunk(stage: Stage, chunk: int, error_rate: float) -> TraceSet:
    clean = play_traffic(stage, traces=_CHUNK_TRACES, chunk=chunk, start_ns=to_ns(None))
    seed = stage.seed * 1_000_003 + chunk
    return inject_errors(clean, seed=seed, rate=error_rate)[0] if error_rate else clean


def _settled(
    spans: pl.DataFrame, stage: Stage, chunk: int, left: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part spans that end before anything of the next chunk can, at most `left`, from the rest."""
    begins = to_ns(None) + int(chunk * _CHUNK_TRACES * stage.gap_ns)
    whole = pl.lit(begins - _SKEW_NS).cast(schema.TIME).dt.truncate(_FLUSH)
    ordered = spans.sort("end_time", "span_id")
    ready = min(left, int(ordered.select((pl.col("end_time") < whole).sum()).item()))
    return ordered.head(ready), ordered.slice(ready)


def _join(earlier: TraceSet, later: TraceSet) -> TraceSet:
    names = ("spans", "events", "links")
    tables = {name: pl.concat([getattr(earlier, name), getattr(later, name)]) for name in names}
    return later.with_tables(**tables)


def _keep(part: TraceSet, spans: pl.DataFrame) -> TraceSet:
    """Keep some spans of a part, and what belongs to them."""
    keys = ["trace_id", "span_id"]
    events, links = (table.join(spans, on=keys, how="semi") for table in (part.events, part.links))
    return part.with_tables(spans=spans, events=events, links=links)


def _flushes(spans: pl.DataFrame) -> list[pl.DataFrame]:
    """Part spans as they leave: flush by flush, process by process, by end time."""
    process = ["service_name", "service_instance_id", "host_name", "process_pid"]
    when = pl.col("end_time").dt.truncate(_FLUSH).alias("flush")
    ordered = spans.with_columns(when).sort("flush", *process, "end_time", "span_id")
    return ordered.partition_by("flush", maintain_order=True, include_key=False)
