"""The report: one HTML file that needs nothing else."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import polars as pl
from jinja2 import Environment
from markupsafe import Markup

from tracelab import html
from tracelab.export import wording
from tracelab.export.findings import Finding

MAX_SERIOUS: Final = 40
MAX_INFORMATIONAL: Final = 20
_MAX_LEADS: Final = 20
_OF: Final = {
    "break": "spans like it",
    "error": "failures on this hop",
    "audit": "errors of this service",
}
_MAX_SOURCES: Final = 200

_STARTER: Final = """
for (const block of document.querySelectorAll("script.figure")) {
  const spec = JSON.parse(block.textContent);
  Plotly.newPlot(block.dataset.target, spec.data, spec.layout,
    {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"]});
}
"""

_GLOSSARY: Final = (
    ("Kinds of break", wording.KIND_MEANING),
    ("Causes", wording.CAUSE_MEANING),
    ("Boundaries", wording.BOUNDARY_MEANING),
    ("What became of an error", wording.VERDICT_MEANING),
)


@dataclass(frozen=True)
class Picture:
    """A plotly figure as JSON, and what it shows in words."""

    caption: str
    spec: str


def render_report(
    findings: Sequence[Finding],
    *,
    summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    rules: Sequence[str] = (),
    lead_lags: pl.DataFrame | None = None,
    pictures: Sequence[Picture] = (),
    title: str = "tracelab report",
) -> str:
    """Render findings, pictures, rules and accounting as one HTML page.

    The page carries its scripts and a content security policy that allows these and nothing
    else: it opens no connection and runs nothing that foreign text could bring in.

    Parameters
    ----------
    findings : sequence of Finding
        Most severe first.
    summary, provenance : mapping
        As for `render_findings_json`.
    rules : sequence of str
        One sentence per early-warning rule.
    lead_lags : pl.DataFrame, optional
        Schema LEAD_LAGS.
    pictures : sequence of Picture
        Figures in order.
    title : str
        Heading of the page.

    Returns
    -------
    str
        HTML, the same for the same input.
    """
    assets = resources.files("tracelab.export").joinpath("assets")
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        assets.joinpath("report.html.j2").read_text("utf-8")
    )
    plotly = assets.joinpath("plotly.min.js").read_text("utf-8") if pictures else ""
    # A closing tag inside the library's own text would end the script block early.
    plotly = plotly.replace("</script", "<\\/script")
    serious = [finding for finding in findings if finding.severity != "info"]
    informational = [finding for finding in findings if finding.severity == "info"]
    leads = [] if lead_lags is None else _best_leads(lead_lags)
    return template.render(
        title=title,
        script_hashes=" ".join(_hash(text) for text in (plotly, _STARTER) if pictures) or "'none'",
        summary_text=[html.plain(line, limit=500) for line in summary.get("text", ())],
        serious=serious[:MAX_SERIOUS],
        left_out=max(len(serious) - MAX_SERIOUS, 0),
        informational=informational[:MAX_INFORMATIONAL],
        card=_card,
        figures=[
            {"caption": html.plain(picture.caption), "spec": Markup(_json_text(picture.spec))}
            for picture in pictures
        ],
        rules=[html.plain(rule, limit=1000) for rule in rules],
        leads=leads,
        n_leads=0 if lead_lags is None else lead_lags.height,
        sources=[
            {name: html.plain(value) for name, value in source.items()}
            for source in provenance.get("sources", ())[:_MAX_SOURCES]
        ],
        versions=sorted(provenance.get("versions", {}).items()),
        glossary=[(heading, sorted(words.items())) for heading, words in _GLOSSARY],
        plotly=Markup(plotly),
        starter=Markup(_STARTER),
    )


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json_text(spec: str) -> str:
    return (
        spec.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _best_leads(lead_lags: pl.DataFrame) -> list[dict[str, str]]:
    """List the likeliest pairs; those of one verdict for one reason share a line."""
    best = (
        lead_lags.sort("accepted", "p_value", descending=[True, False], nulls_last=True)
        .group_by("verdict", "reason", maintain_order=True)
        .agg(pl.col("trigger_service", "target_service").first(), pl.len())
        .with_columns(others=pl.col("len") - 1)
    )
    return [
        {
            "trigger": html.plain(row["trigger_service"]),
            "target": html.plain(row["target_service"])
            + (f", and {row['others']:,} more pairs" if row["others"] else ""),
            "verdict": html.plain(row["verdict"]),
            "reason": html.plain(row["reason"]),
        }
        for row in best.head(_MAX_LEADS).iter_rows(named=True)
    ]


def _card(finding: Finding, number: int) -> Markup:
    facts = [
        (
            "how often",
            f"{finding.count:,} of {finding.denominator:,} {_OF.get(finding.subject, '')} "
            f"({finding.rate or 0:.1%}; 95 % interval "
            f"{finding.rate_low or 0:.1%} to {finding.rate_high or 0:.1%})",
        ),
    ]
    if finding.why:
        facts.append(("why", f"{finding.why}: {wording.CAUSE_MEANING.get(finding.why, '')}"))
    if finding.subject == "break":
        where = f"{finding.boundary}: {wording.BOUNDARY_MEANING.get(finding.boundary, '')}"
        facts.append(("where", where))
    if finding.how_sure:
        facts.append(("how sure", f"{finding.how_sure} of 1"))
    facts += [("evidence", "; ".join(finding.evidence))] if finding.evidence else []
    facts += [("not excluded", ", ".join(finding.alternatives))] if finding.alternatives else []
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value, limit=1200)}</dd>"
        for name, value in facts
    )
    if finding.exemplars:
        examples = "".join(
            f"<li><code>{html.escape(_example(case), limit=600)}</code></li>"
            for case in finding.exemplars[:3]
        )
        rows += f"<dt>examples</dt><dd><ul>{examples}</ul></dd>"
    advice = (
        f"<p class='do'>What to do: {html.escape(finding.advice)}</p>" if finding.advice else ""
    )
    return Markup(
        f"<div class='finding {html.escape(finding.severity)}'>"
        f"<span class='tag'>{html.escape(finding.severity)}</span>"
        f"<h3>{number}. {html.escape(finding.title, limit=600)}</h3>{advice}<dl>{rows}</dl></div>"
    )


def _example(case: Mapping[str, Any]) -> str:
    text = f"trace {case['trace_id']}, span {case['span_id']}"
    if case.get("proposed_span_id"):
        text += (
            f"; probably called by span {case['proposed_span_id']} of trace "
            f"{case['proposed_trace_id']} ({case['proposed_confidence'] or 0:.2f})"
        )
    return text
