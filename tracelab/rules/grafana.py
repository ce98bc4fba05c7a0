"""A Grafana dashboard of the rules."""

from collections.abc import Sequence
from typing import Any, Final

from tracelab import html
from tracelab.rules.promql import RULE_LABEL, alert_name, duration, exportable, selector, slow_share
from tracelab.rules.rule import WarningRule
from tracelab.signals.metric_names import MetricNames, metric_names

_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def render_grafana_dashboard(
    rules: Sequence[WarningRule], *, metrics: str | MetricNames = "spanmetrics"
) -> dict[str, Any]:
    """Return a dashboard: failures, p99, alert state per rule, and chain integrity.

    Parameters
    ----------
    rules : sequence of WarningRule
        As passed to `render_prometheus_rules`, whose recordings it shows.
    metrics : str or MetricNames
        As passed to `render_prometheus_rules`.

    Returns
    -------
    dict
        Dashboard JSON model; the data source is a variable.

    Raises
    ------
    ParameterError
        If the preset is unknown or an entry is no WarningRule.
    """
    names = metric_names(metrics)
    panels: list[dict[str, Any]] = []
    y = 0
    for rule in exportable(rules, names):
        row = {"type": "row", "title": _title(rule), "collapsed": False, "panels": []}
        panels.append({**row, "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        for x, panel in zip((0, 8, 16), _panels(rule, names), strict=True):
            panels.append({**panel, "gridPos": {"h": 8, "w": 8, "x": x, "y": y + 1}})
        y += 9
    sli = _plot("Chain integrity", {"SLI": "tracelab:chain_integrity:sli"}, "percentunit")
    panels.append({**sli, "gridPos": {"h": 8, "w": 24, "x": 0, "y": y}})
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "uid": "tracelab-early-warning",
        "title": "tracelab: early warning",
        "tags": ["tracelab"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "annotations": {"list": []},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "hide": 0,
                    "refresh": 1,
                }
            ]
        },
        "panels": panels,
    }


def _panels(rule: WarningRule, names: MetricNames) -> list[dict[str, Any]]:
    mine = f'{{{RULE_LABEL}="{rule.rule_id}"}}'
    long = f"ratio{duration(rule.baseline_s)}_before{duration(rule.baseline_offset_s)}"
    buckets = selector(names.duration_bucket, names, rule.target_service, rule.target_operation)
    state = _plot(
        "Alert",
        {"{{alertname}}": f'ALERTS{{{RULE_LABEL}="{rule.rule_id}",alertstate="firing"}}'},
        "none",
    )
    return [
        _plot(
            "Share of failures of the trigger",
            {
                "now": f"tracelab:failures:ratio{duration(rule.window_s)}{mine}",
                "usual": f"tracelab:failures:{long}{mine}",
                "threshold": f"vector({rule.ratio:g})",
            },
            "percentunit",
        ),
        _plot(
            "p99 and share of slow requests of the target",
            {
                "p99": f"histogram_quantile(0.99, sum by (le) (rate({buckets}[3m])))",
                "slow": slow_share(rule, names),
            },
            "s" if names.unit_s == 1.0 else "ms",
        ),
        {**state, "type": "state-timeline", "description": f"Alert {alert_name(rule)}"},
    ]


def _plot(title: str, exprs: dict[str, str], unit: str) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": expr,
                "legendFormat": legend,
                "range": True,
            }
            for number, (legend, expr) in enumerate(exprs.items())
        ],
    }


def _title(rule: WarningRule) -> str:
    """Return a title in which Grafana finds no variable."""
    names = f"{rule.trigger_service} before {rule.target_service} ({rule.status})"
    text = html.plain(names, limit=120)
    return text.replace("$", "＄").replace("[[", "[ [")
