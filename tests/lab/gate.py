"""The gate between the SDKs and the Collector: it refuses or repeats batches, and keeps the book.

Each program exports to its own path, ``/<service>/v1/traces``. What the gate saw, and whether the
Collector took it, is written down span by span, so that a loss behind an SDK's queue is told from
a loss on the way.
"""

import gzip
import http.client
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def _span_ids(body: bytes) -> list[str]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        span.span_id.hex()
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class Gate:
    """A forwarding server with planted refusals.

    Parameters
    ----------
    facts : Path
        Folder for the gate's book, ``gate.jsonl``.
    collector : str
        host:port of the Collector's OTLP/HTTP receiver.
    refuse : dict of str to float
        Service to the probability that a batch is answered 400, which no SDK retries.
    repeat : dict of str to float
        Service to the probability that a batch is delivered and answered 503, so that the SDK
        sends it again: the duplicate delivery that OTLP allows.
    slow : dict of str to float
        Service to the seconds that each of its exports takes, so that its queue fills.
    seed : int
        Seed of the two probabilities.
    """

    def __init__(
        self,
        facts: Path,
        collector: str,
        *,
        refuse: dict[str, float],
        repeat: dict[str, float],
        slow: dict[str, float],
        seed: int,
    ) -> None:
        self._book = (facts / "gate.jsonl").open("a", buffering=1)
        self._collector = collector
        self._refuse, self._repeat, self._slow = refuse, repeat, slow
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self._body()
                service, path = self.path.lstrip("/").split("/", 1)
                status, answer = gate.judge(service, path, body, self.headers)
                self.send_response(status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers["Content-Length"]))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def log_message(self, *_args: object) -> None:
                """Stay quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Give the base URL for exporters."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def judge(
        self, service: str, path: str, body: bytes, headers: http.client.HTTPMessage
    ) -> tuple[int, bytes]:
        """Forward a batch or refuse it, and write down which."""
        if path != "v1/traces":
            status, answer = self._forward(path, body, headers)
            return status or 400, answer
        plain = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
        ids = _span_ids(plain)
        time.sleep(self._slow.get(service, 0.0))
        with self._lock:
            refused = self._dice.random() < self._refuse.get(service, 0.0)
            repeated = self._dice.random() < self._repeat.get(service, 0.0)
        if refused:
            self._note(service, "refused", ids)
            return 400, b""
        status, answer = self._forward(path, body, headers)
        outcome = "delivered" if 200 <= status < 300 else f"answered_{status}"
        self._note(service, outcome if status else "collector_down", ids)
        if not status:
            return 400, b""
        if repeated and status < 300:
            self._note(service, "repeat_asked", ids)
            return 503, b""
        return status, answer

    def _note(self, service: str, outcome: str, ids: list[str]) -> None:
        line = {"fact": "batch", "service_name": service, "outcome": outcome, "spans": ids}
        with self._lock:
            self._book.write(json.dumps(line) + "\n")

    def _forward(
        self, path: str, body: bytes, headers: http.client.HTTPMessage
    ) -> tuple[int, bytes]:
        kept = {
            k: v for k, v in headers.items() if k.lower() in ("content-type", "content-encoding")
        }
        connection = http.client.HTTPConnection(self._collector, timeout=10)
        try:
            connection.request("POST", "/" + path, body, kept)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()
