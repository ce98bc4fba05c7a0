"""The store: a folder of Parquet parts and a log, opened as of one commit."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, BinaryIO, Final

import polars as pl

from tracelab import html, schema
from tracelab.exceptions import ParameterError, StoreError, UnknownTraceError
from tracelab.io import finalise, lifted_keys, split_traces
from tracelab.io.chunk import ROW, Chunk
from tracelab.store import log
from tracelab.store.accounts import resolved_accounts
from tracelab.store.compaction import merge_batches, remove_unused
from tracelab.store.intake import Progress, ingest_sources
from tracelab.store.log import Part, Snapshot
from tracelab.store.parts import (
    ROW_BITS,
    STORED,
    batches_of,
    bucket_of,
    is_sound,
    read_parts,
    rows_in,
)
from tracelab.store.pieces import TRACE_KEY, part_batches, whole_traces
from tracelab.store.retention import expire_batches
from tracelab.store.shelves import Folder, Shelf, open_shelf
from tracelab.store.window import Window, find_window
from tracelab.traceset import TABLES, Moment, TraceSet, time_range

DEFAULT_BUCKETS: Final = 32
"""At 100 million spans a bucket of 32 holds 3 million: a few GB while it is read."""

_IDS: Final = ("trace_id", "span_id")
_OF_BUCKETS: Final = ("spans", "events", "links", "logs", "metrics")
_NOTHING: Final = {name: schema.empty(TABLES[name]) for name in _OF_BUCKETS}
_NO_LIMIT: Final = 1 << 62


class TraceStore:
    """A capture on disk, in buckets of whole traces; append-only.

    What this object reads is the store as it was when it was opened, or after its own last
    `ingest`; `refresh` moves on.

    Parameters
    ----------
    path : str or Path
        A folder, or a URL such as ``s3://bucket/prefix`` (needs obstore; endpoint and
        credentials from the environment); a store is made there if there is none.
    buckets : int, optional
        Buckets of a store that is made; 32 if left out.

    Raises
    ------
    StoreError
        If the store cannot be made, is of another version, or its log is damaged.
    ParameterError
        If `buckets` is out of its range, or not what the store was made with.
    """

    def __init__(self, path: str | os.PathLike[str], *, buckets: int | None = None) -> None:
        if buckets is not None and not 1 <= buckets <= 4096:
            raise ParameterError(f"buckets={buckets}: must be from 1 to 4096")
        self._root = open_shelf(path)
        try:
            there = log.is_store(self._root)
        except OSError as error:
            place = "" if str(self._root) in str(error) else f"{self._root} cannot be read: "
            raise StoreError(f"{place}{error}") from error
        if not there:
            log.create(self._root, n_buckets=buckets or DEFAULT_BUCKETS)
        self._snapshot = log.read(self._root)
        self._window: Window | None = None
        if buckets is not None and buckets != self.n_buckets:
            raise ParameterError(
                f"{self._root} was made with {self.n_buckets} buckets, which cannot change; "
                "leave buckets out"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_at, (self._root.place, self._snapshot.number, self._window)

    @staticmethod
    def is_store(path: str | os.PathLike[str]) -> bool:
        """Tell whether a folder or a prefix of an object store holds a store.

        Parameters
        ----------
        path : str or path-like
            The place; of a folder anything that cannot be read is no store.

        Returns
        -------
        bool
            Whether there is one.

        Raises
        ------
        StoreError
            If an object store cannot be asked.
        """
        with suppress(ValueError):
            shelf = open_shelf(path)
            try:
                return log.is_store(shelf)
            except OSError as error:
                if not isinstance(shelf, Folder):
                    raise StoreError(str(error)) from error
        return False

    @property
    def path(self) -> str:
        """Folder or URL of the store."""
        return self._root.url

    @property
    def n_buckets(self) -> int:
        """Number of buckets of traces, fixed when the store was made."""
        return self._snapshot.n_buckets

    def between(
        self, start: Moment | None = None, end: Moment | None = None, *, margin: str = "1h"
    ) -> "TraceStore":
        """Return the store as if it held only the traces that begin in a span of time.

        Parts whose spans all lie elsewhere are not read. The account of the sources and the
        rejects are those of the whole store.

        Parameters
        ----------
        start, end : datetime, str or int, optional
            From `start` on, before `end`; text in ISO 8601, UTC if no zone is told, or
            nanoseconds since 1970. Open if left out.
        margin : str
            How far before and after the rest of such a trace is looked for: more than the
            longest trace takes. What lies further away is missing, and shows as a break.

        Returns
        -------
        TraceStore
            It can be read and investigated; ingest, compact, verify and accounts are those
            of the whole store alone.

        Raises
        ------
        ParameterError
            If one is no time, `end` is not after `start`, or `margin` is no duration.
        StoreError
            If a part is missing or damaged.
        """
        self._whole("between")
        first, last = time_range(start, end)
        window = find_window(
            self._root,
            self._snapshot.batches(),
            start=first,
            end=last,
            margin=int(_seconds(margin)) * 1_000_000_000,
        )
        return _as_of(self._root, self._snapshot, window)

    def _whole(self, what: str) -> None:
        if self._window is not None:
            raise ParameterError(
                f"{what} works on the whole store, not on a span of time of it; open it anew"
            )

    def refresh(self) -> "TraceStore":
        """Move on to the newest commit, and return the store itself."""
        self._whole("refresh")
        self._snapshot = log.read(self._root, since=self._snapshot)
        return self

    def ingest(
        self,
        *sources: str | os.PathLike[str] | BinaryIO,
        task_keys: Iterable[str] | None = None,
        tenant_keys: Iterable[str] | None = None,
        request_id_keys: Iterable[str] | None = None,
        engine: Any = "local",
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> pl.DataFrame:
        """Append exports, each content once.

        A source is committed whole or not at all, whatever happens; what was committed
        before an error stays, and the same call made again goes on from there.

        Parameters
        ----------
        *sources : str, Path or BinaryIO
            Files, folders, globs, ``-`` for standard input, or open binary streams.
        task_keys, tenant_keys, request_id_keys : Iterable[str], optional
            As for `read_traces`.
        engine : str or distributed.Client
            Where sources are decoded: ``"local"`` (processes of this machine), ``"dask"``,
            ``"tcp://host:port"``, a scheduler file, or a connected client. Workers on other
            machines need the sources, and a store that is a folder, under the same paths.
        workers : int, optional
            Processes that decode; one per core if left out. Small inputs are decoded in
            this process.
        progress : callable, optional
            Called with a line of text at each step.

        Returns
        -------
        pl.DataFrame
            ``status`` (new, grown, already there) and the columns of INGEST, one row per
            source. Duplicates are resolved when a bucket is read: here ``spans_kept`` equals
            ``spans_decoded``. The row of a grown source counts what was added.

        Raises
        ------
        SourceError
            If a path does not exist, or a named file is no export.
        StoreError
            If the store cannot be written.
        EngineError
            If the engine cannot be reached, or ended before its tasks; what was committed
            stays.
        """
        self._whole("ingest")
        if not sources:
            raise ParameterError("no source; pass files, folders, globs or -")
        if workers is not None and workers < 1:
            raise ParameterError(f"workers={workers}: must be at least 1")
        self.refresh()
        self._snapshot, accounting = ingest_sources(
            self._root,
            self._snapshot,
            sources,
            keys=lifted_keys(task=task_keys, tenant=tenant_keys, request_id=request_id_keys),
            engine=engine,
            workers=workers,
            progress=progress or (lambda step: None),
        )
        return accounting

    def buckets(self) -> range:
        """Return the numbers of all buckets; the last holds what belongs to no trace.

        That is metric points and log records without a trace id.
        """
        return range(self.n_buckets + 1)

    def buckets_of(self, trace_ids: pl.Series) -> pl.Series:
        """Tell in which bucket each of some traces lies, or would lie.

        Parameters
        ----------
        trace_ids : pl.Series
            Trace ids; null belongs to no trace.

        Returns
        -------
        pl.Series
            Numbers of `buckets()`.

        Raises
        ------
        SchemaError
            If the ids are no text.
        """
        return bucket_of(trace_ids, self.n_buckets)

    def read_bucket(
        self,
        number: int,
        *,
        columns: Sequence[str] | None = None,
        tables: Sequence[str] = _OF_BUCKETS,
    ) -> TraceSet:
        """Read one bucket, duplicates across sources resolved.

        Parameters
        ----------
        number : int
            One of `buckets()`.
        columns : sequence of str, optional
            Span columns that are needed; all if left out. The others come as nulls, except
            where duplicates had to be compared in full.
        tables : sequence of str
            Tables that are needed besides the spans, of events, links, logs, metrics.

        Returns
        -------
        TraceSet
            Whole traces, in the order and by the rules of `read_traces`; rejects and ingest
            stay empty (see `rejects` and `ingest_table`).

        Raises
        ------
        ParameterError
            If there is no such bucket, column or table.
        StoreError
            If a part is missing or a byte of it was altered.
        """
        return next(self.read_pieces(number, max_spans=_NO_LIMIT, columns=columns, tables=tables))

    def read_pieces(
        self,
        number: int,
        *,
        max_spans: int,
        columns: Sequence[str] | None = None,
        tables: Sequence[str] = _OF_BUCKETS,
    ) -> Iterator[TraceSet]:
        """Read one bucket in pieces of whole traces, one after the other.

        Parameters
        ----------
        number : int
            One of `buckets()`.
        max_spans : int
            About how many spans a piece may have; a single trace is never split.
        columns, tables : sequence of str
            As for `read_bucket`.

        Yields
        ------
        TraceSet
            As `read_bucket`; what belongs to no trace stands in the first.

        Raises
        ------
        ParameterError
            If there is no such bucket, column or table, or `max_spans` is less than 1.
        StoreError
            If a part is missing or a byte of it was altered.
        """
        if number not in self.buckets():
            raise ParameterError(f"no bucket {number}; the store has 0 to {self.n_buckets}")
        if max_spans < 1:
            raise ParameterError(f"max_spans={max_spans}: must be at least 1")
        _known(columns or (), schema.SPANS.names(), "column")
        _known(tables, _OF_BUCKETS, "table")
        for piece, distinct in self._pieces(number, max_spans, columns, tables):
            whole = self._inside(finalise(piece, distinct=distinct))
            yield whole.with_tables(
                **{name: _NOTHING[name] for name in _OF_BUCKETS if name not in ("spans", *tables)}
            )

    def read(self) -> TraceSet:
        """Read the whole store into memory.

        Returns
        -------
        TraceSet
            As if `read_traces` had read all its sources, with their accounting.

        Raises
        ------
        StoreError
            If a part is missing or a byte of it was altered.
        """
        chunk = self._chunk(None, None, _OF_BUCKETS)
        if self._window is None and not self._snapshot.expired():
            whole = finalise(chunk, ingest=self.ingest_table)
        else:
            whole = self._inside(finalise(chunk)).with_tables(ingest=self.ingest_table)
        return whole.with_tables(rejects=self.rejects)

    def trace(self, trace_id: str) -> TraceSet:
        """Read one trace, without the rest of the store.

        Parameters
        ----------
        trace_id : str
            A trace id; upper case and missing leading zeros are mended.

        Returns
        -------
        TraceSet
            Its spans, events, links and logs.

        Raises
        ------
        UnknownTraceError
            If no span carries this id.
        StoreError
            If a part is missing or a byte of it was altered.
        """
        for candidate in dict.fromkeys((trace_id, trace_id.lower().rjust(32, "0"))):
            found = self._read_traces([candidate])
            if found.spans.height:
                return found
        raise UnknownTraceError(
            f"no trace {html.plain(trace_id)} in the store {self._root}; ids are 32 hex digits, "
            "findings.json and report.html of an investigation name some"
        )

    def select_traces(self, trace_ids: Sequence[str]) -> TraceSet:
        """Read some traces, without the rest of the store.

        Parameters
        ----------
        trace_ids : sequence of str
            Trace ids; those that are not there are passed over.

        Returns
        -------
        TraceSet
            As `TraceSet.select_traces` of the whole store.

        Raises
        ------
        StoreError
            If a part is missing or a byte of it was altered.
        """
        return self._inside(self._read_traces(trace_ids))

    @property
    def ingest_table(self) -> pl.DataFrame:
        """One accounting row per source (INGEST), duplicates not yet resolved.

        What a growing file added over time is one row, under the digest of its newest state.
        """
        numbers = [name for name, dtype in schema.INGEST.items() if dtype == pl.Int64]
        extended = self._snapshot.extended
        rows = []
        for commit in self._snapshot.commits:
            for source in commit.sources:
                if source.row:
                    gone = source.tail_row if source.sha256 in extended else {}
                    counts = {name: source.row[name] - gone.get(name, 0) for name in numbers}
                    rows.append({**source.row, **counts})
        texts = ["sha256", "form", "compression"]
        return (
            pl.DataFrame(rows, schema=schema.INGEST)
            .group_by("source", maintain_order=True)
            .agg(pl.col(texts).last(), pl.col(numbers).sum())
            .select(schema.INGEST.names())
            .sort("source")
        )

    def accounts(self) -> pl.DataFrame:
        """Account for the sources with duplicates resolved across them; reads all buckets.

        Returns
        -------
        pl.DataFrame
            Schema INGEST, one row per source: ``spans_decoded = spans_kept +
            spans_duplicate``. `ingest_table` says at no cost what each source held by itself.

        Raises
        ------
        StoreError
            If a part is missing or a byte of it was altered, or rows have expired.
        """
        self._whole("accounts")
        if self._snapshot.expired():
            raise StoreError(
                f"rows of {self._root} have expired, so that its sources can no longer be "
                "counted; ingest_table says what each held"
            )
        return resolved_accounts(self)

    @property
    def rejects(self) -> pl.DataFrame:
        """All that could not be read (REJECTS), of all sources."""
        batches = self._snapshot.batches().values()
        parts = [batch["rejects"] for batch in batches if "rejects" in batch]
        return read_parts(self._root, parts, table="rejects").sort(
            "source", "offset", "line", "reason", "excerpt", maintain_order=True
        )

    def info(self) -> dict[str, Any]:
        """Return counts of what is in the store, without reading it.

        Returns
        -------
        dict
            ``path``, ``commits``, ``sources``, ``buckets``, ``parts``, ``bytes``, and
            the rows of each table, duplicates included.
        """
        parts = [part for batch in self._batches() for part in batch.items()]
        return {
            "path": str(self._root),
            "commits": self._snapshot.number,
            "sources": self.ingest_table.height,
            "buckets": self.n_buckets,
            "parts": len(parts),
            "bytes": sum(part.size for _, part in parts),
            **_rows(self._batches()),
        }

    def compact(self, *, keep: str = "1d") -> dict[str, int]:
        """Merge small parts, and remove files that no commit needs.

        Nothing that the store says changes: sources, rows and accounts stay. Others may read
        and ingest meanwhile.

        Parameters
        ----------
        keep : str
            How long a file that is no longer needed stays, for readers that opened the store
            before, and for ingests that have written it but not yet committed: more than the
            longest ingest of one source takes.

        Returns
        -------
        dict
            ``batches_merged``, ``files_removed`` and ``bytes_removed``.

        Raises
        ------
        StoreError
            If the store cannot be written, or a part is damaged.
        ParameterError
            If `keep` is no duration.
        """
        self._whole("compact")
        self.refresh()
        self._snapshot, merged = merge_batches(self._root, self._snapshot)
        files, size = remove_unused(self._root, self._snapshot, older_than_s=_seconds(keep))
        return {"batches_merged": merged, "files_removed": files, "bytes_removed": size}

    def expire(self, before: Moment) -> dict[str, int]:
        """Take old rows out, a batch of parts at a time.

        A batch goes when all its spans start before that time, with its events, links, logs,
        metric points and rejects. The sources stay on record: one that was ingested is not
        ingested again. The files go with the next `compact` after its ``keep``. Others may read
        and ingest meanwhile.

        Parameters
        ----------
        before : datetime, str or int
            Text in ISO 8601, UTC if no zone is told, or nanoseconds since 1970.

        Returns
        -------
        dict
            ``batches`` and rows of each table that were taken out.

        Raises
        ------
        ParameterError
            If `before` is no time.
        StoreError
            If the store cannot be written, or a part is damaged.
        """
        self._whole("expire")
        limit, _ = time_range(before, None)
        if limit is None:
            raise ParameterError("before=None: say from which time on rows stay")
        self.refresh()
        self._snapshot, gone = expire_batches(self._root, self._snapshot, before=limit)
        return {"batches": len(gone), **_rows(gone)}

    def verify(self) -> pl.DataFrame:
        """Check every byte of every part, and the sums of the log.

        The log itself was checked when it was read. Files that no commit names (replaced by
        `compact`, or left by an ingest that was killed) are never read, and not checked.

        Returns
        -------
        pl.DataFrame
            Columns ``path`` and ``problem``; no rows if the store is sound.

        Raises
        ------
        StoreError
            If the log cannot be read.
        """
        self._whole("verify")
        problems: list[tuple[str, str]] = []
        rows = _rows([*self._batches(), *self._snapshot.expired()])
        parts = [part for batch in self._batches() for part in batch.values()]
        problems += [
            (part.path, "missing, or not the bytes that were written")
            for part in parts
            if not is_sound(self._root, part)
        ]
        told = self.ingest_table
        for table, column in (("spans", "spans_decoded"), ("logs", "logs"), ("links", "links")):
            if rows[table] != told[column].sum():
                problems.append(
                    (table, f"{rows[table]} rows, but the sources account for {told[column].sum()}")
                )
        return pl.DataFrame(
            problems, schema={"path": pl.String, "problem": pl.String}, orient="row"
        )

    def __repr__(self) -> str:
        facts = self.info()
        counts = ", ".join(f"{facts[table]:,} {table}" for table in STORED)
        return "\n".join(
            (
                f"TraceStore({html.plain(facts['path'])}: {counts}; duplicates included)",
                f"  {facts['sources']:,} sources in {facts['commits']:,} commits, "
                f"{facts['buckets']} buckets, {facts['parts']:,} parts, "
                f"{facts['bytes'] / 1e6:,.1f} MB"
                + (", of which the traces of a span of time" if self._window else ""),
            )
        )

    def _repr_html_(self) -> str:
        facts = self.info()
        return html.table(list(facts), [list(facts.values())], caption="TraceStore")

    def _batches(self) -> list[dict[str, Part]]:
        window = self._window
        batches = self._snapshot.batches().items()
        return [batch for place, batch in batches if window is None or place in window.places]

    def _inside(self, traces: TraceSet) -> TraceSet:
        window = self._window
        return traces if window is None else traces.between(window.start, window.end)

    def _pieces(
        self, bucket: int, max_spans: int, columns: Sequence[str] | None, tables: Sequence[str]
    ) -> Iterator[tuple[Chunk, bool]]:
        """Read a bucket in pieces; with each goes whether no two of its spans have the same ids."""
        batches = self._batches()
        rows = [rows_in(batch["spans"], bucket) if "spans" in batch else 0 for batch in batches]
        if sum(rows) <= max_spans or bucket == self.n_buckets:
            chunk, distinct = self._needed(bucket, columns, tables)
            for piece in split_traces(chunk, max_spans):
                yield piece, distinct
            return
        ids = self._chunk(bucket, (*_IDS, ROW), ()).spans.select(*_IDS, ROW)
        names = _names(columns)
        distinct = not _repeated(ids)
        if names is None or not distinct:
            names, tables = None, _OF_BUCKETS
        last = [ids.select(TRACE_KEY.alias("trace"), batch=pl.col(ROW) // (1 << ROW_BITS))]
        del ids
        if "logs" in tables:
            last += [
                read_parts(
                    self._root, [batch["logs"]], table="logs", bucket=bucket, columns=["trace_id"]
                ).select(TRACE_KEY.alias("trace"), batch=pl.lit(number, pl.UInt64))
                for number, batch in enumerate(batches)
                if "logs" in batch
            ]
        for piece in whole_traces(
            lambda some: self._chunk(bucket, names, tables, some),
            part_batches(rows, max_spans),
            pl.concat(last).group_by("trace").agg(pl.col("batch").max()),
            max_spans,
        ):
            yield piece, distinct

    def _needed(
        self, bucket: int, columns: Sequence[str] | None, tables: Sequence[str]
    ) -> tuple[Chunk, bool]:
        names = _names(columns)
        if names is not None:
            chunk = self._chunk(bucket, names, tables)
            if not _repeated(chunk.spans):
                return chunk, True
        return self._chunk(bucket, None, _OF_BUCKETS), False

    def _chunk(
        self,
        bucket: int | None,
        columns: Sequence[str] | None,
        tables: Sequence[str],
        some: range | None = None,
    ) -> Chunk:
        """Read rows of a bucket, or of all; of some batches, or of all."""
        batches = self._batches()
        if some is not None:
            batches = batches[some.start : some.stop]
        found: dict[str, Any] = {}
        for table in dict.fromkeys(("spans", *tables)):
            if any(table in batch for batch in batches):
                # A part that is missing in a batch keeps its place, for the rows' numbers.
                found[table] = read_parts(
                    self._root,
                    [batch.get(table, _NO_ROWS) for batch in batches],
                    table=table,
                    bucket=bucket,
                    columns=columns if table == "spans" else None,
                    first=0 if some is None else some.start,
                )
        return Chunk(**found)

    def _read_traces(self, trace_ids: Sequence[str]) -> TraceSet:
        everything = self._batches()
        ids = pl.Series("trace_id", trace_ids, dtype=pl.String).unique()
        wanted = pl.DataFrame([ids, bucket_of(ids, self.n_buckets).alias("bucket")])
        by_bucket = [
            (group["bucket"][0], group["trace_id"]) for group in wanted.partition_by("bucket")
        ]

        def rows_of(table: str, batches: Sequence[int]) -> pl.DataFrame:
            parts = [
                each.get(table, _NO_ROWS) if at in batches else _NO_ROWS
                for at, each in enumerate(everything)
            ]
            found = [
                read_parts(self._root, parts, table=table, bucket=bucket, trace_ids=ids)
                for bucket, ids in by_bucket
            ]
            return pl.concat([pl.DataFrame(schema=STORED[table]), *found])

        all_batches = range(len(everything))
        spans = rows_of("spans", all_batches)
        # Events and links lie in the batch of their span; logs come on ways of their own.
        near = batches_of(spans) if spans.height else []
        return finalise(
            Chunk(
                spans=spans,
                events=rows_of("events", near),
                links=rows_of("links", near),
                logs=rows_of("logs", all_batches),
            )
        )


def _names(columns: Sequence[str] | None) -> list[str] | None:
    """Add to the columns asked for those by which spans are told apart and ordered."""
    if columns is None:
        return None
    return list(dict.fromkeys((*_IDS, "start_time", "source", *columns, ROW)))


def _repeated(spans: pl.DataFrame) -> bool:
    """Whether ids occur twice: only such spans can be duplicates, and all of them must be seen."""
    # Of two hashes one may collide, which only costs a closer look.
    key = pl.col("trace_id").hash(1) ^ pl.col("span_id").hash(2)
    repeated: bool = spans.select(key.is_duplicated().any()).item()
    return repeated


def _rows(batches: Iterable[dict[str, Part]]) -> dict[str, int]:
    """Count the rows of each table."""
    rows = dict.fromkeys(STORED, 0)
    for batch in batches:
        for table, part in batch.items():
            rows[table] += part.rows
    return rows


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+)(s|m|h|d)", duration)
    if found is None:
        raise ParameterError(f"{duration!r} is no duration; write 30s, 10m, 1h or 2d")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


_NO_ROWS: Final = Part("", 0, 0, "", "", ())


@lru_cache(maxsize=4)
def _opened_at(path: str, number: int, window: Window | None) -> TraceStore:
    """Open a store as of a commit, once per process."""
    root = open_shelf(path)
    return _as_of(root, log.read(root, until=number), window)


def _as_of(root: Shelf, snapshot: Snapshot, window: Window | None) -> TraceStore:
    store = TraceStore.__new__(TraceStore)
    store._root, store._snapshot, store._window = root, snapshot, window
    return store


def _known(names: Iterable[str], wanted: Sequence[str], what: str) -> None:
    unknown = [name for name in names if name not in wanted]
    if unknown:
        raise ParameterError(f"no {what} {', '.join(unknown)}; there are {', '.join(wanted)}")
