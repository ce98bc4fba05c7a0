"""Memory that this process has freed, and what the system knows of that."""

import contextlib
import ctypes


def give_back() -> None:
    """Give freed memory back to the system, where the C library keeps it otherwise.

    The GNU C library keeps what arrays of a few megabytes leave behind; of a hundred million
    spans that is gigabytes, which the system would hold files in.

    Raises
    ------
    Nothing: other C libraries are not asked.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
