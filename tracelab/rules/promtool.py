"""Unit tests of the exported rules for promtool, cut out of the captured series."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.rules.alert import Counter, Flags, firing_states, levels
from tracelab.rules.learning import PairHistory, pair_history
from tracelab.rules.promql import (
    alert_annotations,
    alert_labels,
    alert_name,
    duration,
    exportable,
    quote,
)
from tracelab.rules.rule import WarningRule
from tracelab.signals.bursts import TRIGGERS
from tracelab.signals.grid import Floats
from tracelab.signals.metric_names import MetricNames, metric_names

_BEFORE_S: Final = 3600.0
_AFTER_S: Final = 1800.0


def render_prometheus_tests(
    rules: Sequence[WarningRule],
    red: pl.DataFrame,
    *,
    metrics: str | MetricNames = "spanmetrics",
    rule_file: str = "prometheus-rules.yml",
) -> str:
    """Return promtool unit tests for the exported rules: a hit, a near miss, a gap.

    Each test replays an hour and a half of the captured counts and expects what the emulated
    alert did on the very same samples.

    Parameters
    ----------
    rules : sequence of WarningRule
        As passed to `render_prometheus_rules`.
    red : pl.DataFrame
        Schema `RED`, where the stretches are cut from.
    metrics : str or MetricNames
        As passed to `render_prometheus_rules`.
    rule_file : str
        Path of the rule file, as seen from the test file.

    Returns
    -------
    str
        YAML for ``promtool test rules``.

    Raises
    ------
    ParameterError
        If the preset is unknown or an entry is no WarningRule.
    SchemaError
        If `red` lacks a column.
    """
    import yaml

    schema.require_columns(red, schema.RED, name="red")
    names = metric_names(metrics)
    tests: list[dict[str, Any]] = []
    kept = exportable(rules, names)
    for rule in kept:
        a = rule.trigger_service, rule.trigger_operation
        b = rule.target_service, rule.target_operation
        history = pair_history(red, rule.trigger_kind, a, b)
        if history is not None:
            tests += _tests_of(rule, history, names)
    interval = min((rule.interval_s for rule in kept), default=30.0)
    document = {
        "rule_files": [rule_file],
        "evaluation_interval": duration(interval),
        "tests": tests,
    }
    return yaml.safe_dump(document, sort_keys=False, width=10**6, allow_unicode=False)


def _tests_of(rule: WarningRule, history: PairHistory, names: MetricNames) -> list[dict[str, Any]]:
    bin_s = history.bin_s
    requests = history.trigger.column("requests")
    failures = history.trigger.column(TRIGGERS[rule.trigger_kind])
    before, after = int(_BEFORE_S / bin_s), int(_AFTER_S / bin_s)

    def cut(at_s: float) -> tuple[Floats, Floats]:
        middle = int(at_s / bin_s)
        part = slice(max(middle - before, 0), middle + after)
        return requests[part].copy(), failures[part].copy()

    out = []
    fires = history.fires(rule)
    for fire in fires:
        counts = cut(fire)
        expected = _firing(rule, *counts, bin_s)
        if expected.any() and not expected.all():
            out.append(_test(rule, names, "hit", *counts, expected))
            # The feed falls silent from four minutes before the alert to six after it.
            at = int(np.argmax(expected))
            silent = slice(max(at - int(240 / bin_s), 1), at + int(360 / bin_s))
            counts[0][silent] = counts[1][silent] = np.nan
            out.append(_test(rule, names, "gap", *counts, _firing(rule, *counts, bin_s)))
            break
    quiet = np.nan_to_num(history.levels.ratio)
    for fire in fires:
        quiet[np.abs(history.levels.at_s - fire) < _BEFORE_S + _AFTER_S] = 0.0
    for peak in np.argsort(-quiet, kind="stable")[:200]:
        counts = cut(history.levels.at_s[peak])
        expected = _firing(rule, *counts, bin_s)
        if quiet[peak] > 0 and not expected.any():
            out.append(_test(rule, names, "near miss", *counts, expected))
            break
    return out


def _cumulative(counts: Floats) -> Floats:
    return np.where(np.isnan(counts), np.nan, np.cumsum(np.nan_to_num(counts)))


def _firing(rule: WarningRule, requests: Floats, failures: Floats, bin_s: float) -> Flags:
    """Return whether the emulated alert fires, per evaluation of a cut."""
    at = np.arange(len(requests)) * bin_s
    spoke = ~np.isnan(requests)
    read = levels(
        Counter(at[spoke], _cumulative(requests)[spoke]),
        Counter(at[spoke], _cumulative(failures)[spoke]),
        at,
        window_s=rule.window_s,
        baseline_s=rule.baseline_s,
        baseline_offset_s=rule.baseline_offset_s,
    )
    holds = read.above(rule.ratio, rule.min_errors, rule.baseline_factor)
    return firing_states(
        holds,
        pending=int(np.ceil(rule.for_s / bin_s)),
        keep=int(np.ceil(rule.keep_firing_s / bin_s)),
    )


def _test(
    rule: WarningRule,
    names: MetricNames,
    title: str,
    requests: Floats,
    failures: Floats,
    firing: Flags,
) -> dict[str, Any]:
    good = _series(rule, names, _ok(names, rule.trigger_kind), requests - failures)
    bad = _series(rule, names, _bad(names, rule.trigger_kind), failures)
    changes = np.flatnonzero(np.diff(firing.astype(np.int8))) + 1
    looked = sorted({0, len(firing) - 1, *changes.tolist(), *(changes - 1).tolist()})
    alert = {"exp_labels": alert_labels(rule), "exp_annotations": alert_annotations(rule)}
    return {
        "name": f"{alert_name(rule)}: {title}",
        "interval": duration(rule.interval_s),
        "input_series": [good, bad],
        "alert_rule_test": [
            {
                "eval_time": f"{round(at * rule.interval_s)}s",
                "alertname": alert_name(rule),
                "exp_alerts": [alert] if firing[at] else [],
            }
            for at in looked
        ],
    }


def _series(
    rule: WarningRule, names: MetricNames, labels: dict[str, str], counts: Floats
) -> dict[str, str]:
    labels = {names.service_label: rule.trigger_service or "", **labels}
    if rule.trigger_operation is not None:
        labels[names.operation_label] = rule.trigger_operation
    text = ",".join(f"{name}={quote(value)}" for name, value in labels.items())
    values = " ".join("_" if np.isnan(v) else f"{v:.10g}" for v in _cumulative(counts))
    return {"series": f"{names.requests}{{{text}}}", "values": values}


_SERVING: Final = {
    "reporter": "destination",
    "span_kind": "SPAN_KIND_SERVER",
}
_OUTCOMES: Final = {
    "response_code": ("200", "503"),
    "http_response_status_code": ("200", "503"),
    "status_code": ("STATUS_CODE_UNSET", "STATUS_CODE_ERROR"),
    "error_type": ("", "503"),
}


def _ok(names: MetricNames, kind: str) -> dict[str, str]:
    return _example(names, kind, 0)


def _bad(names: MetricNames, kind: str) -> dict[str, str]:
    return _example(names, kind, 1)


def _example(names: MetricNames, kind: str, outcome: int) -> dict[str, str]:
    """Return labels that the matchers of these names accept, for success or failure."""
    out = {label: value for label, value in _SERVING.items() if label in names.server}
    for label, values in _OUTCOMES.items():
        if names.failures[kind].startswith(label) and values[outcome]:
            out[label] = values[outcome]
    return out
