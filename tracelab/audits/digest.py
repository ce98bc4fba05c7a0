"""What hidden failures, retries and mixed tenants come to: sums that buckets can share."""

from dataclasses import dataclass, fields
from typing import Any, Final

import polars as pl

from tracelab.audits.attempts import find_retry_groups
from tracelab.audits.tenants import find_mixed_tenants
from tracelab.errors_chain.costs import swallow_costs
from tracelab.traceset import TraceSet

MAX_ROWS: Final = 20
"""Most endpoints and operations that a summary lists, the most affected first."""

MAX_EXAMPLES: Final = 10

_ENDPOINT: Final = ("service_name", "span_name")
_RETRIED: Final = ("service_name", "operation", "source")
_COST: Final = ("requests", "successful", "hiding", "swallowed", "recovered")
_TIME: Final = ("hidden_ns", "blocking_ns")


@dataclass(frozen=True)
class Digest:
    """Per endpoint what is hidden, per operation what is retried, and mixed traces."""

    hidden: pl.DataFrame
    retries: pl.DataFrame
    mixed: pl.DataFrame


def digest_audits(
    traces: TraceSet, *, hops: pl.DataFrame, edges: pl.DataFrame, exceptions: pl.DataFrame
) -> Digest:
    """Count in whole traces what does not depend on other traces.

    Parameters
    ----------
    traces : TraceSet
        A capture, or a bucket of whole traces.
    hops, edges, exceptions : pl.DataFrame
        Schemas ERROR_HOPS, EDGES and EXCEPTIONS of the same traces.

    Returns
    -------
    Digest
        ``hidden``: the sums of `swallow_costs` per endpoint; ``retries``: groups, attempts,
        failed, succeeded (groups whose last attempt did) and amplification_max per service,
        operation and source; ``mixed``: trace_id and tenants of mixed traces.

    Raises
    ------
    SchemaError
        If a table lacks a column.
    """
    groups = find_retry_groups(traces, edges=edges, exceptions=exceptions)
    return Digest(
        hidden=swallow_costs(traces, hops=hops, edges=edges).select(*_ENDPOINT, *_COST, *_TIME),
        retries=groups.group_by(_RETRIED).agg(
            pl.len().cast(pl.Int64).alias("groups"),
            pl.col("attempts", "failed").sum(),
            pl.col("succeeded").sum().cast(pl.Int64),
            pl.col("amplification").max().alias("amplification_max"),
        ),
        mixed=find_mixed_tenants(traces).select("trace_id", "tenants"),
    )


def merge_digests(*parts: Digest) -> Digest:
    """Add up the digests of buckets.

    Parameters
    ----------
    *parts : Digest
        One per bucket, at least one; no trace in two of them.

    Returns
    -------
    Digest
        As of all buckets at once; sorted by key.

    Raises
    ------
    ValueError
        If no part is given.
    """
    hidden, retries, mixed = (
        pl.concat([getattr(part, field.name) for part in parts]) for field in fields(Digest)
    )
    return Digest(
        hidden=hidden.group_by(_ENDPOINT)
        .agg(pl.col(*_COST, *_TIME).sum())
        .sort(_ENDPOINT, nulls_last=True),
        retries=retries.group_by(_RETRIED)
        .agg(
            pl.col("groups", "attempts", "failed", "succeeded").sum(),
            pl.col("amplification_max").max(),
        )
        .sort(_RETRIED, nulls_last=True),
        mixed=mixed.sort("trace_id"),
    )


def render_digest(digest: Digest) -> dict[str, Any]:
    """Give a digest as plain values, the most affected first.

    Parameters
    ----------
    digest : Digest
        Of a whole capture.

    Returns
    -------
    dict
        ``hidden_failures`` and ``retries`` (lists of at most 20 rows), and
        ``mixed_tenants`` (the number of traces, and at most 10 of them).

    Raises
    ------
    ColumnNotFoundError
        If the digest is none of `digest_audits`.
    """
    hidden = digest.hidden.filter(pl.col("hiding") > 0).sort(
        ["blocking_ns", "hiding", *_ENDPOINT], descending=[True, True, False, False]
    )
    retries = digest.retries.sort(
        ["attempts", *_RETRIED], descending=[True, False, False, False], nulls_last=True
    )
    return {
        "hidden_failures": hidden.head(MAX_ROWS).to_dicts(),
        "retries": retries.head(MAX_ROWS).to_dicts(),
        "mixed_tenants": {
            "traces": digest.mixed.height,
            "examples": digest.mixed.head(MAX_EXAMPLES)["trace_id"].to_list(),
        },
    }
