"""One text to one cause chain: which language, which parser, what was cut."""

import re
from collections.abc import Callable
from typing import Any, Final

import polars as pl

from tracelab import schema
from tracelab.errors_chain.chain import MAX_CHARS, MAX_LINKS, Chain, Link
from tracelab.errors_chain.languages import (
    dart,
    dotnet,
    erlang,
    go,
    java,
    javascript,
    php,
    python,
    ruby,
    rust,
)
from tracelab.exceptions import ParameterError

PARSERS: Final[dict[str, Callable[[str], Chain]]] = {
    "go": go.parse,
    "python": python.parse,
    "java": java.parse,
    "nodejs": javascript.parse,
    "webjs": javascript.parse,
    "dotnet": dotnet.parse,
    "rust": rust.parse,
    "ruby": ruby.parse,
    "php": php.parse,
    "erlang": erlang.parse,
    "dart": dart.parse,
}
"""Languages as ``telemetry.sdk.language`` spells them, and dart."""

OTHER_NAMES: Final = {
    "kotlin": "java",
    "scala": "java",
    "javascript": "nodejs",
    "node": "nodejs",
    "browser": "webjs",
    "csharp": "dotnet",
    "golang": "go",
    "elixir": "erlang",
}

CHAIN_COLUMNS: Final = [name for name in schema.EXCEPTIONS if name not in schema.EVENTS]

_MARKS: Final = (
    ("python", python.MARK),
    ("go", go.MARK),
    ("dart", dart.MARK),
    ("erlang", erlang.MARK),
    ("php", php.MARK),
    ("rust", rust.MARK),
    ("java", java.MARK),
    ("ruby", ruby.MARK),
    ("nodejs", javascript.MARK),
    ("dotnet", dotnet.MARK),
)
_ESCAPE: Final = "\x1b["
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]{0,40}[A-Za-z]")
_MARGIN_ONLY: Final = re.compile(r"\n[ \t]+\Z")
"""The end of a text that was cut within the margin of its next line."""

_TOP_FRAMES: Final = 3


def parse_stacktrace(
    text: str | None,
    *,
    language: str | None = None,
    type: str | None = None,  # noqa: A002 - named as the column and the convention name it
    message: str | None = None,
) -> pl.DataFrame:
    """Parse one stack trace into its cause chain.

    Parameters
    ----------
    text : str or None
        What stands in ``exception.stacktrace``, or any text that may hold a trace.
    language : str, optional
        As ``telemetry.sdk.language`` spells it; found from the text where not given.
    type, message : str, optional
        What was recorded beside the stack; they win over what the text says of the head.

    Returns
    -------
    pl.DataFrame
        The columns of EXCEPTIONS from ``position`` on, outermost error first. No row if
        the text holds no trace and neither type nor message was given.

    Raises
    ------
    ParameterError
        If `language` is none that is known, or an argument is no text.
    """
    for name, given in (
        ("text", text),
        ("language", language),
        ("type", type),
        ("message", message),
    ):
        if given is not None and not isinstance(given, str):
            raise ParameterError(
                f"{name} must be a text, not a {given.__class__.__name__}; "
                "for a whole capture call parse_exceptions"
            )
    if language is not None and OTHER_NAMES.get(language, language) not in PARSERS:
        raise ParameterError(
            f"unknown language {language!r}; known are {', '.join([*PARSERS, *OTHER_NAMES])}"
        )
    found, chain = parse_chain(text, language=language, type_name=type, message=message)
    if not chain and (type or message):
        chain = go.join_members(type, message) or [Link(type=type, message=message)]
        found = found or language
    if chain:
        chain[0].type = type or chain[0].type
        chain[0].message = message or chain[0].message
    rows = [{**row, "position": n, "language": found} for n, row in enumerate(map(link_row, chain))]
    chain_schema = {name: schema.EXCEPTIONS[name] for name in CHAIN_COLUMNS}
    return pl.DataFrame(rows, schema={**chain_schema, "frames": pl.List(pl.String)}).select(
        CHAIN_COLUMNS
    )


def parse_chain(
    text: str | None,
    *,
    language: str | None = None,
    type_name: str | None = None,
    message: str | None = None,
) -> tuple[str | None, Chain]:
    """Parse a text; returns the language found and the chain, empty if it is no trace."""
    if not text:
        return language, []
    if _ESCAPE in text[:MAX_CHARS]:
        text = _COLOURS.sub("", text[: 2 * MAX_CHARS])
    whole = len(text) <= MAX_CHARS
    part = text if whole else text[:MAX_CHARS]
    wanted = OTHER_NAMES.get(language or "", language)
    guess = None
    if wanted == "rust" and part.lstrip().startswith("["):
        guess = "rust"
    else:
        guess = next((name for name, mark in _MARKS if mark.search(part)), None)
    if guess == "nodejs" and (
        wanted == "webjs" or (wanted is None and javascript.BROWSER.search(part))
    ):
        guess = "webjs"
    if guess is None:
        return wanted, []
    if not whole and guess in ("python", "php"):  # these print the outermost error last
        part = text[-MAX_CHARS:]
    if message and "\n" in message and guess not in ("python", "php", "go"):
        part, message = _without_message(part, type_name, message)
    chain = PARSERS[guess](part)[:MAX_LINKS]
    if guess == "python" and whole:
        chain = _with_unseen_head(chain, part, type_name, message)
    if chain and (not whole or _MARGIN_ONLY.search(part)):
        chain[0 if guess in ("python", "php") else -1].truncated = True
    return (guess if chain else wanted), chain


def _with_unseen_head(chain: Chain, text: str, type_name: str | None, message: str | None) -> Chain:
    """Put the recorded error above a traceback that was cut before it was printed.

    Python prints the oldest error first: what a length limit leaves are the causes.
    """
    if not chain or not type_name or text.endswith("\n"):
        return chain
    printed = chain[0]
    begun = python.begun_relation(text)
    same_type = printed.type is None or last_name(printed.type) == last_name(type_name)
    told = (message or "").split("\n", 1)[0]
    same_text = not printed.message or not told or told.startswith(printed.message)
    if same_type and same_text and begun is None:
        printed.truncated |= bool(told) and (printed.message or "") != told
        return chain
    for link in chain:
        link.parent = 0 if link.parent is None else link.parent + 1
    ended = "cause" if text.rstrip().endswith(python.CAUSE) else "context"
    printed.relation = begun or ended
    printed.truncated = True
    return [Link(type=type_name, message=message, truncated=True), *chain][:MAX_LINKS]


def last_name(type_name: str) -> str:
    """Last component of a dotted type name."""
    return type_name.rpartition(".")[2]


def _without_message(text: str, type_name: str | None, message: str) -> tuple[str, str]:
    """Take a message of several lines out of its header: it may look like a trace itself."""
    first = message.split("\n", 1)[0]
    at = text.find(message, 0, len(message) + 1000)
    if at < 0:
        return text, message
    return text[:at] + first + text[at + len(message) :], message


def link_row(link: Link) -> dict[str, Any]:
    """Columns of one link, position and language aside."""
    top = link.frames[0] if link.frames else None
    return {
        "parent_position": link.parent,
        "relation": link.relation,
        "type": link.type,
        "message": link.message,
        "top_function": top.function if top else None,
        "top_file": top.file if top else None,
        "top_line": top.line if top else None,
        "frame_count": link.frame_count,
        "truncated": link.truncated,
        "frames": [frame.function or frame.file or "" for frame in link.frames[:_TOP_FRAMES]],
    }
