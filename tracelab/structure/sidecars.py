"""Callers beside their callee: the two ends of a hop between an application and its proxy.

A sidecar shares its application's host, but not its process. What the application calls goes
out through the sidecar, what calls it comes in through one; where the headers are not handed
on there, the calling span is neither in the callee's process nor across the network.
"""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.callstack import USUALLY, is_above
from tracelab.structure.skeleton import CLIENT, ONE_CLOCK_NS, SERVER, Floats, Ints, Skeleton

_CLEARLY: Final = 0.5
"""Of parallel calls the tightest is told by leaving at most this part of the next one's slack."""

_OPEN_CHOICE: Final = 0.6
"""How sure a caller is beside a rival that fits about as well, or whose own kind is gone."""


def nearer_beside(skeleton: Skeleton, callees: Ints, found: Ints) -> tuple[Ints, Floats]:
    """Find the span on a callee's host, below its supposed caller, that encloses it more tightly.

    A call passes through every span between, so a free one below the supposed caller that
    contains the callee is the caller: for a client span of a proxy, the unanswered client span
    of its application; for a server span of an application, the server span of its proxy.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    callees : ndarray of int64
        Rows of one operation.
    found : ndarray of int64
        Per callee the row of its supposed caller, -1 where none is known.

    Returns
    -------
    tuple of ndarray
        Per callee the caller's row, and how sure it is among those of the trace.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    best, sure = found.copy(), np.ones(found.size)
    kind = int(skeleton.kind[callees[0]])
    asked = np.flatnonzero(found >= 0)
    if kind not in (CLIENT, SERVER) or not asked.size:
        return best, sure
    near = _enclosing(skeleton, callees, found, asked, kind)
    if not near.height:
        return best, sure
    classes = skeleton.caller_class[found[asked]]
    total = pl.DataFrame({"of": classes}).group_by("of").agg(asked=pl.len())
    usual = (
        near.group_by("of", "class")
        .agg(there=pl.col("callee").n_unique())
        .join(total, on="of")
        .filter(pl.col("there") >= USUALLY * pl.col("asked"))
    )
    near = near.join(usual.select("of", "class"), on=["of", "class"]).sort("callee", "slack", "row")
    # Where the usual caller is not there it was lost: whoever else is there did not call.
    lost = np.isin(classes, usual["of"].to_numpy())
    sure[asked[lost]] = _OPEN_CHOICE
    chosen = near.group_by("callee", maintain_order=True).agg(
        pl.col("row").first(),
        first=pl.col("slack").first(),
        second=pl.col("slack").get(1, null_on_oob=True),
    )
    alone = (chosen["first"] <= _CLEARLY * chosen["second"]).fill_null(True).to_numpy()
    where = chosen["callee"].to_numpy()
    best[where] = chosen["row"].to_numpy()
    sure[where] = np.where(alone, 1.0, _OPEN_CHOICE)
    return best, sure


def _enclosing(
    skeleton: Skeleton, callees: Ints, found: Ints, asked: Ints, kind: int
) -> pl.DataFrame:
    """Spans of the callee's kind, trace and host that enclose it and called nothing elsewhere."""
    hosts = skeleton.processes.select(
        pl.col("host_name").rank("dense").cast(pl.Int64).fill_null(-1)
    )["host_name"].to_numpy()
    rows = skeleton.rows_in(skeleton.trace[found[asked]])
    rows = rows[(skeleton.kind[rows] == kind) & skeleton.timed[rows]]
    rows = rows[~skeleton.calls_afar[rows]]
    spans = pl.DataFrame(
        {"trace": skeleton.trace[rows], "host": hosts[skeleton.process[rows]], "row": rows}
    )
    wanted = pl.DataFrame(
        {
            "trace": skeleton.trace[found[asked]],
            "host": hosts[skeleton.process[callees[asked]]],
            "callee": asked,
        }
    ).filter(pl.col("host") >= 0)
    pairs = spans.join(wanted, on=["trace", "host"], how="inner")
    row, number = pairs["row"].to_numpy().astype(np.int64), pairs["callee"].to_numpy()
    callee, upper = callees[number], found[number]
    before = skeleton.start[callee] - skeleton.start[row]
    after = skeleton.end[row] - skeleton.end[callee]
    keep = (np.minimum(before, after) >= -ONE_CLOCK_NS) & (row != upper)
    keep &= skeleton.process[row] != skeleton.process[callee]
    keep[keep] = is_above(skeleton, upper[keep], row[keep])
    return pl.DataFrame(
        {
            "callee": number[keep],
            "row": row[keep],
            "class": skeleton.caller_class[row[keep]],
            "of": skeleton.caller_class[upper[keep]],
            "slack": np.maximum(before, 0)[keep] + np.maximum(after, 0)[keep],
        }
    )
