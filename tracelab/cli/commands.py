"""All commands under one name, with one-line errors."""

import io
import os
import sys
from typing import Annotated, Any, Final

import typer

import tracelab as tl
from tracelab import html
from tracelab.cli import EXIT_INTERRUPTED, EXIT_UNUSABLE, INTERRUPTED, complain
from tracelab.cli.analyses import compare, investigate, repair, rules, trace
from tracelab.cli.keeping import compact, expire, info, ingest
from tracelab.cli.keeping import verify as verify_store
from tracelab.cli.notebooks import lab
from tracelab.cli.proving import evidence, verify
from tracelab.exceptions import TracelabError

app = typer.Typer(
    name="tracelab",
    help="Where traces and error chains break, and why; early-warning rules with their backtest.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (investigate, trace, rules, compare, repair, ingest, evidence, verify, lab):
    app.command()(command)

stores = typer.Typer(help="Look after a store: its contents, small parts, old rows and bytes.")
stores.command()(info)
stores.command()(compact)
stores.command()(expire)
stores.command(name="verify")(verify_store)
app.add_typer(stores, name="store", no_args_is_help=True)


@app.callback(invoke_without_command=True)
def _front(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"tracelab {tl.__version__}")
        raise typer.Exit


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one line on stderr."""
    if sys.stdout is None:
        complain("cannot write the output: standard output is closed")
        return EXIT_UNUSABLE
    if sys.stdout is sys.__stdout__:
        sys.stdout = _watched(sys.stdout)
    try:
        code = _run(arguments)
        # What is still buffered would fail only when Python ends.
        sys.stdout.flush()
    except OSError as error:
        return _stopped(error)
    except SystemExit:
        # So rich goes where nobody reads any more; its 1 would mean findings.
        return EXIT_UNUSABLE
    return code


def _run(arguments: list[str] | None) -> int:
    command = typer.main.get_command(app)
    for stream in (sys.stdout, sys.stderr):
        # An ASCII terminal (LANG=C) shows a `?` for an arrow; it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = command.main(args=arguments, prog_name="tracelab", standalone_mode=False)
    except typer.Exit as stop:
        if stop.exit_code == EXIT_INTERRUPTED:
            complain(INTERRUPTED)
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain(INTERRUPTED)
        return EXIT_INTERRUPTED
    except TracelabError as error:
        complain(str(error))
        return EXIT_UNUSABLE
    except typer.exceptions.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            # Called without a command: the help, with its lines, is the answer.
            print(str(error), file=sys.stderr)
            return EXIT_UNUSABLE
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        complain(f"{message.replace('Value error, ', '').rstrip('.')}; see tracelab --help")
        return EXIT_UNUSABLE
    if code == EXIT_INTERRUPTED:
        complain(INTERRUPTED)
    return code if isinstance(code, int) else 0


class _Output(io.FileIO):
    """Standard output that says of its errors that they are its own."""

    def write(self, text: Any, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            error.filename = _OUTPUT
            raise


_OUTPUT: Final = "<stdout>"


def _watched(stream: Any) -> Any:
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(number, "wb", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.isatty(),
    )


def _stopped(error: OSError) -> int:
    """Say what the system refused; nothing if it was the output and nobody reads it any more."""
    why = error.strerror or str(error)
    if error.filename != _OUTPUT:
        what = html.plain(error.filename) if error.filename else "cannot read or write"
        complain(f"{what}: {why}")
        return EXIT_UNUSABLE
    if not isinstance(error, BrokenPipeError):
        complain(f"cannot write the output: {why}")
    # Python would complain again when it closes stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_UNUSABLE
