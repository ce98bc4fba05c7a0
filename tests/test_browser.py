"""Pages and notebooks in a real browser, without a network."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from building import Capture, trace_id
from conftest import ROOT

import tracelab as tl
from tracelab import plots
from tracelab.plots.notebook import OfflineRenderer
from tracelab.plots.script import plotly_script, script_json

pytestmark = pytest.mark.browser

HOSTILE = (
    "<img src=x onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    "<b onmouseover=window.pwned=1>'\"&amp;&lt;i&gt;",
    "\x00\x07\x1b[31mred",
    "\u202egnirts desrever\u202c עברית",
    "long " * 2000,
    "$\\href{javascript:window.pwned=1}{x}$",
)


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine; install the package chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, and what it complained about and asked for."""

    def __init__(
        self, browser, url, *, allow=lambda url: url.startswith(("file:", "data:", "blob:"))
    ):
        self.complaints, self.strangers = [], []
        self.page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: None if allow(r.url) else self.strangers.append(r.url))
        self.page.goto(url)

    def _hear(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def assert_quiet(self):
        assert self.complaints == []
        assert self.strangers == []
        assert self.page.evaluate("window.pwned") is None


@pytest.fixture(scope="module")
def sample():
    traces = tl.load_example()
    return traces, tl.investigate(traces)


@pytest.fixture(scope="module")
def hostile():
    capture = Capture()
    for number, text in enumerate(HOSTILE):
        capture.span(number, 1, name=text, service=f"shop {text}", kind="CLIENT", duration=50)
        capture.span(
            number, 2, 1, name=text, service=f"bank {text}", kind="SERVER", start=5, duration=20,
            status_code="ERROR", status_message=text,
        )  # fmt: skip
        capture.span(number, 3, 99, name=text, service=f"bank {text}", start=6)
    return capture.traces()


def test_the_report_of_the_sample_opens_offline_with_all_figures(chromium, sample, tmp_path):
    sample[1].write(tmp_path)
    visit = Visit(chromium, (tmp_path / "report.html").as_uri())
    wanted = visit.page.locator("script.figure").count()
    visit.page.wait_for_selector(".js-plotly-plot .main-svg")
    assert wanted >= 4
    assert visit.page.locator(".js-plotly-plot:has(.main-svg)").count() == wanted
    assert "compute discount" in visit.page.inner_text("body")
    visit.assert_quiet()


def test_hostile_names_stay_text_in_the_report(chromium, hostile, tmp_path):
    tl.investigate(hostile).write(tmp_path)
    visit = Visit(chromium, (tmp_path / "report.html").as_uri())
    visit.page.wait_for_selector(".js-plotly-plot .main-svg")
    assert "<img src=x onerror=window.pwned=1>" in visit.page.inner_text("body")
    assert visit.page.locator("img[src=x]").count() == 0
    visit.assert_quiet()


def page_of(tmp_path, body):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><meta charset='utf-8'><body>{body}</body>", encoding="utf-8")
    return path.as_uri()


def test_every_figure_takes_hostile_names_without_harm(chromium, hostile, tmp_path):
    breaks = tl.find_breaks(hostile)
    hops = tl.find_error_hops(hostile)
    figures = [plots.waterfall(hostile, trace_id(number), breaks=breaks) for number in range(7)]
    figures += [
        plots.span_graph(hostile, trace_id(0), breaks=breaks),
        plots.service_map(tl.span_edges(hostile), breaks),
        plots.break_matrix(breaks, include_info=True),
        plots.cohorts(tl.break_cohorts(hostile, breaks)),
        plots.error_flow(hops),
        plots.chain_ledger(hops, hops["error_id"][0]),
        plots.integrity_timeline(tl.chain_integrity(hostile, hops=hops)),
    ]
    renderer = OfflineRenderer()
    body = "".join(renderer.to_mimebundle(figure.to_dict())["text/html"] for figure in figures)
    visit = Visit(chromium, page_of(tmp_path, body))
    visit.page.wait_for_timeout(500)
    assert visit.page.locator(".js-plotly-plot:has(.main-svg)").count() == len(figures)
    assert visit.page.locator("img[src=x]").count() == 0
    visit.assert_quiet()


def test_the_static_explorer_filters_draws_and_copies_by_click(chromium, sample, tmp_path):
    traces, case = sample
    body = plots.explorer(traces, case.breaks, error_hops=case.error_hops)._repr_html_()
    visit = Visit(chromium, page_of(tmp_path, body))
    explorer = visit.page.locator(".tracelab-explorer")
    before = explorer.locator("tbody tr").count()
    explorer.locator("select[data-field=kind]").select_option("detached_root")
    assert 0 < explorer.locator("tbody tr").count() < before
    assert set(explorer.locator("tbody tr td:nth-child(2)").all_inner_texts()) == {"detached_root"}
    explorer.locator("tbody tr").first.click()
    visit.page.wait_for_selector(".drawing .main-svg")
    shown = explorer.locator("tbody tr").first.locator("button.id").first
    visit.page.evaluate(
        "document.addEventListener('copy', () => { window.taken = document.activeElement.value; })"
    )
    shown.click()
    visit.page.wait_for_selector("button.id.copied")
    assert visit.page.evaluate("window.taken") == shown.inner_text()
    assert shown.inner_text() in explorer.locator(".drawing .gtitle").text_content()
    visit.assert_quiet()


def test_the_explorer_keeps_hostile_names_text(chromium, hostile, tmp_path):
    breaks = tl.find_breaks(hostile)
    body = plots.explorer(hostile, breaks, error_hops=tl.find_error_hops(hostile))._repr_html_()
    visit = Visit(chromium, page_of(tmp_path, body))
    assert visit.page.locator(".tracelab-explorer tbody tr").count() >= len(HOSTILE)
    visit.page.locator(".tracelab-explorer tbody tr").first.click()
    visit.page.wait_for_selector(".drawing .main-svg")
    visit.assert_quiet()


def test_a_waterfall_of_5000_spans_is_drawn_in_under_three_seconds(chromium, tmp_path):
    capture = Capture()
    capture.span(1, 1, duration=6000, service="s0")
    for number in range(2, 5001):
        capture.span(1, number, number // 2, start=number, duration=20, service=f"s{number % 7}")
    figure = plots.waterfall(capture.traces(), trace_id(1))
    body = (
        f"{plotly_script()}<div id='here'></div><script>const spec={script_json(figure.to_json())};"
        "const began=performance.now();Plotly.newPlot('here',spec.data,spec.layout).then(()=>"
        "{window.took=performance.now()-began;});</script>"
    )
    visit = Visit(chromium, page_of(tmp_path, body))
    visit.page.wait_for_function("window.took !== undefined")
    took = visit.page.evaluate("window.took")
    assert visit.page.locator("#here .bars .point").count() == 5000
    assert took < 3000, f"{took:.0f} ms"


def test_a_notebook_exported_as_a_page_still_shows_its_figures(chromium, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    nbconvert = pytest.importorskip("nbconvert")
    notebook = nbformat.read(ROOT / "notebooks" / "00_tour.ipynb", as_version=4)
    folder = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=240, resources=folder).execute()
    html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    page = tmp_path / "tour.html"
    page.write_text(html, encoding="utf-8")
    context = chromium.new_context(offline=True)
    visited = context.new_page()
    visited.goto(page.as_uri(), wait_until="commit")
    visited.wait_for_selector(".tracelab-explorer tbody tr", timeout=60_000)
    assert visited.locator(".js-plotly-plot:has(.main-svg)").count() >= 4
    visited.locator(".tracelab-explorer tbody tr").first.click()
    visited.wait_for_selector(".drawing .main-svg")


@pytest.fixture
def lab(tmp_path):
    """Start JupyterLab as `tracelab lab` does, on a copy, so that no output is left here."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    shutil.copytree(ROOT / "notebooks", tmp_path / "work" / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTER_TOKEN": "sesame",
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "share"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    began = time.monotonic()
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            [
                sys.executable, "-c", "from tracelab.cli import main; main()", "lab",
                "--dir", str(tmp_path / "work" / "notebooks"), "--port", str(port), "--no-browser",
            ],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(240):
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}", began
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def test_jupyterlab_runs_the_tour_and_shows_its_figures(chromium, lab):
    address, began = lab
    page = chromium.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(f"{address}/lab/tree/notebooks/00_tour.ipynb?token=sesame")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    # Cells that are sent before the kernel is there are not run.
    page.get_by_text(re.compile(r"\| Idle")).first.wait_for(timeout=60_000)
    page.get_by_text("Run", exact=True).first.click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=120_000)
    first_figure_s = time.monotonic() - began
    # The static twin is there first, and gives way to the widget.
    widget = ".tracelab-explorer:not(.tracelab-here *)"
    page.wait_for_selector(f"{widget} tbody tr", timeout=120_000)
    assert page.locator(".tracelab-here .tracelab-explorer:visible").count() == 0
    assert page.locator("[data-mime-type*=error], [data-mime-type*=stderr]").count() == 0
    assert page.locator(".js-plotly-plot:has(.main-svg)").count() >= 4
    assert first_figure_s < 60
    explorer = page.locator(widget)
    explorer.scroll_into_view_if_needed()
    explorer.locator("select[data-field=kind]").select_option("late_child")
    explorer.locator("tbody tr").first.click()
    page.wait_for_selector(f"{widget} .drawing .main-svg", timeout=30_000)
    bar = page.locator(".jp-OutputArea-output .js-plotly-plot .barlayer .point path").first
    bar.scroll_into_view_if_needed()
    bar.hover(force=True)
    page.wait_for_selector(".hoverlayer .hovertext", timeout=10_000)
    assert re.search("[0-9a-f]{16}", page.locator(".hoverlayer .hovertext").first.text_content())


def test_hostile_texts_in_every_field_stay_text_wherever_they_are_shown(chromium, tmp_path):
    """A few of those that benchmarks/payloads.py shows by the hundred."""
    import payloads

    assert payloads.visit(chromium, payloads.unguarded(tmp_path)) != []
    texts = payloads.payloads(380)
    some = [*texts[:: len(texts) // 6], *payloads.PLAIN[:4]]
    wrong, _ = payloads.try_batch(chromium, some, tmp_path / "work", set())
    assert wrong == []
