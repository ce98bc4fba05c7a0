"""Spans whose parent is not in the capture."""

import polars as pl

from tracelab.structure.skeleton import Skeleton, verdicts


def find_orphans(skeleton: Skeleton, *, min_confidence: float) -> pl.DataFrame:
    """Find spans that name a parent which is not in the capture.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    min_confidence : float
        Causes below are `unknown`.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`, one row per orphan.

    Raises
    ------
    SchemaError
        Never.
    """
    rows = skeleton.orphans
    remote = skeleton.remote[rows]
    return verdicts(
        pl.DataFrame({"row": rows, "remote": remote}).with_columns(
            kind=pl.lit("orphan_span"),
            boundary=pl.when(pl.col("remote") == 1)
            .then(pl.lit("network"))
            .when(pl.col("remote") == 0)
            .then(pl.lit("same"))
            .otherwise(pl.lit("unknown")),
            missing=pl.Series(skeleton.column("parent")[rows]),
            to_service=skeleton.service_names(skeleton.service[rows]),
            evidence=pl.concat_list(
                pl.when(pl.col("remote") == 1)
                .then(pl.lit("flags: the missing parent is remote"))
                .when(pl.col("remote") == 0)
                .then(pl.lit("flags: the missing parent is local"))
                .otherwise(pl.lit("the span does not say where its parent was"))
            ),
        )
    )
