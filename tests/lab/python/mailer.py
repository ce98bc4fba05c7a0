"""The mail worker: takes messages from a queue and renders them in a child process."""

import json
import multiprocessing
import os
import signal
import time
import urllib.request

import telemetry
from opentelemetry import trace
from opentelemetry.propagate import extract, inject
from telemetry import chance, fault, truth

BROKER = os.environ["BROKER"]
running = True


def remote(traceparent):
    """Give the span context that a traceparent names."""
    return trace.get_current_span(extract({"traceparent": traceparent})).get_span_context()


def render(jobs):
    """Render mails in a child process until told to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tracer = telemetry.start()
    while (job := jobs.get()) is not None:
        carrier, lab_parent, order = job
        attributes = {"app.order": order}
        with tracer.start_as_current_span(
            "render mail", context=extract(carrier), attributes=attributes
        ) as span:
            if not carrier:
                truth(
                    "detached_root",
                    span,
                    parent=remote(lab_parent),
                    cause="context_not_propagated",
                    boundary="process",
                    detail="multiprocessing_without_context",
                )
            with tracer.start_as_current_span("fill template"):
                time.sleep(0.002)
    telemetry.stop()


def deliver(tracer, message, jobs):
    attributes = {
        "messaging.system": "labq",
        "messaging.destination.name": "mail",
        "app.order": message["order"],
    }
    with tracer.start_as_current_span(
        "process mail",
        context=extract(message["headers"]),
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
    ) as span:
        if not message["headers"]:
            truth(
                "detached_root",
                span,
                parent=remote(message["lab_parent"]),
                cause="context_not_propagated",
                boundary="queue",
                detail="message_without_context",
            )
        carrier = {}
        inject(carrier)
        lost = fault("multiprocessing_without_context")
        jobs.put(({} if lost else carrier, carrier["traceparent"], message["order"]))
        with tracer.start_as_current_span("smtp send", kind=trace.SpanKind.CLIENT) as smtp:
            if chance(0.1):
                truth("legal", smtp, boundary="network", detail="peer_not_instrumented")
            time.sleep(0.003)
            if fault("smtp_error"):
                smtp.set_status(trace.StatusCode.ERROR, "mailbox is full")


def stop(*_args):
    global running
    running = False


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    spawn = multiprocessing.get_context("spawn")
    jobs = spawn.Queue()
    child = spawn.Process(target=render, args=(jobs,))
    child.start()
    tracer = telemetry.start()
    while running:
        with urllib.request.urlopen(f"{BROKER}?wait=0.5", timeout=5) as answer:
            text = answer.read()
        if text:
            deliver(tracer, json.loads(text), jobs)
    jobs.put(None)
    child.join(10)
    telemetry.stop()
