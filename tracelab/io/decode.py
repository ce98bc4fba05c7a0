"""Blocks of encoded messages in, chunks of tables out, whatever the encoding."""

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.io import decode_json, decode_proto
from tracelab.io.chunk import MESSAGES, Block, Chunk
from tracelab.io.containers import storable
from tracelab.io.flatten import (
    LiftedKeys,
    flatten_logs,
    flatten_metrics,
    flatten_spans,
)
from tracelab.io.levels import Decoded, Problems

__all__ = ["LiftedKeys", "decode_block"]

_DEFAULT_KEYS: Final = LiftedKeys()


def decode_block(
    block: Block,
    *,
    source: str | pl.Series,
    first_row: int = 0,
    keys: LiftedKeys | None = None,
) -> Chunk:
    """Decode messages into tables.

    Traces, logs and metrics may be mixed. What cannot be decoded becomes a row of REJECTS
    and costs no more than itself: the message if nothing in it can be read, else the span,
    else the value.

    Parameters
    ----------
    block : Block
        Encoded messages.
    source : str or pl.Series
        What the column ``source`` says: of all messages, or message by message.
    first_row : int
        Number of the block's first span within the source.
    keys : LiftedKeys, optional
        Attribute keys of task, tenant and request id; the conventions' own if left out.

    Returns
    -------
    Chunk
        A message counts as good if no leaf of it was lost. Messages of logs and metrics have
        zero spans.

    Raises
    ------
    Nothing of its own: bad data is a row.
    """
    keys = keys or _DEFAULT_KEYS
    problems = Problems()
    messages = _slices(block)
    if block.encoding == "proto":
        decoded = decode_proto.decode_messages(messages, problems)
    else:
        decoded = decode_json.decode_messages(messages, problems)
    return _chunk(block, decoded, problems, source=source, first_row=first_row, keys=keys)


def _slices(block: Block) -> list[bytes]:
    buffer = block.buffer
    return [
        buffer[start : start + length]
        for start, length in zip(block.starts.tolist(), block.lengths.tolist(), strict=True)
    ]


def _chunk(
    block: Block,
    decoded: Decoded,
    problems: Problems,
    *,
    source: str | pl.Series,
    first_row: int,
    keys: LiftedKeys,
) -> Chunk:
    n_messages = len(block.starts)
    counts = np.zeros(n_messages, dtype=np.int64)
    chunk = Chunk()
    if decoded.spans is not None:
        counts = np.bincount(decoded.spans.spans.message, minlength=n_messages)
        chunk = flatten_spans(
            decoded.spans, source=source, first_row=first_row, keys=keys, problems=problems
        )
    if decoded.logs is not None:
        logs = flatten_logs(decoded.logs, source=source, keys=keys, problems=problems)
        chunk = replace(chunk, logs=logs)
    if decoded.metrics is not None:
        metrics = flatten_metrics(decoded.metrics, source=source, problems=problems)
        chunk = replace(chunk, metrics=metrics)
    return replace(
        chunk,
        rejects=_rejects(block, problems, source),
        messages=_messages(block, counts, decoded.bad, first_row),
        spans_rejected=decoded.spans_rejected,
    )


def _messages(
    block: Block, counts: npt.NDArray[np.int64], bad: set[int], first_row: int
) -> pl.DataFrame:
    n_messages = len(counts)
    good = np.ones(n_messages, dtype=np.bool_)
    good[sorted(bad)] = False
    return pl.DataFrame(
        {
            "message": np.arange(block.first_message, block.first_message + n_messages),
            "offset": block.offsets,
            "length": block.lengths,
            "first_row": first_row + np.cumsum(counts) - counts,
            "spans": counts,
            "good": good,
        },
        schema=MESSAGES,
    )


def _rejects(block: Block, problems: Problems, source: str | pl.Series) -> pl.DataFrame:
    return pl.DataFrame(
        [
            (
                source if isinstance(source, str) else source[message],
                int(block.offsets[message]) + position,
                None if block.lines is None else int(block.lines[message]),
                storable(reason),
                storable(excerpt),
            )
            for message, position, reason, excerpt in sorted(problems.rows)
        ],
        schema=schema.REJECTS,
        orient="row",
    )
