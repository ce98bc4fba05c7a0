import numpy as np
import polars as pl
import pytest

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.io import read_traces
from tracelab.io.write_otlp import write_otlp
from tracelab.signals import (
    detect_error_bursts,
    detect_latency_rises,
    find_lead_lags,
    merge_red,
    red_series,
)
from tracelab.store import TraceStore
from tracelab.synth.incident import SCENARIOS, spans_of_incident, synthesize_incident

SMALL = {"days": 1.0, "requests_per_s": 0.7, "n_bursts": 6, "n_own_rises": 3}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_seed_draws_the_same_series(scenario):
    one, two = (synthesize_incident(3, scenario=scenario, **SMALL) for _ in range(2))
    assert one.red.equals(two.red)
    assert one.truth.equals(two.truth)
    assert one.red.schema == schema.RED
    assert (one.lag_s is not None) == (scenario == "planted")


def test_histograms_hold_every_request_and_failures_are_among_them():
    red = synthesize_incident(4, **SMALL).red.filter(pl.col("requests").is_not_null())
    assert red.select((pl.col("duration_counts").list.sum() == pl.col("requests")).all()).item()
    assert red.select((pl.col("errors_5xx") <= pl.col("requests")).all()).item()


def test_planted_rises_follow_their_burst_by_the_lag():
    truth = synthesize_incident(5, days=28, n_bursts=120).truth.drop_nulls("caused_by")
    gaps = (truth["time"] - truth["caused_by"]).dt.total_seconds().to_numpy() / 60
    assert gaps.mean() == pytest.approx(17.0, abs=1.0)
    assert gaps.std() == pytest.approx(3.0, abs=0.8)
    assert truth.height / 120 == pytest.approx(0.8, abs=0.12)


def test_the_common_cause_hits_both_at_once():
    truth = synthesize_incident(5, scenario="common_cause", days=28).truth
    bursts, rises = (
        truth.filter(kind=kind)["time"].cast(pl.Int64).to_numpy() / 6e10
        for kind in ("burst", "rise")
    )
    nearest = np.abs(bursts[:, None] - rises[None, :]).min(axis=1)
    assert (nearest <= 0.51).mean() >= 0.6


def test_spans_count_to_the_very_series_they_came_from():
    one = synthesize_incident(6, **SMALL)
    red = red_series(spans_of_incident(one)).filter(pl.col("span_name").is_null())
    names = ["service_name", "time", "requests", "errors_5xx", "duration_counts"]
    mine = one.red.select(names).filter(pl.col("requests").is_not_null())
    theirs = red.select(names).filter(pl.col("requests").is_not_null())
    assert theirs.filter(pl.col("requests") > 0).equals(mine.filter(pl.col("requests") > 0))


def test_spans_give_the_same_bursts_and_rises_as_the_table():
    # Traffic at which any gap of a minute or more is beyond chance.
    one = synthesize_incident(7, **{**SMALL, "requests_per_s": 4.0})
    red = red_series(spans_of_incident(one), max_operations=0)
    assert detect_error_bursts(red).equals(detect_error_bursts(one.red))
    assert detect_latency_rises(red).equals(detect_latency_rises(one.red))


def test_the_way_through_files_and_a_store_changes_nothing(tmp_path):
    one = synthesize_incident(8, **{**SMALL, "days": 0.25, "n_bursts": 2, "n_own_rises": 1})
    spans = spans_of_incident(one)
    direct = red_series(spans)
    for encoding in ("json", "proto"):
        write_otlp(spans, tmp_path / f"capture.{encoding}", encoding=encoding)
        assert red_series(read_traces(tmp_path / f"capture.{encoding}")).equals(direct)
    store = TraceStore(tmp_path / "store", buckets=4)
    store.ingest(tmp_path / "capture.proto")
    parts = [red_series(store.read_bucket(number)) for number in store.buckets()]
    assert sum(part.height > 0 for part in parts) >= 4
    assert merge_red(*parts).equals(direct)


def test_unknown_scenarios_and_odd_bins_are_refused():
    with pytest.raises(ParameterError, match="planted"):
        synthesize_incident(0, scenario="sunny")
    with pytest.raises(ParameterError, match="multiple of 5"):
        synthesize_incident(0, every_s=7)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("minutes", [1, 10, 130])
def test_even_a_short_stretch_can_be_drawn_and_holds_no_lead(scenario, minutes):
    one = synthesize_incident(1, scenario=scenario, days=minutes / 1440)
    assert one.red.group_by("service_name").len()["len"].to_list() == [minutes * 2] * 2
    leads = find_lead_lags(one.red)
    assert not leads["accepted"].any()
    assert (leads["reason"].str.len_chars() > 10).all()
