"""Every analysis in one go, over a capture in memory or a store's buckets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from tracelab import html, schema
from tracelab.audits import chain_integrity
from tracelab.errors_chain import audit_errors, find_error_hops, parse_exceptions
from tracelab.export.case import Case, versions, write_case
from tracelab.export.findings import Finding, group_audit, group_breaks, group_error_hops
from tracelab.rules import WarningRule, backtest_rules, derive_rules
from tracelab.signals import find_lead_lags, red_series
from tracelab.structure import find_breaks, span_edges
from tracelab.traceset import TraceSet

Progress = Callable[[str], None]

_SEVERITIES: Final = ("error", "warning", "info")


@dataclass(frozen=True, repr=False)
class Investigation:
    """All findings of a capture and the tables they rest on.

    Parameters
    ----------
    findings : tuple of Finding
        Most severe and most frequent first.
    breaks, error_hops, exceptions, error_audit : pl.DataFrame
        Schemas BREAKS, ERROR_HOPS, EXCEPTIONS and ERROR_AUDIT.
    red, lead_lags, rule_scores, integrity : pl.DataFrame
        Schemas RED, LEAD_LAGS, RULE_SCORES and INTEGRITY.
    ingest, rejects : pl.DataFrame
        Schemas INGEST and REJECTS.
    rules : tuple of WarningRule
        Early-warning rules, proven on later time or marked unproven.
    summary, provenance : dict
        Counts of what was there and checked; sources, versions, parameters.
    """

    findings: tuple[Finding, ...]
    breaks: pl.DataFrame
    error_hops: pl.DataFrame
    exceptions: pl.DataFrame
    error_audit: pl.DataFrame
    red: pl.DataFrame
    lead_lags: pl.DataFrame
    rule_scores: pl.DataFrame
    integrity: pl.DataFrame
    ingest: pl.DataFrame
    rejects: pl.DataFrame
    rules: tuple[WarningRule, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def worst_severity(self) -> str | None:
        """Return the highest severity among the findings, None if there is none."""
        present = {finding.severity for finding in self.findings}
        return next((severity for severity in _SEVERITIES if severity in present), None)

    def write(self, out: str | Path) -> Path:
        """Write findings, report, tables and rules to a folder.

        Parameters
        ----------
        out : str or Path
            Folder; made if it is not there. Files of an earlier case are replaced.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        SourceError
            If the folder cannot be written.
        """
        return write_case(self._case(), Path(out))

    def _case(self) -> Case:
        return Case(
            findings=self.findings,
            summary=self.summary,
            provenance=self.provenance,
            rules=self.rules,
            tables={
                "breaks": self.breaks,
                "error_hops": self.error_hops,
                "exceptions": self.exceptions,
                "lead_lags": self.lead_lags,
                "red": self.red,
                "integrity": self.integrity,
            },
        )

    def __repr__(self) -> str:
        lines = [html.plain(line, limit=400) for line in self.summary.get("text", ())]
        shown = [finding for finding in self.findings if finding.severity != "info"][:8]
        lines += [f"  [{f.severity}] {html.plain(f.title, limit=160)}" for f in shown]
        more = len(self.findings) - len(shown)
        if more:
            lines.append(f"  … {more} more findings in `.findings`")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            (f.severity, f.count, f.title, f.cause, f"{f.confidence:.2f}")
            for f in self.findings[:12]
        ]
        head = "".join(f"<p>{html.escape(line)}</p>" for line in self.summary.get("text", ()))
        return head + html.table(("severity", "count", "finding", "cause", "confidence"), rows)


def investigate(
    traces: TraceSet,
    *,
    every: str = "30s",
    window: str = "5m",
    progress: Progress | None = None,
) -> Investigation:
    """Run every analysis over a capture.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    every : str
        Bin of the request, error and latency series.
    window : str
        Window of the chain-integrity SLI.
    progress : callable, optional
        Called with the name of each step before it starts.

    Returns
    -------
    Investigation
        Findings and the tables behind them.

    Raises
    ------
    ParameterError
        If `every` or `window` is no duration in its range.
    """
    say = progress or (lambda step: None)
    say("edges between spans")
    edges = span_edges(traces)
    say("where traces break")
    breaks = find_breaks(traces)
    say("exceptions")
    exceptions = parse_exceptions(traces)
    say("error records")
    audit = audit_errors(traces)
    say("what became of each error")
    hops = find_error_hops(traces, edges=edges, breaks=breaks, exceptions=exceptions)
    say("chain integrity")
    integrity = chain_integrity(traces, hops=hops, breaks=breaks, every=window)
    say("request, error and latency series")
    red = red_series(traces, every=every)
    say("what precedes what")
    leads = find_lead_lags(red)
    rules = derive_rules(red, leads=leads)
    scores = backtest_rules(rules, red)
    operations = traces.spans.group_by("service_name", pl.col("name").alias("span_name")).agg(
        pl.len().alias("spans")
    )
    findings = tuple(group_breaks(breaks, operations) + group_error_hops(hops) + group_audit(audit))
    return Investigation(
        findings=findings,
        breaks=breaks,
        error_hops=hops,
        exceptions=exceptions,
        error_audit=audit,
        red=red,
        lead_lags=leads,
        rule_scores=scores,
        integrity=integrity,
        ingest=traces.ingest,
        rejects=traces.rejects,
        rules=tuple(rules),
        summary=_summarise(traces, edges, breaks, hops, leads, rules),
        provenance={
            "sources": traces.ingest.select(
                "source", "sha256", "form", "bytes", "spans_kept", "rejects"
            ).to_dicts(),
            "versions": versions(),
            "parameters": {"every": every, "window": window},
        },
    )


def _summarise(
    traces: TraceSet,
    edges: pl.DataFrame,
    breaks: pl.DataFrame,
    hops: pl.DataFrame,
    leads: pl.DataFrame,
    rules: list[WarningRule],
) -> dict[str, Any]:
    spans = traces.spans
    services = spans["service_name"].drop_nulls().unique().sort().to_list()
    by_severity = dict(breaks.group_by("severity").len().iter_rows())
    start, end = spans["start_time"].min(), spans["end_time"].max()
    checked = spans["parent_span_id"].count()
    serious = sum(by_severity.get(severity, 0) for severity in ("error", "warning"))
    verdicts = dict(hops.group_by("verdict").len().iter_rows())
    lost = sum(verdicts.get(word, 0) for word in ("swallowed", "flattened", "status_lost"))
    text = [
        f"{traces.n_traces:,} traces, {spans.height:,} spans of {len(services)} services"
        + (f", {start:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC" if start and end else ""),
        f"{serious:,} broken places in {checked:,} checked parent references"
        if serious
        else f"Nothing broken in {checked:,} checked parent references",
        f"{hops.height:,} error hops followed: {lost:,} swallowed, flattened or with lost status",
    ]
    if rules:
        text.append(f"{len(rules)} early-warning rules out of {leads.height:,} pairs tried")
    elif leads.height:
        text.append(f"No early-warning rule: {leads.height:,} pairs tried, none accepted")
    if traces.rejects.height:
        text.append(f"{traces.rejects.height:,} pieces of input could not be read (see rejects)")
    return {
        "traces": traces.n_traces,
        "spans": spans.height,
        "services": services,
        "start_time": None if start is None else str(start),
        "end_time": None if end is None else str(end),
        "checked_hops": int(checked),
        "breaks": {severity: by_severity.get(severity, 0) for severity in schema.SEVERITIES},
        "error_hops": {word: verdicts.get(word, 0) for word in schema.HOP_VERDICTS},
        "text": text,
    }
