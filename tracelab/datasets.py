"""Captures that come with the package."""

from pathlib import Path
from typing import Final

from tracelab.exceptions import ParameterError
from tracelab.io import read_traces
from tracelab.traceset import TraceSet

EXAMPLES: Final = ("checkout",)
"""Names that `load_example` knows."""

_PACKAGED: Final = Path(__file__).resolve().parent / "_examples"
_SOURCE_TREE: Final = Path(__file__).resolve().parent.parent / "data"


def find_example(name: str) -> Path:
    """Find the folder of a bundled capture.

    Parameters
    ----------
    name : str
        One of `EXAMPLES`.

    Returns
    -------
    Path
        Folder with the capture's exports and a README that tells what is in it.

    Raises
    ------
    ParameterError
        If no bundled capture has this name.
    """
    if name not in EXAMPLES:
        raise ParameterError(f"no example {name!r}; there are {', '.join(EXAMPLES)}")
    # a wheel carries the captures inside the package, a source tree beside it
    return next(
        folder / name
        for folder in (_PACKAGED, _SOURCE_TREE)
        if (folder / name).is_dir() or folder is _SOURCE_TREE
    )


def load_example(name: str = "checkout") -> TraceSet:
    """Load a bundled capture: a small shop with a handful of real breaks.

    Parameters
    ----------
    name : str
        One of `EXAMPLES`.

    Returns
    -------
    TraceSet
        The capture.

    Raises
    ------
    ParameterError
        If no bundled capture has this name.
    """
    return read_traces(str(find_example(name) / "traces.jsonl"))
