"""Values that pile up at a length limit: who cut them, and which chains it cut."""

from typing import Final

import polars as pl

from tracelab.exceptions import ParameterError
from tracelab.schema import ColumnType
from tracelab.traceset import TraceSet, require_traces

GO_STACK_BYTES: Final = 2048
TEMPO_BYTES: Final = 2048
_LONG: Final = r'"([^"\\]{64,})"'
_COLUMNS: Final[dict[str, ColumnType]] = {
    "service_name": pl.String,
    "sdk_language": pl.String,
    "field": pl.String,
    "limit": pl.Int64,
    "unit": pl.String,
    "n_values": pl.Int64,
    "n_at_limit": pl.Int64,
    "n_distinct_at_limit": pl.Int64,
    "expected": pl.Float64,
    "set_by": pl.String,
    "example_trace_ids": pl.List(pl.String),
}
_RESULT: Final = pl.Schema(_COLUMNS)


def audit_truncation(
    traces: TraceSet, *, min_values: int = 5, min_ratio: float = 8.0, min_limit: int = 16
) -> pl.DataFrame:
    """Find limits at which values were cut: many different values of one greatest length.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    min_values : int
        Least number of different values of exactly that length.
    min_ratio : float
        Least multiple of the number expected from the lengths just below.
    min_limit : int
        Shortest length that can be a limit; short words share lengths by chance.

    Returns
    -------
    pl.DataFrame
        service_name, sdk_language, field (exception.stacktrace, exception.message,
        status.message, attribute), limit, unit (bytes | chars), n_values, n_at_limit,
        n_distinct_at_limit, expected, set_by, example_trace_ids. Values are counted in
        bytes and in characters; where both pile up, the round number is the limit, then
        the one that more values reach, then bytes.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet, or a threshold is below 1.
    """
    require_traces(traces)
    if min_values < 1 or min_ratio < 1 or min_limit < 1:
        raise ParameterError("min_values, min_ratio and min_limit must be at least 1")
    values = _values(traces)
    if values.is_empty():
        return pl.DataFrame(schema=_RESULT)
    key = ["service_name", "sdk_language", "field"]
    found = []
    for unit, length in (
        ("bytes", pl.col("value").str.len_bytes()),
        ("chars", pl.col("value").str.len_chars()),
    ):
        sized = values.with_columns(length.cast(pl.Int64).alias("length"))
        longest = pl.col("length").max().over(key)
        near = (pl.col("length") >= longest * 0.8) & (pl.col("length") < longest)
        found.append(
            sized.with_columns((pl.col("length") == longest).alias("at_limit"), near.alias("near"))
            .group_by(key)
            .agg(
                pl.col("length").max().alias("limit"),
                pl.lit(unit).alias("unit"),
                pl.len().cast(pl.Int64).alias("n_values"),
                pl.col("at_limit").sum().cast(pl.Int64).alias("n_at_limit"),
                pl.col("value")
                .filter("at_limit")
                .n_unique()
                .cast(pl.Int64)
                .alias("n_distinct_at_limit"),
                # per length, in the fifth of the range just below
                (pl.col("near").sum() / (pl.col("length").max() * 0.2).clip(1)).alias("expected"),
                pl.col("trace_id")
                .filter("at_limit")
                .unique()
                .sort()
                .head(5)
                .alias("example_trace_ids"),
            )
        )
    rows = pl.concat(found).filter(
        pl.col("limit") >= min_limit,
        pl.col("n_distinct_at_limit") >= min_values,
        pl.col("n_distinct_at_limit") >= min_ratio * pl.col("expected"),
    )
    return (
        rows.sort(*key, ~_is_round(), pl.col("n_at_limit") * -1, "unit", nulls_last=True)
        .unique(key, keep="first", maintain_order=True)
        .with_columns(_setter().alias("set_by"))
        .select(list(_RESULT))
        .cast(_RESULT)
    )


def _values(traces: TraceSet) -> pl.DataFrame:
    place = ["trace_id", "span_id"]
    owner = ["service_name", "sdk_language"]
    spans = traces.spans.select(*place, *owner, "status_message", "attributes")
    events = traces.events.select(*place, "exception_stacktrace", "exception_message").join(
        spans.unique(place, keep="first").select(*place, *owner), on=place, how="inner"
    )
    parts = [
        frame.select(
            "trace_id", *owner, pl.lit(field).alias("field"), pl.col(column).alias("value")
        )
        for frame, column, field in (
            (events, "exception_stacktrace", "exception.stacktrace"),
            (events, "exception_message", "exception.message"),
            (spans, "status_message", "status.message"),
        )
    ]
    parts.append(
        spans.select(
            "trace_id",
            *owner,
            pl.lit("attribute").alias("field"),
            pl.col("attributes").str.extract_all(_LONG).alias("value"),
        )
        .explode("value")
        .with_columns(pl.col("value").str.strip_chars('"'))
    )
    return pl.concat(parts).filter(pl.col("value").str.len_bytes() > 0)


def _is_round() -> pl.Expr:
    """Whether a limit looks chosen: a power of two or a multiple of a hundred."""
    limit = pl.col("limit")
    return (limit.bitwise_count_ones() == 1) | (limit % 100 == 0)


def _setter() -> pl.Expr:
    limit = pl.col("limit")
    stack = pl.col("field") == "exception.stacktrace"
    bytes_ = pl.col("unit") == "bytes"
    go = (pl.col("sdk_language") == "go") & stack & bytes_ & (limit == GO_STACK_BYTES)
    tempo = bytes_ & (limit == TEMPO_BYTES) & (pl.col("field") != "status.message")
    return (
        pl.when(go)
        .then(pl.lit("the 2048-byte stack buffer of Go's RecordError"))
        .when(tempo)
        .then(pl.lit("Tempo's max_attribute_bytes (default 2048), or an SDK limit"))
        .when(pl.col("field") == "status.message")
        .then(pl.lit("the application or a processor: SDKs do not limit status messages"))
        .otherwise(pl.lit("an SDK limit (OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT) or a processor"))
    )
