"""Every form of container: the same content gives the same tables; damage costs what it touches."""

import gzip
import io
import json
import random

import polars as pl
import pytest
from exports import (
    COMPRESSIONS,
    LAYOUTS,
    START,
    as_json,
    framed,
    log_request,
    metric_request,
    requests,
    trace_request,
    zstd,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab.exceptions import EmptySourceError, UnknownFormatError
from tracelab.io import SourceReader, split_source
from tracelab.traceset import TABLES


def read(data, **knobs):
    return tl.read_traces(io.BytesIO(data), **knobs)


def spans_of(*numbers, **fields):
    return trace_request(
        [{"span": number, "start": START + number, **fields} for number in numbers]
    )


def assert_same_tables(left, right):
    for name in TABLES:
        if name != "ingest":
            drop = ["source"] if "source" in getattr(left, name).columns else []
            assert_frame_equal(getattr(left, name).drop(drop), getattr(right, name).drop(drop))


def assert_accounted(traces):
    """Sums that hold whatever the input."""
    for row in traces.ingest.iter_rows(named=True):
        assert row["messages"] == row["messages_good"] + row["messages_rejected"]
        assert row["spans_decoded"] == row["spans_kept"] + row["spans_duplicate"]
        assert min(value for value in row.values() if isinstance(value, int)) >= 0
    assert traces.ingest["spans_kept"].sum() == traces.spans.height
    assert traces.ingest["rejects"].sum() <= traces.rejects.height


MIXED = [
    spans_of(1, 2, events=1, links=1),
    log_request(),
    metric_request(),
    spans_of(3, trace=2, failed=True, attributes=[("b", b"\x00\xff"), ("n", 2**62), ("d", 0.5)]),
]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_container_gives_the_same_tables(layout, compression):
    content = MIXED if layout != "proto request" else [MIXED[0], MIXED[3]]
    expected = read(LAYOUTS["proto frames"](content))
    got = read(COMPRESSIONS[compression](LAYOUTS[layout](content)))
    assert got.spans.height == 3
    assert got.rejects.height == 0
    assert_same_tables(got, expected)
    assert_accounted(got)


@given(requests, st.sampled_from(list(LAYOUTS)), st.sampled_from(list(COMPRESSIONS)))
@settings(max_examples=60, deadline=None)
def test_any_requests_survive_any_container(content, layout, compression):
    expected = read(LAYOUTS["proto frames"](content))
    got = read(COMPRESSIONS[compression](LAYOUTS[layout](content)))
    assert_same_tables(got, expected)
    assert_accounted(got)


@pytest.mark.parametrize(
    ("layout", "compression", "form", "named"),
    [
        ("json lines", "none", "otlp-json-lines", "none"),
        ("json documents", "gzip", "otlp-json", "gzip"),
        ("proto frames", "zstd", "otlp-proto-frames", "zstd"),
        ("proto request", "zstd in gzip", "otlp-proto", "gzip+zstd"),
        ("zstd per message, proto", "none", "otlp-proto-frames", "zstd-messages"),
        ("zstd per message, json", "none", "otlp-json-frames", "zstd-messages"),
    ],
)
def test_the_accounting_names_the_form_found(layout, compression, form, named):
    data = COMPRESSIONS[compression](LAYOUTS[layout]([spans_of(1)]))
    row = read(data).ingest.row(0, named=True)
    assert (row["form"], row["compression"]) == (form, named)
    assert row["bytes"] == len(data)


# --- wrappers -----------------------------------------------------------------------------

DOCUMENT = json.loads(as_json(spans_of(1, 2, events=1)))
BASE64 = json.loads(as_json(spans_of(1, 2, events=1)))

WRAPPED = {
    "bare resource": DOCUMENT["resourceSpans"][0],
    "array of resources": DOCUMENT["resourceSpans"],
    "array of requests": [DOCUMENT],
    "tempo v1": {"batches": DOCUMENT["resourceSpans"]},
    "tempo v2": {"trace": DOCUMENT, "metrics": {"x": "1"}, "status": "COMPLETE"},
    "tempo v2, single wrapped": {"trace": {"batches": DOCUMENT["resourceSpans"]}},
    "jaeger v3": {"result": DOCUMENT},
    "jaeger v3, list": {"result": [DOCUMENT]},
    "other keys first": {"comment": [1, {"a": "]"}], **DOCUMENT},
}


@pytest.mark.parametrize("indent", [None, 2], ids=["compact", "pretty"])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_wrapped_document_gives_the_spans_of_the_plain_one(wrapping, indent):
    expected = read(as_json(spans_of(1, 2, events=1)))
    got = read(json.dumps(WRAPPED[wrapping], indent=indent).encode())
    assert_same_tables(got, expected)


def test_lines_may_each_be_wrapped_in_another_way():
    lines = [json.dumps(value) for value in WRAPPED.values()]
    got = read("\n".join(lines).encode())
    assert got.spans.height == 2
    assert got.ingest["spans_duplicate"][0] == 2 * len(lines) - 2
    assert got.rejects.height == 0


def test_a_partial_trace_of_tempo_is_told():
    value = {"trace": DOCUMENT, "status": "PARTIAL", "message": "trace exceeds max size"}
    got = read(json.dumps(value).encode())
    assert got.spans.height == 2
    assert got.rejects["reason"].to_list() == [
        "Tempo calls this trace partial: trace exceeds max size"
    ]


def test_a_document_above_the_block_size_is_cut_between_its_elements():
    content = [spans_of(number, name="x" * 500) for number in range(1, 200)]
    whole = {"resourceSpans": [json.loads(as_json(each))["resourceSpans"][0] for each in content]}
    for value in (whole, {"result": whole}, {"trace": whole}, whole["resourceSpans"]):
        for indent in (None, 1):
            data = json.dumps(value, indent=indent).encode()
            reader = SourceReader(io.BytesIO(data), block_bytes=4_000)
            rows = [chunk.spans.height for chunk in reader.chunks()]
            assert sum(rows) == 199
            assert len(rows) > 10
            assert max(rows) < 40
            assert reader.accounting()["rejects"][0] == 0


# --- damage -------------------------------------------------------------------------------


def lines_of(*content):
    return [as_json(each) + b"\n" for each in content]


FIVE = [spans_of(number) for number in range(1, 6)]


def test_a_broken_line_costs_only_itself():
    lines = lines_of(*FIVE)
    lines[2] = b'{"resourceSpans":[{"scopeSpans":oops}]}\n'
    got = read(b"".join(lines))
    assert got.spans["span_id"].to_list() == [f"{n:016x}" for n in (1, 2, 4, 5)]
    reject = got.rejects.row(0, named=True)
    assert (got.rejects.height, reject["line"], reject["offset"]) == (
        1, 3, len(lines[0] + lines[1]),
    )  # fmt: skip
    assert "oops" in reject["excerpt"]
    assert_accounted(got)


def test_a_torn_last_line_keeps_the_spans_that_are_whole():
    last = as_json(spans_of(6, 7, 8))
    for cut in (1, 10, len(last) - 3):
        got = read(b"".join(lines_of(*FIVE)) + last[:cut])
        kept = got.spans.height
        assert kept == {1: 5, 10: 5, len(last) - 3: 8}[cut]
        assert got.rejects.height == 1
        assert got.ingest["messages_rejected"][0] == 1
        assert_accounted(got)


def test_a_torn_document_keeps_the_spans_that_are_whole():
    data = as_json(spans_of(1, 2, 3, 4), indent=2)
    cut = data.index(b'"spanId": "0000000000000003"')
    got = read(data[:cut])
    assert got.spans.height == 2
    assert got.rejects.height == 1
    assert "cut off after" in got.rejects["reason"][0]


def test_a_document_behind_a_torn_one_is_found():
    torn = as_json(spans_of(1, 2), indent=2)[:-150]
    got = read(torn + b"\n" + as_json(spans_of(3, 4), indent=2))
    assert {f"{n:016x}" for n in (3, 4)} <= set(got.spans["span_id"])
    assert got.rejects.height >= 1
    assert_accounted(got)


@pytest.mark.parametrize("where", ["front", "own line", "end of a line", "between torn and whole"])
def test_nul_runs_cost_only_themselves(where):
    lines = lines_of(*FIVE)
    zeros = bytes(285_000)
    data = {
        "front": zeros + b"".join(lines),
        "own line": lines[0] + zeros + b"\n" + b"".join(lines[1:]),
        "end of a line": lines[0][:-1] + zeros + b"\n" + b"".join(lines[1:]),
        "between torn and whole": lines[0][:40] + zeros + b"".join(lines),
    }[where]
    got = read(data)
    assert got.spans.height == 5
    assert "285000 NUL bytes" in got.rejects["reason"].to_list()
    assert_accounted(got)


def test_a_byte_order_mark_costs_nothing():
    for data in (b"".join(lines_of(*FIVE)), as_json(FIVE[0], indent=2)):
        got = read(b"\xef\xbb\xbf" + data)
        assert got.spans.height >= 1
        assert got.rejects.height == 0


def test_a_line_above_the_limit_is_passed_over_in_bounded_memory():
    huge = b'{"resourceSpans":[{"resource":{"attributes":["' + b"x" * 3_000_000 + b'"]}}]}\n'
    lines = lines_of(*FIVE)
    reader = SourceReader(
        io.BytesIO(b"".join(lines[:3]) + huge + b"".join(lines[3:])),
        max_message_bytes=100_000,
        block_bytes=4_096,
    )
    chunks = list(reader.chunks())
    assert sum(chunk.spans.height for chunk in chunks) == 5
    rejects = pl.concat([chunk.rejects for chunk in chunks])
    assert rejects.height == 1
    assert rejects["line"][0] == 4
    assert "above the limit of 100000" in rejects["reason"][0]
    row = reader.accounting().row(0, named=True)
    assert (row["messages"], row["messages_rejected"]) == (6, 1)


def test_a_line_above_the_limit_is_cut_where_it_can_be():
    big = as_json(trace_request([{"span": n, "name": "x" * 200} for n in range(1, 300)]))
    many = json.dumps(
        {"resourceSpans": json.loads(as_json(FIVE[0]))["resourceSpans"] * 300},
        separators=(",", ":"),
    ).encode()
    for line, spans in ((big, 0), (many, 300)):
        reader = SourceReader(
            io.BytesIO(b"".join(lines_of(*FIVE)) + line + b"\n" + as_json(spans_of(9))),
            max_message_bytes=20_000,
            block_bytes=4_096,
        )
        assert sum(chunk.spans.height for chunk in reader.chunks()) == 6 + spans


def frames_of(*content):
    return [framed([each.SerializeToString()]) for each in content]


@pytest.mark.parametrize("length", [0, 3, 40, 5_000, 2**20, 2**31, 2**32 - 1])
def test_a_lying_length_prefix_costs_no_other_message(length):
    frames = frames_of(*FIVE)
    data = b"".join(frames[:2]) + length.to_bytes(4, "big") + frames[2][4:] + b"".join(frames[3:])
    got = read(data)
    assert {f"{n:016x}" for n in (1, 2, 4, 5)} <= set(got.spans["span_id"])
    assert got.rejects.height >= 1
    assert got.rejects["offset"][0] == len(frames[0] + frames[1])
    assert_accounted(got)


def test_garbage_between_frames_is_skipped():
    frames = frames_of(*FIVE)
    noise = random.Random(1).randbytes(10_000)
    got = read(b"".join(frames[:3]) + noise + b"".join(frames[3:]))
    assert got.spans.height == 5
    assert got.rejects["offset"][0] == len(b"".join(frames[:3]))
    assert_accounted(got)


def test_nul_runs_between_frames_are_skipped():
    frames = frames_of(*FIVE)
    for size in (5, 8, 1001, 100_000):
        got = read(b"".join(frames[:3]) + bytes(size) + b"".join(frames[3:]))
        assert got.spans.height == 5
        assert got.rejects["reason"].to_list() == [f"{size} NUL bytes"]


def test_a_torn_last_frame_costs_at_most_itself():
    frames = frames_of(*FIVE)
    for cut in (1, 3, 4, 20, len(frames[4]) - 1):
        got = read(b"".join(frames[:4]) + frames[4][:cut])
        assert got.spans.height >= 4
        assert got.rejects.height >= 1
        assert_accounted(got)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
@pytest.mark.parametrize("layout", ["json lines", "proto frames"])
def test_a_cut_stream_keeps_its_decoded_beginning(layout, compression):
    content = [spans_of(number, name=random.Random(number).randbytes(400).hex())
               for number in range(1, 2_000)]  # fmt: skip
    data = COMPRESSIONS[compression](LAYOUTS[layout](content))
    got = read(data[: len(data) // 2])
    assert 600 < got.spans.height < 1_400
    assert any(f"truncated {compression}" in reason for reason in got.rejects["reason"])
    assert_accounted(got)


@pytest.mark.parametrize("compression", [zstd.compress, gzip.compress], ids=["zstd", "gzip"])
def test_a_broken_member_costs_no_other_member(compression):
    members = [bytearray(compression(b"".join(lines_of(each)))) for each in FIVE]
    members[2][len(members[2]) // 2 :] = b"\x55" * (len(members[2]) - len(members[2]) // 2)
    got = read(b"".join(members))
    assert {f"{n:016x}" for n in (1, 2, 4, 5)} <= set(got.spans["span_id"])
    assert any("broken" in reason for reason in got.rejects["reason"])
    assert_accounted(got)


@pytest.mark.parametrize("compression", [zstd.compress, gzip.compress], ids=["zstd", "gzip"])
def test_bytes_behind_the_last_member_are_told(compression):
    data = compression(b"".join(lines_of(*FIVE)))
    for tail, reason in ((bytes(512), "zero bytes"), (b"some more text, no stream", "no further")):
        got = read(data + tail)
        assert got.spans.height == 5
        assert [reason in each for each in got.rejects["reason"]] == [True]


def test_a_broken_zstd_message_costs_only_itself():
    bodies = [bytearray(zstd.compress(each.SerializeToString())) for each in FIVE]
    bodies[2][10:] = b"\x55" * len(bodies[2][10:])
    got = read(framed(bodies))
    assert {f"{n:016x}" for n in (1, 2, 4, 5)} <= set(got.spans["span_id"])
    assert got.rejects.height >= 1
    assert_accounted(got)


def test_a_lying_prefix_before_a_zstd_message_costs_no_other_message():
    frames = [framed([zstd.compress(as_json(each))]) for each in FIVE]
    data = b"".join(frames[:2]) + b"\0\0\xff\xff" + frames[2][4:] + b"".join(frames[3:])
    got = read(data)
    assert {f"{n:016x}" for n in (1, 2, 4, 5)} <= set(got.spans["span_id"])
    assert_accounted(got)


@pytest.mark.parametrize("pack", [zstd.compress, gzip.compress], ids=["zstd", "gzip"])
def test_a_decompression_bomb_is_left_before_it_is_read_through(pack):
    bomb = pack(b"".join(lines_of(*FIVE)) + b"x" * 200_000_000)
    reader = SourceReader(io.BytesIO(bomb), max_message_bytes=1 << 20)
    rejects = pl.concat([chunk.rejects for chunk in reader.chunks()])
    row = reader.accounting().row(0, named=True)
    assert row["spans_decoded"] == 5
    assert row["decoded_bytes"] < 60_000_000
    assert any("the rest is not read" in reason for reason in rejects["reason"])


def test_a_bomb_in_one_message_is_one_reject():
    bomb = zstd.compress(bytes(200_000_000))
    bodies = [zstd.compress(each.SerializeToString()) for each in FIVE]
    got = read(framed([*bodies[:2], bomb, *bodies[2:]]), max_message_bytes=1 << 20)
    assert got.spans.height == 5
    assert got.rejects.height == 1


def test_a_zstd_window_above_the_limit_is_refused():
    parameter = zstd.CompressionParameter
    data = zstd.compress(
        b"".join(lines_of(*FIVE)),
        options={parameter.window_log: 30, parameter.compression_level: 3},
    )
    compressor = zstd.ZstdCompressor(
        options={parameter.window_log: 30, parameter.content_size_flag: 0}
    )
    streamed = compressor.compress(b"".join(lines_of(*FIVE))) + compressor.flush()
    assert read(data).spans.height == 5
    with pytest.raises(EmptySourceError, match=r"broken zstd|too much memory"):
        read(streamed)


# --- what is no export --------------------------------------------------------------------

FOREIGN = {
    "CSV": b"a,b,c\n1,2,3\n4,5,6\n",
    "Parquet": b"PAR1" + bytes(100),
    "ELF": b"\x7fELF\x02\x01\x01" + bytes(50),
    "a zip archive": b"PK\x03\x04" + bytes(50),
    "UTF-16": '{"resourceSpans":[]}'.encode("utf-16"),
    "plain text": b"# Notes\n\nnothing [here] or {there}\n",
    "JSON object with the keys x": b'{"x": "y"}',
    "JSON object with the keys traceID, spanID": b'{"traceID":"1","spanID":"2","process":{}}',
    "nothing but blanks": b" \n\0\0\n",
    "binary": random.Random(3).randbytes(5_000),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_what_is_no_export_is_named(kind, compression):
    with pytest.raises(UnknownFormatError, match=kind.split()[0]) as caught:
        read(COMPRESSIONS[compression](FOREIGN[kind]))
    assert "tracelab reads" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("data", [b"", gzip.compress(b""), zstd.compress(b"")])
def test_an_empty_source_is_an_empty_source(data):
    with pytest.raises(EmptySourceError, match="empty"):
        read(data)


def test_compression_in_compression_without_end_is_refused():
    data = b"".join(lines_of(*FIVE))
    for _ in range(6):
        data = gzip.compress(data)
    with pytest.raises(UnknownFormatError, match="more than 4 times"):
        read(data)


# --- parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["json lines", "proto frames"])
@pytest.mark.parametrize("damage", [False, True])
def test_the_parts_of_a_file_give_the_tables_of_the_whole(tmp_path, layout, damage):
    content = [spans_of(number, events=1, trace=number) for number in range(1, 300)]
    data = bytearray(LAYOUTS[layout](content))
    if damage:
        place = len(data) * 2 // 3
        data[place : place + 50] = b"\xee" * 50
    path = tmp_path / "export"
    path.write_bytes(data)
    parts = split_source(path, part_bytes=10_000)
    assert len(parts) > (2 if damage else 4)
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == len(data)
    readers = [SourceReader(path, part=part) for part in parts]
    chunks = [chunk for reader in readers for chunk in reader.chunks()]
    whole = tl.read_traces(path)
    got = tl.io.finalise(tl.io.gather(chunks))
    assert_same_tables(got, whole)
    assert got.rejects.height == (0 if not damage else whole.rejects.height)
    rows = pl.concat([chunk.spans for chunk in chunks])["_row"]
    assert rows.is_unique().all()
    merged = tl.io.merge_accounting([reader.accounting() for reader in readers], sha256="00")
    counts = ["bytes", "decoded_bytes", "messages", "messages_good", "spans_decoded", "events"]
    assert merged.select(counts).rows() == whole.ingest.select(counts).rows()


def test_small_and_compressed_files_are_not_cut(tmp_path):
    path = tmp_path / "export"
    path.write_bytes(b"".join(lines_of(*FIVE)))
    assert split_source(path, part_bytes=1 << 20) == []
    path.write_bytes(gzip.compress(b"".join(lines_of(*FIVE))))
    assert split_source(path, part_bytes=10) == []


@pytest.mark.parametrize("text", [b'{"resourceSpans":[{}', b'{"resourceSpans":[{}\n'])
def test_a_file_cut_before_its_first_record_says_so_in_one_line(text):
    got = read(text)
    assert got.rejects["reason"].to_list() == [
        f"cut off after {len(text)} bytes, inside of a JSON value: no record in it is whole"
    ]
    assert got.ingest.select("messages", "messages_rejected", "rejects").row(0) == (1, 1, 1)


def test_a_last_line_that_is_cut_says_so():
    whole = as_json(spans_of(1))
    got = read(whole + b'\n{"resourceSpans":[{}')
    assert got.spans.height == 1
    assert got.rejects["reason"].to_list() == [
        "broken JSON message: cut off after 20 bytes, inside of a JSON value"
    ]
