"""Elixir and Erlang: ``Exception.format`` and its stack lines."""

import re
from typing import Final

from tracelab.errors_chain.chain import Chain, Frame, Link, to_int

MARK: Final = re.compile(
    r"^ +(?:\([\w.+ -]+\) )?\S+\.[eh]rl:\d+: |^ +(?:\([\w.+ -]+\) )?\S+\.exs?:\d+: ", re.MULTILINE
)
_FRAME: Final = re.compile(r"^ +(?:\([\w.+ -]+\) )?(\S+?\.(?:exs?|[eh]rl)):(\d+): (\S.*)$")
_WHOLE: Final = re.compile(r"/\d+(?: in \S+)?$|\)$")
_UNPLACED: Final = re.compile(r"^ +(?:\([\w.+ -]+\) )([A-Za-z:]\S*/\d+)$")
_HEADER: Final = re.compile(r"^\*\* \((?:(exit|throw|EXIT from \S+)|([A-Z][\w.]*))\) ?(.*)$", re.S)


def parse(text: str) -> Chain:
    """Parse header and frames."""
    head = Link()
    message: list[str] = []
    cut = False
    for raw in text.rstrip().split("\n"):
        line = raw.rstrip("\r")
        frame = _FRAME.match(line)
        unplaced = None if frame is not None else _UNPLACED.match(line)
        cut = False
        if frame is not None:
            head.add(Frame(frame.group(3), frame.group(1), to_int(frame.group(2))))
            cut = _WHOLE.search(frame.group(3)) is None
        elif unplaced is not None:
            head.add(Frame(unplaced.group(1)))
        elif not head.frames:
            message.append(line)
        else:
            cut = line.startswith("    ")
    said = "\n".join(message).strip()
    found = _HEADER.match(said)
    if found is not None:
        head.type, head.message = found.group(2) or found.group(1), found.group(3) or None
    else:
        head.message = said or None
    head.truncated = cut
    return [head] if head.frames else []
