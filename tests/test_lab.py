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

from tests.lab.exports import ExportedSpan, export_files, read_requests, read_spans  # noqa: E402
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
