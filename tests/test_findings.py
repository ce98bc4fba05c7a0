"""Findings, and the documents made of them."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime

import jsonschema_rs
import polars as pl
import pytest

from tracelab import schema
from tracelab.exceptions import SchemaError
from tracelab.export.document import read_json_schema, render_findings_json, render_markdown
from tracelab.export.findings import MAX_FINDINGS, group_audit, group_breaks, group_error_hops
from tracelab.export.report import Picture, render_report

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://example.invalid/a.png)",
    "`code` | pipe",
    "\x1b[31mred\x1b[0m \x07",
    "\u202eright to left",
    "'\"; --",
    "x" * 10_000,
    "{{ 7 * 7 }} {% raw %}",
]


def breaks(rows):
    defaults = {
        "break_id": "b0",
        "kind": "orphan_span",
        "cause": "unknown",
        "boundary": "network",
        "severity": "warning",
        "confidence": 0.9,
        "at_capture_edge": False,
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "service_name": "shop",
        "span_name": "GET /",
        "time": WHEN,
        "evidence": ["seen"],
        "alternatives": [],
    }
    table = pl.DataFrame([defaults | row for row in rows], infer_schema_length=None)
    return schema.conform(table, schema.BREAKS)


def operations(table, spans=100):
    return (
        table.select("service_name", "span_name")
        .unique()
        .with_columns(pl.lit(spans, pl.Int64).alias("spans"))
    )


def test_breaks_of_one_place_and_cause_become_one_finding_with_its_share():
    table = breaks([{"break_id": f"b{i}", "span_id": f"{i:016x}"} for i in range(25)])
    (finding,) = group_breaks(table, operations(table))
    assert (finding.count, finding.denominator, finding.rate) == (25, 100, 0.25)
    # Wilson's interval of 25 in 100, computed by hand.
    assert finding.rate_low == pytest.approx(0.1755, abs=5e-4)
    assert finding.rate_high == pytest.approx(0.3430, abs=5e-4)
    assert len(finding.exemplars) == 10


def test_a_finding_keeps_its_id_when_only_counts_and_order_change():
    few = breaks([{"break_id": "b1"}])
    many = breaks([{"break_id": f"b{i}"} for i in range(7)]).reverse()
    assert (
        group_breaks(few, operations(few))[0].finding_id
        == group_breaks(many, operations(many))[0].finding_id
    )


def test_spans_that_a_second_pipeline_delivered_are_one_finding_of_their_service():
    twice = {"kind": "duplicate_span_id", "cause": "duplicate_export"}
    table = breaks(
        [twice | {"break_id": f"b{n}", "span_name": f"GET /{n % 3}"} for n in range(30)]
        + [twice | {"break_id": "b99", "service_name": "bank", "cause": "unknown"}]
    )
    found = group_breaks(table, operations(table))
    assert [(each.operation, each.count, each.denominator) for each in found] == [
        (None, 30, 300),
        ("GET /", 1, 100),
    ]
    assert found[0].title.startswith("30 spans of shop: ")


def test_errors_come_before_warnings_before_information():
    table = breaks(
        [
            {"severity": "info", "kind": "late_child"},
            {"severity": "error", "kind": "detached_root", "cause": "context_not_propagated"},
            {"severity": "warning"},
        ]
    )
    found = group_breaks(table, operations(table))
    assert [finding.severity for finding in found] == ["error", "warning", "info"]


def test_context_lost_between_threads_is_answered_with_advice_on_threads():
    table = breaks([{"cause": "context_not_propagated", "boundary": "thread"}])
    assert "executor" in group_breaks(table, operations(table))[0].advice


def test_findings_stay_small_whatever_the_capture():
    table = breaks(
        [
            {"span_name": f"op{i} " + "n" * 500, "break_id": f"b{i}", "evidence": ["e" * 500] * 9}
            for i in range(3000)
        ]
    )
    found = group_breaks(table, operations(table))
    assert len(found) == MAX_FINDINGS
    assert len(render_findings_json(found, summary={}, provenance={})) < 5_000_000


def test_a_complete_error_record_makes_no_finding_and_each_missing_part_makes_one():
    row = {
        "trace_id": "a",
        "span_id": "b",
        "time": WHEN,
        "service_name": "shop",
        "status_ok": True,
        "exception_ok": True,
        "stacktrace_ok": True,
        "error_type_ok": True,
    }
    parts = ["status_ok", "exception_ok", "stacktrace_ok", "error_type_ok"]

    def found(**change):
        return group_audit(schema.conform(pl.DataFrame([row | change]), schema.ERROR_AUDIT))

    assert found() == []
    for part in parts:
        assert len(found(**{part: False})) == 1


def test_hops_without_loss_make_no_finding():
    row = {"error_id": "e", "hop": 0, "verdict": "kept", "child_service": "a", "confidence": 1.0}
    table = schema.conform(pl.DataFrame([row]), schema.ERROR_HOPS)
    assert group_error_hops(table) == []
    lost = table.with_columns(pl.lit("swallowed").alias("verdict"))
    assert [finding.kind for finding in group_error_hops(lost)] == ["swallowed"]


def test_a_table_without_its_columns_is_refused():
    with pytest.raises(SchemaError, match="lacks break_id"):
        group_breaks(pl.DataFrame({"kind": []}), pl.DataFrame())


@pytest.fixture(params=HOSTILE)
def hostile(request):
    table = breaks(
        [
            {
                "service_name": request.param,
                "span_name": request.param,
                "from_service": request.param,
                "to_service": "x",
                "trace_id": request.param,
                "evidence": [request.param],
            }
        ]
    )
    return group_breaks(table, operations(table))


def test_hostile_names_stay_text_in_the_report(hostile):
    page = render_report(hostile, summary={"text": [hostile[0].title]}, provenance={})
    body = page.split("</style>")[1]
    assert "<script" not in body
    assert "<img" not in body
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_hostile_names_open_no_link_image_or_tag_in_markdown(hostile):
    text = render_markdown(hostile, summary={"text": [hostile[0].title]})
    assert "\x1b" not in text
    text = re.sub(r"(?<!\\)`[^`]*`", "", text)  # a code span is shown as it is
    assert not re.search(r"<[a-zA-Z/!]", text)
    assert not re.search(r"(?<!\\)\]\(", text)


def test_hostile_names_keep_the_document_valid(hostile):
    summary = {"traces": 1, "spans": 1, "services": [], "breaks": {}, "text": []}
    provenance = {"sources": [], "versions": {}, "parameters": {}}
    text = render_findings_json(hostile, summary=summary, provenance=provenance)
    jsonschema_rs.validator_for(read_json_schema()).validate(json.loads(text))


def test_the_policy_of_the_report_names_exactly_its_own_scripts():
    page = render_report(
        [], summary={"text": []}, provenance={}, pictures=[Picture("a picture", '{"data": []}')]
    )
    policy = re.search(r'content="(default-src[^"]+)"', page)[1].replace("&#39;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(scripts) == 2
    assert re.findall(r"sha256-([^']+)'", policy) == hashes
    assert "default-src 'none'" in policy


def test_a_figure_cannot_close_its_data_block():
    spec = json.dumps({"data": [{"name": "</script><script>alert(1)</script>"}]})
    page = render_report([], summary={}, provenance={}, pictures=[Picture("p", spec)])
    block = re.search(r'class="figure"[^>]*>(.*?)</script>', page, flags=re.DOTALL)[1]
    assert json.loads(block)["data"][0]["name"].startswith("</script>")


def test_the_report_carries_the_plotly_that_the_figures_are_made_for():
    from importlib import resources

    from plotly.offline import get_plotlyjs_version

    assets = resources.files("tracelab.export").joinpath("assets")
    built = re.search(r"plotly\.js@([0-9.]+)", assets.joinpath("build_plotly.sh").read_text())[1]
    assert built == get_plotlyjs_version()
    assert f'"{built}"' in assets.joinpath("plotly.min.js").read_text()
