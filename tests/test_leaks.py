import numpy as np
import polars as pl

from tests.building import Capture, span_id
from tracelab.structure import find_breaks
from tracelab.structure.leaks import find_wrong_parents
from tracelab.structure.skeleton import Skeleton
from tracelab.structure.spine import build_spine

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
    skeleton = Skeleton([build_spine(capture.traces())])
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
