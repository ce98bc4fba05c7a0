"""The in-memory capture: one table per noun, frozen."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import polars as pl

from tracelab import html, schema
from tracelab.exceptions import ParameterError, UnknownTraceError


@dataclass(frozen=True, repr=False)
class TraceSet:
    """Spans of a capture and all that came with them.

    Parameters
    ----------
    spans, events, links, logs, metrics, rejects, ingest : pl.DataFrame
        Schemas SPANS, EVENTS, LINKS, LOGS, METRIC_POINTS, REJECTS and INGEST of
        `tracelab.schema`. A table left out is empty.

    Raises
    ------
    SchemaError
        If a table lacks a column of its schema.
    """

    spans: pl.DataFrame
    events: pl.DataFrame = field(default_factory=lambda: schema.empty(schema.EVENTS))
    links: pl.DataFrame = field(default_factory=lambda: schema.empty(schema.LINKS))
    logs: pl.DataFrame = field(default_factory=lambda: schema.empty(schema.LOGS))
    metrics: pl.DataFrame = field(default_factory=lambda: schema.empty(schema.METRIC_POINTS))
    rejects: pl.DataFrame = field(default_factory=lambda: schema.empty(schema.REJECTS))
    ingest: pl.DataFrame = field(default_factory=lambda: schema.empty(schema.INGEST))

    def __post_init__(self) -> None:
        for name, table_schema in TABLES.items():
            schema.require_columns(getattr(self, name), table_schema, name=name)

    @cached_property
    def n_traces(self) -> int:
        """Number of distinct trace ids."""
        return self.spans["trace_id"].n_unique()

    def select_traces(self, trace_ids: list[str] | pl.Series) -> "TraceSet":
        """Return the part of the capture that belongs to some traces.

        Parameters
        ----------
        trace_ids : list of str or pl.Series
            Trace ids; those that are not there are passed over.

        Returns
        -------
        TraceSet
            Spans, events, links and logs of these traces; metrics, rejects and
            ingest rows are left out.
        """
        wanted = pl.Series("trace_id", trace_ids, dtype=pl.String).implode()
        keep = pl.col("trace_id").is_in(wanted)
        return TraceSet(
            spans=self.spans.filter(keep),
            events=self.events.filter(keep),
            links=self.links.filter(keep),
            logs=self.logs.filter(keep),
        )

    def trace(self, trace_id: str) -> "TraceSet":
        """Return one trace.

        Parameters
        ----------
        trace_id : str
            A trace id; upper case and missing leading zeros are mended.

        Returns
        -------
        TraceSet
            The trace's spans, events, links and logs.

        Raises
        ------
        UnknownTraceError
            If no span carries this id.
        """
        for candidate in (trace_id, trace_id.lower().rjust(32, "0")):
            part = self.select_traces([candidate])
            if part.spans.height:
                return part
        some = self.spans["trace_id"].drop_nulls().unique(maintain_order=True).head(2).to_list()
        raise UnknownTraceError(
            f"no trace {html.plain(trace_id)} among the {self.n_traces} traces of this capture; "
            + (f"it holds such as {html.plain(' and '.join(some))}" if some else "it is empty")
        )

    def with_tables(self, **tables: pl.DataFrame) -> "TraceSet":
        """Return a copy with some tables replaced."""
        return replace(self, **tables)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{getattr(self, name).height:,} {name}" for name in TABLES if name != "ingest"
        )
        start, end = self.spans["start_time"].min(), self.spans["end_time"].max()
        services = self.spans["service_name"].drop_nulls().unique().sort().to_list()
        more = f", … {len(services)} in all" if len(services) > 8 else ""
        return "\n".join(
            (
                f"TraceSet({self.n_traces:,} traces; {counts})",
                f"  time      {start!s} to {end!s}",
                f"  services  {', '.join(services[:8]) or 'none'}{more}",
            )
        )

    def _repr_html_(self) -> str:
        rows = [(name, f"{getattr(self, name).height:,}") for name in TABLES]
        return html.table(
            ("table", "rows"), rows, caption=f"TraceSet, {self.n_traces:,} traces"
        ) + ("".join(f"<p>{html.escape(line)}</p>" for line in repr(self).split("\n")[1:]))


TABLES = {
    "spans": schema.SPANS,
    "events": schema.EVENTS,
    "links": schema.LINKS,
    "logs": schema.LOGS,
    "metrics": schema.METRIC_POINTS,
    "rejects": schema.REJECTS,
    "ingest": schema.INGEST,
}
"""Attribute name of a TraceSet to the schema of its table."""


def require_traces(given: object) -> None:
    """Raise if what was passed as a capture is none.

    Parameters
    ----------
    given : object
        The argument ``traces`` of a public function.

    Raises
    ------
    ParameterError
        If it is no TraceSet.
    """
    if not isinstance(given, TraceSet):
        raise ParameterError(
            f"traces must be a TraceSet, not a {type(given).__name__}; read one with read_traces"
        )
