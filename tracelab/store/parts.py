"""Immutable Parquet parts: rows sorted by bucket and trace id, digests kept per row group."""

import hashlib
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tracelab import schema
from tracelab.exceptions import StoreError
from tracelab.io.chunk import ROW, Chunk
from tracelab.store.log import Group, Part
from tracelab.store.shelves import Shelf, View

BUCKET: Final = "_bucket"

Index = npt.NDArray[np.int64]
Cut = tuple[int, int, int, int]


def _with_row(table: pl.Schema) -> pl.Schema:
    wider = pl.Schema(table)
    wider[ROW] = pl.UInt64()
    return wider


STORED: Final[dict[str, pl.Schema]] = {
    "spans": _with_row(schema.SPANS),
    "events": _with_row(schema.EVENTS),
    "links": _with_row(schema.LINKS),
    "logs": schema.LOGS,
    "metrics": schema.METRIC_POINTS,
    "rejects": schema.REJECTS,
}
"""Tables of a batch and their columns, `BUCKET` aside."""


def _plainly(kind: pa.DataType) -> str:
    """Name an Arrow type; texts and lists of both sizes, and their items, are alike."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list of {_plainly(kind.value_type)}"
    return str(kind).removeprefix("large_")


_TYPES: Final[dict[str, dict[str, str]]] = {
    table: {
        field.name: _plainly(field.type)
        for field in pl.DataFrame(schema={**columns, BUCKET: pl.UInt16()}).to_arrow().schema
    }
    for table, columns in STORED.items()
}
"""Column types of each table as a part names them; a part of others is no part of a store."""

_BY_TRACE: Final = ("spans", "events", "links", "logs")
_MIN_GROUP: Final = 4096
"""Least rows of a row group: small buckets share one, so that small parts stay small."""

_MAX_GROUP: Final = 1 << 16
_MIX: Final = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))


def bucket_of(trace_ids: pl.Series, n_buckets: int) -> pl.Series:
    """Return the bucket of each trace id; without an id it is the one behind the last.

    The same on every version and machine: the last 16 bytes of the id, mixed as MurmurHash3
    ends, never a library's own hash.
    """
    tails = (
        trace_ids.to_frame("id")
        .select(pl.col("id").fill_null("").str.pad_start(16, "0").cast(pl.Binary).bin.tail(16))
        .to_series()
    )
    low = _word(tails.bin.tail(8))
    high = _word(tails.bin.head(8))
    with np.errstate(over="ignore"):
        mixed = _mixed(_mixed(high) ^ low)
    numbers = mixed % np.uint64(n_buckets)
    found = pl.Series(BUCKET, numbers.astype(np.uint16), dtype=pl.UInt16)
    return (
        pl.DataFrame({BUCKET: found, "id": trace_ids})
        .select(pl.when(pl.col("id").is_null()).then(n_buckets).otherwise(BUCKET).cast(pl.UInt16))
        .to_series()
        .rename(BUCKET)
    )


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    shift = np.uint64(33)
    for factor in _MIX:
        words = (words ^ (words >> shift)) * factor
    return words ^ (words >> shift)


def _word(pieces: pl.Series) -> npt.NDArray[np.uint64]:
    return pieces.bin.reinterpret(dtype=pl.UInt64, endianness="little").to_numpy().copy()


def write_batch(root: Shelf, chunk: Chunk, n_buckets: int) -> dict[str, Part]:
    """Write the tables of a chunk as one part each, synced.

    Parameters
    ----------
    root : Shelf
        The store.
    chunk : Chunk
        Rows of any number of sources, `ROW` unique.
    n_buckets : int
        Buckets of the store.

    Returns
    -------
    dict of str to Part
        By table; tables without rows have none. Nothing reads them before a commit names them.

    Raises
    ------
    StoreError
        If they cannot be written.
    """
    batch: dict[str, Part] = {}
    name = f"{uuid.uuid4().hex}.parquet"
    try:
        for table in STORED:
            rows: pl.DataFrame = getattr(chunk, table)
            if rows.height:
                batch[table] = _write_part(root, table, name, _arranged(table, rows, n_buckets))
    except OSError as error:
        for table in STORED:
            with suppress(OSError):
                root.remove(f"{table}/{name}")
        raise StoreError(
            f"the store {root} cannot be written: {error.strerror or error}; nothing of this "
            "source was kept, ingest again when that is mended"
        ) from error
    return batch


def _arranged(table: str, rows: pl.DataFrame, n_buckets: int) -> pl.DataFrame:
    if table not in _BY_TRACE:
        rest = n_buckets if table == "metrics" else 0
        return rows.with_columns(pl.lit(rest, pl.UInt16).alias(BUCKET))
    bucketed = rows.with_columns(bucket_of(rows["trace_id"], n_buckets))
    order = _order(bucketed)
    # Taking rows out of many chunks takes four times as long as out of one; a column at a time,
    # so that the rows do not stand three times.
    return pl.DataFrame([column.rechunk().gather(order) for column in bucketed])


def _order(rows: pl.DataFrame) -> pl.Series:
    """Return the order of rows by bucket, trace id and `ROW`."""
    keys = [BUCKET, "trace_id", *([ROW] if ROW in rows.columns else [])]
    numbers = rows[ROW].to_numpy() if ROW in rows.columns else np.empty(0, np.uint64)
    if not np.any(numbers[1:] < numbers[:-1]):
        quick = _order_by_hex(rows["trace_id"], rows[BUCKET].to_numpy())
        if quick is not None:
            return pl.Series(quick.astype(np.uint32))
    return rows.select(pl.arg_sort_by(keys, maintain_order=True)).to_series()


_ID_LENGTH: Final = 32


def _order_by_hex(ids: pl.Series, buckets: npt.NDArray[np.uint16]) -> Index | None:
    """Order rows by bucket and id as numbers, eight times as fast as by text.

    The key is the bucket and the first twelve digits. None where ids are not all of the usual
    length, or where that key does not order them, as it shows afterwards.
    """
    array = ids.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.large_string())
    _, offsets, content = array.buffers()
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    if array.null_count or (np.diff(bounds) != _ID_LENGTH).any():
        return None
    text = np.frombuffer(content, np.uint8)[bounds[0] : bounds[-1]]
    words = text.view(">u8").astype(np.uint64).reshape(-1, _ID_LENGTH // 8)
    digits = (_digits(words[:, 0]) << np.uint64(16)) | (_digits(words[:, 1]) >> np.uint64(16))
    order = np.argsort((buckets.astype(np.uint64) << np.uint64(48)) | digits, kind="stable")
    before, after = words[order[:-1]], words[order[1:]]
    same_bucket = buckets[order[:-1]] == buckets[order[1:]]
    for place in range(_ID_LENGTH // 8):
        if (same_bucket & (before[:, place] > after[:, place])).any():
            return None
        same_bucket &= before[:, place] == after[:, place]
    return order


def _digits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Read eight hex digits, one a byte, as a number of 32 bits."""
    letters = (words >> np.uint64(6)) & np.uint64(0x0101010101010101)
    found = (words & np.uint64(0x0F0F0F0F0F0F0F0F)) + letters * np.uint64(9)
    for shift, mask in (
        (4, 0x00FF00FF00FF00FF),
        (8, 0x0000FFFF0000FFFF),
        (16, 0x00000000FFFFFFFF),
    ):
        found = (found | (found >> np.uint64(shift))) & np.uint64(mask)
    return found


def _write_part(root: Shelf, table: str, name: str, rows: pl.DataFrame) -> Part:
    cuts = _cuts(rows[BUCKET].to_numpy())
    flat = _flat_columns(rows)
    names = rows.columns
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        _spelt(rows.clear(), flat).schema,
        # A page of one value is shorter than what a compressor needs to be set up for it.
        compression={each: "none" if each in flat else "zstd" for each in names},
        compression_level={each: 1 for each in names if each not in flat},
        write_statistics=["trace_id", "start_time", BUCKET],
        use_dictionary=_repeating_columns(rows),
        # Else columns would be read back as the dictionaries that some are written from.
        store_schema=False,
    ) as writer:
        for slab in _slabs(cuts):
            # Arrow spells out text that polars shares: some row groups at a time.
            begin = slab[0][0]
            spelt = _spelt(rows.slice(begin, slab[-1][1] - begin), flat)
            for start, end, _, _ in slab:
                group = spelt.slice(start - begin, end - start)
                writer.write_table(group, row_group_size=end - start)
    path = f"{table}/{name}"
    data = memoryview(sink.getvalue())
    root.prepare(table)
    root.put(path, data)
    return _described(path, data, [(first, last) for _, _, first, last in cuts])


_SAMPLE_ROWS: Final = 4096
_MOSTLY_DISTINCT: Final = 0.5


def _repeating_columns(rows: pl.DataFrame) -> list[str]:
    """Return the columns whose values repeat; a dictionary of the others only costs time."""
    sample = rows.head(_SAMPLE_ROWS)
    return [
        name
        for name, dtype in rows.schema.items()
        if name not in _DISTINCT
        and (dtype.is_nested() or sample[name].n_unique() <= _MOSTLY_DISTINCT * sample.height + 1)
    ]


def _flat_columns(rows: pl.DataFrame) -> dict[str, pa.Scalar | None]:
    """Return the columns of one value throughout, text with the value, others with None."""
    flat: dict[str, pa.Scalar | None] = {}
    for name, dtype in rows.schema.items():
        column = rows[name]
        if column.null_count() == len(column):
            flat[name] = None
        elif not (dtype.is_nested() or column.null_count() or column[0] != column[-1]) and bool(
            (column == column[0]).all()
        ):
            flat[name] = pa.scalar(column[0]) if dtype == pl.String else None
    return flat


def _spelt(rows: pl.DataFrame, flat: dict[str, pa.Scalar | None]) -> pa.Table:
    """Return rows as Arrow; text of one value as a dictionary, which saves looking it up."""
    spelt = rows.select(name for name in rows.columns if flat.get(name) is None).to_arrow()
    codes = pa.array(np.zeros(rows.height, np.int8))
    arrays = []
    for name in rows.columns:
        value = flat.get(name)
        if value is None:
            arrays.append(spelt.column(name))
        else:
            values = pa.array([value.as_py()], pa.large_string())
            arrays.append(pa.DictionaryArray.from_arrays(codes, values))
    return pa.table(arrays, names=rows.columns)


_DISTINCT: Final = frozenset(
    {"trace_id", "span_id", "parent_span_id", "start_time", "end_time", "duration_ns", "time", ROW}
)
"""Columns whose values hardly repeat; a dictionary would only cost time."""


def _cuts(buckets: npt.NDArray[np.uint16]) -> list[Cut]:
    """Cut sorted buckets into row groups: start, end, first and last bucket of each."""
    n_rows = len(buckets)
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[:1] + 1)).tolist() or [0]
    cuts: list[Cut] = []
    begin = 0
    for at in [*starts[1:], n_rows]:
        if at - begin < _MIN_GROUP and at < n_rows:
            continue
        for start in range(begin, at, _MAX_GROUP):
            end = min(start + _MAX_GROUP, at)
            cuts.append((start, end, int(buckets[start]), int(buckets[end - 1])))
        begin = at
    return cuts


_SLAB_ROWS: Final = 1 << 15


def _slabs(cuts: list[Cut]) -> Iterator[list[Cut]]:
    """Put row groups together that are converted at a time."""
    slab: list[Cut] = []
    for cut in cuts:
        if slab and cut[1] - slab[0][0] > _SLAB_ROWS:
            yield slab
            slab = []
        slab.append(cut)
    yield slab


def _described(path: str, view: memoryview, buckets: list[tuple[int, int]]) -> Part:
    metadata = pq.read_metadata(pa.BufferReader(view))
    groups = []
    for at, (first, last) in enumerate(buckets):
        start, end = _extent(metadata.row_group(at))
        digest = hashlib.sha256(view[start:end]).hexdigest()
        groups.append(Group(first, last, metadata.row_group(at).num_rows, start, end, digest))
    return Part(
        path=path,
        rows=metadata.num_rows,
        size=len(view),
        sha256=hashlib.sha256(view).hexdigest(),
        frame_sha256=_frame_digest(view, groups),
        groups=tuple(groups),
    )


def _extent(group: pq.RowGroupMetaData) -> tuple[int, int]:
    starts, ends = [], []
    for at in range(group.num_columns):
        column = group.column(at)
        start = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset is not None:
            start = min(start, column.dictionary_page_offset)
        starts.append(start)
        ends.append(start + column.total_compressed_size)
    return min(starts), max(ends)


def _frame(groups: Sequence[Group], size: int) -> list[tuple[int, int]]:
    """Pieces of a part that belong to no row group."""
    starts = [0, *(group.end for group in groups)]
    ends = [*(group.start for group in groups), size]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


def _frame_digest(view: Any, groups: Sequence[Group]) -> str:
    digest = hashlib.sha256()
    for start, end in _frame(groups, len(view)):
        digest.update(view[start:end])
    return digest.hexdigest()


def read_parts(
    root: Shelf,
    parts: Sequence[Part],
    *,
    table: str,
    bucket: int | None = None,
    columns: Sequence[str] | None = None,
    trace_ids: pl.Series | None = None,
    first: int = 0,
) -> pl.DataFrame:
    """Read the rows of parts of one table, or of one bucket, after checking their bytes.

    Parameters
    ----------
    root : Shelf
        The store.
    parts : sequence of Part
        What the log says of the parts.
    table : str
        Their table.
    bucket : int, optional
        Read the row groups that hold it only.
    columns : sequence of str, optional
        Read these columns only.
    trace_ids : pl.Series, optional
        Only rows of these traces; row groups that hold none of them are not decoded.
    first : int
        Number of the first of the parts among all of its store.

    Returns
    -------
    pl.DataFrame
        All columns of the table; those not read are null. `ROW` is unique over all parts.

    Raises
    ------
    StoreError
        If a file is missing or a byte of what is read was altered.
    """
    stored = STORED[table]
    names = list(columns) if columns is not None else stored.names()

    def read(numbered: tuple[int, Part]) -> pl.DataFrame | None:
        base, part = numbered
        arrow = _read_part(root, part, names, bucket, trace_ids)
        if arrow is None:
            return None
        for field in arrow.schema:
            if _plainly(field.type) != _TYPES[table][field.name]:
                raise _unreadable(root, part, f"{field.name} is of type {field.type}")
        rows = _rows_of(arrow, base, bucket)
        if trace_ids is None:
            return rows
        return rows.filter(pl.col("trace_id").is_in(trace_ids.implode()))

    # A trace is looked for in a little of each part, mostly in vain: that is digests and waiting.
    with ThreadPoolExecutor(_SEEKERS) as pool:
        numbered = enumerate(parts, first)
        tables = pool.map(read, numbered) if trace_ids is not None else map(read, numbered)
    found = [rows for rows in tables if rows is not None]
    if not found:
        return pl.DataFrame(schema=stored)
    rows = pl.concat(found, how="diagonal_relaxed", rechunk=False)
    present = set(rows.columns)
    return rows.select(
        pl.col(name) if name in present else pl.lit(None, dtype).alias(name)
        for name, dtype in stored.items()
    )


def _rows_of(arrow: pa.Table, number: int, bucket: int | None) -> pl.DataFrame:
    """Take a bucket's rows out of row groups that hold several; number them by their part.

    Arrow's filter copies what it keeps; that of polars would hold on to the texts of the others.
    """
    if bucket is not None and BUCKET in arrow.column_names:
        mine = pc.equal(arrow[BUCKET], bucket)
        arrow = arrow.drop_columns([BUCKET])
        if not pc.all(mine).as_py():
            arrow = arrow.filter(mine)
    rows = pl.from_arrow(arrow)
    assert isinstance(rows, pl.DataFrame)
    if ROW in rows.columns:
        rows = rows.with_columns(pl.col(ROW) + pl.lit(number << ROW_BITS, pl.UInt64))
    return rows


ROW_BITS: Final = 40
"""Rows of a batch are numbered from 0; those of another begin this far on."""


def rows_in(part: Part, bucket: int) -> int:
    """Tell about how many rows of a part belong to a bucket; a row group may hold several."""
    return sum(
        group.rows // (group.last_bucket - group.first_bucket + 1)
        for group in part.groups
        if group.first_bucket <= bucket <= group.last_bucket
    )


def batches_of(rows: pl.DataFrame) -> list[int]:
    """Tell in which of the parts that `read_parts` was given its rows lie."""
    return (rows[ROW] // (1 << ROW_BITS)).unique().sort().to_list()


def _read_part(
    root: Shelf, part: Part, names: list[str], bucket: int | None, trace_ids: pl.Series | None
) -> pa.Table | None:
    wanted = [
        at
        for at, group in enumerate(part.groups)
        if bucket is None or group.first_bucket <= bucket <= group.last_bucket
    ]
    if not wanted:
        return None
    names = names if bucket is None else [*names, BUCKET]
    return _read_groups(root, part, wanted, names, trace_ids)


class _Footers:
    """Footers kept decoded: each bucket needs those of all parts again.

    Where there are too many, any other goes for a new one: parts are asked for in turn, so that
    the one asked for longest ago is the next to be wanted.
    """

    def __init__(self, room: int) -> None:
        self._room, self._size = room, 0
        self._known: dict[str, pq.FileMetaData] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, digest: str) -> pq.FileMetaData | None:
        return self._known.get(digest)

    def keep(self, digest: str, metadata: pq.FileMetaData) -> None:
        with self._lock:
            if digest in self._known:
                return
            self._known[digest] = metadata
            self._size += metadata.serialized_size
            while self._size > self._room and len(self._known) > 1:
                place = random.randrange(len(self._known))
                gone = self._known.pop(list(self._known)[place])
                self._size -= gone.serialized_size


_FOOTERS: Final = _Footers(64 << 20)
"""Bytes as they are written; decoded, footers take 18 times that."""

_SEEKERS: Final = 4


def _read_groups(
    root: Shelf, part: Part, wanted: list[int], names: list[str], trace_ids: pl.Series | None
) -> pa.Table | None:
    try:
        reader = _opened(root, part, wanted)
        if trace_ids is not None:
            wanted = [at for at in wanted if _holds(reader, at, trace_ids)]
            if not wanted:
                return None
        return reader.read_row_groups(wanted, columns=names, use_threads=False)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise _unreadable(root, part, error) from error


def _opened(root: Shelf, part: Part, wanted: list[int]) -> pq.ParquetFile:
    """Open a part of which some row groups are wanted, after checking their bytes."""
    groups = [(part.groups[at].start, part.groups[at].end) for at in wanted]
    metadata = _FOOTERS.get(part.sha256)
    # A footer that was checked and decoded is not needed for a bucket again.
    whole = metadata is None or len(wanted) == len(part.groups)
    view = root.view(part.path, part.size, groups + (_frame(part.groups, part.size) * whole))
    _check(f"{root}/{part.path}", part, view, wanted, frame=whole)
    reader = pq.ParquetFile(view.source(), metadata=metadata)
    if metadata is None:
        _FOOTERS.keep(part.sha256, reader.metadata)
    return reader


def start_times(root: Shelf, batch: Mapping[str, Part]) -> tuple[int, int] | None:
    """Tell when the first and the last span of a batch start, by the statistics of its part.

    Parameters
    ----------
    root : Shelf
        The store.
    batch : mapping of str to Part
        Parts by table.

    Returns
    -------
    first, last : int
        Nanoseconds since 1970; None without spans, or where a row group does not say.

    Raises
    ------
    StoreError
        If the file is missing or its frame was altered.
    """
    part = batch.get("spans")
    if part is None:
        return None
    try:
        reader = _opened(root, part, [])
    except (OSError, ValueError) as error:
        raise _unreadable(root, part, error) from error
    place = reader.schema_arrow.get_field_index("start_time")
    bounds = []
    for at in range(reader.metadata.num_row_groups):
        statistics = reader.metadata.row_group(at).column(place).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        bounds.append((int(statistics.min_raw), int(statistics.max_raw)))
    return min(first for first, _ in bounds), max(last for _, last in bounds)


def _unreadable(root: Shelf, part: Part, error: object) -> StoreError:
    return StoreError(
        f"{root}/{part.path} cannot be read: {error}; restore it from a copy, or ingest its "
        "sources into a new store"
    )


def _holds(reader: pq.ParquetFile, group: int, trace_ids: pl.Series) -> bool:
    """Ask the statistics of a row group, then its trace ids, before the rest is decoded."""
    place = reader.schema_arrow.get_field_index("trace_id")
    statistics = reader.metadata.row_group(group).column(place).statistics
    if statistics is not None and statistics.has_min_max:
        trace_ids = trace_ids.filter(trace_ids.is_between(statistics.min, statistics.max))
    if trace_ids.is_empty():
        return False
    ids = reader.read_row_group(group, columns=["trace_id"], use_threads=False).column(0)
    # polars compares: pyarrow would import pandas to make a scalar, a tenth of a second.
    return trace_ids.is_in(pl.Series(ids).implode()).any()


def is_sound(root: Shelf, part: Part) -> bool:
    """Tell whether a part is there with exactly the bytes that were written."""
    try:
        return root.digest(part.path) == part.sha256
    except OSError:
        return False


def _check(path: str, part: Part, view: View, wanted: list[int], *, frame: bool) -> None:
    sound = len(view) == part.size
    sound = sound and not (frame and _frame_digest(view, part.groups) != part.frame_sha256)
    sound = sound and all(
        hashlib.sha256(view[part.groups[at].start : part.groups[at].end]).hexdigest()
        == part.groups[at].sha256
        for at in wanted
    )
    if not sound:
        raise StoreError(
            f"{path} is damaged: its bytes do not match the digest in the log; restore it from "
            "a copy, or ingest its sources into a new store"
        )
