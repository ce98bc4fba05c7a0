import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.rules import backtest_rules, derive_rules
from tracelab.signals import find_lead_lags, merge_red, red_series
from tracelab.signals.grid import iterate_series
from tracelab.traceset import TraceSet

T0 = 1_767_571_200_000_000_000
SECOND = 10**9


def span(number, at_s, *, service="auth", kind="SERVER", name="GET /", ms=10, **more):
    return {
        "trace_id": f"{number:032x}",
        "span_id": f"{number:016x}",
        "name": name,
        "kind": kind,
        "start_time": T0 + int(at_s * SECOND),
        "end_time": T0 + int(at_s * SECOND) + int(ms * 1e6),
        "duration_ns": int(ms * 1e6),
        "status_code": "UNSET",
        "service_name": service,
        "attributes": "{}",
        **more,
    }


def capture(rows):
    return TraceSet(
        spans=schema.conform(pl.DataFrame(rows, infer_schema_length=None), schema.SPANS)
    )


def whole(red, service="auth"):
    return red.filter(service_name=service).filter(pl.col("span_name").is_null())


def test_a_request_counts_in_the_bin_of_its_start_per_service_and_operation():
    red = red_series(capture([span(1, 1), span(2, 29.9, name="PUT /"), span(3, 31)]))
    assert whole(red)["requests"].to_list() == [2.0, 1.0]
    assert red.filter(span_name="PUT /")["requests"].to_list() == [1.0, 0.0]
    assert red.schema == schema.RED
    assert red["bin_ns"].unique().to_list() == [30 * SECOND]


def test_a_duration_on_an_edge_belongs_to_the_bucket_below_it():
    edge_ms = schema.DURATION_EDGES_NS[3] / 1e6
    red = red_series(capture([span(1, 0, ms=edge_ms), span(2, 0, ms=edge_ms + 0.001)]))
    counts = whole(red)["duration_counts"][0].to_list()
    assert counts[3] == 1.0
    assert counts[4] == 1.0
    assert sum(counts) == 2.0


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"http_response_status_code": 503}, 1.0),
        ({"http_response_status_code": 599}, 1.0),
        ({"http_response_status_code": 600}, 0.0),
        ({"http_response_status_code": 404}, 0.0),
        ({"rpc_system": "grpc", "attributes": '{"rpc.grpc.status_code":14}'}, 1.0),
        ({"rpc_system": "grpc", "attributes": '{"rpc.grpc.status_code":5}'}, 0.0),
        ({"rpc_system": "grpc", "attributes": '{"rpc.response.status_code":"INTERNAL"}'}, 1.0),
        ({"rpc_system": "grpc", "attributes": '{"x":"\\"rpc.grpc.status_code\\":14"}'}, 0.0),
        ({"kind": "CONSUMER", "http_response_status_code": 503}, 0.0),
    ],
)
def test_5xx_is_the_servers_fault(more, expected):
    assert whole(red_series(capture([span(1, 0, **more)])))["errors_5xx"].to_list() == [expected]


def test_a_client_span_is_no_request_and_its_5xx_is_its_peers():
    rows = [span(1, 0), span(2, 0, kind="CLIENT", http_response_status_code=500)]
    red = whole(red_series(capture(rows)))
    assert red["requests"].to_list() == [1.0]
    assert red["errors_5xx"].to_list() == [0.0]


def test_a_service_without_server_spans_counts_its_local_roots():
    root = span(1, 0, kind="INTERNAL", service="worker")
    child = {**span(2, 0, kind="INTERNAL", service="worker"), "trace_id": root["trace_id"]}
    child["parent_span_id"] = root["span_id"]
    called = {**span(3, 0, kind="INTERNAL", service="worker"), "parent_span_id": "ab" * 8}
    assert whole(red_series(capture([root, child, called])), "worker")["requests"].to_list() == [
        2.0
    ]


def test_the_sampling_threshold_of_the_trace_state_weighs_a_request():
    rows = [
        span(1, 0, trace_state="ot=th:c"),
        span(2, 0, trace_state="a=b,ot=rv:01;th:8"),
        span(3, 0),
    ]
    red = whole(red_series(capture(rows)))
    assert red["requests"].to_list() == [4.0 + 2.0 + 1.0]
    assert red["sampled_requests"].to_list() == [3.0]


def test_a_silent_feed_is_null_and_a_quiet_service_is_zero():
    busy = [span(i, i * 0.5) for i in range(1200) if not 200 <= i * 0.5 < 400]
    rare = [span(10_000, 5, service="rare"), span(10_001, 590, service="rare")]
    red = red_series(capture(busy + rare))
    assert whole(red)["requests"].to_list()[8:12] == [None] * 4
    quiet = whole(red, "rare")["requests"].to_list()
    assert quiet[1:5] == [0.0] * 4
    # Nobody but the rare service spoke, and that was silent too.
    assert quiet[8] is None


def test_retries_are_counted_for_the_whole_service_only():
    rows = [span(1, 0), span(2, 0, kind="CLIENT", resend_count=2)]
    red = red_series(capture(rows))
    assert whole(red)["retries"].to_list() == [1.0]
    assert red.filter(pl.col("span_name").is_not_null())["retries"].null_count() == 1
    assert red["breaks"].null_count() == red.height


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 20_000), st.booleans()),
        min_size=2,
        max_size=40,
    ),
    st.integers(2, 4),
)
def test_parts_by_trace_add_up_to_the_whole(drawn, parts):
    rows = [
        span(i, at, ms=ms, http_response_status_code=500 if bad else 200)
        for i, (at, ms, bad) in enumerate(drawn)
    ]
    one = red_series(capture(rows))
    split = [red_series(capture(rows[k::parts])) for k in range(parts) if rows[k::parts]]
    names = ["service_name", "span_name", "time", "requests", "errors_5xx", "duration_counts"]
    assert merge_red(*split).select(names).equals(one.select(names))


def test_an_empty_capture_gives_an_empty_table():
    assert red_series(TraceSet(spans=schema.empty(schema.SPANS))).schema == schema.RED


@pytest.mark.parametrize("every", ["1s", "10m", "soon", "", "30"])
def test_a_bin_out_of_range_is_refused(every):
    with pytest.raises(ParameterError, match="every"):
        red_series(capture([span(1, 0)]), every=every)


def test_a_clock_that_stands_at_1970_or_2040_makes_no_grid_of_decades():
    stray = [span(90_000, -1_767_571_200), span(90_001, 450_000_000, service="late")]
    rows = [span(i, i * 0.5) for i in range(1200)]
    red = red_series(capture(rows + stray))
    assert red.height < 200
    assert whole(red).filter(pl.col("requests") > 0).height == 21
    parts = merge_red(red_series(capture(rows)), red_series(capture(stray)))
    names = ["service_name", "span_name", "time", "requests", "duration_counts"]
    assert parts.select(names).equals(red.select(names))
    series = list(iterate_series(red))
    assert {one.n_bins for one in series} == {20}
    assert find_lead_lags(red)["verdict"].unique().to_list() == ["undecidable"]


def test_a_silence_of_all_for_over_a_day_is_unknown_not_zero():
    rows = [span(i, at) for i, at in enumerate(range(0, 600, 5))]
    later = [span(1000 + i, 3 * 86_400 + at) for i, at in enumerate(range(0, 600, 5))]
    series = next(s for s in iterate_series(red_series(capture(rows + later))) if not s.span_name)
    counts = series.column("requests")
    assert len(counts) == 3 * 2880 + 20
    assert np.isnan(counts[20:-20]).all()
    assert np.nansum(counts) == 240


@pytest.mark.parametrize("minutes", [0.01, 1, 10])
def test_a_short_capture_gives_no_rule_and_a_reason(minutes):
    rng = np.random.default_rng(0)
    rows = [
        span(i, at, service=service, http_response_status_code=500 if rng.random() < 0.3 else 200)
        for i, at in enumerate(rng.uniform(0, 60 * minutes, 400))
        for service in ("auth", "payment")
    ]
    red = red_series(capture(rows))
    leads = find_lead_lags(red)
    assert leads.height == 2
    assert not leads["accepted"].any()
    assert leads["reason"].str.contains("are needed").all()
    assert derive_rules(red) == []


def test_one_service_alone_has_no_pair():
    red = red_series(capture([span(i, i) for i in range(600)]))
    assert find_lead_lags(red).height == 0
    assert derive_rules(red) == []
    assert backtest_rules([], red).height == 0


def test_a_clock_that_steps_by_an_hour_counts_every_request_once():
    rows = [span(i, i if i < 1800 else i - 3600) for i in range(3600)]
    red = red_series(capture(rows))
    assert whole(red)["requests"].sum() == 3600.0
    assert red["time"].n_unique() == red.filter(pl.col("span_name").is_null()).height
