"""Kill ingest, compaction and investigation of a store at random moments, and prove it each time.

python benchmarks/kills.py --kills 100 [--place s3] [--seed 1]

After every kill the store must verify: each part that counts is there with the bytes that were
written, and the sums agree. After each round the interrupted job is done again, and the store
must hold the same rows as one that was never interrupted. ``--place s3`` uses a real S3 server
of this process (moto).
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from polars.testing import assert_frame_equal

from tracelab.store import TraceStore
from tracelab.synth import write_synthetic
from tracelab.traceset import TABLES

JOBS = {
    "ingest": "TraceStore(sys.argv[1]).ingest(*sys.argv[2:], workers=1)",
    "two workers": (
        "import tracelab.store.intake as intake; intake._IN_PROCESS_BYTES = 0; "
        "TraceStore(sys.argv[1]).ingest(*sys.argv[2:], workers=2)"
    ),
    "compact": "TraceStore(sys.argv[1]).compact(keep='0s')",
    "investigate": (
        "import tracelab as tl; tl.investigate(TraceStore(sys.argv[1])).write(sys.argv[2])"
    ),
}
PRELUDE = "import sys; from tracelab.store import TraceStore; print('begun', flush=True); "


def begin(job, *arguments):
    """Start a job in a process group of its own, and wait until its imports are done."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + JOBS[job], *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.stdout.readline()
    return process


def run_whole(job, *arguments):
    """Let a job finish; return the seconds it took behind its imports."""
    process = begin(job, *arguments)
    begun = time.perf_counter()
    process.stdout.read()
    if process.wait():
        sys.exit(f"{job} failed by itself")
    process.stdout.close()
    return time.perf_counter() - begun


def kill(job, seconds, *arguments):
    """Kill a job, with its workers, after some seconds; tell whether it was still at work."""
    process = begin(job, *arguments)
    time.sleep(seconds)
    at_work = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return at_work


def prove(place, whole, *, complete):
    """Stop at the first lost, doubled or torn row."""
    store = TraceStore(place)
    problems = store.verify()
    if problems.height:
        sys.exit(f"not sound after a kill: {problems.rows()}")
    if complete:
        found = store.read()
        for table in TABLES:
            assert_frame_equal(getattr(found, table), getattr(whole, table))


@contextlib.contextmanager
def places(kind, scratch):
    """Give names of fresh stores in a folder or on a server."""
    if kind == "folder":
        yield (lambda number: str(scratch / f"store-{number}"))
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/kills", method="PUT")).close()
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    yield (lambda number: f"s3://kills/store-{number}")
    server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--place", choices=["folder", "s3"], default="folder")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    done = dict.fromkeys(JOBS, 0)
    hits = dict.fromkeys(JOBS, 0)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sources = []
        for number in range(6):
            sources.append(scratch / f"export-{number}.pb")
            write_synthetic(sources[-1], seed=number, spans=2_000)
        with places(arguments.place, scratch) as name:
            reference = name(0)
            seconds = {"ingest": run_whole("ingest", reference, *sources)}
            seconds["two workers"] = run_whole("two workers", name(-1), *sources)
            whole = TraceStore(reference).read()
            seconds["compact"] = run_whole("compact", reference)
            seconds["investigate"] = run_whole("investigate", reference, scratch / "case")
            number = 0
            while sum(done.values()) < arguments.kills:
                number += 1
                place = name(number)
                for job, times in (("ingest", 4), ("two workers", 2), ("compact", 3)):
                    for _ in range(times):
                        given = sources if job in ("ingest", "two workers") else []
                        hits[job] += kill(job, chance.uniform(0, seconds[job]), place, *given)
                        done[job] += 1
                        prove(place, whole, complete=job == "compact")
                    if job == "two workers":
                        TraceStore(place).ingest(*sources)
                        prove(place, whole, complete=True)
                TraceStore(place).compact(keep="0s")
                prove(place, whole, complete=True)
                job = "investigate"
                hits[job] += kill(job, chance.uniform(0, seconds[job]), place, scratch / "out")
                done[job] += 1
                prove(place, whole, complete=True)
                if arguments.place == "folder":
                    shutil.rmtree(place)
                print(f"{sum(done.values())} kills", end="\r", file=sys.stderr, flush=True)
    for job, count in done.items():
        print(f"{job}: {count} kills, {hits[job]} of them at work; nothing lost, doubled or torn")


if __name__ == "__main__":
    main()
