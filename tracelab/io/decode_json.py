"""OTLP JSON to levels."""

import numpy as np
import polars as pl

from tracelab.io import decode_proto
from tracelab.io.canonical import Ids, Losses, canonical_request, encode_request, parse_json
from tracelab.io.levels import Decoded, Level, Problems
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
    return _decode_leniently(messages, problems)


def _decode_leniently(messages: list[bytes], problems: Problems) -> Decoded:
    """Decode message by message through the canonical form, then natively as protobuf."""
    decoded = Decoded()
    parts: dict[Signal, list[tuple[int, bytes]]] = {}
    ids: Ids = Ids()
    for number, message in enumerate(messages):
        losses = Losses()
        try:
            request = canonical_request(parse_json(message, losses), losses)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
            excerpt = message[:200].decode(errors="replace")
            problems.add(number, f"broken JSON message: {reason}", excerpt)
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
        sources = np.array([number for number, _ in numbered], dtype=np.int64)
        decode_proto.decode_signal(
            signal, [body for _, body in numbered], sources, problems, decoded
        )
    _restore_ids(decoded, ids)
    return decoded


def _restore_ids(decoded: Decoded, ids: Ids) -> None:
    """Put ids that are no hex back where protobuf could not carry them."""
    levels: dict[str, tuple[Level | None, str]] = {
        "opentelemetry.proto.trace.v1.Span": (decoded.spans and decoded.spans.spans, ""),
        "opentelemetry.proto.trace.v1.Span.Link": (decoded.spans and decoded.spans.links, "linked_"),
        "opentelemetry.proto.logs.v1.LogRecord": (decoded.logs and decoded.logs.logs, ""),
    }
    for message, row, name, text in ids.kept:
        level, prefix = levels[message]
        if level is not None:
            column = f"{prefix}{name}"
            level.columns[column] = level.columns[column].scatter(row, text)
