"""Damaged input of every form: no crash, no hang, bounded memory, sums that reconcile."""

import gzip
import io
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from exports import (
    COMPRESSIONS,
    LAYOUTS,
    START,
    log_request,
    metric_request,
    requests,
    spoil,
    trace_request,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tracelab as tl
from tracelab.exceptions import SourceError
from tracelab.io import SourceReader

BOUNDED = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}

CONTENT = [
    trace_request([{"span": n, "start": START + n, "events": 1, "links": 1} for n in (1, 2, 3)]),
    log_request(n=2),
    metric_request(),
    trace_request(
        [{"span": n, "trace": 2, "attributes": [("k", [1, "x"][n % 2])]} for n in (4, 5)]
    ),
]

JAEGER = json.dumps(
    {
        "data": [
            {
                "traceID": "a" * 32,
                "spans": [
                    {
                        "traceID": "a" * 32,
                        "spanID": f"{n:016x}",
                        "operationName": "x",
                        "references": [{"refType": "CHILD_OF", "traceID": "a" * 32, "spanID": "1"}],
                        "startTime": 1_700_000_000_000_000,
                        "duration": 5,
                        "tags": [{"key": "error", "type": "bool", "value": True}],
                        "logs": [{"timestamp": 1, "fields": [{"key": "event", "value": "e"}]}],
                        "processID": "p1",
                        "warnings": ["w"],
                    }
                    for n in range(1, 4)
                ],
                "processes": {"p1": {"serviceName": "s", "tags": []}},
            }
        ]
    }
).encode()

SEEDS = {
    **{name: layout(CONTENT) for name, layout in LAYOUTS.items() if name != "proto request"},
    "proto request": LAYOUTS["proto request"]([CONTENT[0], CONTENT[3]]),
    "jaeger": JAEGER,
    "tempo": b'{"trace":' + LAYOUTS["json lines"](CONTENT[:1]).strip() + b"}",
}


def judge(data, **knobs):
    """Read, and check what holds for any input; return the number of spans."""
    try:
        traces = tl.read_traces(io.BytesIO(data), **knobs)
    except SourceError:
        return 0
    row = traces.ingest.row(0, named=True)
    assert row["messages"] == row["messages_good"] + row["messages_rejected"]
    assert row["spans_decoded"] == row["spans_kept"] + row["spans_duplicate"]
    assert row["spans_kept"] == traces.spans.height
    assert row["bytes"] == len(data)
    assert row["rejects"] == traces.rejects.height
    assert min(value for value in row.values() if isinstance(value, int)) >= 0
    assert row["messages_rejected"] == 0 or traces.rejects.height > 0
    owners = traces.spans.select("trace_id", "span_id").unique()
    for table in (traces.events, traces.links):
        assert table.join(owners, on=["trace_id", "span_id"], how="anti").height == 0
    return traces.spans.height


@st.composite
def mutations(draw):
    """Give out (place, kind, bytes) to be applied to a file of unknown size."""
    return draw(
        st.lists(
            st.tuples(
                st.floats(0, 1),
                st.sampled_from(["flip", "cut", "drop", "insert", "repeat", "zero"]),
                st.binary(min_size=1, max_size=24),
            ),
            min_size=1,
            max_size=4,
        )
    )


def apply(data, changes):
    for where, kind, noise in changes:
        data = spoil(data, where, kind, noise)
    return data


@given(
    st.sampled_from(list(SEEDS)), st.sampled_from(list(COMPRESSIONS)), mutations(), st.booleans()
)
@settings(max_examples=100, **BOUNDED)
def test_no_damage_breaks_the_reader(seed, compression, changes, inside):
    data = SEEDS[seed]
    if inside:
        data = COMPRESSIONS[compression](apply(data, changes))
    else:
        data = apply(COMPRESSIONS[compression](data), changes)
    judge(data)


@given(st.sampled_from(list(SEEDS)), mutations(), st.integers(64, 4096), st.integers(16, 4096))
@settings(max_examples=60, **BOUNDED)
def test_no_damage_breaks_the_reader_with_tiny_blocks(seed, changes, limit, block):
    reader = SourceReader(
        io.BytesIO(apply(SEEDS[seed], changes)), max_message_bytes=limit, block_bytes=block
    )
    try:
        spans = sum(chunk.spans.height for chunk in reader.chunks())
    except SourceError:
        return
    row = reader.accounting().row(0, named=True)
    assert row["spans_decoded"] == spans
    assert row["messages"] == row["messages_good"] + row["messages_rejected"]


@pytest.mark.parametrize("block", [16, 100, 1_000])
@pytest.mark.parametrize("seed", SEEDS)
def test_tiny_blocks_give_the_same_spans(seed, block):
    reader = SourceReader(io.BytesIO(SEEDS[seed]), block_bytes=block)
    chunks = list(reader.chunks())
    whole = tl.read_traces(io.BytesIO(SEEDS[seed]))
    got = tl.io.finalise(tl.io.gather(chunks))
    assert got.spans.drop("source").equals(whole.spans.drop("source"))
    assert got.events.equals(whole.events)
    assert got.rejects.height == 0


@given(st.binary(max_size=400))
@example(b"\0" * 64)
@example(b"\x28\xb5\x2f\xfd")
@example(b"\x1f\x8b\x08")
@example(b"{" * 300)
@example(b"\x0a\x00" * 100)
@example(b"\n{\n")
@example(b'{"resourceSpans":')
@example(b'{"resourceSpans":[null,1,"x",[],{}]}')
@example(b'{"data":[{"traceID":null,"spans":[null],"processes":[]}]}')
@settings(max_examples=100, **BOUNDED)
def test_no_bytes_break_the_reader(data):
    judge(data)


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["resourceSpans", "scopeSpans", "spans", "traceId", "spanId", "name", "attributes",
                 "key", "value", "stringValue", "arrayValue", "values", "events", "links", "status",
                 "startTimeUnixNano", "data", "traceID", "spanID", "references", "processes",
                 "tags", "logs", "fields", "batches", "result", "trace", "resource", "x"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=20,
)  # fmt: skip


@given(
    _json,
    st.sampled_from(
        ["resourceSpans", "resourceLogs", "resourceMetrics", "batches", "data", "result"]
    ),
)
@settings(max_examples=100, **BOUNDED)
def test_no_json_of_another_shape_breaks_the_reader(value, key):
    judge(json.dumps({key: value}).encode())
    judge(json.dumps({key: [{"scopeSpans": value, "traceID": "1", "spans": value}]}).encode())


@given(requests, st.data())
@settings(max_examples=30, **BOUNDED)
def test_one_broken_line_costs_no_span_of_another(content, data):
    from exports import as_json

    lines = [as_json(each) for each in content]
    victim = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[victim]) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=5)).replace(b"\n", b"?")
    lines[victim] = lines[victim][:place] + noise + lines[victim][place + len(noise) :]
    judge(b"\n".join(lines))
    if len(lines) > 1:
        rest = [line for number, line in enumerate(lines) if number != victim]
        wanted = tl.read_traces(io.BytesIO(b"\n".join(rest))).spans.drop("source")
        got = tl.read_traces(io.BytesIO(b"\n".join(lines))).spans.drop("source")
        missing = wanted.join(got, on=wanted.columns, how="anti", nulls_equal=True)
        assert missing.height == 0


# --- devils -------------------------------------------------------------------------------

DEVILS = {
    "deep JSON": lambda: b'{"resourceSpans":' + b"[" * 2_000_000,
    "deep JSON objects": lambda: b'{"resourceSpans":' + b'{"a":' * 500_000,
    "deep closed JSON": lambda: b'{"resourceSpans":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "closing brackets": lambda: b'{"resourceSpans":[]}\n' + b"}]" * 1_000_000,
    "pretty beginnings": lambda: b'{\n"resourceSpans":[\n' + b"\n{" * 500_000,
    "backslashes": lambda: b'{"resourceSpans":["' + b"\\" * 3_000_000,
    "quotes": lambda: b'{"resourceSpans":["' + b'"' * 3_000_000,
    "newlines": lambda: b'{"resourceSpans":[]}' + b"\n" * 3_000_000,
    "empty frames": lambda: SEEDS["proto frames"] + bytes(4_000_000),
    "frame beginnings": lambda: (
        SEEDS["proto frames"] + b"\x00\x00\x00\x50\x0a\x02\x0a\x00" * 300_000
    ),
    "tiny fields": lambda: b"\x0a\x00" * 2_000_000,
    "tiny fields in a frame": lambda: (4_000_000).to_bytes(4, "big") + b"\x0a\x00" * 2_000_000,
    "zstd magics": lambda: (
        COMPRESSIONS["zstd"](SEEDS["json lines"]) + b"\x28\xb5\x2f\xfd" * 200_000
    ),
    "gzip magics": lambda: gzip.compress(SEEDS["json lines"]) + b"\x1f\x8b\x08" * 200_000,
    "NUL bomb": lambda: gzip.compress(SEEDS["json lines"] + bytes(60_000_000)),
    "one empty member after another": lambda: gzip.compress(b"") * 20_000,
}


@pytest.mark.parametrize("devil", DEVILS)
def test_a_devil_is_read_in_seconds(devil):
    data = DEVILS[devil]()
    began = time.monotonic()
    judge(data, max_message_bytes=1 << 20)
    assert time.monotonic() - began < 40


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own measure")
def test_memory_stays_bounded_over_a_bomb_and_a_lying_length():
    code = textwrap.dedent(
        """
        import io, re, zlib
        import tracelab as tl
        from tracelab.exceptions import SourceError
        tl.read_traces(io.BytesIO(b'{"resourceSpans":[]}'))
        def bomb(beginning, filling):
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
            pieces = [packer.compress(beginning)]
            pieces += [packer.compress(filling * 1_000_000) for _ in range(400)]
            return b"".join(pieces) + packer.flush()
        def peak():  # ru_maxrss would begin with that of the process that started this one
            return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
        before = peak()
        line = b'{"resourceSpans":[]}\\n'
        for data in (
            bomb(line, b"x"),
            bomb(line, bytes(1)),
            bomb(line + b'{"resourceSpans":[{"a":"', b"x"),
            b"\\x00\\x00\\x00\\x02\\x0a\\x00" + b"\\x03\\xff\\xff\\xff" + b"\\x0a\\x05",
        ):
            try:
                tl.read_traces(io.BytesIO(data), max_message_bytes=4 << 20)
            except SourceError:
                pass
        print((peak() - before) // 1024)
        """
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 150
