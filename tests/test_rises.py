import numpy as np
import polars as pl
import pytest

from tracelab import schema
from tracelab.signals import detect_latency_rises
from tracelab.signals.histogram import quantile_of_counts
from tracelab.synth.incident import synthesize_incident

START = 1_767_571_200_000_000_000


def seconds(column):
    return (column.cast(pl.Int64).to_numpy() - START) / 1e9


def test_a_quantile_of_counts_is_linear_within_its_bucket():
    counts, edges = np.array([50.0, 40.0, 10.0]), np.array([100, 200])
    assert quantile_of_counts(counts, edges, 0.25) == pytest.approx(50.0)
    assert quantile_of_counts(counts, edges, 0.70) == pytest.approx(150.0)
    assert quantile_of_counts(counts, edges, 0.99) == 200.0
    assert np.isnan(quantile_of_counts(np.zeros(3), edges, 0.5))


@pytest.mark.parametrize(
    ("rate", "recall", "precision", "scatter"), [(6.0, 0.88, 0.9, 30.0), (1.5, 0.8, 0.88, 45.0)]
)
def test_planted_rises_are_found_with_their_onset(rate, recall, precision, scatter):
    errors, truths, found = [], 0, 0
    for seed in range(700, 708):
        one = synthesize_incident(seed, requests_per_s=rate)
        true = seconds(one.truth.filter(kind="rise")["time"])
        rises = detect_latency_rises(one.red.filter(service_name="payment"))
        starts = seconds(rises["start_time"])
        gaps = [starts[np.argmin(np.abs(starts - t))] - t for t in true]
        errors += [gap for gap in gaps if -180 <= gap <= 600]
        truths, found = truths + len(true), found + len(starts)
    assert len(errors) / truths >= recall
    assert len(errors) / found >= precision
    assert np.std(errors) <= scatter
    assert abs(np.mean(errors)) <= 40.0


def test_the_p99_before_and_after_shows_the_rise():
    one = synthesize_incident(700)
    rises = detect_latency_rises(one.red)
    grown = (rises["p99_after_ns"] / rises["p99_before_ns"]).drop_nulls()
    assert grown.median() >= 1.3
    assert rises.schema == schema.RISES


def test_a_service_without_histogram_has_no_rises():
    red = synthesize_incident(700, days=1, n_bursts=2, n_own_rises=2).red
    bare = red.with_columns(pl.lit(None, red.schema["duration_counts"]).alias("duration_counts"))
    assert detect_latency_rises(bare).height == 0


def test_a_lasting_level_shift_is_one_event_at_most():
    one = synthesize_incident(701, scenario="deployment", n_bursts=0, n_own_rises=0)
    assert detect_latency_rises(one.red.filter(service_name="payment")).height <= 2
