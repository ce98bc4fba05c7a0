"""The account of a store whose duplicates are resolved across its sources."""

from typing import TYPE_CHECKING

import polars as pl

from tracelab import schema

if TYPE_CHECKING:
    from tracelab.store.trace_store import TraceStore

_IDS = ("trace_id", "span_id")


def resolved_accounts(store: "TraceStore") -> pl.DataFrame:
    """Count what each source holds after duplicates, bucket by bucket.

    Parameters
    ----------
    store : TraceStore
        The store.

    Returns
    -------
    pl.DataFrame
        Schema INGEST, one row per source: ``spans_decoded = spans_kept + spans_duplicate``,
        as `read_traces` would account for the same sources. Of duplicates in several sources
        the one in the source that sorts first is kept.

    Raises
    ------
    StoreError
        If a part is missing or a byte of it was altered.
    """
    counts = []
    for number in store.buckets():
        spans = store.read_bucket(number, columns=["source"], tables=[]).spans
        shared = pl.struct(_IDS).is_duplicated() & (pl.col("span_id") != "")
        counts.append(
            spans.select("source", shared.alias("_shared"))
            .group_by("source")
            .agg(
                pl.len().cast(pl.Int64).alias("_kept"),
                pl.col("_shared").sum().cast(pl.Int64).alias("_conflicting"),
            )
        )
    summed = pl.concat(counts).group_by("source").sum()
    return (
        store.ingest_table.join(summed, on="source", how="left", maintain_order="left")
        .with_columns(
            pl.col("_kept").fill_null(0).alias("spans_kept"),
            pl.col("_conflicting").fill_null(0).alias("spans_conflicting"),
        )
        .with_columns((pl.col("spans_decoded") - pl.col("spans_kept")).alias("spans_duplicate"))
        .select(schema.INGEST.names())
    )
