"""Edges and breaks of a store, bucket by bucket, then resolved over all: time, memory, growth.

python benchmarks/structure.py --spans 100000 1000000 [10000000] [--keep FOLDER]
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path


def edges_and_reduction(traces):
    """Count the edges of one bucket and reduce it to what breaks are resolved from."""
    from tracelab.structure import build_spine, reduce_bucket, span_edges

    spine = build_spine(traces)
    reduced = reduce_bucket(traces, spine=spine)
    return traces.spans.height, span_edges(traces, spine=spine).height, reduced


def _measured(store, workers, answers):
    from structure import edges_and_reduction as function  # by its name, as workers import it

    from tracelab.engine import map_buckets
    from tracelab.store import TraceStore
    from tracelab.structure import BREAK_COLUMNS, resolve_breaks

    begun = time.perf_counter()
    parts = map_buckets(
        function,
        TraceStore(store),
        workers=workers,
        columns=BREAK_COLUMNS,
        tables=("events", "links", "metrics"),
    )
    reduced = time.perf_counter()
    spans, edges = sum(part[0] for part in parts), sum(part[1] for part in parts)
    breaks = resolve_breaks(parts.pop()[2] for _ in range(len(parts)))
    seconds = time.perf_counter() - begun
    print(
        f"  reduce {reduced - begun:.1f} s, resolve {begun + seconds - reduced:.1f} s", flush=True
    )
    peaks = [
        resource.getrusage(who).ru_maxrss // 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    answers.put((spans, edges, breaks.height, seconds, *peaks))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spans", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the stores; reused if they are there")
    arguments = parser.parse_args()
    from tracelab.store import TraceStore
    from tracelab.synth import write_synthetic

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for spans in arguments.spans:
            store = folder / f"store-{spans}"
            if not TraceStore.is_store(store):
                export = folder / f"capture-{spans}.pb"
                write_synthetic(export, seed=1, spans=spans)
                TraceStore(store).ingest(export)
                export.unlink()
            context = multiprocessing.get_context("spawn")
            answers = context.SimpleQueue()
            process = context.Process(
                target=_measured, args=(str(store), arguments.workers, answers)
            )
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)
            found, edges, breaks, seconds, own, workers = answers.get()
            print(
                f"{found:>11,} spans {edges:>11,} edges {breaks:>9,} breaks {seconds:8.2f} s "
                f"{seconds / found * 1e6:6.2f} us/span  peak {own:,} MB, worker {workers:,} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
