"""Decoders that end their process, or take too much, at a mark in a message; for the tests."""

import os
import signal
from typing import Any

from tracelab.io.chunk import Block, Chunk
from tracelab.io.decode import decode_block

MARK = b"kill the reader"
GREED = b"eat all memory"


def decode_or_die(block: Block, **options: Any) -> Chunk:
    """Decode, unless a message holds `MARK` or `GREED`."""
    if MARK in block.buffer:
        os.kill(os.getpid(), signal.SIGSEGV)
    if GREED in block.buffer:
        raise MemoryError("malloc of size 2305843009213693832 failed")
    return decode_block(block, **options)


def die(*_arguments: Any) -> None:
    """End the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def spin() -> None:
    """Take more time than is given."""
    from tracelab import workers

    workers.CALL_SECONDS = 0.2
    workers.renew_time()
    while True:
        pass


def devour() -> int:
    """Ask for more memory than the machine has."""
    return len(bytearray(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
