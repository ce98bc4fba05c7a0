"""Newline-delimited JSON into blocks; plain export requests stay where they stand."""

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from tracelab.io.chunk import Block
from tracelab.io.containers import Stream
from tracelab.io.documents import read_value
from tracelab.io.intake import BLANK, BOM, NOISE, Builder, Intake, Window
from tracelab.io.wrappers import PLAIN

_NUL_RUN: Final = re.compile(rb"\0+")
_NEWLINE: Final = 0x0A
_RETURN: Final = 0x0D


def read_lines(
    stream: Stream, intake: Intake, *, base: int = 0, first_line: int = 1
) -> Iterator[Block]:
    """Read newline-delimited JSON.

    Parameters
    ----------
    stream : Stream
        Decompressed bytes.
    intake : Intake
        Limits and damage.
    base, first_line : int
        Offset and number of the stream's first line within its source.

    Yields
    ------
    Block
        Encoding ``json``.

    Raises
    ------
    Nothing: a line that is no export is damage.
    """
    window = Window(stream, base)
    line = first_line
    size = intake.block_bytes
    while True:
        more = window.fill(size)
        cut = window.data.rfind(b"\n") + 1 if more else len(window.data)
        if cut:
            buffer = window.data[:cut]
            window.drop(cut)
            yield from _blocks(buffer, window.base - cut, line, intake)
            line += buffer.count(b"\n")
            size = intake.block_bytes
        elif not more:
            return
        elif len(window.data) < intake.large_bytes:
            size = len(window.data) * 2
        else:
            yield from _long_line(window, intake, line)
            line += 1
            size = intake.block_bytes


def _long_line(window: Window, intake: Intake, line: int) -> Iterator[Block]:
    """Read a large line element by element, or pass over it."""
    yield from read_value(window, intake, line=line)
    start = window.base
    while window.fill(1) or window.data:
        end = window.data.find(b"\n") + 1
        rest = window.data[: end - 1] if end else window.data
        if rest.strip(NOISE) and window.base == start:
            intake.note(start, "bytes behind a JSON value", rest, line=line)
        window.drop(end or len(window.data))
        if end or intake.gives_up(window.base - start):
            return
        window.fill(intake.block_bytes)


def _blocks(buffer: bytes, base: int, line: int, intake: Intake) -> Iterator[Block]:
    text = np.frombuffer(buffer, dtype=np.uint8)
    ends = np.flatnonzero(text == _NEWLINE).astype(np.int64)
    if not buffer.endswith(b"\n"):
        ends = np.append(ends, len(buffer))
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    numbers = np.arange(line, line + len(starts), dtype=np.int64)
    lengths = ends - starts
    filled = (lengths > 1) | ((lengths == 1) & (text[np.minimum(starts, len(text) - 1)] != _RETURN))
    starts, ends, numbers = starts[filled], ends[filled], numbers[filled]
    if not len(starts):
        return
    lengths = ends - starts
    rows = zip(starts.tolist(), ends.tolist(), strict=True)
    if (
        b"\0" not in buffer
        and lengths.max(initial=0) <= intake.max_message_bytes
        and all(PLAIN.match(buffer, start, end) for start, end in rows)
    ):
        intake.wrappings.add("otlp-json")
        first = intake.n_messages
        intake.n_messages += len(starts)
        yield Block("json", buffer, starts, lengths, base + starts, numbers, first)
        return
    builder = Builder("json", intake)
    for number, start, end in zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True):
        _add_line(buffer[start:end], base + start, number, builder, intake)
    yield from builder.flush()


def _add_line(text: bytes, offset: int, line: int, builder: Builder, intake: Intake) -> None:
    """Add one line; runs of NUL bytes, which a crash leaves behind, part it."""
    place = 0
    for run in _NUL_RUN.finditer(text):
        reason = f"{len(run.group())} NUL bytes"
        intake.note(offset + run.start(), reason, text[place : run.start()][-40:], line=line)
        _add_value(text[place : run.start()], offset + place, line, builder, intake)
        place = run.end()
    _add_value(text[place:], offset + place, line, builder, intake)


def _add_value(text: bytes, offset: int, line: int, builder: Builder, intake: Intake) -> None:
    value = text.lstrip(BLANK).removeprefix(BOM).lstrip(NOISE)
    offset += len(text) - len(value)
    value = value.rstrip(BLANK)
    if not value:
        return
    if len(value) > intake.max_message_bytes:
        reason = f"a line of {len(value)} bytes, above the limit of {intake.max_message_bytes}"
        intake.note(offset, reason, value, line=line, message=True)
    elif PLAIN.match(value):
        intake.wrappings.add("otlp-json")
        builder.add(value, offset, line)
    else:
        builder.add_json(value, offset, line)
