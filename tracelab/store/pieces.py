"""A large bucket read a few parts at a time: traces are whole once their last part was read.

The spans of a trace are mostly stored within a few parts, one after the other. What is held at a
time is therefore a piece and the traces that go on, however large the bucket has become.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import polars as pl

from tracelab.io import split_traces
from tracelab.io.chunk import Chunk

_OF_TRACES = ("spans", "events", "links", "logs")


TRACE_KEY: Final = pl.col("trace_id").hash(7)
"""A number for a trace, quicker to look for than its id; two of one number are whole together."""


def part_batches(rows: Sequence[int], at_once: int) -> list[range]:
    """Put batches together that are read at a time.

    Parameters
    ----------
    rows : sequence of int
        Rows of each batch.
    at_once : int
        About how many rows are read at a time.

    Returns
    -------
    list of range
        All batches, in order.

    Raises
    ------
    Nothing of its own.
    """
    found, begin, held = [], 0, 0
    for number, many in enumerate(rows):
        held += many
        if held >= at_once or number == len(rows) - 1:
            found.append(range(begin, number + 1))
            begin, held = number + 1, 0
    return found


def whole_traces(
    read: Callable[[range], Chunk], batches: Sequence[range], last: pl.DataFrame, max_spans: int
) -> Iterator[Chunk]:
    """Give out traces as soon as all their rows were read.

    Parameters
    ----------
    read : callable
        Reads some batches.
    batches : sequence of range
        What is read at a time.
    last : pl.DataFrame
        ``trace`` (`TRACE_KEY`) and ``batch``: the last batch with rows of each trace.
    max_spans : int
        About how many spans a chunk may have.

    Yields
    ------
    Chunk
        Whole traces; what belongs to no trace stands in the first.

    Raises
    ------
    Exception
        What `read` raised.
    """
    held, since = Chunk(), 0
    for some in batches:
        held = _joined(held, read(some))
        done = last.filter(pl.col("batch").is_between(since, some.stop - 1))["trace"]
        whole = pl.col("trace_id").is_null() | TRACE_KEY.is_in(done.implode())
        final = some.stop == batches[-1].stop
        if not final and held.spans.select(whole.sum()).item() < max_spans // 2:
            continue
        ready = replace(held, **{name: getattr(held, name).filter(whole) for name in _OF_TRACES})
        held = Chunk(**{name: getattr(held, name).filter(~whole) for name in _OF_TRACES})
        since = some.stop
        yield from split_traces(ready, max_spans)


def _joined(held: Chunk, more: Chunk) -> Chunk:
    tables = (*_OF_TRACES, "metrics")
    return Chunk(**{name: pl.concat([getattr(held, name), getattr(more, name)]) for name in tables})
