"""Metric messages from the native protobuf decoder, point by point."""

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracelab import schema
from tracelab.io.attributes import (
    Index,
    arrow_text,
    attribute_texts,
    double_texts,
    joined_key_values,
    series,
)
from tracelab.io.levels import Level, Metrics, Problems
from tracelab.io.proto_levels import NativeLevels, hex_ids, items_and_owners, member

_POINTS: Final = {
    "gauge": "number",
    "sum": "number",
    "histogram": "histogram",
    "exponential_histogram": "exponential_histogram",
    "summary": "summary",
}
_TEMPORALITIES: Final = ("UNSPECIFIED", "DELTA", "CUMULATIVE")


def read_metrics(batch: pa.RecordBatch, sources: Index, problems: Problems) -> Metrics:
    """Lay metric messages out in levels.

    Parameters
    ----------
    batch, sources, problems
        As for `read_spans`.

    Returns
    -------
    Metrics

    Raises
    ------
    Nothing of its own.
    """
    levels = NativeLevels(problems)
    resources, scopes, leaves, group = levels.envelope(batch, "scope_metrics", "metrics", sources)
    message = scopes.message[group]
    metrics = levels.level(
        leaves,
        group,
        message,
        "a metric",
        texts=("name", "unit"),
        attributes=member(leaves, "metadata"),
    )
    types = pl.Series([None] * len(leaves), dtype=pl.String)
    temporality = types.clone()
    monotonic = pl.Series([None] * len(leaves), dtype=pl.Boolean)
    points = []
    for name in _POINTS:
        body = member(leaves, name)
        here = pl.Series(pc.is_valid(body).to_numpy(zero_copy_only=False))
        types = types.set(here, name)
        if name in ("sum", "histogram", "exponential_histogram"):
            words = _temporality_words(series(member(body, "aggregation_temporality")))
            temporality = words.zip_with(here, temporality)
        if name == "sum":
            monotonic = series(member(body, "is_monotonic")).zip_with(here, monotonic)
        points.append(_read_points(levels, name, body, message))
    metrics.columns.update(
        {"metric_type": types, "temporality": temporality, "is_monotonic": monotonic}
    )
    return Metrics(resources, scopes, metrics, _joined(points))


def _temporality_words(numbers: pl.Series) -> pl.Series:
    return numbers.replace_strict(
        list(range(len(_TEMPORALITIES))), list(_TEMPORALITIES), default=None, return_dtype=pl.String
    )


def _read_points(levels: NativeLevels, name: str, body: pa.StructArray, message: Index) -> Level:
    """Read the points of one type; columns of other types are left out."""
    items, metric = items_and_owners(member(body, "data_points"))
    of_point = message[metric]
    level = levels.level(
        items,
        metric,
        of_point,
        "a metric point",
        numbers={"start_time": "start_time_unix_nano", "time": "time_unix_nano", "flags": "flags"},
    )
    columns = level.columns
    if _POINTS[name] == "number":
        whole = series(member(items, "as_int")).cast(pl.Float64)
        columns["value"] = pl.select(
            pl.coalesce(series(member(items, "as_double")), whole)
        ).to_series()
    else:
        columns["count"] = _int64(member(items, "count"))
        columns["sum"] = series(member(items, "sum"))
    if name == "histogram":
        columns["explicit_bounds"] = series(member(items, "explicit_bounds"))
        columns["bucket_counts"] = _int64_lists(member(items, "bucket_counts"))
    if name == "exponential_histogram":
        columns["scale"] = series(member(items, "scale"))
        columns["zero_count"] = _int64(member(items, "zero_count"))
        columns["zero_threshold"] = series(member(items, "zero_threshold"))
        for side in ("positive", "negative"):
            buckets = member(items, side)
            columns[f"{side}_offset"] = series(member(buckets, "offset"))
            columns[f"{side}_bucket_counts"] = _int64_lists(member(buckets, "bucket_counts"))
    if name in ("histogram", "exponential_histogram"):
        columns["min"] = series(member(items, "min"))
        columns["max"] = series(member(items, "max"))
    if name == "summary":
        quantiles = member(items, "quantile_values")
        for column, of in (("quantiles", "quantile"), ("quantile_values", "value")):
            values = member(quantiles.values, of)
            columns[column] = series(pa.ListArray.from_arrays(quantiles.offsets, values))
    else:
        columns["exemplars"] = _exemplar_texts(levels, member(items, "exemplars"), of_point)
    return level


def _int64(array: pa.Array) -> pl.Series:
    return series(array).cast(pl.Int64, strict=False)


def _int64_lists(array: pa.ListArray) -> pl.Series:
    return series(array).cast(pl.List(pl.Int64), strict=False)


def _exemplar_texts(levels: NativeLevels, lists: pa.ListArray, message: Index) -> pl.Series:
    """Write exemplars as a JSON array of objects; null where there is none."""
    items, owner = items_and_owners(lists)
    if len(items) == 0:
        return pl.Series([None] * len(lists), dtype=pl.String)
    attributes = levels.values.key_values(
        member(items, "filtered_attributes"), message[owner], "an exemplar"
    )
    repeated = attributes.repeated()
    if repeated.size:
        attributes = attributes.without(repeated)
    written = pl.DataFrame(
        {
            "time": series(member(items, "time_unix_nano")),
            "double": double_texts(series(member(items, "as_double"))),
            "int": series(member(items, "as_int")).cast(pl.String),
            "trace_id": hex_ids(member(items, "trace_id")),
            "span_id": hex_ids(member(items, "span_id")),
            "attributes": attribute_texts(attributes),
        }
    ).select(
        pl.concat_str(
            pl.lit('{"time_unix_nano":'),
            "time",
            pl.lit(',"value":'),
            pl.coalesce("double", "int", pl.lit("null")),
            pl.lit(',"trace_id":"'),
            "trace_id",
            pl.lit('","span_id":"'),
            "span_id",
            pl.lit('","attributes":'),
            "attributes",
            pl.lit("}"),
        )
    )
    texts = arrow_text(written.to_series())
    joined = pc.binary_join(pa.ListArray.from_arrays(lists.offsets, texts), ",")
    whole = series(pc.binary_join_element_wise("[", joined, "]", ""))
    return whole.set(whole == "[]", None)


def _joined(levels: list[Level]) -> Level:
    """Lay the points of all types end to end, columns that a type lacks null."""
    tables = [pl.DataFrame(level.columns) for level in levels]
    like = {
        name: dtype
        for name, dtype in schema.METRIC_POINTS.items()
        if any(name in table.columns for table in tables)
    }
    like["start_time"] = like["time"] = pl.UInt64()
    rows = pl.concat(
        [
            table.select(
                (pl.col(name) if name in table.columns else pl.lit(None)).cast(dtype).alias(name)
                for name, dtype in like.items()
            )
            for table in tables
        ]
    )
    return Level(
        np.concatenate([level.parent for level in levels]),
        np.concatenate([level.message for level in levels]),
        {column.name: column for column in rows},
        joined_key_values([level.attributes for level in levels]),
    )
