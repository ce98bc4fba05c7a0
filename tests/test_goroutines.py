"""Goroutine profiles: gostackparse's golden files, pprof's forms, matches with spans."""

import gzip
import json
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from building import EPOCH_NS, MS, Capture, span_id

from tracelab.errors_chain import compare_goroutines, match_goroutines
from tracelab.exceptions import SourceError, UnknownFormatError
from tracelab.gostack import parse_goroutines, read_header
from tracelab.io import read_traces
from tracelab.io.goroutines import GOROUTINES, read_goroutine_profile

LAB = Path(__file__).resolve().parents[1] / "data" / "lab"
HANGING = LAB.with_name("hanging")
EPOCH = datetime.fromtimestamp(EPOCH_NS / 1e9, tz=UTC)
AT = datetime.fromtimestamp(EPOCH_NS / 1e9 + 1, tz=UTC)

DEBUG_2 = """goroutine 34 [sleep]:
time.Sleep(0xb2d05e00)
\t/usr/local/go/src/runtime/time.go:195 +0x125
main.hang({0x7f, 0x1}, 0xc000)
\t/src/main.go:261 +0x9a
net/http.HandlerFunc.ServeHTTP(0x1, {0x7f, 0x1}, 0xc)
\t/usr/local/go/src/net/http/server.go:2166 +0x29
created by net/http.(*Server).Serve in goroutine 1
\t/usr/local/go/src/net/http/server.go:3285 +0x4b4

goroutine 1 [IO wait, 2 minutes]:
internal/poll.runtime_pollWait(0x7f, 0x72)
\t/usr/local/go/src/runtime/netpoll.go:345 +0x85
main.main()
\t/src/main.go:60 +0x1
"""
DEBUG_1 = """goroutine profile: total 3
2 @ 0x43e44e 0x46ed65 0x6b1a9a
# labels: {"route":"/hang", "span_id":"0000000000000003"}
#\t0x46ed64\ttime.Sleep+0x124\t/usr/local/go/src/runtime/time.go:195
#\t0x6b1a99\tmain.hang+0x99\t\t/src/main.go:261

1 @ 0x43e44e
#\t0x43e44d\tmain.main+0x1\t/src/main.go:60
"""


def goldens(folder):
    with tarfile.open(folder / "DataDog-gostackparse__test-fixtures.tar.xz") as archive:
        files = {m.name: archive.extractfile(m).read().decode() for m in archive if m.isfile()}
    for name, golden in files.items():
        if name.endswith(".golden.json"):
            yield name, files[name.replace(".golden.json", ".txt")], json.loads(golden)


def plain(one):
    def frame(f):
        return {"Func": f.function, "File": f.file, "Line": f.line}

    told = {
        "ID": one.goroutine_id,
        "State": one.state,
        "Wait": one.wait_minutes * 60 * 10**9,
        "LockedToThread": one.locked,
        "Stack": [frame(f) for f in one.frames],
        "FramesElided": one.frames_elided,
        "CreatedBy": frame(one.created_by) if one.created_by else None,
    }
    if one.ancestor:
        told["Ancestor"] = plain(one.ancestor)
    return told


def test_gostackparses_golden_files_are_met_exactly(shared_data):
    seen = 0
    for name, text, golden in goldens(shared_data):
        found = [plain(one) for one in parse_goroutines(text.splitlines())]
        wanted = golden["Goroutines"] or []
        for one in wanted:
            if one["Stack"] is None:
                one["Stack"] = []
        assert found == wanted, name
        seen += len(found)
    assert seen > 15


def test_the_header_of_go_1_27_carries_labels():
    one = read_header('goroutine 7 [select, 3 minutes, locked to thread, labels:{"a": "b]:"}]:')
    assert (one.state, one.wait_minutes, one.locked, one.labels) == (
        "select",
        3,
        True,
        {"a": "b]:"},
    )


def test_debug_2_gives_one_row_per_goroutine(tmp_path):
    (tmp_path / "p.txt").write_text(DEBUG_2)
    table = read_goroutine_profile(tmp_path / "p.txt", time=AT)
    assert table.schema == GOROUTINES
    assert table["goroutine_id"].to_list() == [34, 1]
    assert table["functions"][0].to_list()[:2] == ["time.Sleep", "main.hang"]
    assert table["created_by_id"].to_list() == [1, None]
    assert table["time"][0] == AT


def test_debug_1_gives_counts_and_labels(tmp_path):
    (tmp_path / "p.txt").write_text(DEBUG_1)
    table = read_goroutine_profile(tmp_path / "p.txt")
    assert table["count"].to_list() == [2, 1]
    assert table["functions"][0].to_list() == ["time.Sleep", "main.hang"]
    assert json.loads(table["labels"][0])["route"] == "/hang"


def field(number, content):
    """A protobuf field: a number or bytes, all below 128."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    return bytes([number << 3 | 2, len(content)]) + content


def test_the_protobuf_profile_is_read(tmp_path):
    strings = ["", "main.hang", "/src/main.go", "span_id", "0000000000000003"]
    profile = (
        field(2, field(1, bytes([1])) + field(2, bytes([4])) + field(3, field(1, 3) + field(2, 4)))
        + field(4, field(1, 1) + field(4, field(1, 1) + field(2, 42)))
        + field(5, field(1, 1) + field(2, 1) + field(4, 2))
        + b"".join(field(6, text.encode()) for text in strings)
    )
    (tmp_path / "p.pb.gz").write_bytes(gzip.compress(profile))
    row = read_goroutine_profile(tmp_path / "p.pb.gz").to_dicts()[0]
    assert (row["count"], row["functions"], row["lines"]) == (4, ["main.hang"], [42])
    assert json.loads(row["labels"]) == {"span_id": "0000000000000003"}


def test_what_is_no_profile_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hello, I am a text\n")
    with pytest.raises(UnknownFormatError, match="debug=2"):
        read_goroutine_profile(tmp_path / "a.txt")
    with pytest.raises(SourceError, match="cannot be read"):
        read_goroutine_profile(tmp_path / "none.txt")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(SourceError, match="damaged"):
        read_goroutine_profile(tmp_path / "cut.gz")


def capture(**ids):
    built = Capture(sdk_language="go", service_name="shop")
    built.span(1, 1, kind="SERVER", name="GET /hang/{id}", duration=3000, task_id=ids.get("one"))
    built.span(1, 2, 1, name="wait for lock", start=1, duration=2990, task_id=ids.get("one"))
    built.span(2, 3, kind="SERVER", name="GET /items/{id}", duration=3000, task_id=ids.get("two"))
    built.span(3, 4, kind="SERVER", name="GET /hang/{id}", duration=5, task_id=ids.get("one"))
    return built.traces()


def profile(tmp_path, text=DEBUG_2):
    (tmp_path / "p.txt").write_text(text)
    return read_goroutine_profile(tmp_path / "p.txt", time=AT)


def first(matches, goroutine):
    return matches.filter(
        (pl.col("goroutine_id") == goroutine) & (pl.col("candidate") == 1)
    ).to_dicts()[0]


def test_the_goroutine_id_leads_to_the_innermost_span_that_was_open(tmp_path):
    matches = match_goroutines(capture(one="34", two="77"), profile(tmp_path))
    best = first(matches, 34)
    assert best["span_id"] == span_id(2)
    assert best["confidence"] > 0.9
    assert span_id(4) not in matches["span_id"].to_list()  # over when the profile was taken


def test_without_ids_names_and_time_lead_to_the_request_and_into_it(tmp_path):
    matches = match_goroutines(capture(), profile(tmp_path))
    best = first(matches, 34)
    assert best["span_id"] == span_id(2)
    assert any("hang" in line for line in best["evidence"])
    assert span_id(1) in matches["span_id"].to_list()


def test_two_spans_open_within_the_request_do_not_hide_it(tmp_path):
    built = Capture(sdk_language="go", service_name="shop")
    built.span(1, 1, kind="SERVER", name="GET /hang/{id}", duration=3000)
    for child in (2, 3):
        built.span(1, child, 1, name="query", start=1, duration=2990)
    assert first(match_goroutines(built.traces(), profile(tmp_path)), 34)["span_id"] == span_id(1)


def test_a_profile_without_a_time_leads_by_rare_names_and_less_surely(tmp_path):
    (tmp_path / "p.txt").write_text(DEBUG_2)
    undated = read_goroutine_profile(tmp_path / "p.txt")
    built = Capture(sdk_language="go", service_name="shop")
    built.span(1, 1, kind="SERVER", name="GET /hang/{id}", duration=3000)
    built.span(2, 2, kind="SERVER", name="GET /hang/{id}", start=9_000_000, duration=3000)
    best = first(match_goroutines(built.traces(), undated), 34)
    assert best["span_id"] == span_id(1)
    assert best["confidence"] <= 0.55
    for other in range(3, 60):
        start = other * 100_000
        built.span(other, other, kind="SERVER", name="GET /hang/{id}", start=start, duration=3000)
    assert match_goroutines(built.traces(), undated).is_empty()


def test_the_moment_that_explains_the_profile_is_taken_for_its_time(tmp_path):
    (tmp_path / "p.txt").write_text(DEBUG_2)
    undated = read_goroutine_profile(tmp_path / "p.txt")
    built = Capture(sdk_language="go", service_name="shop")
    for other in range(2, 60):
        start = other * 100_000
        built.span(other, other, kind="SERVER", name="GET /hang/{id}", start=start, duration=3)
    built.span(1, 1, kind="SERVER", name="GET /hang/{id}", start=777_000, duration=60_000)
    best = first(match_goroutines(built.traces(), undated), 34)
    assert best["span_id"] == span_id(1)
    assert "seems to have been taken" in best["evidence"][0]
    dated = read_goroutine_profile(tmp_path / "p.txt", time=EPOCH + timedelta(seconds=810))
    assert best["confidence"] < first(match_goroutines(built.traces(), dated), 34)["confidence"]


def test_a_goroutine_works_for_no_span_that_is_younger_than_its_wait(tmp_path):
    text = DEBUG_2.replace("goroutine 34 [sleep]", "goroutine 34 [sleep, 2 minutes]")
    built = Capture(sdk_language="go", service_name="shop")
    built.span(1, 1, kind="SERVER", name="GET /hang/{id}", duration=200_000)
    built.span(2, 2, kind="SERVER", name="GET /hang/{id}", start=170_000, duration=30_000)
    (tmp_path / "p.txt").write_text(text)
    taken = read_goroutine_profile(tmp_path / "p.txt", time=EPOCH + timedelta(seconds=180))
    found = match_goroutines(built.traces(), taken).filter(pl.col("goroutine_id") == 34)
    assert found["span_id"].to_list() == [span_id(1)]


PANICS = "".join(
    f"""2026/11/23 07:35:1{n} http: panic serving 127.0.0.1:5606{n}: stock {n % 2} divided by zero
goroutine {number} [running]:
net/http.(*conn).serve.func1()
\t/usr/local/go/src/net/http/server.go:1897 +0xbd
panic({{0xb8fd80?, 0x139a3c0?}})
\t/usr/local/go/src/runtime/panic.go:860 +0x13a
main.burn({{0x7b0c58?, 0xc0000b2000?}}, 0x0)
\t/src/ladder.go:88 +0x1d
created by net/http.(*Server).Serve in goroutine 1
\t/usr/local/go/src/net/http/server.go:3285 +0x4b4
"""
    for n, number in enumerate([90, 41, 77, 42])
)


def test_panics_lead_by_their_text_and_order_to_the_spans_they_passed_first(tmp_path):
    (tmp_path / "panics.log").write_text(PANICS)
    profile = read_goroutine_profile(tmp_path / "panics.log")
    assert profile["panic"].to_list() == [f"stock {n} divided by zero" for n in (0, 1, 0, 1)]
    built = Capture(sdk_language="go", service_name="shop")
    for n in range(4):
        built.span(n + 1, 10 + n, kind="SERVER", name="GET /x", start=n * 1000, duration=5)
        built.span(n + 1, 20 + n, 10 + n, name="divide", start=n * 1000 + 1, duration=2)
        for span in (10 + n, 20 + n):
            built.event(
                n + 1,
                span,
                exception_type="*errors.errorString",
                exception_message=f"stock {n % 2} divided by zero",
            )
    best = match_goroutines(built.traces(), profile).filter(pl.col("candidate") == 1)
    assert best["span_id"].to_list() == [span_id(20 + n) for n in range(4)]
    assert best["confidence"].max() <= 0.5  # two panics of one text share it


def test_a_request_that_waits_for_a_worker_is_not_where_the_worker_is(tmp_path):
    text = (
        DEBUG_2.replace("main.hang(", "main.ship(")
        + "\ngoroutine 50 [chan receive]:\nmain.packParcel(0x1)\n\t/src/main.go:9 +0x1\n"
        + "main.worker()\n\t/src/main.go:3 +0x1\n"
    )
    built = Capture(sdk_language="go", service_name="shop")
    built.span(1, 1, kind="SERVER", name="GET /shipments/{id}", duration=3000)
    built.span(1, 2, 1, name="pack parcel", start=1, duration=2990)
    matches = match_goroutines(built.traces(), profile(tmp_path, text))
    assert first(matches, 34)["span_id"] == span_id(1)
    assert first(matches, 50)["span_id"] == span_id(2)


def test_a_request_that_no_word_tells_is_found_by_elimination(tmp_path):
    text = DEBUG_2.replace("net/http.HandlerFunc.ServeHTTP", "net/http.serverHandler.ServeHTTP")
    built = Capture(sdk_language="go", service_name="shop")
    built.span(1, 1, kind="SERVER", name="POST /v1", duration=3000)
    best = first(match_goroutines(built.traces(), profile(tmp_path, text)), 34)
    assert (best["span_id"], best["confidence"]) == (span_id(1), 0.35)
    assert "no other goroutine is known" in best["evidence"][0]


def test_goroutines_of_the_hanging_lab_lead_to_their_spans_with_and_without_ids():
    folder = HANGING
    if not (folder / "traces.pb.gz").is_file():
        pytest.skip("the hanging requests of the lab are not here")
    told = json.loads((folder / "truth.json").read_text())
    traces = read_traces(str(folder / "traces.pb.gz"))
    taken = datetime.fromtimestamp(told["taken"]["desk-debug2.txt"] / 1e9, tz=UTC)
    stamp = pl.lit(taken).cast(pl.Datetime("ns", "UTC"))
    right = (
        traces.spans.filter(
            pl.col("service_name") == "desk",
            pl.col("start_time") <= stamp,
            pl.col("end_time") >= stamp,
        )
        .sort("start_time")
        .unique("task_id", keep="last")
        .select(pl.col("task_id").cast(pl.Int64).alias("goroutine_id"), right="span_id")
    )
    goroutines = read_goroutine_profile(folder / "desk-debug2.txt.gz")
    best = match_goroutines(traces, goroutines, time=taken, service="desk").filter(
        pl.col("candidate") == 1
    )
    judged = right.join(best, on="goroutine_id", how="left")
    assert judged.height > 40
    assert (judged["right"] == judged["span_id"]).fill_null(value=False).all()
    bare = traces.with_tables(
        spans=traces.spans.with_columns(pl.lit(None, pl.String).alias("task_id"))
    )
    best = match_goroutines(bare, goroutines, service="desk").filter(pl.col("candidate") == 1)
    names = traces.spans.select("span_id", "name")
    judged = right.join(names, left_on="right", right_on="span_id").join(
        best, on="goroutine_id", how="left"
    )
    assert (judged["name"] == judged["span_name"]).fill_null(value=False).mean() >= 0.9


def test_an_id_counts_less_where_several_processes_count_theirs(tmp_path):
    built = Capture(sdk_language="go")
    built.span(1, 1, duration=3000, service="shop", task_id="34")
    built.span(2, 2, duration=3000, service="vault")
    alone = match_goroutines(built.traces(), profile(tmp_path), service="shop")
    among = match_goroutines(built.traces(), profile(tmp_path))
    assert first(alone, 34)["confidence"] > 0.9
    assert first(among, 34)["confidence"] < 0.5


@pytest.mark.parametrize("run", ["generations-dev", "generations-held"])
def test_hanging_requests_of_the_lab_are_found_in_both_forms_of_the_profile(run):
    folder = LAB / run
    if not (folder / "traces.jsonl.gz").is_file():
        pytest.skip("the lab's captures are not here")
    traces = read_traces(str(folder / "traces.jsonl.gz"))
    exported = traces.spans.filter(pl.col("name") == "GET /hang/{id}")["trace_id"].to_list()
    for name in ("goroutines-debug1.txt", "goroutines-debug2.txt"):
        goroutines = read_goroutine_profile(folder / name).with_row_index("goroutine")
        hanging = goroutines.filter(pl.col("functions").list.contains("main.hang"))
        assert hanging["count"].sum() == 2
        best = match_goroutines(traces, goroutines.drop("goroutine")).filter(
            pl.col("goroutine").is_in(hanging["goroutine"].implode()), pl.col("candidate") == 1
        )
        assert set(best["trace_id"]) <= set(exported)
        assert best.is_empty() == (not exported)


def test_two_requests_that_cannot_be_told_apart_share_the_probability(tmp_path):
    built = Capture(sdk_language="go", service_name="shop")
    for trace in (1, 2):
        built.span(trace, trace, kind="SERVER", name="GET /hang/{id}", duration=3000)
    matches = match_goroutines(built.traces(), profile(tmp_path)).filter(
        pl.col("goroutine_id") == 34
    )
    assert matches.height == 2
    assert matches["confidence"].max() <= 0.5


def test_a_label_with_the_span_id_is_nearly_certain(tmp_path):
    matches = match_goroutines(capture(), profile(tmp_path, DEBUG_1))
    best = matches.filter(pl.col("candidate") == 1).to_dicts()[0]
    assert best["span_id"] == span_id(3)
    assert best["confidence"] > 0.9


def test_a_stack_recorded_on_a_span_names_its_goroutine(tmp_path):
    built = Capture(sdk_language="go").span(1, 1, duration=3000)
    built.event(
        1,
        1,
        exception_type="*errors.errorString",
        exception_stacktrace="goroutine 34 [running]:\nmain.hang()\n\t/src/main.go:1 +0x1\n",
        time=EPOCH_NS + 5 * MS,
    )
    assert first(match_goroutines(built.traces(), profile(tmp_path)), 34)["span_id"] == span_id(1)


def test_a_request_that_never_ended_leads_to_its_caller(tmp_path):
    built = Capture().span(
        1,
        1,
        kind="CLIENT",
        name="GET",
        service="front",
        sdk_language="python",
        duration=3000,
        attributes='{"url.full":"http://shop/hang/7"}',
    )
    best = first(match_goroutines(built.traces(), profile(tmp_path), service="shop"), 34)
    assert best["span_id"] == span_id(1)


def test_what_grew_between_two_profiles_stands_first(tmp_path):
    (tmp_path / "a.txt").write_text(DEBUG_1)
    (tmp_path / "b.txt").write_text(DEBUG_1.replace("2 @", "90 @"))
    grown = compare_goroutines(
        read_goroutine_profile(tmp_path / "a.txt"), read_goroutine_profile(tmp_path / "b.txt")
    )
    assert grown["growth"].to_list() == [88, 0]
    assert grown["functions"][0].to_list() == ["time.Sleep", "main.hang"]
