"""Intervals of shares, as expressions over whole columns."""

import polars as pl

Z_95 = 1.959964


def wilson(count: pl.Expr, total: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Return lower and upper bound of the 95 % Wilson interval; null where total is 0."""
    trials = pl.when(total > 0).then(total).cast(pl.Float64)
    share = count / trials
    scale = 1 + Z_95**2 / trials
    centre = (share + Z_95**2 / (2 * trials)) / scale
    spread = Z_95 / scale * (share * (1 - share) / trials + Z_95**2 / (4 * trials**2)).sqrt()
    return (centre - spread).clip(0.0, 1.0), (centre + spread).clip(0.0, 1.0)
