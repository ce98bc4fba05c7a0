"""What both encodings of the writer share: the envelope of spans, and numbers of enum words."""

import itertools
from typing import Final

import numpy as np
import polars as pl

ENVELOPE: Final = (
    "resource_attributes",
    "resource_dropped_attributes_count",
    "resource_schema_url",
    "scope_name",
    "scope_version",
    "scope_attributes",
    "scope_dropped_attributes_count",
    "scope_schema_url",
)


def message_bounds(spans: pl.DataFrame, spans_per_message: int) -> list[tuple[int, int]]:
    """Cut spans, sorted by envelope, into runs of one resource and scope each."""
    group = spans.select(pl.struct(*ENVELOPE).rle_id()).to_series().to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
    return [
        (at, min(at + spans_per_message, stop))
        for start, stop in itertools.pairwise(edges)
        for at in range(start, stop, spans_per_message)
    ]


def enum_numbers_of(column: str, words: tuple[str, ...]) -> pl.Expr:
    """Return the numbers of an enum's words; an unknown number stands as text already."""
    value = pl.col(column)
    known = value.replace_strict(
        list(words), list(range(len(words))), default=None, return_dtype=pl.Int32
    )
    return pl.coalesce(known, value.cast(pl.Int32, strict=False), pl.lit(0, pl.Int32))
