"""Dense series: one row of RED per bin becomes one cell of an array, a silent bin is NaN."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab import schema
from tracelab.exceptions import ParameterError, SchemaError

Floats = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

_DAY_NS = 86400 * 10**9
_APART_NS = 30 * _DAY_NS
_UNITS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}


def duration_ns(text: str, *, name: str) -> int:
    """Read a duration such as ``"30s"`` or ``"1h30m"``.

    Parameters
    ----------
    text : str
        Numbers with the units ms, s, m, h, d.
    name : str
        Name of the argument, for the message.

    Returns
    -------
    int
        Nanoseconds.

    Raises
    ------
    ParameterError
        If the text is no positive duration.
    """
    import re

    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text) if isinstance(text, str) else []
    total = round(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if not parts or "".join(n + u for n, u in parts) != text or total <= 0:
        raise ParameterError(f"{name}={text!r} is no duration; write for example '30s' or '5m'")
    return total


@dataclass(frozen=True, slots=True)
class Series:
    """One service, or one operation of it, on the grid that all series of a table share.

    Parameters
    ----------
    service_name, span_name : str or None
        Whose series it is; `span_name` None is the whole service.
    start_ns, bin_ns, n_bins : int
        The grid.
    index : ndarray of int64
        Bin of each row of `rows`.
    rows : pl.DataFrame
        RED rows of this series.
    """

    service_name: str | None
    span_name: str | None
    start_ns: int
    bin_ns: int
    n_bins: int
    index: Ints
    rows: pl.DataFrame

    @property
    def key(self) -> tuple[str | None, str | None]:
        """Service and operation."""
        return self.service_name, self.span_name

    def column(self, name: str) -> Floats:
        """Return a count per bin, NaN where the feed was silent."""
        out = np.full(self.n_bins, np.nan)
        out[self.index] = self.rows[name].cast(pl.Float64).to_numpy()
        return out

    def histogram(self) -> tuple[Floats, Ints]:
        """Return the duration counts, shape (n_bins, n_buckets), and the bucket edges.

        Rows with other edges than most rows (a histogram that was reconfigured) are NaN.
        """
        filled = self.rows.with_columns(pl.Series("_bin", self.index)).filter(
            pl.col("duration_counts").is_not_null() & pl.col("bucket_edges_ns").is_not_null()
        )
        if not filled.height:
            return np.full((self.n_bins, 1), np.nan), np.empty(0, np.int64)
        lengths = filled["bucket_edges_ns"].list.len()
        same = filled["bucket_edges_ns"].hash() if lengths.n_unique() > 1 else None
        if same is None:
            first = filled["bucket_edges_ns"][0]
            width = len(first)
            stack = filled["bucket_edges_ns"].explode(empty_as_null=True).to_numpy()
            if width and not (stack.reshape(-1, width) == first.to_numpy()).all():
                same = filled["bucket_edges_ns"].hash()
        if same is not None:
            most = same.value_counts(sort=True).row(0)[0]
            filled = filled.filter(same == most)
        edges = filled["bucket_edges_ns"][0].to_numpy().astype(np.int64)
        counts = np.full((self.n_bins, len(edges) + 1), np.nan)
        flat = filled["duration_counts"].explode(empty_as_null=True).to_numpy()
        counts[filled["_bin"].to_numpy()] = flat.reshape(-1, len(edges) + 1)
        return counts, edges


def bins_between(bins: Ints, bin_ns: int) -> Ints:
    """Return all bins from the first to the last, without silences of more than a day.

    One span of a clock that stands at 1970 must not make a grid of sixty years.

    Parameters
    ----------
    bins : ndarray of int64
        Numbers of the bins in which anything came, in any order.
    bin_ns : int
        Width of a bin.

    Returns
    -------
    ndarray of int64
        Rising; empty if `bins` is.

    Raises
    ------
    Nothing.
    """
    known = np.unique(bins)
    if not len(known):
        return known
    breaks = np.flatnonzero(np.diff(known) > _DAY_NS // bin_ns)
    firsts, lasts = known[np.append(0, breaks + 1)], known[np.append(breaks, len(known) - 1)]
    return np.concatenate(
        [np.arange(low, high + 1) for low, high in zip(firsts, lasts, strict=True)]
    )


def _main_stretch(red: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the stretch with most requests; others lie over 30 days apart."""
    times = red["time"].cast(pl.Int64)
    low, high = times.min(), times.max()
    if low is None or int(high) - int(low) <= _APART_NS:  # type: ignore[arg-type]
        return red
    known = red.filter(pl.col("requests") > 0)["time"].cast(pl.Int64).drop_nulls().unique().sort()
    starts = known.filter(known.diff().fill_null(0) > _APART_NS).to_numpy()
    if not len(starts):
        return red
    part = np.searchsorted(starts, times.to_numpy(), side="right")
    weight = np.bincount(part, red["requests"].fill_null(0.0).to_numpy())
    return red.filter(pl.Series(part == int(np.argmax(weight))))


def as_red(red: pl.DataFrame) -> pl.DataFrame:
    """Return the table in the exact types of RED (times in other units, say).

    Parameters
    ----------
    red : pl.DataFrame
        Columns of `RED`, and perhaps others.

    Returns
    -------
    pl.DataFrame
        Schema `RED`. Where nobody spoke for over 30 days, the stretch with most requests: the
        rest are clocks that stood elsewhere, or another capture.

    Raises
    ------
    SchemaError
        If a column is missing or cannot be cast.
    """
    schema.require_columns(red, schema.RED, name="red")
    return _main_stretch(schema.conform(red.select(schema.RED.names()), schema.RED))


def iterate_series(red: pl.DataFrame) -> Iterator[Series]:
    """Yield every series of a RED table on one common grid, in order of its key.

    Parameters
    ----------
    red : pl.DataFrame
        Schema `RED`.

    Yields
    ------
    Series
        One per (service_name, span_name).

    Raises
    ------
    SchemaError
        If `red` lacks a column of `RED`, holds several bin widths, or two rows for one bin.
    """
    red = as_red(red)
    if not red.height:
        return
    widths = red["bin_ns"].unique().to_list()
    if len(widths) != 1 or widths[0] is None or widths[0] <= 0:
        raise SchemaError(f"table `red` must have one bin width, it has {widths}")
    width = int(widths[0])
    times = red["time"].cast(pl.Int64)
    start, end = int(times.min()), int(times.max())  # type: ignore[arg-type]
    n_bins = (end - start) // width + 1
    parts = red.partition_by(["service_name", "span_name"], as_dict=True)
    for key in sorted(parts, key=lambda k: (k[0] or "", k[1] is not None, k[1] or "")):
        rows = parts[key]
        index = (rows["time"].cast(pl.Int64).to_numpy() - start) // width
        if len(np.unique(index)) != len(index):
            raise SchemaError(
                f"table `red` has two rows of {key[0]!r}, {key[1]!r} for one bin; "
                "bring parts together with merge_red"
            )
        yield Series(key[0], key[1], start, width, n_bins, index, rows)


def grid_times(start_ns: int, offsets_ns: Floats | Ints) -> pl.Series:
    """Return times of a grid as a column."""
    values = start_ns + np.round(np.asarray(offsets_ns)).astype(np.int64)
    return pl.Series(values, dtype=pl.Int64).cast(schema.TIME)
