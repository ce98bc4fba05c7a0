"""Measure the early-warning pipeline on seeds that nothing was tuned on.

Run one part, or all of them, with the number of sets to draw::

    python benchmarks/early_warning.py false --sets 1000
    python benchmarks/early_warning.py power --sets 500
    python benchmarks/early_warning.py detect table cost --sets 100
    python benchmarks/early_warning.py walk captures --sets 20
    python benchmarks/early_warning.py rules --sets 300
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
from scipy.special import betaincinv

from tracelab import schema
from tracelab.rules import backtest_rules, derive_rules
from tracelab.signals import (
    detect_error_bursts,
    detect_latency_rises,
    find_lead_lags,
    neighbour_pairs,
)
from tracelab.synth.incident import Incident, synthesize_incident

FALSE = ("null", "diurnal", "storms", "cron", "common_cause", "reverse")
TRYING = (
    "busy_target",
    "overlapping",
    "deployment",
    "slow_leak",
    "missing_days",
    "restarts",
    "daylight_change",
)
HARD = {"n_bursts": 16, "precision": 0.55, "n_own_rises": 14, "requests_per_s": 1.5}
PAIR = [("auth", "payment")]


def upper_bound(hits: int, n: int) -> float:
    """One-sided 95 % Clopper-Pearson bound."""
    return 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 0.95))


def incidents(first_seed: int, n: int, **knobs) -> Iterator[Incident]:
    for seed in range(first_seed, first_seed + n):
        yield synthesize_incident(seed, **knobs)


def try_pair(incident: Incident, **knobs) -> dict:
    return find_lead_lags(incident.red, pairs=PAIR, **knobs).row(0, named=True)


def is_lead(row: dict) -> bool:
    return row["p_value"] is not None and row["p_value"] <= 0.05 and row["direction"] == "forward"


def measure_false(sets: int) -> None:
    print("false positives: share of sets with p <= 0.05 and direction forward")
    for kind in FALSE:
        rows = [try_pair(one) for one in incidents(1_000_000, sets, scenario=kind)]
        hits = sum(map(is_lead, rows))
        print(
            f"  {kind:14} {hits / sets:.3f}  upper 95 % {upper_bound(hits, sets):.3f}", flush=True
        )
    print("other trying kinds")
    some = max(sets // 10, 1)
    for kind in TRYING:
        rows = [try_pair(one) for one in incidents(2_000_000, some, scenario=kind)]
        hits = sum(map(is_lead, rows))
        accepted = sum(row["accepted"] for row in rows)
        print(f"  {kind:16} n {some} p <= 0.05 {hits / some:.3f}, accepted {accepted}", flush=True)


def lag_figures(sets: int, seed: int, detect: dict | None = None, **knobs) -> str:
    rows, errors, covered = [], [], []
    for one in incidents(seed, sets, **knobs):
        row = try_pair(one, **(detect or {}))
        rows.append(row)
        if is_lead(row) and row["lag_s"] is not None:
            errors.append((row["lag_s"] - one.lag_s) / 60)
            covered.append(row["lag_low_s"] <= one.lag_s <= row["lag_high_s"])
    power = sum(map(is_lead, rows)) / sets
    if not errors:
        reasons = {row["reason"] for row in rows}
        return f"power {power:.2f}; e.g. {sorted(reasons)[0]}"
    return (
        f"power {power:.3f} lag bias {np.mean(errors):+.2f} MAE {np.mean(np.abs(errors)):.2f} "
        f"p95 {np.quantile(np.abs(errors), 0.95):.2f} min, coverage {np.mean(covered):.3f}"
    )


def measure_power(sets: int) -> None:
    print(f"power and lag, {sets} sets")
    print("  planted", lag_figures(sets, 3_000_000), flush=True)
    print("  hard   ", lag_figures(sets, 3_100_000, **HARD), flush=True)


def measure_table(sets: int) -> None:
    print(f"lags, jitter, bins, days, traffic: {sets} sets each")
    narrow = {"min_lag": "3m", "tolerance": "1m"}
    cases: list[tuple[str, dict, dict]] = [
        *((f"lag {lag} min", {"lag_min": lag}, {}) for lag in (2, 10, 17, 30, 40)),
        ("lag 5 min, tolerance 1m", {"lag_min": 5, "jitter_min": 0.5}, narrow),
        ("lag 2 min, jitter 0.5", {"lag_min": 2, "jitter_min": 0.5}, {}),
        ("lag 60 min, max_lag 80m", {"lag_min": 60}, {"max_lag": "80m"}),
        *((f"jitter {jitter} min", {"jitter_min": jitter}, {}) for jitter in (0.5, 1, 6)),
        *((f"bins {every} s", {"every_s": every}, {}) for every in (10, 60)),
        *(
            (
                f"{days} days",
                {
                    "days": days,
                    "n_bursts": round(24 * days / 7),
                    "n_own_rises": round(8 * days / 7),
                },
                {},
            )
            for days in (1, 3.5, 5, 14, 28)
        ),
        *((f"{rate} requests/s", {"requests_per_s": rate}, {}) for rate in (0.2, 1, 20, 50)),
    ]
    for number, (name, knobs, detect) in enumerate(cases):
        line = lag_figures(sets, 4_000_000 + 10_000 * number, detect, **knobs)
        false = [
            try_pair(one, **detect)
            for one in incidents(
                4_005_000 + 10_000 * number,
                sets,
                scenario="null",
                **{k: v for k, v in knobs.items() if k not in ("lag_min", "jitter_min")},
            )
        ]
        print(f"  {name:26} {line}; null {sum(map(is_lead, false)) / sets:.2f}", flush=True)


def match(truth: np.ndarray, found: np.ndarray) -> tuple[int, list[float]]:
    free, errors = set(range(len(truth))), []
    for onset in np.sort(found):
        near = [k for k in free if -180 <= onset - truth[k] <= 600]
        if near:
            k = min(near, key=lambda k: abs(onset - truth[k]))
            free.discard(k)
            errors.append(onset - truth[k])
    return len(truth) - len(free), errors


def measure_detect(sets: int) -> None:
    for rate in (0.5, 1.5, 6.0):
        totals: dict[str, list] = {"burst": [0, 0, 0, []], "rise": [0, 0, 0, []]}
        for one in incidents(5_000_000, sets, requests_per_s=rate):
            for kind, detect, service in (
                ("burst", detect_error_bursts, one.trigger),
                ("rise", detect_latency_rises, one.target),
            ):
                seconds = pl.col("time").cast(pl.Int64) / 1e9
                truth = one.truth.filter(kind=kind).select(seconds)["time"].to_numpy()
                events = detect(one.red.filter(service_name=service))
                found = events["start_time"].cast(pl.Int64).to_numpy() / 1e9
                hits, errors = match(truth, found)
                total = totals[kind]
                total[0] += len(truth)
                total[1] += len(found)
                total[2] += hits
                total[3] += errors
        for kind, (truths, found, hits, errors) in totals.items():
            print(
                f"{rate} requests/s {kind:5} recall {hits / truths:.3f} precision "
                f"{hits / found:.3f} false/day {(found - hits) / sets / 7:.2f} onset error mean "
                f"{np.mean(errors):+.1f} sd {np.std(errors):.1f} s",
                flush=True,
            )


def measure_batches(sets: int) -> None:
    """Benjamini-Hochberg over batches of 100 pairs: 5 planted, 5 hard, 90 false."""
    from scipy.stats import false_discovery_control

    def values(**knobs) -> np.ndarray:
        rows = [try_pair(one) for one in incidents(6_000_000, sets, **knobs)]
        return np.array([r["p_value"] if r["direction"] == "forward" else 1.0 for r in rows])

    true = (values(), values(**HARD))
    rng = np.random.default_rng(0)
    for name, kinds in (("null", ("null",)), ("mixed", FALSE)):
        false = np.concatenate([values(scenario=kind) for kind in kinds])
        rates, powers = [], []
        for _ in range(1000):
            p = np.concatenate([rng.choice(part, 5) for part in true] + [rng.choice(false, 90)])
            kept = false_discovery_control(np.nan_to_num(p, nan=1.0)) <= 0.05
            rates.append(kept[10:].sum() / max(kept.sum(), 1))
            powers.append(kept[:10].mean())
        print(f"BH, 1,000 batches, {name}: FDR {np.mean(rates):.4f} power {np.mean(powers):.3f}")


def measure_rules(sets: int) -> None:
    print(f"false rules end to end, {sets} sets of 14 days each")
    doubled = {"days": 14, "n_bursts": 48, "n_own_rises": 16}
    for kind in (*FALSE, *TRYING):
        n = sets if kind in FALSE else max(sets // 3, 1)
        proven = unproven = 0
        for one in incidents(7_000_000, n, scenario=kind, **doubled):
            rules = derive_rules(one.red, pairs=PAIR)
            proven += any(rule.status == "proven" for rule in rules)
            unproven += any(rule.status != "proven" for rule in rules)
        print(f"  {kind:16} n {n} proven {proven} unproven {unproven}", flush=True)


def odd_captures(seed: int) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield captures as people bring them, none of which holds a lead."""
    for name, days in (("10 minutes", 1 / 144), ("1 hour", 1 / 24), ("6 hours", 0.25)):
        yield name, synthesize_incident(seed, scenario="null", days=days).red
    sparse = synthesize_incident(seed, scenario="null", requests_per_s=0.02)
    yield "a request in 50 s", sparse.red
    whole = synthesize_incident(seed, scenario="null").red
    minute = pl.col("time").dt.minute()
    yield "files rotated hourly, 3 min lost", whole.filter(minute >= 3)
    hour = pl.col("time").dt.hour()
    yield "nights not recorded", whole.filter(hour.is_between(6, 21))
    times = whole["time"]
    half = times.min() + (times.max() - times.min()) / 2  # type: ignore[operator]
    late = pl.col("time") >= half
    yield "target deployed half-way", whole.filter(late | (pl.col("service_name") == "auth"))
    later = whole.with_columns(pl.col("time") + pl.duration(days=40, time_unit="ns"))
    yield "two captures 40 days apart", pl.concat([whole, later.tail(2000)])
    mine = pl.col("service_name") == "payment"
    hour_off = pl.duration(hours=1, time_unit="ns")
    moved = pl.when(mine & late).then(pl.col("time") + hour_off).otherwise("time")
    yield "target's clock steps by an hour", whole.with_columns(moved.alias("time"))
    back = pl.when(mine & late).then(pl.col("time") - hour_off).otherwise("time")
    stepped = whole.with_columns(back.alias("time")).unique(["service_name", "time"], keep="last")
    yield "... and back", stepped.sort("service_name", "time")


def measure_captures(sets: int) -> None:
    print(f"captures as people bring them, {sets} sets each, none with a lead")
    counts: dict[str, list[int]] = {}
    said: dict[str, str] = {}
    for seed in range(9_200_000, 9_200_000 + sets):
        for name, red in odd_captures(seed):
            leads = find_lead_lags(red, pairs=PAIR)
            rules = derive_rules(red, leads=leads)
            proven = any(rule.status == "proven" for rule in rules)
            total = counts.setdefault(name, [0, 0, 0])
            for place, value in enumerate((leads["accepted"].any(), proven, leads.height)):
                total[place] += value
            if leads.height:
                said[name] = leads["reason"][0]
    for name, (accepted, proven, tried) in counts.items():
        print(f"  {name:34} pairs {tried} accepted {accepted} proven rules {proven}; {said[name]}")


def measure_walk(sets: int) -> None:
    """Walk-forward scores against what the generator lets any rule reach."""
    doubled = {"days": 14, "n_bursts": 48, "n_own_rises": 16}
    tables, proven, best_precision, best_recall, train = [], 0, [], [], []
    for one in incidents(8_000_000, sets, **doubled):
        rules = derive_rules(one.red, pairs=PAIR)
        proven += any(rule.status == "proven" for rule in rules)
        train += [rule.train_precision for rule in rules if rule.train_precision is not None]
        tables.append(backtest_rules(rules, one.red))
        middle = one.truth["time"].dt.timestamp("ns").median()
        later = one.truth.filter(pl.col("time").dt.timestamp("ns") > middle)
        followed = later["caused_by"].drop_nulls().len()
        best_precision.append(followed / max(later.filter(kind="burst").height, 1))
        best_recall.append(followed / max(later.filter(kind="rise").height, 1))
    scores = pl.concat(tables)
    print(
        f"{sets} sets of 14 days: {proven} with a proven rule; train precision {np.mean(train):.3f}"
    )
    print(f"ceiling: precision {np.mean(best_precision):.3f} recall {np.mean(best_recall):.3f}")
    named = scores.with_columns(
        pl.col("rule_id").str.extract(r"/(\w+)$").fill_null("rule").alias("who")
    )
    weighted = named.group_by("who").agg(
        (pl.col("precision") * pl.col("n_fires")).sum() / pl.col("n_fires").sum(),
        (pl.col("recall") * pl.col("n_targets")).sum() / pl.col("n_targets").sum(),
        pl.col("false_alarms_per_day").mean(),
        pl.col("lead_median_s").mean(),
        pl.col("n_fires").sum(),
    )
    for row in weighted.sort("who").iter_rows(named=True):
        print("  ", {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})


def busy_service(seed: int, name: str) -> pl.DataFrame:
    """One service with bursts and with rises, so that every pair has to be tested."""
    one = synthesize_incident(seed, scenario="null", trigger=name, target=name)
    half = one.red.height // 2
    failing, slow = one.red.head(half), one.red.tail(half)
    silent = failing["requests"].is_null()
    return failing.with_columns(
        pl.when(~silent).then(slow["duration_counts"]).alias("duration_counts")
    )


def measure_cost(sets: int) -> None:
    """100 services, 7 days: every pair, the pairs of neighbours, and what one pair costs."""
    red = pl.concat([busy_service(9_000_000 + k, f"s{k:02}") for k in range(100)])
    calls = [(f"s{(k - 1) // 3:02}", f"s{k:02}") for k in range(1, 100)]
    edges = schema.conform(
        pl.DataFrame(calls, schema=["parent_service", "child_service"], orient="row"), schema.EDGES
    )
    bursts, rises = took("detection", lambda: (detect_error_bursts(red), detect_latency_rises(red)))
    for name, pairs in (("neighbours", neighbour_pairs(edges)), ("all", None)):

        def find(pairs: list[tuple[str, str]] | None = pairs) -> pl.DataFrame:
            return find_lead_lags(red, bursts=bursts, rises=rises, pairs=pairs)

        before = time.process_time()
        leads = took(f"pairs, {name}", find)
        cpu = time.process_time() - before
        tested = max(leads["p_value"].count(), 1)
        print(f"  {leads.height} pairs, {tested} tested, {1e3 * cpu / tested:.1f} ms CPU a pair")
    cells = [try_cost(seed) for seed in range(min(sets, 20))]
    print(f"one pair with its lag interval: median {1e3 * np.median(cells):.1f} ms CPU")


def took(name: str, work: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name}: {wall:.1f} s, {cpu:.1f} s CPU", flush=True)
    return result


def try_cost(seed: int) -> float:
    one = synthesize_incident(9_100_000 + seed)
    bursts, rises = detect_error_bursts(one.red), detect_latency_rises(one.red)
    start = time.process_time()
    find_lead_lags(one.red, bursts=bursts, rises=rises, pairs=PAIR)
    return time.process_time() - start


PARTS: dict[str, Callable[[int], None]] = {
    "false": measure_false,
    "power": measure_power,
    "table": measure_table,
    "detect": measure_detect,
    "batches": measure_batches,
    "rules": measure_rules,
    "captures": measure_captures,
    "walk": measure_walk,
    "cost": measure_cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=list(PARTS))
    parser.add_argument("--sets", type=int, default=100)
    arguments = parser.parse_args()
    for part in arguments.parts:
        start = time.perf_counter()
        PARTS[part](arguments.sets)
        print(f"[{part}: {time.perf_counter() - start:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
