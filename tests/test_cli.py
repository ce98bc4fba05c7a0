"""The command line: what it prints, writes and answers."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from tracelab import __version__
from tracelab.cli import run

PROGRAM = (sys.executable, "-c", "from tracelab.cli import main; main()")
SAMPLE = str(ROOT / "data" / "checkout")


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
