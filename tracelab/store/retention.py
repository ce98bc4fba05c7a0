"""Rows that are too old, out of the store; what was read and when stays on record."""

from tracelab.store import log
from tracelab.store.log import Commit, Part, Place, Snapshot
from tracelab.store.parts import start_times
from tracelab.store.shelves import Shelf

Batch = dict[str, Part]


def expire_batches(root: Shelf, snapshot: Snapshot, *, before: int) -> tuple[Snapshot, list[Batch]]:
    """Take the batches out whose spans all start before a time, in one commit.

    Parameters
    ----------
    root : Shelf
        The store.
    snapshot : Snapshot
        Its newest state.
    before : int
        Nanoseconds since 1970.

    Returns
    -------
    snapshot : Snapshot
        The state afterwards.
    expired : list of dict of str to Part
        The batches. Those without spans, or with the unfinished end of a file, stay.

    Raises
    ------
    StoreError
        If the store cannot be written or a part is damaged where this looks.
    """
    while expired := _expired(root, snapshot, before):
        try:
            log.append(root, snapshot, Commit(replaces=tuple(expired)))
        except log.Taken:
            snapshot = log.read(root, since=snapshot)
        else:
            return log.read(root, since=snapshot), list(expired.values())
    return snapshot, []


def _expired(root: Shelf, snapshot: Snapshot, before: int) -> dict[Place, Batch]:
    found = {}
    tails = snapshot.tails()
    for place, batch in snapshot.batches().items():
        if place in tails:
            continue
        times = start_times(root, batch)
        if times is not None and times[1] < before:
            found[place] = batch
    return found
