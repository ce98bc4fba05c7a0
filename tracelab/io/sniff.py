"""What a source is, told by its content and never by its name."""

import json
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

import msgspec

from tracelab.io.containers import GZIP_MAGIC, ZSTD_MAGIC
from tracelab.io.documents import find_brackets
from tracelab.io.frames import PREFIX, begins_frame, begins_request, covers, field_end, frame_places
from tracelab.io.intake import BOM, NOISE
from tracelab.io.wrappers import KNOWN, PLAIN, BrokenJsonError, NotAnExportError, unwrap

Layout = Literal["lines", "documents", "frames", "zstd-frames", "request", "empty", "unknown"]

PEEK: Final = 1 << 20
"""Bytes looked at: enough for the first message of nearly any export."""

_LOOK_AT_LINES: Final = 200
_LOOK_AT_PLACES: Final = 100_000
_SMALLEST_FRAME: Final = 30
"""A span cannot be smaller; chance finds are."""

_FOREIGN: Final[tuple[tuple[bytes, str], ...]] = (
    (b"PAR1", "Apache Parquet"),
    (b"\x7fELF", "an ELF program"),
    (b"MZ", "a Windows program"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\xfd7zXZ\x00", "xz data; unpack it first"),
    (b"BZh", "bzip2 data; unpack it first"),
    (b"\x04\x22\x4d\x18", "lz4 data; unpack it first"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"ARROW1", "an Arrow file"),
    (b"Obj\x01", "an Avro file"),
    (b"\xff\xfe", "UTF-16 text; convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16 text; convert it to UTF-8"),
    (b"<?xml", "XML"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    (b"#!", "a script"),
)


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What the beginning of a stream says.

    Parameters
    ----------
    layout : str
        How messages stand in it.
    compression : str or None
        ``gzip`` or ``zstd`` if it must be decoded before it can be looked at.
    nearest : str
        For an unknown layout: what it looks like.
    """

    layout: Layout
    compression: str | None = None
    nearest: str = ""


def sniff(head: bytes, *, complete: bool, max_message_bytes: int) -> Sniffed:
    """Tell the form of a stream.

    Parameters
    ----------
    head : bytes
        Its beginning, `PEEK` bytes where there are so many.
    complete : bool
        Whether that is all of it.
    max_message_bytes : int
        Largest message, which bounds a length prefix.

    Returns
    -------
    Sniffed
        The form.

    Raises
    ------
    Nothing: an unknown form is an answer.
    """
    if not head:
        return Sniffed("empty")
    if head.startswith(GZIP_MAGIC):
        return Sniffed("unknown", "gzip")
    if head.startswith(ZSTD_MAGIC) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return Sniffed("unknown", "zstd")
    length = int.from_bytes(head[:PREFIX], "big")
    if head.startswith(ZSTD_MAGIC, PREFIX) and 0 < length <= max_message_bytes:
        return Sniffed("zstd-frames", "zstd-messages")
    if _is_request(head, complete=complete):
        return Sniffed("request")
    if begins_frame(head, 0, max_bytes=max_message_bytes, compressed=False):
        return Sniffed("frames")
    text = head.lstrip(NOISE).removeprefix(BOM).lstrip(NOISE)
    if not text:
        return Sniffed("unknown", nearest="nothing but blanks and NUL bytes")
    layout = _json_layout(text, complete=complete)
    if layout is not None:
        return Sniffed(layout)
    if _finds_frames(head, complete=complete, max_message_bytes=max_message_bytes):
        return Sniffed("frames")
    return Sniffed("unknown", nearest=_nearest(head, text))


def _is_request(head: bytes, *, complete: bool) -> bool:
    if not begins_request(head, 0, len(head)):
        return False
    if complete:
        return covers(head, 0, len(head))
    place = 0
    while 0 <= place < len(head) and head[place] == 0x0A:
        place = field_end(head, place, len(head))
    return place >= len(head)


def _finds_frames(head: bytes, *, complete: bool, max_message_bytes: int) -> bool:
    """Look for a frame further on: the beginning may be damaged."""
    tries = frame_places(head, 0, max_bytes=max_message_bytes, compressed=False)
    for place in islice(tries, _LOOK_AT_PLACES):
        if begins_frame(head, place, max_bytes=max_message_bytes, compressed=False):
            end = place + PREFIX + int.from_bytes(head[place : place + PREFIX], "big")
            if end - place >= _SMALLEST_FRAME and (end <= len(head) or not complete):
                return True
    return False


def _json_layout(text: bytes, *, complete: bool) -> Layout | None:
    """Tell lines from documents; None if no export can be seen."""
    lines = text.split(b"\n", _LOOK_AT_LINES)
    rest = b"" if complete else lines.pop()
    whole = [stripped for line in lines if (stripped := line.strip(NOISE))]
    if not whole:
        # The first line is longer than what was looked at: it is read as a line if it is a
        # plain request, for then others may follow, and cut as a document else.
        if PLAIN.match(rest):
            return "lines"
        return "documents" if rest[:1] in (b"{", b"[") and KNOWN.search(rest) else None
    if whole[0][:1] in (b"{", b"[") and _is_open(whole[0]):
        bounds, begin = find_brackets(text).values()
        if bounds and _is_export(text[bounds[0][0] : bounds[0][1]]):
            return "documents"
        if not bounds and begin is not None and KNOWN.search(text):
            seen = sum(PLAIN.match(line) is not None for line in whole[1:])
            return "lines" if seen else "documents"
    if any(_is_export(line) or PLAIN.match(line) for line in whole) or PLAIN.match(rest):
        return "lines"
    bounds, _ = find_brackets(text).values()
    if any(_is_export(text[start:end]) for start, end in bounds[:_LOOK_AT_LINES]):
        return "documents"
    return None


def _is_open(line: bytes) -> bool:
    """Tell whether a line is not one whole JSON value."""
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return True
    return False


def _is_export(value: bytes) -> bool:
    if value[:1] not in (b"{", b"[") or not KNOWN.search(value):
        return False
    try:
        unwrap(value)
    except NotAnExportError:
        return False
    return True


def _nearest(head: bytes, text: bytes) -> str:
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            return name
    if text[:1] in (b"{", b"["):
        return _nearest_json(text)
    sample = head[:4096]
    if b"\0" in sample or sum(byte < 9 for byte in sample) > len(sample) // 20:
        return "binary of an unknown kind"
    lines = sample.split(b"\n")[:3]
    if all(line.count(b",") == lines[0].count(b",") > 1 for line in lines[:2]):
        return "CSV"
    return "plain text"


def _nearest_json(text: bytes) -> str:
    """Say what stands in JSON that is no export; the whole text first, then its first line."""
    broken = ""
    for value in (text.strip(NOISE), text.split(b"\n", 1)[0].strip(NOISE)):
        try:
            unwrap(value)
        except BrokenJsonError as error:
            broken = broken or str(error)
        except NotAnExportError as error:
            return str(error)
        else:
            return "JSON without any export in it"
    return broken
