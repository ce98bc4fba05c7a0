"""Children in an unusual place, and how unlikely each thing about it would be of an honest call.

Nothing here is a verdict: rare code paths, retries and work after the answer are legal. Each sign
is weighed by how often honest calls of its kind show it, so that signs can be added up.
"""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.codes import count_pairs, pair_codes, slices
from tracelab.structure.conflicts import where_ids_change
from tracelab.structure.skeleton import FAR, ONE_CLOCK_NS, SERVER, Bools, Ints, Skeleton

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

_THREADS: Final = 3
"""Least threads that answer requests of a process from which it is no event loop."""

_TICK_NS: Final = 1_000_000
_TICK_ROWS: Final = 1 << 18
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
    doubts = doubts.filter(~above | pl.col("strange") | pl.col("late") | pl.col("crowded"))
    run_by = pl.Series(_run_by_parent(skeleton, doubts["row"].to_numpy()))
    return doubts.filter(pl.col("request") | pl.col("tenant") | ~run_by)


def _run_by_parent(skeleton: Skeleton, rows: Ints) -> Bools:
    """Tell which calls begin on the very thread or task of their parent while that lasts.

    A thread runs one request at a time where a process answers requests on several.
    """
    parent = skeleton.parent[rows]
    during = skeleton.start[rows] < skeleton.end[parent]
    thread, task = skeleton.column("thread"), skeleton.column("task")
    by_thread = (thread[rows] != 0) & (thread[rows] == thread[parent])
    asked = np.zeros(skeleton.processes.height, bool)
    asked[skeleton.process[rows[by_thread]]] = True
    served = np.flatnonzero((skeleton.kind == SERVER) & (thread != 0) & asked[skeleton.process])
    threads = count_pairs(skeleton.process[served], thread[served])
    many = np.bincount(threads["key"].to_numpy(), minlength=skeleton.processes.height)
    by_thread &= many[skeleton.process[rows]] >= _THREADS
    same = by_thread & ((task[rows] == 0) | (task[parent] == 0))
    run_by: Bools = during & (same | ((task[rows] != 0) & (task[rows] == task[parent])))
    return run_by


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
    rows = rows[near & (rows != parent)]
    del parent, near
    parts = [rows[part] for part in slices(rows.size)]
    look = _Look(skeleton, rows)
    # Twice, since what is usual of a kind of call is known when all have been seen.
    seen = pl.concat([look.at(part).pipe(_counts) for part in parts]).pipe(_summed)
    of_op = _of_operations(seen)
    odd = _may_be_odd(seen.join(of_op, on="op"))
    callers = pl.DataFrame(
        {"parent_op": np.arange(skeleton.ops.height)}, schema={"parent_op": pl.Int32}
    ).with_columns(callers=pl.Series(np.bincount(skeleton.op, minlength=skeleton.ops.height)))
    kept = pl.concat([look.at(part).join(odd, on=_PAIR, how="semi") for part in parts])
    return (
        kept.join(of_op, on="op", how="left", maintain_order="left")
        .join(callers, on="parent_op", how="left", maintain_order="left")
        .with_columns(
            pair=pair_codes(kept["op"].to_numpy(), kept["parent_op"].to_numpy(), look.n_ops),
            family=pair_codes(kept["parent"].to_numpy(), kept["op"].to_numpy(), look.n_ops),
        )
        .with_columns(
            rank=pl.col("start").rank("ordinal").over("family"),
            calls=pl.len().over("family"),
            n_pair=pl.len().over("pair"),
            inside_pair=pl.col("inside").sum().over("pair"),
            late_pair=pl.col("after").sum().over("pair"),
            outlives=(~pl.col("inside") & ~pl.col("after")).sum().over("pair"),
        )
    )


_PAIR: Final = ("op", "parent_op")


class _Look:
    """What is to be seen of each child in its place, for some rows at a time."""

    def __init__(self, skeleton: Skeleton, rows: Ints) -> None:
        self._skeleton = skeleton
        self._grains = _grains(skeleton)
        self._changed = {
            name: where_ids_change(skeleton, name, rows) for name in ("request", "tenant")
        }
        self.n_ops = skeleton.ops.height

    def at(self, rows: Ints) -> pl.DataFrame:
        skeleton = self._skeleton
        parent = skeleton.parent[rows]
        grain = self._grains[skeleton.process[rows]]
        late_ns = skeleton.start[rows] - skeleton.end[parent]
        return pl.DataFrame(
            {
                "row": rows,
                "parent": parent,
                "op": skeleton.op[rows],
                "parent_op": skeleton.op[parent],
                "start": skeleton.start[rows],
                "gap": skeleton.start[rows] - skeleton.start[parent],
                "after": late_ns > grain,
                "late_ms": late_ns / 1e6,
                "inside": skeleton.end[rows] <= skeleton.end[parent] + grain,
                **{
                    name: np.isin(rows, changed, assume_unique=True)
                    for name, changed in self._changed.items()
                },
            }
        )


def _counts(look: pl.DataFrame) -> pl.DataFrame:
    """Count per kind of call how many there are, and what is odd about them."""
    odd = pl.col("request") | pl.col("tenant") | ~pl.col("inside") | pl.col("after")
    return look.group_by(_PAIR).agg(
        pl.len().cast(pl.Int64).alias("n_op"),
        pl.col("after").sum().cast(pl.Int64).alias("late_op"),
        pl.col("request").sum().cast(pl.Int64).alias("request_op"),
        pl.col("tenant").sum().cast(pl.Int64).alias("tenant_op"),
        odd.sum().cast(pl.Int64).alias("odd"),
    )


def _summed(counts: pl.DataFrame) -> pl.DataFrame:
    return counts.group_by(_PAIR).agg(pl.all().sum())


def _of_operations(counts: pl.DataFrame) -> pl.DataFrame:
    """Say per operation how many calls it has, how many are late, and what share changes ids."""
    return (
        counts.group_by("op")
        .agg(pl.col("n_op", "late_op", "request_op", "tenant_op").sum())
        .with_columns(pl.col("request_op", "tenant_op") / pl.col("n_op"))
    )


def _grains(skeleton: Skeleton) -> Ints:
    """Tell by how much an end may seem to lie behind another: some clocks tick in milliseconds.

    Their spans begin at a tick; an end that was measured from there is as much too early.
    """
    ticks = np.ones(skeleton.processes.height, bool)
    for part in slices(skeleton.n, _TICK_ROWS):
        # Of most processes the first spans tell.
        open_ = np.flatnonzero(ticks[skeleton.process[part]]) + part.start
        ticks[skeleton.process[open_[skeleton.start[open_] % _TICK_NS != 0]]] = False
    grains: Ints = np.where(ticks, _TICK_NS, 0)
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
    strange &= pl.col("gap") >= -ONE_CLOCK_NS
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
    together = (step <= ONE_CLOCK_NS).fill_null(value=False)
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
    siblings = siblings.with_columns(
        beside=_beside(),
        op=pl.Series(skeleton.op[siblings["parent"].to_numpy()]),
        many=pl.len().over("parent") > 1,
    )
    # A parent whose other calls run beside each other does not do one at a time here.
    others = siblings.filter(~pl.col("doubt")).filter(_beside())["parent"].unique()
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
    told = doubts.select("row", "parent", "strange").join(
        met, on="row", how="left", maintain_order="left"
    )
    sign = pl.col("strange") & pl.col("beside").fill_null(value=False)
    sign &= ~pl.col("parent").is_in(others.implode())
    sign &= pl.col("share").fill_null(1.0) <= OFTEN
    return told.select(_weight(pl.col("share"), sign)).to_series().fill_null(0.0)


def _beside() -> pl.Expr:
    """Whether a call meets a sibling: one that began before it, or one that begins in it."""
    slack = ONE_CLOCK_NS // 2
    began = pl.col("end").cum_max().shift(1).over("parent") > pl.col("start") + slack
    begins = pl.col("start").shift(-1).over("parent") < pl.col("end") - slack
    return began.fill_null(value=False) | begins.fill_null(value=False)


def _may_be_odd(counts: pl.DataFrame) -> pl.DataFrame:
    """List the kinds of call (operation and its caller's) that something is odd about.

    Most kinds always lie within their caller; what would be looked at in them takes seconds at
    tens of millions.
    """
    few = pl.col("n_op") <= pl.max_horizontal(1.0, RARE * pl.col("n_op_right"))
    return counts.filter((pl.col("odd") > 0) | few).select(_PAIR)


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
