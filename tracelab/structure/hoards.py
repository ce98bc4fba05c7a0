"""Late children that gather under few parents: contexts that are never given back.

A pool of connections or of workers that keeps the context of whoever opened it hangs the calls of
all requests below the first few. Where it does so from the beginning no honest call tells what
is usual. A poller that one request started looks alike, but for its times: they follow no other
request. So whoever else may have called must account for the calls beyond chance.
"""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.calls import Answer, answer, candidate_pairs
from tracelab.structure.discovery import MIN_CALLS, MIN_SHARE, discover_callers
from tracelab.structure.doubts import DOUBTS, HOARD, OFTEN, RARE
from tracelab.structure.skeleton import Ints, Skeleton

_TOLERANCE_NS: Final = 100_000


def find_hoards(places: pl.DataFrame, known: pl.Series) -> pl.DataFrame:
    """List late children of the few parents that have most calls of an operation.

    Parameters
    ----------
    places : pl.DataFrame
        From `find_places`.
    known : pl.Series
        Rows that are doubtful for other reasons.

    Returns
    -------
    pl.DataFrame
        Schema `DOUBTS`, sorted by operation and row.

    Raises
    ------
    SchemaError
        Never.
    """
    gathered = pl.col("after").sum().over("family") >= HOARD
    kinds = (
        places.with_columns(gathered=gathered & pl.col("after"))
        .group_by("pair")
        .agg(
            most=pl.col("gathered").mean() >= 0.5,
            parents=pl.col("parent").n_unique(),
            callers=pl.col("callers").first(),
        )
        .filter(pl.col("most") & (pl.col("parents") <= OFTEN * pl.col("callers")))
    )
    share = pl.max_horizontal(pl.col("parents") / pl.col("callers"), RARE)
    flags = {name: pl.lit(value=False) for name, kind in DOUBTS.items() if kind == pl.Boolean}
    return (
        places.join(kinds, on="pair", how="inner")
        .filter(gathered & pl.col("after"))
        .filter(~pl.col("row").is_in(known.implode()))
        .with_columns(**{**flags, "hoarded": pl.lit(value=True)})
        .with_columns(extra=pl.lit(0, pl.Int64), weight=-share.log())
        .select(DOUBTS.names())
        .sort("op", "row")
    )


def ask_others(skeleton: Skeleton, op: int, rows: Ints) -> Answer | None:
    """Ask who else in the process may have made calls of which the parents tell nothing.

    Parameters
    ----------
    skeleton : Skeleton
        The capture, on one clock.
    op : int
        The operation.
    rows : ndarray of int64
        Its calls, in order of start.

    Returns
    -------
    Answer or None
        None where nobody accounts for them beyond chance.

    Raises
    ------
    ValueError
        Never.
    """
    suspects = discover_callers(skeleton, op, rows, local=True, tolerance_ns=_TOLERANCE_NS)
    # What hangs below the same parents belongs to the same unknown requests.
    above = skeleton.parent[rows]
    suspects = [
        suspect
        for suspect in suspects
        if np.isin(skeleton.parent[suspect.group.rows], above).mean() <= OFTEN
    ]
    if not suspects:
        return None
    classes = [suspect.group for suspect in suspects]
    pairs = candidate_pairs(skeleton, rows, classes, same_process=True, tolerance_ns=_TOLERANCE_NS)
    reply = answer(
        skeleton, rows, classes, pairs, first_guess=[suspect.law for suspect in suspects]
    )
    calls = float(reply.called.sum())
    return reply if calls >= max(MIN_CALLS, MIN_SHARE * rows.size) else None
