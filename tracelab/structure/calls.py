"""Which caller called each of these: one question, asked of all callees of one operation.

The callees are roots (context lost) or spans that hang under a doubtful parent. Candidates are
spans in progress when the callee began: in the same process for work handed over inside it,
anywhere for calls over the network or a queue. Each caller class has its own delay law, learnt
from intact calls where there are any, else from the calls in question by expectation and
maximisation. What chance overlap would give enters as the rate of natural roots, so a busy
process with many candidates gives low probabilities, not guesses.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tracelab.structure.assignment import draw_contested, seeded
from tracelab.structure.codes import entries_by_code
from tracelab.structure.known_calls import Intact
from tracelab.structure.laws import Law, association_marginals, pair_ranges
from tracelab.structure.skeleton import Floats, Ints, Skeleton

MAX_PAIRS: Final = 2_000_000
"""Candidate pairs per operation; windows are halved until they fit (bounded memory)."""

MIN_GAIN: Final = 0.2
"""Nats per call that a caller's end must tell beyond the callee's duration: it waits then."""

_DRAWS: Final = 400
"""Assignments drawn in the last round; a tenth of it in each round before."""

_AVERAGED: Final = 12
"""Rounds before the last whose draws count as well where laws are guessed."""

_FEATURES: Final = ("thread", "task", "request", "tenant")


@dataclass(frozen=True, slots=True)
class CallerClass:
    """Candidate callers of one class.

    Parameters
    ----------
    code : int
        The class.
    rows : ndarray of int64
        Candidate rows in order of start.
    intact : Intact or None
        Intact calls, where there are enough to learn from.
    window_ns : int
        Longest delay considered.
    """

    code: int
    rows: Ints
    intact: Intact | None
    window_ns: int


@dataclass(slots=True)
class Pairs:
    """Candidate pairs of one operation.

    Parameters
    ----------
    callee : ndarray of int64
        Number of the callee within the question.
    caller : ndarray of int64
        Row of the caller.
    group : ndarray of int64
        Number of the caller class within the question.
    """

    callee: Ints
    caller: Ints
    group: Ints
    start_gap: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    end_gap: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Answer:
    """Probable callers of each callee.

    Parameters
    ----------
    called : ndarray of float64
        Probability that any candidate called the callee, per callee.
    best : ndarray of int64
        Row of the likeliest caller, -1 where there is no candidate.
    best_probability : ndarray of float64
        Its probability.
    rivals : ndarray of int64
        Number of other callers with a tenth of the best one's probability or more.
    pairs : Pairs
        All candidate pairs.
    marginal : ndarray of float64
        Probability of each pair.
    """

    called: Floats
    best: Ints
    best_probability: Floats
    rivals: Ints
    pairs: Pairs
    marginal: Floats


def by_process(skeleton: Skeleton, callees: Ints, callers: Ints) -> list[tuple[Ints, Ints]]:
    """Part callees, and the callers that share a process with them, by process.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees, callers : ndarray of int64
        Rows.

    Returns
    -------
    list of tuple of ndarray of int64
        Callees and callers of each process that has a callee, in their order.

    Raises
    ------
    ValueError
        Never.
    """
    place, of_callers = skeleton.process[callees], skeleton.process[callers]
    asked = np.zeros(skeleton.processes.height, bool)
    asked[place] = True
    here = dict(entries_by_code(of_callers, asked[of_callers]))
    nobody = np.zeros(0, np.int64)
    return [
        (callees[mine], callers[here.get(code, nobody)]) for code, mine in entries_by_code(place)
    ]


def candidate_pairs(
    skeleton: Skeleton,
    callees: Ints,
    classes: list[CallerClass],
    *,
    same_process: bool,
    tolerance_ns: int,
) -> Pairs:
    """List callers that were in progress, or had just ended, when each callee began.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees : ndarray of int64
        Rows.
    classes : list of CallerClass
        Candidate callers.
    same_process : bool
        Whether caller and callee share a process.
    tolerance_ns : int
        How far a callee may start before its caller (clocks of two hosts differ).

    Returns
    -------
    Pairs
        At most `MAX_PAIRS`.

    Raises
    ------
    ValueError
        Never.
    """
    span = int(skeleton.window[1] - skeleton.window[0]) + 2**40
    callee_place = _places(skeleton, callees, same_process)
    found: list[tuple[Ints, Ints, Ints]] = []
    for number, group in enumerate(classes):
        # Python integers, then int64: 1,000 processes times a week still fit.
        origin = skeleton.window[0]
        place = _places(skeleton, group.rows, same_process)
        owners = np.unique(place)
        rank = np.searchsorted(owners, place)
        where = rank * span + (skeleton.start[group.rows] - origin)
        order = np.argsort(where, kind="stable")
        where, rows = where[order], group.rows[order]
        callee_rank = np.searchsorted(owners, callee_place)
        known = callee_rank < owners.size
        known[known] = owners[callee_rank[known]] == callee_place[known]
        asked = np.flatnonzero(known)
        begin = callee_rank[asked] * span + (skeleton.start[callees[asked]] - origin)
        window = group.window_ns
        while True:
            low = np.searchsorted(where, begin - window, side="left")
            high = np.searchsorted(where, begin + tolerance_ns, side="right")
            if int((high - low).sum()) <= MAX_PAIRS // max(len(classes), 1) or window < 1000:
                break
            window //= 2
        owner, position = pair_ranges(low, high)
        found.append((asked[owner], rows[position], np.full(owner.size, number)))
    if not found:
        empty = np.zeros(0, np.int64)
        return Pairs(empty, empty, empty)
    callee, caller, number_of = (np.concatenate(column) for column in zip(*found, strict=True))
    apart = skeleton.trace[callees[callee]] != skeleton.trace[caller]
    return measure(skeleton, callees, Pairs(callee[apart], caller[apart], number_of[apart]))


def _places(skeleton: Skeleton, rows: Ints, same_process: bool) -> Ints:
    """Process of each row, or one place for all where it does not matter."""
    return skeleton.process[rows] if same_process else np.zeros(rows.size, np.int32)


def measure(skeleton: Skeleton, callees: Ints, pairs: Pairs) -> Pairs:
    """Add the delays of each pair.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees : ndarray of int64
        Rows of the callees.
    pairs : Pairs
        Pairs without delays.

    Returns
    -------
    Pairs
        The same, with ``start_gap`` and ``end_gap``.

    Raises
    ------
    ValueError
        Never.
    """
    rows = callees[pairs.callee]
    pairs.start_gap = skeleton.start[rows] - skeleton.start[pairs.caller]
    pairs.end_gap = skeleton.end[pairs.caller] - skeleton.end[rows]
    return pairs


@dataclass(slots=True)
class _Belief:
    """What is currently believed of one caller class."""

    start_law: Law
    end_law: Law | None
    rate: float
    features: Floats


def answer(
    skeleton: Skeleton,
    callees: Ints,
    classes: list[CallerClass],
    pairs: Pairs,
    *,
    first_guess: list[Law] | None = None,
    natural_rate: float | None = None,
    rounds: int = 36,
) -> Answer:
    """Find the probable caller of each callee, jointly.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees : ndarray of int64
        Rows of one operation.
    classes : list of CallerClass
        Candidate caller classes.
    pairs : Pairs
        Candidate pairs.
    first_guess : list of Law, optional
        Start laws to begin with, one per class; by default the laws of the intact calls.
    natural_rate : float, optional
        Natural roots among the callees, as a share; learnt by default.
    rounds : int
        Rounds of expectation and maximisation.

    Returns
    -------
    Answer
        Probabilities per callee and per pair.

    Raises
    ------
    ValueError
        If a class has neither intact calls nor a first guess.
    """
    n = callees.size
    if not pairs.callee.size:
        return Answer(
            np.zeros(n), np.full(n, -1), np.zeros(n), np.zeros(n, np.int64), pairs, np.zeros(0)
        )
    agreement = _agreement(skeleton, callees, pairs)
    durations = skeleton.end[callees] - skeleton.start[callees]
    own_law = Law.fit(durations)
    own = own_law.log_at(durations)[pairs.callee]
    observed_ns = max(skeleton.window[1] - skeleton.window[0], 1)
    # All callers of a class count, also those that no callee is near: where many of them call
    # nothing, one that happens to fit proves little.
    candidates = np.array([group.rows.size for group in classes])
    shared = np.array(
        [group.intact is not None and group.intact.per_caller > 1.3 for group in classes]
    )
    few = n / max(int(candidates.sum()), 1) <= 1.3
    exclusive = (~shared[pairs.group]) & few
    _, caller_number = np.unique(pairs.caller, return_inverse=True)
    beliefs = []
    for number, group in enumerate(classes):
        law = first_guess[number] if first_guess else None
        if law is None:
            if group.intact is None:
                raise ValueError(f"caller class {group.code} has nothing to learn a law from")
            law = Law.fit(group.intact.start_gap)
        rate = min(0.5, 0.5 * n / max(int(candidates[number]), 1))
        beliefs.append(
            _Belief(law, _first_end_law(group, own_law), rate, np.zeros((len(_FEATURES), 3)))
        )
    natural = 0.5 if natural_rate is None else natural_rate
    marginal = np.zeros(pairs.callee.size)
    held = np.full(n, -1)
    recent = np.zeros(pairs.callee.size)
    # A guessed law would learn the noise of draws that repeat; one held by intact calls does not.
    guessed = first_guess is not None
    rng = seeded()
    for step in range(rounds):
        rate_ns = natural * n if natural_rate is not None else max(natural * n, 0.5)
        log_weight = _log_weights(beliefs, pairs, own, agreement) - np.log(rate_ns / observed_ns)
        new = association_marginals(
            pairs.callee,
            caller_number,
            log_weight,
            exclusive=exclusive,
            rounds=20 if step < rounds - 1 else 80,
        )
        change = float(np.abs(new - marginal).max())
        settled = step == rounds - 1 or (step > 0 and change < 1e-3)
        marginal = draw_contested(
            pairs.callee,
            caller_number,
            exclusive,
            log_weight,
            new,
            held,
            rounds=_DRAWS if settled else _DRAWS // 10,
            rng=rng if guessed else seeded(),
        )
        if settled and guessed:
            # A few hundred draws leave a toss-up looking like two to one; those of the last
            # rounds, of much the same laws, cost nothing more.
            before = max(step - max(rounds - 1 - _AVERAGED, 0), 0)
            marginal = (10.0 * marginal + recent) / (10.0 + before)
        if settled:
            break
        if step >= rounds - 1 - _AVERAGED:
            recent += marginal
        if natural_rate is None:
            natural = 1.0 - min(float(marginal.sum()) / n, 1.0)
        _relearn(beliefs, classes, pairs, marginal, agreement, own, candidates)
    return _summary(n, pairs, marginal)


def _agreement(skeleton: Skeleton, callees: Ints, pairs: Pairs) -> Ints:
    """Per feature and pair: 0 one side unknown, 1 agree, 2 differ."""
    rows = callees[pairs.callee]
    found = np.zeros((len(_FEATURES), rows.size), dtype=np.int64)
    for number, name in enumerate(_FEATURES):
        values = skeleton.column(name)
        mine, other = values[rows], values[pairs.caller]
        found[number] = np.where((mine == 0) | (other == 0), 0, np.where(mine == other, 1, 2))
    return found


def _end_law(group: CallerClass, gaps: Ints | None, weights: Floats | None) -> Law | None:
    known = group.intact.end_gap if group.intact is not None else np.zeros(0, np.int64)
    if gaps is None or weights is None:
        return Law.fit(known) if known.size >= 20 else None
    both = np.concatenate([known, gaps])
    return Law.fit(both, np.concatenate([np.ones(known.size), weights]))


def _first_end_law(group: CallerClass, own_law: Law) -> Law | None:
    """Law of the time from a callee's end to its caller's, if intact callers wait."""
    law = _end_law(group, None, None)
    if law is None or group.intact is None:
        return None
    gain = law.log_at(group.intact.end_gap) - own_law.log_at(group.intact.duration)
    return law if float(gain.mean()) > MIN_GAIN else None


def _log_weights(beliefs: list[_Belief], pairs: Pairs, own: Floats, agreement: Ints) -> Floats:
    total = np.zeros(pairs.callee.size)
    for number, belief in enumerate(beliefs):
        mine = np.flatnonzero(pairs.group == number)
        value = belief.start_law.log_at(pairs.start_gap[mine])
        if belief.end_law is not None:
            value += belief.end_law.log_at(pairs.end_gap[mine]) - own[mine]
        value += np.log(belief.rate / (1.0 - belief.rate))
        for feature in range(len(_FEATURES)):
            value += belief.features[feature][agreement[feature, mine]]
        total[mine] = value
    return total


def _relearn(
    beliefs: list[_Belief],
    classes: list[CallerClass],
    pairs: Pairs,
    marginal: Floats,
    agreement: Ints,
    own: Floats,
    candidates: Ints,
) -> None:
    """Maximisation: laws, rates and feature weights from the pairs as far as they are believed."""
    for number, (belief, group) in enumerate(zip(beliefs, classes, strict=True)):
        mine = np.flatnonzero(pairs.group == number)
        weight = marginal[mine]
        known = group.intact.start_gap if group.intact is not None else np.zeros(0, np.int64)
        if weight.sum() + known.size < 1:
            continue
        gaps = np.concatenate([known, pairs.start_gap[mine]])
        weights = np.concatenate([np.ones(known.size), weight])
        # Known calls have their onset in themselves; guessed ones only what they are guessed by.
        belief.start_law = Law.fit(gaps, weights, rises=not known.size)
        end_law = _end_law(group, pairs.end_gap[mine], weight)
        # The caller waits for its callee only if its end tells more than the callee's duration.
        gain = 0.0
        if end_law is not None and weight.sum() > 0:
            gain = float(
                (weight * (end_law.log_at(pairs.end_gap[mine]) - own[mine])).sum() / weight.sum()
            )
        belief.end_law = end_law if gain > MIN_GAIN else None
        belief.rate = float(np.clip(weight.sum() / max(int(candidates[number]), 1), 1e-4, 0.98))
        for feature in range(len(_FEATURES)):
            belief.features[feature] = _feature_weights(agreement[feature, mine], weight)


def _feature_weights(values: Ints, weight: Floats) -> Floats:
    """Log likelihood ratios of unknown, agree, differ; unknown says nothing."""
    believed = np.bincount(values, weights=weight, minlength=3)[:3]
    chance = np.bincount(values, minlength=3)[:3].astype(np.float64)
    if believed[1:].sum() < 1 or chance[1:].sum() < 1:
        return np.zeros(3)
    part = (believed[1:] + 0.5) / (believed[1:].sum() + 1.0)
    base = (chance[1:] + 0.5) / (chance[1:].sum() + 1.0)
    return np.array([0.0, *np.clip(np.log(part / base), -6.0, 6.0)])


def _summary(n: int, pairs: Pairs, marginal: Floats) -> Answer:
    called = np.minimum(np.bincount(pairs.callee, weights=marginal, minlength=n), 1.0)
    order = np.lexsort((pairs.caller, -marginal, pairs.callee))
    first = np.unique(pairs.callee[order], return_index=True)
    best, probability = np.full(n, -1), np.zeros(n)
    best[first[0]] = pairs.caller[order[first[1]]]
    probability[first[0]] = marginal[order[first[1]]]
    close = marginal >= 0.1 * np.maximum(probability[pairs.callee], 1e-9)
    rivals = np.bincount(pairs.callee, weights=close, minlength=n).astype(np.int64) - 1
    return Answer(called, best, probability, np.maximum(rivals, 0), pairs, marginal)
