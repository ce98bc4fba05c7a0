"""From findings back to bytes: the message behind a span, and a case that cannot change unseen."""

import gzip
import json
import random
import re

import polars as pl
import pytest
from exports import as_json, framed, trace_request, zstd_frames
from pointers import resolve_all
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab.cli import run
from tracelab.exceptions import SourceError, UnknownTraceError
from tracelab.export import custody
from tracelab.export.custody import absent_sources, verify_case


def requests():
    """Requests of a few spans each; ids with leading zeros and with letters."""
    return [
        trace_request(
            [
                {"trace": 10**30 + number, "span": (number * 2**57 + at + 1) % 2**63, "events": 1}
                for at in range(3)
            ]
        )
        for number in range(12)
    ]


def forms():
    texts = [as_json(request) for request in requests()]
    bodies = [request.SerializeToString() for request in requests()]
    lines = b"".join(text + b"\n" for text in texts)
    tempo, other = (
        json.dumps({"batches": json.loads(text)["resourceSpans"]}, indent=2).encode()
        for text in texts[:2]
    )
    return {
        "lines": lines,
        "gzip": gzip.compress(lines),
        "frames": framed(bodies),
        "zstd of frames": zstd_frames(framed(bodies)),
        "request": bodies[0],
        "document": as_json(requests()[0], indent=2),
        "tempo": tempo,
        "two documents": tempo + b"\n" + other,
        "upper-case ids": re.sub(rb'"[0-9a-f]{16,32}"', lambda found: found[0].upper(), lines),
    }


@pytest.mark.parametrize("form", forms())
def test_every_span_resolves_to_its_bytes_and_back(tmp_path, form):
    path = tmp_path / "export"
    path.write_bytes(forms()[form])
    traces = tl.read_traces(path)
    data = path.read_bytes()
    for row in traces.spans.iter_slices(1):
        found = tl.evidence(traces, row["trace_id"].item(), row["span_id"].item())
        assert_frame_equal(found.span, row)
        assert found.sha256 == traces.ingest["sha256"].item()
        assert len(found.raw) == found.length
        if form not in ("gzip", "zstd of frames"):
            assert data[found.offset : found.offset + found.length] == found.raw
        if form == "lines":
            assert data.splitlines()[found.line - 1] == found.raw


def test_a_store_resolves_its_spans_too(tmp_path):
    path = tmp_path / "export.jsonl"
    path.write_bytes(forms()["lines"])
    store = tl.TraceStore(tmp_path / "store", buckets=2)
    store.ingest(path)
    row = store.read().spans.sample(1, seed=1)
    found = tl.evidence(store, row["trace_id"].item(), row["span_id"].item())
    assert_frame_equal(found.span, row)


def test_random_spans_of_the_sample_and_of_a_synthetic_capture_resolve(tmp_path):
    tried, wrong = resolve_all(tmp_path, n_spans=30, seed=5)
    assert sum(tried.values()) == 30
    assert wrong == []


def test_a_file_that_has_grown_still_proves_what_was_read(tmp_path):
    path = tmp_path / "export.jsonl"
    path.write_bytes(forms()["lines"])
    traces = tl.read_traces(path)
    with path.open("ab") as file:
        file.write(as_json(trace_request([{"trace": 5, "span": 6}])) + b"\n")
    row = traces.spans.row(0, named=True)
    assert tl.evidence(traces, row["trace_id"], row["span_id"]).span.height == 1


def test_an_altered_source_is_no_evidence(tmp_path):
    path = tmp_path / "export.jsonl"
    path.write_bytes(forms()["lines"])
    traces = tl.read_traces(path)
    row = traces.spans.row(0, named=True)
    data = bytearray(path.read_bytes())
    data[random.Random(1).randrange(len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="is not the file that was read"):
        tl.evidence(traces, row["trace_id"], row["span_id"])
    path.unlink()
    with pytest.raises(SourceError, match="is not there"):
        tl.evidence(traces, row["trace_id"], row["span_id"])


def test_a_span_that_is_not_in_the_capture_is_told(tmp_path):
    path = tmp_path / "export.jsonl"
    path.write_bytes(forms()["lines"])
    traces = tl.read_traces(path)
    with pytest.raises(UnknownTraceError, match="no span"):
        tl.evidence(traces, traces.spans["trace_id"][0], "00000000000000ff")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    source = folder / "export.jsonl"
    source.write_bytes(forms()["lines"])
    tl.investigate(tl.read_traces(source)).write(folder / "out")
    return folder


def test_an_untouched_case_verifies(case):
    assert verify_case(case / "out").height == 0


def test_any_changed_byte_is_named(case):
    files = [path for path in (case / "out").rglob("*") if path.is_file()]
    assert len(files) > 8
    shuffled = random.Random(7)
    for path in files:
        whole = path.read_bytes()
        if not whole:
            continue
        altered = bytearray(whole)
        altered[shuffled.randrange(len(whole))] ^= 1 << shuffled.randrange(8)
        path.write_bytes(altered)
        named = verify_case(case / "out")["path"].to_list()
        path.write_bytes(whole)
        assert named == [path.relative_to(case / "out").as_posix()]
    assert verify_case(case / "out").height == 0


def test_a_missing_file_and_an_altered_source_are_named(case):
    report = case / "out" / "report.html"
    text = report.read_bytes()
    report.unlink()
    source = case / "export.jsonl"
    whole = source.read_bytes()
    source.write_bytes(whole.replace(b"shop", b"shot", 1))
    problems = verify_case(case / "out")
    report.write_bytes(text)
    source.write_bytes(whole)
    assert set(problems["path"]) == {"report.html", str(source)}
    assert isinstance(problems, pl.DataFrame)


def test_a_source_that_is_not_there_is_said_to_be_unchecked(case, capsys):
    source = case / "export.jsonl"
    assert run(["verify", str(case / "out")]) == 0
    assert "1 of 1 sources checked" in capsys.readouterr().out
    moved = source.rename(case / "elsewhere.jsonl")
    try:
        assert verify_case(case / "out").height == 0
        assert absent_sources(case / "out") == ([str(source)], 1)
        assert run(["verify", str(case / "out")]) == 0
        assert f"1 of 1 sources not checked, as no file is there: {source}" in (
            capsys.readouterr().out.replace("\n", "")
        )
        report = case / "out" / "report.html"
        text = report.read_bytes()
        report.write_bytes(text + b" ")
        assert run(["verify", str(case / "out")]) == 1
        report.write_bytes(text)
        named, unchecked = capsys.readouterr().out.splitlines()
        assert named.startswith("report.html: changed")
        assert unchecked.startswith("1 of 1 sources not checked")
    finally:
        moved.rename(source)


@pytest.mark.parametrize(
    "provenance",
    [
        3,
        [],
        {"sources": 3},
        {"sources": [3, {}]},
        {"sources": [{"source": "x" * 9000, "bytes": "y"}]},
    ],
)
def test_a_manifest_of_another_shape_is_no_reason_to_fail(tmp_path, provenance):
    body = {"outputs": {"x" * 9000: 1, "\0": {}}, "provenance": provenance}
    (tmp_path / "manifest.json").write_text(
        json.dumps({**body, "manifest_sha256": custody._digest(body)})
    )
    assert set(verify_case(tmp_path)["problem"]) == {"missing"}
    assert run(["verify", str(tmp_path)]) == 1
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    assert verify_case(tmp_path)["path"].to_list() == ["manifest.json"]


def test_a_folder_without_manifest_is_told(tmp_path):
    with pytest.raises(SourceError, match="holds no manifest"):
        verify_case(tmp_path)
