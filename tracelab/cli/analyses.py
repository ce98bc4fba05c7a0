"""Commands that look at captures: investigate, trace, rules, compare, repair."""

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.markup import escape
from rich.table import Table

import tracelab as tl
from tracelab import html
from tracelab.cli.screen import (
    EXIT_FINDINGS,
    AsJson,
    Engine,
    Sources,
    console,
    guarded,
    open_capture,
    print_table,
    progress,
    write_text,
)

Redact = Annotated[
    Literal["secrets", "values", "none"],
    typer.Option(help="Mask what looks like a secret, all attribute values too, or nothing."),
]

_SEVERITY_STYLE: Final = {"error": "bold red", "warning": "yellow", "info": "dim"}


def investigate(
    sources: Sources,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the findings.")],
    engine: Engine = "local",
    as_json: AsJson = False,
    fail_on: Annotated[
        Literal["warning", "error"] | None,
        typer.Option(help="Exit with 1 if there is a finding this severe."),
    ] = None,
    redact: Redact = "secrets",
    start: Annotated[
        str | None,
        typer.Option("--from", help="Only traces that begin at this time (UTC) or later."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="Only traces that begin before this time (UTC).")
    ] = None,
) -> None:
    """Run every analysis; print a summary, write findings, tables and rules."""
    with progress() as step:
        case = tl.investigate(
            open_capture(sources, step), engine=engine, start=start, end=end, progress=step
        )
        step("writing")
        case = case.redact(redact)
        case.write(out, redact="none")
    if as_json:
        print((out / "findings.json").read_text("utf-8"), end="")
    else:
        _print_case(case, out)
    ranks = {"info": 0, "warning": 1, "error": 2}
    worst = case.worst_severity()
    if fail_on and worst and ranks[worst] >= ranks[fail_on]:
        raise typer.Exit(EXIT_FINDINGS)


def _print_case(case: Any, out: Path) -> None:
    screen = console()
    for line in case.summary["text"]:
        screen.print(escape(html.plain(line, limit=400)))
    serious = [finding for finding in case.findings if finding.severity != "info"]
    if serious:
        table = Table(box=None, pad_edge=False)
        for name in ("severity", "count", "what", "cause", "confidence", "example trace"):
            table.add_column(name, overflow="fold", justify="right" if name == "count" else "left")
        for finding in serious[:15]:
            example = finding.exemplars[0]["trace_id"] if finding.exemplars else ""
            table.add_row(
                f"[{_SEVERITY_STYLE[finding.severity]}]{finding.severity}[/]",
                f"{finding.count:,}",
                escape(html.plain(finding.title)),
                finding.why,
                finding.how_sure,
                escape(html.plain(example, limit=40)),
            )
        screen.print()
        screen.print(table)
        if len(serious) > 15:
            screen.print(f"… {len(serious) - 15} more")
    n_info = len(case.findings) - len(serious)
    if n_info:
        screen.print(f"\n{n_info} informational findings (legal or certain but harmless).")
    screen.print(
        f"Written to {escape(str(out))}: report.html, findings.json, findings.md, tables, rules"
    )


def trace(
    source: Annotated[str, typer.Argument(metavar="SRC", help="File, folder, glob, store or -.")],
    trace_id: Annotated[str, typer.Argument(help="Trace id, as hex.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the trace as HTML instead.")
    ] = None,
    redact: Redact = "secrets",
) -> None:
    """Show one trace as a tree: services, times, boundaries, breaks, errors."""
    with progress() as step:
        opened = open_capture([source], step)
        step("where traces break, and why")
        view = tl.view_trace(opened, trace_id)
        shown = view.redact(redact)
    if out is None:
        print(shown.text, end="")
    else:
        write_text(out, shown.html)


def rules(
    sources: Sources,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the rules.")],
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Try all pairs, not only neighbours.")
    ] = False,
    engine: Engine = "local",
    redact: Redact = "secrets",
) -> None:
    """Learn early-warning rules, judge them on later time, write them for Prometheus."""
    with progress() as step:
        pairs = "all" if all_pairs else "neighbours"
        case = tl.investigate(
            open_capture(sources, step), engine=engine, pairs=pairs, progress=step
        )
        case = case.redact(redact)
        case.write_rules(out, redact="none")
    print_table(
        ["trigger", "target", "verdict", "lag", "reason"],
        (
            (
                row["trigger_service"],
                row["target_service"],
                row["verdict"],
                "" if row["lag_s"] is None else f"{row['lag_s'] / 60:.1f} min",
                row["reason"],
            )
            for row in case.lead_lags.sort("accepted", "p_value", descending=[True, False])
            .head(20)
            .iter_rows(named=True)
        ),
        title=f"{case.lead_lags.height:,} pairs tried",
    )
    for rule in case.rules:
        print(html.plain(rule, limit=1000))
    if not case.rules:
        print("No rule: no burst of failures was shown to precede a later latency rise.")
    print(f"Written to {out}")


def compare(
    before: Annotated[str, typer.Argument(help="File, folder, glob or store.")],
    after: Annotated[str, typer.Argument(help="File, folder, glob or store.")],
    as_json: AsJson = False,
) -> None:
    """Compare two captures: what breaks more, what less, with intervals."""
    with progress() as step:
        table = tl.compare_captures(open_capture([before], step), open_capture([after], step))
    if as_json:
        print(json.dumps(table.to_dicts()))
        return
    rows = (
        (
            row["measure"],
            f"{row['from_service'] or '-'} → {row['to_service'] or '-'}",
            f"{row['before']:,} of {row['before_checked']:,} ({row['before_rate']:.2%})",
            f"{row['after']:,} of {row['after_checked']:,} ({row['after_rate']:.2%})",
            f"{row['difference_low']:+.2%} to {row['difference_high']:+.2%}",
            row["verdict"],
        )
        for row in table.iter_rows(named=True)
    )
    print_table(
        ["what", "hop", "before", "after", "change, 95 %", "verdict"], rows, title="Compared"
    )


def repair(
    sources: Sources,
    out: Annotated[Path, typer.Option("-o", "--out", help="OTLP file to write.")],
    min_confidence: Annotated[
        float, typer.Option(help="Least confidence of a proposed parent.", min=0, max=1)
    ] = 0.8,
    encoding: Annotated[Literal["json", "proto"], typer.Option(help="OTLP encoding.")] = "json",
) -> None:
    """Write the capture as OTLP again, proposed parents added as links and attributes."""
    with progress() as step:
        opened = open_capture(sources, step)
        traces = opened.read() if isinstance(opened, tl.TraceStore) else opened
        step("where traces break, and why")
        repaired = tl.propose_links(traces, tl.find_breaks(traces), min_confidence=min_confidence)
        step("writing")
        guarded(out, lambda: tl.write_otlp(repaired, out, encoding=encoding))
    added = repaired.links.height - traces.links.height
    print(f"wrote {out}: {repaired.spans.height:,} spans, {added:,} proposed parents as links")
