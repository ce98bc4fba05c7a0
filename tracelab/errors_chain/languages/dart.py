"""Dart: the stack of an unhandled error."""

import re
from typing import Final

from tracelab.errors_chain.chain import Chain, Frame, Link, to_int

MARK: Final = re.compile(r"^#\d+ +\S.* \((?:dart|file|package|https?):[^()]*\)$", re.MULTILINE)
_FRAME: Final = re.compile(r"^#\d+ +(\S.*) \(([^()]*?)(?::(\d+))?(?::\d+)?\)$")
_TYPE: Final = re.compile(r"^(\w*(?:Exception|Error))(?: \(\w+\))?(?:: (.*))?$", re.DOTALL)


def parse(text: str) -> Chain:
    """Parse header and frames."""
    head = Link()
    message: list[str] = []
    cut = False
    for line in text.rstrip().split("\n"):
        frame = _FRAME.match(line.rstrip("\r"))
        if frame is not None:
            head.add(Frame(frame.group(1), frame.group(2), to_int(frame.group(3))))
        elif line.startswith("#") or (line.startswith("<") and not line.endswith(">")):
            cut = True
        elif not head.frames and not line.startswith("Unhandled exception"):
            message.append(line)
    text = "\n".join(message).strip()
    found = _TYPE.match(text)
    head.type, head.message = found.groups() if found else (None, text or None)
    head.truncated = cut
    return [head] if head.frames else []
