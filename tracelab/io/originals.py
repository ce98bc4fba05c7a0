"""From a span back to the bytes it was read from."""

import base64
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from tracelab import html
from tracelab.exceptions import SourceError, UnknownTraceError
from tracelab.io.chunk import ROW
from tracelab.io.containers import Decompressed, HashedFile, Stream
from tracelab.io.decode import LiftedKeys
from tracelab.io.documents import find_brackets
from tracelab.io.source import MAX_MESSAGE_BYTES, SourceReader

_STEP: Final = 1 << 20
_IDS: Final = ("trace_id", "span_id")


@dataclass(frozen=True, slots=True)
class Original:
    """The message that a span was read from.

    Parameters
    ----------
    source, sha256 : str
        The file, and the digest of its bytes as they were read.
    offset, length : int
        Where the message stands in the file after decompression; of messages compressed one
        by one, where the compressed one begins.
    line : int or None
        Its line, from 1, where the form has lines.
    encoding : {"json", "proto"}
        How the message is encoded.
    raw : bytes
        The message, byte for byte.
    span : pl.DataFrame
        The span decoded from `raw` alone: schema SPANS, one row.
    """

    source: str
    sha256: str
    offset: int
    length: int
    line: int | None
    encoding: str
    raw: bytes
    span: pl.DataFrame

    def __repr__(self) -> str:
        at = f"line {self.line}, " if self.line is not None else ""
        return (
            f"Original({html.plain(self.source)}: {at}{self.length:,} bytes at {self.offset:,}, "
            f"{self.encoding}, SHA-256 {self.sha256})"
        )


def evidence(
    traces: Any, trace_id: str, span_id: str, *, keys: LiftedKeys | None = None
) -> Original:
    """Return the bytes that a span was read from, its source proven unaltered.

    Parameters
    ----------
    traces : TraceSet or TraceStore
        A capture whose sources are files that are still where they were.
    trace_id, span_id : str
        A span of it.
    keys : LiftedKeys, optional
        As the capture was read with.

    Returns
    -------
    Original
        Source, digest, place and bytes of the message.

    Raises
    ------
    UnknownTraceError
        If the capture has no such span.
    SourceError
        If the source is no longer there, or its bytes are no longer those that were read.
    """
    spans = _spans_of(traces, trace_id).filter(pl.col("span_id") == span_id)
    if not spans.height:
        raise UnknownTraceError(
            f"no span {html.plain(span_id)} in trace {html.plain(trace_id)}; "
            "both ids as in the capture's spans"
        )
    row = spans.row(0, named=True)
    source = str(row["source"])
    ingest = traces.ingest_table if hasattr(traces, "ingest_table") else traces.ingest
    account = ingest.filter(pl.col("source") == source)
    if not account.height or not Path(source).is_file():
        raise SourceError(f"{html.plain(source)} is not there; evidence needs the file itself")
    told = account.row(0, named=True)
    prove_unaltered(source, told["sha256"], told["bytes"])
    found = None
    for original in _originals(told, row["trace_id"], row["span_id"], keys):
        found = found or original
        if original.span.equals(spans.head(1)):
            return original
    if found is not None:
        return found
    raise SourceError(
        f"{html.plain(source)} holds no message with this span; was it read with other bounds?"
    )


def _spans_of(traces: Any, trace_id: str) -> pl.DataFrame:
    if hasattr(traces, "ingest_table"):
        spans: pl.DataFrame = traces.trace(trace_id).spans
    else:
        spans = traces.spans.filter(pl.col("trace_id") == trace_id)
    return spans


def prove_unaltered(source: str, sha256: str | None, size: int) -> None:
    """Check that a file begins with the bytes that were read; it may have grown since.

    Parameters
    ----------
    source : str
        The file.
    sha256 : str or None
        Digest of what was read.
    size : int
        Its bytes.

    Raises
    ------
    SourceError
        If the file cannot be read, is shorter, or other bytes stand in it.
    """
    digest = hashlib.sha256()
    left = size
    try:
        with Path(source).open("rb") as file:
            while left > 0 and (data := file.read(min(_STEP, left))):
                digest.update(data)
                left -= len(data)
    except OSError as error:
        raise SourceError(
            f"{html.plain(source)} cannot be read: {error.strerror or error}; check its rights"
        ) from error
    if left or digest.hexdigest() != sha256:
        raise SourceError(
            f"{html.plain(source)} is not the file that was read: its SHA-256 differs; restore "
            "the original, or read it anew"
        )


def _originals(
    account: dict[str, Any], trace_id: str, span_id: str, keys: LiftedKeys | None
) -> Iterator[Original]:
    source, marks = account["source"], _marks(span_id)
    whose = (pl.col("trace_id") == trace_id) & (pl.col("span_id") == span_id)
    for block in SourceReader(source, keys=keys).blocks():
        for at in range(len(block.starts)):
            start, length = int(block.starts[at]), int(block.lengths[at])
            raw = bytes(block.buffer[start : start + length])
            if not _holds(raw, marks):
                continue
            offset, raw = _as_it_stands(account, int(block.offsets[at]), raw)
            spans = pl.concat(
                chunk.spans
                for chunk in SourceReader(io.BytesIO(raw), name=source, keys=keys).chunks()
            )
            span = spans.filter(whose).drop(ROW)
            if span.height:
                yield Original(
                    source=source,
                    sha256=account["sha256"],
                    offset=offset,
                    length=len(raw),
                    line=None if block.lines is None else int(block.lines[at]),
                    encoding=block.encoding,
                    raw=raw,
                    span=span.head(1),
                )


def _as_it_stands(account: dict[str, Any], offset: int, message: bytes) -> tuple[int, bytes]:
    """Return place and bytes of a message in its source: a reader may have unwrapped it."""
    if account["compression"].endswith("zstd-messages"):
        return offset, message
    with Path(account["source"]).open("rb") as file:
        stream: Stream = HashedFile(file)
        for compression in account["compression"].split("+"):
            if compression != "none":
                stream = Decompressed(stream, compression, [])
        _take(stream, offset, keep=False)
        data = _take(stream, len(message), keep=True)
        if data == message:
            return offset, message
        data += _take(stream, MAX_MESSAGE_BYTES - len(data), keep=True)
    values, _ = find_brackets(data).values()
    if not values:
        return offset, message
    start, end = values[0]
    return offset + start, data[start:end]


def _take(stream: Stream, size: int, *, keep: bool) -> bytes:
    pieces = []
    while size > 0 and (data := stream.read(min(size, _STEP))):
        size -= len(data)
        if keep:
            pieces.append(data)
    return b"".join(pieces)


def _marks(span_id: str) -> tuple[list[bytes], list[bytes]]:
    """How an id may stand in a message: as it is, and whatever its case."""
    text = span_id.encode()
    exact, folded = [text], [text.lower(), text.lower().lstrip(b"0")]
    try:
        number = bytes.fromhex(span_id)
    except ValueError:
        return exact, folded
    # Eight bytes, and their base64 with and without its padding.
    exact += [number, base64.b64encode(number).rstrip(b"="), number.hex().upper().encode()]
    return exact, [mark for mark in folded if mark]


def _holds(raw: bytes, marks: tuple[list[bytes], list[bytes]]) -> bool:
    exact, folded = marks
    if any(mark in raw for mark in exact):
        return True
    lower = raw.lower()
    return any(mark in lower for mark in folded)


def file_digest(path: str | os.PathLike[str]) -> tuple[str, int]:
    """Return SHA-256 and size of a file.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    sha256 : str
        In hex.
    size : int
        In bytes.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()
