"""Readers and writers of export files."""

from tracelab.io.discover import find_sources, split_streams
from tracelab.io.read import lifted_keys, read_chunks, read_traces, skipped_chunk
from tracelab.io.resolve import finalise, gather, split_traces
from tracelab.io.source import ByteRange, SourceReader, merge_accounting
from tracelab.io.split import split_source

__all__ = [
    "ByteRange",
    "SourceReader",
    "finalise",
    "find_sources",
    "gather",
    "lifted_keys",
    "merge_accounting",
    "read_chunks",
    "read_traces",
    "skipped_chunk",
    "split_source",
    "split_streams",
    "split_traces",
]
