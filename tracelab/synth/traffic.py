"""Clean traffic of a random fleet: spans and links as real SDKs would have written them."""

import json
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.synth import identity
from tracelab.synth.clockwork import MS, Pace, Score, play
from tracelab.synth.topology import Fleet, Service, Step, build_fleet, flag_bits
from tracelab.traceset import TraceSet

Ints = npt.NDArray[np.int64]

DEFAULT_START_NS = 1_767_600_000_000_000_000  # 2026-01-05T08:00Z, a Monday


@dataclass(frozen=True, slots=True)
class Stage:
    """A fleet ready to play: its processes, its pace, and the mean time between traces."""

    fleet: Fleet
    processes: identity.Processes
    pace: Pace
    gap_ns: float
    seed: int


def build_stage(
    *,
    seed: int,
    services: int,
    concurrency: float,
    handoff_ms: float,
    queue_delay_s: float,
    skew_ms: float,
) -> Stage:
    """Draw fleet and processes; traces arrive so that `concurrency` are in flight."""
    if services < 1:
        raise ParameterError(f"services is {services}; a fleet has at least one")
    if concurrency <= 0 or handoff_ms < 0 or queue_delay_s < 0 or skew_ms < 0:
        raise ParameterError("concurrency must be above 0, times must not be below 0")
    fleet = build_fleet(seed, services)
    pace = Pace(handoff_ms, queue_delay_s)
    rng = np.random.default_rng([seed, 3])
    length = sum(
        share * float(play(entry, np.zeros(64), pace=pace, rng=rng).duration[0].mean())
        for entry, share in zip(fleet.entries, fleet.shares, strict=True)
    )
    processes = identity.build_processes(fleet, seed=seed, skew_ms=skew_ms)
    return Stage(fleet, processes, pace, length / concurrency, seed)


def play_traffic(stage: Stage, *, traces: int, chunk: int = 0, start_ns: int) -> TraceSet:
    """Play `traces` traces; chunks of one stage follow each other in time.

    The same stage, chunk number and size always give the same traces.
    """
    rng = np.random.default_rng([stage.seed, 4, chunk])
    first = start_ns + int(chunk * traces * stage.gap_ns)
    arrivals = np.sort(rng.uniform(0.0, traces * stage.gap_ns, traces))
    entry = rng.choice(len(stage.fleet.entries), size=traces, p=stage.fleet.shares)
    parts: list[pl.DataFrame] = []
    strand_base = 0
    for number, tree in enumerate(stage.fleet.entries):
        starts = arrivals[entry == number]
        period = stage.fleet.periods_s[number] * 1e9
        if period:  # jobs tick, a few milliseconds late
            begin = chunk * traces * stage.gap_ns
            first_tick = np.ceil(begin / period) * period - begin
            ticks = np.arange(first_tick, traces * stage.gap_ns, period)
            starts = ticks + rng.exponential(3 * MS, len(ticks))
        if len(starts):
            score = play(tree, starts, pace=stage.pace, rng=rng)
            parts.append(_rows(stage, score, first, strand_base, rng))
            strand_base += len(score.steps) * len(starts)
    rows = pl.concat(parts)
    return _finish(stage, rows)


def _rows(
    stage: Stage, score: Score, first: int, strand_base: int, rng: np.random.Generator
) -> pl.DataFrame:
    """One row per span of a played tree, with what differs from span to span."""
    n = score.present.shape[1]
    process = _processes(stage, score, rng)
    trace_ids: list[pl.Series] = []
    span_ids: list[pl.Series] = []
    request_ids = identity.random_ids(rng, n, digits=32)
    tables: list[pl.DataFrame] = []
    for number, step in enumerate(score.steps):
        parent = score.parents[number]
        fresh = parent < 0 or step.linked
        trace_ids.append(identity.random_ids(rng, n, digits=32) if fresh else trace_ids[parent])
        span_ids.append(identity.random_ids(rng, n, digits=16))
        skew = stage.processes.skew_ns[process[number]]
        start = first + score.start[number].astype(np.int64) + skew
        end = start + score.duration[number].astype(np.int64)
        service = stage.fleet.services[step.service]
        remote = step.handoff in ("network", "queue") and parent >= 0 and not step.linked
        columns: dict[str, object] = {
            "trace_id": trace_ids[number],
            "span_id": span_ids[number],
            "process": process[number],
            "strand": strand_base + score.strands[number] * n + np.arange(n),
            "start": start,
            "end": end,
            "request": request_ids,
        }
        if parent >= 0:
            columns["up_trace"], columns["up_span"] = trace_ids[parent], span_ids[parent]
        if "db.query.text" in step.attributes:
            columns["keys"] = _key_lists(rng, n)
        table = pl.DataFrame(columns).with_columns(
            _facts(step, service, remote=remote, linked=step.linked, root=parent < 0)
        )
        if parent < 0:
            table = table.with_columns(
                pl.lit(None, pl.String).alias("up_trace"), pl.lit(None, pl.String).alias("up_span")
            )
        table = table.drop("keys", strict=False)
        tables.append(table.select(sorted(table.columns)).filter(score.present[number]))
    return pl.concat(tables)


def _processes(stage: Stage, score: Score, rng: np.random.Generator) -> Ints:
    """Which process ran each step: a new draw at each hop, else the caller's."""
    n = score.present.shape[1]
    out = np.empty((len(score.steps), n), np.int64)
    for number, step in enumerate(score.steps):
        parent = score.parents[number]
        if parent >= 0 and step.handoff not in ("network", "queue"):
            out[number] = out[parent]
        else:
            pick = rng.integers(0, stage.processes.many[step.service], n)
            out[number] = stage.processes.first[step.service] + pick
    return out


def _facts(
    step: Step, service: Service, *, remote: bool, linked: bool, root: bool
) -> list[pl.Expr]:
    """Fill in what all spans of a step have in common."""
    local, far = flag_bits(service)
    flags = far if remote else local
    names = {
        "http_request_method": ("http.request.method", "http.method"),
        "http_route": ("http.route",),
        "rpc_system": ("rpc.system",),
        "rpc_method": ("rpc.method",),
        "messaging_system": ("messaging.system",),
        "messaging_destination": ("messaging.destination.name",),
        "server_address": ("server.address",),
    }
    facts = dict(step.attributes)
    query = facts.pop("db.query.text", None)
    status: int | None = None
    if step.protocol == "http" and step.kind in ("SERVER", "CLIENT"):
        status = 200
        facts["http.status_code" if service.old_http else "http.response.status_code"] = status
    elif step.protocol == "grpc":
        facts["rpc.grpc.status_code"] = 0
    lifted = {
        column: next((step.attributes[key] for key in keys if key in step.attributes), None)
        for column, keys in names.items()
    }
    keeps_request = service.request_ids and step.kind in ("SERVER", "CONSUMER", "CLIENT")
    scope = f"{service.language}.{step.protocol or 'app'}"
    return [
        pl.lit(step.name).alias("name"),
        pl.lit(step.kind).alias("kind"),
        pl.lit(flags, pl.UInt32).alias("flags"),
        pl.lit(None if not flags & 0x100 else remote, pl.Boolean).alias("parent_is_remote"),
        pl.lit(linked and not root).alias("linked"),
        _fact_text(facts, query),
        pl.lit(status, pl.Int64).alias("http_response_status_code"),
        *(pl.lit(value, pl.String).alias(column) for column, value in lifted.items()),
        pl.lit(service.strands).alias("strands"),
        pl.lit(step.handoff).alias("handoff"),
        pl.lit(keeps_request).alias("keeps_request"),
        pl.lit(scope).alias("scope_name"),
        pl.lit(service.sdk_version).alias("scope_version"),
    ]


def _fact_text(facts: dict[str, str | int], query: str | int | None) -> pl.Expr:
    """Attribute text without its closing brace; a query ends in keys of its own."""
    text = json.dumps(facts, separators=(",", ":"))[:-1]
    if query is None:
        return pl.lit(text).alias("facts")
    head = f'{text},"db.query.text":"{query}'
    return pl.concat_str(pl.lit(head), pl.col("keys"), pl.lit(')"')).alias("facts")


def _key_lists(rng: np.random.Generator, n: int) -> pl.Series:
    """Draw lists of keys as long as real ones: mostly a few, now and then hundreds."""
    numbers = ", ".join(str(number) for number in rng.integers(10_000, 99_999, 400))
    lengths = np.minimum(7 * np.ceil(np.exp(rng.normal(1.2, 1.1, n))).astype(np.int64) - 2, 2_700)
    whole = pl.DataFrame({"length": lengths}).select(
        pl.lit(numbers).str.slice(0, pl.col("length")).alias("keys")
    )
    return whole["keys"]


def _finish(stage: Stage, rows: pl.DataFrame) -> TraceSet:
    """Workers, attribute text, links, and the public columns."""
    rows = rows.join(_workers(rows), on="strand", how="left", maintain_order="left")
    comma = pl.when(pl.col("facts").str.len_bytes() > 1).then(pl.lit(",")).otherwise(pl.lit(""))
    asked = pl.when("keeps_request").then("request")
    more = pl.concat_str(
        pl.when("keeps_request").then(
            pl.concat_str(pl.lit('"http.request.header.x-request-id":["'), "request", pl.lit('"]'))
        ),
        pl.concat_str(pl.lit('"thread.id":'), "thread_id"),
        pl.concat_str(pl.lit('"thread.name":"'), "thread_name", pl.lit('"')),
        pl.concat_str(
            pl.when(pl.col("strands") == "tasks")
            .then(pl.lit('"asyncio.task.name":"'))
            .otherwise(pl.lit('"goroutine.id":"')),
            "task_id",
            pl.lit('"'),
        ),
        separator=",",
        ignore_nulls=True,
    )
    comma = pl.when(more.str.len_bytes() > 0).then(comma).otherwise(pl.lit(""))
    resources = stage.processes.table[rows["process"].cast(pl.UInt32)]
    orphaned = pl.col("linked") | pl.col("up_span").is_null()
    spans = pl.concat([rows, resources], how="horizontal").select(
        "trace_id",
        "span_id",
        pl.when(~orphaned).then("up_span").alias("parent_span_id"),
        pl.lit(None, pl.String).alias("trace_state"),
        "flags",
        "parent_is_remote",
        "name",
        "kind",
        pl.col("start").cast(schema.TIME).alias("start_time"),
        pl.col("end").cast(schema.TIME).alias("end_time"),
        (pl.col("end") - pl.col("start")).alias("duration_ns"),
        pl.lit("UNSET").alias("status_code"),
        pl.lit(None, pl.String).alias("status_message"),
        *resources.columns,
        "thread_id",
        "thread_name",
        "task_id",
        "scope_name",
        "scope_version",
        "http_request_method",
        "http_route",
        "http_response_status_code",
        "rpc_system",
        "rpc_method",
        "messaging_system",
        "messaging_destination",
        "server_address",
        asked.alias("request_id"),
        pl.concat_str("facts", comma, more, pl.lit("}")).alias("attributes"),
        pl.lit("{}").alias("scope_attributes"),
        *(pl.lit(0, pl.UInt32).alias(name) for name in schema.SPANS if name.startswith("dropped_")),
        pl.lit(0, pl.UInt32).alias("resource_dropped_attributes_count"),
        pl.lit(0, pl.UInt32).alias("scope_dropped_attributes_count"),
        pl.lit("synth").alias("source"),
    )
    links = rows.filter("linked").select(
        "trace_id",
        "span_id",
        pl.col("up_trace").alias("linked_trace_id"),
        pl.col("up_span").alias("linked_span_id"),
        pl.lit(None, pl.String).alias("trace_state"),
        pl.col("flags"),
        pl.when(pl.col("flags") & 0x100 > 0).then(pl.lit(value=False)).alias("linked_is_remote"),
        pl.lit("{}").alias("attributes"),
        pl.lit(0, pl.UInt32).alias("dropped_attributes_count"),
    )
    return TraceSet(
        spans=schema.conform(spans, schema.SPANS), links=schema.conform(links, schema.LINKS)
    )


def _workers(rows: pl.DataFrame) -> pl.DataFrame:
    """Thread and task of each strand, as its service tells them."""
    strands = (
        rows.group_by("strand", maintain_order=True)
        .agg(
            pl.col("process").first(),
            pl.col("strands").first(),
            pl.col("handoff").first(),
            pl.col("start").min(),
            pl.col("end").max(),
        )
        .sort("process", "start", "strand")
    )
    pooled = pl.col("handoff") == "thread"
    pools = strands["process"].to_numpy() * 2 + strands.select(pooled)["handoff"].to_numpy()
    start, end = strands["start"].to_numpy(), strands["end"].to_numpy()
    slots = identity.assign_slots(pools, start, end)
    rank = identity.start_rank(strands["process"].to_numpy(), start)
    threads = pl.col("strands") == "threads"
    tasks = pl.col("strands") == "tasks"
    base = 140_000_000 + pl.col("process") * 100_000
    return strands.select(
        "strand",
        pl.when(threads)
        .then(base + pl.Series(slots) * 8 + pooled.cast(pl.Int64) * 40_000)
        .when(tasks)
        .then(base)
        .alias("thread_id"),
        pl.when(threads & pooled)
        .then(pl.concat_str(pl.lit("pool-1-thread-"), pl.Series(slots) + 1))
        .when(threads)
        .then(pl.concat_str(pl.lit("worker-"), pl.Series(slots) + 1))
        .when(tasks)
        .then(pl.lit("MainThread"))
        .alias("thread_name"),
        pl.when(tasks)
        .then(pl.concat_str(pl.lit("Task-"), pl.Series(rank) + 1))
        .when(pl.col("strands") == "goroutines")
        .then(pl.Series(rank * 3 + 34).cast(pl.String))
        .alias("task_id"),
    )


def to_ns(start: datetime | None) -> int:
    """Start of a capture in nanoseconds; naive times are UTC."""
    if start is None:
        return DEFAULT_START_NS
    value: int = pl.Series([start]).dt.replace_time_zone("UTC").dt.timestamp("ns")[0]
    return value
