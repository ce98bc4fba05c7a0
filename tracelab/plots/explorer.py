"""The trace explorer: choose, look at the cases, open one trace."""

import json
from importlib import resources
from typing import Any, Final
from uuid import uuid4

import polars as pl

from tracelab import html, schema
from tracelab.plots.script import plotly_script, script_json
from tracelab.plots.waterfall import waterfall
from tracelab.traceset import TraceSet

_HARMLESS: Final = ("kept", "wrapped", "recovered", "not_determinable")
_SEVERITY_ORDER: Final = {"error": 0, "warning": 1, "info": 2}


class Explorer:
    """Cases to choose from, each with its trace; alive with a kernel, static without one.

    In a notebook both forms are displayed: the widget, which draws any trace, hides the static
    one; in a page exported from the notebook only the static one is there to be seen.
    """

    def __init__(
        self,
        traces: TraceSet,
        breaks: pl.DataFrame,
        rows: list[dict[str, Any]],
        *,
        total: int,
        max_figures: int,
        max_spans: int,
    ) -> None:
        self.rows = rows
        self._traces = traces
        self._breaks = breaks
        self._total = total
        self._max_figures = max_figures
        self._max_spans = max_spans
        self._twin = f"tracelab-explorer-{uuid4().hex[:12]}"

    def figure_json(self, trace_id: str) -> str:
        """Return the waterfall of one trace as JSON.

        Parameters
        ----------
        trace_id : str
            A trace of the capture.

        Returns
        -------
        str
            A plotly figure; without its template, which neither form needs.

        Raises
        ------
        UnknownTraceError
            If the trace is not in the capture.
        """
        shown = waterfall(self._traces, trace_id, breaks=self._breaks, max_spans=self._max_spans)
        shown.update_layout(template=None)
        text: str = shown.to_json()
        return text

    def widget(self) -> Any:
        """Return a widget that asks the kernel for traces as they are chosen.

        Returns
        -------
        anywidget.AnyWidget
            Needs a running kernel.

        Raises
        ------
        ImportError
            If anywidget is not installed (extra ``notebook``).
        """
        import anywidget
        import traitlets

        class Living(anywidget.AnyWidget):
            _esm = _asset("explorer.js") + _asset("explorer_widget.js")
            _css = _asset("explorer.css")
            content = traitlets.Unicode().tag(sync=True)
            library = traitlets.Unicode().tag(sync=True)
            twin = traitlets.Unicode().tag(sync=True)

        made = Living(
            content=self._content({}),
            library=plotly_script().removeprefix("<script>").removesuffix("</script>"),
            twin=self._twin,
        )
        made.on_msg(self._answer)
        return made

    def _answer(self, widget: Any, message: Any, _buffers: Any) -> None:
        trace_id = str(message.get("trace_id"))
        widget.send({"trace_id": trace_id, "figure": self.figure_json(trace_id)})

    def _content(self, figures: dict[str, Any]) -> str:
        return json.dumps({"rows": self.rows, "total": self._total, "figures": figures})

    def _repr_html_(self) -> str:
        wanted = dict.fromkeys(
            trace_id
            for row in self.rows
            if row["severity"] != "info"
            for trace_id in (row["trace_id"], row["caller_trace_id"])
            if trace_id
        )
        figures = {}
        for trace_id in list(wanted)[: self._max_figures]:
            if self._traces.spans["trace_id"].eq(trace_id).any():
                figures[trace_id] = json.loads(self.figure_json(trace_id))
        content = script_json(self._content(figures))
        return (
            f"<div id='{self._twin}'><style>{_asset('explorer.css')}</style>{plotly_script()}"
            f"<div class='tracelab-here'></div><script>(function(){{{_asset('explorer.js')}\n"
            f"const here=document.querySelector('#{self._twin} .tracelab-here');"
            f"if(here)traceExplorer(here,{content},null);}})();</script></div>"
        )

    def _ipython_display_(self) -> None:
        from IPython.display import display as _display

        display: Any = _display

        display({"text/html": self._repr_html_(), "text/plain": repr(self)}, raw=True)
        try:
            living = self.widget()
        except ImportError:
            return
        display(living)

    def __repr__(self) -> str:
        return f"Explorer({self._total:,} cases; shown in a notebook)"


def explorer(
    traces: TraceSet,
    breaks: pl.DataFrame,
    *,
    error_hops: pl.DataFrame | None = None,
    max_rows: int = 500,
    max_figures: int = 12,
    max_spans: int = 1000,
) -> Explorer:
    """Let a reader choose kind, service and hop, and open the trace of a case by a click.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    breaks : pl.DataFrame
        Schema BREAKS.
    error_hops : pl.DataFrame, optional
        Schema ERROR_HOPS; hops at which something was lost become cases too.
    max_rows : int
        Cases in the table, most severe first; how many there are in all is said above it.
    max_figures : int
        Traces whose picture the static form carries.
    max_spans : int
        Spans drawn of one trace.

    Returns
    -------
    Explorer
        Shows itself in a notebook.

    Raises
    ------
    SchemaError
        If a table lacks a column.
    """
    schema.require_columns(breaks, schema.BREAKS, name="breaks")
    rows = [_break_row(found) for found in _worst_first(breaks).head(max_rows).to_dicts()]
    total = breaks.height
    if error_hops is not None:
        schema.require_columns(error_hops, schema.ERROR_HOPS, name="error_hops")
        lost = error_hops.filter(~pl.col("verdict").is_in(_HARMLESS)).sort("error_id", "hop")
        rows += [_hop_row(hop) for hop in lost.head(max_rows).to_dicts()]
        total += lost.height
    rows.sort(key=lambda row: _SEVERITY_ORDER.get(row["severity"], 3))
    return Explorer(
        traces, breaks, rows[:max_rows], total=total, max_figures=max_figures, max_spans=max_spans
    )


def _worst_first(breaks: pl.DataFrame) -> pl.DataFrame:
    rank = pl.col("severity").replace_strict(_SEVERITY_ORDER, default=3, return_dtype=pl.Int64)
    # One frequent kind must not push the others out of the table.
    turn = pl.int_range(pl.len()).over("kind", "cause", "from_service", "to_service")
    return breaks.sort(rank, turn, -pl.col("confidence").fill_null(0), "break_id", nulls_last=True)


def _break_row(found: dict[str, Any]) -> dict[str, Any]:
    evidence = [*(found["evidence"] or ())]
    evidence += [f"not excluded: {text}" for text in found["alternatives"] or ()]
    return {
        "severity": found["severity"],
        "kind": html.plain(found["kind"]),
        "why": html.plain(found["cause"]),
        "service": html.plain(found["service_name"], limit=200),
        "hop": _hop(found["from_service"], found["to_service"]),
        "span": html.plain(found["span_name"], limit=200),
        "confidence": found["confidence"],
        "trace_id": html.plain(found["trace_id"], limit=64),
        "span_id": html.plain(found["span_id"], limit=64),
        "caller_trace_id": html.plain(found["proposed_trace_id"], limit=64),
        "evidence": [html.plain(text) for text in evidence],
    }


def _hop_row(hop: dict[str, Any]) -> dict[str, Any]:
    return {
        "severity": "warning",
        "kind": f"error {html.plain(hop['verdict'])}",
        "why": html.plain(hop["child_type"], limit=200),
        "service": html.plain(hop["child_service"], limit=200),
        "hop": _hop(hop["child_service"], hop["parent_service"]),
        "span": html.plain(hop["child_message"], limit=200),
        "confidence": hop["confidence"],
        "trace_id": html.plain(hop["trace_id"], limit=64),
        "span_id": html.plain(hop["child_span_id"], limit=64),
        "caller_trace_id": "",
        "evidence": [html.plain(text) for text in hop["evidence"] or ()],
    }


def _hop(start: str | None, end: str | None) -> str:
    if start is None and end is None:
        return ""
    return f"{html.plain(start or '?', limit=100)} → {html.plain(end or '?', limit=100)}"


def _asset(name: str) -> str:
    return resources.files("tracelab.plots").joinpath("assets", name).read_text("utf-8")
