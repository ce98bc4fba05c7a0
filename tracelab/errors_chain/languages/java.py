"""Java, Kotlin, Scala, and PHP's renderer that imitates them: ``printStackTrace``."""

import re
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, split_header, to_int

MARK: Final = re.compile(
    r"^[ \t]+at [\w.$/<>{}@ -]+\((?:[\w$-]+\.(?:java|kt|scala|groovy|clj|php)(?::\d+)?"
    r"|Native Method|Unknown Source|<generated>|Redefined)\)",
    re.MULTILINE,
)
_FRAME: Final = re.compile(r"^at ([^()]+)\(([^()]*)\)(?: ~?\[.*\])?$")
_MORE: Final = re.compile(r"^\.\.\. (\d+) (?:more|common frames omitted)$")
_WRAPPED: Final = "\nWrapped by: "
_THREAD: Final = re.compile(r'^Exception in thread "[^"]*" ')


def parse(text: str) -> Chain:
    """Parse the text of ``printStackTrace``, or of logback's form with the root cause first."""
    return _rooted(text) if _WRAPPED in text else _printed(text)


def _rooted(text: str) -> Chain:
    """Read the causes first: what follows ``Wrapped by`` is further out."""
    chain: Chain = []
    for part in text.split(_WRAPPED)[:MAX_LINKS][::-1]:
        links = _printed(part) or [Link()]
        if not links[0].type:
            links[0].type, links[0].message = split_header(part.strip().split("\n", 1)[0])
        for link in links:
            link.parent = len(chain) - 1 if link.parent is None else link.parent + len(chain)
        if chain:
            links[0].relation = "cause"
        else:
            links[0].parent = None
        chain += links[: MAX_LINKS - len(chain)]
    chain[-1].truncated |= text.count(_WRAPPED) >= MAX_LINKS
    chain[0].truncated |= not chain[0].frame_count
    return chain if any(link.frames for link in chain) else []


def _printed(text: str) -> Chain:
    chain: Chain = [Link()]
    header: list[str] = []
    indents = [0]  # where the header of each open link stands
    opened = [0]  # index of that link
    cut = False
    for raw in text.split("\n"):
        line = raw.strip()
        current = chain[-1]
        cut = False
        if line.startswith("at ") and (header or current.frames or len(chain) == 1):
            frame = _FRAME.match(line)
            if frame is None:
                cut = True
                continue
            _close(current, header)
            file, _, number = frame.group(2).partition(":")
            current.add(Frame(frame.group(1), file or None, to_int(number)))
        elif (more := _MORE.match(line)) is not None:
            _close(current, header)
            current.frame_count += int(more.group(1)[:9])
        elif line.startswith(("Caused by: ", "Suppressed: ")):
            _close(current, header)
            if "[CIRCULAR REFERENCE" in line[:32]:
                continue
            if len(chain) >= MAX_LINKS:
                current.truncated = True
                return chain
            relation, indent = _place(raw, line, indents, opened)
            chain.append(Link(relation, opened[-1]))
            indents.append(indent)
            opened.append(len(chain) - 1)
            header = [line.partition(": ")[2]]
        elif not current.frame_count:
            header.append(raw.rstrip("\r"))
        else:
            cut = bool(line)
    last = chain[-1]
    bare = len(chain) > 1 and not last.frame_count and not text.endswith("\n")
    _close(last, header)
    last.truncated = cut or bare
    return chain if chain[0].frames or len(chain) > 1 else []


def _place(raw: str, line: str, indents: list[int], opened: list[int]) -> tuple[str, int]:
    """Find the link that this one hangs on: a cause on its own margin, else one further out."""
    indent = len(raw) - len(raw.lstrip())
    cause = line.startswith("Caused by: ")
    while len(indents) > 1 and (indents[-1] > indent or (not cause and indents[-1] >= indent)):
        indents.pop()
        opened.pop()
    return ("cause" if cause else "suppressed"), indent


def _close(link: Link, header: list[str]) -> None:
    """Give a link its header, which may run over several lines."""
    if header:
        text = _THREAD.sub("", "\n".join(header).strip())
        link.type, link.message = split_header(text)
        header.clear()
