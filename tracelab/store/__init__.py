"""The store: captures on disk, larger than memory, appended to exactly once."""

import os
from collections.abc import Iterable
from typing import Any

import polars as pl

from tracelab.store.trace_store import TraceStore


def ingest(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    store: str | os.PathLike[str] | TraceStore,
    **options: Any,
) -> pl.DataFrame:
    """Append exports to a store; see `TraceStore.ingest`.

    Parameters
    ----------
    sources : str, Path or iterable of them
        Files, folders, globs.
    store : str, Path or TraceStore
        The store; made if it is not there.
    **options
        As for `TraceStore.ingest`.

    Returns
    -------
    pl.DataFrame
        ``status`` and the columns of INGEST, one row per source.

    Raises
    ------
    SourceError
        If a path does not exist, or a named file is no export.
    StoreError
        If the store cannot be made or written.
    """
    named = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    opened = store if isinstance(store, TraceStore) else TraceStore(store)
    return opened.ingest(*named, **options)


__all__ = ["TraceStore", "ingest"]
