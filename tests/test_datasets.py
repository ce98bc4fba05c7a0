import hashlib
import re
import tomllib
from pathlib import Path

import polars as pl
import pytest

import tracelab as tl
from tracelab import datasets
from tracelab.datasets import EXAMPLES, find_example
from tracelab.exceptions import ParameterError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkout():
    return tl.load_example("checkout")


def test_example_holds_what_its_readme_says(checkout):
    text = (find_example("checkout") / "README.md").read_text()
    traces, spans = re.search(r"([\d,]+) traces, ([\d,]+) spans", text).groups()
    assert checkout.n_traces == int(traces.replace(",", ""))
    assert checkout.spans.height == int(spans.replace(",", ""))
    assert checkout.rejects.height == 0


def test_example_is_the_file_that_its_digest_names():
    folder = ROOT / "data" / "checkout"
    digest, name = (folder / "SHA256SUMS").read_text().split()
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert (folder / name).stat().st_size < 1_000_000


def test_breaks_built_into_the_example_are_there_for_plain_eyes(checkout):
    spans = checkout.spans
    rows = dict(re.findall(r"`(compute discount|mail process|score card)`.*\| (\d+) \|", _readme()))
    roots = spans.filter(pl.col("parent_span_id").is_null())
    orphans = spans.filter(pl.col("parent_span_id").is_not_null()).join(
        spans.select("trace_id", parent_span_id="span_id"),
        on=["trace_id", "parent_span_id"],
        how="anti",
    )
    assert (roots["name"] == "compute discount").sum() == int(rows["compute discount"])
    assert (roots["name"] == "mail process").sum() == int(rows["mail process"])
    assert orphans["name"].to_list() == ["score card"] * int(rows["score card"])


def _readme() -> str:
    return (find_example("checkout") / "README.md").read_text()


def test_unknown_example_names_those_that_exist():
    with pytest.raises(ParameterError, match=", ".join(EXAMPLES)):
        tl.load_example("nothing")


def test_wheel_is_told_to_carry_every_example():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    carried = build["targets"]["wheel"]["force-include"]
    for name in EXAMPLES:
        inside = f"tracelab/_examples/{name}/traces.jsonl"
        assert carried[f"data/{name}/traces.jsonl"] == inside
        assert (ROOT / "data" / name / "traces.jsonl").is_file()


def test_example_is_found_inside_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "_examples" / "checkout").mkdir(parents=True)
    monkeypatch.setattr(datasets, "_PACKAGED", tmp_path / "_examples")
    assert find_example("checkout") == tmp_path / "_examples" / "checkout"
