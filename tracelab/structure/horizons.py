"""Where the capture that a process was heard in begins and ends.

A folder may hold several captures, and the services in them need not begin and stop together. What
cuts off a span is the edge of its own capture. Services that share traces are cut together: where
all of them fall silent at once their capture ends, wherever others go on, and one process that
falls silent alone has exited. Spans are exported when they end, so ends tell the edges: the start
of a long span may lie far before them. A few processes whose clocks are off are heard beyond the
edges; they move nobody's but their own.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab.structure.codes import slices

Numbers = npt.NDArray[np.int64]

AT_ONCE_NS: Final = 6_000_000_000
"""Processes fall silent at once within the time that a batch waits for its export, 5 s by default
(OpenTelemetry specification)."""

_STEP_NS: Final = 1_000_000_000
"""Silences are counted in steps of this."""

_UNUSUAL: Final = 3
"""A silence is an edge if it is longer than so many of any that is not: of exponential silences the
longest is three times the next once in n squared."""

_APART_NS: Final = 120_000_000_000
"""Least silence between two captures of the same services; a Collector that restarts is sooner
back."""

_CROWD: Final = 3
"""Least processes, of two services, that mark an edge beyond which others are heard."""

_TRIES: Final = 100
"""Moments that are looked at, those at which most fall silent first."""

_SHORT: Final = 20
"""A pace is taken over at least one in so many parts of the capture."""

_EDGES: Final = 3
"""Most silences that may be edges: before, behind, and one between two captures. What falls
silent oftener does so by habit."""

_MOST: Final = 0.5
"""Share, by pace, of the processes that are still heard, from which on their common silence is the
edge, and not an outage of some."""

_STRAY: Final = 0.2
"""Largest share, by pace, of the processes that fall silent together behind such an edge: those
that survive an outage stop together at the true one, deviant clocks scatter."""


@dataclass(frozen=True, slots=True)
class Horizons:
    """Edges of the capture that each process was heard in.

    Parameters
    ----------
    low, high : ndarray of int64
        First and last end of a span there, per process; of all where a process has no times.
    group : ndarray of int64
        Per process, the number of the processes that it is connected with.
    again : dict of int to ndarray of int64
        Per group, when further captures of it began.
    """

    low: Numbers
    high: Numbers
    group: Numbers
    again: dict[int, Numbers]


def find_horizons(
    lives: pl.DataFrame,
    *,
    process: npt.NDArray[np.integer[Any]],
    trace: npt.NDArray[np.integer[Any]],
    end: Numbers,
    timed: npt.NDArray[np.bool_],
    services: pl.Series,
) -> Horizons:
    """Find the edges of the captures that the processes were heard in.

    Parameters
    ----------
    lives : pl.DataFrame
        First and last end, and number of spans, of each process that has times.
    process, trace : ndarray of int
        Codes from 0, row by row.
    end : ndarray of int64
        When each span ended, on one clock as far as may be.
    timed : ndarray of bool
        Whether that is known.
    services : pl.Series
        Name of each process's service, null where it has none.

    Returns
    -------
    Horizons
        Per process.

    Raises
    ------
    ValueError
        Never.
    """
    n = len(services)
    if not lives.height:
        nothing = np.zeros(n, np.int64)
        return Horizons(nothing, nothing, nothing, {})
    heard = lives["process"].to_numpy()
    first, last = lives["first"].to_numpy(), lives["last"].to_numpy()
    length = int(last.max() - first.min())
    pace = lives["spans"].to_numpy() / np.maximum(last - first, length // _SHORT + 1)
    related = _related(process, trace, services)
    kinds = services.rank("dense").fill_null(0).to_numpy()[heard]
    order = np.argsort(related[heard], kind="stable")
    codes, starts = np.unique(related[heard][order], return_index=True)
    members = dict(zip(codes.tolist(), np.split(order, starts[1:]), strict=True))
    edges = {
        code: (
            -_edge(-first[mine], -last[mine], pace[mine], kinds[mine]),
            _edge(last[mine], first[mine], pace[mine], kinds[mine]),
        )
        for code, mine in members.items()
    }
    begin, until = min(edge[0] for edge in edges.values()), max(edge[1] for edge in edges.values())
    again = {}
    low, high = np.full(n, begin), np.full(n, until)
    seconds = _seconds(related[process], end, timed, begin)
    for code, edge in edges.items():
        mine = members[code]
        if np.unique(kinds[mine]).size > 1:
            starts, stops = _captures(_of(seconds, code, begin), edge, (begin, until))
        else:
            # What stands alone and falls silent before others has exited, or has nothing to do.
            starts, stops = np.array([begin]), np.array([until])
        if starts.size > 1:
            again[code] = starts[1:]
        place = np.searchsorted(starts, first[mine] + _STEP_NS, side="right") - 1
        low[heard[mine]] = np.minimum(first[mine], starts[np.maximum(place, 0)])
        place = np.searchsorted(stops, last[mine] - _STEP_NS)
        high[heard[mine]] = np.maximum(last[mine], stops[np.minimum(place, stops.size - 1)])
    return Horizons(low, high, related, again)


def _related(
    process: npt.NDArray[np.integer[Any]],
    trace: npt.NDArray[np.integer[Any]],
    services: pl.Series,
) -> Numbers:
    """Give processes one number where a chain of shared traces or services connects them."""
    n = len(services)
    met = np.zeros(int(trace.max(initial=-1)) + 1, np.int32)
    met[trace] = process
    codes = [
        pl.Series(met[trace[part]].astype(np.int64) * n + process[part]).unique().to_numpy()
        for part in slices(process.size)
    ]
    shared = np.unique(np.concatenate(codes))
    every = pl.DataFrame({"process": np.arange(n), "service": services})
    named = every.with_columns(home=pl.col("process").min().over("service")).drop_nulls()
    one = np.concatenate([shared // n, named["home"].to_numpy()])
    other = np.concatenate([shared % n, named["process"].to_numpy()])
    related = np.arange(n)
    while True:
        least = np.minimum(related[one], related[other])
        before = related.copy()
        np.minimum.at(related, one, least)
        np.minimum.at(related, other, least)
        related = related[related]
        if np.array_equal(before, related):
            return related


def _edge(
    last: Numbers, first: Numbers, pace: npt.NDArray[np.float64], kinds: npt.NDArray[Any]
) -> int:
    """Find where related processes fall silent for good: the latest moment at which many do.

    Only where most of those that live fall silent at once, and what is heard later is little and
    scattered, it is not the very last end.
    """
    young = np.argsort(first, kind="stable")
    born = np.concatenate([[0.0], np.cumsum(pace[young])])
    order = np.argsort(last, kind="stable")
    last, pace, kinds, first = last[order], pace[order], kinds[order], first[young]
    below = np.concatenate([[0.0], np.cumsum(pace)])
    begin = np.searchsorted(last, last - AT_ONCE_NS)
    silenced = below[1:] - below[begin]
    alive = born[np.searchsorted(first, last, side="right")] - below[begin]
    wide = np.flatnonzero(
        (np.arange(last.size) - begin + 1 >= _CROWD) & (silenced >= _MOST * alive)
    )
    for at in wide[np.argsort(-silenced[wide], kind="stable")][:_TRIES].tolist():
        if np.unique(kinds[begin[at] : at + 1]).size > 1:
            break
    else:
        return int(last[-1])
    later = below[1:] - np.maximum(below[begin], below[at + 1])
    crowded = bool((later[at + 1 :] >= _STRAY * alive[at]).any())
    return int(last[-1] if crowded or last[-1] - last[at] <= AT_ONCE_NS else last[at])


def _seconds(
    group: npt.NDArray[np.integer[Any]], end: Numbers, timed: npt.NDArray[np.bool_], origin: int
) -> pl.DataFrame:
    """List the steps of time in which spans of each group ended, in order."""
    parts = [
        pl.DataFrame({"group": group[part], "step": (end[part] - origin) // _STEP_NS})
        .filter(pl.Series(timed[part]))
        .unique()
        for part in slices(end.size)
    ]
    return pl.concat(parts).unique().sort("group", "step")


def _of(seconds: pl.DataFrame, group: int, origin: int) -> Numbers:
    """Return the moments at which spans of one group ended, sorted."""
    steps: Numbers = seconds.filter(pl.col("group") == group)["step"].to_numpy()
    return steps * _STEP_NS + origin


def _captures(
    moments: Numbers, edge: tuple[int, int], all_edges: tuple[int, int]
) -> tuple[Numbers, Numbers]:
    """Find when the captures of a group of processes began and stopped.

    Silences that are far longer than any other part them: from one another, and from the begin
    and the end of all captures.
    """
    early, late = edge
    begin, until = all_edges
    moments = moments[(moments > early - _STEP_NS) & (moments <= late)]
    gaps = np.diff(moments)
    longest = np.sort(np.concatenate([[early - begin, until - late, 0, 0], gaps]))[::-1]
    longest = longest[: _EDGES + 1]
    apart = longest[:-1] > np.maximum(_UNUSUAL * longest[1:], AT_ONCE_NS)
    if not apart.any():
        return np.array([begin]), np.array([until])
    least = longest[np.flatnonzero(apart)[-1]]
    cut = np.flatnonzero(gaps >= max(least, _APART_NS))
    first = early if early - begin >= least else begin
    last = late if until - late >= least else until
    return np.append(first, moments[cut + 1]), np.append(moments[cut] + _STEP_NS, last)
