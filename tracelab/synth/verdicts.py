"""What an injector tells of the damage it did: rows of TRUTH, from the data alone.

``observable`` and ``evidence_present`` follow from what is left in the capture after all
damage, by the rules written at each function here; no detector is asked.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.synth.counts import TOLD_BY_COUNTS
from tracelab.synth.plot import ENTRIES, Flags, Ints, Plot, take

Words = npt.NDArray[np.str_]

_SAME_PATTERN = 3
"""How often a pattern must show before it is evidence and no accident."""


def lost_truth(plot: Plot) -> pl.DataFrame:
    """List orphans, calls left without their server, and losses that nothing shows.

    A span whose parent was lost is always observable; its true parent is the nearest ancestor
    that was exported. What a sampler dropped is a sampling gap, at the orphan or at the call.
    Evidence of the cause is there where it shows at least three times in one operation (span
    never ended), process (queue, export, exit), service (sampling, missing instrumentation)
    or at the edge, and where the SDK that lost the span counted it in metrics.
    """
    kept = plot.lost == 0
    orphans = np.flatnonzero(kept & (plot.up >= 0))
    orphans = orphans[~kept[plot.up[orphans]]]
    calls = _unanswered(plot, kept)
    shown = np.zeros(plot.n, bool)
    shown[plot.up[orphans]] = True
    silent = np.setdiff1d(np.flatnonzero(~kept & ~shown), calls[:, 1])
    parts = [
        _loss_rows(
            plot, "orphan_span", orphans, plot.up[orphans], shows=np.ones(len(orphans), bool)
        ),
        _call_rows(plot, calls, shown),
        _loss_rows(plot, "orphan_span", np.full(len(silent), -1), silent, shows=None),
    ]
    by_id = (pl.col("cause") == "sampled_out") & pl.col("span_id").is_not_null()
    return pl.concat(parts).with_columns(
        kind=pl.when(by_id).then(pl.lit("sampling_gap")).otherwise("kind")
    )


def _loss_rows(
    plot: Plot, kind: str, rows: Ints, gone: Ints, *, shows: Flags | None
) -> pl.DataFrame:
    causes = np.array([cause for cause, _ in plot.losses])[plot.lost[gone]]
    details = np.array([detail for _, detail in plot.losses])[plot.lost[gone]]
    group = _evidence_group(plot, gone, causes)
    seen = np.zeros(len(rows), bool) if shows is None else shows
    counts = np.bincount(group, weights=seen) if len(group) else np.zeros(1)
    wordless = _looks_like_a_silent_hop(plot, rows, gone, group) & (causes == "span_never_ended")
    told = (counts[group] >= _SAME_PATTERN) & ~wordless if len(rows) else seen
    told |= plot.tells[gone] & np.isin(causes, TOLD_BY_COUNTS)
    own = take(plot.ids, rows)
    parent = take(plot.ids, gone)
    ancestor = take(plot.ids, _kept_ancestor(plot, gone))
    services = take(plot.spans.select("service_name"), np.where(rows >= 0, rows, gone))
    boundary = plot.boundary[np.maximum(rows, 0)]
    return pl.DataFrame(
        {
            "kind": pl.repeat(kind, len(rows), eager=True),
            "cause": pl.Series(causes, dtype=pl.String),
            "boundary": pl.Series(np.where(rows >= 0, boundary, "unknown"), dtype=pl.String),
            "trace_id": parent["trace_id"],
            "span_id": own["span_id"],
            "missing_span_id": parent["span_id"],
            "true_parent_trace_id": ancestor["trace_id"],
            "true_parent_span_id": ancestor["span_id"],
            "service_name": services["service_name"],
            "detail": pl.Series(details, dtype=pl.String),
            "observable": pl.Series(seen),
            "evidence_present": pl.Series(seen & told),
        }
    )


def _kept_ancestor(plot: Plot, rows: Ints) -> Ints:
    """Find the nearest span above each lost one that was exported, or -1."""
    above = plot.up[rows].copy()
    for _ in range(plot.n):
        lost = (above >= 0) & (plot.lost[np.maximum(above, 0)] > 0)
        if not lost.any():
            break
        above[lost] = plot.up[above[lost]]
    return above


def _looks_like_a_silent_hop(plot: Plot, rows: Ints, gone: Ints, group: Ints) -> Flags:
    """Tell where nothing but the other end of a call is left of an operation.

    No span of it was kept, and no orphan of it lives in its own process: a service in between
    that exports nothing would leave the very same capture.
    """
    if not len(rows):
        return np.zeros(0, bool)
    inside = (rows >= 0) & (plot.process[np.maximum(rows, 0)] == plot.process[gone])
    near = np.bincount(group, weights=inside)
    silent: Flags = (near[group] == 0) & ~np.isin(plot.op[gone], plot.op[plot.lost == 0])
    return silent


def _evidence_group(plot: Plot, gone: Ints, causes: Words) -> Ints:
    """Tell apart the groups in which a cause can show as a pattern."""
    code = np.where(
        causes == "span_never_ended",
        plot.op[gone],
        np.where(
            np.isin(causes, ["sampled_out", "uninstrumented_hop"]),
            plot.service[gone],
            np.where(causes == "capture_edge", 0, plot.process[gone]),
        ),
    )
    _, group = np.unique(
        np.char.add(np.char.add(causes, " "), code.astype(str)) if len(gone) else causes,
        return_inverse=True,
    )
    out: Ints = group
    return out


def _unanswered(plot: Plot, kept: Flags) -> npt.NDArray[np.int64]:
    """Pair calls that were kept with the server span of theirs that was lost, or cut off."""
    server = np.flatnonzero((plot.kind == "SERVER") & (plot.up >= 0) & ~kept)
    caller = plot.up[server]
    good = kept[caller] & (plot.kind[caller] == "CLIENT")
    return np.stack([caller[good], server[good]], axis=1)


def _call_rows(plot: Plot, calls: npt.NDArray[np.int64], shown: Flags) -> pl.DataFrame:
    """Write a call whose server span was lost.

    Observable where calls of that operation to that service are still answered in at least half
    of the cases (and in three): the capture itself says that a server span belongs here. A sampler
    decides by trace id, so three answers are enough there, whatever their share. Where
    orphans below the lost span tell of it too, the row is a cascade of theirs.
    """
    rows, gone = calls[:, 0], calls[:, 1]
    server = np.flatnonzero((plot.kind == "SERVER") & (plot.up >= 0))
    server = server[(plot.kind[plot.up[server]] == "CLIENT") & (plot.lost[plot.up[server]] == 0)]
    # One name, `GET` say, may go to several services, of which one exports nothing at all.
    _, service = np.unique(plot.service, return_inverse=True)
    peers = int(service.max(initial=0)) + 1
    hop = plot.op[plot.up[server]] * peers + service[server]
    asked = plot.op[rows] * peers + service[gone]
    size = int(max(hop.max(initial=0), asked.max(initial=0))) + 1
    many = np.bincount(hop, minlength=size)
    good = np.bincount(hop[plot.lost[server] == 0], minlength=size)
    by_id = np.array([cause == "sampled_out" for cause, _ in plot.losses])[plot.lost[gone]]
    usual_here = (good >= _SAME_PATTERN)[asked] & ((2 * good >= many)[asked] | by_id)
    table = _loss_rows(plot, "missing_server", rows, gone, shows=usual_here)
    cascade = pl.Series(shown[gone], dtype=pl.Boolean)
    return table.with_columns(
        boundary=pl.Series(plot.boundary[gone], dtype=pl.String),
        true_parent_trace_id=pl.lit(None, pl.String),
        true_parent_span_id=pl.lit(None, pl.String),
        detail=pl.when(cascade).then(pl.lit("cascade: ") + pl.col("detail")).otherwise("detail"),
    )


def context_truth(plot: Plot, planted: pl.DataFrame) -> pl.DataFrame:
    """Write lost and leaked contexts with the ids that the capture holds in the end.

    A detached root is observable if it was exported and is no natural entry, or the call that
    made it still stands. There is evidence where its parent was exported and was the only span
    of its operation (in that process, for work that stayed inside) open at that moment.
    """
    rows = planted["row"].cast(pl.Int64).to_numpy()
    parents = planted["parent_row"].cast(pl.Int64).to_numpy()
    kept, parent_kept = plot.lost[rows] == 0, plot.lost[parents] == 0
    detached = (planted["kind"] == "detached_root").to_numpy()
    entry = np.isin(plot.kind[rows], ENTRIES)
    called = parent_kept & np.isin(plot.kind[parents], ["CLIENT", "PRODUCER"])
    shows = np.where(detached, ~entry | called, _flag(planted, "observable"))
    shows &= kept
    alone = _only_candidate(plot, rows, parents) & parent_kept
    evidence = np.where(detached, shows & alone, shows)
    own, parent = take(plot.ids, np.where(kept, rows, -1)), take(plot.ids, parents)
    return planted.select("kind", "cause", "boundary", "detail").with_columns(
        trace_id=take(plot.ids, rows)["trace_id"],
        span_id=own["span_id"],
        missing_span_id=pl.lit(None, pl.String),
        true_parent_trace_id=parent["trace_id"],
        true_parent_span_id=parent["span_id"],
        service_name=take(plot.spans.select("service_name"), rows)["service_name"],
        observable=pl.Series(shows),
        evidence_present=pl.Series(evidence),
    )


def _flag(table: pl.DataFrame, name: str) -> Flags:
    if name not in table.columns:
        return np.ones(table.height, bool)
    flags: Flags = table[name].fill_null(value=True).to_numpy()
    return flags


def _only_candidate(plot: Plot, rows: Ints, parents: Ints) -> Flags:
    """Tell whether the true parent is the one span of its kind that was open at that time."""
    wide = int(plot.process.max(initial=0)) + 2
    local = plot.process[rows] == plot.process[parents]
    kept = np.flatnonzero(plot.lost == 0)
    alone = np.zeros(len(rows), bool)
    for inside in (True, False):
        which = np.flatnonzero(local == inside)
        place = plot.process[kept] + 1 if inside else np.zeros(len(kept), np.int64)
        key = plot.op[kept] * wide + place
        wanted_place = plot.process[parents[which]] + 1 if inside else 0
        wanted = plot.op[parents[which]] * wide + wanted_place
        moment = plot.start[rows[which]]
        late = plot.end[parents[which]] < moment
        begun = _count_until(key, plot.start[kept], wanted, moment)
        ended = _count_until(key, plot.end[kept], wanted, moment - 1)
        before = _count_until(key, plot.start[kept], wanted, plot.start[parents[which]])
        alone[which] = np.where(late, begun == before, begun - ended == 1)
    return alone


def _count_until(key: Ints, time: Ints, wanted: Ints, moment: Ints) -> Ints:
    """Count entries of each wanted key with time up to each moment."""
    table = pl.DataFrame({"key": key, "time": time}).sort("time")
    table = table.with_columns(count=pl.col("time").cum_count().over("key").cast(pl.Int64))
    asked = pl.DataFrame({"key": wanted, "time": moment}).with_row_index("row").sort("time")
    found = asked.join_asof(table, on="time", by="key", check_sortedness=False).sort("row")
    counts: Ints = found["count"].fill_null(0).to_numpy()
    return counts


def legal_truth(plot: Plot, *, most: int, rng: np.random.Generator) -> pl.DataFrame:
    """List look-alikes that are no break: at most `most` of each sort.

    Late children, readers of a queue, roots that are no server's, calls to peers without
    instrumentation, failed tries whose next try went well.
    """
    kept = plot.lost == 0
    planted = np.zeros(plot.n, bool)
    for table in plot.truth:
        planted[table["row"].cast(pl.Int64).to_numpy()] = True
    whole = kept & ~planted
    has = whole & (plot.up >= 0)
    above = np.where(plot.up >= 0, plot.up, 0)
    natural = whole & (plot.spans["parent_span_id"].is_null().to_numpy())
    kids = np.zeros(plot.n, bool)
    kids[plot.up[plot.up >= 0]] = True
    sorts = {
        "fire and forget": has & kept[above] & (plot.start > plot.end[above]),
        "queue delay": has & kept[above] & (plot.boundary == "queue"),
        "natural root": natural & ~np.isin(plot.kind, ENTRIES),
        "link root": natural & (plot.kind == "CONSUMER"),
        "peer without spans": has & kept[above] & (plot.kind == "CLIENT") & ~kids,
    }
    parts = []
    for detail, flags in sorts.items():
        rows = np.flatnonzero(flags)
        rows = np.sort(rng.choice(rows, size=min(most, len(rows)), replace=False))
        own = take(plot.ids, rows)
        parts.append(
            pl.DataFrame(
                {
                    "kind": pl.repeat("legal", len(rows), eager=True),
                    "trace_id": own["trace_id"],
                    "span_id": own["span_id"],
                    "service_name": take(plot.spans.select("service_name"), rows)["service_name"],
                    "detail": pl.repeat(detail, len(rows), eager=True),
                    "observable": pl.repeat(value=True, n=len(rows), eager=True),
                    "evidence_present": pl.repeat(value=True, n=len(rows), eager=True),
                }
            )
        )
    return pl.concat([schema.conform(part, schema.TRUTH) for part in parts])
