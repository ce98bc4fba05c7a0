"""Ids that cannot be right: invalid, shared by two spans, or going round in a circle."""

import numpy as np
import polars as pl

from tracelab.structure.skeleton import CLIENT, SERVER, Ints, Skeleton, verdicts
from tracelab.structure.spine import NO_ROW


def find_invalid_ids(skeleton: Skeleton) -> pl.DataFrame:
    """Find spans whose ids are no hex ids of the right length, or all zero.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`.

    Raises
    ------
    SchemaError
        Never.
    """
    zeros = skeleton.traces.select((pl.col("trace_hi") == 0) & (pl.col("trace_lo") == 0))
    zero = (skeleton.column("span") == 0) | zeros.to_series().to_numpy()[skeleton.trace]
    odd = skeleton.rows_of(skeleton.odd_ids["key"])
    rows = np.union1d(odd["row"].to_numpy(), np.flatnonzero(zero)).astype(np.int64)
    if not rows.size:
        return verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))
    texts = pl.DataFrame({"row": rows, "key": skeleton.keys(rows)}).join(
        skeleton.odd_ids.unique("key", keep="first"), on="key", how="left", maintain_order="left"
    )
    return verdicts(
        texts.with_columns(
            kind=pl.lit("invalid_id"),
            evidence=pl.concat_list(
                pl.when(pl.col("trace_id").is_null())
                .then(pl.lit("an id of zeros only"))
                .otherwise(
                    pl.format(
                        "trace id {}, span id {}, parent id {}: ids are 32 and 16 hex digits",
                        pl.col("trace_id").fill_null("missing"),
                        pl.col("span_id").fill_null("missing"),
                        pl.col("parent_span_id").fill_null("none"),
                    )
                )
            ),
        )
    )


def find_duplicates(skeleton: Skeleton) -> pl.DataFrame:
    """Find ids that stand on more than one span.

    Parameters
    ----------
    skeleton : Skeleton
        The capture; exact duplicates are dropped when a capture is read, so what is left
        differs in some field.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`, one row per id, at its earliest span.

    Raises
    ------
    SchemaError
        Never.
    """
    rows = np.flatnonzero(skeleton.column("shared"))
    groups = (
        pl.DataFrame(
            {
                "row": rows,
                "key": skeleton.keys(rows),
                "start": skeleton.start[rows],
                "op": skeleton.op[rows],
                "process": skeleton.process[rows],
                "span_kind": skeleton.kind[rows],
            }
        )
        .group_by("key", maintain_order=True)
        .agg(
            pl.col("row").min().cast(pl.Int64),
            pl.len().alias("copies"),
            (pl.col("op").n_unique() == 1).alias("one_op"),
            (pl.col("start").n_unique() == 1).alias("one_start"),
            (pl.col("process").n_unique() == 1).alias("one_process"),
            (
                pl.col("span_kind").is_in([CLIENT, SERVER]).all()
                & (pl.col("span_kind").n_unique() == 2)
            ).alias("zipkin"),
        )
    )
    again = pl.col("one_op") & pl.col("one_start") & pl.col("one_process")
    return verdicts(
        groups.with_columns(
            kind=pl.lit("duplicate_span_id"),
            cause=pl.when(again).then(pl.lit("duplicate_export")).otherwise(pl.lit("unknown")),
            boundary=pl.lit("unknown"),
            confidence=pl.when(again).then(0.95).otherwise(0.9),
            severity=pl.when("zipkin").then(pl.lit("info")).otherwise(pl.lit("warning")),
            evidence=pl.concat_list(
                pl.format(
                    "{} {} this id",
                    "copies",
                    pl.when(again)
                    .then(pl.lit("records of one span, not alike in every field, carry"))
                    .otherwise(pl.lit("different spans carry")),
                ),
                pl.when("zipkin")
                .then(pl.lit("a client and a server share it: the old Zipkin way"))
                .when(again)
                .then(pl.lit("same operation, process and start: exported more than once"))
                .otherwise(pl.lit("operation, process or start differ: the id was used twice")),
            ),
            alternatives=pl.when(again)
            .then(pl.lit([], pl.List(pl.String)))
            .otherwise(pl.lit(["duplicate_export"], pl.List(pl.String))),
        )
    )


def find_cycles(skeleton: Skeleton) -> pl.DataFrame:
    """Find parents that are their own descendants.

    Pointer doubling: after k rounds every span knows its 2^k-th ancestor, so the time is
    bounded by the logarithm of the depth.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`, one row per cycle, at its earliest span: the one whose parent
        started after it.

    Raises
    ------
    SchemaError
        Never.
    """
    members = cycle_rows(skeleton.parent)
    if not members.size:
        return verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))
    label = _cycle_labels(skeleton.parent, members)
    cycles = (
        pl.DataFrame({"row": members, "label": label})
        .group_by("label")
        .agg(pl.col("row").min(), pl.len().alias("length"))
        .sort("row")
    )
    return verdicts(
        cycles.with_columns(
            kind=pl.lit("parent_cycle"),
            severity=pl.lit("error"),
            evidence=pl.concat_list(
                pl.when(pl.col("length") == 1)
                .then(pl.lit("the span names itself as its parent"))
                .otherwise(pl.format("{} spans are each other's ancestors", "length"))
            ),
        )
    )


def cycle_rows(parent: Ints) -> Ints:
    """Return the rows that lie on a cycle of parent links.

    Parameters
    ----------
    parent : ndarray of int64
        Row of each row's parent, -1 for none.

    Returns
    -------
    ndarray of int64
        Sorted rows.

    Raises
    ------
    IndexError
        If a parent row does not exist.
    """
    active = np.flatnonzero(parent >= 0)
    ancestor = parent.copy()
    steps, longest = 1, active.size
    while active.size and steps <= longest:
        jumped = ancestor[ancestor[active]]
        # Rows whose ancestor is already past the root stay past it.
        ancestor[active] = jumped
        active = active[jumped >= 0]
        steps *= 2
    return np.unique(ancestor[active])


def _cycle_labels(parent: Ints, members: Ints) -> Ints:
    """Smallest row of each member's cycle."""
    place = np.searchsorted(members, parent[members])
    label, jump = members.copy(), place
    for _ in range(int(members.size).bit_length() + 1):
        label = np.minimum(label, label[jump])
        jump = jump[jump]
    return label


def depths(parent: Ints) -> Ints:
    """Return each row's number of ancestors; -1 on and below cycles.

    Parameters
    ----------
    parent : ndarray of int64
        Row of each row's parent, -1 for none.

    Returns
    -------
    ndarray of int64
        As many numbers.

    Raises
    ------
    IndexError
        If a parent row does not exist.
    """
    depth = (parent >= 0).astype(np.int64)
    ancestor = parent.copy()
    active = np.flatnonzero(parent >= 0)
    steps = 1
    while active.size and steps <= parent.size:
        up = ancestor[active]
        new_depth = depth[active] + depth[up]
        new_ancestor = ancestor[up]
        depth[active], ancestor[active] = new_depth, new_ancestor
        active = active[new_ancestor >= 0]
        steps *= 2
    depth[active] = NO_ROW
    return depth
