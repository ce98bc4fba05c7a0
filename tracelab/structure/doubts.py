"""Children in an unusual place, and how unlikely each thing about it would be of an honest call.

Nothing here is a verdict: rare code paths, retries and work after the answer are legal. Each sign
is weighed by how often honest calls of its kind show it, so that signs can be added up.
"""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.conflicts import where_ids_change
from tracelab.structure.skeleton import FAR, Bools, Ints, Skeleton, pair_codes

RARE: Final = 0.02
"""At most this share of an operation's spans may look like this for it to be unusual. No sign but
a late start counts for more than that: rare things happen."""

NEVER: Final = 0.005
"""What a late start counts for at most: callers that wait for a call wait each time."""

LEAST: Final = 5
"""Least spans of an operation before anything about it is unusual."""

CROWDED: Final = 0.3
"""At most this share of callers may call an operation twice for a second call to be unusual."""

OFTEN: Final = 0.1
"""A share from which a thing is common."""

RETRIES: Final = 0.2
"""Of calls too many in their parent's time at least as many are honest."""

HOARD: Final = 5
"""Least number of parents that show what is usual, and least multiple of it that is not."""

_TOLERANCE_NS: Final = 100_000
_TICK_NS: Final = 1_000_000
_SAMPLE: Final = 200_000
"""Calls from which it is learnt who does one thing at a time."""

DOUBTS: Final = pl.Schema(
    {
        "row": pl.Int64,
        "op": pl.Int64,
        "pair": pl.Int64,
        "path": pl.Boolean,
        "request": pl.Boolean,
        "tenant": pl.Boolean,
        "strange": pl.Boolean,
        "late": pl.Boolean,
        "crowded": pl.Boolean,
        "busy": pl.Boolean,
        "hoarded": pl.Boolean,
        "extra": pl.Int64,
        "late_ms": pl.Float64,
        "spread_s": pl.Float64,
        "weight": pl.Float64,
    }
)
"""A doubtful child: what is unusual about it, and the log of how unlikely that is of an honest
call; where its parent is missing, for how long calls name that."""


def find_doubts(skeleton: Skeleton, table: pl.DataFrame) -> pl.DataFrame:
    """List children inside a process whose place is unusual, and why.

    Parameters
    ----------
    skeleton : Skeleton
        The capture, on one clock.
    table : pl.DataFrame
        From `find_places`.

    Returns
    -------
    pl.DataFrame
        Schema `DOUBTS`, sorted by operation and row.

    Raises
    ------
    SchemaError
        Never.
    """
    signs = _many_signs(table)
    doubts = signs.filter(pl.any_horizontal("request", "tenant", "strange", "late", "crowded"))
    busy = _while_busy(skeleton, doubts)
    doubts = (
        doubts.with_columns(busy=busy > 0, busy_weight=busy, hoarded=False)
        .with_columns(spread_s=pl.lit(None, pl.Float64))
        .with_columns(
            # That an extra call comes late is hardly a sign of its own.
            weight=pl.max_horizontal("late_weight", "crowded_weight")
            + pl.col("strange_weight")
            + pl.col("busy_weight").cast(pl.Float64),
        )
        .select(DOUBTS.names())
        .sort("op", "row")
    )
    # Below a doubtful span ids differ from those further up through no fault of their own.
    under = np.zeros(skeleton.n, bool)
    under[doubts["row"].to_numpy()] = True
    above = pl.Series(under[skeleton.parent[doubts["row"].to_numpy()]])
    return doubts.filter(~above | pl.col("strange") | pl.col("late") | pl.col("crowded"))


def _many_signs(table: pl.DataFrame) -> pl.DataFrame:
    """Add a column for each sign, and how much it weighs."""
    # Lazily, for what the signs have in common is then computed once.
    signs = table.lazy().with_columns(*_strange(), *_crowded()).collect()
    any_late = pl.col("late_pair") > OFTEN * pl.col("n_pair")
    families = signs.filter(pl.col("crowded") & any_late)["family"].unique()
    # Where calls are late as a rule any of a crowded parent's may be the one too many.
    crowded = pl.col("crowded") | (any_late & pl.col("family").is_in(families.implode()))
    # Where workers are seen to keep contexts, a call too many in the parent's time may be theirs,
    # which says little: it may as well be a retry.
    leaks = (pl.col("crowded") & pl.col("after")).sum().over("pair") >= LEAST
    again = (pl.col("rank") > pl.col("number")) & pl.col("inside") & ~any_late
    families = signs.filter(leaks & again)["family"].unique()
    again = pl.col("inside") & pl.col("family").is_in(families.implode())
    share = pl.when(again).then(RETRIES).otherwise("crowded_share")
    crowded |= again
    return (
        signs.lazy()
        .with_columns(
            *_late(),
            crowded=crowded,
            crowded_weight=_weight(share, crowded),
            extra=pl.when(crowded).then(pl.col("calls") - pl.col("number")).otherwise(0),
            request=pl.col("request") & (pl.col("request_op") < 0.5),
            tenant=pl.col("tenant") & (pl.col("tenant_op") < 0.5),
        )
        .with_columns(pl.col("extra").cast(pl.Int64))
        .collect()
    )


def find_places(skeleton: Skeleton) -> pl.DataFrame:
    """List children of the kinds of call that something is odd about, and what is usual of each.

    Parameters
    ----------
    skeleton : Skeleton
        The capture, on one clock.

    Returns
    -------
    pl.DataFrame
        One row per child: the kind of call (operation and its caller's) as ``pair``, all calls of
        one operation by one parent as ``family``, how late it started, and counts of each.

    Raises
    ------
    SchemaError
        Never.
    """
    rows = skeleton.intact
    parent = skeleton.parent[rows]
    near = ~FAR[skeleton.crossing[rows]] & skeleton.timed[rows] & skeleton.timed[parent]
    near &= rows != parent
    rows, parent = rows[near], parent[near]
    grain = _grains(skeleton)[skeleton.process[rows]]
    late_ns = skeleton.start[rows] - skeleton.end[parent]
    inside = skeleton.end[rows] <= skeleton.end[parent] + grain
    after = late_ns > grain
    del grain
    request = np.isin(rows, where_ids_change(skeleton, "request", rows), assume_unique=True)
    tenant = np.isin(rows, where_ids_change(skeleton, "tenant", rows), assume_unique=True)
    op, parent_op = skeleton.op[rows], skeleton.op[parent]
    ops = skeleton.ops.height
    n_op = np.bincount(op, minlength=ops)
    of_op = {
        name: np.bincount(op, weights=marks, minlength=ops) / np.maximum(n_op, 1)
        for name, marks in (("late", after), ("request", request), ("tenant", tenant))
    }
    pair = pair_codes(op, parent_op, ops)
    keep = _may_be_odd(pair, n_op[op], odd=request | tenant | ~inside | after)
    rows, parent, op, parent_op = rows[keep], parent[keep], op[keep], parent_op[keep]
    return pl.DataFrame(
        {
            "row": rows,
            "parent": parent,
            "op": op,
            "pair": pair[keep],
            "family": pair_codes(parent, op, ops),
            "callers": np.bincount(skeleton.op, minlength=ops)[parent_op],
            "start": skeleton.start[rows],
            "gap": skeleton.start[rows] - skeleton.start[parent],
            "after": after[keep],
            "late_ms": late_ns[keep] / 1e6,
            "request": request[keep],
            "tenant": tenant[keep],
            "inside": inside[keep],
            "n_op": n_op[op],
            "late_op": of_op["late"][op] * n_op[op],
            "request_op": of_op["request"][op],
            "tenant_op": of_op["tenant"][op],
        }
    ).with_columns(
        rank=pl.col("start").rank("ordinal").over("family"),
        calls=pl.len().over("family"),
        n_pair=pl.len().over("pair"),
        inside_pair=pl.col("inside").sum().over("pair"),
        late_pair=pl.col("after").sum().over("pair"),
        outlives=(~pl.col("inside") & ~pl.col("after")).sum().over("pair"),
    )


def _grains(skeleton: Skeleton) -> Ints:
    """Tell by how much an end may seem to lie behind another: some clocks tick in milliseconds.

    Their spans begin at a tick; an end that was measured from there is as much too early.
    """
    size = skeleton.processes.height
    between = np.bincount(skeleton.process, weights=skeleton.start % _TICK_NS != 0, minlength=size)
    grains: Ints = np.where(between == 0, _TICK_NS, 0)
    return grains


def _weight(share: pl.Expr, sign: pl.Expr, *, least: float = RARE) -> pl.Expr:
    """Log of how unlikely a sign is where honest calls show it with this share; 0 without it."""
    unlikely = -pl.max_horizontal(share, least).log()
    return pl.when(sign).then(unlikely).otherwise(0.0).clip(0.0).cast(pl.Float32)


def _few() -> pl.Expr:
    return pl.max_horizontal(1.0, RARE * pl.col("n_op"))


def _strange() -> tuple[pl.Expr, ...]:
    """Say whether an operation hardly ever has such a caller, nor such a caller the operation.

    A caller that is rare itself and often calls this is a code path of its own.
    """
    n_pair = pl.col("n_pair")
    strange = (pl.col("n_op") >= LEAST) & (n_pair <= _few()) & (n_pair < pl.col("callers"))
    strange &= pl.col("gap") >= -_TOLERANCE_NS
    share = n_pair / pl.min_horizontal("n_op", "callers")
    # A rare call that comes again and always fits into its caller may be a code path.
    path = (n_pair >= LEAST) & (pl.col("inside_pair") == n_pair)
    return (
        strange.alias("strange"),
        _weight(share, strange).alias("strange_weight"),
        path.alias("path"),
    )


def _late() -> tuple[pl.Expr, ...]:
    """Say whether a start after the parent's end never happens else."""
    n_pair, late_pair, strange = pl.col("n_pair"), pl.col("late_pair"), pl.col("strange")
    late = (pl.col("n_op") >= LEAST) & pl.col("after")
    # A pair that is often late is a pattern of its own, however rare its operation makes it.
    late &= (late_pair <= pl.max_horizontal(1.0, RARE * n_pair)) | (
        strange & (pl.col("late_op") <= _few())
    )
    # Where work outlives its parent now and then nobody waits for it, and a late start is the
    # tail of its hand-over, unless it is later than any such work in time.
    outlives = pl.col("outlives")
    usual = pl.col("gap").filter(~pl.col("after")).quantile(0.995).over("pair")
    waited = outlives <= pl.max_horizontal(1.0, 0.005 * n_pair)
    seldom = (outlives <= OFTEN * n_pair) & (pl.col("gap") > usual).fill_null(value=True)
    seldom &= ~_is_tail()
    late &= waited | seldom | strange
    # A parent that was cut short leaves behind what it would have waited for.
    cut = ~pl.col("inside") & ~pl.col("after") & (outlives <= OFTEN * n_pair)
    late &= ~cut.any().over("parent") | strange
    share = (
        pl.when(strange)
        .then((pl.col("late_op") + 1) / (pl.col("n_op") + 2))
        .otherwise((late_pair + 1) / (n_pair + 2))
    )
    # Soon after the answer some programs tidy up, be it ever so seldom.
    share = pl.when(_is_tail()).then(pl.max_horizontal(share, RARE)).otherwise(share)
    return late.alias("late"), _weight(share, late, least=NEVER).alias("late_weight")


def _crowded() -> tuple[pl.Expr, ...]:
    """Say whether the parent has calls of its own already.

    A second call that outlives its parent is no retry, for which the parent would wait: it may
    be a worker's that still holds the context of its first request.
    """
    n_pair, after = pl.col("n_pair"), pl.col("after")
    of_parents = pl.col("calls").filter(pl.col("rank") == 1)
    number = of_parents.median().over("pair")
    crowd = (pl.col("rank") > number) & ~pl.col("inside")
    regular = (of_parents == of_parents.median()).mean().over("pair") >= 0.6
    crowded = (pl.col("n_op") >= LEAST) & crowd & regular
    # What starts in its parent's time is no leak where the regular last call outlives it as well,
    # nor where it starts together with a sibling: a race has losers.
    last = (pl.col("rank") == number) & (pl.col("calls") == number)
    outlive = (last & ~pl.col("inside")).sum().over("pair")
    common_to_outlive = outlive > OFTEN * last.sum().over("pair")
    step = pl.col("start").diff().over("family", order_by="start")
    together = (step <= _TOLERANCE_NS).fill_null(value=False)
    crowded &= after | ~(common_to_outlive | together)
    share = crowd.sum().over("pair") / n_pair
    crowded &= share <= CROWDED
    # A context that was never given back gathers all later calls under one old parent, until they
    # are most of the operation; that parents usually have fewer is told by the parents alone.
    hoards = regular & (of_parents.len().over("pair") >= HOARD)
    hoards &= after.sum().over("family") >= HOARD * number
    gathered = hoards & after
    share = pl.when(gathered).then(0.0).otherwise(share)
    return (
        (crowded | gathered).alias("crowded"),
        share.cast(pl.Float32).alias("crowded_share"),
        number.cast(pl.Float32).alias("number"),
    )


def _while_busy(skeleton: Skeleton, doubts: pl.DataFrame) -> pl.Series:
    """Weigh that a call runs beside a sibling though its parent does one thing at a time."""
    strange = doubts.filter("strange")
    asked = np.zeros(skeleton.n, bool)
    asked[strange["parent"].to_numpy()] = True
    codes = np.zeros(skeleton.ops.height, bool)
    codes[skeleton.op[strange["parent"].to_numpy()]] = True
    rows = skeleton.intact
    parent = skeleton.parent[rows]
    keep = codes[skeleton.op[parent]]
    every = max(1, int(keep.sum()) // _SAMPLE)
    keep &= asked[parent] | (parent % every == 0)
    rows, parent = rows[keep], parent[keep]
    doubtful = np.zeros(skeleton.n, bool)
    doubtful[doubts["row"].to_numpy()] = True
    start = np.maximum(skeleton.start[rows], skeleton.start[parent])
    end = np.minimum(skeleton.end[rows], skeleton.end[parent])
    siblings = pl.DataFrame(
        {"row": rows, "parent": parent, "start": start, "end": end, "doubt": doubtful[rows]}
    ).sort("parent", "start", maintain_order=True)
    # What a call's start meets: the siblings that began before it, and those that begin in it.
    slack = _TOLERANCE_NS // 2
    began = pl.col("end").cum_max().shift(1).over("parent") > pl.col("start") + slack
    begins = pl.col("start").shift(-1).over("parent") < pl.col("end") - slack
    siblings = siblings.with_columns(
        beside=(began.fill_null(value=False) | begins.fill_null(value=False)),
        op=pl.Series(skeleton.op[siblings["parent"].to_numpy()]),
        many=pl.len().over("parent") > 1,
    )
    usual = (
        siblings.filter("many")
        .group_by("parent", "op")
        .agg(
            beside=pl.col("beside").any(),
            doubt=pl.col("doubt").any(),
        )
        .filter(~pl.col("doubt"))
        .group_by("op")
        .agg(share=(pl.col("beside").sum() + 1) / (pl.len() + 2))
    )
    met = siblings.join(usual, on="op", how="left").select("row", "beside", "share")
    told = doubts.select("row", "strange").join(met, on="row", how="left", maintain_order="left")
    sign = pl.col("strange") & pl.col("beside").fill_null(value=False)
    sign &= pl.col("share").fill_null(1.0) <= OFTEN
    return told.select(_weight(pl.col("share"), sign)).to_series().fill_null(0.0)


def _may_be_odd(pair: Ints, n_op: Ints, *, odd: Bools) -> Bools:
    """Tell which calls are of a kind (operation and its caller's) that something is odd about.

    Most kinds always lie within their caller; what would be looked at in them takes seconds at
    tens of millions.
    """
    codes, kind = np.unique(pair, return_inverse=True)
    count = np.bincount(kind, minlength=codes.size)
    any_odd = np.bincount(kind, weights=odd, minlength=codes.size) > 0
    found: Bools = any_odd[kind] | (count[kind] <= np.maximum(1, RARE * n_op))
    return found


def _is_tail() -> pl.Expr:
    """Whether so late a start continues what happens just before the parent's end.

    Delays grow rarer as they grow longer: as many calls start shortly before the end as shortly
    behind it, and none later behind it than most start before it.
    """
    near = pl.col("late_ms").abs()
    before = (~pl.col("after")).cum_sum().over("pair", order_by=near)
    behind = pl.col("after").cum_sum().over("pair", order_by=near)
    slack = (-pl.col("late_ms")).filter(~pl.col("after")).median().over("pair")
    return ((before + 1 >= behind) & (pl.col("late_ms") <= slack)).fill_null(value=False)
