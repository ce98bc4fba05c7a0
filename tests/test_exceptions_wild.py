"""Error texts as other printers, packages and runtimes leave them, and texts cut anywhere."""

import time

import pytest

from tracelab.errors_chain import parse_stacktrace

GO_PKG_ERRORS = """connection refused
github.com/acme/shop/db.Query
\t/src/db/query.go:42
main.main
\t/src/main.go:9
query user
github.com/acme/shop/svc.(*Service).Load
\t/src/svc/load.go:19
main.main
\t/src/main.go:9
load failed"""
GO_COCKROACH = """load failed: query user: connection refused
(1) attached stack trace
  -- stack trace:
  | main.load
  | \t/src/main.go:30
  | main.main
  | \t/src/main.go:40
Wraps: (2) load failed
Wraps: (3) attached stack trace
  -- stack trace:
  | main.query
  | \t/src/main.go:20
  | [...repeated from below...]
Wraps: (4) query user
Wraps: (5) connection refused
Error types: (1) *withstack.withStack (2) *errutil.withPrefix (3) *withstack.withStack (4) *errutil.withPrefix (5) *errutil.leafError
"""
GO_XERRORS = """load failed:
    main.load
        /src/main.go:21
  - query user:
    main.query
        /src/main.go:15
  - connection refused:
    main.dial
        /src/main.go:9
"""
GO_RUN = """panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x2 addr=0x0 pc=0x102b9a3c4]

goroutine 1 gp=0x140000021c0 m=0 mp=0x102c8a9e0 [running]:
main.(*Store[...]).Get(...)
\tC:/src/store.go:12
main.main()
\tC:/src/main.go:7 +0x24
exit status 2
"""
PYTHON_COLOURED = (
    "\x1b[31mTraceback (most recent call last):\x1b[0m\n"
    '  File \x1b[35m"/app/shop.py"\x1b[0m, line \x1b[35m12\x1b[0m, in \x1b[35mload\x1b[0m\n'
    "\x1b[1;31mshop.LoadError\x1b[0m: \x1b[35mload failed\x1b[0m\n"
)
PYTHON_BARE_GROUP = """  | ExceptionGroup:  (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Exception Group Traceback (most recent call last):
    |   File "/a.py", line 23, in grp
    |     raise ExceptionGroup("three failed", errs)
    | ExceptionGroup: three failed (1 sub-exception)
    +-+---------------- 1 ----------------
      | Traceback (most recent call last):
      |   File "/a.py", line 4, in low
      | ConnectionError: refused
      | by peer
      | a note
      +------------------------------------
    |\x20
    | The above exception was the direct cause of the following exception:
    |\x20
    | Traceback (most recent call last):
    |   File "/a.py", line 26, in <module>
    | RuntimeError: handled one
    +---------------- 2 ----------------
    | Traceback (most recent call last):
    |   File "C:\\Program Files\\my app\\b.py", line 9, in mid
    | KeyError: 'missing'
    +------------------------------------
"""
PYTHON_REMOTE = """multiprocessing.pool.RemoteTraceback:\x20
\"\"\"
Traceback (most recent call last):
  File "/app/w.py", line 4, in work
    raise ValueError("in worker")
ValueError: in worker
\"\"\"

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/app/main.py", line 9, in <module>
    pool.map(work, [1])
ValueError: in worker
"""
PYTHON_SYNTAX = """Traceback (most recent call last):
  File "pandas/_libs/index.pyx", line 167, in pandas._libs.index.get_loc
  File "<string>", line 1
    def f(:
          ^
SyntaxError: invalid syntax
"""
JAVA_ROOT_FIRST = """java.net.ConnectException: refused
\tat com.acme.Db.q(Db.java:3)
\tat com.acme.Svc.load(Svc.java:8)
Wrapped by: com.acme.LoadException: load failed
\tat com.acme.Svc.load(Svc.java:10)
Wrapped by: com.acme.ApiException: GET /load
\tat com.acme.Main.main(Main.java:3)
"""
JAVA_OWN_TEXT = """Weird thing: happened; nested exception is java.sql.SQLException: query failed
\tat Gen.main(Gen.java:10)
Caused by: java.sql.SQLException: query failed
Detail: key (id)=(7)
\tat Gen.mid(Gen.java:6)
\t... 1 more
\tSuppressed: java.io.IOException: close failed
\t\tat Gen$Res.close(Gen.java:4)
\t\t... 2 more
\tCaused by: java.lang.IllegalStateException: already
\t\t... 3 more
Caused by: java.net.ConnectException: Connection refused: db/10.0.0.7:5432
\tat Gen.low(Gen.java:5)
\t... 2 more
"""
KOTLIN = """kotlinx.coroutines.TimeoutCancellationException: Timed out waiting for 100 ms
\tat _COROUTINE._BOUNDARY._(CoroutineDebugging.kt:46)
\tat com.acme.MainKt.my test name with spaces(Main.kt:3)
Caused by: kotlinx.coroutines.TimeoutCancellationException: Timed out waiting for 100 ms
\tat kotlinx.coroutines.TimeoutKt.TimeoutCancellationException(Timeout.kt:191)
"""
NODE_UNCAUGHT = """file:///app/src/index.mjs:3
throw new Error('x', { cause })
      ^

Error: x
    at file:///app/src/index.mjs:3:7
    at async ModuleLoader.import (node:internal/modules/esm/loader:323:24) {
  status: 503,
  detail: { a: 1, b: [Array] },
  [cause]: [AggregateError: All promises were rejected] {
    [errors]: [
      TypeError: socket closed
      by: peer
          at low (C:\\Users\\me\\my app\\gen.js:2:25)
          at async Promise.any (index 0) {
        code: 'ECONNRESET'
      },
      Error: load failed
          at svc (/tmp/gen.js:4:58) {
        [cause]: [TypeError]
      },
      'plain string'
    ]
  }
}

Node.js v20.11.0
"""
NODE_MESSAGE = """AppError: request 7 failed:
  at step 2 (see docs at https://example.com)
    at /tmp/errors/gen.js:7:41
"""
NODE_SHORT = """<ref *1> Error: outer
    at /tmp/gen.js:9:195 {
  self: [Circular *1],
  [cause]: [AggregateError: All promises were rejected] {
    [errors]: [ [TypeError], [Error: no stack], 'plain string' ]
  }
}
"""
DENO = """error: Uncaught (in promise) TypeError: x is not a function
    at file:///app/main.ts:3:7
Caused by: Error: low
    at load (file:///app/main.ts:1:1)
"""
DOTNET = """System.AggregateException: One or more errors occurred. (a (x)) (b)
 ---> System.TimeoutException: a (x)
 ---> System.IO.IOException: disk
   at A.D() in C:\\My App\\a.cs:line 1
   --- End of inner exception stack trace ---
   at A.T()
   --- End of inner exception stack trace ---
   at System.Threading.Tasks.Task.WaitAllCore(Task[] tasks)
 ---> (Inner Exception #1) System.ArgumentNullException: Value cannot be null. (Parameter 'b')
   at B.B()<---
"""
RUST_EYRE = """Error:\x20
   0: load failed
   1: query user
   2: connection refused

Location:
   src/main.rs:12
"""
RUST_ANYHOW = """Error: load failed

Caused by:
    0: query user
    1: connection refused (os error 111)

Stack backtrace:
   0: anyhow::error::from
             at /root/.cargo/registry/anyhow-1.0.75/src/error.rs:565:25
   1: std::rt::lang_start
"""
RAILS = """ActiveRecord::StatementInvalid (PG::ConnectionBad: server closed the connection):

Causes:
PG::ConnectionBad (server closed the connection)

app/models/user.rb:12:in `find_it'
app/controllers/users_controller.rb:7:in `show'
"""
ELIXIR = """** (DBConnection.ConnectionError) connection not available
    (ecto_sql 3.10.1) lib/ecto/adapters/sql.ex:1047: Ecto.Adapters.SQL.raise_sql_call_error/1
    (shop 0.1.0) lib/shop/loader.ex:12: Shop.Loader.load/1
    (stdlib 5.0) proc_lib.erl:241: :proc_lib.init_p_do_apply/3
"""

CHAINS = {
    "go, pkg/errors": (
        GO_PKG_ERRORS,
        "go",
        [
            ("head", None, None, "load failed", None),
            ("cause", 0, None, "query user", "github.com/acme/shop/svc.(*Service).Load"),
            ("cause", 1, None, "connection refused", "github.com/acme/shop/db.Query"),
        ],
    ),
    "go, cockroachdb/errors": (
        GO_COCKROACH,
        "go",
        [
            (
                *("head", None, "*withstack.withStack"),
                *("load failed: query user: connection refused", "main.load"),
            ),
            ("cause", 0, "*errutil.withPrefix", "load failed", None),
            ("cause", 1, "*withstack.withStack", None, "main.query"),
            ("cause", 2, "*errutil.withPrefix", "query user", None),
            ("cause", 3, "*errutil.leafError", "connection refused", None),
        ],
    ),
    "go, xerrors": (
        GO_XERRORS,
        "go",
        [
            ("head", None, None, "load failed", "main.load"),
            ("cause", 0, None, "query user", "main.query"),
            ("cause", 1, None, "connection refused", "main.dial"),
        ],
    ),
    "go, as go run ends it": (
        GO_RUN,
        "go",
        [
            (
                *("head", None, "panic"),
                "runtime error: invalid memory address or nil pointer dereference",
                "main.(*Store[...]).Get",
            )
        ],
    ),
    "python, coloured": (
        PYTHON_COLOURED,
        "python",
        [("head", None, "shop.LoadError", "load failed", "load")],
    ),
    "python, a group that was never raised": (
        PYTHON_BARE_GROUP,
        "python",
        [
            ("head", None, "ExceptionGroup", " (2 sub-exceptions)", None),
            ("member", 0, "RuntimeError", "handled one", "<module>"),
            ("cause", 1, "ExceptionGroup", "three failed (1 sub-exception)", "grp"),
            ("member", 2, "ConnectionError", "refused", "low"),
            ("member", 0, "KeyError", "'missing'", "mid"),
        ],
    ),
    "python, from a worker process": (
        PYTHON_REMOTE,
        "python",
        [
            ("head", None, "ValueError", "in worker", "<module>"),
            ("cause", 0, "ValueError", "in worker", "work"),
        ],
    ),
    "python, a place without a function": (
        PYTHON_SYNTAX,
        "python",
        [("head", None, "SyntaxError", "invalid syntax", "pandas._libs.index.get_loc")],
    ),
    "java, root cause first": (
        JAVA_ROOT_FIRST,
        "java",
        [
            ("head", None, "com.acme.ApiException", "GET /load", "com.acme.Main.main"),
            ("cause", 0, "com.acme.LoadException", "load failed", "com.acme.Svc.load"),
            ("cause", 1, "java.net.ConnectException", "refused", "com.acme.Db.q"),
        ],
    ),
    "java, an error that prints itself": (
        JAVA_OWN_TEXT,
        "java",
        [
            (
                *("head", None, None),
                "Weird thing: happened; nested exception is java.sql.SQLException: query failed",
                "Gen.main",
            ),
            (
                *("cause", 0, "java.sql.SQLException"),
                *("query failed\nDetail: key (id)=(7)", "Gen.mid"),
            ),
            ("suppressed", 1, "java.io.IOException", "close failed", "Gen$Res.close"),
            ("cause", 2, "java.lang.IllegalStateException", "already", None),
            (
                *("cause", 1, "java.net.ConnectException"),
                *("Connection refused: db/10.0.0.7:5432", "Gen.low"),
            ),
        ],
    ),
    "kotlin": (
        KOTLIN,
        "java",
        [
            (
                *("head", None, "kotlinx.coroutines.TimeoutCancellationException"),
                *("Timed out waiting for 100 ms", "_COROUTINE._BOUNDARY._"),
            ),
            (
                *("cause", 0, "kotlinx.coroutines.TimeoutCancellationException"),
                "Timed out waiting for 100 ms",
                "kotlinx.coroutines.TimeoutKt.TimeoutCancellationException",
            ),
        ],
    ),
    "node, uncaught, with own properties": (
        NODE_UNCAUGHT,
        "nodejs",
        [
            ("head", None, "Error", "x", None),
            ("cause", 0, "AggregateError", "All promises were rejected", None),
            ("member", 1, "TypeError", "socket closed\n      by: peer", "low"),
            ("member", 1, "Error", "load failed", "svc"),
            ("cause", 3, "TypeError", None, None),
            ("member", 1, None, "plain string", None),
        ],
    ),
    "node, a message like a frame": (
        NODE_MESSAGE,
        "nodejs",
        [
            (
                *("head", None, "AppError"),
                "request 7 failed:\n  at step 2 (see docs at https://example.com)",
                None,
            )
        ],
    ),
    "node, in short": (
        NODE_SHORT,
        "nodejs",
        [
            ("head", None, "Error", "outer", None),
            ("cause", 0, "AggregateError", "All promises were rejected", None),
            ("member", 1, "TypeError", None, None),
            ("member", 1, "Error", "no stack", None),
            ("member", 1, None, "plain string", None),
        ],
    ),
    "deno": (
        DENO,
        "nodejs",
        [
            ("head", None, "TypeError", "x is not a function", None),
            ("cause", 0, "Error", "low", "load"),
        ],
    ),
    ".net, members and a cause below one": (
        DOTNET,
        "dotnet",
        [
            (
                *("head", None, "System.AggregateException"),
                "One or more errors occurred. (a (x)) (b)",
                "System.Threading.Tasks.Task.WaitAllCore",
            ),
            ("member", 0, "System.TimeoutException", "a (x)", "A.T"),
            ("cause", 1, "System.IO.IOException", "disk", "A.D"),
            (
                *("member", 0, "System.ArgumentNullException"),
                *("Value cannot be null. (Parameter 'b')", "B.B"),
            ),
        ],
    ),
    "rust, eyre": (
        RUST_EYRE,
        "rust",
        [
            ("head", None, None, "load failed", None),
            ("cause", 0, None, "query user", None),
            ("cause", 1, None, "connection refused", None),
        ],
    ),
    "rust, anyhow with a backtrace": (
        RUST_ANYHOW,
        "rust",
        [
            ("head", None, None, "load failed", "anyhow::error::from"),
            ("cause", 0, None, "query user", None),
            ("cause", 1, None, "connection refused (os error 111)", None),
        ],
    ),
    "rails": (
        RAILS,
        "ruby",
        [
            (
                *("head", None, "ActiveRecord::StatementInvalid"),
                *("PG::ConnectionBad: server closed the connection", "find_it"),
            ),
            ("cause", 0, "PG::ConnectionBad", "server closed the connection", None),
        ],
    ),
    "elixir": (
        ELIXIR,
        "erlang",
        [
            (
                *("head", None, "DBConnection.ConnectionError", "connection not available"),
                "Ecto.Adapters.SQL.raise_sql_call_error/1",
            )
        ],
    ),
}

NO_TRACE = {
    "pytest": "    def test_load():\n>       load()\nE       ValueError: bad\n\napp.py:3: ValueError\n",
    "prose": "The request failed: see https://docs.example.com:443/errors\n at your door (call 5:1:1)",
    "mention": "the client sent: Traceback (most recent call last): and nothing else",
    "type only": "java.lang.NullPointerException",
    "json": '{"error":{"code":500,"message":"at step 3 (db:5432:1)"}}',
    "nginx": "[error] 29#29: connect() failed (111: Connection refused), upstream: http://10.0.0.7:80/",
    "swift": "0   Shop   0x0000000104a2c0d0 $s4Shop6LoaderC4loadyyF + 44\n",
    "c++": "#0  0x00007f3c in raise () from /lib/libc.so.6\n#1  0x00007f3d in load(int) at /src/l.cpp:12",
    "perl": "load failed at /app/load.pl line 12.\n\tmain::load(7) called at /app/main.pl line 3\n",
    "lua": "input:7: attempt to index a nil value\nstack traceback:\n\tinput:7: in function 'load'\n",
    "yaml": 'steps:\n  at: 10:20:30\n  note: "Caused by: the operator"\n',
}


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_the_chain_is_read_as_it_was_printed(name):
    text, language, links = CHAINS[name]
    chain = parse_stacktrace(text)
    columns = ("relation", "parent_position", "type", "message", "top_function")
    assert chain.select(columns).rows() == links
    assert chain["language"].unique().to_list() == [language]


@pytest.mark.parametrize("name", sorted(NO_TRACE))
def test_what_is_no_trace_has_no_language_and_no_chain(name):
    assert parse_stacktrace(NO_TRACE[name]).is_empty()
    recorded = parse_stacktrace(NO_TRACE[name], type="E", message="m")
    assert recorded["language"].to_list() == [None]
    assert recorded["frame_count"].to_list() == [0]


def test_only_what_a_depth_limit_left_out_is_marked():
    assert parse_stacktrace(NODE_SHORT)["truncated"].to_list() == [False, False, True, False, False]
    assert not parse_stacktrace(PYTHON_BARE_GROUP)["truncated"].any()
    assert not parse_stacktrace(GO_RUN)["truncated"].any()


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_a_text_cut_anywhere_invents_no_error(name):
    text, language, links = CHAINS[name]
    known = {link[2] for link in links}
    for cut in range(10, len(text)):
        chain = parse_stacktrace(text[:cut], language=language, type=links[0][2], message="m")
        for kind in chain["type"].drop_nulls():
            assert any(kind == one or (one or "").startswith(kind) for one in known), text[:cut]


UNMISTAKABLE = {
    "node, before its braces close": (NODE_UNCAUGHT, "        code: 'ECONNRESET'"),
    "node, within a frame": (DENO, "main.ts:3:7\nCaused by: Error: low\n    at load (file:"),
    "python, within the rule between members": (PYTHON_BARE_GROUP, "+---------------- 2 ----"),
    "python, before the second member": (
        PYTHON_BARE_GROUP,
        "+---------------- 2 ----------------\n",
    ),
    "java, within a margin": (JAVA_OWN_TEXT, "\t... 1 more\n\t"),
    "java, before the outermost error": (JAVA_ROOT_FIRST, "(Svc.java:10)\nWrapped by: "),
    ".net, within a member": (DOTNET, "(Inner Exception #1) System.Arg"),
    "rust, before a cause": (RUST_ANYHOW, "Caused by:\n    0"),
    "elixir, within a function": (ELIXIR, "sql.ex:1047: Ecto.Adap"),
    "go, before the types": (GO_COCKROACH, "Wraps: (5) connection refused"),
}


@pytest.mark.parametrize("name", sorted(UNMISTAKABLE))
def test_a_text_that_shows_its_cut_is_marked(name):
    text, last = UNMISTAKABLE[name]
    assert not parse_stacktrace(text)["truncated"].head(1).item()
    assert parse_stacktrace(text[: text.index(last) + len(last)])["truncated"].any()


@pytest.mark.parametrize(
    "sentence",
    ["The above exc", "The above exception was the direct cause of the following exception:\n\nTr"],
)
def test_a_python_text_cut_between_two_errors_keeps_the_recorded_one_above(sentence):
    text = PYTHON_REMOTE[: PYTHON_REMOTE.index(sentence) + len(sentence)]
    chain = parse_stacktrace(text, language="python", type="ValueError", message="in worker")
    assert chain["relation"].to_list() == ["head", "cause"]
    assert chain["truncated"].to_list() == [True, True]


FRAGMENTS = [
    "\n",
    "\r\n",
    " ",
    "\t",
    "(",
    "a/",
    "1:1:",
    "a:1:in `",
    " ---> A: b",
    "\x1b[",
    "    at f (",
]
BEGINNINGS = {
    "nothing": "",
    "node": "Error: x\n    at f (/a.js:1:1)\n",
    "java": "x.E: m\n\tat a.b(C.java:1)\n",
    "ruby": "a.rb:1:in `b': c (D)\n",
    "go": "m\n(1) attached\n",
}


@pytest.mark.parametrize("beginning", sorted(BEGINNINGS))
def test_what_is_repeated_without_end_costs_bounded_time(beginning):
    for fragment in FRAGMENTS:
        text = BEGINNINGS[beginning] + fragment * (390_000 // len(fragment)) + "!"
        start = time.process_time()
        parse_stacktrace(text)
        assert time.process_time() - start < 3, repr(fragment)
