"""The store in an object store: a real S3 server's answers, conditional puts, and failures."""

import http.server
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from polars.testing import assert_frame_equal
from test_store import assert_same, write_lines

from tracelab.exceptions import StoreError
from tracelab.store import TraceStore
from tracelab.store.shelves import Entry, Folder, Taken, open_shelf

pytestmark = pytest.mark.cluster
pytest.importorskip("obstore", reason="obstore is not installed")
server = pytest.importorskip("moto.server", reason="moto's S3 server is not installed")


@pytest.fixture(scope="module")
def endpoint():
    """A real HTTP server that speaks S3, with one bucket."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    request = urllib.request.Request(f"http://{host}:{port}/captures", method="PUT")
    urllib.request.urlopen(request).close()
    yield f"http://{host}:{port}"
    running.stop()


def point_to(monkeypatch, endpoint):
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def url(endpoint, monkeypatch, request):
    """A prefix of its own for each test."""
    point_to(monkeypatch, endpoint)
    return f"s3://captures/{request.node.name[:40]}"


@pytest.fixture(params=["folder", "objects"])
def shelf(request, tmp_path):
    place = tmp_path if request.param == "folder" else request.getfixturevalue("url")
    shelf = open_shelf(place)
    shelf.prepare("spans")
    return shelf


def test_a_shelf_gives_back_what_was_put(shelf):
    shelf.put("spans/a", b"0123456789")
    assert bytes(shelf.read("spans/a")) == b"0123456789"
    view = shelf.view("spans/a", 10, [(0, 3), (6, 10)])
    assert (bytes(view[0:3]), bytes(view[7:9]), len(view)) == (b"012", b"78", 10)
    assert shelf.has("spans/a")
    assert not shelf.has("spans/b")
    [entry] = shelf.entries("spans")
    assert entry == Entry("spans/a", 10, entry.modified)
    assert abs(entry.modified - time.time()) < 60
    assert list(shelf.entries("links")) == []
    shelf.remove("spans/a")
    shelf.remove("spans/a")
    with pytest.raises(FileNotFoundError):
        shelf.read("spans/a")


def test_a_name_is_created_once(shelf):
    shelf.create("spans/a", b"mine")
    with pytest.raises(Taken):
        shelf.create("spans/a", b"theirs")
    assert bytes(shelf.read("spans/a")) == b"mine"


def test_one_of_many_writers_creates_a_name(shelf):
    won = []

    def write(number):
        try:
            shelf.create("spans/a", b"%d" % number)
        except Taken:
            return
        won.append(number)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert len(won) == 1
    assert bytes(shelf.read("spans/a")) == b"%d" % won[0]


@pytest.fixture
def files(tmp_path):
    return [
        write_lines(tmp_path / f"part{number}.jsonl", range(number * 50, number * 50 + 50))
        for number in range(3)
    ]


def test_a_store_on_objects_reads_as_one_in_a_folder(tmp_path, url, files):
    there, here = TraceStore(url, buckets=4), TraceStore(tmp_path / "store", buckets=4)
    for store in (there, here):
        assert store.ingest(*files)["status"].to_list() == ["new"] * 3
        assert store.ingest(files[1])["status"].to_list() == ["already there"]
        store.compact(keep="0s")
    assert there.path == url
    assert TraceStore.is_store(url)
    assert not TraceStore.is_store(f"{url}-none")
    assert_same(TraceStore(url).read(), here.read())
    for bucket in there.buckets():
        assert_same(there.read_bucket(bucket), here.read_bucket(bucket))
    assert there.trace(f"{7:032x}").spans.height == 3
    assert there.verify().height == 0
    assert_same(pickle.loads(pickle.dumps(there)).read(), here.read())


def test_two_writers_on_objects_count_each_source_once(url, files):
    TraceStore(url, buckets=2)
    script = (
        "import sys; from tracelab.store import TraceStore; "
        "TraceStore(sys.argv[1]).ingest(*sys.argv[2:], workers=1)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, url, *order])
        for order in (map(str, files), map(str, reversed(files)))
    ]
    assert [each.wait() for each in writers] == [0, 0]
    store = TraceStore(url)
    assert store.info()["spans"] == 450
    assert store.verify().height == 0


def test_kills_on_objects_lose_and_double_nothing(url, files, tmp_path):
    whole = TraceStore(tmp_path / "whole", buckets=4)
    whole.ingest(*files)
    script = (
        "import sys; from tracelab.store import TraceStore; store = TraceStore(sys.argv[1]); "
        "print('begun', flush=True); [store.ingest(each) for each in sys.argv[2:]]"
    )
    TraceStore(url, buckets=4)
    for round_number in range(4):
        killed = subprocess.Popen(
            [sys.executable, "-c", script, url, *map(str, files)], stdout=subprocess.PIPE
        )
        killed.stdout.readline()
        time.sleep(0.03 * round_number)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stdout.close()
        assert TraceStore(url).verify().height == 0
    TraceStore(url).ingest(*files)
    assert_same(TraceStore(url).read(), whole.read())


def test_a_flipped_byte_in_an_object_is_named(url, files):
    store = TraceStore(url, buckets=1)
    store.ingest(files[0])
    shelf = open_shelf(url)
    [name] = [each.name for each in shelf.entries("spans")]
    data = bytearray(shelf.read(name))
    data[len(data) // 2] ^= 1
    shelf.remove(name)
    shelf.put(name, data)
    assert store.verify()["path"].to_list() == [name]
    with pytest.raises(StoreError, match="damaged"):
        store.read()


def test_a_place_without_bucket_is_one_clear_error(url):
    with pytest.raises(StoreError, match="no such bucket"):
        TraceStore("s3://none-such/x")


def test_an_unknown_scheme_is_one_clear_error():
    with pytest.raises(StoreError, match="no object store's URL"):
        TraceStore("gopher://host/x")


METHODS = ("do_GET", "do_PUT", "do_HEAD", "do_POST", "do_DELETE")


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers like S3 that knows nobody."""

    def refuse(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    handler = type("Handler", (Refusing,), dict.fromkeys(METHODS, Refusing.refuse))
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    listening.server_close()


def test_missing_credentials_are_told_and_not_taken_for_a_missing_store(refusing, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    # Where the machine itself would be asked for credentials, this server refuses.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", refusing)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    for ask in (TraceStore.is_store, TraceStore):
        with pytest.raises(StoreError, match="no credentials in the environment"):
            ask("s3://nobody/anonymous")


def test_refused_credentials_are_one_clear_error(refusing, monkeypatch):
    point_to(monkeypatch, refusing)
    with pytest.raises(StoreError, match="refuses access; check the credentials"):
        TraceStore("s3://refused/x")


class Failing(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the real server, but answers some with a failure.

    Every third request fails before it is passed on; every fifth is carried out, and its
    answer lost: the client will repeat what was done already.
    """

    behind = ""
    count = 0

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).count += 1
        number = type(self).count
        if number % 3 == 0:
            return self.answer(503, [], b"")
        headers = {"Content-Type": "application/octet-stream", **dict(self.headers)}
        request = urllib.request.Request(
            self.behind + self.path, body or None, headers, method=self.command
        )
        try:
            with urllib.request.urlopen(request) as reply:
                status, headers, data = reply.status, reply.headers.items(), reply.read()
        except urllib.error.HTTPError as error:
            status, headers, data = error.code, error.headers.items(), error.read()
        if number % 5 == 0:
            return self.answer(500, [], b"")
        return self.answer(status, headers, data)

    def answer(self, status, headers, data):
        self.send_response(status)
        sized = False
        for name, value in headers:
            if name.lower() not in ("connection", "date", "server", "transfer-encoding"):
                sized = sized or name.lower() == "content-length"
                self.send_header(name, value)
        if not sized:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_failing_object_store_is_asked_again_and_nothing_counts_twice(
    endpoint, monkeypatch, files, tmp_path
):
    members = {"behind": endpoint, "count": 0, **dict.fromkeys(METHODS, Failing.pass_on)}
    handler = type("Handler", (Failing,), members)
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        point_to(monkeypatch, f"http://127.0.0.1:{listening.server_address[1]}")
        store = TraceStore("s3://captures/failing", buckets=4)
        assert store.ingest(*files)["status"].to_list() == ["new"] * 3
        store.compact(keep="0s")
        whole = TraceStore(tmp_path / "whole", buckets=4)
        whole.ingest(*files)
        assert_same(store.read(), whole.read())
        assert store.verify().height == 0
        assert handler.count > 30
    finally:
        listening.shutdown()
        listening.server_close()


def test_a_dead_endpoint_is_one_clear_error(monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="does not answer"):
        TraceStore("s3://dead-endpoint/x")


def test_a_commit_that_may_stand_keeps_its_parts(tmp_path, files, monkeypatch):
    """The disk fails after the commit's name was made: its parts must not be removed."""
    store = TraceStore(tmp_path / "store", buckets=2)
    real = Folder.create

    def fails_late(self, name, data):
        real(self, name, data)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Folder, "create", fails_late)
    with pytest.raises(StoreError, match="whether the last commit was kept"):
        store.ingest(files[0])
    monkeypatch.undo()
    again = TraceStore(tmp_path / "store")
    assert again.verify().height == 0
    assert again.ingest(files[0])["status"].to_list() == ["already there"]
    assert_frame_equal(again.read().spans, TraceStore(again.path).read().spans)
    assert again.info()["spans"] == 150
