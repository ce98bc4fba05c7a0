"""Readers and writers of export files."""

from tracelab.io.read import (
    ByteRange,
    SourceReader,
    find_sources,
    lifted_keys,
    read_chunks,
    read_traces,
    skipped_chunk,
)
from tracelab.io.resolve import finalise, gather

__all__ = [
    "ByteRange",
    "SourceReader",
    "finalise",
    "find_sources",
    "gather",
    "lifted_keys",
    "read_chunks",
    "read_traces",
    "skipped_chunk",
]
