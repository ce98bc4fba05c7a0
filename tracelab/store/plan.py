"""What an ingest has to do: which sources are new, which have grown, cut into tasks."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tracelab.exceptions import SourceError
from tracelab.io import ByteRange, find_sources, split_source
from tracelab.io.discover import Found
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
        Where it is; what the column ``source`` says.
    part : ByteRange, optional
        The range; the whole if left out.
    asked_for : bool
        Whether a file that is no export raises.
    """

    path: str
    name: str
    part: ByteRange | None = None
    asked_for: bool = True


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
        if len(pieces) == 1 and known.size < _BUNDLE_BYTES:
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
    return Job(tuple(bundle), (tuple(_pieces(each, workers)[0] for each in bundle),))


def _identify(
    found: Found, stored: dict[str, Source], sizes: dict[int, list[Source]], plan: Plan
) -> Known | None:
    problem, path = found.problem, str(found.path)
    if problem is None:
        try:
            sha256, size, extends = _digest(Path(path), sizes)
            extends = extends if sha256 not in stored else None
            return Known(path, found.asked_for, sha256, size, extends)
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
    path, asked_for = known.path, known.asked_for
    size = known.size
    begin = known.extends.resume_at if known.extends else 0
    wanted = min(max((size - begin) // (2 * workers), _MIN_PART), _MAX_PART)
    parts = split_source(path, part_bytes=wanted)
    if known.extends and not parts:
        assert known.extends.layout is not None
        line = _line_at(Path(path), begin)
        whole = ByteRange(begin, size, known.extends.layout, line)
        return [Piece(path, path, whole, asked_for)]
    pieces = []
    for part in parts:
        start, end = max(part.start, begin), min(part.end, size)
        if start >= end:
            continue
        line = part.first_line if start == part.start else _line_at(Path(path), start)
        pieces.append(Piece(path, path, ByteRange(start, end, part.layout, line), asked_for))
    return pieces or [Piece(path, path, None, asked_for)]


def _line_at(path: Path, place: int) -> int:
    line = 1
    with path.open("rb") as file:
        while place > 0 and (data := file.read(min(_PIECE, place))):
            line += data.count(b"\n")
            place -= len(data)
    return line
