"""Findings: breaks, error hops and audit rows grouped into what one would tell a colleague."""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from tracelab import html, schema
from tracelab.export import wording
from tracelab.structure.rates import wilson_interval

MAX_EXEMPLARS: Final = 10
MAX_FINDINGS: Final = 400
"""Most findings of one subject that are listed; the rest is counted. With at most ten
exemplars each it keeps findings.json under 5 MB at any size of the capture."""

_MAX_EVIDENCE: Final = 6
_SEVERITY_ORDER: Final = {"error": 0, "warning": 1, "info": 2}
_HOP_SEVERITY: Final = {
    "swallowed": "warning",
    "flattened": "warning",
    "status_lost": "warning",
    "replaced": "info",
    "truncated": "info",
}
_AUDIT_PARTS: Final = {
    "status_ok": ("status_missing", "warning", "the span's status does not say ERROR"),
    "exception_ok": ("exception_missing", "info", "no exception was recorded on the span or a log"),
    "stacktrace_ok": ("stacktrace_missing", "info", "the exception was recorded without a stack"),
    "error_type_ok": ("error_type_missing", "info", "error.type is not set"),
}


@dataclass(frozen=True)
class Finding:
    """One kind of defect at one place, with its count and its best examples.

    Parameters
    ----------
    finding_id : str
        The same for the same defect at the same place, across runs and captures.
    subject : str
        ``break``, ``error`` or ``audit``.
    kind, cause, boundary, severity : str
        Words of `tracelab.schema`; an error finding's kind is its hop verdict.
    from_service, to_service, operation : str or None
        The hop and the span name.
    count, denominator : int
        Cases, and spans (hops, errors) of this place that were checked.
    rate, rate_low, rate_high : float or None
        count / denominator with its 95 % Wilson interval.
    confidence : float
        Mean confidence of the cases: in the cause, or in the break where the cause is unknown.
    n_at_capture_edge : int
        Cases whose other side may lie outside the capture.
    first_time, last_time : str or None
        ISO 8601, UTC.
    title, advice : str
        What it is and what to do about it.
    evidence, alternatives : tuple of str
        Of the best example.
    exemplars : tuple of dict
        At most ten cases: ids, time, confidence, proposed parent, evidence.
    """

    finding_id: str
    subject: str
    kind: str
    cause: str
    boundary: str
    severity: str
    from_service: str | None
    to_service: str | None
    operation: str | None
    count: int
    denominator: int
    rate: float | None
    rate_low: float | None
    rate_high: float | None
    confidence: float
    n_at_capture_edge: int
    first_time: str | None
    last_time: str | None
    title: str
    advice: str
    evidence: tuple[str, ...]
    alternatives: tuple[str, ...]
    exemplars: tuple[dict[str, Any], ...]

    @property
    def why(self) -> str:
        """The cause, empty where none is looked for."""
        legal = self.severity == "info" and self.cause == "unknown"
        return "" if legal or self.subject != "break" else self.cause

    @property
    def how_sure(self) -> str:
        """The confidence, empty where the cause is unknown: it is the break's then."""
        unexplained = self.subject == "break" and self.cause == "unknown"
        return "" if unexplained else f"{self.confidence:.2f}"

    def __repr__(self) -> str:
        share = f" of {self.denominator:,}" if self.denominator else ""
        facts = [f"{self.count:,}{share}"]
        facts += [f"cause {self.why}"] if self.why else []
        facts += [f"boundary {self.boundary}"]
        facts += [f"confidence {self.how_sure}"] if self.how_sure else []
        return (
            f"Finding {self.finding_id} [{self.severity}] {html.plain(self.title)}\n"
            f"  {' · '.join(facts)}\n"
            f"  {self.advice}"
        )

    def _repr_html_(self) -> str:
        facts = (
            ("severity", self.severity),
            ("count", f"{self.count:,} of {self.denominator:,}"),
            ("cause", self.why and f"{self.why}: {wording.CAUSE_MEANING.get(self.why, '')}"),
            ("boundary", self.boundary),
            ("confidence", self.how_sure),
            ("evidence", " · ".join(self.evidence)),
            ("not excluded", " · ".join(self.alternatives)),
            ("what to do", self.advice),
            ("example", self.exemplars[0]["trace_id"] if self.exemplars else ""),
        )
        return html.table(
            ("what", "value"), [fact for fact in facts if fact[1]], caption=self.title
        )


def group_breaks(breaks: pl.DataFrame, operations: pl.DataFrame) -> list[Finding]:
    """Group breaks by kind, cause, boundary, hop and operation.

    Parameters
    ----------
    breaks : pl.DataFrame
        Schema BREAKS.
    operations : pl.DataFrame
        Columns service_name, span_name, spans: how many spans each operation has.

    Returns
    -------
    list of Finding
        Most severe and most frequent first.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    place = ["kind", "cause", "boundary", "from_service", "to_service", "service_name", "span_name"]
    # What is delivered twice is delivered whole: one finding of a service, not one per operation.
    delivered = pl.col("cause") == "duplicate_export"
    several = pl.col("span_name").n_unique().over("service_name", "kind", "cause") > 1
    ranked = (
        breaks.sort(["confidence", "break_id"], descending=[True, False])
        .with_columns(whole=(delivered & several).fill_null(value=False))
        .with_columns(pl.when(~pl.col("whole")).then("span_name"))
    )
    services = operations.group_by("service_name").agg(of_service=pl.col("spans").sum())
    exemplar = pl.struct(
        id="break_id",
        trace_id="trace_id",
        span_id="span_id",
        time=_iso("time"),
        confidence="confidence",
        missing_span_id="missing_span_id",
        proposed_trace_id="proposed_trace_id",
        proposed_span_id="proposed_span_id",
        proposed_confidence="proposed_confidence",
        evidence="evidence",
        alternatives="alternatives",
    )
    groups = (
        ranked.group_by([*place, "whole", "severity"], maintain_order=True)
        .agg(
            pl.len().alias("count"),
            pl.col("confidence").mean(),
            pl.col("at_capture_edge").sum().alias("n_at_capture_edge"),
            pl.col("time").min().alias("first_time"),
            pl.col("time").max().alias("last_time"),
            exemplar.head(MAX_EXEMPLARS).alias("exemplars"),
        )
        .join(operations, on=["service_name", "span_name"], how="left", nulls_equal=True)
        .join(services, on="service_name", how="left", nulls_equal=True)
        .with_columns(spans=pl.when("whole").then("of_service").otherwise("spans"))
    )
    return _finish(
        _finding(
            "break",
            row,
            denominator=row["spans"] or 0,
            operation=row["span_name"],
            advice=wording.break_advice(row["kind"], row["cause"], row["boundary"]),
            title=_break_title(row),
        )
        for row in _top(groups).iter_rows(named=True)
    )


def group_error_hops(hops: pl.DataFrame) -> list[Finding]:
    """Group error hops whose verdict is a loss by verdict, boundary, hop and error type.

    Parameters
    ----------
    hops : pl.DataFrame
        Schema ERROR_HOPS.

    Returns
    -------
    list of Finding
        For the verdicts swallowed, flattened, status_lost, replaced and truncated.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(hops, schema.ERROR_HOPS, name="hops")
    pair = ["child_service", "parent_service"]
    totals = hops.group_by(pair).agg(pl.len().alias("spans"))
    exemplar = pl.struct(
        id="error_id",
        trace_id="trace_id",
        span_id="child_span_id",
        parent_span_id="parent_span_id",
        time=_iso("time"),
        confidence="confidence",
        child_type="child_type",
        child_message=pl.col("child_message").str.slice(0, html.MAX_TEXT),
        parent_type="parent_type",
        parent_message=pl.col("parent_message").str.slice(0, html.MAX_TEXT),
        evidence="evidence",
    )
    groups = (
        hops.filter(pl.col("verdict").is_in(list(_HOP_SEVERITY)))
        .with_columns(pl.col("verdict").replace_strict(_HOP_SEVERITY).alias("severity"))
        .sort(["confidence", "error_id", "hop"], descending=[True, False, False])
        .group_by(["verdict", "severity", "boundary", *pair, "child_type"], maintain_order=True)
        .agg(
            pl.len().alias("count"),
            pl.col("confidence").mean(),
            pl.col("time").min().alias("first_time"),
            pl.col("time").max().alias("last_time"),
            exemplar.head(MAX_EXEMPLARS).alias("exemplars"),
        )
        .join(totals, on=pair, how="left", nulls_equal=True)
        .rename(
            {"verdict": "kind", "child_service": "from_service", "parent_service": "to_service"}
        )
        .with_columns(pl.lit("unknown").alias("cause"), pl.lit(0).alias("n_at_capture_edge"))
    )
    return _finish(
        _finding(
            "error",
            row,
            denominator=row["spans"] or 0,
            operation=row["child_type"],
            advice=wording.VERDICT_ADVICE.get(row["kind"], ""),
            title=_hop_title(row),
        )
        for row in _top(groups).iter_rows(named=True)
    )


def group_audit(audit: pl.DataFrame) -> list[Finding]:
    """Group incomplete error records by missing part, signature and service.

    Parameters
    ----------
    audit : pl.DataFrame
        Schema ERROR_AUDIT; parts that are exempt must stand as true.

    Returns
    -------
    list of Finding
        One per service, signature and missing part.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(audit, schema.ERROR_AUDIT, name="audit")
    findings: list[Finding] = []
    totals = audit.group_by("service_name").agg(pl.len().alias("spans"))
    exemplar = pl.struct(
        trace_id="trace_id", span_id="span_id", time=_iso("time"), signature="signature"
    )
    for part, (kind, severity, meaning) in _AUDIT_PARTS.items():
        groups = (
            audit.filter(~pl.col(part))
            .sort(["time", "trace_id", "span_id"])
            .group_by(["service_name", "signature"], maintain_order=True)
            .agg(
                pl.len().alias("count"),
                pl.col("time").min().alias("first_time"),
                pl.col("time").max().alias("last_time"),
                exemplar.head(MAX_EXEMPLARS).alias("exemplars"),
            )
            .join(totals, on="service_name", how="left", nulls_equal=True)
            .with_columns(
                kind=pl.lit(kind),
                severity=pl.lit(severity),
                cause=pl.lit("unknown"),
                boundary=pl.lit("same"),
                confidence=pl.lit(1.0),
                n_at_capture_edge=pl.lit(0),
                from_service=pl.col("service_name"),
                to_service=pl.lit(None, pl.String),
            )
        )
        findings += (
            _finding(
                "audit",
                row,
                denominator=row["spans"] or 0,
                operation=row["signature"],
                advice="Record the error where it is handled: status, exception and error.type.",
                title=f"{row['count']:,} errors of {_name(row['service_name'])}: {meaning}"
                + (f" (looks like {row['signature']})" if row["signature"] else ""),
            )
            for row in _top(groups).iter_rows(named=True)
        )
    return _finish(findings)


def _iso(column: str) -> pl.Expr:
    return pl.col(column).dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ")


def _top(groups: pl.DataFrame) -> pl.DataFrame:
    rank = pl.col("severity").replace_strict(_SEVERITY_ORDER, default=9)
    return groups.sort([rank, pl.col("count")], descending=[False, True], maintain_order=True).head(
        MAX_FINDINGS
    )


def _finish(findings: Any) -> list[Finding]:
    return sorted(
        findings,
        key=lambda f: (_SEVERITY_ORDER.get(f.severity, 9), -f.count, f.finding_id),
    )


def _finding(
    subject: str,
    row: dict[str, Any],
    *,
    denominator: int,
    operation: str | None,
    advice: str,
    title: str,
) -> Finding:
    place = (
        subject,
        row["kind"],
        row["cause"],
        row["boundary"],
        row["from_service"],
        row["to_service"],
        row.get("service_name"),
        operation,
    )
    total = max(denominator, row["count"])
    low, high = wilson_interval(np.array([row["count"]]), np.array([total]))
    exemplars = tuple(
        {
            key: list(value)[:_MAX_EVIDENCE] if isinstance(value, list) else value
            for key, value in exemplar.items()
        }
        for exemplar in row["exemplars"]
    )
    best = exemplars[0] if exemplars else {}
    return Finding(
        finding_id=hashlib.sha256("\x1f".join(map(str, place)).encode()).hexdigest()[:12],
        subject=subject,
        kind=row["kind"],
        cause=row["cause"],
        boundary=row["boundary"],
        severity=row["severity"],
        from_service=row["from_service"],
        to_service=row["to_service"],
        operation=operation,
        count=row["count"],
        denominator=total,
        rate=row["count"] / total,
        rate_low=float(low[0]),
        rate_high=float(high[0]),
        confidence=round(row["confidence"] or 0.0, 4),
        n_at_capture_edge=int(row["n_at_capture_edge"] or 0),
        first_time=_text_time(row["first_time"]),
        last_time=_text_time(row["last_time"]),
        title=title,
        advice=advice,
        evidence=tuple(best.get("evidence") or ()),
        alternatives=tuple(best.get("alternatives") or ()),
        exemplars=exemplars,
    )


def _text_time(time: Any) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")


def _name(service: str | None) -> str:
    return service or "a service without a name"


_SAID_BY_KIND: Final = frozenset(
    {"unknown", "context_not_propagated", "context_leak", "duplicate_export"}
)
"""Causes that add nothing to what the kind of a break says already."""


def _break_title(row: dict[str, Any]) -> str:
    count, service = row["count"], _name(row["service_name"])
    spans = "span" if count == 1 else "spans"
    meaning = wording.KIND_MEANING.get(row["kind"], row["kind"])
    hop = ""
    if row["from_service"] and row["to_service"] and row["from_service"] != row["to_service"]:
        hop = f" on the hop {row['from_service']} → {row['to_service']}"
    cause = "" if row["cause"] in _SAID_BY_KIND else f"; {wording.CAUSE_MEANING[row['cause']]}"
    if row["cause"] == "context_not_propagated" and row["boundary"] != "unknown":
        cause = f" ({wording.BOUNDARY_MEANING[row['boundary']]})"
    name = "" if row["whole"] else f" '{row['span_name']}'"
    return f"{count:,} {spans}{name} of {service}{hop}: {meaning}{cause}"


def _hop_title(row: dict[str, Any]) -> str:
    meaning = wording.VERDICT_MEANING[row["kind"]]
    error = row["child_type"] or "error"
    place = f"in {_name(row['from_service'])}"
    if row["from_service"] != row["to_service"]:
        place = f"of {_name(row['from_service'])}, called by {_name(row['to_service'])}"
    return f"{row['count']:,} × {error} {place}: {meaning}"
