"""OTLP JSON to levels."""

import json
import re
from typing import Final

import numpy as np

from tracelab.io import decode_proto
from tracelab.io.attributes import Index
from tracelab.io.canonical import Ids, Losses, canonical_request, encode_request, parse_json
from tracelab.io.json_native import Dialect, RefusedError, read_messages, sniff_dialect
from tracelab.io.levels import Decoded, Level, Logs, Problems, Spans, joined_blocks
from tracelab.io.wire import Signal


def decode_messages(messages: list[bytes], problems: Problems) -> Decoded:
    """Decode the messages of a block.

    Parameters
    ----------
    messages : list of bytes
        Export requests, one JSON document each.
    problems : Problems
        Takes what could not be kept.

    Returns
    -------
    Decoded

    Raises
    ------
    Nothing of its own.
    """
    decoded = joined_blocks(_parts(messages, problems))
    if decoded.spans is not None and (np.diff(decoded.spans.spans.message) < 0).any():
        # Spans in a message that did not look like one of traces: rows would be out of order.
        problems.rows.clear()
        everything = np.arange(len(messages), dtype=np.int64)
        decoded = _decode_leniently(messages, everything, problems)
    return decoded


def _parts(messages: list[bytes], problems: Problems) -> list[Decoded]:
    parts: list[Decoded] = []
    for signal, numbers in _by_signal(messages).items():
        sources = np.array(numbers, dtype=np.int64)
        part = [messages[number] for number in numbers]
        if signal is None:
            parts.append(_decode_leniently(part, sources, problems))
        else:
            parts += _decode_natively(part, sources, signal, problems)
    return parts


_BEGINNING: Final = re.compile(rb'\s*\{\s*"resource(?:(S|_s)pans|(L|_l)ogs)"')
_MAX_RUNS: Final = 16
"""Past this many alternations of plain and odd messages the block is read leniently: each run
costs some milliseconds whatever its size."""


def _by_signal(messages: list[bytes]) -> dict[Signal | None, list[int]]:
    """Sort messages by what they begin with; None is for all that is not plain.

    A message that has spans further on stands with the trace messages: rows of spans must
    follow the order of the messages.
    """
    numbers: dict[Signal | None, list[int]] = {}
    for number, message in enumerate(messages):
        found = _BEGINNING.match(message)
        signal: Signal | None = None
        if (found and found[1]) or b'"resourceSpans"' in message or b'"resource_spans"' in message:
            signal = "traces"
        elif found:
            signal = "logs"
        numbers.setdefault(signal, []).append(number)
    if len(numbers) > 1 and "traces" in numbers and None in numbers:
        odd = [n for n in numbers[None] if _may_hold_spans(messages[n])]
        if odd:
            numbers["traces"] = sorted(numbers["traces"] + odd)
            numbers[None] = [n for n in numbers[None] if n not in set(odd)]
    return numbers


def _may_hold_spans(message: bytes) -> bool:
    return b'"spans"' in message


def _decode_natively(
    messages: list[bytes], sources: Index, signal: Signal, problems: Problems
) -> list[Decoded]:
    content = b"\n".join(messages)
    try:
        whole = read_messages(messages, sources, signal, sniff_dialect(content))
        return [_of_levels(whole)]
    except RefusedError:
        runs = _runs(messages, sources, signal, sniff_dialect(content, whole=True))
    if len(runs) > _MAX_RUNS:
        return [_decode_leniently(messages, sources, problems)]
    parts = []
    for start, stop, levels in runs:
        if levels is None:
            parts.append(_decode_leniently(messages[start:stop], sources[start:stop], problems))
        else:
            parts.append(_of_levels(levels))
    return parts


def _of_levels(levels: Spans | Logs) -> Decoded:
    return Decoded(spans=levels) if isinstance(levels, Spans) else Decoded(logs=levels)


_Run = tuple[int, int, Spans | Logs | None]


def _runs(messages: list[bytes], sources: Index, signal: Signal, dialect: Dialect) -> list[_Run]:
    """Split messages into runs that the native reader took and runs that it refused."""
    runs: list[_Run] = []
    waiting = [(0, len(messages))]
    while waiting and len(runs) <= _MAX_RUNS:
        start, stop = waiting.pop()
        try:
            levels = read_messages(messages[start:stop], sources[start:stop], signal, dialect)
        except RefusedError:
            if stop - start > 1:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
            elif runs and runs[-1][2] is None:
                runs[-1] = (runs[-1][0], stop, None)
            else:
                runs.append((start, stop, None))
            continue
        runs.append((start, stop, levels))
    return runs


def _decode_leniently(messages: list[bytes], sources: Index, problems: Problems) -> Decoded:
    """Decode message by message through the canonical form, then natively as protobuf."""
    decoded = Decoded()
    parts: dict[Signal, list[tuple[int, bytes]]] = {}
    ids: Ids = Ids()
    for number, message in zip(sources.tolist(), messages, strict=True):
        losses = Losses()
        try:
            request = canonical_request(parse_json(message, losses), losses)
        except (ValueError, RecursionError) as error:
            excerpt = message[:200].decode(errors="replace")
            problems.add(number, f"broken JSON message: {_told(error, message)}", excerpt)
            decoded.bad.add(number)
            continue
        for reason, excerpt in losses.rows:
            problems.add(number, reason, excerpt)
        if losses.leaves:
            decoded.bad.add(number)
            decoded.spans_rejected += losses.leaves if "resourceSpans" in request else 0
        for signal, body in encode_request(request, ids):
            parts.setdefault(signal, []).append((number, body))
    for signal, numbered in parts.items():
        of_part = np.array([number for number, _ in numbered], dtype=np.int64)
        bodies = [body for _, body in numbered]
        decode_proto.decode_signal(signal, bodies, of_part, problems, decoded)
    _restore_ids(decoded, ids)
    return decoded


def _told(error: Exception, message: bytes) -> str:
    """Say what is wrong with a message; the parser's words for a cut one puzzle."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, json.JSONDecodeError) and (
        error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
    ):
        return f"cut off after {len(message)} bytes, inside of a JSON value"
    return str(error)


def _restore_ids(decoded: Decoded, ids: Ids) -> None:
    """Put ids that are no hex back where protobuf could not carry them."""
    levels: dict[str, tuple[Level, str]] = {}
    if decoded.spans is not None:
        levels["opentelemetry.proto.trace.v1.Span"] = (decoded.spans.spans, "")
        levels["opentelemetry.proto.trace.v1.Span.Link"] = (decoded.spans.links, "linked_")
    if decoded.logs is not None:
        levels["opentelemetry.proto.logs.v1.LogRecord"] = (decoded.logs.logs, "")
    for message, row, name, text in ids.kept:
        level, prefix = levels[message]
        column = f"{prefix}{name}"
        level.columns[column] = level.columns[column].scatter(row, text)
