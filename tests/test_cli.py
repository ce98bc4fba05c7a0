"""The command line: what it prints, writes and answers."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import tracelab as tl
from tracelab import __version__
from tracelab.cli import run

PROGRAM = (sys.executable, "-c", "from tracelab.cli import main; main()")
SAMPLE = str(ROOT / "data" / "checkout")


def test_the_package_runs_as_a_module_where_no_script_is_on_the_path():
    done = subprocess.run(
        [sys.executable, "-m", "tracelab", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"tracelab {__version__}\n"


def test_version_is_printed(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"tracelab {__version__}\n"


@pytest.mark.parametrize(
    "command", ["ingest", "investigate", "trace", "rules", "compare", "repair"]
)
def test_every_command_explains_itself(command, capsys):
    assert run([command, "--help"]) == 0
    assert "Usage: tracelab" in capsys.readouterr().out


def test_investigate_prints_a_summary_and_writes_findings(tmp_path, capsys):
    assert run(["investigate", SAMPLE, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "traces" in printed
    assert "context_not_propagated" in printed
    assert (tmp_path / "out" / "findings.json").is_file()


def test_investigate_as_json_prints_the_document(tmp_path, capsys):
    assert run(["investigate", SAMPLE, "-o", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["traces"] > 0


def test_fail_on_answers_with_one_where_there_is_such_a_finding(tmp_path):
    assert run(["investigate", SAMPLE, "-o", str(tmp_path), "--fail-on", "error"]) == 1


def test_ingest_then_investigate_the_store(tmp_path, capsys):
    store = str(tmp_path / "store")
    assert run(["ingest", SAMPLE, "--store", store, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sum(row["spans_kept"] for row in rows) > 1000
    assert run(["investigate", store, "-o", str(tmp_path / "out")]) == 0
    assert "context_not_propagated" in capsys.readouterr().out


def test_trace_prints_a_tree_with_breaks(tmp_path, capsys):
    assert run(["investigate", SAMPLE, "-o", str(tmp_path), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    trace_id = next(f for f in findings if f["kind"] == "detached_root")["exemplars"][0]["trace_id"]
    assert run(["trace", SAMPLE, trace_id]) == 0
    assert "detached_root" in capsys.readouterr().out
    page = tmp_path / "trace.html"
    assert run(["trace", SAMPLE, trace_id, "-o", str(page)]) == 0
    assert trace_id in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["investigate", "no/such/file", "-o", "out"], "no/such/file"),
        (["investigate", SAMPLE], "-o"),
        (["trace", SAMPLE, "feed"], "no trace feed"),
        (["investigate", SAMPLE, "-o", "/proc/nowhere"], "cannot write"),
        (["no-such-command"], "no-such-command"),
        (["investigate", SAMPLE, "-o", "out", "--fail-on", "often"], "often"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_two(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tracelab: ")
    assert says in lines[0]


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(100), b"hello, world\n" * 50])
def test_what_is_no_export_is_refused_in_one_line(content, tmp_path, capsys):
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    assert run(["investigate", str(path), "-o", str(tmp_path / "out")]) in (0, 2)
    captured = capsys.readouterr()
    if content:
        assert len(captured.err.strip().splitlines()) == 1
        assert "file.bin" in captured.err


def test_standard_input_is_read(tmp_path):
    data = (ROOT / "data" / "checkout" / "traces.jsonl").read_bytes()
    done = subprocess.run(
        [*PROGRAM, "investigate", "-", "-o", str(tmp_path / "out")],
        input=data,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"traces" in done.stdout


def test_a_closed_pipe_ends_quietly(tmp_path):
    script = f"{sys.executable} -c 'from tracelab.cli import main; main()' --help | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
    assert b"Traceback" not in done.stderr


def test_a_store_is_described_compacted_and_proven(tmp_path, capsys):
    store = tmp_path / "store"
    assert run(["ingest", SAMPLE, "--store", str(store)]) == 0
    assert run(["store", "info", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["spans"] > 1000
    assert run(["store", "compact", str(store)]) == 0
    assert run(["store", "verify", str(store)]) == 0
    part = next((store / "spans").iterdir())
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part.write_bytes(damaged)
    assert run(["store", "verify", str(store)]) == 1
    assert part.name in capsys.readouterr().out


def test_what_is_no_store_is_said_with_the_command_that_makes_one(tmp_path, capsys):
    assert run(["store", "verify", str(tmp_path)]) == 2
    assert "tracelab ingest SRC --store" in capsys.readouterr().err


def test_repair_adds_proposed_parents_and_leaves_the_rest(tmp_path, capsys):
    path = tmp_path / "repaired.jsonl"
    assert run(["repair", SAMPLE, "-o", str(path)]) == 0
    before, after = tl.load_example("checkout"), tl.read_traces(path)
    same = ["trace_id", "span_id", "parent_span_id", "name", "start_time", "status_code"]
    assert after.spans.select(same).equals(before.spans.select(same))
    added = after.links.join(before.links, on=["trace_id", "span_id"], how="anti")
    assert added.height > 0
    assert added["attributes"].str.contains("tracelab.proposed_parent").all()


def test_compare_of_a_capture_with_itself_finds_no_change(capsys):
    assert run(["compare", SAMPLE, SAMPLE, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert {row["verdict"] for row in rows} == {"no clear change"}
    assert all(row["difference"] == 0 for row in rows)


def test_compare_of_a_damaged_capture_with_the_sound_one_says_better(tmp_path, capsys):
    from tracelab.io.write_otlp import write_otlp

    clean = tl.synthesize_traces(seed=3, traces=800)
    broken, _ = tl.inject_breaks(clean, seed=3)
    for name, traces in (("clean", clean), ("broken", broken)):
        write_otlp(traces, tmp_path / f"{name}.jsonl")
    paths = [str(tmp_path / "broken.jsonl"), str(tmp_path / "clean.jsonl")]
    assert run(["compare", *paths, "--json"]) == 0
    verdicts = {row["verdict"] for row in json.loads(capsys.readouterr().out)}
    assert "better" in verdicts
    assert "worse" not in verdicts


def test_rules_writes_rule_files_and_says_why_there_is_none(tmp_path, capsys):
    assert run(["rules", SAMPLE, "-o", str(tmp_path / "rules")]) == 0
    assert "No rule" in capsys.readouterr().out
    assert (tmp_path / "rules" / "prometheus-rules.yml").is_file()


def test_called_without_a_command_it_shows_its_help_with_its_lines(capsys):
    assert run([]) == 2
    assert "\n" in capsys.readouterr().err.strip()


def test_an_ascii_terminal_is_no_reason_to_fail():
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [*PROGRAM, "compare", SAMPLE, SAMPLE],
        capture_output=True,
        env={**os.environ, **ascii_only},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Compared" in done.stdout


def test_markdown_for_a_ticket_keeps_times_readable_and_gives_legal_work_no_cause(tmp_path):
    run(["investigate", SAMPLE, "-o", str(tmp_path)])
    text = (tmp_path / "findings.md").read_text("utf-8")
    assert "2026-11-23 04:43:59" in text
    legal = text.split("starts after its parent ended")[1].split("###")[0]
    assert "**cause**" not in legal
    assert "Nothing to mend" in legal


def test_an_interrupt_while_waiting_for_input_ends_in_one_line(tmp_path):
    with subprocess.Popen(
        [*PROGRAM, "investigate", "-", "-o", str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as waiting:
        time.sleep(2.5)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=4) == 130
        said = waiting.stderr.read().decode()
    assert said == "tracelab: interrupted; finished work is kept\n"


def test_evidence_shows_the_place_and_writes_the_bytes(tmp_path, capsys):
    source = ROOT / "data" / "checkout" / "traces.jsonl"
    span = tl.read_traces(source).spans.row(0, named=True)
    out = tmp_path / "message"
    assert run(["evidence", str(source), span["trace_id"], span["span_id"], "-o", str(out)]) == 0
    assert span["span_id"].encode() in out.read_bytes()
    assert out.read_bytes() in source.read_bytes()
    assert "SHA-256 of the source" in capsys.readouterr().out
    assert run(["evidence", str(source), span["trace_id"], "00000000000000ff"]) == 2


def test_verify_names_the_changed_file_of_a_case(tmp_path, capsys):
    source = ROOT / "data" / "checkout" / "traces.jsonl"
    assert run(["investigate", str(source), "-o", str(tmp_path / "case")]) == 0
    assert run(["verify", str(tmp_path / "case")]) == 0
    findings = tmp_path / "case" / "findings.json"
    findings.write_text(findings.read_text().replace("error", "arror", 1))
    capsys.readouterr()
    assert run(["verify", str(tmp_path / "case")]) == 1
    assert "findings.json: changed" in capsys.readouterr().out


def test_output_into_a_pipe_is_as_wide_as_columns_says(tmp_path):
    arguments = ["investigate", str(ROOT / "data" / "checkout" / "traces.jsonl")]
    text = subprocess.run(
        [*PROGRAM, *arguments, "-o", str(tmp_path)],
        env={**os.environ, "COLUMNS": "72"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert max(map(len, text.splitlines())) <= 72


def test_an_empty_source_is_told(tmp_path, capsys):
    assert run(["investigate", "", "-o", str(tmp_path / "out")]) == 2
    assert "a source is empty" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.4])
def test_an_interrupt_during_the_imports_is_one_line(seconds, tmp_path):
    process = subprocess.Popen(
        [*PROGRAM, "investigate", "-", "-o", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT)
    # Before Python itself has begun, the system ends it without a word.
    assert complaint in ("", "tracelab: interrupted; finished work is kept\n") or (
        process.returncode == -signal.SIGINT
    )


def test_evidence_shows_the_place_and_writes_the_bytes_of_a_span(tmp_path, capsys):
    span = tl.load_example("checkout").spans.row(0, named=True)
    ids = [span["trace_id"], span["span_id"]]
    assert run(["evidence", SAMPLE, *ids]) == 0
    printed = capsys.readouterr().out
    assert "SHA-256" in printed
    assert "traces.jsonl" in printed
    message = tmp_path / "message.bin"
    assert run(["evidence", SAMPLE, *ids, "-o", str(message)]) == 0
    assert span["span_id"].encode() in message.read_bytes()
    assert message.read_bytes() in (ROOT / "data" / "checkout" / "traces.jsonl").read_bytes()


def test_evidence_strips_terminal_escapes(tmp_path, capsys):
    path = tmp_path / "hostile.jsonl"
    span = {
        "traceId": "11" * 16,
        "spanId": "22" * 8,
        "name": "\x9b31mowned\u202e",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
    }
    spans = [{"scopeSpans": [{"spans": [span]}]}]
    path.write_text(json.dumps({"resourceSpans": spans}, ensure_ascii=False), "utf-8")
    assert run(["evidence", str(path), "11" * 16, "22" * 8]) == 0
    printed = capsys.readouterr().out
    assert "owned" in printed
    assert not {"\x9b", "\x1b", "\u202e"} & set(printed)


def test_evidence_of_an_unknown_span_is_one_line(capsys):
    assert run(["evidence", SAMPLE, "feed", "beef"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_verify_of_a_case_names_the_file_that_changed(tmp_path, capsys):
    assert run(["investigate", SAMPLE, "-o", str(tmp_path)]) == 0
    assert run(["verify", str(tmp_path)]) == 0
    with (tmp_path / "breaks.parquet").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    capsys.readouterr()
    assert run(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("breaks.parquet: changed")


def test_store_arguments_keep_both_slashes_of_a_url(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(tl.TraceStore, "is_store", lambda path: seen.append(path) or False)
    for command in ("info", "compact", "verify"):
        assert run(["store", command, "s3://bucket/prefix"]) == 2
        assert "s3://bucket/prefix is no store" in capsys.readouterr().err
    assert seen == ["s3://bucket/prefix"] * 3
