"""OTLP protobuf to levels: one native call per block and signal.

A block that the native decoder refuses is tried message by message, and what it still refuses
is taken apart by hand, so that a broken span costs only itself.
"""

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracelab.io.attributes import Index, arrow_text, double_texts, series
from tracelab.io.lean import LEGACY_NAME, checker, decoder
from tracelab.io.levels import Decoded, Logs, Problems, Spans
from tracelab.io.proto_levels import NativeLevels, items_and_owners, member
from tracelab.io.proto_metrics import read_metrics
from tracelab.io.wire import Signal, message_signal, salvage_message, with_scopes_for_libraries


def read_spans(batch: pa.RecordBatch, sources: Index, problems: Problems) -> Spans:
    """Lay trace messages out in levels.

    Parameters
    ----------
    batch : pa.RecordBatch
        What the native decoder made of the messages.
    sources : ndarray of int64
        Number of each message within its block.
    problems : Problems
        Takes what could not be kept.

    Returns
    -------
    Spans

    Raises
    ------
    Nothing of its own.
    """
    levels = NativeLevels(problems)
    resources, scopes, leaves, group = levels.envelope(batch, "scope_spans", "spans", sources)
    message = scopes.message[group]
    status = member(leaves, "status")
    spans = levels.level(
        leaves,
        group,
        message,
        "a span",
        texts=("name", "trace_state"),
        ids=("trace_id", "span_id", "parent_span_id"),
        numbers={
            "flags": "flags",
            "kind": "kind",
            "start_time": "start_time_unix_nano",
            "end_time": "end_time_unix_nano",
            "dropped_attributes_count": "dropped_attributes_count",
            "dropped_events_count": "dropped_events_count",
            "dropped_links_count": "dropped_links_count",
        },
    )
    spans.columns["status_code"] = series(pc.fill_null(member(status, "code"), 0))
    spans.columns["status_message"] = series(
        levels.reader.text(member(status, "message"), message, "a status message")
    )
    items, span = items_and_owners(member(leaves, "events"))
    events = levels.level(
        items,
        span,
        message[span],
        "an event",
        texts=("name",),
        numbers={
            "time": "time_unix_nano",
            "dropped_attributes_count": "dropped_attributes_count",
        },
    )
    items, span = items_and_owners(member(leaves, "links"))
    links = levels.level(
        items,
        span,
        message[span],
        "a link",
        texts=("trace_state",),
        ids=("trace_id", "span_id"),
        numbers={
            "flags": "flags",
            "dropped_attributes_count": "dropped_attributes_count",
        },
    )
    for name in ("trace_id", "span_id"):
        links.columns[f"linked_{name}"] = links.columns.pop(name)
    return Spans(resources, scopes, spans, events, links)


def read_logs(batch: pa.RecordBatch, sources: Index, problems: Problems) -> Logs:
    """Lay log messages out in levels.

    Parameters
    ----------
    batch, sources, problems
        As for `read_spans`.

    Returns
    -------
    Logs

    Raises
    ------
    Nothing of its own.
    """
    levels = NativeLevels(problems)
    resources, scopes, leaves, group = levels.envelope(batch, "scope_logs", "log_records", sources)
    message = scopes.message[group]
    logs = levels.level(
        leaves,
        group,
        message,
        "a log record",
        texts=("severity_text", "event_name"),
        ids=("trace_id", "span_id"),
        numbers={
            "flags": "flags",
            "severity_number": "severity_number",
            "time": "time_unix_nano",
            "observed_time": "observed_time_unix_nano",
            "dropped_attributes_count": "dropped_attributes_count",
        },
    )
    logs.columns["body"] = _bodies(levels, member(leaves, "body"), message)
    return Logs(resources, scopes, logs)


def _bodies(levels: NativeLevels, values: pa.StructArray, message: Index) -> pl.Series:
    strings, booleans, integers, doubles, texts = levels.values.columns(
        values, message, "a log body"
    )
    return series(
        pc.coalesce(
            strings,
            booleans.cast(pa.string()),
            integers.cast(pa.string()),
            arrow_text(double_texts(series(doubles))),
            texts,
        )
    )


_MESSAGES: Final[dict[Signal, tuple[str, str]]] = {
    "traces": ("trace.v1.TracesData", "trace.v1.Span"),
    "logs": ("logs.v1.LogsData", "logs.v1.LogRecord"),
    "metrics": ("metrics.v1.MetricsData", "metrics.v1.Metric"),
}


def decode_messages(messages: list[bytes], problems: Problems) -> Decoded:
    """Decode the messages of a block, whatever signals they carry.

    Parameters
    ----------
    messages : list of bytes
        Export requests of traces, logs and metrics.
    problems : Problems
        Takes what could not be kept.

    Returns
    -------
    Decoded

    Raises
    ------
    Nothing of its own.
    """
    by_signal: dict[Signal, list[int]] = {}
    for number, message in enumerate(messages):
        by_signal.setdefault(message_signal(message), []).append(number)
    decoded = Decoded()
    for signal, numbers in by_signal.items():
        sources = np.array(numbers, dtype=np.int64)
        part = [messages[number] for number in numbers]
        decode_signal(signal, part, sources, problems, decoded)
    return decoded


def decode_signal(
    signal: Signal, messages: list[bytes], sources: Index, problems: Problems, decoded: Decoded
) -> None:
    """Decode messages of one signal into `decoded`.

    Parameters
    ----------
    signal : {"traces", "logs", "metrics"}
        What all the messages carry.
    messages : list of bytes
        Export requests.
    sources : ndarray of int64
        Number of each message within its block.
    problems : Problems
        Takes what could not be kept.
    decoded : Decoded
        Takes the levels.

    Raises
    ------
    Nothing of its own.
    """
    batch = _native(signal, messages, sources.tolist(), problems, decoded)
    if signal == "traces":
        decoded.spans = read_spans(batch, sources, problems)
    elif signal == "logs":
        decoded.logs = read_logs(batch, sources, problems)
    else:
        decoded.metrics = read_metrics(batch, sources, problems)


def _native(
    signal: Signal,
    messages: list[bytes],
    numbers: list[int],
    problems: Problems,
    decoded: Decoded,
) -> pa.RecordBatch:
    batch, messages = _what_can_be_read(signal, messages, numbers, problems, decoded)
    if signal == "traces" and len(member(batch.column(0).values, LEGACY_NAME).values):
        # What stands in the old field was not looked into so far.
        messages = [with_scopes_for_libraries(message) for message in messages]
        batch, _ = _what_can_be_read(signal, messages, numbers, problems, decoded)
    return batch


def _what_can_be_read(
    signal: Signal,
    messages: list[bytes],
    numbers: list[int],
    problems: Problems,
    decoded: Decoded,
) -> tuple[pa.RecordBatch, list[bytes]]:
    """Decode messages together; if that is refused, what each check of one by itself leaves."""
    decode = decoder(_MESSAGES[signal][0])
    for check in (None, _readable, _decodable):
        if check is not None:
            messages = [
                check(signal, message, number, problems, decoded)
                for message, number in zip(messages, numbers, strict=True)
            ]
        try:
            return decode(messages), messages
        except ValueError:
            continue
    return decode([b""] * len(messages)), messages


def _decodable(
    signal: Signal, message: bytes, number: int, problems: Problems, decoded: Decoded
) -> bytes:
    """Return the message, or nothing if the native decoder alone refuses it."""
    try:
        decoder(_MESSAGES[signal][0])([message])
    except ValueError as error:
        problems.add(number, f"broken message: {error}", message[:64].hex())
        decoded.bad.add(number)
        return b""
    return message


def _readable(
    signal: Signal, message: bytes, number: int, problems: Problems, decoded: Decoded
) -> bytes:
    """Return the message itself if it can be read, else what can be saved of it."""
    whole, leaf = _MESSAGES[signal]
    try:
        checker(whole)(message)
    except ValueError as error:
        saved = salvage_message(
            message,
            leaf=checker(leaf),
            resource=checker("resource.v1.Resource"),
            scope=checker("common.v1.InstrumentationScope"),
        )
        # What was passed over may not be known for a loss, such as a group of protobuf 2.
        losses = saved.losses or [(0, f"broken message: {error}", message[:64])]
        for position, reason, excerpt in losses:
            problems.add(number, reason, excerpt.hex(), position=position)
        decoded.bad.add(number)
        if signal == "traces":
            decoded.spans_rejected += saved.leaves_lost
        return saved.data
    return message
