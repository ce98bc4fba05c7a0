"""Clean traffic of a random fleet: spans and links as real SDKs would have written them."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.synth import identity
from tracelab.synth.clockwork import MS, Batch, Floats, Pace, Score, gather_batches, play
from tracelab.synth.habits import add_habits
from tracelab.synth.topology import Entry, Fleet, Service, Step, build_fleet, flag_bits
from tracelab.traceset import TraceSet

Ints = npt.NDArray[np.int64]

DEFAULT_START_NS = 1_767_600_000_000_000_000  # 2026-01-05T08:00Z, a Monday


@dataclass(frozen=True, slots=True)
class Stage:
    """A fleet ready to play: its processes, its pace, and the mean time between traces.

    ``length_ns`` is how long the capture lasts, ``sampling`` the share of traces that is kept.
    """

    fleet: Fleet
    processes: identity.Processes
    pace: Pace
    gap_ns: float
    length_ns: float
    sampling: float
    seed: int


def build_stage(
    *,
    seed: int,
    services: int,
    concurrency: float,
    handoff_ms: float,
    queue_delay_s: float,
    skew_ms: float,
    habits: Collection[str] = (),
    sampling: float = 1.0,
    traces: int | None = None,
    spans: int = 1,
) -> Stage:
    """Draw fleet and processes; traces arrive so that `concurrency` are in flight.

    How long the capture will be follows from `traces`, or else from `spans`.
    """
    if services < 1:
        raise ParameterError(f"services is {services}; a fleet has at least one")
    if concurrency <= 0 or handoff_ms < 0 or queue_delay_s < 0 or skew_ms < 0:
        raise ParameterError("concurrency must be above 0, times must not be below 0")
    if not 0 < sampling <= 1:
        raise ParameterError(f"sampling is {sampling}; it is a share above 0")
    fleet = build_fleet(seed, services)
    pace = Pace(handoff_ms, queue_delay_s)
    rng = np.random.default_rng([seed, 3])
    asked = [entry for entry in fleet.entries if entry.share]
    plays = [play(entry.tree, np.zeros(64), pace=pace, rng=rng) for entry in asked]
    shares = [entry.share for entry in asked]
    length = float(np.dot(shares, [float(score.duration[0].mean()) for score in plays]))
    size = float(np.dot(shares, [score.present.sum() / 64 for score in plays]))
    gap_ns = length / concurrency
    length_ns = gap_ns * (spans / (size * sampling) if traces is None else traces)
    fleet = add_habits(fleet, habits, seed=seed, length_s=length_ns / 1e9)
    processes = identity.build_processes(fleet, seed=seed, skew_ms=skew_ms)
    return Stage(fleet, processes, pace, gap_ns, length_ns, sampling, seed)


def play_traffic(stage: Stage, *, traces: int, chunk: int = 0, start_ns: int) -> TraceSet:
    """Play `traces` traces; chunks of one stage follow each other in time.

    The same stage, chunk number and size always give the same traces.
    """
    rng = np.random.default_rng([stage.seed, 4, chunk])
    begin = chunk * traces * stage.gap_ns
    arrivals = np.sort(rng.uniform(0.0, traces * stage.gap_ns, traces))
    shares = [entry.share for entry in stage.fleet.entries]
    drawn = rng.choice(len(shares), size=traces, p=shares)
    parts: list[pl.DataFrame] = []
    gathered: list[pl.DataFrame] = []
    strand_base = 0
    for number, entry in enumerate(stage.fleet.entries):
        starts = arrivals[drawn == number]
        if entry.period_s:
            starts = _ticks(entry, begin, traces * stage.gap_ns, rng)
        if len(starts):
            score = play(entry.tree, starts, pace=stage.pace, rng=rng)
            batches = gather_batches(score)
            rows, links = _rows(stage, score, batches, begin, start_ns, strand_base, rng)
            parts.append(rows)
            gathered += links
            strand_base += len(score.steps) * len(starts)
    return _finish(stage, pl.concat(parts), gathered)


def _ticks(entry: Entry, begin: float, length: float, rng: np.random.Generator) -> Floats:
    """When something periodic strikes within a chunk: jobs a few milliseconds late."""
    period = entry.period_s * 1e9
    first = np.ceil(begin / period) * period - begin
    ticks = np.arange(first, length, period)
    if entry.punctual:
        return ticks + rng.exponential(3 * MS, len(ticks))
    return np.sort(ticks + rng.uniform(0, 0.95 * period, len(ticks)))


def _rows(
    stage: Stage,
    score: Score,
    batches: list[Batch],
    begin: float,
    start_ns: int,
    strand_base: int,
    rng: np.random.Generator,
) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """One row per span of a played tree, with what differs from span to span.

    Beside them the links of batches, apart from the one link that every linked span has.
    """
    n = score.present.shape[1]
    process = _processes(stage, score, begin, rng)
    trace_ids: list[pl.Series] = []
    span_ids: list[pl.Series] = []
    request_ids = identity.random_ids(rng, n, digits=32)
    tenants = _tenants(stage.fleet, n, rng)
    tables: list[pl.DataFrame] = []
    for number, step in enumerate(score.steps):
        parent = score.parents[number]
        fresh = parent < 0 or step.linked
        trace_ids.append(identity.random_ids(rng, n, digits=32) if fresh else trace_ids[parent])
        span_ids.append(identity.random_ids(rng, n, digits=16))
        service = stage.fleet.services[step.service]
        skew = stage.processes.skew_ns[process[number]]
        start = start_ns + int(begin) + score.start[number].astype(np.int64) + skew
        end = start + score.duration[number].astype(np.int64)
        columns: dict[str, object] = {
            "trace_id": trace_ids[number],
            "span_id": span_ids[number],
            "process": process[number],
            "strand": strand_base + score.strands[number] * n + np.arange(n),
            "start": start // service.tick_ns * service.tick_ns,
            "end": end // service.tick_ns * service.tick_ns,
            "request": request_ids,
            "tenant": tenants if service.tenants and step.kind in _ENTRY_OR_CALL else None,
            "up_trace": trace_ids[parent] if parent >= 0 else None,
            "up_span": span_ids[parent] if parent >= 0 else None,
        }
        if "db.query.text" in step.attributes:
            columns["keys"] = _key_lists(rng, n)
        if _has_digest(step, service):
            columns["digest"] = identity.random_ids(rng, n, digits=service.digest)
        remote = step.handoff in ("network", "queue") and parent >= 0 and not step.linked
        table = pl.DataFrame(columns, schema_overrides=_TEXT).with_columns(
            _facts(step, service, remote=remote, linked=step.linked, root=parent < 0)
        )
        table = table.drop("keys", "digest", strict=False)
        tables.append(table.select(sorted(table.columns)).filter(score.present[number]))
    links = [_batch_links(stage, score, batch, trace_ids, span_ids) for batch in batches]
    return pl.concat(tables), links


_ENTRY_OR_CALL: Final = ("SERVER", "CONSUMER", "CLIENT")
_TEXT: Final = {"tenant": pl.String, "up_trace": pl.String, "up_span": pl.String}


def _has_digest(step: Step, service: Service) -> bool:
    return service.digest > 0 and step.kind in ("SERVER", "CONSUMER")


def _tenants(fleet: Fleet, n: int, rng: np.random.Generator) -> pl.Series | None:
    """Draw whose request each is: a few tenants send most."""
    if not any(service.tenants for service in fleet.services):
        return None
    rank = np.minimum(rng.zipf(1.4, n), 40)
    return pl.Series([f"tenant-{number:02d}" for number in range(41)]).gather(rank)


def _batch_links(
    stage: Stage,
    score: Score,
    batch: Batch,
    trace_ids: list[pl.Series],
    span_ids: list[pl.Series],
) -> pl.DataFrame:
    """Link the span that read a batch to the producers of its other messages."""
    number, parent = batch.step, score.parents[batch.step]
    flags, _ = flag_bits(stage.fleet.services[score.steps[number].service])
    return pl.DataFrame(
        {
            "trace_id": trace_ids[number].gather(batch.reader),
            "span_id": span_ids[number].gather(batch.reader),
            "up_trace": trace_ids[parent].gather(batch.message),
            "up_span": span_ids[parent].gather(batch.message),
            "flags": pl.repeat(flags, len(batch.reader), dtype=pl.UInt32, eager=True),
        }
    )


def _processes(stage: Stage, score: Score, begin: float, rng: np.random.Generator) -> Ints:
    """Which process ran each step: a new draw at each hop, else the caller's."""
    n = score.present.shape[1]
    out = np.empty((len(score.steps), n), np.int64)
    for number, step in enumerate(score.steps):
        parent = score.parents[number]
        if parent >= 0 and step.handoff not in ("network", "queue"):
            out[number] = out[parent]
        else:
            moment = (begin + score.start[number]) / stage.length_ns
            out[number] = stage.processes.pick(step.service, moment, rng)
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
        _fact_text(facts, query, digest=_has_digest(step, service)),
        pl.lit(status, pl.Int64).alias("http_response_status_code"),
        *(pl.lit(value, pl.String).alias(column) for column, value in lifted.items()),
        pl.lit(service.strands).alias("strands"),
        pl.lit(step.handoff).alias("handoff"),
        pl.lit(keeps_request).alias("keeps_request"),
        pl.lit(scope).alias("scope_name"),
        pl.lit(service.sdk_version).alias("scope_version"),
    ]


def _fact_text(facts: dict[str, str | int], query: str | int | None, *, digest: bool) -> pl.Expr:
    """Attribute text without its closing brace; a query ends in keys of its own."""
    text = json.dumps(facts, separators=(",", ":"))[:-1]
    parts = [pl.lit(text)]
    if query is not None:
        parts += [pl.lit(f',"db.query.text":"{query}'), pl.col("keys"), pl.lit(')"')]
    if digest:
        comma = "," if facts else ""
        parts += [pl.lit(f'{comma}"app.payload.digest":"'), pl.col("digest"), pl.lit('"')]
    return pl.concat_str(parts).alias("facts")


def _key_lists(rng: np.random.Generator, n: int) -> pl.Series:
    """Draw lists of keys as long as real ones: mostly a few, now and then hundreds."""
    numbers = ", ".join(str(number) for number in rng.integers(10_000, 99_999, 400))
    lengths = np.minimum(7 * np.ceil(np.exp(rng.normal(1.2, 1.1, n))).astype(np.int64) - 2, 2_700)
    whole = pl.DataFrame({"length": lengths}).select(
        pl.lit(numbers).str.slice(0, pl.col("length")).alias("keys")
    )
    return whole["keys"]


def _finish(stage: Stage, rows: pl.DataFrame, gathered: list[pl.DataFrame]) -> TraceSet:
    """Workers, attribute text, links, and the public columns."""
    rows = sample_at_the_head(rows, stage.sampling)
    rows = rows.join(_workers(rows), on="strand", how="left", maintain_order="left")
    comma = pl.when(pl.col("facts").str.len_bytes() > 1).then(pl.lit(",")).otherwise(pl.lit(""))
    asked = pl.when("keeps_request").then("request")
    more = pl.concat_str(
        pl.when("keeps_request").then(
            pl.concat_str(pl.lit('"http.request.header.x-request-id":["'), "request", pl.lit('"]'))
        ),
        pl.concat_str(pl.lit('"http.request.header.x-tenant-id":["'), "tenant", pl.lit('"]')),
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
        "trace_state",
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
        pl.col("tenant").alias("tenant_id"),
        asked.alias("request_id"),
        pl.concat_str("facts", comma, more, pl.lit("}")).alias("attributes"),
        pl.lit("{}").alias("scope_attributes"),
        *(pl.lit(0, pl.UInt32).alias(name) for name in schema.SPANS if name.startswith("dropped_")),
        pl.lit(0, pl.UInt32).alias("resource_dropped_attributes_count"),
        pl.lit(0, pl.UInt32).alias("scope_dropped_attributes_count"),
        pl.lit("synth").alias("source"),
    )
    return TraceSet(spans=schema.conform(spans, schema.SPANS), links=_links(rows, gathered))


def _links(rows: pl.DataFrame, gathered: list[pl.DataFrame]) -> pl.DataFrame:
    """Links of linked spans; those of batches stand behind, for spans that were kept."""
    columns = ["trace_id", "span_id", "up_trace", "up_span", "flags"]
    links = rows.filter("linked").select(columns)
    if gathered:
        kept = links.select("trace_id", "span_id")
        more = pl.concat(gathered).join(kept, on=["trace_id", "span_id"], how="semi")
        links = pl.concat([links, more])
    links = links.select(
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
    return schema.conform(links, schema.LINKS)


def sample_at_the_head(rows: pl.DataFrame, share: float) -> pl.DataFrame:
    """Keep the traces that their root's sampler keeps, as OpenTelemetry's own sampler does.

    A trace is kept if its 56 random bits reach the threshold, which then travels in tracestate
    (``ot=th:...``). The bits are the last 14 digits of the trace id; SDKs that do not trust
    these draw their own and write them beside it (``rv:``): here traces whose id begins with an
    even digit.
    """
    if share == 1:
        return rows.with_columns(trace_state=pl.lit(None, pl.String))
    threshold = round((1 - share) * 2**56)
    told = f"ot=th:{threshold:014x}".rstrip("0")
    own = pl.col("trace_id").str.slice(0, 1).is_in(list("02468ace"))
    bits = (
        pl.when(own)
        .then(pl.col("trace_id").str.slice(1, 14))
        .otherwise(pl.col("trace_id").str.slice(18, 14))
    )
    written = pl.when(own).then(pl.concat_str(pl.lit(f"{told};rv:"), bits)).otherwise(pl.lit(told))
    kept = rows.filter(bits.str.to_integer(base=16, dtype=pl.UInt64) >= threshold)
    # a random trace id is told by the second bit, which only some SDKs write
    random = pl.when(~own & (pl.col("flags") & 1 > 0)).then(pl.col("flags") | 2)
    return kept.with_columns(trace_state=written, flags=random.otherwise("flags"))


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
