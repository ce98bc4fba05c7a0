"""Every analysis in one go, over a capture in memory or a store's buckets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from tracelab import html, schema
from tracelab.audits.digest import render_digest
from tracelab.audits.integrity import Tiers
from tracelab.cluster import connected
from tracelab.exceptions import ParameterError, SourceError
from tracelab.export.case import Case, versions, write_case, write_rules
from tracelab.export.findings import Finding, group_audit, group_breaks, group_error_hops
from tracelab.export.redaction import Redaction, Redactor, case_key, redact_traces
from tracelab.pictures import case_pictures
from tracelab.rules import WarningRule, backtest_rules, derive_rules
from tracelab.signals import find_lead_lags, neighbour_pairs
from tracelab.store import TraceStore
from tracelab.survey import Survey, call_edges, survey
from tracelab.traceset import Moment, TraceSet, time_range

Progress = Callable[[str], None]

MAX_EXHIBITS: Final = 12

_WRITTEN: Final = ("breaks", "error_hops", "exceptions", "lead_lags", "red", "integrity")
_TABLES: Final = (*_WRITTEN, "error_audit", "rule_scores")
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
    calls : pl.DataFrame
        parent_service, child_service, boundary, calls: how often which service called which.
    exhibits : TraceSet
        The traces that the report draws.
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
    calls: pl.DataFrame
    exhibits: TraceSet
    rules: tuple[WarningRule, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def worst_severity(self) -> str | None:
        """Return the highest severity among the findings, None if there is none."""
        present = {finding.severity for finding in self.findings}
        return next((severity for severity in _SEVERITIES if severity in present), None)

    def redact(self, mode: Redaction = "secrets") -> "Investigation":
        """Return the case with what looks like a secret masked in every text of it.

        Parameters
        ----------
        mode : {"secrets", "values", "none"}
            ``"secrets"`` masks credentials, e-mail addresses and card numbers; ``"values"``
            also every attribute value, message and stack; ``"none"`` nothing.

        Returns
        -------
        Investigation
            The same findings, counts and rows; equal values have equal masks.

        Raises
        ------
        ParameterError
            If `mode` is none of its words.
        """
        redactor = Redactor(mode)
        if mode == "none":
            return self
        tables = {name: getattr(self, name) for name in (*_TABLES, "rejects", "ingest", "calls")}
        shown = self.exhibits
        redactor = Redactor(mode, key=case_key([*tables.values(), shown.spans, shown.events]))
        return replace(
            self,
            **{name: redactor.frame(table) for name, table in tables.items()},
            exhibits=redact_traces(shown, redactor),
            findings=redactor.document(self.findings),
            summary=redactor.document(self.summary),
            provenance=redactor.document(self.provenance),
            rules=redactor.document(self.rules),
        )

    def write(self, out: str | Path, *, redact: Redaction = "secrets") -> Path:
        """Write findings, report, tables and rules to a folder.

        Parameters
        ----------
        out : str or Path
            Folder; made if it is not there. Files of an earlier case are replaced.
        redact : {"secrets", "values", "none"}
            What is masked in all that is written; see `redact`.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        SourceError
            If the folder cannot be written.
        ParameterError
            If `redact` is none of its words.
        """
        return write_case(self.redact(redact)._case(), Path(out))

    def write_rules(self, out: str | Path, *, redact: Redaction = "secrets") -> Path:
        """Write only the early-warning rules, their tests and the dashboard.

        Parameters
        ----------
        out : str or Path
            Folder; made if it is not there.
        redact : {"secrets", "values", "none"}
            What is masked in what is written; see `redact`.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        SourceError
            If the folder cannot be written.
        ParameterError
            If `redact` is none of its words.
        """
        try:
            case = self.redact(redact)
            return write_rules(case.rules, case.red, Path(out))
        except OSError as error:
            raise SourceError(
                f"cannot write rules to {out}: {error.strerror}; choose another folder"
            ) from error

    def _case(self) -> Case:
        drawable = set(self.exhibits.spans["trace_id"].unique())
        return Case(
            findings=self.findings,
            summary=self.summary,
            provenance=self.provenance,
            rules=self.rules,
            pictures=case_pictures(
                self.exhibits,
                examples={
                    trace_id: title
                    for trace_id, title in _exhibits(self.findings).items()
                    if trace_id in drawable
                },
                calls=self.calls,
                breaks=self.breaks,
                error_hops=self.error_hops,
                integrity=self.integrity,
                lead_lags=self.lead_lags,
                ingest=self.ingest,
            ),
            tables={name: getattr(self, name) for name in _WRITTEN},
        )

    def __repr__(self) -> str:
        mask = Redactor().text
        lines = [html.plain(mask(line), limit=400) for line in self.summary.get("text", ())]
        shown = [finding for finding in self.findings if finding.severity != "info"][:8]
        lines += [f"  [{f.severity}] {html.plain(mask(f.title), limit=160)}" for f in shown]
        more = len(self.findings) - len(shown)
        if more:
            lines.append(f"  … {more} more findings in `.findings`")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        mask = Redactor().text
        rows = [(f.severity, f.count, mask(f.title), f.why, f.how_sure) for f in self.findings[:12]]
        head = "".join(f"<p>{html.escape(mask(line))}</p>" for line in self.summary.get("text", ()))
        return head + html.table(("severity", "count", "finding", "cause", "confidence"), rows)


def investigate(
    traces: TraceSet | TraceStore,
    *,
    engine: Any = "local",
    workers: int | None = None,
    every: str = "30s",
    window: str = "5m",
    pairs: Literal["neighbours", "all"] = "neighbours",
    start: Moment | None = None,
    end: Moment | None = None,
    progress: Progress | None = None,
) -> Investigation:
    """Run every analysis over a capture.

    Parameters
    ----------
    traces : TraceSet or TraceStore
        The capture, in memory or on disk.
    engine : str or distributed.Client
        Where a store's buckets are worked on: ``"local"`` (processes of this machine),
        ``"dask"``, ``"tcp://host:port"``, a scheduler file, or a connected client.
    workers : int, optional
        Processes of a local engine; one per core if left out.
    every : str
        Bin of the request, error and latency series, 5 s to 5 min.
    window : str
        Window of the chain-integrity SLI.
    pairs : {"neighbours", "all"}
        Which pairs of services are tried for early warning: those at most three calls apart
        (fewer tests, more power), or all.
    start, end : datetime, str or int, optional
        Only traces that begin from `start` on and before `end`: text in ISO 8601, UTC if no
        zone is told, or nanoseconds since 1970. Of a store the rest is not read (see
        `TraceStore.between`).
    progress : callable, optional
        Called with the name of each step before it starts.

    Returns
    -------
    Investigation
        Findings and the tables behind them.

    Raises
    ------
    ParameterError
        If `every` or `window` is no duration in its range, `pairs` none of its words, or
        `start` or `end` no time.
    EngineError
        If the engine cannot be reached or died.
    """
    if pairs not in ("neighbours", "all"):
        raise ParameterError(f"pairs={pairs!r}: choose neighbours or all")
    if isinstance(traces, TraceSet) and engine != "local":
        raise ParameterError(
            f"engine={engine!r} works on stores only; `tracelab ingest SRC --store DIR` makes one"
        )
    say = progress or (lambda step: None)
    first, last = time_range(start, end)
    chosen = traces if first is last is None else traces.between(first, last)
    with connected(engine, workers=workers, progress=say) as cluster:
        return _investigate(
            chosen,
            engine=cluster or "local",
            workers=workers,
            every=every,
            window=window,
            pairs=pairs,
            period={"start": first, "end": last},
            say=say,
        )


def _investigate(
    traces: TraceSet | TraceStore,
    *,
    engine: Any,
    workers: int | None,
    every: str,
    window: str,
    pairs: Literal["neighbours", "all"],
    period: dict[str, int | None],
    say: Progress,
) -> Investigation:
    seen = survey(traces, every=every, window=window, engine=engine, workers=workers, say=say)
    say("what precedes what")
    red = seen.errors.red
    near = neighbour_pairs(call_edges(seen.calls)) if pairs == "neighbours" else None
    leads = find_lead_lags(red, pairs=near)
    rules = derive_rules(red, leads=leads)
    say("findings")
    findings = (
        group_breaks(seen.breaks, seen.operations)
        + group_error_hops(seen.errors.hops)
        + group_audit(seen.errors.audit)
    )
    findings.sort(key=lambda finding: _SEVERITIES.index(finding.severity))
    ingest = traces.ingest_table if isinstance(traces, TraceStore) else traces.ingest
    exhibits = traces.select_traces(list(_exhibits(findings)))
    return Investigation(
        findings=tuple(findings),
        breaks=seen.breaks,
        error_hops=seen.errors.hops,
        exceptions=seen.errors.exceptions,
        error_audit=seen.errors.audit,
        red=red,
        lead_lags=leads,
        rule_scores=backtest_rules(rules, red),
        integrity=seen.errors.integrity,
        ingest=ingest,
        rejects=traces.rejects,
        calls=seen.calls,
        exhibits=exhibits,
        rules=tuple(rules),
        summary=_summarise(seen, traces.rejects, leads, rules, period),
        provenance={
            "sources": ingest.select(
                "source", "sha256", "form", "bytes", "spans_kept", "rejects"
            ).to_dicts(),
            "versions": versions(),
            "parameters": {"every": every, "window": window, "pairs": pairs, **period},
        },
    )


def _exhibits(findings: Iterable[Finding]) -> dict[str, str]:
    """Traces worth a picture: the best example of each serious finding, and where it points.

    Each comes with the finding's title.
    """
    shown: dict[str, str] = {}
    for finding in findings:
        if finding.severity == "info" or len(shown) >= MAX_EXHIBITS:
            break
        for case in finding.exemplars[:1]:
            for name in ("proposed_trace_id", "trace_id"):
                if case.get(name):
                    shown.setdefault(case[name], finding.title)
    return shown


def _summarise(
    seen: Survey,
    rejects: pl.DataFrame,
    leads: pl.DataFrame,
    rules: list[WarningRule],
    period: dict[str, int | None],
) -> dict[str, Any]:
    services = seen.operations["service_name"].drop_nulls().unique().sort().to_list()
    by_severity = dict(seen.breaks.group_by("severity").len().iter_rows())
    verdicts = dict(seen.errors.hops.group_by("verdict").len().iter_rows())
    serious = sum(by_severity.get(severity, 0) for severity in ("error", "warning"))
    when = ""
    if seen.start is not None and seen.end is not None:
        when = f", {seen.start:%Y-%m-%d %H:%M:%S} to {seen.end:%Y-%m-%d %H:%M:%S} UTC"
    text = [
        f"{seen.n_traces:,} traces, {seen.n_spans:,} spans of {len(services):,} services{when}",
        f"{serious:,} broken places in {seen.n_spans:,} spans: {_by_kind(seen.breaks)}"
        if serious
        else f"Nothing broken among {seen.n_parents:,} parent references checked"
        if seen.n_spans
        else "No span was read: nothing could be checked",
    ]
    if (chosen := _period_line(period)) is not None:
        text.insert(1, chosen)
    if seen.errors.hops.height:
        fates = ", ".join(
            f"{verdicts[word]:,} {word.replace('_', ' ')}"
            for word in schema.HOP_VERDICTS
            if word in verdicts
        )
        text.append(f"{seen.errors.hops.height:,} hops of errors followed: {fates}")
    else:
        text.append("No error to follow")
    text += _integrity_line(seen.errors.integrity)
    hiding, successful = (
        seen.errors.digest.hidden[name].sum() for name in ("hiding", "successful")
    )
    if hiding:
        text.append(
            f"{hiding:,} of {successful:,} successful requests, counted at each service, hide a "
            "failure below them that was swallowed or retried"
        )
    mixed = seen.errors.digest.mixed.height
    if mixed:
        text.append(f"{mixed:,} traces carry more than one tenant")
    if rules:
        proven = sum(rule.status == "proven" for rule in rules)
        text.append(
            f"{len(rules):,} early-warning rules, {proven:,} of them proven on later time, from "
            f"{leads.height:,} pairs tried"
        )
    elif leads.height:
        few = (leads["verdict"] == "undecidable").all()
        why = "each with too little to judge" if few else "none accepted"
        text.append(f"No early-warning rule: {leads.height:,} pairs tried, {why}")
    passed_over = rejects["reason"].str.starts_with("file passed over").sum()
    if passed_over:
        text.append(f"{passed_over:,} files passed over: no export")
    if rejects.height > passed_over:
        damaged = rejects.height - passed_over
        remarks = "1 remark" if damaged == 1 else f"{damaged:,} remarks"
        first = rejects.filter(~pl.col("reason").str.starts_with("file passed over"))
        text.append(f"{remarks} on damaged input, the first: {first['reason'][0]}")
    return {
        "traces": seen.n_traces,
        "spans": seen.n_spans,
        "services": services,
        "start_time": None if seen.start is None else str(seen.start),
        "end_time": None if seen.end is None else str(seen.end),
        "checked_hops": seen.n_parents,
        "breaks": {severity: by_severity.get(severity, 0) for severity in schema.SEVERITIES},
        "error_hops": {word: verdicts.get(word, 0) for word in schema.HOP_VERDICTS},
        **render_digest(seen.errors.digest),
        "text": text,
    }


def _period_line(period: dict[str, int | None]) -> str | None:
    """Say which traces were asked for; None if all."""
    words = [
        f"{word} {datetime.fromtimestamp(at // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"
        for word, at in (("from", period["start"]), ("before", period["end"]))
        if at is not None
    ]
    return f"Only traces that begin {' and '.join(words)}" if words else None


def _integrity_line(integrity: pl.DataFrame) -> list[str]:
    whole = integrity.filter(pl.col("service_name").is_null())
    traces, broken, open_ = (
        int(whole[name].sum()) for name in ("traces", "broken", "undetermined")
    )
    known = traces - open_
    if not known:
        return []
    rest = f", {open_:,} more cannot be judged" if open_ else ""
    return [
        f"Chain integrity {1 - broken / known:.1%}: {known - broken:,} of {known:,} traces are "
        f"whole{rest} (target {Tiers().target:.1%})"
    ]


def _by_kind(breaks: pl.DataFrame) -> str:
    """Count the kinds of serious breaks, the most frequent first."""
    counted = (
        breaks.filter(pl.col("severity") != "info")
        .group_by("kind")
        .len()
        .sort("len", "kind", descending=[True, False])
    )
    return ", ".join(
        f"{many:,} {kind.replace('_', ' ')}{'s' if many > 1 else ''}"
        for kind, many in counted.iter_rows()
    )
