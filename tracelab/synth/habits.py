"""Legal habits of real fleets that a detector could take for a break.

Each function of `_WAYS` changes a fleet that has none of them. They draw from numbers of their
own, so that a fleet without habits is the same fleet, and each can be measured alone.
"""

from collections.abc import Callable, Collection, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Final

import numpy as np

from tracelab.exceptions import ParameterError
from tracelab.synth.topology import Entry, Fleet, Grower, Step


class _Scene:
    """A fleet while habits are added to it.

    ``length_s`` is how long the capture will be: what takes minutes in a long capture is
    shorter in one that lasts seconds, and so that it comes up at all.
    """

    def __init__(self, fleet: Fleet, rng: np.random.Generator, length_s: float) -> None:
        self.rng = rng
        self.length_s = length_s
        self.services = list(fleet.services)
        self.entries = list(fleet.entries)
        self.grower = Grower(rng, fleet.services)

    def steps(self) -> Iterator[tuple[Step, Step | None]]:
        """Give all steps with the one above each."""
        waiting: list[tuple[Step, Step | None]] = [(entry.tree, None) for entry in self.entries]
        while waiting:
            step, above = waiting.pop()
            yield step, above
            waiting += [(child, step) for child in step.children]

    def some(self, steps: list[Step], share: float, *, least: int = 1) -> list[Step]:
        """Draw a share of steps."""
        many = min(len(steps), max(least, round(share * len(steps))))
        picked = np.sort(self.rng.permutation(len(steps))[:many]).tolist()
        return [steps[number] for number in picked]

    def workers(self) -> list[Step]:
        """Give steps that do work of their own and may call others."""
        kinds = ("SERVER", "CONSUMER", "INTERNAL")
        return [step for step, _ in self.steps() if step.kind in kinds and step.children]

    def calls(self) -> list[tuple[Step, Step]]:
        """Give calls that a server of the fleet answers, each with its caller."""
        return [
            (step, above)
            for step, above in self.steps()
            if above is not None
            and step.kind == "CLIENT"
            and step.children
            and step.children[0].kind == "SERVER"
        ]

    def mark(self, share: float, **change: object) -> None:
        """Give a share of the services, at least one, other traits."""
        for number in self.rng.permutation(len(self.services))[
            : max(1, round(share * len(self.services)))
        ]:
            traits = {key: value() if callable(value) else value for key, value in change.items()}
            self.services[number] = replace(self.services[number], **traits)


def _inner(service: int, name: str, median_ms: float, **more: object) -> Step:
    return Step(service, name, "INTERNAL", median_ms=median_ms, **more)  # type: ignore[arg-type]


def _check_health(scene: _Scene) -> None:
    """Probes ask each service every few seconds; they are traced, their caller is not."""
    for number in range(len(scene.services)):
        route = str(scene.rng.choice(["/healthz", "/ready", "/metrics"]))
        step = Step(number, f"GET {route}", "SERVER", protocol="http", median_ms=0.2)
        step.attributes = {"http.request.method": "GET", "http.route": route}
        scene.entries.append(Entry(step, period_s=float(scene.rng.choice([2.0, 5.0, 10.0]))))


def _call_directly(scene: _Scene) -> None:
    """Partners without tracing call operations that traced services call, too."""
    servers = [call.children[0] for call, _ in scene.calls()]
    for step in scene.some(servers, 0.25, least=2):
        tree = deepcopy(step)
        tree.handoff, tree.mode, tree.probability = "same", "sequential", 1.0
        scene.entries.append(Entry(tree, float(scene.rng.uniform(0.002, 0.03))))


def _poll(scene: _Scene) -> None:
    """Workers wait for messages in calls that belong to no request, most of them in vain."""
    for number in scene.rng.permutation(len(scene.services))[: 1 + len(scene.services) // 5]:
        queue = f"{scene.grower.noun()}s"
        step = Step(int(number), f"{queue} receive", "CLIENT", median_ms=900.0, sigma=0.4)
        step.attributes = {"messaging.system": "aws_sqs", "messaging.destination.name": queue}
        scene.entries.append(Entry(step, period_s=1.0, punctual=False))


def _keep_house(scene: _Scene) -> None:
    """Timers of serving processes refresh and evict while requests run."""
    for number in scene.rng.permutation(len(scene.services))[: 1 + len(scene.services) // 4]:
        verb = str(scene.rng.choice(["refresh", "evict", "flush", "reload"]))
        step = _inner(int(number), f"cache.{verb}", 3.0)
        if scene.rng.random() < 0.6:
            step.children.append(scene.grower.store_call(int(number)))
        scene.entries.append(Entry(step, float(scene.rng.uniform(0.005, 0.03))))


def _start_with_link(scene: _Scene) -> None:
    """Work that a request leaves behind begins a trace of its own and links to it."""
    for step in scene.some(scene.workers(), 0.05):
        child = _inner(step.service, f"later.{scene.grower.verb()}", 5.0, mode="detached")
        child.handoff, child.linked = scene.grower.unit(step.service), True
        child.probability = float(scene.rng.uniform(0.2, 1.0))
        child.children.append(scene.grower.store_call(step.service))
        step.children.append(child)


def _read_in_batches(scene: _Scene) -> None:
    """Readers gather messages for a while and process them in one span, with a link to each."""
    readers = [step for step, _ in scene.steps() if step.kind == "CONSUMER"]
    for step in scene.some(readers, 0.3):
        step.linked, step.batch_s = True, float(scene.rng.choice([0.05, 0.2, 1.0]))
        step.name = step.name.replace(" process", " process batch")


def _hedge_calls(scene: _Scene) -> None:
    """Send a call again that takes long; the first answer ends both, both servers finish."""
    calls = [pair for pair in scene.calls() if pair[0].mode == "sequential"]
    for number in scene.rng.permutation(len(calls))[: 1 + len(calls) // 8]:
        call, caller = calls[int(number)]
        twin = deepcopy(call)
        twin.mode = "hedge"
        twin.delay_ms = 1.5 * call.children[0].median_ms + 1.0
        caller.children.insert(caller.children.index(call) + 1, twin)


def _stream_answers(scene: _Scene) -> None:
    """End a call's span when the answer begins; its server goes on writing."""
    for step in scene.some([call for call, _ in scene.calls()], 0.08):
        step.early = float(scene.rng.uniform(0.3, 0.9))


def _hold_streams(scene: _Scene) -> None:
    """Hold connections open for minutes, with work in them all the time."""
    fronts = [n for n, service in enumerate(scene.services) if service.layer == 0]
    length = min(180.0, 0.3 * scene.length_s)
    for number in fronts:
        step = Step(number, "GET /stream", "SERVER", protocol="http", median_ms=1000 * length)
        step.attributes = {"http.request.method": "GET", "http.route": "/stream"}
        for _ in range(12):
            child = _inner(number, "push update", 2.0, probability=0.7)
            child.children.append(scene.grower.store_call(number))
            step.children.append(child)
        scene.entries.append(Entry(step, period_s=scene.length_s / 8, punctual=False))


def _run_long_jobs(scene: _Scene) -> None:
    """Let a job take minutes and touch dozens of rows, each with a span."""
    number = int(scene.rng.integers(len(scene.services)))
    step = _inner(number, "job.export_report", 1000 * min(240.0, 0.2 * scene.length_s))
    row = scene.grower.store_call(number)
    step.children = [deepcopy(row) for _ in range(60)]
    scene.entries.append(Entry(step, period_s=scene.length_s / 3, punctual=False))


def _loop(scene: _Scene) -> None:
    """One query per row: equal siblings, one after the other, that are no retries."""
    for step in scene.some(scene.workers(), 0.06):
        query = scene.grower.store_call(step.service)
        query.probability = 0.9
        step.children += [deepcopy(query) for _ in range(int(scene.rng.integers(4, 16)))]


def _cache_aside(scene: _Scene) -> None:
    """Ask a cache first, and what is behind it once in a while."""
    for step in scene.some(scene.workers(), 0.15):
        lookup = Step(step.service, "GET", "CLIENT", protocol="db", median_ms=0.3)
        lookup.attributes = {"db.system": "redis", "server.address": "cache"}
        behind = scene.grower.store_call(step.service)
        behind.probability = float(scene.rng.choice([0.005, 0.03, 0.1]))
        step.children += [lookup, behind]


def _do_rare_things(scene: _Scene) -> None:
    """Operations that come up a few times in a capture, as roots and below others."""
    fronts = [n for n, service in enumerate(scene.services) if service.layer == 0]
    for number in fronts:
        tree = scene.grower.entry(number)
        scene.entries.append(Entry(tree, float(scene.rng.choice([0.0005, 0.002]))))
    for step in scene.some(scene.workers(), 0.2):
        child = _inner(step.service, f"rare.{scene.grower.verb()}", 2.0)
        child.probability = float(scene.rng.choice([0.002, 0.01]))
        child.handoff = str(scene.rng.choice(["same", scene.grower.unit(step.service)]))
        child.children.append(_inner(step.service, f"rare.{scene.grower.noun()}", 1.0))
        step.children.append(child)


def _mark_instants(scene: _Scene) -> None:
    """Spans without length mark that something happened."""
    for step in scene.some(scene.workers(), 0.15):
        step.children.append(_inner(step.service, f"mark.{scene.grower.noun()}", 0.0))


def _round_clocks(scene: _Scene) -> None:
    """Round times: some SDKs know milliseconds, some formats microseconds."""
    scene.mark(0.2, tick_ns=lambda: int(scene.rng.choice([1_000, 1_000_000])))


def _write_digests(scene: _Scene) -> None:
    """Values of one fixed length, round ones at that, which nobody has cut."""
    scene.mark(0.3, digest=lambda: int(scene.rng.choice([32, 64, 128, 256])))


def _load_unevenly(scene: _Scene) -> None:
    """One replica gets most of the requests, another hardly any."""
    for number, service in enumerate(scene.services):
        if service.instances > 1 and scene.rng.random() < 0.5:
            weights = scene.rng.dirichlet(np.full(service.instances, 0.4)) + 0.005
            share = tuple((weights / weights.sum()).tolist())
            scene.services[number] = replace(service, weights=share)


def _deploy(scene: _Scene) -> None:
    """Let a new version take over from running processes, which end in good order."""
    for number, service in enumerate(scene.services):
        version = f"1.{int(scene.rng.integers(9))}.{int(scene.rng.integers(20))}"
        scene.services[number] = replace(service, version=version)
    scene.mark(0.2, deployed_at=lambda: float(scene.rng.uniform(0.2, 0.8)))


def _scale(scene: _Scene) -> None:
    """Let a replica join in the middle of the capture and leave again."""
    scene.mark(0.15, scaled=lambda: tuple(np.sort(scene.rng.uniform(0.1, 0.9, 2)).tolist()))


def _stay_anonymous(scene: _Scene) -> None:
    """Resources that name a service and nothing else."""
    scene.mark(0.12, anonymous=True)


def _serve_tenants(scene: _Scene) -> None:
    """Let requests carry their tenant, and some services write it down."""
    scene.mark(0.3, tenants=True)


_WAYS: Final[dict[str, Callable[[_Scene], None]]] = {
    "cache_aside": _cache_aside,
    "loops": _loop,
    "instant_spans": _mark_instants,
    "linked_roots": _start_with_link,
    "batch_readers": _read_in_batches,
    "early_answers": _stream_answers,
    "hedged_calls": _hedge_calls,
    "direct_calls": _call_directly,
    "rare_operations": _do_rare_things,
    "health_checks": _check_health,
    "pollers": _poll,
    "housekeeping": _keep_house,
    "streams": _hold_streams,
    "long_jobs": _run_long_jobs,
    "coarse_clocks": _round_clocks,
    "digests": _write_digests,
    "uneven_replicas": _load_unevenly,
    "deployments": _deploy,
    "scaling": _scale,
    "bare_resources": _stay_anonymous,
    "tenants": _serve_tenants,
}

HABITS: Final = tuple(_WAYS)
"""Names of all habits."""


def add_habits(fleet: Fleet, habits: Collection[str], *, seed: int, length_s: float) -> Fleet:
    """Give a fleet habits, each drawn from numbers of its own."""
    unknown = sorted(set(habits) - set(HABITS))
    if unknown:
        raise ParameterError(f"unknown habits {unknown}; known are {', '.join(HABITS)}")
    if not habits:
        return fleet
    for number, (name, change) in enumerate(_WAYS.items()):
        if name in habits:
            scene = _Scene(fleet, np.random.default_rng([seed, 5, number]), length_s)
            change(scene)
            fleet = Fleet(tuple(scene.services), tuple(scene.entries))
    whole = sum(entry.share for entry in fleet.entries)
    entries = (replace(entry, share=entry.share / whole) for entry in fleet.entries)
    return Fleet(fleet.services, tuple(entries))


def every_habit(habits: Collection[str] | None) -> Collection[str]:
    """Give the habits that are meant; all if none are named."""
    return HABITS if habits is None else habits
