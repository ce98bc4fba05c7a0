"""Count what each run holds, for the README of the captures."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Final

from tests.lab.exports import read_spans
from tests.lab.runs import BY_NAME

MARKS: Final = ("<!-- runs: written by python -m tests.lab -->", "<!-- end of runs -->")
FORMS: Final = {
    "json": "JSON lines",
    "json_zstd": "JSON, zstd",
    "proto_zstd": "protobuf, zstd",
    "proto_rotated": "protobuf, rotated",
    "grouped": "JSON lines, one file a service",
    "head_sampled": "JSON lines",
    "refusing": "protobuf, zstd",
}


def render_runs(out: Path) -> str:
    """Write the table of all runs of a folder: services, traces, spans, planted by kind."""
    lines = [
        "| run | form | services | traces | spans | planted, by kind (of these observable) |",
        "|---|---|---|---|---|---|",
    ]
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        run = BY_NAME[folder.name.rsplit("-", 1)[0]]
        spans = read_spans(folder)
        text = gzip.decompress((folder / "truth.jsonl.gz").read_bytes()).decode()
        rows = [json.loads(line) for line in text.splitlines()]
        planted = Counter(row["kind"] for row in rows)
        shown = Counter(row["kind"] for row in rows if row["observable"])
        kinds = ", ".join(f"{kind} {planted[kind]} ({shown[kind]})" for kind in sorted(planted))
        lines.append(
            f"| {folder.name} | {FORMS[run.collector]} | {len({s.service for s in spans})} "
            f"| {len({s.trace_id for s in spans})} | {len({(s.trace_id, s.span_id) for s in spans})} "
            f"| {kinds} |"
        )
    return "\n".join(lines)


def write_runs(out: Path) -> None:
    """Put the table into the folder's README, if it has one with a place for it."""
    path = out / "README.md"
    if not path.is_file():
        return
    before, rest = path.read_text().split(MARKS[0])
    _table, after = rest.split(MARKS[1])
    path.write_text(f"{before}{MARKS[0]}\n\n{render_runs(out)}\n\n{MARKS[1]}{after}")
