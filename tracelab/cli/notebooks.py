"""The command that starts JupyterLab."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from tracelab.exceptions import ParameterError


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
