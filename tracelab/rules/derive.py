"""Derive rules on earlier time; judge them on later time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.rules.learning import Key, PairHistory, learn_rule, pair_history
from tracelab.rules.rule import WarningRule, as_rules
from tracelab.rules.score import Score
from tracelab.signals import find_lead_lags
from tracelab.signals.grid import as_red
from tracelab.signals.lag import estimate_lag
from tracelab.signals.leads import as_pairs

FOLDS: Final = ((0.5, 0.75), (0.75, 1.0))
"""Learn on the time before the first number, judge between the two."""


@dataclass(frozen=True, slots=True)
class _Judged:
    rule: WarningRule
    score: Score
    accepted: bool
    reason: str


def derive_rules(
    red: pl.DataFrame,
    *,
    leads: pl.DataFrame | None = None,
    pairs: Iterable[tuple[str, str]] | None = None,
    trigger: str | Sequence[str] = "5xx",
    operations: bool = False,
    max_rules: int = 50,
) -> list[WarningRule]:
    """Turn leads into alert rules, learnt on the first three quarters of the time.

    A rule is proven if its pair was accepted on the earlier time alone, its alert (emulated as
    Prometheus evaluates it) hit more rises on the last quarter than chance would (binomial, 5
    %), and the lag found there agrees with the one learnt. A pair that is accepted only on the
    whole time gives a rule marked unproven.

    Parameters
    ----------
    red : pl.DataFrame
        Schema `RED`.
    leads : pl.DataFrame, optional
        Schema `LEAD_LAGS`, from the whole time; found if absent.
    pairs : iterable of (str, str), optional
        Services (trigger, target) to try; those of `leads`, or all.
    trigger : str or sequence of str
        Kinds of trigger to try; those of `leads` if given.
    operations : bool
        Try single operations too.
    max_rules : int
        Most rules to return, the best q-value first.

    Returns
    -------
    list of WarningRule
        Proven ones first, then by precision.

    Raises
    ------
    SchemaError
        If a table lacks a column.
    ParameterError
        If `trigger` is unknown or `pairs` holds no pairs.
    """
    red = as_red(red)
    wanted = None if pairs is None else as_pairs(pairs)
    if leads is None:
        leads = find_lead_lags(red, pairs=wanted, trigger=trigger, operations=operations)
    schema.require_columns(leads, schema.LEAD_LAGS, name="leads")
    if not leads.height or not red.height:
        return []
    kinds = leads["trigger_kind"].unique(maintain_order=True).to_list()
    tried = leads.select("trigger_service", "target_service").unique().rows()
    by_operation = bool(leads["trigger_operation"].count() + leads["target_operation"].count())
    knobs: dict[str, Any] = {"pairs": tried, "trigger": kinds, "operations": by_operation}
    earlier = _before(red, FOLDS[-1][0])
    learnt = find_lead_lags(earlier, **knobs) if earlier.height else leads.clear()
    proven_from = learnt.filter("accepted").head(max_rules).to_dicts()
    rules = [rule for lead in proven_from if (rule := _judge_last(red, earlier, lead))]
    known = {rule.rule_id for rule in rules}
    for lead in leads.filter("accepted").head(max_rules).to_dicts():
        rule = _learn(red, lead)
        if rule is not None and rule.rule_id not in known:
            rules.append(replace(rule, reason="found only with the latest time included"))
    rules.sort(key=lambda rule: (rule.status != "proven", -(rule.precision or 0.0), rule.rule_id))
    return rules[:max_rules]


def backtest_rules(
    rules: Sequence[WarningRule], red: pl.DataFrame, *, baselines: bool = True
) -> pl.DataFrame:
    """Score rules on time they were not learnt from, beside simpler alerts.

    If `red` begins after a rule was learnt, all of it is judged. Otherwise the rule's pair is
    learnt anew on the first half and judged on the third quarter (fold 1), then learnt on
    three quarters and judged on the last (fold 2).

    Parameters
    ----------
    rules : sequence of WarningRule
        From `derive_rules`.
    red : pl.DataFrame
        Schema `RED`.
    baselines : bool
        Also score, per rule and fold, the SRE burn rate (14.4 times a 0.1 % budget over 1 h and
        5 min), a plain 2-minute ratio of three times the usual, and an alert that is always
        quiet; their `rule_id` ends in ``/burn_rate``, ``/plain_ratio``, ``/always_quiet``.

    Returns
    -------
    pl.DataFrame
        Schema `RULE_SCORES`, sorted by (rule_id, fold). `accepted`: found on the earlier time,
        better than chance on the later, with the same lag.

    Raises
    ------
    SchemaError
        If `red` lacks a column or is not on one grid.
    ParameterError
        If an entry is no WarningRule.
    """
    red = as_red(red)
    rows: list[dict[str, Any]] = []
    for rule in as_rules(rules):
        rows += _backtest(rule, red, baselines)
    if not rows:
        return schema.empty(schema.RULE_SCORES)
    table = schema.conform(pl.DataFrame(rows, infer_schema_length=None), schema.RULE_SCORES)
    return table.sort("rule_id", "fold")


def _backtest(rule: WarningRule, red: pl.DataFrame, baselines: bool) -> list[dict[str, Any]]:
    a, b = _keys(rule)
    history = pair_history(red, rule.trigger_kind, a, b)
    if history is None:
        return []
    rows = []
    if rule.learned_until_ns <= history.start_ns:
        judged = [(1, _judge(rule, history, 0.0, history.length_s))]
    else:
        judged = []
        for fold, (low, high) in enumerate(FOLDS, start=1):
            earlier = _before(red, low)
            lead = _lead_of(earlier, rule)
            learnt = _learn(earlier, lead) if lead is not None else None
            if lead is None or learnt is None:
                rows.append({"rule_id": rule.rule_id, "fold": fold, "accepted": False})
                rows[-1]["reason"] = "no lead on the time before" if lead is None else "never fired"
                continue
            one = _judge(learnt, history, low * history.length_s, high * history.length_s)
            if not lead["accepted"]:
                one = replace(one, accepted=False, reason=f"before: {lead['reason']}")
            judged.append((fold, one))
    for fold, one in judged:
        rows.append(_row(rule.rule_id, fold, one.score, one.accepted, one.reason))
        if baselines:
            stretch = (
                (0.0, history.length_s)
                if len(judged) == 1 and fold == 1 and (rule.learned_until_ns <= history.start_ns)
                else tuple(part * history.length_s for part in FOLDS[fold - 1])
            )
            for name, fires in _baselines(history).items():
                score = history.score(fires, one.rule.horizon_s, *stretch)
                rows.append(_row(f"{rule.rule_id}/{name}", fold, score, False, "baseline"))
    return rows


def _judge_last(
    red: pl.DataFrame, earlier: pl.DataFrame, lead: dict[str, Any]
) -> WarningRule | None:
    rule = _learn(earlier, lead)
    if rule is None:
        return None
    history = pair_history(red, rule.trigger_kind, *_keys(rule))
    if history is None:
        return rule
    low, high = (part * history.length_s for part in FOLDS[-1])
    one = _judge(rule, history, low, high)
    return replace(
        rule,
        status="proven" if one.accepted else "unproven",
        reason=one.reason,
        precision=one.score.precision,
        recall=one.score.recall,
        false_alarms_per_day=one.score.false_alarms_per_day,
        lead_median_s=float(np.median(one.score.leads_s)) if one.score.hits else None,
    )


def _judge(rule: WarningRule, history: PairHistory, low: float, high: float) -> _Judged:
    score = history.score(history.fires(rule), rule.horizon_s, low, high)
    if not score.fires:
        return _Judged(rule, score, False, "did not fire on the later time")
    if score.p_value > 0.05:
        reason = f"{score.hits} of {score.fires} fires hit, as chance would (p {score.p_value:.2g})"
        return _Judged(rule, score, False, reason)
    bursts, rises = (
        onsets[(onsets >= low) & (onsets < high)] for onsets in (history.bursts_s, history.rises_s)
    )
    lag = None
    if len(bursts) and len(rises):
        lag = estimate_lag(
            bursts,
            rises,
            near_s=rule.lag_s,
            low_s=60.0,
            high_s=max(2760.0, rule.lag_s + 900.0),
            seed=0,
        )
    if lag is None or lag.high_s < rule.lag_low_s or lag.low_s > rule.lag_high_s:
        return _Judged(rule, score, False, "the lag of the later time is another")
    reason = f"{score.hits} of {score.fires} fires hit on later time (p {score.p_value:.2g})"
    return _Judged(rule, score, True, reason)


def _baselines(history: PairHistory) -> dict[str, Any]:
    """Return when simpler alerts would have fired."""
    from tracelab.rules.alert import levels

    at = history.levels.at_s
    hour, short = (
        levels(
            history.requests,
            history.failures,
            at,
            window_s=window,
            baseline_s=3600.0,
            baseline_offset_s=0.0,
        ).ratio
        for window in (3600.0, 300.0)
    )
    usual = float(np.nan_to_num(np.nanmedian(history.levels.usual)))
    with np.errstate(invalid="ignore"):
        burning = (hour > 14.4 * 0.001) & (short > 14.4 * 0.001)
        plain = history.levels.ratio > 3.0 * usual
    return {
        "burn_rate": history.fires_of(burning, 0.0, 0.0),
        "plain_ratio": history.fires_of(plain, 0.0, 0.0),
        "always_quiet": np.empty(0),
    }


def _lead_of(red: pl.DataFrame, rule: WarningRule) -> dict[str, Any] | None:
    if not red.height or rule.trigger_service is None or rule.target_service is None:
        return None
    operations = rule.trigger_operation is not None or rule.target_operation is not None
    leads = find_lead_lags(
        red,
        pairs=[(rule.trigger_service, rule.target_service)],
        trigger=rule.trigger_kind,
        operations=operations,
    )
    mine = leads.filter(
        pl.col("trigger_operation").eq_missing(pl.lit(rule.trigger_operation, pl.String)),
        pl.col("target_operation").eq_missing(pl.lit(rule.target_operation, pl.String)),
    )
    return mine.row(0, named=True) if mine.height else None


def _learn(red: pl.DataFrame, lead: dict[str, Any]) -> WarningRule | None:
    a = lead["trigger_service"], lead["trigger_operation"]
    b = lead["target_service"], lead["target_operation"]
    history = pair_history(red, lead["trigger_kind"], a, b)
    return None if history is None else learn_rule(history, lead)


def _keys(rule: WarningRule) -> tuple[Key, Key]:
    return (
        (rule.trigger_service, rule.trigger_operation),
        (rule.target_service, rule.target_operation),
    )


def _before(red: pl.DataFrame, share: float) -> pl.DataFrame:
    times = red["time"].cast(pl.Int64)
    low, high = int(times.min()), int(times.max()) + int(red["bin_ns"][0])  # type: ignore[arg-type]
    width = int(red["bin_ns"][0])
    until = low + round((high - low) * share / width) * width
    return red.filter(pl.col("time").cast(pl.Int64) < until)


def _row(rule_id: str, fold: int, score: Score, accepted: bool, reason: str) -> dict[str, Any]:
    leads = score.leads_s
    low, middle, high = np.quantile(leads, (0.1, 0.5, 0.9)) if len(leads) else (None,) * 3
    return {
        "rule_id": rule_id,
        "fold": fold,
        "precision": score.precision,
        "recall": score.recall,
        "false_alarms_per_day": score.false_alarms_per_day,
        "lead_median_s": middle,
        "lead_p10_s": low,
        "lead_p90_s": high,
        "n_fires": score.fires,
        "n_targets": score.targets,
        "accepted": accepted,
        "reason": reason,
    }
