"""Decoding where it can kill nobody: in another process, whose death costs the message alone.

Native decoders read bytes that anybody may have written. Where one dies of a block, or takes more
time or memory than any sound input needs, the block is halved until the message that does it
stands alone; that one becomes a reject, the others are decoded.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import polars as pl

from tracelab import schema
from tracelab.io.chunk import MESSAGES, Block, Chunk
from tracelab.io.containers import excerpt
from tracelab.io.decode import LiftedKeys, decode_block
from tracelab.workers import Death, Failure, Success, Worker

DecodeBlock = Callable[..., Chunk]

FATAL: Final = (MemoryError, pl.exceptions.PanicException)
"""What a decoder raises where another one would have taken its process along."""


class IsolatedDecoder:
    """Decodes blocks in a process of its own; use it as a context manager.

    Parameters
    ----------
    decode : callable
        `decode_block`, or what stands for it; importable by its module and name.
    """

    def __init__(self, decode: DecodeBlock = decode_block) -> None:
        self.left_out: set[tuple[str, int]] = set()
        """Source and offset of the messages left out: what is whole in them must not be tried."""
        self._decode = decode
        self._worker = Worker(threads=1, limited=True, preload=decode.__module__)

    def __enter__(self) -> "IsolatedDecoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.close()

    def __call__(
        self, block: Block, *, source: str, first_row: int = 0, keys: LiftedKeys | None = None
    ) -> Chunk:
        """Decode consecutive messages of one source into tables.

        Parameters
        ----------
        block, source, first_row, keys
            As for `decode_block`.

        Returns
        -------
        Chunk
            As of `decode_block`; a message whose decoding failed as described is a reject.

        Raises
        ------
        Exception
            What `decode_block` raises otherwise.
        """
        done: list[Chunk] = []
        waiting = [block]
        while waiting:
            part = waiting.pop()
            outcome = self._worker.call(
                0, _decode, (self._decode, part, {"source": source, "keys": keys}, first_row)
            )
            if isinstance(outcome, Success):
                chunk: Chunk = outcome.value
                first_row += chunk.spans.height + chunk.spans_rejected
                done.append(chunk)
                continue
            if not isinstance(outcome, Death) and not isinstance(outcome.error, FATAL):
                raise outcome.error
            n_messages = len(part.starts)
            if n_messages == 1:
                self.left_out.add((source, int(part.offsets[0])))
                done.append(rejected_message(part, source, cause_of(outcome), first_row))
            else:
                middle = n_messages // 2
                waiting += [_cut(part, middle, n_messages), _cut(part, 0, middle)]
        return done[0] if len(done) == 1 else _laid_end_to_end(done)


def cause_of(outcome: Death | Failure) -> str:
    """Say how a decoder ended."""
    if isinstance(outcome, Death):
        return outcome.reason
    return f"raised {type(outcome.error).__name__}: {outcome.error}"[:200]


def _decode(decode: DecodeBlock, block: Block, options: dict[str, object], first_row: int) -> Chunk:
    return decode(block, first_row=first_row, **options)


def _cut(block: Block, first: int, last: int) -> Block:
    """Return some messages of a block, with no more memory than theirs."""
    begin = int(block.starts[first])
    end = int(block.starts[last - 1] + block.lengths[last - 1])
    return replace(
        block,
        buffer=block.buffer[begin:end],
        starts=block.starts[first:last] - begin,
        lengths=block.lengths[first:last],
        offsets=block.offsets[first:last],
        lines=None if block.lines is None else block.lines[first:last],
        first_message=block.first_message + first,
    )


def rejected_message(block: Block, source: str, reason: str, first_row: int) -> Chunk:
    """Return the reject of a block's only message."""
    offset, length = int(block.offsets[0]), int(block.lengths[0])
    line = None if block.lines is None else int(block.lines[0])
    start = int(block.starts[0])
    text = f"a message of {length} bytes was left out: its decoder {reason}"
    row = (source, offset, line, text, excerpt(block.buffer[start : start + length]))
    message = (block.first_message, offset, length, first_row, 0, False)
    return Chunk(
        rejects=pl.DataFrame([row], schema=schema.REJECTS, orient="row"),
        messages=pl.DataFrame([message], schema=MESSAGES, orient="row"),
    )


_TABLES: Final = ("spans", "events", "links", "logs", "metrics", "rejects", "messages")


def _laid_end_to_end(chunks: list[Chunk]) -> Chunk:
    tables = {name: pl.concat([getattr(each, name) for each in chunks]) for name in _TABLES}
    return Chunk(**tables, spans_rejected=sum(each.spans_rejected for each in chunks))
