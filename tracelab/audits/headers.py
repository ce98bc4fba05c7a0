"""What became of request headers from service to service."""

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.retries import attribute
from tracelab.exceptions import ParameterError
from tracelab.schema import ColumnType
from tracelab.structure import span_edges
from tracelab.traceset import TraceSet, require_traces

HEADERS: Final[Mapping[str, Sequence[str]]] = {
    "x-request-id": ("guid:x-request-id", "request.id", "app.request.id"),
    "x-tenant-id": ("tenant.id", "tenant_id"),
    "x-error-context": (),
}
"""Headers looked for, and attribute names that carry them beside the conventions'
``http.request.header.<key>`` (with hyphens, and with underscores as the old style has it)."""

_SPAN: Final = ["trace_id", "span_id"]
_MAX_LEVELS: Final = 16
_COLUMNS: Final[dict[str, ColumnType]] = {
    "key": pl.String,
    "trace_id": pl.String,
    "parent_span_id": pl.String,
    "child_span_id": pl.String,
    "from_service": pl.String,
    "to_service": pl.String,
    "time": schema.TIME,
    "sent": pl.String,
    "received": pl.String,
    "verdict": pl.String,
}
_RESULT: Final = pl.Schema(_COLUMNS)


def header_value(key: str, names: Sequence[str] = ()) -> pl.Expr:
    """Return the value of a header on a span: hyphen or underscore, one value or an array.

    Parameters
    ----------
    key : str
        The header, in lower case.
    names : sequence of str
        Further attribute names to look under.

    Returns
    -------
    pl.Expr
        Text, null where the span did not capture the header or it was empty.
    """
    return pl.coalesce([attribute(name).replace("", None) for name in _spellings(key, names)])


def says_header(key: str, names: Sequence[str] = ()) -> pl.Expr:
    """Return whether the attributes of a span may have a header; cheaper than its value.

    Parameters
    ----------
    key, names
        As for `header_value`.

    Returns
    -------
    pl.Expr
        Boolean; false only where `header_value` is null.
    """
    return pl.col("attributes").str.contains_any(_spellings(key, names)).fill_null(value=False)


def _spellings(key: str, names: Sequence[str]) -> list[str]:
    prefix = "http.request.header."
    return [prefix + key, prefix + key.replace("-", "_"), *names]


def with_header(spans: pl.DataFrame, key: str, names: Sequence[str] = ()) -> pl.DataFrame:
    """Return the spans that carry a header, with its ``value``; cheap where few do.

    Parameters
    ----------
    spans : pl.DataFrame
        Schema SPANS.
    key : str
        The header, in lower case.
    names : sequence of str
        Further attribute names to look under.

    Returns
    -------
    pl.DataFrame
        The spans' columns and ``value``, never null.

    Raises
    ------
    SchemaError
        If there is no column ``attributes``.
    """
    schema.require_columns(spans, ["attributes"], name="spans")
    quoted = [f'"{name}"' for name in _spellings(key, names)]
    named = pl.col("attributes").str.contains_any(quoted)
    return (
        spans.filter(named.fill_null(value=False))
        .with_columns(header_value(key, names).alias("value"))
        .filter(pl.col("value").is_not_null())
    )


def audit_headers(
    traces: TraceSet,
    *,
    headers: Mapping[str, Sequence[str]] = HEADERS,
    edges: pl.DataFrame | None = None,
    breaks: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Follow headers over every hop between services.

    Parameters
    ----------
    traces : TraceSet
        The capture; a header is seen only where the instrumentation was told to capture it.
    headers : mapping of str to sequence of str
        Header (lower case) to further attribute names that carry it.
    edges : pl.DataFrame, optional
        Schema EDGES of the same capture; computed where not given.
    breaks : pl.DataFrame, optional
        Schema BREAKS; detached roots across the network then count as a lost traceparent.

    Returns
    -------
    pl.DataFrame
        key, trace_id, parent_span_id, child_span_id, from_service, to_service, time, sent,
        received, verdict, sorted by (key, time): ``kept``, ``changed``, ``lost`` (the
        receiving service captures this header elsewhere, so it did not come), ``added``
        (the sending service captures it elsewhere, and had none) or ``not_captured`` (one
        side never shows it: nothing follows). The value sent is that of the calling span,
        else of the request that its service was serving. Hops on which neither side has a
        value are left out. ``traceparent`` is kept on every recorded hop over the network.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet, or a header is not in lower case.
    SchemaError
        If a table lacks a column.
    """
    require_traces(traces)
    wrong = [key for key in headers if key != key.lower()]
    if wrong:
        raise ParameterError(f"headers are given in lower case, not {', '.join(wrong)}")
    if edges is None:
        edges = span_edges(traces)
    schema.require_columns(edges, schema.EDGES, name="edges")
    up = edges.filter(pl.col("relation") == "parent").unique(
        ["trace_id", "child_span_id"], keep="first", maintain_order=True
    )
    crossing = up.filter(
        pl.col("boundary").is_in(["network", "queue"])
        | (pl.col("parent_service") != pl.col("child_service"))
    ).select("trace_id", "parent_span_id", "child_span_id", "parent_service", "child_service")
    parts = [_follow(key, names, traces.spans, up, crossing) for key, names in headers.items()]
    parts.append(_traceparent(traces.spans, crossing, breaks))
    return pl.concat(parts).sort("key", "time", "trace_id", "child_span_id")


def _follow(
    key: str, names: Sequence[str], spans: pl.DataFrame, up: pl.DataFrame, crossing: pl.DataFrame
) -> pl.DataFrame:
    own = with_header(spans.select(*_SPAN, "service_name", "attributes"), key, names).unique(
        _SPAN, keep="first", maintain_order=True
    )
    sent = _effective(own, up, crossing)
    # an ancestor shows one value for all calls below it: where one call brought another value
    # and one brought this, it was set anew between them
    below = pl.col("holder").ne_missing(pl.col("parent_span_id"))
    one_kept = (pl.col("sent") == pl.col("received")).any().over("trace_id", "holder")
    received = own.select(
        "trace_id", pl.col("span_id").alias("child_span_id"), pl.col("value").alias("received")
    )
    seen = own["service_name"].unique().implode()
    here, there = pl.col("sent"), pl.col("received")
    return (
        crossing.join(sent, on=["trace_id", "parent_span_id"], how="left")
        .join(received, on=["trace_id", "child_span_id"], how="left")
        .filter(here.is_not_null() | there.is_not_null())
        .join(_starts(spans), on=["trace_id", "child_span_id"], how="left")
        .with_columns(
            pl.when(here == there)
            .then(pl.lit("kept"))
            .when(here.is_not_null() & there.is_not_null() & below & one_kept)
            .then(pl.lit("not_captured"))
            .when(here.is_not_null() & there.is_not_null())
            .then(pl.lit("changed"))
            .when(there.is_null() & pl.col("child_service").is_in(seen))
            .then(pl.lit("lost"))
            .when(here.is_null() & pl.col("parent_service").is_in(seen))
            .then(pl.lit("added"))
            .otherwise(pl.lit("not_captured"))
            .alias("verdict"),
            pl.lit(key).alias("key"),
        )
        .rename({"parent_service": "from_service", "child_service": "to_service"})
        .select(list(_RESULT))
    )


def _effective(own: pl.DataFrame, up: pl.DataFrame, crossing: pl.DataFrame) -> pl.DataFrame:
    """Value that each calling span had: its own, else of its nearest ancestor in the service."""
    local = up.filter(pl.col("parent_service") == pl.col("child_service")).select(
        "trace_id", pl.col("child_span_id").alias("at"), pl.col("parent_span_id").alias("next")
    )
    values = own.select("trace_id", pl.col("span_id").alias("at"), pl.col("value").alias("sent"))
    at = crossing.select(
        "trace_id", "parent_span_id", pl.col("parent_span_id").alias("at")
    ).unique()
    parts = []
    for _ in range(_MAX_LEVELS):
        if at.is_empty():
            break
        parts.append(at.join(values, on=["trace_id", "at"], how="inner").rename({"at": "holder"}))
        at = (
            at.join(values, on=["trace_id", "at"], how="anti")
            .join(local, on=["trace_id", "at"], how="inner")
            .drop("at")
            .rename({"next": "at"})
        )
    empty = pl.DataFrame(
        schema=dict.fromkeys(("trace_id", "parent_span_id", "holder", "sent"), pl.String)
    )
    return pl.concat([empty, *parts])


def _starts(spans: pl.DataFrame) -> pl.DataFrame:
    return spans.select(
        "trace_id", pl.col("span_id").alias("child_span_id"), pl.col("start_time").alias("time")
    ).unique(["trace_id", "child_span_id"], keep="first")


def _traceparent(
    spans: pl.DataFrame, crossing: pl.DataFrame, breaks: pl.DataFrame | None
) -> pl.DataFrame:
    kept = crossing.join(_starts(spans), on=["trace_id", "child_span_id"], how="left").select(
        pl.lit("traceparent").alias("key"),
        "trace_id",
        "parent_span_id",
        "child_span_id",
        pl.col("parent_service").alias("from_service"),
        pl.col("child_service").alias("to_service"),
        "time",
        pl.col("trace_id").alias("sent"),
        pl.col("trace_id").alias("received"),
        pl.lit("kept").alias("verdict"),
    )
    if breaks is None:
        return kept
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    lost = breaks.filter(
        pl.col("kind") == "detached_root",
        pl.col("boundary").is_in(["network", "queue"]),
        pl.col("proposed_span_id").is_not_null(),
    ).select(
        pl.lit("traceparent").alias("key"),
        "trace_id",
        pl.col("proposed_span_id").alias("parent_span_id"),
        pl.col("span_id").alias("child_span_id"),
        "from_service",
        "to_service",
        "time",
        pl.col("proposed_trace_id").alias("sent"),
        pl.col("trace_id").alias("received"),
        pl.lit("lost").alias("verdict"),
    )
    return pl.concat([kept, lost])
