"""Planted fates must stand in the capture as their words say, for plain eyes."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.synth import DEFAULT_FATES, inject_errors, synthesize_traces

KEY = ["trace_id", "span_id"]
CHAINED = ["python", "java", "dotnet"]


@pytest.fixture(scope="module")
def planted():
    """Hops of several fleets, each with the spans and first events of both its sides."""
    parts = []
    for seed in range(1, 7):
        clean = synthesize_traces(seed=seed, traces=600, services=16, error_rate=0.0)
        failing, truth = inject_errors(clean, seed=seed, rate=0.3)
        parts.append(_both_sides(failing, truth))
    return pl.concat(parts)


def _both_sides(failing, truth):
    columns = ["exception_type", "exception_message", "exception_stacktrace"]
    events = failing.events.filter(pl.col("event_index") == 0).select(*KEY, *columns)
    sides = failing.spans.select(
        *KEY, "name", "status_code", "sdk_language", "start_time", "end_time", "parent_span_id"
    ).join(events, on=KEY, how="left")
    hops = truth.filter((pl.col("kind") == "error_hop") & pl.col("evidence_present"))
    child = hops.select(*KEY, "verdict", "true_parent_span_id").join(sides, on=KEY, how="left")
    parent = sides.rename(lambda name: f"p_{name}")
    return child.join(
        parent,
        left_on=["trace_id", "true_parent_span_id"],
        right_on=["p_trace_id", "p_span_id"],
        how="left",
    )


def of(planted, verdict):
    rows = planted.filter(pl.col("verdict") == verdict)
    assert rows.height > 10
    return rows


def test_all_verdicts_are_planted(planted):
    assert set(planted["verdict"].unique()) == set(schema.HOP_VERDICTS)
    assert set(DEFAULT_FATES) < set(schema.HOP_VERDICTS)


def test_both_sides_of_each_hop_are_parent_and_child(planted):
    assert (planted["parent_span_id"] == planted["true_parent_span_id"]).all()
    assert planted["p_name"].null_count() == 0


def test_kept_errors_stand_on_both_spans(planted):
    rows = of(planted, "kept")
    assert (rows["exception_message"] == rows["p_exception_message"]).all()
    same = rows["exception_type"].eq_missing(rows["p_exception_type"])
    assert same.all()
    assert (rows["p_status_code"] == "ERROR").all()


def test_wrapped_errors_stand_as_cause_in_the_parents_stack(planted):
    rows = of(planted, "wrapped").filter(pl.col("sdk_language").is_in(CHAINED))
    head = rows["exception_type"] + ": " + rows["exception_message"]
    inside = pl.DataFrame({"stack": rows["p_exception_stacktrace"], "head": head})
    assert rows.height > 10
    assert (
        inside.select(pl.col("stack").str.contains(pl.col("head"), literal=True)).to_series().all()
    )
    assert (rows["exception_type"] != rows["p_exception_type"]).any()


def test_go_wrappers_say_so_by_their_type(planted):
    rows = of(planted, "wrapped").filter(pl.col("p_sdk_language") == "go")
    assert rows.height > 0
    assert (rows["p_exception_type"] == "*fmt.wrapError").all()


def test_flattened_errors_are_text_in_a_plain_error(planted):
    rows = of(planted, "flattened")
    text = rows.select(
        pl.col("p_exception_message").str.contains(pl.col("exception_message"), literal=True)
    )
    assert text.to_series().all()
    stacked = rows.filter(pl.col("p_sdk_language").is_in(CHAINED))
    for word in ("direct cause", "Caused by", "--->"):
        assert not stacked["p_exception_stacktrace"].str.contains(word, literal=True).any()


def test_truncated_stacks_end_inside_the_head_of_the_cause(planted):
    rows = planted.filter(pl.col("verdict") == "truncated")
    assert rows.height > 5
    for stack, kind, message in rows.select(
        "p_exception_stacktrace", "exception_type", "exception_message"
    ).iter_rows():
        head = f"{kind}: {message}"
        assert head not in stack
        assert any(stack.endswith(head[:length]) for length in range(5, len(head)))


def test_replaced_errors_share_nothing(planted):
    rows = of(planted, "replaced")
    assert (rows["p_status_code"] == "ERROR").all()
    assert (rows["exception_message"] != rows["p_exception_message"]).all()
    text = rows.select(
        pl.col("p_exception_stacktrace").str.contains(pl.col("exception_message"), literal=True)
    )
    assert not text.to_series().fill_null(value=False).any()


def test_swallowed_errors_leave_no_mark_on_the_parent(planted):
    rows = of(planted, "swallowed")
    assert (rows["status_code"] == "ERROR").any()
    assert (rows["p_status_code"] == "UNSET").all()
    assert rows["p_exception_message"].is_null().all()


def test_a_lost_status_leaves_the_event(planted):
    rows = of(planted, "status_lost")
    assert (rows["p_status_code"] == "UNSET").all()
    assert rows["p_exception_message"].is_not_null().all()


def test_undeterminable_fates_are_those_of_languages_that_record_no_cause(planted):
    rows = of(planted, "not_determinable")
    assert set(rows["p_sdk_language"].unique()) <= {"nodejs", "rust"}


def test_a_recovered_call_has_a_later_sibling_that_succeeded():
    clean = synthesize_traces(seed=3, traces=800, services=12, error_rate=0.0)
    failing, truth = inject_errors(clean, seed=4, rate=0.3)
    rows = truth.filter(pl.col("verdict") == "recovered").join(failing.spans, on=KEY)
    again = failing.spans.filter(pl.col("resend_count") == 1)
    both = rows.join(again, on=["trace_id", "parent_span_id", "name"], suffix="_again")
    assert both.height == rows.height == again.height > 10
    assert (both["start_time_again"] > both["end_time"]).all()
    assert (both["status_code_again"] == "UNSET").all()
    assert (both["status_code"] == "ERROR").all()
    counts = again["attributes"].str.json_path_match("$['http.request.resend_count']")
    assert (counts == "1").all()


def test_refused_requests_are_no_error_of_the_server():
    clean = synthesize_traces(seed=1, traces=2000, services=20, error_rate=0.0)
    failing, truth = inject_errors(clean, seed=1, rate=0.8)
    rows = truth.filter(pl.col("kind") == "legal").join(failing.spans, on=KEY)
    assert rows.height > 0
    assert (rows["status_code"] == "UNSET").all()
    assert (rows["http_response_status_code"] == 404).all()


def test_python_repeats_its_status_words_and_never_says_escaped():
    clean = synthesize_traces(seed=2, traces=600, services=20, error_rate=0.0)
    failing, _ = inject_errors(clean, seed=2, rate=0.4)
    both = failing.events.join(failing.spans, on=KEY).filter(pl.col("sdk_language") == "python")
    assert both.height > 10
    assert both["exception_escaped"].eq(other=False).all()
    node = failing.events.join(failing.spans, on=KEY).filter(pl.col("sdk_language") == "nodejs")
    assert not node["exception_stacktrace"].str.contains("Caused by", literal=True).any()


def test_same_seed_plants_the_same_errors():
    clean = synthesize_traces(seed=2, traces=300, error_rate=0.0)
    first, again = inject_errors(clean, seed=5), inject_errors(clean, seed=5)
    assert_frame_equal(first[0].spans, again[0].spans)
    assert_frame_equal(first[0].events, again[0].events)
    assert_frame_equal(first[1], again[1])


def test_fates_can_be_chosen():
    clean = synthesize_traces(seed=2, traces=600, error_rate=0.0)
    _, truth = inject_errors(clean, seed=5, rate=0.5, fates={"swallowed": 1.0})
    inside = truth.filter(pl.col("evidence_present") & (pl.col("kind") == "error_hop"))
    assert set(inside["verdict"].unique()) <= {"swallowed", "recovered"}


def test_a_real_capture_can_fail_too():
    real = tl.load_example("checkout")
    failing, truth = inject_errors(real, seed=1, rate=0.5)
    assert truth.height > 20
    assert failing.events.height > real.events.height
    assert failing.events.select(*KEY, "event_index").is_duplicated().sum() == 0


@pytest.mark.parametrize("knobs", [{"rate": 2.0}, {"fates": {"eaten": 1.0}}, {"fates": {}}])
def test_impossible_arguments_are_refused(knobs):
    with pytest.raises(ParameterError):
        inject_errors(synthesize_traces(seed=1, traces=5), seed=1, **knobs)
