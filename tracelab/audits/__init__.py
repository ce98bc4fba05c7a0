"""Checks that pass or fail, with their exemptions."""

from tracelab.audits.integrity import Tiers, chain_integrity

__all__ = ["Tiers", "chain_integrity"]
