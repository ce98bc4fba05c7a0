"""A queue over HTTP without instrumentation: POST puts a message, GET waits for one."""

import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def serve_broker() -> ThreadingHTTPServer:
    """Start a broker on a free port of loopback; one queue per path."""
    queues: dict[str, queue.Queue[bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            target = queues.setdefault(self.path.split("?")[0], queue.Queue())
            delay = json.loads(body).get("delay", 0)
            if delay:
                threading.Timer(delay, target.put, [body]).start()
            else:
                target.put(body)
            self._answer(202)

        def do_GET(self) -> None:
            source = queues.setdefault(self.path.split("?")[0], queue.Queue())
            deadline = time.monotonic() + 0.5
            try:
                self._answer(200, source.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                self._answer(200)

        def log_message(self, *_args: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
