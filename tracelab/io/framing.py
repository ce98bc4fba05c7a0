"""Streams of bytes into blocks of messages: lines, length-prefixed frames, documents.

Each reader here takes a stream of decompressed bytes and yields blocks of at most about
`Intake.block_bytes`; what is no message goes to `Intake.damages`. No reader holds more than
`Intake.max_message_bytes` beyond a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from tracelab.io.chunk import Block
from tracelab.io.containers import ZSTD_MAGIC, Damage, Stream, decode_frame, excerpt
from tracelab.io.wrappers import PLAIN, NotAnExportError, unwrap

PREFIX: Final = 4
GIVE_UP_AFTER: Final = 16
"""A stream without a message's end for this many times the largest message is left unread:
no export does that, a decompression bomb does."""

_TAG_FIRST: Final = 0x0A
_BLANK: Final = b" \t\r\n"
_NOISE: Final = _BLANK + b"\0"
_BOM: Final = b"\xef\xbb\xbf"
_MAX_VARINT: Final = 10
_LENGTH_DELIMITED: Final = 2


@dataclass
class Intake:
    """Limits, and what was seen so far, of one source.

    Parameters
    ----------
    block_bytes, max_message_bytes : int
        Size of a block, and of the largest message.
    damages : list of Damage
        What could not be read.
    n_messages : int
        Messages handed on to the decoder.
    wrappings : set of str
        Forms of JSON seen.
    """

    block_bytes: int
    max_message_bytes: int
    damages: list[Damage] = field(default_factory=list)
    n_messages: int = 0
    wrappings: set[str] = field(default_factory=set)

    def note(
        self,
        offset: int,
        reason: str,
        data: bytes = b"",
        *,
        line: int | None = None,
        message: bool = False,
    ) -> None:
        """Note damage."""
        self.damages.append(Damage(offset, reason, excerpt(data), line, message))


class Window:
    """A piece of a stream that slides on: ``data[0]`` stands at ``base``."""

    def __init__(self, stream: Stream, base: int = 0) -> None:
        self.data = b""
        self.base = base
        self._stream = stream

    def fill(self, size: int) -> bool:
        """Read until `size` bytes are there; tell whether they are."""
        missing = size - len(self.data)
        if missing > 0:
            pieces = [self.data]
            while missing > 0 and (piece := self._stream.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
            self.data = b"".join(pieces)
        return missing <= 0

    def drop(self, size: int) -> None:
        """Slide on."""
        self.data = self.data[size:]
        self.base += size


class _Builder:
    """Collects messages that do not stand in one piece of memory."""

    def __init__(self, encoding: Literal["proto", "json"], intake: Intake) -> None:
        self._encoding = encoding
        self._intake = intake
        self._rows: list[tuple[bytes, int, int | None]] = []
        self.size = 0

    def add(self, body: bytes, offset: int, line: int | None = None) -> None:
        self._rows.append((body, offset, line))
        self.size += len(body)

    def add_json(self, value: bytes, offset: int, line: int | None = None) -> None:
        """Add the requests inside a JSON value, or note that there are none."""
        try:
            requests = unwrap(value)
        except NotAnExportError as error:
            self._intake.note(offset, str(error), value, line=line, message=True)
            return
        for request in requests:
            self._intake.wrappings.add(request.wrapping)
            if request.note:
                self._intake.note(offset, request.note, line=line)
            if request.body:
                self.add(request.body, offset, line)

    def flush(self) -> Iterator[Block]:
        if not self._rows:
            return
        bodies, offsets, lines = zip(*self._rows, strict=True)
        lengths = np.array([len(body) for body in bodies], dtype=np.int64)
        yield Block(
            encoding=self._encoding,
            buffer=b"".join(bodies),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            offsets=np.array(offsets, dtype=np.int64),
            lines=None if lines[0] is None else np.array(lines, dtype=np.int64),
            first_message=self._intake.n_messages,
        )
        self._intake.n_messages += len(self._rows)
        self._rows, self.size = [], 0


# --- JSON lines ---------------------------------------------------------------------------


def read_lines(stream: Stream, intake: Intake, *, base: int = 0, bounded: bool) -> Iterator[Block]:
    """Read newline-delimited JSON.

    Parameters
    ----------
    stream : Stream
        Decompressed bytes.
    intake : Intake
        Limits and damage.
    base : int
        Offset of the stream's first byte within its source.
    bounded : bool
        Whether the stream cannot be longer than its file; one that can is left unread after
        `GIVE_UP_AFTER` times the largest message without a line's end.

    Yields
    ------
    Block
        Encoding ``json``.

    Raises
    ------
    Nothing: a line that is no export is damage.
    """
    window = Window(stream, base)
    line = 1
    while True:
        whole = window.fill(intake.block_bytes)
        cut = window.data.rfind(b"\n") + 1
        while whole and not cut and len(window.data) <= intake.max_message_bytes:
            before = len(window.data)
            whole = window.fill(before * 2)
            cut = window.data.rfind(b"\n", before) + 1
        if not whole and not cut:
            cut = len(window.data)
        if not cut or (not whole and cut > intake.max_message_bytes and b"\n" not in window.data):
            if not window.data:
                return
            if not _skip_line(window, intake, line, bounded=bounded):
                return
            line += 1
            continue
        buffer = window.data[:cut]
        yield from _line_blocks(buffer, window.base, line, intake)
        line += buffer.count(b"\n")
        window.drop(cut)
        if not whole and not window.data:
            return


def _skip_line(window: Window, intake: Intake, line: int, *, bounded: bool) -> bool:
    """Pass over a line that is too long, in bounded memory."""
    start, head = window.base, window.data[:200]
    limit = intake.max_message_bytes * GIVE_UP_AFTER
    while True:
        end = window.data.find(b"\n") + 1
        if end:
            window.drop(end)
            break
        window.drop(len(window.data))
        if not bounded and window.base - start > limit:
            intake.note(start, f"no line end within {limit} bytes; the rest is not read", head,
                        line=line, message=True)  # fmt: skip
            return False
        if not window.fill(1 << 20) and not window.data:
            break
    skipped = window.base - start
    reason = f"a line of {skipped} bytes, above the limit of {intake.max_message_bytes}"
    intake.note(start, reason, head, line=line, message=True)
    return True


def _line_blocks(buffer: bytes, base: int, line: int, intake: Intake) -> Iterator[Block]:
    """Find the lines of a buffer; those that are plain requests stay where they are."""
    ends = np.flatnonzero(np.frombuffer(buffer, dtype=np.uint8) == 0x0A).astype(np.int64)
    if not buffer.endswith(b"\n"):
        ends = np.append(ends, len(buffer))
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    lengths = ends - starts
    plain = np.fromiter(
        (PLAIN.match(buffer, start) is not None for start in starts.tolist()),
        dtype=np.bool_,
        count=len(starts),
    )
    plain &= lengths <= intake.max_message_bytes
    numbers = np.arange(line, line + len(starts), dtype=np.int64)
    if plain.any():
        intake.wrappings.add("otlp-json")
    for first, last, is_plain in _runs(plain):
        if is_plain:
            rows = slice(first, last)
            yield Block(
                encoding="json",
                buffer=buffer,
                starts=starts[rows],
                lengths=lengths[rows],
                offsets=base + starts[rows],
                lines=numbers[rows],
                first_message=intake.n_messages,
            )
            intake.n_messages += last - first
            continue
        builder = _Builder("json", intake)
        for row in range(first, last):
            start, end = int(starts[row]), int(ends[row])
            _add_line(buffer[start:end], base + start, int(numbers[row]), builder, intake)
        yield from builder.flush()


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    if not len(flags):
        return
    borders = np.flatnonzero(flags[1:] != flags[:-1]) + 1
    edges = [0, *borders.tolist(), len(flags)]
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        yield first, last, bool(flags[first])


def _add_line(text: bytes, offset: int, line: int, builder: _Builder, intake: Intake) -> None:
    value = text.strip(_BLANK)
    if value.startswith(_BOM):
        value = value[len(_BOM) :].strip(_BLANK)
    zeros = value.count(b"\0")
    if zeros:
        intake.note(offset, f"{zeros} NUL bytes", text, line=line)
        value = value.strip(_NOISE)
    if not value:
        return
    if len(value) > intake.max_message_bytes:
        reason = f"a line of {len(value)} bytes, above the limit of {intake.max_message_bytes}"
        intake.note(offset, reason, value, line=line, message=True)
        return
    builder.add_json(value, offset + text.find(value[:64]), line)


# --- JSON documents -----------------------------------------------------------------------


def read_documents(
    stream: Stream, intake: Intake, *, base: int = 0, bounded: bool
) -> Iterator[Block]:
    """Read JSON documents that may span lines, one after another.

    Parameters
    ----------
    stream : Stream
        Decompressed bytes.
    intake : Intake
        Limits and damage.
    base : int
        Offset of the stream's first byte within its source.
    bounded : bool
        See `read_lines`.

    Yields
    ------
    Block
        Encoding ``json``.

    Raises
    ------
    Nothing: a document that is no export is damage.
    """
    window = Window(stream, base)
    window.fill(intake.max_message_bytes + 1)
    builder = _Builder("json", intake)
    for start, end in documents(window.data):
        builder.add_json(window.data[start:end], base + start)
        if builder.size >= intake.block_bytes:
            yield from builder.flush()
    yield from builder.flush()


def documents(data: bytes) -> list[tuple[int, int]]:
    """Find the top-level values of concatenated JSON.

    Parameters
    ----------
    data : bytes
        JSON text.

    Returns
    -------
    list of (start, end)
        A value that never ends reaches to the end of `data`.

    Raises
    ------
    Nothing.
    """
    places, depths = _brackets(data)
    found: list[tuple[int, int]] = []
    closing = np.flatnonzero(depths == 0)
    first = 0
    for row in closing.tolist():
        found.append((int(places[first]), int(places[row]) + 1))
        first = row + 1
    if first < len(places):
        found.append((int(places[first]), len(data)))
    return found


def _brackets(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the brackets outside of strings, and the depth behind each."""
    text = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(text == 0x22)
    slashes = np.flatnonzero(text == 0x5C)
    if len(slashes):
        # A quote is escaped when an odd run of backslashes ends right before it.
        new_run = np.concatenate([[True], np.diff(slashes) != 1])
        run_starts = slashes[new_run]
        run = np.searchsorted(slashes, quotes) - 1
        before = (run >= 0) & (slashes[np.maximum(run, 0)] == quotes - 1)
        start = run_starts[np.maximum(np.searchsorted(run_starts, quotes) - 1, 0)]
        quotes = quotes[~(before & ((quotes - start) % 2 == 1))]
    opens = (text == 0x7B) | (text == 0x5B)
    closes = (text == 0x7D) | (text == 0x5D)
    places = np.flatnonzero(opens | closes)
    places = places[np.searchsorted(quotes, places) % 2 == 0]
    return places, np.cumsum(np.where(opens[places], 1, -1))


# --- length-prefixed frames ---------------------------------------------------------------


def read_varint_at(data: bytes, place: int, end: int) -> tuple[int, int]:
    """Return a varint and the place behind it, which is -1 if it is none."""
    value = shift = 0
    for place in range(place, min(end, place + _MAX_VARINT)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    return 0, -1


def covers(data: bytes, start: int, end: int) -> bool:
    """Tell whether bytes are exactly a chain of length-delimited protobuf fields."""
    place = start
    while place < end:
        if data[place] != _TAG_FIRST:
            key, place = read_varint_at(data, place, end)
            if place < 0 or key & 7 != _LENGTH_DELIMITED or key >> 3 == 0:
                return False
        else:
            place += 1
        length, place = read_varint_at(data, place, end)
        if place < 0:
            return False
        place += length
    return place == end


def looks_like_request(data: bytes, start: int, end: int) -> bool:
    """Tell whether bytes begin like an export request, of which only a part may be there."""
    if end - start < 2 or data[start] != _TAG_FIRST:
        return start == end
    length, place = read_varint_at(data, start + 1, end)
    if place < 0 or length == 0:
        return place > 0
    if place >= end:
        return False
    inner = data[place]
    return inner in (0x0A, 0x12, 0x1A, 0xC2)


def read_frames(
    stream: Stream, intake: Intake, *, base: int = 0, compressed: bool = False
) -> Iterator[Block]:
    """Read messages behind 4-byte big-endian length prefixes.

    Where a prefix cannot be true, reading goes on at the next place that is a frame by its
    length and by its content; what was skipped is damage.

    Parameters
    ----------
    stream : Stream
        Bytes of the file.
    intake : Intake
        Limits and damage.
    base : int
        Offset of the stream's first byte within its source.
    compressed : bool
        Whether each message is a zstd frame of its own.

    Yields
    ------
    Block
        Encoding by content.

    Raises
    ------
    Nothing.
    """
    window = Window(stream, base)
    decoded = base
    while True:
        window.fill(intake.block_bytes)
        frames = _Frames(window, intake, compressed=compressed)
        if compressed:
            blocks, decoded = _inflated(frames.take(), window, intake, decoded)
            yield from blocks
        else:
            yield from _proto_block(frames.take(), window, intake)
        window.drop(frames.place)
        if frames.stuck and not _resynchronise(window, intake, compressed=compressed):
            return


def _proto_block(frames: list[tuple[int, int]], window: Window, intake: Intake) -> Iterator[Block]:
    if not frames:
        return
    starts = np.array([start for start, _ in frames], dtype=np.int64)
    yield Block(
        encoding="proto",
        buffer=window.data,
        starts=starts,
        lengths=np.array([end - start for start, end in frames], dtype=np.int64),
        offsets=window.base + starts,
        first_message=intake.n_messages,
    )
    intake.n_messages += len(frames)


def _inflated(
    frames: list[tuple[int, int]], window: Window, intake: Intake, decoded: int
) -> tuple[list[Block], int]:
    builders: dict[str, _Builder] = {}
    blocks: list[Block] = []
    for start, end in frames:
        body, problem = decode_frame(window.data[start:end], max_bytes=intake.max_message_bytes)
        text = body.lstrip(_NOISE)[:1] in (b"{", b"[") and not covers(body, 0, len(body))
        encoding: Literal["proto", "json"] = "json" if text else "proto"
        if problem:
            reason = f"{problem} (at file byte {window.base + start})"
            intake.note(decoded, reason, window.data[start:end], message=not body)
        if encoding not in builders:
            for builder in builders.values():
                blocks += builder.flush()
            builders = {encoding: _Builder(encoding, intake)}
        if text:
            for first, last in documents(body):
                builders[encoding].add_json(body[first:last], decoded + first)
        elif body or not problem:
            builders[encoding].add(body, decoded)
        if builders[encoding].size >= intake.block_bytes:
            blocks += builders[encoding].flush()
        decoded += len(body)
    for builder in builders.values():
        blocks += builder.flush()
    return blocks, decoded


class _Frames:
    """Walks the frames at the beginning of a window."""

    def __init__(self, window: Window, intake: Intake, *, compressed: bool) -> None:
        self._window = window
        self._intake = intake
        self._compressed = compressed
        self.place = 0
        self.stuck = False

    def take(self) -> list[tuple[int, int]]:
        """Return the bodies of the frames; stop before the first that is no frame."""
        found: list[tuple[int, int]] = []
        window, limit = self._window, self._intake.max_message_bytes
        while True:
            start = self.place + PREFIX
            if start > len(window.data):
                self.stuck = not found
                return found
            length = int.from_bytes(window.data[self.place : start], "big")
            end = start + length
            if length > limit:
                self.stuck = not found
                return found
            if end > len(window.data):
                if found:
                    return found
                if not window.fill(end):
                    self.stuck = True
                    return found
            if not self._is_frame(start, end):
                self.stuck = not found
                return found
            found.append((start, end))
            self.place = end

    def _is_frame(self, start: int, end: int) -> bool:
        data = self._window.data
        if self._compressed:
            return data.startswith(ZSTD_MAGIC, start) or self._next_is_frame(end)
        if start == end:
            return data[end : end + PREFIX] != bytes(PREFIX)
        return covers(data, start, end) or self._next_is_frame(end)

    def _next_is_frame(self, end: int) -> bool:
        """Tell whether a frame follows, which says that this one's length is true."""
        window = self._window
        if not window.fill(end + PREFIX + 16):
            if len(window.data) == end:
                return True
            if len(window.data) < end + PREFIX:
                return False
        return _plausible(window.data, end, self._intake, compressed=self._compressed)


def _plausible(data: bytes, place: int, intake: Intake, *, compressed: bool) -> bool:
    """Tell whether a frame begins here, by its length and as much of its body as is there."""
    start = place + PREFIX
    length = int.from_bytes(data[place:start], "big")
    if not 0 < length <= intake.max_message_bytes or start >= len(data):
        return False
    if compressed:
        return data.startswith(ZSTD_MAGIC, start)
    end = start + length
    if end <= len(data):
        return looks_like_request(data, start, end) and covers(data, start, end)
    return looks_like_request(data, start, len(data))


def _resynchronise(window: Window, intake: Intake, *, compressed: bool) -> bool:
    """Pass over what is no frame; tell whether there is more to read."""
    if not window.data:
        return False
    start, head = window.base, window.data[:200]
    first_body: bytes | None = None
    while True:
        more = window.fill(intake.block_bytes)
        place = _next_frame(window.data, intake, compressed=compressed)
        if place >= 0:
            break
        if not more:
            place = len(window.data)
            break
        if window.base == start:
            first_body = b""
        window.drop(max(1, len(window.data) - PREFIX - 16))
    body = window.data[PREFIX:place] if first_body is None else b""
    _note_gap(start, window.base + place - start, head, body, intake, compressed=compressed)
    window.drop(place)
    return bool(window.data)


def _next_frame(data: bytes, intake: Intake, *, compressed: bool) -> int:
    """Return where the next frame begins, beyond the first byte; -1 if nowhere."""
    if compressed:
        place = data.find(ZSTD_MAGIC, PREFIX + 1)
        while place >= 0:
            if _plausible(data, place - PREFIX, intake, compressed=True):
                return place - PREFIX
            place = data.find(ZSTD_MAGIC, place + 1)
        return -1
    text = np.frombuffer(data, dtype=np.uint8)
    if len(text) <= PREFIX + 1:
        return -1
    # A prefix is at most the limit, so its high byte is small: that thins out the candidates.
    high = text[1:-PREFIX] <= (intake.max_message_bytes >> 24)
    for place in (np.flatnonzero(high & (text[1 + PREFIX :] == _TAG_FIRST)) + 1).tolist():
        if _plausible(data, place, intake, compressed=False):
            return int(place)
    return -1


def _note_gap(
    offset: int, size: int, head: bytes, body: bytes, intake: Intake, *, compressed: bool
) -> None:
    if size <= 0:
        return
    if not head[:size].strip(b"\0") and not body.strip(b"\0"):
        intake.note(offset, f"{size} NUL bytes", head)
        return
    length = int.from_bytes(head[:PREFIX], "big")
    reason = f"{size} bytes are no frame: their length prefix says {length}"
    intake.note(offset, reason, head, message=True)
