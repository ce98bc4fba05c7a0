"""The exported rules in a Prometheus server that scrapes an incident in quick motion."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from tracelab.rules import WarningRule, render_prometheus_rules
from tracelab.rules.alert import counters, fire_times, levels
from tracelab.rules.promql import alert_name
from tracelab.signals.grid import iterate_series
from tracelab.synth.incident import synthesize_incident

pytestmark = [pytest.mark.promtool, pytest.mark.slow]

BIN_S = 30.0
SPEED = 30.0  # a scrape a second stands for one of 30 s
HOURS = 2.0
SERVICES = 12


def binary() -> Path:
    if not os.environ.get("TRACELAB_NO_SKIP"):
        pytest.skip("watches a server for four minutes; set TRACELAB_NO_SKIP=1 to run it")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = cache / "tracelab" / "bin" / "prometheus"
    if not path.exists():
        pytest.skip(f"{path} is not built; run tests/prometheus/build.sh")
    return path


def the_rule(service: str) -> WarningRule:
    """Return a rule in the incident's own time, short enough to be watched whole."""
    return WarningRule(
        trigger_kind="5xx",
        trigger_service=service,
        trigger_operation=None,
        target_service="payment",
        target_operation=None,
        lag_s=1020.0,
        lag_low_s=960.0,
        lag_high_s=1080.0,
        lag_sigma_s=180.0,
        ratio=0.02,
        min_errors=3.0,
        for_s=60.0,
        horizon_s=1620.0,
        slow_edge_ns=80_000_000,
        slow_ratio=0.09,
        keep_firing_s=300.0,
        baseline_s=3600.0,
        baseline_offset_s=600.0,
    )


def in_quick_motion(rule: WarningRule) -> WarningRule:
    names = ("for_s", "interval_s", "window_s", "keep_firing_s", "baseline_s", "baseline_offset_s")
    times = {name: getattr(rule, name) / SPEED for name in names}
    return replace(rule, horizon_s=rule.horizon_s / SPEED, **times)


def planted():
    """Return the trigger series of several incidents, and when their alerts should fire."""
    out = {}
    for number in range(SERVICES):
        name = f"auth{number}"
        one = synthesize_incident(
            300 + number,
            days=HOURS / 24,
            n_bursts=5,
            n_own_rises=0,
            burst_minutes=(4.0, 6.0),
            gap_ratio=0.04,
            trigger=name,
        )
        series = next(s for s in iterate_series(one.red.filter(service_name=name)))
        rule = the_rule(name)
        requests, failures = counters(series, "errors_5xx")
        at = (np.arange(series.n_bins) + 1.0) * BIN_S
        read = levels(
            requests,
            failures,
            at,
            window_s=rule.window_s,
            baseline_s=rule.baseline_s,
            baseline_offset_s=rule.baseline_offset_s,
        )
        holds = read.above(rule.ratio, rule.min_errors, rule.baseline_factor)
        fires = fire_times(
            holds, pending=int(rule.for_s / BIN_S), keep=int(rule.keep_firing_s / BIN_S)
        )
        out[name] = (rule, series, at[fires])
    return out


class Exporter(BaseHTTPRequestHandler):
    """Shows the counters of one service as they stood at the replayed moment."""

    plan: ClassVar[dict] = {}
    began: ClassVar[float] = 0.0

    def do_GET(self):
        name = self.path.strip("/")
        total, failed, spoke = self.plan[name]
        row = int((time.time() - self.began) * SPEED // BIN_S) - 1
        # A silent feed is a failed scrape, after which the server marks its series stale.
        if row < 0 or row >= len(total) or not spoke[row]:
            self.send_error(503)
            return
        stem = f'istio_requests_total{{reporter="destination",destination_service_name="{name}"'
        lines = [f'{stem},response_code="200"}} {total[row] - failed[row]:.0f}']
        if failed[row] > 0:
            lines.append(f'{stem},response_code="503"}} {failed[row]:.0f}')
        body = ("# TYPE istio_requests_total counter\n" + "\n".join(lines) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def served(plan):
    Exporter.plan = {
        name: (
            np.cumsum(np.nan_to_num(series.column("requests"))),
            np.cumsum(np.nan_to_num(series.column("errors_5xx"))),
            ~np.isnan(series.column("requests")),
        )
        for name, (_, series, _) in plan.items()
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), Exporter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def prometheus(folder: Path, exporter: int, names):
    jobs = [
        {
            "job_name": name,
            "metrics_path": f"/{name}",
            "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}],
        }
        for name in names
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "900ms", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": jobs,
    }
    # JSON is YAML, too.
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    port = free_port()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [
                binary(),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    if urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2):
                        break
                assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def rising_edges(base: str, minutes: int) -> dict[str, list[float]]:
    """Return when each alert began to fire, in the server's own time."""
    query = urllib.parse.urlencode({"query": f'ALERTS{{alertstate="firing"}}[{minutes}m]'})
    with urllib.request.urlopen(f"{base}/api/v1/query?{query}", timeout=30) as reply:
        body = json.load(reply)
    edges: dict[str, list[float]] = {}
    for one in body["data"]["result"]:
        times = [float(t) for t, _ in one["values"]]
        # A firing alert is written at every evaluation; one that ceased is marked stale.
        fresh = [t for t, before in zip(times, [0.0, *times], strict=False) if t - before > 2.5]
        edges.setdefault(one["metric"]["alertname"], []).extend(fresh)
    return edges


def test_a_live_server_fires_when_the_backtest_does(tmp_path):
    binary()
    plan = planted()
    rules = [in_quick_motion(rule) for rule, _, _ in plan.values()]
    text = render_prometheus_rules(rules, metrics="istio")
    (tmp_path / "rules.yml").write_text(text, encoding="utf-8")
    Exporter.began = time.time() + 1e9  # silent until the server is ready
    with served(plan) as exporter, prometheus(tmp_path, exporter, plan) as base:
        Exporter.began = time.time()
        time.sleep(HOURS * 3600 / SPEED + 3)
        found = rising_edges(base, int(HOURS * 60 / SPEED) + 2)
    gaps, wanted = [], 0
    for rule, _, ours in plan.values():
        live = found.get(alert_name(rule), [])
        theirs = [(t - Exporter.began) * SPEED for t in live]
        wanted += len(ours)
        gaps += [min((t - o for t in theirs), key=abs, default=np.inf) for o in ours]
        gaps += [min((t - o for o in ours), key=abs, default=np.inf) for t in theirs]
    # One interval for the evaluation, one for the phase of the scrape.
    near = np.array([-1.0 <= gap <= 2 * BIN_S for gap in gaps])
    delays = pl.Series(gaps).sort()
    print(f"{wanted} fires expected, {len(gaps) - wanted} seen, delays {delays.to_list()}")
    assert wanted >= 20
    assert near.mean() >= 0.95, delays.to_list()
