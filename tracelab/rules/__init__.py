"""Early-warning rules, their backtest, and their export for Prometheus and Grafana."""

from tracelab.rules.derive import backtest_rules, derive_rules
from tracelab.rules.grafana import render_grafana_dashboard
from tracelab.rules.promql import render_prometheus_rules
from tracelab.rules.promtool import render_prometheus_tests
from tracelab.rules.rule import WarningRule
from tracelab.signals.metric_names import METRIC_NAMES, MetricNames

__all__ = [
    "METRIC_NAMES",
    "MetricNames",
    "WarningRule",
    "backtest_rules",
    "derive_rules",
    "render_grafana_dashboard",
    "render_prometheus_rules",
    "render_prometheus_tests",
]
