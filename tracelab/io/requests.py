"""A protobuf request without a prefix, cut at the borders of its resources.

A request is a chain of field 1, and each link of that chain is a request of its own: a file
of any size is read in bounded memory.
"""

from collections.abc import Iterator

import numpy as np

from tracelab.io.chunk import Block
from tracelab.io.containers import Stream
from tracelab.io.frames import field_end
from tracelab.io.intake import Intake, Window


def read_request(stream: Stream, intake: Intake, *, base: int = 0) -> Iterator[Block]:
    """Read one protobuf request, or several laid end to end.

    Parameters
    ----------
    stream : Stream
        Decompressed bytes.
    intake : Intake
        Limits and damage.
    base : int
        Offset of the stream's first byte within its source.

    Yields
    ------
    Block
        Encoding ``proto``, one message; a stream of at most a block is one message in all.

    Raises
    ------
    Nothing.
    """
    window = Window(stream, base)
    while window.fill(intake.block_bytes + 1) or window.data:
        at_end = len(window.data) <= intake.block_bytes
        size = len(window.data) if at_end else _whole_fields(window.data)
        if size == 0:
            size = _large_field(window, intake)
        if size:
            yield _block(window, size, intake)
            window.drop(size)


def _whole_fields(data: bytes) -> int:
    """Return the size of the fields that are all there."""
    place = 0
    while place < len(data):
        end = field_end(data, place, len(data))
        if end < 0 or end > len(data):
            break
        place = end
    return place


def _large_field(window: Window, intake: Intake) -> int:
    """Return the size of a message made of one large field; 0 after passing over it."""
    end = field_end(window.data, 0, len(window.data))
    if 0 <= end <= intake.max_message_bytes:
        window.fill(end)
        return min(end, len(window.data))
    start, head = window.base, window.data[:200]
    # Fields have no mark to go on at: behind a broken one, nothing can be told apart.
    left = end
    while left and (window.data or window.fill(1)):
        step = len(window.data) if left < 0 else min(left, len(window.data))
        window.drop(step)
        left = left if left < 0 else left - step
        if intake.gives_up(window.base - start):
            window.close()
        window.fill(1 << 20 if left < 0 else min(left, 1 << 20))
    passed = window.base - start
    reason = (
        f"{passed} bytes are no protobuf field"
        if end < 0
        else f"a resource of {passed} bytes, above the limit of {intake.max_message_bytes}"
    )
    intake.note(start, reason, head, message=True)
    return 0


def _block(window: Window, size: int, intake: Intake) -> Block:
    intake.n_messages += 1
    return Block(
        encoding="proto",
        buffer=window.data,
        starts=np.array([0], dtype=np.int64),
        lengths=np.array([size], dtype=np.int64),
        offsets=np.array([window.base], dtype=np.int64),
        first_message=intake.n_messages - 1,
    )
