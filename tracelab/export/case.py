"""A case as a folder: findings, tables, rules, report."""

import io
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import polars as pl

from tracelab.exceptions import SourceError
from tracelab.export.custody import MANIFEST, render_manifest
from tracelab.export.document import render_findings_json, render_markdown
from tracelab.export.findings import Finding
from tracelab.export.report import Picture, render_report
from tracelab.rules import (
    WarningRule,
    render_grafana_dashboard,
    render_prometheus_rules,
    render_prometheus_tests,
)

RULE_FILES: Final = ("prometheus-rules.yml", "prometheus-rules.test.yml", "grafana-dashboard.json")
_LIBRARIES: Final = ("tracelab", "polars", "pyarrow", "numpy", "scipy", "networkx")


@dataclass(frozen=True)
class Case:
    """What is written: findings, tables by file name, rules, and where all came from."""

    findings: Sequence[Finding]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rules: Sequence[WarningRule]
    pictures: Sequence[Picture]
    tables: Mapping[str, pl.DataFrame]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide results."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def write_case(case: Case, out: Path) -> Path:
    """Write a case to a folder, each file whole or not at all.

    Parameters
    ----------
    case : Case
        What to write.
    out : Path
        Folder; made if it is not there.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SourceError
        If the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, table in case.tables.items():
            _replace(out / f"{name}.parquet", lambda path, t=table: path.write_bytes(_parquet(t)))
        texts = {
            "findings.json": render_findings_json(
                case.findings,
                summary=case.summary,
                provenance=case.provenance,
                rules=[rule.to_dict() for rule in case.rules],
            ),
            "findings.md": render_markdown(
                case.findings, summary=case.summary, rules=[str(rule) for rule in case.rules]
            ),
            "report.html": render_report(
                case.findings,
                summary=case.summary,
                provenance=case.provenance,
                rules=[str(rule) for rule in case.rules],
                lead_lags=case.tables["lead_lags"],
                pictures=case.pictures,
            ),
        }
        for name, text in texts.items():
            _replace(out / name, lambda path, t=text: path.write_text(t, encoding="utf-8"))
        write_rules(case.rules, case.tables["red"], out / "rules")
        tables = (f"{name}.parquet" for name in case.tables)
        names = [*tables, *texts, *(f"rules/{name}" for name in RULE_FILES)]
        manifest = render_manifest(out, names, case.provenance)
        _replace(out / MANIFEST, lambda path: path.write_text(manifest, encoding="utf-8"))
    except OSError as error:
        raise SourceError(
            f"cannot write findings to {out}: {error.strerror or error}; "
            "choose another folder with -o"
        ) from error
    return out


def write_rules(rules: Sequence[WarningRule], red: pl.DataFrame, out: Path) -> Path:
    """Write rules, their promtool tests and a dashboard.

    Parameters
    ----------
    rules : sequence of WarningRule
        From `derive_rules`.
    red : pl.DataFrame
        Schema RED, from which the tests take their series.
    out : Path
        Folder; made if it is not there.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    dashboard = json.dumps(render_grafana_dashboard(rules), indent=1, sort_keys=True)
    texts = (
        render_prometheus_rules(rules),
        render_prometheus_tests(rules, red),
        dashboard + "\n",
    )
    for name, text in zip(RULE_FILES, texts, strict=True):
        _replace(out / name, lambda path, t=text: path.write_text(t, encoding="utf-8"))
    return out


def _parquet(table: pl.DataFrame) -> memoryview:
    # Written by polars itself, a full disk would be an error of polars and not of the system.
    whole = io.BytesIO()
    table.write_parquet(whole)
    return whole.getbuffer()


def _replace(target: Path, write: Any) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
