"""The notebooks: as they are kept, and as they run from a clean kernel."""

import ast
import json
import os

import pytest
from conftest import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
FOREIGN = (
    "jaegertracing-jaeger-ui__v3_getTrace-response.json",
    "delimitrou-DeathStarBench__socialnetwork_traces-1695947455229.json",
    "xtergo-robotframework-trace-report__diverse_trace.jsonl",
    "smithclay-duckdb-otlp__malformed.jsonl",
    "open-telemetry-opentelemetry-java__expected-spans-wrapper.json",
    "smithclay-duckdb-otlp__otlp_traces.pb",
    "grafana-tempo__tempopb_trace.json",
)


def cells(name):
    return json.loads((FOLDER / name).read_text("utf-8"))["cells"]


def code_cells(name):
    return ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"]


def test_there_are_seven_in_reading_order():
    assert [name[:2] for name in NOTEBOOKS] == [f"{number:02d}" for number in range(7)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_short_and_without_output(name):
    kept = cells(name)
    assert len(kept) <= 15
    assert kept[0]["metadata"]["tags"] == ["parameters"]
    for cell in kept:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_defines_nothing_and_names_only_public_things(name):
    import tracelab as tl
    from tracelab import plots

    for source in code_cells(name):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "tl":
                    assert node.attr in tl.__all__
                if node.value.id == "plots":
                    assert node.attr in plots.__all__


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_names_a_kernel_that_is_there(name):
    metadata = json.loads((FOLDER / name).read_text("utf-8"))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"


def run(name, *, parameters=None):
    """Run a notebook in a kernel of its own, warnings shown; return it."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    if parameters is not None:
        notebook.cells[0].source = parameters
    environment = os.environ | {"PYTHONWARNINGS": "always", "POLARS_MAX_THREADS": "2"}
    client = nbclient.NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute(env=environment)
    return notebook


def outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def forms(notebook):
    return {form for output in outputs(notebook) for form in output.get("data", {})}


def said_on_stderr(notebook):
    return [o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr"]


@pytest.mark.notebook
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_a_clean_kernel_and_says_no_warning(name):
    notebook = run(name)
    assert said_on_stderr(notebook) == []
    assert "application/vnd.plotly.v1+json" in forms(notebook)


@pytest.mark.notebook
def test_figures_carry_a_form_that_needs_neither_kernel_nor_network():
    notebook = run("00_tour.ipynb")
    pages = [o["data"]["text/html"] for o in outputs(notebook) if "text/html" in o.get("data", {})]
    drawn = [page for page in pages if "Plotly.newPlot(" in page]
    assert len(drawn) >= 4
    assert sum("PlotlyBundle" in page for page in drawn) == 1
    assert not any("src=" in page.split("<script>")[0] for page in drawn)


@pytest.mark.notebook
@pytest.mark.parametrize("source", FOREIGN)
def test_your_own_export_runs_on_what_others_wrote(source, shared_data):
    notebook = run("06_your_own_export.ipynb", parameters=f"export = {str(shared_data / source)!r}")
    assert said_on_stderr(notebook) == []


@pytest.mark.notebook
def test_your_own_export_runs_on_an_empty_capture(tmp_path, monkeypatch):
    (tmp_path / "empty.jsonl").write_text('{"resourceSpans":[]}\n')
    monkeypatch.setenv("TRACELAB_EXPORT", str(tmp_path / "empty.jsonl"))
    notebook = run("06_your_own_export.ipynb")
    assert said_on_stderr(notebook) == []
    text = json.dumps(notebook)
    assert "0 traces, 0 spans" in text
