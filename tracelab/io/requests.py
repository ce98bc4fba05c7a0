"""A protobuf request without a prefix, cut at the borders of its resources.

A request is a chain of field 1, and each link of that chain is a request of its own: a file
of any size is read in bounded memory.
"""

from collections.abc import Iterator

import numpy as np

from tracelab.io.chunk import Block
from tracelab.io.containers import Stream
from tracelab.io.framing import Intake, Window, read_varint_at


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
        Encoding ``proto``; a stream of at most a block is one message.

    Raises
    ------
    Nothing.
    """
    window = Window(stream, base)
    if not window.fill(intake.block_bytes + 1):
        yield _block(window, len(window.data), intake)
        return
    while window.data:
        whole = window.fill(intake.block_bytes)
        place = 0
        while place < len(window.data):
            end = _field_end(window.data, place)
            if end < 0 or end > len(window.data):
                break
            place = end
        if place:
            yield _block(window, place, intake)
            window.drop(place)
            continue
        end = _field_end(window.data, 0)
        if end < 0 or not whole:
            # What cannot be followed is handed on: the decoder saves what it can.
            window.fill(intake.max_message_bytes)
            yield _block(window, len(window.data), intake)
            window.drop(len(window.data))
            left = 0
            while window.fill(1 << 20) or window.data:
                left += len(window.data)
                window.drop(len(window.data))
            if left:
                intake.note(
                    window.base - left, f"{left} bytes behind a broken message", message=True
                )
            return
        if end > intake.max_message_bytes:
            head, start = window.data[:200], window.base
            _skip(window, end)
            reason = f"a resource of {end} bytes, above the limit of {intake.max_message_bytes}"
            intake.note(start, reason, head, message=True)
            continue
        window.fill(end)
        if len(window.data) < end:
            yield _block(window, len(window.data), intake)
            return


def _skip(window: Window, size: int) -> None:
    while size > 0 and (window.data or window.fill(1)):
        step = min(size, len(window.data))
        window.drop(step)
        size -= step
        window.fill(min(size, 1 << 20))


def _field_end(data: bytes, place: int) -> int:
    """Return where a length-delimited field ends, which may be beyond `data`; -1 if unknown."""
    key, place = read_varint_at(data, place, len(data))
    if place < 0 or key & 7 != 2:
        return -1
    length, place = read_varint_at(data, place, len(data))
    return -1 if place < 0 else place + length


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
