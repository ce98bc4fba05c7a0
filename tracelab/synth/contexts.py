"""Contexts that are lost on the way, and contexts that leak from another request."""

from typing import Final

import numpy as np
import polars as pl

from tracelab.synth.identity import random_ids
from tracelab.synth.plot import ENTRIES, Flags, Ints, Plot, take

_SITE_SHARES: Final = (1.0, 0.6, 0.25, 0.08)


def cut_contexts(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Let a share of the hops lose their context: the work below becomes a trace of its own.

    Half of the share falls on call sites that lose it always or often, the rest strikes at
    random: both happen in real programs.
    """
    eligible = np.flatnonzero((plot.up >= 0) & (plot.boundary != "same"))
    inside = np.flatnonzero((plot.up >= 0) & (plot.boundary == "same") & (plot.kind != "CLIENT"))
    eligible = np.union1d(eligible, inside[rng.random(len(inside)) < 0.2])
    wanted = max(1, round(rate * len(eligible))) if len(eligible) else 0
    cut = np.zeros(plot.n, bool)
    site = plot.op[plot.up[eligible]] * (plot.op.max(initial=0) + 1) + plot.op[eligible]
    names, member = np.unique(site, return_inverse=True)
    for name in rng.permutation(len(names)):
        rows = eligible[member == name]
        share = float(rng.choice(_SITE_SHARES))
        hit = rows[rng.random(len(rows)) < share]
        if cut.sum() + len(hit) <= wanted // 2:
            cut[hit] = True
    rest = rng.choice(eligible, size=max(0, wanted - int(cut.sum())), replace=False)
    cut[rest] = True
    rows = np.flatnonzero(cut)
    if not len(rows):
        return
    plot.truth.append(_cut_truth(plot, rows))
    old = plot.ids
    fresh = random_ids(rng, len(rows), digits=32)
    _move_subtrees(plot, rows, fresh)
    parents = pl.Series(cut)
    plot.ids = plot.ids.with_columns(
        pl.when(parents).then(None).otherwise("parent_span_id").alias("parent_span_id")
    )
    plot.spans = plot.spans.with_columns(
        pl.when(parents).then(pl.col("flags") & 0xFFFFFDFF).otherwise("flags").alias("flags"),
        pl.when(parents & pl.col("parent_is_remote").is_not_null())
        .then(pl.lit(value=False))
        .otherwise("parent_is_remote")
        .alias("parent_is_remote"),
    )
    assert old.height == plot.ids.height
    plot.up[rows] = -1


def _cut_truth(plot: Plot, rows: Ints) -> pl.DataFrame:
    """Truth of cut hops; ids of the parents are looked up when all changes are done."""
    return pl.DataFrame(
        {
            "row": rows,
            "parent_row": plot.up[rows],
            "kind": "detached_root",
            "cause": "context_not_propagated",
            "boundary": plot.boundary[rows],
            "detail": np.where(np.isin(plot.kind[rows], ENTRIES), "entry", "inner"),
        }
    )


def leak_contexts(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Let reused workers start some of their work under the context of another request."""
    entry = np.isin(plot.kind, ENTRIES) | (plot.up < 0)
    inner = np.flatnonzero((plot.up >= 0) & ~entry)
    wanted = round(rate * len(inner))
    if not wanted:
        return
    hosts = np.flatnonzero(entry)
    order = hosts[np.lexsort((plot.start[hosts], plot.process[hosts]))]
    span = int(plot.start.max()) + 1 - int(plot.start.min())
    clock = plot.start - plot.start.min()
    keys = plot.process[order].astype(object) * span + clock[order]
    keys = (
        keys.astype(np.float64)
        if span * (plot.process.max() + 1) > 2**62
        else keys.astype(np.int64)
    )
    rows = rng.choice(inner, size=wanted, replace=False)
    place = np.searchsorted(keys, plot.process[rows] * span + clock[rows]) - 1
    victim = order[np.maximum(place - rng.geometric(0.5, wanted) + 1, 0)]
    traces = plot.ids["trace_id"].rank("dense").to_numpy()
    good = (
        (plot.process[victim] == plot.process[rows])
        & (traces[victim] != traces[rows])
        & (plot.start[victim] <= plot.start[rows])
    )
    rows, victim = rows[good], victim[good]
    apart = _apart(plot, rows, victim)
    rows, victim = rows[apart], victim[apart]
    if not len(rows):
        return
    plot.truth.append(
        pl.DataFrame(
            {
                "row": rows,
                "parent_row": plot.up[rows],
                "kind": "wrong_parent",
                "cause": "context_leak",
                "boundary": plot.boundary[rows],
                "detail": np.where(plot.end[victim] < plot.start[rows], "stale", "concurrent"),
                "observable": _leak_shows(plot, rows, victim),
            }
        )
    )
    adopted = take(plot.ids.select("trace_id", "span_id"), victim)
    _move_subtrees(plot, rows, adopted["trace_id"])
    parent = plot.ids["parent_span_id"].scatter(rows, adopted["span_id"])
    plot.ids = plot.ids.with_columns(parent)
    plot.up[rows] = victim


def _apart(plot: Plot, rows: Ints, victim: Ints) -> Flags:
    """Keep leaks of which neither parent is moved by another, so that none rides on another."""
    moved = np.zeros(plot.n, bool)
    moved[rows] = True
    for level in plot.levels()[1:]:
        moved[level] |= moved[plot.up[level]]
    return ~moved[victim] & ~moved[plot.up[rows]]


def _leak_shows(plot: Plot, rows: Ints, victim: Ints) -> Flags:
    """Tell whether the capture can show a leak at all.

    It shows where a request or tenant id on the child differs from the one on its new parent,
    where the child starts after the new parent's end though no child of that operation does so
    in honest traces, or where no such pair of operations exists otherwise.
    """
    shows = np.zeros(len(rows), bool)
    for column in ("request_id", "tenant_id"):
        values = plot.spans[column].rank("dense").cast(pl.Float64).fill_null(np.nan).to_numpy()
        mine, theirs = values[rows], values[victim]
        shows |= (mine != theirs) & ~np.isnan(mine) & ~np.isnan(theirs)
    wide = int(plot.op.max(initial=0)) + 1
    has = np.flatnonzero(plot.up >= 0)
    pairs = plot.op[plot.up[has]] * wide + plot.op[has]
    made = plot.op[victim] * wide + plot.op[rows]
    shows |= ~np.isin(made, pairs)
    late = plot.start[has] > plot.end[plot.up[has]]
    shows |= (plot.start[rows] > plot.end[victim]) & ~np.isin(made, pairs[late])
    return shows


def _move_subtrees(plot: Plot, rows: Ints, trace_ids: pl.Series) -> None:
    """Give the spans below `rows`, and themselves, another trace id; the nearest one wins."""
    head = np.full(plot.n, -1, np.int64)
    head[rows] = np.arange(len(rows))
    for level in plot.levels()[1:]:
        above = head[plot.up[level]]
        mine = head[level]
        head[level] = np.where(mine >= 0, mine, above)
    moved = np.flatnonzero(head >= 0)
    plot.ids = plot.ids.with_columns(
        plot.ids["trace_id"].scatter(moved, trace_ids.gather(head[moved]))
    )
