"""Error groups, what swallowing costs, cut values, loss against size."""

import numpy as np
import polars as pl
import pytest
from building import EPOCH_NS, MS, Capture, trace_id

from tracelab import schema
from tracelab.audits import audit_size_loss, audit_truncation
from tracelab.errors_chain import find_error_groups, swallow_costs
from tracelab.exceptions import ParameterError

ERROR = {"status_code": "ERROR"}


def test_numbers_and_ids_do_not_tell_errors_apart():
    built = Capture(sdk_language="python")
    for number in range(1, 4):
        built.span(number, number, service="stock", **ERROR)
        message = f"order {number} of 'user{number}' failed"
        built.event(
            number, number, exception_type="app.E", exception_message=message, time=EPOCH_NS
        )
    built.span(4, 4, **ERROR).event(4, 4, exception_type="app.F", exception_message="order 1")
    groups = find_error_groups(built.traces())
    assert groups.select("type", "errors", "traces").rows() == [("app.E", 3, 3), ("app.F", 1, 1)]
    assert groups["services"][0].to_list() == ["stock"]
    assert groups["example_trace_ids"][0].to_list() == [trace_id(n) for n in (1, 2, 3)]


def test_the_first_error_of_a_trace_is_its_origin():
    built = Capture().span(1, 1, **ERROR).span(1, 2, 1, **ERROR)
    built.event(1, 2, exception_type="app.Cause", exception_message="a", time=EPOCH_NS)
    built.event(1, 1, exception_type="app.Late", exception_message="b", time=EPOCH_NS + MS)
    groups = find_error_groups(built.traces())
    assert dict(groups.select("type", "origins").rows()) == {"app.Cause": 1, "app.Late": 0}


def test_a_fingerprint_is_the_same_in_another_capture():
    def group(number):
        built = Capture().span(number, 1, **ERROR)
        built.event(number, 1, exception_type="app.E", exception_message=f"no {number}")
        return find_error_groups(built.traces())["fingerprint"][0]

    assert group(1) == group(77)


def test_hidden_failures_are_charged_to_the_endpoint():
    built = Capture(service_name="shop").span(
        1, 1, kind="SERVER", name="GET /a", service="shop", duration=100
    )
    built.span(1, 2, 1, name="load", service="shop", start=1, duration=90)
    built.span(1, 3, 2, name="query", service="shop", start=2, duration=20, **ERROR)
    built.span(1, 4, 2, name="log", service="shop", start=12, duration=30)
    built.span(2, 5, kind="SERVER", name="GET /a", service="shop", duration=100)
    row = swallow_costs(built.traces()).to_dicts()[0]
    assert (row["requests"], row["successful"], row["hiding"], row["swallowed"]) == (2, 2, 1, 1)
    assert row["depth_max"] == 2
    assert row["hidden_ns"] == 20 * MS
    assert row["blocking_ns"] == 10 * MS  # the other ten ran beside "log"
    assert row["hiding_ratio"] == 0.5


def cut(limit, *, language="python", n=40, field="exception_message", letter="x"):
    built = Capture(sdk_language=language)
    for number in range(1, n + 1):
        built.span(number, number, **ERROR)
        text = f"{number:04d}" + letter * (37 * number)
        built.event(number, number, exception_type="E", **{field: text[:limit]})
    return built.traces()


def test_values_that_pile_up_at_a_length_were_cut_there():
    row = audit_truncation(cut(256)).to_dicts()[0]
    assert (row["field"], row["limit"], row["unit"]) == ("exception.message", 256, "bytes")
    assert row["n_at_limit"] == 34  # those of 37 n + 4 >= 256
    assert "SDK limit" in row["set_by"]


def test_a_limit_in_characters_is_told_from_one_in_bytes():
    row = audit_truncation(cut(256, letter="é")).to_dicts()[0]
    assert (row["limit"], row["unit"]) == (256, "chars")


def test_gos_stack_buffer_is_named():
    traces = cut(2048, language="go", n=100, field="exception_stacktrace")
    assert "Go's RecordError" in audit_truncation(traces)["set_by"][0]


def test_values_of_many_lengths_or_one_repeated_value_are_not_cut():
    assert audit_truncation(cut(10_000)).is_empty()
    built = Capture()
    for number in range(1, 50):
        built.span(number, number, **ERROR)
        built.event(number, number, exception_type="E", exception_message="always the same text")
    assert audit_truncation(built.traces()).is_empty()


def test_thresholds_below_one_are_refused():
    with pytest.raises(ParameterError):
        audit_truncation(cut(10), min_values=0)


def losses(seed, effect, n=400):
    """Traces whose chance of an orphan does, or does not, grow with the message."""
    rng = np.random.default_rng(seed)
    built, rows = Capture(), []
    for number in range(1, n + 1):
        size = int(rng.integers(10, 4000))
        chance = 0.1 + effect * size / 4000
        built.span(number, number, **ERROR)
        built.event(number, number, exception_type="E", exception_message="x" * size)
        if rng.random() < chance:
            rows.append({"kind": "orphan_span", "trace_id": trace_id(number)})
    return built.traces(), schema.conform(pl.DataFrame(rows), schema.BREAKS)


def verdict(traces, breaks):
    table = audit_size_loss(traces, breaks=breaks)
    return dict(table.select("measure", "verdict").rows())


def test_loss_that_grows_with_the_message_is_found():
    found = verdict(*losses(1, 0.6))
    assert found["message_bytes"] == "rises"
    assert found["trace_spans"] == "undecidable"  # every trace has one span


def test_loss_that_does_not_depend_on_size_is_no_effect():
    found = [verdict(*losses(seed, 0.0, 200))["message_bytes"] for seed in range(20)]
    assert found.count("no_effect") >= 15
    assert found.count("rises") + found.count("falls") <= 1  # nominal: 20 x 0.01 / 4


def test_few_losses_decide_nothing():
    traces, _ = losses(1, 0.0, 60)
    assert verdict(traces, schema.empty(schema.BREAKS))["message_bytes"] == "undecidable"
