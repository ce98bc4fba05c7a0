"""Read goroutine profiles: pprof's texts (debug=1, debug=2) and its protobuf."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import polars as pl

from tracelab.exceptions import ParameterError, SourceError, UnknownFormatError
from tracelab.gostack import Goroutine, parse_goroutines
from tracelab.schema import ColumnType

_COLUMNS: Final[dict[str, ColumnType]] = {
    "goroutine_id": pl.Int64,
    "count": pl.Int64,
    "state": pl.String,
    "wait_minutes": pl.Int64,
    "locked": pl.Boolean,
    "functions": pl.List(pl.String),
    "files": pl.List(pl.String),
    "lines": pl.List(pl.Int64),
    "created_by": pl.String,
    "created_by_id": pl.Int64,
    "labels": pl.String,
    "panic": pl.String,
    "time": pl.Datetime("ns", "UTC"),
    "source": pl.String,
}
GOROUTINES: Final = pl.Schema(_COLUMNS)
"""One row per goroutine (debug=2) or per distinct stack with its count (debug=1, protobuf,
then ``goroutine_id`` is null). Functions stand innermost first."""

MAX_BYTES: Final = 512 * 1024 * 1024
_TEXT_1: Final = re.compile(rb"^goroutine profile: total \d+", re.MULTILINE)
_TEXT_2: Final = re.compile(rb"^goroutine \d+ .*\[", re.MULTILINE)
_STACK: Final = re.compile(r"^(\d+) @(?: 0x[0-9a-f]+)*$")
_FRAME: Final = re.compile(r"^#\t0x[0-9a-f]+\t(\S.*?)(?:\+0x[0-9a-f]+)?\t+(.*):(\d+)$")


def read_goroutine_profile(path: str | Path, *, time: Any = None) -> pl.DataFrame:
    """Read a goroutine profile as ``/debug/pprof/goroutine`` gives it.

    Parameters
    ----------
    path : str or Path
        Text with ``debug=1`` or ``debug=2``, a panic's dump, or the protobuf, gzipped or not.
    time : datetime, optional
        When the profile was taken; the protobuf knows it, the texts do not.

    Returns
    -------
    pl.DataFrame
        Schema `GOROUTINES`.

    Raises
    ------
    SourceError
        If the file cannot be read, or is cut within its compression.
    UnknownFormatError
        If it is no goroutine profile.
    """
    place = Path(path)
    try:
        content = place.read_bytes()
    except OSError as error:
        raise SourceError(f"{place} cannot be read: {error.strerror}") from error
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.open(place) as stream:
                content = stream.read(MAX_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{place} is a damaged gzip stream: {error}") from error
    head = content[:65536]
    if _TEXT_1.search(head):
        rows = list(_counted(content.decode("utf-8", "replace")))
    elif _TEXT_2.search(head):
        text = content.decode("utf-8", "replace")
        rows = [_row(one) for one in parse_goroutines(text.splitlines(), strict=False)]
    else:
        try:
            rows = list(_protobuf(content))
        except (ValueError, IndexError, KeyError) as error:
            raise UnknownFormatError(
                f"{place} is no goroutine profile; take it from "
                "/debug/pprof/goroutine, with ?debug=2 for one row per goroutine"
            ) from error
    try:
        stamp = pl.Series("time", [time], dtype=GOROUTINES["time"], strict=False)
    except TypeError as error:
        raise ParameterError(f"time={time!r} is no datetime") from error
    table = pl.DataFrame(rows, schema=GOROUTINES, orient="row")
    return table.with_columns(
        pl.coalesce(pl.lit(stamp), "time").alias("time"), pl.lit(str(place)).alias("source")
    )


def _row(one: Goroutine) -> dict[str, Any]:
    return {
        "goroutine_id": one.goroutine_id,
        "count": 1,
        "state": one.state,
        "wait_minutes": one.wait_minutes,
        "locked": one.locked,
        "functions": [frame.function for frame in one.frames],
        "files": [frame.file for frame in one.frames],
        "lines": [frame.line for frame in one.frames],
        "created_by": one.created_by.function if one.created_by else None,
        "created_by_id": one.creator_id,
        "labels": json.dumps(one.labels, sort_keys=True) if one.labels else None,
        "panic": one.panic,
    }


def _blank(count: int) -> dict[str, Any]:
    return {"count": count, "functions": [], "files": [], "lines": [], "labels": None}


def _counted(text: str) -> Iterator[dict[str, Any]]:
    """Read debug=1: a count, addresses, labels, and frames in comment lines."""
    row: dict[str, Any] | None = None
    for line in text.splitlines():
        stack = _STACK.match(line)
        if stack is not None:
            if row is not None:
                yield row
            row = _blank(int(stack.group(1)))
        elif row is not None and line.startswith("# labels: "):
            row["labels"] = line[len("# labels: ") :]
        elif row is not None and (frame := _FRAME.match(line)) is not None:
            row["functions"].append(frame.group(1))
            row["files"].append(frame.group(2))
            row["lines"].append(int(frame.group(3)))
    if row is not None:
        yield row


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Walk a protobuf message: (field number, int or bytes)."""
    at, size = 0, len(message)
    while at < size:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value: Any
            value, at = _varint(message, at)
        elif wire == 2:
            length, at = _varint(message, at)
            if at + length > size:
                raise ValueError("a length points behind the end")
            value, at = message[at : at + length], at + length
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            value, at = int.from_bytes(message[at : at + width], "little"), at + width
        else:
            raise ValueError(f"wire type {wire}")
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _numbers(value: Any) -> list[int]:
    """Read a repeated number, packed or not."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _protobuf(content: bytes) -> Iterator[dict[str, Any]]:
    """Read profile.proto: samples of location ids, locations of lines, lines of functions."""
    strings: list[str] = []
    samples: list[bytes] = []
    functions: dict[int, tuple[int, int]] = {}
    locations: dict[int, list[tuple[int, int]]] = {}
    time_ns = 0
    for number, value in _fields(content):
        if number == 2:
            samples.append(value)
        elif number == 4:
            parts = list(_fields(value))
            lines = [dict(_fields(part)) for key, part in parts if key == 4]
            locations[dict(parts).get(1, 0)] = [(line.get(1, 0), line.get(2, 0)) for line in lines]
        elif number == 5:
            part = dict(_fields(value))
            functions[part.get(1, 0)] = (part.get(2, 0), part.get(4, 0))
        elif number == 6:
            strings.append(value.decode("utf-8", "replace"))
        elif number == 9:
            time_ns = value
    if not strings or not samples:
        raise ValueError("no samples")
    for sample in samples:
        row = _blank(0)
        labels: dict[str, str] = {}
        for number, value in _fields(sample):
            if number == 1:
                for location in _numbers(value):
                    for function, line in locations.get(location, []):
                        name, file = functions.get(function, (0, 0))
                        row["functions"].append(strings[name])
                        row["files"].append(strings[file])
                        row["lines"].append(line)
            elif number == 2:
                row["count"] = sum(_numbers(value)[:1])
            elif number == 3:
                label = dict(_fields(value))
                key = strings[label.get(1, 0)]
                labels[key] = strings[label[2]] if 2 in label else str(label.get(3, 0))
        row["labels"] = json.dumps(labels, sort_keys=True) if labels else None
        row["time"] = time_ns or None
        yield row
