"""Commands of the store: ingest, info, compact, expire, verify."""

import json
from typing import Annotated

import typer

import tracelab as tl
from tracelab import html
from tracelab.cli.screen import EXIT_FINDINGS, AsJson, Engine, Sources, print_table, progress
from tracelab.exceptions import StoreError

StorePath = Annotated[
    str, typer.Argument(metavar="STORE", help="Folder of the store, or s3://bucket/prefix.")
]


def ingest(
    sources: Sources,
    store: Annotated[
        str,
        typer.Option(help="Folder of the store, or s3://bucket/prefix; made if it is not there."),
    ],
    engine: Engine = "local",
    as_json: AsJson = False,
) -> None:
    """Append exports to a store, each source once; print what came in."""
    if not store.strip():
        raise StoreError("the store has no name; give a folder or s3://bucket/prefix with --store")
    with progress() as step:
        step("reading exports")
        accounting = tl.TraceStore(store).ingest(*sources, engine=engine, progress=step)
    if as_json:
        print(json.dumps(accounting.to_dicts(), default=str))
        return
    columns = [
        name
        for name in ("source", "status", "form", "spans_kept", "spans_duplicate", "logs", "rejects")
        if name in accounting.columns
    ]
    print_table(columns, accounting.select(columns).iter_rows(), title=f"store {store}")


def info(store: StorePath, as_json: AsJson = False) -> None:
    """Say what is in a store, without reading it."""
    facts = _existing(store).info()
    if as_json:
        print(json.dumps(facts, default=str))
        return
    print_table(["what", "how much"], facts.items(), title=f"store {store}")


def compact(
    store: StorePath,
    keep: Annotated[str, typer.Option(help="Age from which unneeded files go, e.g. 1d.")] = "1d",
) -> None:
    """Merge small parts and remove files that no commit needs; nothing it says changes."""
    with progress() as step:
        step("merging")
        done = _existing(store).compact(keep=keep)
    print_table(["what", "how much"], done.items(), title=f"store {store}")


def expire(
    store: StorePath,
    before: Annotated[str, typer.Option(help="Spans from this time (UTC) on stay.")],
) -> None:
    """Take out what is older than a time; files go with a later compact."""
    with progress() as step:
        step("looking for what is older")
        done = _existing(store).expire(before)
    print_table(["what", "how many"], done.items(), title=f"taken out of {store}")


def verify(store: StorePath) -> None:
    """Prove every byte and every sum of a store; exit 1 and name what is damaged."""
    with progress() as step:
        step("reading every byte")
        problems = _existing(store).verify()
    for what, why in problems.iter_rows():
        print(f"{html.plain(what)}: {html.plain(why)}")
    if problems.height:
        raise typer.Exit(EXIT_FINDINGS)
    print("every part is as it was written, and the sums reconcile")


def _existing(path: str) -> tl.TraceStore:
    if not path.strip() or not tl.TraceStore.is_store(path):
        raise StoreError(
            f"{path or repr('')} is no store; "
            f"`tracelab ingest SRC --store {path or 'DIR'}` makes one"
        )
    return tl.TraceStore(path)
