"""Ruby: ``Exception#full_message`` with its causes, and the log form of Rails."""

import re
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, to_int

MARK: Final = re.compile(r"^.*:\d+:in [`'][^'\n]*'", re.MULTILINE)
_PLACE: Final = re.compile(r"^\s*(?:from )?(?:\d+: from )?(.+?):(\d+):in [`']([^']*)'(.*)$")
_TAIL: Final = re.compile(r"^(.*) \(([A-Z][\w:]*)\)$")
_RAILS: Final = re.compile(r"^\s*([A-Z][\w:]*) \((.*)\):$")
_PLAIN: Final = re.compile(r"^\s*([A-Z][\w:]*(?:Error|Exception|Interrupt)): (.*)$")


def parse(text: str) -> Chain:
    """Parse a full message; each further header without ``from`` is a cause."""
    chain: Chain = []
    waiting: list[str] | None = None  # lines of a message whose type has not come yet
    for raw in text.rstrip().split("\n"):
        line = raw.rstrip("\r")
        rails = _RAILS.match(line) or _PLAIN.match(line)
        place = _PLACE.match(line)
        if rails is not None and not chain:
            chain.append(Link("head", None, rails.group(1), rails.group(2)))
        elif place is not None:
            waiting = None
            frame = Frame(place.group(3), place.group(1).strip(), to_int(place.group(2)))
            rest = place.group(4)
            if rest.startswith(": ") and not line.lstrip().startswith("from "):
                if len(chain) >= MAX_LINKS:
                    chain[-1].truncated = True
                    return chain
                parent = len(chain) - 1 if chain else None
                chain.append(Link("cause" if chain else "head", parent))
                waiting = _message(chain[-1], [rest[2:]])
            elif not chain:
                chain.append(Link())
            chain[-1].add(frame)
        elif waiting is not None and chain:
            waiting = _message(chain[-1], [*waiting, line])
    return chain if any(link.frames for link in chain) else []


def _message(link: Link, lines: list[str]) -> list[str] | None:
    """Set the message; the type stands in brackets behind its first line."""
    found = _TAIL.match(lines[0])
    if found is not None:
        link.type = found.group(2)
        link.message = "\n".join([found.group(1), *lines[1:]]).strip()
        return lines if len(lines) < 50 else None
    link.message = "\n".join(lines).strip()
    return lines if len(lines) < 50 else None
