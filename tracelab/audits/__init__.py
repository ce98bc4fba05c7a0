"""Checks that pass or fail, with their exemptions."""

from tracelab.audits.attempts import find_retry_groups
from tracelab.audits.headers import HEADERS, audit_headers
from tracelab.audits.integrity import Tiers, chain_integrity
from tracelab.audits.size_loss import audit_size_loss
from tracelab.audits.tenants import find_mixed_tenants, tenant_rates
from tracelab.audits.truncation import audit_truncation

__all__ = [
    "HEADERS",
    "Tiers",
    "audit_headers",
    "audit_size_loss",
    "audit_truncation",
    "chain_integrity",
    "find_mixed_tenants",
    "find_retry_groups",
    "tenant_rates",
]
