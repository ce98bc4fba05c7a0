"""Calls whose server span is not in the capture, where calls like them have one."""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.boundaries import orphan_boundaries
from tracelab.structure.codes import count_pairs
from tracelab.structure.fronts import answered_in_front
from tracelab.structure.pauses import MOST_PAUSED, find_pauses
from tracelab.structure.skeleton import (
    CLIENT,
    CONSUMER,
    FAR,
    SERVER,
    Bools,
    Floats,
    Ints,
    Narrow,
    Skeleton,
)
from tracelab.structure.spells import find_spells
from tracelab.structure.spine import CROSSINGS, take_rows

MIN_ANSWERED: Final = 0.9
"""Least share of answered calls at which a call without its server span stands out."""


def unanswered_calls(
    skeleton: Skeleton, claimed: Narrow
) -> tuple[Ints, Ints, Ints, Bools, pl.DataFrame]:
    """Find client spans that are normally answered by a server span, and are not here.

    A call that failed without any response is not expected to have one, nor is a call with a
    response code that its peer is hardly ever seen to give. A share of unanswered calls that the
    callee's own losses explain is expected; beyond it the class also calls something that is not
    instrumented, and nothing can be said of a single call.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    claimed : ndarray of float32
        Per row, how many detached roots it probably called.

    Returns
    -------
    tuple
        Rows, the callee's service, the callee's operation, whether a server span is certainly
        due, and a table of ``boundary`` and ``said_by``.

    Raises
    ------
    ValueError
        Never.
    """
    clients = np.flatnonzero((skeleton.kind == CLIENT) & skeleton.timed)
    served = skeleton.intact
    kind = skeleton.kind[served]
    served = served[((kind == SERVER) | (kind == CONSUMER)) & (kind != CLIENT)]
    parents = skeleton.parent[served]
    classes = skeleton.caller_class
    size = int(classes.max()) + 1 if skeleton.n else 1
    by_client = skeleton.kind[parents] == CLIENT
    callee = skeleton.once(usual_callees)
    to = np.where(callee >= 0, skeleton.op_service[callee], -1)
    fronted = np.zeros(skeleton.n, bool)
    fronted[clients[answered_in_front(skeleton, clients, to[classes[clients]])]] = True
    open_calls = clients[~skeleton.served[clients] & (claimed[clients] < 0.1)]
    clients = clients[~fronted[clients]]
    total = np.bincount(classes[clients], minlength=size)
    good = np.bincount(classes[clients[skeleton.served[clients]]], minlength=size)
    # Databases and the like never answer.
    code = classes[open_calls]
    open_calls = open_calls[(good[code] >= 3) & (callee[code] >= 0)]
    code = classes[open_calls]
    to = skeleton.op_service[callee[code]]
    loss = _loss_rates(skeleton)
    allowed = np.clip(2.5 * loss[to] + 0.05, 1 - MIN_ANSWERED, MOST_PAUSED)
    lacking = 1 - good[code] / np.maximum(total[code], 1)
    replied = ~skeleton.column("turned_away")[open_calls] & ~fronted[open_calls]
    usual = (lacking <= allowed) & replied
    # Orphans of the caller's own service, the call among them, say nothing of a callee.
    told = (to != skeleton.service[open_calls]) & orphans_within(skeleton, open_calls, to)
    ceased = find_pauses(skeleton, clients)
    ceased |= find_spells(skeleton, clients, np.where(callee >= 0, skeleton.op_service[callee], -1))
    usual |= ceased[open_calls] & replied
    firm = usual | told
    keep = firm | (skeleton.column("answered")[open_calls] & ~fronted[open_calls])
    keep &= ~_answered_astray(skeleton, open_calls, callee[code])
    rows, crossing = open_calls[keep], np.full(size, 7)
    seen, _ = most_frequent(
        classes[parents[by_client]], skeleton.crossing[served[by_client]].astype(np.int64), size
    )
    crossing = np.where(seen >= 0, seen, crossing)
    words = pl.DataFrame(CROSSINGS, schema=["boundary", "said_by"], orient="row")
    return (
        rows,
        to[keep],
        callee[code[keep]],
        firm[keep],
        take_rows(words, pl.Series(crossing[code[keep]])),
    )


def _loss_rates(skeleton: Skeleton) -> Floats:
    """Share of local parents that are missing, per service; the last entry, 0, is for -1."""
    size = len(skeleton.services)
    words = skeleton.once(orphan_boundaries)
    lost = np.bincount(
        skeleton.service[skeleton.orphans[words["local"].to_numpy()]], minlength=size
    )
    near = skeleton.intact[~FAR[skeleton.crossing[skeleton.intact]]]
    there = np.bincount(skeleton.service[near], minlength=size)
    # A rate from a handful of edges is no rate; leaf services lose as the others do.
    seen = lost + there
    overall = lost.sum() / max(int(seen.sum()), 1)
    rates = np.where(seen >= 20, lost / np.maximum(seen, 1), overall)
    return np.append(rates, 0.0)


def usual_callees(skeleton: Skeleton) -> Ints:
    """Tell which operation usually answers the calls of each caller class.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    ndarray of int64
        By caller class; -1 where none ever does.

    Raises
    ------
    ValueError
        Never.
    """
    served = skeleton.intact
    kind, parents = skeleton.kind[served], skeleton.parent[served]
    answers = ((kind == SERVER) | (kind == CONSUMER)) & (skeleton.kind[parents] == CLIENT)
    classes = skeleton.caller_class
    size = int(classes.max()) + 1 if skeleton.n else 1
    return most_frequent(classes[parents[answers]], skeleton.op[served[answers]], size)[0]


def called_astray(skeleton: Skeleton, orphans: Ints) -> Floats:
    """Tell which orphans answer a call of their trace that names them not as its answer.

    The call is there, nothing else answers it, and its kind of call is usually answered by this
    very operation: what stood between the two gave a parent of its own. Where other calls of
    that kind go unanswered, the orphan may belong to one that was lost, and the answer to this
    one may be lost as well.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    orphans : ndarray of int64
        Rows of orphans.

    Returns
    -------
    ndarray of float64
        Orphan by orphan: 0 where there is no such call, else how far it is from chance: 1
        where no other call of its kind goes unanswered, a half where one in a hundred does.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    found = np.zeros(orphans.size)
    asked = np.flatnonzero((skeleton.kind[orphans] == SERVER) & skeleton.timed[orphans])
    traces = pl.Series(skeleton.trace[orphans[asked]]).unique()
    calls = np.flatnonzero((skeleton.kind == CLIENT) & ~skeleton.served & skeleton.timed)
    calls = calls[pl.Series(skeleton.trace[calls]).is_in(traces.implode()).to_numpy()]
    if not calls.size:
        return found
    open_calls = pl.DataFrame(
        {
            "trace": skeleton.trace[calls],
            "op": skeleton.once(usual_callees)[skeleton.caller_class[calls]],
            "call": calls,
        }
    )
    told = pl.DataFrame(
        {"entry": asked, "trace": skeleton.trace[orphans[asked]], "op": skeleton.op[orphans[asked]]}
    )
    met = told.join(open_calls, on=["trace", "op"], how="inner")
    entry, call = met["entry"].to_numpy(), met["call"].to_numpy()
    start = skeleton.start[orphans[entry]]
    inside = (start >= skeleton.start[call] - 5_000_000) & (start <= skeleton.end[call])
    distinct, which = np.unique(call[inside], return_inverse=True)
    found[entry[inside]] = _apart_from_losses(skeleton, distinct)[which]
    return found


def _apart_from_losses(skeleton: Skeleton, calls: Ints) -> Floats:
    """Weigh, call by call, how seldom others of its class go unanswered."""
    classes = skeleton.caller_class
    size = int(classes.max(initial=-1)) + 1
    own = np.bincount(classes[calls], minlength=size)
    every = np.flatnonzero((skeleton.kind == CLIENT) & skeleton.timed)
    many = np.bincount(classes[every], minlength=size) - own
    lost = np.bincount(classes[every[~skeleton.served[every]]], minlength=size) - own
    seldom: Floats = 1 / (1 + 100 * lost / np.maximum(many, 1))
    return seldom[classes[calls]]


def _answered_astray(skeleton: Skeleton, calls: Ints, callee: Ints) -> Bools:
    """Whether the server span is in the trace after all, under another or a missing parent."""
    near = skeleton.rows_in(skeleton.trace[calls])
    near = near[(skeleton.kind[near] == SERVER) & skeleton.timed[near]]
    parent = skeleton.parent[near]
    # A parent that starts after its child is none: such links come of cycles.
    earlier = skeleton.start[parent] <= skeleton.start[near]
    by_client = (parent >= 0) & (skeleton.kind[parent] == CLIENT) & earlier
    astray = near[~by_client]
    table = pl.DataFrame(
        {
            "trace": skeleton.trace[astray],
            "op": skeleton.op[astray],
            "start": skeleton.start[astray],
        }
    )
    asked = pl.DataFrame({"trace": skeleton.trace[calls], "op": callee}).with_row_index("call")
    met = asked.join(table, on=["trace", "op"], how="inner")
    at = met["call"].to_numpy()
    start = met["start"].to_numpy()
    inside = (start >= skeleton.start[calls[at]] - 5_000_000) & (start <= skeleton.end[calls[at]])
    found = np.zeros(calls.size, bool)
    found[at[inside]] = True
    return found


def orphans_within(skeleton: Skeleton, calls: Ints, to: Ints) -> Bools:
    """Tell whether orphans of a service lie within calls: their servers are lost, not elsewhere.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    calls : ndarray of int64
        Rows.
    to : ndarray of int64
        The called service, call by call.

    Returns
    -------
    ndarray of bool
        Call by call: whether its trace has such an orphan in its time.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    orphans = skeleton.orphans
    table = pl.DataFrame(
        {
            "trace": skeleton.trace[orphans],
            "service": skeleton.service[orphans],
            "start": skeleton.start[orphans],
        }
    )
    asked = pl.DataFrame({"trace": skeleton.trace[calls], "service": to}).with_row_index("call")
    met = asked.join(table, on=["trace", "service"], how="inner")
    at = met["call"].to_numpy()
    inside = (met["start"].to_numpy() >= skeleton.start[calls[at]] - 1_000_000) & (
        met["start"].to_numpy() <= skeleton.end[calls[at]]
    )
    told = np.zeros(calls.size, bool)
    told[at[inside]] = True
    return told


def most_frequent(keys: Ints, values: Ints, size: int) -> tuple[Ints, Floats]:
    """Find the most frequent value of each key.

    Parameters
    ----------
    keys, values : ndarray of int64
        Row by row; keys from 0.
    size : int
        How many keys there are.

    Returns
    -------
    tuple of ndarray
        By key: the value, -1 where there is none, and its share of the key's rows.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    counts = (
        count_pairs(keys, values)
        .with_columns(share=pl.col("len") / pl.col("len").sum().over("key"))
        .sort("key", "len", "value", descending=[False, True, False])
        .unique("key", keep="first", maintain_order=True)
    )
    mode, share = np.full(size, -1), np.zeros(size)
    mode[counts["key"].to_numpy()] = counts["value"].to_numpy()
    share[counts["key"].to_numpy()] = counts["share"].to_numpy()
    return mode, share
