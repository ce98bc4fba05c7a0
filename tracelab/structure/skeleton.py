"""Spines of all buckets stacked, sorted by time, as arrays; and what verdicts become."""

from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.structure.spine import (
    CROSSINGS,
    INTACT,
    NO_ROW,
    ODD_IDS,
    OPS,
    ORPHAN,
    PEERS,
    PROCESSES,
    ROOT,
    SPINE,
    Spine,
    take_rows,
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

UNSPECIFIED, INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(6)

FAR: Final = np.array([word in ("network", "process", "queue") for word, _ in CROSSINGS])
"""Whether a crossing leaves the process, by code."""

VERDICTS: Final = pl.Schema(
    {  # type: ignore[arg-type]
        "row": pl.Int64,
        "kind": pl.String,
        "cause": pl.String,
        "boundary": pl.String,
        "severity": pl.String,
        "confidence": pl.Float64,
        "at_capture_edge": pl.Boolean,
        "from_service": pl.String,
        "to_service": pl.String,
        "missing": pl.UInt64,
        "proposed_row": pl.Int64,
        "proposed_confidence": pl.Float64,
        "evidence": pl.List(pl.String),
        "alternatives": pl.List(pl.String),
    }
)
"""A break in terms of skeleton rows; ``missing`` is a span id as a number."""

_DEFAULTS: Final[dict[str, Any]] = {
    "cause": "unknown",
    "boundary": "unknown",
    "severity": "warning",
    "confidence": 1.0,
    "at_capture_edge": False,
}


def verdicts(table: pl.DataFrame) -> pl.DataFrame:
    """Bring a table to VERDICTS, with the usual words where a column is left out.

    Parameters
    ----------
    table : pl.DataFrame
        Columns of VERDICTS, at least ``row`` and ``kind``; further columns are dropped.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`.

    Raises
    ------
    SchemaError
        If a value does not fit its column.
    """
    known = table.select(name for name in table.columns if name in VERDICTS)
    missing = {name: value for name, value in _DEFAULTS.items() if name not in known.columns}
    known = known.with_columns(pl.lit(value).alias(name) for name, value in missing.items())
    for texts in ("evidence", "alternatives"):
        if texts not in known.columns:
            known = known.with_columns(pl.lit([], schema.TEXTS).alias(texts))
    return schema.conform(known, VERDICTS)


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit integers (splitmix64 finaliser); the same on every machine.

    Parameters
    ----------
    values : ndarray of uint64
        Any integers.

    Returns
    -------
    ndarray of uint64
        As many integers.

    Raises
    ------
    TypeError
        If `values` are no unsigned integers.
    """
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(30))
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hex_texts(numbers: npt.NDArray[np.uint64]) -> list[str]:
    """Write 64-bit integers as 16 hex digits each.

    Parameters
    ----------
    numbers : ndarray of uint64
        Any integers.

    Returns
    -------
    list of str
        As many texts.

    Raises
    ------
    TypeError
        If `numbers` cannot be cast to 64-bit unsigned integers.
    """
    digits = numbers.astype(">u8").tobytes().hex()
    return [digits[at : at + 16] for at in range(0, len(digits), 16)]


class Groups:
    """Rows grouped by a small code, without a loop over rows.

    Parameters
    ----------
    codes : ndarray of int64
        Code of each row, from 0.
    """

    def __init__(self, codes: Ints) -> None:
        self.order: Ints = np.argsort(codes, kind="stable")
        self.counts: Ints = np.bincount(codes)
        self.offsets: Ints = np.concatenate([[0], np.cumsum(self.counts)])

    def rows(self, code: int) -> Ints:
        """Return the rows with this code, in their order."""
        if code + 1 >= self.offsets.size:
            return np.zeros(0, np.int64)
        return self.order[self.offsets[code] : self.offsets[code + 1]]


class Skeleton:
    """All spans of a capture as arrays in order of time.

    Parameters
    ----------
    spines : list of Spine
        One per bucket; each holds whole traces.

    Attributes
    ----------
    n : int
        Number of spans.
    start, end : ndarray of int64
        Nanoseconds since the epoch. A missing time takes the other one's value; `timed` is
        False where both are missing.
    parent : ndarray of int64
        Row of the parent, -1 where there is none.
    op, process : ndarray of int64
        Row in `ops` and `processes`.
    """

    def __init__(self, spines: list[Spine]) -> None:
        self.ops = _merge([spine.ops for spine in spines], OPS)
        self.processes = _merge([spine.processes for spine in spines], PROCESSES)
        self.peers = _merge([spine.peers for spine in spines], PEERS)
        self._spread(_stack([spine.spans for spine in spines]))
        self.odd_ids = (
            pl.concat([spine.odd_ids for spine in spines])
            if spines
            else pl.DataFrame(schema=ODD_IDS)
        )
        kinds = {kind: number for number, kind in enumerate(schema.KINDS)}
        self.op_kind: Ints = np.array(
            [kinds.get(kind or "", UNSPECIFIED) for kind in self.ops["kind"]], dtype=np.int64
        )
        services = self.ops["service_name"].fill_null("").unique().sort()
        self.services: list[str] = services.to_list()
        self.op_service: Ints = (
            services.search_sorted(self.ops["service_name"].fill_null(""))
            .to_numpy()
            .astype(np.int64)
        )

    def _spread(self, table: pl.DataFrame) -> None:
        """Lay the table out as arrays."""
        self.table = table
        self.n = table.height
        self.raw_start: Ints = table["_raw_start"].to_numpy()
        self.timed: Bools = table["_timed"].to_numpy()
        self.start: Ints = table["start"].to_numpy()
        self.end: Ints = table["end"].to_numpy()
        self.parent: Ints = table["parent_row"].to_numpy()
        self.state: npt.NDArray[np.uint8] = table["state"].to_numpy()
        self.remote: npt.NDArray[np.int8] = table["remote"].to_numpy()
        self.crossing: npt.NDArray[np.uint8] = table["crossing"].to_numpy()
        self.op: Ints = _codes(table["op"], self.ops["op"])
        self.process: Ints = _codes(table["process"], self.processes["process"])

    def on_one_clock(self, offsets: Ints) -> "Skeleton":
        """Return a copy whose times are corrected, in order of the corrected time.

        Parameters
        ----------
        offsets : ndarray of int64
            How far each process's clock is ahead, in nanoseconds.

        Returns
        -------
        Skeleton
            Rows stand in another order; ``raw_start`` keeps the recorded times.

        Raises
        ------
        ValueError
            If there is not one offset per process.
        """
        shift = pl.Series(offsets[self.process])
        moved = self.table.with_columns(pl.col("start") - shift, pl.col("end") - shift)
        return self._with_table(_in_order(moved))

    def without_copies(self) -> "Skeleton":
        """Return a copy in which each id stands on one span only: the earliest.

        Returns
        -------
        Skeleton
            Itself, if no id stands twice.

        Raises
        ------
        ValueError
            Never.
        """
        shared = np.flatnonzero(self.column("shared"))
        again = ~pl.Series(self.column("key")[shared]).is_first_distinct().to_numpy()
        if not again.any():
            return self
        first = np.ones(self.n, dtype=bool)
        first[shared[again]] = False
        position = np.cumsum(first) - 1
        parent = np.where(self.parent >= 0, position[self.parent], NO_ROW)
        table = self.table.with_columns(
            pl.Series("parent_row", parent), pl.lit(value=False).alias("shared")
        ).filter(pl.Series(first))
        return self._with_table(table)

    def _with_table(self, table: pl.DataFrame) -> "Skeleton":
        other = Skeleton.__new__(Skeleton)
        other.ops, other.processes = self.ops, self.processes
        other.peers, other.odd_ids = self.peers, self.odd_ids
        other.op_kind, other.op_service = self.op_kind, self.op_service
        other.services = self.services
        other._spread(table)
        return other

    @cached_property
    def kind(self) -> Ints:
        """Span kind of each row, as a number."""
        return self.op_kind[self.op] if self.n else np.zeros(0, np.int64)

    @cached_property
    def service(self) -> Ints:
        """Service of each row, as an index of `services`."""
        return self.op_service[self.op] if self.n else np.zeros(0, np.int64)

    @cached_property
    def children(self) -> Ints:
        """Number of children of each row."""
        return np.bincount(self.parent[self.parent >= 0], minlength=self.n)

    @cached_property
    def trace(self) -> Ints:
        """A number for each trace, equal within and different between traces."""
        hi, lo = self.column("trace_hi"), self.column("trace_lo")
        trace: Ints = (mix64(hi) ^ lo).view(np.int64)
        return trace

    @cached_property
    def window(self) -> tuple[int, int]:
        """First start and last end of the capture."""
        if not self.timed.any():
            return (0, 0)
        return int(self.start[self.timed].min()), int(self.end[self.timed].max())

    @cached_property
    def roots(self) -> Ints:
        """Rows without a parent id."""
        return np.flatnonzero(self.state == ROOT)

    @cached_property
    def orphans(self) -> Ints:
        """Rows whose parent is not in the capture."""
        return np.flatnonzero(self.state == ORPHAN)

    @cached_property
    def intact(self) -> Ints:
        """Rows whose parent is in the capture."""
        return np.flatnonzero(self.state == INTACT)

    @cached_property
    def caller_class(self) -> Ints:
        """Operation of each row, told apart by peer address where it calls out."""
        op = self.table["op"].to_numpy()
        calls = (self.kind == CLIENT) | (self.kind == PRODUCER)
        mixed = pl.Series(np.where(calls, mix64(op) ^ self.table["peer"].to_numpy(), op))
        return _codes(mixed, mixed.unique().sort())

    @cached_property
    def by_op(self) -> "Groups":
        """Rows of each operation, in order of time."""
        return Groups(self.op)

    @cached_property
    def by_class(self) -> "Groups":
        """Rows of each caller class, in order of time."""
        return Groups(self.caller_class)

    @cached_property
    def by_process(self) -> "Groups":
        """Rows of each process, in order of time."""
        return Groups(self.process)

    @cached_property
    def served(self) -> Bools:
        """Whether a row has a child that answered it: a SERVER or CONSUMER span."""
        rows = self.intact
        rows = rows[(self.kind[rows] == SERVER) | (self.kind[rows] == CONSUMER)]
        served = np.zeros(self.n, dtype=bool)
        served[self.parent[rows]] = True
        return served

    @cached_property
    def top(self) -> Ints:
        """Topmost ancestor of each row (some member of the cycle, on and below cycles)."""
        top = np.where(self.parent >= 0, self.parent, np.arange(self.n))
        active = np.arange(self.n)
        for _ in range(int(self.n).bit_length() + 1):
            higher = top[top[active]]
            moved = higher != top[active]
            active = active[moved]
            if not active.size:
                break
            top[active] = higher[moved]
        return top

    @cached_property
    def linked(self) -> Bools:
        """Whether a row carries a link."""
        return self.column("linked").astype(bool)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of the spine as an array."""
        array: npt.NDArray[Any] = self.table[name].to_numpy()
        return array

    def service_names(self, services: Ints) -> pl.Series:
        """Return names of services by index; null for -1 and for unnamed services."""
        names = pl.Series([name or None for name in self.services], dtype=pl.String)
        picked = pl.Series(services)
        return (
            names.gather(picked.set(picked < 0, None), null_on_oob=True)
            if len(names)
            else pl.Series([None] * len(services), dtype=pl.String)
        )

    def write_breaks(self, found: pl.DataFrame) -> pl.DataFrame:
        """Turn verdicts on rows into the public table.

        Parameters
        ----------
        found : pl.DataFrame
            Schema `VERDICTS`.

        Returns
        -------
        pl.DataFrame
            Schema `BREAKS`, sorted by (time, break_id).

        Raises
        ------
        SchemaError
            Never for a table of schema VERDICTS.
        """
        if not found.height:
            return schema.empty(schema.BREAKS)
        rows = found["row"].to_numpy()
        own = self._texts(rows)
        proposed = self._texts(found["proposed_row"].fill_null(0).to_numpy())
        has_proposal = pl.col("proposed_row").is_not_null()
        ops = take_rows(self.ops, pl.Series(self.op[rows]))
        missing = found["missing"]
        missing_ids = pl.Series(hex_texts(missing.fill_null(0).to_numpy()))
        return schema.conform(
            found.with_columns(
                break_id=self._break_ids(found, own),
                trace_id=own["trace_id"],
                span_id=own["span_id"],
                service_name=ops["service_name"],
                span_name=ops["name"],
                missing_span_id=pl.when(pl.col("missing").is_not_null()).then(
                    pl.lit(own["odd_parent"].fill_null(missing_ids))
                ),
                proposed_trace_id=pl.when(has_proposal).then(proposed["trace_id"]),
                proposed_span_id=pl.when(has_proposal).then(proposed["span_id"]),
                time=pl.when(pl.Series(self.timed[rows])).then(
                    pl.Series(self.raw_start[rows]).cast(schema.TIME)
                ),
            ).drop("row", "missing", "proposed_row"),
            schema.BREAKS,
        ).sort("time", "break_id", nulls_last=True)

    def _texts(self, rows: Ints) -> pl.DataFrame:
        """Ids of rows as text."""
        hi, lo = hex_texts(self.column("trace_hi")[rows]), hex_texts(self.column("trace_lo")[rows])
        texts = pl.DataFrame(
            {
                "key": self.column("key")[rows],
                "hi": hi,
                "lo": lo,
                "span": hex_texts(self.column("span")[rows]),
            }
        )
        odd = self.odd_ids.unique("key", keep="first").rename(
            {"trace_id": "odd_trace", "span_id": "odd_span", "parent_span_id": "odd_parent"}
        )
        return texts.join(odd, on="key", how="left", maintain_order="left").select(
            trace_id=pl.coalesce("odd_trace", pl.col("hi") + pl.col("lo")),
            span_id=pl.coalesce("odd_span", "span"),
            odd_parent="odd_parent",
        )

    def _break_ids(self, found: pl.DataFrame, own: pl.DataFrame) -> pl.Series:
        """Stable ids: the same break has the same id in every run and every order of input."""
        numbers = found["kind"].replace_strict(
            {kind: number for number, kind in enumerate(schema.BREAK_KINDS)},
            return_dtype=pl.UInt64,
        )
        rows = found["row"].to_numpy()
        mixed = mix64(numbers.to_numpy() + np.uint64(0x9E3779B97F4A7C15))
        for part in ("trace_hi", "trace_lo", "span"):
            mixed = mix64(mixed ^ self.column(part)[rows])
        mixed = mix64(mixed ^ found["missing"].fill_null(0).to_numpy())
        return pl.Series(hex_texts(mixed))


def _stack(spines: list[pl.DataFrame]) -> pl.DataFrame:
    """Stack buckets, fill times, sort by time, and let parent rows follow."""
    offset = 0
    moved = []
    for spine in spines:
        row = pl.col("parent_row")
        moved.append(
            spine.with_columns(
                pl.when(row >= 0).then(row + offset).otherwise(row).alias(row.meta.output_name())
            )
        )
        offset += spine.height
    if not moved:
        return pl.DataFrame(schema={**SPINE, "_timed": pl.Boolean, "_raw_start": pl.Int64})
    table = pl.concat(moved, rechunk=False)
    del moved
    known = pl.col("start").is_not_null() | pl.col("end").is_not_null()
    table = table.with_columns(
        pl.coalesce("start", "end", 0).alias("start"),
        pl.coalesce("end", "start", 0).alias("end"),
        known.alias("_timed"),
        pl.coalesce("start", "end", 0).alias("_raw_start"),
    )
    return _in_order(table)


def _in_order(table: pl.DataFrame) -> pl.DataFrame:
    """Sort by time and let parent rows follow."""
    order = table.select(
        pl.arg_sort_by("start", "trace_hi", "trace_lo", "span", "end", "op").cast(pl.UInt32)
    ).to_series()
    position = np.empty(table.height, dtype=np.int64)
    position[order.to_numpy()] = np.arange(table.height)
    # One column at a time, in one piece: a tenth of the time of a frame in many pieces, and
    # never twice the memory.
    table = pl.DataFrame([table[name].rechunk().gather(order) for name in table.columns])
    parent = table["parent_row"].to_numpy()
    moved_parent = np.where(parent >= 0, position[parent], NO_ROW) if table.height else parent
    return table.with_columns(pl.Series("parent_row", moved_parent, dtype=pl.Int64))


def _merge(tables: list[pl.DataFrame], columns: pl.Schema) -> pl.DataFrame:
    if not tables:
        return pl.DataFrame(schema=columns)
    code = columns.names()[0]
    return (
        pl.concat(tables)
        .sort([*columns.names()[1:], code])
        .unique(code, keep="first", maintain_order=True)
    )


def _codes(hashes: pl.Series, dictionary: pl.Series) -> Ints:
    """Row of each hash in a small dictionary."""
    known = dictionary.to_numpy()
    order = np.argsort(known)
    if not len(known):
        return np.zeros(0, np.int64)
    return order[np.searchsorted(known[order], hashes.to_numpy())].astype(np.int64)
