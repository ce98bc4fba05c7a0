"""What flows between the readers: blocks of raw messages in, chunks of tables out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema

ROW: Final = "_row"
"""Running number of a span within its source; carried by the chunk's spans, events and
links so that rows stay together before duplicates are resolved. Never public."""

MESSAGES: Final = pl.Schema(
    {
        "message": pl.Int64,
        "offset": pl.Int64,
        "length": pl.Int64,
        "first_row": pl.Int64,
        "spans": pl.Int64,
        "good": pl.Boolean,
    }
)
"""One row per message (export request): where its bytes stand in the source after
decompression, and which span rows came out of it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive messages of one source, still encoded.

    Parameters
    ----------
    encoding : {"proto", "json"}
        Encoding of every message of the block.
    buffer : bytes
        Memory that holds the messages; gaps between them are allowed.
    starts, lengths : ndarray of int64, shape (n_messages,)
        Where each message stands in `buffer`.
    offsets : ndarray of int64, shape (n_messages,)
        Where each message stands in the source after decompression.
    lines : ndarray of int64, shape (n_messages,), or None
        Line number of each message, 1-based, where the form has lines.
    first_message : int
        Number of the first message within the source.
    """

    encoding: Literal["proto", "json"]
    buffer: bytes
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64] | None = None
    first_message: int = 0


def _none(table: pl.Schema, *, row: bool = False) -> Callable[[], pl.DataFrame]:
    """Return a maker of empty tables: building one of 49 columns anew takes half a millisecond."""
    empty = pl.DataFrame(schema={**table, ROW: pl.UInt64} if row else table)
    return empty.clone


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tables decoded from one block.

    Parameters
    ----------
    spans, events, links : pl.DataFrame
        SPANS, EVENTS, LINKS, each with `ROW` behind the public columns. ``source`` of the
        spans is filled. Events here are span events only.
    logs, metrics : pl.DataFrame
        LOGS and METRIC_POINTS.
    rejects : pl.DataFrame
        REJECTS.
    messages : pl.DataFrame
        MESSAGES.
    spans_rejected : int
        Spans that were seen in a message but could not be kept.
    """

    spans: pl.DataFrame = field(default_factory=_none(schema.SPANS, row=True))
    events: pl.DataFrame = field(default_factory=_none(schema.EVENTS, row=True))
    links: pl.DataFrame = field(default_factory=_none(schema.LINKS, row=True))
    logs: pl.DataFrame = field(default_factory=_none(schema.LOGS))
    metrics: pl.DataFrame = field(default_factory=_none(schema.METRIC_POINTS))
    rejects: pl.DataFrame = field(default_factory=_none(schema.REJECTS))
    messages: pl.DataFrame = field(default_factory=_none(MESSAGES))
    spans_rejected: int = 0
