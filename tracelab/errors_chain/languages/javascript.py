"""Node and browsers: ``error.stack``, and the longer form of ``util.inspect``.

``error.stack`` holds neither the cause nor the members of an AggregateError; the inspect
form, seen in logs, holds both.
"""

import re
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, split_header, to_int

MARK: Final = re.compile(
    r"^\s+at (?:.*[(@ ])?\S*:\d+:\d+\)*,?(?: \{)?$"
    r"|^\s+at .* \((?:native|<anonymous>|unknown location)\)$"
    r"|^[^\s@]*@\S+:\d+:\d+$|^\s+\[cause\]: ",
    re.MULTILINE,
)
BROWSER: Final = re.compile(r"https?://|<anonymous>:\d|^[^\s@]*@\S+:\d+:\d+$", re.MULTILINE)
_PLACE: Final = re.compile(r"^(.*?):(\d+)(?::(\d+))?$")
_FIREFOX: Final = re.compile(r"^([^\s@]*)@(\S+):(\d+):(\d+)$")
_MATCHING: Final = re.compile(r"^\.\.\. (\d+) lines matching cause stack trace \.\.\.")
_ITEM: Final = re.compile(r"^\[?[A-Za-z_$][\w$.]*(?: \[\w+\])?(?:: .*)?\]?,?(?: \{)?$")
_CODE: Final = re.compile(r"^(\S+) \[\w+\](: |$)")


def parse(text: str) -> Chain:
    """Parse a V8 or Firefox stack, or the output of ``util.inspect`` of an error."""
    chain: Chain = [Link()]
    indents = [0]
    header: list[str] = []
    errors_at: list[int] = []  # margins of open [errors]: [ lists
    cut = False
    for raw in text.rstrip().split("\n"):
        line = raw.strip()
        indent = len(raw) - len(raw.lstrip(" \t"))
        current = chain[-1]
        cut = False
        firefox = _FIREFOX.match(line)
        if firefox is not None:
            _close(current, header)
            current.add(Frame(firefox.group(1) or None, firefox.group(2), to_int(firefox.group(3))))
        elif line.startswith(("at ", "eval at ")):
            _close(current, header)
            frame = _frame(line)
            cut = frame is None
            if frame is not None:
                current.add(frame)
        elif (matching := _MATCHING.match(line)) is not None:
            current.frame_count += int(matching.group(1)[:9])
        elif line.startswith("[cause]: "):
            _close(current, header)
            if not _open(chain, indents, indent, "cause"):
                return chain
            header = [line[len("[cause]: ") :]]
            errors_at = [at for at in errors_at if at < indent]
        elif line.startswith("[errors]: ["):
            _close(current, header)
            errors_at.append(indent)
        elif errors_at and line.startswith("]") and indent <= errors_at[-1]:
            errors_at.pop()
        elif errors_at and indent == errors_at[-1] + 2 and _ITEM.match(line):
            _close(current, header)
            if not _open(chain, indents, indent, "member"):
                return chain
            header = [line]
        elif not current.frames and (header or len(chain) == 1) and line not in ("}", "},"):
            header.append(raw.rstrip("\r"))
        else:
            cut = bool(current.frames) and line[:1] == "a"
    _close(chain[-1], header)
    chain[-1].truncated = cut
    return chain if any(link.frames for link in chain) or len(chain) > 1 else []


def _open(chain: Chain, indents: list[int], indent: int, relation: str) -> bool:
    """Add a link below the nearest one that stands further left; False if there is no room."""
    if len(chain) >= MAX_LINKS:
        chain[-1].truncated = True
        return False
    parent = len(chain) - 1
    while parent > 0 and indents[parent] >= indent:
        parent -= 1
    chain.append(Link(relation, parent))
    indents.append(indent)
    return True


def _frame(line: str) -> Frame | None:
    """Read one ``at`` line; None if it was cut."""
    text = line.partition("at ")[2].removesuffix(" {").rstrip(",")
    text = text.removeprefix("async ")
    function: str | None = None
    place = text
    if text.endswith(")") and " (" in text:
        function, _, place = text.partition(" (")
        place = place[:-1]
    elif "(" in text and text.endswith(")"):
        function, _, place = text.partition("(")
        place = place[:-1]
    elif "(" in text and ")" not in text:
        return None
    match = _PLACE.match(place)
    if match is None:
        return Frame(function or place, None if function is None else place)
    return Frame(function, match.group(1), to_int(match.group(2)))


def _close(link: Link, header: list[str]) -> None:
    if not header:
        return
    text = "\n".join(header).strip().removesuffix("{").rstrip().rstrip(",")
    header.clear()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    text = _CODE.sub(r"\1\2", text.removeprefix("Uncaught "))
    if text[:1] in "'\"`0123456789{" or text in ("undefined", "null", "true", "false"):
        link.message = text.strip("'\"`") or None
        return
    link.type, link.message = split_header(text)
