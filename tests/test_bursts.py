import numpy as np
import polars as pl
import pytest
from scipy.stats import nbinom, poisson

from tracelab import schema
from tracelab.exceptions import ParameterError, SchemaError
from tracelab.signals import detect_error_bursts
from tracelab.signals.tails import find_runs, tail_score, trailing_sums
from tracelab.synth.incident import synthesize_incident

START = 1_767_571_200_000_000_000
BIN = 30 * 10**9


def red_of(requests, failures, *, service="auth", column="errors_5xx"):
    n = len(requests)
    return schema.conform(
        pl.DataFrame(
            {
                "service_name": [service] * n,
                "time": pl.Series(START + np.arange(n) * BIN).cast(schema.TIME),
                "bin_ns": [BIN] * n,
                "requests": np.asarray(requests, float),
                column: np.asarray(failures, float),
            }
        ).with_columns(pl.col("requests", column).fill_nan(None)),
        schema.RED,
    )


def steady(n=1440, rate=180.0, ratio=0.003, seed=1):
    rng = np.random.default_rng(seed)
    requests = rng.poisson(rate, n)
    return requests, rng.binomial(requests, ratio)


def seconds(column):
    return (column.cast(pl.Int64).to_numpy() - START) / 1e9


@pytest.mark.parametrize("dispersion", [1.0, 1.5, 7.0])
def test_the_tail_is_that_of_the_textbook_distributions(dispersion):
    observed, mean = np.array([3.0, 10.0, 40.0]), np.array([1.0, 4.0, 9.0])
    if dispersion == 1.0:
        expected = poisson.sf(observed - 1, mean)
    else:
        expected = nbinom.sf(observed - 1, mean / (dispersion - 1), 1 / dispersion)
    assert tail_score(observed, mean, dispersion) == pytest.approx(-np.log10(expected))


def test_trailing_sums_equal_a_plain_loop():
    values = np.random.default_rng(0).random(50)
    slow = [values[max(i - 3, 0) : i + 1].sum() for i in range(50)]
    assert trailing_sums(values, 4) == pytest.approx(slow)


def test_runs_merge_below_the_gap_and_short_ones_do_not_count():
    high = np.array([0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0], bool)
    assert find_runs(high, merge_gap=3).tolist() == [[1, 6], [10, 10]]
    assert find_runs(high, merge_gap=3, min_length=2).tolist() == [[1, 6]]
    assert find_runs(~high & high, merge_gap=3).shape == (0, 2)


def test_a_planted_burst_is_found_with_its_onset():
    requests, failures = steady()
    failures[700:708] += 20
    found = detect_error_bursts(red_of(requests, failures))
    assert found.height == 1
    assert abs(seconds(found["start_time"])[0] - 700 * 30) <= 30
    assert found["observed"][0] >= 160 > 10 > found["expected"][0]
    assert found["start_time"][0] < found["detected_time"][0] <= found["end_time"][0]


def test_steady_failures_are_no_burst_however_many():
    requests, failures = steady(rate=5000.0, ratio=0.2)
    assert detect_error_bursts(red_of(requests, failures)).height == 0


def test_a_small_excess_at_huge_traffic_is_no_burst():
    requests, failures = steady(rate=50_000.0, ratio=0.003)
    failures[700:720] = failures[700:720] * 2
    assert detect_error_bursts(red_of(requests, failures)).height == 0
    assert detect_error_bursts(red_of(requests, failures), min_ratio=1.2).height == 1


def test_a_silent_stretch_is_no_burst_and_hides_none_after_it():
    requests, failures = (part.astype(float) for part in steady())
    failures[700:708] += 20
    for part in (requests, failures):
        part[600:699] = np.nan
    found = detect_error_bursts(red_of(requests, failures))
    assert found.height == 1
    assert abs(seconds(found["start_time"])[0] - 700 * 30) <= 30


def test_other_triggers_read_their_own_column():
    requests, failures = steady()
    failures[700:708] += 20
    red = red_of(requests, failures, column="retries")
    assert detect_error_bursts(red, trigger="retry").height == 1
    assert detect_error_bursts(red).height == 0


def test_onsets_scatter_by_at_most_a_quarter_minute_and_most_bursts_are_found():
    errors, truths, hits, found = [], 0, 0, 0
    for seed in range(600, 606):
        one = synthesize_incident(seed)
        true = seconds(one.truth.filter(kind="burst")["time"])
        starts = seconds(detect_error_bursts(one.red.filter(service_name="auth"))["start_time"])
        near = [starts[np.argmin(np.abs(starts - t))] - t for t in true]
        close = [gap for gap in near if -180 <= gap <= 600]
        errors += close
        truths, hits, found = truths + len(true), hits + len(close), found + len(starts)
    assert hits / truths >= 0.95
    assert hits / found >= 0.90
    assert np.std(errors) <= 15.0


def test_two_rows_for_one_bin_and_two_widths_are_refused():
    red = red_of(*steady(n=10))
    with pytest.raises(SchemaError, match="merge_red"):
        detect_error_bursts(pl.concat([red, red]))
    with pytest.raises(SchemaError, match="bin width"):
        detect_error_bursts(
            pl.concat([red, red.with_columns(pl.lit(5).cast(pl.Int64).alias("bin_ns"))])
        )


def test_unknown_triggers_and_missing_columns_are_refused():
    with pytest.raises(ParameterError, match="none of 5xx"):
        detect_error_bursts(schema.empty(schema.RED), trigger="4xx")
    with pytest.raises(SchemaError, match="errors_5xx"):
        detect_error_bursts(schema.empty(schema.RED).drop("errors_5xx"))
    assert detect_error_bursts(schema.empty(schema.RED)).schema == schema.BURSTS
