"""What a rule is learnt from: two series, their events, and the thresholds that suit them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from tracelab.rules.alert import Counter, Flags, Levels, counters, fire_times, levels
from tracelab.rules.rule import WarningRule
from tracelab.rules.score import Score, score_fires
from tracelab.signals.bursts import TRIGGERS, detect_error_bursts
from tracelab.signals.grid import Floats, Series, iterate_series
from tracelab.signals.rises import detect_latency_rises, slow_edge

Key = tuple[str | None, str | None]

_MIN_ERRORS = (3.0, 5.0)


@dataclass(frozen=True, slots=True)
class PairHistory:
    """Everything about one pair over one stretch of time, from the start of its grid.

    Parameters
    ----------
    start_ns : int
        Start of the grid.
    bin_s, length_s : float
        Its step and length.
    trigger, target : Series
        The two series.
    requests, failures : Counter
        The trigger's counters.
    levels : Levels
        What a rule with the usual ranges reads.
    bursts_s, rises_s : ndarray
        Onsets.
    trigger_spoke, target_spoke : ndarray of bool
        Bins with a feed.
    """

    start_ns: int
    bin_s: float
    length_s: float
    trigger: Series
    target: Series
    requests: Counter
    failures: Counter
    levels: Levels
    bursts_s: Floats
    rises_s: Floats
    trigger_spoke: Flags
    target_spoke: Flags

    def fires(self, rule: WarningRule) -> Floats:
        """Return when the rule's alert begins to fire."""
        holds = self.levels.above(rule.ratio, rule.min_errors, rule.baseline_factor)
        return self.fires_of(holds, rule.for_s, rule.keep_firing_s)

    def fires_of(self, holds: Flags, for_s: float, keep_s: float) -> Floats:
        """Return when an alert on any condition begins to fire."""
        at = fire_times(
            holds, pending=int(np.ceil(for_s / self.bin_s)), keep=int(np.ceil(keep_s / self.bin_s))
        )
        return self.levels.at_s[at]

    def score(self, fires_s: Floats, horizon_s: float, start_s: float, end_s: float) -> Score:
        """Judge fires over a stretch."""
        return score_fires(
            fires_s,
            self.rises_s,
            horizon_s=horizon_s,
            start_s=start_s,
            end_s=end_s,
            trigger_spoke=self.trigger_spoke,
            target_spoke=self.target_spoke,
            bin_s=self.bin_s,
        )


def pair_history(red: pl.DataFrame, kind: str, a: Key, b: Key) -> PairHistory | None:
    """Collect what is known about a pair.

    Parameters
    ----------
    red : pl.DataFrame
        Schema `RED`; only this time is used.
    kind : str
        Kind of trigger.
    a, b : (service, operation)
        Trigger and target.

    Returns
    -------
    PairHistory or None
        None where one of the two has no series.

    Raises
    ------
    SchemaError
        If `red` is not on one grid.
    """
    part = red.filter(_is(a) | _is(b))
    by_key = {series.key: series for series in iterate_series(part)}
    if a not in by_key or b not in by_key:
        return None
    trigger, target = by_key[a], by_key[b]
    requests, failures = counters(trigger, TRIGGERS[kind])
    bin_s = trigger.bin_ns / 1e9
    at = (np.arange(trigger.n_bins) + 1.0) * bin_s
    return PairHistory(
        start_ns=trigger.start_ns,
        bin_s=bin_s,
        length_s=trigger.n_bins * bin_s,
        trigger=trigger,
        target=target,
        requests=requests,
        failures=failures,
        levels=levels(
            requests,
            failures,
            at,
            window_s=window_for(bin_s),
            baseline_s=21600.0,
            baseline_offset_s=600.0,
        ),
        bursts_s=_onsets(detect_error_bursts(part.filter(_is(a)), trigger=kind), trigger),
        rises_s=_onsets(detect_latency_rises(part.filter(_is(b))), target),
        trigger_spoke=~np.isnan(trigger.column("requests")),
        target_spoke=~np.isnan(target.column("requests")),
    )


def learn_rule(history: PairHistory, lead: dict[str, Any]) -> WarningRule | None:
    """Choose thresholds by the F1 of the emulated alert.

    Parameters
    ----------
    history : PairHistory
        The time to learn from; nothing later may be in it.
    lead : dict
        Row of LEAD_LAGS found on the same time.

    Returns
    -------
    WarningRule or None
        None without a lag or without a threshold that ever fires.

    Raises
    ------
    Nothing.
    """
    if lead.get("lag_s") is None or not len(history.bursts_s):
        return None
    counts, edges = history.target.histogram()
    cut = slow_edge(counts, edges, 0.95)
    if cut is None:
        return None
    total = float(np.nansum(counts))
    rule = WarningRule(
        trigger_kind=lead["trigger_kind"],
        trigger_service=lead["trigger_service"],
        trigger_operation=lead["trigger_operation"],
        target_service=lead["target_service"],
        target_operation=lead["target_operation"],
        lag_s=lead["lag_s"],
        lag_low_s=lead["lag_low_s"],
        lag_high_s=lead["lag_high_s"],
        lag_sigma_s=lead["lag_sigma_s"],
        ratio=0.0,
        min_errors=_MIN_ERRORS[0],
        for_s=0.0,
        horizon_s=_half_minutes(lead["lag_s"] + 2.5 * lead["lag_sigma_s"] + 120.0),
        slow_edge_ns=int(edges[cut]),
        slow_ratio=_two_digits(1.8 * float(np.nansum(counts[:, cut + 1 :]) / total)),
        interval_s=history.bin_s,
        window_s=window_for(history.bin_s),
        learned_until_ns=history.start_ns + round(history.length_s * 1e9),
    )
    best, chosen = -1.0, None
    for ratio in _thresholds(history):
        for min_errors in _MIN_ERRORS:
            for for_s in sorted({0.0, history.bin_s, max(60.0, history.bin_s)}):
                tried = replace(rule, ratio=ratio, min_errors=min_errors, for_s=for_s)
                score = history.score(history.fires(tried), rule.horizon_s, 0.0, history.length_s)
                # Early in the grid means less waiting and fewer demands; a tie keeps it.
                if score.hits and score.f1 > best + 1e-9:
                    best, chosen = score.f1, replace(tried, train_precision=score.precision)
    return chosen


def window_for(bin_s: float) -> float:
    """Return the alert's window: 2 minutes, and never fewer than four scrapes."""
    return max(120.0, 4 * bin_s)


def _thresholds(history: PairHistory) -> list[float]:
    ratio, at = history.levels.ratio, history.levels.at_s
    usual = float(np.nanmedian(history.levels.usual)) if len(at) else 0.0
    peaks = []
    for onset in history.bursts_s:
        part = ratio[(at > onset) & (at <= onset + 600.0)]
        if len(part) and not np.isnan(part).all():
            peaks.append(float(np.nanmax(part)))
    if not peaks:
        return []
    low = max(3.0 * np.nan_to_num(usual), 0.002)
    high = max(float(np.median(peaks)), low * 1.01)
    return sorted({_two_digits(float(value)) for value in np.geomspace(low, high, 6)[:-1]})


def _onsets(events: pl.DataFrame, series: Series) -> Floats:
    return (events["start_time"].cast(pl.Int64).to_numpy() - series.start_ns) / 1e9


def _is(key: Key) -> pl.Expr:
    return pl.col("service_name").eq_missing(pl.lit(key[0], pl.String)) & pl.col(
        "span_name"
    ).eq_missing(pl.lit(key[1], pl.String))


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _half_minutes(seconds: float) -> float:
    return float(np.ceil(seconds / 30.0) * 30.0)
