"""What became of each error on its way to the root."""

from tracelab.errors_chain.audit import audit_errors, error_audit_rates
from tracelab.errors_chain.costs import swallow_costs
from tracelab.errors_chain.fingerprints import find_error_groups
from tracelab.errors_chain.goroutines import compare_goroutines, match_goroutines
from tracelab.errors_chain.hops import find_error_hops
from tracelab.errors_chain.parsing import parse_exceptions
from tracelab.errors_chain.stacktrace import parse_stacktrace

__all__ = [
    "audit_errors",
    "compare_goroutines",
    "error_audit_rates",
    "find_error_groups",
    "find_error_hops",
    "match_goroutines",
    "parse_exceptions",
    "parse_stacktrace",
    "swallow_costs",
]
