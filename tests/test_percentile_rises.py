import json

import numpy as np
import polars as pl
import pytest

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.signals import detect_percentile_rises

PREFIX = "IntelligentDDS-Nezha__2022-08-22_"


def minutes(values):
    return pl.DataFrame(
        {
            "time": pl.Series(np.arange(len(values)) * 60 * 10**9).cast(schema.TIME),
            "p95": np.asarray(values, float),
        }
    )


def test_a_lasting_rise_is_found_and_a_single_spike_is_not():
    values = np.exp(np.random.default_rng(0).normal(0, 0.1, 600))
    values[300:306] *= 3
    values[450] *= 5
    found = detect_percentile_rises(minutes(values), value="p95", service_name="front")
    assert found.height == 1
    assert found["start_time"].dt.epoch("s").to_list() == [300 * 60]
    assert found["observed"][0] > 2 * found["expected"][0]
    assert found.schema == schema.RISES


def test_a_level_that_stays_becomes_usual():
    values = np.exp(np.random.default_rng(0).normal(0, 0.1, 900))
    values[300:] *= 3
    found = detect_percentile_rises(minutes(values), value="p95")
    assert found.height == 1
    assert found["end_time"].dt.epoch("s")[0] < (300 + 130) * 60


def test_too_few_moments_are_refused():
    with pytest.raises(ParameterError, match="at least 3"):
        detect_percentile_rises(minutes([1.0, 2.0]), value="p95")


def test_labelled_faults_in_a_real_front_end_series(shared_data):
    """24 faults were injected somewhere behind this front end; most never reach its latency."""
    table = pl.read_csv(shared_data / f"{PREFIX}front_service_metric.csv").with_columns(
        (pl.col("TimeStamp") * 10**9).cast(schema.TIME).alias("time")
    )
    labels = json.loads((shared_data / f"{PREFIX}fault_list.json").read_text())
    faults = np.array([int(f["inject_timestamp"]) for part in labels.values() for f in part])
    assert len(faults) == 24
    for column, least_found, most_elsewhere in (
        ("LatencyP50(s)", 5, 2),
        ("LatencyP90(s)", 5, 1),
        ("LatencyP95(s)", 5, 2),
        ("LatencyP99(s)", 2, 15),
    ):
        found = detect_percentile_rises(table, value=column)
        starts = found["start_time"].dt.epoch("s").to_numpy()
        after = starts[:, None] - faults[None, :]
        near = (after >= -60) & (after <= 300)
        assert near.any(axis=0).sum() >= least_found, column
        assert (~near.any(axis=1)).sum() <= most_elsewhere, column
