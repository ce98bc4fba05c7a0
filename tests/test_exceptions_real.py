"""Round trips: errors really raised by Python, Node and Java, their text parsed back."""

import json
import random
import shutil
import subprocess
import traceback

import pytest

from tracelab.errors_chain import parse_stacktrace

NAMES = [ValueError, KeyError, RuntimeError, ConnectionError, LookupError, OSError]


def raised(error):
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - whatever was drawn
        return caught


def grow(dice, depth):
    """A random error with its true chain: (type, relation, parent) in order of appearance."""
    kind = dice.choice(NAMES)
    if depth and dice.random() < 0.3:
        error = ExceptionGroup(
            f"group {dice.randrange(99)}",
            [grow(dice, depth - 1) for _ in range(dice.randint(1, 3))],
        )
    else:
        error = kind(f"failed {dice.randrange(1000)}: {dice.choice(['a', 'b: c', 'd (e)'])}")
    choice = dice.random() if depth else 1.0
    if choice < 0.35:
        error.__cause__ = grow(dice, depth - 1)
    elif choice < 0.65:
        error.__context__ = grow(dice, depth - 1)
    return raised(error)


def true_chain(error):
    """Walk a Python error as its traceback is printed, head first."""
    rows = []

    def walk(one, relation, parent):
        chain = [(one, relation)]
        while True:
            last = chain[-1][0]
            if last.__cause__ is not None:
                chain.append((last.__cause__, "cause"))
            elif last.__context__ is not None and not last.__suppress_context__:
                chain.append((last.__context__, "context"))
            else:
                break
        places = []
        for number, (link, how) in enumerate(chain):
            rows.append((type(link).__name__, how, len(rows) - 1 if number else parent))
            places.append(len(rows) - 1)
        for place, (link, _) in zip(places, chain, strict=True):
            for member in getattr(link, "exceptions", ()):
                walk(member, "member", place)

    walk(error, "head", None)
    return rows


def test_random_python_chains_and_groups_come_back_exactly():
    dice = random.Random(11)
    right = 0
    for _ in range(300):
        error = grow(dice, 3)
        text = "".join(traceback.format_exception(error))
        chain = parse_stacktrace(text, type=type(error).__name__, message=str(error))
        found = chain.select("type", "relation", "parent_position").rows()
        assert not chain["truncated"].any()
        right += found == true_chain(error)
    assert right >= 297, right


NODE = """
const depth = n => n ? new RangeError('level ' + n, {cause: depth(n - 1)}) : new TypeError('root');
const util = require('util');
const texts = [depth(0), depth(1), depth(3), new AggregateError([depth(0), depth(1)], 'all')];
console.log(JSON.stringify(texts.map(e => [util.inspect(e, {depth: 20}), e.stack])));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_what_node_prints_comes_back():
    done = subprocess.run(["node", "-e", NODE], capture_output=True, text=True, check=True)
    inspected = [parse_stacktrace(text) for text, _ in json.loads(done.stdout)]
    assert [chain["type"].to_list() for chain in inspected] == [
        ["TypeError"],
        ["RangeError", "TypeError"],
        ["RangeError", "RangeError", "RangeError", "TypeError"],
        ["AggregateError", "TypeError", "RangeError", "TypeError"],
    ]
    assert inspected[3]["relation"].to_list() == ["head", "member", "member", "cause"]
    assert inspected[3]["parent_position"].to_list() == [None, 0, 0, 2]
    stacks = [parse_stacktrace(stack) for _, stack in json.loads(done.stdout)]
    assert [chain.height for chain in stacks] == [1, 1, 1, 1]  # error.stack holds no cause


JAVA = """
import java.io.*;
public class Fail {
  static Exception make(int n) {
    Exception e = n == 0 ? new IllegalStateException("root") : new RuntimeException("level " + n, make(n - 1));
    if (n == 1) { e.addSuppressed(new IOException("close", new IOException("disk"))); }
    return e;
  }
  public static void main(String[] a) { make(Integer.parseInt(a[0])).printStackTrace(System.out); }
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
def test_what_java_prints_comes_back(tmp_path):
    (tmp_path / "Fail.java").write_text(JAVA)
    done = subprocess.run(
        ["java", str(tmp_path / "Fail.java"), "2"], capture_output=True, text=True, check=True
    )
    chain = parse_stacktrace(done.stdout)
    assert chain.select("type", "relation", "parent_position").rows() == [
        ("java.lang.RuntimeException", "head", None),
        ("java.lang.RuntimeException", "cause", 0),
        ("java.io.IOException", "suppressed", 1),
        ("java.io.IOException", "cause", 2),
        ("java.lang.IllegalStateException", "cause", 1),
    ]
    assert not chain["truncated"].any()


GO = """
package main
import ("fmt"; "runtime"; "runtime/debug")
func inner() string { b := make([]byte, 1<<16); return string(b[:runtime.Stack(b, false)]) }
func main() {
  c := make(chan string)
  go func() { c <- inner() }()
  fmt.Println(<-c)
  defer func() { recover(); fmt.Println("====="); fmt.Print(string(debug.Stack())) }()
  var p *int
  *p = 1
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")
def test_what_go_prints_comes_back(tmp_path):
    (tmp_path / "main.go").write_text(GO)
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")], capture_output=True, text=True, check=True
    )
    plain, panic = done.stdout.split("=====\n")
    chain = parse_stacktrace(plain, type="*fmt.wrapError", message="m").to_dicts()
    assert chain[0]["top_function"] == "main.inner"
    assert chain[0]["type"] == "*fmt.wrapError"
    chain = parse_stacktrace(panic)
    assert chain["top_function"].to_list() == ["main.main"]
    assert not chain["truncated"].any()
