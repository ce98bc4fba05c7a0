"""Fires against rises: precision, recall, lead, false alarms."""

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc

from tracelab.rules.alert import Flags
from tracelab.signals.grid import Floats

_LEAST_LEAD_S = 60.0


@dataclass(frozen=True, slots=True)
class Score:
    """How a rule did over a stretch of time.

    Parameters
    ----------
    hits, fires : int
        Fires that a rise followed within the horizon, and all fires judged.
    warned, targets : int
        Rises that had a fire before them, and all rises judged.
    days : float
        Length of the stretch.
    leads_s : ndarray
        Time from fire to rise, per hit.
    p_value : float
        Chance of as many hits if the rises came at random.
    """

    hits: int
    fires: int
    warned: int
    targets: int
    days: float
    leads_s: Floats
    p_value: float

    @property
    def precision(self) -> float | None:
        """Share of fires that a rise followed."""
        return self.hits / self.fires if self.fires else None

    @property
    def recall(self) -> float | None:
        """Share of rises that a fire preceded."""
        return self.warned / self.targets if self.targets else None

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.fires + self.targets
        return (self.hits + self.warned) / total if total else 0.0

    @property
    def false_alarms_per_day(self) -> float:
        """Fires without a rise, per day."""
        return (self.fires - self.hits) / self.days if self.days else 0.0


def score_fires(
    fires_s: Floats,
    onsets_s: Floats,
    *,
    horizon_s: float,
    start_s: float,
    end_s: float,
    trigger_spoke: Flags,
    target_spoke: Flags,
    bin_s: float,
) -> Score:
    """Match fires with the rises that follow them.

    Parameters
    ----------
    fires_s, onsets_s : ndarray
        Times of fires and of rise onsets, from the start of the grid.
    horizon_s : float
        A rise from one minute to this long after a fire confirms it; one rise confirms one
        fire.
    start_s, end_s : float
        Stretch that is judged. A fire whose horizon passes its end is not judged, nor a rise
        without a full horizon before it.
    trigger_spoke, target_spoke : ndarray of bool
        Bins with a feed. A fire with half its horizon unseen in the target, and a rise with
        half the time before it unseen in the trigger, are not judged.
    bin_s : float
        Width of a bin.

    Returns
    -------
    Score
        Counts.

    Raises
    ------
    Nothing.
    """

    def seen(spoke: Flags, low: float, high: float) -> bool:
        part = spoke[max(int(low // bin_s), 0) : max(int(high // bin_s), 1)]
        return bool(len(part)) and float(part.mean()) > 0.5

    fires = [
        t
        for t in fires_s[(fires_s >= start_s) & (fires_s + horizon_s <= end_s)]
        if seen(target_spoke, t, t + horizon_s)
    ]
    onsets = onsets_s[(onsets_s >= start_s) & (onsets_s < end_s)]
    free, leads = np.ones(len(onsets), bool), []
    for fire in fires:
        inside = (onsets > fire + _LEAST_LEAD_S) & (onsets <= fire + horizon_s) & free
        if inside.any():
            first = int(np.argmax(inside))
            free[first] = False
            leads.append(onsets[first] - fire)
    judged = [
        t
        for t in onsets
        if t - horizon_s >= start_s and seen(trigger_spoke, t - horizon_s, t - _LEAST_LEAD_S)
    ]
    warned = sum(
        bool(((fires_s >= t - horizon_s) & (fires_s < t - _LEAST_LEAD_S)).any()) for t in judged
    )
    length = max(end_s - start_s, 1.0)
    chance = 1.0 - float(np.exp(-len(onsets) / length * horizon_s))
    hits, n = len(leads), len(fires)
    p_value = float(bdtrc(hits - 1, n, chance)) if hits else 1.0
    return Score(hits, n, warned, len(judged), length / 86400.0, np.asarray(leads), p_value)
