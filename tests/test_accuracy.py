"""The benchmark's judge: what counts as a hit, a miss and a false alarm."""

import importlib.util
from pathlib import Path

import polars as pl
import pytest

from tracelab import schema
from tracelab.traceset import TraceSet

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "accuracy.py"


@pytest.fixture(scope="module")
def accuracy():
    spec = importlib.util.spec_from_file_location("accuracy_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(columns, rows):
    data = {
        name: pl.Series(name, [row.get(name) for row in rows], t) for name, t in columns.items()
    }
    return pl.DataFrame(data)


def row(kind, span, **more):
    return {"kind": kind, "trace_id": "t", "span_id": span, "cause": "unknown", **more}


def truth(*rows):
    return table(schema.TRUTH, [{"observable": True, "boundary": "unknown", **r} for r in rows])


def breaks(*rows):
    base = {"severity": "warning", "confidence": 0.9, "boundary": "unknown"}
    return table(schema.BREAKS, [{**base, **r} for r in rows])


def test_each_orphan_of_one_lost_parent_has_to_be_found_itself(accuracy):
    planted = truth(*(row("orphan_span", s, missing_span_id="m") for s in "ab"))
    _, told = accuracy.judge(breaks(row("orphan_span", "a", missing_span_id="m")), planted, 0)
    assert dict(told.select("span_id", "hit").rows()) == {"a": True, "b": False}


def test_a_sampled_out_parent_may_be_called_an_orphan_and_an_orphan_no_detached_root(accuracy):
    planted = truth(row("sampling_gap", "a", cause="sampled_out"), row("orphan_span", "b"))
    found = breaks(row("orphan_span", "a"), row("detached_root", "b"))
    judged, told = accuracy.judge(found, planted, 0)
    assert dict(told.select("span_id", "hit").rows()) == {"a": True, "b": False}
    assert dict(judged.select("span_id", "hit").rows()) == {"a": True, "b": False}


def test_same_span_id_in_another_trace_is_no_hit(accuracy):
    found = breaks({**row("orphan_span", "a"), "trace_id": "other"})
    judged, told = accuracy.judge(found, truth(row("orphan_span", "a")), 0)
    assert not judged["hit"].any()
    assert not told["hit"].any()


def test_a_warning_where_nothing_was_planted_lowers_precision_whatever_its_kind(accuracy):
    tally = accuracy.Tally(captures=1)
    found = breaks(row("orphan_span", "a"), row("late_child", "b"), row("wrong_parent", "c"))
    judged, told = accuracy.judge(found, truth(row("orphan_span", "a")), 0)
    tally.found.append(judged)
    tally.truth.append(told)
    line = next(line for line in accuracy.render("x", tally) if line.startswith("| all"))
    assert "(1/3)" in line


def test_a_cascade_is_neither_a_miss_nor_a_hit_of_recall(accuracy):
    tally = accuracy.Tally(captures=1)
    planted = truth(row("missing_server", "a", detail="cascade"), row("missing_server", "b"))
    judged, told = accuracy.judge(breaks(row("missing_server", "a")), planted, 0)
    tally.found.append(judged)
    tally.truth.append(told)
    cells = next(x for x in accuracy.render("x", tally) if x.startswith("| all")).split("|")
    assert "(1/1)" in cells[2]
    assert "(0/1)" in cells[3]


def test_a_call_counts_as_normally_answered_by_its_operation_and_peer(accuracy):
    calls = [
        {"trace_id": "t", "span_id": f"{peer}{n}", "kind": "CLIENT", "service_name": "s",
         "name": "GET", "server_address": peer, "attributes": "{}"}
        for peer in "xy" for n in range(4)
    ]  # fmt: skip
    answers = [
        {"trace_id": "t", "span_id": f"a{n}", "parent_span_id": f"x{n}", "kind": "SERVER"}
        for n in range(3)
    ]
    spans = table(schema.SPANS, calls + answers)
    rows = truth(row("missing_server", "x3"), row("missing_server", "y0"))
    rates = accuracy.normally_answered(TraceSet(spans=spans), rows)
    assert dict(rates.select("span_id", "rate").rows()) == {"x3": 0.75, "y0": 0.0}
