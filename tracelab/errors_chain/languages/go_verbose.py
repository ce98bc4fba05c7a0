"""Go: what ``%+v`` prints of the errors of pkg/errors, cockroachdb/errors and xerrors."""

import re
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, to_int

XERRORS: Final = re.compile(r"^ {4}\S+\n {8}\S.*\.go:\d+$", re.MULTILINE)
COCKROACH: Final = re.compile(r"\(1\) .*(?:\n.*){0,200}?\n[ │├└─|]*(?:Wraps: \(2\)|Error types: )")
_LAYER: Final = re.compile(r"^([ │├└─|]*)(?:Wraps: )?\((\d{1,6})\) (.*)$")
_TYPES: Final = re.compile(r"\((\d{1,6})\) (\S+)")
_PLACE: Final = re.compile(r"^(.*\.go):(\d+)(?: \+0x[0-9a-f]+)?$")
_ATTACHED: Final = "attached stack trace"


def parse_verbose(text: str) -> Chain:
    """Parse the ``%+v`` form, whichever package printed it."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if is_layered(text):
        return _layers(lines)
    if XERRORS.search(text):
        return _indented(lines)
    return _blocks(lines)


def is_layered(text: str) -> bool:
    """Tell whether cockroachdb/errors printed it: numbered layers, then their types."""
    at = text.find("\n(1) ")
    return at >= 0 and COCKROACH.match(text, at + 1) is not None


def _blocks(lines: list[str]) -> Chain:
    """Read pkg/errors: the oldest error first, each message above the stack of its place."""
    blocks: list[Link] = [Link()]
    message: list[str] = []
    function: str | None = None
    cut = False
    for number, line in enumerate(lines):
        place = _PLACE.match(line[1:]) if line.startswith("\t") else None
        if place is not None:
            if function is not None:
                blocks[-1].add(Frame(function, place.group(1), to_int(place.group(2))))
            function, cut = None, False
            continue
        if line.startswith("\t"):
            cut = True
            continue
        cut = function is not None or cut
        function = None
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if following.startswith("\t"):
            if message and blocks[-1].frames:
                blocks.append(Link())
            if message:
                blocks[-1].message = "\n".join(message).strip() or None
            message, function = [], line.strip()
        elif line.strip() or message:
            message.append(line)
    rest = "\n".join(message).strip()
    if rest and blocks[-1].frames:
        blocks.append(Link(message=rest))
    if not any(block.frames for block in blocks):
        return []
    chain = blocks[::-1][:MAX_LINKS]
    for position, link in enumerate(chain[1:], start=1):
        link.relation, link.parent = "cause", position - 1
    chain[0].truncated = cut
    return chain


def _layers(lines: list[str]) -> Chain:
    """Read cockroachdb/errors: a summary, numbered layers outermost first, their types."""
    first = next(n for n, line in enumerate(lines) if line.startswith("(1) "))
    chain: Chain = []
    margins: list[int] = []
    function: str | None = None
    types: dict[str, str] = {}
    for line in lines[first:]:
        layer = _LAYER.match(line)
        if layer is not None and int(layer.group(2)) == len(chain) + 1:
            if len(chain) >= MAX_LINKS:
                break
            margin = len(layer.group(1))
            parent = len(chain) - 1
            while parent > 0 and margin and margins[parent] >= margin:
                parent -= 1
            text = layer.group(3).strip()
            message = None if text == _ATTACHED else text
            chain.append(
                Link("cause" if chain else "head", parent if chain else None, None, message)
            )
            margins.append(margin)
            function = None
        elif line.startswith("Error types: "):
            types = dict(_TYPES.findall(line))
        elif "| " in line and chain:
            body = line.partition("| ")[2]
            place = _PLACE.match(body.strip()) if body[:1] in "\t " else None
            if place is not None and function is not None:
                chain[-1].add(Frame(function, place.group(1), to_int(place.group(2))))
                function = None
            elif body.strip() and not body.startswith("[..."):
                function = body.strip()
    for number, link in enumerate(chain, start=1):
        link.type = types.get(str(number))
    if chain:
        chain[0].message = "\n".join(lines[:first]).strip() or chain[0].message
        chain[-1].truncated = not types
    return chain


def _indented(lines: list[str]) -> Chain:
    """Read xerrors: outermost first, every cause behind a dash, places indented."""
    chain: Chain = [Link()]
    message: list[str] = []
    function: str | None = None
    cut = False

    def close() -> None:
        if message:
            text = "\n".join(message).strip()
            chain[-1].message = text.removesuffix(":") or None
            message.clear()

    for line in lines:
        place = _PLACE.match(line.strip()) if line.startswith("        ") else None
        if place is not None and function is not None:
            close()
            chain[-1].add(Frame(function, place.group(1), to_int(place.group(2))))
            function, cut = None, False
        elif line.startswith("  - ") and len(chain) < MAX_LINKS:
            close()
            chain.append(Link("cause", len(chain) - 1))
            message.append(line[4:])
            function, cut = None, False
        elif line.startswith("    ") and line.strip():
            function, cut = line.strip(), True
        elif line.strip():
            message.append(line)
    close()
    chain[-1].truncated = cut
    return chain
