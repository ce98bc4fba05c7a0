"""Shares with their intervals, and many tests with one false-discovery rate."""

import numpy as np

from tracelab.structure.skeleton import Floats, Ints


def wilson_interval(hits: Ints, trials: Ints, *, z: float = 1.96) -> tuple[Floats, Floats]:
    """Return the Wilson score interval of shares.

    Parameters
    ----------
    hits, trials : ndarray of int64
        Counts.
    z : float
        Normal quantile; 1.96 for 95 %.

    Returns
    -------
    tuple of ndarray of float64
        Lower and upper bound; 0 and 1 without trials.

    References
    ----------
    .. [1] E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
       J. American Statistical Association 22, 1927.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    n = np.maximum(trials, 1).astype(np.float64)
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = np.where(trials > 0, np.clip(middle - half, 0, 1), 0.0)
    high = np.where(trials > 0, np.clip(middle + half, 0, 1), 1.0)
    return low, high


def worse_than_rest(hits: Ints, trials: Ints, all_hits: int, all_trials: int) -> Floats:
    """Test whether each group's share is above that of all others: Fisher's exact test.

    Parameters
    ----------
    hits, trials : ndarray of int64
        Counts of each group.
    all_hits, all_trials : int
        Counts of all groups together.

    Returns
    -------
    ndarray of float64
        One-sided p-values; 1 where there are no others.

    Raises
    ------
    ValueError
        If a group has more than all.
    """
    from scipy.stats import hypergeom  # a second to import

    # More hits than h among n drawn from all: the hypergeometric tail is Fisher's test.
    tail = hypergeom.sf(hits - 1, all_trials, all_hits, trials)
    p_values: Floats = np.where((trials > 0) & (trials < all_trials), tail, 1.0)
    return p_values


def q_values(p_values: Floats) -> Floats:
    """Return Benjamini-Hochberg adjusted p-values.

    Parameters
    ----------
    p_values : ndarray of float64
        One per test.

    Returns
    -------
    ndarray of float64
        As many; a threshold on them bounds the share of false discoveries.

    Raises
    ------
    ValueError
        Never.
    """
    m = p_values.size
    if not m:
        return p_values
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * m / np.arange(1, m + 1)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted
