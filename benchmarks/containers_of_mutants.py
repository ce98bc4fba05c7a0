"""Files that hold many mutants, one in each message, and what must hold when they are read.

Read one file after the other, a mutant costs what a file costs, some milliseconds; laid together
in a file it costs what a message costs. Two kinds of files are made: those in which every message
keeps its frame (its length prefix, its line, its compressed frame), so that it is known where each
begins and each must be found again in the account, sound neighbours untouched; and those in which
the frames are spoilt too, for which the sums must hold.
"""

import gzip
import io
import json
import re
from itertools import pairwise

import numpy as np
from exports import framed, zstd, zstd_frames
from mutations import Seeds, read_varint, spoil_bytes

from tracelab.exceptions import SourceError
from tracelab.io import SourceReader, finalise, gather

PROTO_FORMS = (
    "proto frames",
    "proto request",
    "zstd per message, proto",
    "gzip members, proto frames",
)
JSON_FORMS = (
    "json lines", "json lines with CRLF", "json documents", "json array", "json one after another",
    "zstd per message, json", "tempo", "jaeger", "zstd frames, json lines",
)  # fmt: skip
EVERY_SOUND = {"proto frames": 1}
"""Where neighbours are watched, one sound message stands behind so many mutants (else 3)."""

PACKINGS = {
    "none": lambda data: data,
    "zstd": zstd.compress,
    "zstd many frames": lambda data: zstd_frames(data, 3),
    "gzip": lambda data: gzip.compress(data, 1),
    "gzip members": lambda data: (
        gzip.compress(data[: len(data) // 2], 1) + gzip.compress(data[len(data) // 2 :], 1)
    ),
    "zstd in gzip": lambda data: gzip.compress(zstd.compress(data), 1),
}
_LINE_ENDS = re.compile(rb"[\r\n]")
_NOTHING = re.compile(rb'"\w*"\s*:|[\[\]{}\s,]')
"""An answer without traces in it."""
_BLANK = b" \t\r\n\0\x1e\xef\xbb\xbf,"


class File:
    """A file of messages, some of them mutants.

    Parameters
    ----------
    data : bytes
        The file.
    plain : bytes
        What is in it, unpacked.
    bounds : list of (int, int, bool) or None
        Where each message stands in `plain`, and whether it is sound; None where frames are spoilt.
    mutants : int
        How many of the messages are spoilt.
    """

    def __init__(self, data, plain, bounds, mutants):
        self.mutants = mutants
        self.data = data
        self.plain = plain
        self.bounds = bounds


def make_file(rng, form, packing, *, mutants, only=None, torn=None):
    """Lay mutants together.

    Parameters
    ----------
    rng : random.Random
        Draws everything; each mutant has a generator of its own.
    form, packing : str
        How messages stand in the file, and how it is packed.
    mutants : int
        How many.
    only : range, optional
        Mutants that are spoilt; the others are left out.
    torn : bool, optional
        Whether frames are spoilt as well.

    Returns
    -------
    File
    """
    protobuf = form in PROTO_FORMS
    torn = rng.random() < 0.4 if torn is None else torn
    seeds = Seeds(rng, 24, protobuf=protobuf)
    if form == "jaeger":
        seeds.replace([_jaeger(rng) for _ in range(24)])
    elif form == "tempo":
        seeds.replace([b'{"trace":' + body + b"}" for body in seeds.bodies])
    sounds = Seeds(rng, 8, traces_only=True, protobuf=protobuf).bodies
    wide = _wide(form)
    diluted = rng.random() < 0.7
    states = [rng.getrandbits(64) for _ in range(mutants)]
    pieces = [(wide(sounds[0]), True)] if diluted or rng.random() < 0.7 else []
    for number, state in enumerate(states):
        if only is None or number in only:
            rng.seed(state)
            if torn and rng.random() < 0.5:
                piece = spoil_bytes(rng, wide(rng.choice(seeds.bodies)))
            else:
                piece = wide(seeds.mutant(rng))
            if form in _BROKEN_BY_ONE and not _BROKEN_BY_ONE[form](piece):
                continue
            pieces.append((piece, False))
            if diluted and number % EVERY_SOUND.get(form, 3) == 0:
                pieces.append((wide(sounds[number % len(sounds)]), True))
    return _laid(form, packing, pieces, torn)


def _is_chain(body):
    place = 0
    while place < len(body):
        if body[place] != 0x0A:
            return False
        size, place = read_varint(body, place + 1, len(body))
        if place < 0:
            return False
        place += size
    return place == len(body)


def _is_value(body):
    try:
        json.loads(body[:-1])
    except (ValueError, RecursionError):
        return False
    return True


_BROKEN_BY_ONE = {"proto request": _is_chain, "json array": _is_value}
"""Forms in which one message without a frame would hide those behind it: such are left out."""


def _jaeger(rng):
    spans = b",".join(
        b'{"traceID":"%032x","spanID":"%016x","operationName":"x","references":[{"refType":"CHILD_OF",'
        b'"traceID":"a","spanID":"1"}],"startTime":1700000000000000,"duration":5,"tags":[{"key":"error",'
        b'"type":"bool","value":true},{"key":"http.route","value":"/"}],"logs":[{"timestamp":1,"fields":'
        b'[{"key":"event","value":"e"}]}],"processID":"p1","warnings":["w"]}'
        % (rng.getrandbits(128), rng.getrandbits(64))
        for _ in range(rng.randint(1, 2))
    )
    processes = b'{"p1":{"serviceName":"s","tags":[{"key":"k","value":1}]}}'
    return b'{"data":[{"traceID":"a","spans":[%s],"processes":%s}]}' % (spans, processes)


def _wide(form):
    """Return what puts a frame around a message."""
    one_line = lambda body: _LINE_ENDS.sub(b" ", body)  # noqa: E731
    return {
        "proto frames": lambda body: framed([body]),
        "gzip members, proto frames": lambda body: gzip.compress(framed([body]), 1),
        "proto request": lambda body: body,
        "zstd per message, proto": lambda body: framed([zstd.compress(body)]),
        "zstd per message, json": lambda body: framed([zstd.compress(body)]),
        "json lines": lambda body: one_line(body) + b"\n",
        "zstd frames, json lines": lambda body: zstd.compress(one_line(body) + b"\n"),
        "json lines with CRLF": lambda body: one_line(body) + b"\r\n",
        "tempo": lambda body: one_line(body) + b"\n",
        "jaeger": lambda body: one_line(body) + b"\n",
        "json documents": lambda body: (
            body.replace(b'":[', b'":[\n  ').replace(b"]}", b"]\n}") + b"\n"
        ),
        "json array": lambda body: body + b",",
        "json one after another": lambda body: body,
    }[form]


WATCHED = {"proto frames", "json lines", "json lines with CRLF", "tempo", "jaeger"}
"""Forms whose messages stand in the file as they are, each at a place that is known."""

_PREFIXED = {"proto frames": 4}


def _laid(form, packing, pieces, torn):
    if form == "json array":
        pieces = [(b"[", True), *pieces[:-1], (pieces[-1][0].rstrip(b",") + b"]", pieces[-1][1])]
    data = b"".join(piece for piece, _ in pieces)
    bounds = None
    if form in WATCHED and not torn and pieces and pieces[0][1]:
        ends = np.cumsum([len(piece) for piece, _ in pieces]).tolist()
        starts = [0, *ends[:-1]]
        before = _PREFIXED.get(form, 0)
        bounds = [
            (start + before, end, sound)
            for start, end, (_, sound) in zip(starts, ends, pieces, strict=True)
        ]
        if form == "proto frames" and not _all_followed(pieces):
            bounds = None
    mutants = sum(not sound for _, sound in pieces)
    return File(PACKINGS[packing](data), data, bounds, mutants)


def _all_followed(pieces):
    """Tell whether a sound frame follows each mutant: it shows where the one before it ends."""
    return all(sound or after for (_, sound), (_, after) in pairwise(pieces))


def read_and_judge(file, *, finish=True):
    """Read a file, and check what holds for any; return its account.

    Raises
    ------
    AssertionError
        If a sum is wrong, or a message is neither read nor named.
    """
    reader = SourceReader(io.BytesIO(file.data), name="f")
    try:
        chunks = list(reader.chunks())
    except SourceError:
        assert not file.bounds, "no export was found among sound messages"
        return None
    account = reader.accounting()
    row = account.row(0, named=True)
    assert row["bytes"] == len(file.data), "bytes were not read"
    assert row["messages"] == row["messages_good"] + row["messages_rejected"], "messages"
    assert row["spans_decoded"] == sum(chunk.spans.height for chunk in chunks), "spans"
    assert row["spans_rejected"] == sum(chunk.spans_rejected for chunk in chunks), "spans rejected"
    assert row["rejects"] == sum(chunk.rejects.height for chunk in chunks), "rejects"
    assert row["messages_rejected"] == 0 or row["rejects"] > 0, "no reject of a rejected message"
    assert min(value for value in row.values() if isinstance(value, int)) >= 0, "below zero"
    messages = _columns(chunks, "messages", ("offset", "length", "spans", "good"))
    rejects = np.sort(_columns(chunks, "rejects", ("offset",))["offset"])
    assert messages["spans"].sum() <= row["spans_decoded"], "spans of messages"
    assert messages["good"].sum() == row["messages_good"], "good messages"
    _each_bad_one_is_named(messages, rejects)
    if file.bounds is not None:
        assert row["decoded_bytes"] == len(file.plain), "bytes were not unpacked"
        _each_message_is_accounted_for(file, messages, rejects)
    if finish:
        _tables_reconcile(finalise(gather(chunks), ingest=account), row)
    return row


def _columns(chunks, table, names):
    return {
        name: np.concatenate([np.empty(0, np.int64), *(
            getattr(chunk, table)[name].to_numpy().astype(np.int64) for chunk in chunks
        )])
        for name in names
    }  # fmt: skip


def _each_bad_one_is_named(messages, rejects):
    bad = messages["good"] == 0
    starts, ends = messages["offset"][bad], (messages["offset"] + messages["length"])[bad]
    named = np.searchsorted(rejects, ends + 1) - np.searchsorted(rejects, starts)
    assert (named > 0).all(), f"a rejected message at {starts[named < 1][:1]} has no reject"


def _each_message_is_accounted_for(file, messages, rejects):
    starts, ends, sounds = map(np.array, zip(*file.bounds, strict=True))
    order = np.argsort(messages["offset"], kind="stable")
    offsets = messages["offset"][order]
    first = np.searchsorted(offsets, starts)
    read = np.searchsorted(offsets, ends) > first
    here = np.minimum(first, max(len(offsets) - 1, 0))
    whole = read & (offsets[here] == starts) & (messages["good"][order][here] == 1)
    whole &= messages["spans"][order][here] > 0
    assert whole[sounds].all(), f"a sound message at {starts[sounds & ~whole][:1]} was not read"
    before = starts - 4  # what is wrong with a frame is told at its prefix
    named = np.searchsorted(rejects, ends) > np.searchsorted(rejects, before)
    for place in np.flatnonzero(~(read | named)).tolist():
        piece = file.plain[starts[place] : ends[place]]
        something = _NOTHING.sub(b"", piece.strip(_BLANK))
        assert not something, f"a message at {starts[place]} is neither read nor named"


def _tables_reconcile(traces, before):
    row = traces.ingest.row(0, named=True)
    assert row["spans_decoded"] == row["spans_kept"] + row["spans_duplicate"], "duplicates"
    assert row["spans_kept"] == traces.spans.height, "spans kept"
    assert row["rejects"] == traces.rejects.height == before["rejects"], "rejects kept"
    owners = traces.spans.select("trace_id", "span_id").unique()
    for table in (traces.events, traces.links):
        assert table.join(owners, on=["trace_id", "span_id"], how="anti").height == 0, "orphan rows"
