"""Mutants of a store's files: each is named, and none is read as other rows.

The store is a small one, held in memory behind the operations that a folder has, so that a mutant
costs what reading the log or a part costs. Its log is read, its parts are checked and read by the
code that every store goes through. A part of the mutants is read as a forger would have it, with
digests that fit: that is beyond the promise, but nothing may die of it.
"""

import hashlib
from dataclasses import replace

from exports import framed, log_request, metric_request
from mutations import spoil_bytes, trace_request_by_chance

from tracelab.exceptions import StoreError
from tracelab.store import TraceStore, log
from tracelab.store.parts import _frame_digest, is_sound, read_parts
from tracelab.store.shelves import Buffered, Entry, Shelf


class Memory(Shelf):
    """A shelf of files in memory."""

    def __init__(self, files):
        self.files = files
        self.url = self.place = "memory"

    def prepare(self, *folders):
        """Nothing to do."""

    def put(self, name, data):
        """Write a file."""
        self.files[name] = bytes(data)

    create = put

    def read(self, name):
        """Return a file."""
        try:
            return self.files[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def view(self, name, size, pieces):
        """Return a file whole."""
        return Buffered(self.read(name))

    def entries(self, folder):
        """List a folder."""
        for name, data in self.files.items():
            if name.startswith(f"{folder}/"):
                yield Entry(name, len(data), 0.0)

    def remove(self, name):
        """Remove a file."""
        self.files.pop(name, None)


def make_store(rng, scratch):
    """Make a store of three commits in a folder; return its files by name."""
    place = scratch / "store"
    for number in range(3):
        export = scratch / f"export-{number}.pb"
        bodies = [trace_request_by_chance(rng).SerializeToString() for _ in range(2 + 3 * number)]
        bodies += [each.SerializeToString() for each in (log_request(n=2), metric_request())]
        export.write_bytes(framed(bodies))
        TraceStore(place, buckets=2).ingest(export, workers=1)
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.stat().st_size
    }


class StoreMutants:
    """Judges mutants of the files of one store.

    Parameters
    ----------
    files : dict of str to bytes
        A sound store.
    """

    def __init__(self, files):
        self.files = files
        self.names = sorted(files)
        self.shelf = Memory(dict(files))
        self.snapshot = log.read(self.shelf)
        self.parts = {
            part.path: (table, part)
            for batch in self.snapshot.batches().values()
            for table, part in batch.items()
        }
        self.rows = {
            (path, bucket): read_parts(self.shelf, [part], table=table, bucket=bucket)
            for path, (table, part) in self.parts.items()
            for bucket in (None, 0, 1)
            if bucket is None or table in ("spans", "events", "links", "logs")
        }

    def judge(self, rng):
        """Alter one file, look, put it back; return what kind of file it was."""
        name = rng.choice(self.names)
        sound = self.files[name]
        altered = sound
        while altered == sound:
            altered = _bit(rng, sound) if rng.random() < 0.3 else spoil_bytes(rng, sound)
            if rng.random() < 0.03:
                altered = rng.choice((b"", bytes(len(sound)), sound[: len(sound) // 2]))
        self.shelf.files[name] = altered
        try:
            if name not in self.parts:
                return self._judge_log(name)
            if rng.random() < 0.25:
                return self._judge_forged(rng, name, altered)
            return self._judge_part(rng, name)
        finally:
            self.shelf.files[name] = sound

    def _judge_log(self, name):
        problem = _problem(lambda: log.read(self.shelf))
        assert name in problem, f"{name} is not named: {problem or 'it is read all the same'}"
        return "store: log"

    def _judge_part(self, rng, name):
        table, part = self.parts[name]
        assert not is_sound(self.shelf, part), f"{name} is called sound"
        bucket = rng.choice((None, 0, 1)) if (name, 0) in self.rows else None
        rows = []
        problem = _problem(
            lambda: rows.append(read_parts(self.shelf, [part], table=table, bucket=bucket))
        )
        if rows:
            assert bucket is not None, f"{name} is read all the same"
            assert rows[0].equals(self.rows[name, bucket]), f"{name} reads otherwise"
        else:
            assert name in problem, f"{name} is not named: {problem}"
        return "store: part"

    def _judge_forged(self, rng, name, altered):
        """Read a part whose digests were made to fit its altered bytes."""
        table, part = self.parts[name]
        groups = tuple(
            replace(group, sha256=hashlib.sha256(altered[group.start : group.end]).hexdigest())
            for group in part.groups
        )
        forged = replace(
            part,
            size=len(altered),
            sha256=hashlib.sha256(altered).hexdigest(),
            groups=groups,
            frame_sha256=_frame_digest(memoryview(altered), groups),
        )
        _problem(lambda: read_parts(self.shelf, [forged], table=table))
        return "store: forged part"


def _problem(do):
    """Return what a StoreError says, or nothing where there is none."""
    try:
        do()
    except StoreError as error:
        return str(error)
    return ""


def _bit(rng, data):
    place = rng.randrange(len(data) * 8)
    altered = bytearray(data)
    altered[place // 8] ^= 1 << place % 8
    return bytes(altered)
