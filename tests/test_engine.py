"""One task per bucket: the same results wherever it runs."""

import os
import signal
from pathlib import Path

import pytest
from test_store import line

from tracelab import engine
from tracelab.engine import map_buckets
from tracelab.exceptions import EngineError, ParameterError
from tracelab.store import TraceStore


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "capture.jsonl"
    path.write_text("".join(line(number) + "\n" for number in range(200)))
    store = TraceStore(tmp_path / "store", buckets=6)
    store.ingest(path)
    return store


@pytest.fixture(autouse=True)
def _tests_are_importable(monkeypatch):
    """Workers import the functions of this file by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def count_spans(traces, plus=0):
    return traces.spans.height + plus


def hand_back(_, given):
    return given


def fail_on_any(traces):
    raise ParameterError("told by the function")


def trace_ids(traces):
    return traces.spans["trace_id"].to_list()


def die_once(traces, flag):
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return traces.spans.height


def die_always(traces):
    os.kill(os.getpid(), signal.SIGKILL)


def where(traces):
    return os.getpid()


def test_results_stand_in_the_order_of_the_buckets(store):
    expected = [store.read_bucket(number).spans.height for number in store.buckets()]
    assert sum(expected) == 600
    assert map_buckets(count_spans, store) == expected
    assert map_buckets(count_spans, store, workers=2) == expected
    more = map_buckets(count_spans, store, workers=2, arguments=[7], columns=["name"], tables=[])
    assert more == [count + 7 for count in expected]


def test_small_stores_stay_in_this_process_and_asked_for_workers_do_not(store):
    assert set(map_buckets(where, store)) == {os.getpid()}
    assert os.getpid() not in map_buckets(where, store, workers=2)


def test_a_large_bucket_is_taken_in_pieces_of_whole_traces(store, monkeypatch):
    monkeypatch.setattr(engine, "_PIECE_SPANS", 20)
    pieces = map_buckets(trace_ids, store, workers=1)
    assert len(pieces) > len(store.buckets())
    assert all(len(piece) <= 60 for piece in pieces)
    seen = [trace for piece in pieces for trace in set(piece)]
    assert len(seen) == len(set(seen)) == 200
    assert sum(map(len, pieces)) == 600


def test_a_capture_in_memory_is_one_bucket(store):
    assert map_buckets(count_spans, store.read()) == [600]


def test_a_function_without_a_name_runs_in_this_process(store):
    assert sum(map_buckets(lambda traces: traces.spans.height, store, workers=2)) == 600


def test_a_dead_worker_costs_nothing_but_time(store, tmp_path):
    counts = map_buckets(die_once, store, workers=2, arguments=[str(tmp_path / "flag")])
    assert sum(counts) == 600


def test_a_bucket_that_kills_every_worker_is_an_engine_error(store):
    with pytest.raises(EngineError, match="ended by signal 9"):
        map_buckets(die_always, store, workers=2)


def test_errors_of_the_function_come_through(store):
    with pytest.raises(ParameterError, match="told by the function"):
        map_buckets(fail_on_any, store, workers=2)


def test_workers_read_the_snapshot_of_the_caller(store, tmp_path):
    later = tmp_path / "later.jsonl"
    later.write_text("".join(line(number) + "\n" for number in range(500, 600)))
    TraceStore(store.path).ingest(later)
    assert sum(map_buckets(count_spans, store, workers=2)) == 600
    assert sum(map_buckets(count_spans, store.refresh(), workers=2)) == 900


@pytest.mark.parametrize("engine", ["spark", "no_such_file.json", 7])
@pytest.mark.cluster
def test_an_unknown_engine_is_told(store, engine):
    pytest.importorskip("distributed")
    with pytest.raises(ParameterError, match="must be local, dask"):
        map_buckets(count_spans, store, engine=engine)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.cluster
def test_dask_gives_what_local_gives_and_survives_a_killed_worker(store, tmp_path):
    distributed = pytest.importorskip("distributed")
    expected = map_buckets(count_spans, store)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as here,
        distributed.Client(here) as client,
    ):
        assert map_buckets(count_spans, store, engine=client) == expected
        assert map_buckets(count_spans, store, engine=here.scheduler_address) == expected
        counts = map_buckets(die_once, store, engine=client, arguments=[str(tmp_path / "flag")])
        assert counts == expected
        with pytest.raises(ParameterError, match="told by the function"):
            map_buckets(fail_on_any, store, engine=client)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.cluster
def test_a_scheduler_that_is_not_there_is_an_engine_error(store):
    pytest.importorskip("distributed")
    with pytest.raises(EngineError, match="cannot be reached"):
        map_buckets(count_spans, store, engine="tcp://127.0.0.1:9")


def test_a_process_is_sent_the_arguments_of_its_bucket(store):
    given = map_buckets(hand_back, store, workers=2, arguments=lambda bucket: [bucket * 10])
    assert given == [number * 10 for number in store.buckets()]


def test_ids_tell_the_bucket_that_holds_their_traces(store):
    for number in store.buckets():
        ids = store.read_bucket(number).spans["trace_id"].unique()
        assert set(store.buckets_of(ids)) <= {number}
