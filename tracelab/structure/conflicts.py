"""Links at which a request or tenant id changes."""

import numpy as np

from tracelab.structure.skeleton import Bools, Ints, Skeleton


def where_ids_change(skeleton: Skeleton, name: str, rows: Ints) -> Ints:
    """List children at whose link to the parent an id changes.

    Spans in between may carry no id: a call inside such a span, in its time, is its own, so the
    link that went wrong is the one above it.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    name : str
        ``request`` or ``tenant``.
    rows : ndarray of int64
        Rows that have a parent.

    Returns
    -------
    ndarray of int64
        Rows, each once, in their order; a link above one of `rows` may be among them.

    Raises
    ------
    ColumnNotFoundError
        If the skeleton has no such column.
    """
    blamed = rows[_conflict(skeleton, name, rows)]
    values = skeleton.column(name)
    for _ in range(64):
        above = skeleton.parent[blamed]
        climbs = (values[above] == 0) & (skeleton.parent[above] >= 0)
        climbs &= skeleton.process[above] == skeleton.process[blamed]
        climbs &= skeleton.start[blamed] >= skeleton.start[above]
        climbs &= skeleton.end[blamed] <= skeleton.end[above]
        if not climbs.any():
            break
        blamed = np.where(climbs, above, blamed)
    return np.unique(blamed)


def _conflict(skeleton: Skeleton, name: str, rows: Ints) -> Bools:
    """Whether an id on the child differs from the one on its nearest ancestor that has one."""
    values = skeleton.column(name)
    if not values.any():
        return np.zeros(rows.size, bool)
    conflict = np.zeros(rows.size, bool)
    asked = np.flatnonzero(values[rows] != 0)
    above = skeleton.parent[rows[asked]]
    for _ in range(64):
        live = above >= 0
        asked, above = asked[live], above[live]
        if not asked.size:
            break
        known = values[above] != 0
        conflict[asked[known]] = values[rows[asked[known]]] != values[above[known]]
        asked, above = asked[~known], skeleton.parent[above[~known]]
    return conflict
