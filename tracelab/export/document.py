"""Findings as a JSON document with a published schema, and as Markdown."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any, Final

from tracelab import html
from tracelab.export import wording
from tracelab.export.findings import Finding

DOCUMENT_VERSION: Final = "1"


def read_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of findings.json that ships with the package."""
    text = resources.files("tracelab.export").joinpath("findings.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def render_findings_json(
    findings: Sequence[Finding],
    *,
    summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    rules: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render the findings document.

    Parameters
    ----------
    findings : sequence of Finding
        In the order in which they shall stand.
    summary : mapping
        Counts of the capture and of what was checked.
    provenance : mapping
        Sources with sha256, versions, parameters.
    rules : sequence of mapping
        Early-warning rules with their scores.

    Returns
    -------
    str
        JSON text, valid against `read_json_schema`, the same for the same input.
    """
    document = {
        "document_version": DOCUMENT_VERSION,
        "summary": summary,
        "findings": [asdict(finding) for finding in findings],
        "rules": list(rules),
        "provenance": provenance,
    }
    return json.dumps(document, indent=1, ensure_ascii=True, default=str) + "\n"


def render_markdown(
    findings: Sequence[Finding],
    *,
    summary: Mapping[str, Any],
    rules: Sequence[str] = (),
) -> str:
    """Render the findings as Markdown for a ticket or a chat.

    Parameters
    ----------
    findings : sequence of Finding
        Most severe first.
    summary : mapping
        As for `render_findings_json`; its ``text`` lines are shown.
    rules : sequence of str
        One sentence per early-warning rule.

    Returns
    -------
    str
        Markdown; foreign text is escaped, so that it opens no link, image or tag.
    """
    lines = ["# tracelab findings", ""]
    lines += [f"{_md(line)}  " for line in summary.get("text", ())]
    for severity in ("error", "warning", "info"):
        chosen = [finding for finding in findings if finding.severity == severity]
        if not chosen:
            continue
        lines += ["", f"## {severity.capitalize()} ({len(chosen)})"]
        for finding in chosen:
            lines += ["", f"### {_md(finding.title)}", "", *_markdown_finding(finding)]
    if not findings:
        lines += ["", "Nothing broken was found in what was checked."]
    if rules:
        lines += ["", "## Early-warning rules", "", *(f"- {_md(rule)}" for rule in rules)]
    return "\n".join(lines) + "\n"


def _markdown_finding(finding: Finding) -> list[str]:
    low, high = finding.rate_low or 0.0, finding.rate_high or 0.0
    broken = finding.severity != "info"
    lines = [
        f"- **how often**: {finding.count:,} of {finding.denominator:,} "
        f"({finding.rate or 0.0:.1%}, 95 % interval {low:.1%} to {high:.1%})",
        *(
            # An unknown cause is an answer to "why did it break", not to what became of an error.
            [f"- **cause**: {finding.cause}: {wording.CAUSE_MEANING.get(finding.cause, '')}"]
            if finding.cause != "unknown" or (finding.subject == "break" and broken)
            else []
        ),
        f"- **boundary**: {finding.boundary}"
        # Sure of the break, not of its cause: a number beside "unknown" would say otherwise.
        + (
            ""
            if finding.subject == "break" and finding.cause == "unknown"
            else f", **confidence** {finding.confidence:.2f}"
        ),
    ]
    lines += [f"- evidence: {_md(text)}" for text in finding.evidence]
    lines += [f"- not excluded: {_md(text)}" for text in finding.alternatives]
    if finding.exemplars:
        shown = ", ".join(
            f"`{_code(case['trace_id'])}` / `{_code(case['span_id'])}`"
            for case in finding.exemplars[:3]
        )
        lines.append(f"- examples (trace / span): {shown}")
    if finding.advice:
        lines.append(f"- **what to do**: {finding.advice}")
    return lines


_MARKDOWN_SPECIAL: Final = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_{}[]#+!|~"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;"}
)
# A colon makes a link or an emoji only before a letter or slash, a dash a list or rule only
# outside a word; elsewhere they stay, so that times and dates can be read as they stand.
_LINKING_COLON: Final = re.compile(r":(?![\s\d]|$)")
_LOOSE_DASH: Final = re.compile(r"(?<![0-9A-Za-z])-|-(?![0-9A-Za-z])")


def _md(text: object) -> str:
    escaped = html.plain(text).translate(_MARKDOWN_SPECIAL)
    return _LOOSE_DASH.sub(r"\\-", _LINKING_COLON.sub("&#58;", escaped))


def _code(text: object) -> str:
    return html.plain(text, limit=80).replace("`", "'").replace("|", "/")
