"""One store that grows: ingest, verify, one trace, investigate, at each size.

Synthetic parts are written, ingested and deleted one after the other, each with a seed of its
own, so that the disk holds the store and one part. Every step is a process of its own; its time,
its CPU time and the memory of its largest process are printed.

    python benchmarks/scale.py --spans 1000000 10000000 [100000000] [--folder FOLDER]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = (sys.executable, "-m", "tracelab")
INVESTIGATE = """
import sys
import tracelab as tl

store, workers, out = sys.argv[1:]
tl.investigate(tl.TraceStore(store), workers=int(workers)).write(out)
"""


def measured(command):
    """Run a command; return seconds, CPU seconds, MB of its largest process."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        sys.exit(f"{' '.join(map(str, command))}: exit {process.returncode}")
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024


def grow(store, folder, *, seed, spans):
    """Write one synthetic part, ingest it, delete it; return what the ingest took."""
    from tracelab.synth import write_synthetic

    part = folder / f"part-{seed}.pb"
    write_synthetic(part, seed=seed, spans=spans)
    taken = measured((*PROGRAM, "ingest", part, "--store", store))
    part.unlink()
    return taken


def some_trace(store):
    """Return the id of a trace of the store."""
    import pyarrow.parquet as pq

    part = pq.ParquetFile(sorted((store / "spans").iterdir())[-1])
    return part.read_row_group(0, columns=["trace_id"])["trace_id"][0].as_py()


def size_of(store):
    """Bytes of all files of a store."""
    return sum(each.stat().st_size for each in store.rglob("*") if each.is_file())


def main():
    """Print one block of lines per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spans", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--part", type=int, default=10_000_000, help="spans of one export")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--investigate-to", type=int, default=100_000_000, help="largest size that is investigated"
    )
    parser.add_argument("--folder", type=Path, help="for the store and one part; kept")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="tracelab-scale-"))
    store, done, seed = folder / "store", 0, 0
    spent = [0.0, 0.0, 0]
    try:
        for wanted in sorted(arguments.spans):
            while done < wanted:
                seed += 1
                spans = min(arguments.part, wanted - done)
                wall, cpu, peak = grow(store, folder, seed=seed, spans=spans)
                spent = [spent[0] + wall, spent[1] + cpu, max(spent[2], peak)]
                done += spans
            steps = {
                "ingest": spent,
                "verify": measured((*PROGRAM, "store", "verify", store)),
                "trace": measured((*PROGRAM, "trace", store, some_trace(store))),
            }
            if done <= arguments.investigate_to:
                for workers in arguments.workers:
                    out = folder / "findings"
                    steps[f"investigate, {workers} workers"] = measured(
                        (sys.executable, "-c", INVESTIGATE, store, str(workers), out)
                    )
            print(f"{done:,} spans, {size_of(store) / done:.1f} bytes each on disk")
            for name, (wall, cpu, peak) in steps.items():
                print(
                    f"  {name:24} {wall:8.1f} s  {cpu:8.1f} s CPU  {1e6 * cpu / done:7.2f} us/span"
                    f"  {peak:7,} MB",
                    flush=True,
                )
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
