"""Spines of all buckets stacked in order of time, in as few bytes a span as they need.

Columns are taken from the spines one after the other, so that a capture never stands in memory
twice; hashes become row numbers in small dictionaries.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab.structure.spine import (
    NO_ROW,
    ODD_IDS,
    OPS,
    PEERS,
    PROCESSES,
    SPINE,
    TRACES,
    Spine,
)

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.signedinteger[Any]]

_UNSTACKED: Final = frozenset({"key"})
"""Columns of a spine that follow from others."""

_NARROW: Final = dict.fromkeys(("trace", "op", "process", "peer", "parent_row"), np.int32)
"""Columns that are numbers of rows here, and their type."""

_TIMED: Final = "timed"


@dataclass(slots=True)
class Stacked:
    """A whole capture.

    Parameters
    ----------
    columns : dict of str to ndarray
        By name of SPINE's columns but ``key``, in order of time; ``trace``, ``op``, ``process``
        and ``peer`` are rows of the dictionaries; ``timed`` is False where a span has no time at
        all, which then is 0.
    traces, ops, processes, peers, odd_ids : pl.DataFrame
        Columns of TRACES, OPS, PROCESSES, PEERS and ODD_IDS, sorted.
    """

    columns: dict[str, Array]
    traces: pl.DataFrame
    ops: pl.DataFrame
    processes: pl.DataFrame
    peers: pl.DataFrame
    odd_ids: pl.DataFrame


def stack_spines(spines: Iterable[Spine]) -> Stacked:
    """Stack buckets, fill times, sort by time, and let parent rows follow.

    Parameters
    ----------
    spines : iterable of Spine
        One per bucket, each of whole traces, in any order: the answer is the same. Taken one
        by one, so that an iterator that lets go of them keeps memory low.

    Returns
    -------
    Stacked
        The capture.

    Raises
    ------
    OverflowError
        If there are more rows than 32 bits can number.
    """
    frames: list[dict[str, pl.Series]] = []
    beside: dict[str, list[pl.DataFrame]] = {
        name: [] for name in ("traces", "ops", "processes", "peers", "odd_ids")
    }
    for spine in spines:
        frames.append({name: spine.spans[name] for name in SPINE.names() if name not in _UNSTACKED})
        for name, tables in beside.items():
            tables.append(getattr(spine, name))
        del spine
    height = sum(len(frame["start"]) for frame in frames)
    if height >= np.iinfo(np.int32).max:
        raise OverflowError(f"{height:,} spans: more than row numbers of 32 bits can tell apart")
    traces, trace = _number_traces(beside["traces"])
    ops, processes = _merge(beside["ops"], OPS), _merge(beside["processes"], PROCESSES)
    peers = _merge(beside["peers"], PEERS)
    known = {"op": ops["op"], "process": processes["process"], "peer": peers["peer"]}
    heights = [len(frame["start"]) for frame in frames]
    offsets = np.cumsum([0, *heights])
    columns: dict[str, Array] = dict(_take_times(frames))
    for name in SPINE.names():
        if name in columns or name in _UNSTACKED:
            continue
        parts = [np.zeros(0, _NARROW.get(name) or pl.Series(dtype=SPINE[name]).to_numpy().dtype)]
        for number, frame in enumerate(frames):
            array = frame.pop(name).to_numpy()
            if name in known:
                array = find_codes(array, known[name].to_numpy())
            elif name == "trace":
                array = trace[number][array]
            elif name == "parent_row":
                array = np.where(array >= 0, array + offsets[number], NO_ROW).astype(np.int32)
            parts.append(array)
        columns[name] = np.concatenate(parts)
        del parts
    return Stacked(
        columns=rearrange(columns, order_of(columns)),
        traces=traces,
        ops=ops,
        processes=processes,
        peers=peers,
        odd_ids=pl.concat([pl.DataFrame(schema=ODD_IDS), *beside["odd_ids"]]),
    )


def order_of(columns: dict[str, Array]) -> Ints:
    """Return rows in order of time; what starts at one time in an order that is always the same.

    Parameters
    ----------
    columns : dict of str to ndarray
        As in `Stacked`.

    Returns
    -------
    ndarray of int64
        All rows.

    Raises
    ------
    KeyError
        If a column is missing.
    """
    start = columns["start"]
    order: Ints = np.argsort(start, kind="stable")
    tied = start[order[1:]] == start[order[:-1]]
    in_run = np.zeros(order.size, bool)
    in_run[1:] |= tied
    in_run[:-1] |= tied
    del tied
    place = np.flatnonzero(in_run)
    rows = order[place]
    keys = [columns[name][rows] for name in ("op", "end", "span", "trace", "start")]
    order[place] = rows[np.lexsort(keys)]
    return order


def rearrange(columns: dict[str, Array], rows: Ints) -> dict[str, Array]:
    """Keep some rows, in a new order, and let parent rows follow.

    Parameters
    ----------
    columns : dict of str to ndarray
        As in `Stacked`; emptied, column by column, so that no more than one stands twice.
    rows : ndarray of int
        Rows to keep; the parent of a row is kept, or forgotten.

    Returns
    -------
    dict of str to ndarray
        As in `Stacked`.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    parent = columns["parent_row"]
    position = np.full(parent.size, NO_ROW, np.int32)
    position[rows] = np.arange(rows.size, dtype=np.int32)
    moved = np.full(parent.size, NO_ROW, np.int32)
    has = parent != NO_ROW
    moved[has] = position[parent[has]]
    del parent, has, position
    columns["parent_row"] = moved
    del moved
    return {name: columns.pop(name)[rows] for name in list(columns)}


def find_codes(hashes: Array, dictionary: Array) -> Ints:
    """Find the row of each hash in a small dictionary that holds them all.

    Parameters
    ----------
    hashes, dictionary : ndarray of uint64
        What is sought, and where.

    Returns
    -------
    ndarray of int32
        As many as hashes.

    Raises
    ------
    IndexError
        If a hash is larger than any in the dictionary.
    """
    order = np.argsort(dictionary)
    ordered = dictionary[order]
    return order[np.searchsorted(ordered, hashes)].astype(np.int32)


def _take_times(frames: list[dict[str, pl.Series]]) -> Iterable[tuple[str, Array]]:
    """Start and end, each the other's value where it is missing; whether there is any."""
    starts, ends, timed = [], [], []
    for frame in frames:
        start, end = frame.pop("start"), frame.pop("end")
        timed.append((start.is_not_null() | end.is_not_null()).to_numpy())
        starts.append(start.fill_null(end).fill_null(0).to_numpy())
        ends.append(end.fill_null(start).fill_null(0).to_numpy())
        del start, end
    for name, parts, kind in (
        ("start", starts, np.int64),
        ("end", ends, np.int64),
        (_TIMED, timed, np.bool_),
    ):
        yield name, np.concatenate([np.zeros(0, kind), *parts])
        parts.clear()


def _number_traces(tables: list[pl.DataFrame]) -> tuple[pl.DataFrame, list[Ints]]:
    """Give traces numbers in order of their ids; return the ids, and each bucket's numbers."""
    ids = pl.concat([pl.DataFrame(schema=TRACES), *tables])
    order = ids.select(pl.arg_sort_by("trace_hi", "trace_lo")).to_series()
    ids = ids.select(pl.all().gather(order))
    new = ids.select(
        (pl.col("trace_hi") != pl.col("trace_hi").shift()).fill_null(value=True)
        | (pl.col("trace_lo") != pl.col("trace_lo").shift())
    ).to_series()
    number = np.empty(ids.height, np.int32)
    number[order.to_numpy()] = new.cast(pl.Int32).cum_sum().to_numpy() - 1
    ends = np.cumsum([table.height for table in tables])[:-1]
    return ids.filter(new), np.split(number, ends)


def _merge(tables: list[pl.DataFrame], columns: pl.Schema) -> pl.DataFrame:
    code = columns.names()[0]
    return (
        pl.concat([pl.DataFrame(schema=columns), *tables])
        .sort([*columns.names()[1:], code], nulls_last=True)
        .unique(code, keep="first", maintain_order=True)
    )
