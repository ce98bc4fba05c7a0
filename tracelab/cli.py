"""The command line: a thin skin over the library, with one-line errors."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import tracelab as tl
from tracelab import html
from tracelab.exceptions import ParameterError, StoreError, TracelabError

app = typer.Typer(
    name="tracelab",
    help="Where traces and error chains break, and why; early-warning rules with their backtest.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

stores = typer.Typer(help="Look after a store: what is in it, merge its parts, prove its bytes.")
app.add_typer(stores, name="store", no_args_is_help=True)

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Folder of the store.")]

EXIT_FINDINGS: Final = 1
EXIT_UNUSABLE: Final = 2
EXIT_INTERRUPTED: Final = 130

_INTERRUPTED: Final = "interrupted; finished work is kept"

_SEVERITY_STYLE: Final = {"error": "bold red", "warning": "yellow", "info": "dim"}

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SRC...", help="Files, folders, globs, a store, or - for stdin."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Engine = Annotated[
    str, typer.Option(help="local, dask, tcp://host:8786 or a scheduler file (stores only).")
]


@app.callback(invoke_without_command=True)
def _front(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"tracelab {tl.__version__}")
        raise typer.Exit


@app.command()
def ingest(
    sources: Sources,
    store: Annotated[Path, typer.Option(help="Folder of the store; made if it is not there.")],
    as_json: AsJson = False,
) -> None:
    """Append exports to a store, each source once; print what came in."""
    with _progress() as step:
        step("reading exports")
        accounting = tl.TraceStore(str(store)).ingest(*sources)
    if as_json:
        print(json.dumps(accounting.to_dicts(), default=str))
        return
    columns = [
        name
        for name in ("source", "status", "form", "spans_kept", "spans_duplicate", "logs", "rejects")
        if name in accounting.columns
    ]
    _print_table(columns, accounting.select(columns).iter_rows(), title=f"store {store}")


@app.command()
def investigate(
    sources: Sources,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the findings.")],
    engine: Engine = "local",
    as_json: AsJson = False,
    fail_on: Annotated[
        Literal["warning", "error"] | None,
        typer.Option(help="Exit with 1 if there is a finding this severe."),
    ] = None,
) -> None:
    """Run every analysis; print a summary, write findings, tables and rules."""
    with _progress() as step:
        case = tl.investigate(_open(sources, step), engine=engine, progress=step)
        step("writing")
        case.write(out)
    if as_json:
        print((out / "findings.json").read_text("utf-8"), end="")
    else:
        _print_case(case, out)
    ranks = {"info": 0, "warning": 1, "error": 2}
    worst = case.worst_severity()
    if fail_on and worst and ranks[worst] >= ranks[fail_on]:
        raise typer.Exit(EXIT_FINDINGS)


@app.command()
def trace(
    source: Annotated[str, typer.Argument(metavar="SRC", help="File, folder, glob, store or -.")],
    trace_id: Annotated[str, typer.Argument(help="Trace id, as hex.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the trace as HTML instead.")
    ] = None,
) -> None:
    """Show one trace as a tree: services, times, boundaries, breaks, errors."""
    with _progress() as step:
        opened = _open([source], step)
        step("where traces break, and why")
        view = tl.view_trace(opened, trace_id)
    if out is None:
        print(view.text, end="")
    else:
        _write(out, view.html)


@app.command()
def rules(
    sources: Sources,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the rules.")],
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Try all pairs, not only neighbours.")
    ] = False,
    engine: Engine = "local",
) -> None:
    """Learn early-warning rules, judge them on later time, write them for Prometheus."""
    with _progress() as step:
        pairs = "all" if all_pairs else "neighbours"
        case = tl.investigate(_open(sources, step), engine=engine, pairs=pairs, progress=step)
        case.write_rules(out)
    _print_table(
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


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="File, folder, glob or store.")],
    after: Annotated[str, typer.Argument(help="File, folder, glob or store.")],
    as_json: AsJson = False,
) -> None:
    """Compare two captures: what breaks more, what less, with intervals."""
    with _progress() as step:
        table = tl.compare_captures(_open([before], step), _open([after], step))
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
    _print_table(
        ["what", "hop", "before", "after", "change, 95 %", "verdict"], rows, title="Compared"
    )


@app.command()
def repair(
    sources: Sources,
    out: Annotated[Path, typer.Option("-o", "--out", help="OTLP file to write.")],
    min_confidence: Annotated[
        float, typer.Option(help="Least confidence of a proposed parent.", min=0, max=1)
    ] = 0.8,
    encoding: Annotated[Literal["json", "proto"], typer.Option(help="OTLP encoding.")] = "json",
) -> None:
    """Write the capture as OTLP again, proposed parents added as links and attributes."""
    with _progress() as step:
        opened = _open(sources, step)
        traces = opened.read() if isinstance(opened, tl.TraceStore) else opened
        step("where traces break, and why")
        repaired = tl.propose_links(traces, tl.find_breaks(traces), min_confidence=min_confidence)
        step("writing")
        _guard(out, lambda: tl.write_otlp(repaired, out, encoding=encoding))
    added = repaired.links.height - traces.links.height
    print(f"wrote {out}: {repaired.spans.height:,} spans, {added:,} proposed parents as links")


@stores.command()
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Say what is in a store, without reading it."""
    facts = _existing(store).info()
    if as_json:
        print(json.dumps(facts, default=str))
        return
    _print_table(["what", "how much"], facts.items(), title=f"store {store}")


@stores.command()
def compact(
    store: StorePath,
    keep: Annotated[str, typer.Option(help="Age from which unneeded files go, e.g. 1d.")] = "1d",
) -> None:
    """Merge small parts and remove files that no commit needs; nothing it says changes."""
    with _progress() as step:
        step("merging")
        done = _existing(store).compact(keep=keep)
    _print_table(["what", "how much"], done.items(), title=f"store {store}")


@stores.command()
def verify(store: StorePath) -> None:
    """Prove every byte and every sum of a store; exit 1 and name what is damaged."""
    with _progress() as step:
        step("reading every byte")
        problems = _existing(store).verify()
    for what, why in problems.iter_rows():
        print(f"{html.plain(what)}: {html.plain(why)}")
    if problems.height:
        raise typer.Exit(EXIT_FINDINGS)
    print("every part is as it was written, and the sums reconcile")


def _existing(path: str) -> tl.TraceStore:
    if not tl.TraceStore.is_store(path):
        raise StoreError(f"{path} is no store; `tracelab ingest SRC --store {path}` makes one")
    return tl.TraceStore(path)


@app.command()
def lab(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder with the notebooks.", show_default=False)
    ] = Path("notebooks"),
    port: Annotated[int, typer.Option(help="First port to try.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Start JupyterLab with the notebooks, 00_tour opened first."""
    if not folder.is_dir():
        raise ParameterError(
            f"no folder {folder}; run this where the notebooks are, or name them with --dir"
        )
    if importlib.util.find_spec("jupyterlab") is None:
        raise ParameterError(
            'JupyterLab is not installed; install it with: pip install "tracelab[notebook]"'
        )
    arguments = [f"--ServerApp.root_dir={folder.resolve().parent}", f"--port={port}"]
    tour = folder / "00_tour.ipynb"
    opened = folder.resolve().name + ("/00_tour.ipynb" if tour.is_file() else "")
    arguments.append(f"--LabApp.default_url=/lab/tree/{quote(opened)}")
    if not browser:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # In a container there is often no other user; Jupyter refuses root unless told.
        arguments.append("--allow-root")
    answer = subprocess.run([sys.executable, "-m", "jupyterlab", *arguments], check=False)
    if answer.returncode:
        raise typer.Exit(answer.returncode)


def _open(sources: list[str], step: Any) -> Any:
    if len(sources) == 1 and tl.TraceStore.is_store(sources[0]):
        step("opening the store")
        return tl.TraceStore(sources[0])
    step("reading exports")
    return tl.read_traces(*sources, progress=step)


def _write(path: Path, text: str) -> None:
    _guard(path, lambda: path.write_text(text, encoding="utf-8"))
    print(f"wrote {path}")


def _guard(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise ParameterError(
            f"cannot write {path}: {error.strerror}; choose another file with -o"
        ) from error


@contextmanager
def _progress() -> Iterator[Any]:
    """Yield a function that names the step; drawn on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting")
        yield lambda name: bar.update(task, description=escape(name))


def _print_case(case: Any, out: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for line in case.summary["text"]:
        console.print(escape(html.plain(line, limit=400)))
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
                finding.cause,
                f"{finding.confidence:.2f}",
                escape(html.plain(example, limit=40)),
            )
        console.print()
        console.print(table)
        if len(serious) > 15:
            console.print(f"… {len(serious) - 15} more")
    n_info = len(case.findings) - len(serious)
    if n_info:
        console.print(f"\n{n_info} informational findings (legal or certain but harmless).")
    console.print(
        f"Written to {escape(str(out))}: report.html, findings.json, findings.md, tables, rules"
    )


def _print_table(columns: list[str], rows: Any, *, title: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name)
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else html.plain(cell) for cell in row)
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 findings, 2 unusable input or arguments."""
    signal.signal(signal.SIGINT, _stop)
    sys.exit(run(arguments))


def _stop(number: int, frame: FrameType | None) -> None:
    """Interrupt, and end for good soon after: a reader waiting on a pipe cannot be woken."""
    last = threading.Timer(1.0, _give_up)
    last.daemon = True
    last.start()
    raise KeyboardInterrupt


def _give_up() -> None:
    _complain(_INTERRUPTED)
    os._exit(EXIT_INTERRUPTED)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one line on stderr."""
    command = typer.main.get_command(app)
    for stream in (sys.stdout, sys.stderr):
        # An ASCII terminal (LANG=C) shows a `?` for an arrow; it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = command.main(args=arguments, prog_name="tracelab", standalone_mode=False)
    except typer.Exit as stop:
        if stop.exit_code == EXIT_INTERRUPTED:
            _complain(_INTERRUPTED)
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain(_INTERRUPTED)
        return EXIT_INTERRUPTED
    except TracelabError as error:
        _complain(str(error))
        return EXIT_UNUSABLE
    except typer.exceptions.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            # Called without a command: the help, with its lines, is the answer.
            print(str(error), file=sys.stderr)
            return EXIT_UNUSABLE
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        _complain(f"{message.replace('Value error, ', '').rstrip('.')}; see tracelab --help")
        return EXIT_UNUSABLE
    except BrokenPipeError:
        # The reader went away (`| head`); Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNUSABLE
    if code == EXIT_INTERRUPTED:
        _complain(_INTERRUPTED)
    return code if isinstance(code, int) else 0


def _complain(message: str) -> None:
    print(f"tracelab: {html.plain(message, limit=2000)}", file=sys.stderr)
