"""Spans of one trace in the order in which one reads them: depth first, by start time."""

from collections import defaultdict

import polars as pl

from tracelab import schema


def tree_order(spans: pl.DataFrame) -> pl.DataFrame:
    """Order the spans of one trace depth first.

    Parameters
    ----------
    spans : pl.DataFrame
        Columns span_id, parent_span_id and start_time of SPANS, one trace.

    Returns
    -------
    pl.DataFrame
        The same rows in reading order, with ``depth`` (Int64, 0 for roots) and
        ``below_missing`` (Boolean: the top of its subtree names a parent that is not here)
        and ``in_cycle`` (Boolean: no root leads to it) behind the columns. Roots come first,
        then subtrees of missing parents (depth 1), then spans that hang in a cycle.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(spans, ("span_id", "parent_span_id", "start_time"), name="spans")
    ordered = spans.sort("start_time", "span_id", nulls_last=True)
    ids = ordered["span_id"].to_list()
    parents = ordered["parent_span_id"].to_list()
    known = set(ids)
    children: dict[str, list[int]] = defaultdict(list)
    roots: list[int] = []
    orphans: dict[str, list[int]] = defaultdict(list)
    for index, parent in enumerate(parents):
        if parent is None:
            roots.append(index)
        elif parent in known:
            children[parent].append(index)
        else:
            orphans[parent].append(index)
    order: list[int] = []
    depths: list[int] = []
    missing: list[bool] = []
    cyclic: list[bool] = []
    seen: set[int] = set()

    def walk(tops: list[int], depth: int, *, below_missing: bool, in_cycle: bool) -> None:
        stack = [(top, depth) for top in reversed(tops)]
        while stack:
            index, level = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            order.append(index)
            depths.append(level)
            missing.append(below_missing and level == depth)
            cyclic.append(in_cycle)
            stack.extend((child, level + 1) for child in reversed(children.get(ids[index], ())))

    walk(roots, 0, below_missing=False, in_cycle=False)
    for group in orphans.values():
        walk(group, 1, below_missing=True, in_cycle=False)
    # What no root and no orphan leads to hangs in a cycle.
    walk(list(range(len(ids))), 0, below_missing=False, in_cycle=True)
    return ordered[order].with_columns(
        pl.Series("depth", depths, pl.Int64),
        pl.Series("below_missing", missing, pl.Boolean),
        pl.Series("in_cycle", cyclic, pl.Boolean),
    )
