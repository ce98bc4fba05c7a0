"""Requests that hang or panic in two Go services, with the goroutine profiles taken meanwhile.

``python -m tests.lab.hanging OUT [--seeds 1 2 3]`` leaves a folder per seed: ``traces.bin``
(export requests behind their lengths), ``<service>-debug1.txt`` and ``-debug2.txt``,
``<service>-panics.log``, and ``truth.json``: which goroutine worked for which span. Needs Go;
the programs are built as `tests.lab.toolchain` builds the others.
"""

import argparse
import contextlib
import gzip
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.lab.toolchain import HERE, cache

SERVICES = ("desk", "backend")
ROUTES = ("orders", "carts", "users", "reports", "payments", "search", "shipments", "relay")


def build(generation: str = "newest") -> Path:
    """Build the hanging service and give its binary."""
    folder = cache() / "stuck" / generation
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "go" / "telemetry.go", folder)
    shutil.copy(HERE / "stuck" / "main.go", folder)
    environment = {**os.environ, "GOFLAGS": "-mod=mod"}
    if not (folder / "go.mod").exists():
        shutil.copy(HERE / "go" / f"{generation}.mod", folder / "go.mod")
        subprocess.run(["go", "mod", "tidy"], cwd=folder, check=True, env=environment)
    binary = cache() / "bin" / f"stuck-{generation}"
    subprocess.run(
        ["nice", "-n", "10", "go", "build", "-trimpath", "-o", str(binary), "."],
        cwd=folder,
        check=True,
        env=environment,
    )
    return binary


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _sink(target: Path) -> ThreadingHTTPServer:
    """Serve an OTLP endpoint that writes each request behind its length."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            with lock, target.open("ab") as out:
                out.write(struct.pack(">I", len(body)) + body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _ask(port: int, path: str, method: str = "GET") -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", method=method)
    with contextlib.suppress(OSError):
        urllib.request.urlopen(request, timeout=20).read()


def _start(binary: Path, name: str, folder: Path, ports: dict[str, int], sink: int, seed: int):  # type: ignore[no-untyped-def]
    other = next(one for one in SERVICES if one != name)
    environment = {
        **os.environ,
        "LAB_SERVICE": name,
        "LAB_SEED": str(seed),
        "LAB_FACTS": str(folder),
        "LAB_PORT": str(ports[name]),
        "LAB_HOST": "host-a",
        "LAB_THREAD_IDS": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink}",
        "OTEL_BSP_SCHEDULE_DELAY": "300",
        "NEXT": f"http://127.0.0.1:{ports[other]}",
    }
    log = (folder / f"{name}-panics.log").open("wb")
    process = subprocess.Popen([str(binary)], env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", ports[name])) == 0:
                break
        time.sleep(0.02)
    return process


def capture(binary: Path, seed: int, each: int, folder: Path) -> None:
    """Let `each` requests of every route hang beside quick ones, and take the profiles."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    dice = random.Random(seed)
    sink = _sink(folder / "traces.bin")
    ports = {name: _free_port() for name in SERVICES}
    running = {
        name: _start(binary, name, folder, ports, sink.server_address[1], seed) for name in SERVICES
    }
    try:
        with ThreadPoolExecutor(16 * each + 40) as pool:
            for n in range(60):
                pool.submit(_ask, ports["desk"], f"{dice.choice(ROUTES[:-1])}/{n}?quick=1")
            plan = [route for route in ROUTES for _ in range(each)] + ["panics"] * each
            dice.shuffle(plan)
            for n, route in enumerate(plan):
                pool.submit(_ask, ports["desk"], f"{route}/{1000 + n}")
                time.sleep(dice.uniform(0.0, 0.02))
            time.sleep(1.0)
            taken = {}
            for name in SERVICES:
                for debug in (1, 2):
                    base = f"http://127.0.0.1:{ports[name]}/debug/pprof/goroutine?debug={debug}"
                    taken[f"{name}-debug{debug}.txt"] = time.time_ns()
                    with urllib.request.urlopen(base) as got:
                        (folder / f"{name}-debug{debug}.txt").write_bytes(got.read())
            for n in range(60):
                pool.submit(_ask, ports["desk"], f"{dice.choice(ROUTES[:-1])}/{n}?quick=1")
            time.sleep(0.5)
            for name in SERVICES:
                _ask(ports[name], "release", method="POST")
        time.sleep(1.0)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        sink.shutdown()
    never = [
        fact
        for path in sorted(folder.glob("*.jsonl"))
        for fact in map(json.loads, path.read_text().splitlines())
        if fact["fact"] == "hangs_for_ever"
    ]
    for path in folder.glob("*.jsonl"):
        path.unlink()
    (folder / "truth.json").write_text(json.dumps({"taken": taken, "never": never}))


def main() -> None:
    """Build and capture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--each", type=int, nargs="+", default=[1, 4, 25])
    chosen = parser.parse_args()
    binary = build()
    for seed in chosen.seeds:
        for each in chosen.each:
            capture(binary, seed, each, chosen.out / f"seed{seed}-each{each}")
            print(f"seed {seed}, {each} requests per route: done", flush=True)


if __name__ == "__main__":
    main()
