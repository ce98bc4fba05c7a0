"""A pair of services whose early warnings, and whose false friends, are planted."""

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.traceset import TraceSet

Floats = npt.NDArray[np.float64]

SCENARIOS: Final = (
    "planted",
    "null",
    "diurnal",
    "storms",
    "cron",
    "common_cause",
    "reverse",
    "busy_target",
    "overlapping",
    "deployment",
    "slow_leak",
    "missing_days",
    "restarts",
    "daylight_change",
)
"""`planted` alone holds a lead of the trigger over the target. `storms` cluster on both sides,
`cron` fires at fixed minutes of independent hours, `common_cause` hits both at once, `reverse`
lets the target go first."""

_FINE_S: Final = 5
_TAIL_FROM: Final = 0.97
_TAIL_POWER: Final = 2.8
_BODY_SIGMA: Final = 0.45
_START_NS: Final = 1_767_571_200_000_000_000  # Monday 2026-01-05 00:00 UTC


@dataclass(frozen=True)
class Incident:
    """Series with planted truth.

    Parameters
    ----------
    red : pl.DataFrame
        Schema `RED`, two services.
    truth : pl.DataFrame
        service_name, kind (burst or rise), time (true onset), end_time, caused_by (onset of
        the burst that caused the rise, null if none).
    trigger, target : str
        Names of the two services.
    lag_s : float or None
        Planted lead; None where none was planted.
    """

    red: pl.DataFrame
    truth: pl.DataFrame
    trigger: str
    target: str
    lag_s: float | None


def synthesize_incident(
    seed: int = 0,
    *,
    scenario: str = "planted",
    days: float = 7.0,
    every_s: int = 30,
    requests_per_s: float = 6.0,
    n_bursts: int = 24,
    n_own_rises: int = 8,
    lag_min: float = 17.0,
    jitter_min: float = 3.0,
    precision: float = 0.8,
    error_ratio: float = 0.003,
    burst_ratio: tuple[float, float] = (0.04, 0.25),
    burst_minutes: tuple[float, float] = (2.0, 6.0),
    rise: tuple[float, float] = (1.5, 3.0),
    rise_minutes: tuple[float, float] = (6.0, 18.0),
    gap_ratio: float = 0.02,
    season: float = 0.7,
    load_effect: float = 0.25,
    trigger: str = "auth",
    target: str = "payment",
) -> Incident:
    """Draw the series of two services with 5xx bursts, latency rises and known truth.

    Load is common to both (time of day, weekend, slow noise) and counts are Poisson; errors
    are binomial with a wandering ratio; latency is log-normal with a Pareto tail and follows
    the load. Each exporter has gaps of its own.

    Parameters
    ----------
    seed : int
        Same seed, same series.
    scenario : str
        One of `SCENARIOS`.
    days, every_s : float, int
        Length, and bin in seconds (a multiple of 5).
    requests_per_s : float
        Mean traffic of each service.
    n_bursts, n_own_rises : int
        Bursts of the trigger; rises of the target that no burst caused.
    lag_min, jitter_min, precision : float
        Lead, its standard deviation, and the share of bursts with a follower.
    error_ratio, burst_ratio : float, (float, float)
        Usual 5xx ratio, and the range of that of a burst.
    burst_minutes, rise, rise_minutes : (float, float)
        Ranges: length of a burst, factor and length of a rise.
    gap_ratio : float
        Share of bins without a feed, per service.
    season, load_effect : float
        Swing of the load (log) over a day, and how latency follows it.
    trigger, target : str
        Service names.

    Returns
    -------
    Incident
        The series and what was planted.

    Raises
    ------
    ParameterError
        If the scenario is unknown or a number is out of its range.
    """
    if scenario not in SCENARIOS:
        raise ParameterError(f"scenario={scenario!r} is none of {', '.join(SCENARIOS)}")
    if every_s <= 0 or every_s % _FINE_S or days <= 0 or not 0 <= precision <= 1:
        raise ParameterError(
            f"every_s={every_s} must be a multiple of {_FINE_S}, days={days} above 0 "
            f"and precision={precision} within 0 and 1"
        )
    rng = np.random.default_rng(seed)
    plan = _Plan(rng, scenario, days * 1440.0, n_bursts, n_own_rises)
    bursts, rises, cause = plan.onsets(lag_min, jitter_min, precision)
    n_bins = int(days * 86400 // every_s)
    hours = (np.arange(n_bins) + 0.5) * every_s / 3600.0
    if scenario == "daylight_change":
        hours = hours + (hours > days * 12.0)
    load = (
        season * np.sin(2 * np.pi * (hours - 9.0) / 24.0)
        - 0.4 * ((hours // 24) % 7 >= 5)
        + 0.15 * _ar1(rng, n_bins, every_s, 3600.0)
    )
    burst_ends = bursts + rng.uniform(*burst_minutes, len(bursts))
    rise_ends = rises + rng.uniform(*rise_minutes, len(rises))
    ratios = rng.uniform(*burst_ratio, len(bursts))
    factors = np.exp(rng.uniform(np.log(rise[0]), np.log(rise[1]), len(rises)))
    parts = []
    for name, is_trigger in ((trigger, True), (target, False)):
        own = load + 0.1 * _ar1(rng, n_bins, every_s, 1800.0)
        rate = np.exp(own - np.log(np.exp(own).mean())) * requests_per_s
        requests = rng.poisson(rate * every_s)
        usual = error_ratio * np.exp(0.35 * _ar1(rng, n_bins, every_s, 3600.0))
        extra, slower = np.zeros(n_bins), np.ones((n_bins, every_s // _FINE_S))
        if is_trigger:
            extra = _envelope(bursts, burst_ends, ratios, 20.0, n_bins, every_s).mean(axis=1)
            blips = rng.integers(0, n_bins, 6)
            extra[blips] = np.maximum(extra[blips], rng.uniform(0.02, 0.08, 6))
        else:
            slower = 1.0 + _envelope(rises, rise_ends, factors - 1.0, 90.0, n_bins, every_s)
        usual, slower, off = plan.disturb(is_trigger, usual, slower, n_bins, every_s, bursts)
        errors = rng.binomial(requests, (usual + extra).clip(0, 0.95))
        median_ns = 40e6 * np.exp(load_effect * own)
        counts = _histogram(rng, requests, median_ns, slower)
        silent = _gaps(rng, n_bins, every_s, gap_ratio) | off
        parts.append(_red(name, every_s, requests, errors, counts, silent))
    return Incident(
        pl.concat(parts),
        _truth(trigger, target, bursts, burst_ends, rises, rise_ends, cause),
        trigger,
        target,
        lag_min * 60.0 if scenario == "planted" else None,
    )


class _Plan:
    """When bursts and rises begin, in minutes, and what else disturbs the series."""

    def __init__(
        self, rng: np.random.Generator, scenario: str, minutes: float, n_bursts: int, n_own: int
    ) -> None:
        self.rng, self.scenario, self.minutes = rng, scenario, minutes
        self.n_bursts, self.n_own = n_bursts, n_own

    def onsets(self, lag: float, jitter: float, precision: float) -> tuple[Floats, Floats, Floats]:
        rng, n_rises = self.rng, round(self.n_bursts * precision) + self.n_own
        if self.scenario == "planted":
            bursts = self._spread(self.n_bursts)
            follows = rng.random(len(bursts)) < precision
            led = bursts[follows] + rng.normal(lag, jitter, int(follows.sum())).clip(0.5)
            return self._with_own(bursts, led, bursts[follows], self.n_own)
        if self.scenario == "reverse":
            bursts = self._spread(self.n_bursts)
            follows = rng.random(len(bursts)) < precision
            before = bursts[follows] - rng.normal(10.0, 2.0, int(follows.sum())).clip(0.5)
            return self._with_own(bursts, before, np.full(len(before), np.nan), self.n_own)
        if self.scenario == "common_cause":
            causes = self._spread(self.n_bursts)
            both = rng.random(len(causes)) < precision
            jolt = causes[both] + rng.uniform(-0.5, 0.5, int(both.sum()))
            return self._with_own(causes, jolt, np.full(len(jolt), np.nan), self.n_own)
        if self.scenario in ("diurnal", "daylight_change"):
            bursts, rises = self._busy_hours(self.n_bursts), self._busy_hours(n_rises)
        elif self.scenario == "storms":
            bursts, rises = self._storms(self.n_bursts), self._storms(n_rises)
        elif self.scenario == "cron":
            bursts = self._hourly(self.n_bursts, 0.0)
            rises = self._hourly(n_rises, 17.0)
        elif self.scenario == "overlapping":
            bursts, rises = self._spread(self.n_bursts * 2, 12.0), self._spread(n_rises * 2, 12.0)
        elif self.scenario == "busy_target":
            # The target is already slow when the trigger bursts, by a cause of its own.
            rises = self._spread(n_rises)
            n = min(self.n_bursts, len(rises))
            bursts = np.sort(rng.choice(rises, n, replace=False) + rng.uniform(1.0, 6.0, n))
        else:
            bursts, rises = self._spread(self.n_bursts), self._spread(n_rises)
        return bursts, rises, np.full(len(rises), np.nan)

    def disturb(
        self,
        is_trigger: bool,
        usual: Floats,
        slower: Floats,
        n_bins: int,
        every_s: int,
        bursts: Floats,
    ) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        rng, off = self.rng, np.zeros(n_bins, bool)
        minutes = np.arange(n_bins) * every_s / 60.0
        if self.scenario == "deployment":
            at = rng.uniform(0.3, 0.7) * self.minutes
            after = minutes >= at
            usual, slower = (
                usual * np.where(after, 3.0, 1.0),
                slower * np.where(after, 1.7, 1.0)[:, None],
            )
        elif self.scenario == "slow_leak":
            period = rng.uniform(20.0, 40.0) * 60.0
            phase = (minutes + rng.uniform(0, period)) % period / period
            usual, slower = usual * (1.0 + 4.0 * phase), slower * (1.0 + 1.5 * phase)[:, None]
        elif self.scenario == "missing_days":
            day = int(rng.integers(1, max(int(self.minutes // 1440) - 2, 2)))
            off = (minutes >= day * 1440.0) & (minutes < (day + 2) * 1440.0)
            if rng.random() < 0.5 and not is_trigger:
                off = (minutes >= (day - 0.5) * 1440.0) & (minutes < (day + 1) * 1440.0)
        elif self.scenario == "restarts" and is_trigger:
            for start in bursts:
                off |= (minutes >= start - 2.0) & (minutes < start)
        return usual, slower, off

    def _with_own(
        self, bursts: Floats, led: Floats, cause: Floats, n_own: int
    ) -> tuple[Floats, Floats, Floats]:
        rises = np.concatenate((led, self._spread(n_own)))
        cause = np.concatenate((cause, np.full(n_own, np.nan)))
        order = np.argsort(rises)
        inside = (rises[order] > 5.0) & (rises[order] < self.minutes - 5.0)
        return bursts, rises[order][inside], cause[order][inside]

    def _spread(self, n: int, apart: float = 60.0) -> Floats:
        edge = min(60.0, self.minutes / 4)
        room = self.minutes - 2 * edge - apart * n
        if room < 0:
            apart, room = 0.0, self.minutes - 2 * edge
        return np.asarray(edge + np.sort(self.rng.uniform(0, room, n)) + apart * np.arange(n))

    def _busy_hours(self, n: int) -> Floats:
        hours = np.arange(max(int(self.minutes // 60), 3))
        shift = (hours > len(hours) / 2) if self.scenario == "daylight_change" else 0
        weight = np.where((hours + shift) % 24 // 4 == 3, 14.0, 1.0)
        weight[[0, -1]] = 0.0
        chosen = self.rng.choice(hours, n, p=weight / weight.sum())
        return np.sort(chosen * 60.0 + self.rng.uniform(0, 60, n))

    def _storms(self, n: int) -> Floats:
        edge = min(180.0, self.minutes / 4)
        centres = self.rng.uniform(edge, self.minutes - edge, max(n // 6, 1))
        times = self.rng.choice(centres, n) + self.rng.normal(0, 60.0, n)
        return np.sort(times.clip(edge / 18, self.minutes - edge / 18))

    def _hourly(self, n: int, minute: float) -> Floats:
        hours = np.arange(1, int(self.minutes // 60) - 1)
        chosen = np.sort(self.rng.choice(hours, min(n, len(hours)), replace=False))
        return np.asarray(chosen * 60.0 + minute + self.rng.uniform(0, 0.5, len(chosen)))


def _ar1(rng: np.random.Generator, n: int, every_s: int, memory_s: float) -> Floats:
    keep = float(np.exp(-every_s / memory_s))
    noise = rng.standard_normal(n) * np.sqrt(1 - keep * keep)
    return np.asarray(lfilter([1.0], [1.0, -keep], noise, zi=[keep * rng.standard_normal()])[0])


def _envelope(
    starts: Floats, ends: Floats, heights: Floats, ramp_s: float, n_bins: int, every_s: int
) -> Floats:
    """Return the height of events at every fine step, shape (n_bins, steps per bin)."""
    steps = every_s // _FINE_S
    fine = np.zeros(n_bins * steps)
    for start, end, height in zip(starts * 60.0, ends * 60.0, heights, strict=True):
        low, high = int(start // _FINE_S), min(int((end + ramp_s) // _FINE_S) + 1, len(fine))
        t = (np.arange(low, high) + 0.5) * _FINE_S
        shape = np.minimum(
            ((t - start) / ramp_s).clip(0, 1), ((end + ramp_s - t) / ramp_s).clip(0, 1)
        )
        fine[low:high] = np.maximum(fine[low:high], height * shape)
    return fine.reshape(n_bins, steps)


def _share_below(ratio: Floats) -> Floats:
    """Return the share of requests below a multiple of the median."""
    body = ndtr(np.log(ratio) / _BODY_SIGMA)
    joint = float(np.exp(_BODY_SIGMA * ndtri(_TAIL_FROM)))
    tail = 1.0 - (1.0 - _TAIL_FROM) * np.maximum(ratio / joint, 1.0) ** -_TAIL_POWER
    return np.asarray(np.where(ratio > joint, tail, body))


def _histogram(
    rng: np.random.Generator, requests: npt.NDArray[np.int64], median_ns: Floats, slower: Floats
) -> npt.NDArray[np.int64]:
    edges = np.asarray(schema.DURATION_EDGES_NS, float)
    below = _share_below(edges[None, :] / (median_ns * slower[:, 0])[:, None])
    uneven = np.flatnonzero(slower.max(axis=1) != slower.min(axis=1))
    if len(uneven):
        scale = median_ns[uneven, None] * slower[uneven]
        below[uneven] = _share_below(edges / scale[..., None]).mean(axis=1)
    bounds = np.concatenate((np.zeros((len(below), 1)), below, np.ones((len(below), 1))), axis=1)
    return np.asarray(rng.multinomial(requests, np.diff(bounds, axis=1).clip(0)))


def _gaps(
    rng: np.random.Generator, n_bins: int, every_s: int, ratio: float
) -> npt.NDArray[np.bool_]:
    silent = np.zeros(n_bins, bool)
    n = rng.poisson(ratio * n_bins * every_s / 60.0 / 10.4)
    lengths = np.exp(rng.uniform(np.log(2.0), np.log(30.0), n)) * 60.0 / every_s
    for start, length in zip(rng.integers(0, n_bins, n), lengths, strict=True):
        silent[start : start + max(int(length), 1)] = True
    return silent


def _red(
    name: str,
    every_s: int,
    requests: npt.NDArray[np.int64],
    errors: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    silent: npt.NDArray[np.bool_],
) -> pl.DataFrame:
    n, bin_ns = len(requests), every_s * 10**9
    loud = pl.lit(pl.Series(~silent))
    edges = pl.lit(pl.Series([list(schema.DURATION_EDGES_NS)], dtype=pl.List(pl.Int64))).first()
    histogram = pl.Series(counts.astype(np.float64)).cast(pl.List(pl.Float64))
    return schema.conform(
        pl.DataFrame(
            {
                "time": pl.Series(_START_NS + np.arange(n) * bin_ns).cast(schema.TIME),
                "requests": requests.astype(float),
                "errors_5xx": errors.astype(float),
                "duration_counts": histogram,
            }
        ).select(
            pl.lit(name).alias("service_name"),
            "time",
            pl.lit(bin_ns).alias("bin_ns"),
            pl.when(loud).then("requests").alias("requests"),
            pl.when(loud).then("errors_5xx").alias("errors"),
            pl.when(loud).then("errors_5xx").alias("errors_5xx"),
            pl.when(loud).then("duration_counts").alias("duration_counts"),
            edges.alias("bucket_edges_ns"),
            pl.when(loud).then("requests").alias("sampled_requests"),
        ),
        schema.RED,
    )


def _truth(
    trigger: str,
    target: str,
    bursts: Floats,
    burst_ends: Floats,
    rises: Floats,
    rise_ends: Floats,
    cause: Floats,
) -> pl.DataFrame:
    def when(minutes: Floats) -> pl.Series:
        known = np.where(np.isnan(minutes), 0, minutes)
        times = pl.Series(_START_NS + (known * 60e9).astype(np.int64)).cast(schema.TIME)
        return times.to_frame("t").select(pl.when(pl.Series(~np.isnan(minutes))).then("t"))["t"]

    return pl.DataFrame(
        {
            "service_name": [trigger] * len(bursts) + [target] * len(rises),
            "kind": ["burst"] * len(bursts) + ["rise"] * len(rises),
            "time": when(np.concatenate((bursts, rises))),
            "end_time": when(np.concatenate((burst_ends, rise_ends))),
            "caused_by": when(np.concatenate((np.full(len(bursts), np.nan), cause))),
        }
    )


def spans_of_incident(incident: Incident, *, seed: int = 0) -> TraceSet:
    """Return server spans whose counts are exactly those of an incident's series.

    Parameters
    ----------
    incident : Incident
        From `synthesize_incident`; each request becomes a span, so keep it small.
    seed : int
        Of start times and of durations within their buckets.

    Returns
    -------
    TraceSet
        One trace per request; a request that failed with 5xx carries status 503. Nothing falls
        into a silent bin.

    Raises
    ------
    Nothing.
    """
    rng = np.random.default_rng(seed)
    rows = incident.red.filter(pl.col("requests") > 0)
    counts = rows["requests"].cast(pl.Int64).to_numpy()
    whose = np.repeat(np.arange(rows.height), counts)
    n = len(whose)
    # The n-th span of its bin: the first ones failed, and the buckets fill in order.
    rank = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    failed = rank < rows["errors_5xx"].to_numpy()[whose]
    table = np.vstack(rows["duration_counts"].to_list()).astype(np.int64)
    bucket = np.repeat(np.tile(np.arange(table.shape[1]), len(table)), table.reshape(-1))
    edges = np.asarray([0, *schema.DURATION_EDGES_NS, 2 * schema.DURATION_EDGES_NS[-1]], float)
    low, high = edges[bucket], edges[bucket + 1]
    duration = (low + (high - low) * rng.uniform(0.1, 0.9, n)).astype(np.int64)
    bin_ns = int(rows["bin_ns"][0])
    start = rows["time"].cast(pl.Int64).to_numpy()[whose] + rng.integers(0, bin_ns, n)
    ids = np.arange(1, n + 1)
    spans = pl.DataFrame(
        {
            "trace_id": pl.Series(ids).cast(pl.String).str.zfill(32),
            "span_id": pl.Series(ids).cast(pl.String).str.zfill(16),
            "name": pl.Series(["GET /"]).gather(np.zeros(n, np.uint32)),
            "kind": pl.Series(["SERVER"]).gather(np.zeros(n, np.uint32)),
            "start_time": pl.Series(start).cast(schema.TIME),
            "end_time": pl.Series(start + duration).cast(schema.TIME),
            "duration_ns": duration,
            "status_code": pl.Series(["UNSET", "ERROR"]).gather(failed.astype(np.uint32)),
            "service_name": rows["service_name"].gather(whose),
            "http_response_status_code": np.where(failed, 503, 200),
            "attributes": pl.Series(
                ['{"http.response.status_code":200}', '{"http.response.status_code":503}']
            ).gather(failed.astype(np.uint32)),
            "resource_attributes": pl.Series(
                [json.dumps({"service.name": name}) for name in rows["service_name"]]
            ).gather(whose),
            "scope_attributes": pl.Series(["{}"]).gather(np.zeros(n, np.uint32)),
        }
    )
    return TraceSet(spans=schema.conform(spans, schema.SPANS).sort("start_time"))
