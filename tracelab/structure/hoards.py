"""Late children that gather under few parents: contexts that are never given back.

A pool of connections or of workers that keeps the context of whoever opened it hangs the calls of
all requests below the first few. Where it does so from the beginning no honest call tells what
is usual. A poller that one request started looks alike, but for its times: they follow no other
request. So whoever else may have called must account for the calls beyond chance.
"""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.boundaries import usual_boundaries
from tracelab.structure.calls import Answer, answer, candidate_pairs
from tracelab.structure.discovery import MIN_CALLS, MIN_SHARE, discover_callers
from tracelab.structure.doubts import DOUBTS, HOARD, LEAST, OFTEN, RARE
from tracelab.structure.skeleton import CONSUMER, FAR, ONE_CLOCK_NS, SERVER, Ints, Skeleton


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
    return (
        places.join(kinds, on="pair", how="inner")
        .filter(gathered & pl.col("after"))
        .filter(~pl.col("row").is_in(known.implode()))
        .with_columns(**_HOARDED, spread_s=pl.lit(None, pl.Float64), weight=-share.log())
        .select(DOUBTS.names())
        .cast(DOUBTS)
        .sort("op", "row")
    )


def find_lost_hoards(skeleton: Skeleton) -> pl.DataFrame:
    """List children of missing parents that would have to be open far longer than their kind is.

    Parameters
    ----------
    skeleton : Skeleton
        The capture, on one clock.

    Returns
    -------
    pl.DataFrame
        Schema `DOUBTS`, sorted by operation and row.

    Raises
    ------
    SchemaError
        Never.
    """
    orphans = skeleton.orphans
    kind = skeleton.kind[orphans]
    orphans = orphans[skeleton.timed[orphans] & (kind != SERVER) & (kind != CONSUMER)]
    named = pl.DataFrame(
        {
            "row": orphans.astype(np.int64),
            "op": skeleton.op[orphans].astype(np.int64),
            "trace": skeleton.trace[orphans],
            "parent": skeleton.column("parent")[orphans],
            "start": skeleton.start[orphans],
        }
    )
    family = ["op", "trace", "parent"]
    spread = (pl.col("start").max() - pl.col("start").min()).over(family)
    gathered = named.with_columns(spread=spread).filter(pl.len().over(family) >= HOARD)
    if gathered.height:
        local = usual_boundaries(skeleton, gathered["row"].to_numpy())["local"]
        gathered = gathered.filter(local)
    usual = _usual_callers(skeleton, gathered["op"].unique().to_numpy())
    parents = pl.struct("trace", "parent").n_unique().over("op")
    share = pl.max_horizontal(parents / pl.col("callers"), RARE)
    return (
        gathered.join(usual, on="op", how="inner")
        .filter(pl.col("spread") >= HOARD * pl.col("longest"))
        .filter(parents <= OFTEN * pl.col("callers"))
        .with_columns(
            **_HOARDED,
            # Kinds of call are numbered from 0, those without a parent below.
            pair=-1 - pl.col("op"),
            spread_s=pl.col("spread") / 1e9,
            late_ms=pl.lit(None, pl.Float64),
            weight=-share.log(),
        )
        .select(DOUBTS.names())
        .cast(DOUBTS)
        .sort("op", "row")
    )


def _usual_callers(skeleton: Skeleton, ops: Ints) -> pl.DataFrame:
    """Of operations: how many spans there are of those that call them, and how long they last."""
    wanted = np.zeros(skeleton.ops.height, bool)
    wanted[ops] = True
    rows = skeleton.intact
    rows = rows[wanted[skeleton.op[rows]] & ~FAR[skeleton.crossing[rows]]]
    pairs = (
        pl.DataFrame(
            {"op": skeleton.op[rows].astype(np.int64), "of": skeleton.op[skeleton.parent[rows]]}
        )
        .group_by("op", "of")
        .agg(pl.len().alias("calls"))
    )
    asked = np.zeros(skeleton.ops.height, bool)
    asked[pairs["of"].to_numpy()] = True
    above = np.flatnonzero(asked[skeleton.op] & skeleton.timed)
    lasting = (
        pl.DataFrame({"of": skeleton.op[above], "ns": skeleton.end[above] - skeleton.start[above]})
        .group_by("of")
        .agg(pl.col("ns").max().alias("longest"), pl.len().cast(pl.Int64).alias("callers"))
    )
    return (
        pairs.join(lasting, on="of", how="inner")
        .group_by("op")
        .agg(pl.col("longest").max(), pl.col("callers", "calls").sum())
        .filter(pl.col("calls") >= LEAST)
    )


_HOARDED: Final = {
    **{name: pl.lit(value=False) for name, kind in DOUBTS.items() if kind == pl.Boolean},
    "hoarded": pl.lit(value=True),
    "extra": pl.lit(0, pl.Int64),
}
"""What is not doubtful about a hoarded call, and what is."""


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
    suspects = discover_callers(skeleton, op, rows, local=True, tolerance_ns=ONE_CLOCK_NS)
    # What hangs below the same parents belongs to the same unknown requests.
    above = skeleton.parent[rows]
    above = above[above >= 0]
    suspects = [
        suspect
        for suspect in suspects
        if np.isin(skeleton.parent[suspect.group.rows], above).mean() <= OFTEN
    ]
    if not suspects:
        return None
    classes = [suspect.group for suspect in suspects]
    pairs = candidate_pairs(skeleton, rows, classes, same_process=True, tolerance_ns=ONE_CLOCK_NS)
    reply = answer(
        skeleton, rows, classes, pairs, first_guess=[suspect.law for suspect in suspects]
    )
    calls = float(reply.called.sum())
    return reply if calls >= max(MIN_CALLS, MIN_SHARE * rows.size) else None
