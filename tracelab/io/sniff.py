"""What a source is, told by its content and never by its name."""

import json
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from tracelab.io.containers import GZIP_MAGIC, ZSTD_MAGIC
from tracelab.io.framing import PREFIX, covers, documents, looks_like_request
from tracelab.io.wrappers import KNOWN, PLAIN, NotAnExportError, unwrap

Layout = Literal["lines", "documents", "frames", "zstd-frames", "request", "empty", "unknown"]

PEEK: Final = 1 << 20
"""Bytes looked at: enough for the first message of nearly any export."""

_NOISE: Final = b" \t\r\n\0"
_BOM: Final = b"\xef\xbb\xbf"
_LOOK_AT_LINES: Final = 200

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
    if _is_framed(head, complete=complete, max_message_bytes=max_message_bytes):
        return Sniffed("frames")
    text = head.lstrip(_NOISE).removeprefix(_BOM).lstrip(_NOISE)
    if not text:
        return Sniffed("unknown", nearest="nothing but blanks and NUL bytes")
    layout = _json_layout(text, complete=complete)
    if layout is not None:
        return Sniffed(layout)
    if _finds_frames(head, max_message_bytes=max_message_bytes):
        return Sniffed("frames")
    return Sniffed("unknown", nearest=_nearest(head, text))


def _is_request(head: bytes, *, complete: bool) -> bool:
    if head[:1] != b"\x0a" or not looks_like_request(head, 0, len(head)):
        return False
    return covers(head, 0, len(head)) if complete else _begins_chain(head)


def _begins_chain(head: bytes) -> bool:
    """Tell whether the fields chain up to where the head is cut, and more than text would."""
    from tracelab.io.framing import read_varint_at

    place, fields = 0, 0
    while place < len(head):
        if head[place] != 0x0A:
            return False
        length, place = read_varint_at(head, place + 1, len(head))
        if place < 0:
            return fields > 0
        place += length
        fields += 1
    return True


def _is_framed(head: bytes, *, complete: bool, max_message_bytes: int) -> bool:
    length = int.from_bytes(head[:PREFIX], "big")
    end = PREFIX + length
    if not 0 < length <= max_message_bytes:
        return False
    if end <= len(head):
        return looks_like_request(head, PREFIX, end) and covers(head, PREFIX, end)
    return looks_like_request(head, PREFIX, len(head)) and head[:1] == b"\0"


def _finds_frames(head: bytes, *, max_message_bytes: int) -> bool:
    """Look for a frame further on: the beginning may be damaged."""
    from tracelab.io.framing import Intake, _next_frame

    intake = Intake(block_bytes=len(head), max_message_bytes=max_message_bytes)
    place = _next_frame(head, intake, compressed=False)
    if place < 0:
        return False
    end = place + PREFIX + int.from_bytes(head[place : place + PREFIX], "big")
    return end <= len(head) and end - place > 2 * PREFIX + 16


def _json_layout(text: bytes, *, complete: bool) -> Layout | None:
    """Tell lines from documents; None if no export can be seen."""
    lines = text.split(b"\n", _LOOK_AT_LINES)
    cut = None if complete else lines.pop() if len(lines) > 1 else lines[0]
    whole = [line.strip(_NOISE) for line in lines if line.strip(_NOISE)]
    first = whole[0] if whole else b""
    if first[:1] in (b"{", b"[") and _opens_document(first):
        found = documents(text)
        if found:
            start, end = found[0]
            if _is_export(text[start:end]):
                return "documents"
            if end == len(text) and not complete and KNOWN.search(text):
                return "documents"
    if any(_is_export(line) for line in whole):
        return "lines"
    if cut is not None and KNOWN.search(cut):
        return "lines"
    if any(PLAIN.match(line) for line in whole):
        return "lines"
    if any(_is_export(text[start:end]) for start, end in documents(text)[:_LOOK_AT_LINES]):
        return "documents"
    return None


def _opens_document(line: bytes) -> bool:
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
    if value[:1] not in (b"{", b"["):
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
        try:
            unwrap(text.split(b"\n", 1)[0].strip(_NOISE))
        except NotAnExportError as error:
            first = str(error)
        try:
            unwrap(text.strip(_NOISE))
        except NotAnExportError as error:
            second = str(error)
            return first if second.startswith("broken") else second
        return first
    sample = head[:4096]
    if b"\0" in sample or sum(byte < 9 for byte in sample) > len(sample) // 20:
        return "binary of an unknown kind"
    lines = sample.split(b"\n")[:3]
    if all(line.count(b",") == lines[0].count(b",") > 1 for line in lines[:2]):
        return "CSV"
    return "plain text"
