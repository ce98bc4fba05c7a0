"""Forensics for distributed traces: where traces and error chains break, and why."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_HOME: dict[str, str] = {
    "TraceSet": "tracelab.traceset",
    "TraceStore": "tracelab.store",
    "read_traces": "tracelab.io",
    "evidence": "tracelab.io.originals",
    "verify_case": "tracelab.export.custody",
    "load_example": "tracelab.datasets",
    "span_edges": "tracelab.structure",
    "find_breaks": "tracelab.structure",
    "audit_sampling": "tracelab.structure",
    "break_cohorts": "tracelab.structure",
    "build_service_graph": "tracelab.structure",
    "build_span_graph": "tracelab.structure",
    "correct_times": "tracelab.structure",
    "critical_path": "tracelab.structure",
    "error_path": "tracelab.structure",
    "estimate_clock_skew": "tracelab.structure",
    "reconcile_telemetry": "tracelab.structure",
    "self_times": "tracelab.structure",
    "synthesize_incident": "tracelab.synth",
    "inject_breaks": "tracelab.synth",
    "synthesize_traces": "tracelab.synth",
    "find_lead_lags": "tracelab.signals",
    "detect_latency_rises": "tracelab.signals",
    "detect_error_bursts": "tracelab.signals",
    "red_series": "tracelab.signals",
    "backtest_rules": "tracelab.rules",
    "derive_rules": "tracelab.rules",
    "WarningRule": "tracelab.rules",
    "investigate": "tracelab.investigation",
    "compare_captures": "tracelab.compare",
    "propose_links": "tracelab.structure.repair",
    "write_otlp": "tracelab.io.write_otlp",
    "view_trace": "tracelab.pictures",
    "align_on_bursts": "tracelab.signals.aligned",
    "Investigation": "tracelab.investigation",
    "Finding": "tracelab.export.findings",
    "audit_errors": "tracelab.errors_chain",
    "error_audit_rates": "tracelab.errors_chain",
    "find_error_hops": "tracelab.errors_chain",
    "parse_exceptions": "tracelab.errors_chain",
    "parse_stacktrace": "tracelab.errors_chain",
    "chain_integrity": "tracelab.audits",
    "merge_red": "tracelab.signals",
    "red_from_metrics": "tracelab.signals",
    "red_from_prometheus": "tracelab.signals",
    "neighbour_pairs": "tracelab.signals",
    "render_prometheus_rules": "tracelab.rules",
    "render_prometheus_tests": "tracelab.rules",
    "render_grafana_dashboard": "tracelab.rules",
    "swallow_costs": "tracelab.errors_chain",
    "find_error_groups": "tracelab.errors_chain",
    "match_goroutines": "tracelab.errors_chain",
    "compare_goroutines": "tracelab.errors_chain",
    "read_goroutine_profile": "tracelab.io.goroutines",
    "audit_headers": "tracelab.audits",
    "audit_truncation": "tracelab.audits",
    "audit_size_loss": "tracelab.audits",
    "find_retry_groups": "tracelab.audits",
    "find_mixed_tenants": "tracelab.audits",
    "tenant_rates": "tracelab.audits",
}
_MODULES = ("plots", "schema", "synth")

try:
    __version__ = version("tracelab")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"tracelab.{name}")
    else:
        raise AttributeError(f"module 'tracelab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
