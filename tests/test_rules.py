import itertools
import json

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab import schema
from tracelab.exceptions import ParameterError, SchemaError
from tracelab.rules import (
    METRIC_NAMES,
    MetricNames,
    WarningRule,
    backtest_rules,
    derive_rules,
    render_grafana_dashboard,
    render_prometheus_rules,
    render_prometheus_tests,
)
from tracelab.rules.alert import Counter, fire_times, firing_states, increase
from tracelab.rules.promql import quote
from tracelab.rules.score import score_fires
from tracelab.signals import (
    detect_error_bursts,
    detect_latency_rises,
    detect_percentile_rises,
    find_lead_lags,
    merge_red,
    neighbour_pairs,
)
from tracelab.signals.aligned import align_on_bursts
from tracelab.synth.incident import synthesize_incident
from tracelab.traceset import TraceSet

RED = schema.empty(schema.RED)
PAIR = [("auth", "payment")]


@pytest.fixture(scope="module")
def learnt():
    one = synthesize_incident(5, days=14, n_bursts=48, n_own_rises=16)
    return one, derive_rules(one.red, pairs=PAIR)


def rule_of(**more):
    return WarningRule(
        **{
            "trigger_kind": "5xx",
            "trigger_service": "auth",
            "trigger_operation": None,
            "target_service": "payment",
            "target_operation": None,
            "lag_s": 1020.0,
            "lag_low_s": 960.0,
            "lag_high_s": 1080.0,
            "lag_sigma_s": 90.0,
            "ratio": 0.02,
            "min_errors": 3.0,
            "for_s": 60.0,
            "horizon_s": 1620.0,
            "slow_edge_ns": 250_000_000,
            "slow_ratio": 0.09,
            **more,
        }
    )


def test_a_planted_lead_becomes_a_proven_rule_that_says_itself(learnt):
    _, rules = learnt
    (rule,) = rules
    assert rule.status == "proven"
    assert rule.precision >= 0.5
    assert rule.recall >= 0.4
    text = str(rule)
    assert text.startswith("A 5xx burst in auth precedes a p99 rise in payment by ")
    assert "on time that it had not seen" in text
    assert abs(rule.lag_s - 1020) <= 150


def test_the_sentence_gives_both_intervals():
    text = str(rule_of(status="proven", precision=0.76, recall=0.66, false_alarms_per_day=0.1))
    assert text == (
        "A 5xx burst in auth precedes a p99 rise in payment by 17 min (95 % CI 16 to 18; 14 to 20 "
        "for a single event); precision 0.76, recall 0.66, 0.10 false alarms a day on time that "
        "it had not seen"
    )
    assert "unproven" in str(rule_of())


def test_a_rule_survives_its_dictionary():
    rule = rule_of(precision=0.5)
    assert WarningRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert rule.to_dict()["rule_id"] == rule.rule_id != rule_of(trigger_service="x").rule_id


@pytest.mark.parametrize("scenario", ["null", "diurnal", "common_cause", "reverse"])
def test_false_friends_give_no_proven_rule(scenario):
    for seed in range(60, 63):
        one = synthesize_incident(seed, scenario=scenario, days=14, n_bursts=48, n_own_rises=16)
        assert not [r for r in derive_rules(one.red, pairs=PAIR) if r.status == "proven"]


def test_later_time_changes_nothing_that_was_learnt(learnt):
    one, (rule,) = learnt
    times = one.red["time"].cast(pl.Int64)
    late = times >= rule.learned_until_ns
    assert 0.2 <= late.mean() <= 0.3
    # The last quarter runs backwards, so the proof must change but not what was learnt.
    swapped = one.red.with_columns(
        pl.when(late & (pl.col("service_name") == "payment"))
        .then(pl.col("duration_counts").reverse().over("service_name"))
        .otherwise("duration_counts")
        .alias("duration_counts")
    )
    again = [
        r for r in derive_rules(swapped, pairs=PAIR) if r.learned_until_ns == rule.learned_until_ns
    ]
    assert [(r.ratio, r.min_errors, r.for_s, r.lag_s) for r in again] == [
        (rule.ratio, rule.min_errors, rule.for_s, rule.lag_s)
    ]


def test_the_backtest_has_both_folds_and_three_baselines(learnt):
    one, rules = learnt
    scores = backtest_rules(rules, one.red)
    assert scores.schema == schema.RULE_SCORES
    mine = scores.filter(rule_id=rules[0].rule_id)
    assert mine["fold"].to_list() == [1, 2]
    assert mine["accepted"].to_list()[1]
    assert mine["precision"][1] == pytest.approx(rules[0].precision)
    assert sorted(set(scores["rule_id"].str.extract(r"/(\w+)$").drop_nulls())) == [
        "always_quiet",
        "burn_rate",
        "plain_ratio",
    ]
    quiet = scores.filter(pl.col("rule_id").str.ends_with("always_quiet"))
    assert quiet["n_fires"].sum() == 0
    assert quiet["recall"].to_list() == [0.0, 0.0]


def test_a_rule_is_judged_on_all_of_a_later_capture(learnt):
    _, rules = learnt
    later = synthesize_incident(77, days=14, n_bursts=48, n_own_rises=16).red.with_columns(
        pl.col("time") + pl.duration(days=30)
    )
    scores = backtest_rules(rules, later, baselines=False)
    assert scores["fold"].to_list() == [1]
    assert scores["n_fires"][0] >= 20
    assert scores["accepted"][0]


def test_no_leads_give_no_rules():
    assert derive_rules(schema.empty(schema.RED)) == []
    assert backtest_rules([], schema.empty(schema.RED)).schema == schema.RULE_SCORES
    with pytest.raises(ParameterError, match="WarningRule"):
        backtest_rules(["x"], schema.empty(schema.RED))


def plain_increase(times, values, at, range_s):
    """Follow the published algorithm sample by sample."""
    inside = [(t, v) for t, v in zip(times, values, strict=True) if at - range_s < t <= at]
    if len(inside) < 2:
        return float("nan")
    grown = inside[-1][1] - inside[0][1]
    for (_, before), (_, after) in itertools.pairwise(inside):
        if after < before:
            grown += before
    covered = inside[-1][0] - inside[0][0]
    spacing = covered / (len(inside) - 1)
    to_start, to_end = inside[0][0] - (at - range_s), at - inside[-1][0]
    if to_start >= spacing * 1.1:
        to_start = spacing / 2
    if grown > 0 and inside[0][1] >= 0:
        to_start = min(to_start, covered * inside[0][1] / grown)
    if to_end >= spacing * 1.1:
        to_end = spacing / 2
    return grown * (covered + to_start + to_end) / covered


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 50)), min_size=2, max_size=25),
    st.sampled_from([60.0, 120.0, 300.0]),
)
def test_increase_extrapolates_as_prometheus_does(drawn, range_s):
    times = np.cumsum([gap for gap, _ in drawn]).astype(float)
    values = np.array([value for _, value in drawn], float)
    at = np.arange(0.0, times[-1] + 200.0, 15.0)
    slow = [plain_increase(times, values, t, range_s) for t in at]
    assert increase(Counter(times, values), at, range_s) == pytest.approx(slow, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(0, 4), st.integers(0, 8))
def test_fires_are_the_rising_edges_of_the_state_machine(holds, pending, keep):
    states = firing_states(np.array(holds, bool), pending=pending, keep=keep)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], states.astype(int)))) == 1)
    # keep_firing_for that ends as the condition returns: one alert for both.
    assert fire_times(np.array(holds, bool), pending=pending, keep=keep).tolist() == edges.tolist()


def test_one_rise_confirms_one_fire_and_unseen_time_is_not_judged():
    seen = np.ones(1000, bool)
    knobs = {"horizon_s": 1200.0, "start_s": 0.0, "end_s": 30_000.0, "bin_s": 30.0}
    score = score_fires(
        np.array([5000.0, 5100.0, 29_500.0]),
        np.array([600.0, 5900.0]),
        trigger_spoke=seen,
        target_spoke=seen,
        **knobs,
    )
    assert (score.fires, score.hits, score.targets, score.warned) == (2, 1, 1, 1)
    assert score.leads_s.tolist() == [900.0]
    dark = seen.copy()
    dark[int(4700 / 30) : int(5900 / 30)] = False
    score = score_fires(
        np.array([5000.0]), np.array([5900.0]), trigger_spoke=dark, target_spoke=dark, **knobs
    )
    assert (score.fires, score.targets) == (0, 0)


@pytest.mark.parametrize("metrics", sorted(METRIC_NAMES))
def test_the_rule_file_parses_and_every_expression_is_promql(metrics):
    from promql_parser import parse

    document = yaml.safe_load(render_prometheus_rules([rule_of()], metrics=metrics))
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    assert len(rules) == 5 + 3
    for rule in rules:
        parse(rule["expr"])
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    early = next(rule for name, rule in alerts.items() if name.startswith("EarlyWarning_"))
    assert early["for"] == "1m"
    assert early["keep_firing_for"] == "10m"
    assert {"ChainIntegrityP1", "ChainIntegrityP2"} <= set(alerts)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_any_service_name_stays_inside_its_string(name):
    from promql_parser import parse

    name = name.encode("utf-8", "replace").decode()
    text = render_prometheus_rules([rule_of(trigger_service=name, target_service=name)])
    for group in yaml.safe_load(text)["groups"]:
        for rule in group["rules"]:
            parse(rule["expr"])
    assert "$" not in quote(name)
    json.dumps(render_grafana_dashboard([rule_of(trigger_service=name)]))


def test_a_trigger_that_the_metrics_do_not_count_is_left_out_and_said():
    text = render_prometheus_rules([rule_of(trigger_kind="break")])
    assert "# 1 rules left out" in text
    own = MetricNames(
        "r_total", "svc", "op", "", "d_bucket", "d_count", 1.0, failures={"break": 'broken="1"'}
    )
    text = render_prometheus_rules([rule_of(trigger_kind="break")], metrics=own)
    assert 'r_total{svc="auth",broken="1"}' in text
    with pytest.raises(ParameterError, match="istio"):
        render_prometheus_rules([], metrics="statsd")
    with pytest.raises(ParameterError, match="integrity_tiers"):
        render_prometheus_rules([], integrity_tiers=(0.9, 0.95))


def test_no_rules_still_give_valid_files():
    assert yaml.safe_load(render_prometheus_tests([], schema.empty(schema.RED)))["tests"] == []
    assert render_grafana_dashboard([])["panels"]
    assert yaml.safe_load(render_prometheus_rules([]))["groups"]


def test_the_dashboard_shows_each_rule_and_numbers_its_panels():
    board = render_grafana_dashboard([rule_of()], metrics="istio")
    ids = [panel["id"] for panel in board["panels"]]
    assert ids == sorted(set(ids))
    exprs = [t["expr"] for panel in board["panels"] for t in panel.get("targets", ())]
    assert any("histogram_quantile(0.99" in expr for expr in exprs)
    assert any("ALERTS" in expr for expr in exprs)
    assert "tracelab:chain_integrity:sli" in exprs


def test_the_dashboard_keeps_to_the_published_schema_of_dashboards():
    board = render_grafana_dashboard([rule_of(), rule_of(trigger_service="x")])
    assert json.loads(json.dumps(board)) == board
    assert set(board) <= {
        *("uid", "title", "tags", "schemaVersion", "version", "editable", "graphTooltip"),
        *("timezone", "refresh", "time", "annotations", "templating", "panels"),
    }
    assert 8 <= len(board["uid"]) <= 40
    assert (board["graphTooltip"], board["timezone"]) == (1, "utc")
    cells = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        mine = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & mine
        cells |= mine
        if panel["type"] == "row":
            assert panel["panels"] == []
            continue
        assert panel["type"] in ("timeseries", "state-timeline")
        assert panel["fieldConfig"]["overrides"] == []
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))
        variables = {one["name"] for one in board["templating"]["list"]}
        assert panel["datasource"]["uid"].strip("${}") in variables
    assert all(one["type"] == "datasource" for one in board["templating"]["list"])


NO_TABLE = [TraceSet(spans=schema.empty(schema.SPANS)), None, 3, "red.parquet", {"time": []}]


@pytest.mark.parametrize("given", NO_TABLE, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize(
    "call",
    [
        find_lead_lags,
        detect_error_bursts,
        detect_latency_rises,
        merge_red,
        neighbour_pairs,
        derive_rules,
        lambda given: backtest_rules([], given),
        lambda given: render_prometheus_tests([], given),
        lambda given: detect_percentile_rises(given, value="p99"),
        lambda given: align_on_bursts(given, trigger_service="a", target_service="b"),
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence(call, given):
    with pytest.raises(
        SchemaError, match=f"must be a polars DataFrame, not a {type(given).__name__}"
    ):
        call(given)


@pytest.mark.parametrize("given", [[3], ["auth"], [{"rule_id": "x"}]])
@pytest.mark.parametrize(
    "call", [render_prometheus_rules, render_grafana_dashboard, lambda r: backtest_rules(r, RED)]
)
def test_what_is_no_rule_is_refused(call, given):
    with pytest.raises(ParameterError, match="is no WarningRule"):
        call(given)


@pytest.mark.parametrize("given", ["auth", [("a", "b", "c")], ["ab"], 7])
def test_what_is_no_pair_is_refused(given):
    for call in (find_lead_lags, derive_rules):
        with pytest.raises(ParameterError, match="not \\(trigger, target\\)"):
            call(RED, pairs=given)
    with pytest.raises(ParameterError, match="no WarningRule"):
        render_prometheus_rules(7)
