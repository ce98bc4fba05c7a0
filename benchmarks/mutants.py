"""Read mutants of every container form and of a store's files; count deaths, hangs, broken sums.

    python benchmarks/mutants.py --mutants 100000 [--seed 1] [--first 0]

A mutant has one to four places that are overwritten, cut, dropped, filled in, repeated or zeroed,
under its compression or outside of it. A process of its own reads them, and what always holds is
checked: messages = good + rejected, spans decoded = kept + duplicates, all bytes accounted for, no
event without its span; a store's file is named by `verify`, and is never read as other data. The
process says which mutant is next, so that the one it dies of, or hangs over, is known; it is
started again behind it. The same seed and number make the same mutant.
"""

import argparse
import os
import random
import re
import resource
import select
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from bit_flips import is_named, is_read_silently
from exports import COMPRESSIONS
from test_io_fuzz import SEEDS, apply, judge

from tracelab.store import TraceStore

KINDS = ("flip", "cut", "drop", "insert", "repeat", "zero")
STORE = "store"
EVERY_STORE = 8  # one mutant in so many is one of a store's file
HANG_S = 5.0
_PATIENCE = 12  # waits of HANG_S for a process that does nothing at all


def changes_of(rng):
    """Draw one to four changes: place, kind, bytes."""
    return [
        (rng.random(), rng.choice(KINDS), rng.randbytes(rng.randint(1, 24)))
        for _ in range(rng.randint(1, 4))
    ]


class Store:
    """A store whose files are altered one at a time."""

    def __init__(self, scratch):
        self.place = scratch / "store"
        for number, form in enumerate(("json lines", "proto frames", "jaeger")):
            export = scratch / f"export-{number}"
            export.write_bytes(SEEDS[form])
            TraceStore(self.place, buckets=2).ingest(export, workers=1)
        self.whole = TraceStore(self.place).read()
        self.files = sorted(path for path in self.place.rglob("*") if path.is_file())

    def judge(self, rng):
        """Alter a file, look, and put it back."""
        path = rng.choice(self.files)
        data = path.read_bytes()
        altered = apply(data, changes_of(rng))
        if altered == data:
            return
        path.write_bytes(altered)
        try:
            assert is_named(self.place, path), f"{path.name} is not named"
            assert not is_read_silently(self.place, self.whole), f"{path.name} reads otherwise"
        finally:
            path.write_bytes(data)


def judge_one(seed, number, store):
    """Make a mutant and read it; return the form that it had."""
    rng = random.Random(f"{seed}/{number}")
    if number % EVERY_STORE == 0:
        store.judge(rng)
        return STORE
    form, compression = rng.choice(list(SEEDS)), rng.choice(list(COMPRESSIONS))
    data, pack = SEEDS[form], COMPRESSIONS[compression]
    inside = rng.random() < 0.5
    judge(pack(apply(data, changes_of(rng))) if inside else apply(pack(data), changes_of(rng)))
    return form


def peak_mb():
    """Return the largest resident memory of the program so far, MB.

    Linux hands `ru_maxrss` on to the program that a process starts, so that there it may be
    the parent's; `VmHWM` is the program's own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def work(seed, first, end):
    """Judge mutants; say the number before and the outcome after each."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for number in range(first, end):
            print("next", number, flush=True)
            try:
                print("read", judge_one(seed, number, store), flush=True)
            except BaseException as error:  # noqa: BLE001 - polars' panics are no Exception
                why = traceback.format_exception_only(error)[-1].strip()
                print("wrong", " ".join(why.split())[:300], flush=True)
    print("peak", peak_mb(), flush=True)


def watch(command, first, end, *, hang_s=HANG_S):
    """Run workers until all mutants were read; return counts by outcome, and what went wrong.

    Returns
    -------
    tuple of Counter, list and int
        Read by form; (number, what) of deaths, hangs and wrong sums; peak memory in MB.
    """
    read, wrong, peak = Counter(), [], 0
    while first < end:
        process = subprocess.Popen(
            [*command, str(first), str(end)], stdout=subprocess.PIPE, bufsize=0
        )
        begun, spent, waits = False, 0.0, 0
        while True:
            # Imports and the making of the store come before the first mutant.
            ready, _, _ = select.select([process.stdout], [], [], hang_s if begun else 120)
            waits = 0 if ready else waits + 1
            if begun and 0 < waits < _PATIENCE and _cpu_s(process.pid) - spent < hang_s:
                continue  # other processes have the cores
            line = process.stdout.readline().decode().strip() if ready else ""
            word, _, rest = line.partition(" ")
            if word == "next":
                begun, first, spent = True, int(rest) + 1, _cpu_s(process.pid)
            elif word == "read":
                read[rest] += 1
            elif word == "wrong":
                wrong.append((first - 1, rest))
            elif word == "peak":
                peak = max(peak, int(rest))
                first = end
            else:
                break
        if ready:
            status = process.wait()
            if first < end or status:
                wrong.append((first - 1, f"death: status {status}"))
        else:
            process.kill()
            process.wait()
            wrong.append(
                (first - 1, f"hang: more than {hang_s} s of CPU, or {_PATIENCE * hang_s} s")
            )
        process.stdout.close()
        if not begun:
            sys.exit("the process that reads does not start")
    return read, wrong, peak


def _cpu_s(number):
    """Return the seconds of CPU that a process took."""
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    """Print counts by form, and every failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.seed, *arguments.work)
        return
    command = [sys.executable, __file__, "--seed", str(arguments.seed), "--work"]
    end = arguments.first + arguments.mutants
    read, wrong, peak = watch(command, arguments.first, end)
    print(f"{read.total():,} mutants read, {len(wrong)} failures, at most {peak} MB")
    print("by form:", ", ".join(f"{form} {count:,}" for form, count in sorted(read.items())))
    for number, what in wrong[:40]:
        print(f"  {number}: {what}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
