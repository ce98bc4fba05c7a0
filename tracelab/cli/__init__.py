"""The command line: a thin skin over the library, with one-line errors.

Here stands only what must be there before anything is imported, so that Ctrl-C is answered in one
line from the first moment on.
"""

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Final

EXIT_UNUSABLE: Final = 2
EXIT_INTERRUPTED: Final = 130

INTERRUPTED: Final = "interrupted; finished work is kept"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 findings, 2 unusable input or arguments."""
    signal.signal(signal.SIGINT, _stop)
    try:
        # polars takes the signal for itself when it is imported.
        importlib.import_module("polars")
        signal.signal(signal.SIGINT, _stop)
    except KeyboardInterrupt:
        complain(INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one line on stderr."""
    try:
        from tracelab.cli import commands

        return commands.run(arguments)
    except KeyboardInterrupt:
        complain(INTERRUPTED)
        return EXIT_INTERRUPTED
    except SystemExit:
        raise
    except MemoryError:
        complain(
            "not enough memory; give it more, or keep the capture in a store, which needs less"
        )
    except BaseException:  # noqa: BLE001 - a panic of polars is no Exception
        # Python's own answer would end with 1, which means findings.
        traceback.print_exc()
        complain("stopped by something it did not foresee; the lines above say where")
    return EXIT_UNUSABLE


def complain(message: str) -> None:
    """Print a message as the program's one line on stderr."""
    from tracelab import html

    # Where nobody can be told, the exit code still tells.
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(f"tracelab: {html.plain(message, limit=2000)}", file=sys.stderr, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    """Interrupt, and end for good soon after: a reader waiting on a pipe cannot be woken."""
    last = threading.Timer(1.0, _give_up)
    last.daemon = True
    last.start()
    raise KeyboardInterrupt


def _give_up() -> None:
    complain(INTERRUPTED)
    os._exit(EXIT_INTERRUPTED)
