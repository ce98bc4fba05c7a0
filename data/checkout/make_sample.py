"""Make the bundled sample: a small shop of real processes, traced by the OpenTelemetry SDK.

    python data/checkout/make_sample.py

Needs ``opentelemetry-sdk`` and ``opentelemetry-exporter-otlp-proto-common``. Five processes
talk over loopback HTTP and a mail queue; each exports batches in the form in which the
Collector's file exporter writes them, and the lines are merged in order of arrival. Four bugs
and three harmless habits are built in; README.md names them.
"""

import base64
import hashlib
import json
import logging
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode

SERVICES = ("web", "orders", "payment", "stock", "mailer")
SEED = 20_260
REQUESTS = 90
tracer = trace.get_tracer("checkout.sample", "1.0.0")


def hex_ids(node: Any) -> Any:
    """Turn protobuf's base64 ids into the hex text of OTLP JSON."""
    if isinstance(node, list):
        return [hex_ids(item) for item in node]
    if not isinstance(node, dict):
        return node
    ids = ("traceId", "spanId", "parentSpanId")
    return {
        key: base64.b64decode(value).hex() if key in ids else hex_ids(value)
        for key, value in node.items()
    }


class LineExporter(SpanExporter):
    """Writes one export request per line, behind the time at which it arrived."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def export(self, spans: Any) -> SpanExportResult:
        request = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
        line = json.dumps(hex_ids(request), separators=(",", ":"))
        with self.path.open("a") as file:
            file.write(f"{time.time_ns()} {line}\n")
        return SpanExportResult.SUCCESS


class ThreadStamp(SpanProcessor):
    """Notes on each span the thread that started it."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        thread = threading.current_thread()
        span.set_attribute("thread.id", threading.get_native_id())
        span.set_attribute("thread.name", thread.name)


def start_tracing(service: str, number: int, folder: Path) -> TracerProvider:
    resource = Resource(
        {
            "service.name": service,
            "service.namespace": "shop",
            "service.instance.id": f"{service}-{number}",
            "host.name": "shop-host",
            "process.pid": 4000 + number,
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
            "telemetry.sdk.version": "1.45.2",
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(ThreadStamp())
    provider.add_span_processor(
        BatchSpanProcessor(LineExporter(folder / f"{service}.lines"), schedule_delay_millis=700)
    )
    trace.set_tracer_provider(provider)
    return provider


def work(low_ms: float, high_ms: float) -> None:
    time.sleep(random.uniform(low_ms, high_ms) / 1000)


def call(ports: dict[str, int], service: str, path: str, *, resend: int = 0) -> int:
    """Call another service; the CLIENT span carries the status, as HTTP clients do."""
    with tracer.start_as_current_span("GET", kind=SpanKind.CLIENT) as span:
        span.set_attributes(
            {
                "http.request.method": "GET",
                "server.address": service,
                "url.full": f"http://{service}{path}",
            }
        )
        if resend:
            span.set_attribute("http.request.resend_count", resend)
        headers: dict[str, str] = {}
        propagate.inject(headers)
        request = urllib.request.Request(
            f"http://127.0.0.1:{ports[service]}{path}", headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                status = int(answer.status)
        except urllib.error.HTTPError as error:
            status = error.code
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        span.set_attribute("http.response.status_code", status)
        return status


class Shop:
    """What each service does with a request; the number in the path steers it."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="pricing")
        self.mails: Queue[tuple[dict[str, str], int]] = Queue()

    def web(self, path: str, number: int) -> int:
        work(0.5, 2)
        if number % 19 == 7:
            return 404  # a page that is not there: nobody's fault
        status = call(self.ports, "orders", f"/orders/{number}")
        if status >= 500:
            return 502
        here = context.get_current()
        threading.Thread(target=self._remember, args=(here,), name="cart-cache").start()
        return 200

    def _remember(self, parent: context.Context) -> None:
        token = context.attach(parent)
        work(4, 9)  # the answer is out before this starts: nobody waits for it
        with tracer.start_as_current_span("remember cart"):
            work(1, 3)
        context.detach(token)

    def orders(self, path: str, number: int) -> int:
        with tracer.start_as_current_span("price order"):
            if number % 12 == 5:  # BUG: the pool is not given the context
                self.pool.submit(self._discount).result()
            else:
                here = context.get_current()
                self.pool.submit(self._discount, here).result()
        self._suggest(number)
        if call(self.ports, "stock", f"/stock/{number}") >= 500:
            return 500
        try:
            self._charge(number)
        except RuntimeError as error:
            span = trace.get_current_span()
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, f"RuntimeError: {error}"))
            return 500
        with tracer.start_as_current_span("mail publish", kind=SpanKind.PRODUCER) as span:
            span.set_attributes(
                {"messaging.system": "shop-queue", "messaging.destination.name": "mail"}
            )
            headers: dict[str, str] = {}
            propagate.inject(headers)
        if number % 25 == 9:  # BUG: the message is sent anew, without its headers
            headers = {}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports['mailer']}/mails/{number}", headers=headers
        )
        urllib.request.urlopen(request, timeout=5).close()
        return 200

    def _discount(self, parent: context.Context | None = None) -> None:
        token = context.attach(parent) if parent is not None else None
        with tracer.start_as_current_span("compute discount"):
            work(1, 4)
        if token is not None:
            context.detach(token)

    def _suggest(self, number: int) -> None:
        """Ask for suggestions; without them the order goes on (a failure that nobody sees)."""
        with tracer.start_as_current_span("suggest more"):
            try:
                with tracer.start_as_current_span("load suggestions"):
                    work(0.5, 2)
                    if number % 21 == 3:
                        raise LookupError(f"no suggestions for order {number}")
            except LookupError:
                pass

    def _charge(self, number: int) -> None:
        with tracer.start_as_current_span("charge"):
            status = call(self.ports, "payment", f"/payments/{number}")
            if status == 503:
                work(2, 5)
                status = call(self.ports, "payment", f"/payments/{number}/again", resend=1)
            if status >= 500:
                raise RuntimeError(f"payment answered {status}")

    def payment(self, path: str, number: int) -> int:
        span = trace.get_current_span()
        if number % 14 == 2 and not path.endswith("again"):
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", "503")
            return 503  # busy; the second try goes well
        if number % 30 == 11:
            # BUG: on this path the span is left open, so it is never exported
            review = tracer.start_span("review fraud")
            token = context.attach(trace.set_span_in_context(review))
            with tracer.start_as_current_span("score card"):
                work(1, 3)
            context.detach(token)
            with suppress(ValueError), tracer.start_as_current_span("ask bank"):
                raise ValueError(f"card of order {number} was refused by the bank")
            span.record_exception(PermissionError("payment impossible"))  # BUG: cause dropped
            span.set_status(Status(StatusCode.ERROR, "PermissionError: payment impossible"))
            return 500
        with (
            tracer.start_as_current_span("review fraud"),
            tracer.start_as_current_span("score card"),
        ):
            work(1, 3)
        with tracer.start_as_current_span("ask bank"):
            work(3, 9)
        return 200

    def stock(self, path: str, number: int) -> int:
        with tracer.start_as_current_span("SELECT stock", kind=SpanKind.CLIENT) as span:
            span.set_attributes({"db.system": "postgresql", "server.address": "db"})
            work(1, 5)
        return 200

    def mailer(self, path: str, number: int) -> int:
        return 200

    def deliver(self) -> None:
        """Read the queue; each mail is work of its order's trace."""
        while True:
            headers, _number = self.mails.get()
            work(10, 60)
            parent = propagate.extract(headers)
            with tracer.start_as_current_span(
                "mail process", context=parent, kind=SpanKind.CONSUMER
            ) as span:
                span.set_attributes(
                    {"messaging.system": "shop-queue", "messaging.destination.name": "mail"}
                )
                with tracer.start_as_current_span("render mail"):
                    work(1, 4)

    def tidy(self) -> None:
        """Run the nightly job, every other second here: a root of its own, and rightly so."""
        while True:
            time.sleep(1.6)
            with tracer.start_as_current_span("job.tidy_queue"):
                work(1, 3)


def serve(service: str, ports: dict[str, int], folder: Path) -> None:
    random.seed(f"{SEED} {service}")
    provider = start_tracing(service, SERVICES.index(service) + 1, folder)
    shop = Shop(ports)
    handle: Callable[[str, int], int] = getattr(shop, service)
    routes = {"web": "/checkout/{id}", "orders": "/orders/{id}", "payment": "/payments/{id}"}
    route = routes.get(service, "/stock/{id}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = int(self.path.split("/")[2])
            headers = {key.lower(): value for key, value in self.headers.items()}
            if service == "mailer":
                shop.mails.put((headers, number))
                self._answer(202)
                return
            with tracer.start_as_current_span(
                f"GET {route}", context=propagate.extract(headers), kind=SpanKind.SERVER
            ) as span:
                span.set_attributes(
                    {"http.request.method": "GET", "http.route": route, "url.path": self.path}
                )
                status = handle(self.path, number)
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_attribute("error.type", str(status))
                    if span.status.status_code is not StatusCode.ERROR:
                        span.set_status(Status(StatusCode.ERROR))
            self._answer(status)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", ports[service]), Handler)
    server.daemon_threads = True
    if service == "mailer":
        threading.Thread(target=shop.deliver, daemon=True, name="mail-reader").start()
        threading.Thread(target=shop.tidy, daemon=True, name="scheduler").start()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.readline()  # until the maker says that it is enough
    server.shutdown()
    provider.shutdown()


def free_ports() -> dict[str, int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in SERVICES]
    ports = {name: s.getsockname()[1] for name, s in zip(SERVICES, held, strict=True)}
    for one in held:
        one.close()
    return ports


def visit(port: int) -> None:
    """Send the requests: mostly one after the other, sometimes three at once."""
    random.seed(SEED)

    def ask(number: int) -> None:
        with suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/checkout/{number}", timeout=10).close()

    with ThreadPoolExecutor(3) as visitors:
        for number in range(REQUESTS):
            visitors.submit(ask, number)
            time.sleep(random.expovariate(1 / 0.06))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    here = Path(__file__).resolve().parent
    ports = free_ports()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "serve"]
        children = [
            subprocess.Popen(
                [*command, service, json.dumps(ports), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for service in SERVICES
        ]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        visit(ports["web"])
        time.sleep(1.5)
        for child in children:
            child.communicate("enough\n", timeout=20)
        arrivals = [
            (int(when), body)
            for path in sorted(folder.glob("*.lines"))
            for when, body in (line.split(" ", 1) for line in path.read_text().splitlines())
        ]
    text = "".join(body + "\n" for _, body in sorted(arrivals))
    # Stack traces name files of the machine that ran this; readers need only their tails.
    text = text.replace(str(here), "/srv/checkout").replace(sys.prefix, "/srv/python")
    (here / "traces.jsonl").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (here / "SHA256SUMS").write_text(f"{digest}  traces.jsonl\n")
    logging.info("%d requests in %d lines, %d bytes", REQUESTS, len(arrivals), len(text))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], json.loads(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
