import numpy as np
import polars as pl
import pytest

from tests.building import Capture, span_id, trace_id
from tracelab.structure import find_breaks
from tracelab.structure.leaks import find_wrong_parents
from tracelab.structure.skeleton import Skeleton

REQUESTS = 60


def requests(n: int = REQUESTS, *, without: frozenset[int] = frozenset()) -> Capture:
    """Requests of 10 ms, one each 20 ms, each of which hands one call to a worker after 2 ms."""
    capture = Capture()
    for number in range(n):
        at = 20 * number
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=10)
        if number not in without:
            gap = 2 + (number % 7) / 10
            capture.span(number, 2, 1, name="pack", start=at + gap, duration=3)
    return capture


def wrong_parents(capture: Capture) -> list[tuple[int | None, str | None, str | None]]:
    found = find_breaks(capture.traces()).filter(pl.col("kind") == "wrong_parent")
    return found.select("span_id", "proposed_span_id", "cause").rows()


def test_a_reused_worker_that_keeps_its_first_request_gives_wrong_parents():
    lost = frozenset(range(30, 60, 6))
    capture = requests(without=lost)
    for number in lost:
        # The worker still holds the context of an early request, which had its own call.
        capture.span(number % 5, 100 + number, 1, name="pack", start=20 * number + 2.3, duration=3)
    found = wrong_parents(capture)
    assert {row[0] for row in found} == {span_id(100 + number) for number in lost}
    assert {row[1:] for row in found} == {(span_id(1), "context_leak")}


def test_a_context_that_is_never_given_back_gathers_most_calls_under_one_parent():
    lost = frozenset(range(15, REQUESTS))
    capture = requests(without=lost)
    for number in lost:
        gap = 2 + (number % 7) / 10
        capture.span(14, 100 + number, 1, name="pack", start=20 * number + gap, duration=3)
    found = wrong_parents(capture)
    assert {row[0] for row in found} == {span_id(100 + number) for number in lost}
    assert {row[1:] for row in found} == {(span_id(1), "context_leak")}


def test_one_request_that_goes_on_working_is_legal_while_the_others_have_their_own():
    capture = requests()
    for number in range(20, REQUESTS):
        capture.span(14, 100 + number, 1, name="pack", start=20 * number + 2.3, duration=3)
    assert wrong_parents(capture) == []


def test_late_work_of_a_request_is_legal_while_nobody_else_waits_for_it():
    capture = requests()
    for number in range(0, REQUESTS, 9):
        capture.span(number, 3, 1, name="pack", start=20 * number + 14, duration=3)
    assert wrong_parents(capture) == []


def test_the_only_call_of_a_request_may_come_late():
    late = frozenset(range(0, REQUESTS, 7))
    capture = requests(without=late)
    for number in late:
        capture.span(number, 2, 1, name="pack", start=20 * number + 13, duration=3)
    assert wrong_parents(capture) == []


def test_a_retry_that_its_caller_waits_for_is_legal():
    lost = frozenset(range(30, 60, 6))
    capture = requests(without=lost)
    for number in range(0, 30, 6):
        capture.span(number, 3, 1, name="pack", start=20 * number + 6, duration=3)
    assert wrong_parents(capture) == []


def test_the_loser_of_a_race_that_outlives_its_request_is_no_leak():
    rng = np.random.default_rng(5)
    capture = Capture()
    for number, at in enumerate(np.sort(rng.uniform(0.0, 1600.0, 400)).tolist()):
        first, second = np.sort(rng.uniform(3, 9, 2)).tolist()
        fire = 1 + rng.exponential(1.5)
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=fire + 4 + first)
        if number % 5 == 0:
            capture.span(number, 2, 1, name="pack", start=at + 0.3, duration=0.5)
        capture.span(number, 3, 1, name="pack", start=at + fire + 3, duration=first)
        capture.span(number, 4, 1, name="pack", start=at + fire + 3.02, duration=second + 1)
    skeleton = Skeleton.of(capture.traces())
    assert find_wrong_parents(skeleton, min_odds=1.0).height == 0


def test_a_second_call_site_that_every_request_has_is_no_crowd():
    capture = requests()
    for number in range(REQUESTS):
        late = 9 if number % 9 == 0 else 6
        capture.span(number, 3, 1, name="pack", start=20 * number + late, duration=3)
    assert wrong_parents(capture) == []


def crowded_requests(seed: int, n: int) -> tuple[np.random.Generator, list[float], Capture]:
    """Requests of 10 ms that overlap at random; nothing handed over yet."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.uniform(0.0, 6.0 * n, n)).tolist()
    capture = Capture()
    for number, at in enumerate(starts):
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=10)
    return rng, starts, capture


def test_a_rare_caller_that_often_calls_is_a_code_path_of_its_own():
    rng, starts, capture = crowded_requests(1, 400)
    for number, at in enumerate(starts):
        if number % 2:
            capture.span(number, 2, 1, name="pack", start=at + 1 + rng.exponential(2), duration=2)
    for number in range(3):
        at = starts[100 * number + 50]
        capture.span(900 + number, 1, name="nightly", start=at + 1, duration=9)
        capture.span(900 + number, 2, 1, name="pack", start=at + 2, duration=2)
    assert wrong_parents(capture) == []


def test_the_tail_of_a_slow_hand_over_is_no_leak():
    rng, starts, capture = crowded_requests(2, 1500)
    for number, at in enumerate(starts):
        if rng.random() < 0.5:
            # One in a hundred starts behind the end of its request.
            wait = 1 + rng.exponential(2)
            capture.span(number, 2, 1, name="pack", start=at + wait, duration=2)
    assert wrong_parents(capture) == []


def test_the_link_at_which_a_request_id_changes_is_blamed():
    capture = Capture()
    for number in range(40):
        at = 20 * number
        foreign = number in (11, 23)
        home = number - 1 if foreign else number
        capture.span(
            number, 1, kind="SERVER", name="GET", start=at, duration=60, request_id=f"r{number}"
        )
        capture.span(home, 100 + number, 1, name="pack", start=at + 2, duration=5)
        capture.span(
            home,
            200 + number,
            100 + number,
            kind="CLIENT",
            name="PUT",
            start=at + 3,
            duration=2,
            request_id=f"r{number}",
        )
    assert {row[0] for row in wrong_parents(capture)} == {span_id(111), span_id(123)}


def test_one_late_call_in_thirty_is_a_leak_where_a_caller_waits_for_it():
    capture = requests(30, without=frozenset({7, 20}))
    capture.span(7, 100, 1, name="pack", start=20 * 20 + 2.3, duration=3)
    assert wrong_parents(capture) == [(span_id(100), span_id(1), "context_leak")]


def strange_calls(number_of: int, *, lost: frozenset[int]) -> Capture:
    """Some requests of another route make a call that only the usual ones make."""
    capture = requests(600, without=lost)
    for number in range(600):
        capture.span(1000 + number, 1, kind="SERVER", name="PUT", start=20 * number, duration=15)
    for number in range(60, 60 + 40 * number_of, 40):
        capture.span(1000 + number, 2, 1, name="pack", start=20 * number + 2.4, duration=3)
    return capture


def test_calls_within_a_strange_caller_are_leaks_where_each_is_lacking_elsewhere():
    capture = strange_calls(8, lost=frozenset(range(60, 380, 40)))
    assert {row[1:] for row in wrong_parents(capture)} == {(span_id(1), "context_leak")}
    assert len(wrong_parents(capture)) == 8


def test_calls_within_a_strange_caller_are_a_code_path_where_nobody_lacks_them():
    assert wrong_parents(strange_calls(8, lost=frozenset())) == []
    assert wrong_parents(strange_calls(8, lost=frozenset(range(75, 395, 40)))) == []


def test_a_code_path_beside_callers_whose_calls_got_lost_is_legal():
    lost = np.flatnonzero(np.random.default_rng(3).random(600) < 0.3).tolist()
    assert wrong_parents(strange_calls(8, lost=frozenset(lost))) == []


def served(seed: int, n: int, *, gap: float) -> tuple[np.random.Generator, list[float], Capture]:
    """Requests of 10 ms that come at random, each of which makes a call and waits for it."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum(rng.exponential(gap, n)).tolist()
    capture = Capture()
    for number, at in enumerate(starts):
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=10)
    return rng, starts, capture


def calling(
    seed: int, n: int, *, gap: float = 6.0, share: float = 1.0
) -> tuple[np.random.Generator, list[float], Capture]:
    rng, starts, capture = served(seed, n, gap=gap)
    for number in np.flatnonzero(rng.random(n) < share).tolist():
        wait = 1 + rng.exponential(0.5)
        capture.span(number, 2, 1, name="pack", start=starts[number] + wait, duration=2)
    return rng, starts, capture


def pooled(seed: int, *, share: float) -> tuple[Capture, dict[str, str]]:
    """Requests whose queries go through five connections that the first of them opened."""
    rng, starts, capture = served(seed, 300, gap=10.0)
    leaked = {}
    for number, at in enumerate(starts):
        mine = number < 5 or rng.random() > share
        home = number if mine else int(rng.integers(5))
        begin = at + 1 + rng.exponential(0.5)
        capture.span(home, 1000 + number, 1, kind="CLIENT", name="find", start=begin, duration=2)
        if not mine:
            leaked[span_id(1000 + number)] = trace_id(number)
    return capture, leaked


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_a_pool_that_keeps_the_contexts_of_its_first_requests_gives_wrong_parents(share: float):
    capture, leaked = pooled(1, share=share)
    found = find_breaks(capture.traces()).filter(pl.col("kind") == "wrong_parent")
    assert set(found["span_id"]) == set(leaked)
    proposed = found.drop_nulls("proposed_trace_id").select("span_id", "proposed_trace_id").rows()
    assert np.mean([leaked[span] == trace for span, trace in proposed]) > 0.9


def test_calls_that_run_in_the_context_of_the_request_before_are_leaks_though_they_are_common():
    rng, starts, capture = served(4, 400, gap=100.0)
    leaked = {}
    for number, at in enumerate(starts):
        stray = number > 0 and rng.random() < 0.3
        home = number - 1 if stray else number
        begin = at + 1 + rng.exponential(0.5)
        capture.span(home, 1000 + number, 1, name="find", start=begin, duration=2)
        if stray and begin > starts[home] + 10:
            leaked[span_id(1000 + number)] = trace_id(number)
    found = find_breaks(capture.traces()).filter(pl.col("kind") == "wrong_parent")
    # Where the request before had lost its own call as well, nothing is too many.
    assert len(set(found["span_id"]) & set(leaked)) >= 0.4 * len(leaked)
    assert not set(found["span_id"]) - set(leaked)


@pytest.mark.parametrize("gap", [4.0, 12.0, 30.0])
@pytest.mark.parametrize("lacking", [0.0, 0.3])
def test_second_calls_after_the_answer_are_legal_though_other_requests_make_none(
    gap: float, lacking: float
):
    rng, starts, capture = served(4, 400, gap=gap)
    for number, at in enumerate(starts):
        if rng.random() < lacking:
            continue
        begin = at + 1 + rng.exponential(0.5)
        capture.span(number, 2, 1, name="find", start=begin, duration=2)
        if rng.random() < 0.3:
            later = at + 10.5 + rng.exponential(10)
            capture.span(number, 3, 1, name="find", start=later, duration=2)
    assert wrong_parents(capture) == []


def without_homes(capture: Capture, homes: int) -> Capture:
    """The same without the spans of the first requests, which were over before the capture."""
    capture.spans = [
        row
        for row in capture.spans
        if row["name"] != "GET" or int(row["trace_id"], 16) not in range(homes)
    ]
    return capture


def test_a_pool_that_keeps_contexts_of_requests_before_the_capture_gives_wrong_parents():
    capture, leaked = pooled(1, share=0.9)
    found = find_breaks(without_homes(capture, 5).traces())
    named = found.filter(pl.col("kind") == "wrong_parent")
    assert set(leaked) <= set(named["span_id"])
    assert len(set(named["span_id"]) - set(leaked)) <= 5
    proposed = named.drop_nulls("proposed_trace_id").select("span_id", "proposed_trace_id").rows()
    assert np.mean([leaked.get(span) == trace for span, trace in proposed]) > 0.9
    # What belongs elsewhere does not lack the parent that it names.
    orphans = found.filter(pl.col("kind") == "orphan_span")
    assert not set(orphans["span_id"]) & set(named["span_id"])


@pytest.mark.parametrize("own", [0.0, 0.9, 1.0])
def test_calls_of_a_poller_that_is_open_all_the_time_are_no_leak(own: float):
    rng, starts, capture = served(2, 300, gap=10.0)
    for number in np.flatnonzero(rng.random(300) < own).tolist():
        begin = starts[number] + 1 + rng.exponential(0.5)
        capture.span(number, 2, 1, kind="CLIENT", name="find", start=begin, duration=2)
    for number, at in enumerate(np.sort(rng.uniform(30, starts[-1], 250)).tolist()):
        capture.span(9_999, 1000 + number, 1, kind="CLIENT", name="find", start=at, duration=2)
    assert wrong_parents(capture) == []


def test_calls_within_streams_that_outlast_the_capture_are_no_leak():
    rng, starts, capture = served(2, 300, gap=10.0)
    for number, at in enumerate(np.sort(rng.uniform(30, starts[-1], 500)).tolist()):
        home = 5_000 + number % 10
        capture.span(home, 1000 + number, 1, kind="CLIENT", name="find", start=at, duration=2)
    for home in range(5_000, 5_006):
        capture.span(home, 1, kind="SERVER", name="STREAM", start=20, duration=starts[-1])
    assert wrong_parents(capture) == []


@pytest.mark.parametrize("gap", [3.0, 10.0])
@pytest.mark.parametrize("homes", [1, 3])
def test_pollers_that_the_first_requests_started_are_legal(gap: float, homes: int):
    rng, starts, capture = served(2, 300, gap=gap)
    for number, at in enumerate(np.sort(rng.uniform(30, starts[-1], 250)).tolist()):
        home = number % homes
        capture.span(home, 1000 + number, 1, kind="CLIENT", name="find", start=at, duration=2)
    assert wrong_parents(capture) == []


def test_a_request_that_leaves_much_work_behind_is_legal():
    rng, starts, capture = served(3, 300, gap=5.0)
    for number in (20, 100, 180):
        for task in range(60):
            at = starts[number] + 10 + rng.exponential(300)
            capture.span(number, 1000 + task, 1, name="export", start=at, duration=2)
    assert wrong_parents(capture) == []


def test_one_late_call_of_hundreds_that_are_waited_for_is_a_leak_if_another_may_have_made_it():
    _, starts, capture = calling(4, 600, share=0.6)
    at = starts[400] + 2
    called = {span["trace_id"] for span in capture.spans if span["name"] == "pack"}
    home = next(number for number in range(300, 350) if trace_id(number) not in called)
    capture.span(home, 3, 1, name="pack", start=at, duration=2)
    assert [row[0] for row in wrong_parents(capture)] == [span_id(3)]


@pytest.mark.parametrize("delay", [0.5, 5000.0])
def test_what_some_requests_tidy_up_after_the_answer_is_legal(delay: float):
    rng, starts, capture = calling(5, 1200)
    for number in np.flatnonzero(rng.random(1200) < 0.004).tolist():
        at = starts[number] + 10 + delay + rng.exponential(0.5)
        capture.span(number, 3, 1, name="pack", start=at, duration=2)
    assert wrong_parents(capture) == []


def test_what_goes_on_after_a_timeout_is_legal():
    rng = np.random.default_rng(6)
    capture = Capture()
    for number, at in enumerate(np.cumsum(rng.exponential(6.0, 800)).tolist()):
        slow = number % 100 == 50
        begin = at + 0.5
        for call in range(4):
            lasts = rng.uniform(1.0, 1.8) + (8 if slow and call == 1 else 0)
            capture.span(
                number, 2 + call, 1, kind="CLIENT", name="SELECT", start=begin, duration=lasts
            )
            begin += lasts + 0.1
        lasts = 9.0 if slow else begin - at
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=lasts)
    assert wrong_parents(capture) == []


def one_after_another(*, beside: bool, fanned_out: bool = False) -> Capture:
    """Requests that make one call at a time; one holds a call that only another route makes."""
    capture = Capture()
    for number in range(120):
        at = 20 * number
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=12)
        capture.span(number, 2, 1, name="read", start=at + 1, duration=4)
        begin = at + (2 if fanned_out and number == 60 else 6)
        capture.span(number, 3, 1, name="write", start=begin, duration=3)
        capture.span(500 + number, 1, kind="SERVER", name="PUT", start=at + 4, duration=30)
        capture.span(500 + number, 2, 1, name="pack", start=at + 5 + number % 7, duration=2)
    capture.span(60, 4, 1, name="pack", start=20 * 60 + (3 if beside else 10), duration=1.5)
    return capture


def test_a_strange_call_is_a_leak_beside_another_of_a_parent_that_makes_one_at_a_time():
    assert [row[0] for row in wrong_parents(one_after_another(beside=True))] == [span_id(4)]
    assert wrong_parents(one_after_another(beside=False)) == []


@pytest.mark.parametrize(("threads", "own", "leaks"), [(5, True, 0), (5, False, 1), (1, True, 1)])
def test_a_strange_call_on_the_thread_of_its_parent_is_legal_unless_all_share_one_thread(
    threads: int, own: bool, leaks: int
):
    capture = one_after_another(beside=True)
    for row in capture.spans:
        number = int(row["trace_id"], 16)
        row["thread_id"] = 100 + number % threads
    if not own:
        capture.spans[-1]["thread_id"] = 7
    assert len(wrong_parents(capture)) == leaks


def test_a_rare_call_of_a_request_that_makes_all_its_calls_at_once_is_legal():
    assert wrong_parents(one_after_another(beside=True, fanned_out=True)) == []


@pytest.mark.parametrize("usual", [False, True])
def test_a_rare_call_is_waited_for_only_by_callers_that_often_make_it(usual):
    callers = 12 if usual else 600
    capture = Capture()
    for number in range(600):
        capture.span(number, 1, kind="SERVER", name="PUT", start=20 * number, duration=12)
    for number in range(callers):
        at = 20 * number * (600 // callers) + 1
        capture.span(1000 + number, 1, kind="SERVER", name="GET", start=at, duration=10)
        makes = number != 7 if usual else number % 55 == 0
        if makes:
            capture.span(1000 + number, 2, 1, name="mend", start=at + 3, duration=2)
    capture.span(7 * 50, 2, 1, name="mend", start=20 * 7 * 50 + 4, duration=2)
    assert len(wrong_parents(capture)) == usual


def test_of_two_calls_that_nobody_waits_for_the_one_that_another_request_lacks_is_blamed():
    rng = np.random.default_rng(7)
    starts = np.cumsum(rng.exponential(40.0, 200)).tolist()
    capture = Capture()
    for number, at in enumerate(starts):
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=10)
        home = number - 1 if number == 120 else number
        begin = at + 11 + rng.exponential(1.0)
        capture.span(home, 100 + number, 1, name="mail", start=begin, duration=2)
    assert [row[0] for row in wrong_parents(capture)] == [span_id(220)]


def test_ends_that_differ_by_less_than_a_tick_are_one():
    rng = np.random.default_rng(8)
    capture = Capture()
    starts = np.cumsum(rng.integers(4, 40, 200)).tolist()
    for number, at in enumerate(starts):
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=10.2)
        home = number - 1 if number in (80, 120, 160) else number
        # Times that begin at a tick seem to end behind the parent, which waited.
        capture.span(home, 100 + number, 1, name="push", start=at + 3, duration=7.5)
    assert {row[0] for row in wrong_parents(capture)} == {span_id(180), span_id(220), span_id(260)}


def test_a_call_too_many_in_its_parents_time_is_a_leak_only_where_workers_are_seen_to_leak():
    for late in (frozenset(range(30, 58, 4)), frozenset()):
        lost = late | {5}
        capture = Capture()
        for number in range(2 * REQUESTS):
            at = 20 * number
            capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=35)
            home = number - 1 if number == 5 else number - 9 if number in late else number
            capture.span(home, 100 + number, 1, name="pack", start=at + 2 + number % 3, duration=3)
        expected = {span_id(100 + number) for number in lost} if late else set()
        assert {row[0] for row in wrong_parents(capture)} == expected
