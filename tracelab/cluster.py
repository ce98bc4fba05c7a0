"""Tasks on a Dask cluster, with the outcomes that the processes of this machine give."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final

from tracelab.exceptions import EngineError, ParameterError
from tracelab.workers import Death, Failure, Outcome, Success

_ENGINES: Final = (
    "must be local, dask, tcp://host:port, the path of a scheduler file, or a connected client"
)


class Cluster:
    """A connected Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        Its connection.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    @property
    def processes(self) -> int:
        """How many tasks run at once, at least 1."""
        return max(1, sum(int(each) for each in self.client.nthreads().values()))

    def run(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
    ) -> Iterator[Outcome]:
        """Call a function for each task, on any worker.

        Parameters
        ----------
        function : callable
            Importable by its module and name on the workers, or one that cloudpickle takes.
        tasks : sequence of tuple
            Positional arguments of each call.

        Yields
        ------
        Success, Failure or Death
            One per task, as they end. A task whose worker died is given to another, as often
            as the cluster's ``allowed-failures`` says, before it is a `Death`.

        Raises
        ------
        EngineError
            If the cluster ends while tasks are open.
        """
        import distributed

        finished: Any = distributed.as_completed
        # A closed connection and a time-out are errors of the system, too.
        lost = (distributed.CancelledError, OSError)
        futures: list[Any] = []
        try:
            futures += [self.client.submit(function, *task, pure=False) for task in tasks]
            numbers = {future.key: number for number, future in enumerate(futures)}
            for future in finished(futures, loop=self.client.loop):
                number = numbers[future.key]
                if future.status == "finished":
                    yield Success(number, future.result())
                    continue
                error = future.exception() if future.status == "error" else None
                if error is None:
                    raise _ended(f"its tasks were {future.status}")
                if isinstance(error, distributed.KilledWorker):
                    yield Death(number, "died time and again")
                else:
                    yield Failure(number, error)
        except lost as error:
            raise _ended(error) from error
        finally:
            with suppress(*lost):
                self.client.cancel(futures, force=True)


def _ended(why: object) -> EngineError:
    return EngineError(
        f"the Dask cluster did not finish: {why}; the store is as it was, run again when the "
        "cluster is up"
    )


@contextmanager
def connected(
    engine: Any,
    *,
    workers: int | None = None,
    progress: Callable[[str], object] = lambda step: None,
) -> Iterator[Cluster | None]:
    """Connect to the cluster that an engine names, for as long as the context lasts.

    Parameters
    ----------
    engine : str, path-like, distributed.Client or Cluster
        ``"local"``, ``"dask"`` (a cluster on this machine), ``"tcp://host:port"``, the path
        of a scheduler file, or what is connected already and stays so.
    workers : int, optional
        Processes of the engine dask; one per core if left out.
    progress : callable
        Called with a line that says where the cluster's dashboard is.

    Yields
    ------
    Cluster or None
        None for ``"local"``.

    Raises
    ------
    EngineError
        If dask.distributed is not installed or the scheduler cannot be reached.
    ParameterError
        If `engine` is none of these.
    """
    if isinstance(engine, Cluster) or (isinstance(engine, str) and engine == "local"):
        yield None if isinstance(engine, str) else engine
        return
    try:
        import distributed
    except ImportError as error:
        raise EngineError(
            f"engine={engine!r} needs dask.distributed; install tracelab[dask]"
        ) from error
    with ExitStack() as stack:
        client = _client(distributed, engine, workers, stack)
        progress(f"Dask dashboard: {client.dashboard_link}")
        yield Cluster(client)


@contextmanager
def _left_alone_by_the_terminal() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: this process ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    _start_tracker()
    # The thread that is started now, and the processes that it starts, inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Start what multiprocessing cleans up with, which would lift the mask where it is started.

    After Ctrl-C it removes what is left, and shall not warn that it did.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


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
                with _left_alone_by_the_terminal():
                    cluster = distributed.LocalCluster(
                        n_workers=workers or os.cpu_count() or 1,
                        threads_per_worker=1,
                        silence_logs=logging.CRITICAL,
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
