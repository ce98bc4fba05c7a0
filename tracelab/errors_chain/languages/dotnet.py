""".NET: ``Exception.ToString()``, headers outermost first, stacks innermost first."""

import re
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, split_header, to_int

MARK: Final = re.compile(
    r"^[ \t]*--- End of (?:inner exception stack trace|stack trace from previous location)"
    r"| in .*:line \d+$| in <[\w ]+>:0$"
    r"|^[ \t]+at [\w.`+<>\[\],|]+\s?\([^()]*\)(?: in .*)?\r?$|^[ \t]*---> [\w.`+]+(?:: |\()",
    re.MULTILINE,
)
_INNER: Final = re.compile(r"(?<!\s)\s*---> (?=[A-Za-z_][\w.+`]*(?:: | \(|$))")
_AGGREGATED: Final = re.compile(r"^\s*---> \(Inner Exception #\d+\) ")
_FRAME: Final = re.compile(r"^at (.+?)\s?\((.*)$")
_PLACE: Final = re.compile(r" in (.*?)(?::line (\d+)|:(\d+))$")
_CODE: Final = re.compile(r"^([A-Za-z_][\w.+`]*(?:\[[^\]]*\])?) \((?:0x)?[0-9A-Fa-f-]+\): ")
_END_INNER: Final = "--- End of inner exception stack trace"
_MAX_DEPTH: Final = 20


def parse(text: str, *, depth: int = 0) -> Chain:
    """Parse the text of ``Exception.ToString()``."""
    lines = text.rstrip().split("\n")
    headers, stop = _headers(lines)
    if len(headers) > MAX_LINKS:
        del headers[MAX_LINKS:]
    chain: Chain = []
    for position, header in enumerate(headers):
        link = Link("cause" if position else "head", position - 1 if position else None)
        link.type, link.message = split_header(_CODE.sub(r"\1: ", header))
        chain.append(link)
    at = len(chain) - 1
    cut = False
    while stop < len(lines):
        line = lines[stop].strip()
        stop += 1
        if _AGGREGATED.match(line):
            stop = _member(chain, lines, stop - 1, depth)
        elif line.startswith("at "):
            frame = _FRAME.match(line)
            cut = frame is None or ")" not in frame.group(2)
            if frame is not None and not cut:
                place = _PLACE.search(frame.group(2))
                file, number = (place.group(1), place.group(2)) if place else (None, None)
                file = None if file and file.startswith("<") else file
                chain[at].add(Frame(frame.group(1), file, to_int(number)))
        elif line.startswith(_END_INNER):
            at = max(0, at - 1)
            cut = not line.endswith("---")
        elif line and not line.startswith("--- End of"):
            cut = True
    for link in chain[: at + 1] if at else []:  # stacks that never came
        link.truncated = True
    chain[min(at, len(chain) - 1)].truncated |= cut
    return chain if any(link.frames for link in chain) or len(chain) > 1 else []


def _headers(lines: list[str]) -> tuple[list[str], int]:
    """Read the headers, innermost last, and where the stacks begin."""
    block: list[str] = []
    for number, line in enumerate(lines):
        text = line.strip()
        framed = text.startswith("at ") and bool(block) and "(" in text
        if framed or text.startswith("--- End of") or _AGGREGATED.match(line):
            return _split_inner(block), number
        block.append(line)
    return _split_inner(block), len(lines)


def _split_inner(block: list[str]) -> list[str]:
    return [part for part in _INNER.split("\n".join(block)) if part.strip()] or [""]


def _member(chain: Chain, lines: list[str], start: int, depth: int) -> int:
    """Read one ``---> (Inner Exception #k) … <---`` and return the line behind it."""
    stop, level = start, 0
    while stop < len(lines):
        level += bool(_AGGREGATED.match(lines[stop])) - lines[stop].rstrip().endswith("<---")
        stop += 1
        if level <= 0:
            break
    if level > 0:
        chain[0].truncated = True
    if depth >= _MAX_DEPTH:
        chain[0].truncated = True
        return stop
    body = "\n".join(lines[start:stop])
    body = _AGGREGATED.sub("", body, count=1).rstrip().removesuffix("<---")
    member = parse(body, depth=depth + 1) or [_bare(body)]
    first = next((n for n, link in enumerate(chain[1:], start=1) if link.parent == 0), None)
    if first is not None and chain[first].relation == "cause":
        chain[first].relation = "member"  # the first inner error is printed as the cause
        same = (chain[first].type, chain[first].message) == (member[0].type, member[0].message)
        if same:  # and by some runtimes twice
            return stop
    offset = len(chain)
    for link in member[: MAX_LINKS - offset]:
        link.parent = 0 if link.parent is None else link.parent + offset
        link.relation = "member" if link.relation == "head" else link.relation
        chain.append(link)
    return stop


def _bare(text: str) -> Link:
    link = Link()
    link.type, link.message = split_header(text)
    return link
