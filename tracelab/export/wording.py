"""Verdict words in plain English: what each means, and what to do about it."""

from typing import Final

KIND_MEANING: Final[dict[str, str]] = {
    "orphan_span": "a span names a parent that is not in the capture",
    "detached_root": "called from another trace, but starts one of its own: the context is lost",
    "wrong_parent": "a span hangs under another request's span: a context leaked",
    "missing_server": "a call whose peer normally answers with a server span got none",
    "sampling_gap": "one trace was sampled on one side of a hop and not on the other",
    "duplicate_span_id": "an id stands on more than one span",
    "parent_cycle": "spans are each other's ancestors",
    "invalid_id": "an id is not the hex text that the protocol asks for",
    "truncated_value": "text was cut at a length limit",
    "late_child": "a span starts after its parent ended (legal: fire and forget)",
    "clock_skew": "the clocks of two hosts disagree",
    "client_root": "a trace starts with an outgoing call (nothing above it is instrumented)",
}

CAUSE_MEANING: Final[dict[str, str]] = {
    "capture_edge": "the capture began too late or stopped too early to hold the other side",
    "span_never_ended": "the parent span was started and never ended, so never exported",
    "process_exit": "the process ended while the parent span was still open",
    "queue_overflow": "the SDK's span queue was full and dropped it",
    "export_failure": "an export batch of that process was lost",
    "sampled_out": "a sampler dropped it while the rest of the trace was kept",
    "uninstrumented_hop": "something between the two services passes context but exports no span",
    "context_not_propagated": "the work was started without the caller's context",
    "context_leak": "a reused worker kept another request's context",
    "duplicate_export": "the same data was delivered twice",
    "unknown": "the export does not show why",
}

CAUSE_ADVICE: Final[dict[str, str]] = {
    "capture_edge": "Nothing to mend. Capture a longer window if the other side matters.",
    "span_never_ended": "Look for a code path without `span.End()` (early return, exception); "
    "end the span in a deferred or finally block.",
    "process_exit": "Shut the tracer provider down (flush) on SIGTERM, and look for crashes or "
    "out-of-memory kills at this time.",
    "queue_overflow": "Raise OTEL_BSP_MAX_QUEUE_SIZE, export more often, or create fewer spans "
    "in this process.",
    "export_failure": "Check the exporter's and the Collector's logs and limits (message size, "
    "memory limiter, timeouts) at this time.",
    "sampled_out": "Use parent-based sampling with one ratio along the whole call path.",
    "uninstrumented_hop": "Instrument the hop in between, or accept that it stays dark.",
    "context_not_propagated": "Pass the caller's context to the new goroutine, task, thread, "
    "message or request (inject and extract, or wrap the executor).",
    "context_leak": "Attach and detach context around each unit of work in the reused worker.",
    "duplicate_export": "Check retries, pipelines that both deliver, and files that are read "
    "twice; exact copies were dropped.",
    "unknown": "Look for a span here that is started and never ended (early return, exception), "
    "then for dropped spans in the logs and metrics of SDK and Collector at these times.",
}

BOUNDARY_MEANING: Final[dict[str, str]] = {
    "same": "inside one thread or task",
    "task": "between goroutines, coroutines or asyncio tasks",
    "thread": "between threads of one process",
    "process": "between processes of one host",
    "network": "between hosts, over the network",
    "queue": "through a message queue",
    "unknown": "not told by the export",
}

VERDICT_MEANING: Final[dict[str, str]] = {
    "kept": "the same error stands on the caller's span",
    "wrapped": "the caller's error holds it as a cause",
    "flattened": "only its text survived in the caller's error",
    "truncated": "the caller's record of it is cut",
    "replaced": "the caller failed with an unrelated error",
    "swallowed": "the caller succeeded as if nothing had failed",
    "recovered": "a retry or fallback succeeded",
    "status_lost": "the caller's span shows the failure but its status does not say so",
    "not_determinable": "the records hold too little to tell",
}

VERDICT_ADVICE: Final[dict[str, str]] = {
    "flattened": "Wrap the error (`%w`, `raise … from`, `cause`) instead of formatting its text.",
    "truncated": "Raise the attribute length limit, or record the cause on its own span.",
    "replaced": "Keep the first error as the cause of the new one.",
    "swallowed": "Decide whether the failure is harmless; if not, propagate it or record it.",
    "status_lost": "Set the span status to ERROR where the error is recorded.",
}

_KIND_ADVICE: Final[dict[str, str]] = {
    "late_child": "Nothing to mend, if this work is meant to go on after its caller answered.",
    "client_root": "Nothing to mend. Instrument what stands above it if its side matters.",
}

_CONTEXT_ADVICE: Final[dict[str, str]] = {
    "task": "Pass the caller's context to the goroutine, coroutine or task (Go: the ctx argument; "
    "Python: create_task, not a loop callback; Node: AsyncResource).",
    "thread": "Carry the context into the other thread: wrap the executor, or attach the captured "
    "context at the start of the work (Python: contextvars.copy_context().run).",
    "process": "Inject the context into what starts the process (environment, arguments, message) "
    "and extract it there.",
    "network": "Inject traceparent into the outgoing request, and check proxies and gateways in "
    "between: one of them may strip it.",
    "queue": "Inject the context into the message headers when publishing, and extract it (as "
    "parent or as link) when consuming.",
}


def break_advice(kind: str, cause: str, boundary: str) -> str:
    """Say what to do about a break, as concretely as its kind and boundary allow."""
    if cause == "unknown" and kind in _KIND_ADVICE:
        return _KIND_ADVICE[kind]
    if cause == "context_not_propagated" and boundary in _CONTEXT_ADVICE:
        return _CONTEXT_ADVICE[boundary]
    return CAUSE_ADVICE.get(cause, "")
