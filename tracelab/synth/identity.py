"""Ids, processes and workers: who ran a span, written as SDKs write it."""

import json
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab.synth.topology import Fleet, Service

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

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
    process' clock runs ahead; processes of one host share it. ``weight`` is how much of its
    service's work each takes, from ``born`` to ``gone`` (shares of the capture's length).
    """

    table: pl.DataFrame
    first: Ints
    many: Ints
    skew_ns: Ints
    weight: Floats
    born: Floats
    gone: Floats

    def pick(self, service: int, moment: Floats, rng: np.random.Generator) -> Ints:
        """Draw a process of a service for each moment, among those that take work then."""
        first, many = int(self.first[service]), int(self.many[service])
        mine = slice(first, first + many)
        even = self.weight[mine].min() == self.weight[mine].max()
        if even and not self.born[mine].any() and np.isinf(self.gone[mine]).all():
            return first + rng.integers(0, many, len(moment))
        alive = (self.born[mine, None] <= moment) & (moment < self.gone[mine, None])
        reach = np.cumsum(np.where(alive, self.weight[mine, None], 0.0), axis=0)
        drawn = rng.random(len(moment)) * reach[-1]
        picked: Ints = first + (reach <= drawn).sum(axis=0).astype(np.int64)
        return picked


@dataclass(frozen=True, slots=True)
class _Shift:
    """One process of a service: its part of the work, and from when to when it takes any."""

    weight: float
    born: float = 0.0
    gone: float = np.inf
    version: str | None = None


def _shifts(service: Service) -> list[_Shift]:
    """List the processes of a service; those of a new version replace the old ones in turn."""
    weights = service.weights or (1.0,) * service.instances
    shifts = [_Shift(weight, version=service.version) for weight in weights]
    if service.deployed_at is not None:
        moments = [service.deployed_at + 0.02 * number for number in range(len(shifts))]
        shifts = [
            *(replace(old, gone=at) for old, at in zip(shifts, moments, strict=True)),
            *(
                replace(old, born=at, version=f"2.0.{number}")
                for number, (old, at) in enumerate(zip(shifts, moments, strict=True))
            ),
        ]
    if service.scaled is not None:
        born, gone = service.scaled
        shifts.append(_Shift(1.0 / service.instances, born, gone, service.version))
    return shifts


def build_processes(fleet: Fleet, *, seed: int, skew_ms: float) -> Processes:
    """Draw the processes of a fleet: hosts, pids, instance ids, clocks."""
    rng = np.random.default_rng([seed, 2])
    hosts = [f"node-{number:02d}" for number in range(max(2, len(fleet.services) // 3))]
    drift = rng.normal(0.0, skew_ms * 1e6, len(hosts)).astype(np.int64)
    rows: list[dict[str, str | int | None]] = []
    skews: list[int] = []
    first: list[int] = []
    every: list[_Shift] = []
    for service in fleet.services:
        first.append(len(rows))
        home = int(rng.integers(len(hosts)))
        named = bool(rng.random() < 0.8)
        later = np.random.default_rng([seed, 6, len(first)])
        shifts = _shifts(service)
        every += shifts
        for number, shift in enumerate(shifts):
            dice = rng if number < service.instances else later
            host = home if service.shared_host else int(dice.integers(len(hosts)))
            pid = int(dice.integers(100, 60_000)) if dice.random() < 0.9 else 1
            instance = dice.bytes(16).hex() if named else None
            rows.append(_resource(service, hosts[host], pid, instance, shift.version))
            skews.append(int(drift[host]))
    starts = np.array([*first, len(rows)], np.int64)
    return Processes(
        table=pl.DataFrame(rows, infer_schema_length=None),
        first=starts[:-1],
        many=starts[1:] - starts[:-1],
        skew_ns=np.array(skews, np.int64),
        weight=np.array([shift.weight for shift in every]),
        born=np.array([shift.born for shift in every]),
        gone=np.array([shift.gone for shift in every]),
    )


def _resource(
    service: Service, host: str, pid: int, instance: str | None, version: str | None
) -> dict[str, str | int | None]:
    """Columns and resource text of one process."""
    told = not service.anonymous
    facts: dict[str, str | int | None] = {
        "service.name": service.name,
        "service.namespace": service.namespace,
        "service.instance.id": instance if told else None,
        "service.version": version,
        "host.name": host if told else None,
        "process.pid": pid if told else None,
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.language": service.language,
        "telemetry.sdk.version": service.sdk_version,
    }
    known = {key: value for key, value in facts.items() if value is not None}
    return {
        "service_name": service.name,
        "service_namespace": service.namespace,
        "service_instance_id": facts["service.instance.id"],
        "host_name": facts["host.name"],
        "process_pid": facts["process.pid"],
        "sdk_language": service.language,
        "sdk_version": service.sdk_version,
        "resource_attributes": json.dumps(known, separators=(",", ":")),
    }


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
