"""Duration histograms: quantiles of bucket counts."""

import numpy as np

from tracelab.signals.grid import Floats, Ints


def quantile_of_counts(counts: Floats, edges: Ints, quantile: float) -> float:
    """Return a quantile of bucketed durations, linear within the bucket.

    Parameters
    ----------
    counts : ndarray, shape (n_edges + 1,)
        Requests per bucket; the first lies below the first edge, the last above the last.
    edges : ndarray of int64
        Bucket edges in nanoseconds, rising.
    quantile : float
        Between 0 and 1.

    Returns
    -------
    float
        Nanoseconds. In the open last bucket the last edge is returned, as Prometheus does;
        NaN without requests.

    Raises
    ------
    Nothing.
    """
    total = float(counts.sum())
    if total <= 0 or not len(edges):
        return float("nan")
    below = np.cumsum(counts)
    bucket = int(np.searchsorted(below, quantile * total, side="left"))
    if bucket >= len(edges):
        return float(edges[-1])
    low = float(edges[bucket - 1]) if bucket else 0.0
    under = float(below[bucket - 1]) if bucket else 0.0
    inside = max(float(counts[bucket]), 1e-12)
    return low + (float(edges[bucket]) - low) * (quantile * total - under) / inside
