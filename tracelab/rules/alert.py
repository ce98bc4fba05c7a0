"""Alerts as Prometheus 3 evaluates them: ranges, extrapolated rates, pending and firing."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracelab.signals.grid import Floats, Ints, Series

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Counter:
    """A scraped counter.

    Parameters
    ----------
    times_s : ndarray
        Times of the samples, rising.
    values : ndarray
        Values; a fall is a reset.
    """

    times_s: Floats
    values: Floats


def increase(counter: Counter, at_s: Floats, range_s: float) -> Floats:
    """Return PromQL's ``increase(counter[range])`` at some times.

    Samples lie in the left-open range ``(t - range, t]`` of Prometheus 3. The result is
    extrapolated to the borders of the range as far as the samples' spacing allows.

    Parameters
    ----------
    counter : Counter
        The samples.
    at_s : ndarray
        Evaluation times.
    range_s : float
        The range.

    Returns
    -------
    ndarray
        NaN where there are fewer than two samples, as Prometheus returns nothing.

    Raises
    ------
    Nothing.
    """
    times, values = counter.times_s, counter.values
    out = np.full(len(at_s), np.nan)
    first = np.searchsorted(times, at_s - range_s, side="right")
    last = np.searchsorted(times, at_s, side="right") - 1
    some = np.flatnonzero(last > first)
    if not len(some):
        return out
    first, last, at = first[some], last[some], at_s[some]
    fell = np.concatenate(([0.0], np.where(np.diff(values) < 0, values[:-1], 0.0)))
    mended = values + np.cumsum(fell)
    grown = mended[last] - mended[first]
    covered = times[last] - times[first]
    spacing = covered / (last - first)
    to_start, to_end = times[first] - (at - range_s), at - times[last]
    to_start = np.where(to_start >= spacing * 1.1, spacing / 2, to_start)
    # A counter cannot have been below 0: do not extrapolate past that point.
    with np.errstate(divide="ignore", invalid="ignore"):
        to_zero = np.where(grown > 0, covered * (values[first] / grown), np.inf)
    to_start = np.minimum(to_start, np.where(values[first] >= 0, to_zero, np.inf))
    to_end = np.where(to_end >= spacing * 1.1, spacing / 2, to_end)
    out[some] = grown * (covered + to_start + to_end) / covered
    return out


def fire_times(holds: Flags, *, pending: int, keep: int) -> Ints:
    """Return the evaluations at which an alert begins to fire.

    Parameters
    ----------
    holds : ndarray of bool
        Whether the expression returned something, per evaluation.
    pending : int
        ``for``, in evaluations, rounded up.
    keep : int
        ``keep_firing_for``, in evaluations, rounded up.

    Returns
    -------
    ndarray of int64
        Evaluations; an alert that still fires is not a new one.

    Raises
    ------
    Nothing.
    """
    edges = np.diff(np.concatenate(([0], holds.astype(np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    fired: list[int] = []
    quiet_from = -1
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if start <= quiet_from:
            # Before it was over the condition came back: the same alert goes on.
            quiet_from = end + keep
        elif start + pending < end:
            fired.append(start + pending)
            quiet_from = end + keep
    return np.asarray(fired, np.int64)


def firing_states(holds: Flags, *, pending: int, keep: int) -> Flags:
    """Return whether an alert fires, evaluation by evaluation.

    Parameters
    ----------
    holds : ndarray of bool
        Whether the expression returned something.
    pending, keep : int
        ``for`` and ``keep_firing_for`` in evaluations, rounded up.

    Returns
    -------
    ndarray of bool
        The state after each evaluation.

    Raises
    ------
    Nothing.
    """
    out = np.zeros(len(holds), bool)
    active_since = gone_since = None
    firing = False
    for now, held in enumerate(holds.tolist()):
        if held:
            active_since = now if active_since is None else active_since
            gone_since = None
            firing = firing or now - active_since >= pending
        elif firing:
            gone_since = now if gone_since is None else gone_since
            if now - gone_since >= keep:
                firing, active_since, gone_since = False, None, None
        else:
            active_since = None
        out[now] = firing
    return out


def counters(series: Series, column: str) -> tuple[Counter, Counter]:
    """Return the counters of requests and of failures that an exporter would have shown.

    A scrape stands at the end of each bin, none where the feed was silent. The failures'
    counter appears with the first failure, since client libraries create a label set on use.

    Parameters
    ----------
    series : Series
        The trigger's series.
    column : str
        Column of RED with the failures.

    Returns
    -------
    (Counter, Counter)
        Requests, failures; times in seconds from the start of the grid.

    Raises
    ------
    Nothing.
    """
    requests, failures = series.column("requests"), series.column(column)
    spoke = ~np.isnan(requests)
    ends = (np.arange(series.n_bins) + 1.0) * series.bin_ns / 1e9
    total = np.cumsum(np.nan_to_num(requests))
    failed = np.cumsum(np.nan_to_num(failures))
    born = spoke & (failed > 0)
    return Counter(ends[spoke], total[spoke]), Counter(ends[born], failed[born])


@dataclass(frozen=True, slots=True)
class Levels:
    """What a rule's expression reads, at every evaluation.

    Parameters
    ----------
    at_s : ndarray
        Evaluation times in seconds from the start of the grid.
    ratio, errors, usual : ndarray
        Share and number of failures in the window, and the long share some time ago; NaN where
        Prometheus returns nothing.
    """

    at_s: Floats
    ratio: Floats
    errors: Floats
    usual: Floats

    def above(self, ratio: float, min_errors: float, factor: float) -> Flags:
        """Return where ``ratio > a and errors >= b unless ratio <= factor * usual`` holds."""
        with np.errstate(invalid="ignore"):
            high = (self.ratio > ratio) & (self.errors >= min_errors)
            return np.asarray(high & ~(self.ratio <= factor * self.usual))


def levels(
    requests: Counter,
    failures: Counter,
    at_s: Floats,
    *,
    window_s: float,
    baseline_s: float,
    baseline_offset_s: float,
) -> Levels:
    """Evaluate what a rule reads.

    Parameters
    ----------
    requests, failures : Counter
        The trigger's counters.
    at_s : ndarray
        Evaluation times.
    window_s, baseline_s, baseline_offset_s : float
        Ranges of the rule.

    Returns
    -------
    Levels
        Per evaluation.

    Raises
    ------
    Nothing.
    """

    def share(at: Floats, range_s: float) -> tuple[Floats, Floats]:
        total = increase(requests, at, range_s)
        failed = increase(failures, at, range_s)
        failed = np.where(np.isnan(failed), total * 0.0, failed)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(total > 0, failed / total, np.nan), failed

    ratio, errors = share(at_s, window_s)
    usual, _ = share(at_s - baseline_offset_s, baseline_s)
    return Levels(at_s, ratio, errors, usual)
