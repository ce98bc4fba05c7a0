"""The manifest of a written case: any changed byte of it is named."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from tracelab import html
from tracelab.exceptions import SourceError

MANIFEST: Final = "manifest.json"
_OWN: Final = "manifest_sha256"


def render_manifest(out: Path, names: Iterable[str], provenance: Mapping[str, Any]) -> str:
    """Write down the digest of every file of a case, and where the case came from.

    Parameters
    ----------
    out : Path
        Folder of the case.
    names : iterable of str
        Its files, relative to the folder.
    provenance : Mapping
        Sources with their digests, versions, parameters.

    Returns
    -------
    str
        JSON; its own digest over the rest stands in it, so that it cannot change unseen.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    body = {"outputs": _outputs(out, names), "provenance": dict(provenance)}
    return json.dumps({**body, _OWN: _digest(body)}, indent=1, sort_keys=True, default=str) + "\n"


def verify_case(out: str | Path) -> pl.DataFrame:
    """Check every file of a written case, and the sources where they are still there.

    A source that is not there under the name in the manifest (elsewhere, a stream, or its name
    masked) is not checked; `tracelab verify` counts and names such sources.

    Parameters
    ----------
    out : str or Path
        Folder that `Investigation.write` wrote.

    Returns
    -------
    pl.DataFrame
        Columns ``path`` and ``problem``, sorted; no rows if nothing changed.

    Raises
    ------
    SourceError
        If there is no manifest, or it cannot be read.
    """
    folder = Path(out)
    manifest = _manifest(folder)
    told = manifest.get("outputs")
    if not isinstance(told, dict) or manifest.pop(_OWN, None) != _digest(manifest):
        return _problems([(MANIFEST, "changed: its digest does not match what it says")])
    problems = []
    for name, facts in told.items():
        try:
            there = _outputs(folder, [name])
        except OSError:
            problems.append((name, "cannot be read"))
            continue
        if not there:
            problems.append((name, "missing"))
        elif there[name] != facts:
            problems.append((name, "changed: not the bytes that were written"))
    for source in _sources(manifest):
        problems += _source_problem(source)
    return _problems(problems)


def absent_sources(out: str | Path) -> tuple[list[str], int]:
    """List the sources of a case that `verify_case` cannot check.

    Parameters
    ----------
    out : str or Path
        Folder that `Investigation.write` wrote.

    Returns
    -------
    list of str
        Names, as the manifest has them, under which there is no file here.
    int
        How many sources the case has in all.

    Raises
    ------
    SourceError
        If there is no manifest, or it cannot be read.
    """
    names = [str(source.get("source")) for source in _sources(_manifest(Path(out)))]
    return [name for name in names if not _is_there(Path(name))], len(names)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(
            f"{html.plain(str(folder))} holds no {MANIFEST}: {error.strerror or error}; name a "
            "folder that `tracelab investigate SRC -o DIR` wrote"
        ) from error
    except ValueError:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sources(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a manifest says of its sources; whoever wrote it may have written anything."""
    provenance = manifest.get("provenance")
    told = provenance.get("sources") if isinstance(provenance, dict) else None
    return [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _outputs(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in names:
        path = folder / name
        if _is_there(path):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                found[name] = {"sha256": digest, "bytes": file.tell()}
    return found


def _source_problem(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name a source that is there with other bytes; one that is elsewhere proves nothing."""
    path = Path(str(source.get("source")))
    if not _is_there(path):
        return []
    size = source.get("bytes")
    digest, left = hashlib.sha256(), size if isinstance(size, int) else 0
    try:
        with path.open("rb") as file:
            while left > 0 and (data := file.read(min(left, 1 << 20))):
                digest.update(data)
                left -= len(data)
    except OSError:
        return [(str(path), "cannot be read")]
    if left or digest.hexdigest() != source.get("sha256"):
        return [(str(path), "the source is not what was read")]
    return []


def _digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _problems(problems: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(
        sorted(problems), schema={"path": pl.String, "problem": pl.String}, orient="row"
    )
