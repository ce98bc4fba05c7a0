"""Orphans and unanswered calls, as breaks."""

import numpy as np
import polars as pl

from tracelab.structure.causes import Hints, judge_causes
from tracelab.structure.missing import Missing, find_missing
from tracelab.structure.sampled_callers import blame_sampled_callers
from tracelab.structure.sampling import MIN_SEPARATION, sampled_out
from tracelab.structure.skeleton import Narrow, Skeleton, verdicts

HARMLESS = ("capture_edge", "uninstrumented_hop")
"""Causes that need no repair of the program: the capture ends somewhere, and a service that is
not instrumented sends nothing."""


def find_orphans(
    skeleton: Skeleton, claimed: Narrow, hints: Hints, *, min_confidence: float
) -> pl.DataFrame:
    """Find spans whose parent is missing and calls whose server span is missing, and why.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    claimed : ndarray of float32
        Per row, how many detached roots it probably called.
    hints : dict
        What self-telemetry proves, from `loss_hints`.
    min_confidence : float
        Causes below are ``unknown``.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`: kinds orphan_span, missing_server and sampling_gap.

    Raises
    ------
    SchemaError
        Never.
    """
    missing = blame_sampled_callers(skeleton, find_missing(skeleton, claimed))
    if not missing.row.size:
        return verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))
    separation, reading = sampled_out(skeleton, missing)
    keep = missing.firm | (separation >= MIN_SEPARATION)
    missing, separation = missing.select(keep), separation[keep]
    if not missing.row.size:
        return verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))
    readings = [name for name, kept in zip(reading, keep, strict=True) if kept]
    judged = judge_causes(
        skeleton, missing, separation, readings, hints, min_confidence=min_confidence
    )
    table = _facts(skeleton, missing).with_columns(
        cause=judged.cause,
        at_capture_edge=pl.Series(judged.at_edge),
        alternatives=judged.alternatives,
        why=judged.evidence,
        sure=pl.Series(judged.confidence),
    )
    sampled = pl.col("cause") == "sampled_out"
    unknown = pl.col("cause") == "unknown"
    return verdicts(
        table.with_columns(
            kind=pl.when(sampled)
            .then(pl.lit("sampling_gap"))
            .when("call")
            .then(pl.lit("missing_server"))
            .otherwise(pl.lit("orphan_span")),
            # That a parent is missing is certain; a call without a server is an inference.
            confidence=pl.when(~unknown).then("sure").when("call").then(0.85).otherwise(1.0),
            severity=pl.when(
                pl.col("cause").is_in(HARMLESS) | (unknown & pl.col("at_capture_edge"))
            )
            .then(pl.lit("info"))
            .otherwise(pl.lit("warning")),
            evidence=pl.concat_list(
                pl.when("call")
                .then(pl.lit("calls like this one are answered by a server span elsewhere"))
                .otherwise(pl.lit("its parent is not in the capture")),
                "said_by",
                pl.when(pl.col("siblings") > 1).then(
                    pl.format("{} spans name the same missing parent", "siblings")
                ),
                "why",
            ).list.drop_nulls(),
        )
    )


def _facts(skeleton: Skeleton, missing: Missing) -> pl.DataFrame:
    """Gather what is known of each missing span apart from the cause."""
    own = skeleton.service_names(skeleton.service[missing.row])
    other = skeleton.service_names(missing.service)
    siblings = pl.DataFrame({"trace": skeleton.trace[missing.row], "span": missing.span}).select(
        pl.len().over("trace", "span").cast(pl.Int64)
    )
    call = pl.Series(missing.call)
    return pl.DataFrame(
        {
            "row": missing.row,
            "call": missing.call,
            "boundary": missing.boundary,
            "said_by": missing.said_by,
            "siblings": np.where(missing.call, 1, siblings.to_series().to_numpy()),
            "from_service": own.zip_with(call, other),
            "to_service": other.zip_with(call, own),
            "missing": pl.Series(missing.span).zip_with(
                ~call, pl.Series([None], dtype=pl.UInt64).new_from_index(0, missing.row.size)
            ),
        }
    )
