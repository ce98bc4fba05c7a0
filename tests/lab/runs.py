"""The runs of the lab: which services, which faults, which form of export."""

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Run:
    """One run. `faults` maps a service to its switches, `settings` to its environment."""

    name: str
    about: str
    collector: str
    services: tuple[str, ...]
    load: dict[str, float]
    requests: int = 160
    faults: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    refuse: dict[str, float] = field(default_factory=dict)
    repeat: dict[str, float] = field(default_factory=dict)
    kill: str | None = None
    late_start_s: float = 0.0
    early_stop: bool = False
    parallel: int = 4
    max_body: int = 20_000_000
    generations: tuple[tuple[str, str], ...] = ()


PYTHON: Final = ("shop", "stock", "mailer")
GO: Final = ("catalog", "pricing", "vault")

SHOP_LOAD: Final = {"shop/checkout/{n}": 7, "shop/browse/{n}": 2, "shop/browse/none-{n}": 0.5}
PYTHON_MODES: Final = (
    *("kept", "cause", "context", "flattened", "json", "replaced", "swallowed", "retried"),
    *("group", "event_without_status", "status_without_event", "no_stack", "reraised_text"),
)
GO_MODES: Final = (
    *("wrap_w", "wrap_v", "json", "json_empty", "join", "kept", "kept_with_stack", "replaced"),
    *("swallowed", "retried", "event_without_status", "status_without_event"),
    *("panic_recovered", "panic_through"),
)
ERROR_LOAD: Final = {
    **{f"shop/fail/{mode}": 0.25 for mode in PYTHON_MODES},
    **{f"{service}/fail/{mode}": 0.1 for mode in GO_MODES for service in GO},
}

RUNS: Final = (
    Run(
        "mixed",
        "Contexts lost in tasks, threads, processes, queues and at a proxy, spans never ended, "
        "a leaking worker, errors on their way up; three Go generations and Python.",
        "json",
        (*PYTHON, *GO, "proxy"),
        {**SHOP_LOAD, **ERROR_LOAD, "catalog/items/forbidden": 0.3},
        requests=320,
        faults={
            "shop": {
                "fresh_contextvars": 0.06,
                "executor_without_context": 0.06,
                "queue_without_context": 0.06,
            },
            "stock": {
                "worker_keeps_context": 0.12,
                "thread_without_context": 0.05,
                "middle_never_ended": 0.0,
                "never_ended_on_error": 0.05,
                "server_error": 0.05,
            },
            "mailer": {"multiprocessing_without_context": 0.08},
            "catalog": {"goroutine_background": 0.03, "worker_keeps_context": 0.06},
            "pricing": {"middle_never_ended": 1.0, "goroutine_background": 0.02},
            "vault": {"never_ended_on_error": 0.06, "server_error": 0.05},
            "proxy": {
                "strip_traceparent": 0.04,
                "rewrite_traceparent": 0.03,
                "strip_error_context": 0.1,
            },
        },
    ),
    Run(
        "loss",
        "Span queues that overflow (Go drops the newest, Python the oldest), batches refused, "
        "requests too large, batches delivered twice, a service killed and started again.",
        "proto_zstd",
        (*PYTHON, *GO, "proxy"),
        SHOP_LOAD,
        requests=260,
        parallel=12,
        refuse={"vault": 0.2},
        repeat={"shop": 0.3},
        kill="stock",
        settings={
            "catalog": {
                "OTEL_BSP_MAX_QUEUE_SIZE": "64",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
                "OTEL_BSP_SCHEDULE_DELAY": "1500",
            },
            "mailer": {
                "OTEL_BSP_MAX_QUEUE_SIZE": "32",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32",
                "OTEL_BSP_SCHEDULE_DELAY": "3000",
            },
            "stock": {"LAB_SLOW": "0.2"},
        },
    ),
    Run(
        "sampling",
        "A service whose ratio sampler asks no parent, and a Collector that samples by tail while "
        "late spans still come.",
        "proto_rotated",
        (*PYTHON, *GO, "proxy"),
        SHOP_LOAD,
        requests=300,
        settings={
            "catalog": {"LAB_RATIO": "0.5"},
            "stock": {"LAB_RATIO": "0.6", "LAB_SLOW": "0.05"},
        },
    ),
    Run(
        "edges",
        "A capture that starts late and stops early, one host's clock ahead by 250 ms, "
        "attribute values cut at a length.",
        "grouped",
        (*PYTHON, *GO, "proxy"),
        SHOP_LOAD,
        requests=180,
        late_start_s=2.5,
        early_stop=True,
        settings={
            "stock": {
                "LAB_CLOCK_SKEW_MS": "250",
                "LAB_HOST": "host-b",
                "LAB_LONG_ATTRIBUTES": "1",
                "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "128",
                "LAB_SLOW": "0.1",
            }
        },
    ),
    Run(
        "clean-python",
        "No fault: Python, with all look-alikes.",
        "json_zstd",
        (*PYTHON, "proxy"),
        SHOP_LOAD,
        requests=150,
        parallel=8,
    ),
    Run(
        "clean-go",
        "No fault: three generations of Go, with all look-alikes.",
        "json",
        (*GO, "proxy"),
        {"catalog/items/{n}": 9, "catalog/items/forbidden": 1},
        requests=200,
        parallel=8,
        faults={"vault": {"server_error": 0.06}},
    ),
    Run(
        "generations",
        "No switch is thrown: a new Go SDK calls an old one, which refuses the new flag bit in "
        "traceparent and starts a trace of its own.",
        "head_sampled",
        (*GO, "proxy"),
        {"catalog/items/{n}": 1},
        requests=120,
        generations=(("catalog", "newest"), ("vault", "gen121")),
    ),
)
BY_NAME: Final = {run.name: run for run in RUNS}
SEEDS: Final = {"dev": 20261, "held": 77013}
