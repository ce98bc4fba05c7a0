"""One source: what it is, its messages, its tables, and the account of them."""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError, SourceError, UnknownFormatError
from tracelab.io.chunk import Block, Chunk
from tracelab.io.containers import Damage, Decompressed, HashedFile, Peeked, Stream, storable
from tracelab.io.decode import LiftedKeys, decode_block
from tracelab.io.documents import read_documents, salvage
from tracelab.io.frames import read_frames
from tracelab.io.intake import SMALL_BLOCK, Intake, join_small
from tracelab.io.lines import read_lines
from tracelab.io.requests import read_request
from tracelab.io.sniff import PEEK, Sniffed, sniff

BLOCK_BYTES: Final = 8 << 20
"""Bytes decoded at a time: below, the fixed cost of a block tells; above, memory does."""

MAX_MESSAGE_BYTES: Final = 64 << 20
"""Largest message: the largest request that OTLP recommends receivers to accept."""

FORMS: Final = "OTLP as JSON or protobuf, Tempo JSON, Jaeger JSON, each plain, gzip or zstd"

_MAX_NESTING: Final = 4
_MAX_SALVAGED: Final = 100
"""Broken JSON messages, per source, that are searched for what is whole in them."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file that can be read on its own.

    Parameters
    ----------
    start, end : int
        Bytes of the file.
    layout : {"lines", "frames"}
        How messages stand in it.
    first_line : int
        Number of its first line.
    """

    start: int
    end: int
    layout: str
    first_line: int = 1


class SourceReader:
    """Reads one source, block by block, and keeps account of it.

    Parameters
    ----------
    source : str, Path or BinaryIO
        A file, ``-`` for standard input, or an open binary stream.
    name : str, optional
        What the column ``source`` says; the path if left out.
    keys : LiftedKeys, optional
        Attribute keys of task, tenant and request id.
    max_message_bytes : int
        Messages above it are passed over, which bounds the memory.
    block_bytes : int
        Bytes decoded at a time.
    part : ByteRange, optional
        Read only this part of an uncompressed file (see `split_source`).
    decode : callable, optional
        Decodes a block, e.g. an `IsolatedDecoder`; `decode_block` if left out.

    Raises
    ------
    SourceError
        If the file cannot be opened.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        name: str | None = None,
        keys: LiftedKeys | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        block_bytes: int = BLOCK_BYTES,
        part: ByteRange | None = None,
        decode: Callable[..., Chunk] | None = None,
    ) -> None:
        if max_message_bytes < 1 or block_bytes < 1:
            raise ParameterError("max_message_bytes and block_bytes must be at least 1")
        self._source = source
        self._keys = keys
        self._part = part
        self._decode = decode or decode_block
        self._intake = Intake(block_bytes=block_bytes, max_message_bytes=max_message_bytes)
        self._compressions: list[str] = []
        self._file: HashedFile | None = None
        self._decoded_bytes = 0
        self._form = "unknown"
        self._n_decoded = self._n_lost = self._n_good = 0
        self._n_salvaged = self._spans_rejected = 0
        self._heights = dict.fromkeys(_COUNTED, 0)
        self.name = name if name is not None else _name_of(source)

    def chunks(self) -> Iterator[Chunk]:
        """Decode the source.

        Yields
        ------
        Chunk
            Tables of one block each; the last one may hold rejects only.

        Raises
        ------
        SourceError
            If the file cannot be opened.
        UnknownFormatError
            If its content is no export.
        """
        yield from self.decoded(self.blocks())

    def decoded(self, blocks: Iterable[Block]) -> Iterator[Chunk]:
        """Decode blocks of the source, and count what is in them.

        Parameters
        ----------
        blocks : iterable of Block
            What `blocks` gave.

        Yields
        ------
        Chunk
            Tables of one block each; the last one may hold rejects only.

        Raises
        ------
        What `blocks` raises.
        """
        first_row = self._first_row
        for block in blocks:
            chunk = self._decode(block, source=self.name, first_row=first_row, keys=self._keys)
            if block.encoding == "json":
                chunk = self._salvaged(block, chunk, first_row)
            first_row += chunk.spans.height + chunk.spans_rejected
            yield self._counted(chunk)
        if self._intake.damages:
            yield self._counted(Chunk())

    def blocks(self) -> Iterator[Block]:
        """Cut the source into blocks of whole messages, without decoding them.

        Yields
        ------
        Block
            Consecutive messages.

        Raises
        ------
        SourceError
            If the file cannot be opened.
        UnknownFormatError
            If its content is no export.
        """
        self._intake.n_messages = self._first_row
        with ExitStack() as stack:
            self._file = self._open(stack)
            if self._part is not None:
                blocks = self._read_part(self._file, self._part)
            else:
                blocks = self._read_stream(self._file)
            yield from join_small(blocks, small=min(SMALL_BLOCK, self._intake.block_bytes))
            self._file.drain()
            if self._file.failure:
                self._intake.note(self._file.n_bytes, f"cannot be read on: {self._file.failure}")

    @property
    def _first_row(self) -> int:
        # Rows of a part begin at its first byte: no span is shorter than a byte, so that the
        # rows of all parts of a file stay apart.
        return self._part.start if self._part else 0

    @property
    def size(self) -> int | None:
        """Bytes of the file, or the part, as it stands; None where only reading tells."""
        if self._part is not None:
            return self._part.end - self._part.start
        if not isinstance(self._source, str | os.PathLike) or self._source == "-":
            return None
        try:
            found = Path(self._source).stat()
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    @property
    def is_damaged(self) -> bool:
        """Whether something in the blocks read so far could not be cut into messages."""
        return bool(self._intake.damages)

    def credit(self, messages: int, heights: Mapping[str, int]) -> None:
        """Count whole messages of this source that were decoded elsewhere.

        Parameters
        ----------
        messages : int
            How many, all of them good.
        heights : mapping of str to int
            Rows that came of them, by table.

        Raises
        ------
        KeyError
            If a table is unknown.
        """
        self._n_decoded += messages
        self._n_good += messages
        for name, height in heights.items():
            self._heights[name] += height

    def accounting(self) -> pl.DataFrame:
        """Return the accounting row of what was read so far.

        Returns
        -------
        pl.DataFrame
            Schema INGEST, one row. Duplicates are not resolved here: ``spans_kept`` equals
            ``spans_decoded``. Events, links, logs and data points are those decoded.

        Raises
        ------
        Nothing of its own.
        """
        heights = self._heights
        messages = self._n_decoded + self._n_lost
        whole = self._file is not None and self._part is None
        row = {
            "source": self.name,
            "sha256": self._file.sha256 if self._file and whole else None,
            "form": self._form,
            "compression": "+".join(self._compressions) or "none",
            "bytes": self._file.n_bytes if self._file else 0,
            "decoded_bytes": self._decoded_bytes,
            "messages": messages,
            "messages_good": self._n_good,
            "messages_rejected": messages - self._n_good,
            "spans_decoded": heights["spans"],
            "spans_kept": heights["spans"],
            "spans_duplicate": 0,
            "spans_conflicting": 0,
            "spans_rejected": self._spans_rejected,
            "events": heights["events"],
            "links": heights["links"],
            "logs": heights["logs"],
            "metric_points": heights["metrics"],
            "rejects": heights["rejects"],
        }
        return pl.DataFrame([row], schema=schema.INGEST)

    def _open(self, stack: ExitStack) -> HashedFile:
        source = self._source
        if not isinstance(source, str | os.PathLike):
            return HashedFile(source)
        if source == "-":
            return HashedFile(sys.stdin.buffer)
        path = Path(source)
        try:
            file = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise SourceError(
                f"{path} cannot be opened: {error.strerror or error}; check the path and its rights"
            ) from error
        if self._part is None:
            return HashedFile(file)
        file.seek(self._part.start)
        return HashedFile(file, limit=self._part.end - self._part.start, hashed=False)

    def _read_part(self, stream: Stream, part: ByteRange) -> Iterator[Block]:
        counted = _Counted(stream)
        if part.layout == "lines":
            self._form = "otlp-json-lines"
            yield from read_lines(
                counted, self._intake, base=part.start, first_line=part.first_line
            )
        else:
            self._form = "otlp-proto-frames"
            yield from read_frames(counted, self._intake, base=part.start)
        self._decoded_bytes = counted.n_bytes

    def _read_stream(self, stream: Stream) -> Iterator[Block]:
        sniffed, peeked = self._look(stream)
        while sniffed.compression in ("gzip", "zstd"):
            self._compressions.append(sniffed.compression)
            if len(self._compressions) > _MAX_NESTING:
                raise UnknownFormatError(
                    f"{self.name} is compressed more than {_MAX_NESTING} times; unpack it first"
                )
            decoded = Decompressed(peeked, sniffed.compression, self._intake.damages)
            sniffed, peeked = self._look(decoded)
        if sniffed.compression:
            self._compressions.append(sniffed.compression)
        counted = _Counted(peeked)
        self._intake.bounded = not self._compressions
        yield from self._read_layout(sniffed, counted)
        self._decoded_bytes = counted.n_bytes

    def _look(self, stream: Stream) -> tuple[Sniffed, Peeked]:
        peeked = Peeked(stream, PEEK)
        sniffed = sniff(
            peeked.head,
            complete=peeked.complete,
            max_message_bytes=self._intake.max_message_bytes,
        )
        return sniffed, peeked

    def _read_layout(self, sniffed: Sniffed, stream: Stream) -> Iterator[Block]:
        intake = self._intake
        match sniffed.layout:
            case "lines":
                yield from read_lines(stream, intake)
                self._form = _json_form(intake.wrappings, "-lines")
            case "documents":
                yield from read_documents(stream, intake)
                self._form = _json_form(intake.wrappings, "")
            case "frames":
                self._form = "otlp-proto-frames"
                yield from read_frames(stream, intake)
            case "zstd-frames":
                yield from read_frames(stream, intake, compressed=True)
                json_form = _json_form(intake.wrappings, "-frames")
                self._form = json_form if intake.wrappings else "otlp-proto-frames"
            case "request":
                self._form = "otlp-proto"
                yield from read_request(stream, intake)
            case "empty":
                self._form = "empty"
                if not intake.damages:
                    intake.note(0, "empty file")
            case _:
                damage = f" ({intake.damages[0].reason})" if intake.damages else ""
                raise UnknownFormatError(
                    f"{self.name} is no export{damage}: it looks like {sniffed.nearest}; "
                    f"tracelab reads {FORMS}"
                )

    def _salvaged(self, block: Block, chunk: Chunk, first_row: int) -> Chunk:
        """Add the whole spans of broken messages; they stay rejected."""
        lost = chunk.messages["good"].not_() & (chunk.messages["spans"] == 0)
        parts: list[bytes] = []
        owners: list[int] = []
        for row in lost.arg_true().to_list():
            if self._n_salvaged >= _MAX_SALVAGED:
                break
            if (self.name, int(block.offsets[row])) in getattr(self._decode, "left_out", ()):
                continue
            self._n_salvaged += 1
            start = int(block.starts[row])
            found = salvage(block.buffer[start : start + int(block.lengths[row])])
            parts += found
            owners += [row] * len(found)
        if not parts:
            return chunk
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        again = Block(
            encoding="json",
            buffer=b"".join(parts),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            offsets=block.offsets[owners],
            lines=None if block.lines is None else block.lines[owners],
        )
        next_row = first_row + chunk.spans.height + chunk.spans_rejected
        more = self._decode(again, source=self.name, first_row=next_row, keys=self._keys)
        return _joined(chunk, more)

    def _counted(self, chunk: Chunk) -> Chunk:
        """Add the rejects noted so far, and count what is in the chunk."""
        damages = self._intake.damages
        if damages:
            self._n_lost += sum(damage.message for damage in damages)
            rows = reject_rows(self.name, damages)
            damages.clear()
            chunk = replace(chunk, rejects=pl.concat([chunk.rejects, rows]))
        self._n_decoded += chunk.messages.height
        self._n_good += int(chunk.messages["good"].sum())
        for name in _COUNTED:
            self._heights[name] += getattr(chunk, name).height
        self._spans_rejected += chunk.spans_rejected
        return chunk


def _joined(chunk: Chunk, more: Chunk) -> Chunk:
    tables = {name: pl.concat([getattr(chunk, name), getattr(more, name)]) for name in _COUNTED}
    return replace(chunk, **tables, spans_rejected=chunk.spans_rejected + more.spans_rejected)


_COUNTED: Final = ("spans", "events", "links", "logs", "metrics", "rejects")


class _Counted:
    """Counts the bytes that pass."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.n_bytes = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self.n_bytes += len(data)
        return data


def reject_rows(source: str, damages: Sequence[Damage]) -> pl.DataFrame:
    """Return damage as rows of REJECTS."""
    return pl.DataFrame(
        [
            (source, each.offset, each.line, storable(each.reason), storable(each.excerpt))
            for each in damages
        ],
        schema=schema.REJECTS,
        orient="row",
    )


def _json_form(wrappings: set[str], suffix: str) -> str:
    found = sorted(wrappings - {"otlp-json"}) or ["otlp-json"]
    if "otlp-json" in wrappings and found != ["otlp-json"]:
        found.insert(0, "otlp-json")
    return "+".join(f"{form}{suffix}" for form in found)


def _name_of(source: str | os.PathLike[str] | BinaryIO) -> str:
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    if not isinstance(name, str | os.PathLike):
        return "stream"
    # A file name that is no UTF-8 cannot stand in a text column.
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def merge_accounting(parts: Sequence[pl.DataFrame], *, sha256: str | None = None) -> pl.DataFrame:
    """Add up the accounting rows of the parts of one source.

    Parameters
    ----------
    parts : sequence of pl.DataFrame
        What `SourceReader.accounting` returned for each part.
    sha256 : str, optional
        Digest of the whole source, which no part knows.

    Returns
    -------
    pl.DataFrame
        Schema INGEST, one row.

    Raises
    ------
    Nothing of its own.
    """
    texts = ("source", "form", "compression")
    numbers = [name for name, dtype in schema.INGEST.items() if dtype == pl.Int64]
    row = pl.concat(parts).select(pl.col(texts).first(), pl.col(numbers).sum())
    return schema.conform(
        row.with_columns(pl.lit(sha256, pl.String).alias("sha256")), schema.INGEST
    )
