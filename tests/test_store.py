"""The store: each content once, whole, the same as read in one go, whatever happens meanwhile."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab import schema
from tracelab.exceptions import (
    EmptySourceError,
    ParameterError,
    SourceError,
    StoreError,
    UnknownFormatError,
    UnknownTraceError,
)
from tracelab.store import TraceStore, ingest, shelves
from tracelab.store.parts import _arranged, _Footers, bucket_of
from tracelab.synth import write_synthetic
from tracelab.traceset import TABLES
from tracelab.workers import Death, Failure, Success, Workers

EPOCH = 1_700_000_000_000_000_000


def line(number, *, spans=3, name="op"):
    """One export request as a JSON line: one trace of some spans."""
    rows = [
        {
            "traceId": f"{number + 1:032x}",
            "spanId": f"{number * 100 + at + 1:016x}",
            **({"parentSpanId": f"{number * 100 + 1:016x}"} if at else {}),
            "name": name,
            "kind": 2,
            "startTimeUnixNano": str(EPOCH + number * 10**6 + at),
            "endTimeUnixNano": str(EPOCH + number * 10**6 + at + 1000),
            "events": [{"timeUnixNano": str(EPOCH), "name": "e"}],
        }
        for at in range(spans)
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": rows}]}]})


def write_lines(path, numbers, **more):
    path.write_text("".join(line(number, **more) + "\n" for number in numbers))
    return path


def assert_same(left, right, *, leave_out=()):
    for table in TABLES:
        if table not in leave_out:
            assert_frame_equal(getattr(left, table), getattr(right, table))


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "exports"
    folder.mkdir()
    return [
        write_lines(folder / f"part{number}.jsonl", range(number * 50, number * 50 + 50))
        for number in range(4)
    ]


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """A synthetic capture, large enough for several parts, as protobuf."""
    path = tmp_path_factory.mktemp("synthetic") / "capture.pb"
    write_synthetic(path, seed=3, spans=30_000)
    return path


def test_a_store_reads_as_its_sources_do(tmp_path, files):
    store = TraceStore(tmp_path / "store")
    accounting = store.ingest(*files)
    assert accounting["status"].to_list() == ["new"] * 4
    assert accounting["spans_decoded"].sum() == 600
    assert_same(store.read(), tl.read_traces(*files))


def test_the_second_ingest_of_a_content_adds_nothing(tmp_path, files):
    store = TraceStore(tmp_path / "store")
    store.ingest(files[0].parent)
    copy = files[0].with_name("copy.jsonl")
    copy.write_bytes(files[0].read_bytes())
    accounting = store.ingest(*files, copy)
    assert accounting["status"].to_list() == ["already there"] * 5
    assert store.info()["commits"] == 1
    assert store.info()["spans"] == 600


def test_buckets_hold_whole_traces_and_sum_to_the_store(tmp_path, files):
    store = TraceStore(tmp_path / "store", buckets=7)
    store.ingest(*files)
    buckets = [store.read_bucket(number) for number in store.buckets()]
    ids = [set(bucket.spans["trace_id"]) for bucket in buckets]
    assert sum(len(each) for each in ids) == len(set().union(*ids)) == 200
    spans = pl.concat(bucket.spans for bucket in buckets)
    assert_frame_equal(
        spans.sort("trace_id", "start_time"), store.read().spans.sort("trace_id", "start_time")
    )
    assert sum(bucket.events.height for bucket in buckets) == 600


def test_projected_columns_are_those_of_the_whole_bucket(tmp_path, files):
    store = TraceStore(tmp_path / "store", buckets=3)
    store.ingest(*files)
    for number in store.buckets():
        whole = store.read_bucket(number).spans
        some = store.read_bucket(number, columns=["name", "parent_span_id"], tables=[])
        names = ["trace_id", "span_id", "start_time", "name", "parent_span_id"]
        assert_frame_equal(some.spans.select(names), whole.select(names))
        assert some.spans["kind"].null_count() == whole.height
        assert some.events.height == 0


def test_duplicates_across_files_have_one_winner_in_any_order(tmp_path):
    shared = [line(number) for number in range(20)]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("\n".join([*shared, line(50)]) + "\n")
    second.write_text("\n".join([*shared, line(51), line(3, name="other")]) + "\n")
    forward, backward = TraceStore(tmp_path / "f"), TraceStore(tmp_path / "g")
    for path in (first, second):
        forward.ingest(path)
    for path in (second, first):
        backward.ingest(path)
    expected = tl.read_traces(first, second)
    assert_same(forward.read(), expected)
    assert_same(backward.read(), expected)
    totals = forward.read().ingest
    assert totals["spans_duplicate"].sum() == 60
    assert totals["spans_decoded"].sum() == totals["spans_kept"].sum() + 60
    by_bucket = sum(
        forward.read_bucket(n, columns=["name"], tables=[]).spans.height for n in forward.buckets()
    )
    assert by_bucket == expected.spans.height


def test_a_grown_file_adds_only_what_is_new(tmp_path):
    live = write_lines(tmp_path / "live.jsonl", range(30))
    store = TraceStore(tmp_path / "store")
    store.ingest(live)
    with live.open("a") as file:
        file.write("".join(line(number) + "\n" for number in range(30, 40)))
    accounting = store.ingest(live)
    assert accounting["status"].to_list() == ["grown"]
    assert accounting["spans_decoded"].to_list() == [30]
    assert store.info()["spans"] == 120
    assert_same(store.read(), tl.read_traces(live))


def test_the_torn_end_of_a_live_file_is_read_anew_when_it_has_grown(tmp_path):
    text = "".join(line(number) + "\n" for number in range(10))
    live = tmp_path / "live.jsonl"
    live.write_text(text[:-40])
    store = TraceStore(tmp_path / "store")
    store.ingest(live)
    assert store.rejects.height >= 1
    live.write_text(text + "{broken\n" + line(11) + "\n")
    assert store.ingest(live)["status"].to_list() == ["grown"]
    fresh = tl.read_traces(live)
    assert_same(store.read(), fresh)
    assert fresh.rejects.height == 1


def test_a_grown_protobuf_file_adds_only_what_is_new(tmp_path, capture):
    data = capture.read_bytes()
    live = tmp_path / "live.pb"
    live.write_bytes(data[: len(data) // 2])
    store = TraceStore(tmp_path / "store")
    store.ingest(live)
    live.write_bytes(data)
    accounting = store.ingest(live)
    assert accounting["status"].to_list() == ["grown"]
    assert accounting["spans_decoded"].sum() < 16_000
    assert_same(store.read(), tl.read_traces(live))


def test_a_file_with_other_content_under_an_old_name_is_new(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", range(5))
    store = TraceStore(tmp_path / "store")
    store.ingest(path)
    write_lines(path, range(5, 15))
    assert store.ingest(path)["status"].to_list() == ["new"]
    assert store.read().n_traces == 15


def test_one_trace_is_found_without_the_rest(tmp_path, capture):
    store = TraceStore(tmp_path / "store")
    store.ingest(capture)
    traces = tl.read_traces(capture)
    wanted = traces.spans["trace_id"][12_345]
    found, expected = store.trace(wanted), traces.trace(wanted)
    for table in ("spans", "events", "links", "logs"):
        assert_frame_equal(getattr(found, table), getattr(expected, table))
    assert store.trace(wanted.upper()).spans.height == expected.spans.height
    with pytest.raises(UnknownTraceError, match="no trace 0123"):
        store.trace("0123")


def test_some_traces_are_found_without_the_rest(tmp_path, capture):
    store = TraceStore(tmp_path / "store")
    store.ingest(capture)
    traces = tl.read_traces(capture)
    wanted = [*traces.spans["trace_id"].unique().sort().gather_every(97), "0123"]
    found, expected = store.select_traces(wanted), traces.select_traces(wanted)
    for table in ("spans", "events", "links", "logs"):
        assert_frame_equal(getattr(found, table), getattr(expected, table))
    assert store.select_traces([]).spans.is_empty()


def log_line(numbers):
    records = [
        {
            "timeUnixNano": str(EPOCH),
            "body": {"stringValue": f"log {number}"},
            "traceId": f"{number + 1:032x}",
        }
        for number in numbers
    ]
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}) + "\n"


@pytest.mark.parametrize("again", [False, True], ids=["each span once", "spans twice"])
@pytest.mark.parametrize("columns", [None, ["name", "parent_span_id"]])
@pytest.mark.parametrize("max_spans", [1, 10, 100])
def test_pieces_of_a_bucket_are_whole_traces_wherever_their_parts_lie(
    tmp_path, max_spans, columns, again
):
    store = TraceStore(tmp_path / "store", buckets=2)
    rng = random.Random(max_spans)
    for part in range(8):
        # Some traces lie in one export, some in several, with their logs anywhere.
        path = tmp_path / f"{part}.jsonl"
        ids = [part * 30 + at for at in range(25)] + rng.sample(range(8 * 30), 10)
        lines = [line(n, name=f"op{part}" if not again else "op", spans=3) for n in {*ids}]
        if not again:  # ids of their own in each export
            lines = [
                each.replace('"spanId": "0000', f'"spanId": "{part + 1:04x}') for each in lines
            ]
        path.write_text("\n".join(lines) + "\n" + log_line(rng.sample(range(240), 5)))
        store.ingest(path)
    for bucket in range(2):
        whole = store.read_bucket(bucket, columns=columns)
        pieces = list(store.read_pieces(bucket, max_spans=max_spans, columns=columns))
        assert len(pieces) > 1
        ids = pl.concat([piece.spans["trace_id"].unique() for piece in pieces])
        assert ids.is_unique().all()
        assert len(ids) == whole.n_traces
        for table in ("spans", "events", "logs"):
            parts = pl.concat([getattr(piece, table) for piece in pieces])
            expected = getattr(whole, table)
            plain = [name for name, kind in expected.schema.items() if not kind.is_nested()]
            assert_frame_equal(parts.select(plain).sort(plain), expected.select(plain).sort(plain))


def test_several_processes_give_the_same_store_as_one(tmp_path, capture, monkeypatch):
    monkeypatch.setattr("tracelab.store.intake._IN_PROCESS_BYTES", 0)
    monkeypatch.setattr("tracelab.store.plan._MIN_PART", 1 << 20)
    monkeypatch.setattr("tracelab.store.plan._BUNDLE_BYTES", 1 << 20)
    one, two = TraceStore(tmp_path / "one"), TraceStore(tmp_path / "two")
    one.ingest(capture, workers=1)
    accounting = two.ingest(capture, workers=2)
    assert accounting["spans_decoded"].to_list() == [30_000]
    assert accounting["sha256"].null_count() == 0
    assert len(list((tmp_path / "two" / "spans").iterdir())) >= 2
    assert_same(one.read(), two.read())


def test_a_reader_keeps_its_snapshot_while_others_ingest(tmp_path, files):
    writer = TraceStore(tmp_path / "store")
    writer.ingest(files[0])
    reader = TraceStore(tmp_path / "store")
    writer.ingest(files[1])
    assert reader.read().n_traces == 50
    assert reader.refresh().read().n_traces == 100


def test_what_belongs_to_no_trace_has_a_bucket_of_its_own(tmp_path):
    point = {"asDouble": 1.0, "timeUnixNano": str(EPOCH)}
    metric = {"name": "m", "gauge": {"dataPoints": [point]}}
    record = {"timeUnixNano": str(EPOCH), "body": {"stringValue": "hello"}}
    of_trace = {**record, "traceId": f"{1:032x}", "spanId": f"{1:016x}"}
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]})
        + "\n"
        + json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record, of_trace]}]}]})
        + "\n"
        + line(0)
        + "\n"
    )
    store = TraceStore(tmp_path / "store", buckets=4)
    store.ingest(path)
    rest = store.read_bucket(4)
    assert (rest.metrics.height, rest.logs.height, rest.spans.height) == (1, 1, 0)
    in_buckets = [store.read_bucket(number) for number in range(4)]
    assert sum(bucket.logs.height for bucket in in_buckets) == 1
    assert sum(bucket.metrics.height for bucket in in_buckets) == 0


def test_the_bucket_of_an_id_never_changes():
    ids = pl.Series([f"{5:032x}", "f" * 32, "no hex", "", None, "日本語" * 9, "AB"])
    assert bucket_of(ids, 32).to_list() == BUCKETS_OF_OLD_STORES
    sequence = bucket_of(pl.Series([f"{number:032x}" for number in range(32_000)]), 32)
    assert sequence.value_counts()["count"].min() > 800


BUCKETS_OF_OLD_STORES = [14, 12, 13, 22, 32, 27, 25]


@pytest.mark.parametrize("table", ["spans", "events"])
def test_a_flipped_bit_in_a_part_is_named(tmp_path, files, table):
    store = TraceStore(tmp_path / "store")
    store.ingest(*files)
    part = next((tmp_path / "store" / table).iterdir())
    sound = part.read_bytes()
    rng = random.Random(7)
    for _ in range(50):
        place = rng.randrange(len(sound))
        damaged = bytearray(sound)
        damaged[place] ^= 1 << rng.randrange(8)
        part.write_bytes(damaged)
        with pytest.raises(StoreError, match=part.name):
            store.read()
    for damaged in (b"", sound[:-1], sound[: len(sound) // 2]):
        part.write_bytes(damaged)
        with pytest.raises(StoreError, match=part.name):
            store.read()
    part.unlink()
    with pytest.raises(StoreError, match=part.name):
        store.read()


def test_no_more_footers_are_kept_than_there_is_room_for(tmp_path, files, monkeypatch):
    store = TraceStore(tmp_path / "store", buckets=4)
    for each in files:
        store.ingest(each)
    before = [store.read_bucket(number) for number in store.buckets()]
    kept = _Footers(room=1)
    monkeypatch.setattr("tracelab.store.parts._FOOTERS", kept)
    for number in store.buckets():
        again = store.read_bucket(number)
        assert len(kept) == 1
        assert again.spans.equals(before[number].spans)


def test_a_disk_that_fails_in_the_middle_of_a_part_is_an_error_that_names_it(
    tmp_path, files, monkeypatch
):
    store = TraceStore(tmp_path / "store")
    store.ingest(*files)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("tracelab.store.shelves._read_into", fail)
    part = next((tmp_path / "store" / "spans").iterdir())
    with pytest.raises(StoreError, match=f"{part.name} cannot be read.*Input/output error"):
        store.read_bucket(3)


def test_a_bucket_is_read_without_what_lies_around_it(tmp_path):
    shelf = shelves.open_shelf(str(tmp_path))
    content = bytes(range(256)) * 64
    shelf.put("part", content)
    view = shelf.view("part", len(content), [(100, 300), (9_000, 9_016)])
    assert len(view) == len(content)
    assert bytes(view[100:300]) == content[100:300]
    assert bytes(view[9_000:9_016]) == content[9_000:9_016]
    short = shelf.view("part", len(content), [(len(content) - 8, len(content) + 8)])
    assert bytes(short[len(content) - 8 :]) == content[-8:]


def test_compaction_changes_the_files_and_nothing_else(tmp_path):
    live = tmp_path / "live.jsonl"
    store = TraceStore(tmp_path / "store")
    for number in range(12):
        with live.open("a") as file:
            file.write(line(number) + "\n" + (line(number + 50) if number == 11 else ""))
        store.ingest(live)
    before, other = store.read(), TraceStore(tmp_path / "store")
    report = store.compact(keep="0s")
    assert report["batches_merged"] == 12
    assert report["files_removed"] == 24
    assert len(list((tmp_path / "store" / "spans").iterdir())) == 2
    assert_same(store.read(), before)
    assert_same(TraceStore(tmp_path / "store").read(), before)
    assert_same(other.refresh().read(), before)
    assert store.verify().height == 0
    with live.open("a") as file:
        file.write("\n" + line(99) + "\n")
    assert store.ingest(live)["status"].to_list() == ["grown"]
    assert_same(store.read(), tl.read_traces(live))
    assert store.compact()["batches_merged"] == 2
    assert store.compact()["batches_merged"] == 0
    assert_same(store.read(), tl.read_traces(live))
    with pytest.raises(ParameterError, match="no duration"):
        store.compact(keep="soon")


def test_a_compaction_killed_at_any_moment_loses_nothing(tmp_path):
    paths = [write_lines(tmp_path / f"{n}.jsonl", range(n * 10, n * 10 + 10)) for n in range(20)]
    store = TraceStore(tmp_path / "store", buckets=4)
    for path in paths:
        store.ingest(path)
    before = store.read()
    script = (
        "import sys; from tracelab.store import TraceStore; s = TraceStore(sys.argv[1]);"
        "print('ready', flush=True); s.compact(keep='0s')"
    )
    rng = random.Random(5)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(store.path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        process.wait()
        process.stdout.close()
        assert_same(TraceStore(store.path).read(), before)
    store.compact(keep="0s")
    assert_same(store.read(), before)
    assert store.verify().height == 0
    assert len(list((tmp_path / "store" / "spans").iterdir())) == 1


def test_verify_names_exactly_the_damaged_parts(tmp_path, files):
    store = TraceStore(tmp_path / "store")
    for path in files:
        store.ingest(path)
    assert store.verify().height == 0
    first, second, *_ = sorted((tmp_path / "store" / "spans").iterdir())
    first.unlink()
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(data)
    named = store.verify()["path"].to_list()
    assert sorted(named) == [f"spans/{first.name}", f"spans/{second.name}"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "missing"])
def test_a_damaged_log_is_named(tmp_path, files, damage):
    store = TraceStore(tmp_path / "store")
    for path in files[:3]:
        store.ingest(path)
    entry = tmp_path / "store" / "log" / "000000000002.json"
    sound = entry.read_bytes()
    if damage == "missing":
        entry.unlink()
    else:
        flipped = sound[:200] + bytes([sound[200] ^ 1]) + sound[201:]
        entry.write_bytes({"empty": b"", "cut": sound[:100], "flipped": flipped}[damage])
    with pytest.raises(StoreError, match=r"000000000002\.json"):
        TraceStore(tmp_path / "store")


def test_the_newest_commit_taken_away_is_missed(tmp_path, files):
    store = TraceStore(tmp_path / "store")
    for path in files[:2]:
        store.ingest(path)
    (tmp_path / "store" / "log" / "000000000002.json").unlink()
    with pytest.raises(StoreError, match=r"000000000002\.json is missing"):
        TraceStore(tmp_path / "store")


def test_a_commit_without_its_seal_counts_and_can_be_followed(tmp_path, files):
    store = TraceStore(tmp_path / "store")
    store.ingest(files[0])
    (tmp_path / "store" / "log" / "000000000001.seal").unlink()
    store = TraceStore(tmp_path / "store")
    store.ingest(files[1])
    assert TraceStore(tmp_path / "store").info()["commits"] == 2
    assert TraceStore(tmp_path / "store").verify().is_empty()


def test_a_seal_that_was_written_into_is_named(tmp_path, files):
    TraceStore(tmp_path / "store").ingest(files[0])
    (tmp_path / "store" / "log" / "000000000001.seal").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"000000000001\.seal is damaged"):
        TraceStore(tmp_path / "store")


def test_a_commit_made_while_the_folder_is_listed_is_not_missed(tmp_path, files, monkeypatch):
    store = TraceStore(tmp_path / "store")
    for path in files[:2]:
        store.ingest(path)
    listed = shelves.Folder.entries

    def without_the_newest(self, folder):
        return (each for each in listed(self, folder) if not each.name.endswith("2.json"))

    monkeypatch.setattr(shelves.Folder, "entries", without_the_newest)
    assert TraceStore(tmp_path / "store").info()["commits"] == 1


def test_a_store_of_another_version_is_refused(tmp_path):
    import hashlib

    TraceStore(tmp_path / "store")
    head = tmp_path / "store" / "log" / "000000000000.json"
    body = b'{"buckets": 4, "format": "tracelab-store", "version": 99}'
    head.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(StoreError, match="99"):
        TraceStore(tmp_path / "store")


def test_the_number_of_buckets_cannot_change(tmp_path):
    TraceStore(tmp_path / "store", buckets=5)
    assert TraceStore(tmp_path / "store", buckets=5).n_buckets == 5
    with pytest.raises(ParameterError, match="5 buckets"):
        TraceStore(tmp_path / "store", buckets=6)
    with pytest.raises(ParameterError):
        TraceStore(tmp_path / "other", buckets=0)


def test_a_place_that_cannot_hold_a_store_is_one_clear_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="choose another folder"):
        TraceStore(file / "store")
    with pytest.raises(StoreError, match="choose another folder"):
        TraceStore("/proc/store")


def test_a_full_or_read_only_disk_leaves_the_store_as_it_was(tmp_path, files, monkeypatch):
    store = TraceStore(tmp_path / "store")
    store.ingest(files[0])

    def refuse(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match="No space left"):
            store.ingest(files[1])
    assert len(list((tmp_path / "store" / "spans").iterdir())) == 1
    assert TraceStore(tmp_path / "store").read().n_traces == 50
    store.ingest(files[1])
    assert store.read().n_traces == 100


def test_bad_sources_raise_and_leave_nothing(tmp_path, files):
    store = TraceStore(tmp_path / "store")
    odd = tmp_path / "odd.bin"
    odd.write_bytes(b"no export at all, only words" * 50)
    with pytest.raises(UnknownFormatError, match=r"odd\.bin"):
        store.ingest(odd)
    with pytest.raises(SourceError, match="does not exist"):
        store.ingest(tmp_path / "nothing")
    with pytest.raises(EmptySourceError):
        store.ingest(str(tmp_path / "*.none"))
    with pytest.raises(ParameterError):
        store.ingest()
    assert store.info()["commits"] == 0


def test_a_stranger_in_a_folder_becomes_a_reject_once(tmp_path, files):
    (files[0].parent / "notes.txt").write_text("notes on the outage\n" * 20)
    store = TraceStore(tmp_path / "store")
    store.ingest(files[0].parent)
    store.ingest(files[0].parent)
    assert store.rejects.height == 1
    assert "notes.txt" in store.rejects["source"][0]
    assert_same(store.read(), tl.read_traces(files[0].parent))


def test_a_stream_is_ingested_once(tmp_path, files):
    store = TraceStore(tmp_path / "store")
    for expected in ("new", "already there"):
        with files[0].open("rb") as stream:
            assert store.ingest(stream)["status"].to_list() == [expected]
    assert store.info()["spans"] == 150


def test_ingest_as_a_function_takes_one_path_or_many(tmp_path, files):
    assert ingest(files[0], tmp_path / "store").height == 1
    assert ingest(files, TraceStore(tmp_path / "store"))["status"].to_list().count("new") == 3


def test_an_empty_store_reads_as_empty_tables(tmp_path):
    store = TraceStore(tmp_path / "store")
    traces = store.read()
    assert all(
        getattr(traces, table).schema == wanted and getattr(traces, table).height == 0
        for table, wanted in TABLES.items()
    )
    assert store.read_bucket(0).spans.schema == schema.SPANS
    assert "0 spans" in repr(store)
    assert "<table>" in store._repr_html_()


def test_wrong_names_are_told(tmp_path):
    store = TraceStore(tmp_path / "store")
    with pytest.raises(ParameterError, match="no bucket 99"):
        store.read_bucket(99)
    with pytest.raises(ParameterError, match="no column nme"):
        store.read_bucket(0, columns=["nme"])
    with pytest.raises(ParameterError, match="no table metric"):
        store.read_bucket(0, tables=["metric"])


SCRIPT = """
import sys
from tracelab.store import TraceStore, shelves
store = TraceStore(sys.argv[1], buckets=4)
print("ready", flush=True)
for path in sys.argv[2:]:
    store.ingest(path)
print("done", flush=True)
"""


def start(store, paths):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store), *map(str, paths)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_ingests_at_once_both_count_once(tmp_path):
    paths = [write_lines(tmp_path / f"{n}.jsonl", range(n * 10, n * 10 + 10)) for n in range(30)]
    processes = [start(tmp_path / "store", order) for order in (paths, paths[::-1])]
    for process in processes:
        assert process.communicate(timeout=60)[0] == "ready\ndone\n"
    store = TraceStore(tmp_path / "store")
    assert store.info()["spans"] == 900
    assert store.info()["sources"] == 30
    assert_same(store.read(), tl.read_traces(*paths))


def kill_and_finish(store, paths, *, rounds, seed):
    rng = random.Random(seed)
    for _ in range(rounds):
        process = start(store, paths)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        TraceStore(store)  # readable at every moment
    last = start(store, paths)
    assert last.wait(120) == 0
    last.stdout.close()


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_an_ingest_killed_at_any_moment_is_finished_by_the_next(tmp_path, rounds):
    paths = [write_lines(tmp_path / f"{n}.jsonl", range(n * 40, n * 40 + 40)) for n in range(40)]
    kill_and_finish(tmp_path / "killed", paths, rounds=rounds, seed=rounds)
    whole = TraceStore(tmp_path / "whole", buckets=4)
    for path in paths:
        whole.ingest(path)
    killed = TraceStore(tmp_path / "killed")
    assert_same(killed.read(), whole.read())
    assert killed.verify().height == 0
    for number in whole.buckets():
        assert_same(killed.read_bucket(number), whole.read_bucket(number))


def give_back(value):
    return value


def die(flag):
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time lucky"


def always_die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise StoreError("told as it was")


def test_a_dead_worker_is_replaced_and_its_task_done_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with Workers(2) as pool:
        results = sorted(pool.run(give_back, [(n,) for n in range(8)]), key=lambda r: r.task)
        assert results == [Success(n, n) for n in range(8)]
        assert list(pool.run(die, [(str(tmp_path / "flag"),)])) == [Success(0, "second time lucky")]
        (dead,) = pool.run(always_die, [()])
        assert dead == Death(0, "ended by signal 9 (SIGKILL)")
        (failed,) = pool.run(fail, [()])
        assert isinstance(failed, Failure)
        assert str(failed.error) == "told as it was"


def test_interrupting_an_ingest_stops_it_within_two_seconds(tmp_path, capture):
    paths = [tmp_path / f"{n}.pb" for n in range(12)]
    for number, path in enumerate(paths):
        # A frame of its own makes each content another one.
        path.write_bytes(
            capture.read_bytes() + (4).to_bytes(4, "big") + b"\x12\x02" + bytes([8, number])
        )
    process = start(tmp_path / "store", [tmp_path])
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert time.monotonic() - begun < 2
    process.stdout.close()
    store = TraceStore(tmp_path / "store")
    assert store.info()["spans"] % 30_000 == 0
    store.ingest(*paths)
    assert store.info()["sources"] == 12


def test_accounts_reconcile_across_sources_as_if_read_in_one_go(tmp_path):
    one = write_lines(tmp_path / "a.jsonl", range(40))
    two = write_lines(tmp_path / "b.jsonl", range(20, 60))
    other = write_lines(tmp_path / "c.jsonl", range(30, 50), name="other")
    store = TraceStore(tmp_path / "store")
    store.ingest(two)
    store.ingest(other, one)
    accounts = store.accounts()
    assert_frame_equal(accounts, tl.read_traces(one, two, other).ingest)
    assert accounts["spans_duplicate"].to_list() == [0, 60, 0]
    assert accounts["spans_decoded"].sum() == store.info()["spans"]
    assert accounts["spans_kept"].sum() == store.read().spans.height


def test_ids_that_no_number_orders_are_ordered_as_text(tmp_path):
    ids = ["0" * 16 + "ff", "Z" * 32, "0" * 31 + "1", "ab" * 16, "AB" * 16, "0" * 12 + "f" * 20, ""]
    ids += [f"{at:032x}" for at in range(50, 0, -1)] + ["é" * 16]
    rows = pl.DataFrame({"trace_id": ids, "_row": range(len(ids))}).cast({"_row": pl.UInt64})
    for some in (rows, rows.filter(pl.col("trace_id").str.len_bytes() == 32)):
        arranged = _arranged("spans", some, 3)
        expected = some.with_columns(bucket_of(some["trace_id"], 3)).sort(
            "_bucket", "trace_id", "_row"
        )
        assert_frame_equal(arranged, expected)
