import itertools

import numpy as np
import polars as pl
import pytest

from tests.building import Capture, span_id, trace_id
from tracelab.structure import find_breaks
from tracelab.structure.assignment import draw_contested, seeded
from tracelab.structure.calls import Answer, Pairs
from tracelab.structure.detached import _is_regular
from tracelab.structure.laws import association_marginals
from tracelab.structure.skeleton import CONSUMER, PRODUCER, Skeleton

N = 60


def detached(capture: Capture) -> pl.DataFrame:
    return find_breaks(capture.traces()).filter(pl.col("kind") == "detached_root")


def arrivals(seed: int, n: int = N, *, every: float = 50.0) -> list[float]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0.0, n * every, n)).tolist()


def served_calls(address: str | None, *, callee: str = "stock", name: str = "GET") -> Capture:
    """Calls of a shop, each with a request of its own in the time of the call."""
    capture = Capture()
    for number, at in enumerate(arrivals(1)):
        capture.span(
            number, 1, name="GET /buy", kind="SERVER", start=at, duration=20, service="shop"
        )
        capture.span(
            number,
            2,
            1,
            name=name,
            kind="CLIENT",
            start=at + 2,
            duration=10,
            service="shop",
            server_address=address,
        )
        capture.span(
            1000 + number,
            3,
            name="GET /items",
            kind="SERVER",
            start=at + 3 + (number % 5) / 10,
            duration=8,
            service=callee,
        )
    return capture


def test_a_hop_that_loses_every_context_is_found_with_its_callers():
    found = detached(served_calls("stock"))
    assert found.height == N
    assert set(found["proposed_span_id"]) == {span_id(2)}
    own = [int(trace, 16) - 1000 for trace in found["trace_id"]]
    assert own == [int(trace, 16) for trace in found["proposed_trace_id"]]


@pytest.mark.parametrize("name", ["POST", "shop.Stock/List"])
def test_a_call_of_another_name_is_no_caller_however_close_in_time(name):
    assert detached(served_calls("stock", name=name)).is_empty()


def test_a_call_that_names_another_service_is_no_caller():
    capture = served_calls("ledger")
    capture.span(5000, 1, name="tick", service="ledger", start=10)
    assert detached(capture).is_empty()


def test_natural_entries_and_calls_that_nobody_answers_are_no_hop():
    capture = Capture()
    for number, at in enumerate(arrivals(2, 400, every=8.0)):
        capture.span(number, 1, name="GET /reports", kind="SERVER", start=at, service="web")
    for number, at in enumerate(arrivals(3, 300, every=10.6)):
        capture.span(1000 + number, 1, name="consume", kind="CONSUMER", start=at, duration=90)
        capture.span(
            1000 + number,
            2,
            1,
            name="GET",
            kind="CLIENT",
            start=at + 5,
            duration=60,
            server_address="api.partner.example",
        )
    assert detached(capture).filter(pl.col("service_name") == "web").is_empty()


def lost_work(*, lost: float = 1.0, duration: float = 20.0, every: float = 50.0) -> Capture:
    """Requests that read, then hand work to a pool, which may start it without a context."""
    rng = np.random.default_rng(5)
    capture = Capture(service_instance_id="svc-1")
    for number, at in enumerate(arrivals(4, 120, every=every)):
        read, wait = 3 + rng.exponential(2), rng.exponential(0.2)
        capture.span(number, 1, name="GET /", kind="SERVER", start=at, duration=duration + read)
        capture.span(number, 2, 1, name="read", start=at + 1, duration=read)
        start = at + 1.2 + read + wait
        if rng.random() < lost:
            capture.span(1000 + number, 3, name="work", start=start, duration=4)
        else:
            capture.span(number, 3, 1, name="work", start=start, duration=4)
    return capture


@pytest.mark.parametrize("lost", [0.1, 1.0])
def test_the_span_that_was_open_is_proposed_and_not_the_one_before(lost):
    found = detached(lost_work(lost=lost)).filter(pl.col("proposed_confidence") >= 0.8)
    assert found.height >= 9
    right = found["trace_id"].str.tail(6).to_list()
    proposed = found["proposed_trace_id"].str.tail(6).to_list()
    hits = sum(int(a, 16) - 1000 == int(b, 16) for a, b in zip(right, proposed, strict=True))
    assert hits >= 0.95 * found.height
    assert set(found["proposed_span_id"]) == {span_id(1)}


def test_one_call_site_that_always_loses_its_context_is_found_beside_sound_ones():
    capture = lost_work()
    for number, at in enumerate(arrivals(6, 200)):
        capture.span(3000 + number, 1, name="PUT /", kind="SERVER", start=at, duration=9)
        capture.span(3000 + number, 2, 1, name="work", start=at + 2, duration=4)
    found = detached(capture).filter(pl.col("proposed_confidence") >= 0.8)
    assert found.height >= 100
    assert {int(trace, 16) < 1000 for trace in found["proposed_trace_id"]} == {True}


def test_two_jobs_of_one_timetable_do_not_call_each_other():
    rng = np.random.default_rng(7)
    capture = Capture(service_instance_id="svc-1")
    for number in range(40):
        at = 1000.0 * number + rng.exponential(2)
        capture.span(number, 1, name="job.clean", start=at, duration=30)
        capture.span(1000 + number, 1, name="job.count", start=at + 1 + rng.exponential(1))
    assert detached(capture).is_empty()


def test_where_callers_are_many_and_delays_long_nobody_is_proposed():
    rng = np.random.default_rng(8)
    capture = Capture(service_instance_id="svc-1")
    for number, at in enumerate(arrivals(9, 400, every=1.0)):
        capture.span(number, 1, name="GET /", kind="SERVER", start=at, duration=50)
        late = at + rng.exponential(20)
        capture.span(1000 + number, 2, name="work", start=late, duration=2)
    assert detached(capture).filter(pl.col("proposed_confidence") >= 0.8).is_empty()


def enumerated(callee, caller, log_weight):
    """Marginals by listing every assignment."""
    n, m = int(callee.max()) + 1, int(caller.max()) + 1
    weight = np.full((n, m), -np.inf)
    weight[callee, caller] = log_weight
    total, marginal = 0.0, np.zeros((n, m))
    for choice in itertools.product(range(-1, m), repeat=n):
        used = [c for c in choice if c >= 0]
        if len(set(used)) == len(used):
            mass = np.exp(sum(weight[i, c] for i, c in enumerate(choice) if c >= 0))
            total += mass
            for i, c in enumerate(choice):
                if c >= 0:
                    marginal[i, c] += mass
    return (marginal / total)[callee, caller]


@pytest.mark.parametrize("level", [0.0, 2.0, 6.0])
def test_drawn_assignments_are_as_frequent_as_they_are_probable(level):
    rng = np.random.default_rng(11)
    for _ in range(5):
        n, m = rng.integers(1, 5, 2)
        callee, caller = (a.ravel() for a in np.meshgrid(range(n), range(m), indexing="ij"))
        log_weight = rng.normal(level, 1.5, callee.size)
        exclusive = np.ones(callee.size, bool)
        believed = association_marginals(callee, caller, log_weight, exclusive=exclusive)
        drawn = draw_contested(
            callee,
            caller,
            exclusive,
            log_weight,
            believed,
            np.full(n, -1),
            rounds=2_000,
            rng=seeded(),
        )
        assert np.abs(drawn - enumerated(callee, caller, log_weight)).max() < 0.1


def test_a_toss_up_between_two_callers_stays_a_toss_up():
    callee, caller = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    log_weight = np.array([20.2, 20.0, 20.0, 20.2])
    exclusive = np.ones(4, bool)
    believed = association_marginals(callee, caller, log_weight, exclusive=exclusive, rounds=300)
    drawn = draw_contested(
        callee,
        caller,
        exclusive,
        log_weight,
        believed,
        np.full(2, -1),
        rounds=2_000,
        rng=seeded(),
    )
    assert drawn == pytest.approx([0.6, 0.4, 0.4, 0.6], abs=0.06)


@pytest.mark.parametrize(("waits", "sure"), [(True, True), (False, False)])
def test_a_caller_that_goes_on_beside_its_child_may_have_called_as_well(waits, sure):
    """Work detached while `page` is open; only a request that waits for `page` cannot have."""
    capture = Capture()
    for number, at in enumerate(arrivals(5)):
        capture.span(number, 1, name="GET /buy", kind="SERVER", start=at, duration=40, service="s")
        capture.span(number, 2, 1, name="page", start=at + 2, duration=30, service="s")
        other = at + 33 if waits else at + 6
        capture.span(number, 3, 1, name="stock", start=other, duration=4, service="s")
        away = at + 8 + (number % 5) / 10
        capture.span(1000 + number, 9, name="price", start=away, duration=3, service="s")
    found = detached(capture)
    assert found.height > 0.9 * N
    assert set(found["proposed_span_id"]) == {span_id(2)}
    assert (found["proposed_confidence"] >= 0.8).all() == sure
    assert (found["proposed_confidence"] >= 0.8).any() == sure


@pytest.mark.parametrize("consumers", [1, 2])
def test_messages_that_wait_longer_than_their_sender_works_are_found(consumers):
    rng = np.random.default_rng(8)
    capture = Capture()
    for number, at in enumerate(arrivals(7, every=400.0)):
        capture.span(number, 1, name="POST /buy", kind="SERVER", start=at, duration=6, service="s")
        capture.span(
            number,
            2,
            1,
            name="orders publish",
            kind="PRODUCER",
            start=at + 2,
            duration=1,
            service="s",
            messaging_destination="orders",
        )
        for group in range(consumers):
            capture.span(
                1000 * (group + 1) + number,
                5,
                name=f"orders process {group}",
                kind="CONSUMER",
                start=at + 60 + rng.uniform(0, 30),
                duration=3,
                service=f"mail{group}",
                messaging_destination="orders",
            )
    found = detached(capture)
    assert found.height >= 0.95 * N * consumers
    assert set(found["proposed_span_id"].drop_nulls()) == {span_id(2)}


def test_messages_of_others_are_no_detached_roots():
    rng = np.random.default_rng(9)
    capture = Capture()
    for number, at in enumerate(arrivals(7, every=400.0)):
        topic = {"messaging_destination": "orders"}
        capture.span(
            number, 2, name="orders publish", kind="PRODUCER", start=at, service="s", **topic
        )
        away = rng.uniform(0, N * 400.0)
        capture.span(
            1000 + number,
            5,
            name="orders process",
            kind="CONSUMER",
            start=away,
            service="m",
            **topic,
        )
    assert detached(capture).height == 0


def test_a_call_whose_server_is_lost_beside_its_children_has_called_no_root():
    """An entry from outside that starts while such a call waits is a root of its own."""
    capture = Capture()
    for number, at in enumerate(arrivals(11, every=200.0)):
        cut = number % 10 == 0
        shop = {"service": "shop", "start": at}
        capture.span(number, 1, name="GET /buy", kind="SERVER", duration=30, **shop)
        capture.span(number, 2, 1, name="GET", kind="CLIENT", duration=25, **shop)
        inner = {"service": "stock", "duration": 10}
        if not cut:
            capture.span(number, 3, 2, name="GET /items", kind="SERVER", start=at + 1, **inner)
        capture.span(number, 4, 3, name="SELECT", kind="CLIENT", start=at + 4, **inner)
        if cut:
            entry = 1000 + number
            capture.span(entry, 5, name="GET /items", kind="SERVER", start=at + 1.2, **inner)
    assert detached(capture).height == 0


def test_a_caller_that_made_fewer_calls_than_all_others_is_the_one_that_lacks_a_root():
    rng = np.random.default_rng(4)
    capture = Capture()
    lost = set(range(20, 400, 40))
    for number, at in enumerate(np.sort(rng.uniform(0.0, 1200.0, 400)).tolist()):
        capture.span(number, 1, kind="SERVER", name="GET", start=at, duration=12)
        first, second = np.sort(rng.uniform(0.5, 9.0, 2)).tolist()
        capture.span(number, 2, 1, name="pack", start=at + first, duration=1)
        away = number in lost
        trace, parent = (10_000 + number, None) if away else (number, 1)
        capture.span(trace, 3, parent, name="pack", start=at + second, duration=1)
    proposals = dict(detached(capture).select("trace_id", "proposed_trace_id").rows())
    truth = {trace_id(10_000 + number): trace_id(number) for number in lost}
    assert len(proposals) >= 0.9 * len(lost)
    assert proposals.items() <= truth.items()


def test_roots_of_which_none_was_probably_called_are_no_rule():
    capture = Capture()
    for number in range(60):
        capture.span(number, 1, name="send", kind="PRODUCER", start=50.0 * number)
        capture.span(100 + number, 1, name="mail", kind="CONSUMER", start=50.0 * number + 20)
    skeleton = Skeleton.of(capture.traces())
    kinds = skeleton.kind
    callers, callees = np.flatnonzero(kinds == PRODUCER), np.flatnonzero(kinds == CONSUMER)
    number, gap = np.arange(60), np.full(60, 20_000_000)
    pairs = Pairs(number, callers, np.zeros(60, np.int64), start_gap=gap, end_gap=gap)
    perhaps = np.full(60, 0.15)
    reply = Answer(perhaps, callers, perhaps, np.zeros(60, np.int64), pairs, perhaps)
    assert not _is_regular(skeleton, callees, reply, local=False)


def checkouts(address: str, language: str) -> Capture:
    """Orders that call someone for 200 ms; within each call somebody posts to a service."""
    rng = np.random.default_rng(12)
    capture = Capture()
    for number, at in enumerate(arrivals(12, every=900.0)):
        shop = {"service": "shop", "host_name": "a", "sdk_language": language}
        capture.span(number, 1, name="POST /pay", kind="SERVER", start=at, duration=220, **shop)
        call = {"kind": "CLIENT", "server_address": address, **shop}
        capture.span(number, 2, 1, name="POST", start=at + 9, duration=207, **call)
        after = at + 100 + 50 * rng.random()
        hook = {"kind": "SERVER", "service": "hooks", "host_name": "b"}
        capture.span(1000 + number, 3, name="POST /event", start=after, duration=10, **hook)
    return capture


def test_a_call_back_of_a_third_party_is_no_lost_context():
    assert detached(checkouts("api.payments.com", "go")).height == 0


@pytest.mark.parametrize(
    ("address", "language"),
    [("hooks.shop.com", "go"), ("edge-gateway", "go"), ("api.example.com", "swift")],
)
def test_a_hop_by_its_own_or_an_inner_name_or_from_a_phone_is_one(address, language):
    assert detached(checkouts(address, language)).height > 50


def streams(*, called: bool) -> Capture:
    """Long requests that do short work all along; some more of it begins without a context.

    Called work begins inside a request; a timer's begins at any time, between requests, too.
    """
    rng = np.random.default_rng(12)
    capture = Capture(service_instance_id="svc-1")
    for number in range(40):
        at, length = 5000.0 * number, 1000 + rng.uniform(0, 1000)
        capture.span(number, 1, name="GET /stream", kind="SERVER", start=at, duration=length)
        for turn, moment in enumerate(rng.uniform(0, length - 10, 5).tolist()):
            away = called and turn == 0 and number % 2 == 0
            trace, parent = (1000 + number, None) if away else (number, 1)
            capture.span(trace, 2 + turn, parent, name="push", start=at + moment, duration=2)
        if not called and number % 2 == 0:
            moment = 5000.0 * number + rng.uniform(2500, 4900)
            capture.span(1000 + number, 9, name="push", start=moment, duration=2)
    return capture


def test_short_work_of_a_long_request_that_does_not_end_with_it_is_found():
    found = detached(streams(called=True))
    assert found.height >= 18
    own = [int(trace, 16) - 1000 for trace in found["trace_id"]]
    named = found["proposed_trace_id"].to_list()
    assert all(b is None or a == int(b, 16) for a, b in zip(own, named, strict=True))


def test_the_same_work_begun_by_a_timer_between_requests_is_natural():
    assert detached(streams(called=False)).is_empty()


def sidecars(*, free: bool) -> Capture:
    """Requests that call out through a sidecar, which starts a trace of its own."""
    capture = Capture(host_name="pod-1")
    rng = np.random.default_rng(21)
    for number, at in enumerate(arrivals(20, 60)):
        before, took = 1 + rng.exponential(2), 5 + rng.exponential(3)
        proxy, app = ({"service_instance_id": name} for name in ("proxy", "app"))
        end = before + took + 0.8
        capture.span(number, 1, name="in", kind="SERVER", start=at, duration=end, **proxy)
        capture.span(
            number, 2, 1, name="GET /", kind="SERVER", start=at + 0.3, duration=end - 0.4, **app
        )
        call = at + before + 0.2
        capture.span(number, 3, 2, name="GET", kind="CLIENT", start=call, duration=took, **app)
        if not free:  # the call has its server span, so it is none of the sidecar's
            capture.span(
                *(number, 5, 3),
                name="GET /stock",
                kind="SERVER",
                service="stock",
                start=call + 0.1,
                duration=took - 0.2,
                host_name="pod-2",
            )
        capture.span(
            *(1000 + number, 4),
            name="out",
            kind="CLIENT",
            start=call + 0.2,
            duration=took - 0.3,
            **proxy,
        )
    return capture


def test_what_a_sidecar_sends_on_was_called_by_the_unanswered_call_beside_it():
    found = detached(sidecars(free=True))
    assert found.height == 60
    assert set(found["proposed_span_id"]) == {span_id(3)}
    assert found["proposed_confidence"].min() >= 0.8


def test_an_answered_call_did_not_go_through_the_sidecar():
    assert span_id(3) not in set(detached(sidecars(free=False))["proposed_span_id"])


def handed_over(*, waits: bool) -> Capture:
    """Requests that hand two jobs to a pool; or one job whose step lost its context as well."""
    capture = Capture(service_instance_id="svc-1")
    rng = np.random.default_rng(31)
    for number, at in enumerate(arrivals(30, 200)):
        read, first, second = rng.exponential(4, 3) + np.array([2, 4, 4])
        end = read + 0.2 + max(first, second)
        capture.span(number, 1, name="GET /", kind="SERVER", start=at, duration=end + 0.5)
        capture.span(number, 2, 1, name="read", start=at + 0.5, duration=read - 0.5)
        begin = at + read + rng.exponential(0.1)
        if waits:
            first = second + 1
        capture.span(1000 + number, 3, name="enrich", start=begin, duration=first)
        capture.span(2000 + number, 4, name="score", start=begin + 0.05, duration=second)
    return capture


@pytest.mark.parametrize("name", ["enrich", "score"])
def test_two_lost_jobs_of_one_request_have_the_request_as_their_caller(name):
    found = detached(handed_over(waits=False)).filter(pl.col("span_name") == name)
    assert found.height >= 0.9 * 200
    surely = found.filter(pl.col("proposed_confidence") >= 0.8)
    right = surely["trace_id"].str.tail(3) != surely["proposed_trace_id"].str.tail(3)
    assert set(surely["proposed_span_id"]) == {span_id(1)}
    assert surely.height >= 0.9 * found.height
    assert right.any()


def test_lost_work_that_waits_for_other_lost_work_may_be_its_caller():
    found = detached(handed_over(waits=True)).filter(pl.col("span_name") == "score")
    assert found.filter(pl.col("proposed_span_id") == span_id(3)).height >= 0.8 * 200


def audits() -> Capture:
    """Requests whose handler waits in nested spans, and audits that begin when all is over."""
    capture = Capture(service_instance_id="svc-1")
    rng = np.random.default_rng(41)
    for number, at in enumerate(arrivals(40, 150, every=100.0)):
        took = 10 + rng.exponential(5)
        capture.span(number, 1, name="POST /", kind="SERVER", start=at, duration=took)
        capture.span(number, 2, 1, name="validate", start=at + 0.2, duration=took - 0.2)
        capture.span(number, 3, 2, name="load", start=at + 1, duration=2)
        capture.span(*(number, 4, 2), name="pay", kind="CLIENT", start=at + 5, duration=took - 5)
        start = at + took + 4 + rng.exponential(0.2)
        capture.span(1000 + number, 5, name="audit", start=start, duration=3)
    return capture


def test_work_that_begins_when_all_its_trace_is_over_is_not_surely_of_one_span():
    found = detached(audits())
    assert found.height >= 140
    assert found["proposed_confidence"].max() < 0.8
    assert set(found["proposed_span_id"].drop_nulls()) == {span_id(1)}


def tasks() -> Capture:
    """Requests that send one task, each fifth two, to a queue which loses the context."""
    capture = Capture()
    rng = np.random.default_rng(51)
    for number, at in enumerate(arrivals(50, 90, every=400.0)):
        capture.span(number, 1, name="POST", kind="SERVER", start=at, duration=8)
        for one in range(2 if number % 5 == 0 else 1):
            begin = at + 1 + one
            capture.span(
                *(number, 10 + one, 1),
                name="apply_async/image",
                kind="PRODUCER",
                start=begin,
                duration=0.8,
            )
            capture.span(
                *(1000 + 10 * number + one, 3),
                name="run/image",
                kind="CONSUMER",
                service="worker",
                start=begin + 5 + rng.exponential(4),
                duration=3,
            )
    return capture


def test_messages_sent_side_by_side_share_the_confidence():
    found = detached(tasks())
    number = (found["trace_id"].str.tail(6).str.to_integer(base=16) - 1000) // 10
    surely = found["proposed_confidence"].fill_null(0.0) >= 0.8
    assert found.height >= 0.9 * 108
    assert not surely.filter(number % 5 == 0).any()
    assert surely.filter(number % 5 != 0).mean() > 0.9


@pytest.mark.parametrize("task", ["email", "image"])
def test_a_celery_task_is_run_by_who_was_sent_it(task):
    sent = served_tasks(task)
    assert detached(sent).height == (N if task == "image" else 0)


def served_tasks(task: str) -> Capture:
    capture = Capture()
    for number, at in enumerate(arrivals(61)):
        capture.span(
            number, 1, name=f"apply_async/{task}", kind="PRODUCER", start=at, duration=2
        ).span(
            *(1000 + number, 2),
            name="run/image",
            kind="CONSUMER",
            service="worker",
            start=at + 4 + (number % 5) / 10,
            duration=3,
        )
    return capture


def two_calls(many: int) -> Capture:
    """Requests that call two operations of one service, side by side or one after the other."""
    capture = Capture()
    rng = np.random.default_rng(71)
    for number, at in enumerate(arrivals(70, many, every=100.0)):
        capture.span(number, 1, name="GET /", kind="SERVER", start=at, duration=30, service="shop")
        for one, (begin, lasts) in enumerate([(2, 9), (2 if number % 2 else 14, 14)]):
            begins = at + begin + 0.02 * one
            capture.span(
                *(number, 2 + one, 1),
                name="GET",
                kind="CLIENT",
                service="shop",
                server_address="stock",
                start=begins,
                duration=lasts,
            )
            capture.span(
                *(1000 * (1 + one) + number, 4),
                name=f"GET /{one}",
                kind="SERVER",
                service="stock",
                start=begins + 0.4 + rng.exponential(0.1),
                duration=lasts - 1,
            )
    return capture


@pytest.mark.parametrize("many", [8, 100])
def test_two_operations_lost_under_one_caller_are_both_found_even_if_calls_are_few(many):
    found = detached(two_calls(many))
    assert set(found["span_name"]) == {"GET /0", "GET /1"}
    assert found.height >= 1.8 * many


def buffered(each: int) -> Capture:
    """Requests of which each so-manieth fills a buffer, which a thread then writes out."""
    capture = Capture(service_instance_id="svc-1")
    rng = np.random.default_rng(81)
    for number, at in enumerate(arrivals(80, 300, every=100.0)):
        capture.span(number, 1, name="POST", kind="SERVER", start=at, duration=10)
        if number % each == 0:
            start = at + 8 + rng.exponential(0.2)
            capture.span(1000 + number, 2, name="flush", start=start, duration=3)
    return capture


@pytest.mark.parametrize(("each", "sure"), [(1, True), (10, False)])
def test_roots_that_few_callers_have_are_no_certain_losses(each, sure):
    found = detached(buffered(each))
    assert (found["confidence"].max() >= 0.8) == sure


def in_bursts(*, enclosed: bool, length: float = 40.0) -> Capture:
    """Requests that come in bursts, and queries without a context: within them, or beside."""
    rng = np.random.default_rng(11)
    capture = Capture()
    for number in range(60):
        at = 400.0 * (number // 3) + rng.uniform(0, 120)
        capture.span(number, 1, name="GET /report", kind="SERVER", start=at, duration=length)
        if number % 2:
            took = length * rng.uniform(0.1, 0.5)
            begin = at + rng.uniform(0.02, 0.98) * (length - took)
            begin = begin if enclosed else 400.0 * (number // 3) + rng.uniform(0, 120)
            capture.span(500 + number, 2, name="find", kind="CLIENT", start=begin, duration=took)
    return capture


def test_calls_of_bursts_are_found_by_the_callers_that_always_enclose_them():
    found = detached(in_bursts(enclosed=True))
    assert found.height == 30
    home = {trace_id(500 + number): trace_id(number) for number in range(60)}
    sure = found.filter(pl.col("proposed_confidence") >= 0.8)
    right = [home[row] == said for row, said in sure.select("trace_id", "proposed_trace_id").rows()]
    assert np.mean(right) > 0.9
    assert len(right) > 5


def test_roots_that_come_in_the_same_bursts_are_natural():
    assert detached(in_bursts(enclosed=False)).height == 0
    assert detached(in_bursts(enclosed=False, length=110.0)).height == 0


def test_roots_that_streams_enclose_all_along_are_natural():
    rng = np.random.default_rng(12)
    capture = Capture()
    for number in range(8):
        capture.span(
            number, 1, name="stream", kind="SERVER", start=number, duration=9_000 + 100 * number
        )
    for number in range(120):
        begin = 70.0 * number + rng.uniform(10, 20)
        capture.span(500 + number, 2, name="poll", kind="CLIENT", start=begin, duration=40)
    assert detached(capture).height == 0


def crowded(onset: str) -> tuple[Capture, dict[str, str]]:
    """Work that is lost among 50 requests in progress; with the trace that called each."""
    rng = np.random.default_rng(21)
    n = 1_000
    begins = np.array(arrivals(22, n, every=1.1))
    hard = 0.5 + rng.exponential(2.0, n)
    delay = hard if onset == "hard" else 2.0 * np.exp(rng.normal(0.0, 0.6, n))
    capture = Capture(service_instance_id="svc-1")
    for number in range(n):
        capture.span(number, 1, name="handle", kind="SERVER", start=begins[number], duration=50)
        at = begins[number] + delay[number]
        capture.span(n + number, 2, name="work", start=at, duration=5)
    return capture, {trace_id(n + number): trace_id(number) for number in range(n)}


@pytest.mark.parametrize(("onset", "least"), [("hard", 44), ("smooth", 0)])
def test_a_crowd_is_told_apart_by_a_hard_onset_and_by_no_invented_one(onset, least):
    capture, caller = crowded(onset)
    found = detached(capture).filter(pl.col("proposed_confidence") >= 0.8)
    right = [
        caller[own] == proposed
        for own, proposed in found.select("trace_id", "proposed_trace_id").iter_rows()
    ]
    assert sum(right) >= least
    assert sum(right) >= 0.9 * len(right)
