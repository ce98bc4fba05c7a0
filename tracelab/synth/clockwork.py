"""When each span of a call tree starts and ends, for many plays of the tree at once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracelab.synth.topology import Step

MS = 1e6

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take that no span records.

    Parameters
    ----------
    handoff_ms : float
        Mean wait of a task or thread between being handed over and starting.
    queue_delay_s : float
        Median time that a message spends in a queue.
    """

    handoff_ms: float
    queue_delay_s: float


@dataclass(frozen=True, slots=True)
class Score:
    """One call tree played `n` times; arrays have shape (steps, n).

    ``parents`` is -1 for the root. ``strands`` numbers the unit of execution of each step:
    steps that run one after the other in one thread or task share it.
    """

    steps: list[Step]
    parents: list[int]
    strands: list[int]
    present: Flags
    start: Floats
    duration: Floats


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages that one span read together: play numbers of the span and of each message."""

    step: int
    reader: Ints
    message: Ints


def gather_batches(score: Score, *, most: int = 50) -> list[Batch]:
    """Let readers of batches take what waits; the spans of all but the last reader go.

    A reader takes what came within `Step.batch_s`, at most `most` messages.
    """
    batches = []
    for number, step in enumerate(score.steps):
        if score.parents[number] >= 0:
            score.present[number] &= score.present[score.parents[number]]
        plays = np.flatnonzero(score.present[number])
        if not step.batch_s or not len(plays):
            continue
        plays = plays[np.argsort(score.start[number, plays], kind="stable")]
        window = score.start[number, plays] // (step.batch_s * 1e9)
        fresh = np.r_[True, window[1:] != window[:-1]]
        first = np.maximum.accumulate(np.where(fresh, np.arange(len(plays)), 0))
        fresh |= (np.arange(len(plays)) - first) % most == 0
        last = np.r_[fresh[1:], True]
        group = np.cumsum(fresh) - 1
        reader = plays[last][group]
        score.present[number, plays[~last]] = False
        batches.append(Batch(number, reader[~last], plays[~last]))
    return batches


def flatten(root: Step) -> tuple[list[Step], list[int], list[int]]:
    """List a tree's steps, parents before children, with parents and strands."""
    steps: list[Step] = []
    parents: list[int] = []
    strands: list[int] = []

    def visit(step: Step, parent: int) -> None:
        number = len(steps)
        steps.append(step)
        parents.append(parent)
        own = parent < 0 or step.handoff != "same"
        strands.append(number if own else strands[parent])
        for child in step.children:
            visit(child, number)

    visit(root, -1)
    return steps, parents, strands


def play(root: Step, start: Floats, *, pace: Pace, rng: np.random.Generator) -> Score:
    """Play a tree once per start time (nanoseconds)."""
    steps, parents, strands = flatten(root)
    shape = (len(steps), len(start))
    present = np.ones(shape, bool)
    duration = np.zeros(shape)
    offset = np.zeros(shape)
    kids: list[list[int]] = [[] for _ in steps]
    for number, parent in enumerate(parents):
        if parent >= 0:
            kids[parent].append(number)
            present[number] = present[parent]
            if steps[number].probability < 1:
                present[number] &= rng.random(len(start)) < steps[number].probability
    for number in reversed(range(len(steps))):
        duration[number] = _place(number, steps, kids, present, duration, offset, pace, rng)
    for number, parent in enumerate(parents[1:], start=1):
        present[number] &= present[parent]  # a hedge that was not needed called nobody
    begin = np.empty(shape)
    begin[0] = start
    for number, parent in enumerate(parents[1:], start=1):
        begin[number] = begin[parent] + offset[number]
    return Score(steps, parents, strands, present, begin, duration)


def _place(
    number: int,
    steps: list[Step],
    kids: list[list[int]],
    present: Flags,
    duration: Floats,
    offset: Floats,
    pace: Pace,
    rng: np.random.Generator,
) -> Floats:
    """Lay the children of a step on its time line; return how long the step takes."""
    step, n = steps[number], present.shape[1]
    own = _own_time(step, n, rng)
    gaps = len(kids[number]) + 1
    pauses = rng.dirichlet(np.full(gaps, 1.2), size=n).T * own
    cursor = pauses[0].copy()
    join: Floats | None = None
    for place, kid in enumerate(kids[number]):
        child, here = steps[kid], present[kid]
        wait = _wait_before(child, n, pace, rng)
        if child.mode == "queued":
            offset[kid] = own + wait
            continue
        if child.mode == "hedge":
            won = _hedge(kids[number][place - 1], kid, steps, present, duration, offset)
            cursor = np.where(present[kid], won, cursor) + pauses[place + 1]
            continue
        if child.mode != "parallel" and join is not None:
            cursor, join = np.maximum(cursor, join), None
        offset[kid] = cursor + wait
        if child.mode == "parallel":
            done = np.where(here, offset[kid] + duration[kid], cursor)
            join = done if join is None else np.maximum(join, done)
            cursor = cursor + rng.exponential(0.02 * MS, n)
        elif child.mode == "sequential":
            back = _wait_before(child, n, pace, rng) if child.handoff == "network" else 0.0
            cursor = np.where(here, offset[kid] + duration[kid] + back, cursor)
        cursor = cursor + pauses[place + 1]
    end: Floats = cursor if join is None else np.maximum(cursor, join)
    if step.early < 1:  # the rest of the answer is read after the span
        last = kids[number][-1]
        end = np.where(present[last], offset[last] + duration[last] * step.early, end)
    return end + (1_000.0 if step.median_ms else 0.0)


def _hedge(
    first: int,
    second: int,
    steps: list[Step],
    present: Flags,
    duration: Floats,
    offset: Floats,
) -> Floats:
    """Send a call again if the first takes long; who answers first ends both, the callee goes on.

    Return when the answer came.
    """
    delay = steps[second].delay_ms * MS
    fired = present[first] & (duration[first] > delay)
    present[second] &= fired
    offset[second] = offset[first] + delay
    won: Floats = np.minimum(offset[first] + duration[first], offset[second] + duration[second])
    duration[first] = np.where(present[second], won - offset[first], duration[first])
    duration[second] = won - offset[second]
    return won


def _own_time(step: Step, n: int, rng: np.random.Generator) -> Floats:
    """Lognormal with a heavier tail: one in fifty plays is slow by several times."""
    if not step.median_ms:
        return np.zeros(n)
    times = step.median_ms * MS * np.exp(rng.normal(0.0, step.sigma, n))
    slow = rng.random(n) < 0.02
    out: Floats = np.where(slow, times * (1.0 + rng.pareto(1.8, n) * 4.0), times)
    return out


def _wait_before(child: Step, n: int, pace: Pace, rng: np.random.Generator) -> Floats:
    if child.handoff == "network":
        return 0.08 * MS + rng.exponential(0.25 * MS, n)
    if child.handoff == "queue":
        return 1.0 * MS + pace.queue_delay_s * 1e9 * np.exp(rng.normal(0.0, 1.2, n))
    if child.handoff in ("thread", "task"):
        return rng.exponential(pace.handoff_ms * MS, n)
    return np.zeros(n)
