"""Log records and metric points back to canonical OTLP JSON.

One Python object per record: captures hold few of them beside their spans.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import polars as pl

from tracelab.io.attribute_pairs import key_value_list

_PER_MESSAGE: Final = 512
_TEMPORALITIES: Final = {"UNSPECIFIED": 0, "DELTA": 1, "CUMULATIVE": 2}
_NESTED: Final = {
    "gauge": "gauge",
    "sum": "sum",
    "histogram": "histogram",
    "exponential_histogram": "exponentialHistogram",
    "summary": "summary",
}


def _present(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value not in (None, "", [], {})}


def _attributes(text: str | None) -> list[dict[str, Any]]:
    return key_value_list(json.loads(text or "{}"))


def _nanoseconds(columns: list[str]) -> list[pl.Expr]:
    """Read times as texts, which JSON carries exactly."""
    return [pl.col(column).cast(pl.Int64).cast(pl.String) for column in columns]


def _envelope(row: dict[str, Any], leaves: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    scopes = f"scope{leaves}"
    inside = {"Logs": "logRecords", "Metrics": "metrics"}[leaves]
    scope = _present(name=row["scope_name"], version=row["scope_version"])
    resource = _present(attributes=_attributes(row["resource_attributes"]))
    group = {"scope": scope, inside: items}
    return {f"resource{leaves}": [{"resource": resource, scopes: [group]}]}


_GROUP: Final = ("resource_attributes", "scope_name", "scope_version")


def _runs(table: pl.DataFrame, key: tuple[str, ...]) -> Iterator[list[dict[str, Any]]]:
    ordered = table.sort(key, maintain_order=True, nulls_last=True)
    for _, run in groupby(ordered.iter_rows(named=True), itemgetter(*key)):
        yield list(run)


def log_requests(logs: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Write log records.

    A body that was no text is written as the JSON text that the table holds.

    Parameters
    ----------
    logs : pl.DataFrame
        Schema LOGS.

    Yields
    ------
    dict
        Canonical requests, each of one resource and scope.

    Raises
    ------
    Nothing of its own.
    """
    table = logs.with_columns(_nanoseconds(["time", "observed_time"]))
    for run in _runs(table, _GROUP):
        for start in range(0, len(run), _PER_MESSAGE):
            part = run[start : start + _PER_MESSAGE]
            yield _envelope(part[0], "Logs", [_log_record(row) for row in part])


def _log_record(row: dict[str, Any]) -> dict[str, Any]:
    return _present(
        traceId=row["trace_id"],
        spanId=row["span_id"],
        timeUnixNano=row["time"],
        observedTimeUnixNano=row["observed_time"],
        severityNumber=row["severity_number"],
        severityText=row["severity_text"],
        eventName=row["event_name"],
        body=None if row["body"] is None else {"stringValue": row["body"]},
        flags=row["flags"],
        attributes=_attributes(row["attributes"]),
        droppedAttributesCount=row["dropped_attributes_count"],
    )


_METRIC: Final = ("metric_name", "metric_type", "unit", "temporality", "is_monotonic")


def metric_requests(metrics: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Write metric points.

    Parameters
    ----------
    metrics : pl.DataFrame
        Schema METRIC_POINTS.

    Yields
    ------
    dict
        Canonical requests, each of one metric of one resource and scope.

    Raises
    ------
    Nothing of its own.
    """
    table = metrics.with_columns(_nanoseconds(["start_time", "time"]))
    for run in _runs(table, (*_GROUP, *_METRIC)):
        for start in range(0, len(run), _PER_MESSAGE):
            part = run[start : start + _PER_MESSAGE]
            yield _envelope(part[0], "Metrics", [_metric(part)])


def _metric(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    body: dict[str, Any] = {"dataPoints": [_point(row) for row in rows]}
    if first["temporality"] is not None:
        body["aggregationTemporality"] = _TEMPORALITIES[first["temporality"]]
    if first["is_monotonic"]:
        body["isMonotonic"] = True
    named = _present(name=first["metric_name"], unit=first["unit"])
    if first["metric_type"] is None:
        return named
    return {**named, _NESTED[first["metric_type"]]: body}


def _texts(numbers: list[int] | None) -> list[str]:
    return [str(number) for number in numbers or []]


def _point(row: dict[str, Any]) -> dict[str, Any]:
    point = _present(
        startTimeUnixNano=row["start_time"],
        timeUnixNano=row["time"],
        flags=row["flags"],
        attributes=_attributes(row["attributes"]),
        exemplars=[_exemplar(item) for item in json.loads(row["exemplars"] or "[]")],
        explicitBounds=row["explicit_bounds"],
        bucketCounts=_texts(row["bucket_counts"]),
    )
    for name, column in (
        ("asDouble", "value"),
        ("sum", "sum"),
        ("min", "min"),
        ("max", "max"),
        ("scale", "scale"),
        ("zeroThreshold", "zero_threshold"),
    ):
        if row[column] is not None:
            point[name] = row[column]
    for name, column in (("count", "count"), ("zeroCount", "zero_count")):
        if row[column] is not None:
            point[name] = str(row[column])
    for side in ("positive", "negative"):
        if row[f"{side}_bucket_counts"] is not None:
            point[side] = {
                "offset": row[f"{side}_offset"] or 0,
                "bucketCounts": _texts(row[f"{side}_bucket_counts"]),
            }
    if row["quantiles"] is not None:
        point["quantileValues"] = [
            {"quantile": quantile, "value": value}
            for quantile, value in zip(row["quantiles"], row["quantile_values"], strict=True)
        ]
    return point


def _exemplar(item: dict[str, Any]) -> dict[str, Any]:
    made = _present(
        timeUnixNano=str(item["time_unix_nano"]),
        traceId=item["trace_id"],
        spanId=item["span_id"],
        filteredAttributes=key_value_list(item["attributes"]),
    )
    value = item["value"]
    if isinstance(value, int):
        made["asInt"] = str(value)
    elif value is not None:
        made["asDouble"] = value
    return made
