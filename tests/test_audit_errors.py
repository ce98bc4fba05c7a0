"""Is each error's record complete? One field removed, exactly one finding."""

import polars as pl
import pytest
from building import EPOCH_NS, MS, Capture

import tracelab as tl
from tracelab import schema
from tracelab.errors_chain import audit_errors, error_audit_rates
from tracelab.errors_chain.audit import PARTS
from tracelab.errors_chain.intervals import wilson
from tracelab.exceptions import ParameterError, SchemaError
from tracelab.structure.rates import wilson_interval

STACK = {
    "python": 'Traceback (most recent call last):\n  File "/a.py", line 1, in f\nValueError: bad\n',
    "java": "java.lang.IllegalStateException: bad\n\tat A.f(A.java:1)\n",
    "nodejs": "Error: bad\n    at f (/a.js:1:2)\n",
    "dotnet": "System.InvalidOperationException: bad\n   at A.F() in /a.cs:line 1\n",
    "ruby": "a.rb:1:in `f': bad (ArgumentError)\n",
    "php": "Exception: bad in /a.php:1\nStack trace:\n#0 {main}",
    "webjs": "Error: bad\n    at f (https://a.example/a.js:1:2)\n",
}


def capture(
    language,
    *,
    status="ERROR",
    exception=True,
    stack=True,
    error_type="Bad",
    kind="INTERNAL",
    origin="span_event",
    **more,
):
    built = Capture(sdk_language=language).span(
        1, 1, kind=kind, duration=10, status_code=status, error_type=error_type, **more
    )
    if exception:
        built.event(
            1,
            1,
            exception_type="ValueError",
            exception_message="bad",
            exception_stacktrace=STACK.get(language, "goroutine 1 [running]:")
            if stack is True
            else stack or None,
            origin=origin,
            time=EPOCH_NS + 9 * MS,
        )
    return built.traces()


def missing(audit):
    return [part for part in PARTS for ok in audit[part] if not ok]


@pytest.mark.parametrize("language", sorted(STACK))
def test_a_complete_record_has_no_finding(language):
    audit = audit_errors(capture(language))
    assert audit.schema == schema.ERROR_AUDIT
    assert audit.height == 1
    assert missing(audit) == []
    assert audit["exempt"].to_list() == [None]


@pytest.mark.parametrize("language", sorted(STACK))
@pytest.mark.parametrize(
    ("removed", "part"),
    [
        ({"status": "UNSET"}, "status_ok"),
        ({"exception": False}, "exception_ok"),
        ({"stack": False}, "stacktrace_ok"),
        ({"error_type": None}, "error_type_ok"),
    ],
)
def test_one_field_removed_makes_exactly_one_finding(language, removed, part):
    assert missing(audit_errors(capture(language, **removed))) == [part]


STACKLESS = ["cpp", "erlang", "go", "rust", "swift"]
REMOVED = [
    ({"status": "UNSET"}, ["status_ok"]),
    ({"exception": False}, ["exception_ok"]),
    ({"error_type": None}, ["error_type_ok"]),
]


@pytest.mark.parametrize("language", STACKLESS)
@pytest.mark.parametrize(
    ("removed", "parts"), [({}, []), *REMOVED, ({"stack": False}, []), ({"stack": "  "}, [])]
)
def test_a_stack_is_the_one_field_that_some_sdks_may_leave_out(language, removed, parts):
    audit = audit_errors(capture(language, **removed))
    assert missing(audit) == parts
    assert (audit["exempt"][0] is not None) == ("stack" in removed)


@pytest.mark.parametrize("language", sorted(STACK))
@pytest.mark.parametrize("stack", ["", " \n"])
def test_an_empty_stack_is_no_stack(language, stack):
    assert missing(audit_errors(capture(language, stack=stack))) == ["stacktrace_ok"]


@pytest.mark.parametrize("language", sorted(STACK))
@pytest.mark.parametrize(
    ("removed", "parts"), [({}, []), *REMOVED, ({"stack": False}, ["stacktrace_ok"])]
)
def test_the_checklist_is_the_same_where_the_exception_stands_in_a_log(language, removed, parts):
    assert missing(audit_errors(capture(language, origin="log", **removed))) == parts


def test_go_may_record_no_stack_and_says_so():
    audit = audit_errors(capture("go", stack=False))
    assert missing(audit) == []
    assert "no stack unless asked" in audit["exempt"][0]


@pytest.mark.parametrize("kind", ["SERVER", "CLIENT"])
def test_a_call_that_answers_5xx_needs_no_exception_of_its_own(kind):
    traces = capture("python", exception=False, kind=kind, http_response_status_code=503)
    assert missing(audit_errors(traces)) == []


def test_a_4xx_on_a_server_span_may_leave_the_status_unset():
    traces = capture("python", status="UNSET", kind="SERVER", http_response_status_code=404)
    assert missing(audit_errors(traces)) == []


def test_an_exception_that_stands_only_in_a_log_is_legal():
    built = Capture(sdk_language="python").span(1, 1, status_code="ERROR", error_type="Bad")
    built.event(
        1, 1, origin="log", exception_type="ValueError", exception_stacktrace=STACK["python"]
    )
    assert missing(audit_errors(built.traces())) == []


def test_a_5xx_that_nothing_explains_is_named():
    traces = capture("go", exception=False, kind="SERVER", http_response_status_code=500)
    assert audit_errors(traces)["signature"].to_list() == ["5xx_without_evidence"]


def test_a_panic_through_otelhttp_is_an_event_after_the_end_without_status_or_code():
    built = (
        Capture(sdk_language="go")
        .span(1, 1, kind="SERVER", duration=10)
        .event(
            1, 1, exception_type="string", exception_message="boom", time=EPOCH_NS + 10 * MS + 50
        )
    )
    audit = audit_errors(built.traces())
    assert audit["signature"].to_list() == ["panic"]
    assert audit["status_ok"].to_list() == [False]


def test_a_panic_that_a_middleware_recovered_still_got_an_answer():
    built = (
        Capture(sdk_language="go")
        .span(1, 1, kind="SERVER", duration=20, status_code="ERROR", http_response_status_code=500)
        .span(1, 2, 1, start=1, duration=5)
        .event(1, 2, exception_type="string", exception_message="boom", time=EPOCH_NS + 6 * MS + 50)
    )
    audit = audit_errors(built.traces()).filter(pl.col("span_id").str.ends_with("2"))
    assert audit["signature"].to_list() == ["recovered_panic"]


def test_rates_carry_counts_and_intervals():
    rates = error_audit_rates(capture("python", stack=False))
    row = rates.filter(pl.col("part") == "stacktrace_ok").to_dicts()[0]
    assert (row["errors"], row["incomplete"], row["rate"]) == (1, 1, 1.0)
    assert row["rate_low"] == pytest.approx(0.2065, abs=1e-3)  # Wilson, 1 of 1


def test_intervals_of_columns_agree_with_those_of_arrays():
    counts = pl.DataFrame({"hits": [0, 1, 7, 50, 999], "n": [3, 1, 9, 100, 1000]})
    low, high = wilson(pl.col("hits"), pl.col("n"))
    ours = counts.select(low.alias("low"), high.alias("high"))
    theirs = wilson_interval(counts["hits"].to_numpy(), counts["n"].to_numpy())
    assert ours["low"].to_numpy() == pytest.approx(theirs[0], abs=1e-4)
    assert ours["high"].to_numpy() == pytest.approx(theirs[1], abs=1e-4)


def test_a_capture_without_errors_has_no_rows():
    assert audit_errors(Capture().span(1, 1).traces()).is_empty()


@pytest.mark.parametrize(
    "name",
    [
        *("parse_exceptions", "audit_errors", "error_audit_rates", "find_error_hops"),
        *("find_error_groups", "swallow_costs", "chain_integrity", "audit_headers"),
        *("audit_truncation", "audit_size_loss", "find_retry_groups", "find_mixed_tenants"),
        "tenant_rates",
    ],
)
@pytest.mark.parametrize("given", [pl.DataFrame({"x": [1]}), "traces.json", None])
def test_what_is_no_capture_is_refused_in_one_sentence(name, given):
    with pytest.raises(ParameterError, match=r"^traces must be a TraceSet, not a"):
        getattr(tl, name)(given)


def test_a_capture_where_a_table_or_a_text_belongs_is_refused_in_one_sentence():
    traces = capture("python")
    with pytest.raises(SchemaError, match="`before` must be a polars DataFrame"):
        tl.compare_goroutines(traces, traces)
    with pytest.raises(SchemaError, match="`goroutines` must be a polars DataFrame"):
        tl.match_goroutines(traces, traces)
    with pytest.raises(ParameterError, match="text must be a text, not a TraceSet"):
        tl.parse_stacktrace(traces)


@pytest.mark.parametrize("code", [200, 404, 422])
def test_an_exception_handled_as_the_last_thing_of_an_answered_request_is_no_defect(code):
    built = (
        Capture(sdk_language="python")
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=code)
        .span(1, 2, 1, name="look up", start=2, duration=5)
    )
    for span, end in ((1, 30), (2, 7)):
        built.event(
            1, span, exception_type="KeyError", exception_message="'x'",
            exception_stacktrace="Traceback\nKeyError: 'x'", time=EPOCH_NS + end * MS,
        )  # fmt: skip
    audit = audit_errors(built.traces())
    assert audit["exempt"].is_not_null().all()
    assert audit["signature"].null_count() == audit.height


def test_an_exception_below_a_failed_request_still_wants_a_status():
    built = (
        Capture(sdk_language="python")
        .span(1, 1, kind="SERVER", duration=30, http_response_status_code=500, status_code="ERROR")
        .span(1, 2, 1, name="look up", start=2, duration=5)
        .event(
            1, 2, exception_type="KeyError", exception_message="'x'",
            exception_stacktrace="Traceback\nKeyError: 'x'", time=EPOCH_NS + 7 * MS,
        )
    )  # fmt: skip
    row = audit_errors(built.traces()).filter(span_id="0" * 15 + "2").row(0, named=True)
    assert (row["status_ok"], row["signature"]) == (False, "event_without_status")
