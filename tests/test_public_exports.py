"""Exports of public projects: the counts that their index states."""

import tarfile

import pytest

import tracelab as tl
from tracelab.exceptions import UnknownFormatError

# file, form, traces, spans decoded, spans kept, rejects
EXPECTED = [
    ("xtergo-robotframework-trace-report__otel-traces.jsonl", "otlp-json-lines", 168, 1066, 1066, 0),
    ("xtergo-robotframework-trace-report__diverse_trace.jsonl", "otlp-json-lines", 1, 1632, 1632, 0),
    ("xtergo-robotframework-trace-report__simple_trace.jsonl", "otlp-json-lines", 1, 4, 4, 0),
    ("xtergo-robotframework-trace-report__all_types_trace.jsonl", "otlp-json-lines", 1, 11, 11, 0),
    ("jaegertracing-jaeger-ui__v3_getTrace-response.json", "jaeger-v3-json", 1, 40, 40, 0),
    ("open-telemetry-opentelemetry-proto__examples_trace.json", "otlp-json", 1, 1, 1, 0),
    ("grafana-tempo__tempopb_trace.json", "tempo-json", 1, 1, 1, 0),
    ("open-telemetry-opentelemetry-java__expected-spans.json", "otlp-json-bare", 2, 2, 2, 0),
    ("open-telemetry-opentelemetry-java__expected-spans-wrapper.json", "otlp-json", 2, 2, 2, 0),
    ("smithclay-duckdb-otlp__traces_simple.jsonl", "otlp-json-lines", 1, 3, 3, 0),
    ("smithclay-duckdb-otlp__traces_nulls.jsonl", "otlp-json-lines", 3, 3, 3, 0),
    ("smithclay-duckdb-otlp__traces_large_attrs.jsonl", "otlp-json-lines", 1, 1, 1, 0),
    ("smithclay-duckdb-otlp__traces_deep_nesting.jsonl", "otlp-json-lines", 1, 1, 1, 0),
    ("smithclay-duckdb-otlp__malformed.jsonl", "otlp-json-lines", 1, 1, 1, 3),
    ("smithclay-duckdb-otlp__otlp_traces.pb", "otlp-proto", 1, 1, 1, 0),
    ("smithclay-otlp2records__sample_otlp_traces.json", "otlp-json", 1, 1, 1, 0),
    ("delimitrou-DeathStarBench__socialnetwork_traces-1695947455229.json", "jaeger-json", 20, 660, 660, 0),
    ("Sachin-A-TraceWeaver__hotel_load25.json.zst", "jaeger-json", 1000, 11000, 11000, 0),
    ("Sachin-A-TraceWeaver__hotel_load150.json.zst", "jaeger-json", 1000, 11000, 11000, 0),
    ("Sachin-A-TraceWeaver__node_load25.json.zst", "jaeger-json", 1000, 6000, 6000, 0),
]  # fmt: skip

FOREIGN = {
    "IntelligentDDS-Nezha__2022-08-22_trace.csv.zst": "CSV",
    "IntelligentDDS-Nezha__2022-08-22_front_service_metric.csv": "CSV",
    "IntelligentDDS-Nezha__2022-08-22_fault_list.json": "a JSON object with the keys 03, 04",
    "GoogleCloudPlatform-fluent-plugin-detect-exceptions__stacktraces.txt": "plain text",
    "generated-here__stacktraces_node20_py311_java17.txt": "plain text",
    "DataDog-gostackparse__test-fixtures.tar.xz": "xz data",
    "INDEX.md": "plain text",
}


@pytest.mark.parametrize(
    ("name", "form", "n_traces", "decoded", "kept", "rejects"),
    EXPECTED,
    ids=[e[0] for e in EXPECTED],
)
def test_a_public_export_gives_the_counts_of_its_index(
    shared_data, name, form, n_traces, decoded, kept, rejects
):
    traces = tl.read_traces(shared_data / name)
    row = traces.ingest.row(0, named=True)
    assert (row["form"], traces.n_traces, row["spans_decoded"], traces.spans.height) == (
        form, n_traces, decoded, kept,
    )  # fmt: skip
    assert traces.rejects.height == rejects
    assert row["messages"] == row["messages_good"] + row["messages_rejected"]
    assert row["spans_decoded"] == row["spans_kept"] + row["spans_duplicate"]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_public_file_that_is_no_export_is_named(shared_data, name):
    with pytest.raises(UnknownFormatError, match=FOREIGN[name]):
        tl.read_traces(shared_data / name)


@pytest.fixture(scope="module")
def unpacked(shared_data, tmp_path_factory):
    def unpack(name):
        target = tmp_path_factory.mktemp(name[:10])
        with tarfile.open(shared_data / name) as archive:
            archive.extractall(target, filter="data")
        return target

    return unpack


def read_each(folder):
    """Read every file on its own: ids of different fixtures collide."""
    found, foreign = [], []
    for path in sorted(folder.rglob("*.json")):
        try:
            found.append(tl.read_traces(path))
        except UnknownFormatError:
            foreign.append(path.name)
    return found, foreign


def test_jaegers_fixtures_give_their_spans_and_the_storage_rows_are_named(unpacked):
    found, foreign = read_each(unpacked("jaegertracing-jaeger__fixtures.tar.xz"))
    assert len(found) == 42
    assert sum(traces.ingest["spans_decoded"].sum() for traces in found) == 59
    assert all(traces.rejects.height == 0 for traces in found)
    assert sorted(foreign) == [
        "FindTraceSummaries.json", "GetOperations.json", "GetServices.json", "cas_01.json",
        "domain_01.json", "domain_es_01.json", "es_01.json", "es_01.json",
        "es_01_string_tags.json", "ui-config-hotreload.json", "ui-config-malformed.json",
        "ui-config-menu.json", "ui-config.json",
    ]  # fmt: skip


def test_a_folder_of_fixtures_tells_what_it_passed_over(unpacked):
    traces = tl.read_traces(unpacked("jaegertracing-jaeger__fixtures.tar.xz"))
    assert traces.ingest["spans_decoded"].sum() == 59
    assert traces.rejects.height == 13
    assert all(reason.startswith("file passed over") for reason in traces.rejects["reason"])


def test_hand_made_jaeger_traces_keep_their_letters_as_ids(unpacked):
    found, foreign = read_each(unpacked("uber-research-CRISP__test_cases.tar.xz"))
    assert (len(found), foreign) == (33, [])
    assert sum(traces.n_traces for traces in found) == 33
    assert sum(traces.ingest["spans_decoded"].sum() for traces in found) == 134


def test_skew_warnings_of_jaeger_survive(shared_data):
    spans = tl.read_traces(shared_data / "Sachin-A-TraceWeaver__hotel_load25.json.zst").spans
    told = spans["attributes"].str.contains("not applying calculated delta", literal=True)
    assert told.sum() == 2607


def test_ids_of_public_exports_have_full_length(shared_data):
    spans = tl.read_traces(shared_data / "Sachin-A-TraceWeaver__node_load25.json.zst").spans
    assert spans["trace_id"].str.len_bytes().unique().to_list() == [32]
    assert spans["span_id"].str.len_bytes().unique().to_list() == [16]


def test_a_bare_resource_reads_like_the_wrapped_one(shared_data):
    name = "open-telemetry-opentelemetry-java__expected-spans"
    bare, wrapped = (tl.read_traces(shared_data / f"{name}{end}.json") for end in ("", "-wrapper"))
    assert bare.spans.drop("source").equals(wrapped.spans.drop("source"))
    assert bare.events.equals(wrapped.events)
