"""Planted truth must agree with the damaged capture: each check here looks with plain eyes."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.synth import DEFAULT_RATES, inject_breaks, synthesize_traces

KEY = ["trace_id", "span_id"]
BIG = {
    "context_not_propagated": 0.05,
    "context_leak": 0.03,
    "span_never_ended": 0.1,
    "uninstrumented_hop": 0.15,
    "sampled_out": 0.2,
    "queue_overflow": 0.5,
    "export_failure": 0.05,
    "process_exit": 0.3,
    "capture_edge": 0.05,
    "random_loss": 0.05,
    "clock_skew": 0.4,
    "parent_cycle": 0.005,
    "invalid_id": 0.01,
    "truncated_value": 0.5,
    "duplicate_export": 0.05,
    "duplicate_conflict": 0.01,
}
LOSSES = [
    "span_never_ended",
    "uninstrumented_hop",
    "sampled_out",
    "queue_overflow",
    "export_failure",
    "process_exit",
    "capture_edge",
]


@pytest.fixture(scope="module")
def clean():
    return synthesize_traces(seed=21, traces=1500, services=14, error_rate=0.05, skew_ms=0.0)


def plant(clean, name, seed=3):
    damaged, truth = inject_breaks(clean, seed=seed, rates={name: BIG[name]})
    return damaged, truth.filter(pl.col("kind") != "legal")


def orphans(spans):
    return spans.filter(pl.col("parent_span_id").is_not_null()).join(
        spans.select("trace_id", parent_span_id="span_id"),
        on=["trace_id", "parent_span_id"],
        how="anti",
    )


def pairs(table):
    return set(table.select(KEY).rows())


def test_every_rate_has_a_test_here():
    assert set(BIG) == set(DEFAULT_RATES)


def test_no_rate_plants_nothing_and_tells_only_of_look_alikes(clean):
    same, truth = inject_breaks(clean, seed=1, rates={})
    for name in ("spans", "events", "links"):
        assert_frame_equal(getattr(same, name), getattr(clean, name))
    assert set(truth["kind"].unique()) == {"legal"}
    assert {"fire and forget", "peer without spans"} <= set(truth["detail"].unique())


def test_same_seed_plants_the_same_and_another_seed_something_else(clean):
    before = clean.spans.clone()
    first, truth = inject_breaks(clean, seed=1)
    again, truth_again = inject_breaks(clean, seed=1)
    other, _ = inject_breaks(clean, seed=2)
    assert_frame_equal(first.spans, again.spans)
    assert_frame_equal(truth, truth_again)
    assert not first.spans.equals(other.spans)
    assert_frame_equal(clean.spans, before)


def test_truth_has_its_schema_and_only_known_words(clean):
    _, truth = inject_breaks(clean, seed=4)
    assert truth.schema == schema.TRUTH
    real = truth.filter(pl.col("kind") != "legal")
    assert set(real["kind"].unique()) <= set(schema.BREAK_KINDS)
    assert set(real["cause"].unique()) <= set(schema.BREAK_CAUSES)
    assert set(real["boundary"].unique()) <= set(schema.BOUNDARIES)
    assert real.filter(pl.col("evidence_present") & ~pl.col("observable")).height == 0
    assert real.filter(pl.col("observable") & pl.col("span_id").is_null()).height == 0


def test_all_kinds_are_planted_by_default():
    kinds, causes = set(), set()
    for seed in range(4):
        traces = synthesize_traces(seed=seed, traces=1000, services=20)
        truth = inject_breaks(traces, seed=seed)[1].filter(pl.col("kind") != "legal")
        kinds |= set(truth["kind"])
        causes |= set(truth["cause"])
    assert kinds == set(schema.BREAK_KINDS) - {"late_child", "client_root"}
    assert causes == set(schema.BREAK_CAUSES)


@pytest.mark.parametrize("name", [*LOSSES, "random_loss"])
def test_lost_spans_are_absent_and_orphans_are_exactly_those_told(clean, name):
    damaged, truth = plant(clean, name)
    assert damaged.spans.height < clean.spans.height
    lost = pairs(clean.spans) - pairs(damaged.spans)
    told = set(truth.filter(pl.col("missing_span_id").is_not_null())["missing_span_id"])
    assert {span for _, span in lost} == told
    shown = truth.filter(
        pl.col("kind").is_in(["orphan_span", "sampling_gap"])
        & pl.col("span_id").is_not_null()
        & (pl.col("missing_span_id") != pl.col("span_id"))
    ).join(damaged.spans, on=KEY, how="inner")
    shown = shown.filter(pl.col("missing_span_id") == pl.col("parent_span_id"))
    assert pairs(shown) == pairs(orphans(damaged.spans))
    cause = "unknown" if name == "random_loss" else name
    assert set(truth["cause"].unique()) == {cause}


@pytest.mark.parametrize("name", [*LOSSES, "random_loss"])
def test_true_parent_of_an_orphan_is_its_nearest_exported_ancestor(clean, name):
    damaged, truth = plant(clean, name)
    parent = dict(zip(clean.spans["span_id"], clean.spans["parent_span_id"], strict=True))
    kept = set(damaged.spans["span_id"])
    rows = truth.filter(pl.col("span_id").is_not_null() & (pl.col("kind") == "orphan_span"))
    for span, missing, true in rows.select(
        "span_id", "missing_span_id", "true_parent_span_id"
    ).iter_rows():
        assert parent[span] == missing
        above = parent[missing]
        while above is not None and above not in kept:
            above = parent[above]
        assert above == true


def test_unanswered_calls_lost_their_server(clean):
    damaged, truth = plant(clean, "export_failure")
    calls = truth.filter(pl.col("kind") == "missing_server")
    assert calls.height > 0
    servers = clean.spans.filter(pl.col("kind") == "SERVER").select(
        "trace_id", "parent_span_id", missing="span_id"
    )
    joined = calls.join(servers, left_on=KEY, right_on=["trace_id", "parent_span_id"], how="left")
    assert (joined["missing"] == joined["missing_span_id"]).all()
    assert pairs(calls) <= pairs(damaged.spans)


def test_a_detached_root_takes_its_whole_subtree_into_a_new_trace(clean):
    damaged, truth = plant(clean, "context_not_propagated")
    assert damaged.spans.height == clean.spans.height
    assert orphans(damaged.spans).height == 0
    original = dict(zip(clean.spans["span_id"], clean.spans["parent_span_id"], strict=True))
    fresh = set(damaged.spans["trace_id"]) - set(clean.spans["trace_id"])
    assert truth.height == len(fresh) > 20
    roots = damaged.spans.join(truth.select(*KEY, "true_parent_span_id"), on=KEY, how="inner")
    assert roots.height == truth.height
    assert roots["parent_span_id"].is_null().all()
    assert set(roots["trace_id"]) == fresh
    for span, parent in roots.select("span_id", "true_parent_span_id").iter_rows():
        assert original[span] == parent
    holder = dict(zip(damaged.spans["span_id"], damaged.spans["trace_id"], strict=True))
    told = truth.select("true_parent_span_id", "true_parent_trace_id").iter_rows()
    assert all(holder[span] == trace for span, trace in told)
    assert not roots["parent_is_remote"].fill_null(value=False).any()


def test_contexts_are_cut_at_every_boundary_that_ids_can_show():
    boundaries = set()
    for seed in range(1, 9):
        traces = synthesize_traces(seed=seed, traces=400, services=20)
        truth = inject_breaks(traces, seed=seed, rates={"context_not_propagated": 0.1})[1]
        boundaries |= set(truth.filter(pl.col("kind") == "detached_root")["boundary"])
    assert boundaries == set(schema.BOUNDARIES)


def test_a_leaked_context_belongs_to_another_request_of_the_same_process(clean):
    damaged, truth = plant(clean, "context_leak")
    assert truth.height > 10
    rows = truth.join(damaged.spans, on=KEY, how="inner")
    new = damaged.spans.select("trace_id", pl.col("span_id", "service_name").name.prefix("new_"))
    false = rows.join(
        new.with_columns(parent_span_id="new_span_id"), on=["trace_id", "parent_span_id"]
    )
    assert false.height == truth.height
    assert (false["parent_span_id"] != false["true_parent_span_id"]).all()
    assert (false["trace_id"] != false["true_parent_trace_id"]).all()
    assert (false["service_name"] == false["new_service_name"]).all()


def test_a_full_queue_drops_newest_except_in_python(clean):
    _, truth = plant(clean, "queue_overflow")
    lost = clean.spans.join(
        truth.select("missing_span_id", "detail"), left_on="span_id", right_on="missing_span_id"
    ).filter(~pl.col("detail").str.starts_with("cascade"))
    python = lost["sdk_language"] == "python"
    assert lost.height > 20
    assert ((lost["detail"] == "oldest") == python).all()


def test_a_failed_export_loses_a_run_that_is_contiguous_by_end_time(clean):
    damaged, _ = inject_breaks(clean, seed=3, rates={"export_failure": 0.05})
    process = ["service_name", "service_instance_id", "host_name", "process_pid"]
    kept = damaged.spans.select(*KEY, kept=pl.lit(value=True))
    ordered = clean.spans.join(kept, on=KEY, how="left").sort("end_time", maintain_order=True)
    runs = ordered.select(
        *process,
        lost=pl.col("kept").is_null(),
        turn=pl.col("kept").is_null().cast(pl.Int8).diff().over(process) == 1,
    )
    by_process = runs.group_by(process).agg(pl.col("lost").sum(), pl.col("turn").sum())
    hit = by_process.filter(pl.col("turn") > 0)
    assert hit.height > 0
    assert (hit["lost"] / hit["turn"] >= 8).all()


def test_nothing_of_a_killed_process_comes_after_its_end(clean):
    damaged, truth = plant(clean, "process_exit")
    moments = truth["detail"].str.extract(r"at (\d+)").cast(pl.Int64).unique()
    gone = clean.spans.join(
        truth.select("missing_span_id"), left_on="span_id", right_on="missing_span_id"
    )
    open_then = [
        gone.filter(
            (pl.col("start_time").dt.timestamp("ns") < moment)
            & (pl.col("end_time").dt.timestamp("ns") >= moment)
        ).height
        for moment in moments
    ]
    assert sum(open_then) > 0
    old = clean.spans["process_pid"].unique()
    fresh = damaged.spans.filter(~pl.col("process_pid").is_in(old.implode()))
    assert fresh.height > 0
    assert fresh["start_time"].dt.timestamp("ns").min() >= moments.min()
    pid = fresh["resource_attributes"].str.json_path_match("$['process.pid']").cast(pl.Int64)
    assert (pid == fresh["process_pid"]).all()


def test_a_ratio_sampler_parts_trace_ids_by_a_threshold():
    parted = 0
    for seed in range(12):
        traces = synthesize_traces(seed=seed, traces=600, services=10, error_rate=0.0)
        damaged, _ = inject_breaks(traces, seed=seed, rates={"sampled_out": 0.01})
        lost = traces.spans.join(damaged.spans, on=KEY, how="anti")
        for (service, language), part in traces.spans.group_by("service_name", "sdk_language"):
            gone = part.join(lost, on=KEY, how="semi")
            kept = part.join(lost, on=KEY, how="anti")
            above = gone.join(
                lost.select("trace_id", parent_span_id="span_id", above="service_name"),
                on=["trace_id", "parent_span_id"],
                how="left",
            )
            if not gone.height or not kept.height or language not in ("go", "python"):
                continue
            if (above["above"].fill_null(service) != service).any():
                continue  # this one only followed its caller's decision
            low = [int(trace[16:], 16) for trace in gone["trace_id"]]
            high = [int(trace[16:], 16) for trace in kept["trace_id"]]
            assert max(high) // 2 < min(low) // 2 or max(high) < min(low)
            parted += 1
    assert parted >= 2


def test_a_skewed_clock_shifts_a_host_as_a_whole(clean):
    damaged, truth = plant(clean, "clock_skew")
    both = damaged.spans.join(
        clean.spans.select(*KEY, true="start_time", true_end="end_time"), on=KEY
    ).with_columns(shift=pl.col("start_time") - pl.col("true"))
    hosts = both.filter(pl.col("host_name").is_not_null()).group_by("host_name")
    assert hosts.agg(pl.col("shift").n_unique())["shift"].max() == 1
    assert (both["end_time"] - both["true_end"] == both["shift"]).all()
    assert both["shift"].n_unique() > 1
    assert truth.filter("observable").height > 0
    host_shift = dict(zip(both["span_id"], both["shift"], strict=True))
    rows = truth.select("span_id", "true_parent_span_id").iter_rows()
    assert all(host_shift[child] != host_shift[parent] for child, parent in rows)


def test_events_move_with_their_span_in_id_and_time(clean):
    damaged, _ = inject_breaks(
        clean, seed=3, rates={"clock_skew": 1.0, "context_not_propagated": 0.3}
    )
    assert damaged.events.height == clean.events.height > 10
    inside = damaged.events.join(damaged.spans, on=KEY, how="inner")
    assert inside.height == damaged.events.height
    assert ((inside["time"] >= inside["start_time"]) & (inside["time"] <= inside["end_time"])).all()


def test_links_still_name_their_producer_after_a_cut():
    fleets = (synthesize_traces(seed=seed, traces=300, services=20) for seed in range(1, 30))
    traces = next(fleet for fleet in fleets if fleet.links.height > 20)
    damaged, _ = inject_breaks(traces, seed=3, rates={"context_not_propagated": 0.5})
    named = damaged.links.join(
        damaged.spans.select(linked_trace_id="trace_id", linked_span_id="span_id"),
        on=["linked_trace_id", "linked_span_id"],
        how="semi",
    )
    assert named.height == traces.links.height


def test_each_cycle_leads_back_to_itself(clean):
    damaged, truth = plant(clean, "parent_cycle")
    assert truth.height > 5
    parent = {
        (trace, span): (trace, up)
        for trace, span, up in damaged.spans.select(*KEY, "parent_span_id").iter_rows()
    }
    for start in truth.select(KEY).rows():
        seen, here = set(), start
        while here not in seen:
            seen.add(here)
            here = parent[here]
        assert here in seen


def test_spoilt_ids_are_no_span_ids_and_stay_apart(clean):
    damaged, truth = plant(clean, "invalid_id")
    good = damaged.spans["span_id"].str.contains("^[0-9a-f]{16}$") & (
        damaged.spans["span_id"] != "0" * 16
    )
    assert pairs(damaged.spans.filter(~good)) == pairs(truth)
    assert orphans(damaged.spans).height == 0
    assert set(truth["detail"]) == {"short", "zero", "no hex"}


def test_clipped_values_pile_up_at_one_length_per_service(clean):
    damaged, truth = plant(clean, "truncated_value")
    assert truth.height > 20
    before = clean.spans.select(*KEY, was="attributes")
    cut = damaged.spans.join(truth.select(KEY), on=KEY).join(before, on=KEY)
    text = cut["attributes"].str.json_path_match("$['db.query.text']").str.len_chars()
    was = cut["was"].str.json_path_match("$['db.query.text']").str.len_chars()
    assert (text < was).all()
    by_service = (
        cut.with_columns(length=text).group_by("service_name").agg(pl.col("length").n_unique())
    )
    assert (by_service["length"] == 1).all()
    others = damaged.spans.join(truth.select(KEY), on=KEY, how="anti")
    assert_frame_equal(others, clean.spans.join(truth.select(KEY), on=KEY, how="anti"))


def test_duplicates_stand_twice_equal_or_not(clean):
    exact, truth = plant(clean, "duplicate_export")
    twice = exact.spans.filter(pl.struct(KEY).is_duplicated())
    assert pairs(twice) == pairs(truth)
    assert twice.is_duplicated().all()
    clash, truth = plant(clean, "duplicate_conflict")
    twice = clash.spans.filter(pl.struct(KEY).is_duplicated())
    assert pairs(twice) == pairs(truth)
    assert not twice.is_duplicated().any()


def test_legal_rows_name_spans_that_nothing_was_done_to(clean):
    _, truth = inject_breaks(clean, seed=5)
    legal = truth.filter(pl.col("kind") == "legal")
    named = {"detached_root", "wrong_parent"}
    planted = truth.filter(pl.col("kind").is_in(named)).select(KEY)
    assert legal.height > 100
    assert legal.join(planted, on=KEY, how="inner").height == 0


def test_a_real_capture_can_be_damaged_too():
    real = tl.load_example("checkout")
    damaged, truth = inject_breaks(real, seed=2)
    causes = set(truth["cause"].drop_nulls())
    assert {"export_failure", "queue_overflow", "context_not_propagated"} <= causes
    assert damaged.spans.height != real.spans.height
    counts = np.array([damaged.spans.height, truth.height])
    assert (counts > 100).all()


def test_an_empty_capture_stays_empty():
    empty = tl.TraceSet(schema.empty(schema.SPANS))
    damaged, truth = inject_breaks(empty, seed=1)
    assert (damaged.spans.height, truth.height) == (0, 0)


@pytest.mark.parametrize("rates", [{"gremlins": 0.1}, {"context_leak": 1.5}])
def test_unknown_or_impossible_rates_are_refused(clean, rates):
    with pytest.raises(ParameterError):
        inject_breaks(clean, seed=1, rates=rates)


@pytest.mark.parametrize(
    ("name", "metric", "error"),
    [
        ("queue_overflow", "otel.sdk.processor.span.processed", "queue_full"),
        ("export_failure", "otel.sdk.exporter.span.exported", "503"),
    ],
)
def test_telling_services_count_exactly_the_spans_they_lost(clean, name, metric, error):
    damaged, truth = inject_breaks(clean, seed=3, rates={name: BIG[name]}, telling=1.0)
    lost = clean.spans.join(damaged.spans, on=KEY, how="anti")
    failed = damaged.metrics.filter(
        (pl.col("metric_name") == metric)
        & (pl.col("attributes").str.json_path_match("$['error.type']") == error)
    )
    last = failed.sort("time").group_by("resource_attributes").agg(pl.col("value").last())
    assert last["value"].sum() == lost.height > 0
    shown = truth.filter((pl.col("cause") == name) & pl.col("observable"))
    assert shown["evidence_present"].all()
    rising = failed.sort("time").with_columns(
        step=pl.col("value").diff().over("resource_attributes")
    )
    assert (rising["step"].drop_nulls() >= 0).all()


def test_no_service_counts_where_none_tells(clean):
    damaged, _ = inject_breaks(clean, seed=3, rates={"queue_overflow": 0.5}, telling=0.0)
    assert damaged.metrics.height == 0
