"""One task per bucket, on this machine's processes or on a Dask cluster."""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

from tracelab.exceptions import EngineError, ParameterError
from tracelab.store import TraceStore
from tracelab.traceset import TraceSet
from tracelab.workers import Death, Failure, Workers

Result = TypeVar("Result")

_IN_PROCESS_ROWS: Final = 300_000
"""Below this many rows, starting workers costs more than they save."""

_RETRIES: Final = 2


def map_buckets(
    function: Callable[..., Result],
    traces: TraceStore | TraceSet,
    *,
    engine: Any = "local",
    workers: int | None = None,
    columns: Sequence[str] | None = None,
    tables: Sequence[str] = ("events", "links", "logs", "metrics"),
    arguments: Sequence[Any] = (),
) -> list[Result]:
    """Call a function with each bucket of a store.

    Parameters
    ----------
    function : callable
        Takes a `TraceSet`, then `arguments`. On another process it is imported by its module
        and name; a function of a script or notebook runs in this process if `engine` is local.
    traces : TraceStore or TraceSet
        A store, as of the commit that it was opened at; a capture in memory is one bucket.
    engine : str or distributed.Client
        ``"local"``, ``"dask"`` (a cluster on this machine), ``"tcp://host:port"``, the path
        of a scheduler file, or a client that is connected already.
    workers : int, optional
        Processes of the engines local and dask; one per core if left out.
    columns, tables : sequence of str
        What `function` needs, as for `TraceStore.read_bucket`.
    arguments : sequence
        Further positional arguments.

    Returns
    -------
    list
        One result per bucket, in the order of `TraceStore.buckets`.

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
    if isinstance(traces, TraceSet):
        return [function(traces, *arguments)]
    snapshot = _Bucket(traces, columns, tuple(tables))
    tasks = [(snapshot, number, function, tuple(arguments)) for number in traces.buckets()]
    if isinstance(engine, str) and engine == "local":
        return _map_local(tasks, traces, function, workers)
    return _map_dask(tasks, engine, workers)


class _Bucket:
    """What a worker needs to read a bucket of the same snapshot."""

    def __init__(
        self, store: TraceStore, columns: Sequence[str] | None, tables: tuple[str, ...]
    ) -> None:
        self.store = store
        self.columns = None if columns is None else tuple(columns)
        self.tables = tables

    def read(self, number: int) -> TraceSet:
        return self.store.read_bucket(number, columns=self.columns, tables=self.tables)


def _call(
    bucket: _Bucket, number: int, function: Callable[..., Result], arguments: tuple[Any, ...]
) -> Result:
    return function(bucket.read(number), *arguments)


def _map_local(
    tasks: list[tuple[Any, ...]],
    store: TraceStore,
    function: Callable[..., Result],
    workers: int | None,
) -> list[Result]:
    count = workers if workers is not None else os.cpu_count() or 1
    facts = store.info()
    small = workers is None and facts["spans"] + facts["logs"] < _IN_PROCESS_ROWS
    if count == 1 or small or not _is_importable(function):
        return [_call(*task) for task in tasks]
    results: dict[int, Result] = {}
    with Workers(count, retries=_RETRIES) as pool:
        for outcome in pool.run(_call, tasks):
            if isinstance(outcome, Failure):
                raise outcome.error
            if isinstance(outcome, Death):
                raise EngineError(
                    f"bucket {outcome.task}: {_RETRIES + 1} workers in a row {outcome.reason}; "
                    "if memory is short, pass workers=1 or make the store with more buckets"
                )
            results[outcome.task] = outcome.value
    return [results[number] for number in range(len(tasks))]


def _is_importable(function: Callable[..., Any]) -> bool:
    name = getattr(function, "__qualname__", "<")
    module = getattr(function, "__module__", "__main__")
    return module not in ("__main__", "__mp_main__") and "<" not in name


def _map_dask(tasks: list[tuple[Any, ...]], engine: Any, workers: int | None) -> list[Any]:
    try:
        import distributed
        import distributed.comm.core
    except ImportError as error:
        raise EngineError(
            f"engine={engine!r} needs dask.distributed; install tracelab[dask]"
        ) from error
    with ExitStack() as stack:
        client = _client(distributed, engine, workers, stack)
        futures = [
            client.submit(
                _call, *task, pure=False, retries=_RETRIES, key=f"bucket-{id(tasks)}-{at}"
            )
            for at, task in enumerate(tasks)
        ]
        try:
            return list(client.gather(futures))
        except (
            distributed.KilledWorker,
            distributed.CancelledError,
            distributed.comm.core.CommClosedError,
            OSError,
        ) as error:
            raise EngineError(
                f"the Dask cluster did not finish: {error}; the store is as it was, run again "
                "when the cluster is up"
            ) from error
        finally:
            client.cancel(futures, force=True)


def _client(distributed: Any, engine: Any, workers: int | None, stack: ExitStack) -> Any:
    if isinstance(engine, distributed.Client):
        return engine
    if not isinstance(engine, str | os.PathLike):
        raise ParameterError(f"engine={engine!r}: {_ENGINES}")
    text = os.fspath(engine)
    with warnings.catch_warnings():
        # A busy port of the dashboard is no reason to warn: the next one is taken.
        warnings.simplefilter("ignore")
        try:
            if text == "dask":
                cluster = distributed.LocalCluster(
                    n_workers=workers or os.cpu_count() or 1, threads_per_worker=1
                )
                return stack.enter_context(
                    distributed.Client(stack.enter_context(cluster), set_as_default=False)
                )
            if "://" in text:
                return stack.enter_context(
                    distributed.Client(text, timeout="10s", set_as_default=False)
                )
            if Path(text).is_file():
                return stack.enter_context(
                    distributed.Client(scheduler_file=text, timeout="10s", set_as_default=False)
                )
        except (OSError, ValueError) as error:
            raise EngineError(
                f"the Dask scheduler {text} cannot be reached: {error}; check that it runs"
            ) from error
    raise ParameterError(f"engine={text!r}: {_ENGINES}")


_ENGINES: Final = (
    "must be local, dask, tcp://host:port, the path of a scheduler file, or a connected client"
)
