"""A tiny builder of captures for tests: spans as short calls, times in milliseconds."""

from typing import Any

import polars as pl

from tracelab import schema
from tracelab.traceset import TraceSet

EPOCH_NS = 1_700_000_000_000_000_000
MS = 1_000_000


def trace_id(number: int) -> str:
    return f"{number:032x}"


def span_id(number: int) -> str:
    return f"{number:016x}"


class Capture:
    """Collects spans, links and events; `traces()` gives the TraceSet."""

    def __init__(self, **defaults: Any) -> None:
        self.spans: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.defaults = defaults

    def span(
        self,
        trace: int | str,
        span: int | str,
        parent: int | str | None = None,
        *,
        start: float = 0.0,
        duration: float = 10.0,
        name: str = "op",
        kind: str = "INTERNAL",
        service: str | None = "svc",
        **columns: Any,
    ) -> "Capture":
        begin = EPOCH_NS + round(start * MS)
        end = begin + round(duration * MS)
        row: dict[str, Any] = {
            "trace_id": trace if isinstance(trace, str) else trace_id(trace),
            "span_id": span if isinstance(span, str) else span_id(span),
            "parent_span_id": span_id(parent) if isinstance(parent, int) else parent,
            "name": name,
            "kind": kind,
            "start_time": begin,
            "end_time": end,
            "duration_ns": end - begin,
            "status_code": "UNSET",
            "service_name": service,
        }
        self.spans.append({**row, **self.defaults, **columns})
        return self

    def call(
        self, trace: int, *, start: float, code: int, served: bool, **server: Any
    ) -> "Capture":
        """Add a request to `a`, its call to `b`, and, if `served`, what `b` recorded of it."""
        self.span(trace, 1, start=start, duration=20, kind="SERVER", name="GET /", service="a")
        self.span(
            trace,
            2,
            1,
            start=start + 2,
            duration=12,
            kind="CLIENT",
            name="GET",
            service="a",
            http_response_status_code=code,
            status_code="ERROR" if code >= 400 else "UNSET",
            parent_is_remote=False,
        )
        if served:
            answer = {"kind": "SERVER", "service": "b", "parent_is_remote": True, **server}
            self.span(trace, 3, 2, start=start + 3, duration=10, name="GET /b", **answer)
        return self

    def link(self, trace: int, span: int, to_trace: int, to_span: int) -> "Capture":
        self.links.append(
            {
                "trace_id": trace_id(trace),
                "span_id": span_id(span),
                "linked_trace_id": trace_id(to_trace),
                "linked_span_id": span_id(to_span),
            }
        )
        return self

    def event(self, trace: int, span: int, **columns: Any) -> "Capture":
        row = {"trace_id": trace_id(trace), "span_id": span_id(span), "event_index": 0}
        self.events.append({**row, "name": "exception", "origin": "span_event", **columns})
        return self

    def traces(self, **tables: pl.DataFrame) -> TraceSet:
        return TraceSet(
            spans=table(self.spans, schema.SPANS),
            links=table(self.links, schema.LINKS),
            events=table(self.events, schema.EVENTS),
            **tables,
        )


def table(rows: list[dict[str, Any]], wanted: pl.Schema) -> pl.DataFrame:
    """Rows as a table of this schema, missing columns null."""
    if not rows:
        return schema.empty(wanted)
    names = {name for row in rows for name in row}
    columns = {
        name: pl.Series(name, [row.get(name) for row in rows], strict=False) for name in names
    }
    return schema.conform(pl.DataFrame(columns), wanted)
