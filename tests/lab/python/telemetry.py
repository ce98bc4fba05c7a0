"""What every Python program of the lab shares: the SDK, the ledger, the truth, the faults.

Environment: LAB_SERVICE, LAB_INSTANCE, LAB_OTLP (endpoint), LAB_FACTS (folder), LAB_SEED,
LAB_FAULTS (JSON, fault name to probability), LAB_THREAD_IDS, LAB_CLOCK_SKEW_MS.
"""

import json
import os
import random
import socket
import threading
import time
import zlib
from pathlib import Path

import opentelemetry.sdk.trace as sdk_trace
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

SERVICE = os.environ["LAB_SERVICE"]
FAULTS = json.loads(os.environ.get("LAB_FAULTS", "{}"))
SKEW_NS = int(float(os.environ.get("LAB_CLOCK_SKEW_MS", "0")) * 1e6)

_lock = threading.Lock()
_random = random.Random(zlib.crc32(SERVICE.encode()) ^ int(os.environ.get("LAB_SEED", "1")))
_facts = None


def _write(line):
    """Append one line; a killed process keeps what it has written."""
    global _facts
    with _lock:
        if _facts is None or _facts[0] != os.getpid():
            path = Path(os.environ["LAB_FACTS"]) / f"{SERVICE}-{os.getpid()}.jsonl"
            _facts = (os.getpid(), path.open("a", buffering=1))
        _facts[1].write(json.dumps(line) + "\n")


def fault(name):
    """Decide whether this fault strikes now."""
    probability = FAULTS.get(name, 0.0)
    with _lock:
        return probability > 0 and _random.random() < probability


def chance(probability):
    """Decide an ordinary event of the program, not a fault."""
    with _lock:
        return _random.random() < probability


def ids(span_or_context):
    """Give (trace id, span id) as hex of a span or a span context."""
    context = getattr(span_or_context, "get_span_context", lambda: span_or_context)()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def truth(kind, span, *, parent=None, cause=None, boundary=None, verdict=None, detail=None):
    """Log one planted row: `span` is where it shows, `parent` what its parent should be."""
    trace_id, span_id = ids(span) if span is not None else (None, None)
    parent_trace_id, parent_span_id = ids(parent) if parent is not None else (None, None)
    _write(
        {
            "fact": "truth",
            "kind": kind,
            "cause": cause,
            "boundary": boundary,
            "verdict": verdict,
            "trace_id": trace_id,
            "span_id": span_id,
            "true_parent_trace_id": parent_trace_id,
            "true_parent_span_id": parent_span_id,
            "service_name": SERVICE,
            "detail": detail,
        }
    )


def hop(child, parent, verdict, detail, *, boundary="same"):
    """Log what became of a child's error at its parent."""
    truth("error_hop", child, parent=parent, verdict=verdict, boundary=boundary, detail=detail)


def unsampled(span, parent):
    """Log a span that the sampler dropped, though its id travels on."""
    trace_id, span_id = ids(span)
    _write(
        {
            "fact": "unsampled",
            "trace_id": trace_id,
            "span_id": span_id,
            "parent": ids(parent)[1] if parent is not None else None,
            "service_name": SERVICE,
        }
    )


class PlainIds(RandomIdGenerator):
    """Do not set the random-trace-id flag: Go's propagator up to 1.24 refuses flags above 2."""

    def is_trace_id_random(self):
        return os.environ.get("LAB_RANDOM_FLAG") == "1"


class Ledger(sdk_trace.SpanProcessor):
    """Write down every start and end, so that what never arrives is known."""

    def on_start(self, span, parent_context=None):
        if os.environ.get("LAB_THREAD_IDS") == "1":
            span.set_attribute("thread.id", threading.get_ident())
            span.set_attribute("thread.name", threading.current_thread().name)
        trace_id, span_id = ids(span)
        parent = f"{span.parent.span_id:016x}" if span.parent else None
        _write(
            {
                "fact": "start",
                "trace_id": trace_id,
                "span_id": span_id,
                "parent": parent,
                "name": span.name,
                "service_name": SERVICE,
                "pid": os.getpid(),
                "time": time.time_ns(),
            }
        )

    def on_end(self, span):
        _write({"fact": "end", "span_id": ids(span.context)[1], "time": time.time_ns()})


class Booked(SpanExporter):
    """Export over gRPC, past the gate, and write down what the Collector took."""

    def __init__(self):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        self._inner = Grpc(
            endpoint=f"127.0.0.1:{os.environ['LAB_GRPC_PORT']}", insecure=True, timeout=3
        )

    def export(self, spans):
        result = self._inner.export(spans)
        large = encode_spans(spans).ByteSize() > 1024 * 1024
        refused = "message_too_large" if large else "answered_503"
        _write(
            {
                "fact": "batch",
                "service_name": SERVICE,
                "outcome": "delivered" if result is SpanExportResult.SUCCESS else refused,
                "spans": [ids(span.context)[1] for span in spans],
            }
        )
        return result

    def shutdown(self):
        self._inner.shutdown()


def start(*, instance=None):
    """Install the SDK in this process (again in a child process) and give its tracer."""
    if SKEW_NS:
        sdk_trace.time_ns = lambda: time.time_ns() + SKEW_NS
    resource = Resource.create(
        {
            "service.name": SERVICE,
            "service.instance.id": instance or f"{SERVICE}-{os.getpid()}",
            "host.name": os.environ.get("LAB_HOST", socket.gethostname()),
            "process.pid": os.getpid(),
        }
    )
    ratio = os.environ.get("LAB_RATIO")
    provider = sdk_trace.TracerProvider(
        resource=resource,
        sampler=TraceIdRatioBased(float(ratio)) if ratio else None,
        id_generator=PlainIds(),
    )
    provider.add_span_processor(Ledger())
    endpoint = os.environ["LAB_OTLP"]
    if os.environ.get("LAB_GRPC"):
        exporter = Booked()
    else:
        exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics"), export_interval_millis=5000
    )
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader], resource=resource))
    return trace.get_tracer(f"lab.{SERVICE}", "1.0")


def stop():
    """Flush and shut down."""
    trace.get_tracer_provider().shutdown()
    metrics.get_meter_provider().shutdown()
