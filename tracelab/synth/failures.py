"""Errors and what becomes of them on their way to the root."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError
from tracelab.synth import exceptions_text as text
from tracelab.synth.identity import random_ids
from tracelab.synth.plot import Ints, Plot, build_plot
from tracelab.traceset import TraceSet

DEFAULT_FATES: Final[dict[str, float]] = {
    "kept": 0.35,
    "wrapped": 0.2,
    "flattened": 0.11,
    "truncated": 0.05,
    "replaced": 0.11,
    "swallowed": 0.1,
    "status_lost": 0.08,
}
_RETRIED: Final = 0.25
_CLIENT_ERROR: Final = 0.2
_MIN_RETRY_NS: Final = 100_000
_INSIDE: Final = ("same", "thread", "task", "unknown")


@dataclass(slots=True)
class _Ledger:
    """Changes to spans, new events, new spans, and what was planted."""

    changes: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    truth: list[dict[str, Any]] = field(default_factory=list)


def inject_errors(
    traces: TraceSet,
    *,
    seed: int,
    rate: float = 0.03,
    fates: Mapping[str, float] | None = None,
) -> tuple[TraceSet, pl.DataFrame]:
    """Let errors start in leaves of some traces, and plant what becomes of each on its way up.

    Parameters
    ----------
    traces : TraceSet
        A capture; it is not changed. Traces that hold an error already are left alone.
    seed : int
        The same capture, seed and rates give the same errors.
    rate : float
        Share of traces in which something fails.
    fates : mapping of str to float, optional
        Weights of the hop verdicts inside a process; `DEFAULT_FATES` if not given. Retries
        that succeed (``recovered``) and client errors (4xx) come on top.

    Returns
    -------
    tuple of TraceSet and pl.DataFrame
        The capture with errors, and schema `TRUTH`: one ``error_hop`` row per hop, and
        ``legal`` rows for the 4xx. Across a network only the status travels; such a hop is
        ``kept`` without evidence of the exception.

    Raises
    ------
    ParameterError
        If the rate is no share, or a fate is unknown.
    """
    weights = dict(DEFAULT_FATES if fates is None else fates)
    unknown = [name for name in weights if name not in DEFAULT_FATES]
    if unknown or not 0 <= rate <= 1 or sum(weights.values()) <= 0:
        raise ParameterError(
            f"rate is {rate} (0 to 1), fates know {', '.join(DEFAULT_FATES)}; got {unknown}"
        )
    rng = np.random.default_rng([seed, 20])
    plot = build_plot(traces)
    ledger = _Ledger()
    writer = _Writer(plot, ledger, weights, rng)
    for row in _origins(plot, rate, rng).tolist():
        writer.fail(row)
    return _apply(traces, plot, ledger), _truth(ledger)


def _origins(plot: Plot, rate: float, rng: np.random.Generator) -> Ints:
    """Draw leaves to fail: one per chosen trace."""
    leaf = plot.up >= 0
    leaf[plot.up[plot.up >= 0]] = False
    leaf &= plot.kind != "PRODUCER"
    codes = plot.ids["trace_id"].rank("dense").cast(pl.Int64).to_numpy()
    failed = (plot.spans["status_code"] == "ERROR").fill_null(value=False).to_numpy()
    leaf &= ~np.isin(codes, codes[failed])
    rows = rng.permutation(np.flatnonzero(leaf))
    _, first = np.unique(codes[rows], return_index=True)
    rows = rows[np.sort(first)]
    many = min(len(rows), round(rate * len(np.unique(codes))))
    return np.sort(rows[:many])


class _Writer:
    """Walks errors up their traces and writes each stop into the ledger."""

    def __init__(
        self, plot: Plot, ledger: _Ledger, weights: dict[str, float], rng: np.random.Generator
    ) -> None:
        self.plot = plot
        self.ledger = ledger
        self.rng = rng
        self.words = list(weights)
        self.p = np.array(list(weights.values())) / sum(weights.values())

    def fail(self, row: int) -> None:
        kind = str(self.plot.kind[row])
        if kind == "SERVER" and self.rng.random() < _CLIENT_ERROR:
            self._refuse(row)
            return
        draw = int(self.rng.integers(1 << 30))
        language = self._language(row)
        thrown = text.origin(language, draw)
        self._record(row, language, thrown, draw)
        if kind == "CLIENT" and self._retry(row):
            return
        while True:
            up = int(self.plot.up[row])
            if up < 0 or self.plot.start[row] >= self.plot.end[up]:
                return  # nobody waits for this span, so nobody hears of its error
            if self.plot.boundary[row] == "queue":
                return
            if self.plot.boundary[row] not in _INSIDE:
                self._answer(row, up)
                thrown = text.origin(self._language(up), draw + 1)
                self._record(up, self._language(up), thrown, draw)
            else:
                verdict, thrown = self._pass_on(row, up, thrown)
                if verdict == "swallowed":
                    return
            row = up

    def _language(self, row: int) -> str:
        return str(self.plot.spans["sdk_language"][row] or "python")

    def _pass_on(self, row: int, up: int, inner: text.Thrown) -> tuple[str, text.Thrown]:
        """Draw and write what the parent, in the same process, makes of an exception."""
        verdict = str(self.rng.choice(self.words, p=self.p))
        language, draw = self._language(up), int(self.rng.integers(1 << 30))
        made = {
            "wrapped": text.wrap,
            "truncated": text.wrap,
            "flattened": text.flatten_text,
        }.get(verdict)
        outer = made(language, inner, draw) if made else inner
        if verdict == "replaced":
            outer = text.replace(language, draw)
        told = verdict
        stack = text.stack_text(language, outer, draw)
        if verdict == "truncated":
            stack = _cut(stack, outer)
            if stack is None:  # this language's record has no chain to cut
                verdict = told = "wrapped"
                stack = text.stack_text(language, outer, draw)
        if language not in text.CHAINED and verdict in ("wrapped", "replaced"):
            told = "not_determinable"
        if verdict == "swallowed":
            self._hop(row, up, told)
            return verdict, inner
        self._write(up, outer, stack, status=verdict != "status_lost", language=language)
        self._hop(row, up, told)
        return verdict, outer

    def _record(self, row: int, language: str, thrown: text.Thrown, draw: int) -> None:
        stack = text.stack_text(language, thrown, draw)
        self._write(row, thrown, stack, status=True, language=language)

    def _write(
        self, row: int, thrown: text.Thrown, stack: str | None, *, status: bool, language: str
    ) -> None:
        facts = {"exception.type": thrown.type or None, "exception.message": thrown.message}
        if stack is not None:
            facts["exception.stacktrace"] = stack
        if language == "python":
            facts["exception.escaped"] = "False"
        facts = {key: value for key, value in facts.items() if value is not None}
        self.ledger.events.append(
            {
                "row": row,
                "time": max(int(self.plot.start[row]), int(self.plot.end[row]) - 1_000),
                "exception_type": thrown.type or None,
                "exception_message": thrown.message,
                "exception_stacktrace": stack,
                "exception_escaped": False if language == "python" else None,
                "attributes": json.dumps(facts, separators=(",", ":")),
            }
        )
        change = self.ledger.changes.setdefault(row, {})
        if status:
            bare = thrown.type.rsplit(".", 1)[-1]
            message = f"{bare}: {thrown.message}" if language == "python" else thrown.message
            change |= {"status_code": "ERROR", "status_message": message}
        if status and self.plot.kind[row] == "SERVER":
            change["http"] = 500

    def _answer(self, row: int, up: int) -> None:
        """Let the caller's span learn the status, which is all that crosses a network."""
        http = self.plot.spans["http_response_status_code"][row] is not None
        failed = self.ledger.changes.get(row, {}).get("status_code") == "ERROR"
        change = self.ledger.changes.setdefault(up, {})
        if failed:
            change |= {"status_code": "ERROR"}
            if http:
                change |= {"http": 500, "error_type": "500"}
            self._hop(row, up, "kept", evidence=False)
        else:
            self._hop(row, up, "status_lost", evidence=False)

    def _refuse(self, row: int) -> None:
        """Answer 404: no error on the server, by convention one on the client."""
        http = self.plot.spans["http_response_status_code"][row] is not None
        up = int(self.plot.up[row])
        if not http or self.plot.kind[up] != "CLIENT":
            return
        self.ledger.changes[row] = {"http": 404}
        self.ledger.changes[up] = {"http": 404, "status_code": "ERROR", "error_type": "404"}
        self._tell(row, up, {"kind": "legal", "detail": "4xx", "shows": True})

    def _retry(self, row: int) -> bool:
        """Let a failed call be tried again beside itself, with success."""
        length = int(self.plot.end[row] - self.plot.start[row])
        up = int(self.plot.up[row])
        if self.rng.random() > _RETRIED or length < _MIN_RETRY_NS or self.plot.end[up] < 0:
            return False
        begin, end = int(self.plot.start[row]), int(self.plot.end[row])
        first = begin + int(length * self.rng.uniform(0.2, 0.6))
        second = first + int((end - first) * self.rng.uniform(0.05, 0.4))
        self.ledger.changes.setdefault(row, {})["end"] = first
        self.ledger.events[-1]["time"] = first - 500
        self.ledger.spans.append({"row": row, "start": second, "end": end})
        self._hop(row, up, "recovered")
        return True

    def _hop(self, row: int, up: int, verdict: str, *, evidence: bool = True) -> None:
        facts = {"kind": "error_hop", "verdict": verdict, "shows": evidence}
        where = {"boundary": str(self.plot.boundary[row]), "detail": self._language(up)}
        self._tell(row, up, facts | where)

    def _tell(self, row: int, up: int, facts: dict[str, Any]) -> None:
        at = self.plot.ids
        ids = {
            "trace_id": at["trace_id"][row],
            "span_id": at["span_id"][row],
            "true_parent_trace_id": at["trace_id"][up],
            "true_parent_span_id": at["span_id"][up],
            "service_name": self.plot.spans["service_name"][row],
        }
        self.ledger.truth.append({**ids, **facts})


def _cut(stack: str | None, outer: text.Thrown) -> str | None:
    """Cut a stack inside the head of the first cause, as a length limit would."""
    head = f"{outer.chain[1][0]}: {outer.chain[1][1]}"
    at = -1 if stack is None else stack.find(head)
    if stack is None or at <= 0:
        return None
    return stack[: at + len(head) * 2 // 3]


def _apply(traces: TraceSet, plot: Plot, ledger: _Ledger) -> TraceSet:
    """Write the ledger into the tables."""
    spans = _changed(traces.spans, ledger.changes)
    if ledger.spans:
        rng = np.random.default_rng(len(ledger.spans))
        extra = traces.spans[[item["row"] for item in ledger.spans]].with_columns(
            random_ids(rng, len(ledger.spans), digits=16).alias("span_id"),
            pl.Series([item["start"] for item in ledger.spans])
            .cast(schema.TIME)
            .alias("start_time"),
            pl.Series([item["end"] for item in ledger.spans]).cast(schema.TIME).alias("end_time"),
            pl.Series([item["end"] - item["start"] for item in ledger.spans]).alias("duration_ns"),
            pl.lit(1, pl.Int64).alias("resend_count"),
            pl.col("attributes").str.replace(
                r"\{", '{"http.request.resend_count":1,', literal=False
            ),
        )
        spans = pl.concat([spans, extra])
    if not ledger.events:
        return traces.with_tables(spans=spans)
    rows = [item.pop("row") for item in ledger.events]
    at = plot.ids[rows]
    events = pl.DataFrame(ledger.events, infer_schema_length=None).with_columns(
        at["trace_id"],
        at["span_id"],
        event_index=pl.lit(0, pl.Int64),
        name=pl.lit("exception"),
        dropped_attributes_count=pl.lit(0, pl.UInt32),
        origin=pl.lit("span_event"),
        time=pl.col("time").cast(schema.TIME),
    )
    taken = traces.events.group_by("trace_id", "span_id").agg(pl.len().alias("taken"))
    events = (
        schema.conform(events, schema.EVENTS)
        .join(taken, on=["trace_id", "span_id"], how="left", maintain_order="left")
        .with_columns(event_index=pl.col("taken").fill_null(0).cast(pl.Int64))
        .drop("taken")
    )
    return traces.with_tables(spans=spans, events=pl.concat([traces.events, events]))


def _changed(spans: pl.DataFrame, changes: dict[int, dict[str, Any]]) -> pl.DataFrame:
    """Scatter changed cells into the spans' columns and attribute texts."""
    columns: dict[str, tuple[list[int], list[Any]]] = {}

    def put(name: str, row: int, value: Any) -> None:
        rows, values = columns.setdefault(name, ([], []))
        rows.append(row)
        values.append(value)

    for row, change in sorted(changes.items()):
        facts: dict[str, Any] = json.loads(spans["attributes"][row] or "{}")
        if "http" in change and spans["http_response_status_code"][row] is not None:
            put("http_response_status_code", row, change["http"])
            old = "http.status_code" if "http.status_code" in facts else None
            facts[old or "http.response.status_code"] = change["http"]
        if "error_type" in change:
            put("error_type", row, change["error_type"])
            facts["error.type"] = change["error_type"]
        put("attributes", row, json.dumps(facts, separators=(",", ":"), ensure_ascii=False))
        for name in ("status_code", "status_message"):
            if name in change:
                put(name, row, change[name])
        if "end" in change:
            begin = spans["start_time"].dt.timestamp("ns")[row]
            put("end_time", row, change["end"])
            put("duration_ns", row, change["end"] - begin)
    for name, (rows, values) in columns.items():
        fresh = pl.Series(values, dtype=pl.Int64 if name == "end_time" else schema.SPANS[name])
        column = spans[name].scatter(rows, fresh.cast(schema.SPANS[name]))
        spans = spans.with_columns(column)
    return spans


def _truth(ledger: _Ledger) -> pl.DataFrame:
    if not ledger.truth:
        return schema.empty(schema.TRUTH)
    table = pl.DataFrame(ledger.truth, infer_schema_length=None).with_columns(
        observable=pl.lit(value=True), evidence_present=pl.col("shows")
    )
    return schema.conform(table.select(n for n in table.columns if n in schema.TRUTH), schema.TRUTH)
