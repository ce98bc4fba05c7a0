"""One task per bucket, on this machine's processes or on a Dask cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from tracelab.cluster import Cluster, connected
from tracelab.exceptions import EngineError, ParameterError
from tracelab.store import TraceStore
from tracelab.traceset import TraceSet
from tracelab.workers import Death, Failure, Workers

Result = TypeVar("Result")

_IN_PROCESS_ROWS: Final = 300_000
"""Below this many rows, starting workers costs more than they save."""

_RETRIES: Final = 2

_PIECE_SPANS: Final = 400_000
"""Spans of a bucket that are worked on at a time: what an analysis needs beside them, about 2 KB
a span, stays below 1 GB however much the store has grown."""


def map_buckets(
    function: Callable[..., Result],
    traces: TraceStore | TraceSet,
    *,
    engine: Any = "local",
    workers: int | None = None,
    columns: Sequence[str] | None = None,
    tables: Sequence[str] = ("events", "links", "logs", "metrics"),
    arguments: Sequence[Any] | Callable[[int], Sequence[Any]] = (),
    merge: Callable[[list[Result]], Result] | None = None,
) -> list[Result]:
    """Call a function with the traces of a store, a bucket or a piece of one at a time.

    Parameters
    ----------
    function : callable
        Takes a `TraceSet`, then `arguments`. On another process it is imported by its module
        and name; a function of a script or notebook runs in this process if `engine` is local.
    traces : TraceStore or TraceSet
        A store, as of the commit that it was opened at; a capture in memory is one bucket.
    engine : str, distributed.Client or Cluster
        ``"local"``, or a cluster as `tracelab.cluster.connected` takes it.
    workers : int, optional
        Processes of the engines local and dask; one per core if left out.
    columns, tables : sequence of str
        What `function` needs, as for `TraceStore.read_bucket`.
    arguments : sequence or callable
        Further positional arguments; or what returns those for a bucket's number, so that no
        process is sent what only others need. A capture in memory has number 0.
    merge : callable, optional
        Makes one result of those of a bucket's pieces, where they were computed.

    Returns
    -------
    list
        One result per bucket, in the order of `TraceStore.buckets`; a bucket of more than
        400,000 spans is taken in pieces of whole traces and gives as many, if they are not
        merged.

    Raises
    ------
    EngineError
        If the engine cannot be reached, or workers died over one bucket time and again.
    ParameterError
        If `engine` or `workers` is none of these.
    Exception
        What `function` raised.
    """
    if workers is not None and workers < 1:
        raise ParameterError(f"workers={workers}: must be at least 1")

    def given(number: int) -> tuple[Any, ...]:
        return tuple(arguments(number) if callable(arguments) else arguments)

    if isinstance(traces, TraceSet):
        return [function(traces, *given(0))]
    snapshot = _Bucket(traces, columns, tuple(tables))
    tasks = [(snapshot, number, function, given(number), merge) for number in traces.buckets()]
    with connected(engine, workers=workers) as cluster:
        if cluster is not None:
            return _results(cluster, tasks, advice="give them more memory")
        if _stays_here(function, traces, workers):
            return [result for task in tasks for result in _call(*task)]
        with Workers(workers or os.cpu_count() or 1, retries=_RETRIES) as pool:
            return _results(
                pool,
                tasks,
                advice="if memory is short, pass workers=1 or make the store with more buckets",
            )


class _Bucket:
    """What a worker needs to read a bucket of the same snapshot."""

    def __init__(
        self, store: TraceStore, columns: Sequence[str] | None, tables: tuple[str, ...]
    ) -> None:
        self.store = store
        self.columns = None if columns is None else tuple(columns)
        self.tables = tables

    def pieces(self, number: int) -> Iterator[TraceSet]:
        return self.store.read_pieces(
            number, max_spans=_PIECE_SPANS, columns=self.columns, tables=self.tables
        )


def _call(
    bucket: _Bucket,
    number: int,
    function: Callable[..., Result],
    arguments: tuple[Any, ...],
    merge: Callable[[list[Result]], Result] | None,
) -> list[Result]:
    results = [function(piece, *arguments) for piece in bucket.pieces(number)]
    return results if merge is None or len(results) < 2 else [merge(results)]


def _results(pool: Workers | Cluster, tasks: list[tuple[Any, ...]], *, advice: str) -> list[Any]:
    results: dict[int, Any] = {}
    for outcome in pool.run(_call, tasks):
        if isinstance(outcome, Failure):
            raise outcome.error
        if isinstance(outcome, Death):
            raise EngineError(
                f"bucket {outcome.task}: every worker that took it {outcome.reason}; {advice}"
            )
        results[outcome.task] = outcome.value
    return [result for number in range(len(tasks)) for result in results[number]]


def _stays_here(function: Callable[..., Any], store: TraceStore, workers: int | None) -> bool:
    facts = store.info()
    small = workers is None and facts["spans"] + facts["logs"] < _IN_PROCESS_ROWS
    return (workers or os.cpu_count()) == 1 or small or not _is_importable(function)


def _is_importable(function: Callable[..., Any]) -> bool:
    name = getattr(function, "__qualname__", "<")
    module = getattr(function, "__module__", "__main__")
    return module not in ("__main__", "__mp_main__") and "<" not in name
