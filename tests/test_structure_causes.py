import json

import numpy as np
import polars as pl
import pytest

from tests.building import Capture, span_id
from tracelab import schema
from tracelab.structure import find_breaks
from tracelab.structure.detached import find_detached_roots
from tracelab.structure.laws import Law, association_marginals
from tracelab.structure.sampling import (
    MIN_SEPARATION,
    MIN_SURPRISE,
    READINGS,
    _split,
    separation,
)
from tracelab.structure.skeleton import Skeleton
from tracelab.structure.skew import estimate_clock_skew

LOCAL = {"parent_is_remote": False}
REMOTE = {"parent_is_remote": True}


def calls(n: int, *, gap: float = 100.0, lost=(), detached=(), seed: int = 0) -> Capture:
    """Requests of service a that call b; some lose b's span, some its context."""
    rng = np.random.default_rng(seed)
    capture = Capture()
    for number in range(1, n + 1):
        at = number * gap + rng.uniform(0, gap / 4)
        capture.span(number, 1, start=at, duration=20, kind="SERVER", name="GET /", service="a")
        capture.span(
            number, 2, 1, start=at + 2, duration=12, kind="CLIENT", name="GET", service="a", **LOCAL
        )
        if number in lost:
            continue
        away = number in detached
        capture.span(
            number + 10_000 if away else number,
            number + 100 if away else 3,
            None if away else 2,
            start=at + 2 + rng.uniform(0.2, 0.6),
            duration=10 + rng.uniform(0, 1),
            kind="SERVER",
            name="GET /b",
            service="b",
            parent_is_remote=None if away else True,
        )
    return capture


def loud(capture: Capture):
    found = find_breaks(capture.traces())
    return found.filter(found["severity"] != "info")


def test_calls_that_are_all_answered_are_no_break():
    assert loud(calls(60)).height == 0


def test_a_call_without_its_usual_server_span_is_reported_at_the_client():
    found = loud(calls(60, lost={30}))
    assert found.select("kind", "span_id", "from_service", "to_service").rows() == [
        ("missing_server", span_id(2), "a", "b")
    ]


def test_stretches_without_answers_between_answered_ones_are_reported():
    lost = {n for begin in (100, 160, 230) for n in range(begin, begin + 25)}
    found = loud(calls(300, lost=lost))
    missed = found.filter(pl.col("kind") == "missing_server")
    assert missed.height >= 0.9 * len(lost)


def test_one_of_two_replicas_that_falls_silent_for_a_while_is_reported():
    lost = set(range(100, 200, 2))
    found = loud(calls(400, lost=lost))
    missed = found.filter(pl.col("kind") == "missing_server")
    assert missed.height >= 0.9 * len(lost)


def test_a_peer_that_loses_nearly_everything_but_answers_in_stretches_is_reported():
    held = {n for begin in range(20, 600, 100) for n in range(begin, begin + 9)}
    lost = set(range(1, 601)) - held
    missed = loud(calls(600, lost=lost)).filter(pl.col("kind") == "missing_server")
    assert missed.height >= 0.8 * len(lost)


def test_a_peer_that_answers_for_one_while_only_may_not_have_been_instrumented_before():
    lost = set(range(1, 601)) - set(range(300, 330))
    assert loud(calls(600, lost=lost)).height == 0


def test_calls_of_which_some_go_unanswered_at_random_are_legal():
    rng = np.random.default_rng(9)
    lost = set((np.flatnonzero(rng.random(300) < 0.3) + 1).tolist())
    assert loud(calls(300, lost=lost)).height == 0


def fates(letters: str, *, gap: float = 100.0) -> Capture:
    """Calls from a to b: a digit names the process that answered, - left no span, x met a 502."""
    capture = Capture()
    for number, fate in enumerate(letters, start=1):
        code = 502 if fate == "x" else 200
        instance = f"b-{fate}"
        capture.call(
            number,
            start=number * gap,
            code=code,
            served=fate.isdigit(),
            service_instance_id=instance,
        )
    return capture


def test_what_a_gateway_answers_in_place_of_its_peer_needs_no_server_span():
    assert loud(fates("1" * 60 + "x" * 5 + "1" * 60)).height == 0
    assert loud(fates("1" * 60 + "-" + "1" * 60)).height == 1


def test_what_is_answered_after_an_outage_was_not_lost_as_the_process_before_it_ended():
    missed = loud(fates("1" * 40 + "-" * 20 + "x" * 6 + "-" * 30 + "2" * 80)).sort("time")
    assert missed["kind"].to_list() == ["missing_server"] * 50
    assert set(missed["cause"][:20]) == {"process_exit"}
    assert set(missed["cause"][20:]) == {"export_failure"}


def test_what_began_when_the_successor_answered_was_not_lost_with_the_process_before_it():
    missed = loud(fates("1" * 60 + "-" * 3 + "2" * 35 + "-" + "2"))
    assert missed["cause"].to_list() == ["process_exit"] * 3
    # The successor's last batch was on its way when the capture ended.
    missed = find_breaks(fates("1" * 60 + "2" * 30 + "-" + "2" * 8).traces())
    assert missed["cause"].to_list() == ["capture_edge"]


def test_a_peer_that_ceased_several_times_had_ceased_when_the_capture_began():
    came_back = ("1" * 10 + "-" * 20) * 5 + "1" * 10
    assert loud(fates("-" * 30 + came_back, gap=500)).height >= 0.9 * 130
    # One change only may be the day on which it was instrumented.
    assert loud(fates("-" * 130 + "1" * 60)).height == 0


def test_a_peer_whose_answers_end_for_good_lost_its_spans():
    capture = calls(400, gap=500, lost=set(range(41, 401)))
    missed = loud(capture).filter(pl.col("kind") == "missing_server")
    assert missed.height >= 0.95 * 360
    # The first of them cannot have waited for an export that the capture's end came before.
    assert "capture_edge" not in set(missed.sort("time")["cause"][:300])


def test_a_peer_that_answers_only_from_some_time_on_may_have_been_instrumented_then():
    assert loud(calls(400, lost=set(range(1, 300)))).height == 0


def test_a_few_answers_before_a_peer_falls_silent_are_no_rule():
    assert loud(calls(400, lost=set(range(1, 401)) - {5, 9, 14, 20, 31, 38, 44, 60})).height == 0


def test_a_call_that_failed_without_response_needs_no_server_span():
    capture = calls(60, lost={30})
    for row in capture.spans:
        if row["trace_id"].endswith("1e") and row["kind"] == "CLIENT":
            row["status_code"] = "ERROR"
    assert loud(capture).height == 0


def test_a_root_that_a_waiting_client_called_is_detached_and_joined_to_it():
    found = loud(calls(60, detached={30}))
    row = found.row(0, named=True)
    assert found.height == 1
    assert (row["kind"], row["cause"]) == ("detached_root", "context_not_propagated")
    assert row["proposed_trace_id"].endswith("1e")
    assert row["proposed_span_id"] == span_id(2)
    assert row["proposed_confidence"] > 0.8


def test_calls_that_always_lose_their_context_are_found_by_their_delays():
    found = loud(calls(80, detached=set(range(1, 81))))
    detached = found.filter(found["kind"] == "detached_root")
    assert detached.height >= 76
    right = detached.filter(detached["proposed_span_id"] == span_id(2)).height
    assert right >= 0.95 * detached.height


def test_roots_that_fit_no_caller_are_natural():
    capture = calls(60)
    rng = np.random.default_rng(1)
    for number in range(40):
        at = rng.uniform(100, 6000)
        capture.span(5_000 + number, 1, start=at, duration=5, name="cron", service="a")
    assert loud(capture).height == 0


def test_a_root_with_a_link_is_legal():
    capture = calls(60, detached={30})
    capture.link(10_030, 130, 30, 2)
    kinds = loud(capture)["kind"].to_list()
    assert "detached_root" not in kinds


def test_two_callers_at_one_moment_leave_the_parent_open():
    capture = Capture()
    for number in range(1, 61):
        at = (number // 2) * 100.0
        capture.span(number, 1, start=at, duration=12, kind="CLIENT", name="GET", service="a")
        away = number in (30, 31)
        capture.span(
            number + 10_000 if away else number,
            number + 100 if away else 3,
            None if away else 1,
            start=at + 0.5 + 0.01 * (number % 7),
            duration=10,
            kind="SERVER",
            name="GET /b",
            service="b",
        )
    found = loud(capture)
    detached = found.filter(found["kind"] == "detached_root")
    assert detached.height == 2
    assert (detached["proposed_confidence"].fill_null(0) < 0.8).all()


def test_a_parent_that_is_never_there_for_one_operation_was_never_ended():
    capture = Capture()
    for number in range(1, 41):
        at = number * 100.0
        capture.span(number, 1, start=at, duration=20, kind="SERVER", name="GET /")
        capture.span(number, 2, 1, start=at + 1, duration=3, name="check", **LOCAL)
        capture.span(number, 4, 3, start=at + 5, duration=4, name="query", **LOCAL)
    found = loud(capture)
    assert set(found.select("kind", "cause").rows()) == {("orphan_span", "span_never_ended")}
    assert found.height == 40


def test_a_caller_that_is_nowhere_in_the_capture_is_not_instrumented():
    capture = Capture()
    for number in range(1, 21):
        capture.span(number, 2, 900 + number, start=number * 50, kind="SERVER", **REMOTE)
    found = find_breaks(capture.traces())
    assert set(found["cause"]) == {"uninstrumented_hop"}
    assert set(found["severity"]) == {"info"}


def test_an_answer_that_names_another_parent_than_the_call_came_through_a_hop_of_its_own():
    capture = calls(60)
    for row in capture.spans:
        if row["service_name"] == "b" and row["trace_id"].endswith(("1e", "28")):
            row["parent_span_id"] = span_id(4_000_000)
    found = find_breaks(capture.traces()).filter(pl.col("kind") == "orphan_span")
    assert found.select("cause", "severity").rows() == [("uninstrumented_hop", "info")] * 2


def test_losses_without_a_pattern_stay_unknown():
    capture = Capture()
    rng = np.random.default_rng(3)
    for number in range(1, 401):
        at = number * 25.0 + rng.uniform(0, 5)
        for step, name in enumerate(("GET /", "check", "query", "render"), start=1):
            if step > 1 and rng.random() < 0.04:
                continue
            parent = None if step == 1 else step - 1
            capture.span(
                number,
                step,
                parent,
                start=at + step,
                duration=12 - 2 * step,
                name=name,
                kind="SERVER" if step == 1 else "INTERNAL",
                **({} if step == 1 else LOCAL),
            )
    found = loud(capture)
    assert found.height > 10
    assert (found["cause"] == "unknown").mean() > 0.9
    assert all(found["alternatives"].list.len() > 0)


def dropped_above(threshold: int, *, lost=()) -> tuple[Capture, list[str]]:
    """Calls from a over b to c of which b keeps the lower trace ids, and loses some it kept."""
    capture, taken = Capture(), []
    rng = np.random.default_rng(4)
    for number in range(1, 61):
        low = int(rng.integers(threshold)) if number in lost else int(rng.integers(2**63))
        trace = f"{rng.integers(1, 2**63):016x}{low:016x}"
        taken += [trace] * (number in lost)
        at = number * 100.0
        capture.span(trace, 1, start=at, duration=30, kind="CLIENT", name="GET", service="a")
        if low < threshold and number not in lost:
            capture.span(trace, 2, 1, start=at + 1, duration=20, kind="SERVER", service="b")
            capture.span(trace, 3, 2, start=at + 2, duration=9, kind="CLIENT", service="b", **LOCAL)
        capture.span(
            trace, 4, 3, start=at + 3, duration=7, kind="SERVER", name="c", service="c", **REMOTE
        )
    return capture, taken


def test_a_service_that_drops_high_trace_ids_was_sampled_out():
    found = loud(dropped_above(2**62)[0])
    orphans = found.filter(found["service_name"] == "c")
    assert set(orphans.select("kind", "cause").rows()) == {("sampling_gap", "sampled_out")}


def test_a_span_that_the_threshold_keeps_was_not_sampled_out():
    capture, lost = dropped_above(2**62, lost={30})
    orphans = loud(capture).filter(pl.col("service_name") == "c")
    kinds = dict(orphans.select("trace_id", "kind").rows())
    assert kinds.pop(lost[0]) == "orphan_span"
    assert set(kinds.values()) == {"sampling_gap"}


@pytest.mark.parametrize("sampled", [True, False])
def test_the_caller_that_a_sampler_took_is_blamed_though_another_calls_more_often(sampled):
    capture = Capture()
    rng = np.random.default_rng(6)
    for number in range(1, 201):
        trace = f"{rng.integers(1, 2**63):016x}{int(rng.integers(2**63)):016x}"
        caller = "front" if number % 3 == 0 else "shop"
        at = number * 100.0
        kept = int(trace[16:], 16) < 2**60 if sampled else rng.random() < 0.125
        if caller == "front" or kept:
            capture.span(trace, 1, start=at, duration=30, kind="SERVER", name="GET", service=caller)
            capture.span(
                trace, 2, 1, start=at + 1, duration=20, kind="CLIENT", service=caller, **LOCAL
            )
        capture.span(
            trace, 3, 2, start=at + 2, duration=9, kind="SERVER", name="c", service="c", **REMOTE
        )
    orphans = find_breaks(capture.traces()).filter(pl.col("service_name") == "c")
    assert orphans.height > 90
    told = set(orphans.select("kind", "cause", "from_service").rows())
    assert (told == {("sampling_gap", "sampled_out", "shop")}) == sampled
    assert ("sampled_out" in set(orphans["cause"])) == sampled


def test_a_threshold_that_other_spans_blur_is_seen():
    rng = np.random.default_rng(3)
    values = rng.integers(2**63, size=300, dtype=np.uint64)
    absent = (values > 2**61) & (rng.random(300) < 0.8)
    assert separation(values, absent) < MIN_SEPARATION
    surprise, beyond = _split(values, absent)
    assert surprise > MIN_SURPRISE
    assert values[beyond].min() > 2**60


@pytest.mark.parametrize("seed", range(20))
def test_losses_that_know_nothing_of_trace_ids_show_no_threshold(seed):
    rng = np.random.default_rng(seed)
    absent = rng.random(300) < 0.5
    assert _split(rng.integers(2**63, size=300, dtype=np.uint64), absent)[0] < MIN_SURPRISE / 2
    alike = np.full(300, 7, np.uint64)
    assert _split(alike, np.sort(absent))[0] == 0.0


def served_by(callers: set[int], *, spans_of_b: int) -> Capture:
    """Requests that c answers; a few have their caller, in service b, the others have none."""
    capture = Capture()
    for number in range(1, 201):
        at = number * 50.0
        if number in callers:
            capture.span(number, 1, start=at, duration=20, kind="SERVER", service="b")
            capture.span(
                number, 2, 1, start=at + 1, kind="CLIENT", name="GET", service="b", **LOCAL
            )
        capture.span(
            number, 3, 2, start=at + 2, duration=3, kind="SERVER", name="c", service="c", **REMOTE
        )
    for number in range(300, 300 + spans_of_b):
        capture.span(number, 1, start=number * 30.0, duration=5, kind="SERVER", service="b")
    return capture


def test_callers_that_are_mostly_missing_beside_an_intact_service_are_recorded_by_nobody():
    found = find_breaks(served_by(set(range(10, 201, 10)), spans_of_b=200).traces())
    orphans = found.filter(pl.col("kind") == "orphan_span")
    assert orphans.height == 180
    causes = orphans["cause"].value_counts()
    assert dict(causes.rows()) == {"uninstrumented_hop": 171, "unknown": 9}


def test_a_child_with_another_requests_id_has_a_wrong_parent():
    capture = Capture()
    for number in range(1, 41):
        at = number * 100.0
        leaked = number == 20
        home = number - 1 if leaked else number
        capture.span(number, 1, start=at, kind="SERVER", name="GET /", request_id=f"r{number}")
        capture.span(
            home,
            5 if leaked else 2,
            1,
            start=at + 1,
            duration=4,
            name="work",
            request_id=f"r{number}",
            **LOCAL,
        )
    row = loud(capture).row(0, named=True)
    assert (row["kind"], row["cause"], row["span_id"]) == (
        "wrong_parent",
        "context_leak",
        span_id(5),
    )
    assert row["proposed_trace_id"].endswith("14")


def test_the_clocks_of_two_hosts_are_compared_by_their_calls():
    capture = Capture()
    for number in range(1, 11):
        at = number * 100.0
        capture.span(number, 1, start=at, kind="CLIENT", service="a", host_name="x")
        capture.span(
            number, 2, 1, start=at - 40, duration=8, kind="SERVER", service="b", host_name="y"
        )
    found = find_breaks(capture.traces())
    assert found.filter(found["kind"] == "clock_skew").height == 10
    assert "41.0 ms behind that of x" in found["evidence"][0][0]


def test_a_skew_shows_both_ways_and_without_a_client_span():
    capture = Capture()
    for number in range(1, 41):
        at = number * 100.0
        where = {"kind": "SERVER", "host_name": "y"}
        capture.span(number, 1, start=at, kind="CLIENT", service="a", host_name="x")
        capture.span(number, 2, 1, start=at - 40, duration=8, service="b", **where)
        # y calls back; a tenth of its calls gives up early, so that these alone prove nothing
        patience = 1.0 if number % 10 == 0 else 6.0
        capture.span(
            number,
            3,
            2,
            start=at - 39,
            duration=patience,
            kind="CLIENT",
            service="b",
            host_name="y",
        )
        capture.span(
            number, 4, 3, start=at + 3, duration=4, kind="SERVER", service="c", host_name="x"
        )
        # a gateway on x that records no client spans
        capture.span(number + 100, 1, start=at, kind="SERVER", service="gate", host_name="x")
        capture.span(number + 100, 2, 1, start=at - 40, duration=8, service="b", **REMOTE, **where)
    found = find_breaks(capture.traces())
    skewed = found.filter(pl.col("kind") == "clock_skew")
    assert set(skewed.select("from_service", "to_service").rows()) == {
        ("a", "b"),
        ("b", "c"),
        ("gate", "b"),
    }
    assert skewed.height == 120
    assert found.filter(pl.col("severity") != "info").height == 0


def test_where_no_client_waits_the_way_back_is_judged_too():
    capture = Capture()
    for number in range(1, 41):
        at = number * 100.0
        capture.span(number, 1, start=at, kind="SERVER", service="gate", host_name="x")
        capture.span(
            number, 2, 1, start=at - 40, duration=8, kind="SERVER", service="b", host_name="y"
        )
        capture.span(
            number, 3, 2, start=at + 1, duration=4, kind="SERVER", service="c", host_name="x"
        )
    told = estimate_clock_skew(capture.traces()).sort("caller_clock")
    assert told.select("caller_clock", "certain").rows() == [("x", True), ("y", False)]


def handed_on(capture, *, behind, fitting=40):
    """A host proven `behind` ms by its calls; it also takes messages and asynchronous work."""
    for number in range(1, 41):
        at = number * 100.0
        late = behind if number <= fitting else 72.0
        capture.span(number, 1, start=at, kind="CLIENT", service="a", host_name="x")
        capture.span(
            number,
            2,
            1,
            start=at + 1 - behind,
            duration=8,
            kind="SERVER",
            service="b",
            host_name="y",
        )
        capture.span(
            number + 100, 1, start=at, duration=1, kind="PRODUCER", service="p", host_name="z"
        )
        capture.span(
            number + 100,
            2,
            1,
            start=at + 2 - late,
            duration=5,
            kind="CONSUMER",
            service="q",
            host_name="y",
        )
        capture.span(number + 200, 1, start=at, kind="CLIENT", service="p", host_name="z")
        capture.span(
            number + 200, 2, 1, start=at + 1, duration=8, kind="SERVER", service="a", host_name="x"
        )
    found = find_breaks(capture.traces())
    return found.filter(pl.col("kind") == "clock_skew")


def test_a_skew_known_from_calls_is_told_of_messages_too():
    found = handed_on(Capture(), behind=40)
    counts = found["to_service"].value_counts()
    assert dict(counts.rows()) == {"b": 40, "q": 40}
    told = found.filter(pl.col("to_service") == "q").row(0, named=True)
    assert (told["from_service"], told["confidence"]) == ("p", 0.9)
    assert "y is" in told["evidence"][0]
    assert "behind that of z (from their calls with others)" in told["evidence"][0]
    assert handed_on(Capture(), behind=0).height == 0


def test_messages_that_do_not_fit_the_known_skew_are_no_skew():
    # a fifth of the messages are far earlier than a clock behind by 40 ms can say
    found = handed_on(Capture(), behind=40, fitting=32)
    assert dict(found["to_service"].value_counts().rows()) == {"b": 40}


def test_work_that_goes_on_after_its_caller_is_no_skew():
    capture = Capture()
    for number in range(1, 41):
        at = number * 100.0
        capture.span(number, 1, start=at, duration=6, kind="SERVER", service="gate", host_name="x")
        capture.span(
            number, 2, 1, start=at + 5, duration=6, kind="SERVER", service="b", host_name="y"
        )
    assert find_breaks(capture.traces()).filter(pl.col("kind") == "clock_skew").height == 0


@pytest.mark.parametrize("waits", [True, False])
def test_a_clock_ahead_is_told_from_a_timer_by_callers_that_last_as_long_as_their_calls(waits):
    rng = np.random.default_rng(8)
    capture = Capture()
    for number in range(1, 61):
        at, took = number * 500.0, float(rng.exponential(10))
        lasted = took + 2 if waits else float(rng.exponential(14))
        capture.span(
            number, 1, start=at, duration=lasted, kind="SERVER", service="gate", host_name="x"
        )
        capture.span(
            number, 2, 1, start=at + 121, duration=took, kind="SERVER", service="b", host_name="y"
        )  # fmt: skip
    found = find_breaks(capture.traces()).filter(pl.col("kind") == "clock_skew")
    assert found.height == (60 if waits else 0)
    assert not waits or "ahead of that of x" in found["evidence"][0][0]


def test_values_that_end_at_one_length_are_cut():
    capture = Capture()
    rng = np.random.default_rng(5)
    for number in range(1, 31):
        text = f"select {number} from c " + "where a = b " * int(rng.integers(3, 20))
        capture.span(
            number,
            1,
            start=number,
            attributes=json.dumps({"db.statement": text[:128]}, separators=(",", ":")),
        )
    found = loud(capture)
    assert set(found["kind"]) == {"truncated_value"}
    assert "128 characters" in found["evidence"][0][0]


def test_long_values_of_many_lengths_are_whole():
    capture = Capture()
    for number in range(1, 31):
        capture.span(
            number,
            1,
            attributes=json.dumps({"db.statement": "a b " * (15 + number)}, separators=(",", ":")),
        )
    assert loud(capture).height == 0


def queries(texts: list[str]) -> Capture:
    capture = Capture()
    for number, text in enumerate(texts, start=1):
        attributes = json.dumps({"db.query.text": text}, separators=(",", ":"))
        capture.span(number, 1, start=number, attributes=attributes)
    return capture


def test_equal_texts_that_break_off_in_a_bracket_are_cut():
    keys = ", ".join(str(number) for number in range(100, 140))
    query = f"select name, price from orders where id in ({keys})"
    short = [f"select name, price from orders where id in ({keys[:n]})" for n in (7, 12, 17)]
    found = loud(queries([query[:128]] * 3 + short))
    assert set(found["kind"]) == {"truncated_value"}
    assert found.height == 3


def test_equal_texts_that_are_whole_are_not_cut_whatever_their_length():
    text = "select name, price from orders where id in (" + "1" * 82 + ")"
    assert len(text) == 127
    short = ["select name, price from orders where id in (" + "1" * n + ")" for n in (7, 12, 17)]
    assert loud(queries([text + ";"] * 9 + short)).height == 0


def test_a_stack_that_go_always_cuts_is_no_defect():
    capture = Capture(sdk_language="go")
    for number in range(1, 6):
        stack = f"goroutine {number} [running]:\n" + "main.f(0x1)\n\t/src/main.go:1\n" * 90
        capture.span(number, 1, start=number)
        capture.event(number, 1, exception_stacktrace=stack[:2048], exception_type="e")
    assert loud(capture).height == 0


def test_marginals_agree_with_enumeration():
    rng = np.random.default_rng(0)
    weight = np.exp(rng.normal(0, 1.5, (3, 3)))
    total, exact = 0.0, np.zeros((3, 3))
    for first in range(-1, 3):
        for second in range(-1, 3):
            for third in range(-1, 3):
                used = [caller for caller in (first, second, third) if caller >= 0]
                if len(set(used)) < len(used):
                    continue
                pairs = [(i, j) for i, j in enumerate((first, second, third)) if j >= 0]
                mass = float(np.prod([weight[pair] for pair in pairs])) if pairs else 1.0
                total += mass
                for pair in pairs:
                    exact[pair] += mass
    callee, caller = np.divmod(np.arange(9), 3)
    found = association_marginals(callee, caller, np.log(weight.ravel())).reshape(3, 3)
    assert np.abs(found - exact / total).max() < 0.06


def test_a_law_recovers_the_density_it_was_drawn_from():
    rng = np.random.default_rng(0)
    law = Law.fit(rng.lognormal(np.log(2e6), 0.5, 2000))
    from scipy.stats import lognorm

    for delay in (1e6, 2e6, 4e6):
        assert law.log_at([delay])[0] == pytest.approx(
            lognorm.logpdf(delay, 0.5, scale=2e6), abs=0.25
        )


@pytest.mark.parametrize("name", sorted(READINGS))
def test_a_threshold_on_what_a_sampler_reads_parts_traces_fully(name):
    rng = np.random.default_rng(2)
    high = rng.integers(0, 2**63, 500).astype(np.uint64) * np.uint64(2)
    low = rng.integers(0, 2**63, 500).astype(np.uint64) * np.uint64(2)
    values = READINGS[name](high, low)
    assert separation(values, values > np.median(values)) == 1.0
    assert separation(values, rng.random(500) < 0.5) < 0.65


def test_equal_values_part_nothing():
    assert separation(np.zeros(40, np.uint64), np.arange(40) < 20) == 0.5


def test_peers_that_only_a_url_tells_are_kept_apart():
    capture = Capture()
    for number, peer in enumerate(("stock:80/items", "prices:80/list", "stock:80/items"), start=1):
        url = f'{{"url.full":"http://{peer}"}}'
        capture.span(1, number, name="GET", kind="CLIENT", start=number, attributes=url)
    first, second, third = Skeleton.of(capture.traces()).caller_class.tolist()
    assert first == third != second


def test_nothing_is_called_detached_without_roots():
    skeleton = Skeleton.of(Capture().span(1, 1, 2).traces())
    assert find_detached_roots(skeleton).found.height == 0


def test_every_word_of_a_verdict_is_a_known_word():
    found = find_breaks(calls(60, lost={10, 11}, detached={30}).traces())
    assert set(found["kind"]) <= set(schema.BREAK_KINDS)
    assert set(found["cause"]) <= set(schema.BREAK_CAUSES)
    assert set(found["boundary"]) <= set(schema.BOUNDARIES)
    assert set(found["severity"]) <= set(schema.SEVERITIES)
    assert found["confidence"].is_between(0, 1).all()


def exporting(lost: list[tuple[int, int]], *, requests: int = 300) -> Capture:
    """One process of overlapping requests; the spans at these places by end time got lost."""
    rng = np.random.default_rng(8)
    begun = np.cumsum(rng.exponential(4.0, requests))
    rows = []
    for number, at in enumerate(begun.tolist(), start=1):
        rows.append((at + 50 + rng.exponential(1), number, 1, at, "GET /", "SERVER"))
        rows.append((at + 45 + rng.exponential(1), number, 2, at + 1, "check", "INTERNAL"))
        rows.append((at + 5 + rng.exponential(2), number, 3, at + 2, "query", "INTERNAL"))
    gone = {place for low, high in lost for place in range(low, high)}
    capture = Capture(sdk_language="go", service_instance_id="a-1", **LOCAL)
    for place, (end, number, step, at, name, kind) in enumerate(sorted(rows)):
        if place not in gone:
            above = step - 1 or None
            capture.span(number, step, above, start=at, duration=end - at, name=name, kind=kind)
    return capture


def causes_of(capture: Capture) -> dict[str, int]:
    found = loud(capture).filter(pl.col("kind") == "orphan_span")
    return dict(found.group_by("cause").len().rows())


def test_equal_runs_between_gaps_are_what_a_full_queue_lets_through():
    gaps = [(200 + 90 * k, 200 + 90 * k + 43) for k in range(5)]
    causes = causes_of(exporting(gaps))
    assert max(causes, key=causes.get) == "queue_overflow"
    assert "export_failure" not in causes


def test_one_gap_alone_is_what_a_refused_batch_leaves():
    causes = causes_of(exporting([(401, 463)]))
    assert max(causes, key=causes.get) == "export_failure"
    assert "queue_overflow" not in causes


def test_two_gaps_close_by_name_both_causes():
    found = loud(exporting([(301, 343), (381, 431)]))
    gapped = found.filter(pl.col("cause").is_in(["queue_overflow", "export_failure", "unknown"]))
    named = gapped.select(pl.concat_list("cause", "alternatives"))["cause"]
    assert named.list.contains("queue_overflow").all()
    assert named.list.contains("export_failure").all()
    assert (gapped.filter(pl.col("cause") != "unknown")["confidence"] < 0.8).all()
