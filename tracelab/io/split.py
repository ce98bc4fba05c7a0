"""One large file into parts that several workers can read."""

import os
from pathlib import Path
from typing import BinaryIO, Final

from tracelab.exceptions import ParameterError, SourceError
from tracelab.io.frames import PREFIX, begins_frame
from tracelab.io.sniff import PEEK, sniff
from tracelab.io.source import MAX_MESSAGE_BYTES, ByteRange

_STEP: Final = 1 << 22


def split_source(
    path: str | os.PathLike[str],
    *,
    part_bytes: int,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> list[ByteRange]:
    """Cut a file between its messages.

    Parameters
    ----------
    path : str or Path
        A file.
    part_bytes : int
        Least bytes of a part, the last one excepted.
    max_message_bytes : int
        As for `SourceReader`.

    Returns
    -------
    list of ByteRange
        In order, without gaps. Empty where a file cannot be cut (compressed, a single
        document, or below two parts): it is then to be read as a whole. Reading all parts
        gives the same tables as reading the whole.

    Raises
    ------
    SourceError
        If the file cannot be opened.
    ParameterError
        If `part_bytes` is below 1.
    """
    if part_bytes < 1:
        raise ParameterError("part_bytes must be at least 1")
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 2 * part_bytes:
                return []
            head = file.read(PEEK)
            sniffed = sniff(head, complete=len(head) < PEEK, max_message_bytes=max_message_bytes)
            if sniffed.layout == "lines":
                return _split_lines(file, part_bytes)
            if sniffed.layout == "frames":
                return _split_frames(file, size, part_bytes, max_message_bytes)
            return []
    except OSError as error:
        raise SourceError(
            f"{os.fspath(path)} cannot be opened: {error.strerror or error}; "
            "check the path and its rights"
        ) from error


def _split_lines(file: BinaryIO, part_bytes: int) -> list[ByteRange]:
    """Read through the file once: lines are counted so that rejects can name theirs."""
    parts: list[ByteRange] = []
    file.seek(0)
    start = place = 0
    first_line = line = 1
    while data := file.read(_STEP):
        cut = 0
        while (wanted := start + part_bytes - place) < len(data):
            end = data.find(b"\n", max(wanted, cut)) + 1
            if not end:
                break
            line += data.count(b"\n", cut, end)
            parts.append(ByteRange(start, place + end, "lines", first_line))
            start, first_line, cut = place + end, line, end
        line += data.count(b"\n", cut)
        place += len(data)
    if place > start:
        parts.append(ByteRange(start, place, "lines", first_line))
    return parts


def _split_frames(
    file: BinaryIO, size: int, part_bytes: int, max_message_bytes: int
) -> list[ByteRange]:
    """Follow the length prefixes; from the first that is not true on, all is one part."""
    parts: list[ByteRange] = []
    start = place = 0
    # Single reads: pages of a mapped file would count as memory of this process.
    handle = file.fileno()
    while place + PREFIX <= size:
        length = int.from_bytes(os.pread(handle, PREFIX, place), "big")
        if length > max_message_bytes or place + PREFIX + length > size:
            break
        if place - start >= part_bytes:
            head = os.pread(handle, PREFIX + length, place)
            if not begins_frame(head, 0, max_bytes=max_message_bytes, compressed=False):
                break
            parts.append(ByteRange(start, place, "frames"))
            start = place
        place += PREFIX + length
    if size > start:
        parts.append(ByteRange(start, size, "frames"))
    return parts
