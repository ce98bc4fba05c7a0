"""Resolve random spans to the bytes that they were read from, and decode these to the same row.

    python benchmarks/pointers.py [--spans 10000] [--seed 1]

The sample (JSON lines) and a synthetic capture (length-prefixed protobuf), each plain, gzip, and in
a store. A span counts as resolved if `evidence` returns bytes that give the very row that the
capture holds, and where nothing is compressed, if these bytes stand in the file at its offset.
"""

import argparse
import gzip
import random
import sys
import tempfile
import time
from pathlib import Path

import tracelab as tl
from tracelab.exceptions import TracelabError
from tracelab.synth import write_synthetic

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "checkout" / "traces.jsonl"


def captures(scratch):
    """Yield captures: name, what `evidence` takes, its spans."""
    synthetic = scratch / "synthetic.pb"
    write_synthetic(synthetic, seed=3, spans=2_000)
    for path in (SAMPLE, synthetic):
        packed = scratch / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        for source in (path, packed):
            traces = tl.read_traces(source)
            yield source.name, traces, traces.spans
        store = tl.TraceStore(scratch / f"{path.stem}.store", buckets=2)
        store.ingest(path)
        yield f"store of {path.name}", store, store.read().spans


def is_resolved(capture, row):
    """Tell whether a span's bytes are found, and are what they are said to be."""
    found = tl.evidence(capture, row["trace_id"].item(), row["span_id"].item())
    if not found.span.equals(row):
        return False
    if found.source.endswith(".gz"):
        return True
    with Path(found.source).open("rb") as file:
        file.seek(found.offset)
        return file.read(found.length) == found.raw


def resolve_all(scratch, *, n_spans, seed):
    """Return how many spans of each capture were tried, and those that did not resolve."""
    rng = random.Random(seed)
    tried, wrong = {}, []
    everything = list(captures(scratch))
    for at, (name, capture, spans) in enumerate(everything):
        share = n_spans * (at + 1) // len(everything) - n_spans * at // len(everything)
        tried[name] = share
        for place in rng.choices(range(spans.height), k=share):
            row = spans.slice(place, 1)
            try:
                resolved = is_resolved(capture, row)
            except TracelabError as error:
                resolved = False
                print(error, file=sys.stderr)
            if not resolved:
                wrong.append((name, row["trace_id"].item(), row["span_id"].item()))
    return tried, wrong


def main():
    """Print how many spans resolved, by capture, and those that did not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spans", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        tried, wrong = resolve_all(Path(folder), n_spans=arguments.spans, seed=arguments.seed)
    n_tried = sum(tried.values())
    cost = (time.process_time() - begun) / n_tried
    print(
        f"{n_tried - len(wrong):,} of {n_tried:,} resolved, {1000 * cost:.0f} ms CPU each: {tried}"
    )
    for each in wrong[:20]:
        print("  ", *each)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
