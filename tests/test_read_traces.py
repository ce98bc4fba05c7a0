"""Many sources into one capture: order does not matter, duplicates are resolved, all is counted."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from exports import (
    COMPRESSIONS,
    LAYOUTS,
    START,
    as_json,
    framed,
    log_request,
    metric_request,
    requests,
    trace_request,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab import schema
from tracelab.exceptions import (
    EmptySourceError,
    ParameterError,
    SourceError,
    TracelabError,
    UnknownFormatError,
)
from tracelab.io import read_chunks
from tracelab.traceset import TABLES


def write(folder, **files):
    """Write files of requests as JSON lines; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, content in files.items():
        path = folder / name
        path.write_bytes(b"".join(as_json(each) + b"\n" for each in content))
        paths.append(path)
    return paths


def assert_same(left, right, *, source=True):
    for name in TABLES:
        frames = [getattr(each, name) for each in (left, right)]
        if not source:
            if name == "ingest":
                continue
            frames = [frame.drop("source", strict=False) for frame in frames]
        assert_frame_equal(*frames)


class Named(io.BytesIO):
    def __init__(self, data, name):
        super().__init__(data)
        self.name = name


@given(requests, st.randoms(use_true_random=False), st.integers(1, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_order_rotation_and_encoding_do_not_matter(content, rng, n_files, overlapping):
    whole = tl.read_traces(Named(LAYOUTS["json lines"](content), "one"))
    files = [content[place::n_files] for place in range(n_files)]
    if overlapping:
        files.append(content)
    streams = []
    for number, part in enumerate(part for part in files if part):
        layout = rng.choice(["json lines", "proto frames", "json documents"])
        pack = COMPRESSIONS[rng.choice(["none", "gzip", "zstd"])]
        streams.append((pack(LAYOUTS[layout](part)), f"part{number}"))
    in_order = tl.read_traces(*(Named(data, name) for data, name in streams))
    rng.shuffle(streams)
    shuffled = tl.read_traces(*(Named(data, name) for data, name in streams))
    assert_same(in_order, shuffled)
    assert_same(in_order, whole, source=False)
    for traces in (whole, shuffled):
        sums = traces.ingest
        assert sums["spans_kept"].sum() == traces.spans.height
        assert (sums["spans_decoded"] == sums["spans_kept"] + sums["spans_duplicate"]).all()


def test_equal_spans_are_counted_and_dropped_and_the_first_source_keeps_them(tmp_path):
    content = [trace_request([{"span": 1, "events": 1, "links": 1}, {"span": 2}])]
    paths = write(tmp_path / "in", b=content, a=content, c=[*content, *content])
    for order in (paths, paths[::-1]):
        traces = tl.read_traces(*order)
        assert traces.spans["source"].unique().to_list() == [str(tmp_path / "in" / "a")]
        assert (traces.events.height, traces.links.height) == (1, 1)
        counts = traces.ingest.select("spans_decoded", "spans_kept", "spans_duplicate")
        assert counts.rows() == [(2, 2, 0), (2, 0, 2), (4, 0, 4)]


@pytest.mark.parametrize(
    "other",
    [{"name": "else"}, {"events": 1}, {"links": 1}, {"attributes": [("a", 1)]}, {"failed": True}],
)
def test_spans_that_share_ids_but_differ_are_all_kept(tmp_path, other):
    paths = write(
        tmp_path / "in",
        a=[trace_request([{"span": 1}])],
        b=[trace_request([{"span": 1, **other}])],
        c=[trace_request([{"span": 2}])],
    )
    traces = tl.read_traces(*paths)
    assert traces.spans.height == 3
    assert traces.ingest["spans_conflicting"].to_list() == [1, 1, 0]
    assert_same(traces, tl.read_traces(*paths[::-1]))


def test_events_and_links_follow_their_own_span_when_ids_collide():
    content = [
        trace_request([{"span": 1, "name": name, "events": n}]) for name, n in (("a", 2), ("b", 1))
    ]
    traces = tl.read_traces(io.BytesIO(LAYOUTS["json lines"](content)))
    order = [2 if name == "a" else 1 for name in traces.spans["name"]]
    got = traces.events["event_index"].to_list()
    assert got == [index for count in order for index in range(count)]


def test_spans_are_ordered_by_trace_start_and_id():
    spans = [{"trace": t, "span": s, "start": START - s} for t in (3, 1, 2) for s in (2, 1, 3)]
    table = tl.read_traces(io.BytesIO(as_json(trace_request(spans)))).spans
    assert_frame_equal(table, table.sort("trace_id", "start_time", "span_id"))


def test_content_hashes_are_the_same_in_every_process(tmp_path):
    (path,) = write(tmp_path / "in", a=[trace_request([{"span": 1, "name": n} for n in "abcdef"])])
    code = f"import tracelab as tl; print(tl.read_traces({str(path)!r}).spans['name'].to_list())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


# --- logs and metrics ---------------------------------------------------------------------


def test_an_exception_in_a_log_record_becomes_an_event_of_its_span():
    content = [
        log_request(span=1, exception="Late", time=START + 50),
        log_request(span=1, exception="Early", time=START + 5),
        log_request(span=1, exception=None),
        log_request(span=9, exception="OfNoSpan"),
        log_request(trace=0, exception="OutsideOfTraces"),
        trace_request([{"span": 1, "events": 2}, {"span": 2}]),
    ]
    traces = tl.read_traces(io.BytesIO(LAYOUTS["json lines"](content)))
    columns = ["event_index", "origin", "exception_type"]
    assert traces.events.select(columns).rows() == [
        (0, "span_event", "Error0"),
        (1, "span_event", "Error1"),
        (2, "log", "Early"),
        (3, "log", "Late"),
    ]
    assert traces.events["name"].to_list() == ["exception"] * 4
    assert traces.logs.height == 5


def test_an_exception_told_as_event_and_as_log_is_one_event():
    content = [
        trace_request([{"span": 1, "events": 1}]),
        log_request(span=1, exception="Error0", message=""),
    ]
    log = json.loads(as_json(content[1]))
    record = log["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    record["attributes"] = [each for each in record["attributes"] if "message" not in each["key"]]
    data = as_json(content[0]) + b"\n" + json.dumps(log).encode()
    traces = tl.read_traces(io.BytesIO(data))
    assert traces.events["origin"].to_list() == ["span_event"]
    assert traces.logs.height == 1


def test_a_source_without_spans_is_an_export_too():
    traces = tl.read_traces(io.BytesIO(as_json(metric_request())))
    assert (traces.spans.height, traces.metrics.height) == (0, 1)
    assert traces.ingest["metric_points"].to_list() == [1]


def test_records_in_overlapping_files_are_kept_as_often_as_one_file_holds_them(tmp_path):
    record, point = log_request(exception=None), metric_request()
    paths = write(
        tmp_path / "in",
        a=[record, record, point],
        b=[record, point, metric_request(value=2.0)],
        c=[record, record, point],
    )
    for order in (paths, paths[::-1]):
        traces = tl.read_traces(*order)
        assert traces.logs["source"].to_list() == [str(paths[0])] * 2
        assert sorted(traces.metrics["value"]) == [1.5, 2.0]


# --- knobs --------------------------------------------------------------------------------


def test_attribute_keys_can_be_named():
    data = as_json(
        trace_request(
            [
                {
                    "attributes": [
                        ("fibre", "f7"),
                        ("customer", "acme"),
                        ("tenant.id", "no"),
                        ("rid", "r1"),
                    ]
                }
            ]
        )
    )
    plain = tl.read_traces(io.BytesIO(data)).spans.row(0, named=True)
    named = tl.read_traces(
        io.BytesIO(data), task_keys=["fibre"], tenant_keys=["customer"], request_id_keys=["rid"]
    ).spans.row(0, named=True)
    assert (plain["task_id"], plain["tenant_id"], plain["request_id"]) == (None, "no", None)
    assert (named["task_id"], named["tenant_id"], named["request_id"]) == ("f7", "acme", "r1")


def test_progress_names_each_source(tmp_path):
    paths = write(tmp_path / "in", a=[trace_request([{}])], b=[trace_request([{}])])
    told = []
    tl.read_traces(*paths, progress=told.append)
    assert told == [f"reading {path}" for path in paths]


def test_a_limit_below_one_is_refused():
    with pytest.raises(ParameterError, match="at least 1"):
        tl.read_traces(io.BytesIO(b"{}"), max_message_bytes=0)


def test_read_chunks_gives_the_tables_of_the_schema(tmp_path):
    (path,) = write(tmp_path / "in", a=[trace_request([{"events": 1}]), log_request()])
    (chunk,) = read_chunks(path)
    assert chunk.spans.drop("_row").schema == schema.SPANS
    assert chunk.events.drop("_row").schema == schema.EVENTS
    assert chunk.logs.schema == schema.LOGS


# --- files, folders, globs ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "exports"
    write(root, **{"b.jsonl": [trace_request([{"span": 1}])], "README": []})
    write(root / "deep", **{"a.bin": [trace_request([{"span": 2}])]})
    (root / "README").write_text("# about these files")
    (root / "collector.yml").write_text("receivers:\n  otlp:\n")
    return root


def test_a_folder_is_walked_and_what_is_no_export_is_told(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere").symlink_to(folder / "missing")
    os.mkfifo(folder / "pipe")
    traces = tl.read_traces(folder)
    assert traces.spans.height == 2
    assert traces.ingest["source"].to_list() == [
        str(folder / "b.jsonl"),
        str(folder / "deep/a.bin"),
    ]
    told = dict(traces.rejects.select("source", "reason").rows())
    assert set(told) == {str(folder / n) for n in ("README", "collector.yml", "nowhere", "pipe")}
    assert "plain text" in told[str(folder / "README")]
    assert "pipe" in told[str(folder / "pipe")]


def test_an_unreadable_file_in_a_folder_is_told(folder, monkeypatch):
    opened = Path.open

    def refuse(path, *args):
        if path.name == "b.jsonl":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args)

    monkeypatch.setattr(Path, "open", refuse)
    traces = tl.read_traces(folder)
    assert traces.spans.height == 1
    assert any("Permission" in reason for reason in traces.rejects["reason"])


def test_a_glob_reads_what_it_matches(folder):
    assert tl.read_traces(f"{folder}/*.jsonl").spans.height == 1
    assert tl.read_traces(f"{folder}/**/*").spans.height == 2
    assert tl.read_traces(f"{folder}/*").spans.height == 2


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (path,) = write(tmp_path / "in", **{"a[1].jsonl": [trace_request([{}])]})
    assert tl.read_traces(path).spans.height == 1


def test_a_file_named_twice_is_read_once(folder):
    traces = tl.read_traces(folder, folder / "b.jsonl", str(folder / "b.jsonl"))
    assert traces.ingest.height == 2
    assert traces.ingest["spans_duplicate"].sum() == 0


def test_a_name_that_is_no_utf8_is_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(as_json(trace_request([{}])))
    traces = tl.read_traces(tmp_path)
    assert traces.spans["source"][0].endswith("caf\\xe9.jsonl")


def test_standard_input_is_read():
    code = "import tracelab as tl; t = tl.read_traces('-'); print(t.spans.height, t.ingest['source'][0])"
    data = framed([trace_request([{}, {"span": 2}]).SerializeToString()])
    run = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert run.stdout.decode().split() == ["2", "-"]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda root: [], EmptySourceError, "no source was named"),
        (lambda root: [[root]], ParameterError, "a list is no source; pass files"),
        (lambda root: [root / "nothing"], SourceError, "does not exist"),
        (lambda root: [f"{root}/*.nothing"], EmptySourceError, "matches no file"),
        (lambda root: [root / "collector.yml"], UnknownFormatError, "plain text"),
        (lambda root: [root / "empty folder"], EmptySourceError, "no export was found"),
        (lambda root: [root / "no exports"], EmptySourceError, r"no export was found in .*notes"),
        (lambda root: [root / "empty"], EmptySourceError, "empty"),
    ],
)
def test_what_cannot_be_read_raises_one_clear_error(folder, make, error, words):
    (folder / "empty folder").mkdir()
    (folder / "no exports").mkdir()
    (folder / "no exports" / "notes").write_text("some notes")
    (folder / "empty").touch()
    with pytest.raises(error, match=words) as caught:
        tl.read_traces(*make(folder))
    assert isinstance(caught.value, TracelabError)
    assert "\n" not in str(caught.value)


def test_an_empty_file_beside_an_export_is_told(folder):
    (folder / "empty.jsonl").touch()
    traces = tl.read_traces(folder)
    assert traces.spans.height == 2
    empty = traces.rejects.filter(pl.col("source") == str(folder / "empty.jsonl"))
    assert empty["reason"].to_list() == ["empty file"]


def test_the_accounting_row_holds_digest_and_sizes(tmp_path):
    import hashlib

    (path,) = write(tmp_path / "in", a=[trace_request([{}, {"span": 2}])])
    row = tl.read_traces(path).ingest.row(0, named=True)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert row["bytes"] == row["decoded_bytes"] == path.stat().st_size
