"""Counts far above their usual share: baseline, over-dispersion, tail, back-dated onset.

Both detectors (5xx responses of a service, slow requests of a service) count events out of
totals, so they share this module. Arrays are per bin; a silent bin is NaN and takes no part.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, gammainc

from tracelab.signals.grid import Floats, Ints

Flags = npt.NDArray[np.bool_]

_TRIM_TAIL = 0.005  # bins beyond the Poisson 99.5 % quantile stay out of the baseline
_PRIOR_REQUESTS = 200.0  # a trailing share rests on at least these many requests
_MAX_SCORE = 300.0  # where the tail underflows


@dataclass(frozen=True, slots=True)
class Excess:
    """Events of one series, what was expected, and where they run high.

    Parameters
    ----------
    events, expected : ndarray
        Per bin; 0 where silent.
    observed : ndarray of bool
        Bins whose feed was not silent.
    share : ndarray
        Trailing share of events among the requests.
    dispersion : float
        Variance over mean of the window counts, at least 1.
    score : ndarray
        -log10 of the tail probability of the window that ends with the bin; 0 where the
        effect-size guard fails.
    window : int
        Bins per window.
    """

    events: Floats
    expected: Floats
    observed: Flags
    share: Floats
    dispersion: float
    score: Floats
    window: int


def trailing_sums(values: Floats, window: int) -> Floats:
    """Return the sum over each bin and the `window` - 1 bins before it."""
    total = np.concatenate(([0.0], np.cumsum(values)))
    low = np.maximum(np.arange(1, len(total)) - window, 0)
    return np.asarray(np.maximum(total[1:] - total[low], 0.0))


def _usual_share(events: Floats, totals: Floats, lookback: int, guard: int) -> Floats:
    ends = np.maximum(np.arange(len(events)) - guard, 0)
    starts = np.maximum(ends - lookback, 0)
    # The first pass trims nothing: where a level has shifted for good, all later bins would
    # be outliers against the level before, and the baseline would never follow.
    usual = np.ones(len(events), bool)
    for _ in range(3):
        kept_events, kept_totals = events * usual, totals * usual
        # Half an event where none was ever seen, so that a share is never exactly 0.
        overall = max(kept_events.sum(), 0.5) / max(kept_totals.sum(), 1.0)
        sums = [np.concatenate(([0.0], np.cumsum(part))) for part in (kept_events, kept_totals)]
        near_events, near_totals = (part[ends] - part[starts] for part in sums)
        share = (near_events.clip(0) + _PRIOR_REQUESTS * overall) / (
            near_totals.clip(0) + _PRIOR_REQUESTS
        )
        usual = ~((events > 0) & (gammainc(events.clip(1e-9), totals * share) < _TRIM_TAIL))
    return np.asarray(share.clip(0.0, 1.0))


def tail_score(observed: Floats, expected: Floats, dispersion: float) -> Floats:
    """Return -log10 P(X >= observed), X negative binomial with this mean and dispersion.

    Parameters
    ----------
    observed, expected : ndarray
        Count and its mean, both above 0.
    dispersion : float
        Variance over mean; 1 is Poisson.

    Returns
    -------
    ndarray
        Scores, at most 300.

    Raises
    ------
    Nothing.
    """
    if dispersion > 1 + 1e-9:
        tail = betainc(observed, expected / (dispersion - 1), 1 - 1 / dispersion)
    else:
        tail = gammainc(observed, expected)
    return np.asarray(-np.log10(np.maximum(tail, 10.0**-_MAX_SCORE)))


def score_excess(
    events: Floats,
    totals: Floats,
    *,
    window: int,
    lookback: int,
    guard: int,
    min_events: float,
    min_ratio: float,
    beyond_one_bin: bool = False,
) -> Excess:
    """Score each trailing window against the share of the hours before it.

    Parameters
    ----------
    events, totals : ndarray
        Events and requests per bin, NaN where silent.
    window, lookback, guard : int
        Bins of the window, of the trailing baseline, and between the two.
    min_events, min_ratio : float
        Effect-size guard: least count, least multiple of the expected count.
    beyond_one_bin : bool
        What is left of the window without its fullest bin must be in excess too.

    Returns
    -------
    Excess
        Scores and what they rest on.

    Raises
    ------
    Nothing.
    """
    seen = ~(np.isnan(events) | np.isnan(totals))
    events, totals = np.where(seen, events, 0.0), np.where(seen, totals, 0.0)
    share = _usual_share(events, totals, lookback, guard)
    expected = totals * share
    in_window, usual = trailing_sums(events, window), trailing_sums(expected, window)
    lively = usual > 1e-9
    spread = np.sort((in_window[lively] - usual[lively]) ** 2 / usual[lively])
    dispersion = _dispersion(spread)
    score = np.zeros(len(events))
    raised = (in_window >= min_events) & (in_window > min_ratio * usual) & lively
    if beyond_one_bin and window > 1:
        fullest = events.copy()
        for back in range(1, window):
            fullest[back:] = np.maximum(fullest[back:], events[:-back])
        rest = in_window - fullest
        raised &= (rest >= 1.0) & (rest > min_ratio * usual * (window - 1) / window)
    high = np.flatnonzero(raised)
    if len(high):
        score[high] = tail_score(in_window[high], usual[high], dispersion)
    return Excess(events, expected, seen, share, dispersion, score, window)


def _dispersion(spread: Floats) -> float:
    """Return variance over mean from sorted squared deviations, events left out.

    Rises of minutes fill some per cent of the windows, so a fixed trim either keeps them or
    cuts the body. The lowest nine tenths give a first value (0.623 is the mean of a squared
    normal below its 90 % quantile), then all that lies within 12 times that value counts.
    """
    if not len(spread):
        return 1.0
    first = float(spread[: max(int(len(spread) * 0.9), 1)].mean()) / 0.623
    kept = spread[spread <= 12.0 * max(first, 1.0)]
    return max(1.0, 1.1 * float(kept.mean()))


def find_runs(high: Flags, *, merge_gap: int, min_length: int = 1) -> Ints:
    """Return (first, last) bins of the runs of `high`.

    Parameters
    ----------
    high : ndarray of bool
        Bins above the threshold.
    merge_gap : int
        Runs with fewer bins than this between them are one.
    min_length : int
        Shortest run that counts, before merging.

    Returns
    -------
    ndarray of int64, shape (n_runs, 2)
        First and last bin of each run.

    Raises
    ------
    Nothing.
    """
    edges = np.diff(np.concatenate(([0], high.astype(np.int8), [0])))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    long = last - first + 1 >= min_length
    first, last = first[long], last[long]
    if not len(first):
        return np.empty((0, 2), np.int64)
    apart = first[1:] - last[:-1] - 1 >= merge_gap
    return np.column_stack(
        (first[np.concatenate(([True], apart))], last[np.concatenate((apart, [True]))])
    ).astype(np.int64)


def onset_bins(excess: Excess, runs: Ints, *, back: int, ahead: int) -> Ints:
    """Return the likeliest first bin of each run.

    The window is full only some time after the onset, so the crossing comes late by an amount
    that differs between series; a lag between crossings would inherit the difference. The
    onset is the bin from which a raised rate explains the counts best.

    Parameters
    ----------
    excess : Excess
        Scored series.
    runs : ndarray, shape (n_runs, 2)
        From `find_runs`.
    back, ahead : int
        Bins before and after the crossing that are searched.

    Returns
    -------
    ndarray of int64, shape (n_runs,)
        Bins.

    Raises
    ------
    Nothing.
    """
    onsets = np.empty(len(runs), np.int64)
    last_before = -1
    for row, (first, last) in enumerate(runs):
        low = max(first - back + 1, last_before + 1, 0)
        high = min(first + ahead + 1, len(excess.events))
        seen = excess.events[low:high][::-1].cumsum()[::-1]
        usual = np.maximum(excess.expected[low:high][::-1].cumsum()[::-1], 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(seen > usual, seen * np.log(seen / usual) - (seen - usual), -np.inf)
        onsets[row] = low + int(np.argmax(gain))
        last_before = last
    return onsets


def onset_offset(excess: Excess, runs: Ints, onsets: Ints, bin_s: float) -> float:
    """Estimate where the rise begins, in seconds from the start of the onset bin.

    The onset bin lies near the middle of a ramp. The mean excess of all events, aligned on
    their onset bins, is fitted by a linear ramp up to a plateau; the start of the ramp is the
    declared onset. With fewer than five events nothing is estimated and the middle of the bin
    stands.

    Parameters
    ----------
    excess : Excess
        Scored series.
    runs, onsets : ndarray
        Events and their onset bins.
    bin_s : float
        Width of a bin in seconds.

    Returns
    -------
    float
        Seconds, between -180 and 180.

    Raises
    ------
    Nothing.
    """
    if len(onsets) < 5:
        return bin_s / 2
    lasting = np.quantile(runs[:, 1] - excess.window + 1 - onsets, 0.25)
    after = int(np.clip(lasting, 2, max(240 / bin_s, 2)))
    before = max(round(300 / bin_s), 2)
    steps = np.arange(-before, after)
    bins = onsets[:, None] + steps
    inside = (bins >= 0) & (bins < len(excess.events))
    bins = bins.clip(0, len(excess.events) - 1)
    inside &= excess.observed[bins]
    shown = inside.sum(axis=0)
    profile = np.where(inside, excess.events[bins] - excess.expected[bins], 0.0).sum(axis=0)
    profile = profile / np.maximum(shown, 1)
    noise = np.where(inside, excess.events[bins], 0.0).sum(axis=0) / np.maximum(shown, 1)
    weights = np.where(shown > 0, 1.0 / np.maximum(noise, noise.max() * 0.02 + 1e-12), 0.0)
    middle, length = _fit_ramp(steps * bin_s, profile, weights, bin_s)
    # The onsets fall anywhere within their bins, which widens the mean ramp by one bin.
    length = float(np.sqrt(max(length**2 - bin_s**2, 0.0)))
    return float(np.clip(middle - length / 2, -180.0, 180.0))


def _fit_ramp(
    starts_s: Floats, profile: Floats, weights: Floats, bin_s: float
) -> tuple[float, float]:
    step = max(min(bin_s / 3, 10.0), 2.5)
    middles = np.arange(-150.0, 150.0 + step, step)
    lengths = np.arange(0.0, 300.0 + step, step).clip(1e-3)
    starts = middles[:, None] - lengths[None, :] / 2
    ramp = _mean_ramp(starts_s, starts[..., None], lengths[None, :, None], bin_s)
    # Weighted least squares of profile on height * ramp, the level before it being 0.
    above = (weights * ramp * profile).sum(-1)
    power = (weights * ramp * ramp).sum(-1)
    gain = np.where(power > 0, above.clip(0) ** 2 / np.maximum(power, 1e-12), 0.0)
    row, column = np.unravel_index(int(np.argmax(gain)), gain.shape)
    return float(middles[row]), float(lengths[column])


def _mean_ramp(bins_s: Floats, start: Floats, length: Floats, bin_s: float) -> Floats:
    def area(t: Floats) -> Floats:
        x = ((t - start) / length).clip(0)
        return np.asarray(length * np.where(x < 1, x * x / 2, x - 0.5))

    return (area(bins_s + bin_s) - area(bins_s)) / bin_s
