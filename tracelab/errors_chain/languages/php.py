"""PHP: ``Throwable::__toString`` (oldest error first, joined by ``Next``) and its log forms."""

import re
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, to_int

MARK: Final = re.compile(r"^#\d+ (?:.*\(\d+\): |\[internal function\]|\{main\})", re.MULTILINE)
_OLD: Final = re.compile(r"exception '([\w\\]+)' with message '(.*)' in (.*):(\d+)$", re.DOTALL)
_NEW: Final = re.compile(r"^(?:.*Uncaught )?([A-Za-z_\\][\w\\]*)(?:: (.*))? in (.*):(\d+)$", re.S)
_FRAME: Final = re.compile(r"^#\d+ (?:(.*?)\((\d+)\)|\[internal function\]): (.*)$")


def parse(text: str) -> Chain:
    """Parse a printed exception with its previous ones."""
    links: list[Link] = []
    header: list[str] = []
    link: Link | None = None
    last = ""
    for raw in text.rstrip().split("\n"):
        line = raw.rstrip("\r")
        if line.startswith("Stack trace:"):
            link = _head("\n".join(header))
            if len(links) < MAX_LINKS:
                links.append(link)
        elif line.startswith("Next ") and link is not None:
            header = [line[len("Next ") :]]
            link = None
        elif line.startswith("#"):
            if link is None:
                link = _head("\n".join(header))
                links.append(link)
            frame = _FRAME.match(line)
            # a line names the function called and where it was called from
            if frame is not None:
                link.frames[-1:] = [_called(link, frame.group(3).partition("(")[0])]
                link.add(Frame(None, frame.group(1), to_int(frame.group(2))))
            elif line.endswith("{main}") and link.frames:
                link.frames[-1] = _called(link, "{main}")
        elif link is None:
            header.append(line)
        last = line
    chain = links[::-1]
    if not chain:
        return []
    whole = last.endswith(("{main}", ")")) or last.strip().startswith("thrown in ")
    for position, one in enumerate(chain):
        if position:
            one.relation, one.parent = "cause", position - 1
    chain[0].truncated = not whole
    return chain


def _head(text: str) -> Link:
    found = _OLD.search(text) or _NEW.match(text.strip())
    link = Link()
    if found is None:
        link.message = text.strip() or None
        link.add(Frame(None))
        return link
    link.type, link.message = found.group(1), found.group(2)
    link.add(Frame(None, found.group(3), to_int(found.group(4))))
    return link


def _called(link: Link, function: str) -> Frame:
    here = link.frames[-1]
    return Frame(function or None, here.file, here.line)
