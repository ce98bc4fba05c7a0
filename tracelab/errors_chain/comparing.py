"""What became of one error's text in the record of the next: pairs of distinct texts."""

import re
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from tracelab.errors_chain.languages.go import TEXT_TYPES, WRAPPER_TYPES

MIN_MESSAGE: Final = 6
"""Shortest message whose appearance inside another counts: below it is chance."""

MIN_OVERLAP: Final = 12
"""Least characters by which a cut end must match the beginning of a message."""

_CHAIN_LANGUAGES: Final = frozenset({"python", "java", "dotnet", "php", "ruby"})
"""Languages whose recorded stack holds the causes."""

_MAX_TEXT: Final = 2_000
_VOLATILE: Final = (
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
    r"|0x[0-9a-fA-F]+|\b[0-9a-f]{12,}\b|\d+"
)
_EMPTIED: Final = re.compile(r"(?<![\w$.)\]])(?:\{\}|\[object Object\])(?!\w)")
"""What an error becomes that JavaScript or Go turned into JSON or text without its fields."""

POSITIVE: Final = ("kept", "wrapped", "flattened", "truncated")

Told = tuple[str | None, str | None]  # type and message of one error


@dataclass(frozen=True, slots=True)
class Side:
    """What one span tells of its error; ``inner`` are the errors below the head."""

    type: str | None
    message: str | None
    inner: tuple[Told, ...] = ()
    language: str | None = None
    truncated: bool = False
    has_stack: bool = False
    recorded: bool = True


def mask(text: pl.Expr) -> pl.Expr:
    """Hide what differs from case to case (numbers, ids, addresses) and collapse space."""
    return (
        text.str.slice(0, _MAX_TEXT)
        .str.replace_all(_VOLATILE, "#")
        .str.replace_all(r"\s+", " ")
        .str.strip_chars()
    )


def compare(child: Side, parent: Side) -> tuple[str, float, str]:
    """Say what became of the child's error in the parent's record.

    Parameters
    ----------
    child, parent : Side
        Masked texts.

    Returns
    -------
    tuple of str, float, str
        Verdict (a positive one, ``replaced`` or ``not_determinable``), probability, reason.
    """
    head = (child.type, child.message)
    if _same(head, (parent.type, parent.message)):
        sure = child.type is not None and parent.type is not None
        return "kept", 0.97 if sure else 0.85, "same type and message on both spans"
    last = parent.inner[-1] if parent.truncated and parent.inner else None
    if any(_same(head, link) for link in parent.inner if link != last or link[1] == child.message):
        return "wrapped", 0.97, "the parent's chain holds the child's error"
    held = _held(child.message, parent.message)
    if held and parent.type in WRAPPER_TYPES:
        return "wrapped", 0.93, f"{parent.type} holds an inner error and repeats its message"
    cut = _cut(child, parent)
    if cut is not None:
        return cut
    if held:
        return _flattened(parent)
    if any(_same((parent.type, parent.message), link) for link in child.inner):
        return "kept", 0.75, "the parent records the inner error of the child"
    if any(_same(link, mine) for link in parent.inner for mine in child.inner):
        return "wrapped", 0.7, "both chains end in the same inner error"
    return _unrelated(child, parent)


def _last(type_name: str) -> str:
    """Last component of a type: traceback, reflection and class names qualify differently."""
    for mark in ("/", "\\", ":", "$", "+", "."):
        type_name = type_name.rpartition(mark)[2]
    return type_name.lstrip("*")


def _same(one: Told, other: Told) -> bool:
    type_a, message_a = one
    type_b, message_b = other
    if type_a and type_b and _last(type_a) != _last(type_b):
        return False
    if message_a and message_b:
        if message_a == message_b:
            return True
        if _named(one) == (type_b and _last(type_b), message_b) or _named(other) == (
            type_a and _last(type_a),
            message_a,
        ):
            return True  # a status message in the form "Type: message"
        short, long = sorted((message_a, message_b), key=len)
        return (
            bool(type_a and type_b) and len(short) >= MIN_MESSAGE and long.startswith(f"{short} ")
        )
    return not message_a and not message_b and bool(type_a and type_b)


def _named(told: Told) -> Told | None:
    """Split an untyped ``Type: message``; a prefix of several words is no type's name."""
    if told[0] is not None or not told[1]:
        return None
    name, colon, message = told[1].partition(": ")
    return (_last(name), message) if colon and " " not in name else None


def _held(message: str | None, text: str | None) -> bool:
    return bool(message and text and len(message) >= MIN_MESSAGE and message in text)


def _cut(child: Side, parent: Side) -> tuple[str, float, str] | None:
    """Find the child's error cut off at the end of the parent's record."""
    if not child.message:
        return None
    if parent.truncated and parent.inner:
        kind, message = parent.inner[-1]
        fits = not (kind and child.type) or _last(child.type).startswith(_last(kind))
        if fits and (message or kind) and child.message.startswith(message or ""):
            return "truncated", 0.85, "the parent's chain was cut inside the child's error"
    text = parent.message or ""
    if len(text) >= MIN_OVERLAP and len(text) < len(child.message):
        same_type = parent.type is None or child.type is None
        same_type = same_type or _last(parent.type or "") == _last(child.type or "")
        if same_type and child.message.startswith(text):
            return "truncated", 0.85, "the parent's message is the beginning of the child's"
    for size in range(min(len(text) - 1, len(child.message) - 1, 400), MIN_OVERLAP - 1, -1):
        if text.endswith(child.message[:size]):
            return "truncated", 0.75, "the parent's message ends within the child's"
    return None


def _flattened(parent: Side) -> tuple[str, float, str]:
    told = "the child's message is only text within the parent's"
    if not parent.recorded:
        return "flattened", 0.75, f"{told} status message"
    if parent.language == "go":
        if parent.type in TEXT_TYPES:
            return "flattened", 0.93, f"{told}, and {parent.type} holds no inner error"
        if parent.type is not None:
            return "not_determinable", 0.6, f"{told}; whether {parent.type} wraps is not recorded"
    if parent.language in _CHAIN_LANGUAGES and parent.has_stack and not parent.truncated:
        return "flattened", 0.93, f"{told}; its stack trace names no cause of that kind"
    return "flattened", 0.7, f"{told}; a cause, if there was one, is not recorded"


def _unrelated(child: Side, parent: Side) -> tuple[str, float, str]:
    told = "parent and child share neither type, message nor cause"
    if not parent.recorded:
        return "replaced", 0.6, "the parent's status message names another error"
    if parent.truncated:
        return "not_determinable", 0.6, f"{told}, but the parent's stack trace was cut"
    if parent.language in _CHAIN_LANGUAGES and parent.has_stack:
        return "replaced", 0.9, told
    if parent.language == "go" and parent.type in (TEXT_TYPES | WRAPPER_TYPES):
        return "replaced", 0.88, told
    if parent.language == "go" and parent.type is not None and parent.message:
        return "replaced", 0.7, f"{told}; a Go error that wraps another prints its text by habit"
    if parent.language == "rust" and parent.inner:
        return "replaced", 0.85, told
    if parent.message and _EMPTIED.search(parent.message):
        return "replaced", 0.75, f"{told}; its text holds an object that lost its content"
    if not (child.message or child.type):
        return "kept", 0.6, "the child recorded no text to compare"
    return "not_determinable", 0.6, f"{told}; causes are not recorded here, so one may exist"


def compare_pairs(pairs: pl.DataFrame) -> pl.DataFrame:
    """Compare each distinct pair of records once.

    Parameters
    ----------
    pairs : pl.DataFrame
        Columns ``c_`` and ``p_`` + type, message, inner, language, truncated, has_stack,
        recorded; texts masked, inner a list of structs (type, message).

    Returns
    -------
    pl.DataFrame
        The same rows with relation, relation_confidence, relation_reason.
    """
    names = ["type", "message", "inner", "language", "truncated", "has_stack", "recorded"]
    key = pl.struct([f"{side}_{name}" for side in "cp" for name in names])
    keyed = pairs.with_columns(key.hash(0).alias("pair"))
    distinct = keyed.unique("pair", keep="any").select(
        "pair", *(f"{side}_{name}" for side in "cp" for name in names)
    )
    rows = []
    for pair, *values in distinct.iter_rows():
        relation, confidence, reason = compare(_side(values[:7]), _side(values[7:]))
        rows.append((pair, relation, confidence, reason))
    found = pl.DataFrame(
        rows,
        schema={
            "pair": pl.UInt64,
            "relation": pl.String,
            "relation_confidence": pl.Float64,
            "relation_reason": pl.String,
        },
        orient="row",
    )
    return keyed.join(found, on="pair", how="left").drop("pair")


def _side(values: list[Any]) -> Side:
    kind, message, inner, language, truncated, has_stack, recorded = values
    links = tuple((link["type"], link["message"]) for link in inner or ())
    return Side(
        kind or None,
        message or None,
        links,
        language,
        bool(truncated),
        bool(has_stack),
        bool(recorded),
    )
