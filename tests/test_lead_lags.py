from itertools import permutations

import numpy as np
import polars as pl
import pytest

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.signals import find_lead_lags, neighbour_pairs
from tracelab.signals.coincidence import LagRange, _orders, scan_pair
from tracelab.signals.lag import estimate_lag
from tracelab.synth.incident import synthesize_incident

PAIR = [("auth", "payment")]
LAGS = LagRange(10, 90, 2, 6)


def try_pair(seed, detect=None, **knobs):
    one = synthesize_incident(seed, **knobs)
    return find_lead_lags(one.red, pairs=PAIR, **(detect or {})).row(0, named=True)


def plain_scan(bursts, rises, length):
    """Count by the definition, on steps of 30 s, the clock wrapping."""
    return np.array(
        [
            [
                sum(
                    any(
                        abs((b + s + lag - r + length // 2) % length - length // 2) <= 6
                        for r in rises
                    )
                    for b in bursts
                )
                for lag in LAGS.lags
            ]
            for s in range(0, length, 97)
        ]
    )


def test_the_scan_counts_what_the_definition_says():
    rng = np.random.default_rng(3)
    length = 3 * 2880
    rises = np.sort(rng.integers(200, length - 200, 12))
    bursts = np.concatenate((rises[:5] - 40, rng.integers(200, length - 200, 5)))
    found = scan_pair(
        bursts * 30.0, rises * 30.0, np.ones(length, bool), LAGS, shuffles=100, seed=0
    )
    table = plain_scan(bursts, rises, length)
    assert found.coincidences == table[0].max()
    assert found.lag_s == LAGS.lags[np.argmax(table[0])] * 30.0
    reached = (table[1:].max(axis=1) >= table[0].max()).mean()
    assert found.p_shift == pytest.approx(reached, abs=0.08)
    assert not found.day_orders


def test_the_day_orders_equal_a_plain_enumeration():
    rng = np.random.default_rng(4)
    days, per_day = 5, 2880
    rises = np.sort(rng.integers(0, days * per_day - 100, 14))
    bursts = np.sort(np.concatenate((rises[:6] - 30, rng.integers(0, days * per_day, 4))).clip(0))
    near = np.zeros(days * per_day, bool)
    for r in rises:
        near[max(r - 6, 0) : r + 7] = True
    counts = np.array(
        [
            [
                sum(
                    near[(order[b // per_day] * per_day + b % per_day + lag) % len(near)]
                    for b in bursts
                )
                for lag in LAGS.lags
            ]
            for order in permutations(range(days))
        ]
    )
    excess = ((counts - counts.mean(0)) / np.sqrt(counts.var(0) + 0.25)).max(axis=1)
    found = scan_pair(
        bursts * 30.0, rises * 30.0, np.ones(days * per_day, bool), LAGS, shuffles=10, seed=0
    )
    assert found.p_day == pytest.approx((excess >= excess[0] - 1e-9).mean())
    assert found.p_floor == pytest.approx(1 / 120)


def test_from_four_weeks_on_days_stay_within_their_kind_of_day():
    weekend = tuple((3 + day) % 7 >= 5 for day in range(28))
    orders, exact = _orders(weekend, 200, 0)
    assert not exact
    moved = np.asarray(weekend)[orders]
    assert (moved == np.asarray(weekend)).all()
    assert (np.sort(orders, axis=1) == np.arange(28)).all()
    short, exact = _orders(weekend[:7], 200, 0)
    assert exact
    assert len(short) == 5040


@pytest.mark.parametrize("lag", [10.0, 17.0, 30.0, 40.0])
def test_a_planted_lead_is_found_with_its_lag(lag):
    row = try_pair(11, lag_min=lag)
    assert row["verdict"] == "accepted"
    assert row["direction"] == "forward"
    assert abs(row["lag_s"] / 60 - lag) <= 2.5
    assert row["lag_low_s"] < row["lag_s"] < row["lag_high_s"]
    assert row["p_value"] == max(row["p_shift"], row["p_day"])


def test_five_minutes_need_a_narrow_window_and_sixty_a_longer_range():
    near = try_pair(12, {"min_lag": "3m", "tolerance": "1m"}, lag_min=5.0, jitter_min=0.5)
    far = try_pair(12, {"max_lag": "80m"}, lag_min=60.0)
    assert near["accepted"]
    assert abs(near["lag_s"] - 300) <= 60
    assert far["accepted"]
    assert abs(far["lag_s"] - 3600) <= 150


@pytest.mark.parametrize(("seed", "jitter"), [(13, 0.5), (111_023, 0.5), (13, 3.0), (14, 3.0)])
def test_two_minutes_are_simultaneous_and_no_lead(seed, jitter):
    row = try_pair(seed, lag_min=2.0, jitter_min=jitter)
    assert row["direction"] == "simultaneous"
    assert not row["accepted"]


def test_followers_below_the_range_are_simultaneous_though_its_edge_catches_some():
    bursts = np.arange(1, 16) * 14_400.0
    after = np.resize([60.0, 150.0, 240.0, 300.0, 210.0], 15)
    steps = 7 * 2880
    found = scan_pair(bursts, bursts + after, np.ones(steps, bool), LAGS, shuffles=10, seed=0)
    assert found.lag_s == 300.0
    assert found.direction == "simultaneous"


@pytest.mark.parametrize("scenario", ["common_cause", "reverse"])
def test_zero_lag_causes_and_reversed_order_are_no_lead(scenario):
    rows = [try_pair(seed, scenario=scenario) for seed in range(20, 26)]
    assert not any(row["accepted"] for row in rows)
    back = find_lead_lags(
        synthesize_incident(20, scenario="reverse").red, pairs=[("auth", "payment")]
    )
    assert back["direction"].to_list() == ["reverse"]


@pytest.mark.parametrize(
    "scenario",
    ["null", "diurnal", "storms", "cron", "busy_target", "deployment", "slow_leak", "missing_days"],
)
def test_false_friends_are_rarely_called_a_lead(scenario):
    rows = [try_pair(seed, scenario=scenario) for seed in range(40, 50)]
    assert sum(row["accepted"] for row in rows) <= 2


def test_few_events_and_few_days_are_undecidable_and_say_why():
    few = try_pair(30, n_bursts=5, n_own_rises=2)
    assert few["verdict"] == "undecidable"
    assert "at least 8 and 8 are needed" in few["reason"]
    short = try_pair(30, days=1.0, n_bursts=8, n_own_rises=2)
    assert not short["accepted"]


def test_a_floor_above_the_gate_is_undecidable_not_rejected():
    red = synthesize_incident(31, days=5.0).red
    many = pl.concat(
        [red]
        + [
            synthesize_incident(
                100 + k, scenario="null", days=5.0, trigger=f"a{k}", target=f"b{k}"
            ).red
            for k in range(4)
        ]
    )
    leads = find_lead_lags(many)
    row = leads.filter(trigger_service="auth", target_service="payment").row(0, named=True)
    assert leads.height == 90
    assert row["p_floor"] == pytest.approx(1 / 120)
    assert row["verdict"] == "undecidable"
    assert "cannot fall below" in row["reason"]


def test_every_pair_tried_is_listed_and_shares_one_correction():
    red = synthesize_incident(32).red
    both = find_lead_lags(red)
    assert both.height == 2
    assert both["accepted"].to_list() == [True, False]
    alone = find_lead_lags(red, pairs=PAIR)
    assert both["q_value"][0] == pytest.approx(2 * alone["q_value"][0])
    assert both.schema == schema.LEAD_LAGS


def test_the_lag_of_exact_followers_is_exact():
    bursts = np.arange(1, 21) * 10_000.0
    lag = estimate_lag(bursts, bursts + 900.0, near_s=960.0, low_s=60.0, high_s=2760.0, seed=0)
    assert lag.lag_s == pytest.approx(900.0, abs=1.0)
    assert lag.low_s <= 900.0 + 1e-6
    assert lag.high_s >= 900.0 - 1e-6
    assert lag.sigma_s < 60.0
    assert (
        estimate_lag(bursts[:1], bursts[:1] + 900, near_s=900, low_s=60, high_s=2760, seed=0)
        is None
    )


def test_neighbours_are_within_hops_in_both_directions():
    calls = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    edges = schema.conform(
        pl.DataFrame(calls, schema=["parent_service", "child_service"], orient="row"), schema.EDGES
    )
    one = neighbour_pairs(edges, hops=1)
    assert sorted(one) == sorted([*calls, *((b, a) for a, b in calls)])
    assert ("a", "d") in neighbour_pairs(edges)
    assert ("a", "e") not in neighbour_pairs(edges)


def test_a_range_of_lags_that_touches_zero_is_refused():
    with pytest.raises(ParameterError, match="narrow the tolerance"):
        find_lead_lags(schema.empty(schema.RED), min_lag="4m")
    with pytest.raises(ParameterError, match="none of 5xx"):
        find_lead_lags(schema.empty(schema.RED), trigger="rain")
    assert find_lead_lags(schema.empty(schema.RED)).schema == schema.LEAD_LAGS
