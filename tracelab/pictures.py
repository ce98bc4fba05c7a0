"""Which pictures a case needs: figures chosen for the report and for one trace's page."""

from collections.abc import Mapping
from typing import Final

import polars as pl

from tracelab import plots
from tracelab.errors_chain import find_error_hops
from tracelab.export.redaction import Redaction, Redactor, case_key, redact_traces
from tracelab.export.report import Picture, render_report
from tracelab.export.tree import render_trace_tree
from tracelab.store import TraceStore
from tracelab.structure import find_breaks, span_edges
from tracelab.traceset import TraceSet

MAX_WATERFALLS = 4
MAX_WATERFALL_SPANS = 300

_LEGEND: Final = (
    "A trace over time. Orange diamonds mark breaks, blue ones what is allowed (work that starts "
    "after its caller ended); a dashed line leads to the span that probably called what starts "
    "there; a dark outline marks spans that another thread, process or host called."
)
_NOT_KEPT: Final = ("spans_duplicate", "spans_rejected", "messages_rejected")


def case_pictures(
    exhibits: TraceSet,
    *,
    examples: Mapping[str, str],
    calls: pl.DataFrame,
    breaks: pl.DataFrame,
    error_hops: pl.DataFrame,
    integrity: pl.DataFrame,
    lead_lags: pl.DataFrame,
    ingest: pl.DataFrame,
) -> list[Picture]:
    """Draw the pictures of a report.

    Parameters
    ----------
    exhibits : TraceSet
        Holds the traces to draw.
    examples : mapping of str to str
        Traces worth a waterfall, best first, each with the title of the finding it shows.
    calls : pl.DataFrame
        Distinct hops with their number of calls.
    breaks, error_hops, integrity, lead_lags, ingest : pl.DataFrame
        The case's tables.

    Returns
    -------
    list of Picture
        Figures without content are left out.
    """
    chosen = [
        (
            "Which service calls which; orange hops lose context or spans. What breaks inside a "
            "service is not drawn here.",
            plots.service_map(calls, breaks),
        ),
        ("Broken places by hop (rows) and kind and cause (columns).", plots.break_matrix(breaks)),
    ]
    for trace_id in _separate(list(examples), breaks)[:MAX_WATERFALLS]:
        figure = plots.waterfall(exhibits, trace_id, breaks=breaks, max_spans=MAX_WATERFALL_SPANS)
        chosen.append((f"{_LEGEND} An example of: {examples[trace_id]}.", figure))
    chosen.append(
        (
            "Errors from where they began to the caller, by what became of them.",
            plots.error_flow(error_hops),
        )
    )
    # A picture of one point, of one verdict or of one whole file says less than its sentence.
    if integrity["window_start"].n_unique() > 1:
        chosen.append(
            (
                "Share of traces whose chain is whole, over time.",
                plots.integrity_timeline(integrity),
            )
        )
    if lead_lags["verdict"].n_unique() > 1:
        chosen.append(("Pairs of services tried for early warning.", plots.lag_matrix(lead_lags)))
    if ingest.height > 1 or ingest.select(pl.sum_horizontal(_NOT_KEPT).sum()).item():
        chosen.append(
            (
                "Spans kept, dropped as duplicates, and rejected, by source.",
                plots.ingest_quality(ingest),
            )
        )
    return [Picture(caption, figure.to_json()) for caption, figure in chosen if figure.data]


def _separate(trace_ids: list[str], breaks: pl.DataFrame) -> list[str]:
    """Leave out traces that are drawn with the one that they probably belong to."""
    tied = breaks.filter(
        pl.col("trace_id").is_in(pl.Series(trace_ids, dtype=pl.String).implode()),
        (pl.col("trace_id") != pl.col("proposed_trace_id")).fill_null(value=False),
    )
    drawn = dict(tied.select("trace_id", "proposed_trace_id").iter_rows())
    return [each for each in trace_ids if drawn.get(each) not in trace_ids]


class TraceView:
    """One trace as text and as a page."""

    def __init__(self, trace: TraceSet, trace_id: str, breaks: pl.DataFrame) -> None:
        self._trace = trace
        self._trace_id = trace_id
        self._breaks = breaks
        self._edges = span_edges(trace)

    def redact(self, mode: Redaction = "secrets") -> "TraceView":
        """Return the view with what looks like a secret masked, as `Investigation.redact` does."""
        key = case_key([self._trace.spans, self._trace.events, self._breaks])
        redactor = Redactor(mode, key=key)
        shown = redact_traces(self._trace, redactor)
        return TraceView(shown, self._trace_id, redactor.frame(self._breaks))

    @property
    def text(self) -> str:
        """The tree for a terminal."""
        hops = find_error_hops(self._trace, edges=self._edges, breaks=self._breaks)
        return render_trace_tree(self._trace, edges=self._edges, breaks=self._breaks, hops=hops)

    @property
    def html(self) -> str:
        """The waterfall as a page that needs nothing else."""
        figure = plots.waterfall(
            self._trace, self._trace_id, breaks=self._breaks, edges=self._edges
        )
        graph = plots.span_graph(self._trace, self._trace_id, breaks=self._breaks)
        return render_report(
            (),
            summary={"text": self.text.splitlines()[:200]},
            provenance={},
            pictures=[
                Picture("Spans over time.", figure.to_json()),
                Picture("Spans as a tree.", graph.to_json()),
            ],
            title=f"Trace {self._trace_id}",
        )


def view_trace(traces: TraceSet | TraceStore, trace_id: str) -> TraceView:
    """Look at one trace, with the breaks that the whole capture tells of.

    Parameters
    ----------
    traces : TraceSet or TraceStore
        The capture. Of a store only the one trace is read, so that nothing is known of what
        is normal elsewhere; verdicts that need it are `unknown`.
    trace_id : str
        Trace id as hex; upper case and missing leading zeros are mended.

    Returns
    -------
    TraceView
        With ``text`` and ``html``.

    Raises
    ------
    UnknownTraceError
        If no span carries this id.
    """
    trace = traces.trace(trace_id)
    known = traces if isinstance(traces, TraceSet) else trace
    return TraceView(trace, trace.spans["trace_id"][0], find_breaks(known))
