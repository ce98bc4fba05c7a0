"""A system that refuses, or dies, while something is written (benchmarks/crash_points.py: all)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from crash_points import Command, points, strike

import tracelab as tl
from tracelab.cli import commands, run

needs_strace = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("strace") is None,
    reason="needs Linux and strace (Debian: apt install strace)",
)
PROGRAM = (sys.executable, "-m", "tracelab")
SAMPLE = str(ROOT / "data" / "checkout")
FULL = "tracelab: cannot write the output: No space left on device\n"


@pytest.mark.strace
@needs_strace
@pytest.mark.parametrize(
    ("name", "call", "part_of_path", "fault"),
    [
        ("ingest", "link", "/log/", "signal=KILL"),
        ("ingest", "fsync", "/log", "error=EIO"),
        ("ingest", "write", ".parquet", "error=ENOSPC"),
        ("compact", "unlink", ".parquet", "signal=KILL"),
        ("expire", "link", "/log/", "signal=KILL"),
        ("expire", "fsync", "/log", "error=EIO"),
        ("rewrite", "write", ".parquet", "error=ENOSPC"),
    ],
)
def test_a_fault_in_a_call_that_writes_leaves_all_or_nothing(
    tmp_path, name, call, part_of_path, fault
):
    command = Command(name, tmp_path)
    found = points(command)
    whole = command.left()
    point = [each for each in found if each[1] == call and part_of_path in each[0]][-1]
    assert strike(command, whole, point, fault) is None
    assert command.n_unreached == 0


@pytest.mark.strace
@needs_strace
def test_the_crash_points_include_every_file_of_a_store(tmp_path):
    command = Command("ingest", tmp_path)
    struck = {path for path, call, _ in points(command) if call == "write"}
    assert sum(".parquet" in path for path in struck) >= 2
    assert sum("/log/" in path for path in struck) == 2


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "store"
    tl.TraceStore(folder).ingest(SAMPLE)
    return str(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a full disk")
@pytest.mark.parametrize(
    "command", ["investigate", "info", "trace", "verify", "compare", "help", "version"]
)
def test_a_full_disk_behind_the_output_is_told_in_one_line(command, store, tmp_path):
    trace_id = tl.TraceStore(store).read().spans["trace_id"][0]
    line = {
        "investigate": ("investigate", store, "-o", tmp_path / "out"),
        "info": ("store", "info", store),
        "trace": ("trace", store, trace_id),
        "verify": ("store", "verify", store),
        "compare": ("compare", SAMPLE, SAMPLE, "--json"),
        "help": ("--help",),
        "version": ("--version",),
    }[command]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, *line], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, FULL)


def test_a_closed_output_is_told_and_a_closed_stderr_is_no_reason_to_fail(store):
    line = " ".join((*PROGRAM, "store", "info", store, "--json"))
    closed = subprocess.run(f"{line} >&-", shell=True, capture_output=True, text=True, check=False)
    assert closed.returncode == 2
    assert closed.stderr == "tracelab: cannot write the output: standard output is closed\n"
    mute = subprocess.run(f"{line} 2>&-", shell=True, capture_output=True, text=True, check=False)
    assert mute.returncode == 0
    assert json.loads(mute.stdout)["sources"]


@pytest.mark.strace
@needs_strace
def test_a_disk_that_fails_while_it_is_read_is_not_taken_for_the_output(store, tmp_path):
    tl.investigate(tl.TraceStore(store)).write(tmp_path / "out")
    report = tmp_path / "out" / "report.html"
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", tmp_path / "calls", "-P", report),
            *("-e", "trace=read", "-e", "inject=read:error=EIO"),
            *(*PROGRAM, "verify", tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "report.html: cannot be read"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError, ["tracelab: not enough memory"]),
        (RuntimeError, ["Traceback", "tracelab: stopped by something it did not foresee"]),
        (BaseException, ["Traceback", "tracelab: stopped by something it did not foresee"]),
    ],
)
def test_what_nobody_foresaw_does_not_end_like_findings(monkeypatch, capsys, error, told):
    def fail(arguments):
        raise error

    monkeypatch.setattr(commands, "run", fail)
    assert run(["store", "info", "nowhere"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [lines[0].startswith(told[0]), lines[-1].startswith(told[-1])] == [True, True]
    assert len(lines) == 1 or len(told) == 2
