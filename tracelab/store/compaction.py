"""Small parts into larger ones, and files that nobody needs out of the way."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from tracelab.exceptions import StoreError
from tracelab.io import gather
from tracelab.io.chunk import Chunk
from tracelab.store import log
from tracelab.store.intake import discard
from tracelab.store.log import Commit, Part, Place, Snapshot
from tracelab.store.parts import STORED, read_parts, write_batch
from tracelab.store.shelves import Shelf

_SMALL_ROWS: Final = 50_000
"""Batches below this are merged: a bucket of 32 has fewer than 2,000 rows in them."""

_MERGED_ROWS: Final = 200_000
"""Rows of a merged batch: what an ingest of a large file writes, too."""


def merge_batches(root: Shelf, snapshot: Snapshot) -> tuple[Snapshot, int]:
    """Merge small batches, one commit per merged batch.

    Parameters
    ----------
    root : Shelf
        The store.
    snapshot : Snapshot
        Its newest state.

    Returns
    -------
    snapshot : Snapshot
        The state afterwards.
    merged : int
        Batches that were merged.

    Raises
    ------
    StoreError
        If the store cannot be written or a part is damaged.
    """
    merged = 0
    for group in list(_groups(snapshot)):
        batch = _merged(root, snapshot, group)
        commit = Commit((batch,), (), tuple(group))
        while True:
            try:
                log.append(root, snapshot, commit)
            except log.Taken:
                snapshot = log.read(root, since=snapshot)
                if not set(group) <= set(snapshot.batches()):
                    # Another compaction was here, or a file has grown past its torn end.
                    discard(root, (batch,))
                    return snapshot, merged
                continue
            except log.Unsure:
                raise
            except StoreError:
                discard(root, (batch,))
                raise
            break
        snapshot = log.read(root, since=snapshot)
        merged += len(group)
    return snapshot, merged


def _groups(snapshot: Snapshot) -> Iterator[list[Place]]:
    tails = snapshot.tails()
    group: list[Place] = []
    rows = 0
    for place, batch in snapshot.batches().items():
        size = sum(part.rows for table, part in batch.items() if table != "rejects")
        if place in tails or size >= _SMALL_ROWS:
            continue
        group.append(place)
        rows += size
        if rows >= _MERGED_ROWS:
            yield group
            group, rows = [], 0
    if len(group) > 1:
        yield group


def _merged(root: Shelf, snapshot: Snapshot, group: list[Place]) -> dict[str, Part]:
    batches = snapshot.batches()
    return write_batch(
        root, gather(_chunk(root, batches[place]) for place in group), snapshot.n_buckets
    )


def _chunk(root: Shelf, batch: dict[str, Part]) -> Chunk:
    tables: dict[str, Any] = {
        table: read_parts(root, [batch[table]], table=table) for table in STORED if table in batch
    }
    return Chunk(**tables)


def remove_unused(root: Shelf, snapshot: Snapshot, *, older_than_s: float) -> tuple[int, int]:
    """Remove parts that no longer count, or that a killed ingest left.

    Parameters
    ----------
    root : Shelf
        The store.
    snapshot : Snapshot
        Its newest state.
    older_than_s : float
        Files younger than this stay.

    Returns
    -------
    files, size : int
        What was removed.

    Raises
    ------
    Nothing: a file that cannot be removed stays for the next time.
    """
    needed = {part.path for batch in snapshot.batches().values() for part in batch.values()}
    before = time.time() - older_than_s
    files = size = 0
    for table in (*STORED, log.FOLDER):
        suffix = ".parquet" if table in STORED else ".tmp"
        with suppress(OSError):
            for each in root.entries(table):
                if not each.name.endswith(suffix) or each.name in needed or each.modified > before:
                    continue
                root.remove(each.name)
                files, size = files + 1, size + each.size
    return files, size
