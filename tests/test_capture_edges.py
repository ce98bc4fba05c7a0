import numpy as np
import polars as pl
import pytest

from tests.building import Capture
from tracelab.structure import find_breaks
from tracelab.structure.censoring import survival

LOCAL = {"parent_is_remote": False}
REMOTE = {"parent_is_remote": True}


def loud(capture: Capture) -> pl.DataFrame:
    found = find_breaks(capture.traces())
    return found.filter(pl.col("severity") != "info")


def busy(seconds: int, *, seed: int = 0) -> Capture:
    """A server with short requests, for as long as the capture runs."""
    rng = np.random.default_rng(seed)
    capture = Capture(service_instance_id="a", **LOCAL)
    for number in range(1, 20 * seconds):
        at = 50.0 * number + rng.uniform(0, 10)
        capture.span(number, 1, start=at, duration=12, kind="SERVER", name="GET /")
        capture.span(number, 2, 1, start=at + 1, duration=8, name="query")
    return capture


def streams(
    capture: Capture, seconds: int, *, lost: int | None = None, longest: int = 20_000
) -> Capture:
    """Streams of 5 to 20 s, or longer, with an update each second; what ends after the capture is absent."""
    rng = np.random.default_rng(1)
    for number in range(40):
        begin = rng.uniform(0, 1000 * seconds)
        length = rng.uniform(5_000, longest)
        if begin + length < 1000 * seconds and number != lost:
            capture.span(50_000 + number, 1, start=begin, duration=length, name="GET /stream")
        for tick in range(int(length // 1000)):
            if begin + 1000 * tick + 5 < 1000 * seconds:
                at = begin + 1000 * tick
                capture.span(50_000 + number, 10 + tick, 1, start=at, duration=4, name="push")
    return capture


def test_streams_open_when_the_capture_stops_are_no_defect():
    assert loud(streams(busy(60), 60)).height == 0


def test_a_stream_lost_in_the_middle_is_still_a_break():
    found = loud(streams(busy(60), 60, lost=8))
    assert found.height >= 4
    assert set(found["kind"]) == {"orphan_span"}
    assert found["missing_span_id"].n_unique() == 1


def test_one_slow_request_near_the_end_is_likelier_open_than_lost():
    capture = busy(60)
    rng = np.random.default_rng(2)
    for number in range(300):
        slow = 1000 * rng.pareto(1.5)
        at = 180.0 * number
        capture.span(70_000 + number, 1, start=at, duration=12 + slow, name="report")
        capture.span(70_000 + number, 2, 1, start=at + 1, duration=8, name="read")
    capture.span(80_000, 2, 1, start=58_200, duration=8, name="read")
    assert loud(capture).height == 0


@pytest.mark.parametrize("hangs", [True, False])
def test_where_other_requests_hang_now_and_then_one_open_at_the_end_is_no_defect(hangs):
    capture = busy(120)
    for number in range(5_000, 5_900):
        at = 120.0 * (number - 5_000)
        long = hangs and number % 300 == 7
        capture.span(number, 1, start=at, duration=6_000 if long else 10, name="job", kind="SERVER")
        capture.span(number, 2, 1, start=at + 1, duration=2, name="step")
    # A query whose request never came, 2 s before the end; the others take 12 ms.
    capture.span(9_999, 2, 1, start=118_000, duration=8, name="query")
    assert loud(capture)["kind"].to_list() == ([] if hangs else ["orphan_span"])


def test_a_parent_that_is_always_quick_was_lost_though_the_end_is_near():
    capture = busy(60).span(80_000, 2, 1, start=58_200, duration=8, name="query")
    assert loud(capture)["span_id"].to_list() == [f"{2:016x}"]


def test_each_replica_has_its_own_first_batch():
    capture = Capture()
    rng = np.random.default_rng(3)
    for number in range(1, 600):
        at = 100.0 * number + rng.uniform(0, 20)
        replica = f"a-{number % 3}"
        told = {"service": "a", "service_instance_id": replica}
        capture.span(
            number, 2, 1, start=at + 2, duration=9, kind="SERVER", name="b", service="b", **REMOTE
        )
        # The first batch of replica 1 that came in holds what ended four seconds later.
        if replica != "a-1" or at > 4_000:
            capture.span(number, 1, start=at, duration=14, kind="CLIENT", name="GET b", **told)
    assert loud(capture).height == 0


def test_survival_is_the_share_above_and_goes_on_as_a_power_law():
    rng = np.random.default_rng(4)
    values = (1e6 * (1 + rng.pareto(2.0, 20_000))).astype(np.int64)
    assert survival(values, np.array([2e6]))[0] == pytest.approx(0.25, abs=0.02)
    far = float(values.max()) * 3
    assert survival(values, np.array([far]))[0] == pytest.approx((far / 1e6) ** -2.0, rel=0.9)
    assert survival(values[:4], np.array([1.0]))[0] == 0.0


def replicas(*, named: bool, lost: int | None = None, cut_ms: int = 1_500) -> Capture:
    """A caller and three replicas of its callee, whose exports stop one after the other."""
    rng = np.random.default_rng(5)
    capture = Capture()
    for number in range(1, 1200):
        at = 50.0 * number + rng.uniform(0, 10)
        replica = number % 3
        capture.span(
            number, 1, start=at, duration=20, kind="SERVER", name="GET /", service="web",
            service_instance_id="web-0", **LOCAL,
        )  # fmt: skip
        capture.span(
            number, 2, 1, start=at + 1, duration=15, kind="CLIENT", name="GET", service="web",
            service_instance_id="web-0", **LOCAL,
        )  # fmt: skip
        if at < 60_000 - cut_ms * (replica + 1) and number != lost:
            told = {"service_instance_id": f"stock-{replica}"} if named else {}
            capture.span(
                number, 3, 2, start=at + 2, duration=9, kind="SERVER", name="GET /stock",
                service="stock", **told, **REMOTE,
            )  # fmt: skip
    return capture


@pytest.mark.parametrize("named", [True, False])
def test_a_call_to_a_replica_whose_last_batch_is_cut_off_is_no_defect(named):
    assert loud(replicas(named=named)).height == 0


@pytest.mark.parametrize(("number", "cut_ms"), [(600, 1_500), (1000, 1_500), (1100, 0)])
def test_a_server_lost_before_any_replica_is_cut_off_is_still_a_break(number, cut_ms):
    found = loud(replicas(named=False, lost=number, cut_ms=cut_ms))
    assert found["kind"].to_list() == ["missing_server"]
    assert found["trace_id"].to_list() == [f"{number:032x}"]


def test_streams_that_are_never_ended_are_no_capture_edge_however_long_they_last():
    capture = streams(busy(60), 60, longest=50_000)
    ended = [span for span in capture.spans if span["name"] == "GET /stream"]
    never = {span["trace_id"] for span in ended[::3]}
    open_still = {s["trace_id"] for s in capture.spans if s["name"] == "push"}
    open_still -= {span["trace_id"] for span in ended}
    capture.spans = [
        span
        for span in capture.spans
        if not (span["trace_id"] in never and span["name"] == "GET /stream")
    ]
    found = loud(capture)
    raised = set(found["trace_id"])
    assert len(raised & never) >= 0.8 * len(never)
    assert not raised & open_still
    told = found.filter(pl.col("trace_id").is_in(list(never)))["cause"]
    assert (told == "span_never_ended").mean() > 0.8
