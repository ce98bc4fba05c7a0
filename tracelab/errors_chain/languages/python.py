"""Python: ``traceback.format_exception``, oldest error first, groups in margins."""

import re
from dataclasses import dataclass, field
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, to_int

MARK: Final = re.compile(r"(?:Exception Group )?Traceback \(most recent call last\):")
CAUSE: Final = "The above exception was the direct cause of the following exception:"
_CONTEXT: Final = "During handling of the above exception, another exception occurred:"
_BEGINNINGS: Final = (
    "Traceback (most recent call last):",
    "Exception Group Traceback (most recent call last):",
)
_FRAME: Final = re.compile(r'^\s*File "(.*)", line (\d+)(?:, in (.*))?$')
_FINAL: Final = re.compile(r"^([A-Za-z_][\w.<>]*)(?:: ?(.*))?$")
_REPEATED: Final = re.compile(r"^\s*\[Previous line repeated (\d+) more times?\]$")
_OPEN: Final = re.compile(r"^( *)\+-\+-{8,} (\d+|\.\.\.) -{8,}$")
_NEXT: Final = re.compile(r"^( *)\+-{8,} (\d+|\.\.\.) -{8,}$")
_CLOSE: Final = re.compile(r"^( *)\+-{12,}$")
_GROUP: Final = re.compile(r"^( *)\+ Exception Group Traceback \(most recent call last\):$")
_RULE: Final = re.compile(r"^\+-[-+ \d.]*$")
_MARGIN: Final = re.compile(r"^( *)\| ?(.*)$")
_MEMBERS: Final = re.compile(r"\((\d{1,9}) sub-exceptions?\)$")
_MAX_DEPTH: Final = 40


@dataclass(slots=True)
class _Part:
    """One error as printed, before it is known what follows it."""

    link: Link = field(default_factory=Link)
    started: bool = False
    ended: bool = False
    members: list["_Level"] = field(default_factory=list)


@dataclass(slots=True)
class _Level:
    """The errors printed at one margin, oldest first, with what joins each to the next."""

    column: int
    parts: list[_Part] = field(default_factory=lambda: [_Part()])
    relations: list[str] = field(default_factory=list)
    closed: bool = False


def parse(text: str) -> Chain:
    """Parse a traceback."""
    top = _Level(0)
    stack = [top]
    for line in text.rstrip().split("\n"):
        line = line.rstrip("\r")
        stripped = line.lstrip(" ")
        if stripped.startswith("+") and _group_line(line, stack):
            continue
        if len(stack) > 1 and _RULE.match(stripped):
            stack[-1].parts[-1].link.truncated = True  # cut within the rule between members
            continue
        if stripped.startswith("|") and (len(stack) > 1 or stack[0].column or line[:1] == " "):
            margin = _MARGIN.match(line)
            if margin is not None:
                if len(stack) == 1:  # a group that was raised nowhere has no traceback of its own
                    stack[0].column = stack[0].column or len(margin.group(1))
                while len(stack) > 1 and stack[-1].column > len(margin.group(1)):
                    stack.pop()  # only the innermost of nested groups prints its end
                _content(stack[-1], margin.group(2))
                continue
        if stripped and len(stack) > 1:
            del stack[1:]
        _content(stack[-1], line)
    chain = _flatten(top)
    return chain if any(link.type or link.frames for link in chain) else []


def begun_relation(text: str) -> str | None:
    """Tell which sentence a text was cut within: what follows it is not there."""
    above, _, line = (part.lstrip(" |") for part in text.rstrip(" ").rpartition("\n"))
    if any(begin.startswith(line) for begin in _BEGINNINGS):
        line = above.rstrip(" |\n").rpartition("\n")[2].lstrip(" |")
    for sentence, relation in ((CAUSE, "cause"), (_CONTEXT, "context")):
        if line and sentence.startswith(line):
            return relation
    return None


def _group_line(line: str, stack: list[_Level]) -> bool:
    """Follow the margins of exception groups; False if the line is none of them."""
    start = _GROUP.match(line)
    if start is not None:
        level = stack[-1]
        if len(stack) == 1:
            level.column = len(start.group(1))
        level.parts[-1].started = True
        return True
    opening = _OPEN.match(line)
    if opening is not None and len(stack) < _MAX_DEPTH:
        member = _Level(len(opening.group(1)) + 2)
        _add_member(stack, member, opening.group(2))
        return True
    following = _NEXT.match(line)
    if following is not None and len(stack) > 1:
        while len(stack) > 2 and stack[-1].column > len(following.group(1)):
            stack.pop()
        column = stack.pop().column
        _add_member(stack, _Level(column), following.group(2))
        return True
    close = _CLOSE.match(line)
    if close is not None and len(stack) > 1:
        while len(stack) > 1 and stack[-1].column >= len(close.group(1)):
            stack.pop()
        return True
    return False


def _add_member(stack: list[_Level], member: _Level, number: str) -> None:
    part = stack[-1].parts[-1]
    if number == "...":  # the printer's own limit: members are missing
        part.link.truncated = True
    else:
        part.members.append(member)
    stack.append(member)


def _content(level: _Level, line: str) -> None:
    part = level.parts[-1]
    if line in (CAUSE, _CONTEXT) and part.ended:
        level.relations.append("cause" if line == CAUSE else "context")
        level.parts.append(_Part())
        return
    link = part.link
    if line.startswith("Traceback (most recent call last):") or line.endswith(
        " Traceback (most recent call last):"
    ):
        if not part.ended:
            part.started = True
        return
    if part.ended:
        return  # notes, or further lines of the message: only the event itself can tell
    if line.startswith(" ") and (part.started or link.frame_count):
        frame = _FRAME.match(line)
        if frame is not None and frame.group(3):  # a SyntaxError names its place without a function
            link.add(Frame(frame.group(3), frame.group(1), to_int(frame.group(2))))
        elif (repeated := _REPEATED.match(line)) is not None:
            link.frame_count += int(repeated.group(1)[:9])
        return
    if not line.strip() or not (part.started or level.column):
        return
    if not part.started and any(begin.startswith(line) for begin in _BEGINNINGS):
        return  # cut within the line that begins a traceback
    final = _FINAL.match(line)
    part.ended = True
    if final is None:
        link.message = line
        return
    link.type, link.message = final.group(1), (final.group(2) or "") or None


def _flatten(top: _Level) -> Chain:
    """Order a tree of levels: each error, then what it came from, then its members."""
    chain: Chain = []
    todo: list[tuple[_Level, int | None, str]] = [(top, None, "head")]
    while todo:
        level, parent, relation = todo.pop()
        parts = [part for part in level.parts if part.started or part.ended]
        followed: list[tuple[_Level, int | None, str]] = []
        for depth, part in enumerate(reversed(parts)):
            if len(chain) >= MAX_LINKS:
                chain[-1].truncated = True
                return chain
            link = part.link
            if depth:
                parent, relation = len(chain) - 1, level.relations[len(parts) - 1 - depth]
            link.parent, link.relation = parent, relation
            # the printer does not close every group, but it tells how many members each has
            told = _MEMBERS.search(link.message or "")
            shown = sum(any(p.started or p.ended for p in each.parts) for each in part.members)
            missing = told is not None and int(told.group(1)) > shown
            link.truncated = link.truncated or missing or not part.ended
            if link.frames:  # the innermost call stands last
                link.frames.reverse()
            followed += [(member, len(chain), "member") for member in part.members]
            chain.append(link)
        todo += followed[::-1]
    return chain
