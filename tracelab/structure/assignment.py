"""Assignments drawn at random: how sure a caller is that several callees compete for.

Belief propagation settles slowly where callees compete for a caller, and where two callees may
swap their callers it makes certain what is a toss-up. There, whole assignments are drawn in
proportion to their probability (Metropolis-Hastings), and a pair is as sure as often it occurs.
"""

from typing import Final

import numpy as np

from tracelab.structure.skeleton import Bools, Floats, Ints

_SEED: Final = 20_040_229
_CALLEES: Final = 5_000
"""With more callees than this fewer assignments are drawn: the time is bounded."""

_NEGLIGIBLE: Final = -9.0
"""Log of the weight, relative to the callee's best, below which a pair is left out."""


def seeded() -> np.random.Generator:
    """Return the chance that a question begins with: the same each time, so answers repeat.

    Returns
    -------
    numpy.random.Generator
        A new one.

    Raises
    ------
    ValueError
        Never.
    """
    return np.random.default_rng(_SEED)


def draw_contested(
    callee: Ints,
    caller: Ints,
    exclusive: Bools,
    log_weight: Floats,
    marginal: Floats,
    held: Ints,
    *,
    rounds: int,
    rng: np.random.Generator,
) -> Floats:
    """Replace marginals of contested pairs by how often random assignments take them.

    Parameters
    ----------
    callee, caller : ndarray of int64
        Numbers from 0 of the two sides of each candidate pair.
    exclusive : ndarray of bool
        Whether the pair's caller calls at most one of the callees.
    log_weight : ndarray of float64
        Log of (probability of this pair) / (probability that both are unpaired).
    marginal : ndarray of float64
        Marginal probability of each pair by belief propagation.
    held : ndarray of int64
        Per callee the pair that it held last, -1 for none: where drawing begins. Changed here.
    rounds : int
        Assignments to draw; fewer where there are very many callees.
    rng : numpy.random.Generator
        Chance, from `seeded`. One for all calls of a question: the same chance each time leads to
        the same assignments, and what is learnt from them learns their noise.

    Returns
    -------
    ndarray of float64
        Marginal probability of each pair.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    best = np.zeros(held.size)
    np.maximum.at(best, callee, log_weight)
    live = np.flatnonzero(exclusive & (log_weight - best[callee] >= _NEGLIGIBLE))
    live = live[_contested(callee[live], caller[live])]
    if not live.size:
        return marginal
    # Pairs of the same callees with shared callers compete with those.
    mine = np.zeros(held.size, bool)
    mine[callee[live]] = True
    live = np.flatnonzero(mine[callee] & (log_weight - best[callee] >= _NEGLIGIBLE))
    callees, sub_callee = np.unique(callee[live], return_inverse=True)
    _, sub_caller = np.unique(caller[live], return_inverse=True)
    place = np.full(callee.size + 1, -1)
    place[live] = np.arange(live.size)
    chain = _Chain(sub_callee, sub_caller, exclusive[live], np.clip(log_weight[live], -60.0, 60.0))
    chain.hold(place[held[callees]])
    many = int(np.clip(rounds * _CALLEES / callees.size, rounds / 8, rounds))
    times = np.zeros(live.size)
    for number in range(many + many // 5):
        chain.step(rng)
        if number >= many // 5:
            times[chain.held[chain.held >= 0]] += 1.0
    held[callees] = np.where(chain.held >= 0, live[np.maximum(chain.held, 0)], -1)
    drawn = marginal.copy()
    drawn[mine[callee]] = 0.0
    drawn[live] = times / many
    return drawn


def _contested(callee: Ints, caller: Ints) -> Bools:
    """Whether each pair belongs to a group in which several callees compete for callers."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not callee.size:
        return np.zeros(0, bool)
    callees, callers = int(callee.max()) + 1, int(caller.max()) + 1
    size = callees + callers
    graph = coo_array((np.ones(callee.size, np.int8), (callee, callees + caller)), (size, size))
    _, group = connected_components(graph, directed=False)
    several = np.bincount(group[:callees]) >= 2
    contested: Bools = several[group[callee]]
    return contested


class _Chain:
    """The Markov chain: a callee picks a caller by weight and swaps with whoever holds it."""

    def __init__(self, callee: Ints, caller: Ints, exclusive: Bools, log_weight: Floats) -> None:
        self.callee, self.caller, self.exclusive = callee, caller, exclusive
        self.n = int(callee.max()) + 1
        best = np.zeros(self.n)
        np.maximum.at(best, self.callee, log_weight)
        self.weight = np.exp(log_weight - best[self.callee])
        self.none = np.exp(-best)
        self.best = best
        order = np.lexsort((self.caller, self.callee))
        self.order = order
        self.summed = np.concatenate([[0.0], np.cumsum(self.weight[order])])
        self.first = np.searchsorted(self.callee[order], np.arange(self.n))
        self.last = np.searchsorted(self.callee[order], np.arange(self.n), side="right")
        self.total = self.summed[self.last] - self.summed[self.first]
        self.callers = int(self.caller.max()) + 1 if self.caller.size else 0
        self.keys = self.callee[order] * max(self.callers, 1) + self.caller[order]
        self.holder = np.full(self.callers, -1)
        self.held = np.full(self.n, -1)

    def hold(self, held: Ints) -> None:
        """Begin with these pairs, where callers are not claimed twice."""
        self.held = held.copy()
        paired = np.flatnonzero(held >= 0)
        bound = paired[self.exclusive[held[paired]]]
        callers = self.caller[held[bound]]
        self.holder[callers] = bound
        self.held[bound[self.holder[callers] != bound]] = -1

    def step(self, rng: np.random.Generator) -> None:
        """Let a random half of the callees pick, as far as they do not meet."""
        mine = np.flatnonzero((rng.random(self.n) < 0.5) & (self.total > 0))
        if not mine.size:
            return
        pick = self._pick(mine, rng)
        # Who picks what it holds takes part all the same: whether a move meets another must not
        # depend on what is held, or some assignments would be drawn too often.
        stays = pick == self.held[mine]
        wanted = np.where(pick >= 0, self.caller[pick], -1)
        bound = (pick >= 0) & self.exclusive[pick]
        other = np.where(bound & ~stays, self.holder[np.maximum(wanted, 0)], -1)
        given = self.held[mine]
        offered = np.where(given >= 0, self.caller[given], -1)
        swapped = self._pair(other, offered)
        # Who gives up a shared caller for a held one could not come back by the same way.
        shared = (given >= 0) & ~self.exclusive[given]
        possible = (other < 0) | (offered < 0) | ((swapped >= 0) & ~shared)
        chance = self._acceptance(mine, other, given, swapped)
        keep = possible & ~stays & self._apart(mine, other, wanted, offered, rng)
        keep &= rng.random(mine.size) < chance
        self._move(mine[keep], pick[keep], other[keep], given[keep], swapped[keep])

    def _pick(self, mine: Ints, rng: np.random.Generator) -> Ints:
        """Pick a pair, or -1 for none, in proportion to its weight."""
        point = rng.random(mine.size) * (self.total[mine] + self.none[mine])
        none = point >= self.total[mine]
        place = np.searchsorted(self.summed, self.summed[self.first[mine]] + point, side="right")
        place = np.clip(place - 1, self.first[mine], self.last[mine] - 1)
        pair = self.order[place]
        # Rounding may point at a neighbour of no weight: stay.
        picked: Ints = np.where(self.weight[pair] > 0, pair, self.held[mine])
        picked[none] = -1
        return picked

    def _pair(self, callee: Ints, caller: Ints) -> Ints:
        """Find the pair of a callee and a caller, -1 where it is no candidate."""
        found = np.full(callee.size, -1)
        asked = np.flatnonzero((callee >= 0) & (caller >= 0))
        key = callee[asked] * max(self.callers, 1) + caller[asked]
        place = np.minimum(np.searchsorted(self.keys, key), max(self.keys.size - 1, 0))
        hit = self.keys[place] == key if self.keys.size else np.zeros(0, bool)
        pair = self.order[place[hit]]
        found[asked[hit]] = np.where(self.weight[pair] > 0, pair, -1)
        return found

    def _acceptance(self, mine: Ints, other: Ints, given: Ints, swapped: Ints) -> Floats:
        """Chance to accept: the picker's own part cancels against its way of picking."""
        chance = np.ones(mine.size)
        swap = (other >= 0) & (swapped >= 0)
        now = self.held[other[swap]]
        chance[swap] = self.weight[swapped[swap]] / self.weight[now]
        out = (other >= 0) & (given < 0)
        a, b = mine[out], other[out]
        log_ratio = np.log(self.total[a] + self.none[a]) + self.best[a]
        log_ratio -= np.log(self.total[b] + self.none[b]) + self.best[b]
        chance[out] = np.exp(np.minimum(log_ratio, 0.0))
        return chance

    def _apart(
        self, mine: Ints, other: Ints, wanted: Ints, offered: Ints, rng: np.random.Generator
    ) -> Bools:
        """Keep moves that share neither callee nor caller with another one."""
        size = self.n + self.callers + 1
        tokens = np.stack(
            [
                mine,
                np.where(other >= 0, other, mine),
                np.where(wanted >= 0, self.n + wanted, size - 1),
                np.where(offered >= 0, self.n + offered, size - 1),
            ]
        )
        owner = np.full(size, -1)
        turn = rng.permutation(mine.size)
        for row in tokens:
            owner[row[turn]] = turn
        # Later rows may have taken a token from an earlier one: whoever still owns all, goes.
        owner[size - 1] = -2
        mine_all = np.arange(mine.size)
        apart = np.ones(mine.size, bool)
        for row in tokens:
            apart &= (owner[row] == mine_all) | (row == size - 1)
        return apart

    def _move(self, mine: Ints, pick: Ints, other: Ints, given: Ints, swapped: Ints) -> None:
        left = given[(given >= 0) & (other < 0)]
        left = left[self.exclusive[left]]
        self.holder[self.caller[left]] = -1
        self.held[mine] = pick
        taken = np.flatnonzero(pick >= 0)
        taken = taken[self.exclusive[pick[taken]]]
        self.holder[self.caller[pick[taken]]] = mine[taken]
        swap = np.flatnonzero(other >= 0)
        self.held[other[swap]] = swapped[swap]
        back = swap[swapped[swap] >= 0]
        back = back[self.exclusive[swapped[back]]]
        self.holder[self.caller[swapped[back]]] = other[back]
