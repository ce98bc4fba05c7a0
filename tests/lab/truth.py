"""Turn the facts of a run into its truth table, looking at the export with own eyes.

What a program planted by switch it has logged itself. What got lost on the way (never ended,
killed, dropped from a queue, refused, sampled out, cut off) follows from the books: a span that was
started, not ended, or ended and never seen by the gate, or seen and refused. No detector and no
reader of tracelab takes part.
"""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.lab.exports import ExportedSpan, read_spans
from tests.lab.facts import Facts, read_facts
from tests.lab.runs import Run

COLUMNS: Final = (
    *("kind", "cause", "boundary", "verdict", "trace_id", "span_id", "missing_span_id"),
    *("true_parent_trace_id", "true_parent_span_id", "service_name", "detail"),
    *("observable", "evidence_present"),
)
HEADER_COLUMNS: Final = (
    *("key", "trace_id", "span_id", "service_name", "sent", "received", "verdict"),
    *("observable", "evidence_present"),
)
BOUNDARY: Final = {
    "price": "thread",
    "count items": "thread",
    "recommend": "task",
    "remember": "task",
    "look at shelf": "task",
    "index item": "task",
    "warm cache": "task",
    "fetch price": "task",
    "render mail": "process",
    "process mail": "queue",
}
"""How the programs call what these spans stand for; SERVER spans are called by a request, all
others in the same flow. A request stays on one host (``process``) or crosses (``network``)."""
DEFAULT_HOST: Final = "host-a"
EDGE_NS: Final = 3_000_000_000
Row = dict[str, Any]


class Judge:
    """The facts and the export of one run, side by side."""

    def __init__(self, run: Run, facts: Facts, spans: list[ExportedSpan]) -> None:
        self.run, self.facts, self.spans = run, facts, spans
        self.by_id = {span.span_id: span for span in spans}
        self.traces: dict[str, list[ExportedSpan]] = defaultdict(list)
        self.by_service: dict[str, list[ExportedSpan]] = defaultdict(list)
        for span in self.by_id.values():
            self.traces[span.trace_id].append(span)
            self.by_service[span.service].append(span)
        self.first = min(span.start_ns for span in spans)
        self.last = max(span.end_ns for span in spans)

    def cause_of_loss(self, span_id: str) -> tuple[str, str]:
        """Give cause and detail of a span that is not in the export."""
        facts = self.facts
        if span_id in facts.foreign:
            return "uninstrumented_hop", "proxy_rewrote_parent"
        if span_id in facts.unsampled:
            return "sampled_out", "ratio_sampler"
        if span_id not in facts.starts:
            return "unknown", "never_logged"
        started = facts.starts[span_id]
        if span_id not in facts.ends:
            killed = started["pid"] in facts.killed
            return ("process_exit", "killed") if killed else ("span_never_ended", started["name"])
        outcomes = facts.outcomes.get(span_id, set())
        if "delivered" in outcomes:  # the Collector has it, and keeps or drops it
            sampled = "sampl" in self.run.collector or self.run.collector == "proto_rotated"
            return ("sampled_out", "tail_sampling") if sampled else ("capture_edge", "early_stop")
        if "collector_down" in outcomes:
            return "capture_edge", "collector_not_up"
        if "refused" in outcomes:
            return "export_failure", "batch_refused"
        if "message_too_large" in outcomes:
            return "export_failure", "message_too_large"
        if "answered_503" in outcomes:
            return "export_failure", "memory_limiter"
        if outcomes:
            return "export_failure", "request_too_large"
        if started["pid"] in facts.killed:
            return "process_exit", "killed_before_export"
        if "OTEL_BSP_MAX_QUEUE_SIZE" not in self.run.settings.get(started["service_name"], {}):
            return "process_exit", "shutdown_before_export"
        return "queue_overflow", "never_left_the_queue"

    def ancestor(self, span_id: str | None) -> str | None:
        """Give the nearest ancestor that was exported."""
        seen: set[str] = set()
        while span_id is not None and span_id not in self.by_id and span_id not in seen:
            seen.add(span_id)
            span_id = self.facts.parent_of(span_id)
        return span_id if span_id in self.by_id else None

    def planted(self) -> Iterator[Row]:
        """Rows that the programs logged, looked up in the export."""
        for fact in self.facts.planted:
            yield {**fact, **self.observe(fact)}

    def observe(self, row: Row) -> Row:
        """Say whether the export can show a planted row, and holds evidence of its cause."""
        span = self.by_id.get(row["span_id"])
        parent = self.by_id.get(row.get("true_parent_span_id") or "")
        if span is None:
            return {"observable": False, "evidence_present": False}
        match row["kind"]:
            case "detached_root":
                seen = parent is not None and span.parent_span_id is None
                return {
                    "observable": seen,
                    "evidence_present": seen and self.detached_evidence(span, parent),
                }
            case "wrong_parent":
                false = self.by_id.get(span.parent_span_id or "")
                seen = false is not None and parent is not None and false is not parent
                late = seen and false is not None and span.start_ns > false.end_ns
                return {"observable": seen, "evidence_present": bool(late)}
            case "error_hop":
                seen = parent is not None and span.parent_span_id == parent.span_id
                return {"observable": seen, "evidence_present": seen and not self.mute(row)}
        return {"observable": True, "evidence_present": True}

    def mute(self, row: Row) -> bool:
        """Tell whether this SDK's record is the same for a replaced error as for a wrapped one.

        Node writes `error.stack`, which leaves out the cause: an error that was raised in place
        of another looks like one that holds it.
        """
        return row["service_name"] == "notify" and row["verdict"] == "replaced"

    def host(self, service: str | None) -> str:
        """Give the host that a service names as its own."""
        return self.run.settings.get(service or "", {}).get("LAB_HOST", DEFAULT_HOST)

    def request_boundary(self, row: Row) -> str:
        """Say whether a request stayed on one host, as the two ends name theirs.

        The ends are the span's service and that of its true parent, or of the span that was
        lost on the way; a proxy without spans between them names no host.
        """
        caller = self.by_id.get(row.get("true_parent_span_id") or "")
        other: str | None = caller.service if caller else None
        lost = row.get("missing_span_id") or row.get("true_parent_span_id")
        for book in (self.facts.starts, self.facts.unsampled):
            if lost in book and lost not in self.facts.foreign:
                other = book[lost]["service_name"].removeprefix("caller of ")
                break
        return "process" if self.host(row["service_name"]) == self.host(other) else "network"

    def headers(self) -> list[Row]:
        """Say of each request with x-error-context whether the header came through.

        Observable: both ends are in the export and one calls the other. Evidence: the caller's
        span shows what it sent.
        """
        rows = []
        for fact in self.facts.headers:
            caller = self.by_id.get(fact["span_id"])
            callee = caller
            shown: Any = None
            while caller is not None and shown is None:
                caller = self.by_id.get(caller.parent_span_id or "")
                if caller is not None and callee is not None and caller.service != callee.service:
                    shown = caller.attributes.get("http.request.header.x-error-context")
            told = fact["sent"] in str(shown) if shown is not None else False
            seen = callee is not None and callee.parent_span_id in self.by_id
            rows.append({**fact, "observable": seen, "evidence_present": seen and told})
        return [{column: row.get(column) for column in HEADER_COLUMNS} for row in rows]

    def detached_evidence(self, span: ExportedSpan, parent: ExportedSpan | None) -> bool:
        """Overlap in time with the caller, and few other callers that were open then.

        A value that both carry (an order, a request id) serves instead of few others.
        """
        if parent is None:
            return False
        near = parent.start_ns - 1_000_000 <= span.start_ns
        shared = {
            (key, str(value))
            for key, value in span.attributes.items()
            if key in ("app.order", "app.request.id") and value
        }
        family = (near for near in self.traces[parent.trace_id])
        if any(
            pair in {(k, str(v)) for k, v in s.attributes.items()}
            for s in family
            for pair in shared
        ):
            return near
        rivals = {
            other.trace_id
            for other in self.by_service[parent.service]
            if other.start_ns <= span.start_ns <= other.end_ns
        }
        return near and span.start_ns <= parent.end_ns and len(rivals) <= 3

    def lost(self) -> Iterator[Row]:
        """Rows for spans that were made and are not in the export."""
        shown: set[str] = set()
        for span in self.by_id.values():
            missing = span.parent_span_id
            if missing is None or missing in self.by_id:
                continue
            cause, detail = self.cause_of_loss(missing)
            shown.add(missing)
            ratio = detail == "ratio_sampler"
            yield self._loss(
                "sampling_gap" if ratio else "orphan_span",
                cause,
                f"{detail}: orphan" if ratio else detail,
                span=span,
                missing=missing,
            )
        yield from self._silent(shown)

    def _silent(self, shown: set[str]) -> Iterator[Row]:
        """Rows for lost spans that leave no orphan: at the caller, or at nothing at all."""
        for missing in (*self.facts.starts, *self.facts.unsampled):
            if missing in self.by_id or missing in shown:
                continue
            fact = self.facts.starts.get(missing) or self.facts.unsampled[missing]
            if fact["trace_id"] not in self.traces:
                continue
            cause, detail = self.cause_of_loss(missing)
            caller = self.by_id.get(self._through_proxy(fact.get("parent")) or "")
            if caller is not None and caller.kind == 3 and caller.service != fact["service_name"]:
                kind = "sampling_gap" if detail == "ratio_sampler" else "missing_server"
                yield self._loss(kind, cause, detail, span=caller, missing=missing)
            elif missing in self.facts.starts:
                yield self._loss("orphan_span", cause, detail, span=None, missing=missing)

    def _through_proxy(self, span_id: str | None) -> str | None:
        return self.facts.foreign[span_id]["parent"] if span_id in self.facts.foreign else span_id

    def _loss(
        self, kind: str, cause: str, detail: str, *, span: ExportedSpan | None, missing: str
    ) -> Row:
        lost = self.facts.starts.get(missing) or self.facts.unsampled.get(missing) or {}
        ancestor = self.ancestor(missing)
        boundary = "network"
        if span is not None and span.kind != 2 and span.parent_span_id == missing:
            boundary = BOUNDARY.get(span.name, "same")
        elif span is None:
            boundary = BOUNDARY.get(lost.get("name", ""), "unknown")
        return {
            "kind": kind,
            "cause": cause,
            "boundary": boundary,
            "trace_id": span.trace_id if span else lost.get("trace_id"),
            "span_id": span.span_id if span else None,
            "missing_span_id": missing,
            "true_parent_trace_id": self.by_id[ancestor].trace_id if ancestor else None,
            "true_parent_span_id": ancestor,
            "service_name": span.service if span else lost.get("service_name"),
            "detail": detail,
            "observable": span is not None,
        }

    def add_loss_evidence(self, rows: list[Row]) -> None:
        """Say of each lost span whether the export holds evidence of its cause."""
        like = Counter((row["service_name"], row["cause"], row["detail"]) for row in rows)
        for row in rows:
            span = self.by_id.get(row["span_id"] or "")
            times = [span.start_ns, span.end_ns] if span else []
            many = like[row["service_name"], row["cause"], row["detail"]] >= 5
            match row["cause"]:
                case "capture_edge":
                    seen = any(t < self.first + EDGE_NS or t > self.last - EDGE_NS for t in times)
                case "process_exit":
                    pid_gone = self.facts.runner.get("killed", 0) + EDGE_NS < self.last
                    seen = pid_gone
                case "uninstrumented_hop":
                    seen = row["true_parent_span_id"] is not None
                case _:
                    seen = many
            row["evidence_present"] = bool(row["observable"] and seen)

    def duplicates(self) -> Iterator[Row]:
        """Rows for spans that the Collector wrote more than once."""
        counts = Counter((span.trace_id, span.span_id) for span in self.spans)
        for (trace_id, span_id), count in counts.items():
            if count > 1:
                yield {
                    "kind": "duplicate_span_id",
                    "cause": "duplicate_export",
                    "boundary": "same",
                    "trace_id": trace_id,
                    "span_id": span_id,
                    "service_name": self.by_id[span_id].service,
                    "detail": f"written {count} times, equal",
                    "observable": True,
                    "evidence_present": True,
                }

    def skewed(self) -> Iterator[Row]:
        """Rows for hops into a service whose clock was shifted."""
        for service, settings in self.run.settings.items():
            if "LAB_CLOCK_SKEW_MS" not in settings:
                continue
            for span in self.by_service[service]:
                caller = self.by_id.get(span.parent_span_id or "")
                if caller is None or caller.service == service:
                    continue
                outside = span.start_ns < caller.start_ns or span.end_ns > caller.end_ns
                yield {
                    "kind": "clock_skew",
                    "boundary": "network",
                    "trace_id": span.trace_id,
                    "span_id": span.span_id,
                    "true_parent_trace_id": caller.trace_id,
                    "true_parent_span_id": caller.span_id,
                    "service_name": service,
                    "detail": f"{settings['LAB_CLOCK_SKEW_MS']} ms ahead",
                    "observable": outside,
                    "evidence_present": outside,
                }

    def rows(self) -> list[Row]:
        """Give the whole truth, in the order of its columns."""
        lost = list(self.lost())
        self.add_loss_evidence(lost)
        every = [*self.planted(), *lost, *self.duplicates(), *self.skewed()]
        for row in every:
            if row.get("boundary") == "network" and row["kind"] != "legal":
                row["boundary"] = self.request_boundary(row)
        return [{column: row.get(column) for column in COLUMNS} for row in every]


def settle(run: Run, seed_name: str, folder: Path, facts_folder: Path) -> str:
    """Write truth and README of a run beside its capture, compress it, and count."""
    facts, spans = read_facts(facts_folder), read_spans(folder)
    judge = Judge(run, facts, spans)
    rows = judge.rows()
    for name, table in (("truth", rows), ("headers", judge.headers())):
        body = "".join(json.dumps(row) + "\n" for row in table).encode()
        if body:
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(body, mtime=0))
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jsonl", ".pb"):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()
    text = _readme(run, seed_name, spans, rows)
    (folder / "README.md").write_text(text)
    return text


def _readme(run: Run, seed_name: str, spans: list[ExportedSpan], rows: list[Row]) -> str:
    counts: Counter[tuple[str, ...]] = Counter()
    seen: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        key = (row["kind"], row["cause"] or "", row["boundary"] or "", row["verdict"] or "")
        counts[key] += 1
        seen[key] += bool(row["observable"])
    table = "\n".join(
        f"| {' | '.join(key)} | {count} | {seen[key]} |" for key, count in sorted(counts.items())
    )
    services = sorted({span.service for span in spans})
    return f"""# {run.name}, seed `{seed_name}`

{run.about}

Made by `python -m tests.lab --only {run.name} --seed {seed_name}`; the trace and metric files are
the Collector's own bytes (`tests/lab/collector/{run.collector}.yaml`), gzip added afterwards where
the name ends in `.gz`. The columns of `truth.jsonl.gz` are those of `tracelab.schema.TRUTH`.
Licence: Apache-2.0.

{len(services)} services ({", ".join(services)}), {len({s.trace_id for s in spans})} traces,
{len({(s.trace_id, s.span_id) for s in spans})} spans.

| kind | cause | boundary | verdict | planted | observable |
|---|---|---|---|---|---|
{table}
"""
