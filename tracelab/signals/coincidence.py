"""Event coincidence: how often a rise follows a burst at some lag, and how often by chance."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import factorial

import numpy as np
import numpy.typing as npt

from tracelab.signals.grid import Floats, Ints

STEP_S = 30.0
_ENUMERATE_BELOW = 5041  # 7! orders of a week are enumerated
_WEEKDAY_CLASSES_FROM = 28


@dataclass(frozen=True, slots=True)
class Scan:
    """What the scan over lags found for one pair.

    Parameters
    ----------
    lag_s : float
        Lag of most coincidences within the range.
    coincidences : int
        Bursts followed by a rise within the tolerance of that lag.
    days : int
        Different days on which these lie.
    p_shift, p_day : float
        Chance of as many under a circular shift of all bursts, and under other orders of the
        days (whole-hour shifts where there are fewer than five days).
    p_floor : float
        Smallest value the larger of the two could have taken.
    day_orders : bool
        Whole days could be permuted: the time of day is excluded as the reason.
    direction : str
        forward, simultaneous or reverse.
    """

    lag_s: float
    coincidences: int
    days: int
    p_shift: float
    p_day: float
    p_floor: float
    day_orders: bool
    direction: str


@dataclass(frozen=True, slots=True)
class LagRange:
    """Lags that are scanned, in steps of the event grid.

    Parameters
    ----------
    low, high : int
        First and last lag.
    stride : int
        Steps between lags.
    tolerance : int
        A rise this near the lag coincides.
    """

    low: int
    high: int
    stride: int
    tolerance: int

    @property
    def lags(self) -> Ints:
        """All lags."""
        return np.arange(self.low, self.high + 1, self.stride)


def scan_pair(
    bursts_s: Floats,
    rises_s: Floats,
    observed: npt.NDArray[np.bool_],
    lags: LagRange,
    *,
    shuffles: int,
    seed: int,
    first_weekday: int = 0,
) -> Scan:
    """Count coincidences at every lag and compare with two nulls.

    Parameters
    ----------
    bursts_s, rises_s : ndarray
        Onsets in seconds from the start of the grid.
    observed : ndarray of bool
        Steps of the grid at which both feeds spoke (long silences only).
    lags : LagRange
        What is scanned.
    shuffles : int
        Day orders drawn where there are too many to enumerate.
    seed : int
        Of these draws.
    first_weekday : int
        Weekday on which the grid begins, Monday 0; from 28 days on, days are exchanged within
        working days and within weekends only.

    Returns
    -------
    Scan
        The result.

    Raises
    ------
    Nothing.
    """
    n = len(observed)
    # Where nobody looked no event can be, so a shift into such a stretch would always miss and
    # the observed count would seem high: the clock of the shift stands still there.
    clock = np.cumsum(observed) - 1
    length = int(observed.sum())
    at = clock[(bursts_s / STEP_S).astype(np.int64).clip(0, n - 1)].clip(0)
    to = clock[(rises_s / STEP_S).astype(np.int64).clip(0, n - 1)].clip(0)
    near = _near(to, length, lags.tolerance)
    count = np.zeros(length, np.int32)
    for start in at:
        count[: length - start] += near[start:]
        count[length - start :] += near[:start]
    mean = float(count.mean())
    line = count[lags.lags % length]
    best = int(np.argmax(line))
    lag = int(lags.lags[best])

    margin = min(int(5400 / STEP_S), length // 4)
    shifts = np.arange(margin, length - margin)
    # A shift by s followed by a look at lag t is a look at s + t.
    wrapped = np.concatenate((count, count[: lags.high + 1]))
    top = wrapped[lags.low : lags.low + length].copy()
    for step in lags.lags[1:]:
        np.maximum(top, wrapped[step : step + length], out=top)
    p_shift = (1.0 + float((top[shifts] >= line[best]).sum())) / (1.0 + len(shifts))

    per_day = int(86400 / STEP_S)
    days = n // per_day
    usable = [d for d in range(days) if observed[d * per_day : (d + 1) * per_day].mean() > 0.5]
    day_orders = len(usable) >= 5
    if day_orders:
        p_day, floor = _day_orders(
            (bursts_s / STEP_S).astype(np.int64),
            _near((rises_s / STEP_S).astype(np.int64), n, lags.tolerance),
            np.asarray(usable),
            per_day,
            lags.lags,
            shuffles=shuffles,
            seed=seed,
            first_weekday=first_weekday,
        )
    else:
        hours = np.arange(int(3600 / STEP_S), length - int(3600 / STEP_S) + 1, int(3600 / STEP_S))
        p_day = (1.0 + float((top[hours] >= line[best]).sum())) / (1.0 + len(hours))
        floor = 1.0 / (1.0 + len(hours))

    hit = near[(at + lag) % length]
    before = np.arange(-lags.high, int(60 / STEP_S) + 1)
    backward = count[before % length]
    where = int(before[int(np.argmax(backward))])
    direction = "forward"
    if line[best] - mean <= backward.max() - mean:
        direction = "simultaneous" if abs(where) * STEP_S <= 300 else "reverse"
    elif count[np.arange(before[-1], lags.low) % length].max() > line[best]:
        # Most rises come sooner than the range begins: its edge only caught their stragglers.
        direction = "simultaneous"
    return Scan(
        lag_s=lag * STEP_S,
        coincidences=int(hit.sum()),
        days=len(np.unique((bursts_s[hit] // 86400).astype(np.int64))),
        p_shift=p_shift,
        p_day=p_day,
        p_floor=max(floor, 1.0 / (1.0 + len(shifts))),
        day_orders=day_orders,
        direction=direction,
    )


def _near(at: Ints, length: int, tolerance: int) -> npt.NDArray[np.bool_]:
    marks = np.zeros(length + 2 * tolerance + 1, np.int32)
    np.add.at(marks, at, 1)
    np.add.at(marks, at + 2 * tolerance + 1, -1)
    return np.cumsum(marks)[tolerance : tolerance + length] > 0


def _day_orders(
    at: Ints,
    near: npt.NDArray[np.bool_],
    days: Ints,
    per_day: int,
    lags: Ints,
    *,
    shuffles: int,
    seed: int,
    first_weekday: int,
) -> tuple[float, float]:
    """Return the p-value and its floor under other orders of the days.

    Whole days of bursts move, so the hour, the minute and the clusters within a day stay as
    they are; what follows only from those survives the shuffle.
    """
    n_days, n = len(days), len(near)
    place = {int(day): row for row, day in enumerate(days)}
    table = np.zeros((n_days, n_days, len(lags)), np.int16)
    for onset in at:
        day, within = divmod(int(onset), per_day)
        row = place.get(day)
        if row is None:
            continue
        look = (days[:, None] * per_day + within + lags[None, :]) % n
        table[row] += near[look]
    weekend = tuple(bool((first_weekday + day) % 7 >= 5) for day in days.tolist())
    orders, exact = _orders(weekend, shuffles, seed)
    counts = np.zeros((len(orders), len(lags)), np.int16)
    for row in range(n_days):
        counts += table[row, orders[:, row]]
    actual = table[np.arange(n_days), np.arange(n_days)].sum(axis=0)
    mean, spread = counts.mean(axis=0), counts.std(axis=0)
    scale = np.sqrt(spread**2 + 0.25)
    excess = ((counts - mean) / scale).max(axis=1)
    reached = float((excess >= ((actual - mean) / scale).max() - 1e-9).sum())
    if exact:
        return reached / len(orders), 1.0 / len(orders)
    return (1.0 + reached) / (1.0 + len(orders)), 1.0 / (1.0 + len(orders))


@lru_cache(maxsize=16)
def _orders(weekend: tuple[bool, ...], shuffles: int, seed: int) -> tuple[Ints, bool]:
    """Return orders of the days, and whether they are all there are."""
    n_days = len(weekend)
    if factorial(n_days) < _ENUMERATE_BELOW:
        return np.array(list(permutations(range(n_days)))), True
    rng = np.random.default_rng(seed)
    everyday, off = np.arange(n_days), np.asarray(weekend)
    # Fewer days leave too few orders of a weekend's two or four days.
    classes = [everyday] if n_days < _WEEKDAY_CLASSES_FROM else [everyday[~off], everyday[off]]
    orders = np.empty((shuffles, n_days), np.int64)
    for members in classes:
        orders[:, members] = rng.permuted(np.tile(members, (shuffles, 1)), axis=1)
    return orders, False
