"""Which boundary lies between two spans, or between a span and a parent that is not there."""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.codes import pair_codes
from tracelab.structure.skeleton import (
    CLIENT,
    CONSUMER,
    INTERNAL,
    PRODUCER,
    SERVER,
    Bools,
    Ints,
    Skeleton,
)
from tracelab.structure.spine import CROSSINGS, LOOPBACK

HANDS_OVER: Final = {
    "go": "task",
    "nodejs": "task",
    "webjs": "task",
    "rust": "task",
    "dotnet": "task",
    "java": "thread",
    "python": "thread",
    "ruby": "thread",
}
"""Where each language's context gets lost when no ids say it: goroutines, callbacks and async
tasks against threads (Python's asyncio tasks inherit the context, its threads do not)."""

MIN_SEEN: Final = 5
"""Least intact calls of an operation before their overlap tells of another thread or task."""

_WITHOUT_IDS: Final = [
    code for code, (word, why) in enumerate(CROSSINGS) if word == "same" and "no thread" in why
]


def boundary_between(skeleton: Skeleton, parents: Ints, children: Ints) -> pl.DataFrame:
    """Tell the boundary of pairs whose context was lost, so that no flag speaks of them.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    parents, children : ndarray of int64
        Rows.

    Returns
    -------
    pl.DataFrame
        ``boundary`` and ``said_by``, row by row.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    processes = skeleton.processes
    one = skeleton.process[parents] == skeleton.process[children]
    kind = skeleton.kind[children]
    crosses = (kind == SERVER) | (kind == CONSUMER)
    names = processes["host_name"]
    mine = names.gather(skeleton.process[children])
    other = names.gather(skeleton.process[parents])
    known = mine.is_not_null() & other.is_not_null()
    language = processes["sdk_language"].fill_null("").gather(skeleton.process[children])
    habit = language.replace_strict(HANDS_OVER, default="unknown", return_dtype=pl.String)
    thread = _differs(skeleton, "thread", parents, children)
    task = _differs(skeleton, "task", parents, children)
    table = pl.DataFrame(
        {
            "one": one & ~crosses,
            "queue": (kind == CONSUMER) | (skeleton.kind[parents] == PRODUCER),
            "hosts": known,
            "host": known & (mine == other).fill_null(value=False),
            "loopback": _call_loopback(skeleton, parents),
            "thread": thread,
            "task": task,
            "habit": habit,
            "language": language,
        }
    )
    return table.select(_words())


def _words() -> list[pl.Expr]:
    """Pairs of (boundary, what says so), first match wins."""
    one, host = pl.col("one"), pl.col("host")
    rules: list[tuple[pl.Expr, str, str]] = [
        (one & (pl.col("thread") == 2), "thread", "one process, thread ids differ"),
        (one & (pl.col("task") == 2), "task", "one process, task ids differ"),
        (
            one & ((pl.col("thread") == 1) | (pl.col("task") == 1)),
            "same",
            "one process, thread or task ids agree",
        ),
        (pl.col("queue") & ~one, "queue", "kinds PRODUCER and CONSUMER"),
        (~one & host, "process", "two processes of one host"),
        (~one & pl.col("hosts"), "network", "host names differ"),
        (~one & pl.col("loopback"), "process", "the peer address is the loopback interface"),
        (~one, "network", "two processes, hosts unknown"),
    ]
    boundary = pl.col("habit")
    said_by = pl.format("one process, no ids; what SDK language '{}' loses", "language")
    for condition, word, evidence in reversed(rules):
        boundary = pl.when(condition).then(pl.lit(word)).otherwise(boundary)
        said_by = pl.when(condition).then(pl.lit(evidence)).otherwise(said_by)
    return [boundary.alias("boundary"), said_by.alias("said_by")]


def _differs(skeleton: Skeleton, name: str, parents: Ints, children: Ints) -> Ints:
    """0 unknown, 1 agree, 2 differ."""
    values = skeleton.column(name)
    mine, other = values[children], values[parents]
    found: Ints = np.where((mine == 0) | (other == 0), 0, np.where(mine == other, 1, 2))
    return found


def _call_loopback(skeleton: Skeleton, rows: Ints) -> Bools:
    loopback = skeleton.peers["server_address"].str.contains(LOOPBACK).fill_null(value=False)
    near: Bools = loopback.to_numpy()[skeleton.column("peer")[rows]]
    return near


def orphan_boundaries(skeleton: Skeleton) -> pl.DataFrame:
    """Tell the boundary between all orphans and their parents.

    Parameters
    ----------
    skeleton : Skeleton
        The capture; asked by `Skeleton.once`.

    Returns
    -------
    pl.DataFrame
        As `usual_boundaries`.

    Raises
    ------
    IndexError
        Never.
    """
    return usual_boundaries(skeleton, skeleton.orphans)


def usual_boundaries(skeleton: Skeleton, rows: Ints) -> pl.DataFrame:
    """Tell the boundary between spans and parents that are not in the capture.

    The flags come first (local or remote), then what is usual for the operation where its
    parent is there, then the span's kind.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    rows : ndarray of int64
        Rows of orphans.

    Returns
    -------
    pl.DataFrame
        ``boundary``, ``said_by`` and ``local`` (whether the parent was in the span's own
        process), row by row.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    words = pl.DataFrame(CROSSINGS, schema=["boundary", "_evidence"], orient="row")
    seen = skeleton.once(_crossings_seen)
    far = np.array([word in ("network", "process", "queue") for word, _ in CROSSINGS])
    op = skeleton.op[rows]
    remote = skeleton.remote[rows]
    kind = skeleton.kind[rows]
    enters = (kind == SERVER) | (kind == CONSUMER)
    inside = (kind == INTERNAL) | (kind == CLIENT) | (kind == PRODUCER)
    usual_far, usual_near = seen[:, far].sum(1)[op], seen[:, ~far].sum(1)[op]
    local = np.where(remote == 0, True, np.where(remote == 1, False, False))
    unsaid = remote == -1
    local = np.where(unsaid & (usual_near > usual_far), True, local)
    local = np.where(unsaid & (usual_near == usual_far), inside & ~enters, local)
    # Only crossings that agree with local or remote may vote.
    votes = np.where(local[:, None], np.where(far, 0, seen[op]), np.where(far, seen[op], 0))
    best = votes.argmax(1)
    has_votes = votes.max(1) > 0
    boundary = words["boundary"].gather(best)
    beside = has_votes & np.isin(best, _WITHOUT_IDS) & skeleton.once(_runs_beside)[op]
    table = pl.DataFrame(
        {
            "usual": boundary,
            "beside": beside,
            "thread": skeleton.column("thread")[rows],
            "task": skeleton.column("task")[rows],
            "trace": skeleton.trace[rows],
            "missing": skeleton.column("parent")[rows],
            "voted": has_votes,
            "local": local,
            "remote": remote,
            "consumer": kind == CONSUMER,
            "known_kind": enters | inside,
        }
    )
    flag = pl.col("remote") >= 0
    # What is usual for the operation tells more than siblings do, unless one of them left.
    alone = ~pl.col("voted") & pl.col("local")
    stays = pl.col("voted") & pl.col("local") & (pl.col("usual") == "same")
    siblings = {name: _beside_siblings(name) for name in _FLOWS}
    lone = table.select((alone & (pl.col(name) != 0)).alias(name) for name in _FLOWS)
    table = table.with_columns(
        pl.Series(f"seen_{name}", _on_its_way(skeleton, name, rows, lone[name].to_numpy()))
        for name in _FLOWS
    )
    table = table.with_columns(
        pl.when(alone | (stays & (word == name))).then(word).alias(f"by_{name}")
        for name, word in siblings.items()
    ).with_columns(flow=pl.coalesce("by_thread", "by_task"))
    told = {
        (name, word): pl.lit(text)
        for name in _FLOWS
        for word, text in (
            ("same", f"its siblings, or the request before it, run on its own {name}"),
            (name, f"its siblings run on another {name}, or on one each"),
            ("unknown", f"nothing tells the {name} of its parent"),
        )
    }
    by_flow = pl.coalesce(
        pl.when(pl.col(f"by_{name}") == word).then(text) for (name, word), text in told.items()
    )
    return table.select(
        boundary=pl.when(pl.col("flow").is_not_null())
        .then("flow")
        .when("beside")
        .then(pl.lit("unknown"))
        .when("voted")
        .then("usual")
        .when("local")
        .then(pl.lit("same"))
        .when("consumer")
        .then(pl.lit("queue"))
        .when(flag | pl.col("known_kind"))
        .then(pl.lit("network"))
        .otherwise(pl.lit("unknown")),
        said_by=pl.when(pl.col("flow").is_not_null())
        .then(by_flow)
        .when("beside")
        .then(pl.lit("no ids; the operation overlaps its caller's other calls"))
        .when(flag & pl.col("local"))
        .then(pl.lit("flags: the missing parent is local"))
        .when(flag)
        .then(pl.lit("flags: the missing parent is remote"))
        .when("voted")
        .then(pl.lit("flags say nothing; the operation's usual parents tell"))
        .otherwise(pl.lit("flags say nothing; the span's kind tells")),
        local="local",
    )


def _crossings_seen(skeleton: Skeleton) -> Ints:
    """How often each crossing leads to each operation where the parent is there."""
    intact, n_words = skeleton.intact, len(CROSSINGS)
    return np.bincount(
        pair_codes(skeleton.op[intact], skeleton.crossing[intact], n_words),
        minlength=skeleton.ops.height * n_words,
    ).reshape(-1, n_words)


_FLOWS: Final = ("thread", "task")


def _beside_siblings(name: str) -> pl.Expr:
    """Tell by the threads (tasks) of spans with one missing parent which of them left its own.

    A parent has one thread. It is the one on which most of its children run, if several do; of
    three children on a thread each at least two left it. Null without an id.
    """
    family = ("trace", "missing")
    known = pl.col(name) != 0
    alike = pl.len().over(*family, name)
    most = alike.filter(known).max().over(family)
    return pl.when(known).then(
        pl.when((most > 1) & (alike == most))
        .then(pl.lit("same"))
        .when((most > 1) | (known.sum().over(family) >= 3))
        .then(pl.lit(name))
        .when(pl.col(f"seen_{name}"))
        .then(pl.lit("same"))
        .otherwise(pl.lit("unknown"))
    )


def _on_its_way(skeleton: Skeleton, name: str, rows: Ints, asked: Bools) -> Bools:
    """Whether the request ran on a span's thread (task) before, in the span's own process.

    Then the missing parent probably did so, too: it lies between the two.
    """
    found = np.zeros(rows.size, bool)
    if not asked.any():
        return found
    flow = skeleton.column(name)
    wanted = pl.DataFrame(
        {
            "trace": skeleton.trace[rows[asked]],
            "flow": flow[rows[asked]],
            "process": skeleton.process[rows[asked]],
            "missing": skeleton.column("parent")[rows[asked]],
            "start": skeleton.start[rows[asked]],
            "entry": np.flatnonzero(asked),
        }
    )
    near = skeleton.rows_in(skeleton.trace[rows[asked]])
    others = pl.DataFrame(
        {
            "trace": skeleton.trace[near],
            "flow": flow[near],
            "process": skeleton.process[near],
            "parent": skeleton.column("parent")[near],
            "began": skeleton.start[near],
        }
    )
    met = wanted.join(others, on=["trace", "flow", "process"], how="inner").filter(
        (pl.col("began") < pl.col("start")) & (pl.col("parent") != pl.col("missing"))
    )
    found[met["entry"].to_numpy()] = True
    return found


def _runs_beside(skeleton: Skeleton) -> Bools:
    """Operations that a caller does not wait for before it goes on: another thread or task.

    One flow of control does one thing at a time: what overlaps a sibling, or ends after its
    parent, in one process, runs in a flow of its own.
    """
    rows = skeleton.intact
    parent = skeleton.parent[rows]
    near = np.isin(skeleton.crossing[rows], _WITHOUT_IDS) & (rows != parent)
    near &= skeleton.timed[rows] & skeleton.timed[parent]
    rows, parent = rows[near], parent[near]
    order = np.argsort(parent, kind="stable")  # rows are in order of time
    rows, parent = rows[order], parent[order]
    meets = (parent[1:] == parent[:-1]) & (skeleton.start[rows[1:]] < skeleton.end[rows[:-1]])
    beside = skeleton.end[rows] > skeleton.end[parent]
    beside[1:] |= meets
    beside[:-1] |= meets
    n_ops = skeleton.ops.height
    seen = np.bincount(skeleton.op[rows], minlength=n_ops)
    found: Bools = np.bincount(skeleton.op[rows], weights=beside, minlength=n_ops) > 0.5 * seen
    return found & (seen >= MIN_SEEN)
