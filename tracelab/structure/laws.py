"""Delay laws and association: which of many callers called which of many callees.

A delay law is the density of (callee start minus caller start), and of (caller end minus
callee end) where the caller waits, learnt from pairs that are known or, weighted, from pairs
that are only likely. Marginal probabilities of a one-to-one association are found by belief
propagation (Williams and Lau 2014), which is close to exact on problems like these and needs
only sums over the candidate pairs.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tracelab.structure.skeleton import Bools, Floats, Ints

UNIT_NS: Final = 10_000.0
"""Below ten microseconds delays are resolved linearly, above in proportion."""

RISING: Final = 0.1
"""Share of the earliest delays among which a law that rises only is taken to do so: small enough
that what fewer calls than this do at once is the sole hump that it can take away."""

_HUMP: Final = 30.0
"""Nats by which a hump among the earliest delays must fit better than no hump for it to stay."""

_CAUTION: Final = 1.0
"""Part of an onset that stays blurred, times the root of the number of calls."""

_STEP: Final = 0.01
_REACH: Final = 18.0
_GRID: Final = int(2 * _REACH / _STEP) + 1
_PADDED: Final = 8192
"""Twice the grid and more, so that the two ends do not wrap into each other."""


def warp(delay_ns: npt.ArrayLike) -> Floats:
    """Map delays to a scale that is linear near zero and logarithmic far from it.

    Parameters
    ----------
    delay_ns : array-like
        Nanoseconds, of either sign.

    Returns
    -------
    ndarray of float64
        As many numbers.

    Raises
    ------
    TypeError
        If `delay_ns` are no numbers.
    """
    return np.arcsinh(np.asarray(delay_ns, dtype=np.float64) / UNIT_NS)


@dataclass(frozen=True, slots=True)
class Law:
    """Density of a delay, per nanosecond.

    Parameters
    ----------
    log_density : ndarray of float64
        On the warped grid, already per nanosecond.
    """

    log_density: Floats

    @classmethod
    def fit(
        cls, delay_ns: npt.ArrayLike, weights: Floats | None = None, *, rises: bool = False
    ) -> "Law":
        """Learn a law from weighted delays by a kernel estimate on the warped scale.

        Parameters
        ----------
        delay_ns : array-like
            Nanoseconds.
        weights : ndarray of float64, optional
            Probability that each pair is true; 1 by default.
        rises : bool
            Whether the law rises up to its first tenth, in which case its onset is as sharp as
            the delays have it. A kernel blurs it, and where the weights come from the law
            itself the blur feeds on its own pairs.

        Returns
        -------
        Law
            Nowhere zero: a part in a thousand is spread widely, so that one odd delay is
            unlikely but never impossible.

        Raises
        ------
        TypeError
            If `delay_ns` are no numbers.
        """
        where = np.clip(warp(delay_ns), -_REACH, _REACH)
        mass = np.ones(where.size) if weights is None else weights
        counts: Floats = np.bincount(
            np.rint((where + _REACH) / _STEP).astype(np.int64), weights=mass, minlength=_GRID
        ).astype(np.float64)
        total = counts.sum()
        if total <= 0:
            counts, total = np.ones(_GRID, dtype=np.float64), float(_GRID)
        effective = total**2 / max(float((mass**2).sum()), 1e-300) if where.size else 1.0
        density = _smooth(counts / total, _bandwidth(counts / total, effective))
        if rises:
            density = _rising(counts, density)
        wide = _smooth(density, 1.5)
        density = 0.998 * density + 0.0018 * wide + 0.0002 / _GRID
        axis = np.linspace(-_REACH, _REACH, _GRID)
        per_ns = density / _STEP / (UNIT_NS * np.cosh(axis))
        return cls(np.log(per_ns))

    def log_at(self, delay_ns: npt.ArrayLike) -> Floats:
        """Return the log density at some delays.

        Parameters
        ----------
        delay_ns : array-like
            Nanoseconds.

        Returns
        -------
        ndarray of float64
            Natural logarithm of the density per nanosecond.

        Raises
        ------
        TypeError
            If `delay_ns` are no numbers.
        """
        where = np.clip(warp(delay_ns), -_REACH, _REACH)
        found: Floats = self.log_density[np.rint((where + _REACH) / _STEP).astype(np.int64)]
        return found


def _bandwidth(density: Floats, effective: float) -> float:
    """Silverman's rule, with the interquartile range so that two humps are not blurred."""
    axis = np.linspace(-_REACH, _REACH, _GRID)
    mean = float((axis * density).sum())
    deviation = float(np.sqrt(max(((axis - mean) ** 2 * density).sum(), 0.0)))
    cumulated = np.cumsum(density)
    quartiles = axis[np.minimum(np.searchsorted(cumulated, [0.25, 0.75]), _GRID - 1)]
    spread = min(deviation, float(quartiles[1] - quartiles[0]) / 1.34 + _STEP)
    # Twice the rule at small numbers: a law learnt from few pairs must not be too sure.
    caution = 1.0 + 1.0 / np.sqrt(max(effective, 1.0) / 4)
    return float(np.clip(0.9 * spread * caution * max(effective, 1.0) ** -0.2, _STEP, 1.0))


def _rising(counts: Floats, density: Floats) -> Floats:
    """Let a density rise up to its first tenth, as the most likely rising one does (Grenander).

    A part stays blurred, the larger the fewer the calls: nothing rules out that the next one
    comes sooner than all before.
    """
    from scipy.optimize import isotonic_regression

    total = float(counts.sum())
    end = int(np.searchsorted(np.cumsum(counts), RISING * total)) + 1
    early, blurred = counts[:end] / total, density[:end]
    width = np.cosh(np.linspace(-_REACH, _REACH, _GRID)[:end])
    onset = isotonic_regression(early / width, weights=width).x * width
    caution = min(1.0, _CAUTION / np.sqrt(total))
    share = float(early.sum())
    onset = (1.0 - caution) * onset + caution * share * blurred / max(float(blurred.sum()), 1e-300)
    seen = (early > 0) & (blurred > 0)
    if float((counts[:end][seen] * np.log(blurred[seen] / onset[seen])).sum()) > _HUMP:
        return density
    rest = density[end:] * (1.0 - share) / max(float(density[end:].sum()), 1e-300)
    return np.concatenate([onset, rest])


def _smooth(density: Floats, bandwidth: float) -> Floats:
    """Blur with a Gaussian, by way of its Fourier transform."""
    blurred = np.fft.irfft(
        np.fft.rfft(density, _PADDED)
        * np.exp(-2.0 * (np.pi * (bandwidth / _STEP) * np.fft.rfftfreq(_PADDED)) ** 2),
        _PADDED,
    )
    smooth: Floats = np.maximum(blurred[:_GRID], 0.0)
    return smooth


def association_marginals(
    callee: Ints,
    caller: Ints,
    log_weight: Floats,
    *,
    exclusive: Bools | bool = True,
    rounds: int = 60,
) -> Floats:
    """Probability of each candidate pair when each callee has at most one caller.

    Parameters
    ----------
    callee, caller : ndarray of int64
        Numbers from 0 of the two sides of each candidate pair.
    log_weight : ndarray of float64
        Log of (probability of this pair) / (probability that both are unpaired).
    exclusive : bool or ndarray of bool
        Whether the pair's caller calls at most one of the callees.
    rounds : int
        Most rounds of message passing.

    Returns
    -------
    ndarray of float64
        Marginal probability of each pair.

    References
    ----------
    .. [1] J. Williams, R. Lau, "Approximate evaluation of marginal association probabilities
       with belief propagation", IEEE Trans. Aerospace and Electronic Systems 50(4), 2014.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    if not callee.size:
        return np.zeros(0)
    weight = np.exp(np.clip(log_weight, -60.0, 60.0))
    n_callees, n_callers = int(callee.max()) + 1, int(caller.max()) + 1
    back = np.ones(callee.size)
    for _ in range(rounds):
        forward_total = np.bincount(callee, weights=weight * back, minlength=n_callees)
        forward = weight / (1.0 + np.maximum(forward_total[callee] - weight * back, 0.0))
        back_total = np.bincount(caller, weights=forward, minlength=n_callers)
        new = 1.0 / (1.0 + np.maximum(back_total[caller] - forward, 0.0))
        new = np.where(exclusive, new, 1.0)
        # Damping keeps rings of equal candidates from swinging.
        new = 0.5 * back + 0.5 * new
        change = float(np.abs(new - back).max())
        back = new
        if change < 1e-4:
            break
    total = np.bincount(callee, weights=weight * back, minlength=n_callees)
    marginal: Floats = weight * back / (1.0 + total[callee])
    return marginal


def pair_ranges(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Expand ranges of positions into pairs (number of the range, position).

    Parameters
    ----------
    low, high : ndarray of int64
        First position and position behind the last, per range.

    Returns
    -------
    tuple of ndarray of int64
        Number of the range and position, one entry per pair.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    counts = np.maximum(high - low, 0)
    owner = np.repeat(np.arange(low.size), counts)
    first = np.cumsum(counts) - counts
    position = np.arange(int(counts.sum())) - np.repeat(first, counts) + np.repeat(low, counts)
    return owner, position
