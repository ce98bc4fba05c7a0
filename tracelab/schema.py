"""Tables and their columns: the one place where a column name is spelled.

Every table that crosses a module border has a schema constant here. Ids are
lower-case hex text, a null parent is a root, times are ``Datetime("ns", "UTC")``,
durations are ``Int64`` columns that end in ``_ns``, attribute columns are JSON
objects as text.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import polars as pl

from tracelab.exceptions import SchemaError

TIME: Final = pl.Datetime("ns", "UTC")
TEXTS: Final = pl.List(pl.String)

ColumnType = pl.DataType | type[pl.DataType]


def _table(columns: Mapping[str, ColumnType]) -> pl.Schema:
    return pl.Schema(columns)


SPANS: Final = _table(
    {
        "trace_id": pl.String,
        "span_id": pl.String,
        "parent_span_id": pl.String,
        "trace_state": pl.String,
        "flags": pl.UInt32,
        "parent_is_remote": pl.Boolean,
        "name": pl.String,
        "kind": pl.String,
        "start_time": TIME,
        "end_time": TIME,
        "duration_ns": pl.Int64,
        "status_code": pl.String,
        "status_message": pl.String,
        "service_name": pl.String,
        "service_namespace": pl.String,
        "service_instance_id": pl.String,
        "host_name": pl.String,
        "process_pid": pl.Int64,
        "thread_id": pl.Int64,
        "thread_name": pl.String,
        "task_id": pl.String,
        "scope_name": pl.String,
        "scope_version": pl.String,
        "sdk_language": pl.String,
        "sdk_version": pl.String,
        "http_request_method": pl.String,
        "http_route": pl.String,
        "http_response_status_code": pl.Int64,
        "rpc_system": pl.String,
        "rpc_method": pl.String,
        "messaging_system": pl.String,
        "messaging_destination": pl.String,
        "error_type": pl.String,
        "server_address": pl.String,
        "tenant_id": pl.String,
        "request_id": pl.String,
        "resend_count": pl.Int64,
        "attributes": pl.String,
        "resource_attributes": pl.String,
        "scope_attributes": pl.String,
        "dropped_attributes_count": pl.UInt32,
        "dropped_events_count": pl.UInt32,
        "dropped_links_count": pl.UInt32,
        "resource_dropped_attributes_count": pl.UInt32,
        "scope_dropped_attributes_count": pl.UInt32,
        "source": pl.String,
        "resource_schema_url": pl.String,
        "scope_schema_url": pl.String,
    }
)
"""One row per span. ``kind`` is UNSPECIFIED, INTERNAL, SERVER, CLIENT, PRODUCER or
CONSUMER, ``status_code`` is UNSET, OK or ERROR (an unknown number stays as text)."""

JUDGED: Final = tuple(
    name
    for name in SPANS
    if name
    not in {
        "resource_attributes",
        "scope_attributes",
        "resource_schema_url",
        "dropped_attributes_count",
        "dropped_events_count",
        "dropped_links_count",
        "resource_dropped_attributes_count",
        "scope_dropped_attributes_count",
    }
)
"""Span columns that an investigation judges by; the others are kept for whoever looks at a span."""

EVENTS: Final = _table(
    {
        "trace_id": pl.String,
        "span_id": pl.String,
        "event_index": pl.Int64,
        "time": TIME,
        "name": pl.String,
        "exception_type": pl.String,
        "exception_message": pl.String,
        "exception_stacktrace": pl.String,
        "exception_escaped": pl.Boolean,
        "attributes": pl.String,
        "dropped_attributes_count": pl.UInt32,
        "origin": pl.String,
    }
)
"""Span events (``origin`` span_event), then exceptions found in log records (``log``),
numbered on behind the span's own events in order of time."""

LINKS: Final = _table(
    {
        "trace_id": pl.String,
        "span_id": pl.String,
        "linked_trace_id": pl.String,
        "linked_span_id": pl.String,
        "trace_state": pl.String,
        "flags": pl.UInt32,
        "linked_is_remote": pl.Boolean,
        "attributes": pl.String,
        "dropped_attributes_count": pl.UInt32,
    }
)

LOGS: Final = _table(
    {
        "trace_id": pl.String,
        "span_id": pl.String,
        "time": TIME,
        "observed_time": TIME,
        "severity_number": pl.Int32,
        "severity_text": pl.String,
        "event_name": pl.String,
        "body": pl.String,
        "exception_type": pl.String,
        "exception_message": pl.String,
        "exception_stacktrace": pl.String,
        "service_name": pl.String,
        "service_namespace": pl.String,
        "service_instance_id": pl.String,
        "host_name": pl.String,
        "process_pid": pl.Int64,
        "thread_id": pl.Int64,
        "thread_name": pl.String,
        "task_id": pl.String,
        "scope_name": pl.String,
        "scope_version": pl.String,
        "sdk_language": pl.String,
        "sdk_version": pl.String,
        "flags": pl.UInt32,
        "attributes": pl.String,
        "resource_attributes": pl.String,
        "dropped_attributes_count": pl.UInt32,
        "source": pl.String,
    }
)
"""One row per log record. ``body`` is the text of a string body, JSON text of any other."""

METRIC_POINTS: Final = _table(
    {
        "metric_name": pl.String,
        "metric_type": pl.String,
        "unit": pl.String,
        "temporality": pl.String,
        "is_monotonic": pl.Boolean,
        "start_time": TIME,
        "time": TIME,
        "value": pl.Float64,
        "count": pl.Int64,
        "sum": pl.Float64,
        "min": pl.Float64,
        "max": pl.Float64,
        "explicit_bounds": pl.List(pl.Float64),
        "bucket_counts": pl.List(pl.Int64),
        "scale": pl.Int32,
        "zero_count": pl.Int64,
        "zero_threshold": pl.Float64,
        "positive_offset": pl.Int32,
        "positive_bucket_counts": pl.List(pl.Int64),
        "negative_offset": pl.Int32,
        "negative_bucket_counts": pl.List(pl.Int64),
        "quantiles": pl.List(pl.Float64),
        "quantile_values": pl.List(pl.Float64),
        "flags": pl.UInt32,
        "service_name": pl.String,
        "service_namespace": pl.String,
        "service_instance_id": pl.String,
        "scope_name": pl.String,
        "scope_version": pl.String,
        "attributes": pl.String,
        "resource_attributes": pl.String,
        "exemplars": pl.String,
        "source": pl.String,
    }
)
"""One row per data point. ``metric_type`` is gauge, sum, histogram,
exponential_histogram or summary; ``temporality`` is DELTA, CUMULATIVE or UNSPECIFIED."""

REJECTS: Final = _table(
    {
        "source": pl.String,
        "offset": pl.Int64,
        "line": pl.Int64,
        "reason": pl.String,
        "excerpt": pl.String,
    }
)
"""What could not be read: byte offset (after decompression) and line where known."""

INGEST: Final = _table(
    {
        "source": pl.String,
        "sha256": pl.String,
        "form": pl.String,
        "compression": pl.String,
        "bytes": pl.Int64,
        "decoded_bytes": pl.Int64,
        "messages": pl.Int64,
        "messages_good": pl.Int64,
        "messages_rejected": pl.Int64,
        "spans_decoded": pl.Int64,
        "spans_kept": pl.Int64,
        "spans_duplicate": pl.Int64,
        "spans_conflicting": pl.Int64,
        "spans_rejected": pl.Int64,
        "events": pl.Int64,
        "links": pl.Int64,
        "logs": pl.Int64,
        "metric_points": pl.Int64,
        "rejects": pl.Int64,
    }
)
"""One accounting row per source: ``messages = messages_good + messages_rejected`` and
``spans_decoded = spans_kept + spans_duplicate``. ``spans_conflicting`` counts kept spans
whose ids stand on another kept span with other content."""

EDGES: Final = _table(
    {
        "trace_id": pl.String,
        "parent_span_id": pl.String,
        "child_span_id": pl.String,
        "relation": pl.String,
        "boundary": pl.String,
        "parent_service": pl.String,
        "child_service": pl.String,
        "boundary_evidence": pl.String,
        "start_gap_ns": pl.Int64,
        "end_gap_ns": pl.Int64,
    }
)
"""``start_gap_ns`` is child start minus parent start, ``end_gap_ns`` is child end minus
parent end. ``trace_id`` is the child's."""

BREAKS: Final = _table(
    {
        "break_id": pl.String,
        "kind": pl.String,
        "cause": pl.String,
        "boundary": pl.String,
        "severity": pl.String,
        "confidence": pl.Float64,
        "at_capture_edge": pl.Boolean,
        "trace_id": pl.String,
        "span_id": pl.String,
        "service_name": pl.String,
        "span_name": pl.String,
        "from_service": pl.String,
        "to_service": pl.String,
        "missing_span_id": pl.String,
        "proposed_trace_id": pl.String,
        "proposed_span_id": pl.String,
        "proposed_confidence": pl.Float64,
        "time": TIME,
        "evidence": TEXTS,
        "alternatives": TEXTS,
    }
)
"""``confidence`` is how sure what the row says is: its cause or, where that is ``unknown``, only
that the break is there."""

EXCEPTIONS: Final = _table(
    {
        "trace_id": pl.String,
        "span_id": pl.String,
        "event_index": pl.Int64,
        "position": pl.Int64,
        "parent_position": pl.Int64,
        "relation": pl.String,
        "type": pl.String,
        "message": pl.String,
        "top_function": pl.String,
        "top_file": pl.String,
        "top_line": pl.Int64,
        "frame_count": pl.Int64,
        "truncated": pl.Boolean,
        "language": pl.String,
    }
)

ERROR_AUDIT: Final = _table(
    {
        "trace_id": pl.String,
        "span_id": pl.String,
        "time": TIME,
        "service_name": pl.String,
        "status_ok": pl.Boolean,
        "exception_ok": pl.Boolean,
        "stacktrace_ok": pl.Boolean,
        "error_type_ok": pl.Boolean,
        "signature": pl.String,
        "exempt": pl.String,
    }
)

ERROR_HOPS: Final = _table(
    {
        "error_id": pl.String,
        "hop": pl.Int64,
        "time": TIME,
        "trace_id": pl.String,
        "child_span_id": pl.String,
        "parent_span_id": pl.String,
        "child_service": pl.String,
        "parent_service": pl.String,
        "boundary": pl.String,
        "verdict": pl.String,
        "child_type": pl.String,
        "child_message": pl.String,
        "parent_type": pl.String,
        "parent_message": pl.String,
        "recovered_by_span_id": pl.String,
        "latency_cost_ns": pl.Int64,
        "via_break_id": pl.String,
        "confidence": pl.Float64,
        "evidence": TEXTS,
    }
)

RED: Final = _table(
    {
        "service_name": pl.String,
        "span_name": pl.String,
        "time": TIME,
        "bin_ns": pl.Int64,
        "requests": pl.Float64,
        "errors": pl.Float64,
        "errors_5xx": pl.Float64,
        "duration_counts": pl.List(pl.Float64),
        "bucket_edges_ns": pl.List(pl.Int64),
        "sampled_requests": pl.Float64,
        "breaks": pl.Float64,
        "swallowed": pl.Float64,
        "retries": pl.Float64,
    }
)

BURSTS: Final = _table(
    {
        "service_name": pl.String,
        "span_name": pl.String,
        "start_time": TIME,
        "detected_time": TIME,
        "end_time": TIME,
        "score": pl.Float64,
        "observed": pl.Float64,
        "expected": pl.Float64,
    }
)

RISES: Final = _table({**BURSTS, "p99_before_ns": pl.Float64, "p99_after_ns": pl.Float64})

LEAD_LAGS: Final = _table(
    {
        "trigger_kind": pl.String,
        "trigger_service": pl.String,
        "trigger_operation": pl.String,
        "target_service": pl.String,
        "target_operation": pl.String,
        "n_bursts": pl.Int64,
        "n_rises": pl.Int64,
        "n_coincidences": pl.Int64,
        "n_days": pl.Int64,
        "lag_s": pl.Float64,
        "lag_low_s": pl.Float64,
        "lag_high_s": pl.Float64,
        "lag_sigma_s": pl.Float64,
        "p_shift": pl.Float64,
        "p_day": pl.Float64,
        "p_value": pl.Float64,
        "p_floor": pl.Float64,
        "q_value": pl.Float64,
        "time_of_day_excluded": pl.Boolean,
        "direction": pl.String,
        "verdict": pl.String,
        "accepted": pl.Boolean,
        "reason": pl.String,
    }
)

RULE_SCORES: Final = _table(
    {
        "rule_id": pl.String,
        "fold": pl.Int64,
        "precision": pl.Float64,
        "recall": pl.Float64,
        "false_alarms_per_day": pl.Float64,
        "lead_median_s": pl.Float64,
        "lead_p10_s": pl.Float64,
        "lead_p90_s": pl.Float64,
        "n_fires": pl.Int64,
        "n_targets": pl.Int64,
        "accepted": pl.Boolean,
        "reason": pl.String,
    }
)

INTEGRITY: Final = _table(
    {
        "window_start": TIME,
        "service_name": pl.String,
        "traces": pl.Int64,
        "broken": pl.Int64,
        "undetermined": pl.Int64,
        "sli": pl.Float64,
        "coverage": pl.Float64,
        "tier": pl.String,
    }
)

TRUTH: Final = _table(
    {
        "kind": pl.String,
        "cause": pl.String,
        "boundary": pl.String,
        "verdict": pl.String,
        "trace_id": pl.String,
        "span_id": pl.String,
        "missing_span_id": pl.String,
        "true_parent_trace_id": pl.String,
        "true_parent_span_id": pl.String,
        "service_name": pl.String,
        "detail": pl.String,
        "observable": pl.Boolean,
        "evidence_present": pl.Boolean,
    }
)
"""What was planted, written by an injector or a lab program, never by a detector.

``kind`` is a break kind, ``error_hop`` (then ``verdict`` is set, ``span_id`` is the failing
child and ``true_parent_span_id`` its parent), or ``legal`` (a look-alike that must not be
called a break). ``span_id`` is the exported span at which it shows: the orphan, the detached
root, the child with the wrong parent, the client span without its server; null where nothing
was exported. ``observable``: the export can show it at all. ``evidence_present``: the export
holds evidence of its cause and boundary."""

DURATION_EDGES_NS: Final[tuple[int, ...]] = tuple(
    int(edge) for edge in np.geomspace(5e6, 10e9, 23).round()
)
"""23 bucket edges spaced geometrically from 5 ms to 10 s: 24 buckets."""

KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUS_CODES: Final = ("UNSET", "OK", "ERROR")

BREAK_KINDS: Final = (
    "orphan_span",
    "detached_root",
    "wrong_parent",
    "missing_server",
    "sampling_gap",
    "duplicate_span_id",
    "parent_cycle",
    "invalid_id",
    "truncated_value",
    "late_child",
    "clock_skew",
    "client_root",
)
BREAK_CAUSES: Final = (
    "capture_edge",
    "span_never_ended",
    "process_exit",
    "queue_overflow",
    "export_failure",
    "sampled_out",
    "uninstrumented_hop",
    "context_not_propagated",
    "context_leak",
    "duplicate_export",
    "unknown",
)
BOUNDARIES: Final = ("same", "task", "thread", "process", "network", "queue", "unknown")
SEVERITIES: Final = ("info", "warning", "error")
HOP_VERDICTS: Final = (
    "kept",
    "wrapped",
    "flattened",
    "truncated",
    "replaced",
    "swallowed",
    "recovered",
    "status_lost",
    "not_determinable",
)


def empty(schema: pl.Schema) -> pl.DataFrame:
    """Return a table of this schema without rows."""
    return pl.DataFrame(schema=schema)


def conform(table: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    """Bring a table to a schema: columns in order, missing ones null, types cast.

    Parameters
    ----------
    table : pl.DataFrame
        Any table whose columns carry names of `schema`.
    schema : pl.Schema
        The schema to reach.

    Returns
    -------
    pl.DataFrame
        Exactly the columns of `schema`, in its order.

    Raises
    ------
    SchemaError
        If `table` has a column that `schema` lacks, or a value that cannot be cast.
    """
    unknown = [name for name in table.columns if name not in schema]
    if unknown:
        raise SchemaError(
            f"unknown columns {', '.join(unknown)}; the table knows {', '.join(schema.names())}"
        )
    present = set(table.columns)
    try:
        return table.select(
            pl.col(name).cast(dtype) if name in present else pl.lit(None, dtype).alias(name)
            for name, dtype in schema.items()
        )
    except pl.exceptions.InvalidOperationError as error:
        raise SchemaError(f"a value does not fit its column: {error}") from error


def require_columns(table: pl.DataFrame, columns: Iterable[str], *, name: str) -> None:
    """Raise if a table lacks a column.

    Parameters
    ----------
    table : pl.DataFrame
        The table that was passed in.
    columns : Iterable[str]
        Columns that the caller reads (a schema iterates over its names).
    name : str
        What the table is called in the message, e.g. ``"red"``.

    Raises
    ------
    SchemaError
        With the missing columns, those that are there, and the nearest public constant; or if
        it is no table at all.
    """
    given: object = table
    if not isinstance(given, pl.DataFrame):
        kind = type(given).__name__
        hint = "; from a capture, tl.red_series(traces) makes `red`" if kind == "TraceSet" else ""
        raise SchemaError(
            f"`{name}` must be a polars DataFrame, not a {kind}{hint}; see tracelab.schema for "
            "the columns of each table"
        )
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise SchemaError(
            f"table `{name}` lacks {', '.join(missing)}; it has {', '.join(table.columns)}; "
            "see tracelab.schema for the columns of each table"
        )
