"""The two passes over a capture's buckets that an investigation consists of.

The first pass reduces each bucket to what crosses traces; breaks are then resolved over all of
them; the second pass follows errors bucket by bucket with the breaks known. Traces that a
proposed parent ties to another trace are taken out of their buckets and looked at together, so
that an error is followed across the gap wherever its two halves are stored.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from tracelab import schema
from tracelab.audits import chain_integrity
from tracelab.audits.digest import Digest, digest_audits, merge_digests
from tracelab.audits.integrity import merge_integrity
from tracelab.engine import map_buckets
from tracelab.errors_chain import audit_errors, find_error_hops, parse_exceptions
from tracelab.signals import merge_red, red_series
from tracelab.signals.red import add_red, serving_services
from tracelab.store import TraceStore
from tracelab.structure import (
    BREAK_COLUMNS,
    Reduced,
    build_spine,
    reduce_bucket,
    resolve_breaks,
    span_edges,
)
from tracelab.traceset import TraceSet

MAX_TIED_TRACES: Final = 200_000
"""Most traces that are looked at together because proposed parents tie them; beyond it the
rest stay in their buckets, where an error is followed up to the gap only."""

_OPERATION: Final = ("service_name", "span_name")
_CALL: Final = ("parent_service", "child_service", "boundary")


@dataclass(frozen=True)
class Overview:
    """What the first pass keeps of a bucket, besides what breaks are resolved from."""

    operations: pl.DataFrame
    calls: pl.DataFrame
    serving: list[str | None]
    n_traces: int
    n_spans: int
    n_parents: int
    start: Any
    end: Any


@dataclass(frozen=True)
class Errors:
    """What the second pass keeps of a bucket."""

    exceptions: pl.DataFrame
    audit: pl.DataFrame
    hops: pl.DataFrame
    integrity: pl.DataFrame
    red: pl.DataFrame
    digest: Digest


@dataclass(frozen=True)
class Survey:
    """The tables of a whole capture."""

    breaks: pl.DataFrame
    errors: Errors
    operations: pl.DataFrame
    calls: pl.DataFrame
    n_traces: int
    n_spans: int
    n_parents: int
    start: Any
    end: Any


def overview_bucket(traces: TraceSet) -> tuple[Overview, Reduced]:
    """Reduce a bucket of whole traces to what the capture as a whole needs."""
    spans = traces.spans
    spine = build_spine(traces)
    reduced = reduce_bucket(traces, spine=spine)
    overview = Overview(
        operations=spans.group_by("service_name", pl.col("name").alias("span_name")).agg(
            pl.len().cast(pl.Int64).alias("spans")
        ),
        calls=span_edges(traces, spine=spine)
        .filter(pl.col("relation") == "parent")
        .group_by(_CALL)
        .agg(pl.len().cast(pl.Int64).alias("calls")),
        serving=serving_services(traces),
        n_traces=traces.n_traces,
        n_spans=spans.height,
        n_parents=int(spans["parent_span_id"].count()),
        start=spans["start_time"].min(),
        end=spans["end_time"].max(),
    )
    return overview, reduced


def errors_bucket(
    traces: TraceSet,
    breaks: pl.DataFrame,
    serving: list[str | None],
    tied: list[str],
    every: str,
    window: str,
) -> tuple[Errors, TraceSet]:
    """Follow the errors of a bucket, with breaks and serving services of the whole known.

    The traces of it that are tied to others are handed back instead.
    """
    taken = traces.select_traces(tied)
    if tied:
        others = ~pl.col("trace_id").is_in(pl.Series(tied, dtype=pl.String).implode())
        traces = traces.with_tables(
            spans=traces.spans.filter(others),
            events=traces.events.filter(others),
            links=traces.links.filter(others),
            logs=traces.logs.filter(others.fill_null(value=True)),
        )
    return _errors(traces, breaks, serving, every, window), taken


def _errors(
    traces: TraceSet, breaks: pl.DataFrame, serving: list[str | None], every: str, window: str
) -> Errors:
    here = breaks.join(traces.spans.select("trace_id").unique(), on="trace_id", how="semi")
    edges = span_edges(traces)
    exceptions = parse_exceptions(traces)
    hops = find_error_hops(traces, edges=edges, breaks=here, exceptions=exceptions)
    return Errors(
        exceptions=exceptions,
        audit=audit_errors(traces, exceptions=exceptions),
        hops=hops,
        integrity=chain_integrity(traces, hops=hops, breaks=here, every=window),
        red=red_series(traces, every=every, breaks=here, hops=hops, serving=serving),
        digest=digest_audits(traces, hops=hops, edges=edges, exceptions=exceptions),
    )


def survey(
    traces: TraceSet | TraceStore,
    *,
    every: str,
    window: str,
    engine: Any = "local",
    workers: int | None = None,
    say: Any = None,
) -> Survey:
    """Run both passes.

    Parameters
    ----------
    traces : TraceSet or TraceStore
        A capture in memory is one bucket.
    every, window : str
        Bin of the series, window of the chain-integrity SLI.
    engine, workers
        As for `tracelab.engine.map_buckets`.
    say : callable, optional
        Called with the name of each step before it starts.

    Returns
    -------
    Survey
        Tables sorted by their keys, the same for every engine.

    Raises
    ------
    EngineError
        If the engine cannot be reached or died.
    ParameterError
        If `every` or `window` is no duration in its range.
    """
    say = say or (lambda step: None)
    say("what is in the capture")
    parts = map_buckets(
        overview_bucket,
        traces,
        engine=engine,
        workers=workers,
        columns=BREAK_COLUMNS,
        tables=("events", "links", "metrics"),
    )
    say("where traces break, and why")
    first = [overview for overview, _ in parts]
    breaks = resolve_breaks(_let_go(parts))
    serious = breaks.filter(pl.col("severity") != "info")
    tied = _tied_traces(serious) if isinstance(traces, TraceStore) else []
    serving = [*{name: None for part in first for name in part.serving}]
    mine = _by_bucket(serious, traces)
    say("what became of each error")
    second = map_buckets(
        errors_bucket,
        traces,
        engine=engine,
        workers=workers,
        columns=schema.JUDGED,
        arguments=lambda bucket: (mine(bucket), serving, tied, every, window),
        merge=_merged,
    )
    errors, taken = _merged(second)
    if tied:
        errors = _together([errors, _errors(taken, serious, serving, every, window)])
    if isinstance(traces, TraceStore):
        errors = replace(errors, red=merge_red(errors.red))
    return Survey(
        breaks=breaks,
        errors=errors,
        operations=_sum(first, "operations", _OPERATION, "spans"),
        calls=_sum(first, "calls", _CALL, "calls"),
        n_traces=sum(part.n_traces for part in first),
        n_spans=sum(part.n_spans for part in first),
        n_parents=sum(part.n_parents for part in first),
        start=min((part.start for part in first if part.start is not None), default=None),
        end=max((part.end for part in first if part.end is not None), default=None),
    )


def _by_bucket(
    breaks: pl.DataFrame, traces: TraceSet | TraceStore
) -> Callable[[int], pl.DataFrame]:
    """Part breaks by where their traces lie: sending all of them to each costs more than that."""
    if isinstance(traces, TraceSet):
        return lambda _: breaks
    number = traces.buckets_of(breaks["trace_id"]).alias("_bucket")
    parts = breaks.with_columns(number).partition_by("_bucket", as_dict=True, include_key=False)
    return lambda bucket: parts.get((bucket,), breaks.clear())


def _merged(parts: list[tuple[Errors, TraceSet]]) -> tuple[Errors, TraceSet]:
    taken = [tied for _, tied in parts]
    return _together([errors for errors, _ in parts]), TraceSet(
        spans=pl.concat([part.spans for part in taken]),
        events=pl.concat([part.events for part in taken]),
        links=pl.concat([part.links for part in taken]),
        logs=pl.concat([part.logs for part in taken]),
    )


def _let_go(parts: list[tuple[Overview, Reduced]]) -> Iterator[Reduced]:
    """Hand over what breaks are resolved from, and forget it."""
    while parts:
        yield parts.pop()[1]


def _tied_traces(breaks: pl.DataFrame) -> list[str]:
    crossing = breaks.filter(
        pl.col("proposed_trace_id").is_not_null(),
        pl.col("proposed_trace_id") != pl.col("trace_id"),
    ).sort("proposed_confidence", "break_id", descending=[True, False])
    ids = pl.concat([crossing["trace_id"], crossing["proposed_trace_id"]]).unique().sort()
    if len(ids) > MAX_TIED_TRACES:
        crossing = crossing.head(MAX_TIED_TRACES // 2)
        ids = pl.concat([crossing["trace_id"], crossing["proposed_trace_id"]]).unique().sort()
    return ids.to_list()


def _together(parts: list[Errors]) -> Errors:
    """Bring parts together whose sums will be added to others."""
    return Errors(
        exceptions=pl.concat([part.exceptions for part in parts]).sort(
            "trace_id", "span_id", "event_index", "position"
        ),
        audit=pl.concat([part.audit for part in parts]).sort("time", "trace_id", "span_id"),
        hops=pl.concat([part.hops for part in parts]).sort("error_id", "hop", "child_span_id"),
        integrity=merge_integrity(*(part.integrity for part in parts)),
        red=add_red(*(part.red for part in parts)) if len(parts) > 1 else parts[0].red,
        digest=merge_digests(*(part.digest for part in parts)),
    )


def _sum(parts: list[Overview], name: str, key: tuple[str, ...], count: str) -> pl.DataFrame:
    tables: list[pl.DataFrame] = [getattr(part, name) for part in parts]
    return pl.concat(tables).group_by(key).agg(pl.col(count).sum()).sort(key, nulls_last=True)


def call_edges(calls: pl.DataFrame) -> pl.DataFrame:
    """Return one EDGES row per distinct call, enough for the graph of services."""
    return schema.conform(
        calls.drop("calls").with_columns(pl.lit("parent").alias("relation")), schema.EDGES
    )
