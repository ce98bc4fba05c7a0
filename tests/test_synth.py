import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab.exceptions import ParameterError
from tracelab.synth import HABITS, synthesize_traces, write_synthetic

FLUSH_NS = 5_000_000_000
KINDS = {"SERVER", "CLIENT", "INTERNAL", "PRODUCER", "CONSUMER"}


def capture(seed=1, **knobs):
    return synthesize_traces(seed=seed, **{"traces": 300, "skew_ms": 0.0, **knobs})


def without(*habits):
    return tuple(set(HABITS) - set(habits))


def edges(traces):
    columns = ["start_time", "end_time", "service_name", "kind", "name", "thread_id"]
    parents = traces.spans.select(
        "trace_id", pl.col("span_id").alias("parent_span_id"), pl.col(columns).name.prefix("p_")
    )
    return traces.spans.join(parents, on=["trace_id", "parent_span_id"], how="inner")


def test_same_seed_gives_the_same_tables_and_another_seed_others():
    first, again, other = capture(1), capture(1), capture(2)
    for name in ("spans", "events", "links"):
        assert_frame_equal(getattr(first, name), getattr(again, name))
    assert not first.spans["trace_id"].is_in(other.spans["trace_id"].implode()).any()


@pytest.mark.parametrize("services", [3, 12, 40])
def test_clean_traffic_has_every_parent_and_no_id_twice(services):
    traces = capture(5, services=services)
    children = traces.spans.filter(pl.col("parent_span_id").is_not_null())
    assert edges(traces).height == children.height > 0
    assert traces.spans.select("trace_id", "span_id").is_duplicated().sum() == 0
    assert traces.spans["service_name"].n_unique() <= services


def test_no_child_starts_before_its_parent_when_clocks_agree():
    both = edges(capture(3, error_rate=0.0, habits=without("coarse_clocks")))
    assert (both["start_time"] >= both["p_start_time"]).all()


def test_a_call_lies_inside_the_span_that_waits_for_it():
    habits = without("coarse_clocks", "early_answers", "hedged_calls")
    both = edges(capture(4, error_rate=0.0, habits=habits)).filter(
        (pl.col("kind") == "SERVER") & (pl.col("p_kind") == "CLIENT")
    )
    assert both.height > 50
    assert (both["end_time"] <= both["p_end_time"]).all()


def test_fleets_hold_all_kinds_links_jobs_and_late_children():
    sets = [capture(seed) for seed in range(1, 7)]
    kinds = {kind for traces in sets for kind in traces.spans["kind"].unique()}
    assert kinds == KINDS
    assert sum(traces.links.height for traces in sets) > 0
    roots = pl.concat([t.spans.filter(pl.col("parent_span_id").is_null()) for t in sets])
    assert {"SERVER", "INTERNAL", "CONSUMER"} <= set(roots["kind"].unique())
    late = [edges(t).filter(pl.col("start_time") > pl.col("p_end_time")).height for t in sets]
    assert sum(late) > 0


def test_each_link_of_a_reader_names_an_exported_producer():
    traces = next(t for t in map(capture, range(1, 20)) if t.links.height > 50)
    readers = traces.spans.filter(pl.col("kind") == "CONSUMER")
    links = traces.links.join(readers, on=["trace_id", "span_id"], how="semi")
    producers = traces.spans.filter(pl.col("kind") == "PRODUCER").select(
        linked_trace_id="trace_id", linked_span_id="span_id"
    )
    found = links.join(producers, on=["linked_trace_id", "linked_span_id"], how="semi")
    assert found.height == links.height > 0


def test_flags_are_those_of_each_sdk():
    spans = pl.concat([capture(seed, services=30).spans for seed in (1, 2, 3)])
    remote = pl.col("parent_is_remote")
    python = spans.filter((pl.col("sdk_language") == "python") & remote.is_not_null())
    assert set(python["flags"].unique()) == {0x100, 0x300}
    go = spans.filter((pl.col("sdk_language") == "go") & remote.is_not_null())
    assert set(go["flags"].unique()) == {0x101, 0x301}
    unknown = spans.filter(remote.is_null())
    assert set(unknown["flags"].unique()) == {0}
    old_go = spans.filter((pl.col("sdk_language") == "go") & (pl.col("sdk_version") == "1.21.0"))
    assert old_go["parent_is_remote"].is_null().all()


def test_remote_flag_says_whether_another_process_called():
    both = edges(capture(6, services=20)).filter(pl.col("parent_is_remote").is_not_null())
    remote = both["kind"].is_in(["SERVER", "CONSUMER"])
    assert (both["parent_is_remote"] == remote).all()


@pytest.mark.parametrize("concurrency", [2.0, 20.0])
def test_concurrency_is_the_mean_number_of_traces_in_flight(concurrency):
    traces = capture(8, traces=4000, concurrency=concurrency, error_rate=0.0, habits=())
    roots = traces.spans.filter(
        pl.col("parent_span_id").is_null() & (pl.col("kind").is_in(["SERVER", "CLIENT"]))
    )
    busy = roots["duration_ns"].sum()
    length = (roots["end_time"].max() - roots["start_time"].min()).total_seconds() * 1e9
    assert 0.6 * concurrency < busy / length < 1.6 * concurrency


def test_a_worker_thread_serves_one_request_at_a_time():
    parts = [
        capture(seed, traces=800, concurrency=15.0).spans.with_columns(fleet=pl.lit(seed))
        for seed in range(1, 7)
    ]
    spans = pl.concat(parts)
    entries = spans.filter(
        pl.col("kind").is_in(["SERVER", "CONSUMER"])
        & pl.col("thread_name").str.starts_with("worker-")
    ).sort("start_time")
    worker = ["fleet", "service_name", "service_instance_id", "process_pid", "thread_id"]
    before = entries.with_columns(last=pl.col("end_time").cum_max().shift(1).over(worker))
    assert entries.height > 200
    assert before.filter(pl.col("last") > pl.col("start_time")).height == 0


def test_handoff_delay_and_queue_delay_follow_their_knobs():
    def waits(**knobs):
        both = edges(capture(9, traces=600, services=20, error_rate=0.0, **knobs))
        queue = both.filter((pl.col("kind") == "CONSUMER") & (pl.col("p_kind") == "PRODUCER"))
        return (queue["start_time"] - queue["p_end_time"]).dt.total_microseconds().median()

    assert waits(queue_delay_s=2.0) > 5 * waits(queue_delay_s=0.1)


def test_errors_can_be_left_out():
    calm, failing = capture(3, error_rate=0.0), capture(3, error_rate=0.2)
    assert calm.events.height == 0
    assert (calm.spans["status_code"] == "UNSET").all()
    assert (failing.spans["status_code"] == "ERROR").sum() > 20


def test_start_is_where_the_capture_begins():
    traces = capture(1, start=datetime(2030, 3, 4, 5, tzinfo=UTC))
    assert (
        abs(
            (traces.spans["start_time"].min() - datetime(2030, 3, 4, 5, tzinfo=UTC)).total_seconds()
        )
        < 5
    )


def test_attributes_agree_with_the_lifted_columns():
    spans = capture(7, services=20).spans
    threads = spans.filter(pl.col("thread_id").is_not_null())
    told = threads["attributes"].str.json_path_match("$['thread.id']").cast(pl.Int64)
    assert threads.height > 0
    assert (told == threads["thread_id"]).all()
    asked = spans.filter(pl.col("request_id").is_not_null())
    ids = asked["attributes"].str.json_path_match("$['http.request.header.x-request-id'][0]")
    assert (ids == asked["request_id"]).all()


@pytest.mark.parametrize(
    "knobs",
    [
        {"traces": 0},
        {"services": 0},
        {"concurrency": 0.0},
        {"queue_delay_s": -1.0},
        {"sampling": 0.0},
        {"habits": ("smoking",)},
    ],
)
def test_impossible_arguments_are_refused(knobs):
    with pytest.raises(ParameterError):
        capture(1, **knobs)


@pytest.mark.parametrize("encoding", ["json", "proto"])
def test_written_capture_holds_as_many_spans_as_asked(tmp_path, encoding):
    path = tmp_path / "synthetic"
    written = write_synthetic(path, seed=2, spans=5_000, encoding=encoding)
    traces = tl.read_traces(str(path))
    assert traces.spans.height == 5_000
    assert traces.n_traces == written
    assert traces.rejects.height == 0


def test_written_capture_is_the_same_bytes_for_the_same_seed(tmp_path):
    for name in ("a", "b"):
        write_synthetic(tmp_path / name, seed=3, spans=2_000)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_written_spans_leave_each_process_flush_by_flush(tmp_path):
    write_synthetic(tmp_path / "c", seed=2, spans=4_000, encoding="json", error_rate=0.0)
    last: dict[str, int] = {}
    requests = map(json.loads, (tmp_path / "c").read_text().splitlines())
    for part in (part for request in requests for part in request["resourceSpans"]):
        process = json.dumps(part["resource"], sort_keys=True)
        for span in (span for scope in part["scopeSpans"] for span in scope["spans"]):
            flush = int(span["endTimeUnixNano"]) // FLUSH_NS
            assert flush >= last.get(process, 0)
            last[process] = flush
    assert len(last) > 2


def test_written_capture_stops_for_all_processes_at_one_moment(tmp_path):
    path = tmp_path / "stopped"
    write_synthetic(path, seed=5, spans=130_000, services=3, concurrency=40.0, error_rate=0.0)
    spans = tl.read_traces(str(path)).spans
    last = spans["end_time"].max()
    silent = spans.group_by("service_instance_id").agg(quiet=last - pl.col("end_time").max())
    assert silent["quiet"].max().total_seconds() < 2.0
    children = spans.filter(pl.col("parent_span_id").is_not_null())
    ids = spans.select("trace_id", parent_span_id="span_id")
    orphans = children.join(ids, on=["trace_id", "parent_span_id"], how="anti")
    cut = orphans.group_by("trace_id").agg(pl.col("end_time").max())
    assert cut["end_time"].min() > last - timedelta(seconds=60)
    assert orphans.height < 0.01 * spans.height


def test_jobs_tick_with_a_period_and_come_on_top_of_the_requests():
    seen = 0
    for seed in range(1, 9):
        spans = capture(seed, traces=500, concurrency=1.0, error_rate=0.0, habits=()).spans
        roots = spans.filter(pl.col("parent_span_id").is_null())
        requests = roots.filter(pl.col("kind").is_in(["SERVER", "CLIENT"]))
        assert requests.height == 500
        jobs = roots.filter(pl.col("name").str.starts_with("job."))
        for _, ticks in jobs.group_by("name"):
            gaps = ticks["start_time"].sort().diff().drop_nulls().dt.total_milliseconds() / 1000
            assert (abs(gaps - gaps.round()) < 0.1).all()
            seen += gaps.len()
    assert seen > 20
