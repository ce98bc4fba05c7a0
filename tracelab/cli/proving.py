"""Commands that prove: the bytes behind a span, and a case that nobody changed."""

from pathlib import Path
from typing import Annotated

import typer

import tracelab as tl
from tracelab import html
from tracelab.cli.screen import EXIT_FINDINGS, guarded, open_capture, print_table, progress
from tracelab.export.custody import absent_sources
from tracelab.export.redaction import Redactor


def evidence(
    source: Annotated[str, typer.Argument(metavar="SRC", help="File, folder, glob or store.")],
    trace_id: Annotated[str, typer.Argument(help="Trace id, as hex.")],
    span_id: Annotated[str, typer.Argument(help="Span id, as hex.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the message's bytes to this file.")
    ] = None,
) -> None:
    """Show where a span's bytes stand, secrets masked on the screen; -o writes them as they are."""
    with progress() as step:
        opened = open_capture([source], step)
        step("looking for the message")
        found = tl.evidence(opened, trace_id, span_id)
    facts = {
        "source": found.source,
        "SHA-256 of the source": found.sha256,
        "offset": found.offset,
        "length": found.length,
        "line": found.line if found.line is not None else "",
        "encoding": found.encoding,
    }
    print_table(["what", "value"], facts.items(), title=f"span {html.plain(span_id)}")
    if out is None:
        text = found.raw.decode("utf-8", "backslashreplace")
        print(html.plain(Redactor().text(text), limit=1000))
    else:
        guarded(out, lambda: out.write_bytes(found.raw))
        print(f"wrote {out}")


def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that investigate wrote.")],
) -> None:
    """Prove that no byte of a written case changed; exit 1 and name what did."""
    problems = tl.verify_case(out)
    for path, problem in problems.iter_rows():
        print(f"{html.plain(path)}: {html.plain(problem)}")
    checked = _sources_checked(*absent_sources(out))
    if problems.height:
        print(checked)
        raise typer.Exit(EXIT_FINDINGS)
    print(f"every file of the case is as it was written; {checked}")


def _sources_checked(absent: list[str], n_sources: int) -> str:
    if not n_sources:
        return "it names no source that could be checked"
    if not absent:
        return f"{n_sources} of {n_sources} sources checked"
    few = ", ".join(html.plain(name) for name in absent[:3])
    more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    return f"{len(absent)} of {n_sources} sources not checked, as no file is there: {few}{more}"
