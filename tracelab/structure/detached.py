"""Roots that were called from another trace: the context was lost on the way."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.boundaries import boundary_between
from tracelab.structure.calls import (
    Answer,
    CallerClass,
    Pairs,
    answer,
    candidate_pairs,
    measure,
)
from tracelab.structure.callstack import innermost_open, like_messages
from tracelab.structure.discovery import MIN_CALLS, Suspect, discover_callers
from tracelab.structure.known_calls import Intact, callers_with_room, known_calls
from tracelab.structure.laws import Law
from tracelab.structure.peers import Peers
from tracelab.structure.sidecars import nearer_beside
from tracelab.structure.skeleton import (
    CONSUMER,
    ONE_CLOCK_NS,
    SERVER,
    Bools,
    Ints,
    Narrow,
    Skeleton,
    verdicts,
)
from tracelab.structure.spine import INTACT, ROOT, span_words, take_rows
from tracelab.structure.unanswered import orphans_within

MIN_RULE: Final = 0.3
"""Least share of roots called, or of callers that call, for a relation never seen intact."""

RARE_CALLER: Final = 0.02
"""Least share of an operation's spans that a caller class must have called to be its caller."""

_SHARED_WORK: Final = 0.75
"""Most that is said of roots which a minority of callers have, and none was ever seen to call:
a buffer that each tenth request fills is flushed on behalf of all ten, by a root of its own."""

_SELF_TAUGHT: Final = 1.3
"""How much oftener a caller is wrong than a law says that was learnt from the very calls in
question: of pairs that it holds for 0.6 to 0.8 probable, half to six tenths are right."""

MAX_CLASSES: Final = 6

_DOUBT: Final = 1.5
"""Standard errors by which an answer may claim more callees than pile up beyond chance."""

_TOLERANCE_REMOTE_NS: Final = 3_000_000


@dataclass(frozen=True, slots=True)
class Detached:
    """Detached roots, and the callers that lost their callee.

    Parameters
    ----------
    found : pl.DataFrame
        Schema `VERDICTS`.
    claimed : ndarray of float32
        Per row: expected number of detached roots that it called.
    """

    found: pl.DataFrame
    claimed: Narrow


def find_detached_roots(skeleton: Skeleton, *, min_probability: float = 0.5) -> Detached:
    """Find roots that work of another trace called, and propose their parents.

    A root with a link is legal. So is a root whose operation fits no caller better than chance
    would have it: cron jobs, health checks, requests from outside.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    min_probability : float
        Least probability that some work of the capture called the root.

    Returns
    -------
    Detached
        Verdicts, and what they claim of callers.

    Raises
    ------
    SchemaError
        Never.
    """
    claimed = np.zeros(skeleton.n, np.float32)
    roots = skeleton.roots
    roots = roots[~skeleton.linked[roots] & skeleton.timed[roots]]
    tables = []
    second = _second_roots(skeleton, roots)
    peers = Peers(skeleton)
    for op in np.unique(skeleton.op[roots]):
        mine = roots[skeleton.op[roots] == op] if roots.size < 10_000 else _of_op(skeleton, int(op))
        for callees, same_trace in ((mine[~second[mine]], False), (mine[second[mine]], True)):
            if not callees.size:
                continue
            for asked, reply in _ask(skeleton, int(op), callees, peers, same_trace=same_trace):
                np.add.at(claimed, reply.pairs.caller, reply.marginal)
                tables.append(_verdicts(skeleton, asked, reply, same_trace, min_probability))
    found = [table for table in tables if table.height]
    empty = verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))
    return Detached(pl.concat([empty, *found]), claimed)


def _of_op(skeleton: Skeleton, op: int) -> Ints:
    rows = skeleton.by_op.rows(op)
    keep = (skeleton.state[rows] == ROOT) & ~skeleton.linked[rows] & skeleton.timed[rows]
    kept: Ints = rows[keep]
    return kept


def _second_roots(skeleton: Skeleton, roots: Ints) -> Bools:
    """Roots of a trace that has another root before them."""
    second = np.zeros(skeleton.n, dtype=bool)
    _, first = np.unique(skeleton.trace[skeleton.roots], return_index=True)
    later = np.setdiff1d(skeleton.roots, skeleton.roots[first], assume_unique=True)
    second[later] = True
    kept = np.zeros(skeleton.n, dtype=bool)
    kept[roots] = True
    return second & kept


def _ask(
    skeleton: Skeleton, op: int, callees: Ints, peers: Peers, *, same_trace: bool
) -> Iterator[tuple[Ints, Answer]]:
    """Who called these roots of one operation? Answers for all of them or for parts."""
    kind = int(skeleton.op_kind[op])
    rows = skeleton.by_op.rows(op)
    intact = rows[(skeleton.state[rows] == INTACT) & skeleton.timed[rows]]
    # Among hundreds of roots a few intact calls are no rule, and may be wrong themselves.
    least = max(2, int(RARE_CALLER * (callees.size + intact.size)))
    known = known_calls(skeleton, intact, least=least)
    crosses = kind in (SERVER, CONSUMER)
    if same_trace:
        reply = _ask_within(skeleton, callees, known) if known else None
        if reply is not None:
            yield callees, reply
        return
    local = not crosses and not _remote_callers(skeleton, intact)
    left = callees
    if known:
        reply = _ask_known(skeleton, callees, intact, known, crosses=crosses, local=local)
        if reply is not None:
            yield callees, reply
            left = callees[reply.called < 0.5]
    # One call site may lose its context each time while others of the operation never do.
    reply = _ask_strangers(skeleton, op, left, peers, set(known), local=local)
    if reply is not None:
        yield left, reply


def _ask_known(
    skeleton: Skeleton,
    callees: Ints,
    intact: Ints,
    known: dict[int, Intact],
    *,
    crosses: bool,
    local: bool,
) -> Answer | None:
    """Ask the caller classes of intact calls."""
    classes = [
        CallerClass(
            code,
            _free(skeleton, code, intact, calls.per_caller, crosses),
            calls,
            _reach(calls.start_gap),
        )
        for code, calls in sorted(known.items(), key=lambda item: -item[1].start_gap.size)[
            :MAX_CLASSES
        ]
    ]
    classes = [group for group in classes if group.rows.size]
    return _answer(skeleton, callees, classes, None, local=local) if classes else None


def _answer(
    skeleton: Skeleton,
    callees: Ints,
    classes: list[CallerClass],
    guesses: list[Law] | None,
    *,
    local: bool,
) -> Answer:
    tolerance = ONE_CLOCK_NS if local else _TOLERANCE_REMOTE_NS
    pairs = candidate_pairs(skeleton, callees, classes, same_process=local, tolerance_ns=tolerance)
    if int(skeleton.kind[callees[0]]) == SERVER:
        pairs = _while_waiting(skeleton, callees, pairs)
    return answer(skeleton, callees, classes, pairs, first_guess=guesses)


def _ask_strangers(
    skeleton: Skeleton, op: int, callees: Ints, peers: Peers, known: set[int], *, local: bool
) -> Answer | None:
    """Ask caller classes that were never seen to call the operation."""
    tolerance = ONE_CLOCK_NS if local else _TOLERANCE_REMOTE_NS
    suspects = discover_callers(
        skeleton, op, callees, local=local, tolerance_ns=tolerance, peers=peers
    )
    suspects = [suspect for suspect in suspects if suspect.group.code not in known]
    if not suspects:
        return None
    classes = [suspect.group for suspect in suspects]
    reply = _answer(skeleton, callees, classes, [suspect.law for suspect in suspects], local=local)
    reply = _no_more_than(reply, suspects)
    if not _is_regular(skeleton, callees, reply, local=local):
        return None
    if local:
        reply = _within_trace(skeleton, callees, reply)
    beside, sure = nearer_beside(skeleton, callees, np.where(reply.called >= 0.5, reply.best, -1))
    best = np.where(beside >= 0, beside, reply.best)
    sure /= like_messages(skeleton, callees, best)
    called = np.minimum(reply.called, _most_sure(skeleton, reply) if local else 1.0)
    return replace(reply, called=called, best=best, best_probability=reply.best_probability * sure)


def _most_sure(skeleton: Skeleton, reply: Answer) -> float:
    """How sure it may be that local callers lost work which few of them have."""
    classes = np.unique(skeleton.caller_class[reply.best[reply.called >= 0.5]])
    callers = sum(skeleton.by_class.rows(int(code)).size for code in classes)
    return 1.0 if float(reply.called.sum()) >= MIN_RULE * callers else _SHARED_WORK


def _no_more_than(reply: Answer, suspects: list[Suspect]) -> Answer:
    """Let the answer claim no more callees than pile up beyond chance.

    Expectation and maximisation may talk itself into a law that takes in whatever is near.
    """
    claimed = float(reply.called.mean())
    proven = min(1.0, sum(suspect.share for suspect in suspects))
    # Where many callers are near by chance, the share beyond chance is known but roughly.
    error = float(np.sqrt(sum(suspect.share_error**2 for suspect in suspects)))
    if claimed <= proven + max(0.1, _DOUBT * error):
        return reply
    factor = proven / claimed
    return replace(
        reply,
        called=reply.called * factor,
        best_probability=reply.best_probability * factor,
        marginal=reply.marginal * factor,
    )


def _within_trace(skeleton: Skeleton, callees: Ints, reply: Answer) -> Answer:
    """Take the calling trace from the answer, and the calling span from what was open there."""
    pairs = reply.pairs
    traces, number = np.unique(skeleton.trace[pairs.caller], return_inverse=True)
    both, slot = np.unique(pairs.callee * traces.size + number, return_inverse=True)
    weight = np.bincount(slot, weights=reply.marginal)
    callee = both // traces.size
    order = np.lexsort((both, -weight, callee))
    asked, first = np.unique(callee[order], return_index=True)
    probability = np.zeros(callees.size)
    probability[asked] = weight[order[first]]
    top = np.full(callees.size, -1)
    top[asked] = order[first]
    # The likeliest span of the likeliest trace stands for it.
    mine = top[pairs.callee] == slot
    ranked = np.flatnonzero(mine)[np.argsort(-reply.marginal[mine], kind="stable")]
    best = np.full(callees.size, -1)
    owner, first = np.unique(pairs.callee[ranked], return_index=True)
    best[owner] = pairs.caller[ranked[first]]
    rows, sure = innermost_open(skeleton, callees, np.where(reply.called >= 0.5, best, -1))
    rows = np.where(rows >= 0, rows, reply.best)
    probability = np.minimum(probability, 1.0)
    modest = np.maximum(1.0 - _SELF_TAUGHT * (1.0 - probability), np.minimum(probability, 0.5))
    return replace(reply, best=rows, best_probability=modest * sure)


def _is_regular(skeleton: Skeleton, callees: Ints, reply: Answer, *, local: bool) -> bool:
    """Tell whether a relation that was never seen intact is a rule rather than a few meetings.

    Where every context is lost, nearly all roots of the operation are called, or (from outside
    the process) nearly all calls of the caller class end in such a root.
    """
    calls = float(reply.called.sum())
    if calls < 0.9 * MIN_CALLS:
        return False
    # What starts before its supposed caller is the cause, not the effect.
    forward = float(reply.marginal[reply.pairs.start_gap >= 0].sum())
    if forward < 0.9 * float(reply.marginal.sum()):
        return False
    if calls >= MIN_RULE * callees.size:
        return True
    if local:
        return False
    best = reply.best[reply.called >= 0.5]
    if not best.size:
        return False  # many roots were perhaps called, and not one of them probably
    classes = np.unique(skeleton.caller_class[best])
    rows = np.concatenate([skeleton.by_class.rows(int(code)) for code in classes])
    return calls >= MIN_RULE * rows.size


def _remote_callers(skeleton: Skeleton, intact: Ints) -> bool:
    parent = skeleton.parent[intact]
    return bool(intact.size) and bool(
        (skeleton.process[parent] != skeleton.process[intact]).mean() > 0.5
    )


def _reach(start_gap: Ints) -> int:
    """Longest delay to look back, from intact calls."""
    return int(2 * np.quantile(start_gap, 0.99)) + 2_000_000


def _free(skeleton: Skeleton, code: int, intact: Ints, per_caller: float, crosses: bool) -> Ints:
    """Callers of a class that have room for one more call of this operation."""
    rows = skeleton.by_class.rows(code)
    rows = rows[skeleton.timed[rows]]
    if crosses:
        return rows[~skeleton.served[rows]]
    return callers_with_room(skeleton, rows, intact, per_caller)


def _while_waiting(skeleton: Skeleton, callees: Ints, pairs: Pairs) -> Pairs:
    """Keep pairs in which the server starts while its client waits, and waits for no lost one."""
    rows = callees[pairs.callee]
    waits = skeleton.end[pairs.caller] + _TOLERANCE_REMOTE_NS
    keep = np.flatnonzero(skeleton.start[rows] <= waits)
    lost = orphans_within(skeleton, pairs.caller[keep], skeleton.service[rows[keep]])
    keep = keep[~lost]
    return measure(
        skeleton, callees, Pairs(pairs.callee[keep], pairs.caller[keep], pairs.group[keep])
    )


def _ask_within(skeleton: Skeleton, callees: Ints, known: dict[int, Intact]) -> Answer | None:
    """Seek the parent of a second root in its own trace."""
    wanted = pl.DataFrame({"trace": skeleton.trace[callees], "callee": np.arange(callees.size)})
    near = skeleton.rows_in(skeleton.trace[callees])
    others = pl.DataFrame({"trace": skeleton.trace[near], "row": near})
    joined = others.join(wanted, on="trace", how="inner").sort("callee", "row")
    caller = joined["row"].to_numpy().astype(np.int64)
    callee = joined["callee"].to_numpy().astype(np.int64)
    rows = callees[callee]
    mine = skeleton.top[caller] == rows
    waits = skeleton.start[caller] <= skeleton.start[rows] + _TOLERANCE_REMOTE_NS
    keep = ~mine & waits & skeleton.timed[caller]
    caller, callee = caller[keep], callee[keep]
    if not caller.size:
        return None
    return _answer_within(skeleton, callees, known, caller, callee)


def _answer_within(
    skeleton: Skeleton,
    callees: Ints,
    known: dict[int, Intact],
    caller: Ints,
    callee: Ints,
) -> Answer | None:
    """Ask only callers of classes that are known to call this operation."""
    codes = sorted(known, key=lambda code: -known[code].start_gap.size)[:MAX_CLASSES]
    classes = [
        CallerClass(code, skeleton.by_class.rows(code), known[code], _reach(known[code].start_gap))
        for code in codes
    ]
    number = np.full(int(skeleton.caller_class.max()) + 1, -1)
    number[codes] = np.arange(len(codes))
    group = number[skeleton.caller_class[caller]]
    keep = group >= 0
    if not keep.any():
        return None
    pairs = measure(skeleton, callees, Pairs(callee[keep], caller[keep], group[keep]))
    return answer(skeleton, callees, classes, pairs, natural_rate=1e-6)


def _verdicts(
    skeleton: Skeleton,
    callees: Ints,
    reply: Answer,
    same_trace: bool,
    min_probability: float,
) -> pl.DataFrame:
    keep = np.flatnonzero((reply.called >= min_probability) & (reply.best >= 0))
    if not keep.size:
        return verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))
    rows, best = callees[keep], reply.best[keep]
    sure = np.minimum(reply.best_probability[keep], 0.99)
    called = np.minimum(reply.called[keep], 0.99)
    caller_ops = take_rows(skeleton.ops, pl.Series(skeleton.op[best]))
    table = boundary_between(skeleton, best, rows).with_columns(
        row=pl.Series(rows),
        called=pl.Series(called),
        sure=pl.Series(sure),
        best=pl.Series(best),
        rivals=pl.Series(reply.rivals[keep]),
        caller=span_words(caller_ops),
        delay_ms=pl.Series((skeleton.start[rows] - skeleton.start[best]) / 1e6).round(3),
        from_service=caller_ops["service_name"],
        to_service=skeleton.service_names(skeleton.service[rows]),
    )
    proposed = pl.col("sure") >= 0.5
    where = "the same trace has a root before it" if same_trace else "a trace of its own, no link"
    return verdicts(
        table.with_columns(
            kind=pl.lit("detached_root"),
            cause=pl.lit("context_not_propagated"),
            confidence="called",
            severity=pl.when(pl.col("called") >= 0.8)
            .then(pl.lit("error"))
            .otherwise(pl.lit("warning")),
            proposed_row=pl.when(proposed).then("best"),
            proposed_confidence=pl.when(proposed).then("sure"),
            evidence=pl.concat_list(
                pl.lit(where),
                pl.format("started {} ms after the start of {}", "delay_ms", "caller"),
                pl.format("{} other callers come close", "rivals"),
                "said_by",
            ),
            alternatives=pl.lit(["a natural root"], pl.List(pl.String)),
        )
    )
