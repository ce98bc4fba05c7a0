"""The chain-integrity SLI by hand-computed windows."""

import polars as pl
import pytest
from building import Capture, span_id, trace_id

from tracelab import schema
from tracelab.audits import Tiers, chain_integrity
from tracelab.exceptions import ParameterError


def hops_of(*rows):
    return schema.conform(
        pl.DataFrame(
            [
                {
                    "trace_id": trace_id(trace),
                    "child_span_id": span_id(1),
                    "child_service": "a",
                    "parent_service": "b",
                    "verdict": verdict,
                    "confidence": confidence,
                }
                for trace, verdict, confidence in rows
            ]
        ),
        schema.ERROR_HOPS,
    )


NO_BREAKS = schema.empty(schema.BREAKS)


def capture(traces, *, minutes=0):
    built = Capture()
    for number in range(1, traces + 1):
        built.span(number, number * 10, service="a", start=minutes * 60_000)
        built.span(number, number * 10 + 1, number * 10, service="b", start=minutes * 60_000)
    return built.traces()


def test_broken_and_undetermined_traces_are_counted_apart():
    hops = hops_of((1, "swallowed", 0.9), (2, "not_determinable", 0.9), (3, "kept", 0.9))
    table = chain_integrity(capture(10), hops=hops, breaks=NO_BREAKS)
    assert table.schema == schema.INTEGRITY
    row = table.filter(pl.col("service_name").is_null()).to_dicts()[0]
    assert (row["traces"], row["broken"], row["undetermined"]) == (10, 1, 1)
    assert row["sli"] == pytest.approx(8 / 9)
    assert row["coverage"] == pytest.approx(0.9)
    assert row["tier"] == "P1"


def test_a_verdict_below_the_least_confidence_leaves_the_trace_open():
    table = chain_integrity(capture(4), hops=hops_of((1, "swallowed", 0.3)), breaks=NO_BREAKS)
    assert table["undetermined"].to_list() == [1, 1, 1]


@pytest.mark.parametrize(("broken", "tier"), [(0, "ok"), (1, "ok"), (2, "P2"), (3, "P1")])
def test_a_value_at_a_limit_belongs_to_the_better_side(broken, tier):
    hops = hops_of(*((n, "swallowed", 1.0) for n in range(1, broken + 1)), (9, "kept", 1.0))
    tiers = Tiers(target=0.995, p1_below=0.99)
    table = chain_integrity(capture(200), hops=hops, breaks=NO_BREAKS, tiers=tiers)
    assert table.filter(pl.col("service_name").is_null())["tier"].to_list() == [tier]


def test_a_window_with_nothing_determined_has_no_value():
    table = chain_integrity(
        capture(1), hops=hops_of((1, "not_determinable", 1.0)), breaks=NO_BREAKS
    )
    row = table.filter(pl.col("service_name").is_null()).to_dicts()[0]
    assert (row["sli"], row["coverage"], row["tier"]) == (None, 0.0, None)


def test_a_break_counts_at_its_services_only():
    row = {"trace_id": trace_id(1), "service_name": "b", "severity": "warning", "confidence": 0.9}
    breaks = schema.conform(pl.DataFrame([row]), schema.BREAKS)
    table = chain_integrity(capture(2), hops=schema.empty(schema.ERROR_HOPS), breaks=breaks)
    counts = dict(table.select(pl.col("service_name").fill_null("all"), "broken").iter_rows())
    assert counts == {"all": 1, "a": 0, "b": 1}


def test_an_empty_capture_has_no_windows():
    assert chain_integrity(Capture().traces()).is_empty()


def test_bad_arguments_are_refused():
    with pytest.raises(ParameterError, match="no duration"):
        chain_integrity(capture(1), every="soon")
    with pytest.raises(ParameterError, match="unknown verdicts"):
        chain_integrity(capture(1), broken_verdicts=["lost"])
    with pytest.raises(ParameterError, match="p1_below"):
        chain_integrity(capture(1), tiers=Tiers(target=0.9, p1_below=0.95))
