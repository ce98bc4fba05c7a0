"""Messages behind 4-byte big-endian length prefixes, protobuf or zstd."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from tracelab.io.chunk import Block
from tracelab.io.containers import ZSTD_MAGIC, Stream, decode_frame
from tracelab.io.documents import find_brackets
from tracelab.io.intake import NOISE, Builder, Intake, Window

PREFIX: Final = 4

_TAG_FIRST: Final = 0x0A
_RESOURCE_TAGS: Final = (0x0A, 0x12, 0x1A, 0xC2)
"""First byte of a resource's fields: the resource, its scopes, schema_url, field 1000."""

_MAX_VARINT: Final = 10
_LENGTH_DELIMITED: Final = 2
_LOOK_AHEAD: Final = PREFIX + 16
_HEAD: Final = 200
_CHAIN_LOOKED_AT: Final = 10_000
_STRIDE: Final = 1 << 14
_MAX_TRIES: Final = 200_000
"""Places looked at in search of a frame, per source: damage made on purpose cannot cost more."""


def read_varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """Return a varint and the place behind it, which is -1 if it is none."""
    value = shift = 0
    for byte in data[place : min(end, place + _MAX_VARINT)]:
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    return 0, -1


def field_end(data: bytes, place: int, end: int) -> int:
    """Return where a length-delimited field ends, maybe beyond `end`; -1 if there is none."""
    key, place = read_varint(data, place, end)
    if place < 0 or key & 7 != _LENGTH_DELIMITED or key >> 3 == 0:
        return -1
    length, place = read_varint(data, place, end)
    return -1 if place < 0 else place + length


def covers(data: bytes, start: int, end: int) -> bool:
    """Tell whether bytes are exactly a chain of length-delimited protobuf fields.

    A chain of very many is believed when its beginning holds: that bounds the effort.
    """
    place = start
    for _ in range(_CHAIN_LOOKED_AT):
        if not 0 <= place < end:
            return place == end
        place = field_end(data, place, end)
    return 0 <= place <= end


def begins_request(data: bytes, start: int, end: int) -> bool:
    """Tell whether bytes begin like an export request, of which only a part may be there."""
    if end - start < 2 or data[start] != _TAG_FIRST:
        return start == end
    length, place = read_varint(data, start + 1, end)
    if place < 0 or length == 0:
        return place > 0
    return place < end and data[place] in _RESOURCE_TAGS


def begins_frame(data: bytes, place: int, *, max_bytes: int, compressed: bool) -> bool:
    """Tell whether a frame begins here, by its length and as much of its body as is there."""
    start = place + PREFIX
    length = int.from_bytes(data[place:start], "big")
    if not 0 < length <= max_bytes or start >= len(data):
        return False
    if compressed:
        return data.startswith(ZSTD_MAGIC, start)
    end = start + length
    if end <= len(data):
        return begins_request(data, start, end) and covers(data, start, end)
    return begins_request(data, start, len(data))


def frame_places(data: bytes, place: int, *, max_bytes: int, compressed: bool) -> Iterator[int]:
    """Give out the places, from `place` on, at which a frame may begin."""
    if compressed:
        found = data.find(ZSTD_MAGIC, place + PREFIX)
        while found >= 0:
            yield found - PREFIX
            found = data.find(ZSTD_MAGIC, found + 1)
        return
    text = np.frombuffer(data, dtype=np.uint8)
    # The next frame is mostly near, so that not all of the window is looked at for each gap.
    for start in range(place, len(text) - PREFIX, _STRIDE):
        heads, bodies = text[start:-PREFIX][:_STRIDE], text[start + PREFIX :][:_STRIDE]
        # A prefix is at most the limit, so its high byte is small: that thins out the candidates.
        likely = (heads <= (max_bytes >> 24)) & (bodies == _TAG_FIRST)
        yield from (np.flatnonzero(likely) + start).tolist()


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
        Whether each message is a zstd frame of its own. Offsets are then those of the
        decoded messages laid end to end.

    Yields
    ------
    Block
        Encoding by content.

    Raises
    ------
    Nothing.
    """
    reader = _Reader(Window(stream, base), intake, compressed=compressed)
    while reader.more():
        yield from reader.emit(reader.take())


class _Reader:
    """Takes frames off a window."""

    def __init__(self, window: Window, intake: Intake, *, compressed: bool) -> None:
        self._window = window
        self._intake = intake
        self._compressed = compressed
        self._decoded = window.base
        self._place = 0
        self._tries = 0

    def more(self) -> bool:
        """Slide the window on; tell whether there is anything in it."""
        self._window.drop(self._place)
        self._place = 0
        self._window.fill(self._intake.block_bytes)
        return bool(self._window.data)

    def take(self) -> list[tuple[int, int]]:
        """Return the bodies of the frames in the window, gaps between them passed over."""
        window = self._window
        found: list[tuple[int, int]] = []
        while True:
            while (end := self._frame_end(first=self._place == 0)) >= 0:
                found.append((self._place + PREFIX, end))
                self._place = end
            if self._place >= len(window.data):
                return found
            if self._place == 0:
                found += self._gap()
            elif (place := self._next_frame()) >= 0:
                start = self._place
                self._place = place
                gap = window.data[start:place]
                found += self._judge_gap(
                    window.base + start, gap[:_HEAD], zeros=not gap.strip(b"\0")
                )
            else:
                return found

    def _next_frame(self) -> int:
        """Return where the next frame begins, without sliding on; -1 if that does not show yet."""
        data = self._window.data
        body = self._place + PREFIX
        length = int.from_bytes(data[self._place : body], "big")
        if length <= self._intake.max_message_bytes and body + length > len(data):
            return -1
        return self._find_frame(self._place + 1, fill=False)

    def _frame_end(self, *, first: bool) -> int:
        """Return where the frame ends that begins here; -1 if none does, or it is not all there."""
        window = self._window
        start = self._place + PREFIX
        if start > len(window.data):
            return -1
        length = int.from_bytes(window.data[self._place : start], "big")
        end = start + length
        if length > self._intake.max_message_bytes:
            return -1
        if end > len(window.data) and not (first and window.fill(end)):
            return -1
        return end if self._is_frame(start, end) else -1

    def _is_frame(self, start: int, end: int) -> bool:
        data = self._window.data
        if self._compressed:
            return data.startswith(ZSTD_MAGIC, start) or self._frame_follows(end)
        # Two empty requests in a row are a run of NUL bytes.
        return (start < end and covers(data, start, end)) or self._frame_follows(end)

    def _frame_follows(self, end: int) -> bool:
        """Tell whether a frame follows, which says that this one's length is true."""
        window = self._window
        window.fill(end + _LOOK_AHEAD)
        return len(window.data) == end or self._begins_frame(end)

    def _begins_frame(self, place: int) -> bool:
        limit = self._intake.max_message_bytes
        return begins_frame(self._window.data, place, max_bytes=limit, compressed=self._compressed)

    def _gap(self) -> list[tuple[int, int]]:
        """Pass over what is no frame; return its body if a message may be in it."""
        window, intake = self._window, self._intake
        start, head = window.base, window.data[:_HEAD]
        zeros, searched = True, 1
        while True:
            more = window.fill(intake.block_bytes)
            place = self._find_frame(searched)
            if place >= 0 or not more:
                break
            keep = max(1, len(window.data) - _LOOK_AHEAD)
            zeros = zeros and not window.data[:keep].strip(b"\0")
            window.drop(keep)
            searched = 0
            if intake.gives_up(window.base - start):
                window.close()
        self._place = len(window.data) if place < 0 else place
        zeros = zeros and not window.data[: self._place].strip(b"\0")
        return self._judge_gap(start, head, zeros=zeros)

    def _find_frame(self, place: int, *, fill: bool = True) -> int:
        """Return where a frame begins that is all there; -1 if nowhere in the window.

        Without `fill`, also if it cannot be told from what the window holds by now.
        """
        window, limit = self._window, self._intake.max_message_bytes
        places = frame_places(window.data, place, max_bytes=limit, compressed=self._compressed)
        for candidate in places:
            if self._tries >= _MAX_TRIES:
                break
            self._tries += 1
            if not self._begins_frame(candidate):
                continue
            length = int.from_bytes(window.data[candidate : candidate + PREFIX], "big")
            if not fill and candidate + PREFIX + length > len(window.data):
                return -1
            if window.fill(candidate + PREFIX + length) and self._begins_frame(candidate):
                return candidate
        return -1

    def _judge_gap(self, start: int, head: bytes, *, zeros: bool) -> list[tuple[int, int]]:
        window, intake = self._window, self._intake
        size = window.base + self._place - start
        if zeros:
            intake.note(start, f"{size} NUL bytes", head)
            return []
        length = int.from_bytes(head[:PREFIX], "big")
        torn = self._place == len(window.data) and length > size - PREFIX
        what = (
            f"torn frame: {max(0, size - PREFIX)} of {length} bytes are there"
            if torn
            else f"{size} bytes are no frame: their length prefix says {length}"
        )
        body = start - window.base + PREFIX
        whole = body >= PREFIX  # else its beginning has slid out of the window
        if (
            whole
            and not self._compressed
            and size <= intake.max_message_bytes
            and begins_request(window.data, body, self._place)
            and size > PREFIX
        ):
            # The decoder keeps what is whole in it, and rejects the message if it is not.
            intake.note(start, f"{what}; what is whole in them is read", head)
            return [(body, self._place)]
        if whole and self._compressed and head[PREFIX:].startswith(ZSTD_MAGIC):
            intake.note(start, f"{what}; what can be decoded of them is read", head)
            return [(body, self._place)]
        intake.note(start, what, head, message=True)
        return []

    def emit(self, frames: list[tuple[int, int]]) -> Iterator[Block]:
        """Make blocks of frames of the window."""
        if self._compressed:
            yield from self._inflated(frames)
        elif frames:
            starts = np.array([start for start, _ in frames], dtype=np.int64)
            first = self._intake.n_messages
            self._intake.n_messages += len(frames)
            yield Block(
                encoding="proto",
                buffer=self._window.data,
                starts=starts,
                lengths=np.array([end - start for start, end in frames], dtype=np.int64),
                offsets=self._window.base + starts,
                first_message=first,
            )

    def _inflated(self, frames: list[tuple[int, int]]) -> Iterator[Block]:
        window, intake = self._window, self._intake
        builder = Builder("proto", intake)
        for start, end in frames:
            body, problem = decode_frame(window.data[start:end], max_bytes=intake.max_message_bytes)
            if problem:
                reason = f"{problem} (at file byte {window.base + start})"
                intake.note(self._decoded, reason, window.data[start:end], message=not body)
            is_json = not covers(body, 0, len(body)) and body.lstrip(NOISE)[:1] in (b"{", b"[")
            if is_json != (builder.encoding == "json"):
                yield from builder.flush()
                builder = Builder("json" if is_json else "proto", intake)
            if is_json:
                self._add_values(body, builder)
            elif body or not problem:
                builder.add(body, self._decoded)
            self._decoded += len(body)
            if builder.size >= intake.block_bytes:
                yield from builder.flush()
        yield from builder.flush()

    def _add_values(self, body: bytes, builder: Builder) -> None:
        bounds, rest = find_brackets(body).values()
        for start, end in bounds:
            builder.add_json(body[start:end], self._decoded + start)
        if rest is not None:
            builder.add_json(body[rest:], self._decoded + rest)
