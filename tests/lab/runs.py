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
    slow: dict[str, float] = field(default_factory=dict)
    kill: str | None = None
    late_start_s: float = 0.0
    early_stop: bool = False
    parallel: int = 4
    max_body: int = 20_000_000
    profile: str | None = None
    flood_s: float = 0.0


PYTHON: Final = ("shop", "stock", "mailer")
GO: Final = ("catalog", "pricing", "vault")

JVM_NODE: Final = ("orders", "notify")

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
JAVA_MODES: Final = (
    *("kept", "cause", "completion", "suppressed", "flattened", "replaced", "swallowed"),
    *("retried", "event_without_status", "status_without_event"),
)
NODE_MODES: Final = (
    *("kept", "cause", "flattened", "json", "json_empty", "replaced", "aggregate", "swallowed"),
    *("retried", "event_without_status"),
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
        refuse={"pricing": 0.12, "vault": 0.2},
        repeat={"shop": 0.15},
        slow={"catalog": 0.6, "mailer": 1.5},
        max_body=300_000,
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
            "pricing": {"OTEL_BSP_SCHEDULE_DELAY": "250"},
            "vault": {"OTEL_BSP_SCHEDULE_DELAY": "250"},
            "stock": {"LAB_SLOW": "0.2", "LAB_HUGE_ATTRIBUTE": "0.12"},
        },
    ),
    Run(
        "refusal",
        "A Collector short of memory that refuses batches while others flood it (SDKs send again "
        "or give up), and a gRPC receiver that refuses messages above its size.",
        "refusing",
        (*PYTHON, *GO, "proxy"),
        SHOP_LOAD,
        requests=300,
        parallel=8,
        flood_s=4.0,
        settings={
            "stock": {"LAB_GRPC": "1", "LAB_HUGE_ATTRIBUTE": "0.02", "LAB_HUGE_BYTES": "1200000"},
            "shop": {"OTEL_EXPORTER_OTLP_TIMEOUT": "2"},
            "mailer": {"OTEL_EXPORTER_OTLP_TIMEOUT": "2"},
        },
    ),
    Run(
        "sampling",
        "A service whose ratio sampler asks no parent, and a Collector that samples by tail while "
        "late spans still come.",
        "proto_rotated",
        (*PYTHON, *GO, "proxy"),
        SHOP_LOAD,
        requests=420,
        faults={"mailer": {"smtp_error": 0.3}},
        settings={
            "catalog": {"LAB_RATIO": "0.5"},
            "pricing": {"LAB_RATIO": "0.8"},
            "stock": {"LAB_RATIO": "0.6", "LAB_SLOW": "0.15"},
            "shop": {"LAB_LATE_MAIL": "0.35"},
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
        "jvm-node",
        "Java under the agent and Node: a queue of the program's own that loses or mixes up the "
        "context, spans never ended, causes, suppressed and aggregate errors.",
        "json_zstd",
        (*JVM_NODE, "proxy"),
        {
            "orders/orders/{n}": 10,
            "orders/orders/none-{n}": 0.6,
            **{f"orders/fail/{mode}": 0.4 for mode in JAVA_MODES},
            **{f"notify/fail/{mode}": 0.4 for mode in NODE_MODES},
        },
        requests=400,
        faults={
            "orders": {
                "queue_without_context": 0.06,
                "worker_keeps_context": 0.08,
                "never_ended": 0.06,
            },
            "notify": {"callback_queue": 0.25, "never_ended": 0.06},
            "proxy": {"strip_traceparent": 0.05},
        },
        parallel=8,
    ),
    Run(
        "clean-jvm-node",
        "No fault: Java under the agent calls Node, with all look-alikes.",
        "proto_zstd",
        (*JVM_NODE, "proxy"),
        {"orders/orders/{n}": 10, "orders/orders/none-{n}": 1, "notify/messages/none-{n}": 1},
        requests=180,
        parallel=8,
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
        "No switch is thrown: a new Python SDK calls an old Go SDK, which refuses the new flag bit "
        "in traceparent and starts a trace of its own. The Collector keeps half of the traces.",
        "head_sampled",
        ("shop", "stock", "mailer", *GO, "proxy"),
        SHOP_LOAD,
        requests=120,
        settings={"shop": {"LAB_RANDOM_FLAG": "1"}},
        profile="catalog",
    ),
)
BY_NAME: Final = {run.name: run for run in RUNS}
SEEDS: Final = {"dev": 20261, "held": 77013}
