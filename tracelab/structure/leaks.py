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
from tracelab.structure.known_calls import callers_with_room, known_calls
from tracelab.structure.skeleton import (
    FAR,
    Bools,
    Floats,
    Ints,
    Skeleton,
    pair_codes,
    verdicts,
)
from tracelab.structure.spine import span_words, take_rows

RARE: Final = 0.02
"""At most this share of an operation's spans may look like this for it to be unusual."""

MIN_USUAL: Final = 20
"""Least spans of an operation before anything about it is unusual."""

SELDOM: Final = 0.1
"""At most this share of a caller's spans may call an operation for the call to be strange."""

CROWDED: Final = 0.3
"""At most this share of callers may call an operation twice for a second call to be unusual."""

MOSTLY: Final = 0.6
"""Least share of the calls of what may be a code path that callers elsewhere must lack."""

HOARD: Final = 5
"""Least number of parents that show what is usual, and least multiple of it that is not."""

_TOLERANCE_NS: Final = 100_000
_DOUBTS: Final = pl.Schema(
    {
        "row": pl.Int64,
        "op": pl.Int64,
        "pair": pl.Int64,
        "path": pl.Boolean,
        "n_op": pl.Int64,
        "request": pl.Boolean,
        "tenant": pl.Boolean,
        "strange": pl.Boolean,
        "late": pl.Boolean,
        "crowded": pl.Boolean,
        "late_ms": pl.Float64,
    }
)


def find_wrong_parents(skeleton: Skeleton, *, min_probability: float = 0.8) -> pl.DataFrame:
    """Find children whose parent belongs to another request.

    Fire and forget, retries and rare code paths are legal: an unusual place alone is no
    verdict. It takes ids that conflict, or a place that is strange both in kind and in time,
    or a caller elsewhere that fits with `min_probability`.

    Parameters
    ----------
    skeleton : Skeleton
        The capture, on one clock.
    min_probability : float
        Least probability of another caller where ids say nothing.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`.

    Raises
    ------
    SchemaError
        Never.
    """
    doubts = _doubts(skeleton)
    tables = [verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))]
    for (op,), group in doubts.group_by("op", maintain_order=True):
        rows = group["row"].to_numpy()
        reply = _ask(skeleton, int(op), rows)
        tables.append(_verdicts(skeleton, group, reply, min_probability))
    return pl.concat(tables)


def _doubts(skeleton: Skeleton) -> pl.DataFrame:
    """List children inside a process whose place is unusual, and why."""
    rows = skeleton.intact
    parent = skeleton.parent[rows]
    near = ~FAR[skeleton.crossing[rows]] & skeleton.timed[rows] & skeleton.timed[parent]
    rows, parent = rows[near & (rows != parent)], parent[near & (rows != parent)]
    late_ns = skeleton.start[rows] - skeleton.end[parent]
    inside = skeleton.end[rows] <= skeleton.end[parent]
    request = np.isin(rows, _where_ids_change(skeleton, "request", rows), assume_unique=True)
    tenant = np.isin(rows, _where_ids_change(skeleton, "tenant", rows), assume_unique=True)
    op, parent_op = skeleton.op[rows], skeleton.op[parent]
    ops = skeleton.ops.height
    n_op = np.bincount(op, minlength=ops)
    of_op = {
        name: np.bincount(op, weights=marks, minlength=ops) / np.maximum(n_op, 1)
        for name, marks in (("late", late_ns > 0), ("request", request), ("tenant", tenant))
    }
    pair = pair_codes(op, parent_op, ops)
    keep = _may_be_odd(pair, n_op[op], odd=request | tenant | ~inside | (late_ns > 0))
    rows, parent, op, parent_op = rows[keep], parent[keep], op[keep], parent_op[keep]
    table = pl.DataFrame(
        {
            "row": rows,
            "parent": parent,
            "op": op,
            "pair": pair[keep],
            "callers": np.bincount(skeleton.op, minlength=ops)[parent_op],
            "start": skeleton.start[rows],
            "gap": skeleton.start[rows] - skeleton.start[parent],
            "late": late_ns[keep] > 0,
            "late_ms": late_ns[keep] / 1e6,
            "request": request[keep],
            "tenant": tenant[keep],
            "inside": inside[keep],
            "n_op": n_op[op],
            "late_op": of_op["late"][op],
            "request_op": of_op["request"][op],
            "tenant_op": of_op["tenant"][op],
        }
    ).with_columns(
        rank=pl.col("start").rank("ordinal").over("parent", "op"),
        calls=pl.len().over("parent", "op"),
        n_pair=pl.len().over("pair"),
        inside_pair=pl.col("inside").sum().over("pair"),
        late_pair=pl.col("late").sum().over("pair"),
    )
    common = pl.col("n_op") >= MIN_USUAL
    few = pl.max_horizontal(1.0, RARE * pl.col("n_op"))
    strange = common & (pl.col("n_pair") <= few)
    # A caller that is rare itself and often calls this is a code path of its own.
    strange &= pl.col("n_pair") <= SELDOM * pl.col("callers")
    # A rare call that comes again and always fits into its caller may be a code path.
    path = (pl.col("n_pair") >= 5) & (pl.col("inside_pair") == pl.col("n_pair"))
    rare_late = common & pl.col("late") & (pl.col("late_op") * pl.col("n_op") <= few)
    # A pair that is always late is a pattern of its own, however rare its operation makes it.
    rare_late &= (pl.col("late_pair") <= 0.2 * pl.col("n_pair")) | strange
    # Where work outlives its parent now and then nobody waits for it, and a late start is the
    # tail of its hand-over, unless it is later than any such work in time.
    outlives = (~pl.col("inside") & ~pl.col("late")).sum().over("pair")
    usual = pl.col("gap").filter(~pl.col("late")).quantile(0.995).over("pair")
    waited = outlives <= pl.max_horizontal(1.0, 0.005 * pl.col("n_pair"))
    seldom = (outlives <= 0.1 * pl.col("n_pair")) & (pl.col("gap") > usual).fill_null(value=True)
    seldom &= ~_is_tail()
    rare_late &= waited | seldom | strange
    # A second call that outlives its parent is no retry, for which the parent would wait: it
    # may be a worker's that still holds the context of its first request.
    number = pl.col("calls").median().over("pair")
    crowd = (pl.col("rank") > number) & ~pl.col("inside")
    regular = (pl.col("calls") == number).mean().over("pair") >= 0.6
    crowded = common & crowd & regular
    # What starts in its parent's time is no leak where the regular last call outlives it as well,
    # nor where it starts together with a sibling: a race has losers.
    last = (pl.col("rank") == number) & (pl.col("calls") == number)
    outlive = (last & ~pl.col("inside")).sum().over("pair")
    common_to_outlive = outlive > SELDOM * last.sum().over("pair")
    step = pl.col("start").diff().over("parent", "op", order_by="start")
    together = (step <= _TOLERANCE_NS).fill_null(value=False)
    crowded &= pl.col("late") | ~(common_to_outlive | together)
    crowded &= crowd.sum().over("pair") <= CROWDED * pl.col("n_pair")
    # A context that was never given back gathers all later calls under one old parent, until they
    # are most of the operation; that parents usually have fewer is told by the parents alone.
    of_parents = pl.col("calls").filter(pl.col("rank") == 1)
    usual_number = of_parents.median().over("pair")
    alike = (of_parents == of_parents.median()).mean().over("pair") >= 0.6
    alike &= of_parents.len().over("pair") >= HOARD
    gathered = pl.col("late").sum().over("parent", "op")
    crowded |= pl.col("late") & alike & (gathered >= HOARD * usual_number)
    doubts = (
        table.with_columns(
            crowded=crowded,
            request=pl.col("request") & (pl.col("request_op") < 0.5),
            tenant=pl.col("tenant") & (pl.col("tenant_op") < 0.5),
            strange=strange,
            path=path,
            late=rare_late,
        )
        .filter(pl.any_horizontal("request", "tenant", "strange", "late", "crowded"))
        .select(_DOUBTS.names())
        .sort("op", "row")
    )
    # Below a doubtful span ids differ from those further up through no fault of their own.
    under = np.zeros(skeleton.n, bool)
    under[doubts["row"].to_numpy()] = True
    above = pl.Series(under[skeleton.parent[doubts["row"].to_numpy()]])
    return doubts.filter(~above | pl.col("strange") | pl.col("late") | pl.col("crowded"))


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
    before = (~pl.col("late")).cum_sum().over("pair", order_by=near)
    behind = pl.col("late").cum_sum().over("pair", order_by=near)
    slack = (-pl.col("late_ms")).filter(~pl.col("late")).median().over("pair")
    return ((before + 1 >= behind) & (pl.col("late_ms") <= slack)).fill_null(value=False)


def _where_ids_change(skeleton: Skeleton, name: str, rows: Ints) -> Ints:
    """List children at whose link to the parent an id changes.

    Spans in between may carry no id: a call inside such a span, in its time, is its own, so the
    link that went wrong is the one above it.
    """
    blamed = rows[_conflict(skeleton, name, rows)]
    values = skeleton.column(name)
    for _ in range(64):
        above = skeleton.parent[blamed]
        climbs = (values[above] == 0) & (skeleton.parent[above] >= 0)
        climbs &= skeleton.process[above] == skeleton.process[blamed]
        climbs &= skeleton.start[blamed] >= skeleton.start[above]
        climbs &= skeleton.end[blamed] <= skeleton.end[above]
        if not climbs.any():
            break
        blamed = np.where(climbs, above, blamed)
    return np.unique(blamed)


def _conflict(skeleton: Skeleton, name: str, rows: Ints) -> Bools:
    """Whether an id on the child differs from the one on its nearest ancestor that has one."""
    values = skeleton.column(name)
    if not values.any():
        return np.zeros(rows.size, bool)
    conflict = np.zeros(rows.size, bool)
    asked = np.flatnonzero(values[rows] != 0)
    above = skeleton.parent[rows[asked]]
    for _ in range(64):
        live = above >= 0
        asked, above = asked[live], above[live]
        if not asked.size:
            break
        known = values[above] != 0
        conflict[asked[known]] = values[rows[asked[known]]] != values[above[known]]
        asked, above = asked[~known], skeleton.parent[above[~known]]
    return conflict


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
        callers = callers_with_room(skeleton, callers, sound, calls.per_caller)
        reach = int(2 * np.quantile(calls.start_gap, 0.99)) + 2_000_000
        if callers.size:
            classes.append(CallerClass(code, callers, calls, reach))
    if not classes:
        return None
    pairs = candidate_pairs(
        skeleton, doubtful, classes, same_process=True, tolerance_ns=_TOLERANCE_NS
    )
    return answer(skeleton, doubtful, classes, pairs)


def _verdicts(
    skeleton: Skeleton, doubts: pl.DataFrame, reply: Answer | None, min_probability: float
) -> pl.DataFrame:
    rows = doubts["row"].to_numpy()
    nobody = np.zeros(rows.size)
    called: Floats = reply.called if reply else nobody
    sure: Floats = reply.best_probability if reply else nobody
    best: Ints = reply.best if reply else np.full(rows.size, -1)
    shown = np.where(best >= 0, best, skeleton.parent[rows])
    parents = take_rows(skeleton.ops, pl.Series(skeleton.op[skeleton.parent[rows]]))
    others = take_rows(skeleton.ops, pl.Series(skeleton.op[shown]))
    ids = pl.col("request") | pl.col("tenant")
    # Once in fewer than fifty is not rare enough to speak for itself.
    both = pl.col("strange") & pl.col("late") & (pl.col("n_op") >= 1 / RARE)
    confidence = (
        pl.when(ids)
        .then(0.95)
        .when(both)
        .then(pl.max_horizontal(0.9, "called"))
        .otherwise(pl.col("called"))
        .clip(0.0, 0.98)
    )
    # Some callers lack a call as its span got lost: chance meets one that fits now and then.
    mostly = pl.col("believed").mean().over("pair") >= MOSTLY
    table = (
        boundary_between(skeleton, shown, rows)
        .hstack(doubts)
        .with_columns(
            called=pl.Series(called),
            sure=pl.Series(np.minimum(sure, 0.99)),
            best=pl.Series(best),
            here=span_words(parents),
            there=span_words(others),
            from_service=others["service_name"],
            to_service=skeleton.service_names(skeleton.service[rows]),
        )
        .with_columns(believed=pl.min_horizontal("called", "sure") >= min_probability)
        .filter(ids | both | (pl.col("believed") & (~pl.col("path") | mostly)))
    )
    proposed = (pl.col("sure") >= 0.5) & (pl.col("best") >= 0)
    return verdicts(
        table.with_columns(
            kind=pl.lit("wrong_parent"),
            cause=pl.lit("context_leak"),
            confidence=confidence,
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
                pl.when(proposed).then(pl.format("{} waits for just such a call", "there")),
            ).list.drop_nulls(),
            alternatives=pl.when(ids)
            .then(pl.lit([], pl.List(pl.String)))
            .otherwise(pl.lit(["a rare but legal call"], pl.List(pl.String))),
        )
    )
