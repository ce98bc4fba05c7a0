"""Where traces break: every kind, over one capture or over the buckets of a store."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.memory import reusing_arrays
from tracelab.structure.detached import find_detached_roots
from tracelab.structure.identity import find_cycles, find_duplicates, find_invalid_ids
from tracelab.structure.leaks import find_wrong_parents
from tracelab.structure.orphans import find_orphans
from tracelab.structure.skeleton import Skeleton
from tracelab.structure.skew import clock_offsets, find_clock_skew
from tracelab.structure.spine import Spine, build_spine
from tracelab.structure.stacking import Packed, pack_spine
from tracelab.structure.telemetry import loss_hints, select_telemetry
from tracelab.structure.timing import find_client_roots, find_late_children
from tracelab.structure.truncation import (
    ValueLengths,
    find_truncated_values,
    measure_lengths,
)
from tracelab.traceset import TraceSet

BREAK_COLUMNS: Final = tuple(
    name
    for name in schema.JUDGED
    if name
    not in {
        "scope_name",
        "scope_version",
        "scope_schema_url",
        "service_namespace",
        "status_message",
        "trace_state",
        "error_type",
        "resend_count",
    }
)
"""Span columns that edges and breaks are found from; a store need not read the others."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """What the search for breaks needs to keep of a bucket of whole traces.

    Parameters
    ----------
    spine : Packed
        Its spans as numbers.
    metrics : pl.DataFrame
        Schema METRIC_POINTS, the self-telemetry among the bucket's metrics.
    lengths : ValueLengths
        Its long texts.
    """

    spine: Packed
    metrics: pl.DataFrame
    lengths: ValueLengths


def reduce_bucket(traces: TraceSet, *, spine: Spine | None = None) -> Reduced:
    """Reduce a bucket to what `resolve_breaks` needs: about 80 bytes a span.

    Parameters
    ----------
    traces : TraceSet
        Whole traces. Metrics may stand in any one bucket.
    spine : Spine, optional
        That of `build_spine`, where it was built already; it saves half the work.

    Returns
    -------
    Reduced
        Independent of `traces`, to be kept until all buckets are there.

    Raises
    ------
    SchemaError
        Never for a `TraceSet`.
    """
    spine = build_spine(traces) if spine is None else spine
    return Reduced(
        spine=pack_spine(spine),
        metrics=select_telemetry(traces.metrics),
        lengths=measure_lengths(traces, spine),
    )


def resolve_breaks(
    reduced: Iterable[Reduced], *, min_confidence: float = 0.5, min_late_ns: int = 1_000_000
) -> pl.DataFrame:
    """Find the breaks of a capture whose buckets have been reduced.

    Parameters
    ----------
    reduced : iterable of Reduced
        All buckets, in any order: the answer is the same. Taken one by one, so that an
        iterator that lets go of them keeps the capture from standing in memory twice.
    min_confidence : float
        A cause less sure than this is `unknown`, with the candidates as alternatives. Half:
        below it the other causes together are likelier.
    min_late_ns : int
        See `find_breaks`.

    Returns
    -------
    pl.DataFrame
        Schema `BREAKS`, sorted by (time, break_id).

    Raises
    ------
    ParameterError
        If a threshold is out of its range.
    """
    if not 0 <= min_confidence <= 1:
        raise ParameterError(f"min_confidence is {min_confidence}; a probability is 0 to 1")
    telemetry, lengths = [schema.empty(schema.METRIC_POINTS)], []

    def spines() -> Iterator[Packed]:
        for bucket in reduced:
            telemetry.append(bucket.metrics)
            lengths.append(bucket.lengths)
            yield bucket.spine

    with reusing_arrays():
        return _resolved(Skeleton(spines()), telemetry, lengths, min_confidence, min_late_ns)


def _resolved(
    skeleton: Skeleton,
    telemetry: list[pl.DataFrame],
    lengths: list[ValueLengths],
    min_confidence: float,
    min_late_ns: int,
) -> pl.DataFrame:
    if not skeleton.n:
        return schema.empty(schema.BREAKS)
    found = [skeleton.write_breaks(find_duplicates(skeleton))]
    skeleton.drop_copies()
    recorded = [
        find_clock_skew(skeleton),
        find_client_roots(skeleton),
        find_cycles(skeleton),
        find_invalid_ids(skeleton),
        find_truncated_values(skeleton, lengths),
    ]
    found += [skeleton.write_breaks(table) for table in recorded]
    offsets = clock_offsets(skeleton)
    if offsets.any():
        skeleton.on_one_clock(offsets)
    skeleton.part_captures()
    detached = find_detached_roots(skeleton)
    leaked = find_wrong_parents(skeleton)
    orphans = find_orphans(
        skeleton,
        detached.claimed,
        loss_hints(pl.concat(telemetry)),
        min_confidence=min_confidence,
    )
    analysed = [
        detached.found,
        leaked,
        # What hangs below a parent that is not its own does not lack that.
        orphans.filter((pl.col("kind") == "missing_server") | ~_same_row(leaked)),
        find_late_children(skeleton, min_late_ns=min_late_ns),
    ]
    found.append(skeleton.write_breaks(pl.concat(analysed)))
    return pl.concat(found).sort("time", "break_id", nulls_last=True)


def _same_row(table: pl.DataFrame) -> pl.Expr:
    return pl.col("row").is_in(table["row"].implode())


def find_breaks(
    traces: TraceSet, *, min_confidence: float = 0.5, min_late_ns: int = 1_000_000
) -> pl.DataFrame:
    """Find where traces break: kind, cause, boundary, evidence, and the likely parent.

    Parameters
    ----------
    traces : TraceSet
        A capture.
    min_confidence : float
        A cause less sure than this is `unknown`, with the candidates as alternatives. Half:
        below it the other causes together are likelier.
    min_late_ns : int
        Least time between a parent's end and the start of a `late_child` in another process.
        Clocks of hosts in one site agree to about a millisecond.

    Returns
    -------
    pl.DataFrame
        Schema `BREAKS`, sorted by (time, break_id); empty if nothing is broken.

    Raises
    ------
    ParameterError
        If a threshold is out of its range.
    """
    return resolve_breaks(
        [reduce_bucket(traces)], min_confidence=min_confidence, min_late_ns=min_late_ns
    )
