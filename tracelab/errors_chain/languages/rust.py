"""Rust: tracing-opentelemetry's array of sources, anyhow and eyre reports, panics."""

import json
import re
from typing import Final

from tracelab.errors_chain.chain import MAX_LINKS, Chain, Frame, Link, to_int

MARK: Final = re.compile(
    r"^thread '[^']*' (?:\(\d+\) )?panicked at |^Caused by:$|^Stack backtrace:$"
    r"|^stack backtrace:$|^[ \t]+at \S+\.rs:\d+(?::\d+)?$|^Location:\n[ \t]+\S+\.rs:\d+",
    re.MULTILINE,
)
_NUMBERED: Final = re.compile(r"^ {1,6}(\d+): (.*)$")
_PANIC: Final = re.compile(
    r"^thread '[^']*' (?:\(\d+\) )?panicked at (?:'(.*)', )?(\S+?):(\d+):(\d+):?$"
)
_PLACE: Final = re.compile(r"^\s+(?:at )?(\S+?):(\d+)(?::\d+)?$")


def parse(text: str) -> Chain:
    """Parse a report; an array of texts is the chain below the head."""
    if text.lstrip().startswith("["):
        return _array(text)
    lines = [line.rstrip("\r") for line in text.split("\n")]
    head = Link()
    chain = [head]
    message: list[str] = []
    section, numbered = "message", False
    pending: str | None = None
    for line in lines:
        panic = _PANIC.match(line)
        if panic is not None:
            head.type, section = "panic", "message"
            message = [panic.group(1)] if panic.group(1) else []
            head.add(Frame(None, panic.group(2), to_int(panic.group(3))))
        elif line == "Caused by:":
            section = "causes"
        elif line in ("Stack backtrace:", "stack backtrace:"):
            section = "frames"
        elif line == "Location:":
            section = "location"
        elif section == "message" and not line.startswith("note: "):
            number = _NUMBERED.match(line)
            if number is None:
                message.append(line)
            elif not head.message and not "".join(message).strip().removeprefix("Error:"):
                message, section = [number.group(2)], "causes"  # color-eyre counts the head, too
            else:
                message.append(line)
        elif section == "causes" and line.strip():
            number = _NUMBERED.match(line)
            if number is not None and len(chain) < MAX_LINKS:
                numbered = True
                chain.append(Link("cause", len(chain) - 1, None, number.group(2).strip()))
            elif len(chain) == 1:
                chain.append(Link("cause", 0, None, line.strip()))
            elif len(chain) >= MAX_LINKS and numbered:
                chain[-1].truncated = True
            else:
                chain[-1].message = f"{chain[-1].message}\n{line.strip()}"
        elif section in ("frames", "location"):
            pending = _backtrace(head, line, pending)
    if pending is not None:
        head.add(Frame(pending))
    head.message = "\n".join(message).strip().removeprefix("Error: ") or None
    begun = lines[-1].strip() if section in ("causes", "frames") else ""
    head.truncated = head.type == "panic" and head.message is None
    chain[-1].truncated |= begun == "Caused by:" or begun.rstrip(":").isdigit()
    return chain if len(chain) > 1 or head.frames else []


def _backtrace(head: Link, line: str, pending: str | None) -> str | None:
    """Take one line of a backtrace; returns a function that still waits for its place."""
    number = _NUMBERED.match(line)
    if number is not None:
        if pending is not None:
            head.add(Frame(pending))
        return number.group(2).strip()
    place = _PLACE.match(line)
    if place is not None:
        head.add(Frame(pending, place.group(1), to_int(place.group(2))))
        return None
    return pending


def _array(text: str) -> Chain:
    try:
        sources = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(sources, list) or not all(isinstance(item, str) for item in sources):
        return []
    chain = [Link()]
    for number, source in enumerate(sources[: MAX_LINKS - 1]):
        chain.append(Link("cause", number, None, source))
    chain[-1].truncated = len(sources) >= MAX_LINKS
    return chain if len(chain) > 1 else []
