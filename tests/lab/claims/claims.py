"""What the Python SDK does in the cases of ``docs/claims.md``; prints one line per experiment."""

import contextvars
import importlib.metadata
import threading
from concurrent.futures import ThreadPoolExecutor

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


class Standing(SpanExporter):
    """An exporter that stands still until it is let go."""

    def __init__(self):
        self.gate, self.names = threading.Event(), []

    def export(self, spans):
        self.gate.wait()
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS


def full_queue():
    exporter = Standing()
    provider = TracerProvider()
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=10, max_export_batch_size=5)
    )
    tracer = provider.get_tracer("t")
    for number in range(100):
        tracer.start_span(str(number)).end()
        if number == 5:
            threading.Event().wait(0.1)
    exporter.gate.set()
    provider.shutdown()
    print(f"queue of 10, 100 spans: {len(exporter.names)} exported: {' '.join(exporter.names)}")


def exception_record(error_type):
    tracer = TracerProvider().get_tracer("t")
    span = None
    try:
        with tracer.start_as_current_span("s") as span:
            raise error_type("boom")
    except BaseException:  # noqa: BLE001 - KeyboardInterrupt is one of the cases
        pass
    escaped = [event.attributes.get("exception.escaped") for event in span.events]
    print(f"{error_type.__name__}: status {span.status.status_code.name}, escaped={escaped}")


def context_in_pool():
    tracer = TracerProvider().get_tracer("t")
    with tracer.start_as_current_span("outer"), ThreadPoolExecutor(1) as pool:
        bare = pool.submit(lambda: trace.get_current_span().get_span_context().is_valid).result()
        run = contextvars.copy_context().run
        copied = pool.submit(
            run, lambda: trace.get_current_span().get_span_context().is_valid
        ).result()
    print(f"context in a pool thread: submitted bare {bare}, with a copied context {copied}")


def traceparent_flags():
    carrier = {}
    tracer = TracerProvider().get_tracer("t")
    with tracer.start_as_current_span("s"):
        TraceContextTextMapPropagator().inject(carrier)
    print(f"traceparent of a new root ends in -{carrier['traceparent'].rsplit('-', 1)[1]}")


if __name__ == "__main__":
    print("opentelemetry-sdk", importlib.metadata.version("opentelemetry-sdk"))
    full_queue()
    exception_record(ValueError)
    exception_record(KeyboardInterrupt)
    context_in_pool()
    traceparent_flags()
