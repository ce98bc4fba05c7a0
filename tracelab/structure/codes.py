"""Small codes and hashes: mixed, paired, counted, grouped and written, without a loop over rows."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.signedinteger[Any]]
Words = npt.NDArray[np.uint64]

AT_ONCE: Final = 4_000_000
"""Rows that are mixed or counted at a time, so that what stands beside the capture is small."""


def slices(size: int, step: int = AT_ONCE) -> Iterator[slice]:
    """Part rows into slices that are looked at one after the other.

    Parameters
    ----------
    size : int
        Rows.
    step : int
        Rows of a slice.

    Yields
    ------
    slice
        All rows, in order; one empty slice where there are none.

    Raises
    ------
    ValueError
        If `step` is 0.
    """
    for begin in range(0, max(size, 1), step):
        yield slice(begin, min(begin + step, size))


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit integers (splitmix64 finaliser); the same on every machine.

    Parameters
    ----------
    values : ndarray of uint64
        Any integers.

    Returns
    -------
    ndarray of uint64
        As many integers.

    Raises
    ------
    TypeError
        If `values` are no unsigned integers.
    """
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(30))
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def pair_codes(
    major: npt.NDArray[np.integer[Any]], minor: npt.NDArray[np.integer[Any]], n_minor: int
) -> npt.NDArray[np.int64]:
    """Give each pair of small codes a code of its own.

    Parameters
    ----------
    major, minor : ndarray of int
        Codes from 0, row by row.
    n_minor : int
        One more than the largest of `minor`.

    Returns
    -------
    ndarray of int64
        ``major * n_minor + minor``, which may not fit into the bytes of either.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    codes: npt.NDArray[np.int64] = major.astype(np.int64) * n_minor + minor
    return codes


def ranked(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Renumber codes from 0 in their order, without gaps.

    Parameters
    ----------
    codes : ndarray of int64
        Codes from 0, row by row.

    Returns
    -------
    ndarray of int32
        How many distinct smaller codes there are, row by row.

    Raises
    ------
    ValueError
        If a code is negative.
    """
    if int(codes.max(initial=0)) >= AT_ONCE:
        return np.searchsorted(np.unique(codes), codes).astype(np.int32)
    occurs = np.bincount(codes) > 0
    number: npt.NDArray[np.int32] = (np.cumsum(occurs) - 1).astype(np.int32)
    return number[codes]


def count_pairs(keys: Ints, values: Ints) -> pl.DataFrame:
    """Count how often each pair of small codes occurs.

    Parameters
    ----------
    keys, values : ndarray of int
        Codes from 0, row by row.

    Returns
    -------
    pl.DataFrame
        Columns ``key``, ``value`` and ``len``, sorted; pairs that do not occur are left out.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    n_values = max(int(values.max(initial=0)) + 1, 1)
    tally = np.zeros(0, np.int64)
    codes, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    few = (int(keys.max(initial=0)) + 1) * n_values <= AT_ONCE
    for part in slices(keys.size):
        mixed = pair_codes(keys[part], values[part], n_values)
        if few:
            here = np.bincount(mixed, minlength=tally.size)
            here[: tally.size] += tally
            tally = here
        else:
            code, count = np.unique(mixed, return_counts=True)
            codes.append(code)
            counts.append(count)
    seen = np.flatnonzero(tally)
    code, which = np.unique(np.concatenate([seen, *codes]), return_inverse=True)
    count = np.bincount(which, weights=np.concatenate([tally[seen], *counts]), minlength=code.size)
    return pl.DataFrame(
        {"key": code // n_values, "value": code % n_values, "len": count.astype(np.int64)}
    )


def sorted_by_code(codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
    """Order entries by their code, and those of one code as they were.

    Parameters
    ----------
    codes : ndarray of int
        Codes from 0.

    Returns
    -------
    ndarray of int64
        All entries.

    Raises
    ------
    TypeError
        If `codes` are no integers.
    """
    # Small integers are sorted by their digits, several times as fast.
    few = int(codes.max(initial=0)) < 1 << 16
    return np.argsort(codes.astype(np.uint16) if few else codes, kind="stable")


def entries_by_code(
    codes: Ints, where: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Ints]]:
    """Give the entries of each code, of those that are asked about.

    Parameters
    ----------
    codes : ndarray of int
        A code per entry.
    where : ndarray of bool, optional
        The entries asked about; all of them if left out.

    Yields
    ------
    tuple of int and ndarray of int64
        A code and its entries in their order, the smallest code first.

    Raises
    ------
    IndexError
        If the lengths differ.
    """
    if where is None:
        entries = sorted_by_code(codes)
    else:
        entries = np.flatnonzero(where)
        entries = entries[sorted_by_code(codes[entries])]
    ordered = codes[entries]
    begin = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    if entries.size:
        distinct = ordered[np.concatenate([[0], begin])]
        yield from zip(distinct.tolist(), np.split(entries, begin), strict=True)


def hex_texts(numbers: npt.NDArray[np.uint64]) -> list[str]:
    """Write 64-bit integers as 16 hex digits each.

    Parameters
    ----------
    numbers : ndarray of uint64
        Any integers.

    Returns
    -------
    list of str
        As many texts.

    Raises
    ------
    TypeError
        If `numbers` cannot be cast to 64-bit unsigned integers.
    """
    digits = numbers.astype(">u8").tobytes().hex()
    return [digits[at : at + 16] for at in range(0, len(digits), 16)]


class Groups:
    """Rows grouped by a small code, without a loop over rows.

    Parameters
    ----------
    codes : ndarray of int64
        Code of each row, from 0.
    rows : ndarray of int64, optional
        The rows to group; all of them if left out.
    """

    def __init__(self, codes: Ints, rows: Ints | None = None) -> None:
        if rows is not None:
            codes = codes[rows]
        order = sorted_by_code(codes).astype(np.int32)
        self.order: Ints = order if rows is None else rows[order].astype(np.int32)
        self.counts: Ints = np.bincount(codes)
        self.offsets: Ints = np.concatenate([[0], np.cumsum(self.counts)])

    def rows(self, code: int) -> Ints:
        """Return the rows with this code, in their order."""
        if code + 1 >= self.offsets.size:
            return np.zeros(0, np.int32)
        return self.order[self.offsets[code] : self.offsets[code + 1]]
