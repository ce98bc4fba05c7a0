"""A span of time of a capture or a store, and what is too old taken out of a store."""

import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from building import EPOCH_NS, Capture, table, trace_id
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab import schema
from tracelab.cli import run
from tracelab.exceptions import ParameterError, StoreError
from tracelab.store import TraceStore, log
from tracelab.traceset import TABLES

HOUR_MS = 3_600_000
HOUR_NS = HOUR_MS * 1_000_000


def hour(number):
    return EPOCH_NS + number * HOUR_NS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five exports, an hour each; a trace of the second goes on in the third."""
    folder = tmp_path_factory.mktemp("exports")
    captures = [Capture() for _ in range(5)]
    for number, capture in enumerate(captures):
        for at in range(20):
            begin = number * HOUR_MS + at * 60_000
            capture.span(number * 100 + at, 1, start=begin, kind="SERVER")
            capture.span(number * 100 + at, 2, 1, start=begin + 1, duration=5)
    captures[2].span(119, 3, 1, start=2 * HOUR_MS + 30_000)
    for number, capture in enumerate(captures):
        tl.write_otlp(capture.traces(), folder / f"{number}.jsonl")
    return [folder / f"{number}.jsonl" for number in range(5)]


@pytest.fixture
def store(files, tmp_path):
    store = TraceStore(tmp_path / "store", buckets=4)
    for file in files:
        store.ingest(file)
    return store


def assert_same(found, expected, *, tables=("spans", "events", "links", "logs", "metrics")):
    for name in tables:
        assert_frame_equal(getattr(found, name), getattr(expected, name))


def test_a_trace_belongs_to_the_time_of_its_first_span_and_is_whole(files):
    traces = tl.read_traces(*files)
    second = traces.between(hour(1), hour(2))
    assert second.n_traces == 20
    assert second.spans.height == 41
    third = traces.between(hour(2), hour(3))
    assert trace_id(119) not in third.spans["trace_id"].to_list()
    parts = [traces.between(hour(at), hour(at + 1)).spans.height for at in range(5)]
    assert sum(parts) == traces.spans.height
    assert_same(traces.between(), traces, tables=TABLES)


def test_time_is_told_in_words_numbers_or_objects(files):
    traces = tl.read_traces(*files)
    begin = datetime.fromtimestamp(hour(1) / 1e9, UTC)
    expected = traces.between(hour(1))
    local = begin.astimezone(timezone(timedelta(hours=5, minutes=30)))
    for told in (begin, begin.replace(tzinfo=None), begin.isoformat(), local.isoformat()):
        assert_same(traces.between(told), expected)


def test_a_time_beyond_all_spans_is_no_reason_to_fail(files):
    traces = tl.read_traces(*files)
    assert_same(traces.between("0001-01-01", "9999-12-31"), traces)
    assert_same(traces.between(-(10**30), 10**30), traces)
    case = tl.investigate(traces, start="0001-01-01", end="9999-12-31")
    assert case.summary["text"][1].startswith("Only traces that begin from 1677-09-21")


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [("soon", None, "is no time; write it like"), (5, 5, "not after"), (None, 1.5, "is no time")],
)
def test_what_is_no_span_of_time_is_told(files, start, end, words):
    with pytest.raises(ParameterError, match=words):
        tl.read_traces(*files).between(start, end)


def test_a_store_gives_what_the_capture_in_memory_gives(files, store):
    traces = tl.read_traces(*files)
    for start, end in ((hour(1), hour(2)), (None, hour(3)), (hour(4), None), (0, 1)):
        view = store.between(start, end)
        assert_same(view.read(), traces.between(start, end))
        again = pickle.loads(pickle.dumps(view))
        for bucket in store.buckets():
            wanted = store.read_bucket(bucket).between(start, end)
            assert_same(view.read_bucket(bucket), wanted)
            assert_same(again.read_bucket(bucket), wanted)
            names = view.read_bucket(bucket, columns=["name"], tables=[]).spans["name"]
            assert names.to_list() == wanted.spans["name"].to_list()


def test_views_of_one_store_are_independent_of_each_other_and_of_the_store(store):
    first, second = store.between(hour(1), hour(2)), store.between(hour(3), hour(4))
    again = pickle.loads(pickle.dumps(store))
    assert [each.read().spans.height for each in (first, second, again)] == [41, 40, 201]


def test_parts_of_another_time_are_not_read(store):
    view = store.between(hour(1), hour(2), margin="30m")
    assert view.info()["parts"] < store.info()["parts"]
    batches = list(store._snapshot.batches().values())
    first, last = (batches[at]["spans"] for at in (0, 4))
    for part in (first, last):
        with (Path(store.path) / part.path).open("r+b") as file:
            file.seek(part.groups[0].start + 10)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
    assert view.read().spans.height == 41
    with pytest.raises(StoreError, match="damaged"):
        store.read()


def test_a_margin_that_is_shorter_than_a_trace_loses_its_end(store):
    assert store.between(hour(1), hour(2), margin="0s").read().spans.height == 40
    assert store.between(hour(1), hour(2), margin="10s").read().spans.height == 41


def test_logs_and_metrics_lie_in_their_own_time_and_logs_of_a_trace_in_that_of_the_trace():
    logs = [
        {"time": hour(0), "trace_id": trace_id(1)},
        {"time": hour(5), "trace_id": trace_id(1)},
        {"time": hour(0), "trace_id": None},
        {"time": hour(5), "trace_id": None},
        {"time": hour(0), "trace_id": trace_id(9)},
        {"time": None, "trace_id": None},
    ]
    metrics = [{"time": hour(0)}, {"time": hour(5)}, {"time": None}]
    traces = (
        Capture()
        .span(1, 1)
        .span(2, 1, start=5 * HOUR_MS)
        .traces()
        .with_tables(logs=table(logs, schema.LOGS), metrics=table(metrics, schema.METRIC_POINTS))
    )
    early = traces.between(None, hour(1))
    assert early.spans["trace_id"].to_list() == [trace_id(1)]
    assert early.logs["trace_id"].to_list() == [trace_id(1), trace_id(1), None, trace_id(9)]
    assert early.metrics.height == 1
    late = traces.between(hour(1))
    assert late.logs["trace_id"].to_list() == [None]
    assert late.metrics.height == 1


@pytest.mark.parametrize("what", ["ingest", "compact", "verify", "accounts", "refresh"])
def test_only_the_whole_store_is_changed_and_proven(store, files, what):
    view = store.between(hour(1))
    arguments = [files[0]] if what == "ingest" else []
    with pytest.raises(ParameterError, match=f"{what} works on the whole store"):
        getattr(view, what)(*arguments)
    assert "of a span of time" in repr(view)


def test_an_investigation_of_a_span_of_time(files, store, tmp_path, capsys):
    whole = tl.investigate(store.between(hour(1), hour(2)))
    asked = tl.investigate(store, start=hour(1), end=hour(2), workers=2)
    in_memory = tl.investigate(tl.read_traces(*files), start=hour(1), end=hour(2))
    for case in (whole, asked, in_memory):
        assert case.summary["spans"] == 41
        assert_frame_equal(case.breaks, whole.breaks)
    out = tmp_path / "out"
    begin, end = (datetime.fromtimestamp(hour(at) / 1e9, UTC).isoformat() for at in (1, 2))
    command = ["investigate", store.path, "-o", str(out), "--from", begin, "--to"]
    assert run([*command, "tomorrow"]) == 2
    assert "is no time; write it like 2026-11-23T10:00" in capsys.readouterr().err
    assert run([*command, end]) == 0
    told = json.loads((out / "findings.json").read_text())
    assert told["summary"]["spans"] == 41
    assert told["summary"]["text"][1].startswith("Only traces that begin from 2023-11-14 23:13:20")
    assert told["provenance"]["parameters"]["start"] == hour(1)


def test_a_trace_without_times_lies_in_no_span_of_time():
    capture = Capture().span(1, 1).span(2, 1, start_time=None, end_time=None, duration_ns=None)
    traces = capture.traces()
    assert traces.between(0).spans["trace_id"].to_list() == [trace_id(1)]
    assert traces.between().spans["trace_id"].n_unique() == 2


def files_of(store):
    return {path.name for path in (Path(store.path) / "spans").iterdir()}


def test_what_has_expired_is_gone_and_the_store_is_sound(store, files):
    other = TraceStore(store.path)
    kept = store.between(hour(2)).read()
    done = store.expire(hour(2))
    assert (done["batches"], done["spans"]) == (2, 80)
    found = store.read()
    assert trace_id(119) in found.spans["trace_id"].to_list()  # its end lies in the third hour
    wanted = kept.spans["trace_id"].unique()
    assert_same(found.select_traces(wanted), kept.select_traces(wanted))
    assert store.verify().height == 0
    assert store.ingest(files[0])["status"].to_list() == ["already there"]
    assert store.expire(hour(2))["batches"] == 0
    with pytest.raises(StoreError, match="have expired"):
        store.accounts()
    # who opened it before reads on, until the files are removed
    assert other.read().spans.height == 201
    before = files_of(store)
    store.compact(keep="0s")
    assert len(files_of(store)) < len(before)
    assert_same(TraceStore(store.path).read(), found)
    assert store.verify().height == 0
    assert store.read().ingest["spans_decoded"].sum() == 201


def test_expiry_gives_way_to_a_compaction_that_came_first(store, monkeypatch):
    other = TraceStore(store.path)
    append = log.append

    def late(root, snapshot, commit):
        monkeypatch.setattr(log, "append", append)
        other.compact(keep="1d")
        append(root, snapshot, commit)

    monkeypatch.setattr(log, "append", late)
    # merged, the old rows share a batch with newer ones, and stay
    assert store.expire(hour(2))["batches"] == 0
    assert store.read().spans.height == 201
    assert store.expire(hour(9))["spans"] == 201
    assert store.read().spans.height == 0
    assert store.verify().height == 0


def test_the_unfinished_end_of_a_file_does_not_expire_and_its_growth_is_taken_in(tmp_path, files):
    whole = files[0].read_bytes() + files[1].read_bytes()
    growing = tmp_path / "growing.jsonl"
    growing.write_bytes(whole[: len(whole) // 2])
    store = TraceStore(tmp_path / "grown", buckets=4)
    store.ingest(growing)
    store.expire(hour(9))
    assert store.verify().height == 0
    growing.write_bytes(whole)
    assert store.ingest(growing)["status"].to_list() == ["grown"]
    assert store.verify().height == 0
    store.expire(hour(9))
    assert store.verify().height == 0


def test_the_command_line_takes_out_what_is_old(store, capsys):
    end = datetime.fromtimestamp(hour(2) / 1e9, UTC).isoformat()
    assert run(["store", "expire", store.path, "--before", "yesterday"]) == 2
    assert "is no time" in capsys.readouterr().err
    assert run(["store", "expire", store.path, "--before", end]) == 0
    assert "80" in capsys.readouterr().out
    assert run(["store", "verify", store.path]) == 0
