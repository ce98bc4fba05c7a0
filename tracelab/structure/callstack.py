"""Which span of a trace was at work when a callee of it began.

Time tells the calling trace better than the calling span: a sibling that ran just before fits
as closely as the caller itself. What tells them apart is that the caller is open when its
callee begins, and mostly when it ends, each time; a sibling is so only now and then.
"""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.codes import pair_codes
from tracelab.structure.skeleton import (
    CLIENT,
    ONE_CLOCK_NS,
    PRODUCER,
    Bools,
    Floats,
    Ints,
    Skeleton,
)

ALWAYS: Final = 0.9
"""Least share of callees that end within a caller class for it to be one that waits."""

USUALLY: Final = 0.6
"""Least share of callees during whose start their caller is open; the others start later."""

AT_ONCE: Final = 0.2
"""Share of pairs in which both spans are at work, above which the outer one does not wait."""

TOSS_UP: Final = 0.65
"""How sure a caller is where nested spans ended together, or all had ended, before the callee
began: the outer one is likelier, since it went on after the inner one, but nothing tells more."""


def innermost_open(skeleton: Skeleton, callees: Ints, found: Ints) -> tuple[Ints, Floats]:
    """Find the innermost span of a trace and process that is always open when callees begin.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees : ndarray of int64
        Rows of one operation.
    found : ndarray of int64
        Per callee a row of the trace that called it, -1 where none is known.

    Returns
    -------
    tuple of ndarray
        Per callee the caller's row (the row of `found` where nothing is always open), and how
        sure it is that the caller is this span rather than another of the same trace.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    best, sure = found.copy(), np.ones(found.size)
    asked = np.flatnonzero(found >= 0)
    near = _spans_beside(skeleton, callees, found, asked)
    if not near.height:
        return best, sure
    opened = _usually_open(skeleton, near)
    inner = (
        near.filter("open")
        .join(opened.select("class", "sure"), on="class", how="inner")
        # Of spans that end when the callee begins the outer one may still have called it.
        .with_columns(over=pl.col("ended").mean().over("class") > 0.5)
        .with_columns(deep=pl.when("over").then(-pl.col("start")).otherwise("start"))
        .sort("callee", "over", "deep", "row", descending=[False, False, True, True])
    )
    _take_outermost(near.join(inner, on="callee", how="anti"), best, sure)
    if not inner.height:
        return best, sure
    chosen = inner.unique("callee", keep="first", maintain_order=True)
    rows = chosen["row"].to_numpy()
    best[chosen["callee"].to_numpy()] = rows
    rivals = inner.join(
        chosen.select("callee", chosen="row", chosen_over="over"), on="callee"
    ).filter(pl.col("row") != pl.col("chosen"))
    sure[chosen["callee"].to_numpy()] = chosen["sure"].to_numpy()
    if rivals.height:
        rival, picked = rivals["row"].to_numpy(), rivals["chosen"].to_numpy()
        aside = ~is_above(skeleton, rival, picked) | _goes_on(skeleton, rival, picked)
        sure[np.unique(rivals["callee"].to_numpy()[aside])] *= 0.6
        tied = rivals.filter("over", "chosen_over")["callee"].unique().to_numpy()
        sure[tied] = np.minimum(sure[tied], TOSS_UP)
    return best, sure


def _take_outermost(near: pl.DataFrame, best: Ints, sure: Floats) -> None:
    """Where no span is open when a callee begins, take the one that began first."""
    outer = (
        near.sort("callee", "start", "row")
        .group_by("callee", maintain_order=True)
        .agg(pl.col("row").first(), spans=pl.len())
    )
    where = outer["callee"].to_numpy()
    best[where] = outer["row"].to_numpy()
    sure[where] = np.where(outer["spans"].to_numpy() > 1, TOSS_UP, 0.9)


def _usually_open(skeleton: Skeleton, near: pl.DataFrame) -> pl.DataFrame:
    """Keep caller classes that explain all callees of their kind of request.

    A caller is there each time, is open (or has just ended) each time, and if any class outlasts
    the callees each time, then so does the caller.
    """
    entries = near.group_by("entry").agg(asked=pl.col("callee").n_unique())
    opened = (
        near.group_by("class")
        .agg(
            pl.col("entry").mode().min(),
            traces=pl.col("callee").n_unique(),
            open=pl.col("callee").filter("open").n_unique(),
            around=pl.col("callee").filter(pl.col("open") & pl.col("around")).n_unique(),
        )
        .join(entries, on="entry", how="left")
        .with_columns(
            there=pl.col("traces") / pl.col("asked"),
            open_share=pl.col("open") / pl.col("asked"),
            lasts=pl.col("around") >= ALWAYS * pl.col("open"),
        )
    )
    # One callee in fifty, and one in any case, may be an exception.
    slack = pl.max_horizontal(1.0 / pl.col("asked"), 0.02)
    opened = opened.filter(
        (pl.col("there") >= 1.0 - slack)
        & (pl.col("open_share") >= USUALLY)
        & (pl.col("asked") >= 0.1 * pl.lit(entries["asked"]).sum())
    )
    if opened["lasts"].any():
        return opened.filter(
            pl.col("lasts") & (pl.col("open_share") >= pl.col("open_share").max() - slack)
        ).with_columns(sure=1.0)
    # Callees that nobody waits for: a span that calls other things is likelier to have called.
    calls = _has_local_children(skeleton)[opened["class"].to_numpy()]
    opened = opened.with_columns(calls=pl.Series(calls, dtype=pl.Boolean))
    if opened["calls"].any():
        opened = opened.filter("calls")
    return opened.with_columns(sure=0.9)


def _spans_beside(skeleton: Skeleton, callees: Ints, found: Ints, asked: Ints) -> pl.DataFrame:
    """Spans of the calling trace in the callee's process that began before the callee."""
    wanted = pl.DataFrame(
        {
            "trace": skeleton.trace[found[asked]],
            "process": skeleton.process[callees[asked]],
            "callee": asked,
        }
    )
    codes = wanted["process"].unique().sort()
    rows = np.concatenate(
        [np.zeros(0, np.int64), *(skeleton.by_process.rows(int(code)) for code in codes)]
    )
    rows = rows[skeleton.timed[rows]]
    kinds = skeleton.kind[rows]
    calling = (kinds == CLIENT) | (kinds == PRODUCER)
    rows = rows[~calling | _has_local_children(skeleton)[skeleton.caller_class[rows]]]
    spans = pl.DataFrame(
        {"trace": skeleton.trace[rows], "process": skeleton.process[rows], "row": rows}
    )
    near = spans.join(wanted, on=["trace", "process"], how="inner")
    row, callee = near["row"].to_numpy(), callees[near["callee"].to_numpy()]
    start, end = skeleton.start[callee], skeleton.end[callee]
    return near.select(
        "callee",
        "row",
        pl.Series("class", skeleton.caller_class[row]),
        pl.Series("entry", skeleton.op[_local_top(skeleton, row)]),
        pl.Series("start", skeleton.start[row]),
        pl.Series("open", skeleton.end[row] >= start - ONE_CLOCK_NS),
        pl.Series("ended", skeleton.end[row] <= start),
        pl.Series("around", skeleton.end[row] >= end - ONE_CLOCK_NS),
    ).filter(pl.Series((skeleton.start[row] <= start + ONE_CLOCK_NS) & (row != callee)))


def _local_top(skeleton: Skeleton, rows: Ints) -> Ints:
    """Climb to the topmost ancestor in the same process."""
    top = rows.copy()
    for _ in range(64):
        parent = skeleton.parent[top]
        climbs = (parent >= 0) & (skeleton.process[np.maximum(parent, 0)] == skeleton.process[top])
        climbs &= parent != top
        if not climbs.any():
            break
        top = np.where(climbs, parent, top)
    return top


def _has_local_children(skeleton: Skeleton) -> Bools:
    """Caller classes under which some span of the same process hangs."""
    rows = skeleton.intact
    parent = skeleton.parent[rows]
    same = skeleton.process[rows] == skeleton.process[parent]
    has = np.zeros(int(skeleton.caller_class.max()) + 1, bool)
    has[skeleton.caller_class[parent[same]]] = True
    return has


def _goes_on(skeleton: Skeleton, upper: Ints, lower: Ints) -> Bools:
    """Whether spans like the upper one work on while one like the lower below them is open.

    A span that waits for what it called starts nothing else meanwhile, and does not end.
    """
    children = skeleton.children_of(upper)
    parent = skeleton.parent[children]
    local = skeleton.process[children] == skeleton.process[parent]
    started = pl.DataFrame({"upper": parent[local], "child": children[local]})
    pairs = pl.DataFrame(
        {
            "upper": upper,
            "lower": lower,
            "kinds": pair_codes(
                skeleton.caller_class[upper], skeleton.caller_class[lower], skeleton.n
            ),
        }
    ).with_row_index("pair")
    beside = pairs.join(started, on="upper", how="inner")
    child, below = beside["child"].to_numpy(), beside["lower"].to_numpy()
    meanwhile = (skeleton.start[child] > skeleton.start[below]) & (
        skeleton.start[child] < skeleton.end[below]
    )
    busy = np.zeros(upper.size, bool)
    busy[beside["pair"].to_numpy()[meanwhile & (child != below)]] = True
    busy |= skeleton.end[upper] + ONE_CLOCK_NS < skeleton.end[lower]
    often = pl.col("busy").mean().over("kinds") > AT_ONCE
    found: Bools = pairs.select("kinds", busy=pl.Series(busy)).select(often)["busy"].to_numpy()
    return found


def is_above(skeleton: Skeleton, upper: Ints, lower: Ints) -> Bools:
    """Tell whether one row is an ancestor of the other, pair by pair.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    upper, lower : ndarray of int64
        Rows.

    Returns
    -------
    ndarray of bool
        Pair by pair; a row is no ancestor of itself.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    above = np.zeros(upper.size, bool)
    climb = skeleton.parent[lower]
    for _ in range(64):
        above |= climb == upper
        live = (climb >= 0) & ~above
        if not live.any():
            break
        climb = np.where(live, skeleton.parent[np.maximum(climb, 0)], -1)
    return above


def like_messages(skeleton: Skeleton, callees: Ints, best: Ints) -> Ints:
    """Count the messages of a trace that may each have been the one taken up.

    A message waits for its consumer, so that time does not tell it from those sent beside it.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees : ndarray of int64
        Rows of one operation.
    best : ndarray of int64
        Per callee the row of its supposed caller, -1 where none is known.

    Returns
    -------
    ndarray of int64
        Per callee: free messages of the caller's class in its trace, sent before; 1 at least.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    number = np.flatnonzero(best >= 0)
    number = number[skeleton.kind[best[number]] == PRODUCER]
    count = np.ones(best.size, np.int64)
    if not number.size:
        return count
    senders = best[number]
    rows = np.concatenate(
        [skeleton.unserved_by_class.rows(int(c)) for c in np.unique(skeleton.caller_class[senders])]
    )
    keys = ["trace", "class"]
    sent = pl.DataFrame(
        {
            "trace": skeleton.trace[rows],
            "class": skeleton.caller_class[rows],
            "sent": skeleton.start[rows],
        }
    )
    asked = pl.DataFrame(
        {
            "trace": skeleton.trace[senders],
            "class": skeleton.caller_class[senders],
            "begun": skeleton.start[callees[number]],
            "callee": number,
        }
    )
    alike = (
        asked.join(sent, on=keys)
        .filter(pl.col("sent") <= pl.col("begun"))
        .group_by("callee")
        .agg(pl.len())
    )
    count[alike["callee"].to_numpy()] = alike["len"].to_numpy()
    return count
