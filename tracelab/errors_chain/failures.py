"""Which hops belong to one failure, and in which order."""

from typing import Final

import numpy as np
import polars as pl

_CARRIES: Final = {
    "kept": 0,
    "wrapped": 1,
    "flattened": 2,
    "truncated": 3,
    "status_lost": 4,
    "not_determinable": 5,
    "replaced": 6,
}
"""Verdicts by which an error reaches the parent, the surest first."""

_DOUBLINGS: Final = 17  # chains of up to 131,072 hops


def number_failures(hops: pl.DataFrame) -> pl.DataFrame:
    """Add ``error_id`` and ``hop``: the origin is where no failing child's error arrived.

    Parameters
    ----------
    hops : pl.DataFrame
        Columns trace_id, span_id, up_trace, up_span, verdict, end_time; one row per child.

    Returns
    -------
    pl.DataFrame
        The same rows; of several errors that arrive at one span the best kept one, then
        the latest, goes on, the others end there.
    """
    hops = hops.drop("row", strict=False).with_row_index("row")
    carried = (
        hops.filter(pl.col("verdict").is_in(list(_CARRIES)))
        .with_columns(pl.col("verdict").replace_strict(_CARRIES, default=9).alias("rank"))
        .sort("rank", "end_time", "row", descending=[False, True, False])
        .unique(["up_trace", "up_span"], keep="first", maintain_order=True)
        .select(
            pl.col("up_trace").alias("trace_id"),
            pl.col("up_span").alias("span_id"),
            pl.col("row").alias("carrier"),
        )
    )
    rows = hops.join(carried, on=["trace_id", "span_id"], how="left", maintain_order="left")
    own = np.arange(rows.height)
    step = rows["carrier"].fill_null(-1).cast(pl.Int64).to_numpy()
    step = np.where(step < 0, own, step)
    depth = (step != own).astype(np.int64)
    for _ in range(_DOUBLINGS):
        depth = depth + depth[step]
        step = step[step]
        if np.array_equal(step, step[step]) and not depth[step].any():
            break
    cyclic = depth[step] != 0  # parents in a circle: each span is its own failure
    origin = np.where(cyclic, own, step)
    identity = pl.concat_str(
        pl.lit("e"), pl.col("trace_id").str.slice(0, 16), "span_id", separator="-"
    )
    ids = rows.select(identity.alias("error_id"))["error_id"]
    return rows.with_columns(
        ids.gather(origin).alias("error_id"),
        pl.Series("hop", np.where(cyclic, 0, depth)),
    )
