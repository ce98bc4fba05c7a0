"""Edges and breaks of a store, bucket by bucket: time, peak memory, how they grow.

python benchmarks/structure.py --spans 100000 1000000 [10000000] [--keep FOLDER]
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = (
    "trace_id", "span_id", "parent_span_id", "parent_is_remote", "name", "kind", "start_time",
    "end_time", "duration_ns", "status_code", "service_name", "service_instance_id", "host_name",
    "process_pid", "thread_id", "thread_name", "task_id", "sdk_language", "http_request_method",
    "http_response_status_code", "rpc_system", "messaging_system", "messaging_destination",
    "server_address", "flags", "trace_state", "source",
)  # fmt: skip


def edges_and_breaks(traces):
    """Edges and breaks of one bucket, reduced to their counts."""
    from tracelab.structure import find_breaks, span_edges

    edges = span_edges(traces)
    return traces.spans.height, edges.height, find_breaks(traces).height


def _measured(store, workers, answers):
    from structure import edges_and_breaks as function  # by its name, as workers import it

    from tracelab.engine import map_buckets
    from tracelab.store import TraceStore

    begun = time.perf_counter()
    counts = map_buckets(
        function, TraceStore(store), workers=workers, columns=COLUMNS, tables=["links"]
    )
    seconds = time.perf_counter() - begun
    peaks = [
        resource.getrusage(who).ru_maxrss // 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    answers.put((*map(sum, zip(*counts, strict=True)), seconds, *peaks))


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
