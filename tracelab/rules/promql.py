"""Rules as a Prometheus rule file."""

import re
from collections.abc import Sequence
from typing import Any, Final

from tracelab import html
from tracelab.exceptions import ParameterError
from tracelab.rules.rule import WarningRule, as_rules
from tracelab.signals.metric_names import MetricNames, metric_names

RULE_LABEL: Final = "tracelab_rule"


def quote(text: str) -> str:
    """Return text as a PromQL string, whatever it holds.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        Double-quoted. Dollar signs and square brackets are escaped too, since Grafana would
        take them for variables.

    Raises
    ------
    Nothing.
    """
    parts = []
    for char in text:
        if char in '\\"':
            parts.append("\\" + char)
        elif char in "$[]{}" or not char.isprintable():
            code = ord(char)
            parts.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
        else:
            parts.append(char)
    return '"' + "".join(parts) + '"'


def template_text(text: str) -> str:
    """Return text for a label or annotation, so that Prometheus' templates print it as it is."""
    return re.sub(r"\{\{|\}\}", lambda found: '{{ "' + found[0] + '" }}', text)


def duration(seconds: float) -> str:
    """Return seconds as a PromQL duration."""
    whole = round(seconds)
    for unit, size in (("h", 3600), ("m", 60)):
        if whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def alert_name(rule: WarningRule) -> str:
    """Return the name of a rule's alert: letters, digits and underscores, ends in its id."""
    slug = re.sub(r"[^A-Za-z0-9]+", "_", f"{rule.trigger_service}_{rule.target_service}")
    return f"EarlyWarning_{slug.strip('_')[:40]}_{rule.rule_id}"


def selector(
    metric: str, names: MetricNames, service: str | None, operation: str | None, *more: str
) -> str:
    """Return a selector of one service's, or one operation's, series.

    Parameters
    ----------
    metric : str
        Metric name.
    names : MetricNames
        Its labels.
    service, operation : str or None
        Whose series; an operation of None is all of them.
    *more : str
        Further matchers.

    Returns
    -------
    str
        PromQL.

    Raises
    ------
    Nothing.
    """
    matchers = [names.server, f"{names.service_label}={quote(service or '')}"]
    if operation is not None:
        matchers.append(f"{names.operation_label}={quote(operation)}")
    return f"{metric}{{{','.join(part for part in (*matchers, *more) if part)}}}"


def records(rule: WarningRule, names: MetricNames) -> dict[str, str]:
    """Return the recording rules behind an alert: name to expression."""
    place = rule.trigger_service, rule.trigger_operation
    requests = selector(names.requests, names, *place)
    failures = selector(names.requests, names, *place, names.failures[rule.trigger_kind])
    window, long = duration(rule.window_s), duration(rule.baseline_s)
    offset = duration(rule.baseline_offset_s)

    def share(range_: str) -> str:
        total = f"sum(rate({requests}{range_}))"
        # A label set that never failed has no series, and a missing one would hide the burst.
        return f"(sum(rate({failures}{range_})) or 0 * {total}) / ({total} > 0)"

    return {
        f"tracelab:failures:increase{window}": f"sum(increase({failures}[{window}]))",
        f"tracelab:failures:ratio{window}": share(f"[{window}]"),
        f"tracelab:failures:ratio{long}_before{offset}": share(f"[{long}] offset {offset}"),
    }


def render_prometheus_rules(
    rules: Sequence[WarningRule],
    *,
    metrics: str | MetricNames = "spanmetrics",
    integrity_window: str = "5m",
    integrity_tiers: tuple[float, float] = (0.99, 0.95),
) -> str:
    """Return the rules as a Prometheus rule file.

    Each rule becomes three recording rules, an alert, and a second alert that confirms it
    while its horizon is open and the target begins to slow down. A last group alerts on the
    chain-integrity SLI.

    Parameters
    ----------
    rules : sequence of WarningRule
        From `derive_rules`.
    metrics : str or MetricNames
        Where the counts stand: istio, spanmetrics, http_server, or own names.
    integrity_window : str
        Range of the chain-integrity SLI.
    integrity_tiers : (float, float)
        SLI below which the tiers P2 and P1 begin.

    Returns
    -------
    str
        YAML for Prometheus 3.

    Raises
    ------
    ParameterError
        If the preset is unknown, an entry is no WarningRule, or the tiers are not falling
        within 0 and 1.
    """
    import yaml

    names = metric_names(metrics)
    high, low = integrity_tiers
    if not 0 <= low <= high <= 1:
        raise ParameterError(f"integrity_tiers={integrity_tiers} must fall within 1 and 0")
    groups = [
        {
            "name": f"tracelab-early-warning-{rule.rule_id}",
            "interval": duration(rule.interval_s),
            "rules": _rules_of(rule, names),
        }
        for rule in exportable(rules, names)
    ]
    groups.append(_integrity_group(names, integrity_window, high, low))
    left_out = len(rules) - len(groups) + 1
    head = "# Written by tracelab. Alerts precede rises; they do not say what causes them.\n"
    if left_out:
        head += f"# {left_out} rules left out: these metrics do not count their trigger.\n"
    return head + yaml.safe_dump(
        {"groups": groups}, sort_keys=False, width=100, allow_unicode=False
    )


def exportable(rules: Sequence[WarningRule], names: MetricNames) -> list[WarningRule]:
    """Return the rules whose trigger these metrics count, by id."""
    counted = (r for r in as_rules(rules) if r.trigger_kind in names.failures)
    return sorted(counted, key=lambda r: r.rule_id)


def alert_labels(rule: WarningRule) -> dict[str, str]:
    """Return the labels of a rule's alert."""
    return {"severity": "warning", "status": rule.status, RULE_LABEL: rule.rule_id}


def alert_annotations(rule: WarningRule) -> dict[str, str]:
    """Return the annotations of a rule's alert, as people read them."""
    lead = "" if rule.lead_median_s is None else f"{rule.lead_median_s / 60:.1f}m"
    return {
        "summary": html.plain(str(rule), limit=1000),
        "horizon": duration(rule.horizon_s),
        "lead": lead,
        "precision": "" if rule.precision is None else f"{rule.precision:.2f}",
    }


def _rules_of(rule: WarningRule, names: MetricNames) -> list[dict[str, Any]]:
    mine = f'{{{RULE_LABEL}="{rule.rule_id}"}}'
    exprs = records(rule, names)
    increase, ratio, usual = (name + mine for name in exprs)
    out: list[dict[str, Any]] = [
        {"record": name, "expr": expr, "labels": {RULE_LABEL: rule.rule_id}}
        for name, expr in exprs.items()
    ]
    texts = {name: template_text(text) for name, text in alert_annotations(rule).items()}
    alert = {
        "alert": alert_name(rule),
        "expr": (
            f"({ratio} > {rule.ratio:g}\n  and {increase} >= {rule.min_errors:g})\n"
            f"unless {ratio} <= {rule.baseline_factor:g} * {usual}"
        ),
        "for": duration(rule.for_s),
        "keep_firing_for": duration(rule.keep_firing_s),
        "labels": alert_labels(rule),
        "annotations": texts,
    }
    confirmed = {
        "alert": alert_name(rule).replace("EarlyWarning_", "EarlyWarningConfirmed_", 1),
        "expr": (
            f'max_over_time(ALERTS{{alertname="{alert_name(rule)}",alertstate="firing"}}'
            f"[{duration(rule.horizon_s)}]) == 1\n"
            f"  and on() ({slow_share(rule, names)} > {rule.slow_ratio:g})"
        ),
        "labels": {**alert_labels(rule), "severity": "critical"},
        "annotations": dict(texts),
    }
    return [*out, alert, confirmed]


def slow_share(rule: WarningRule, names: MetricNames) -> str:
    """Return the share of the target's requests that are slower than the rule's edge."""
    place = rule.target_service, rule.target_operation
    edge = f"{rule.slow_edge_ns / 1e9 / names.unit_s:.10g}"
    # Prometheus 3 writes a whole bound as "250.0", earlier ones as "250".
    pattern = (re.escape(edge) + r"(\.0)?").replace("\\", r"\\")
    le = f'le=~"{pattern}"'
    below = selector(names.duration_bucket, names, *place, le)
    count = selector(names.duration_count, names, *place)
    return f"1 - sum(rate({below}[3m])) / sum(rate({count}[3m]))"


def _integrity_group(names: MetricNames, window: str, high: float, low: float) -> dict[str, Any]:
    def counted(metric: str) -> str:
        return f"sum(rate({metric}[{window}]))"

    known = (
        f"({counted(names.traces)} - ({counted(names.undetermined_traces)} "
        f"or 0 * {counted(names.traces)}))"
    )
    broken = f"({counted(names.broken_traces)} or 0 * {counted(names.traces)})"
    record = "tracelab:chain_integrity:sli"
    tiers = (
        ("P2", "warning", f"{record} < {high:g} and {record} >= {low:g}"),
        ("P1", "critical", f"{record} < {low:g}"),
    )
    return {
        "name": "tracelab-chain-integrity",
        "interval": "30s",
        "rules": [
            {"record": record, "expr": f"1 - {broken} / ({known} > 0)"},
            *(
                {
                    "alert": f"ChainIntegrity{tier}",
                    "expr": expr,
                    "for": "2m",
                    "labels": {"severity": severity, "tier": tier},
                    "annotations": {
                        "summary": "{{ $value | humanizePercentage }} of the traces are whole"
                    },
                }
                for tier, severity, expr in tiers
            ),
        ],
    }
