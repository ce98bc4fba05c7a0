"""Measure proposed parents of detached roots against an oracle that knows the delay law.

Run with::

    python benchmarks/detached.py               # the table of docs, some two minutes
    python benchmarks/detached.py --seeds 1     # quicker and coarser

One process serves requests that overlap at random. Each hands one piece of work to a pool, which
starts it after a delay, and nobody waits for it: only the start of the work tells its caller. Of
some hand-overs the context is lost. The oracle knows everything but the pairs: the true law of
the delay, that each request hands over once, that no work comes from elsewhere, and which
requests have kept theirs. It weighs all pairs jointly by drawing whole assignments at random
(Metropolis). Where the oracle itself cannot be sure of a pair, silence is the right answer.

Per cell: how many of the lost calls got a parent with confidence 0.8 or more, how many of those
are right, and ours in relation to the oracle's (right proposals of ours over right ones of it).
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

import tracelab as tl
from tracelab import schema
from tracelab.traceset import TraceSet

CONCURRENCY = (1, 5, 20, 50)
DELAYS_MS = (0.2, 2.0, 20.0)
LOST = (0.05, 1.0)
SURE = 0.8
MS = 1e6
EPOCH_NS = 1_700_000_000_000_000_000

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """Requests, the work that each handed over, and which hand-overs were lost."""

    start: Floats
    duration: Floats
    work: Floats
    work_duration: Floats
    lost: npt.NDArray[np.bool_]
    prepare_ms: float
    delay_ms: float


@dataclass
class Score:
    """Proposals of one method in one cell."""

    calls: int = 0
    sure: int = 0
    right: int = 0

    def add(self, calls: int, sure: int, right: int) -> None:
        """Add a case."""
        self.calls += calls
        self.sure += sure
        self.right += right


def draw_case(seed: list[int], *, concurrency: float, delay_ms: float, lost: float) -> Case:
    """Draw requests of 50 ms (median) that arrive at random."""
    rng = np.random.default_rng(seed)
    n = 1_500 if lost == 1.0 else 4_000
    duration = 50 * MS * np.exp(rng.normal(0.0, 0.5, n))
    start = np.sort(rng.uniform(0.0, n * duration.mean() / concurrency, n))
    prepare_ms = 0.5
    work = start + prepare_ms * MS + rng.exponential(delay_ms * MS, n)
    return Case(
        start=start,
        duration=duration,
        work=work,
        work_duration=5 * MS * np.exp(rng.normal(0.0, 0.5, n)),
        lost=rng.random(n) < lost,
        prepare_ms=prepare_ms,
        delay_ms=delay_ms,
    )


def capture(case: Case) -> TraceSet:
    """Write the case as spans; request `i` is trace and span `i`, its work is span `n + i`."""
    n = case.start.size
    number = np.arange(n)
    own = np.where(case.lost, n + number, number)
    parts = [
        ("handle", "SERVER", number, number, None, case.start, case.duration),
        ("work", "INTERNAL", own, n + number, ~case.lost, case.work, case.work_duration),
    ]
    tables = [
        pl.DataFrame(
            {
                "trace_id": [f"{t + 1:032x}" for t in trace],
                "span_id": [f"{s + 1:016x}" for s in span],
                "parent_span_id": pl.Series(
                    [f"{i + 1:016x}" if kept is not None and kept[i] else None for i in range(n)],
                    dtype=pl.String,
                ),
                "start_time": EPOCH_NS + start.astype(np.int64),
                "end_time": EPOCH_NS + (start + length).astype(np.int64),
                "duration_ns": length.astype(np.int64),
            }
        ).with_columns(
            name=pl.lit(name),
            kind=pl.lit(kind),
            status_code=pl.lit("UNSET"),
            service_name=pl.lit("pool"),
            service_instance_id=pl.lit("pool-1"),
        )
        for name, kind, trace, span, kept, start, length in parts
    ]
    return TraceSet(spans=schema.conform(pl.concat(tables), schema.SPANS))


def propose(case: Case) -> tuple[Ints, Floats]:
    """Ask tracelab: request proposed for each lost call (-1: none), and its confidence."""
    n = case.start.size
    found = tl.find_breaks(capture(case)).filter(pl.col("kind") == "detached_root")
    rows = found.drop_nulls("proposed_span_id")
    calls = rows["span_id"].str.to_integer(base=16).to_numpy() - 1 - n
    parent = np.full(n, -1)
    sure = np.zeros(n)
    parent[calls] = rows["proposed_span_id"].str.to_integer(base=16).to_numpy() - 1
    sure[calls] = rows["proposed_confidence"].to_numpy()
    return parent[case.lost], sure[case.lost]


def ask_oracle(case: Case, seed: list[int], *, sweeps: int = 400) -> tuple[Ints, Floats]:
    """Draw assignments by their true probability; the commonest caller of each call, its share.

    The law beyond its shortest delay is exponential, so an assignment is as likely as any other
    that no call precedes: swapping two callers is accepted whenever both remain possible.
    """
    rng = np.random.default_rng(seed)
    caller = np.flatnonzero(case.lost)
    begins = case.start[caller] + case.prepare_ms * MS
    works = case.work[caller]
    n = caller.size
    order = np.argsort(works)
    held = np.empty(n, np.int64)
    held[order] = np.arange(n)  # first come, first served: possible, and no hint of the truth
    # Farther apart than this calls swap in several steps.
    last = np.searchsorted(works[order], works[order] + 6 * case.delay_ms * MS, side="right")
    place = np.arange(n)
    times = np.zeros((n, n), np.int32)
    for sweep in range(2 * sweeps):
        other = place + 1 + (rng.random(n) * np.maximum(last - place - 1, 0)).astype(np.int64)
        for at in rng.permutation(n):
            to = other[at]
            if to >= last[at] or to >= n:
                continue
            a, b = order[at], order[to]
            if begins[held[b]] <= works[a] and begins[held[a]] <= works[b]:
                held[a], held[b] = held[b], held[a]
        if sweep >= sweeps:
            times[np.arange(n), held] += 1
    best = times.argmax(axis=1)
    return caller[best], times[np.arange(n), best] / sweeps


def score(case: Case, parent: Ints, sure: Floats) -> tuple[int, int, int]:
    """Count lost calls, sure proposals, and right ones among them."""
    truth = np.flatnonzero(case.lost)
    keep = sure >= SURE
    return truth.size, int(keep.sum()), int((parent == truth)[keep].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="cases per cell")
    parser.add_argument("--first", type=int, default=1, help="first seed")
    arguments = parser.parse_args()
    began = time.perf_counter()
    print("| in flight | hand-off | lost | calls | oracle proposes | right", end="")
    print(" | ours proposes | right | ours / oracle |\n|---|---|---|---|---|---|---|---|---|")
    for concurrency in CONCURRENCY:
        for delay in DELAYS_MS:
            for lost in LOST:
                print(cell(concurrency, delay, lost, arguments), flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")


def cell(concurrency: int, delay: float, lost: float, arguments: argparse.Namespace) -> str:
    """Measure one cell and write its row."""
    ours, oracle = Score(), Score()
    for number in range(arguments.first, arguments.first + arguments.seeds):
        seed = [number, concurrency, int(delay * 10), int(lost * 100)]
        case = draw_case(seed, concurrency=concurrency, delay_ms=delay, lost=lost)
        ours.add(*score(case, *propose(case)))
        oracle.add(*score(case, *ask_oracle(case, [*seed, 1])))
    related = f"{ours.right / oracle.right:.2f}" if oracle.right else "silent"
    columns = [str(concurrency), f"{delay:g} ms", f"{lost:.0%}", str(ours.calls)]
    for method in (oracle, ours):
        columns.append(f"{method.sure / max(method.calls, 1):.2f}")
        columns.append(f"{method.right / method.sure:.3f}" if method.sure else "–")
    return "| " + " | ".join([*columns, related]) + " |"


if __name__ == "__main__":
    main()
