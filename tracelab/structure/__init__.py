"""Where traces break, and why."""

from tracelab.structure.audit import audit_sampling
from tracelab.structure.breaks import (
    BREAK_COLUMNS,
    Reduced,
    find_breaks,
    reduce_bucket,
    resolve_breaks,
)
from tracelab.structure.cohorts import break_cohorts
from tracelab.structure.edges import span_edges
from tracelab.structure.graph import (
    ancestors,
    build_service_graph,
    build_span_graph,
    critical_path,
    error_path,
    self_times,
)
from tracelab.structure.skew import correct_times, estimate_clock_skew
from tracelab.structure.spine import build_spine
from tracelab.structure.telemetry import reconcile_telemetry
from tracelab.structure.tree import tree_order

__all__ = [
    "BREAK_COLUMNS",
    "Reduced",
    "ancestors",
    "audit_sampling",
    "break_cohorts",
    "build_service_graph",
    "build_span_graph",
    "build_spine",
    "correct_times",
    "critical_path",
    "error_path",
    "estimate_clock_skew",
    "find_breaks",
    "reconcile_telemetry",
    "reduce_bucket",
    "resolve_breaks",
    "self_times",
    "span_edges",
    "tree_order",
]
