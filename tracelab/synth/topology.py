"""A random fleet: services with their SDKs, and the call tree of each of their entries.

A call tree is drawn once and then played many times, so that traces of one entry look alike
and yet differ in their optional calls, times and instances, as real ones do.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

_WORDS: Final = (
    "gateway web-bff mobile-api checkout orders cart payment catalog search pricing inventory "
    "shipping users auth recommendations reviews notifications email-worker invoice ledger fraud "
    "coupons tax warehouse returns media thumbnails geo sessions profile loyalty billing reports "
    "analytics-sink feature-flags currency quotes addresses suppliers audit"
)
NAMES: Final = tuple(_WORDS.split())
VERBS: Final = ("get", "list", "create", "update", "reserve", "check", "render", "load")
NOUNS: Final = ("order", "item", "user", "price", "stock", "quote", "page", "session", "report")
STORES: Final = (
    ("postgresql", "SELECT {noun}s", "db"),
    ("mysql", "INSERT {noun}s", "db"),
    ("redis", "GET", "cache"),
    ("mongodb", "find {noun}s", "mongo"),
)


@dataclass(frozen=True, slots=True)
class Service:
    """One service and how its SDK writes spans.

    ``strands`` says what is known of the unit of execution: ``threads`` (thread.id and
    thread.name), ``tasks`` (one thread, an asyncio task name), ``goroutines`` (goroutine.id)
    or ``silent``. The fields with a default are habits: `tracelab.synth.habits` says of what.
    """

    name: str
    namespace: str | None
    language: str
    sdk_version: str
    strands: str
    instances: int
    shared_host: bool
    request_ids: bool
    old_http: bool
    client_spans: bool
    layer: int
    tick_ns: int = 1
    digest: int = 0
    tenants: bool = False
    anonymous: bool = False
    version: str | None = None
    weights: tuple[float, ...] = ()
    deployed_at: float | None = None
    scaled: tuple[float, float] | None = None


@dataclass(slots=True)
class Step:
    """One span of a call tree and how it relates to the one above it.

    ``mode`` places it in time: ``sequential``, ``parallel`` (with its parallel neighbours),
    ``detached`` (nobody waits for it), ``queued`` (after a delay in a queue) or ``hedge`` (a
    second try of the call before it, if that takes longer than ``delay_ms``). ``handoff``
    says which border lies above it: same, thread, task, network, queue. ``early`` is the part
    of its answer that a call waits for, ``batch_s`` how long a reader gathers messages.
    """

    service: int
    name: str
    kind: str
    mode: str = "sequential"
    handoff: str = "same"
    protocol: str = ""
    probability: float = 1.0
    median_ms: float = 1.0
    sigma: float = 0.5
    linked: bool = False
    delay_ms: float = 0.0
    early: float = 1.0
    batch_s: float = 0.0
    attributes: dict[str, str | int] = field(default_factory=dict)
    children: list["Step"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """One way into the fleet: a call tree, and how often it is played.

    ``share`` is that of the requests; entries that nobody requests have a share of 0 and a
    period, kept to the millisecond by cron jobs (``punctual``), roughly by others.
    """

    tree: Step
    share: float = 0.0
    period_s: float = 0.0
    punctual: bool = True


@dataclass(frozen=True, slots=True)
class Fleet:
    """Services and the entries into them."""

    services: tuple[Service, ...]
    entries: tuple[Entry, ...]


_SDKS: Final = {
    "go": (("1.21.0", 0.3), ("1.32.0", 0.4), ("1.38.0", 0.3)),
    "python": (("1.22.0", 0.2), ("1.30.0", 0.4), ("1.38.0", 0.4)),
    "java": (("1.32.0", 0.2), ("1.47.0", 0.5), ("1.55.0", 0.3)),
    "nodejs": (("1.26.0", 0.5), ("2.2.0", 0.5)),
    "dotnet": (("1.8.0", 0.3), ("1.12.0", 0.7)),
    "rust": (("0.30.0", 1.0),),
}
_FLAGS_SINCE: Final = {
    "go": (1, 26),
    "python": (1, 25),
    "java": (1, 38),
    "nodejs": (2, 1),
    "dotnet": (1, 9),
}
_STRANDS: Final = {
    "go": (("goroutines", 0.4), ("silent", 0.6)),
    "python": (("threads", 0.45), ("tasks", 0.35), ("silent", 0.2)),
    "java": (("threads", 0.85), ("silent", 0.15)),
    "nodejs": (("silent", 1.0),),
    "dotnet": (("threads", 0.3), ("silent", 0.7)),
    "rust": (("threads", 1.0),),
}


def flag_bits(service: Service) -> tuple[int, int]:
    """Give the flags that this SDK writes on a span with a local and with a remote parent.

    Go, Java, JS and .NET write the W3C flags and, since some version, that remoteness is
    known; Python writes only the latter; Rust and old versions write no remoteness.
    """
    since = _FLAGS_SINCE.get(service.language)
    version = tuple(int(part) for part in service.sdk_version.split(".")[:2])
    if since is None or version < since:
        return 0, 0
    sampled = 0 if service.language == "python" else 1
    return 0x100 | sampled, 0x300 | sampled


def build_fleet(seed: int, services: int) -> Fleet:
    """Draw a fleet of this many services."""
    rng = np.random.default_rng([seed, 1])
    fleet = tuple(_draw_service(rng, number, services) for number in range(services))
    grower = Grower(rng, fleet)
    fronts = [number for number, service in enumerate(fleet) if service.layer == 0]
    trees: list[Step] = []
    for number in fronts:
        trees += [grower.entry(number) for _ in range(int(rng.integers(2, 5 + services // 12)))]
    jobs: list[Entry] = []
    for _ in range(1 + services // 10):
        job = grower.job(int(rng.integers(services)))
        jobs.append(Entry(job, period_s=float(rng.choice([1.0, 5.0, 15.0, 60.0]))))
    weights = rng.dirichlet(np.full(len(trees) + len(jobs), 1.5))[: len(trees)]
    shares = (weights / weights.sum()).tolist()
    entries = [Entry(tree, share) for tree, share in zip(trees, shares, strict=True)]
    return Fleet(fleet, (*entries, *jobs))


def _draw(rng: np.random.Generator, choices: tuple[tuple[str, float], ...]) -> str:
    return str(rng.choice([word for word, _ in choices], p=[weight for _, weight in choices]))


def _draw_service(rng: np.random.Generator, number: int, services: int) -> Service:
    language = str(rng.choice(list(_SDKS), p=[0.26, 0.24, 0.22, 0.15, 0.08, 0.05]))
    layers = 2 if services < 5 else 3 if services < 14 else 5
    fronts = 1 if services < 8 else 2
    layer = 0 if number < fronts else 1 + (number - fronts) * (layers - 1) // (services - fronts)
    lap = number // len(NAMES)
    return Service(
        name=NAMES[number % len(NAMES)] + (f"-{lap + 1}" if lap else ""),
        namespace="shop" if rng.random() < 0.5 else None,
        language=language,
        sdk_version=_draw(rng, _SDKS[language]),
        strands=_draw(rng, _STRANDS[language]),
        instances=int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.2, 0.15])),
        shared_host=bool(rng.random() < 0.4),
        request_ids=bool(rng.random() < 0.35),
        old_http=bool(rng.random() < 0.3),
        client_spans=bool(rng.random() < 0.9),
        layer=layer,
    )


class Grower:
    """Grows call trees; the operations of a service are drawn once and met again."""

    def __init__(self, rng: np.random.Generator, services: tuple[Service, ...]) -> None:
        self.rng = rng
        self.services = services
        self.room = 0
        self.called = np.zeros(len(services), bool)

    def entry(self, service: int) -> Step:
        """Grow the tree of one request, at times with a caller that is traced itself."""
        self.room = int(self.rng.integers(6, 64))
        root = self.server(service, depth=0)
        if self.rng.random() < 0.12:  # a load generator or a browser that is traced itself
            caller = Step(service, f"HTTP {self.verb()}", "CLIENT", protocol="http")
            caller.attributes = {"http.request.method": "GET", "server.address": "edge"}
            root.handoff, root.mode = "network", "sequential"
            caller.children.append(root)
            return caller
        return root

    def job(self, service: int) -> Step:
        """Grow the tree of a scheduled job."""
        self.room = int(self.rng.integers(3, 14))
        root = Step(service, f"job.{self.verb()}_{self.noun()}s", "INTERNAL", median_ms=8.0)
        self._fill(root, depth=1)
        return root

    def server(self, service: int, depth: int) -> Step:
        """Grow an operation of a service and what it calls."""
        rng = self.rng
        median = float(np.exp(rng.normal(1.0, 0.7)))
        if depth and rng.random() < 0.35:
            method = f"shop.{self.services[service].name.title()}/{self.verb().title()}"
            step = Step(service, method, "SERVER", protocol="grpc", median_ms=median)
            step.attributes = {"rpc.system": "grpc", "rpc.method": method.split("/")[1]}
        else:
            verb = str(rng.choice(["GET", "POST", "PUT"], p=[0.6, 0.3, 0.1]))
            route = f"/{self.noun()}s/{{id}}" if rng.random() < 0.6 else f"/{self.noun()}s"
            old = self.services[service].old_http
            step = Step(service, f"{verb} {route}", "SERVER", protocol="http", median_ms=median)
            step.attributes = {
                "http.method" if old else "http.request.method": verb,
                "http.route": route,
            }
        step.sigma = float(rng.uniform(0.25, 0.8))
        self.room -= 1
        self._fill(step, depth)
        return step

    def _fill(self, step: Step, depth: int) -> None:
        rng = self.rng
        many = int(rng.integers(1, 7 - depth)) if depth < 5 else int(rng.integers(0, 2))
        parallel = rng.random() < 0.3
        for _ in range(many):
            if self.room <= 0:
                return
            child = self._child(step.service, depth)
            if parallel and child.mode == "sequential":
                child.mode = "parallel"
                if child.handoff == "same":
                    child.handoff = self.unit(step.service)
            step.children.append(child)

    def _callee(self, deeper: list[int]) -> int:
        """Draw a service to call, rather one that nobody calls yet and one that is near."""
        layers = np.array([self.services[number].layer for number in deeper])
        weights = np.where(self.called[deeper], 1.0, 4.0) / (1.0 + layers - layers.min())
        callee = int(self.rng.choice(deeper, p=weights / weights.sum()))
        self.called[callee] = True
        return callee

    def unit(self, service: int) -> str:
        """Say what a service hands work to: a task or a thread."""
        tasks = self.services[service].language in ("go", "nodejs", "rust")
        if self.services[service].strands == "tasks" or tasks:
            return "task"
        return "thread"

    def _child(self, service: int, depth: int) -> Step:
        rng = self.rng
        draw = rng.random()
        deeper = [n for n, s in enumerate(self.services) if s.layer > self.services[service].layer]
        chance = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.1, 0.9))
        if deeper and draw < 0.45 and depth < 9:
            child = self._call(service, self._callee(deeper), depth)
        elif draw < 0.62:
            child = self.store_call(service)
        elif draw < 0.70 and deeper:
            child = self._publish(service, self._callee(deeper), depth)
        elif draw < 0.77:
            child = self.internal(service, depth)
            child.mode, child.handoff = "detached", self.unit(service)
        elif draw < 0.80:
            child = Step(service, "POST", "CLIENT", protocol="http", median_ms=60.0, sigma=0.9)
            child.attributes = {
                "http.request.method": "POST",
                "server.address": "api.partner.example",
            }
        else:
            child = self.internal(service, depth)
        child.probability = chance
        self.room -= 1
        return child

    def internal(self, service: int, depth: int) -> Step:
        """Grow a piece of work inside a service."""
        rng = self.rng
        child = Step(service, f"{self.verb()}_{self.noun()}", "INTERNAL")
        child.median_ms = float(np.exp(rng.normal(0.5, 1.0)))
        if rng.random() < 0.2:
            child.handoff = self.unit(service)
        if rng.random() < 0.4 and self.room > 2:
            self._fill(child, depth + 2)
        return child

    def store_call(self, service: int) -> Step:
        """Draw a call to a database or cache, which is not traced itself."""
        rng = self.rng
        system, name, host = STORES[int(rng.integers(len(STORES)))]
        child = Step(service, name.format(noun=self.noun()), "CLIENT", protocol="db")
        child.median_ms = float(np.exp(rng.normal(0.6, 0.8)))
        child.attributes = {"db.system": system, "server.address": host}
        if system in ("postgresql", "mysql"):
            child.attributes["db.query.text"] = f"{child.name} WHERE id IN ("
        return child

    def _call(self, service: int, callee: int, depth: int) -> Step:
        server = self.server(callee, depth + 1)
        server.handoff = "network"
        if not self.services[service].client_spans:
            return server
        name = server.name
        if server.protocol == "http":
            verb = server.name.split(" ")[0]
            go = self.services[service].language == "go"
            name = f"HTTP {verb}" if go else verb
        caller = Step(service, name, "CLIENT", protocol=server.protocol, median_ms=0.15)
        caller.attributes = {"server.address": self.services[callee].name}
        if server.protocol == "http":
            old = self.services[service].old_http
            verb = server.name.split(" ")[0]
            caller.attributes["http.method" if old else "http.request.method"] = verb
        else:
            caller.attributes |= server.attributes
        if self.rng.random() < 0.06:  # a hop without instrumentation that passes the header on
            server.median_ms += 2.0
        caller.children.append(server)
        return caller

    def _publish(self, service: int, consumer: int, depth: int) -> Step:
        rng = self.rng
        topic = f"{self.noun()}.{self.verb()}"
        system = str(rng.choice(["kafka", "rabbitmq", "aws_sqs"]))
        facts: dict[str, str | int] = {
            "messaging.system": system,
            "messaging.destination.name": topic,
        }
        producer = Step(service, f"{topic} publish", "PRODUCER", protocol="queue", median_ms=0.8)
        producer.attributes = dict(facts)
        for _ in range(1 if rng.random() < 0.85 else 2):
            reader = Step(consumer, f"{topic} process", "CONSUMER", "queued", "queue", "queue")
            reader.attributes = dict(facts)
            reader.median_ms, reader.linked = 4.0, bool(rng.random() < 0.35)
            self.room -= 1
            if self.room > 2:
                self._fill(reader, depth + 2)
            producer.children.append(reader)
        return producer

    def verb(self) -> str:
        """Draw what an operation does."""
        return str(self.rng.choice(VERBS))

    def noun(self) -> str:
        """Draw what an operation is about."""
        return str(self.rng.choice(NOUNS))
