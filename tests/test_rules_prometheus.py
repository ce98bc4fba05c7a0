"""The exported rules in Prometheus itself: promtool, and its rules manager at simulated times."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tracelab import schema
from tracelab.rules import derive_rules, render_prometheus_rules, render_prometheus_tests
from tracelab.rules.learning import pair_history
from tracelab.rules.promql import alert_name
from tracelab.signals import detect_error_bursts, red_from_prometheus
from tracelab.synth.incident import synthesize_incident

pytestmark = pytest.mark.promtool

START_MS = 1_767_571_200_000
STEP_MS = 30_000
HOSTILE = "a\"u{{ .Labels.x }}th\\$[[x]]\n`}}{'%s"


def binary(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = cache / "tracelab" / "bin" / name
    if not path.exists():
        pytest.skip(f"{path} is not built; run tests/prometheus/build.sh")
    return path


def learnt(seed, **knobs):
    incident = synthesize_incident(seed, **knobs)
    rules = derive_rules(incident.red, pairs=[(incident.trigger, incident.target)])
    assert [rule.status for rule in rules] == ["proven"]
    return incident, rules


def promtool(*arguments):
    return subprocess.run(
        [binary("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("metrics", ["istio", "spanmetrics", "http_server"])
@pytest.mark.parametrize("names", [("auth", "payment"), (HOSTILE, "pay's ＄{x}")])
def test_promtool_accepts_the_rules_and_their_own_tests_pass(tmp_path, metrics, names):
    incident, rules = learnt(5, trigger=names[0], target=names[1])
    file = tmp_path / "prometheus-rules.yml"
    file.write_text(render_prometheus_rules(rules, metrics=metrics), encoding="utf-8")
    tests = tmp_path / "prometheus-rules.test.yml"
    text = render_prometheus_tests(rules, incident.red, metrics=metrics)
    assert [title in text for title in (": hit", ": near miss", ": gap")] == [True] * 3
    tests.write_text(text, encoding="utf-8")
    for command in (("check", "rules", file), ("test", "rules", tests)):
        result = promtool(*command)
        assert result.returncode == 0, result.stdout + result.stderr


def test_a_wrong_expectation_fails_in_promtool(tmp_path):
    incident, rules = learnt(5)
    (tmp_path / "prometheus-rules.yml").write_text(render_prometheus_rules(rules))
    text = render_prometheus_tests(rules, incident.red)
    broken = tmp_path / "t.yml"
    broken.write_text(text.replace("exp_alerts: []", "exp_alerts: [{exp_labels: {a: b}}]"))
    assert promtool("test", "rules", broken).returncode != 0


def replay(tmp_path, rules, series, n_steps, first=1, name=alert_name):
    file = tmp_path / "rules.yml"
    file.write_text(render_prometheus_rules(rules, metrics="istio"), encoding="utf-8")
    samples = tmp_path / "series.jsonl"
    samples.write_text("\n".join(json.dumps(one) for one in series), encoding="utf-8")
    result = subprocess.run(
        [
            binary("prometheus-replay"),
            *("-rules", file, "-series", samples),
            *("-start", str(START_MS + first * STEP_MS), "-end", str(START_MS + n_steps * STEP_MS)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    wanted = name(rules[0])
    return [e["at"] / 1e3 - START_MS / 1e3 for e in events if e["alert"] == wanted and e["firing"]]


def exposed(incident, *, pods=1, restart_every=None, phase_ms=0):
    """Return what scrapes of the trigger's exporters would have stored."""
    red = incident.red.filter(service_name=incident.trigger)
    requests = red["requests"].to_numpy()
    failures = red["errors_5xx"].to_numpy()
    spoke = ~np.isnan(requests)
    rng = np.random.default_rng(1)
    out = []
    for code, counts in (("200", requests - failures), ("503", failures)):
        left = np.nan_to_num(counts).astype(int)
        for pod in range(pods):
            mine = left if pod == pods - 1 else rng.binomial(left, 1 / (pods - pod))
            left = left - mine
            total = np.cumsum(mine).astype(float)
            if restart_every:
                for at in range(restart_every + 37 * pod, len(total), restart_every):
                    total[at:] -= total[at]
            seen = spoke & (np.cumsum(mine) > 0)
            out.append(
                {
                    "labels": {
                        "__name__": "istio_requests_total",
                        "reporter": "destination",
                        "destination_service_name": incident.trigger,
                        "response_code": code,
                        "pod": f"p{pod}",
                    },
                    "t": (START_MS + (np.flatnonzero(seen) + 1) * STEP_MS - phase_ms).tolist(),
                    "v": total[seen].tolist(),
                }
            )
    return out


def emulated(incident, rule):
    history = pair_history(incident.red, "5xx", (incident.trigger, None), (incident.target, None))
    return history.fires(rule).tolist(), history.trigger.n_bins


def share_within(ours, theirs, seconds):
    pairs = [min((abs(a - b) for b in theirs), default=1e9) for a in ours]
    pairs += [min((abs(a - b) for b in ours), default=1e9) for a in theirs]
    return float(np.mean([gap <= seconds for gap in pairs])), len(pairs)


def test_prometheus_fires_when_the_emulated_alert_does(tmp_path):
    incident, rules = learnt(7)
    ours, n = emulated(incident, rules[0])
    first = n // 2
    theirs = replay(tmp_path, rules, exposed(incident), n, first)
    # An alert that fires already where the replay begins did so at another time before.
    settled = first * STEP_MS / 1e3 + 1800
    ours, theirs = ([t for t in times if t > settled] for times in (ours, theirs))
    assert len(ours) >= 5
    share, _ = share_within(ours, theirs, 0.0)
    assert share >= 0.95, (ours, theirs)


def exposed_target(incident, edge_ns, le):
    red = incident.red.filter(service_name=incident.target)
    counts = np.vstack(red["duration_counts"].fill_null([0.0] * 24).to_list())
    below = schema.DURATION_EDGES_NS.index(edge_ns) + 1
    spoke = red["requests"].is_not_null().to_numpy()
    times = (START_MS + (np.flatnonzero(spoke) + 1) * STEP_MS).tolist()
    stem = "istio_request_duration_milliseconds"
    labels = {"reporter": "destination", "destination_service_name": incident.target}
    return [
        {
            "labels": {"__name__": f"{stem}_{part}", **labels, **more},
            "t": times,
            "v": np.cumsum(values)[spoke].tolist(),
        }
        for part, more, values in (
            ("bucket", {"le": le}, counts[:, :below].sum(axis=1)),
            ("count", {}, counts.sum(axis=1)),
        )
    ]


@pytest.mark.slow
def test_the_confirming_alert_fires_only_after_the_early_one_and_only_while_the_target_is_slow(
    tmp_path,
):
    incident, rules = learnt(7)
    ours, n = emulated(incident, rules[0])
    le = f"{rules[0].slow_edge_ns / 1e6:.10g}"
    series = exposed(incident) + exposed_target(incident, rules[0].slow_edge_ns, le)
    confirmed = replay(
        tmp_path,
        rules,
        series,
        n,
        n // 2,
        lambda rule: alert_name(rule).replace("EarlyWarning_", "EarlyWarningConfirmed_"),
    )
    assert len(confirmed) >= 3
    open_s = rules[0].horizon_s + rules[0].keep_firing_s + 900.0
    after = [min((t - fire for fire in ours if fire <= t), default=1e9) for t in confirmed]
    assert max(after) <= open_s
    rises = incident.truth.filter(kind="rise")["time"].dt.epoch("s").to_numpy() - START_MS / 1e3
    near = [np.abs(rises - t).min() <= 1500.0 for t in confirmed]
    assert np.mean(near) >= 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "how"),
    [(7, {"phase_ms": 11_000}), (8, {"pods": 3, "restart_every": 700}), (9, {"pods": 2})],
)
def test_scrape_phase_pods_and_resets_move_alerts_by_at_most_one_interval(tmp_path, seed, how):
    incident, rules = learnt(seed)
    ours, n = emulated(incident, rules[0])
    theirs = replay(tmp_path, rules, exposed(incident, **how), n)
    share, judged = share_within(ours, theirs, 60.0 if "phase_ms" in how else 30.0)
    assert share >= 0.95, (judged, ours, theirs)


@pytest.mark.slow
def test_no_alert_where_the_trigger_never_bursts(tmp_path):
    incident, rules = learnt(7)
    calm = exposed(incident)
    for one in calm:
        if one["labels"]["response_code"] == "503":
            one["v"] = [0.0] * len(one["v"])
    assert replay(tmp_path, rules, calm, incident.red["time"].n_unique()) == []


def test_the_recorded_red_has_one_row_per_scrape():
    incident = synthesize_incident(7)
    assert incident.red.group_by("service_name").len()["len"].unique().to_list() == [20160]
    assert incident.red["time"].dt.epoch("ms").min() == START_MS
    assert incident.red["bin_ns"].unique().to_list() == [STEP_MS * 10**6]
    assert incident.red.filter(pl.col("requests").is_null()).height > 0


def openmetrics(series):
    lines = ["# TYPE istio_requests counter"]
    for one in series:
        labels = dict(one["labels"])
        name = labels.pop("__name__")
        inside = ",".join(
            f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in labels.items()
        )
        lines += [
            f"{name}{{{inside}}} {value:.0f} {at / 1e3:.3f}"
            for at, value in zip(one["t"], one["v"], strict=True)
        ]
    return "\n".join([*lines, "# EOF", ""])


@pytest.mark.parametrize("form", ["dump", "dump-openmetrics"])
def test_what_promtool_dumps_from_a_tsdb_is_the_series_it_came_from(tmp_path, form):
    incident = synthesize_incident(7, days=1, trigger='au}th "1" é', n_bursts=6)
    (tmp_path / "in.om").write_text(openmetrics(exposed(incident, pods=2)), encoding="utf-8")
    made = promtool(
        "tsdb", "create-blocks-from", "openmetrics", tmp_path / "in.om", tmp_path / "db"
    )
    assert made.returncode == 0, made.stderr
    (tmp_path / "db" / "wal").mkdir()
    dumped = promtool("tsdb", form, tmp_path / "db")
    assert dumped.returncode == 0, dumped.stderr
    (tmp_path / "dump.txt").write_text(dumped.stdout, encoding="utf-8")
    red = red_from_prometheus(tmp_path / "dump.txt", metrics="istio", every="30s")
    names = ["service_name", "time", "requests", "errors_5xx"]
    truth = incident.red.filter(service_name=incident.trigger).select(names)
    both = red.select(names).drop_nulls().join(truth, on=names[:2], suffix="_true")
    assert both.height >= 0.95 * truth["requests"].count()
    # The first sample of a counter, and the first after a gap, grew at an unknown time.
    assert (both["requests"] == both["requests_true"]).mean() >= 0.999
    assert (both["errors_5xx"] == both["errors_5xx_true"]).mean() >= 0.999
    found, wanted = (detect_error_bursts(table)["detected_time"] for table in (red, incident.red))
    assert found.equals(wanted)
