"""Spines of all buckets stacked, sorted by time, as arrays; and what verdicts become."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.memory import give_back
from tracelab.structure.codes import Groups, Words, hex_texts, mix64, ranked, slices
from tracelab.structure.codes import Ints as Ints
from tracelab.structure.horizons import Horizons, find_horizons
from tracelab.structure.spine import (
    CROSSINGS,
    INTACT,
    ORPHAN,
    ROOT,
    build_spine,
    mix_keys,
    take_rows,
)
from tracelab.structure.stacking import Packed, order_of, pack_spine, rearrange, stack_spines
from tracelab.traceset import TraceSet

Fact = TypeVar("Fact")

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Narrow = npt.NDArray[np.float32]

UNSPECIFIED, INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(6)

FAR: Final = np.array([word in ("network", "process", "queue") for word, _ in CROSSINGS])
"""Whether a crossing leaves the process, by code."""

ONE_CLOCK_NS: Final = 100_000
"""What two times of one clock may be off by: they are read at different depths of an SDK, or by
two programs of one host."""

LIVES: Final = pl.Schema(
    dict.fromkeys(("process", "service", "start", "first", "last", "spans"), pl.Int64)
)
"""A process, its service, its first start, the first and the last end of its spans, and how many
there are."""

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


_GIVEN: Final = frozenset(
    {
        *("_columns", "_ahead", "traces", "odd_ids", "ops", "processes", "peers", "services"),
        *("op_kind", "op_service"),
    }
)
"""Attributes of a skeleton from which its others follow."""


class Skeleton:
    """All spans of a capture as arrays in order of time.

    Parameters
    ----------
    spines : iterable of Packed
        One per bucket; each holds whole traces. Taken one by one.

    Attributes
    ----------
    n : int
        Number of spans.
    start, end : ndarray of int64
        Nanoseconds since the epoch. A missing time takes the other one's value; `timed` is
        False where both are missing.
    parent : ndarray of int32
        Row of the parent, -1 where there is none.
    trace, op, process : ndarray of int32
        Row in `traces`, `ops` and `processes`. They have few bytes since there is one per
        span: `pair_codes` multiplies without overflow.
    """

    def __init__(self, spines: Iterable[Packed]) -> None:
        stacked = stack_spines(spines)
        give_back()  # the buckets
        self._columns = stacked.columns
        self.traces, self.odd_ids = stacked.traces, stacked.odd_ids
        self.ops, self.processes, self.peers = stacked.ops, stacked.processes, stacked.peers
        kinds = {kind: number for number, kind in enumerate(schema.KINDS)}
        self.op_kind: Ints = np.array(
            [kinds.get(kind or "", UNSPECIFIED) for kind in self.ops["kind"]], dtype=np.int8
        )
        services = self.ops["service_name"].fill_null("").unique().sort()
        self.services: list[str] = services.to_list()
        self.op_service: Ints = (
            services.search_sorted(self.ops["service_name"].fill_null(""))
            .to_numpy()
            .astype(np.int32)
        )
        self._ahead: Ints = np.zeros(self.processes.height, np.int64)
        self._spread()

    @classmethod
    def of(cls, traces: TraceSet) -> "Skeleton":
        """Build the skeleton of a capture that is not parted into buckets.

        Parameters
        ----------
        traces : TraceSet
            The capture.

        Returns
        -------
        Skeleton
            Its spans.

        Raises
        ------
        SchemaError
            Never for a `TraceSet`.
        """
        return cls([pack_spine(build_spine(traces))])

    def _spread(self) -> None:
        """Name the columns that are asked for most."""
        self.n = self._columns["start"].size
        self.timed: Bools = self._columns["timed"]
        self.start: Ints = self._columns["start"]
        self.end: Ints = self._columns["end"]
        self.trace: Ints = self._columns["trace"]
        self.parent: Ints = self._columns["parent_row"]
        self.state: npt.NDArray[np.uint8] = self._columns["state"]
        self.remote: npt.NDArray[np.int8] = self._columns["remote"]
        self.crossing: npt.NDArray[np.uint8] = self._columns["crossing"]
        self.op: Ints = self._columns["op"]
        self.process: Ints = self._columns["process"]

    def on_one_clock(self, offsets: Ints) -> None:
        """Correct the times, and bring rows in order of the corrected time.

        Parameters
        ----------
        offsets : ndarray of int64
            How far each process's clock is ahead, in nanoseconds. `raw_start` goes on giving
            the recorded times.

        Raises
        ------
        ValueError
            If there is not one offset per process.
        """
        if offsets.size != self.processes.height:
            raise ValueError(f"{offsets.size} offsets for {self.processes.height} processes")
        for name in ("start", "end"):
            self._columns[name] = self._columns[name] - offsets[self.process]
        self._ahead = self._ahead + offsets
        self._keep(order_of(self._columns))

    def part_captures(self) -> None:
        """Let a process that was heard in several captures be another one in each.

        Raises
        ------
        ValueError
            Never.
        """
        again, group = self.horizons.again, self.horizons.group
        if not again:
            return
        process, home = self.process.copy(), np.arange(self.processes.height)
        for code, begins in again.items():
            rows = np.flatnonzero((group == code)[self.process])
            part = np.searchsorted(begins, self.end[rows], side="right")
            for number in range(1, begins.size + 1):
                mine = rows[part == number]
                known, which = np.unique(self.process[mine], return_inverse=True)
                process[mine] = home.size + which
                home = np.concatenate([home, known])
        self._columns["process"] = process
        self.processes = take_rows(self.processes, pl.Series(home))
        self._ahead = self._ahead[home]
        self._forget()
        self._spread()

    def drop_copies(self) -> None:
        """Let each id stand on one span only: the earliest.

        Raises
        ------
        ValueError
            Never.
        """
        shared = np.flatnonzero(self.column("shared"))
        _, first, which = np.unique(self.keys(shared), return_index=True, return_inverse=True)
        if first.size == shared.size:
            return
        kept = np.arange(self.n, dtype=np.int32)
        kept[shared] = shared[first][which]
        once = kept == np.arange(self.n)
        self._columns["parent_row"] = np.where(self.parent >= 0, kept[self.parent], self.parent)
        self._columns["shared"] = np.zeros(self.n, dtype=bool)
        del kept
        self._keep(np.flatnonzero(once))

    def _keep(self, rows: Ints) -> None:
        """Keep some rows, in a new order."""
        columns = self._columns
        self._forget()
        self._columns = rearrange(columns, rows)
        self._spread()

    def _forget(self) -> None:
        """Let go of all that follows from the columns, the names of columns included."""
        for name in [name for name in vars(self) if name not in _GIVEN]:
            del self.__dict__[name]

    def once(self, function: "Callable[[Skeleton], Fact]") -> Fact:
        """Return what a function says of the capture; asked again, it is not computed again.

        Parameters
        ----------
        function : callable
            Takes the skeleton. What it returned is forgotten when rows or times change.

        Returns
        -------
        object
            What it returned, not to be changed.

        Raises
        ------
        Exception
            What it raised.
        """
        known: dict[object, Any] = vars(self).setdefault("_told", {})
        if function not in known:
            known[function] = function(self)
        fact: Fact = known[function]
        return fact

    @cached_property
    def kind(self) -> Ints:
        """Span kind of each row, as a number."""
        return self.op_kind[self.op] if self.n else np.zeros(0, np.int8)

    @cached_property
    def service(self) -> Ints:
        """Service of each row, as an index of `services`."""
        return self.op_service[self.op] if self.n else np.zeros(0, np.int32)

    @cached_property
    def children(self) -> Ints:
        """Number of children of each row."""
        held = np.bincount(self.parent[self.parent >= 0], minlength=self.n)
        return held.astype(np.int32)

    @cached_property
    def window(self) -> tuple[int, int]:
        """First start and last end of the capture."""
        if not self.timed.any():
            return (0, 0)
        first = int(self.start[self.timed.argmax()])  # rows are in order of time
        return first, int(self.end.max(where=self.timed, initial=np.iinfo(np.int64).min))

    @cached_property
    def horizons(self) -> Horizons:
        """Edges of the capture that each process was heard in."""
        return find_horizons(
            self.lives,
            process=self.process,
            trace=self.trace,
            end=self.end,
            timed=self.timed,
            services=self.processes["service_name"],
        )

    @cached_property
    def lives(self) -> pl.DataFrame:
        """When each process that has times was heard: columns of LIVES, in order of process."""
        return pl.DataFrame(self._lives(), schema=LIVES, orient="row")

    def _lives(self) -> Iterator[tuple[int, ...]]:
        for process in range(self.processes.height):
            rows = self.by_process.rows(process)
            rows = rows[self.timed[rows]]
            if rows.size:
                end, first = self.end[rows], int(rows[0])
                yield (
                    process,
                    int(self.service[first]),
                    int(self.start[first]),
                    int(end.min()),
                    int(end.max()),
                    rows.size,
                )

    @cached_property
    def roots(self) -> Ints:
        """Rows without a parent id."""
        return np.flatnonzero(self.state == ROOT).astype(np.int32)

    @cached_property
    def orphans(self) -> Ints:
        """Rows whose parent is not in the capture."""
        return np.flatnonzero(self.state == ORPHAN).astype(np.int32)

    @cached_property
    def intact(self) -> Ints:
        """Rows whose parent is in the capture."""
        return np.flatnonzero(self.state == INTACT).astype(np.int32)

    @cached_property
    def caller_class(self) -> Ints:
        """Operation of each row, told apart by peer address where it calls out."""
        calls = (self.kind == CLIENT) | (self.kind == PRODUCER)
        peers = self.peers.height + 1
        mixed = self.op.astype(np.int64) * peers
        mixed[calls] += 1 + self.column("peer")[calls]
        return ranked(mixed)

    @cached_property
    def by_op(self) -> "Groups":
        """Rows of each operation, in order of time."""
        return Groups(self.op)

    def rows_of_service(self, service: int) -> Ints:
        """Rows of a service, operation by operation."""
        ops = np.flatnonzero(self.op_service == service).tolist()
        return np.concatenate([np.zeros(0, np.int32), *(self.by_op.rows(op) for op in ops)])

    @cached_property
    def by_class(self) -> "Groups":
        """Rows of each caller class, in order of time."""
        return Groups(self.caller_class)

    @cached_property
    def unserved_by_class(self) -> "Groups":
        """Rows that call out and were not answered, by caller class, in order of time."""
        calls = (self.kind == CLIENT) | (self.kind == PRODUCER)
        return Groups(self.caller_class, np.flatnonzero(calls & ~self.served & self.timed))

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
    def calls_afar(self) -> Bools:
        """Whether a row has a child in another process."""
        rows = self.intact
        parent = self.parent[rows]
        afar = np.zeros(self.n, dtype=bool)
        afar[parent[self.process[rows] != self.process[parent]]] = True
        return afar

    def children_of(self, rows: Ints) -> Ints:
        """Return the children of some rows, in order."""
        asked = np.zeros(self.n, dtype=bool)
        asked[rows] = True
        children: Ints = self.intact[asked[self.parent[self.intact]]]
        return children

    @cached_property
    def top(self) -> Ints:
        """Topmost ancestor of each row (some member of the cycle, on and below cycles)."""
        active = np.arange(self.n, dtype=np.int32)
        top: Ints = np.where(self.parent >= 0, self.parent, active)
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
        return self.column("linked")

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of the spine as an array."""
        return self._columns[name]

    def trace_ids(self, rows: Ints) -> tuple[Words, Words]:
        """Return the two halves of the trace ids of rows."""
        trace = self.trace[rows]
        return self.traces["trace_hi"].to_numpy()[trace], self.traces["trace_lo"].to_numpy()[trace]

    def keys(self, rows: Ints) -> Words:
        """Return the ``key`` that the spine of a bucket gives the spans of rows."""
        return mix_keys(*self.trace_ids(rows), self.column("span")[rows])

    def rows_of(self, keys: pl.Series) -> pl.DataFrame:
        """Find the first row of each key: columns ``key`` and ``row``, in order of rows."""
        wanted = np.unique(keys.to_numpy())
        rows, found = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for part in slices(self.n if wanted.size else 0):
            here = np.arange(part.start, part.stop)
            if not here.size:
                break
            mine = self.keys(here)
            hit = wanted[np.minimum(np.searchsorted(wanted, mine), wanted.size - 1)] == mine
            rows.append(here[hit])
            found.append(mine[hit])
        table = pl.DataFrame({"key": np.concatenate(found), "row": np.concatenate(rows)})
        return table.unique("key", keep="first", maintain_order=True)

    def raw_start(self, rows: Ints) -> Ints:
        """Return the recorded start of rows, in nanoseconds since the epoch."""
        start: Ints = self.start[rows] + self._ahead[self.process[rows]]
        return start

    def rows_in(self, traces: Ints) -> Ints:
        """Return the rows of some traces, in order."""
        wanted = np.zeros(self.traces.height, bool)
        wanted[traces] = True
        return np.flatnonzero(wanted[self.trace])

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
                    pl.Series(self.raw_start(rows)).cast(schema.TIME)
                ),
            ).drop("row", "missing", "proposed_row"),
            schema.BREAKS,
        ).sort("time", "break_id", nulls_last=True)

    def _texts(self, rows: Ints) -> pl.DataFrame:
        """Ids of rows as text."""
        hi, lo = self.trace_ids(rows)
        texts = pl.DataFrame(
            {
                "key": self.keys(rows),
                "hi": hex_texts(hi),
                "lo": hex_texts(lo),
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
        for part in (*self.trace_ids(rows), self.column("span")[rows]):
            mixed = mix64(mixed ^ part)
        mixed = mix64(mixed ^ found["missing"].fill_null(0).to_numpy())
        return pl.Series(hex_texts(mixed))
