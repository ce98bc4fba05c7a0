"""Read mutants of every container form and of a store's files; count deaths, hangs, broken sums.

    python benchmarks/mutants.py --batches 20000 [--seed 1] [--first 0] [--kinds proto json ...]

A batch is about a thousand mutants that are read together, as files hold many messages:

* proto, json: one file of a form and packing drawn by chance, each message a mutant of its own
  (containers_of_mutants.py says what must hold);
* differential proto, differential json: what the fast decoder accepts is compared with a slow
  reference, field by field (differential.py);
* store: a log entry or part is altered; it is named, and never read as other rows
  (store_mutants.py);
* folder: a folder of small files, each a mutant, by `read_traces`;
* alone: mutants that are small files, each read by itself of its own, by `read_traces`.

A process of its own reads them. It says which batch is next, so that the one it dies of, or hangs
over, is known; the batch is then read by halves down to the mutant, and the process started again
behind it. The same seed, batch and place in it make the same mutant. A line a minute says how far
it is; a run goes on from there with `--first`.
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
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from containers_of_mutants import (
    JSON_FORMS,
    PACKINGS,
    PROTO_FORMS,
    make_file,
    read_and_judge,
)
from differential import compare
from mutations import Seeds, spoil_bytes
from store_mutants import StoreMutants, make_store
from test_io_fuzz import SEEDS, judge

import tracelab as tl
from tracelab.exceptions import SourceError
from tracelab.io.intake import BOM

KINDS = {
    "proto": 430,
    "json": 130,
    "differential proto": 100,
    "differential json": 60,
    "store": 250,
    "folder": 10,
    "alone": 20,
}
"""Odds of each kind of batch, in thousandths."""

MUTANTS = 1000
FEWER = {"folder": 200, "alone": 50}
HANG_S = 5.0
"""Most seconds of CPU for a mutant. A batch that takes more is read again by halves."""
_BATCH_S = 120.0
_PATIENCE = 12  # waits of HANG_S for a process that does nothing at all
_SAY_S = 60


class Judge:
    """Reads batches of one seed.

    Parameters
    ----------
    seed : int
        Of all batches.
    kinds : list of str
        Those that are drawn.
    scratch : Path
        A folder for a store and for folders of files.
    """

    def __init__(self, seed, kinds, scratch):
        self.seed = seed
        self.kinds = kinds
        self.scratch = scratch
        self.stores = {}

    def read(self, batch, only=None):
        """Read a batch, or some of its mutants; return how many by kind.

        Raises
        ------
        AssertionError
            If something does not hold.
        """
        rng = random.Random(f"{self.seed}/{batch}")
        kind = rng.choices(self.kinds, [KINDS[each] for each in self.kinds])[0]
        size = FEWER.get(kind, MUTANTS)
        only = range(size) if only is None else range(only.start, min(only.stop, size))
        if kind in ("proto", "json"):
            form = rng.choice(PROTO_FORMS if kind == "proto" else JSON_FORMS)
            file = make_file(rng, form, rng.choice(list(PACKINGS)), mutants=size, only=only)
            read_and_judge(file)
            return Counter({form: file.mutants})
        if kind.startswith("differential"):
            encoding = kind.split()[1]
            return Counter({kind: self._compare(rng, encoding, only)})
        found = Counter()
        if kind == "store":
            store = self._store(batch // 1000)
            for number in only:
                found[store.judge(self._rng(batch, number))] += 1
        elif kind == "folder":
            found[kind] = self._read_folder(batch, only)
        else:
            for number in only:
                judge(_small_file(self._rng(batch, number)))
                found[kind] += 1
        return found

    def _rng(self, batch, number):
        return random.Random(f"{self.seed}/{batch}/{number}")

    def _compare(self, rng, encoding, only):
        seeds = Seeds(rng, 24, traces_only=True, protobuf=encoding == "proto")
        states = [rng.getrandbits(64) for _ in range(MUTANTS)]
        messages = []
        for number in only:
            rng.seed(states[number])
            message = seeds.mutant(rng, whole=0.8)
            while message.startswith(BOM):  # taken off before a message is decoded
                message = message[len(BOM) :]
            messages.append(message or b"{}")
        return compare(messages, encoding)

    def _store(self, number):
        """Return the store of a thousand batches."""
        if number not in self.stores:
            self.stores.clear()
            with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
                files = make_store(random.Random(f"{self.seed}/store {number}"), Path(folder))
            self.stores[number] = StoreMutants(files)
        return self.stores[number]

    def _read_folder(self, batch, only):
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            size = 0
            for number in only:
                data = _small_file(self._rng(batch, number))
                (Path(folder) / f"{number}").write_bytes(data)
                size += len(data)
            try:
                traces = tl.read_traces(folder)
            except SourceError:
                return len(only)
        account = traces.ingest.sum().row(0, named=True)
        assert account["messages"] == account["messages_good"] + account["messages_rejected"]
        assert account["spans_decoded"] == account["spans_kept"] + account["spans_duplicate"]
        assert account["spans_kept"] == traces.spans.height
        passed_over = traces.rejects.filter(
            ~traces.rejects["source"].is_in(traces.ingest["source"].implode())
        )
        told = traces.ingest.height + passed_over["source"].n_unique()
        assert told == len(only), f"{told} of {len(only)} files are accounted for"
        assert account["bytes"] <= size
        return len(only)


def _small_file(rng):
    """Make a mutant of a small export, under its packing or outside of it."""
    data, pack = SEEDS[rng.choice(list(SEEDS))], PACKINGS[rng.choice(list(PACKINGS))]
    return pack(spoil_bytes(rng, data)) if rng.random() < 0.5 else spoil_bytes(rng, pack(data))


def peak_mb():
    """Return the largest resident memory of the program so far, MB.

    Linux hands `ru_maxrss` on to the program that a process starts, so that there it may be
    the parent's; `VmHWM` is the program's own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def work(judge, first, end, only=None):
    """Read batches; say the number before and the outcome after each."""
    for batch in range(first, end):
        print("next", batch, flush=True)
        try:
            for form, count in _in_time(judge, batch, only).items():
                print("read", count, form, flush=True)
        except BaseException as error:  # noqa: BLE001 - panics of native code are no Exception
            place, why = _culprit(judge, batch, only or range(MUTANTS), error)
            print("wrong", place, " ".join(why.split())[:400], flush=True)
        print("peak", peak_mb(), flush=True)
    print("end", flush=True)


def _in_time(judge, batch, only):
    begun = time.process_time()
    found = judge.read(batch, only)
    if time.process_time() - begun > HANG_S:
        _no_mutant_is_slow(judge, batch, only or range(MUTANTS))
    return found


def _no_mutant_is_slow(judge, batch, only):
    middle = (only.start + only.stop) // 2
    for half in (range(only.start, middle), range(middle, only.stop)):
        if not half:
            continue
        print("next", batch, flush=True)
        begun = time.process_time()
        judge.read(batch, half)
        if time.process_time() - begun > HANG_S:
            assert len(half) > 1, f"mutant {half.start} takes more than {HANG_S} s"
            _no_mutant_is_slow(judge, batch, half)


def _culprit(judge, batch, only, error):
    """Read by halves what went wrong, as long as a half goes wrong by itself."""
    while len(only) > 1:
        middle = (only.start + only.stop) // 2
        for half in (range(only.start, middle), range(middle, only.stop)):
            print("next", batch, flush=True)
            try:
                judge.read(batch, half)
            except BaseException as again:  # noqa: BLE001
                only, error = half, again
                break
        else:
            break
    where = traceback.extract_tb(error.__traceback__)[-1]
    why = traceback.format_exception_only(error)[-1]
    return f"{only.start}-{only.stop - 1}", f"{why} ({Path(where.filename).name}:{where.lineno})"


class Watch:
    """Runs workers until all batches were read.

    Parameters
    ----------
    command : list of str
        A program that takes the first batch and the one behind the last, and maybe two mutants
        more: the first of those that it is to read and the one behind their last.
    hang_s : float
        Seconds of CPU after which a batch hangs.
    """

    def __init__(self, command, *, hang_s=_BATCH_S):
        self.command = command
        self.hang_s = hang_s
        self.read = Counter()
        self.wrong = []
        self.peak = 0

    def run(self, first, end):
        """Read batches; afterwards `read`, `wrong` (batch, what) and `peak` (MB) tell."""
        while first < end:
            first, outcome = self._watch_one(first, end)
            if outcome:
                self.wrong.append((first, f"{outcome}; {self._halve(first)}"))
                first += 1

    def _halve(self, batch):
        """Find the mutant that a batch dies of, or hangs over."""
        only = range(MUTANTS)
        while len(only) > 1:
            middle = (only.start + only.stop) // 2
            halves = (range(only.start, middle), range(middle, only.stop))
            bad = [half for half in halves if self._watch_one(batch, batch + 1, half)[1]]
            if not bad:
                break
            only = bad[0]
        return f"mutants {only.start}-{only.stop - 1}"

    def _watch_one(self, first, end, only=None):
        """Run one worker; return how far it came, and what it died of."""
        more = [] if only is None else [str(only.start), str(only.stop)]
        process = subprocess.Popen(
            [*self.command, str(first), str(end), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        with process.stdout:
            begun, spent, waits, said = False, 0.0, 0, time.monotonic()
            while True:
                # Imports come before the first batch.
                wait = self.hang_s if begun else 240
                ready, _, _ = select.select([process.stdout], [], [], wait)
                waits = 0 if ready else waits + 1
                if begun and 0 < waits < _PATIENCE and _cpu_s(process.pid) - spent < self.hang_s:
                    continue  # other processes have the cores
                line = process.stdout.readline().decode().strip() if ready else ""
                word, _, rest = line.partition(" ")
                if word == "next":
                    begun, first, spent = True, int(rest), _cpu_s(process.pid)
                    if time.monotonic() - said > _SAY_S:
                        said = time.monotonic()
                        print(self.line(f"batch {first}"), flush=True)
                elif word == "read" and only is None:
                    count, _, form = rest.partition(" ")
                    self.read[form] += int(count)
                elif word == "wrong" and only is None:
                    self.wrong.append((first, rest))
                    print(f"  wrong: batch {first}, mutants {rest}", flush=True)
                elif word == "peak":
                    self.peak = max(self.peak, int(rest))
                elif word not in ("read", "wrong"):
                    break
            if word == "end" and process.wait() == 0:
                return end, ""
            if not begun:
                sys.exit("the process that reads does not start")
            process.kill()
            status = process.wait()
        if ready:
            return first, f"death: status {status}"
        return first, f"hang: more than {self.hang_s} s of CPU, or {_PATIENCE * self.hang_s} s"

    def line(self, place):
        """Say how far it is."""
        forms = ", ".join(f"{form} {count:,}" for form, count in sorted(self.read.items()))
        return (
            f"{time.strftime('%H:%M:%S')} {place}: {self.read.total():,} mutants read, "
            f"{len(self.wrong)} failures, at most {self.peak} MB ({forms})"
        )


def _cpu_s(number):
    """Return the seconds of CPU that a process took."""
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    """Print counts by form, and every failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--work", nargs="+", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        first, end, *only = arguments.work
        with tempfile.TemporaryDirectory() as folder:
            judge_ = Judge(arguments.seed, arguments.kinds, Path(folder))
            work(judge_, first, end, range(*only) if only else None)
        return
    command = [sys.executable, __file__, "--seed", str(arguments.seed)]
    watch = Watch([*command, "--kinds", *arguments.kinds, "--work"])
    end = arguments.first + arguments.batches
    watch.run(arguments.first, end)
    print(watch.line(f"seed {arguments.seed}, batches {arguments.first} to {end - 1}"))
    for batch, what in watch.wrong[:40]:
        print(f"  batch {batch}: {what}")
    sys.exit(bool(watch.wrong))


if __name__ == "__main__":
    main()
