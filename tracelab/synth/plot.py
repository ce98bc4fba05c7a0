"""A capture as numbers: what the injectors read and change."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab.traceset import TraceSet

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

ENTRIES = ("SERVER", "CONSUMER")


@dataclass(slots=True)
class Plot:
    """Rows of a capture with their parents, processes and times; the injectors change it.

    Parameters
    ----------
    spans : pl.DataFrame
        The capture's spans as they were; row numbers refer to it.
    up : ndarray of int64
        Row of each span's parent, or -1.
    process, service, op : ndarray of int64
        Dense codes of who ran the span, and of (service, name, kind).
    start, end : ndarray of int64
        Nanoseconds.
    trace_id, span_id, parent_id : list-like Series
        Ids as they will be written.
    lost : ndarray of int64
        0 for kept, else the number of the loss in `losses`.
    tells : ndarray of bool
        Spans whose SDK counts its own losses in metrics.
    """

    spans: pl.DataFrame
    up: Ints
    process: Ints
    service: Ints
    op: Ints
    start: Ints
    end: Ints
    kind: npt.NDArray[np.str_]
    boundary: npt.NDArray[np.str_]
    ids: pl.DataFrame
    lost: Ints
    tells: Flags
    losses: list[tuple[str, str]] = field(default_factory=lambda: [("", "")])
    truth: list[pl.DataFrame] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of spans."""
        return self.spans.height

    def lose(self, rows: Ints, cause: str, detail: str) -> None:
        """Mark rows as lost, unless something else lost them first."""
        self.losses.append((cause, detail))
        free = rows[self.lost[rows] == 0]
        self.lost[free] = len(self.losses) - 1

    def levels(self) -> list[Ints]:
        """Rows by depth: those without parent first."""
        depth = np.zeros(self.n, np.int64)
        reach = self.up.copy()
        for _ in range(64):
            live = reach >= 0
            if not live.any():
                break
            depth[live] += 1
            reach[live] = self.up[reach[live]]
        order = np.argsort(depth, kind="stable")
        cuts = np.flatnonzero(np.diff(depth[order])) + 1
        return np.split(order, cuts)


def build_plot(traces: TraceSet) -> Plot:
    """Turn a capture into numbers."""
    spans = traces.spans
    n = spans.height
    parents = (
        spans.select("trace_id", pl.col("span_id").alias("parent_span_id"))
        .with_row_index("up")
        .unique(["trace_id", "parent_span_id"], keep="first")
    )
    up = (
        spans.select("trace_id", "parent_span_id")
        .join(parents, on=["trace_id", "parent_span_id"], how="left", maintain_order="left")["up"]
        .cast(pl.Int64)
        .fill_null(-1)
        .to_numpy()
        .copy()
    )
    up[up == np.arange(n)] = -1
    codes = spans.select(
        process=_code("service_name", "service_instance_id", "host_name", "process_pid"),
        service=_code("service_name"),
        op=_code("service_name", "name", "kind"),
        start=pl.col("start_time").cast(pl.Int64).fill_null(0),
        end=pl.col("end_time").cast(pl.Int64).fill_null(0),
    )
    return Plot(
        spans=spans,
        up=up,
        process=codes["process"].to_numpy().copy(),
        service=codes["service"].to_numpy(),
        op=codes["op"].to_numpy(),
        start=codes["start"].to_numpy(),
        end=codes["end"].to_numpy(),
        kind=spans["kind"].fill_null("UNSPECIFIED").to_numpy().astype(str),
        boundary=_boundaries(spans, up),
        ids=spans.select("trace_id", "span_id", "parent_span_id"),
        lost=np.zeros(n, np.int64),
        tells=np.zeros(n, bool),
    )


def _code(*columns: str) -> pl.Expr:
    return pl.struct(columns).rank("dense").cast(pl.Int64) - 1


def take(table: pl.DataFrame, rows: Ints) -> pl.DataFrame:
    """Gather rows; -1 gives a row of nulls."""
    index = pl.Series(rows).set(pl.Series(rows < 0), None).cast(pl.UInt32)
    return table.select(pl.all().gather(index))


def _boundaries(spans: pl.DataFrame, up: Ints) -> npt.NDArray[np.str_]:
    """Which border lies above each span, from what both spans say of themselves."""
    columns = [
        "kind",
        "service_name",
        "service_instance_id",
        "host_name",
        "process_pid",
        "thread_id",
        "task_id",
    ]
    child = spans.select(*columns, "parent_is_remote")
    both = child.hstack(take(spans.select(columns), up).rename(lambda name: f"p_{name}"))

    def differ(name: str) -> pl.Expr:
        return (pl.col(name) != pl.col(f"p_{name}")).fill_null(value=False)

    elsewhere = (
        pl.col("parent_is_remote").fill_null(value=False)
        | differ("service_name")
        | differ("service_instance_id")
        | differ("process_pid")
        | differ("host_name")
        | ((pl.col("kind") == "SERVER") & (pl.col("p_kind") == "CLIENT"))
    )
    known = pl.col("thread_id").is_not_null() | pl.col("task_id").is_not_null()
    words = both.select(
        pl.when(pl.lit(pl.Series(up < 0)))
        .then(pl.lit("unknown"))
        .when((pl.col("kind") == "CONSUMER") & elsewhere)
        .then(pl.lit("queue"))
        .when(elsewhere & (pl.col("host_name") == pl.col("p_host_name")).fill_null(value=False))
        .then(pl.lit("process"))
        .when(elsewhere)
        .then(pl.lit("network"))
        .when(differ("thread_id"))
        .then(pl.lit("thread"))
        .when(differ("task_id"))
        .then(pl.lit("task"))
        .when(known)
        .then(pl.lit("same"))
        .otherwise(pl.lit("unknown"))
        .alias("boundary")
    )
    return words["boundary"].to_numpy().astype(str)
