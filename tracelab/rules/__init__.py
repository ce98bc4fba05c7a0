"""Early-warning rules and their backtest."""

from tracelab.rules.derive import backtest_rules, derive_rules
from tracelab.rules.rule import WarningRule

__all__ = ["WarningRule", "backtest_rules", "derive_rules"]
