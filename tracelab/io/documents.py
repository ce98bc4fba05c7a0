"""JSON values that span lines, or are too large to be decoded in one go.

A value is followed by its brackets alone, so that a document of any size can be cut between
the elements of its outermost array (``resourceSpans``, ``batches``, ``data``); each piece is
put into the same wrapping again and becomes a document of its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from tracelab.io.chunk import Block
from tracelab.io.containers import Stream
from tracelab.io.intake import BOM, NOISE, Builder, Intake, Window
from tracelab.io.wrappers import REQUEST, is_json

Places = npt.NDArray[np.int64]

_MAX_PREFIX: Final = 1 << 16
_MAX_ARRAY_DEPTH: Final = 3
_MAX_RESTARTS: Final = 200
_AFTER_RESTART: Final = 1 << 13
_CLOSERS_LOOKED_AT: Final = 200
_GAP: Final = NOISE + b","
_STEP: Final = 1 << 20
_LINE_END: Final = re.compile(rb"\n")
_HOLDS_RECORDS: Final = re.compile(rb'"(?:spans|log_?[rR]ecords|metrics)"')
_NEXT_DOCUMENT: Final = re.compile(rb"\n[\[{]")
_RECORDS: Final = re.compile(
    rb'"(?:resource_?(?:s|S)pans|resource_?(?:l|L)ogs|resource_?(?:m|M)etrics'
    rb"|(?:scope|instrumentation_?(?:l|L)ibrary)_?(?:s|S)pans"
    rb"|(?:scope|instrumentation_?(?:l|L)ibrary)_?(?:l|L)ogs"
    rb"|(?:scope|instrumentation_?(?:l|L)ibrary)_?(?:m|M)etrics"
    rb'|batches|data|spans|log_?(?:r|R)ecords|metrics)"\s*:\s*\Z'
)


@dataclass(frozen=True)
class Brackets:
    """The brackets of a JSON text that stand outside of strings.

    Parameters
    ----------
    places : ndarray of int64
        Where they stand.
    depths : ndarray of int64
        Depth behind each; a closing bracket too many leaves it at 0.
    opens : ndarray of bool
        Which of them open.
    """

    places: Places
    depths: Places
    opens: npt.NDArray[np.bool_]

    def values(self) -> tuple[list[tuple[int, int]], int | None]:
        """Return bounds of the complete top-level values, and where an open one begins."""
        begins = self.places[self.opens & (self.depths == 1)]
        closing = ~self.opens & (self.depths == 0)
        # A stray closing bracket at depth 0 ends nothing.
        closing[1:] &= self.depths[:-1] > 0
        if len(closing):
            closing[0] = False
        ends = self.places[closing] + 1
        bounds = list(zip(begins[: len(ends)].tolist(), ends.tolist(), strict=True))
        return bounds, int(begins[-1]) if len(begins) > len(ends) else None

    def open_arrays(self, data: bytes) -> list[tuple[int, int]]:
        """Return index and depth of each array that is still open at the end, outermost first."""
        if not len(self.depths) or self.depths[-1] == 0:
            return []
        lowest = np.minimum.accumulate(self.depths[::-1])[::-1]
        rows = np.flatnonzero(self.opens & (lowest >= self.depths))
        return [
            (row, int(self.depths[row])) for row in rows.tolist() if data[self.places[row]] == 0x5B
        ]

    def closers(self, data: bytes, row: int) -> bytes:
        """Return what closes everything that is open behind bracket `row`."""
        depths, opens = self.depths[: row + 1], self.opens[: row + 1]
        lowest = np.minimum.accumulate(depths[::-1])[::-1]
        rows = np.flatnonzero(opens & (lowest >= depths))
        pairs = {0x5B: b"]", 0x7B: b"}"}
        return b"".join(pairs[data[self.places[row]]] for row in reversed(rows.tolist()))


def find_brackets(data: bytes) -> Brackets:
    """Find the brackets of a JSON text.

    Parameters
    ----------
    data : bytes
        JSON text that begins outside of a string.

    Returns
    -------
    Brackets
        In order.

    Raises
    ------
    Nothing.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(text == 0x22)
    slashes = np.flatnonzero(text == 0x5C)
    if len(slashes) and len(quotes):
        # A quote is escaped when an odd run of backslashes ends right before it.
        run_starts = slashes[np.concatenate([[True], np.diff(slashes) != 1])]
        start = run_starts[np.maximum(np.searchsorted(run_starts, quotes) - 1, 0)]
        after_slash = text[np.maximum(quotes - 1, 0)] == 0x5C
        quotes = quotes[~(after_slash & ((quotes - start) % 2 == 1))]
    opens = (text == 0x7B) | (text == 0x5B)
    places = np.flatnonzero(opens | (text == 0x7D) | (text == 0x5D))
    places = places[np.searchsorted(quotes, places) % 2 == 0]
    opening = opens[places]
    depths = np.cumsum(np.where(opening, 1, -1))
    depths -= np.minimum(np.minimum.accumulate(depths), 0) if len(depths) else 0
    return Brackets(places, depths, opening)


def salvage(value: bytes) -> list[bytes]:
    """Find what is whole in a line or document that is no JSON value.

    Parameters
    ----------
    value : bytes
        A JSON value that was cut, or several that a crash ran together.

    Returns
    -------
    list of bytes
        JSON values: those that are whole, and those that were cut, closed behind the last of
        their records that is whole.

    Raises
    ------
    Nothing.
    """
    # Inside of a string the quotes would be escaped: these are beginnings of requests.
    marks = [match.start() for match in REQUEST.finditer(value)]
    borders = [0, *(mark for mark in marks if mark > 0), len(value)]
    found: list[bytes] = []
    for start, end in pairwise(borders):
        part = value[start:end]
        brackets = find_brackets(part)
        bounds, begin = brackets.values()
        found += [part[first:last] for first, last in bounds]
        if begin is not None and (closed := _closed(part[begin:])):
            found.append(closed)
    return [each for each in found if is_json(each)]


def _closed(value: bytes) -> bytes | None:
    """Close a value that was cut, behind the last of its records that is whole."""
    brackets = find_brackets(value)
    place, row = -1, -1
    for array, depth in reversed(brackets.open_arrays(value)):
        if _is_records(value, int(brackets.places[array])):
            ends = np.flatnonzero(~brackets.opens[array:] & (brackets.depths[array:] == depth))
            if len(ends):
                place, row = int(brackets.places[array + int(ends[-1])]), array
                break
    for close in reversed(np.flatnonzero(~brackets.opens)[-_CLOSERS_LOOKED_AT:].tolist()):
        if brackets.places[close] <= place:
            break
        outer = brackets.depths[close] + 1
        opening = np.flatnonzero(brackets.opens[:close] & (brackets.depths[:close] == outer))
        if len(opening) and _is_records(value, int(brackets.places[opening[-1]])):
            place, row = int(brackets.places[close]), close
            break
    return None if row < 0 else value[: place + 1] + brackets.closers(value, row)


def _is_records(value: bytes, place: int) -> bool:
    key = _RECORDS.search(value, max(0, place - 80), place)
    return value[place] == 0x5B and key is not None


def read_documents(stream: Stream, intake: Intake, *, base: int = 0) -> Iterator[Block]:
    """Read JSON values that may span lines, one after another.

    Parameters
    ----------
    stream : Stream
        Decompressed bytes.
    intake : Intake
        Limits and damage.
    base : int
        Offset of the stream's first byte within its source.

    Yields
    ------
    Block
        Encoding ``json``.

    Raises
    ------
    Nothing: a value that is no export is damage.
    """
    window = Window(stream, base)
    reader = _Reader(window, intake)
    while window.fill(1) or window.data:
        yield from reader.step(line=None)
    yield from reader.flush()


def read_value(window: Window, intake: Intake, *, line: int) -> Iterator[Block]:
    """Read the one JSON value at the beginning of a window, cut where it is too large.

    Parameters
    ----------
    window : Window
        Stands behind the value, or at the next line's end, afterwards.
    intake : Intake
        Limits and damage.
    line : int
        Line number of the value; it ends where the line ends.

    Yields
    ------
    Block
        Encoding ``json``.

    Raises
    ------
    Nothing: a value that is no export is damage.
    """
    reader = _Reader(window, intake)
    while not reader.finished and (window.fill(1) or window.data):
        yield from reader.step(line=line)
    yield from reader.flush()


class _Reader:
    """Takes values off a window, one step at a time."""

    def __init__(self, window: Window, intake: Intake) -> None:
        self.finished = False
        self._window = window
        self._intake = intake
        self._builder = Builder("json", intake)
        self._size = intake.block_bytes
        self._prefix = 0
        self._restarts = 0
        self._restarted = False
        self._zeros: tuple[int, int, int, int | None] | None = None

    def flush(self) -> Iterator[Block]:
        """Give out what was collected."""
        self._note_zeros()
        yield from self._builder.flush()

    def step(self, *, line: int | None) -> Iterator[Block]:
        """Look at the window once: take what is whole, cut what is large, read more else."""
        window = self._window
        more = window.fill(self._size)
        data = window.data
        if self._size < len(data):
            data, more = data[: self._size], True
        if line is not None and (end := data.find(b"\n")) >= 0:
            data, more = data[:end], False
        brackets = find_brackets(data)
        bounds, begin = brackets.values()
        if bounds:
            self._take(data, bounds[:1] if line is not None else bounds, line)
        elif more and len(data) < self._intake.block_bytes:
            self._size = len(data) * 2
        elif begin is None and more and data.strip(_GAP):
            self._pass_over(line, "without a JSON value")
        elif begin is None:
            self._drop_noise(data, len(data), line)
            self.finished = not more
        elif begin > 0 and not self._prefix:
            self._drop_noise(data, begin, line)
        elif not more:
            self._torn(data, line)
        elif not self._cut(data, brackets, line):
            if len(data) <= self._intake.max_message_bytes:
                self._size = len(data) * 2
            else:
                limit = self._intake.max_message_bytes
                self._pass_over(line, f"of one JSON value, above the limit of {limit}")
        if self._builder.size >= self._intake.block_bytes:
            yield from self._builder.flush()

    def _offset(self) -> int:
        return self._window.base + self._prefix

    def _advance(self, size: int) -> None:
        self._window.drop(size)
        block = self._intake.block_bytes
        # Behind a broken document, brackets are told anew: of a little, as the next may break too.
        self._size = min(_AFTER_RESTART, block) if self._restarted else block
        self._prefix, self._restarted = 0, False

    def _take(self, data: bytes, bounds: list[tuple[int, int]], line: int | None) -> None:
        place = 0
        base = self._window.base
        for start, end in bounds:
            self._note_gap(data[place:start], base + place, line)
            value = data[start:end]
            sound = self._builder.add_json(value, max(base + start, self._offset()), line)
            place = end
            restart = None if sound or line is not None else self._restart(value)
            if restart is not None:
                place = start + restart
                break
        self.finished = line is not None
        self._advance(place)

    def _restart(self, value: bytes) -> int | None:
        """Find where the next document seems to begin inside a broken one."""
        found = _NEXT_DOCUMENT.search(value, 1)
        if found is None or self._restarts >= _MAX_RESTARTS:
            return None
        self._restarts += 1
        self._restarted = True
        return found.start() + 1

    def _torn(self, data: bytes, line: int | None) -> None:
        restart = None if line is not None else self._restart(data)
        value = data if restart is None else data[:restart]
        whole = [part for part in salvage(value) if _HOLDS_RECORDS.search(part)]
        found = "what is whole in it is read" if whole else "no record in it is whole"
        reason = f"cut off after {len(value)} bytes, inside of a JSON value: {found}"
        self._intake.note(self._offset(), reason, value, line=line, message=not whole)
        for part in whole:
            self._builder.add_json(part, self._offset(), line)
        self.finished = line is not None
        self._advance(len(value))

    def _cut(self, data: bytes, brackets: Brackets, line: int | None) -> bool:
        """Take the whole elements of the outermost open array; tell whether there were any."""
        arrays = brackets.open_arrays(data)
        if not arrays or arrays[0][1] > _MAX_ARRAY_DEPTH:
            return False
        row, depth = arrays[0]
        first = int(brackets.places[row]) + 1
        inside = np.flatnonzero(
            brackets.opens[row + 1 :] & (brackets.depths[row + 1 :] == depth + 1)
        )
        if first > _MAX_PREFIX or len(inside) < 2:
            return False
        last = int(brackets.places[row + 1 + int(inside[-1])])
        body = data[:last].rstrip(b" \t\r\n,")
        window = self._window
        closed = body + brackets.closers(data, row)
        sound = self._builder.add_json(closed, self._offset(), line)
        restart = None if sound or line is not None else self._restart(body)
        if restart is not None:
            self._advance(restart)
            return True
        window.base += last - first
        window.data = data[:first] + window.data[last:]
        self._prefix = first
        self._size = self._intake.block_bytes
        return True

    def _pass_over(self, line: int | None, what: str) -> None:
        """Drop what cannot be read, up to where a new value may begin."""
        window, intake = self._window, self._intake
        start, head = self._offset(), window.data[self._prefix :][:200]
        mark = _NEXT_DOCUMENT if line is None else _LINE_END
        window.drop(1)
        while (found := mark.search(window.data)) is None:
            window.drop(len(window.data) - 1)
            stop = intake.gives_up(window.base - start)
            if stop or (not window.fill(_STEP) and not mark.search(window.data)):
                window.close()
                break
        else:
            window.drop(found.start() + (line is None))
        reason = f"{window.base - start} bytes {what}"
        intake.note(start, reason, head, line=line, message=True)
        self.finished = line is not None
        self._advance(0)

    def _drop_noise(self, data: bytes, size: int, line: int | None) -> None:
        self._note_gap(data[:size], self._window.base, line)
        self._advance(size)

    def _note_gap(self, gap: bytes, offset: int, line: int | None) -> None:
        text = gap.strip(_GAP).removeprefix(BOM).strip(_GAP)
        if zeros := gap.count(b"\0"):
            self._add_zeros(zeros, offset, offset + len(gap), line)
        if text:
            reason = f"{len(text)} bytes that are no JSON value"
            self._intake.note(offset + gap.find(text[:64]), reason, text, line=line, message=True)

    def _add_zeros(self, count: int, start: int, end: int, line: int | None) -> None:
        """Collect a run of NUL bytes over as many windows as it takes."""
        if self._zeros is None or self._zeros[1] != start:
            self._note_zeros()
            self._zeros = (start, end, count, line)
        else:
            first, _, before, line = self._zeros
            self._zeros = (first, end, before + count, line)
        if self._intake.gives_up(end - self._zeros[0]):
            self._window.close()

    def _note_zeros(self) -> None:
        if self._zeros is not None:
            start, _, count, line = self._zeros
            self._intake.note(start, f"{count} NUL bytes", line=line)
            self._zeros = None
