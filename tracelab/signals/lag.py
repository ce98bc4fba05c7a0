"""The lag of a pair: a peak among all differences of onsets, and how well it is known."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import stdtrit

from tracelab.signals.grid import Floats

_CLOSE_S: Final = 300.0
_ONSET_S: Final = 30.0  # how well the onsets of a whole series are known, about one bin


@dataclass(frozen=True, slots=True)
class Lag:
    """Lag with its two intervals.

    Parameters
    ----------
    lag_s : float
        Centre.
    low_s, high_s : float
        95 % confidence interval of the centre.
    sigma_s : float
        Scatter of single events; `lag_s` plus or minus twice this is where one rise falls.
    n : float
        Effective number of followers.
    """

    lag_s: float
    low_s: float
    high_s: float
    sigma_s: float
    n: float


def estimate_lag(
    bursts_s: Floats, rises_s: Floats, *, near_s: float, low_s: float, high_s: float, seed: int
) -> Lag | None:
    """Fit a normal peak over a flat ground to the differences of onsets.

    Parameters
    ----------
    bursts_s, rises_s : ndarray
        Onsets in seconds.
    near_s : float
        Where the peak is sought first.
    low_s, high_s : float
        Differences outside are left out.
    seed : int
        Of the bootstrap over bursts.

    Returns
    -------
    Lag or None
        None where fewer than two rises follow.

    Raises
    ------
    Nothing.
    """
    gaps = rises_s[None, :] - bursts_s[:, None]
    whose, _ = inside = np.nonzero((gaps >= low_s) & (gaps <= high_s))
    differences = gaps[inside]
    if len(differences) < 2:
        return None
    width_s = high_s - low_s
    centre, sigma, n = _fit(differences, np.ones((1, len(differences))), near_s, width_s)
    if n[0] < 2:
        # The peak lost itself in the ground; look only where the scan found it.
        close = np.abs(differences - near_s) <= _CLOSE_S
        whose, differences, width_s = whose[close], differences[close], 2 * _CLOSE_S
        if len(differences) < 2:
            return None
        centre, sigma, n = _fit(differences, np.ones((1, len(differences))), near_s, width_s)
    if n[0] < 2:
        return None
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(bursts_s), np.full(len(bursts_s), 1 / len(bursts_s)), size=400)
    centres, _, _ = _fit(differences, draws[:, whose].astype(float), centre[0], width_s)
    effective = float(n[0])
    reach = (
        float(stdtrit(max(effective - 1, 1.0), 0.975))
        * float(np.std(centres))
        * np.sqrt(effective / (effective - 1))
    )
    # What the ramp fit leaves is common to all onsets of a series, so no bootstrap sees it.
    reach = float(np.hypot(reach, _ONSET_S))
    return Lag(float(centre[0]), centre[0] - reach, centre[0] + reach, float(sigma[0]), effective)


def _fit(
    differences: Floats, weights: Floats, near_s: float, width_s: float
) -> tuple[Floats, Floats, Floats]:
    """Run EM for every row of weights at once."""
    rows = len(weights)
    centre, sigma = np.full(rows, near_s), np.full(rows, 120.0)
    share = np.full(rows, 0.5)
    total = np.maximum(weights.sum(axis=1), 1e-9)
    n = total
    for _ in range(40):
        z = (differences[None, :] - centre[:, None]) / sigma[:, None]
        peak = share[:, None] * np.exp(-0.5 * z * z) / (sigma[:, None] * np.sqrt(2 * np.pi))
        belongs = weights * peak / (peak + (1 - share[:, None]) / width_s)
        n = np.maximum(belongs.sum(axis=1), 1e-9)
        centre = (belongs * differences).sum(axis=1) / n
        # Two pseudo-events at one minute keep the peak from collapsing on a single difference.
        off = (belongs * (differences[None, :] - centre[:, None]) ** 2).sum(axis=1)
        sigma = np.sqrt((off + 2 * 60.0**2) / (n + 2))
        share = (n / total).clip(1e-6, 1 - 1e-6)
    return centre, sigma, n
