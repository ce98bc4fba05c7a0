"""Break every call that writes, one per run, in every way a system can; see what is left.

    python benchmarks/crash_points.py [--commands ingest compact …] [--every 1]

strace (Debian's package) traces a command once, so that each call that writes below its folder is
known by file, name and number, and then runs it again for each call and fault: killed before the
call, EIO, ENOSPC, EINTR. (A short count cannot be injected this way: strace then answers a call
that never wrote; see tests/test_short_writes.py.) After each fault

- a store must verify, and hold all of a source or nothing of it: all if the command said it was
  done;
- a compacted store must hold the same rows as before, one whose old rows expire all or the newer;
- a case that was said to be written must pass `verify_case`, and one that was being written
  (`rewrite`: over an older one) passes only if it is the whole new or the whole old one;
- the same command made again must complete, and leave what it leaves without a fault.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path

import tracelab as tl
from tracelab.exceptions import TracelabError
from tracelab.traceset import TABLES

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "checkout" / "traces.jsonl"
CALLS = (
    "write", "pwrite64", "writev", "rename", "renameat", "renameat2", "link", "linkat", "unlink",
    "unlinkat", "fsync", "fdatasync", "mkdir", "mkdirat", "ftruncate", "fallocate",
)  # fmt: skip
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC", "error=EINTR")
COMMANDS = ("ingest", "compact", "expire", "investigate", "rewrite")
PLAIN = "from tracelab.cli import main; main()"
STEADY = f"""
import itertools, tempfile, uuid
numbers = itertools.count(1)
tempfile._name_sequence = (f"{{number:08d}}" for number in numbers)
uuid.uuid4 = lambda: uuid.UUID(int=next(numbers))
{PLAIN}
"""
# Names that would be drawn by lot are counted, so that strace can wait for a call by its file.


class Command:
    """One way to write: how it starts, what it is given, what must hold afterwards."""

    def __init__(self, name, scratch):
        self.name, self.scratch = name, scratch
        self.place = scratch / "place"
        self.base = scratch / "base"
        self.export = scratch / "export.jsonl"
        self.n_unreached = 0
        lines = SAMPLE.read_bytes().splitlines(keepends=True)
        first = None
        if name in ("compact", "expire"):
            store = tl.TraceStore(self.base, buckets=2)
            for number in range(3):
                later = slice(number * len(lines) // 3, (number + 1) * len(lines) // 3)
                chosen = slice(number, None, 3) if name == "compact" else later
                self.export.write_bytes(b"".join(lines[chosen]))
                store.ingest(self.export, workers=1)
                if not number:
                    first = store.read().spans["start_time"].max() + timedelta(microseconds=1)
        if name == "rewrite":
            self.export.write_bytes(b"".join(lines[: len(lines) // 2]))
            tl.investigate(tl.read_traces(self.export)).write(self.base)
            self.export.rename(scratch / "older.jsonl")
        self.export.write_bytes(b"".join(lines[: len(lines) // 3]))
        self.line = {
            "ingest": ("ingest", self.export, "--store", self.place),
            "compact": ("store", "compact", self.place, "--keep", "0s"),
            "expire": ("store", "expire", self.place, "--before", str(first)),
        }.get(name, ("investigate", self.export, "-o", self.place))
        self.prepare()
        self.before = self.left()

    def prepare(self):
        """Put the folder back as it was."""
        shutil.rmtree(self.place, ignore_errors=True)
        if self.base.is_dir():
            shutil.copytree(self.base, self.place)

    def run(self, *options):
        """Run, under strace if there are options for it; return the exit status."""
        (self.scratch / "tmp").mkdir(exist_ok=True)
        traced = ("strace", "-f", "-qq", "-y", "-o", self.scratch / "calls", *options)
        program = STEADY if options else PLAIN
        done = subprocess.run(
            (*(traced if options else ()), sys.executable, "-c", program, *self.line),
            capture_output=True,
            check=False,
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "1",
                "POLARS_MAX_THREADS": "1",
                "TMPDIR": str(self.scratch / "tmp"),
            },
        )
        shutil.rmtree(self.scratch / "tmp")
        if b"Traceback" in done.stderr:
            raise AssertionError(done.stderr.decode()[-2000:])
        return done.returncode

    def left(self):
        """Return what is in the folder, comparable; None if it is nothing that counts."""
        if self.name in ("investigate", "rewrite"):
            if not (self.place / "manifest.json").is_file() or tl.verify_case(self.place).height:
                return None
            told = json.loads((self.place / "manifest.json").read_text())["outputs"]
            return {name: (self.place / name).read_bytes() for name in (*told, "manifest.json")}
        if not tl.TraceStore.is_store(self.place):
            return None
        store = tl.TraceStore(self.place)
        problems = store.verify()
        if problems.height:
            raise AssertionError(f"damaged: {problems.rows()[:3]}")
        held = store.read()
        return {name: getattr(held, name) for name in TABLES if name != "ingest"}

    def is_as_before(self, left):
        """Tell whether nothing was committed; a case in pieces must not pass for a case."""
        if left is None:
            return self.name not in ("compact", "expire")
        if self.name == "ingest":
            return not left["spans"].height
        return self.before is not None and same(left, self.before)


def same(one, other):
    """Compare what two runs left."""
    return one.keys() == other.keys() and all(
        value.equals(other[name]) if hasattr(value, "equals") else value == other[name]
        for name, value in one.items()
    )


def points(command):
    """List the calls below the folder: file, name, and number among the thread's to this file."""
    command.prepare()
    command.run("-e", f"trace={','.join(CALLS)}")
    seen = Counter()
    below = re.compile(rf'["<]({re.escape(str(command.place))}[^">\s\\]*)[">]')
    for line in (command.scratch / "calls").read_text(errors="replace").splitlines():
        call, where = re.match(r"(\d+) +(\w+)\(", line), below.search(line)
        if call and where:
            seen[call[1], where[1], call[2]] += 1
    found = [
        (path, call, number)
        for (_, path, call), times in seen.items()
        for number in range(1, times + 1)
    ]
    return list(dict.fromkeys(found))


def strike(command, whole, point, fault):
    """Run with one fault; return what went wrong, or None."""
    path, call, number = point
    command.prepare()
    status = command.run(
        "-P", path, "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"
    )
    struck = (command.scratch / "calls").read_text(errors="replace")
    command.n_unreached += "INJECTED" not in struck and "killed by SIGKILL" not in struck
    left = command.left()
    if status in (0, 1) and (left is None or not same(left, whole)):
        return "said done, and is not"
    if not command.is_as_before(left) and not same(left, whole):
        return "half of it is there"
    if command.run() not in (0, 1):
        return "cannot be made again"
    again = command.left()
    if again is None or not same(again, whole):
        return "made again, and differs"
    return None


def strike_all(name, scratch, *, every=1, faults=FAULTS):
    """Strike each point; return points, runs, runs that missed, what went wrong."""
    command = Command(name, scratch)
    found = points(command)
    whole = command.left()
    runs, wrong = 0, []
    for point in found[::every]:
        for fault in faults:
            runs += 1
            try:
                why = strike(command, whole, point, fault)
            except (AssertionError, TracelabError) as error:
                why = str(error)
            if why:
                wrong.append((name, *point, fault, why))
    return len(found), runs, command.n_unreached, wrong


def main():
    """Print points, runs and failures per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    parser.add_argument("--every", type=int, default=1, help="each so many-th point only")
    arguments = parser.parse_args()
    failures = 0
    for name in arguments.commands:
        with tempfile.TemporaryDirectory() as folder:
            n_points, runs, unreached, wrong = strike_all(name, Path(folder), every=arguments.every)
        failures += len(wrong) + unreached
        print(
            f"{name}: {n_points} points, {runs} runs, {unreached} of them not reached, "
            f"{len(wrong)} wrong",
            flush=True,
        )
        for each in wrong[:20]:
            print("  ", *each)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
