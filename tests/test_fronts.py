"""Planted truth: responses that a limiter, a cache or a sidecar gives in place of the peer."""

import polars as pl
import pytest

from tests.building import Capture
from tracelab.structure import find_breaks


def responses(fates: list[tuple[int, bool]]) -> Capture:
    """Calls from a to b, one in 100 ms: the response code, and whether b has a span of it."""
    capture = Capture()
    for number, (code, served) in enumerate(fates, start=1):
        capture.call(number, start=number * 100, code=code, served=served)
    return capture


def missed(capture: Capture) -> int:
    found = find_breaks(capture.traces())
    loud = found.filter(pl.col("severity") != "info")
    assert set(loud["kind"]) <= {"missing_server"}
    return loud.height


OK, LOST = (200, True), (200, False)


@pytest.mark.parametrize("code", [429, 401, 304])
@pytest.mark.parametrize("every", [20, 60])
def test_a_code_that_the_peer_never_gives_came_from_something_in_front(code: int, every: int):
    fates = [(code, False) if number % every == 7 else OK for number in range(300)]
    assert missed(responses(fates)) == 0


def test_a_storm_of_refusals_hides_no_server_span_that_is_missing():
    storm = [OK] * 60 + [(429, False)] * 80 + [OK] * 60
    assert missed(responses(storm)) == 0
    storm[30] = storm[170] = LOST
    assert missed(responses(storm)) == 2


def test_a_limiter_before_a_peer_that_has_its_own_needs_no_server_span():
    twin = [(429, number % 70 == 7) if number % 10 == 7 else OK for number in range(700)]
    assert missed(responses(twin)) == 0


def test_an_error_that_the_peer_is_seen_to_give_was_lost_where_its_span_is_missing():
    fates = [(500, number % 45 != 35) if number % 5 == 0 else OK for number in range(300)]
    lost = sum(fate == (500, False) for fate in fates)
    assert lost >= 6
    assert missed(responses(fates)) == lost


def test_errors_of_a_time_in_which_all_spans_of_the_peer_were_lost_are_lost_as_well():
    outage = [(500, False) if number % 3 == 0 else LOST for number in range(12)]
    assert missed(responses([OK] * 120 + outage + [OK] * 120)) >= 11
