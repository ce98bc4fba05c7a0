"""Ids, processes and workers: who ran a span, written as SDKs write it."""

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab.synth.topology import Fleet

Ints = npt.NDArray[np.int64]

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def random_ids(rng: np.random.Generator, n: int, *, digits: int) -> pl.Series:
    """Draw `n` random hex ids of this many digits."""
    raw = np.frombuffer(rng.bytes(n * digits // 2), np.uint8)
    text = np.empty(n * digits, np.uint8)
    text[0::2], text[1::2] = _HEX[raw >> 4], _HEX[raw & 15]
    fixed: npt.NDArray[np.bytes_] = text.view(f"S{digits}")
    return pl.Series("id", fixed).cast(pl.String)


@dataclass(frozen=True, slots=True)
class Processes:
    """Process instances of a fleet.

    ``table`` holds one row per process with its resource columns; process ``first[s] + k`` is
    the k-th of service ``s``, of which there are ``many[s]``. ``skew_ns`` is how far each
    process' clock runs ahead; processes of one host share it.
    """

    table: pl.DataFrame
    first: Ints
    many: Ints
    skew_ns: Ints


def build_processes(fleet: Fleet, *, seed: int, skew_ms: float) -> Processes:
    """Draw the processes of a fleet: hosts, pids, instance ids, clocks."""
    rng = np.random.default_rng([seed, 2])
    hosts = [f"node-{number:02d}" for number in range(max(2, len(fleet.services) // 3))]
    drift = rng.normal(0.0, skew_ms * 1e6, len(hosts)).astype(np.int64)
    rows: list[dict[str, str | int | None]] = []
    skews: list[int] = []
    first: list[int] = []
    for service in fleet.services:
        first.append(len(rows))
        home = int(rng.integers(len(hosts)))
        named = bool(rng.random() < 0.8)
        for _ in range(service.instances):
            host = home if service.shared_host else int(rng.integers(len(hosts)))
            pid = int(rng.integers(100, 60_000)) if rng.random() < 0.9 else 1
            instance = rng.bytes(16).hex() if named else None
            facts: dict[str, str | int | None] = {
                "service.name": service.name,
                "service.namespace": service.namespace,
                "service.instance.id": instance,
                "host.name": hosts[host],
                "process.pid": pid,
                "telemetry.sdk.name": "opentelemetry",
                "telemetry.sdk.language": service.language,
                "telemetry.sdk.version": service.sdk_version,
            }
            known = {key: value for key, value in facts.items() if value is not None}
            rows.append(
                {
                    "service_name": service.name,
                    "service_namespace": service.namespace,
                    "service_instance_id": instance,
                    "host_name": hosts[host],
                    "process_pid": pid,
                    "sdk_language": service.language,
                    "sdk_version": service.sdk_version,
                    "resource_attributes": json.dumps(known, separators=(",", ":")),
                }
            )
            skews.append(int(drift[host]))
    return Processes(
        table=pl.DataFrame(rows, infer_schema_length=None),
        first=np.array(first, np.int64),
        many=np.array([service.instances for service in fleet.services], np.int64),
        skew_ns=np.array(skews, np.int64),
    )


def assign_slots(process: Ints, start: Ints, end: Ints) -> Ints:
    """Give each strand a worker slot of its process, free at that time.

    Slots go round in order of start; where the next one is still busy, the strand takes a
    slot of its own behind the pool.
    """
    order = np.lexsort((start, process))
    owner = process[order]
    fresh = np.r_[True, owner[1:] != owner[:-1]]
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))
    pool = 8 + _peak(owner, start[order], end[order])[owner]
    slots = rank % pool
    again = np.lexsort((rank, slots, owner))
    keys = owner[again] * (slots.max(initial=0) + 1) + slots[again]
    ends = pl.DataFrame({"k": keys, "e": end[order][again]}).select(
        pl.col("e").cum_max().shift(1).over("k").fill_null(-1)
    )["e"]
    busy = ends.to_numpy() > start[order][again]
    slots[again[busy]] = pool[again[busy]] + np.arange(int(busy.sum()))
    out = np.empty(len(order), np.int64)
    out[order] = slots
    return out


def _peak(owner: Ints, start: Ints, end: Ints) -> Ints:
    """Mean number of strands in flight per process, times three: a pool that seldom queues."""
    n = int(owner.max(initial=0)) + 1
    busy = np.bincount(owner, weights=(end - start).astype(float), minlength=n)
    low = np.full(n, np.iinfo(np.int64).max)
    high = np.zeros(n, np.int64)
    np.minimum.at(low, owner, start)
    np.maximum.at(high, owner, end)
    pool: Ints = np.ceil(3 * busy / np.maximum(high - low, 1)).astype(np.int64)
    return pool


def start_rank(process: Ints, start: Ints) -> Ints:
    """Count the strands of each process in order of start."""
    order = np.lexsort((start, process))
    owner = process[order]
    fresh = np.r_[True, owner[1:] != owner[:-1]]
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))
    out = np.empty(len(order), np.int64)
    out[order] = rank
    return out
