"""The store's log: numbered commits, each made whole or not at all.

A commit is one small file. It names every part (of every table) that it adds and every source
that it accounts for, so that all tables change at once. It is created under the next number,
which fails if another writer took it. Its first line is the
SHA-256 of the rest, and the rest holds that of the commit before: a commit that is emptied,
altered or missing in the middle is named instead of silently passed over. An empty file beside
it, its seal, says that it was made, so that the newest one is missed as well.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tracelab.exceptions import StoreError
from tracelab.store.shelves import Entry, Shelf
from tracelab.store.shelves import Taken as Taken

FORMAT: Final = "tracelab-store"
VERSION: Final = 1
FOLDER: Final = "log"
_DIGITS: Final = 12


Place = tuple[int, int]
"""Where a batch is: the number of its commit, and its place in it."""


@dataclass(frozen=True, slots=True)
class Group:
    """A row group of a part: the buckets it holds, and its bytes."""

    first_bucket: int
    last_bucket: int
    rows: int
    start: int
    end: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Part:
    """An immutable Parquet file of one table.

    Parameters
    ----------
    path : str
        Relative to the store.
    rows, size : int
        Rows and bytes.
    sha256 : str
        Digest of the whole file.
    frame_sha256 : str
        Digest of all bytes outside the row groups (magic number and footer).
    groups : tuple of Group
        Row groups in order.
    """

    path: str
    rows: int
    size: int
    sha256: str
    frame_sha256: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """What a commit says of one source.

    Parameters
    ----------
    sha256 : str
        Digest of its content: its identity.
    size : int
        Its bytes.
    row : dict
        Accounting row (schema INGEST); empty for a file that is no export.
    layout : str, optional
        "lines" or "frames" where messages can be appended to the file.
    resume_at : int
        Byte at which its last, unfinished message begins, else its end; a grown file is read
        from here.
    tail : tuple of int
        Batches of the commit with what came of that unfinished message. A commit that extends
        this source takes their place.
    tail_row : dict
        The share of these in `row`.
    extends : str, optional
        Digest of the shorter content that this one continues.
    """

    sha256: str
    size: int
    row: dict[str, Any] = field(default_factory=dict)
    layout: str | None = None
    resume_at: int = 0
    tail: tuple[int, ...] = ()
    tail_row: dict[str, Any] = field(default_factory=dict)
    extends: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """One step of the store: batches of parts (table name to part), and their sources.

    `replaces` names batches (number of their commit, place in it) whose rows all stand in this
    commit's batches, as compaction writes them, or, if it has none, have expired.
    """

    batches: tuple[dict[str, Part], ...] = ()
    sources: tuple[Source, ...] = ()
    replaces: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The store as of one commit."""

    n_buckets: int
    commits: tuple[Commit, ...]
    digest: str

    @property
    def number(self) -> int:
        """Number of the last commit; 0 is the store's creation."""
        return len(self.commits)

    @property
    def extended(self) -> set[str]:
        """Digests of the sources that a later commit continues."""
        return {
            source.extends
            for commit in self.commits
            for source in commit.sources
            if source.extends is not None
        }

    def batches(self) -> dict[Place, dict[str, Part]]:
        """Return the batches that count, by number of their commit and place in it.

        Neither those that compaction replaced, nor the unfinished end of a file that has
        grown since.
        """
        extended = self.extended
        gone = {place for commit in self.commits for place in commit.replaces}
        counted = {}
        for number, commit in enumerate(self.commits, start=1):
            for source in commit.sources:
                if source.sha256 in extended:
                    gone.update((number, at) for at in source.tail)
            for at, batch in enumerate(commit.batches):
                if (number, at) not in gone:
                    counted[(number, at)] = batch
        return counted

    def expired(self) -> list[dict[str, Part]]:
        """Return the batches whose rows were taken out for their age."""
        return [
            self.commits[number - 1].batches[at]
            for commit in self.commits
            if not commit.batches
            for number, at in commit.replaces
        ]

    def tails(self) -> set[Place]:
        """Return where the unfinished ends of files are; their growth will replace them."""
        return {
            (number, at)
            for number, commit in enumerate(self.commits, start=1)
            for source in commit.sources
            for at in source.tail
        }

    def sources(self) -> dict[str, Source]:
        """Return the sources by content digest."""
        return {each.sha256: each for commit in self.commits for each in commit.sources}


class Unsure(StoreError):  # noqa: N818 - the user sees a StoreError
    """A commit may or may not have been made: its parts must stay."""


def is_store(root: Shelf) -> bool:
    """Tell whether a place holds a store's log."""
    return root.has(_name(0))


def create(root: Shelf, *, n_buckets: int) -> None:
    """Make a store; a store that another process makes at the same time is left alone."""
    body = {"format": FORMAT, "version": VERSION, "buckets": n_buckets}
    try:
        root.prepare(FOLDER)
        _put(root, 0, json.dumps(body, sort_keys=True))
    except Taken:
        pass
    except OSError as error:
        raise StoreError(
            f"no store can be made at {root}: {error.strerror or error}; "
            "check its rights, or choose another folder"
        ) from error


def read(root: Shelf, *, since: Snapshot | None = None, until: int | None = None) -> Snapshot:
    """Read the log behind a snapshot, or up to a number, and check its chain of digests."""
    number = 0 if since is None else since.number + 1
    commits: list[Commit] = [] if since is None else list(since.commits)
    n_buckets = 0 if since is None else since.n_buckets
    digest = "" if since is None else since.digest
    try:
        entries = list(root.entries(FOLDER))
    except OSError as error:
        raise StoreError(
            f"{root} cannot be read as a store: {error.strerror or error}; check the path"
        ) from error
    last = _newest(entries, _SUFFIX)
    _check_seals(root, entries, last)
    for at in range(number, (last if until is None else until) + 1):
        body, own = _read_entry(root, _name(at))
        if at == 0:
            n_buckets = _read_head(root, body)
        else:
            if body.get("previous") != digest:
                raise StoreError(
                    f"{root}/{_name(at)} does not continue the commit before it: the "
                    "log was altered; restore the folder from a copy, or ingest into a new store"
                )
            commits.append(_decode(body))
        digest = own
    if n_buckets == 0:
        raise StoreError(f"{root} holds no store; `tracelab ingest SRC --store DIR` makes one")
    return Snapshot(n_buckets, tuple(commits), digest)


def append(root: Shelf, snapshot: Snapshot, commit: Commit) -> None:
    """Put a commit behind a snapshot.

    Raises
    ------
    Taken
        If another writer was faster; nothing was changed.
    Unsure
        If the log could not be written to the end, and the commit may stand all the same.
    StoreError
        If the log cannot be written; the commit is not there.
    """
    body = {"previous": snapshot.digest, **asdict(commit)}
    try:
        _put(root, snapshot.number + 1, json.dumps(body, sort_keys=True))
    except OSError as error:
        cannot = f"the store {root} cannot be written: {error.strerror or error}"
        try:
            landed = root.has(_name(snapshot.number + 1))
        except OSError:
            landed = True
        if landed:
            raise Unsure(
                f"{cannot}; whether the last commit was kept shows when the same ingest is made "
                "again, which adds only what is not there"
            ) from error
        raise StoreError(
            f"{cannot}; nothing of this commit was kept, ingest again when that is mended"
        ) from error
    # The commit is there, sealed or not: a seal that cannot be set costs only what it is for.
    with contextlib.suppress(OSError, Taken):
        root.create(_name(snapshot.number + 1, _SEAL), b"")


_SUFFIX: Final = ".json"
_SEAL: Final = ".seal"


def _newest(entries: list[Entry], suffix: str) -> int:
    names = (each.name.removeprefix(f"{FOLDER}/") for each in entries)
    return max((int(name[:_DIGITS]) for name in names if name.endswith(suffix)), default=-1)


def _check_seals(root: Shelf, entries: list[Entry], last: int) -> None:
    """Raise where a seal was altered, or tells of a commit behind the last that is there."""
    for each in entries:
        if each.name.endswith(_SEAL) and each.size:
            raise StoreError(f"{root}/{each.name} is damaged: seals are empty; remove it")
    sealed = _newest(entries, _SEAL)
    # While the folder was listed both may have been made, and only the later one seen.
    if sealed > last and not root.has(_name(sealed)):
        raise StoreError(
            f"{root}/{_name(sealed)} is missing: the log ends before a commit that was made; "
            "restore it from a copy, or ingest into a new store"
        )


def _name(number: int, suffix: str = _SUFFIX) -> str:
    return f"{FOLDER}/{number:0{_DIGITS}d}{suffix}"


def _put(root: Shelf, number: int, body: str) -> None:
    data = body.encode()
    root.create(_name(number), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def _read_entry(root: Shelf, name: str) -> tuple[dict[str, Any], str]:
    path = f"{root}/{name}"
    try:
        data = bytes(root.read(name))
    except FileNotFoundError:
        raise StoreError(
            f"{path} is missing: the store's log has a gap; restore it from a copy, or ingest "
            "into a new store"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    head, _, body = data.partition(b"\n")
    digest = hashlib.sha256(body).hexdigest()
    if head != digest.encode():
        state = "empty" if not data else "damaged"
        raise StoreError(
            f"{path} is {state}: its digest does not match; restore it from a copy, or ingest "
            "into a new store"
        )
    return json.loads(body), digest


def _read_head(root: Shelf, body: dict[str, Any]) -> int:
    if body.get("format") != FORMAT or body.get("version") != VERSION:
        raise StoreError(
            f"{root} is a store of format {body.get('format')} {body.get('version')}; this "
            f"tracelab reads {FORMAT} {VERSION}: use the version that wrote it"
        )
    return int(body["buckets"])


def _decode(body: dict[str, Any]) -> Commit:
    return Commit(
        batches=tuple(
            {table: decode_part(part) for table, part in batch.items()} for batch in body["batches"]
        ),
        sources=tuple(
            Source(**{**source, "tail": tuple(source["tail"])}) for source in body["sources"]
        ),
        replaces=tuple((number, at) for number, at in body["replaces"]),
    )


def decode_part(part: dict[str, Any]) -> Part:
    """Make a part of its JSON form."""
    groups = tuple(Group(**group) for group in part["groups"])
    return Part(**{**part, "groups": groups})
