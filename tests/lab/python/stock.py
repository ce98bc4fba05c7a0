"""The stock service: plain http.server, spans by hand, worker threads that are reused."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import telemetry
from opentelemetry import context, trace
from opentelemetry.propagate import extract
from telemetry import chance, fault, truth

tracer = telemetry.start()
workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="stock-worker")
_held = threading.local()


def count(caller, leak):
    """Count items in a reused worker; a leaking worker forgets to detach."""
    stale = getattr(_held, "token", None)
    if leak and stale is not None:
        holder = trace.get_current_span().get_span_context()
        with tracer.start_as_current_span("count items") as span:
            if holder.trace_id != caller.get_span_context().trace_id:
                truth(
                    "wrong_parent",
                    span,
                    parent=caller,
                    cause="context_leak",
                    boundary="thread",
                    detail="reused_worker",
                )
            time.sleep(0.001)
        context.detach(stale)
        _held.token = None
        return
    token = context.attach(trace.set_span_in_context(caller))
    with tracer.start_as_current_span("count items"):
        time.sleep(0.001)
    if fault("worker_keeps_context") and stale is None:
        _held.token = token
    else:
        context.detach(token)


def audit(caller):
    """Run in a thread of its own that was given no context."""
    with tracer.start_as_current_span("audit stock") as span:
        truth(
            "detached_root",
            span,
            parent=caller,
            cause="context_not_propagated",
            boundary="thread",
            detail="thread_without_context",
        )
        with tracer.start_as_current_span("write audit"):
            time.sleep(0.002)


def lookup(sku):
    """Look into the database; the middle span may never end."""
    always, on_error = fault("middle_never_ended"), fault("never_ended_on_error")
    span = tracer.start_span("load shelf" if on_error else "load item")
    with trace.use_span(span, end_on_exit=not (always or on_error)):
        with tracer.start_as_current_span(
            "db query", kind=trace.SpanKind.CLIENT, attributes={"db.system.name": "sqlite"}
        ) as query:
            time.sleep(0.001 + random.random() * 0.003)
            if on_error:
                query.record_exception(TimeoutError(f"no answer for {sku}"))
                query.set_status(trace.StatusCode.ERROR, "TimeoutError")
        if chance(float(os.environ.get("LAB_HUGE_ATTRIBUTE", "0"))):
            size = int(os.environ.get("LAB_HUGE_BYTES", "84000"))
            span.set_attribute("app.dump", "shelf " * (size // 6))
        if os.environ.get("LAB_LONG_ATTRIBUTES"):
            long = (f"sku {sku}: " + "shelf größe 4 · " * 40)[:600]
            span.set_attribute("app.report", long)
            if limit := os.environ.get("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT"):
                truth("truncated_value", span, boundary="same", detail=f"app.report at {limit}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parent = extract({name.lower(): value for name, value in self.headers.items()})
        sku = self.path.rsplit("/", 1)[-1]
        attributes = {
            "http.request.method": "GET",
            "http.route": "/stock/{sku}",
            "url.path": self.path,
            "app.request.id": self.headers.get("x-request-id", ""),
            "http.request.header.x-tenant-id": [self.headers.get("x-tenant-id", "")],
        }
        with tracer.start_as_current_span(
            "GET /stock/{sku}", context=parent, kind=trace.SpanKind.SERVER, attributes=attributes
        ) as span:
            if not span.is_recording():
                telemetry.unsampled(span, trace.get_current_span(parent))
            self._judge_hop(span)
            status = self._answer(sku, span)
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(trace.StatusCode.ERROR)
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def _judge_hop(self, span):
        """Tell what the proxy did to the context of this request."""
        stripped = self.headers.get("x-lab-stripped")
        if stripped and span.is_recording():
            _version, trace_id, span_id, _flags = stripped.split("-")
            parent = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True)
            truth(
                "detached_root",
                span,
                parent=parent,
                cause="context_not_propagated",
                boundary="network",
                detail="traceparent_stripped",
            )

    def _answer(self, sku, span):
        if sku.startswith("none"):
            return 404
        if fault("server_error"):
            span.record_exception(RuntimeError("shelf is locked"))
            return 503
        lookup(sku)
        workers.submit(count, span, chance(0.3)).result()
        if fault("thread_without_context"):
            thread = threading.Thread(target=audit, args=(span,), name="audit")
            thread.start()
            thread.join()
        if chance(float(os.environ.get("LAB_SLOW", "0.02"))):
            with tracer.start_as_current_span("wait for restock"):
                time.sleep(0.8)
        return 200

    def log_message(self, *_args):
        """Stay quiet."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["LAB_PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    telemetry.stop()
