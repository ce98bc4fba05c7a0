"""Clocks of two hosts, compared by the calls between them."""

from typing import Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.structure.codes import pair_codes
from tracelab.structure.skeleton import (
    CLIENT,
    CONSUMER,
    FAR,
    INTERNAL,
    SERVER,
    Ints,
    Skeleton,
    verdicts,
)
from tracelab.structure.spine import CROSSINGS, build_spine, take_rows
from tracelab.structure.stacking import pack_spine
from tracelab.traceset import TraceSet

CLOCK_SKEWS: Final = pl.Schema(
    {
        "caller_clock": pl.String,
        "callee_clock": pl.String,
        "calls": pl.Int64,
        "skew_ns": pl.Int64,
        "uncertainty_ns": pl.Int64,
        "certain": pl.Boolean,
    }
)
"""``skew_ns`` is how far the callee's clock is ahead of the caller's; ``certain``: no delay of
the network could make it zero."""

MIN_SKEW_NS: Final = 500_000
"""Below half a millisecond a skew explains nothing that an analysis would get wrong."""


_WAITS: Final = (20, 0.95, 0.1)
"""Least calls of one kind, least share of them that their caller outlasts, and least share that
the caller of another one would not outlast, from which callers are seen to wait."""

_FITTING: Final = 0.9
"""Least share of the calls between two clocks that a skew known from others must fit."""


def clock_groups(skeleton: Skeleton) -> tuple[Ints, pl.Series]:
    """Tell which processes share a clock: those of one host, else each for itself.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    tuple of ndarray of int64 and pl.Series
        Clock of each process, and the name of each clock.

    Raises
    ------
    ValueError
        Never.
    """
    processes = skeleton.processes
    named = processes.select(
        pl.coalesce(
            "host_name",
            pl.concat_str(
                pl.col("service_name").fill_null("?"),
                pl.coalesce(
                    "service_instance_id", pl.col("process_pid").cast(pl.String), pl.lit("")
                ),
                separator=" ",
            ),
        ).str.strip_chars_end()
    ).to_series()
    names = named.unique().sort()
    return names.search_sorted(named).to_numpy().astype(np.int64), names


def measure_skews(skeleton: Skeleton) -> pl.DataFrame:
    """Estimate the skew of each pair of clocks from client and server spans.

    A server span begins after its client's and ends before it. With the callee's clock ahead by
    s, the start gap is at least s and the end gap at least -s, so both bound it; the 5th
    percentiles are taken instead of the least values, because a client may give up waiting.
    Other callers bound it from below where they are seen to wait as well.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    pl.DataFrame
        ``caller``, ``callee`` (clocks), ``calls``, ``low``, ``high`` (bounds in nanoseconds;
        ``mostly`` is the lower one by the middle call), sorted.

    Raises
    ------
    ValueError
        Never.
    """
    rows = _calls(skeleton)
    parent = skeleton.parent[rows]
    clock, _ = clock_groups(skeleton)
    return (
        pl.DataFrame(
            {
                "caller": clock[skeleton.process[parent]],
                "callee": clock[skeleton.process[rows]],
                "start_gap": skeleton.start[rows] - skeleton.start[parent],
                "end_gap": skeleton.end[parent] - skeleton.end[rows],
                "client": skeleton.kind[parent] == CLIENT,
                "kind": pair_codes(skeleton.op[rows], skeleton.op[parent], skeleton.ops.height),
                "took": skeleton.end[rows] - skeleton.start[rows],
                "lasted": skeleton.end[parent] - skeleton.start[parent],
            }
        )
        .filter(pl.col("caller") != pl.col("callee"))
        # A client waits for its answer; what else called may have gone on or ended.
        .with_columns(pl.when(pl.col("client") | _waits()).then("end_gap"))
        .group_by("caller", "callee")
        .agg(
            pl.len().cast(pl.Int64).alias("calls"),
            pl.col("start_gap").quantile(0.05).alias("high"),
            (-pl.col("end_gap").quantile(0.05)).alias("low"),
            (-pl.col("end_gap").quantile(0.5)).alias("mostly"),
            # No server begins before its client, but it may end after it (a client gives up, a
            # response is streamed): the second needs most calls to say so.
            (pl.col("start_gap").quantile(0.25) < -MIN_SKEW_NS).alias("starts_before"),
            (pl.col("end_gap").quantile(0.5) < -MIN_SKEW_NS).alias("ends_after"),
        )
        .sort("caller", "callee")
    )


def _waits() -> pl.Expr:
    """Whether callers of a kind outlast their callees as only one that waits does, on any clock.

    Each caller lasts longer than what it called, and not by its nature: it would often be too
    short for the next one's.
    """
    kind = ("caller", "callee", "kind")
    enough, outlasts, chance = _WAITS
    others = pl.col("took").shift(1) > pl.col("lasted")
    return (
        (pl.len().over(kind) >= enough)
        & ((pl.col("lasted") >= pl.col("took")).mean().over(kind) >= outlasts)
        & (others.mean().over(kind) >= chance)
    )


def _calls(skeleton: Skeleton) -> Ints:
    """Server spans called from afar; their parent may be a server, if nothing records clients."""
    rows = _from_afar(skeleton)
    callers = skeleton.kind[skeleton.parent[rows]]
    served = skeleton.kind[rows] == SERVER
    calls: Ints = rows[served & np.isin(callers, (CLIENT, SERVER, INTERNAL))]
    return calls


def _from_afar(skeleton: Skeleton) -> Ints:
    """Spans called from afar, by messages say, of which not all can bound a skew."""
    rows = skeleton.intact
    called: Ints = rows[
        np.isin(skeleton.kind[rows], (SERVER, CONSUMER))
        & FAR[skeleton.crossing[rows]]
        & skeleton.timed[rows]
        & skeleton.timed[skeleton.parent[rows]]
    ]
    return called


def _certain(pairs: pl.DataFrame, *, min_calls: int) -> pl.DataFrame:
    """Pairs whose bounds exclude zero, with the estimate and half the width of the bounds."""
    middle = (pl.col("low").fill_null(pl.col("high")) + pl.col("high")) / 2
    width = ((pl.col("high") - pl.col("low")) / 2).abs()
    behind = (pl.col("high") < 0) & pl.col("starts_before")
    # A server may outlive its call a little; a clock that is ahead lets all its spans begin
    # late by as much, so that the bounds lie close together.
    ahead = (pl.col("low") > 0) & pl.col("ends_after") & (width <= middle / 2)
    ahead = ahead.fill_null(value=False)
    judged = pairs.with_columns(
        # No server begins before its client; it may well end after it.
        skew=pl.when(behind).then(pl.min_horizontal(middle, "high")).otherwise(middle),
        uncertainty=width,
        certain=(behind | ahead) & (pl.col("calls") >= min_calls) & (middle.abs() >= MIN_SKEW_NS),
    )
    # Two clocks differ by the same both ways: calls of one direction prove it for the other's,
    # unless these exclude it.
    back = judged.filter("certain").select(
        caller="callee", callee="caller", told=-pl.col("skew"), width="uncertainty"
    )
    agrees = (
        pl.col("told").is_not_null()
        & ~pl.col("certain")
        & (pl.col("told") >= pl.col("mostly").fill_null(-np.inf) - MIN_SKEW_NS - pl.col("width"))
        & (pl.col("told") <= pl.col("high") + MIN_SKEW_NS + pl.col("width"))
    )
    return judged.join(back, on=["caller", "callee"], how="left", maintain_order="left").select(
        *pairs.columns,
        skew=pl.when(agrees).then("told").otherwise("skew"),
        uncertainty=pl.when(agrees).then("width").otherwise("uncertainty"),
        certain=pl.col("certain") | agrees.fill_null(value=False),
    )


def clock_offsets(skeleton: Skeleton, *, min_calls: int = 3) -> Ints:
    """Return how far each process's clock is ahead of the reference; 0 where nothing proves it.

    Clocks that certain skews connect form a group; the clock with most calls in it is taken as
    right, because at most one of many is usually wrong.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    min_calls : int
        Least calls between two clocks.

    Returns
    -------
    ndarray of int64
        Nanoseconds per process.

    Raises
    ------
    ValueError
        Never.
    """
    pairs = _certain(measure_skews(skeleton), min_calls=min_calls)
    return _offsets(skeleton, pairs, min_calls=min_calls)


def _offsets(skeleton: Skeleton, pairs: pl.DataFrame, *, min_calls: int) -> Ints:
    if not pairs["certain"].any():
        return np.zeros(skeleton.processes.height, np.int64)
    clock, names = clock_groups(skeleton)
    offset = np.zeros(len(names))
    placed = np.zeros(len(names), bool)
    weight = np.zeros(len(names))
    sure = pairs.filter(pl.col("calls") >= min_calls)
    skewed = np.zeros(len(names))
    for caller, callee, calls, certain in sure.select(
        "caller", "callee", "calls", "certain"
    ).rows():
        weight[[caller, callee]] += calls if not certain else 0
        skewed[[caller, callee]] += calls if certain else 0
    neighbours: dict[int, list[tuple[int, float]]] = {}
    for caller, callee, skew, certain in sure.select("caller", "callee", "skew", "certain").rows():
        step = skew if certain else 0.0
        neighbours.setdefault(caller, []).append((callee, step))
        neighbours.setdefault(callee, []).append((caller, -step))
    # The clock that agrees with most of its neighbours stands first.
    for first in np.argsort(skewed - weight, kind="stable"):
        if placed[first] or int(first) not in neighbours:
            continue
        placed[first] = True
        queue = [int(first)]
        while queue:
            here = queue.pop(0)
            for other, step in neighbours[here]:
                if not placed[other]:
                    placed[other] = True
                    offset[other] = offset[here] + step
                    queue.append(other)
    return offset[clock].astype(np.int64)


def find_clock_skew(skeleton: Skeleton, *, min_calls: int = 3) -> pl.DataFrame:
    """Find calls whose server span lies outside its client's because clocks differ.

    Parameters
    ----------
    skeleton : Skeleton
        The capture, with times as recorded.
    min_calls : int
        Least calls between two clocks.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`, severity info: one row per server span that begins before or ends
        after its client, between clocks that certainly differ.

    Raises
    ------
    SchemaError
        Never.
    """
    measured = _certain(measure_skews(skeleton), min_calls=min_calls)
    pairs = measured.filter("certain")
    if not pairs.height:
        return verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))
    clock, names = clock_groups(skeleton)
    rows = _from_afar(skeleton)
    parent = skeleton.parent[rows]
    offset = _offsets(skeleton, measured, min_calls=min_calls)
    told = offset[skeleton.process[rows]] - offset[skeleton.process[parent]]
    early = skeleton.start[rows] < skeleton.start[parent]
    late = (skeleton.end[rows] > skeleton.end[parent]) & (skeleton.kind[rows] == SERVER)
    asked = early | late | (np.abs(told) >= MIN_SKEW_NS)
    rows, parent, told, early, late = (each[asked] for each in (rows, parent, told, early, late))
    table = (
        pl.DataFrame(
            {
                "row": rows,
                "caller": clock[skeleton.process[parent]],
                "callee": clock[skeleton.process[rows]],
                "crossing": skeleton.crossing[rows],
                "early": early,
                "late": late,
                "waited": skeleton.kind[parent] == CLIENT,
                "start_gap": skeleton.start[rows] - skeleton.start[parent],
                "late_ns": skeleton.end[rows] - skeleton.end[parent],
                "told": told,
                "from_service": skeleton.service_names(skeleton.service[parent]),
                "to_service": skeleton.service_names(skeleton.service[rows]),
            }
        )
        .filter(pl.col("caller") != pl.col("callee"))
        .join(pairs, on=["caller", "callee"], how="left", maintain_order="left")
        .with_columns(
            skew=pl.coalesce("skew", pl.when(pl.col("told").abs() >= MIN_SKEW_NS).then("told"))
        )
    )
    after = pl.col("start_gap") >= pl.col("skew") - MIN_SKEW_NS
    # Between these two nothing proves a skew, but their calls with others do: it must fit here.
    fits = after & (after.mean().over("caller", "callee") >= _FITTING)
    # What nobody waits for may end late on any clock.
    explained = pl.col("late_ns") <= pl.col("skew") + MIN_SKEW_NS
    table = table.filter(
        pl.when("certain")
        .then(pl.col("early") | (pl.col("late") & (pl.col("waited") | explained)))
        .otherwise(fits & (pl.col("early") | (pl.col("late") & explained)))
    )
    words = pl.DataFrame(CROSSINGS, schema=["boundary", "_evidence"], orient="row")
    width = pl.format("± {} ms, ", (pl.col("uncertainty") / 1e6).round(3)).fill_null("")
    source = (
        pl.when("certain")
        .then(pl.format("{}from {} calls", width, "calls"))
        .otherwise(pl.lit("from their calls with others"))
    )
    return verdicts(
        table.hstack(take_rows(words, table["crossing"])).with_columns(
            kind=pl.lit("clock_skew"),
            severity=pl.lit("info"),
            confidence=pl.when("certain").then(0.95).otherwise(0.9),
            evidence=pl.concat_list(
                pl.format(
                    "the clock of {} is {} ms {} that of {} ({})",
                    names.gather(table["callee"]).alias("callee_name"),
                    (pl.col("skew").abs() / 1e6).round(3),
                    pl.when(pl.col("skew") > 0)
                    .then(pl.lit("ahead of"))
                    .otherwise(pl.lit("behind")),
                    names.gather(table["caller"]).alias("caller_name"),
                    source,
                )
            ),
        )
    )


def estimate_clock_skew(traces: TraceSet, *, min_calls: int = 3) -> pl.DataFrame:
    """Estimate how far clocks are apart, per pair of hosts that call each other.

    Parameters
    ----------
    traces : TraceSet
        A capture.
    min_calls : int
        Least calls between two hosts for a skew to be certain.

    Returns
    -------
    pl.DataFrame
        ``caller_clock``, ``callee_clock`` (host name, or service and instance where hosts are
        not recorded), ``calls``, ``skew_ns`` (callee ahead of caller), ``uncertainty_ns``,
        ``certain``. A pair within what network delay explains is there with ``certain`` false.
        ``uncertainty_ns`` is null where no client waited for an answer, so that nothing bounds
        the skew from below.

    Raises
    ------
    SchemaError
        Never for a `TraceSet`.
    """
    skeleton = Skeleton.of(traces)
    _, names = clock_groups(skeleton)
    pairs = _certain(measure_skews(skeleton), min_calls=min_calls)
    return schema.conform(
        pairs.select(
            caller_clock=names.gather(pairs["caller"]),
            callee_clock=names.gather(pairs["callee"]),
            calls="calls",
            skew_ns=pl.col("skew").round().cast(pl.Int64),
            uncertainty_ns=pl.col("uncertainty").round().cast(pl.Int64),
            certain="certain",
        ),
        CLOCK_SKEWS,
    )


def correct_times(traces: TraceSet, *, min_calls: int = 3) -> pl.DataFrame:
    """Return the spans with times on one clock in two more columns; raw times stay.

    Parameters
    ----------
    traces : TraceSet
        A capture.
    min_calls : int
        See `estimate_clock_skew`.

    Returns
    -------
    pl.DataFrame
        ``traces.spans`` with ``corrected_start_time``, ``corrected_end_time`` and
        ``clock_offset_ns`` (0 where no skew is certain).

    Raises
    ------
    SchemaError
        Never for a `TraceSet`.
    """
    spine = build_spine(traces)
    skeleton = Skeleton([pack_spine(spine)])
    offsets = clock_offsets(skeleton, min_calls=min_calls)
    table = pl.DataFrame({"process": skeleton.processes["process"], "clock_offset_ns": offsets})
    mine = spine.spans.select("process").join(
        table, on="process", how="left", maintain_order="left"
    )["clock_offset_ns"]
    shift = pl.duration(nanoseconds=pl.col("clock_offset_ns"), time_unit="ns")
    return traces.spans.with_columns(mine.cast(pl.Int64)).with_columns(
        corrected_start_time=pl.col("start_time") - shift,
        corrected_end_time=pl.col("end_time") - shift,
    )
