"""Files, folders and globs into a list of files."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO

from tracelab.exceptions import EmptySourceError, ParameterError, SourceError


@dataclass(frozen=True, slots=True)
class Found:
    """A source that the arguments name.

    Parameters
    ----------
    path : str or BinaryIO
        File path, ``-``, or an open stream.
    asked_for : bool
        Whether it was named itself, rather than found in a folder or by a glob.
    problem : str, optional
        Why it is not to be opened.
    """

    path: str | BinaryIO
    asked_for: bool
    problem: str | None = None


def split_streams(
    sources: Iterable[str | os.PathLike[str] | BinaryIO],
) -> tuple[list[str | os.PathLike[str]], list[BinaryIO]]:
    """Tell names of sources from open streams.

    Parameters
    ----------
    sources : iterable
        What was passed as sources.

    Returns
    -------
    named : list of str or Path
        Files, folders, globs, ``-``.
    streams : list of BinaryIO
        Open streams.

    Raises
    ------
    ParameterError
        If one is neither.
    """
    named: list[str | os.PathLike[str]] = []
    streams: list[BinaryIO] = []
    for each in sources:
        if isinstance(each, str | os.PathLike):
            named.append(each)
        elif hasattr(each, "read"):
            streams.append(each)
        else:
            raise ParameterError(
                f"a {type(each).__name__} is no source; pass files, folders, globs, - or open "
                "binary streams, each as an argument of its own"
            )
    return named, streams


def find_sources(*sources: str | os.PathLike[str]) -> list[Found]:
    """Resolve files, folders and globs to files.

    Parameters
    ----------
    *sources : str or Path
        Files, folders (walked in sorted order, symbolic links to folders not followed), globs
        (``**`` for any depth), or ``-`` for standard input.

    Returns
    -------
    list of Found
        Each file once, sorted by path; pipes and devices found in folders carry a problem.

    Raises
    ------
    SourceError
        If a path does not exist.
    EmptySourceError
        If a glob matches nothing.
    """
    found: dict[str, Found] = {}
    for source in sources:
        for entry in _expand(os.fspath(source)):
            path = str(entry.path)
            if path not in found or entry.asked_for:
                found[path] = entry
    return [found[path] for path in sorted(found)]


def _expand(source: str) -> Iterator[Found]:
    if source == "-":
        yield Found("-", asked_for=True)
        return
    if not os.path.lexists(source) and has_magic(source):
        matches = sorted(glob(source, recursive=True))  # noqa: PTH207
        if not matches:
            raise EmptySourceError(f"{source} matches no file; check the pattern")
        for match in matches:
            if Path(match).is_dir():
                if "**" not in source:
                    yield from _walk(match)
            else:
                yield _judged(match)
        return
    path = Path(source)
    if path.is_dir():
        yield from _walk(source)
    elif path.exists():
        yield Found(source, asked_for=True)
    else:
        raise SourceError(f"{source} does not exist; pass a file, a folder, a glob or -")


def _walk(folder: str) -> Iterator[Found]:
    problems: list[Found] = []

    def unreadable(error: OSError) -> None:
        problems.append(
            Found(
                str(error.filename), asked_for=False, problem=f"cannot be listed: {error.strerror}"
            )
        )

    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=False):
        folders.sort()
        for name in sorted(files):
            yield _judged(os.path.join(parent, name))  # noqa: PTH118
    yield from problems


def _judged(path: str) -> Found:
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        return Found(path, asked_for=False, problem=f"cannot be opened: {error.strerror}")
    if not stat.S_ISREG(mode):
        return Found(path, asked_for=False, problem="a pipe, socket or device, not a file")
    return Found(path, asked_for=False)
