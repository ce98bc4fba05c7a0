"""Decode sources into parts, then commit them: each source whole, once."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import polars as pl

from tracelab import schema
from tracelab.cluster import Cluster, connected
from tracelab.exceptions import EmptySourceError, SourceError, StoreError
from tracelab.io import (
    SourceReader,
    gather,
    merge_accounting,
    skipped_chunk,
    split_streams,
)
from tracelab.io.chunk import Chunk
from tracelab.io.containers import Damage
from tracelab.io.decode import LiftedKeys, decode_block
from tracelab.io.isolation import FATAL, DecodeBlock, IsolatedDecoder, cause_of
from tracelab.io.source import reject_rows
from tracelab.io.together import SmallSources
from tracelab.store import log
from tracelab.store.log import Commit, Part, Snapshot, Source
from tracelab.store.parts import write_batch
from tracelab.store.plan import Job, Known, Piece, Plan, plan_ingest
from tracelab.store.shelves import Shelf, open_shelf
from tracelab.workers import Failure, Success, Workers, renew_time

_BATCH_ROWS: Final = 320_000
_BATCH_BYTES: Final = 320 << 20
"""What a process holds before it writes a part: this, some copies, and one block."""

_IN_PROCESS_BYTES: Final = 24 << 20
"""Below this, starting workers (0.4 s each) costs more than they save."""

Progress = Callable[[str], object]


@dataclass(slots=True)
class Decoded:
    """What a task hands back: parts that stand on disk, and the account of each piece.

    `tails` holds the batch of each source's unfinished end.
    """

    batches: list[dict[str, Part]]
    accounts: list["Account"]
    tails: dict[str, int]


@dataclass(slots=True)
class Account:
    """The account of one piece.

    Parameters
    ----------
    source : str
        Its name.
    row : dict or None
        Accounting row; None for a file that is no export.
    is_tail : bool
        Whether the piece is a file's unfinished end.
    """

    source: str
    row: dict[str, Any] | None
    is_tail: bool = False


def ingest_sources(
    root: Shelf,
    snapshot: Snapshot,
    paths: Iterable[str | os.PathLike[str] | BinaryIO],
    *,
    keys: LiftedKeys | None,
    engine: Any,
    workers: int | None,
    progress: Progress,
) -> tuple[Snapshot, pl.DataFrame]:
    """Append sources to a store; see `TraceStore.ingest`."""
    paths = list(paths)
    named, streams = split_streams(paths)
    piped = [each for each in named if each == "-"]
    named = [each for each in named if each != "-"]
    rows: list[pl.DataFrame] = []
    for stream in (*piped, *streams):
        snapshot, row = _ingest_stream(root, snapshot, stream, keys)
        rows.append(row)
    with (
        connected(engine, workers=workers, progress=progress) as cluster,
        _Crew(cluster, workers) as crew,
    ):
        if _sizes(named) >= _IN_PROCESS_BYTES:
            crew.start()
        while named:
            plan = plan_ingest(named, snapshot, workers=crew.count)
            rows += [
                _status(_present_row(each, snapshot), "already there") for each in plan.present
            ]
            again: list[str] = []
            pool = crew.workers(plan) if plan.jobs else None
            for job, decoded in _decoded(root, snapshot, plan.jobs, keys, pool):
                progress(f"committing {len(job.sources)} source{'s'[: len(job.sources) > 1]}")
                snapshot, job_rows = _commit(root, snapshot, job, decoded)
                if job_rows is None:
                    again += [known.path for known in job.sources]
                else:
                    rows += job_rows
            named = list(again)
    return snapshot, _table(rows, paths)


class _Crew:
    """The processes that decode, if there is enough to do for them."""

    def __init__(self, cluster: Cluster | None, workers: int | None) -> None:
        self._cluster = cluster
        self._asked_for = workers is not None
        self._pool: Workers | None = None
        self.count = cluster.processes if cluster else workers or os.cpu_count() or 1
        if cluster is None and self.count > 1:
            # A second try is made with more care, not by the same way.
            self._pool = Workers(self.count, retries=0, threads=1, limited=True, preload=__name__)

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def start(self) -> None:
        """Let them import while the plan is made."""
        if self._pool is not None:
            self._pool.start()

    def workers(self, plan: Plan) -> Workers | Cluster | None:
        """Return the processes; None if this one shall decode."""
        if self._cluster is not None:
            return self._cluster
        few = not self._asked_for and plan.total_bytes < _IN_PROCESS_BYTES
        return None if few else self._pool


def _sizes(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Return about how many bytes there are; globs and folders are looked at by the plan."""
    total = 0
    for path in paths:
        with suppress(OSError):
            total += Path(path).stat().st_size
    return total


def decode_task(
    root: str,
    n_buckets: int,
    pieces: tuple[Piece, ...],
    keys: LiftedKeys | None,
    decode: DecodeBlock = decode_block,
) -> Decoded:
    """Decode pieces into parts; runs in a worker."""
    shelf = open_shelf(root)
    task = _Writing(shelf, n_buckets, keys, decode)
    try:
        for piece in pieces:
            task.take(piece)
        task.finish()
    except BaseException:
        discard(open_shelf(root), task.decoded.batches)
        raise
    return task.decoded


def decode_with_care(
    root: str,
    n_buckets: int,
    pieces: tuple[Piece, ...],
    keys: LiftedKeys | None,
    decode: DecodeBlock = decode_block,
) -> Decoded:
    """Decode pieces that a worker died of; only the messages that do it are left out."""
    with IsolatedDecoder(decode) as isolated:
        return decode_task(root, n_buckets, pieces, keys, isolated)


class _Writing:
    """Decodes the pieces of a task, and writes what has piled up."""

    def __init__(
        self, root: Shelf, n_buckets: int, keys: LiftedKeys | None, decode: DecodeBlock
    ) -> None:
        self.decoded = Decoded([], [], {})
        self._root, self._n_buckets = root, n_buckets
        self._keys, self._decode = keys, decode
        self._pending: list[Chunk] = []
        # With care, each message is decoded so that its own failure costs no other.
        self._small = SmallSources(keys) if decode is decode_block else None
        self._waiting: list[tuple[Piece, SourceReader]] = []

    def take(self, piece: Piece) -> None:
        """Decode a piece, or put it aside to be decoded with others."""
        if piece.is_tail:
            self.finish()
        reader = SourceReader(
            piece.path, name=piece.name, keys=self._keys, part=piece.part, decode=self._decode
        )
        together = None if piece.is_tail else self._small
        try:
            chunks = together.add(reader) if together else reader.chunks()
            self._keep(chunks, whole=piece.is_tail)
        except SourceError as error:
            if piece.asked_for:
                raise
            self._pending.append(skipped_chunk(piece.name, error))
            self.decoded.accounts.append(Account(piece.name, None))
            return
        self._waiting.append((piece, reader))
        if piece.is_tail:
            before = len(self.decoded.batches)
            self.finish()
            if len(self.decoded.batches) > before:
                self.decoded.tails[piece.name] = before

    def finish(self) -> None:
        """Write what there is, and account for it."""
        if self._small is not None:
            self._keep(self._small.flush())
        for piece, reader in self._waiting:
            row = reader.accounting().to_dicts()[0]
            self.decoded.accounts.append(Account(piece.name, row, piece.is_tail))
        self._waiting = []
        self._write()

    def _keep(self, chunks: Iterable[Chunk], *, whole: bool = False) -> None:
        for chunk in chunks:
            renew_time()
            self._pending.append(chunk)
            if not whole and _is_full(self._pending):
                self._write()

    def _write(self) -> None:
        if self._pending:
            _flush(self._root, self._n_buckets, self.decoded, self._pending)


def _is_full(chunks: list[Chunk]) -> bool:
    rows = sum(each.spans.height + each.logs.height + each.metrics.height for each in chunks)
    if rows >= _BATCH_ROWS:
        return True
    size = sum(
        getattr(each, table).estimated_size()
        for each in chunks
        for table in ("spans", "events", "links", "logs", "metrics")
    )
    return bool(size >= _BATCH_BYTES)


def _flush(root: Shelf, n_buckets: int, decoded: Decoded, chunks: list[Chunk]) -> None:
    gathered = gather(chunks)
    chunks.clear()  # so that they do not stand beside what is written of them
    batch = write_batch(root, gathered, n_buckets)
    if batch:
        decoded.batches.append(batch)


def discard(root: Shelf, batches: Iterable[dict[str, Part]]) -> None:
    """Remove parts that no commit names."""
    for batch in batches:
        for part in batch.values():
            with suppress(OSError):
                root.remove(part.path)


def _decoded(
    root: Shelf,
    snapshot: Snapshot,
    jobs: list[Job],
    keys: LiftedKeys | None,
    pool: Workers | Cluster | None,
) -> Iterator[tuple[Job, list[Decoded]]]:
    """Yield each job when its last task is done."""
    if pool is None:
        for job in jobs:
            yield (
                job,
                [decode_task(root.place, snapshot.n_buckets, task, keys) for task in job.tasks],
            )
        return
    tasks: list[_Task] = [
        (root.place, snapshot.n_buckets, task, keys, decode_block)
        for job in jobs
        for task in job.tasks
    ]
    owner = [number for number, job in enumerate(jobs) for _ in job.tasks]
    finished: dict[int, list[Decoded]] = {}
    try:
        for task, done in _outcomes(root, pool, tasks):
            number = owner[task]
            finished.setdefault(number, []).append(done)
            if len(finished[number]) == len(jobs[number].tasks):
                yield jobs[number], finished.pop(number)
    finally:
        for unfinished in finished.values():
            for each in unfinished:
                discard(root, each.batches)


_Task = tuple[str, int, tuple[Piece, ...], LiftedKeys | None, DecodeBlock]


def _outcomes(
    root: Shelf, pool: Workers | Cluster, tasks: list[_Task]
) -> Iterator[tuple[int, Decoded]]:
    """Yield what came of each task; those that a worker died of are done again with care."""
    fatal: list[int] = []
    for outcome in pool.run(decode_task, tasks):
        if isinstance(outcome, Success):
            yield outcome.task, outcome.value
        elif isinstance(outcome, Failure) and not isinstance(outcome.error, FATAL):
            raise outcome.error
        else:
            fatal.append(outcome.task)
    for outcome in pool.run(decode_with_care, [tasks[number] for number in fatal]):
        number = fatal[outcome.task]
        if isinstance(outcome, Success):
            yield number, outcome.value
        elif isinstance(outcome, Failure) and not isinstance(outcome.error, FATAL):
            raise outcome.error
        else:
            yield number, _left_out(root, tasks[number], cause_of(outcome))


def _left_out(root: Shelf, task: _Task, reason: str) -> Decoded:
    """Account for pieces that cannot be read even with care: not by what they say, but where."""
    _, n_buckets, pieces, _, _ = task
    decoded = Decoded([], [], {})
    for piece in pieces:
        start = piece.part.start if piece.part else 0
        size = piece.part.end - start if piece.part else Path(piece.path).stat().st_size
        damage = Damage(start, f"{size} bytes were left out: their reader {reason}")
        _flush(root, n_buckets, decoded, [Chunk(rejects=reject_rows(piece.name, [damage]))])
        row = dict.fromkeys((name for name in schema.INGEST if name not in _NAMES), 0)
        row.update(bytes=size, messages=1, messages_rejected=1, rejects=1)
        names = {"source": piece.name, "sha256": None, "form": "unknown", "compression": "unknown"}
        decoded.accounts.append(Account(piece.name, {**names, **row}, piece.is_tail))
        if piece.is_tail:
            decoded.tails[piece.name] = len(decoded.batches) - 1
    return decoded


_NAMES: Final = ("source", "sha256", "form", "compression")


def _commit(
    root: Shelf, snapshot: Snapshot, job: Job, decoded: list[Decoded]
) -> tuple[Snapshot, list[pl.DataFrame] | None]:
    """Commit a job; None instead of rows if another writer came first with its sources."""
    batches = tuple(batch for each in decoded for batch in each.batches)
    sources = tuple(_source(known, decoded) for known in job.sources)
    while True:
        try:
            log.append(root, snapshot, Commit(batches, sources))
        except log.Taken:
            before = snapshot.number
            snapshot = log.read(root, since=snapshot)
            if _overtaken(sources, snapshot.commits[before:]):
                discard(root, batches)
                return snapshot, None
            continue
        except log.Unsure:
            raise
        except StoreError:
            discard(root, batches)
            raise
        break
    snapshot = log.read(root, since=snapshot)
    rows = [
        _status(_row(source.row), "grown" if source.extends else "new")
        for source in sources
        if source.row
    ]
    return snapshot, rows


def _overtaken(sources: tuple[Source, ...], commits: tuple[Commit, ...]) -> bool:
    theirs = [source for commit in commits for source in commit.sources]
    contents = {source.sha256 for source in theirs}
    extended = {source.extends for source in theirs if source.extends}
    return any(source.sha256 in contents or source.extends in extended for source in sources)


def _source(known: Known, decoded: list[Decoded]) -> Source:
    accounts = [each for part in decoded for each in part.accounts if each.source == known.path]
    told = [_row(account.row) for account in accounts if account.row is not None]
    if not told:
        return Source(known.sha256, known.size)
    if known.layout is None:
        # The file may have changed between planning and reading: what was read counts.
        row = told[0].to_dicts()[0]
        row["sha256"] = row["sha256"] or known.sha256
        return Source(row["sha256"], int(row["bytes"]), row)
    tails: list[int] = []
    base = 0
    for part in decoded:
        if known.path in part.tails:
            tails.append(base + part.tails[known.path])
        base += len(part.batches)
    return Source(
        sha256=known.sha256,
        size=known.size,
        row=merge_accounting(told, sha256=known.sha256).to_dicts()[0],
        layout=known.layout,
        resume_at=known.tail_at,
        tail=tuple(tails),
        tail_row=next((each.row for each in accounts if each.is_tail and each.row), {}),
        extends=known.extends.sha256 if known.extends else None,
    )


def _ingest_stream(
    root: Shelf, snapshot: Snapshot, stream: Any, keys: LiftedKeys | None
) -> tuple[Snapshot, pl.DataFrame]:
    """Read a stream once; whether it is there already shows at its end."""
    decoded = Decoded([], [], {})
    reader = SourceReader(stream, keys=keys)
    pending: list[Chunk] = []
    try:
        for chunk in reader.chunks():
            pending.append(chunk)
            if _is_full(pending):
                _flush(root, snapshot.n_buckets, decoded, pending)
                pending = []
        _flush(root, snapshot.n_buckets, decoded, pending)
    except BaseException:
        discard(root, decoded.batches)
        raise
    row = reader.accounting()
    source = Source(row["sha256"][0], row["bytes"][0], row.to_dicts()[0])
    batches = tuple(decoded.batches)
    while True:
        if source.sha256 in snapshot.sources():
            discard(root, batches)
            return snapshot, _status(row, "already there")
        try:
            log.append(root, snapshot, Commit(batches, (source,)))
        except log.Taken:
            snapshot = log.read(root, since=snapshot)
        except log.Unsure:
            raise
        except StoreError:
            discard(root, batches)
            raise
        else:
            return log.read(root, since=snapshot), _status(row, "new")


def _row(row: dict[str, Any] | None) -> pl.DataFrame:
    return pl.DataFrame([row or {}], schema=schema.INGEST)


def _present_row(known: Known, snapshot: Snapshot) -> pl.DataFrame:
    source = snapshot.sources().get(known.sha256)
    row = _row(source.row) if source and source.row else _row(None)
    return row.with_columns(
        pl.lit(known.path).alias("source"), pl.lit(known.sha256).alias("sha256")
    )


def _status(row: pl.DataFrame, status: str) -> pl.DataFrame:
    return row.select(pl.lit(status).alias("status"), *schema.INGEST.names())


def _table(rows: list[pl.DataFrame], paths: list[Any]) -> pl.DataFrame:
    if not rows:
        names = ", ".join(str(path) for path in paths)
        raise EmptySourceError(f"no export in {names}; name files, folders or globs of exports")
    return pl.concat(rows).sort("source", maintain_order=True)
