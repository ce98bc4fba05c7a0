"""Flip single bits in a store's files; each must be named, and none may be read as other data.

python benchmarks/bit_flips.py --flips 10000 [--reads 1000] [--seed 1]

Every file that the store counts on is hit, log entries and parts, each as often as the others,
so that small files are not missed. After a flip `TraceStore.verify` (or the opening of the store)
must name the file; some flips are followed by a whole reading too, which must end in an error of
ours or give the very same rows. The bit is put back after each.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tracelab.exceptions import TracelabError
from tracelab.store import TraceStore
from tracelab.synth import write_synthetic
from tracelab.traceset import TABLES


def make_store(scratch, *, exports=3, spans=2_000):
    """Make a store of a few commits; return its folder."""
    sources = []
    for number in range(exports):
        sources.append(scratch / f"export-{number}.pb")
        write_synthetic(sources[-1], seed=number, spans=spans)
        TraceStore(scratch / "store", buckets=2).ingest(sources[-1], workers=1)
    return scratch / "store"


def is_named(store, path):
    """Tell whether verification names the file."""
    name = path.relative_to(store).as_posix()
    try:
        return name in set(TraceStore(store).verify()["path"])
    except TracelabError as error:
        return name in str(error)


def is_read_silently(store, whole):
    """Tell whether reading gives other rows without an error."""
    try:
        found = TraceStore(store).read()
    except TracelabError:
        return False
    return not all(getattr(found, table).equals(getattr(whole, table)) for table in TABLES)


def flip(path, bit):
    """Turn one bit of a file over."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def flip_bits(store, *, flips, reads, seed):
    """Flip bits one after the other.

    Returns
    -------
    tuple of Counter and list
        Flips by kind of file, and the flips that went unseen: (file, bit, by what).
    """
    chance = random.Random(seed)
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)
    whole = TraceStore(store).read()
    hits, unseen = Counter(), []
    for number in range(flips):
        path = files[number % len(files)]
        bit = chance.randrange(path.stat().st_size * 8)
        flip(path, bit)
        if not is_named(store, path):
            unseen.append((str(path), bit, "verify"))
        if number * reads // flips != (number + 1) * reads // flips and is_read_silently(
            store, whole
        ):
            unseen.append((str(path), bit, "read"))
        flip(path, bit)
        hits[path.relative_to(store).parts[0]] += 1
    if TraceStore(store).verify().height:
        sys.exit("the bits were not put back")
    return hits, unseen


def measure_speed(scratch, *, spans=400_000):
    """Return CPU seconds of verification for ten million spans, and bytes a span."""
    write_synthetic(scratch / "large.pb", seed=7, spans=spans)
    TraceStore(scratch / "large").ingest(scratch / "large.pb", workers=1)
    store = TraceStore(scratch / "large")
    facts = store.info()
    begun = time.process_time()
    store.verify()
    return (time.process_time() - begun) * 1e7 / facts["spans"], facts["bytes"] / facts["spans"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--reads", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hits, unseen = flip_bits(make_store(Path(folder)), **vars(arguments))
        seconds, size = measure_speed(Path(folder))
    print(f"{hits.total():,} flips ({dict(hits)}), {arguments.reads:,} followed by a reading")
    print(f"unseen: {len(unseen)}", *unseen[:20], sep="\n")
    print(f"verification: {seconds:.2f} CPU seconds per 10M spans of {size:.0f} bytes")
    sys.exit(bool(unseen))


if __name__ == "__main__":
    main()
