"""The page of verdict words, the lab command, and what objects show of themselves."""

import importlib.util

import pytest
from building import Capture
from conftest import ROOT

import tracelab as tl
from tracelab import schema
from tracelab.cli import run

PAGE = (ROOT / "docs" / "verdicts.md").read_text("utf-8")


@pytest.mark.parametrize(
    "word",
    [*schema.BREAK_KINDS, *schema.BREAK_CAUSES, *schema.BOUNDARIES, *schema.HOP_VERDICTS],
)
def test_every_verdict_word_is_explained(word):
    assert f"`{word}`" in PAGE


@pytest.mark.parametrize("word", [*schema.BREAK_KINDS, *schema.HOP_VERDICTS])
def test_every_kind_and_fate_has_a_picture_and_an_advice(word):
    section = PAGE.split(f"### `{word}`\n")[1].split("###")[0]
    assert "```text" in section
    assert "What to do: " in section


def test_lab_without_a_folder_of_notebooks_says_what_to_do(tmp_path, capsys):
    assert run(["lab", "--dir", str(tmp_path / "nowhere")]) == 2
    assert "--dir" in capsys.readouterr().err


def test_lab_without_jupyterlab_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(["lab"]) == 2
    assert 'pip install "tracelab[notebook]"' in capsys.readouterr().err


def test_a_capture_shows_its_tables_and_hostile_services_stay_text():
    shown = Capture().span(1, 1, service="<img src=x>").traces()._repr_html_()
    assert "<img" not in shown
    assert "&lt;img src=x&gt;" in shown
    assert "<td style='text-align:left'>spans</td><td style='text-align:left'>1</td>" in shown


def test_an_empty_capture_shows_itself():
    empty = tl.TraceSet(spans=schema.empty(schema.SPANS))
    assert "0 traces" in empty._repr_html_()
