"""A message that ends its decoder costs itself alone, and is named with its place."""

import json
from functools import partial
from pathlib import Path

import pytest
from fatal import GREED, MARK, decode_or_die, devour, die, spin
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab.io import read
from tracelab.io.isolation import IsolatedDecoder
from tracelab.store import TraceStore, intake
from tracelab.traceset import TABLES
from tracelab.workers import Death, Failure, Success, Worker


@pytest.fixture(autouse=True)
def _in_path(monkeypatch):
    """Workers import `fatal` by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def line(number, name="op"):
    span = {
        "traceId": f"{number + 1:032x}",
        "spanId": f"{number + 1:016x}",
        "name": name,
        "startTimeUnixNano": "1700000000000000000",
        "endTimeUnixNano": "1700000000000001000",
    }
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span, span]}]}]}) + "\n"


def write(path, marks, n_lines=40):
    path.write_text("".join(line(at, marks.get(at, "op")) for at in range(n_lines)))
    return path


def place(path, mark):
    before, _, _ = path.read_bytes().partition(mark)
    return before.rfind(b"\n") + 1


def test_a_message_that_ends_a_worker_is_a_reject_and_the_ingest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "decode_block", decode_or_die)
    bad = write(tmp_path / "bad.jsonl", {7: MARK.decode(), 30: GREED.decode()})
    good = write(tmp_path / "good.jsonl", {})
    store = TraceStore(tmp_path / "store")
    account = store.ingest(bad, good, workers=2)
    rejects = store.read().rejects.sort("offset")
    assert rejects["source"].unique().to_list() == [str(bad)]
    assert rejects["offset"].to_list() == [place(bad, MARK), place(bad, GREED)]
    assert rejects["line"].to_list() == [8, 31]
    length = len(line(7, MARK.decode())) - 1
    assert rejects["reason"][0] == (
        f"a message of {length} bytes was left out: its decoder ended by signal 11 (SIGSEGV)"
    )
    assert "raised MemoryError" in rejects["reason"][1]
    assert account["messages"].to_list() == [40, 40]
    assert account["messages_rejected"].to_list() == [2, 0]
    assert account["spans_decoded"].to_list() == [76, 80]


def test_what_cannot_be_read_even_with_care_is_named_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "decode_block", decode_or_die)
    monkeypatch.setattr(intake, "decode_with_care", die)
    bad = write(tmp_path / "bad.jsonl", {7: MARK.decode()})
    store = TraceStore(tmp_path / "store")
    account = store.ingest(bad, workers=2)
    (reason,) = store.read().rejects["reason"].to_list()
    size = bad.stat().st_size
    assert reason == f"{size} bytes were left out: their reader ended by signal 9 (SIGKILL)"
    assert account["messages_rejected"].to_list() == [1]
    assert store.ingest(bad, workers=2)["status"].to_list() == ["already there"]


def test_reading_in_isolation_gives_the_same_tables(tmp_path):
    path = write(tmp_path / "good.jsonl", {3: "other"})
    plain, isolated = tl.read_traces(path), tl.read_traces(path, isolate=True)
    for table in TABLES:
        assert_frame_equal(getattr(plain, table), getattr(isolated, table))


def test_a_capture_is_read_though_one_message_ends_the_decoder(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "IsolatedDecoder", partial(IsolatedDecoder, decode_or_die))
    path = write(tmp_path / "bad.jsonl", {0: MARK.decode()})
    traces = tl.read_traces(path, isolate=True)
    assert traces.spans.height == 39
    assert traces.ingest["spans_duplicate"].to_list() == [39]
    assert traces.rejects["offset"].to_list() == [0]
    assert traces.ingest["messages_rejected"].to_list() == [1]


def test_a_worker_that_takes_too_much_time_or_memory_is_told_apart():
    worker = Worker(limited=True)
    try:
        outcome = worker.call(1, spin, ())
        assert isinstance(outcome, Death)
        assert "of CPU time" in outcome.reason
        outcome = worker.call(2, devour, ())
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.error, MemoryError)
        assert worker.call(3, len, ("abc",)) == Success(3, 3)
    finally:
        worker.close()
