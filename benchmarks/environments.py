"""Investigate one capture in 48 environments; every file of the case must be the same bytes.

    python benchmarks/environments.py [--source data/checkout/traces.jsonl] [--every 1]

Three locales, four time zones (whole, half and quarter hours, both sides of the date line), two
hash seeds and two numbers of cores. The source is a folder of three files, the lines dealt out to
them; with the second hash seed they are laid down in the opposite order too, as a folder lists
them on another file system.
"""

import argparse
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "checkout" / "traces.jsonl"
LOCALES = ("C.UTF-8", "C", "POSIX")
ZONES = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia")
SEEDS = ("0", "12345")
CORES = (1, 2)
COMBINATIONS = tuple(itertools.product(LOCALES, ZONES, SEEDS, CORES))


def lay_down(source, folder, *, backwards):
    """Deal the lines of a file out to three, made in their order or from the last to the first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = source.read_bytes().splitlines(keepends=True)
    for number in reversed(range(3)) if backwards else range(3):
        (folder / f"part-{number}.jsonl").write_bytes(b"".join(lines[number::3]))


def digests(folder):
    """Return the SHA-256 of every file below a folder, by its name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def investigate(source, out, *, locale, zone, seed, cores):
    """Write a case in an environment of its own; return the digests of its files."""
    shutil.rmtree(out, ignore_errors=True)
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    if len(allowed) < cores:
        sys.exit(f"needs {cores} cores")
    done = subprocess.run(
        [
            *("taskset", "--cpu-list", ",".join(map(str, allowed))),
            *(sys.executable, "-m", "tracelab", "investigate", source, "-o", out),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "LC_ALL": locale,
            "LANG": locale,
            "TZ": zone,
            "PYTHONHASHSEED": seed,
            "POLARS_MAX_THREADS": str(cores),
        },
        capture_output=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        sys.exit(done.stderr.decode(errors="replace"))
    return digests(out)


def compare_environments(source, scratch, combinations=COMBINATIONS):
    """Return how many files a case has, and the environments in which a file differs."""
    found = defaultdict(lambda: defaultdict(list))
    for locale, zone, seed, cores in combinations:
        lay_down(source, scratch / "source", backwards=seed != SEEDS[0])
        case = investigate(
            scratch / "source", scratch / "out", locale=locale, zone=zone, seed=seed, cores=cores
        )
        for name, digest in case.items():
            found[name][digest].append((locale, zone, seed, cores))
    wrong = {
        name: list(by_digest.values())
        for name, by_digest in found.items()
        if len(by_digest) > 1 or sum(map(len, by_digest.values())) < len(combinations)
    }
    return len(found), wrong


def main():
    """Print how many environments were compared, and where a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=SAMPLE)
    parser.add_argument("--every", type=int, default=1, help="each so many-th environment only")
    arguments = parser.parse_args()
    chosen = COMBINATIONS[:: arguments.every]
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        n_files, wrong = compare_environments(arguments.source, Path(folder), chosen)
    print(
        f"{len(chosen)} environments, {n_files} files each, {len(wrong)} files differ; "
        f"{time.perf_counter() - begun:.0f} s"
    )
    for name, groups in wrong.items():
        print(f"  {name}:", *(f"{len(group)} × e.g. {group[0]}" for group in groups), sep="\n    ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
