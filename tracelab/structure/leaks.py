"""Children that hang under a parent of another request: a context that leaked.

A worker that still holds the context of an earlier request makes no orphan and no root. What
gives it away: request or tenant ids that differ from the parent's, an operation under a parent
that never else has it, a start after the parent's end where that never happens else, and a
caller elsewhere that waits for just this call.
"""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.boundaries import boundary_between
from tracelab.structure.calls import Answer, CallerClass, answer, candidate_pairs
from tracelab.structure.doubts import OFTEN, RARE, find_doubts, find_places
from tracelab.structure.hoards import ask_others, find_hoards, find_lost_hoards
from tracelab.structure.known_calls import callers_with_room, known_calls
from tracelab.structure.laws import Law
from tracelab.structure.skeleton import FAR, ONE_CLOCK_NS, Bools, Floats, Ints, Skeleton, verdicts
from tracelab.structure.spine import span_words, take_rows

MOSTLY: Final = 0.6
"""Least share of the calls of what may be a code path that callers elsewhere must lack."""

GONE: Final = 0.1
"""How much likelier an honest call is where nobody else could have made it: of ten callers one may
have got lost."""


def find_wrong_parents(skeleton: Skeleton, *, min_odds: float = 200.0) -> pl.DataFrame:
    """Find children whose parent belongs to another request.

    Fire and forget, retries and rare code paths are legal: one unusual thing alone is no verdict,
    unless callers that wait for such a call never else leave it behind. Ids that conflict are
    proof; else the signs are multiplied: a strange caller, a late start, a call too many, a call
    beside another under a parent that does one thing at a time, and a caller elsewhere that waits
    for just this call.

    Parameters
    ----------
    skeleton : Skeleton
        The capture, on one clock.
    min_odds : float
        How unlikely its signs must make an honest call where ids say nothing. A call that is
        strange in one of fifty ways needs a caller elsewhere that is four times likelier than
        not.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`.

    Raises
    ------
    SchemaError
        Never.
    """
    tables = [verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))]
    places = find_places(skeleton)
    doubts = find_doubts(skeleton, places)
    hoards = pl.concat([find_hoards(places, doubts["row"]), find_lost_hoards(skeleton)])
    hoards = hoards.sort("op", "row")
    del places
    for (op,), group in doubts.group_by("op", maintain_order=True):
        reply = _ask(skeleton, int(op), group["row"].to_numpy())
        tables.append(_verdicts(skeleton, group, reply, min_odds))
    for (op,), group in hoards.group_by("op", maintain_order=True):
        reply = ask_others(skeleton, int(op), group["row"].to_numpy())
        if reply is not None:
            tables.append(_verdicts(skeleton, group, reply, min_odds))
    return pl.concat(tables)


def _ask(skeleton: Skeleton, op: int, doubtful: Ints) -> Answer | None:
    """Who else could have called these? None where no call of this operation is beyond doubt."""
    rows = skeleton.by_op.rows(op)
    intact = rows[(skeleton.parent[rows] >= 0) & skeleton.timed[rows]]
    sound = intact[~np.isin(intact, doubtful, assume_unique=True)]
    sound = sound[~FAR[skeleton.crossing[sound]]]
    known = known_calls(skeleton, sound) if sound.size else {}
    if not known:
        return None
    classes = []
    for code, calls in sorted(known.items(), key=lambda item: -item[1].start_gap.size)[:6]:
        callers = skeleton.by_class.rows(code)
        callers = callers[skeleton.timed[callers]]
        if calls.start_gap.size / calls.per_caller + doubtful.size < OFTEN * callers.size:
            continue  # most never make such a call, so that none can be said to wait for it
        callers = callers_with_room(skeleton, callers, sound, calls.per_caller)
        reach = int(2 * np.quantile(calls.start_gap, 0.99)) + 2_000_000
        if callers.size:
            classes.append(CallerClass(code, callers, calls, reach))
    if not classes:
        return None
    pairs = candidate_pairs(
        skeleton, doubtful, classes, same_process=True, tolerance_ns=ONE_CLOCK_NS
    )
    return answer(skeleton, doubtful, classes, pairs)


def _odd_ones_out(skeleton: Skeleton, doubts: pl.DataFrame, waits: Floats) -> Bools:
    """Tell which calls of a parent that has some too many are those.

    The ones for which another caller waits and that fit their parent's delays worst.
    """
    rows, pair = doubts["row"].to_numpy(), doubts["pair"].to_numpy()
    extra = doubts["extra"].to_numpy()
    parent = skeleton.parent[rows]
    odd = np.ones(rows.size, bool)
    for code in np.unique(pair[extra > 0]):
        mine = np.flatnonzero((pair == code) & (extra > 0))
        _, owner, calls = np.unique(parent[mine], return_inverse=True, return_counts=True)
        contested = mine[calls[owner] > extra[mine]]
        if not contested.size:
            continue
        every = skeleton.by_op.rows(int(skeleton.op[rows[contested[0]]]))
        above = skeleton.parent[every]
        alike = (above >= 0) & (skeleton.op[above] == skeleton.op[parent[contested[0]]])
        alike &= ~np.isin(every, rows)
        law = Law.fit(skeleton.start[every[alike]] - skeleton.start[above[alike]])
        fits = law.log_at(skeleton.start[rows[contested]] - skeleton.start[parent[contested]])
        score = waits[contested] - fits
        place = pl.DataFrame({"parent": parent[contested], "score": score}).select(
            pl.col("score").rank("ordinal", descending=True).over("parent")
        )
        odd[contested] = place.to_series().to_numpy() <= extra[contested]
    return odd


def _anybody_open(skeleton: Skeleton, rows: Ints, reply: Answer | None) -> Bools:
    """Tell at which calls another caller that lacks such a call was at work."""
    anybody = np.zeros(rows.size, bool)
    if reply is not None:
        callee, caller = reply.pairs.callee, reply.pairs.caller
        at_work = skeleton.end[caller] + ONE_CLOCK_NS >= skeleton.start[rows[callee]]
        anybody[callee[at_work]] = True
    return anybody


def _verdicts(
    skeleton: Skeleton, doubts: pl.DataFrame, reply: Answer | None, min_odds: float
) -> pl.DataFrame:
    rows = doubts["row"].to_numpy()
    nobody = np.zeros(rows.size)
    called: Floats = reply.called if reply else nobody
    sure: Floats = reply.best_probability if reply else nobody
    best: Ints = reply.best if reply else np.full(rows.size, -1)
    above = skeleton.parent[rows]
    shown = np.where(best >= 0, best, np.where(above >= 0, above, rows))
    parents = take_rows(skeleton.ops, pl.Series(skeleton.op[above]))
    others = take_rows(skeleton.ops, pl.Series(skeleton.op[shown]))
    ids = pl.col("request") | pl.col("tenant")
    waits = called / np.maximum(1.0 - called, RARE)
    anybody = np.where(_anybody_open(skeleton, rows, reply), 1.0, GONE)
    judged = (
        boundary_between(skeleton, shown, rows)
        .hstack(doubts)
        .with_columns(
            sure=pl.Series(np.minimum(sure, 0.99)),
            best=pl.Series(best),
            here=span_words(parents),
            there=span_words(others),
            from_service=others["service_name"],
            to_service=skeleton.service_names(skeleton.service[rows]),
            odds=pl.col("weight").exp() * pl.Series(np.clip(waits, 1.0, 1 / RARE) * anybody),
            odd_one=pl.Series(_odd_ones_out(skeleton, doubts, np.log(waits + 1e-9))),
        )
        .with_columns(believed=ids | (pl.col("odd_one") & (pl.col("odds") >= 0.999 * min_odds)))
    )
    # Some callers lack a call as its span got lost: chance meets one that fits now and then.
    mostly = pl.col("believed").mean().over("pair") >= MOSTLY
    table = judged.filter(ids | (pl.col("believed") & (~pl.col("path") | mostly)))
    proposed = (pl.col("sure") >= 0.5) & (pl.col("best") >= 0)
    return verdicts(
        table.with_columns(
            kind=pl.lit("wrong_parent"),
            cause=pl.lit("context_leak"),
            confidence=pl.when(ids)
            .then(0.95)
            .otherwise(pl.col("odds") / (pl.col("odds") + 20))
            .clip(0.0, 0.98),
            severity=pl.lit("error"),
            proposed_row=pl.when(proposed).then("best"),
            proposed_confidence=pl.when(proposed).then("sure"),
            evidence=pl.concat_list(
                pl.when("request").then(pl.lit("request id differs from its parent's")),
                pl.when("tenant").then(pl.lit("tenant id differs from its parent's")),
                pl.when("strange").then(
                    pl.format("this operation is hardly ever called by {}", "here")
                ),
                pl.when(pl.col("late") | (pl.col("crowded") & (pl.col("late_ms") > 0))).then(
                    pl.format(
                        "starts {} ms after its parent ended, which it seldom does",
                        pl.col("late_ms").round(3),
                    )
                ),
                pl.when("crowded").then(pl.lit("its parent has a call of its own already")),
                pl.when("hoarded").then(
                    pl.lit("few parents have all the calls, the others have none")
                ),
                pl.when(pl.col("spread_s").is_not_null()).then(
                    pl.format(
                        "calls of {} s name its missing parent, whose kind lasts far shorter",
                        pl.col("spread_s").round(1),
                    )
                ),
                pl.when("busy").then(
                    pl.format("runs beside another call of {}, which makes one at a time", "here")
                ),
                pl.when(proposed).then(pl.format("{} waits for just such a call", "there")),
            ).list.drop_nulls(),
            alternatives=pl.when(ids)
            .then(pl.lit([], pl.List(pl.String)))
            .otherwise(pl.lit(["a rare but legal call"], pl.List(pl.String))),
        )
    )
