"""Ruby: ``Exception#full_message`` with its causes, and the log form of Rails."""

import re
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, to_int

MARK: Final = re.compile(r"^.{0,4000}?:\d+:in [`'][^'\n]{0,1000}'", re.MULTILINE)
_PLACE: Final = re.compile(
    r"^(?:from )?(?:\d+: from )?(.{1,4000}?):(\d+):in [`']([^']{0,1000})'(.*)$"
)
_TAIL: Final = re.compile(r"^(.*) \(([A-Z][\w:]*)\)$")
_RAILS: Final = re.compile(r"^\s*([A-Z][\w:]*) \((.*)\):$")
_LISTED: Final = re.compile(r"^([A-Z][\w:]*) \((.*)\)$")
_PLAIN: Final = re.compile(r"^\s*([A-Z][\w:]*(?:Error|Exception|Interrupt)): (.*)$")


def parse(text: str) -> Chain:
    """Parse a full message; each further header without ``from`` is a cause."""
    chain: Chain = []
    waiting: list[str] | None = None  # lines of a message whose type has not come yet
    causes = cut = False
    for raw in text.rstrip().split("\n"):
        line = raw.rstrip("\r")
        rails = _RAILS.match(line) or _PLAIN.match(line)
        place = _PLACE.match(line.lstrip())
        listed = _LISTED.match(line) if causes else None
        if rails is not None and not chain:
            chain.append(Link("head", None, rails.group(1), rails.group(2)))
        elif place is None and not chain and (tail := _TAIL.match(line)) is not None:
            chain.append(Link("head", None, tail.group(2), tail.group(1)))
        elif line == "Causes:" and chain:
            causes = True
        elif listed is not None and len(chain) < MAX_LINKS:
            chain.append(Link("cause", len(chain) - 1, listed.group(1), listed.group(2)))
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
            # the frames that Rails prints behind its list of causes are the head's
            chain[0 if causes else -1].add(frame)
        elif chain and chain[-1].frames and line.startswith("\t"):
            chain[-1].truncated = True
        elif waiting is not None and chain:
            waiting = _message(chain[-1], [*waiting, line])
        cut = place is None and waiting is None and bool(line.strip())
    if chain and chain[0].frames and cut:
        chain[-1].truncated = True
    if waiting is not None and chain[-1].type is None:
        chain[-1].truncated = True  # a whole header names the type behind its message
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
