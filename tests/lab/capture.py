"""Run the programs of one run behind the Collector and leave the capture in a folder."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from tests.lab.broker import serve_broker
from tests.lab.gate import Gate
from tests.lab.runs import GO, PYTHON, SEEDS, Run
from tests.lab.toolchain import HERE, cache

GENERATION = {"catalog": "gen121", "pricing": "gen124", "vault": "newest"}
THREAD_IDS = {"shop", "stock", "pricing", "vault"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


class Lab:
    """The processes of one run, started and stopped together."""

    def __init__(self, run: Run, seed_name: str, out: Path) -> None:
        self.run, self.seed, self.out = run, SEEDS[seed_name], out
        self.facts = Path(tempfile.mkdtemp(prefix="lab-facts-"))
        self.ports = {name: _free_port() for name in (*run.services, "collector", "grpc")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.broker = serve_broker()
        self.gate = Gate(
            self.facts,
            f"127.0.0.1:{self.ports['collector']}",
            refuse=run.refuse,
            repeat=run.repeat,
            slow=run.slow,
            seed=self.seed,
        )
        self._log: IO[bytes] = (self.facts / "programs.log").open("ab")

    def _environment(self, name: str) -> dict[str, str]:
        base = f"http://127.0.0.1:{self.ports.get('proxy', 0)}"
        broker = f"http://127.0.0.1:{self.broker.server_address[1]}/mail"
        routes = {service: f"http://127.0.0.1:{port}" for service, port in self.ports.items()}
        chain = {"catalog": "pricing", "pricing": "vault"}
        following = chain.get(name)
        endpoint = f"{self.gate.address}/{name}"
        return {
            **os.environ,
            "LAB_SERVICE": name,
            "LAB_SEED": str(self.seed),
            "LAB_FACTS": str(self.facts),
            "LAB_FAULTS": json.dumps(self.run.faults.get(name, {})),
            "LAB_PORT": str(self.ports[name]),
            "LAB_HOST": "host-a",
            "LAB_THREAD_IDS": "1" if name in THREAD_IDS else "0",
            "LAB_OTLP": endpoint,
            "LAB_GRPC_PORT": str(self.ports["grpc"]),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "700",
            "PYTHONPATH": str(cache() / "python"),
            "ROUTES": json.dumps(routes),
            "CATALOG": f"{base}/{'catalog' if 'catalog' in self.ports else 'stock'}",
            "STOCK": f"{base}/stock",
            "NOTIFY": f"{base}/notify",
            "BROKER": broker,
            "OTEL_SERVICE_NAME": name,
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_METRIC_EXPORT_INTERVAL": "5000",
            "NEXT": f"{base}/{following}" if following in self.ports else "",
            **self.run.settings.get(name, {}),
        }

    def _command(self, name: str) -> list[str]:
        if name in PYTHON:
            return [
                str(cache() / "venv" / "bin" / "python"),
                str(cache() / "python" / f"{name}.py"),
            ]
        if name in GO:
            return [str(cache() / "bin" / f"lab-{GENERATION[name]}")]
        if name == "proxy":
            return [str(cache() / "bin" / "proxy")]
        if name == "orders":
            folder = cache() / "java"
            agent = next(folder.glob("opentelemetry-javaagent-*.jar"))
            jars = map(str, folder.glob("opentelemetry-[ac]*.jar"))
            classes = ":".join([str(folder / "classes"), *jars])
            # Left alone the agent names the machine that makes the capture.
            host = "-Dotel.resource.attributes=host.name=host-a"
            return ["java", "-Xmx256m", host, f"-javaagent:{agent}", "-cp", classes, "Orders"]
        return ["node", str(cache() / "node" / f"{name}.js")]

    def start_service(self, name: str) -> None:
        """Start one program and wait until it listens."""
        self.processes[name] = subprocess.Popen(
            self._command(name), env=self._environment(name), stdout=self._log, stderr=self._log
        )
        if name != "mailer":
            _wait_for(self.ports[name])

    def start_collector(self) -> None:
        """Start the Collector with the configuration of this run."""
        folder = HERE / "collector"
        configs = [f"--config={folder / part}.yaml" for part in ("base", self.run.collector)]
        environment = {
            **os.environ,
            "LAB_COLLECTOR_PORT": str(self.ports["collector"]),
            "LAB_GRPC_PORT": str(self.ports["grpc"]),
            "LAB_OUT": str(self.out),
            "LAB_MAX_BODY": str(self.run.max_body),
        }
        self.processes["collector"] = subprocess.Popen(
            [str(cache() / "collector" / "otelcol-lab"), *configs],
            env=environment,
            stdout=self._log,
            stderr=self._log,
        )
        _wait_for(self.ports["collector"])

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End one program that this run started."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def note(self, **fact: object) -> None:
        """Write a fact of the runner itself."""
        with (self.facts / "runner.jsonl").open("a") as book:
            book.write(json.dumps({**fact, "time": time.time_ns()}) + "\n")

    def load(self) -> None:
        """Send the requests of the run: chosen by seed, several at a time."""
        dice = random.Random(self.seed)
        paths, weights = zip(*self.run.load.items(), strict=True)
        plan = [
            (n, dice.choices(paths, weights)[0].format(n=n), dice.random())
            for n in range(self.run.requests)
        ]
        killer = self.run.requests // 2
        with ThreadPoolExecutor(self.run.parallel) as pool:
            for n, path, pause in plan:
                pool.submit(self._ask, n, path)
                time.sleep(pause * 0.1 / self.run.parallel * 4)
                if self.run.kill and n == killer:
                    pool.submit(self._kill_and_restart, self.run.kill)
                if self.run.flood_s and n == killer:
                    threading.Thread(target=self.flood, daemon=True).start()
                if self.run.early_stop and n == self.run.requests * 9 // 10:
                    self.note(fact="collector_stop")
                    self.stop("collector")

    def flood(self) -> None:
        """Send large bodies that are no OTLP, so that the Collector's memory runs short."""
        self.note(fact="flood_start")
        end = time.monotonic() + self.run.flood_s
        body = b"\xff" * (self.run.max_body - 1)
        url = f"http://127.0.0.1:{self.ports['collector']}/v1/traces"

        def send() -> None:
            while time.monotonic() < end:
                request = urllib.request.Request(url, data=body, method="POST")
                request.add_header("Content-Type", "application/x-protobuf")
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(request, timeout=10).read()

        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(send)
        self.note(fact="flood_stop")

    def take_profiles(self, name: str) -> None:
        """Save goroutine profiles while requests hang and others panic."""
        base = f"http://127.0.0.1:{self.ports[name]}"
        paths = [f"{name}/hang/{n}" for n in range(2)] + [f"{name}/fail/panic_through"] * 4
        with ThreadPoolExecutor(len(paths)) as pool:
            for n, path in enumerate(paths):
                pool.submit(self._ask, 9000 + n, path)
            time.sleep(0.3)
            for debug in (1, 2):
                with urllib.request.urlopen(f"{base}/debug/pprof/goroutine?debug={debug}") as got:
                    (self.out / f"goroutines-debug{debug}.txt").write_bytes(got.read())

    def _kill_and_restart(self, name: str) -> None:
        self.note(fact="killed", service_name=name, pid=self.processes[name].pid)
        self.stop(name, kill=True)
        self.start_service(name)

    def _ask(self, n: int, path: str) -> None:
        service, rest = path.split("/", 1)
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[service]}/{rest}")
        request.add_header("x-request-id", f"req-{self.seed}-{n}")
        request.add_header("x-tenant-id", f"tenant-{n % 5}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=10).read()

    def execute(self) -> Path:
        """Run from start to end and give the folder of facts."""
        try:
            if not self.run.late_start_s:
                self.start_collector()
            for name in reversed(self.run.services):
                self.start_service(name)
            if self.run.late_start_s:
                threading.Timer(self.run.late_start_s, self._start_late).start()
            self.note(fact="load_start")
            self.load()
            if self.run.profile:
                self.take_profiles(self.run.profile)
            self.note(fact="load_stop")
            time.sleep(4.0)
        finally:
            for name in [name for name in self.processes if name != "collector"]:
                self.stop(name)
            time.sleep(3.0)
            if "collector" in self.processes:
                self.stop("collector")
            self.gate.server.shutdown()
            self.broker.shutdown()
        return self.facts

    def _start_late(self) -> None:
        self.start_collector()
        self.note(fact="collector_start")


def capture(run: Run, seed_name: str, out: Path) -> Path:
    """Make one capture in an empty folder and give the folder of its facts."""
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    print(f"{run.name}/{seed_name}: running", file=sys.stderr)
    return Lab(run, seed_name, out).execute()
