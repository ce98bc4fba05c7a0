"""Node and browsers: ``error.stack``, and the longer form of ``util.inspect``.

``error.stack`` holds neither the cause nor the members of an AggregateError; the inspect
form, seen in logs, holds both.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, split_header, to_int

# each of these reads a line once: hostile lines are long
_PLACED: Final = r"at (?=.*(?:[/\\.<]|[a-z]:[a-z])).*:\d+:\d+\)*,?(?: \{)?$"
MARK: Final = re.compile(
    rf"^[ \t]+{_PLACED}|^[ \t]+at .* \((?:native|<anonymous>|unknown location)\)$"
    r"|^[^\s@]{0,1000}@\S+:\d+:\d+$|^[ \t]+\[cause\]: ",
    re.MULTILINE,
)
BROWSER: Final = re.compile(
    r"^[ \t]+at .*https?://.*:\d+:\d+\)*$|^[^\s@]{0,1000}@\S+:\d+:\d+$", re.MULTILINE
)
_PLACE: Final = re.compile(r"^(.*?):(\d+)(?::(\d+))?$")
_FIREFOX: Final = re.compile(r"^([^\s@]*)@(?:(\S+):(\d+):(\d+)|\[native code\])$")
_LIKE_FRAME: Final = re.compile(
    rf"^(?:{_PLACED}|at .*(?:native|<anonymous>|unknown location|index \d+)\)*,?(?: \{{)?$)"
)
_LITERALS: Final = re.compile(r"\[[A-Za-z_$][\w$.]*(?:: [^\]]*)?\]|'[^']*'|\"[^\"]*\"|[^\s,\[\]]+")
_UNCAUGHT: Final = re.compile(r"^(?:\w+: )?Uncaught (?:\(in promise\) )?")
_SOURCE: Final = re.compile(r"^(?:file://)?\S.*:\d+$")
_MORE: Final = re.compile(r"^\.\.\. \d+ more items?$")
_QUOTES: Final = {"[": "]", "{": "}", "'": "'", '"': '"', "`": "`"}
_REFERENCE: Final = re.compile(r"^<ref \*\d+> ")
_MATCHING: Final = re.compile(r"^\.\.\. (\d+) lines matching cause stack trace \.\.\.")
_CODE: Final = re.compile(r"^(\S+) \[\w+\](: |$)")


@dataclass(slots=True)
class _Reader:
    """What is known after some lines of a text."""

    chain: Chain = field(default_factory=lambda: [Link()])
    indents: list[int] = field(default_factory=lambda: [0])
    header: list[str] = field(default_factory=list)
    errors_at: list[int] = field(default_factory=list)
    """Margins of the open ``[errors]: [`` lists."""
    before: str = ""
    open_blocks: int = 0
    cut: bool = False
    full: bool = False

    def take(self, raw: str) -> None:
        """Read one line."""
        line = raw.strip()
        indent = len(raw) - len(raw.lstrip(" \t"))
        current = self.chain[-1]
        self.cut = False
        if (firefox := _FIREFOX.match(line)) is not None:
            self.close()
            current.add(Frame(firefox.group(1) or None, firefox.group(2), to_int(firefox.group(3))))
        elif line.startswith(("at ", "eval at ")) and (current.frames or _LIKE_FRAME.match(line)):
            self.close()
            frame = _frame(line)
            self.cut = frame is None or frame.file is None
            if frame is not None:
                current.add(frame)
        elif (matching := _MATCHING.match(line)) is not None:
            current.frame_count += int(matching.group(1)[:9])
        elif line.startswith("[cause]: "):
            self.errors_at = [at for at in self.errors_at if at < indent]
            self.open(line[len("[cause]: ") :], indent, "cause")
        elif line.startswith("Caused by: ") and current.frames:  # Deno
            self.open(line[len("Caused by: ") :], len(self.chain), "cause")
        elif line.startswith("[errors]: ["):
            self._list(line[len("[errors]: [") :], indent)
        elif self.errors_at and line.startswith("]") and indent <= self.errors_at[-1]:
            self.close()
            self.errors_at.pop()
        elif self._starts_item(line, indent):
            if _MORE.match(line):
                self.chain[-1].truncated = True
            else:
                self.open(line, indent, "member")
        elif not current.frames and (self.header or len(self.chain) == 1):
            if line not in ("}", "},"):
                self.header.append(raw.rstrip("\r"))
                self.cut = raw.startswith("    at ")  # as the last line: a frame's beginning
                self._close_if_whole(line)
        else:
            self.cut = bool(current.frames) and line[:1] == "a" and ": " not in line
        self.before = line or self.before
        if line[:1] in ("}", "]"):
            self.open_blocks -= 1
        if line.endswith(("{", "[")) and (current.frames or len(self.chain) > 1):
            self.open_blocks += 1

    def _starts_item(self, line: str, indent: int) -> bool:
        """Tell whether a member of the innermost list begins: the one before ended in a comma."""
        if not self.errors_at or indent != self.errors_at[-1] + 2 or line[:1] in ("}", "]", ""):
            return False
        return self.before.endswith((",", "[errors]: ["))

    def _list(self, rest: str, indent: int) -> None:
        self.close()
        if not rest.endswith(" ]"):
            self.errors_at.append(indent)
            self.chain[-1].truncated |= bool(rest)  # a list on one line ends on it
            return
        for item in _LITERALS.findall(rest[:-1])[:MAX_LINKS]:
            self.open(item, indent + 2, "member")

    def open(self, text: str, indent: int, relation: str) -> None:
        """Add a link below the nearest one that stands further left."""
        self.close()
        if len(self.chain) >= MAX_LINKS:
            self.chain[-1].truncated = self.full = True
            return
        parent = len(self.chain) - 1
        while parent > 0 and self.indents[parent] >= indent:
            parent -= 1
        self.chain.append(Link(relation, parent))
        self.indents.append(indent)
        self.header = [text]
        self._close_if_whole(text)

    def _close_if_whole(self, line: str) -> None:
        """End a header that its brackets or quotes end: no stack follows."""
        bare = line.removesuffix(" {").rstrip(",")
        if len(self.header) == 1 and bare[:1] in _QUOTES and bare.endswith(_QUOTES[bare[0]]):
            self.close()

    def close(self) -> None:
        """Give the last link its header."""
        _close(self.chain[-1], self.header)


def parse(text: str) -> Chain:
    """Parse a V8 or Firefox stack, or the output of ``util.inspect`` of an error."""
    reader = _Reader()
    for raw in _without_source(text.rstrip().split("\n")):
        reader.take(raw)
        if reader.full:
            return reader.chain
    reader.close()
    chain = reader.chain
    chain[-1].truncated |= reader.cut or reader.open_blocks > 0
    return chain if any(link.frames for link in chain) or len(chain) > 1 else []


def _without_source(lines: list[str]) -> list[str]:
    """Leave out the source line that Node prints above an error that nobody caught."""
    if len(lines) > 4 and _SOURCE.match(lines[0]):
        for number, line in enumerate(lines[:8]):
            if line.strip() and not line.strip(" ^~"):
                return lines[number + 1 :]
    return lines


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
    text = _REFERENCE.sub("", text)
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        link.truncated = text.isidentifier()  # its depth limit left out all but the name
    text = _CODE.sub(r"\1\2", _UNCAUGHT.sub("", text))
    if text[:1] in "'\"`0123456789{" or text in ("undefined", "null", "true", "false"):
        link.message = text.strip("'\"`") or None
        return
    link.type, link.message = split_header(text)
