"""What every reader of messages shares: limits, notes of damage, a sliding window."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from tracelab.io.chunk import Block
from tracelab.io.containers import Damage, Stream, excerpt
from tracelab.io.wrappers import BrokenJsonError, NotAnExportError, unwrap

GIVE_UP_AFTER: Final = 16
"""A compressed stream without a message's end for this many times the largest message is left
unread: no export does that, a decompression bomb does."""

BLANK: Final = b" \t\r\n"
_LARGE_BLOCKS: Final = 4

NOISE: Final = BLANK + b"\0\x1e"
"""Bytes around a JSON value that cost nothing; 1E is the separator of JSON text sequences."""

BOM: Final = b"\xef\xbb\xbf"


@dataclass
class Intake:
    """Limits, and what was seen so far, of one source.

    Parameters
    ----------
    block_bytes, max_message_bytes : int
        Size of a block, and of the largest message.
    bounded : bool
        Whether the stream is no longer than its file (false for compressed ones).
    damages : list of Damage
        What could not be read.
    n_messages : int
        Number of the next message handed on to the decoder.
    wrappings : set of str
        Forms of JSON seen.
    """

    block_bytes: int
    max_message_bytes: int
    bounded: bool = True
    damages: list[Damage] = field(default_factory=list)
    n_messages: int = 0
    wrappings: set[str] = field(default_factory=set)

    @property
    def large_bytes(self) -> int:
        """Size from which on a JSON value is cut between its elements."""
        return min(_LARGE_BLOCKS * self.block_bytes, self.max_message_bytes)

    def note(
        self,
        offset: int,
        reason: str,
        data: bytes = b"",
        *,
        line: int | None = None,
        message: bool = False,
    ) -> None:
        """Note damage; `message` says that it stands for a whole message that was lost."""
        self.damages.append(Damage(offset, reason, excerpt(data), line, message))

    def gives_up(self, skipped: int) -> bool:
        """Tell whether to stop looking for the end of a message, and note it if so."""
        if self.bounded or skipped <= self.max_message_bytes * GIVE_UP_AFTER:
            return False
        self.note(0, f"no message ends within {skipped} bytes: the rest is not read")
        return True


class _Nothing:
    def read(self, size: int, /) -> bytes:
        return b""


_NOTHING: Final = _Nothing()


class Window:
    """A piece of a stream that slides on: ``data[0]`` stands at ``base``."""

    def __init__(self, stream: Stream, base: int = 0) -> None:
        self.data = b""
        self.base = base
        self._stream = stream

    def fill(self, size: int) -> bool:
        """Read until `size` bytes are there; tell whether they are."""
        missing = size - len(self.data)
        if missing > 0:
            pieces = [self.data]
            while missing > 0 and (piece := self._stream.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
            self.data = b"".join(pieces)
        return missing <= 0

    def drop(self, size: int) -> None:
        """Slide on."""
        self.data = self.data[size:]
        self.base += size

    def close(self) -> None:
        """Drop what is there and read no more."""
        self.drop(len(self.data))
        self._stream = _NOTHING


class Builder:
    """Collects messages that do not stand in one piece of memory."""

    def __init__(self, encoding: Literal["proto", "json"], intake: Intake) -> None:
        self.encoding = encoding
        self.size = 0
        self._intake = intake
        self._rows: list[tuple[bytes, int, int | None]] = []

    def add(self, body: bytes, offset: int, line: int | None = None) -> None:
        """Add one message."""
        self._rows.append((body, offset, line))
        self.size += len(body)

    def add_json(self, value: bytes, offset: int, line: int | None = None) -> bool:
        """Add the requests inside a JSON value; tell whether it was one.

        What is broken, or no export, is noted.
        """
        try:
            requests = unwrap(value)
        except NotAnExportError as error:
            self._intake.note(offset, str(error), value, line=line, message=True)
            return not isinstance(error, BrokenJsonError)
        for request in requests:
            self._intake.wrappings.add(request.wrapping)
            if request.note:
                self._intake.note(offset, request.note, line=line)
            if request.body:
                self.add(request.body, offset, line)
        return True

    def flush(self) -> Iterator[Block]:
        """Give out what was collected as a block."""
        if not self._rows:
            return
        bodies, offsets, lines = zip(*self._rows, strict=True)
        self._rows, self.size = [], 0
        lengths = np.array([len(body) for body in bodies], dtype=np.int64)
        first = self._intake.n_messages
        self._intake.n_messages += len(bodies)
        yield Block(
            encoding=self.encoding,
            buffer=b"".join(bodies),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            offsets=np.array(offsets, dtype=np.int64),
            lines=None if lines[0] is None else np.array(lines, dtype=np.int64),
            first_message=first,
        )


SMALL_BLOCK: Final = 1 << 17
"""Below, what decoding a block costs whatever its size outweighs a copy of its bytes."""


def join_small(blocks: Iterable[Block], *, small: int = SMALL_BLOCK) -> Iterator[Block]:
    """Lay small blocks together, as damage leaves them: decoding costs milliseconds a block.

    Parameters
    ----------
    blocks : iterable of Block
        Consecutive blocks of one source.
    small : int
        Bytes of messages from which on a block stays by itself.

    Yields
    ------
    Block
        The same messages in the same order.

    Raises
    ------
    What `blocks` raises.
    """
    waiting: list[Block] = []
    size = 0
    for block in blocks:
        n_bytes = int(block.lengths.sum())
        alike = not waiting or (
            block.encoding == waiting[0].encoding
            and (block.lines is None) == (waiting[0].lines is None)
        )
        if waiting and (not alike or n_bytes >= small or size >= small):
            yield _joined(waiting)
            waiting, size = [], 0
        if n_bytes >= small:
            yield block
            continue
        # A window of megabytes must not be kept for a few messages in it.
        waiting.append(_compact(block) if len(block.buffer) > 2 * n_bytes else block)
        size += n_bytes
    if waiting:
        yield _joined(waiting)


def _compact(block: Block) -> Block:
    bounds = zip(block.starts.tolist(), block.lengths.tolist(), strict=True)
    buffer = b"".join(block.buffer[start : start + length] for start, length in bounds)
    return replace(block, buffer=buffer, starts=np.cumsum(block.lengths) - block.lengths)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    shifts = np.cumsum([0, *(len(block.buffer) for block in blocks[:-1])]).tolist()
    lines = [block.lines for block in blocks if block.lines is not None]
    return replace(
        blocks[0],
        buffer=b"".join(block.buffer for block in blocks),
        starts=np.concatenate(
            [block.starts + shift for block, shift in zip(blocks, shifts, strict=True)]
        ),
        lengths=np.concatenate([block.lengths for block in blocks]),
        offsets=np.concatenate([block.offsets for block in blocks]),
        lines=np.concatenate(lines) if lines else None,
    )
