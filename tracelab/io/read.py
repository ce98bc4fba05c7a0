"""Exports into tables: one source at a time in bounded memory, or many into a capture."""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO, Final

import polars as pl

from tracelab import schema, semconv
from tracelab.exceptions import EmptySourceError, ParameterError, SourceError, UnknownFormatError
from tracelab.io.chunk import Block, Chunk
from tracelab.io.containers import Damage, Decompressed, HashedFile, Peeked, Stream
from tracelab.io.decode import LiftedKeys, decode_block
from tracelab.io.framing import Intake, read_documents, read_frames, read_lines
from tracelab.io.requests import read_request
from tracelab.io.resolve import finalise, gather
from tracelab.io.sniff import PEEK, Sniffed, sniff
from tracelab.traceset import TraceSet

BLOCK_BYTES: Final = 4 << 20
"""Bytes decoded at a time: 4 MB was the fastest for JSON (8 and 16 MB were slower)."""

MAX_MESSAGE_BYTES: Final = 64 << 20
"""Largest message: the largest request that OTLP recommends receivers to accept."""

_MAX_NESTING: Final = 4
_FORMS: Final = "OTLP as JSON or protobuf, Tempo JSON, Jaeger JSON, each plain, gzip or zstd"
_REJECT_FLUSH: Final = 10_000


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file that can be read on its own.

    Parameters
    ----------
    start, end : int
        Bytes of the file.
    layout : {"lines", "frames"}
        How messages stand in it.
    """

    start: int
    end: int
    layout: str


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
    ) -> None:
        if max_message_bytes < 1 or block_bytes < 1:
            raise ParameterError("max_message_bytes and block_bytes must be at least 1")
        self._source = source
        self._keys = keys
        self._part = part
        self._intake = Intake(block_bytes=block_bytes, max_message_bytes=max_message_bytes)
        self._compressions: list[str] = []
        self._file: HashedFile | None = None
        self._decoded_bytes = 0
        self._form = "unknown"
        self._totals = dict.fromkeys(
            ("messages_good", "spans", "spans_rejected", "events", "links", "logs", "metrics",
             "rejects"), 0)  # fmt: skip
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
        first_row = self._part.start if self._part else 0
        self._intake.n_messages = first_row
        start_messages = first_row
        for block in self.blocks():
            chunk = decode_block(block, source=self.name, first_row=first_row, keys=self._keys)
            first_row += chunk.spans.height + chunk.spans_rejected
            chunk = self._with_damages(chunk)
            self._count(chunk)
            yield chunk
        if self._intake.damages:
            chunk = self._with_damages(Chunk())
            self._count(chunk)
            yield chunk
        self._intake.n_messages -= start_messages

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
        with ExitStack() as stack:
            self._file = self._open(stack)
            if self._part is not None:
                yield from self._read_part(self._file, self._part)
            else:
                yield from self._read_stream(self._file)
            self._file.drain()
            if self._file.failure:
                self._intake.note(self._file.n_bytes, f"cannot be read on: {self._file.failure}")

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
        file, totals = self._file, self._totals
        return schema.conform(
            pl.DataFrame(
                {
                    "source": [self.name],
                    "sha256": [file.sha256 if file and self._part is None else None],
                    "form": [self._form],
                    "compression": ["+".join(self._compressions) or "none"],
                    "bytes": [file.n_bytes if file else 0],
                    "decoded_bytes": [self._decoded_bytes],
                    "messages": [self._n_decoded + self._n_lost],
                    "messages_good": [totals["messages_good"]],
                    "messages_rejected": [self._n_decoded + self._n_lost - totals["messages_good"]],
                    "spans_decoded": [totals["spans"]],
                    "spans_kept": [totals["spans"]],
                    "spans_duplicate": [0],
                    "spans_conflicting": [0],
                    "spans_rejected": [totals["spans_rejected"]],
                    "events": [totals["events"]],
                    "links": [totals["links"]],
                    "logs": [totals["logs"]],
                    "metric_points": [totals["metrics"]],
                    "rejects": [totals["rejects"]],
                }
            ),
            schema.INGEST,
        )

    _n_decoded = 0
    _n_lost = 0

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
        return HashedFile(file, limit=self._part.end - self._part.start)

    def _read_part(self, stream: Stream, part: ByteRange) -> Iterator[Block]:
        counted = _Counted(stream)
        if part.layout == "lines":
            self._form = "otlp-json-lines"
            yield from read_lines(counted, self._intake, base=part.start, bounded=True)
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
                    f"{self.name} is compressed more than {_MAX_NESTING} times over; unpack it first"
                )
            decoded = Decompressed(peeked, sniffed.compression, self._intake.damages)
            sniffed, peeked = self._look(decoded)
        if sniffed.compression:
            self._compressions.append(sniffed.compression)
        counted = _Counted(peeked)
        yield from self._read_layout(sniffed, counted, bounded=not self._compressions)
        self._decoded_bytes = counted.n_bytes

    def _look(self, stream: Stream) -> tuple[Sniffed, Peeked]:
        peeked = Peeked(stream, PEEK)
        sniffed = sniff(
            peeked.head,
            complete=peeked.complete,
            max_message_bytes=self._intake.max_message_bytes,
        )
        return sniffed, peeked

    def _read_layout(self, sniffed: Sniffed, stream: Stream, *, bounded: bool) -> Iterator[Block]:
        intake = self._intake
        match sniffed.layout:
            case "lines":
                yield from read_lines(stream, intake, bounded=bounded)
                self._form = _json_form(intake.wrappings, "-lines")
            case "documents":
                yield from read_documents(stream, intake, bounded=bounded)
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
                    f"{self.name} is no export{damage}; it looks like {sniffed.nearest}; "
                    f"tracelab reads {_FORMS}"
                )

    def _with_damages(self, chunk: Chunk) -> Chunk:
        damages = self._intake.damages
        if not damages:
            return chunk
        self._n_lost += sum(damage.message for damage in damages)
        rows = _reject_rows(self.name, damages)
        damages.clear()
        return replace(chunk, rejects=pl.concat([chunk.rejects, rows]))

    def _count(self, chunk: Chunk) -> None:
        totals = self._totals
        self._n_decoded += chunk.messages.height
        totals["messages_good"] += int(chunk.messages["good"].sum())
        totals["spans"] += chunk.spans.height
        totals["spans_rejected"] += chunk.spans_rejected
        for name in ("events", "links", "logs", "metrics", "rejects"):
            totals[name] += getattr(chunk, name).height


class _Counted:
    """Counts the bytes that pass."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.n_bytes = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self.n_bytes += len(data)
        return data


def _reject_rows(source: str, damages: Sequence[Damage]) -> pl.DataFrame:
    return pl.DataFrame(
        [(source, each.offset, each.line, each.reason, each.excerpt) for each in damages],
        schema=schema.REJECTS,
        orient="row",
    )


def _json_form(wrappings: set[str], suffix: str) -> str:
    found = sorted(wrappings - {"otlp-json"}) or ["otlp-json"]
    if "otlp-json" in wrappings and found != ["otlp-json"]:
        found.insert(0, "otlp-json")
    return "+".join(f"{form}{suffix}" for form in found)


def _name_of(source: str | os.PathLike[str] | BinaryIO) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "stream"


def read_chunks(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    keys: LiftedKeys | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> Iterator[Chunk]:
    """Read one source in bounded memory, whatever its size.

    Parameters
    ----------
    source : str, Path or BinaryIO
        A file, ``-`` for standard input, or an open binary stream.
    keys : LiftedKeys, optional
        Attribute keys of task, tenant and request id.
    max_message_bytes : int
        Messages above it are passed over.

    Yields
    ------
    Chunk
        Tables of about 4 MB of source each.

    Raises
    ------
    SourceError
        If the file cannot be opened.
    UnknownFormatError
        If its content is no export.
    """
    yield from SourceReader(source, keys=keys, max_message_bytes=max_message_bytes).chunks()


@dataclass(frozen=True, slots=True)
class Found:
    """A source that the arguments name.

    Parameters
    ----------
    path : str
        File path, or ``-``.
    asked_for : bool
        Whether it was named itself, rather than found in a folder or by a glob.
    problem : str, optional
        Why it is not to be opened.
    """

    path: str
    asked_for: bool
    problem: str | None = None


def find_sources(*sources: str | os.PathLike[str]) -> list[Found]:
    """Resolve files, folders and globs to files.

    Parameters
    ----------
    *sources : str or Path
        Files, folders (walked in sorted order, symbolic links to folders not followed), globs
        (``**`` for any depth), or ``-`` for standard input.

    Returns
    -------
    list of Found
        Each file once, sorted by path; pipes and devices found in folders carry a problem.

    Raises
    ------
    SourceError
        If a path does not exist.
    EmptySourceError
        If a glob matches nothing.
    """
    found: dict[str, Found] = {}
    for source in sources:
        for entry in _expand(os.fspath(source)):
            earlier = found.get(entry.path)
            if earlier is None or entry.asked_for:
                found[entry.path] = entry
    return [found[path] for path in sorted(found)]


def _expand(source: str) -> Iterator[Found]:
    if source == "-":
        yield Found("-", asked_for=True)
        return
    if not os.path.lexists(source) and has_magic(source):
        matches = sorted(glob(source, recursive=True))  # noqa: PTH207
        if not matches:
            raise EmptySourceError(f"{source} matches no file; check the pattern")
        for match in matches:
            if Path(match).is_dir():
                if "**" not in source:
                    yield from _walk(match)
            else:
                yield _judged(match)
        return
    path = Path(source)
    if path.is_dir():
        yield from _walk(source)
    elif path.exists():
        yield Found(source, asked_for=True)
    else:
        raise SourceError(f"{source} does not exist; pass a file, a folder, a glob or -")


def _walk(folder: str) -> Iterator[Found]:
    problems: list[Found] = []

    def unreadable(error: OSError) -> None:
        problems.append(
            Found(
                str(error.filename), asked_for=False, problem=f"cannot be listed: {error.strerror}"
            )
        )

    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=False):
        folders.sort()
        for name in sorted(files):
            yield _judged(os.path.join(parent, name))  # noqa: PTH118
    yield from problems


def _judged(path: str) -> Found:
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        return Found(path, asked_for=False, problem=f"cannot be opened: {error.strerror}")
    if not stat.S_ISREG(mode):
        return Found(path, asked_for=False, problem="a pipe, socket or device, not a file")
    return Found(path, asked_for=False)


Progress = Callable[[str], object]


def read_traces(
    *sources: str | os.PathLike[str] | BinaryIO,
    task_keys: Iterable[str] | None = None,
    tenant_keys: Iterable[str] | None = None,
    request_id_keys: Iterable[str] | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    progress: Progress | None = None,
) -> TraceSet:
    """Read exports into memory.

    The form is told by the content: OTLP as JSON lines, JSON documents, length-prefixed or
    bare protobuf, Tempo and Jaeger answers, Jaeger's own JSON, each plain, gzip or zstd;
    traces, logs and metrics may be mixed.

    Parameters
    ----------
    *sources : str, Path or BinaryIO
        Files, folders, globs, ``-`` for standard input, or open binary streams.
    task_keys, tenant_keys, request_id_keys : Iterable[str], optional
        Span attributes that hold a task, tenant or request id where the conventions' own
        names are not used, the preferred one first.
    max_message_bytes : int
        Messages above it are passed over and become rejects. The default is the largest
        request that OTLP recommends receivers to accept.
    progress : callable, optional
        Called with a line of text at each source.

    Returns
    -------
    TraceSet
        The same tables whatever the order of files. Exact duplicates are dropped and
        counted in ``ingest``; damage is in ``rejects``.

    Raises
    ------
    SourceError
        If a path does not exist or cannot be opened.
    UnknownFormatError
        If a file that was named is no export. In a folder or a glob such files become
        rejects.
    EmptySourceError
        If nothing was named, or a folder or glob holds no export.
    ParameterError
        If `max_message_bytes` is below 1.
    """
    if not sources:
        raise EmptySourceError("no source was named; pass files, folders, globs or -")
    keys = lifted_keys(task=task_keys, tenant=tenant_keys, request_id=request_id_keys)
    paths = [each for each in sources if isinstance(each, str | os.PathLike)]
    streams = [each for each in sources if not isinstance(each, str | os.PathLike)]
    chunks: list[Chunk] = []
    ingest: list[pl.DataFrame] = []
    exports = 0
    for found in [*find_sources(*paths), *streams]:
        entry = found if isinstance(found, Found) else None
        if progress is not None and entry is not None:
            progress(f"reading {entry.path}")
        reader = SourceReader(
            found.path if isinstance(found, Found) else found,
            keys=keys,
            max_message_bytes=max_message_bytes,
        )
        try:
            if entry is not None and entry.problem:
                raise SourceError(f"{entry.path}: {entry.problem}")
            chunks += reader.chunks()
        except SourceError as error:
            if entry is None or entry.asked_for:
                raise
            chunks.append(skipped_chunk(entry.path, error))
            continue
        exports += 1
        ingest.append(reader.accounting())
    if not exports:
        names = ", ".join(os.fspath(path) for path in paths)
        raise EmptySourceError(
            f"no export in {names}: {len(chunks)} files were looked at; tracelab reads {_FORMS}"
        )
    return finalise(gather(chunks), ingest=pl.concat(ingest))


def skipped_chunk(source: str, error: SourceError) -> Chunk:
    """Return a chunk that says why a file of a folder was passed over.

    Parameters
    ----------
    source : str
        The file.
    error : SourceError
        What reading it raised.

    Returns
    -------
    Chunk
        With one reject.

    Raises
    ------
    Nothing of its own.
    """
    return Chunk(rejects=_reject_rows(source, [Damage(0, f"not read: {error}")]))


def lifted_keys(
    *,
    task: Iterable[str] | None = None,
    tenant: Iterable[str] | None = None,
    request_id: Iterable[str] | None = None,
) -> LiftedKeys:
    """Put the caller's attribute keys before those of the conventions.

    Parameters
    ----------
    task, tenant, request_id : Iterable[str], optional
        Keys of ``task_id``, ``tenant_id`` and ``request_id``, the preferred one first.

    Returns
    -------
    LiftedKeys
        For `SourceReader`.

    Raises
    ------
    Nothing of its own.
    """
    own = semconv.SPAN_ATTRIBUTES
    return LiftedKeys(
        task=tuple(dict.fromkeys([*(task or ()), *own["task_id"]])),
        tenant=tuple(dict.fromkeys([*(tenant or ()), *own["tenant_id"]])),
        request_id=tuple(dict.fromkeys([*(request_id or ()), *own["request_id"]])),
    )
