"""Headers across hops, retry groups, tenants."""

import polars as pl
import pytest
from building import Capture, span_id, trace_id

from tracelab import schema
from tracelab.audits import audit_headers, find_mixed_tenants, find_retry_groups, tenant_rates
from tracelab.exceptions import ParameterError

ERROR = {"status_code": "ERROR"}


def headers(**values):
    inside = ",".join(
        f'"http.request.header.{key.replace("__", "-")}":{value}' for key, value in values.items()
    )
    return "{" + inside + "}"


def hop(sent, received, *, number=1, built=None):
    built = built or Capture()
    base = number * 10
    built.span(number, base, kind="SERVER", service="front", duration=50, attributes=sent)
    built.span(
        number,
        base + 1,
        base,
        kind="CLIENT",
        service="front",
        start=1,
        duration=40,
        attributes="{}",
    )
    built.span(
        number, base + 2, base + 1, kind="SERVER", service="back", start=2, attributes=received
    )
    return built


def verdict(traces, key, number=1):
    rows = audit_headers(traces).filter(
        pl.col("key") == key, pl.col("trace_id") == trace_id(number)
    )
    return rows["verdict"].to_list()


def test_a_value_that_arrives_is_kept_whatever_its_spelling():
    traces = hop(headers(x__tenant__id='["a"]'), headers(x_tenant_id='"a"')).traces()
    assert verdict(traces, "x-tenant-id") == ["kept"]


def test_another_value_is_changed():
    traces = hop(headers(x__request__id='["1"]'), headers(x__request__id='["2"]')).traces()
    assert verdict(traces, "x-request-id") == ["changed"]


def test_a_header_that_the_receiver_never_captures_is_not_lost():
    assert verdict(hop(headers(x__tenant__id='["a"]'), "{}").traces(), "x-tenant-id") == [
        "not_captured"
    ]


def test_a_header_that_the_receiver_captures_elsewhere_is_lost():
    built = hop(headers(x__tenant__id='["a"]'), "{}")
    hop(headers(x__tenant__id='["b"]'), headers(x__tenant__id='["b"]'), number=2, built=built)
    assert verdict(built.traces(), "x-tenant-id") == ["lost"]
    assert verdict(built.traces(), "x-tenant-id", 2) == ["kept"]


def test_a_value_set_anew_for_each_attempt_is_not_called_changed():
    built = Capture()
    built.span(1, 1, kind="SERVER", service="front", duration=90)
    built.span(1, 2, 1, service="front", attributes=headers(x__request__id='["try-1"]'))
    for attempt in (0, 1):
        at = 10 + attempt * 30
        built.span(1, 10 + attempt, 2, kind="CLIENT", service="front", start=at, duration=20)
        built.span(
            1,
            20 + attempt,
            10 + attempt,
            kind="SERVER",
            service="back",
            start=at + 1,
            attributes=headers(x__request__id=f'["try-{attempt}"]'),
        )
    table = audit_headers(built.traces()).filter(pl.col("key") == "x-request-id")
    assert table.select("received", "verdict").rows() == [
        ("try-0", "not_captured"),
        ("try-1", "kept"),
    ]


def test_an_empty_captured_array_is_no_value():
    built = hop(headers(x__tenant__id="[]"), headers(x__tenant__id='["a"]'))
    hop(headers(x__tenant__id='["b"]'), headers(x__tenant__id='["b"]'), number=2, built=built)
    assert verdict(built.traces(), "x-tenant-id") == ["added"]


def test_a_configured_key_is_followed_and_traceparent_always():
    traces = hop(headers(x__cell='["1"]'), headers(x__cell='["1"]')).traces()
    table = audit_headers(traces, headers={"x-cell": ()})
    assert table.select("key", "verdict").rows() == [("traceparent", "kept"), ("x-cell", "kept")]


def test_a_detached_root_over_the_network_is_a_lost_traceparent():
    row = {
        "kind": "detached_root",
        "boundary": "network",
        "trace_id": trace_id(2),
        "span_id": span_id(20),
        "proposed_trace_id": trace_id(1),
        "proposed_span_id": span_id(11),
    }
    breaks = schema.conform(pl.DataFrame([row]), schema.BREAKS)
    lost = audit_headers(hop("{}", "{}").traces(), breaks=breaks).filter(
        pl.col("verdict") == "lost"
    )
    assert lost["key"].to_list() == ["traceparent"]


def test_headers_are_given_in_lower_case():
    with pytest.raises(ParameterError, match="lower case"):
        audit_headers(Capture().span(1, 1).traces(), headers={"X-Cell": ()})


def calls(*fails, gap=2, **columns):
    built = Capture().span(1, 1, name="fetch", duration=500)
    for number, failed in enumerate(fails):
        built.span(
            1,
            2 + number,
            1,
            kind="CLIENT",
            name="GET",
            start=1 + number * (10 + gap),
            **(ERROR if failed else {}),
            **columns,
        )
    return built


def test_failed_calls_and_the_one_that_follows_are_one_group():
    groups = find_retry_groups(calls(True, True, False).traces())
    row = groups.to_dicts()[0]
    assert groups.height == 1
    assert (row["attempts"], row["failed"], row["succeeded"]) == (3, 2, True)
    assert row["source"] == "siblings"


def test_calls_that_all_succeed_are_no_retries():
    assert find_retry_groups(calls(False, False, False).traces()).is_empty()


def test_a_call_long_after_a_failed_one_is_another_request():
    assert find_retry_groups(calls(True, False, gap=400).traces(), max_gap_s=0.1).is_empty()


def test_a_proxy_that_states_its_retries_is_believed():
    attributes = '{"component":"proxy","retry.count":"2"}'
    traces = Capture().span(1, 1, kind="CLIENT", attributes=attributes).traces()
    row = find_retry_groups(traces).to_dicts()[0]
    assert (row["source"], row["attempts"], row["failed"]) == ("envoy", 3, 2)


def test_retries_above_retries_multiply():
    built = Capture().span(1, 1, name="fetch", duration=500)
    for outer in (2, 3):
        start = 1 + (outer - 2) * 100
        status = ERROR if outer == 2 else {}
        built.span(1, outer, 1, kind="CLIENT", name="GET", start=start, duration=90, **status)
        for inner in range(3):
            status = ERROR if outer == 2 or inner < 2 else {}
            built.span(
                1, outer * 10 + inner, outer, kind="CLIENT", name="POST",
                start=start + 1 + inner * 20, **status,
            )  # fmt: skip
    groups = find_retry_groups(built.traces())
    assert sorted(groups["amplification"].to_list()) == [2.0, 6.0, 6.0]


def test_only_traces_that_mix_tenants_are_named():
    built = hop(headers(x__tenant__id='["a"]'), headers(x__tenant__id='["b"]'))
    hop(headers(x__tenant__id='["a"]'), headers(x_tenant_id='["a"]'), number=2, built=built)
    row = find_mixed_tenants(built.traces()).to_dicts()
    assert [one["trace_id"] for one in row] == [trace_id(1)]
    assert (row[0]["tenants"], row[0]["first_tenant"], row[0]["tenant"]) == (["a", "b"], "a", "b")


def test_rates_per_tenant_count_traces():
    built = hop(headers(x__tenant__id='["a"]'), headers(x__tenant__id='["a"]'))
    built.span(2, 50, kind="SERVER", attributes=headers(x__tenant__id='["a"]'), **ERROR)
    built.span(3, 60, attributes="{}")
    rates = tenant_rates(
        built.traces(), hops=schema.empty(schema.ERROR_HOPS), breaks=schema.empty(schema.BREAKS)
    )
    assert rates.select("tenant", "traces", "failing").rows() == [("a", 2, 1), (None, 1, 0)]
