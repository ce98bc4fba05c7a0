"""Ingest and investigation on a real Dask cluster: what local gives, whatever dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

import tracelab as tl
from tracelab.exceptions import EngineError, SourceError
from tracelab.store import TraceStore
from tracelab.synth import write_synthetic
from tracelab.traceset import TABLES

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for number in range(4):
        write_synthetic(folder / f"export-{number}.pb", seed=number, spans=30_000)
    return folder


@pytest.fixture(scope="module")
def expected(sources, tmp_path_factory):
    store = TraceStore(tmp_path_factory.mktemp("local") / "store", buckets=8)
    store.ingest(sources)
    return store


@pytest.fixture(scope="module")
def cluster():
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as here,
        distributed.Client(here, set_as_default=False) as client,
    ):
        yield client


def assert_same(store, expected):
    assert store.verify().height == 0
    found, wanted = store.read(), expected.read()
    for table in TABLES:
        assert_frame_equal(getattr(found, table), getattr(wanted, table))


def kill_a_worker(client):
    pids = client.run(os.getpid)
    os.kill(next(iter(pids.values())), signal.SIGKILL)


def test_an_ingest_gives_what_local_gives(sources, expected, cluster, tmp_path):
    steps = []
    store = TraceStore(tmp_path / "store", buckets=8)
    account = store.ingest(sources, engine=cluster, progress=steps.append)
    assert account["status"].to_list() == ["new"] * 4
    assert any(step.startswith("Dask dashboard: http") for step in steps)
    assert_same(store, expected)
    again = store.ingest(sources, engine=cluster.scheduler.address)
    assert again["status"].to_list() == ["already there"] * 4


def test_a_relative_path_is_found_by_workers_that_run_elsewhere(sources, cluster, tmp_path):
    here = Path.cwd()
    os.chdir(sources)
    try:
        store = TraceStore(os.path.relpath(tmp_path / "store"), buckets=8)
        account = store.ingest("export-0.pb", engine=cluster)
        assert account["source"].to_list() == ["export-0.pb"]
        counted = tl.investigate(store, engine=cluster).summary["spans"]
        assert counted == account["spans_decoded"].sum()
    finally:
        os.chdir(here)


@pytest.mark.parametrize("after", [0.0, 0.3, 0.8])
def test_a_worker_killed_in_an_ingest_costs_only_time(sources, expected, cluster, tmp_path, after):
    store = TraceStore(tmp_path / "store", buckets=8)
    killer = threading.Timer(after, kill_a_worker, [cluster])
    killer.start()
    store.ingest(sources, engine=cluster)
    killer.join()
    assert_same(store, expected)
    cluster.wait_for_workers(2, timeout=120)


def test_a_worker_killed_in_an_investigation_changes_no_byte(expected, cluster, tmp_path):
    local = tl.investigate(expected).write(tmp_path / "local")
    killer = threading.Timer(1.0, kill_a_worker, [cluster])
    killer.start()
    there = tl.investigate(expected, engine=cluster).write(tmp_path / "there")
    killer.join()
    cluster.wait_for_workers(2, timeout=120)
    names = sorted(each.relative_to(local) for each in local.rglob("*") if each.is_file())
    assert names == sorted(each.relative_to(there) for each in there.rglob("*") if each.is_file())
    for name in names:
        assert (local / name).read_bytes() == (there / name).read_bytes(), name


def test_a_source_that_is_no_export_is_told_as_by_local(cluster, tmp_path):
    (tmp_path / "notes.txt").write_text("no export\n")
    store = TraceStore(tmp_path / "store")
    with pytest.raises(SourceError, match=r"notes\.txt"):
        store.ingest(tmp_path / "notes.txt", engine=cluster)
    assert store.verify().height == 0


def test_a_killed_scheduler_is_a_clear_error_and_a_second_run_completes(
    sources, expected, tmp_path
):
    file = tmp_path / "scheduler.json"
    programs = [
        ["distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"],
        ["distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard"],
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *program, "--scheduler-file", str(file)],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for program in programs
    ]
    try:
        store = TraceStore(tmp_path / "store", buckets=8)
        wait_for(file)
        killer = threading.Timer(1.5, running[0].kill)
        with distributed.Client(
            scheduler_file=str(file), timeout="30s", set_as_default=False
        ) as client:
            client.wait_for_workers(1, timeout=60)
            killer.start()
            with pytest.raises(EngineError, match="run again when the cluster is up"):
                ingest_on_and_on(sources, tmp_path, client)
        for half_done in tmp_path.glob("store-*"):
            assert TraceStore(half_done).verify().height == 0
            TraceStore(half_done).ingest(sources)
            assert_same(TraceStore(half_done), expected)
        store.ingest(sources)
        assert_same(store, expected)
    finally:
        for each in running:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()


def ingest_on_and_on(sources, folder, client):
    while True:
        TraceStore(folder / f"store-{time.time_ns()}", buckets=8).ingest(sources, engine=client)


def wait_for(file):
    for _ in range(600):
        if file.exists() and file.read_text().strip():
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} was not written")


def members(group):
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("after", [1.5, 3.5])
def test_an_end_from_the_terminal_is_one_line_and_leaves_no_process(
    sources, tmp_path, number, after
):
    long = tmp_path / "long.pb"  # too long to be read before the signal
    long.write_bytes((sources / "export-0.pb").read_bytes() * 80)
    store = tmp_path / "store"
    command = [sys.executable, "-m", "tracelab", "ingest", long, "--store", store]
    process = subprocess.Popen(
        [*command, "--engine", "dask"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(after)
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)  # as a terminal does: the whole group
    begun = time.monotonic()
    _, told = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert told == "tracelab: interrupted; finished work is kept\n"
    else:
        assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - begun < 30
    while members(process.pid) and time.monotonic() - begun < 30:
        time.sleep(0.1)
    assert members(process.pid) == []
    assert TraceStore(store).verify().height == 0
    assert TraceStore(store).info()["sources"] == 0
