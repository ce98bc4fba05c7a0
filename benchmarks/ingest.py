"""Ingest against what one would otherwise write, in one run: spans per second, ratios, memory.

Every leg runs in a process of its own, the legs of one round one after the other, and the
best of the rounds counts, so that a noisy machine hurts all alike. Time on the clock begins
when a leg's libraries are imported, for all legs; what worker processes import counts. CPU time
is that of the leg and its workers together.

    python benchmarks/ingest.py [--spans 500000] [--rounds 3] [--folder DIR]
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LEGS = {
    "loop over opentelemetry-proto, to Parquet": ("proto", "loop_over_proto"),
    "tracelab proto, decode only, one core": ("proto", "tracelab_decode"),
    "tracelab proto, read_traces": ("proto", "tracelab_read"),
    "tracelab proto, file to store, one process": ("proto", "tracelab_store_alone"),
    "tracelab proto, file to store": ("proto", "tracelab_store"),
    "orjson loop, to Parquet": ("json", "loop_over_json"),
    "orjson, parse only": ("json", "parse_json_by_orjson"),
    "pyarrow.json, parse only": ("json", "parse_json_by_pyarrow"),
    "DuckDB read_json": ("json", "query_json_by_duckdb"),
    "tracelab JSON, decode only, one core": ("json", "tracelab_decode"),
    "tracelab JSON, read_traces": ("json", "tracelab_read"),
    "tracelab JSON, file to store, one process": ("json", "tracelab_store_alone"),
    "tracelab JSON, file to store": ("json", "tracelab_store"),
}
RATIOS = [
    ("tracelab proto, file to store", "loop over opentelemetry-proto, to Parquet", 5.0),
    (
        "tracelab proto, file to store, one process",
        "loop over opentelemetry-proto, to Parquet",
        None,
    ),
    ("tracelab proto, decode only, one core", "loop over opentelemetry-proto, to Parquet", None),
    ("tracelab JSON, file to store", "pyarrow.json, parse only", 0.5),
    ("tracelab JSON, file to store", "orjson loop, to Parquet", None),
    ("tracelab JSON, file to store", "DuckDB read_json", None),
]


def write_spans(folder: Path, n_spans: int) -> None:
    """Write realistic spans (some 370 bytes of protobuf, 8 attributes, some events)."""
    from opentelemetry.proto.trace.v1 import trace_pb2

    rng = random.Random(7)
    path = folder / "spans.pb"
    with path.open("wb") as file:
        for first in range(0, n_spans, 512):
            message = _request(trace_pb2, rng, min(512, n_spans - first)).SerializeToString()
            file.write(len(message).to_bytes(4, "big") + message)
    from tracelab.io import read_traces
    from tracelab.io.write_otlp import write_otlp

    write_otlp(read_traces(path), folder / "spans.jsonl")


def _request(trace_pb2, rng: random.Random, n_spans: int):
    request = trace_pb2.TracesData()
    owner = request.resource_spans.add()
    service = rng.choice(["checkout", "cart", "payment", "frontend", "shipping"])
    for key, value in (
        ("service.name", service),
        ("service.namespace", "shop"),
        ("service.instance.id", f"{service}-{rng.randrange(4)}"),
        ("host.name", f"node-{rng.randrange(8)}"),
        ("telemetry.sdk.language", "go"),
        ("telemetry.sdk.version", "1.38.0"),
    ):
        owner.resource.attributes.add(key=key).value.string_value = value
    owner.resource.attributes.add(key="process.pid").value.int_value = rng.randrange(1, 30000)
    arguments = owner.resource.attributes.add(key="process.command_args").value.array_value
    for argument in ("/app/server", "--port=8080"):
        arguments.values.add(string_value=argument)
    group = owner.scope_spans.add()
    group.scope.name = "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
    group.scope.version = "0.63.0"
    for _ in range(n_spans):
        _add_span(group.spans, rng)
    return request


def _add_span(spans, rng: random.Random) -> None:
    start = 1_760_000_000_000_000_000 + rng.randrange(10**12)
    route = f"/api/v1/items/{rng.randrange(40)}"
    failed = rng.random() < 0.05
    span = spans.add(
        trace_id=rng.randbytes(16),
        span_id=rng.randbytes(8),
        parent_span_id=rng.randbytes(8) if rng.random() < 0.9 else b"",
        flags=257,
        name=f"GET {route}",
        kind=rng.choice((1, 2, 3)),
        start_time_unix_nano=start,
        end_time_unix_nano=start + rng.randrange(10**9),
    )
    for key, value in (
        ("http.request.method", "GET"),
        ("http.route", route),
        ("url.path", f"{route}/{rng.randrange(10**6)}"),
        ("server.address", "shop.example.com"),
        ("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64)"),
        ("network.protocol.version", "1.1"),
    ):
        span.attributes.add(key=key).value.string_value = value
    span.attributes.add(key="http.response.status_code").value.int_value = 500 if failed else 200
    span.attributes.add(key="server.port").value.int_value = 8080
    if failed:
        span.status.code, span.status.message = 2, "backend said no"
        event = span.events.add(time_unix_nano=start + 5, name="exception")
        for key, value in (
            ("exception.type", "*errors.errorString"),
            ("exception.message", f"item {rng.randrange(1000)} is gone"),
            (
                "exception.stacktrace",
                "goroutine 7 [running]:\nmain.handle(...)\n\t/app/main.go:42\n",
            ),
        ):
            event.attributes.add(key=key).value.string_value = value
    elif rng.random() < 0.2:
        span.events.add(time_unix_nano=start + 3, name="cache.miss")


def tracelab_decode(path: Path, _folder: Path) -> int:
    """Decode all blocks of a file into tables, in this process alone."""
    from tracelab.io.source import SourceReader

    return sum(chunk.spans.height for chunk in SourceReader(path).chunks())


def tracelab_read(path: Path, _folder: Path) -> int:
    """Read a file into one capture."""
    from tracelab.io import read_traces

    return read_traces(path).spans.height


def tracelab_store(path: Path, folder: Path) -> int:
    """Ingest a file into a new store."""
    from tracelab.store import ingest

    account = ingest(path, store=folder / "store")
    return int(account["spans_kept"].sum())


def tracelab_store_alone(path: Path, folder: Path) -> int:
    """Ingest a file into a new store without worker processes."""
    from tracelab.store import ingest

    account = ingest(path, store=folder / "store", workers=1)
    return int(account["spans_kept"].sum())


def cpu_seconds() -> float:
    """CPU time of this process and of its children that ended."""
    own, ended = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def run_leg(name: str, folder: Path) -> None:
    """Run one leg here and print what it took."""
    import baselines

    import tracelab.store  # noqa: F401 - not to be timed, as the imports of the baselines are not

    encoding, function = LEGS[name]
    work = globals().get(function) or getattr(baselines, function)
    path = folder / ("spans.pb" if encoding == "proto" else "spans.jsonl")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        start, cpu = time.perf_counter(), cpu_seconds()
        spans = work(path, Path(out))
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    told = {"spans": spans, "seconds": seconds, "cpu": cpu, "own_kb": own, "children_kb": children}
    print(json.dumps(told))


def measured(name: str, folder: Path) -> dict:
    command = [sys.executable, __file__, "--leg", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spans", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--leg", choices=LEGS, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_spans(arguments.folder, arguments.spans)
        return
    if arguments.leg:
        run_leg(arguments.leg, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        # In a process of its own: a child's peak memory begins with its parent's.
        subprocess.run(
            [
                sys.executable,
                __file__,
                "--write",
                "--spans",
                str(arguments.spans),
                "--folder",
                name,
            ],
            check=True,
        )
        sizes = {path.suffix: path.stat().st_size / arguments.spans for path in folder.iterdir()}
        print(f"{arguments.spans:,} spans; bytes each: {sizes}")
        best: dict[str, dict] = {}
        for _ in range(arguments.rounds):
            for leg in LEGS:
                found = measured(leg, folder)
                if found["spans"] != arguments.spans:
                    sys.exit(f"{leg} saw {found['spans']} spans")
                best.setdefault(leg, dict(found))
                for figure in ("seconds", "cpu"):
                    best[leg][figure] = min(best[leg][figure], found[figure])
    print_figures(best)


def print_figures(best: dict[str, dict]) -> None:
    print(f"{'leg':46}{'spans/s':>10}{'us CPU':>9}{'peak MB':>10}{'child MB':>10}")
    for leg, found in best.items():
        rate, cpu = found["spans"] / found["seconds"], 1e6 * found["cpu"] / found["spans"]
        own, children = found["own_kb"] / 1024, found["children_kb"] / 1024
        print(f"{leg:46}{rate:>10,.0f}{cpu:>9.2f}{own:>10,.0f}{children:>10,.0f}")
    for leg, baseline, least in RATIOS:
        ratio = best[baseline]["seconds"] / best[leg]["seconds"]
        cpu = best[baseline]["cpu"] / best[leg]["cpu"]
        goal = "" if least is None else f"  (to reach: {least:g})"
        print(f"{leg} : {baseline} = {ratio:.2f}{goal}; in CPU time {cpu:.2f}")


if __name__ == "__main__":
    main()
