"""Findings of time and kind alone: children after their parents' end, client roots."""

import numpy as np
import polars as pl

from tracelab.structure.skeleton import CLIENT, Skeleton, verdicts
from tracelab.structure.spine import CROSSINGS, take_rows


def find_late_children(skeleton: Skeleton, *, min_late_ns: int) -> pl.DataFrame:
    """Find children that start after their parent ended: fire and forget, legal.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    min_late_ns : int
        Least time between the parent's end and the child's start across processes, where
        clocks differ; within a process any positive time counts.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`, severity info.

    Raises
    ------
    SchemaError
        Never.
    """
    rows = skeleton.intact
    parent = skeleton.parent[rows]
    late = skeleton.start[rows] - skeleton.end[parent]
    apart = skeleton.process[rows] != skeleton.process[parent]
    timed = skeleton.timed[rows] & skeleton.timed[parent] & (rows != parent)
    keep = timed & (late > np.where(apart, min_late_ns, 0))
    rows, parent, late = rows[keep], parent[keep], late[keep]
    words = pl.DataFrame(CROSSINGS, schema=["boundary", "_evidence"], orient="row")
    table = take_rows(words, pl.Series(skeleton.crossing[rows])).with_columns(
        row=pl.Series(rows),
        kind=pl.lit("late_child"),
        severity=pl.lit("info"),
        from_service=skeleton.service_names(skeleton.service[parent]),
        to_service=skeleton.service_names(skeleton.service[rows]),
        late_ms=pl.Series(late / 1e6).round(3),
    )
    return verdicts(
        table.with_columns(
            evidence=pl.concat_list(
                pl.format("starts {} ms after its parent ended", "late_ms"), "_evidence"
            )
        )
    )


def find_client_roots(skeleton: Skeleton) -> pl.DataFrame:
    """Find traces that begin with a call: the caller's own entry span is not recorded.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`, severity info.

    Raises
    ------
    SchemaError
        Never.
    """
    rows = skeleton.roots
    linked = skeleton.column("linked")[rows]
    rows = rows[(skeleton.kind[rows] == CLIENT) & ~linked]
    return verdicts(
        pl.DataFrame(
            {"row": rows, "from_service": skeleton.service_names(skeleton.service[rows])}
        ).with_columns(
            kind=pl.lit("client_root"),
            severity=pl.lit("info"),
            evidence=pl.lit(["kind CLIENT, no parent, no link"], pl.List(pl.String)),
        )
    )
