"""Stack traces of ten languages: the section's name is the label, the chain is known."""

import re
import time

import pytest

from tracelab.errors_chain import parse_stacktrace
from tracelab.errors_chain.chain import MAX_LINKS
from tracelab.exceptions import ParameterError

OWN = "generated-here__stacktraces_node20_py311_java17.txt"
PUBLIC = "GoogleCloudPlatform-fluent-plugin-detect-exceptions__stacktraces.txt"

CHAINS = {
    "NODE_CAUSE_INSPECT": ["Error", "Error", "TypeError"],
    "NODE_CAUSE_STACK_ONLY": ["Error"],
    "NODE_AGGREGATE_INSPECT": ["AggregateError", "Error", "RangeError"],
    "PY_EXCEPTIONGROUP_TASKGROUP": [
        "ExceptionGroup",
        "ValueError",
        "KeyError",
        "ValueError",
        "KeyError",
    ],
    "PY_DURING_HANDLING": ["FileNotFoundError", "ZeroDivisionError"],
    "PY_DIRECT_CAUSE": ["RuntimeError", "ValueError"],
    "PY_REPEATED_FRAMES": ["RecursionError"],
    "PY_NOTES": ["ValueError"],
    "PY_NESTED_GROUP": ["ExceptionGroup", "ExceptionGroup", "ValueError", "TypeError", "OSError"],
    "JAVA_SUPPRESSED_CAUSED_BY": [
        "java.lang.IllegalArgumentException",
        "java.lang.RuntimeException",
        "java.sql.SQLException",
        "java.lang.IllegalStateException",
    ],
    "JAVA_CIRCULAR": ["java.lang.Exception", "java.lang.Exception"],
    "JAVA_COMPLETION": ["java.util.concurrent.CompletionException", "java.lang.RuntimeException"],
    "JAVA_EXC_PART1": ["RuntimeException"],
    "JAVA_EXC_PART2": [None],
    "COMPLEX_JAVA_EXC": [
        "javax.servlet.ServletException",
        "com.example.myproject.MyProjectServletException",
    ],
    "NESTED_JAVA_EXC": [
        "java.lang.RuntimeException",
        "javax.mail.SendFailedException",
        "com.sun.mail.smtp.SMTPAddressFailedException",
    ],
    "NODE_JS_EXC": ["ReferenceError"],
    "CLIENT_JS_EXC": ["Error"],
    "V8_JS_EXC": [None],
    "PYTHON_EXC": ["Exception"],
    "PHP_EXC": ["Exception"],
    "PHP_ON_GAE_EXC": ["Exception"],
    "GO_EXC": ["panic"],
    "GO_ON_GAE_EXC": ["panic"],
    "GO_SIGNAL_EXC": ["panic"],
    "GO_HTTP": ["panic"],
    "CSHARP_EXC": ["System.Collections.Generic.KeyNotFoundException"],
    "CSHARP_NESTED_EXC": ["System.InvalidOperationException", "System.InvalidOperationException"],
    "CSHARP_ASYNC_EXC": ["System.InvalidOperationException"],
    "RUBY_EXC": ["NoMethodError"],
    "RAILS_EXC": ["ActionController::RoutingError"],
    "DART_RANGE_ERR": ["RangeError"],
    "DART_FORMAT_ERR": ["FormatException"],
}
LANGUAGES = {
    "NODE": "nodejs",
    "V8": "nodejs",
    "CLIENT": "webjs",
    "PY": "python",
    "PYTHON": "python",
    "JAVA": "java",
    "COMPLEX": "java",
    "NESTED": "java",
    "PHP": "php",
    "GO": "go",
    "CSHARP": "dotnet",
    "RUBY": "ruby",
    "RAILS": "ruby",
    "DART": "dart",
}


def sections(folder, name):
    text = (folder / name).read_text()
    for part in re.split(r"^===== ", text, flags=re.MULTILINE)[1:]:
        label, _, body = part.partition("\n")
        yield label, body


def test_every_section_of_the_public_files_has_its_language_and_chain(shared_data):
    seen = 0
    for name in (OWN, PUBLIC):
        for label, body in sections(shared_data, name):
            chain = parse_stacktrace(body)
            seen += 1
            if label == "ARBITRARY_TEXT":
                assert chain.is_empty()
                continue
            assert chain["language"].unique().to_list() == [LANGUAGES[label.split("_")[0]]], label
            assert chain["relation"][0] == "head"
            if label in CHAINS:
                assert chain["type"].to_list() == CHAINS[label], label
            else:
                assert label.startswith("DART")
                assert chain.height == 1
            assert chain["frame_count"].sum() > 0
            cut = label == "GO_ON_GAE_EXC"  # its last line ends within a path
            assert chain["truncated"].any() == cut, label
    assert seen == 52


def test_relations_of_a_java_chain_with_a_suppressed_error(shared_data):
    body = dict(sections(shared_data, OWN))["JAVA_SUPPRESSED_CAUSED_BY"]
    chain = parse_stacktrace(body)
    assert chain["relation"].to_list() == ["head", "cause", "cause", "suppressed"]
    assert chain["parent_position"].to_list() == [None, 0, 1, 2]
    assert chain["top_function"].to_list() == ["C.main", "C.s", "C.q", "C$Res.close"]
    assert chain["frame_count"].to_list() == [8, 9, 10, 11]


def test_members_of_nested_python_groups_hang_on_their_group(shared_data):
    chain = parse_stacktrace(dict(sections(shared_data, OWN))["PY_NESTED_GROUP"])
    assert chain["parent_position"].to_list() == [None, 0, 1, 1, 0]
    assert chain["relation"].to_list() == ["head", "member", "member", "member", "member"]


def test_the_recorded_message_wins_over_notes_that_follow_it(shared_data):
    body = dict(sections(shared_data, OWN))["PY_NOTES"]
    chain = parse_stacktrace(body, type="ValueError", message="noted")
    assert chain["message"].to_list() == ["noted"]


def test_repeated_python_frames_are_counted(shared_data):
    body = dict(sections(shared_data, OWN))["PY_REPEATED_FRAMES"]
    assert parse_stacktrace(body)["frame_count"].to_list() == [1000]


DOTNET = """App.LoadError: load failed
 ---> System.Net.Sockets.SocketException (111): refused
   at App.Db.Q() in /src/Db.cs:line 3
   --- End of inner exception stack trace ---
   at App.Svc.Load() in /src/Svc.cs:line 9
"""
DOTNET_AGGREGATE = """System.AggregateException: One or more errors occurred. (a) (b)
 ---> System.InvalidOperationException: a
   at App.A() in /a.cs:line 1
   --- End of inner exception stack trace ---
   at App.Main() in /m.cs:line 2
 ---> (Inner Exception #1) System.ArgumentException: b
   at App.B() in /b.cs:line 3<---
"""


def test_dotnet_headers_run_outermost_first_and_stacks_innermost_first():
    chain = parse_stacktrace(DOTNET)
    assert chain["type"].to_list() == ["App.LoadError", "System.Net.Sockets.SocketException"]
    assert chain["message"].to_list() == ["load failed", "refused"]
    assert chain["top_function"].to_list() == ["App.Svc.Load", "App.Db.Q"]
    assert chain["top_line"].to_list() == [9, 3]
    assert not chain["truncated"].any()


def test_dotnet_text_cut_before_the_outer_stack_is_truncated():
    assert parse_stacktrace(DOTNET[: DOTNET.index("   --- End")])["truncated"].any()


def test_dotnet_aggregates_list_their_members():
    chain = parse_stacktrace(DOTNET_AGGREGATE)
    assert [t.rpartition(".")[2] for t in chain["type"]] == [
        "AggregateException",
        "InvalidOperationException",
        "ArgumentException",
    ]
    assert chain["parent_position"].to_list() == [None, 0, 0]


def test_rust_reports_and_arrays_give_the_chain():
    anyhow = "load failed\n\nCaused by:\n    0: query\n    1: connection refused\n"
    assert parse_stacktrace(anyhow)["message"].to_list() == [
        "load failed",
        "query",
        "connection refused",
    ]
    one = parse_stacktrace("load failed\n\nCaused by:\n    connection refused\n")
    assert one["message"].to_list() == ["load failed", "connection refused"]
    array = parse_stacktrace('["query","refused"]', language="rust", message="load failed")
    assert array["message"].to_list() == ["load failed", "query", "refused"]
    assert array["relation"].to_list() == ["head", "cause", "cause"]


def test_ruby_full_message_names_its_cause():
    text = (
        "app.rb:5:in `load': load failed (LoadFailed)\n\tfrom app.rb:9:in `<main>'\n"
        "app.rb:2:in `query': refused (Errno::ECONNREFUSED)\n\tfrom app.rb:5:in `load'\n"
    )
    chain = parse_stacktrace(text)
    assert chain["type"].to_list() == ["LoadFailed", "Errno::ECONNREFUSED"]
    assert chain["message"].to_list() == ["load failed", "refused"]


def test_php_prints_the_previous_error_first():
    text = (
        "PDOException: refused in /a.php:3\nStack trace:\n#0 /a.php(9): query()\n#1 {main}\n\n"
        "Next LoadError: load failed in /a.php:12\nStack trace:\n#0 /a.php(20): load()\n#1 {main}"
    )
    chain = parse_stacktrace(text)
    assert chain["type"].to_list() == ["LoadError", "PDOException"]
    assert chain["top_function"].to_list() == ["load", "query"]


def test_the_sdk_of_php_imitates_java():
    text = "App.LoadError: load failed\n\tat App.Svc.load(Svc.php:9)\nCaused by: PDOException: no\n\tat App.q(Db.php:3)\n\t... 1 more\n"
    assert parse_stacktrace(text, language="php")["type"].to_list() == [
        "App.LoadError",
        "PDOException",
    ]


def test_go_joins_are_split_into_members():
    chain = parse_stacktrace(
        None, language="go", type="*errors.joinError", message="a failed\nb failed"
    )
    assert chain["relation"].to_list() == ["head", "member", "member"]
    assert chain["message"].to_list() == ["a failed\nb failed", "a failed", "b failed"]


def test_a_go_stack_of_2048_bytes_was_cut():
    frames = "".join(f"main.f{n}(0x{n:x})\n\t/src/app/file.go:{n} +0x1d\n" for n in range(100))
    whole = f"goroutine 7 [running]:\n{frames}"
    assert parse_stacktrace(whole[:2048], language="go")["truncated"].all()
    assert not parse_stacktrace(whole, language="go")["truncated"].any()


def test_the_top_go_frame_is_where_it_happened_not_the_recording():
    text = (
        "goroutine 7 [running]:\n"
        "go.opentelemetry.io/otel/sdk/trace.recordStackTrace()\n\t/go/span.go:1 +0x1\n"
        "go.opentelemetry.io/otel/sdk/trace.(*recordingSpan).RecordError(0x1)\n\t/go/span.go:2 +0x1\n"
        "main.load(0xc0)\n\t/src/main.go:42 +0x1\n"
    )
    row = parse_stacktrace(text).to_dicts()[0]
    assert (row["top_function"], row["top_line"], row["frame_count"]) == ("main.load", 42, 3)


def test_firefox_frames_are_a_browsers():
    chain = parse_stacktrace(
        "load@https://shop.example/app.js:10:5\n@https://shop.example/app.js:1:1"
    )
    assert chain["language"].to_list() == ["webjs"]
    assert (chain["top_function"][0], chain["top_line"][0]) == ("load", 10)


def test_a_message_that_looks_like_a_trace_does_not_make_a_chain():
    message = "first line\nCaused by: nobody\n\tat all(here)"
    text = f"x.LoadError: {message}\n\tat x.A.load(A.java:9)\n"
    chain = parse_stacktrace(text, language="java", type="x.LoadError", message=message)
    assert chain.height == 1


def test_a_java_text_cut_within_a_frame_is_truncated():
    text = "x.A: m\n\tat x.A.load(A.java:9)\nCaused by: x.B: n\n\tat x.B.q(B.ja"
    chain = parse_stacktrace(text)
    assert chain["truncated"].to_list() == [False, True]
    assert parse_stacktrace(text[: text.index("\n\tat x.B.q")])["truncated"].to_list() == [
        False,
        True,
    ]


def test_a_python_text_cut_before_its_last_line_is_truncated():
    text = 'Traceback (most recent call last):\n  File "/a.py", line 1, in f\n    g()'
    chain = parse_stacktrace(text)
    assert chain["truncated"].to_list() == [True]
    assert chain["type"].to_list() == [None]


def test_a_group_with_fewer_members_than_it_says_is_truncated():
    text = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/a.py", line 3, in f\n'
        "  | ExceptionGroup: all (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | ValueError: v\n"
    )
    assert parse_stacktrace(text)["truncated"].to_list() == [True, False]


def test_an_unknown_language_is_refused():
    with pytest.raises(ParameterError, match="unknown language"):
        parse_stacktrace("x", language="cobol")


HOSTILE = {
    "java deep": "x.E: m\n\tat a.b(C.java:1)\n"
    + "Caused by: x.E: m\n\tat a.b(C.java:1)\n" * 100_000,
    "python deep": (
        'Traceback (most recent call last):\n  File "a", line 1, in f\nE: m\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
    )
    * 100_000,
    "node deep": "Error: a\n    at f (a.js:1:1) {\n"
    + "".join(" " * (2 * n + 2) + "[cause]: Error: a\n" for n in range(600)),
    "group deep": "  + Exception Group Traceback (most recent call last):\n"
    + "".join(" " * (2 * n) + "+-+---------------- 1 ----------------\n" for n in range(1000)),
    "dotnet deep": "A.B: m" + " ---> A.B: m" * 100_000 + "\n   at A.F()\n",
    "spaces": "Caused by:\n" + " " * 5_000_000,
    "brackets": "goroutine 1 [" + "(" * 1_000_000 + "]:\n" + "f(" * 500_000,
    "at": "x: y\n" + "\tat " * 2_000_000,
    "colons": ":" * 5_000_000 + "in `x'",
    "ruby": "a:1:in `b': " * 400_000,
    "rust": "[" * 5_000_000,
    "dots": "a." * 2_000_000 + "Exception",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_text_takes_bounded_time(name):
    start = time.perf_counter()
    chain = parse_stacktrace(HOSTILE[name], language="rust" if name == "rust" else None)
    assert time.perf_counter() - start < 3
    assert chain.height <= MAX_LINKS


def test_a_stack_of_a_hundred_megabytes_is_read_in_part_and_marked():
    text = "x.E: m\n" + "\tat a.b.c(C.java:1)\n" * 5_000_000
    start = time.perf_counter()
    chain = parse_stacktrace(text)
    assert time.perf_counter() - start < 3
    assert chain["truncated"].to_list() == [True]


CHAINED = (
    'Traceback (most recent call last):\n  File "db.py", line 3, in query\n'
    "ConnectionError: connection refused by the database\n\n"
    "The above exception was the direct cause of the following exception:\n\n"
    'Traceback (most recent call last):\n  File "shop.py", line 9, in load\n'
    "shop.LoadError: load failed\n"
)


@pytest.mark.parametrize(
    ("end", "relation"), [("refused by the", "context"), ("following exception:", "cause")]
)
def test_a_python_text_cut_within_a_cause_keeps_the_recorded_error_above_it(end, relation):
    text = CHAINED[: CHAINED.index(end) + len(end)]
    chain = parse_stacktrace(text, language="python", type="shop.LoadError", message="load failed")
    assert chain["type"].to_list() == ["shop.LoadError", "ConnectionError"]
    assert chain["relation"].to_list() == ["head", relation]
    assert chain["parent_position"].to_list() == [None, 0]
    assert chain["truncated"].to_list() == [True, True]
    assert chain["message"][1] in "connection refused by the database"


def test_a_whole_python_text_of_another_error_than_the_recorded_one_is_left_as_it_is():
    text = CHAINED[: CHAINED.index("\nThe above")]
    chain = parse_stacktrace(text, language="python", type="shop.LoadError", message="load failed")
    assert chain["truncated"].to_list() == [False]
