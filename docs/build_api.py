"""Write docs/api.md from the docstrings: ``python docs/build_api.py``."""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import tracelab as tl

PAGE = Path(__file__).with_name("api.md")
HEAD = """# API

What `import tracelab as tl` offers, from the docstrings by `python docs/build_api.py`. Figures
stand in `tl.plots`, table schemas in `tl.schema`, the simulator in `tl.synth`.
"""


def signature(value: Any) -> str:
    """Say how a thing is called, types left to the parameters below."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    return str(inspect.Signature(plain))


def entry(name: str, value: Any) -> str:
    """Write one function or class with its public methods."""
    text = textwrap.dedent(inspect.getdoc(value) or "").strip()
    lines = [f"## {name}", "", f"```python\n{name}{signature(value)}\n```", "", sections(text)]
    if inspect.isclass(value):
        for member, method in sorted(vars(value).items()):
            function = getattr(method, "__func__", method)
            if not member.startswith("_") and inspect.isfunction(function):
                first = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
                lines.append(f"- `{member}{signature(function)}`: {first}")
        lines.append("")
    return "\n".join(lines)


def sections(text: str) -> str:
    """Turn the underlined headings of numpydoc into bold ones, their bodies into code."""
    parts = re.split(r"^(\w+)\n-{3,}\n", text, flags=re.MULTILINE)
    written = [parts[0].strip(), ""]
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        written += [f"**{heading}**", "", f"```text\n{body.strip()}\n```", ""]
    return "\n".join(written)


def render() -> str:
    """Write the whole page."""
    names = [name for name in tl.__all__ if not inspect.ismodule(getattr(tl, name))]
    figures = sorted(tl.plots.__all__)
    index = " · ".join(f"[{name}](#{name.lower()})" for name in names)
    entries = [entry(name, getattr(tl, name)) for name in names]
    entries += [entry(f"plots.{name}", getattr(tl.plots, name)) for name in figures]
    return "\n".join([HEAD, index, "", *entries]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
