"""Spines of all buckets stacked in order of time, in as few bytes a span as they need.

A bucket is packed where it was read: sorted, its hashes row numbers of small dictionaries. Columns
are taken from the buckets one after the other, so that a capture never stands in memory twice.
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

_CODED: Final = {"op": "ops", "process": "processes", "peer": "peers"}
"""Columns that are hashes in a spine, and the dictionary that becomes what they are a row of."""

_BESIDE: Final = ("traces", *_CODED.values(), "odd_ids")


@dataclass(slots=True)
class Packed:
    """Spans in order of time: a bucket, or a whole capture.

    Parameters
    ----------
    columns : dict of str to ndarray
        By name of SPINE's columns but ``key``; ``trace``, ``op``, ``process`` and ``peer`` are
        rows of the dictionaries; ``timed`` is False where a span has no time at all, which then
        is 0.
    traces, ops, processes, peers, odd_ids : pl.DataFrame
        Columns of TRACES, OPS, PROCESSES, PEERS and ODD_IDS, sorted.
    """

    columns: dict[str, Array]
    traces: pl.DataFrame
    ops: pl.DataFrame
    processes: pl.DataFrame
    peers: pl.DataFrame
    odd_ids: pl.DataFrame


def pack_spine(spine: Spine) -> Packed:
    """Fill times, sort by time, let parent rows follow, and turn hashes into small codes.

    A capture is mostly put in order bucket by bucket, where it fits the processor's caches and
    many do it at once: sorted buckets are merged in a fraction of the time.

    Parameters
    ----------
    spine : Spine
        A bucket of whole traces.

    Returns
    -------
    Packed
        The same.

    Raises
    ------
    OverflowError
        If there are more rows than 32 bits can number.
    """
    spans = spine.spans
    _check_height(spans.height)
    start, end = spans["start"], spans["end"]
    columns: dict[str, Array] = {
        "start": start.fill_null(end).fill_null(0).to_numpy(),
        "end": end.fill_null(start).fill_null(0).to_numpy(),
        "timed": (start.is_not_null() | end.is_not_null()).to_numpy(),
    }
    for name in SPINE.names():
        if name in _CODED:
            known = getattr(spine, _CODED[name])[name].to_numpy()
            columns[name] = find_codes(spans[name].to_numpy(), known)
        elif name in ("trace", "parent_row"):
            columns[name] = spans[name].to_numpy().astype(np.int32)
        elif name != "key" and name not in columns:
            columns[name] = spans[name].to_numpy()
    order = np.argsort(columns["start"], kind="stable")
    return Packed(rearrange(columns, order), *(getattr(spine, name) for name in _BESIDE))


def _check_height(height: int) -> None:
    if height >= np.iinfo(np.int32).max:
        raise OverflowError(f"{height:,} spans: more than row numbers of 32 bits can tell apart")


def stack_spines(buckets: Iterable[Packed]) -> Packed:
    """Stack buckets, sort by time, and let parent rows follow.

    Parameters
    ----------
    buckets : iterable of Packed
        Each of whole traces, in any order: the answer is the same. Taken one by one, so that an
        iterator that lets go of them keeps memory low.

    Returns
    -------
    Packed
        The capture.

    Raises
    ------
    OverflowError
        If there are more rows than 32 bits can number.
    """
    parts: list[dict[str, Array]] = []
    beside: dict[str, list[pl.DataFrame]] = {name: [] for name in _BESIDE}
    for bucket in buckets:
        parts.append(bucket.columns)
        for name, tables in beside.items():
            tables.append(getattr(bucket, name))
        del bucket
    offsets = np.cumsum([0, *(part["start"].size for part in parts)])
    _check_height(int(offsets[-1]))
    traces, numbers = _number_traces(beside["traces"])
    merged = {
        column: _merge(beside[name], schema)
        for (column, name), schema in zip(_CODED.items(), (OPS, PROCESSES, PEERS), strict=True)
    }
    # What a code of a bucket is in the whole.
    recoded = {"trace": numbers} | {
        column: [
            find_codes(table[column].to_numpy(), merged[column][column].to_numpy())
            for table in beside[name]
        ]
        for column, name in _CODED.items()
    }
    columns: dict[str, Array] = {}
    for name, none in pack_spine(_NOTHING).columns.items():
        column = np.empty(offsets[-1], none.dtype)
        for number, part in enumerate(parts):
            here = slice(offsets[number], offsets[number + 1])
            array = part.pop(name)
            if name in recoded:
                array = recoded[name][number][array]
            elif name == "parent_row":
                array = np.where(array >= 0, array + np.int32(offsets[number]), NO_ROW)
            column[here] = array
        columns[name] = column
    return Packed(
        columns=rearrange(columns, order_of(columns)),
        traces=traces,
        ops=merged["op"],
        processes=merged["process"],
        peers=merged["peer"],
        odd_ids=pl.concat([pl.DataFrame(schema=ODD_IDS), *beside["odd_ids"]]),
    )


def order_of(columns: dict[str, Array]) -> Ints:
    """Return rows in order of time; what starts at one time in an order that is always the same.

    Parameters
    ----------
    columns : dict of str to ndarray
        As in `Packed`.

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
        As in `Packed`; emptied, column by column, so that no more than one stands twice.
    rows : ndarray of int
        Rows to keep; the parent of a row is kept, or forgotten.

    Returns
    -------
    dict of str to ndarray
        As in `Packed`.

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


_NOTHING: Final = Spine(
    *(pl.DataFrame(schema=each) for each in (SPINE, TRACES, OPS, PROCESSES, PEERS, ODD_IDS))
)
