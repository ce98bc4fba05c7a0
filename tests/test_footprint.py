"""Commands write where they are told to, and nowhere else; none opens a socket."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

SAMPLE = ROOT / "data" / "checkout" / "traces.jsonl"
CALLS = "openat,open,creat,socket,connect,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,\
link,linkat,symlink,symlinkat,truncate,chmod,fchmodat"

pytestmark = [
    pytest.mark.strace,
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or shutil.which("strace") is None,
        reason="needs Linux and strace (Debian: apt install strace)",
    ),
]


def traced(tmp_path, *program):
    """Run a program; return its calls that change a file or open a socket, as (call, path)."""
    calls = tmp_path / "calls"
    subprocess.run(
        ["strace", "-f", "-qq", "-o", calls, "-e", f"trace={CALLS}", *map(str, program)],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=True,
    )
    found = []
    for text in calls.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(\w+)\(", text)
        if call is None or "= -1" in text:
            continue
        if call[1] in ("openat", "open") and not re.search("O_WRONLY|O_RDWR|O_CREAT", text):
            continue
        found.append((call[1], *re.findall(r'"([^"]*)"', text)[:1]))
    return found


def test_a_file_written_elsewhere_and_a_socket_would_be_seen(tmp_path):
    stray = tmp_path / "stray"
    code = f"import socket; socket.socket(); open({str(stray)!r}, 'w').close()"
    found = traced(tmp_path, sys.executable, "-c", code)
    assert ("socket",) in found
    assert ("openat", str(stray)) in found


def test_nothing_is_written_outside_and_no_socket_is_opened(tmp_path):
    out = tmp_path / "written"
    out.mkdir()
    (tmp_path / "tmp").mkdir()
    export = tmp_path / "export.jsonl"
    export.write_bytes(b"".join(SAMPLE.read_bytes().splitlines(keepends=True)[::3]))
    lines = [
        ("ingest", export, "--store", out / "store"),
        ("store", "compact", out / "store", "--keep", "0s"),
        ("investigate", out / "store", "-o", out / "case"),
        ("repair", export, "-o", out / "repaired.jsonl"),
    ]
    for line in lines:
        found = traced(tmp_path, sys.executable, "-m", "tracelab", *line)
        elsewhere = [
            each
            for each in found
            if len(each) < 2
            or not each[1].startswith((str(out), str(tmp_path / "tmp"), "/dev/", "/proc/self/"))
        ]
        assert elsewhere == [], line
        assert found or line[1] == "compact", line
