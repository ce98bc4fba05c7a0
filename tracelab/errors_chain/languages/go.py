"""Go: panics and goroutine stacks, ``errors.Join``, the ``%+v`` of wrapping packages.

Go records no causes: a stack belongs to the goroutine that recorded the error, and only
the type of the error tells whether it wraps another.
"""

import re
from itertools import chain as chained
from typing import Final

from tracelab.errors_chain.chain import Chain, Frame, Link
from tracelab.errors_chain.languages.go_verbose import parse_verbose
from tracelab.gostack import HEADER, PANIC, parse_goroutines

MARK: Final = re.compile(
    r"^goroutine \d+ (?:[a-z]+=\S{1,100} ){0,4}\[.*\]:$|^\t\S+\.go:\d+(?: |$)|^  \| \s+\S+\.go:\d+$"
    r"|^ {4}\S+\n {8}\S.*\.go:\d+$",
    re.MULTILINE,
)
STACK_BUFFER_BYTES: Final = 2048
"""RecordError's stack buffer (opentelemetry-go ``recordStackTrace``): a stack of exactly
this many bytes was cut."""

JOIN_TYPES: Final = frozenset({"*errors.joinError", "*fmt.wrapErrors"})
WRAPPER_TYPES: Final = frozenset(
    {
        "*fmt.wrapError",
        "*fmt.wrapErrors",
        "*errors.joinError",
        "*errors.withStack",
        "*errors.withMessage",
        "*xerrors.wrapError",
        "*multierror.Error",
        "*url.Error",
        "*net.OpError",
        "*net.DNSError",
        "*os.SyscallError",
        "*os.LinkError",
        "*fs.PathError",
        "*os.PathError",
        "*exec.Error",
        "*json.MarshalerError",
        "*csv.ParseError",
        "*strconv.NumError",
    }
)
"""Types of the standard library and of common packages that hold an inner error."""

TEXT_TYPES: Final = frozenset({"*errors.errorString", "*errors.fundamental", "*fmt.fmtError"})
"""Types that hold nothing but a text."""

_MACHINERY: Final = (
    "go.opentelemetry.io/otel/sdk/trace.",
    "runtime/debug.Stack",
    "runtime.gopanic",
    "runtime.panic",
    "runtime.sigpanic",
    "runtime.goPanic",
)


def parse(text: str) -> Chain:
    """Parse a panic message, a goroutine stack or a ``%+v`` text."""
    lines = text.split("\n")
    start = next((n for n, line in enumerate(lines) if HEADER.match(line.rstrip("\r"))), None)
    if start is None:
        return parse_verbose(text)
    chain = _panics(lines[:start])
    head = chain[0]
    first = next(
        parse_goroutines((line.rstrip("\r") for line in chained(lines[start:], [""])), strict=False)
    )
    frames = [Frame(f.function, f.file, f.line) for f in first.frames]
    panicking = [n for n, frame in enumerate(frames) if frame.function == "panic"]
    skip = panicking[-1] + 1 if panicking else 0
    while skip < len(frames) and (frames[skip].function or "").startswith(_MACHINERY):
        skip += 1
    for frame in frames[skip:] or frames:
        head.add(frame)
    head.frame_count = len(frames)
    cut = not text.endswith("\n") and len(text.encode("utf-8", "replace")) == STACK_BUFFER_BYTES
    head.truncated = cut or not first.complete
    return chain


def _panics(lines: list[str]) -> Chain:
    """Read panic lines, the newest last: a panic during a panic names both."""
    found: list[Link] = []
    for line in lines:
        match = PANIC.match(line)
        if match is not None:
            found.append(Link("head", None, match.group(2) or "panic", match.group(3).strip()))
        elif found and line.strip() and not line.startswith(("[signal", "\t", " ")):
            found[-1].message = f"{found[-1].message}\n{line}"
    found = found[::-1] or [Link()]
    for position, link in enumerate(found[1:], start=1):
        link.relation, link.parent = "context", position - 1
    return found


def join_members(type_name: str | None, message: str | None) -> Chain:
    """Split what ``errors.Join`` joined: one member per line of its message."""
    if type_name not in JOIN_TYPES or not message or "\n" not in message:
        return []
    members = [line for line in message.split("\n") if line.strip()]
    return [
        Link("head", None, type_name, message),
        *(Link("member", 0, None, line.strip()) for line in members),
    ]
