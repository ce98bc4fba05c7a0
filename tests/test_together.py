"""Small files are decoded together, and nothing shows it."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from exports import COMPRESSIONS, LAYOUTS, START, as_json, log_request, requests, trace_request
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from test_read_traces import Named, assert_same

import tracelab as tl
from tracelab.io import together
from tracelab.io.decode import decode_block

damage = st.sampled_from(["none", "none", "none", "cut", "flipped", "junk"])


def spoil(data, how, rng):
    if how == "cut":
        return data[: rng.randrange(1, len(data))]
    if how == "flipped":
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    return data if how == "none" else b"\0\xff no export at all " * 9


def assert_as_alone(folder):
    """Compare a folder with what its files are as streams, each of which is decoded alone."""
    beside = tl.read_traces(folder)
    names = beside.ingest["source"].to_list()
    alone = tl.read_traces(*(Named(Path(name).read_bytes(), name) for name in names))
    for name in ("spans", "events", "links", "logs", "metrics", "ingest"):
        assert_frame_equal(getattr(beside, name), getattr(alone, name))
    # A file of a folder that is no export is passed over, with a reject.
    told = beside.rejects.filter(beside.rejects["source"].is_in(names))
    assert_frame_equal(told, alone.rejects)
    return beside


@given(
    st.lists(st.tuples(requests, st.sampled_from(sorted(LAYOUTS)), damage), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_files_decoded_together_are_what_each_is_alone(files, rng):
    with tempfile.TemporaryDirectory() as folder:
        good = trace_request([{"span": 9}])
        Path(folder, "good").write_bytes(as_json(good))
        for number, (content, layout, how) in enumerate(files):
            data = COMPRESSIONS[rng.choice(sorted(COMPRESSIONS))](LAYOUTS[layout](content))
            Path(folder, f"{number}").write_bytes(spoil(data, how, rng))
        assert_as_alone(folder)


def bodies(folder, n):
    """Write one request a file, as protobuf and as JSON in turn, each tenth one with a log."""
    folder.mkdir()
    for number in range(n):
        span = {"trace": number + 1, "span": 1, "start": START + number, "events": 1, "links": 1}
        request = trace_request([span, {**span, "span": 2, "parent": 1}])
        data = as_json(request) if number % 2 else request.SerializeToString()
        (folder / f"{number:04d}").write_bytes(data)
        if number % 10 == 0:
            (folder / f"{number:04d}.log").write_bytes(as_json(log_request(trace=number + 1)))
    return folder


def count_blocks(monkeypatch):
    """Count the blocks decoded, however many sources each holds."""
    seen = []

    def decode(block, **options):
        seen.append(len(block.starts))
        return decode_block(block, **options)

    monkeypatch.setattr(together, "decode_block", decode)
    return seen


def test_hundreds_of_bodies_take_a_handful_of_blocks(tmp_path, monkeypatch):
    seen = count_blocks(monkeypatch)
    traces = assert_as_alone(bodies(tmp_path / "bodies", 300))
    assert traces.spans.height == 600
    assert sorted(seen) == [150, 180]


def test_a_broken_body_among_many_costs_itself_alone(tmp_path, monkeypatch):
    folder = bodies(tmp_path / "bodies", 60)
    (folder / "0007").write_bytes((folder / "0007").read_bytes()[:-9])
    traces = assert_as_alone(folder)
    assert (
        traces.spans.height
        == 120 - 2 + traces.spans.filter(traces.spans["source"].str.ends_with("0007")).height
    )
    assert set(traces.rejects["source"].str.slice(-4)) == {"0007"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_of_many_bodies_holds_what_reading_them_gives(tmp_path, workers):
    folder = bodies(tmp_path / "bodies", 80)
    store = tl.TraceStore(tmp_path / "store", buckets=2)
    told = store.ingest(folder, workers=workers)
    assert told.height == 88
    assert_same(store.read(), tl.read_traces(folder))
    assert store.ingest(folder)["status"].unique().to_list() == ["already there"]


def test_a_small_file_that_unpacks_to_much_is_decoded_alone(tmp_path, monkeypatch):
    seen = count_blocks(monkeypatch)
    many = [trace_request([{"span": n + 1, "name": "x" * 400}]) for n in range(1500)]
    for number in range(2):
        packed = COMPRESSIONS["gzip"](LAYOUTS["json lines"](many))
        assert len(packed) < together.SMALL_BYTES
        (tmp_path / f"{number}.gz").write_bytes(packed + bytes(number))
    assert tl.read_traces(tmp_path).ingest["spans_decoded"].to_list() == [1500, 1500]
    assert np.sum(seen) == 0
