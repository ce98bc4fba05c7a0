"""What a parser of stack traces returns: links of a cause chain, outermost first."""

import re
from dataclasses import dataclass, field
from typing import Final

MAX_LINKS: Final = 1_000
"""Most links of one chain that are kept; the last one kept is then marked truncated."""

MAX_FRAMES: Final = 32
"""Most frames of one link that are kept; all are counted."""

MAX_CHARS: Final = 400_000
"""Most characters of one text that are read: a real stack trace is far below, a hostile
one costs bounded time. What was left out is marked as truncated."""

TYPE_NAME: Final = r"[A-Za-z_$][\w$]*(?:[.:\\/+][A-Za-z_$]?[\w$]*)*"
HEADER: Final = re.compile(rf"^({TYPE_NAME})(?:: ?(.*))?$", re.DOTALL)
_WORDY: Final = re.compile(
    r"(?<![\w.$])([A-Za-z_$][\w.$]{0,200}?(?:Exception|Error|Throwable|Failure))(?::\s?(.*))?$",
    re.DOTALL,
)


@dataclass(slots=True)
class Frame:
    """One line of a stack; file and line are None where the text has none."""

    function: str | None
    file: str | None = None
    line: int | None = None


@dataclass(slots=True)
class Link:
    """One error of a chain and how it hangs on another."""

    relation: str = "head"
    parent: int | None = None
    type: str | None = None
    message: str | None = None
    frames: list[Frame] = field(default_factory=list)
    frame_count: int = 0
    truncated: bool = False

    def add(self, frame: Frame) -> None:
        """Count a frame, and keep it while there is room."""
        self.frame_count += 1
        if len(self.frames) < MAX_FRAMES:
            self.frames.append(frame)


Chain = list[Link]


def split_header(text: str) -> tuple[str | None, str | None]:
    """Split ``pkg.Type: message``; the type is None where the text does not begin with one."""
    text = text.strip()
    match = HEADER.match(text)
    if match is not None and not match.group(1).endswith((".", ":", "/", "+", "\\")):
        return match.group(1), (match.group(2) or "").strip() or None
    found = _WORDY.search(text[:2000])
    # an author's "; nested exception is x.Y: m" tells of the cause
    if found is not None and not text[: found.start()].rstrip().endswith((" is", " by")):
        return found.group(1), (found.group(2) or "").strip() or None
    return None, text or None


def to_int(text: str | None) -> int | None:
    """Read a line number; a hostile one of 30 digits is none."""
    return int(text) if text and text.isdigit() and len(text) < 10 else None
