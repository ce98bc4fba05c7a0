"""The whole way: a capture in, findings, tables, rules and a report out."""

import json

import jsonschema_rs
import polars as pl
import pytest

import tracelab as tl
from tracelab import engine, schema
from tracelab.exceptions import ParameterError
from tracelab.export.document import read_json_schema
from tracelab.io.write_otlp import write_otlp

FILES = {
    "findings.json",
    "manifest.json",
    "findings.md",
    "report.html",
    "breaks.parquet",
    "error_hops.parquet",
    "exceptions.parquet",
    "lead_lags.parquet",
    "red.parquet",
    "integrity.parquet",
    "rules/prometheus-rules.yml",
    "rules/prometheus-rules.test.yml",
    "rules/grafana-dashboard.json",
}


@pytest.fixture(scope="module")
def sample():
    return tl.load_example("checkout")


@pytest.fixture(scope="module")
def case(sample):
    return tl.investigate(sample)


def written(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_sample_yields_a_lost_context_with_its_probable_caller(case):
    found = [f for f in case.findings if f.kind == "detached_root" and f.severity == "error"]
    assert {f.boundary for f in found} >= {"thread"}
    assert all(f.exemplars[0]["proposed_span_id"] for f in found)


def test_all_promised_files_are_written_and_no_others(case, tmp_path):
    case.write(tmp_path)
    assert written(tmp_path) == FILES


def test_findings_document_is_valid_against_the_shipped_schema(case, tmp_path):
    case.write(tmp_path)
    document = json.loads((tmp_path / "findings.json").read_text())
    jsonschema_rs.validator_for(read_json_schema()).validate(document)
    assert document["findings"]


def test_the_same_capture_gives_the_same_bytes(sample, tmp_path):
    for name in ("a", "b"):
        tl.investigate(sample).write(tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_written_tables_carry_their_public_columns(case, tmp_path):
    case.write(tmp_path)
    for name, wanted in (("breaks", schema.BREAKS), ("error_hops", schema.ERROR_HOPS)):
        assert pl.read_parquet_schema(tmp_path / f"{name}.parquet") == wanted


def test_a_store_gives_the_findings_of_the_capture_in_memory(sample, tmp_path):
    source = tmp_path / "capture.jsonl"
    write_otlp(sample, source)
    store = tl.TraceStore(tmp_path / "store")
    store.ingest(source)
    ours = tl.investigate(store)
    theirs = tl.investigate(tl.read_traces(source))
    assert ours.breaks.equals(theirs.breaks)
    assert ours.integrity.equals(theirs.integrity)
    keys = ["error_id", "hop", "child_span_id"]
    assert ours.error_hops.sort(keys).equals(theirs.error_hops.sort(keys))
    assert [f.finding_id for f in ours.findings] == [f.finding_id for f in theirs.findings]


def test_buckets_taken_in_pieces_give_the_same_findings(sample, tmp_path, monkeypatch):
    source = tmp_path / "capture.jsonl"
    write_otlp(sample, source)
    store = tl.TraceStore(tmp_path / "store")
    store.ingest(source)
    tl.investigate(store, workers=1).write(tmp_path / "whole")
    monkeypatch.setattr(engine, "_PIECE_SPANS", 25)
    tl.investigate(store, workers=1).write(tmp_path / "pieces")
    for name in FILES:
        whole, pieces = (tmp_path / folder / name for folder in ("whole", "pieces"))
        assert whole.read_bytes() == pieces.read_bytes(), name


def test_an_empty_capture_is_investigated_without_findings(tmp_path):
    case = tl.investigate(tl.TraceSet(schema.empty(schema.SPANS)))
    assert case.findings == ()
    case.write(tmp_path)
    assert written(tmp_path) == FILES
    assert "No span was read" in (tmp_path / "findings.md").read_text()


def test_an_engine_for_a_capture_in_memory_is_refused(sample):
    with pytest.raises(ParameterError, match="works on stores only"):
        tl.investigate(sample, engine="dask")


def test_an_unknown_choice_of_pairs_says_what_to_choose(sample):
    with pytest.raises(ParameterError, match="choose neighbours or all"):
        tl.investigate(sample, pairs="some")


def test_reprs_fit_one_screen(case):
    assert len(repr(case).splitlines()) <= 20
    assert "<script" not in case._repr_html_()
    assert len(repr(case.findings[0]).splitlines()) <= 4


def test_breaks_need_no_column_that_the_first_pass_leaves_in_the_store():
    from tracelab.structure import BREAK_COLUMNS

    traces, _ = tl.inject_breaks(tl.synthesize_traces(seed=5, traces=400), seed=5)
    blank = [
        pl.lit(None, dtype).alias(name)
        for name, dtype in schema.SPANS.items()
        if name not in BREAK_COLUMNS
    ]
    without = traces.with_tables(spans=traces.spans.with_columns(blank))
    assert tl.find_breaks(without).equals(tl.find_breaks(traces))
    assert tl.span_edges(without).equals(tl.span_edges(traces))
