"""The house rules: floors and fences, lazy imports, requirement files that agree."""

import importlib.util
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT

import tracelab


def test_imports_only_point_down_and_fences_hold():
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("heavy", ["plotly", "dask", "distributed", "jupyterlab", "scipy.stats"])
def test_importing_tracelab_does_not_load(heavy):
    code = f"import sys, tracelab; print({heavy!r} in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_every_public_name_resolves_and_is_listed():
    for name in tracelab.__all__:
        assert getattr(tracelab, name) is not None
        assert name in dir(tracelab)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = tracelab.no_such_name


def test_environment_file_holds_the_requirements_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        *project["dependencies"],
        *extras["notebook"],
        *extras["dask"],
        *extras["objects"],
        *extras["test"],
    }
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert set(pip) - {"-e ."} == wanted
    assert f"python{project['requires-python']}" in environment["dependencies"]


def test_the_version_is_the_newest_heading_of_the_changelog():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    headings = [
        line.split()[1]
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    assert headings[0] == project["version"] == tracelab.__version__


def test_readme_shows_exactly_two_set_up_commands():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("python3 -m venv") == 2


def test_no_public_function_is_hidden_by_a_module_of_its_name():
    modules = {path.stem for path in (ROOT / "tracelab").iterdir()}
    assert not modules & set(tracelab._HOME)


def test_the_api_reference_is_made_of_the_docstrings_as_they_are():
    spec = importlib.util.spec_from_file_location("build_api", ROOT / "docs" / "build_api.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    assert builder.PAGE.read_text(encoding="utf-8") == builder.render(), (
        "run `python docs/build_api.py`"
    )
