"""The captures of the lab are what their truth says, seen without any detector."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tracelab as tl  # noqa: E402
from tests.lab.exports import (  # noqa: E402
    ExportedSpan,
    export_files,
    read_counter,
    read_requests,
    read_spans,
)
from tests.lab.overview import render_runs  # noqa: E402
from tracelab import schema  # noqa: E402

LAB = ROOT / "data" / "lab"
RUNS = sorted(folder.name for folder in LAB.iterdir() if folder.is_dir())
every_run = pytest.mark.parametrize("name", RUNS)
clean_runs = pytest.mark.parametrize("name", [n for n in RUNS if n.startswith("clean")])


@cache
def capture(name: str) -> tuple[dict[str, ExportedSpan], list[dict]]:
    spans = {span.span_id: span for span in read_spans(LAB / name)}
    lines = gzip.decompress((LAB / name / "truth.jsonl.gz").read_bytes()).splitlines()
    return spans, [json.loads(line) for line in lines]


def rows_of(name: str, kind: str) -> list[dict]:
    return [row for row in capture(name)[1] if row["kind"] == kind and row["observable"]]


@every_run
def test_truth_speaks_the_words_of_the_schema(name: str) -> None:
    _spans, truth = capture(name)
    assert truth
    for row in truth:
        assert list(row) == schema.TRUTH.names()
        assert row["kind"] in (*schema.BREAK_KINDS, "error_hop", "legal")
        assert row["cause"] in (*schema.BREAK_CAUSES, None)
        assert row["boundary"] in (*schema.BOUNDARIES, None)
        assert (row["verdict"] in schema.HOP_VERDICTS) == (row["kind"] == "error_hop")


@every_run
def test_planted_orphan_has_a_parent_id_that_is_nowhere_in_the_export(name: str) -> None:
    spans, _truth = capture(name)
    for row in rows_of(name, "orphan_span"):
        assert spans[row["span_id"]].parent_span_id == row["missing_span_id"]
        assert row["missing_span_id"] not in spans


@every_run
def test_every_orphan_of_the_export_stands_in_the_truth(name: str) -> None:
    spans, truth = capture(name)
    orphans = {
        span.span_id
        for span in spans.values()
        if span.parent_span_id is not None and span.parent_span_id not in spans
    }
    told = {row["span_id"] for row in truth if row["missing_span_id"] is not None}
    assert orphans <= told


@every_run
def test_planted_detached_root_has_no_parent_and_its_caller_is_in_another_trace(name: str) -> None:
    spans, _truth = capture(name)
    for row in rows_of(name, "detached_root"):
        root, caller = spans[row["span_id"]], spans[row["true_parent_span_id"]]
        assert root.parent_span_id is None
        assert root.trace_id != caller.trace_id == row["true_parent_trace_id"]


@every_run
def test_planted_leak_points_to_a_parent_of_a_foreign_trace(name: str) -> None:
    spans, _truth = capture(name)
    for row in rows_of(name, "wrong_parent"):
        child, caller = spans[row["span_id"]], spans[row["true_parent_span_id"]]
        false = spans[child.parent_span_id or ""]
        assert false.trace_id == child.trace_id != caller.trace_id


@every_run
def test_caller_without_server_has_no_child_at_the_lost_span(name: str) -> None:
    spans, _truth = capture(name)
    for row in rows_of(name, "missing_server"):
        assert spans[row["span_id"]].kind == 3
        assert row["missing_span_id"] not in spans


@every_run
def test_lost_spans_that_leave_nothing_are_not_called_observable(name: str) -> None:
    spans, truth = capture(name)
    for row in truth:
        assert not (row["observable"] and row["span_id"] not in spans)
        assert row["observable"] or not row["evidence_present"]


@every_run
def test_failing_child_of_each_planted_hop_shows_its_error(name: str) -> None:
    spans, _truth = capture(name)
    for row in rows_of(name, "error_hop"):
        child = spans[row["span_id"]]
        assert child.parent_span_id == row["true_parent_span_id"]
        assert child.status == 2 or "exception" in child.events


@every_run
def test_boundary_between_exported_ends_follows_the_hosts_they_name(name: str) -> None:
    spans, truth = capture(name)
    for row in truth:
        ends = [spans.get(row[key] or "") for key in ("span_id", "true_parent_span_id")]
        if row["kind"] not in ("detached_root", "clock_skew") or None in ends:
            continue
        if row["boundary"] in ("process", "network"):
            near, far = (end.host for end in ends if end is not None)
            assert (near == far) == (row["boundary"] == "process")


@every_run
def test_tracelab_reads_every_span_and_its_sums_reconcile(name: str) -> None:
    written = read_spans(LAB / name)
    traces = tl.read_traces(*map(str, export_files(LAB / name)))
    assert traces.rejects.height == 0
    assert traces.ingest["spans_decoded"].sum() == len(written)
    ids = {(span.trace_id, span.span_id) for span in written}
    assert set(traces.spans.select("trace_id", "span_id").rows()) == ids
    assert traces.ingest["spans_kept"].sum() == len(ids)
    assert traces.ingest["spans_duplicate"].sum() == len(written) - len(ids)


def header_rows(name: str) -> list[dict]:
    path = LAB / name / "headers.jsonl.gz"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [row for row in rows if row["observable"]]


@every_run
def test_header_told_as_lost_is_at_its_sender_and_not_at_its_receiver(name: str) -> None:
    spans, _truth = capture(name)
    header = "http.request.header.x-error-context"
    for row in header_rows(name):
        came = row["sent"] in str(spans[row["span_id"]].attributes.get(header))
        assert came == (row["verdict"] == "kept")
        above = spans[row["span_id"]]
        while row["evidence_present"] and row["sent"] not in str(above.attributes.get(header)):
            above = spans[above.parent_span_id or ""]  # a sender without it ends in a KeyError


def test_headers_are_lost_in_some_runs_and_kept_in_others() -> None:
    lost = {name for name in RUNS for row in header_rows(name) if row["verdict"] == "lost"}
    assert {"mixed-dev", "mixed-held"} == lost
    assert sum(len(header_rows(name)) for name in RUNS) > 1000


@pytest.mark.parametrize("name", ["refusal-dev", "refusal-held"])
def test_collector_itself_counts_the_spans_that_it_refused(name: str) -> None:
    _spans, truth = capture(name)
    details = Counter(row["detail"] for row in truth if row["cause"] == "export_failure")
    assert details["memory_limiter"] > 0
    assert details["message_too_large"] > 0
    assert read_counter(LAB / name, "otelcol_receiver_refused_spans") > 0
    assert read_counter(LAB / "mixed-dev", "otelcol_receiver_refused_spans") == 0


@pytest.mark.parametrize("name", ["sampling-dev", "sampling-held"])
def test_tail_sampling_leaves_fragments(name: str) -> None:
    tails = [row for row in capture(name)[1] if row["detail"] == "tail_sampling"]
    assert sum(row["observable"] for row in tails) > 5


def test_node_leaves_no_evidence_of_a_replaced_error() -> None:
    for name in ("jvm-node-dev", "jvm-node-held"):
        rows = [row for row in rows_of(name, "error_hop") if row["verdict"] == "replaced"]
        told = {row["service_name"]: row["evidence_present"] for row in rows}
        assert told == {"orders": True, "notify": False}


def test_note_counts_what_the_runs_hold() -> None:
    assert render_runs(LAB) in (LAB / "README.md").read_text()


@every_run
def test_spans_written_twice_are_told_and_no_others(name: str) -> None:
    counts = Counter((span.trace_id, span.span_id) for span in read_spans(LAB / name))
    twice = {span_id for (_trace, span_id), count in counts.items() if count > 1}
    assert twice == {row["span_id"] for row in rows_of(name, "duplicate_span_id")}


@clean_runs
def test_clean_run_holds_no_break(name: str) -> None:
    _spans, truth = capture(name)
    assert {row["kind"] for row in truth} == {"legal"}


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lab_builds_and_makes_a_clean_capture_by_one_command(tmp_path: Path) -> None:
    if not os.environ.get("TRACELAB_LAB"):
        pytest.skip("builds the Collector and programs in four languages; set TRACELAB_LAB=1")
    command = [sys.executable, "-m", "tests.lab", "--only", "clean-go", "--seed", "dev"]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    spans = read_spans(tmp_path / "clean-go-dev")
    lines = gzip.decompress(
        (tmp_path / "clean-go-dev" / "truth.jsonl.gz").read_bytes()
    ).splitlines()
    assert {span.service for span in spans} == {"catalog", "pricing", "vault"}
    assert {json.loads(line)["kind"] for line in lines} == {"legal"}


def test_no_capture_names_a_folder_of_the_machine_that_made_it() -> None:
    for name in RUNS:
        for file in export_files(LAB / name):
            text = "".join(json.dumps(request) for request in read_requests(file))
            assert str(ROOT) not in text
            assert "/root/.cache" not in text


def test_captures_stay_small() -> None:
    assert sum(file.stat().st_size for file in LAB.rglob("*") if file.is_file()) < 20_000_000
