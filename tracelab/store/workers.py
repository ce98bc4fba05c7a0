"""Worker processes: started fresh, told apart from the caller's script, replaced when they die.

A worker is a new interpreter that runs this module, so that a script needs no
``if __name__ == "__main__"`` guard and no lock of a threaded library is inherited. It ends with
its parent, however that ends. A signal from the terminal does not reach it: the parent decides.
"""

import contextlib
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

_HEAD: Final = struct.Struct("<Q")
_PROGRAM: Final = "from tracelab.store.workers import main; main()"


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


class Workers:
    """A number of worker processes; use it as a context manager.

    Parameters
    ----------
    count : int
        Processes.
    retries : int
        How often a task is given to another worker after one died of it.
    """

    def __init__(self, count: int, *, retries: int = 1) -> None:
        self._count = count
        self._retries = retries
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers at once."""
        with self._lock:
            self._closed = True
            processes = list(self._processes)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()

    def run(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
    ) -> Iterator[Success | Failure | Death]:
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
        done: queue.SimpleQueue[Success | Failure | Death] = queue.SimpleQueue()
        for number in range(len(tasks)):
            waiting.put(number)
        for _ in range(min(self._count, len(tasks))):
            threading.Thread(
                target=self._serve, args=(function, tasks, waiting, done), daemon=True
            ).start()
        for _ in range(len(tasks)):
            yield _next(done)

    def _serve(
        self,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        waiting: "queue.SimpleQueue[int]",
        done: "queue.SimpleQueue[Success | Failure | Death]",
    ) -> None:
        process: subprocess.Popen[bytes] | None = None
        try:
            while not self._closed:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                for attempt in range(self._retries + 1):
                    outcome, process = self._attempt(process, function, tasks, number)
                    if not isinstance(outcome, Death) or attempt == self._retries:
                        done.put(outcome)
                        break
        finally:
            if process is not None:
                self._end(process)

    def _attempt(
        self,
        process: subprocess.Popen[bytes] | None,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        number: int,
    ) -> tuple[Success | Failure | Death, subprocess.Popen[bytes] | None]:
        try:
            message = pickle.dumps((function, tasks[number]))
        except Exception as error:  # noqa: BLE001 - pickling raises anything; it is handed on
            return Failure(number, error), process
        try:
            process = process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            _send(process.stdin, message)
            good, value = pickle.loads(_receive(process.stdout))
        except (OSError, EOFError) as error:
            if process is not None:
                self._end(process)
            return Death(number, _reason(process, error)), None
        return (Success(number, value) if good else Failure(number, value)), process

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise EOFError("closed")
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
                },
            )
            self._processes.add(process)
            return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with self._lock:
            self._processes.discard(process)


def _next(
    done: "queue.SimpleQueue[Success | Failure | Death]",
) -> Success | Failure | Death:
    while True:
        # A wait without end would not let Ctrl-C through on every platform.
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=0.5)


def _reason(process: subprocess.Popen[bytes] | None, error: BaseException) -> str:
    if process is None:
        return f"cannot be started: {error}"
    code = process.returncode
    return f"ended by signal {-code}" if code is not None and code < 0 else f"ended with {code}"


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(_HEAD.pack(len(message)) + message)
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


def main() -> None:
    """Serve tasks from standard input until it closes."""
    _follow_parent(int(sys.argv[1]))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints must not mix with replies
    while True:
        try:
            message = _receive(sys.stdin.buffer)
        except EOFError:
            return
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
