"""Hidden failures, retries and mixed tenants: the same sums in whatever buckets."""

import json

import pytest
from building import Capture
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tracelab.audits.digest import digest_audits, merge_digests, render_digest
from tracelab.errors_chain import find_error_hops, parse_exceptions
from tracelab.investigation import investigate
from tracelab.structure import span_edges

ERROR = {"status_code": "ERROR"}


def capture():
    built = Capture(sdk_language="go")
    for trace in range(1, 7):
        own = trace * 10
        built.span(trace, own, kind="SERVER", name="GET /cart", duration=30, tenant_id="a")
        if trace <= 3:  # swallowed
            built.span(trace, own + 1, own, name="load", start=1, duration=5, **ERROR)
        elif trace <= 5:  # retried, with success
            call = {"kind": "CLIENT", "name": "GET", "attributes": '{"url.full":"http://s/x"}'}
            built.span(trace, own + 1, own, start=1, duration=5, **call, **ERROR)
            built.span(trace, own + 2, own, start=8, duration=5, **call)
    return built.traces()


def digest(traces):
    edges = span_edges(traces)
    exceptions = parse_exceptions(traces)
    hops = find_error_hops(traces, edges=edges, exceptions=exceptions)
    return digest_audits(traces, hops=hops, edges=edges, exceptions=exceptions)


def test_hidden_failures_and_retries_are_counted_per_endpoint():
    told = render_digest(merge_digests(digest(capture())))
    (endpoint,) = told["hidden_failures"]
    assert (endpoint["requests"], endpoint["successful"], endpoint["hiding"]) == (6, 6, 5)
    assert (endpoint["swallowed"], endpoint["recovered"]) == (3, 2)
    (retried,) = told["retries"]
    assert (retried["groups"], retried["attempts"], retried["failed"]) == (2, 4, 2)
    assert retried["succeeded"] == 2
    assert told["mixed_tenants"] == {"traces": 0, "examples": []}


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_the_sums_are_the_same_in_whatever_buckets_the_traces_lie(bucket_of):
    traces = capture()
    whole = merge_digests(digest(traces))
    ids = traces.spans["trace_id"].unique().sort().to_list()
    buckets = [
        traces.select_traces([i for i, n in zip(ids, bucket_of, strict=True) if n == bucket])
        for bucket in sorted(set(bucket_of))
    ]
    parts = merge_digests(*(digest(bucket) for bucket in buckets))
    for name in ("hidden", "retries", "mixed"):
        assert_frame_equal(getattr(parts, name), getattr(whole, name))


def test_an_investigation_tells_what_successful_requests_hide():
    summary = investigate(capture()).summary
    assert summary["hidden_failures"][0]["hiding"] == 5
    assert any(
        "5 of 6 successful requests, counted at each service, hide a" in line
        for line in summary["text"]
    )
    json.dumps(summary)


def test_a_capture_without_failures_hides_nothing():
    clean = Capture().span(1, 1, kind="SERVER").traces()
    summary = investigate(clean).summary
    assert summary["hidden_failures"] == []
    assert summary["retries"] == []
    assert not any("hide" in line for line in summary["text"])


def test_no_part_is_a_mistake():
    with pytest.raises(ValueError, match=r"."):
        merge_digests()
