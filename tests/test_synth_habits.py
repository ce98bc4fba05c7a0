"""Each legal habit of the simulated fleets is there when asked for, and nothing is broken by it."""

import json

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tracelab.synth import HABITS, synthesize_traces

SEEDS = (1, 2, 3)
MS = 1_000_000


def spans_with(*habits, seed=1, **knobs):
    knobs = {"traces": 400, "skew_ms": 0.0, "error_rate": 0.0, **knobs}
    return synthesize_traces(seed=seed, habits=habits, **knobs)


def fleets_with(habit, **knobs):
    return pl.concat([spans_with(habit, seed=seed, **knobs).spans for seed in SEEDS])


def children(spans):
    parents = spans.select(
        "trace_id",
        pl.col("span_id").alias("parent_span_id"),
        pl.col(COLUMNS).name.prefix("p_"),
    )
    return spans.join(parents, on=["trace_id", "parent_span_id"], how="inner")


COLUMNS = ("name", "kind", "start_time", "end_time", "duration_ns")


def roots(spans):
    return spans.filter(pl.col("parent_span_id").is_null())


@pytest.mark.parametrize("habit", HABITS)
def test_habit_changes_the_capture_and_leaves_every_parent_in_place(habit):
    plain, changed = spans_with(seed=2), spans_with(habit, seed=2)
    assert not changed.spans.equals(plain.spans) or not changed.links.equals(plain.links)
    told = changed.spans.filter(pl.col("parent_span_id").is_not_null())
    assert children(changed.spans).height == told.height > 0
    assert changed.spans.select("trace_id", "span_id").is_duplicated().sum() == 0
    assert (changed.spans["duration_ns"] >= 0).all()


def test_no_habit_is_drawn_from_the_numbers_of_another():
    first = spans_with("tenants", "coarse_clocks", seed=4).spans
    alone = spans_with("coarse_clocks", seed=4).spans
    services = ["service_name", "sdk_language", "sdk_version"]
    assert_frame_equal(
        first.select(services).unique().sort(services),
        alone.select(services).unique().sort(services),
    )


def test_probes_are_roots_that_come_regularly_and_call_nobody():
    spans = fleets_with("health_checks", concurrency=0.5)
    probes = spans.filter(pl.col("http_route").is_in(["/healthz", "/ready", "/metrics"]))
    assert probes.height > 100
    assert probes["parent_span_id"].is_null().all()
    assert probes["trace_id"].n_unique() == probes.height


def test_direct_calls_begin_traces_at_operations_that_are_called_otherwise():
    spans = fleets_with("direct_calls").filter(pl.col("kind") == "SERVER")
    both = spans.group_by("service_name", "name").agg(
        roots=pl.col("parent_span_id").is_null().sum(),
        called=pl.col("parent_span_id").is_not_null().sum(),
    )
    assert both.filter((pl.col("roots") > 2) & (pl.col("called") > 2)).height > 0


def test_pollers_are_long_calls_without_parent_or_child():
    spans = fleets_with("pollers")
    polls = spans.filter(pl.col("name").str.ends_with(" receive"))
    assert polls.height > 10
    assert polls["parent_span_id"].is_null().all()
    assert polls["duration_ns"].median() > 300 * MS
    assert children(spans).filter(pl.col("p_name").str.ends_with(" receive")).height == 0


def test_linked_roots_name_the_span_that_left_them_behind():
    capture = spans_with("linked_roots", seed=3)
    later = capture.spans.filter(pl.col("name").str.starts_with("later."))
    links = capture.links.join(later, on=["trace_id", "span_id"], how="semi")
    assert links.height == later.height > 10
    ids = capture.spans.select(linked_trace_id="trace_id", linked_span_id="span_id")
    assert links.join(ids, on=ids.columns, how="semi").height == links.height


def test_batch_readers_link_to_every_message_they_took():
    batches = 0
    for seed in range(1, 8):
        capture = spans_with("batch_readers", seed=seed, concurrency=20.0)
        read = capture.spans.filter(pl.col("name").str.ends_with(" process batch"))
        counts = (
            capture.links.join(read, on=["trace_id", "span_id"], how="semi")
            .group_by("trace_id", "span_id")
            .len()
        )
        assert counts.height == read.height
        batches += counts.filter(pl.col("len") > 3).height
    assert batches > 5


def test_hedged_call_is_sent_later_and_ends_with_the_first():
    twins = 0
    for seed in range(1, 8):
        spans = spans_with("hedged_calls", seed=seed).spans
        calls = spans.filter(pl.col("kind") == "CLIENT")
        servers = children(spans).filter(pl.col("kind") == "SERVER")
        late = servers.filter(pl.col("end_time") > pl.col("p_end_time"))
        together = calls.group_by("trace_id", "parent_span_id", "name", "end_time").agg(
            pl.len(), begun=pl.col("start_time").n_unique()
        )
        both = together.filter((pl.col("len") == 2) & (pl.col("begun") == 2))
        twins += both.height
        assert late.height >= both.height > 0 or not both.height
    assert twins > 10


def test_server_goes_on_after_an_early_answer():
    spans = fleets_with("early_answers")
    servers = children(spans).filter((pl.col("kind") == "SERVER") & (pl.col("p_kind") == "CLIENT"))
    assert servers.filter(pl.col("end_time") > pl.col("p_end_time")).height > 20


def test_streams_and_jobs_last_much_longer_than_requests():
    for habit, name in (("streams", "GET /stream"), ("long_jobs", "job.export_report")):
        spans = fleets_with(habit)
        long = spans.filter(pl.col("name") == name)
        other = roots(spans).filter(pl.col("name") != name)
        assert long["duration_ns"].median() > 20 * other["duration_ns"].median()
        assert children(spans).filter(pl.col("p_name") == name).height > 5 * long.height


def test_loops_make_equal_siblings_one_after_the_other():
    many = fleets_with("loops").group_by("trace_id", "parent_span_id", "name").len()
    assert many["len"].max() >= 6


def test_rare_operations_come_up_once_in_a_while():
    spans = fleets_with("rare_operations", traces=2000)
    rare = spans.filter(pl.col("name").str.starts_with("rare."))
    assert 0 < rare.height < 0.01 * spans.height


def test_instants_have_no_length():
    marks = fleets_with("instant_spans").filter(pl.col("name").str.starts_with("mark."))
    assert marks.height > 50
    assert (marks["duration_ns"] == 0).all()


def test_coarse_clocks_know_no_less_than_a_tick():
    spans = fleets_with("coarse_clocks", services=20)
    start = pl.col("start_time").dt.timestamp("ns")
    ticks = spans.group_by("service_name", "sdk_version").agg(
        ms=(start % MS == 0).all(), us=(start % 1000 == 0).all()
    )
    assert ticks["ms"].any() or ticks["us"].any()
    assert not ticks["us"].all()


def test_digests_of_a_service_have_one_length():
    texts = fleets_with("digests").filter(
        pl.col("attributes").str.contains("app.payload.digest", literal=True)
    )
    length = pl.col("attributes").str.json_path_match("$['app.payload.digest']").str.len_chars()
    assert texts.select(length).to_series().is_in([32, 64, 128, 256]).all()
    assert texts.height > 100


def test_one_replica_may_do_most_of_the_work():
    spans = spans_with("uneven_replicas", seed=2, traces=1500, services=20).spans
    work = spans.group_by("service_name", "process_pid", "host_name").len()
    share = work.group_by("service_name").agg(pl.col("len").max() / pl.col("len").sum(), n=pl.len())
    assert share.filter((pl.col("n") > 1) & (pl.col("len") > 0.75)).height > 0


def test_deployment_hands_over_between_versions_without_loss():
    seen = 0
    for seed in SEEDS:
        spans = spans_with("deployments", seed=seed, traces=1500).spans.with_columns(
            version=pl.col("resource_attributes").str.json_path_match("$['service.version']")
        )
        both = spans.group_by("service_name").agg(
            old=pl.col("start_time").filter(~pl.col("version").str.starts_with("2.0.")).max(),
            new=pl.col("start_time").filter(pl.col("version").str.starts_with("2.0.")).min(),
        )
        both = both.drop_nulls()
        seen += both.height
        low, high = spans["start_time"].min(), spans["start_time"].max()
        assert ((both["new"] > low) & (both["new"] < high)).all()
    assert seen >= 3


def test_scaled_replica_works_for_a_part_of_the_capture_only():
    plain, more = (
        spans_with(seed=5, traces=1500).spans,
        spans_with("scaling", seed=5, traces=1500).spans,
    )
    key = ["service_name", "host_name", "process_pid"]
    joined = (
        more.join(plain, on=key, how="anti")
        .group_by(key)
        .agg(first=pl.col("start_time").min(), last=pl.col("start_time").max())
    )
    assert joined.height > 0
    assert (joined["first"] > more["start_time"].min()).all()
    assert (joined["last"] < more["start_time"].max()).all()


def test_bare_resources_name_a_service_and_its_sdk_only():
    spans = fleets_with("bare_resources")
    bare = spans.filter(pl.col("host_name").is_null())
    assert bare.height > 0
    assert bare["process_pid"].is_null().all()
    assert bare["service_instance_id"].is_null().all()
    assert "host.name" not in json.loads(bare["resource_attributes"][0])


def test_tenant_is_one_for_a_trace_and_known_to_some_services():
    spans = fleets_with("tenants")
    known = spans.filter(pl.col("tenant_id").is_not_null())
    assert 0 < known["service_name"].n_unique() < spans["service_name"].n_unique()
    assert known.group_by("trace_id").agg(pl.col("tenant_id").n_unique())["tenant_id"].max() == 1
    told = known["attributes"].str.json_path_match("$['http.request.header.x-tenant-id'][0]")
    assert (told == known["tenant_id"]).all()


def test_head_sampling_keeps_traces_by_their_random_bits_and_says_so():
    whole = spans_with(seed=6, traces=4000).spans
    part = spans_with(seed=6, traces=4000, sampling=0.25).spans
    share = part["trace_id"].n_unique() / whole["trace_id"].n_unique()
    assert 0.22 < share < 0.28
    states = part["trace_state"]
    assert states.null_count() == 0
    own = part.filter(states.str.contains(";rv:")).select("trace_state").to_series()
    assert (own.str.extract("rv:([0-9a-f]{14})$") >= "c0000000000000").all()
    by_id = part.filter(states == "ot=th:c")["trace_id"]
    assert by_id.len() > 0
    assert own.len() > 0
    assert (by_id.str.slice(18) >= "c0000000000000").all()
    assert part.group_by("trace_id").agg(pl.col("trace_state").n_unique())["trace_state"].max() == 1
    ids = part.select("trace_id", parent_span_id="span_id")
    told = part.filter(pl.col("parent_span_id").is_not_null())
    assert told.join(ids, on=["trace_id", "parent_span_id"], how="semi").height == told.height
