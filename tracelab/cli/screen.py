"""What the commands share: opening captures, progress, tables, files."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import tracelab as tl
from tracelab import html
from tracelab.exceptions import ParameterError

EXIT_FINDINGS: Final = 1

_WIDTH: Final = 160
"""Columns where output goes into a file or pipe and nothing says how wide it is."""

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SRC...", help="Files, folders, globs, a store, or - for stdin."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Engine = Annotated[
    str, typer.Option(help="local; for stores also dask, tcp://host:8786, a scheduler file.")
]


def open_capture(sources: list[str], step: Any) -> Any:
    """Open a store, or read exports into memory."""
    if "" in sources:
        raise ParameterError("a source is empty; name a file, folder, glob, store or -")
    if len(sources) == 1 and tl.TraceStore.is_store(sources[0]):
        step("opening the store")
        return tl.TraceStore(sources[0])
    step("reading exports")
    return tl.read_traces(*sources, progress=step)


def write_text(path: Path, text: str) -> None:
    """Write a file and say so."""
    guarded(path, lambda: path.write_text(text, encoding="utf-8"))
    print(f"wrote {path}")


def guarded(path: Path, write: Callable[[], object]) -> None:
    """Write, or say in one line why not."""
    try:
        write()
    except OSError as error:
        raise ParameterError(
            f"cannot write {path}: {error.strerror}; choose another file with -o"
        ) from error


@contextmanager
def progress() -> Iterator[Any]:
    """Yield a function that names the step; drawn on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting")
        yield lambda name: bar.update(task, description=escape(name))


def console() -> Console:
    """Return where results are printed: as wide as the terminal, or as COLUMNS says."""
    told = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else int(told) if told.isdigit() and int(told) else _WIDTH
    return Console(width=width, highlight=False)


def print_table(columns: list[str], rows: Any, *, title: str) -> None:
    """Print rows under their column names."""
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name)
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else html.plain(cell) for cell in row)
        table.add_row(*(escape(cell) for cell in cells))
    console().print(table)
