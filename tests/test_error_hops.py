"""What became of each error: hops as Go, Python, Java and Node SDKs record them."""

import polars as pl
import pytest
from building import EPOCH_NS, MS, Capture, span_id

from tracelab import schema
from tracelab.errors_chain import find_error_hops

GO = {"sdk_language": "go"}
PYTHON = {"sdk_language": "python"}
ERROR = {"status_code": "ERROR"}


def at(ms):
    return EPOCH_NS + round(ms * MS)


def python_stack(*errors):
    """As format_exception prints a chain, oldest first."""
    blocks = [
        f'Traceback (most recent call last):\n  File "/app/shop.py", line {n + 3}, in step\n{error}\n'
        for n, error in enumerate(errors)
    ]
    join = "\nThe above exception was the direct cause of the following exception:\n\n"
    return join.join(blocks)


def go_pair(outer_type, outer_message, *, outer=ERROR, **event):
    message = "reserve for 7: warehouse refused the connection"
    capture = (
        Capture(**GO)
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=500, **ERROR)
        .span(1, 2, 1, name="place order", start=1, duration=20, **outer)
        .span(1, 3, 2, name="reserve", start=2, duration=5, status_message=message, **ERROR)
        .event(1, 3, exception_type="*fmt.wrapError", exception_message=message, time=at(6))
    )
    if outer_type:
        capture.event(
            1, 2, exception_type=outer_type, exception_message=outer_message, time=at(8), **event
        )
    return capture


def hop_of(capture, child, **tables):
    hops = find_error_hops(capture.traces(), **tables)
    assert hops.schema == schema.ERROR_HOPS
    rows = hops.filter(pl.col("child_span_id") == span_id(child)).to_dicts()
    assert len(rows) == 1, hops
    return rows[0]


@pytest.mark.parametrize(
    ("outer_type", "outer_message", "verdict"),
    [
        (
            "*fmt.wrapError",
            "place order: reserve for 7: warehouse refused the connection",
            "wrapped",
        ),
        (
            "*errors.errorString",
            "place order: reserve for 7: warehouse refused the connection",
            "flattened",
        ),
        (
            "*errors.joinError",
            "reserve for 7: warehouse refused the connection\nrollback failed",
            "wrapped",
        ),
        ("*fmt.wrapError", "reserve for 7: warehouse refused the connection", "kept"),
        ("*errors.errorString", "upstream: {}", "replaced"),
        ("*errors.errorString", "something went wrong", "replaced"),
        ("*fmt.wrapError", "reserve for 7: wareho", "truncated"),
        (
            "*app.OrderError",
            "no order: reserve for 7: warehouse refused the connection",
            "not_determinable",
        ),
        ("*app.OrderError", "the warehouse cannot answer now", "replaced"),
    ],
)
def test_the_go_type_tells_whether_an_error_was_wrapped(outer_type, outer_message, verdict):
    assert hop_of(go_pair(outer_type, outer_message), 3)["verdict"] == verdict


def test_an_exception_without_status_is_a_lost_status():
    message = "reserve for 7: warehouse refused the connection"
    row = hop_of(go_pair("*fmt.wrapError", message, outer={}), 3)
    assert row["verdict"] == "status_lost"


def test_a_bare_error_status_on_an_inner_span_is_a_lost_error():
    assert hop_of(go_pair(None, None), 3)["verdict"] == "status_lost"


def test_an_http_server_that_answers_500_has_kept_the_error():
    row = hop_of(go_pair("*errors.errorString", "x"), 2)
    assert row["verdict"] == "kept"


def test_an_error_that_passes_a_silent_span_is_lost_there_and_found_again():
    message = "warehouse refused the connection"
    capture = (
        Capture(**PYTHON)
        .span(1, 1, name="order", duration=30, **ERROR)
        .event(1, 1, exception_type="app.StockError", exception_message=message, time=at(29))
        .span(1, 2, 1, name="quiet", start=1, duration=20)
        .span(1, 3, 2, name="reserve", start=2, duration=18, **ERROR)
        .event(1, 3, exception_type="app.StockError", exception_message=message, time=at(20))
    )
    hops = find_error_hops(capture.traces())
    assert hops.select("hop", "child_span_id", "verdict").rows() == [
        (0, span_id(3), "status_lost"),
        (1, span_id(2), "kept"),
    ]
    assert hops["error_id"].n_unique() == 1


def test_a_failed_child_under_a_parent_that_ended_well_is_swallowed():
    capture = (
        Capture(**PYTHON)
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=200)
        .span(1, 2, 1, name="reserve", start=2, duration=5, **ERROR)
        .event(1, 2, exception_type="app.StockError", exception_message="refused", time=at(7))
    )
    row = hop_of(capture, 2)
    assert row["verdict"] == "swallowed"
    assert row["latency_cost_ns"] == 5 * MS


def test_a_retry_that_succeeds_is_recovered_and_names_the_attempt():
    capture = (
        Capture(**GO)
        .span(1, 1, name="fetch", duration=30)
        .span(1, 2, 1, name="HTTP GET", kind="CLIENT", start=1, duration=5, **ERROR)
        .span(1, 3, 1, name="HTTP GET", kind="CLIENT", start=7, duration=5, resend_count=1)
    )
    row = hop_of(capture, 2)
    assert (row["verdict"], row["recovered_by_span_id"]) == ("recovered", span_id(3))
    assert row["confidence"] > 0.9


def calls_in_a_row(failed, total, **last):
    capture = Capture(**GO).span(1, 1, name="load", duration=500)
    for n in range(total):
        said = ERROR if n == failed else {}
        more = last if n == failed + 1 else {}
        start = 10 * n + 1
        capture.span(
            1, n + 2, 1, name="find", kind="CLIENT", start=start, duration=5, **said, **more
        )
    return hop_of(capture, failed + 2)


@pytest.mark.parametrize("failed", [0, 2, 5])
def test_one_failed_call_of_a_loop_is_not_made_good_by_the_next_item(failed):
    row = calls_in_a_row(failed, 8)
    assert row["verdict"] == "swallowed"
    assert row["confidence"] <= 0.6
    assert "loop" in row["evidence"][0]


@pytest.mark.parametrize(("made_up_for", "verdict"), [(True, "recovered"), (False, "swallowed")])
def test_callers_that_call_until_as_many_succeeded_as_ever_repeat_the_failed_call(
    made_up_for, verdict
):
    capture = Capture(**GO)
    for trace in range(1, 7):
        n_failed = 1 + trace % 3
        capture.span(trace, 1, name="search", duration=200)
        for n in range(8 + (n_failed if made_up_for else 0)):
            said = ERROR if n in range(2, 2 + n_failed) else {}
            capture.span(
                trace, n + 2, 1, name="Get", kind="CLIENT", start=1 + 9 * n, duration=8, **said
            )
    hops = find_error_hops(capture.traces())
    told = hops["verdict"].unique().to_list()
    assert told == [verdict]


def test_a_counted_attempt_within_a_loop_makes_its_failure_good():
    assert calls_in_a_row(2, 8, resend_count=1)["verdict"] == "recovered"


@pytest.mark.parametrize(
    ("hosts", "verdict"),
    [
        (("pricing", "stock"), "swallowed"),
        (("pricing", "pricing.shop.svc"), "recovered"),
        (("pricing-7d9f", "pricing-0c4e"), "recovered"),
        (("10.0.0.7", "10.0.0.9"), "recovered"),
        (("pricing", None), "recovered"),
    ],
)
def test_a_call_of_a_bare_method_is_an_attempt_only_if_it_asks_the_same_service(hosts, verdict):
    capture = Capture(**GO).span(1, 1, name="load", duration=30)
    for n, (host, said) in enumerate(zip(hosts, (ERROR, {}), strict=True)):
        start = 1 + 7 * n
        capture.span(
            *(1, n + 2, 1),
            name="GET",
            kind="CLIENT",
            start=start,
            duration=5,
            server_address=host,
            **said,
        )
    assert hop_of(capture, 2)["verdict"] == verdict


def test_two_calls_around_a_failed_one_are_no_loop():
    assert calls_in_a_row(0, 2)["verdict"] == "recovered"
    assert calls_in_a_row(1, 3)["verdict"] == "recovered"


def test_another_call_of_the_same_name_to_another_target_is_no_retry():
    def url(path):
        return f'{{"url.full":"http://stock:80{path}"}}'

    capture = (
        Capture(**PYTHON)
        .span(1, 1, name="fetch", duration=30)
        .span(1, 2, 1, name="GET", kind="CLIENT", start=1, attributes=url("/a"), **ERROR)
        .span(1, 3, 1, name="GET", kind="CLIENT", start=12, attributes=url("/b"))
    )
    assert hop_of(capture, 2)["verdict"] == "swallowed"


def test_a_hedged_request_that_lost_the_race_is_recovered():
    capture = (
        Capture(sdk_language="nodejs")
        .span(1, 1, name="any", duration=30)
        .span(1, 2, 1, name="GET", kind="CLIENT", start=1, status_message="aborted", **ERROR)
        .span(1, 3, 1, name="GET", kind="CLIENT", start=1, duration=8)
    )
    assert hop_of(capture, 2)["verdict"] == "recovered"


def test_one_shard_of_many_that_fails_is_not_recovered_by_the_others():
    capture = Capture(**GO).span(1, 1, name="scatter", duration=30)
    for shard in range(2, 6):
        status = ERROR if shard == 2 else {}
        capture.span(
            1, shard, 1, name="shard", start=1, attributes=f'{{"app.shard":{shard}}}', **status
        )
    assert hop_of(capture, 2)["verdict"] == "swallowed"


def test_all_attempts_that_fail_are_kept_by_the_parent_that_reports_them():
    capture = Capture(**GO).span(
        1, 1, name="fetch", duration=40, status_message="no price after three attempts", **ERROR
    )
    for attempt in range(3):
        capture.span(
            1,
            2 + attempt,
            1,
            name="HTTP GET",
            kind="CLIENT",
            start=1 + 11 * attempt,
            http_response_status_code=503,
            **ERROR,
        )
    hops = find_error_hops(capture.traces())
    assert hops["verdict"].to_list() == ["kept"] * 3


def test_a_python_group_wraps_each_of_its_members():
    stack = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/app/shop.py", line 3, in order\n'
        "  | ExceptionGroup: order not placed (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "/app/shop.py", line 9, in part\n'
        "    | shop.StockError: part 1 is missing\n"
        "    +---------------- 2 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "/app/shop.py", line 9, in part\n'
        "    | shop.StockError: part 2 is missing\n"
        "    +------------------------------------\n"
    )
    capture = (
        Capture(**PYTHON)
        .span(1, 1, name="order", duration=30, **ERROR)
        .event(
            1,
            1,
            exception_type="ExceptionGroup",
            exception_message="order not placed (2 sub-exceptions)",
            exception_stacktrace=stack,
        )
    )
    for part in (1, 2):
        capture.span(1, 1 + part, 1, name="part", start=1, **ERROR)
        capture.event(
            1,
            1 + part,
            exception_type="shop.StockError",
            exception_message=f"part {part} is missing",
        )
    assert find_error_hops(capture.traces())["verdict"].to_list() == ["wrapped", "wrapped"]


@pytest.mark.parametrize(
    ("outer", "verdict"),
    [
        (["shop.StockError: cannot reserve", "shop.OrderError: order not placed"], "wrapped"),
        (["shop.OrderError: order not placed: cannot reserve"], "flattened"),
        (["RuntimeError: cannot reserve"], "flattened"),
        (["shop.OrderError: something went wrong"], "replaced"),
        (["shop.StockError: cannot reserve"], "kept"),
    ],
)
def test_the_python_stack_tells_what_the_outer_layer_made_of_it(outer, verdict):
    kind, _, message = outer[-1].partition(": ")
    capture = (
        Capture(**PYTHON)
        .span(1, 1, name="order", duration=30, status_message=outer[-1], **ERROR)
        .event(
            1,
            1,
            exception_type=kind,
            exception_message=message,
            exception_stacktrace=python_stack(*outer),
        )
        .span(1, 2, 1, name="reserve", start=1, **ERROR)
        .event(
            1,
            2,
            exception_type="shop.StockError",
            exception_message="cannot reserve",
            exception_stacktrace=python_stack("shop.StockError: cannot reserve"),
        )
    )
    assert hop_of(capture, 2)["verdict"] == verdict


def test_a_cause_in_node_cannot_be_seen_and_is_not_called_lost():
    stack = "Error: checkout failed\n    at h (/app/a.js:3:7)\n"
    capture = (
        Capture(sdk_language="nodejs")
        .span(1, 1, name="checkout", duration=30, **ERROR)
        .event(
            1,
            1,
            exception_type="Error",
            exception_message="checkout failed",
            exception_stacktrace=stack,
        )
        .span(1, 2, 1, name="query", start=1, **ERROR)
        .event(1, 2, exception_type="ECONNREFUSED", exception_message="connect ECONNREFUSED")
    )
    assert hop_of(capture, 2)["verdict"] == "not_determinable"


@pytest.mark.parametrize("recovered", [True, False])
def test_a_go_panic_leaves_its_span_without_a_status(recovered):
    server = {"http_response_status_code": 500, **ERROR} if recovered else {}
    panic = {"exception_type": "*fmt.wrapError", "exception_message": "divided by zero"}
    capture = (
        Capture(**GO)
        .span(1, 1, kind="SERVER", duration=30, **server)
        .span(1, 2, 1, name="divide stock", start=1, duration=5)
        .event(1, 2, time=at(5.9), **panic)
    )
    if not recovered:
        capture.event(1, 1, time=at(29.9), **panic)
    assert hop_of(capture, 2)["verdict"] == "status_lost"


def test_a_handled_exception_noted_on_a_span_is_no_error():
    capture = (
        Capture(**PYTHON)
        .span(1, 1, kind="SERVER", duration=30)
        .span(1, 2, 1, start=1, duration=20)
        .event(1, 2, exception_type="KeyError", exception_message="'k'", time=at(3))
    )
    assert find_error_hops(capture.traces()).is_empty()


def test_an_error_answered_as_4xx_is_not_swallowed():
    capture = (
        Capture(**PYTHON)
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=404)
        .span(1, 2, 1, start=1, **ERROR)
        .event(1, 2, exception_type="shop.NotFound", exception_message="no such item")
    )
    assert hop_of(capture, 2)["verdict"] == "kept"


def test_a_framework_span_of_a_failed_answer_is_not_recovered_by_the_next():
    capture = (
        Capture(**PYTHON)
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=502, **ERROR)
        .span(
            1, 2, 1, name="http send", start=20, duration=1, http_response_status_code=502, **ERROR
        )
        .span(1, 3, 1, name="http send", start=22, duration=1)
    )
    assert hop_of(capture, 2)["verdict"] == "kept"


def test_a_producer_does_not_learn_of_its_consumers_error():
    capture = (
        Capture(**PYTHON)
        .span(1, 1, kind="PRODUCER", duration=2, messaging_system="kafka")
        .span(1, 2, 1, kind="CONSUMER", start=50, service="worker", **ERROR)
    )
    assert hop_of(capture, 2)["verdict"] == "not_determinable"


def test_an_error_of_a_child_that_outlived_its_parent_could_not_be_known():
    capture = (
        Capture(**PYTHON)
        .span(1, 1, kind="SERVER", duration=10)
        .span(1, 2, 1, name="warm cache", start=8, duration=100, **ERROR)
    )
    assert hop_of(capture, 2)["verdict"] == "not_determinable"


def test_an_error_under_a_missing_parent_is_not_determinable():
    capture = Capture(**PYTHON).span(1, 2, 99, **ERROR)
    row = hop_of(capture, 2)
    assert (row["verdict"], row["parent_span_id"]) == ("not_determinable", span_id(99))


def test_an_error_on_a_detached_root_is_carried_to_the_proposed_parent():
    capture = (
        Capture(**PYTHON)
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=200)
        .span(2, 2, None, name="price", start=1, duration=5, **ERROR)
    )
    row = {
        "break_id": "b1",
        "kind": "detached_root",
        "trace_id": f"{2:032x}",
        "span_id": span_id(2),
        "boundary": "thread",
        "proposed_trace_id": f"{1:032x}",
        "proposed_span_id": span_id(1),
        "proposed_confidence": 0.8,
    }
    breaks = schema.conform(pl.DataFrame([row]), schema.BREAKS)
    found = hop_of(capture, 2, breaks=breaks)
    assert found["via_break_id"] == "b1"
    assert found["boundary"] == "thread"
    assert found["confidence"] <= 0.8


def test_a_retry_that_also_lost_its_context_still_makes_the_failure_good():
    capture = Capture().span(1, 1, kind="CLIENT", name="GET", duration=50)
    rows = []
    for attempt, status in ((2, ERROR), (3, {})):
        capture.span(
            attempt,
            attempt,
            kind="SERVER",
            name="GET /a",
            service="b",
            start=attempt * 12,
            **status,
        )
        rows.append(
            {
                "break_id": f"b{attempt}",
                "kind": "detached_root",
                "trace_id": f"{attempt:032x}",
                "span_id": span_id(attempt),
                "proposed_trace_id": f"{1:032x}",
                "proposed_span_id": span_id(1),
                "proposed_confidence": 0.9,
            }
        )
    breaks = schema.conform(pl.DataFrame(rows), schema.BREAKS)
    row = hop_of(capture, 2, breaks=breaks)
    assert (row["verdict"], row["recovered_by_span_id"]) == ("recovered", span_id(3))


def test_an_error_keeps_its_id_over_services_and_counts_its_hops():
    capture = (
        Capture()
        .span(
            1,
            1,
            kind="SERVER",
            service="front",
            duration=40,
            http_response_status_code=502,
            **ERROR,
        )
        .span(
            1,
            2,
            1,
            kind="CLIENT",
            service="front",
            start=1,
            duration=30,
            http_response_status_code=500,
            **ERROR,
        )
        .span(
            1,
            3,
            2,
            kind="SERVER",
            service="stock",
            start=2,
            duration=20,
            http_response_status_code=500,
            **ERROR,
        )
        .span(1, 4, 3, service="stock", start=3, **ERROR)
        .event(1, 4, exception_type="app.StockError", exception_message="warehouse closed")
    )
    hops = find_error_hops(capture.traces())
    assert hops["error_id"].n_unique() == 1
    assert hops["hop"].to_list() == [0, 1, 2]
    assert hops["verdict"].to_list() == ["kept", "kept", "kept"]


def test_parents_in_a_circle_end_in_bounded_time():
    capture = Capture().span(1, 1, 2, **ERROR).span(1, 2, 1, **ERROR)
    assert find_error_hops(capture.traces()).height == 2


def test_a_capture_without_errors_has_no_hops():
    assert find_error_hops(Capture().span(1, 1).span(1, 2, 1).traces()).is_empty()


REFUSED = "connection refused by the database"
CUT_WITHIN_CAUSE = python_stack(f"ConnectionError: {REFUSED}").removesuffix(" the database\n")


def recorded_pair(outer, *, stack=None, language="python", **spans):
    """Return a failing step and its server, each with an exception of its own."""
    both = {"http_response_status_code": 500, **ERROR} | spans
    return (
        Capture(sdk_language=language)
        .span(1, 1, kind="SERVER", duration=30, **both)
        .span(1, 2, 1, kind="CLIENT", start=1, duration=5, **both)
        .event(1, 2, exception_type="ConnectionError", exception_message=REFUSED, time=at(6))
        .event(
            1,
            1,
            exception_type=outer[0],
            exception_message=outer[1],
            exception_stacktrace=stack,
            time=at(30),
        )
    )


def test_a_python_stack_cut_within_its_cause_is_truncated():
    capture = recorded_pair(("shop.LoadError", "load failed"), stack=CUT_WITHIN_CAUSE)
    assert hop_of(capture, 2)["verdict"] == "truncated"


def test_a_java_cause_cut_between_two_words_is_truncated_not_wrapped():
    stack = (
        "shop.LoadError: load failed\n\tat shop.Load.run(Load.java:9)\n"
        "Caused by: ConnectionError: connection refused by"
    )
    capture = recorded_pair(("shop.LoadError", "load failed"), stack=stack, language="java")
    assert hop_of(capture, 2)["verdict"] == "truncated"


def test_two_exceptions_under_a_500_each_are_compared_by_what_they_tell():
    stack = python_stack("shop.Unavailable: nothing to sell today")
    capture = recorded_pair(("shop.Unavailable", "nothing to sell today"), stack=stack)
    assert hop_of(capture, 2)["verdict"] == "replaced"


def test_a_code_that_is_passed_on_is_kept_whatever_the_texts_say():
    stack = python_stack("shop.Unavailable: nothing to sell today")
    capture = recorded_pair(
        ("shop.Unavailable", "nothing to sell today"), stack=stack, http_response_status_code=503
    )
    assert hop_of(capture, 2)["verdict"] == "kept"


@pytest.mark.parametrize(
    ("outer", "verdict"),
    [(f"load stock: {REFUSED}", "flattened"), (f"ConnectionError: {REFUSED}", "kept")],
)
def test_only_the_name_of_its_type_before_a_message_makes_a_text_the_same(outer, verdict):
    capture = (
        Capture(sdk_language="rust")
        .span(1, 1, duration=30, status_message=outer, **ERROR)
        .span(1, 2, 1, start=1, duration=5, **ERROR)
        .event(1, 2, exception_type="ConnectionError", exception_message=REFUSED, time=at(6))
    )
    assert hop_of(capture, 2)["verdict"] == verdict


@pytest.mark.parametrize(("recorded_at", "verdict"), [(7, "recovered"), (30, "status_lost")])
def test_an_error_recorded_after_the_later_success_was_not_made_good_by_it(recorded_at, verdict):
    error = {"exception_type": "ConnectionError", "exception_message": REFUSED}
    capture = (
        Capture(**PYTHON)
        .span(1, 1, duration=30)
        .span(1, 2, 1, name="query", start=1, duration=5, **ERROR)
        .span(1, 3, 1, name="query", start=10, duration=5)
        .event(1, 2, **error, time=at(6))
        .event(1, 1, **error, time=at(recorded_at))
    )
    assert hop_of(capture, 2)["verdict"] == verdict


def test_a_lost_status_below_does_not_hide_that_the_error_went_on():
    error = {"exception_type": "ConnectionError", "exception_message": REFUSED}
    capture = (
        Capture(**PYTHON)
        .span(1, 1, duration=30, **ERROR)
        .span(1, 2, 1, name="load", start=1, duration=20)
        .span(1, 3, 2, name="query", start=2, duration=5, **ERROR)
        .event(1, 3, **error, time=at(7))
        .event(1, 2, **error, time=at(21))
        .event(1, 1, **error, time=at(30))
    )
    assert hop_of(capture, 3)["verdict"] == "status_lost"
    assert hop_of(capture, 2)["verdict"] == "kept"


@pytest.mark.parametrize(
    "told",
    [
        {"status_message": "context canceled"},
        {"error_type": "asyncio.exceptions.CancelledError"},
        {"status_message": "System.Threading.Tasks.TaskCanceledException: A task was canceled."},
        {"status_message": "The operation was aborted", "error_type": "AbortError"},
        {"attributes": '{"rpc.grpc.status_code":1}'},
        {"attributes": '{"rpc.grpc.status_code":5}', "status_message": "no such user"},
        {"attributes": '{"rpc.response.status_code":"ALREADY_EXISTS"}'},
        {"http_response_status_code": 404},
    ],
)
def test_a_cancelled_call_or_a_refused_request_is_not_called_swallowed(told):
    capture = (
        Capture(**GO)
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=200)
        .span(1, 2, 1, kind="CLIENT", start=1, duration=5, **ERROR, **told)
    )
    assert hop_of(capture, 2)["verdict"] == "not_determinable"


@pytest.mark.parametrize(
    "told",
    [
        {"status_message": "current transaction is aborted"},
        {"attributes": '{"rpc.grpc.status_code":14}'},
        {"http_response_status_code": 503},
    ],
)
def test_a_failed_call_that_nobody_gave_up_is_swallowed(told):
    capture = (
        Capture(**GO)
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=200)
        .span(1, 2, 1, kind="CLIENT", start=1, duration=5, **ERROR, **told)
    )
    assert hop_of(capture, 2)["verdict"] == "swallowed"


@pytest.mark.parametrize("text", ["upstream said {}", "failed: [object Object]"])
def test_an_error_that_became_an_empty_object_is_replaced(text):
    capture = (
        Capture(sdk_language="nodejs")
        .span(1, 1, duration=30, **ERROR)
        .span(1, 2, 1, start=1, duration=5, **ERROR)
        .event(1, 2, exception_type="TypeError", exception_message=REFUSED, time=at(6))
        .event(1, 1, exception_type="Error", exception_message=text, time=at(30))
    )
    assert hop_of(capture, 2)["verdict"] == "replaced"


def test_a_resend_to_another_url_makes_the_first_attempt_good():
    import tracelab as tl

    hops = tl.find_error_hops(tl.load_example("checkout"))
    tried = hops.filter(child_type="503", child_service="orders", parent_service="orders")
    assert tried["verdict"].unique().to_list() == ["recovered"]
    assert tried["recovered_by_span_id"].null_count() == 0
