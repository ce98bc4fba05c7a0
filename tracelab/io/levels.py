"""What a decoder hands on: messages laid out in levels, and what was wrong with them."""

from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import polars as pl

from tracelab.io.attributes import Index, KeyValues, joined_key_values


@dataclass(frozen=True)
class Level:
    """Rows of one kind of message, laid end to end.

    Parameters
    ----------
    parent : ndarray of int64
        Row in the level above (for resources: the message within the block).
    message : ndarray of int64
        Message within the block that each row came from.
    columns : dict of str to pl.Series
        Plain fields. Ids are hex text, times are UInt64 with 0 for missing.
    attributes : KeyValues
        Attributes, one owner per row.
    """

    parent: Index
    message: Index
    columns: dict[str, pl.Series]
    attributes: KeyValues

    def __len__(self) -> int:
        return len(self.parent)


@dataclass
class Problems:
    """Collects REJECTS rows of one block, by message.

    Parameters
    ----------
    rows : list of tuple
        Message within the block, position within the message (0 where unknown), reason, excerpt.
    """

    rows: list[tuple[int, int, str, str]] = field(default_factory=list)

    def add(self, message: int, reason: str, excerpt: str = "", *, position: int = 0) -> None:
        """Note one problem."""
        self.rows.append((int(message), int(position), reason, excerpt[:200]))


@dataclass(frozen=True)
class Spans:
    """Trace messages in levels."""

    resources: Level
    scopes: Level
    spans: Level
    events: Level
    links: Level


@dataclass(frozen=True)
class Logs:
    """Log messages in levels."""

    resources: Level
    scopes: Level
    logs: Level


@dataclass(frozen=True)
class Metrics:
    """Metric messages in levels: each metric, and the points of all metrics."""

    resources: Level
    scopes: Level
    metrics: Level
    points: Level


@dataclass
class Decoded:
    """All messages of one block.

    Parameters
    ----------
    spans, logs, metrics : Spans, Logs, Metrics, optional
        None where the block has no such message.
    bad : set of int
        Messages of which a leaf was lost, or that could not be read at all.
    spans_rejected : int
        Spans that were seen but could not be kept.
    """

    spans: Spans | None = None
    logs: Logs | None = None
    metrics: Metrics | None = None
    bad: set[int] = field(default_factory=set)
    spans_rejected: int = 0


_ABOVE: Final = {
    "scopes": "resources",
    "spans": "scopes",
    "events": "spans",
    "links": "spans",
    "logs": "scopes",
    "metrics": "scopes",
    "points": "metrics",
}


def joined_blocks(parts: list[Decoded]) -> Decoded:
    """Lay the levels of several parts of one block end to end.

    Parameters
    ----------
    parts : list of Decoded
        In the order that the rows shall have.

    Returns
    -------
    Decoded

    Raises
    ------
    Nothing of its own.
    """
    if len(parts) == 1:
        return parts[0]
    return Decoded(
        _joined([part.spans for part in parts if part.spans is not None]),
        _joined([part.logs for part in parts if part.logs is not None]),
        _joined([part.metrics for part in parts if part.metrics is not None]),
        set().union(*(part.bad for part in parts)),
        sum(part.spans_rejected for part in parts),
    )


def _joined(blocks: list[Any]) -> Any:
    """Join blocks of one signal; None where there is none."""
    if len(blocks) < 2:
        return blocks[0] if blocks else None
    names = [str(one.name) for one in fields(blocks[0])]
    sizes = {}
    for noun in names:
        sizes[noun] = np.cumsum([0, *(len(getattr(block, noun)) for block in blocks)])
    made: dict[str, Level] = {}
    for noun in names:
        levels = [getattr(block, noun) for block in blocks]
        shifts = sizes[_ABOVE[noun]] if noun in _ABOVE else np.zeros(len(blocks), np.int64)
        made[noun] = Level(
            np.concatenate(
                [level.parent + shift for level, shift in zip(levels, shifts, strict=False)]
            ),
            np.concatenate([level.message for level in levels]),
            {
                column: pl.concat([level.columns[column] for level in levels])
                for column in levels[0].columns
            },
            joined_key_values([level.attributes for level in levels]),
        )
    return type(blocks[0])(**made)
