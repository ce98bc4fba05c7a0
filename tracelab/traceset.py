"""The in-memory capture: one table per noun, frozen."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property

import polars as pl

from tracelab import html, schema
from tracelab.exceptions import ParameterError, UnknownTraceError

Moment = datetime | str | int
"""A point in time: text in ISO 8601, UTC if no zone is told, or nanoseconds since 1970."""


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

    def between(self, start: Moment | None = None, end: Moment | None = None) -> "TraceSet":
        """Return the traces that begin in a span of time, whole.

        Parameters
        ----------
        start, end : datetime, str or int, optional
            From `start` on, before `end`; text in ISO 8601, UTC if no zone is told, or
            nanoseconds since 1970. Open if left out.

        Returns
        -------
        TraceSet
            The traces whose first span starts there, with their events, links and logs; log
            records of no trace that is here and metric points by their own time; rejects and
            ingest rows as they are. What has no time lies in none.

        Raises
        ------
        ParameterError
            If one is no time, or `end` is not after `start`.
        """
        first, last = time_range(start, end)
        if first is last is None:
            return self
        begun = self.spans.group_by("trace_id").agg(pl.col("start_time").min())
        ids = begun.filter(_inside("start_time", first, last))["trace_id"]
        known = pl.col("trace_id").is_in(begun["trace_id"].implode())
        inside = _inside("time", first, last)
        of_traces = self.select_traces(ids)
        return self.with_tables(
            spans=of_traces.spans,
            events=of_traces.events,
            links=of_traces.links,
            logs=self.logs.filter(
                pl.col("trace_id").is_in(ids.implode()) | (inside & ~known.fill_null(value=False))
            ),
            metrics=self.metrics.filter(inside),
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


def time_range(start: Moment | None, end: Moment | None) -> tuple[int | None, int | None]:
    """Return a span of time in nanoseconds since 1970, open where None.

    Parameters
    ----------
    start, end : datetime, str, int or None
        Its two ends; without a zone they are in UTC.

    Returns
    -------
    start, end : int or None
        The same as numbers.

    Raises
    ------
    ParameterError
        If one is no time, or `end` is not after `start`.
    """
    first, last = _nanoseconds(start), _nanoseconds(end)
    if first is not None and last is not None and last <= first:
        raise ParameterError(f"the end {end} is not after the start {start}")
    return first, last


_FIRST, _LAST = -(1 << 63), (1 << 63) - 1
"""What a time of a span can be, in nanoseconds since 1970."""


def _nanoseconds(moment: Moment | None) -> int | None:
    if moment is None:
        return None
    if isinstance(moment, int):
        return min(max(moment, _FIRST), _LAST)
    try:
        told = moment if isinstance(moment, datetime) else datetime.fromisoformat(moment)
    except (TypeError, ValueError) as error:
        raise ParameterError(
            f"{moment!r} is no time; write it like 2026-11-23T10:00 (UTC) or 2026-11-23T10:00+02:00"
        ) from error
    since = (told if told.tzinfo else told.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    at = ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000
    return min(max(at, _FIRST), _LAST)


def _inside(column: str, start: int | None, end: int | None) -> pl.Expr:
    """Tell whether a time lies in a span of time; what has no time lies in none."""
    time = pl.col(column).dt.epoch("ns")
    inside = time.is_not_null()
    if start is not None:
        inside &= time >= start
    if end is not None:
        inside &= time < end
    return inside
