"""Exports into a capture."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import BinaryIO

import polars as pl

from tracelab import schema, semconv
from tracelab.exceptions import EmptySourceError, SourceError
from tracelab.io.chunk import Chunk
from tracelab.io.containers import Damage
from tracelab.io.decode import LiftedKeys
from tracelab.io.discover import Found, find_sources, split_streams
from tracelab.io.isolation import IsolatedDecoder
from tracelab.io.resolve import finalise, gather
from tracelab.io.source import FORMS, MAX_MESSAGE_BYTES, SourceReader, reject_rows
from tracelab.io.together import SmallSources
from tracelab.traceset import TraceSet


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
        Tables of about 8 MB of source each.

    Raises
    ------
    SourceError
        If the file cannot be opened.
    UnknownFormatError
        If its content is no export.
    """
    yield from SourceReader(source, keys=keys, max_message_bytes=max_message_bytes).chunks()


Progress = Callable[[str], object]


def read_traces(
    *sources: str | os.PathLike[str] | BinaryIO,
    task_keys: Iterable[str] | None = None,
    tenant_keys: Iterable[str] | None = None,
    request_id_keys: Iterable[str] | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    isolate: bool = False,
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
    isolate : bool
        Decode in another process, so that no input can end this one: a message that the
        decoder dies of, or takes too much time or memory for, becomes a reject. That takes
        half a second more, and about half as long again on large inputs; the native decoders
        held on every damaged input tried, so it is for captures from hands you do not trust.
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
        If `max_message_bytes` is below 1, or a source is neither a path nor a stream.
    """
    if not sources:
        raise EmptySourceError("no source was named; pass files, folders, globs or -")
    keys = lifted_keys(task=task_keys, tenant=tenant_keys, request_id=request_id_keys)
    named, streams = split_streams(sources)
    entries = find_sources(*named)
    entries += [Found(stream, asked_for=True) for stream in streams]
    chunks: list[Chunk] = []
    readers: list[SourceReader] = []
    small = SmallSources(keys)
    with IsolatedDecoder() if isolate else nullcontext() as decode:
        for entry in entries:
            reader = SourceReader(
                entry.path, keys=keys, max_message_bytes=max_message_bytes, decode=decode
            )
            if progress is not None:
                progress(f"reading {reader.name}")
            try:
                if entry.problem:
                    raise SourceError(f"{reader.name}: {entry.problem}")
                # What must not end this process is decoded on its own.
                chunks += reader.chunks() if isolate else small.add(reader)
            except SourceError as error:
                if entry.asked_for:
                    raise
                chunks.append(skipped_chunk(reader.name, error))
            else:
                readers.append(reader)
    chunks += small.flush()
    ingest = [reader.accounting() for reader in readers]
    accounting = pl.concat([schema.empty(schema.INGEST), *ingest])
    if not (accounting["form"] != "empty").any():
        raise _nothing_found(chunks)
    return finalise(gather(chunks), ingest=accounting)


def _nothing_found(chunks: list[Chunk]) -> EmptySourceError:
    rejects = pl.concat([schema.empty(schema.REJECTS), *(chunk.rejects for chunk in chunks)])
    shown = ", ".join(
        f"{source} ({reason})"
        for source, reason in rejects.select("source", "reason").head(3).iter_rows()
    )
    more = f" and {rejects.height - 3} more" if rejects.height > 3 else ""
    return EmptySourceError(
        f"no export was found in {shown}{more}; tracelab reads {FORMS}"
        if shown
        else f"no export was found: there is no file; tracelab reads {FORMS}"
    )


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
    reason = str(error).removeprefix(f"{source} ").removesuffix(f"; tracelab reads {FORMS}")
    return Chunk(rejects=reject_rows(source, [Damage(0, f"file passed over: it {reason}")]))


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
