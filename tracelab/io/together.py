"""Small sources decoded together: what a block costs, whatever its size, is paid once for many.

A folder of thousands of request bodies costs some milliseconds a file otherwise, for a few spans
each. Only what is sound goes this way: a source in which anything is lost is decoded on its own,
so that its account and its rejects are what they would be without the others.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

import numpy as np
import polars as pl

from tracelab.io.chunk import ROW, Block, Chunk
from tracelab.io.decode import LiftedKeys, decode_block
from tracelab.io.json_native import Dialect, sniff_dialect
from tracelab.io.source import BLOCK_BYTES, SourceReader

SMALL_BYTES: Final = 256 << 10
"""Above, what a source costs grows with its bytes, and it is decoded on its own."""

_MAX_SOURCES: Final = 1024


@dataclass(slots=True)
class _Group:
    """Sources that are written alike and wait to be decoded."""

    sources: list[tuple[SourceReader, list[Block]]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    size: int = 0


class SmallSources:
    """Collects small sources and decodes many of them as one block.

    Parameters
    ----------
    keys : LiftedKeys, optional
        Attribute keys of task, tenant and request id.
    """

    def __init__(self, keys: LiftedKeys | None) -> None:
        self._keys = keys
        self._groups: dict[tuple[str, Dialect | None], _Group] = {}

    def add(self, reader: SourceReader) -> Iterator[Chunk]:
        """Read a source; its account is complete after `flush`.

        Parameters
        ----------
        reader : SourceReader
            Of any source; one that is not small, or unpacks to more, is decoded at once.

        Yields
        ------
        Chunk
            What is decoded by now, of this source or of others.

        Raises
        ------
        SourceError
            If the file cannot be opened.
        UnknownFormatError
            If its content is no export.
        """
        told = reader.size
        if told is None or told > SMALL_BYTES:
            yield from reader.chunks()
            return
        blocks = reader.blocks()
        taken: list[Block] = []
        size = 0
        for block in blocks:
            taken.append(block)
            size += len(block.buffer)
            if size > SMALL_BYTES:
                break
        kinds = {_kind(block) for block in taken}
        if size > SMALL_BYTES or reader.is_damaged or len(kinds) != 1:
            yield from reader.decoded(chain(taken, blocks))
            return
        kind = kinds.pop()
        group = self._groups.setdefault(kind, _Group())
        if reader.name in group.names:
            yield from reader.decoded(taken)
            return
        group.sources.append((reader, taken))
        group.names.add(reader.name)
        group.size += size
        if group.size >= BLOCK_BYTES or len(group.sources) >= _MAX_SOURCES:
            yield from self._decoded(self._groups.pop(kind).sources)

    def flush(self) -> Iterator[Chunk]:
        """Decode what waits.

        Yields
        ------
        Chunk
            Tables of many sources each.

        Raises
        ------
        Nothing of its own.
        """
        while self._groups:
            _, group = self._groups.popitem()
            yield from self._decoded(group.sources)

    def _decoded(self, sources: list[tuple[SourceReader, list[Block]]]) -> Iterator[Chunk]:
        if len(sources) == 1:
            reader, blocks = sources[0]
            yield from reader.decoded(blocks)
            return
        counts = [sum(len(block.starts) for block in blocks) for _, blocks in sources]
        owner = np.repeat(np.arange(len(sources)), counts)
        names = pl.Series([reader.name for reader, _ in sources], dtype=pl.String)
        chunk = decode_block(
            _one_block(chain.from_iterable(blocks for _, blocks in sources)),
            source=names.gather(owner),
            keys=self._keys,
        )
        told = chunk.rejects["source"].unique().implode()
        unsound = names.is_in(told).to_numpy().copy()
        unsound[owner[~chunk.messages["good"].to_numpy()]] = True
        if chunk.spans_rejected and not unsound.any():
            unsound[:] = True
        if not unsound.any():
            _credit(sources, owner, chunk)
            yield chunk
            return
        for number in np.flatnonzero(unsound).tolist():
            reader, blocks = sources[number]
            yield from reader.decoded(blocks)
        sound = [each for each, bad in zip(sources, unsound.tolist(), strict=True) if not bad]
        if sound:
            yield from self._decoded(sound)


def _kind(block: Block) -> tuple[str, Dialect | None]:
    """Tell what blocks must share: the native reader of JSON takes one dialect at a time."""
    if block.encoding == "proto":
        return "proto", None
    return "json", replace(sniff_dialect(block.buffer), absent=frozenset())


def _one_block(blocks: Iterable[Block]) -> Block:
    """Lay blocks of one encoding end to end; without lines, as what has rejects is read again."""
    blocks = list(blocks)
    shifts = np.cumsum([0, *(len(block.buffer) for block in blocks[:-1])])
    return Block(
        encoding=blocks[0].encoding,
        buffer=b"".join(block.buffer for block in blocks),
        starts=np.concatenate(
            [block.starts + shift for block, shift in zip(blocks, shifts.tolist(), strict=True)]
        ),
        lengths=np.concatenate([block.lengths for block in blocks]),
        offsets=np.concatenate([block.offsets for block in blocks]),
    )


def _credit(
    sources: list[tuple[SourceReader, list[Block]]], owner: np.ndarray, chunk: Chunk
) -> None:
    """Give each source the account of its share."""
    n = len(sources)
    messages = np.bincount(owner, minlength=n)
    of_span = np.repeat(owner, chunk.messages["spans"].to_numpy())
    counts = {"spans": np.bincount(of_span, minlength=n)}
    for name in ("events", "links"):
        counts[name] = np.bincount(of_span[getattr(chunk, name)[ROW].to_numpy()], minlength=n)
    place = {reader.name: number for number, (reader, _) in enumerate(sources)}
    for name in ("logs", "metrics"):
        held = getattr(chunk, name)["source"].value_counts()
        counts[name] = np.zeros(n, np.int64)
        for source, count in held.iter_rows():
            counts[name][place[source]] = count
    for number, (reader, _) in enumerate(sources):
        reader.credit(
            int(messages[number]), {name: int(count[number]) for name, count in counts.items()}
        )
