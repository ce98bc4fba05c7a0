"""Go's own stack text: goroutine headers, frames, who created whom.

Both sides read it: the reader of goroutine profiles and the parser of stack traces on
spans. One pass over the lines, no backtracking, damage costs the goroutine it touches.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

HEADER: Final = re.compile(r"^goroutine (\d+)(?: gp=\S+)?(?: m=\S+(?: mp=\S+)?)? \[(.*)\]:$")
_LOCATION: Final = re.compile(r"^\s+(.*):(\d+)(?: \+0x[0-9a-f]+)?(?: [ a-z]+=.*)?$")
_MINUTES: Final = re.compile(r"^(\d+) minutes$")
_CREATED: Final = "created by "
_ANCESTOR: Final = re.compile(r"^\[originating from goroutine (\d+)\]:$")
PANIC: Final = re.compile(
    r"^(?:.*? http: panic serving [^ ]+: |(\s*)panic: |(fatal error): )(.*?)"
    r"(?: \[recovered(?:, repanicked)?\])?$"
)
_ENDS: Final = re.compile(r"\s*$|exit status \d+$|(?:FAIL|ok  )\t")
MAX_FRAMES: Final = 200


@dataclass(slots=True)
class GoFrame:
    """One function of a stack with the line that was running."""

    function: str
    file: str
    line: int


@dataclass(slots=True)
class Goroutine:
    """One goroutine of a dump, or an ancestor of one."""

    goroutine_id: int
    state: str
    wait_minutes: int = 0
    locked: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    frames: list[GoFrame] = field(default_factory=list)
    frames_elided: bool = False
    created_by: GoFrame | None = None
    creator_id: int | None = None
    ancestor: "Goroutine | None" = None
    complete: bool = True
    panic: str | None = None
    """What the line above a crash or a recovered panic says."""


def read_header(line: str) -> Goroutine | None:
    """Read ``goroutine 7 [chan receive, 3 minutes, locked to thread]:``; None if it is none."""
    match = HEADER.match(line)
    if match is None:
        return None
    text, labels = match.group(2), {}
    at = text.find("labels:{")
    if at >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(text[at + len("labels:") :])
            labels = {str(key): str(value) for key, value in found.items()}
        except ValueError:
            labels = {}
        text = text[:at].rstrip(" ,")
    parts = text.split(", ")
    goroutine = Goroutine(int(match.group(1)), parts[0], labels=labels)
    for part in parts[1:]:
        minutes = _MINUTES.match(part)
        if minutes:
            goroutine.wait_minutes = int(minutes.group(1))
        elif part == "locked to thread":
            goroutine.locked = True
    return goroutine


def parse_goroutines(
    lines: Iterable[str], *, strict: bool = True, errors: list[str] | None = None
) -> Iterator[Goroutine]:
    """Read goroutines out of the lines of a dump.

    Parameters
    ----------
    lines : iterable of str
        Lines without their ends.
    strict : bool
        Leave out a goroutine with a line that cannot be read; otherwise give what was
        read of it with ``complete`` false.
    errors : list of str, optional
        Receives one sentence per line that could not be read.

    Yields
    ------
    Goroutine
        In the order of the text.
    """
    top: Goroutine | None = None
    current: Goroutine | None = None
    pending: tuple[str, bool, int | None] | None = None  # function, is creator, creator's id
    bad = False
    said: str | None = None

    def finish() -> Goroutine | None:
        if top is None or (strict and bad):
            return None
        top.complete = top.complete and not bad
        return top

    def complain(what: str, number: int, line: str) -> None:
        if errors is not None:
            errors.append(f'invalid {what} on line {number}: "{line}"')

    number = 0
    for number, line in enumerate(lines, start=1):
        header = read_header(line) if line.startswith("goroutine ") else None
        panic = PANIC.match(line) if "panic" in line or line.startswith("fatal error: ") else None
        if panic is not None:  # the last of several is the one that was not recovered
            said = panic.group(3).strip()
        if header is not None or (top is not None and (panic or _ENDS.match(line))):
            if pending is not None:
                complain("file:line ref", number, line)
                bad = True
            elif top is not None and header is None and not (top.frames or bad):
                complain("function call", number, line)
                bad = True
            done = finish()
            if done is not None:
                yield done
            if header is not None:
                header.panic, said = said, None
            top = current = header
            pending, bad = None, False
            continue
        if current is None or bad:
            continue
        if pending is not None:
            location = _LOCATION.match(line)
            if location is None:
                complain("file:line ref", number, line)
                bad = True
                continue
            frame = GoFrame(pending[0], location.group(1), int(location.group(2)))
            if pending[1]:
                current.created_by, current.creator_id = frame, pending[2]
            elif len(current.frames) < MAX_FRAMES:
                current.frames.append(frame)
            pending = None
        elif line.startswith("...") and line.endswith("frames elided..."):
            current.frames_elided = True
        elif line.startswith(_CREATED):
            maker, _, creator = line[len(_CREATED) :].partition(" in goroutine ")
            pending = (maker, True, int(creator) if creator.isdigit() else None)
        elif (ancestor := _ANCESTOR.match(line)) is not None:
            current.ancestor = Goroutine(int(ancestor.group(1)), "")
            current = current.ancestor
        else:
            name = function_name(line)
            if name is None:
                complain("function call", number, line)
                bad = True
            else:
                pending = (name, False, None)
    if pending is not None:
        complain("file:line ref", number + 1, "")
        bad = True
    elif top is not None and not (top.frames or bad):
        complain("function call", number + 1, "")
        bad = True
    last = finish()
    if last is not None:
        yield last


def function_name(line: str) -> str | None:
    """Return the function of a call line ``pkg.(*T).F(0x1, ...)``, None if it is no call."""
    if line[:1] in ("", "\t", " ") or not line.endswith(")"):
        return None
    depth = 0
    for at in range(len(line) - 1, -1, -1):
        depth += (line[at] == ")") - (line[at] == "(")
        if depth == 0:
            return line[:at] or None
    return None
