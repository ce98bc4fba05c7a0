"""What an ingest has to do: which sources are new, which have grown, cut into tasks."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from tracelab.exceptions import SourceError
from tracelab.io import ByteRange, find_sources, split_source
from tracelab.io.discover import Found
from tracelab.io.frames import PREFIX
from tracelab.io.sniff import PEEK, sniff
from tracelab.io.source import MAX_MESSAGE_BYTES
from tracelab.store.log import Snapshot, Source

_PIECE: Final = 1 << 20
_BUNDLE_BYTES: Final = 8 << 20
"""Small sources are written together up to this size, so that parts do not become tiny."""

_BUNDLE_FILES: Final = 256
_MIN_PART: Final = 8 << 20
_MAX_PART: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A source, or a range of one, to be decoded by one task.

    Parameters
    ----------
    path, name : str
        Where it is, for any process; what the column ``source`` says.
    part : ByteRange, optional
        The range; the whole if left out.
    asked_for : bool
        Whether a file that is no export raises.
    is_tail : bool
        Whether it is the unfinished end of a file that may grow.
    """

    path: str
    name: str
    part: ByteRange | None = None
    asked_for: bool = True
    is_tail: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """Sources that one commit accounts for.

    Parameters
    ----------
    sources : tuple of Known
        The sources.
    tasks : tuple of tuple of Piece
        Each is decoded by one process; a task's pieces may share parts of the store.
    """

    sources: tuple["Known", ...]
    tasks: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A file and its content's identity at the time of planning."""

    path: str
    asked_for: bool
    sha256: str
    size: int
    extends: Source | None = None
    layout: str | None = None
    tail_at: int = 0


@dataclass(slots=True)
class Plan:
    """Jobs to do, sources that stand in the store already, files that cannot be opened."""

    jobs: list[Job] = field(default_factory=list)
    present: list[Known] = field(default_factory=list)
    skipped: list[Found] = field(default_factory=list)
    total_bytes: int = 0


def plan_ingest(
    paths: Sequence[str | os.PathLike[str]], snapshot: Snapshot, *, workers: int
) -> Plan:
    """Find the sources and compare them with what the store has.

    Parameters
    ----------
    paths : sequence of str or Path
        Files, folders, globs.
    snapshot : Snapshot
        The store.
    workers : int
        Processes that will decode.

    Returns
    -------
    Plan
        A source is new if no source of the store has its content. It has grown if the content
        of one is its beginning.

    Raises
    ------
    SourceError
        If a path does not exist or a file that was named cannot be read.
    """
    plan = Plan()
    stored = snapshot.sources()
    sizes = _extendable(stored)
    seen: set[str] = set()
    bundle: list[Known] = []
    for found in find_sources(*paths):
        known = _identify(found, stored, sizes, plan)
        if known is None:
            continue
        if known.sha256 in stored or known.sha256 in seen:
            plan.present.append(known)
            continue
        seen.add(known.sha256)
        plan.total_bytes += known.size
        pieces = _pieces(known, workers)
        if known.size < _BUNDLE_BYTES:
            bundle.append(known)
            if sum(each.size for each in bundle) > _BUNDLE_BYTES or len(bundle) == _BUNDLE_FILES:
                plan.jobs.append(_bundled(bundle, workers))
                bundle = []
        else:
            plan.jobs.append(Job((known,), tuple((piece,) for piece in pieces)))
    if bundle:
        plan.jobs.append(_bundled(bundle, workers))
    return plan


def _bundled(bundle: list[Known], workers: int) -> Job:
    return Job(
        tuple(bundle), (tuple(piece for each in bundle for piece in _pieces(each, workers)),)
    )


def _identify(
    found: Found, stored: dict[str, Source], sizes: dict[int, list[Source]], plan: Plan
) -> Known | None:
    problem, path = found.problem, str(found.path)
    if problem is None:
        try:
            sha256, size, extends = _digest(Path(path), sizes)
            if sha256 in stored:
                return Known(path, found.asked_for, sha256, size)
            layout, tail_at = find_tail(path, size, extends.resume_at if extends else 0)
            return Known(path, found.asked_for, sha256, size, extends, layout, tail_at)
        except OSError as error:
            problem = f"cannot be opened: {error.strerror or error}"
    if found.asked_for:
        raise SourceError(f"{path}: {problem}; check the path and its rights")
    plan.skipped.append(found)
    return None


def _extendable(stored: dict[str, Source]) -> dict[int, list[Source]]:
    sizes: dict[int, list[Source]] = {}
    for source in stored.values():
        if source.layout is not None:
            sizes.setdefault(source.size, []).append(source)
    return sizes


def _digest(path: Path, sizes: dict[int, list[Source]]) -> tuple[str, int, Source | None]:
    """Hash a file, and find the longest source of the store that is its beginning."""
    digest = hashlib.sha256()
    extends: Source | None = None
    place = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        stops = sorted(each for each in sizes if each < size)
        for stop in [*stops, size]:
            while place < stop and (data := file.read(min(_PIECE, stop - place))):
                digest.update(data)
                place += len(data)
            if stop < size and place == stop:
                found = digest.copy().hexdigest()
                extends = next((each for each in sizes[stop] if each.sha256 == found), extends)
    return digest.hexdigest(), place, extends


def _pieces(known: Known, workers: int) -> list[Piece]:
    """Cut a source; what can grow is read up to its size at planning, no further."""
    path = known.path
    if known.layout is None:
        return [Piece(str(Path(path).absolute()), path, None, known.asked_for)]
    begin, end = known.extends.resume_at if known.extends else 0, known.tail_at
    wanted = min(max((end - begin) // (2 * workers), _MIN_PART), _MAX_PART)
    parts = split_source(path, part_bytes=wanted) or [ByteRange(0, known.size, known.layout)]
    pieces = [
        _piece(known, max(part.start, begin), min(part.end, end), part)
        for part in parts
        if max(part.start, begin) < min(part.end, end)
    ]
    if known.tail_at < known.size:
        pieces.append(_piece(known, known.tail_at, known.size, None))
    return pieces


def _piece(known: Known, start: int, end: int, part: ByteRange | None) -> Piece:
    line = 1
    if known.layout == "lines":
        exact = part is not None and part.start == start
        line = part.first_line if part and exact else _line_at(Path(known.path), start)
    assert known.layout is not None
    whole = ByteRange(start, end, known.layout, line)
    path = str(Path(known.path).absolute())
    return Piece(path, known.path, whole, known.asked_for, is_tail=part is None)


def find_tail(path: str, size: int, begin: int) -> tuple[str | None, int]:
    """Tell whether messages can be appended to a file, and where its last whole one ends.

    Parameters
    ----------
    path : str
        A file.
    size : int
        Bytes of it to look at.
    begin : int
        A place between two messages.

    Returns
    -------
    layout : str or None
        "lines" or "frames"; None where nothing can be appended, or nothing is whole.
    tail_at : int
        Where the unfinished end begins; `size` if there is none.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(PEEK)
        sniffed = sniff(head, complete=len(head) < PEEK, max_message_bytes=MAX_MESSAGE_BYTES)
        if sniffed.layout == "lines":
            at = _last_line(file, size)
        elif sniffed.layout == "frames":
            at = _last_frame(file, size, begin)
        else:
            return None, size
    return (sniffed.layout, at) if at > 0 else (None, size)


def _last_line(file: BinaryIO, size: int) -> int:
    at = size
    while at > 0:
        step = min(_PIECE, at)
        file.seek(at - step)
        found = file.read(step).rfind(b"\n")
        if found >= 0:
            return at - step + found + 1
        at -= step
    return 0


def _last_frame(file: BinaryIO, size: int, begin: int) -> int:
    place = begin
    handle = file.fileno()
    while place + PREFIX <= size:
        length = int.from_bytes(os.pread(handle, PREFIX, place), "big")
        if length > MAX_MESSAGE_BYTES or place + PREFIX + length > size:
            break
        place += PREFIX + length
    return place


def _line_at(path: Path, place: int) -> int:
    line = 1
    with path.open("rb") as file:
        while place > 0 and (data := file.read(min(_PIECE, place))):
            line += data.count(b"\n")
            place -= len(data)
    return line
