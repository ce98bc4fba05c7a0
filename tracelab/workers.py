"""Worker processes: started fresh, told apart from the caller's script, replaced when they die.

A worker is a new interpreter that runs this module, so that a script needs no
``if __name__ == "__main__"`` guard and no lock of a threaded library is inherited. It ends with
its parent, however that ends. A signal from the terminal does not reach it: the parent decides.
"""

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import IO, Any, Final

_HEAD: Final = struct.Struct("<Q")
_PROGRAM: Final = "from tracelab.workers import main; main()"


@dataclass(frozen=True, slots=True)
class Death:
    """A task whose workers died."""

    task: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that raised."""

    task: int
    error: BaseException


@dataclass(frozen=True, slots=True)
class Success:
    """A task's result."""

    task: int
    value: Any


Outcome = Success | Failure | Death

_ENDING_SECONDS: Final = 10


class Worker:
    """One worker process, started when it is first needed and again after it died.

    Parameters
    ----------
    threads : int, optional
        Threads of the libraries that compute; their own choice if left out.
    limited : bool
        Whether the process ends when it takes more memory or time than any sound input needs
        (half of the machine's memory, `CALL_SECONDS`).
    preload : str
        Module that the tasks need; it is imported while the caller still makes its plans.
    """

    def __init__(
        self, *, threads: int | None = None, limited: bool = False, preload: str = ""
    ) -> None:
        self._threads = threads
        self._arguments = ["limited" if limited else "", preload]
        self._process: subprocess.Popen[bytes] | None = None
        self._starter = 0
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start the process, unless it runs; it imports while the caller goes on.

        It ends with the thread that calls this, which is what Linux takes for its parent.
        """
        with self._lock:
            if self._closed:
                raise EOFError("closed")
            if self._process is None:
                self._starter = threading.get_ident()
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, str(os.getpid()), *self._arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                    env=_environment(self._threads),
                )

    def call(self, task: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
        """Call a function in the process and wait for its result.

        Parameters
        ----------
        task : int
            What the outcome is numbered with.
        function : callable
            Importable by its module and name.
        arguments : tuple
            Its positional arguments.

        Returns
        -------
        Success, Failure or Death
        """
        try:
            message = pickle.dumps((function, arguments))
        except Exception as error:  # noqa: BLE001 - pickling raises anything; it is handed on
            return Failure(task, error)
        process = None
        try:
            self.start()
            process = self._process
            assert process is not None
            assert process.stdin is not None
            assert process.stdout is not None
            _send(process.stdin, message)
            good, value = pickle.loads(_receive(process.stdout))
        except (OSError, EOFError) as error:
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_ENDING_SECONDS)  # its pipes are closed: it is ending
            self.stop()
            return Death(task, _reason(process, error))
        return Success(task, value) if good else Failure(task, value)

    def stop(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def leave(self) -> None:
        """End the process if it was started by this thread, which is about to end."""
        if self._starter == threading.get_ident():
            self.stop()

    def close(self) -> None:
        """End the process for good."""
        self._closed = True
        self.stop()


class Workers:
    """A number of worker processes; use it as a context manager.

    Parameters
    ----------
    count : int
        Processes.
    retries : int
        How often a task is given to another worker after one died of it.
    **options
        As for `Worker`.
    """

    def __init__(self, count: int, *, retries: int = 1, **options: Any) -> None:
        self._retries = retries
        self._workers = [Worker(**options) for _ in range(count)]
        self._closed = False

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Start all processes; they import while the caller goes on."""
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        """End all workers at once."""
        self._closed = True
        for worker in self._workers:
            worker.close()

    def run(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
    ) -> Iterator[Outcome]:
        """Call a function for each task, in any process.

        Parameters
        ----------
        function : callable
            Importable by its module and name.
        tasks : sequence of tuple
            Positional arguments of each call.

        Yields
        ------
        Success, Failure or Death
            One per task, as they end.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        for number in range(len(tasks)):
            waiting.put(number)
        for worker in self._workers[: len(tasks)]:
            threading.Thread(
                target=self._serve, args=(worker, function, tasks, waiting, done), daemon=True
            ).start()
        for _ in range(len(tasks)):
            yield _next(done)

    def _serve(
        self,
        worker: Worker,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        waiting: "queue.SimpleQueue[int]",
        done: "queue.SimpleQueue[Outcome]",
    ) -> None:
        try:
            while not self._closed:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                for attempt in range(self._retries + 1):
                    outcome = worker.call(number, function, tasks[number])
                    if not isinstance(outcome, Death) or attempt == self._retries:
                        done.put(outcome)
                        break
        finally:
            worker.leave()


_THREADS: Final = ("POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


_REUSE: Final = {"_RJEM_MALLOC_CONF": "thp:always,dirty_decay_ms:60000,muzzy_decay_ms:60000"}
"""Asks the allocator of polars to keep what tables leave behind for the next ones. It gives that
back within a second, and getting it again took a fifth of a worker's time."""


def _environment(threads: int | None) -> dict[str, str]:
    own = {} if threads is None else dict.fromkeys(_THREADS, str(threads))
    path = os.pathsep.join(each for each in sys.path if each)
    reuse = _REUSE if sys.platform == "linux" else {}
    return {**reuse, **os.environ, **own, "PYTHONPATH": path}


def _next(done: "queue.SimpleQueue[Outcome]") -> Outcome:
    while True:
        # A wait without end would not let Ctrl-C through on every platform.
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=0.5)


def _reason(process: subprocess.Popen[bytes] | None, error: BaseException) -> str:
    if process is None:
        return f"cannot be started: {error}"
    code = process.returncode
    if code is None or code >= 0:
        return f"ended with {code}"
    if -code == _OUT_OF_TIME:
        return f"took more than {CALL_SECONDS} s of CPU time"
    with contextlib.suppress(ValueError):
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    return f"ended by signal {-code}"


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(_HEAD.pack(len(message)))
    stream.write(message)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    (size,) = _HEAD.unpack(_exactly(stream, _HEAD.size))
    return _exactly(stream, size)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _follow_parent(parent: int) -> None:
    """End with the parent, even if it is killed while a task runs."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)
        if os.getppid() != parent:
            os._exit(1)


CALL_SECONDS: Final = 300
"""CPU time that a limited worker may take between two calls of `renew_time`: some hundred times
what a block of the worst sound input takes."""

_LEAST_MEMORY: Final = 2 << 30
_OUT_OF_TIME: Final = getattr(signal, "SIGPROF", 0)
_limited = False


def renew_time() -> None:
    """Give the running call its full time again; nothing outside of a limited worker."""
    if _limited and _OUT_OF_TIME:
        # CPU time, not time on the clock: a busy or sleeping machine kills no sound task.
        signal.setitimer(signal.ITIMER_PROF, CALL_SECONDS)


class _WithoutPandas(MetaPathFinder):
    """Hide pandas: pyarrow loads it at its first array, a quarter second for nothing."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


def _limit() -> None:
    """Let allocations fail before the system kills whatever it chooses."""
    global _limited
    _limited = True
    sys.meta_path.insert(0, _WithoutPandas())
    if _OUT_OF_TIME:
        signal.signal(_OUT_OF_TIME, signal.SIG_DFL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        most = max(_LEAST_MEMORY, memory // 2)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def main() -> None:
    """Serve tasks from standard input until it closes."""
    _follow_parent(int(sys.argv[1]))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints must not mix with replies
    if sys.argv[2]:
        _limit()
    if sys.argv[3]:
        import_module(sys.argv[3])
    while True:
        try:
            message = _receive(sys.stdin.buffer)
        except EOFError:
            return
        renew_time()
        try:
            function, arguments = pickle.loads(message)
            reply = pickle.dumps((True, function(*arguments)))
        except BaseException as error:  # noqa: BLE001 - polars' panics are no Exception
            reply = _failed(error)
        _send(replies, reply)


def _failed(error: BaseException) -> bytes:
    try:
        reply = pickle.dumps((False, error))
        pickle.loads(reply)
    except Exception:  # noqa: BLE001 - errors of any library; some do not survive pickling
        reply = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return reply
