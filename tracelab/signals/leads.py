"""Leads: which service's bursts precede which service's rises, tried pair by pair."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.signals.bursts import TRIGGERS, detect_error_bursts
from tracelab.signals.coincidence import STEP_S, LagRange, Scan, scan_pair
from tracelab.signals.grid import Floats, as_red, duration_ns
from tracelab.signals.lag import estimate_lag
from tracelab.signals.rises import detect_latency_rises

Key = tuple[str | None, str | None]
Pair = tuple[Key, Key]

MIN_BURSTS: Final = 8
MIN_RISES: Final = 8
MIN_COINCIDENCES: Final = 5
MIN_DAYS: Final = 3
_LONG_SILENCE_S: Final = 7200.0


@dataclass(frozen=True, slots=True)
class _Events:
    start_ns: int
    steps: int
    onsets: dict[Key, Floats]

    def of(self, key: Key) -> Floats:
        return self.onsets.get(key, np.empty(0))


def find_lead_lags(
    red: pl.DataFrame,
    *,
    bursts: pl.DataFrame | None = None,
    rises: pl.DataFrame | None = None,
    pairs: Iterable[tuple[str, str]] | None = None,
    trigger: str | Sequence[str] = "5xx",
    operations: bool = False,
    min_lag: str = "5m",
    max_lag: str = "45m",
    tolerance: str = "3m",
    false_discovery: float = 0.05,
    shuffles: int = 5000,
    seed: int = 0,
) -> pl.DataFrame:
    """Find pairs of services in which bursts of one precede latency rises of the other.

    Onsets are compared, never levels: a common cause that lasts minutes would look like a lead
    otherwise. The number of bursts with a rise near a lag, at the best lag, is held against
    two nulls, a circular shift of all bursts and other orders of whole days, and the larger
    p-value counts. The excess must also be larger than at any lag below one minute. All pairs
    tried share one Benjamini-Hochberg correction, those with too few events as p = 1.

    Parameters
    ----------
    red : pl.DataFrame
        Schema `RED`.
    bursts, rises : pl.DataFrame, optional
        Schemas `BURSTS` (of the one `trigger`) and `RISES`; detected with defaults if absent.
    pairs : iterable of (str, str), optional
        Services (trigger, target) to try; all ordered pairs of different services if absent.
    trigger : str or sequence of str
        Kinds of trigger: 5xx, error, break, swallowed, retry; a kind without data is left out.
    operations : bool
        Try single operations as well as whole services.
    min_lag, max_lag : str
        Range of lags.
    tolerance : str
        A rise this near the lag coincides. `min_lag` minus this must be at least 2 minutes, or
        causes that hit both at once leak in.
    false_discovery : float
        Expected share of false pairs among the accepted.
    shuffles : int
        Day orders drawn where there are more than can be enumerated; raised tenfold for pairs
        below p = 0.01 where more than 250 pairs are tried.
    seed : int
        Of shuffles and bootstrap.

    Returns
    -------
    pl.DataFrame
        Schema `LEAD_LAGS`, one row per pair and kind, accepted ones first. "Precedes" is all
        it says: a hidden cause that reaches both one after the other looks the same.

    Raises
    ------
    SchemaError
        If a table lacks a column or `red` is not on one grid.
    ParameterError
        If a duration, a kind, a pair or the range of lags makes no sense.

    References
    ----------
    .. [1] Donges et al., "Event coincidence analysis", arXiv 1508.03534.
    .. [2] Benjamini and Hochberg, "Controlling the false discovery rate", 1995.
    """
    lags = _lag_range(min_lag, max_lag, tolerance)
    given: Any = trigger
    several = isinstance(given, Sequence) and not isinstance(given, str)
    kinds: list[str] = list(given) if several else [given]
    unknown = [kind for kind in map(str, kinds) if kind not in TRIGGERS]
    if unknown or not kinds:
        raise ParameterError(f"trigger={unknown or kinds!r} is none of {', '.join(TRIGGERS)}")
    if bursts is not None and len(kinds) != 1:
        raise ParameterError("bursts= holds one kind of trigger; pass that one kind")
    red = as_red(red)
    named = None if pairs is None else as_pairs(pairs)
    if not operations:
        red = red.filter(pl.col("span_name").is_null())
    if not red.height:
        return schema.empty(schema.LEAD_LAGS)
    found = rises if rises is not None else detect_latency_rises(red)
    schema.require_columns(found, schema.RISES, name="rises")
    targets, silent = _events(found, red), _long_silences(red)
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        if not red[TRIGGERS[kind]].count():
            continue
        lead = bursts if bursts is not None else detect_error_bursts(red, trigger=kind)
        schema.require_columns(lead, schema.BURSTS, name="bursts")
        triggers = _events(lead, red)
        wanted = list(_candidates(red, named))
        for a, b in wanted:
            scan = _scan(a, b, triggers, targets, silent, lags, shuffles, seed)
            if scan and len(wanted) > 250 and max(scan.p_shift, scan.p_day) < 0.01:
                scan = _scan(a, b, triggers, targets, silent, lags, shuffles * 10, seed)
            rows.append(_row(kind, a, b, triggers.of(a), targets.of(b), scan, lags, seed))
    return _judge(rows, false_discovery)


def as_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of services as a list of tuples.

    Parameters
    ----------
    pairs : iterable of (str, str)
        Trigger and target of each pair.

    Returns
    -------
    list of (str, str)
        The same.

    Raises
    ------
    ParameterError
        If it is no iterable, or an entry is no pair of names.
    """
    given: object = pairs
    rows = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for row in rows:
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 2:
            raise ParameterError(
                f"pairs= holds a {type(row).__name__}, not (trigger, target); pass for example "
                "[('auth', 'payment')] or what neighbour_pairs returned"
            )
    return [(row[0], row[1]) for row in rows]  # type: ignore[index]


def neighbour_pairs(edges: pl.DataFrame, *, hops: int = 3) -> list[tuple[str, str]]:
    """Return ordered pairs of services at most some calls apart, in either direction.

    Parameters
    ----------
    edges : pl.DataFrame
        Schema `EDGES`.
    hops : int
        Greatest distance in the service graph.

    Returns
    -------
    list of (str, str)
        For the `pairs` argument of `find_lead_lags`.

    Raises
    ------
    SchemaError
        If `edges` lacks a column.
    ParameterError
        If `hops` is below 1.
    """
    schema.require_columns(edges, ("parent_service", "child_service"), name="edges")
    if hops < 1:
        raise ParameterError(f"hops={hops} must be at least 1")
    calls = edges.select("parent_service", "child_service").drop_nulls().unique()
    names = sorted({*calls["parent_service"], *calls["child_service"]})
    number = {name: i for i, name in enumerate(names)}
    near = np.eye(len(names), dtype=bool)
    for a, b in calls.iter_rows():
        near[number[a], number[b]] = near[number[b], number[a]] = True
    reach = near
    for _ in range(hops - 1):
        reach = (reach.astype(np.float32) @ near.astype(np.float32)) > 0
    return [(names[i], names[j]) for i, j in np.argwhere(reach).tolist() if i != j]


def _lag_range(min_lag: str, max_lag: str, tolerance: str) -> LagRange:
    low, high, near = (
        duration_ns(text, name=name) / 1e9
        for text, name in ((min_lag, "min_lag"), (max_lag, "max_lag"), (tolerance, "tolerance"))
    )
    if low - near < 120 or high < low:
        raise ParameterError(
            f"min_lag={min_lag!r} minus tolerance={tolerance!r} must be at least '2m' and "
            f"max_lag={max_lag!r} not below min_lag; narrow the tolerance"
        )
    per_minute = int(60 / STEP_S)
    return LagRange(round(low / STEP_S), round(high / STEP_S), per_minute, round(near / STEP_S))


def _events(table: pl.DataFrame, red: pl.DataFrame) -> _Events:
    times = red["time"].cast(pl.Int64)
    start = int(times.min())  # type: ignore[arg-type]
    end = int(times.max()) + int(red["bin_ns"][0])  # type: ignore[arg-type]
    steps = max(int((end - start) / (STEP_S * 1e9)), 1)
    table = table.filter(pl.col("start_time").cast(pl.Int64).is_between(start, end, closed="left"))
    parts = table.partition_by(["service_name", "span_name"], as_dict=True)
    onsets = {
        (key[0], key[1]): (np.sort(part["start_time"].cast(pl.Int64).to_numpy()) - start) / 1e9
        for key, part in parts.items()
    }
    return _Events(start, steps, onsets)


def _long_silences(red: pl.DataFrame) -> dict[Key, npt.NDArray[np.bool_]]:
    """Return per series the steps outside its long silences."""
    start = int(red["time"].cast(pl.Int64).min())  # type: ignore[arg-type]
    last = int(red["time"].cast(pl.Int64).max())  # type: ignore[arg-type]
    width = int(red["bin_ns"][0])
    steps = max(int((last + width - start) / (STEP_S * 1e9)), 1)
    out: dict[Key, npt.NDArray[np.bool_]] = {}
    spoken = red.filter(pl.col("requests").is_not_null()).select(
        "service_name", "span_name", "time"
    )
    for key, part in spoken.partition_by(["service_name", "span_name"], as_dict=True).items():
        times = (np.sort(part["time"].cast(pl.Int64).to_numpy()) - start) / 1e9
        bounds = np.concatenate(([-width / 1e9], times, [(last + width - start) / 1e9]))
        seen = np.ones(steps, bool)
        for row in np.flatnonzero(np.diff(bounds) > _LONG_SILENCE_S):
            seen[int((bounds[row] + width / 1e9) / STEP_S) : int(bounds[row + 1] / STEP_S)] = False
        out[key[0], key[1]] = seen
    return out


def _candidates(red: pl.DataFrame, pairs: Iterable[tuple[str, str]] | None) -> Iterable[Pair]:
    keys = sorted(
        {(a, b) for a, b in red.select("service_name", "span_name").unique().iter_rows()},
        key=lambda key: (key[0] or "", key[1] is not None, key[1] or ""),
    )
    wanted = None if pairs is None else set(pairs)
    for a in keys:
        for b in keys:
            if a[0] != b[0] and (wanted is None or (a[0], b[0]) in wanted):
                yield a, b


def _scan(
    a: Key,
    b: Key,
    triggers: _Events,
    targets: _Events,
    silent: dict[Key, npt.NDArray[np.bool_]],
    lags: LagRange,
    shuffles: int,
    seed: int,
) -> Scan | None:
    """Scan one pair; None where there are too few events to try."""
    if len(triggers.of(a)) < MIN_BURSTS or len(targets.of(b)) < MIN_RISES:
        return None
    observed = silent[a] & silent[b]
    if observed.sum() < 3 * lags.high:
        return None
    # 1970-01-01 was a Thursday.
    weekday = (triggers.start_ns // 86_400_000_000_000 + 3) % 7
    return scan_pair(
        triggers.of(a),
        targets.of(b),
        observed,
        lags,
        shuffles=shuffles,
        seed=seed,
        first_weekday=weekday,
    )


def _row(
    kind: str,
    a: Key,
    b: Key,
    bursts: Floats,
    rises: Floats,
    scan: Scan | None,
    lags: LagRange,
    seed: int,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "trigger_kind": kind,
        "trigger_service": a[0],
        "trigger_operation": a[1],
        "target_service": b[0],
        "target_operation": b[1],
        "n_bursts": len(bursts),
        "n_rises": len(rises),
    }
    if scan is None:
        return row
    p_value = max(scan.p_shift, scan.p_day)
    row |= {
        "n_coincidences": scan.coincidences,
        "n_days": scan.days,
        "p_shift": scan.p_shift,
        "p_day": scan.p_day,
        "p_value": p_value,
        "p_floor": scan.p_floor,
        "time_of_day_excluded": scan.day_orders,
        "direction": scan.direction,
    }
    if p_value <= 0.05:
        lag = estimate_lag(
            bursts,
            rises,
            near_s=scan.lag_s,
            low_s=60.0,
            high_s=(lags.high + 2) * STEP_S,
            seed=seed,
        )
        if lag is not None:
            row |= {
                "lag_s": lag.lag_s,
                "lag_low_s": lag.low_s,
                "lag_high_s": lag.high_s,
                "lag_sigma_s": lag.sigma_s,
            }
            if lag.high_s < lags.low * STEP_S and scan.direction == "forward":
                # A lag surely below the range: the tolerance alone brought it in.
                row["direction"] = "simultaneous"
    return row


def _judge(rows: list[dict[str, Any]], q: float) -> pl.DataFrame:
    if not rows:
        return schema.empty(schema.LEAD_LAGS)
    # Too few events, and pairs whose excess points the other way, stay in the family as p = 1.
    counted = np.array([_weight(row) for row in rows])
    order = np.argsort(counted, kind="stable")
    m = len(rows)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum.accumulate((counted[order] * m / np.arange(1, m + 1))[::-1])[
        ::-1
    ].clip(max=1.0)
    gate = q * (int((adjusted <= q).sum()) + 1) / m
    for row, value, p in zip(rows, adjusted, counted, strict=True):
        row["q_value"] = float(value)
        row["verdict"], row["reason"] = _verdict(row, float(value), float(p), q, gate)
        row["accepted"] = row["verdict"] == "accepted"
    table = schema.conform(pl.DataFrame(rows, infer_schema_length=None), schema.LEAD_LAGS)
    return table.sort(
        [
            "accepted",
            "q_value",
            "trigger_kind",
            "trigger_service",
            "trigger_operation",
            "target_service",
            "target_operation",
        ],
        descending=[True] + [False] * 6,
        nulls_last=True,
    )


def _weight(row: dict[str, Any]) -> float:
    enough = row.get("n_coincidences", 0) >= MIN_COINCIDENCES and row.get("n_days", 0) >= MIN_DAYS
    if not enough or row.get("direction") != "forward":
        return 1.0
    return float(row["p_value"])


def _verdict(row: dict[str, Any], value: float, p: float, q: float, gate: float) -> tuple[str, str]:
    if row["n_bursts"] < MIN_BURSTS or row["n_rises"] < MIN_RISES:
        return "undecidable", (
            f"{row['n_bursts']} bursts and {row['n_rises']} rises; "
            f"at least {MIN_BURSTS} and {MIN_RISES} are needed"
        )
    if "p_value" not in row:
        return "undecidable", "both feeds spoke together for too short a time"
    if row["p_value"] <= 0.05 and row["direction"] != "forward":
        return "rejected", f"the excess is {row['direction']}: no lead"
    if value <= q:
        return "accepted", (
            f"{row['n_coincidences']} of {row['n_bursts']} bursts followed, "
            f"p {row['p_value']:.2g}, q {value:.2g}"
        )
    if row["p_floor"] > gate:
        return "undecidable", (
            f"p cannot fall below {row['p_floor']:.2g} on so few days, the gate is {gate:.2g}: "
            "try fewer pairs or more days"
        )
    if p == 1.0 and row["p_value"] <= 0.05:
        return "undecidable", (
            f"{row['n_coincidences']} coincidences on {row['n_days']} days; "
            f"at least {MIN_COINCIDENCES} on {MIN_DAYS} are needed"
        )
    return "rejected", f"chance would do as well: p {row['p_value']:.2g}, q {value:.2g}"
