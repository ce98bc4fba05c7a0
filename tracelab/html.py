"""Escaping of foreign text, and the few lines of HTML that reprs share."""

import html as _html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

MAX_TEXT: Final = 300
"""Longest foreign text shown in one cell; the rest is counted, not shown."""

_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: object, *, limit: int = MAX_TEXT) -> str:
    """Make foreign text harmless for a terminal, a log or a single line.

    Parameters
    ----------
    text : object
        Anything; None becomes an empty string.
    limit : int
        Longest result; what is cut is said in its place.

    Returns
    -------
    str
        One line without control or direction-changing characters.
    """
    if text is None:
        return ""
    raw = str(text)
    cut = raw[:limit]
    shown = "".join(
        " "
        if character in "\r\n\t"
        else "\ufffd"
        if character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Cf")
        else character
        for character in cut
    )
    return shown if len(raw) <= limit else f"{shown}… ({len(raw) - limit:,} more characters)"


def escape(text: object, *, limit: int = MAX_TEXT) -> str:
    """Make foreign text harmless inside HTML text and quoted attributes."""
    return _html.escape(plain(text, limit=limit), quote=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """Render a small HTML table; every cell is escaped."""
    head = "".join(f"<th style='text-align:left'>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    title = (
        f"<caption style='text-align:left'><b>{escape(caption)}</b></caption>" if caption else ""
    )
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
