"""Attributes of many owners at once: JSON text and lifted columns, without a loop per span.

Owners (spans, events, resources, ...) keep their attributes end to end in flat arrays, with
offsets that say where each owner's begin. The JSON text of all owners is one ``take`` of a
pool of values and key fragments: its data buffer is the text of every owner, and the owners'
offsets are a selection of the offsets of the pieces.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

Index = npt.NDArray[np.int64]

_ESCAPES: Final[dict[str, str]] = {
    chr(code): json.dumps(chr(code))[1:-1] for code in (*range(0x20), ord('"'), ord("\\"))
}
_MUST_ESCAPE: Final = np.zeros(256, dtype=np.bool_)
_MUST_ESCAPE[[ord(char) for char in _ESCAPES]] = True


def text_bounds(array: pa.Array) -> tuple[Index, npt.NDArray[np.uint8]]:
    """Return the offsets and the bytes of a string or binary array.

    Parameters
    ----------
    array : pa.Array
        String or binary array with 32-bit offsets, sliced or not.

    Returns
    -------
    offsets : ndarray of int64, shape (len(array) + 1,)
    content : ndarray of uint8

    Raises
    ------
    Nothing of its own.
    """
    _, offsets, content = array.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    if content is None:
        return bounds.astype(np.int64), np.empty(0, dtype=np.uint8)
    return bounds.astype(np.int64), np.frombuffer(content, dtype=np.uint8)


def escape_texts(array: pa.StringArray) -> pa.StringArray:
    """Escape texts for the inside of a JSON string; only those that need it are touched.

    Parameters
    ----------
    array : pa.StringArray
        Any texts; nulls stay null.

    Returns
    -------
    pa.StringArray
        What stands between the quotes of the JSON string.

    Raises
    ------
    Nothing of its own.
    """
    if len(array) == 0:
        return array
    bounds, content = text_bounds(array)
    used = content[bounds[0] : bounds[-1]]
    where = np.flatnonzero(_MUST_ESCAPE[used])
    if where.size == 0:
        return array
    rows = np.unique(np.searchsorted(bounds, where + bounds[0], side="right") - 1)
    escaped = series(array.take(pa.array(rows))).str.replace_many(
        list(_ESCAPES), list(_ESCAPES.values())
    )
    pool = pa.concat_arrays([array, escaped.to_arrow(compat_level=_COMPAT).cast(pa.string())])
    pick = np.arange(len(array))
    pick[rows] = len(array) + np.arange(rows.size)
    return pool.take(pa.array(pick))


_COMPAT: Final = pl.CompatLevel.oldest()


def series(array: pa.Array) -> pl.Series:
    """Return an Arrow array as a polars series."""
    return pl.Series(pl.from_arrow(array))


def arrow_text(column: pl.Series) -> pa.StringArray:
    """Return a text series as an Arrow array with 32-bit offsets."""
    array = column.to_arrow(compat_level=_COMPAT)
    return array.cast(pa.string())


def several(columns: Sequence[pa.Array]) -> Index:
    """Return the rows in which more than one of some columns of one length holds a value."""
    filled = [column for column in columns if column.null_count < len(column)]
    if len(filled) < 2:
        return np.empty(0, dtype=np.int64)
    size = len(filled[0])
    counts = np.zeros(size, dtype=np.uint8)
    for column in filled:
        counts += _valid(column)
    return np.flatnonzero(counts > 1)


def double_texts(values: pl.Series) -> pl.Series:
    """Write doubles as JSON: with a fraction or exponent, what is no number as a string.

    ``NaN``, ``Infinity`` and ``-Infinity`` become JSON strings, as in the JSON mapping of
    protobuf, because JSON has no such numbers.

    Parameters
    ----------
    values : pl.Series
        Float64.

    Returns
    -------
    pl.Series
        JSON texts.

    Raises
    ------
    Nothing of its own.
    """
    texts = values.cast(pl.String)
    if values.is_finite().all():
        return texts
    return texts.replace({"NaN": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"'})


def double_text(value: float) -> str:
    """Write one double as `double_texts` does."""
    return str(double_texts(pl.Series([value], dtype=pl.Float64))[0])


def quote(text: str) -> str:
    """Write a text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True)
class KeyValues:
    """Attributes of many owners, flat.

    Parameters
    ----------
    offsets : ndarray of int64, shape (n_owners + 1,)
        Where each owner's attributes begin in the flat arrays.
    keys : pa.StringArray
        Attribute keys in file order.
    strings, booleans, integers, doubles : pa.Array
        Values of that type, null elsewhere.
    texts : pa.StringArray
        JSON text of every other value (bytes, arrays, maps), null elsewhere.
    """

    offsets: Index
    keys: pa.StringArray
    strings: pa.StringArray
    booleans: pa.BooleanArray
    integers: pa.Int64Array
    doubles: pa.DoubleArray
    texts: pa.StringArray

    @property
    def n_owners(self) -> int:
        """Number of owners."""
        return len(self.offsets) - 1

    @cached_property
    def owners(self) -> Index:
        """Owner of each attribute."""
        return np.repeat(np.arange(self.n_owners), np.diff(self.offsets))

    @cached_property
    def _encoded(self) -> pa.DictionaryArray:
        return self.keys.dictionary_encode()

    @cached_property
    def codes(self) -> Index:
        """Number of each attribute's key in `names`."""
        codes: Index = self._encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return codes

    @cached_property
    def names(self) -> list[str]:
        """Distinct keys."""
        names: list[str] = self._encoded.dictionary.to_pylist()
        return names

    def repeated(self) -> Index:
        """Return the attributes that a later one of the same owner and key overrides."""
        key = self.owners * max(len(self.names), 1) + self.codes
        ordered = np.sort(key)
        if not (ordered[1:] == ordered[:-1]).any():
            return np.empty(0, dtype=np.int64)
        order = np.argsort(key, kind="stable")
        same = key[order][1:] == key[order][:-1]
        return np.sort(order[:-1][same])

    def without(self, rows: Index) -> "KeyValues":
        """Return a copy that lacks some attributes."""
        keep = np.ones(len(self.keys), dtype=np.bool_)
        keep[rows] = False
        kept = np.concatenate([[0], np.cumsum(keep)])
        mask = pa.array(keep)
        return KeyValues(
            kept[self.offsets],
            self.keys.filter(mask),
            self.strings.filter(mask),
            self.booleans.filter(mask),
            self.integers.filter(mask),
            self.doubles.filter(mask),
            self.texts.filter(mask),
        )


def no_attributes(n_owners: int) -> KeyValues:
    """Return the attributes of owners that have none."""
    return KeyValues(
        np.zeros(n_owners + 1, dtype=np.int64),
        pa.array([], pa.string()),
        pa.array([], pa.string()),
        pa.array([], pa.bool_()),
        pa.array([], pa.int64()),
        pa.array([], pa.float64()),
        pa.array([], pa.string()),
    )


def joined_key_values(parts: Sequence[KeyValues]) -> KeyValues:
    """Lay the attributes of several groups of owners end to end."""
    sizes = np.cumsum([0, *(len(part.keys) for part in parts[:-1])])
    offsets = [part.offsets[1:] + size for part, size in zip(parts, sizes, strict=True)]
    columns = ("keys", "strings", "booleans", "integers", "doubles", "texts")
    return KeyValues(
        np.concatenate([[0], *offsets]),
        *(pa.concat_arrays([getattr(part, name) for part in parts]) for name in columns),
    )


def _valid(array: pa.Array) -> npt.NDArray[np.bool_]:
    if array.null_count == 0:
        return np.ones(len(array), dtype=np.bool_)
    valid: npt.NDArray[np.bool_] = pc.is_valid(array).to_numpy(zero_copy_only=False)
    return valid


def _value_pool(kv: KeyValues) -> tuple[list[pa.Array], Index, npt.NDArray[np.bool_]]:
    """Return texts of all values, which of them each attribute takes, and what is quoted."""
    n = len(kv.keys)
    quoted = _valid(kv.strings)
    pick = np.arange(n)
    pool = [escape_texts(kv.strings)]
    if quoted.all():
        return pool, pick, quoted
    size = n
    pool.append(pa.array(["null", "true", "false"]))
    pick[~quoted] = size
    size += 3
    for array, write in (
        (kv.booleans, None),
        (kv.integers, lambda part: part.cast(pl.String)),
        (kv.doubles, double_texts),
        (kv.texts, lambda part: part),
    ):
        if array.null_count == n:
            continue
        rows = np.flatnonzero(_valid(array))
        if write is None:
            truth = array.take(pa.array(rows)).to_numpy(zero_copy_only=False)
            pick[rows] = np.where(truth, n + 1, n + 2)
            continue
        pool.append(arrow_text(write(series(array.take(pa.array(rows))))))
        pick[rows] = size + np.arange(rows.size)
        size += rows.size
    return pool, pick, quoted


def attribute_texts(kv: KeyValues) -> pl.Series:
    """Write the attributes of every owner as a JSON object.

    Parameters
    ----------
    kv : KeyValues
        Attributes without repeated keys.

    Returns
    -------
    pl.Series
        One text per owner, ``{}`` where it has no attribute.

    Raises
    ------
    Nothing of its own.
    """
    n, owners = len(kv.keys), kv.n_owners
    if n == 0:
        return pl.repeat("{}", owners, dtype=pl.String, eager=True)
    pool, pick, quoted = _value_pool(kv)
    size = sum(len(part) for part in pool)
    names = [quote(name) for name in kv.names]
    fragments = [
        f"{before}{name}:{after}"
        for before in ("{", '",', ",")
        for after in ("", '"')
        for name in names
    ]
    closings = ["{}", '"}', "}"]
    first = np.zeros(n, dtype=np.bool_)
    filled = np.diff(kv.offsets) > 0
    first[kv.offsets[:-1][filled]] = True
    before = np.where(first, 0, np.where(np.concatenate([[False], quoted[:-1]]), 1, 2))
    fragment = size + (before * 2 + quoted) * len(names) + kv.codes
    closing = np.zeros(owners, dtype=np.int64)
    closing[filled] = np.where(quoted[kv.offsets[1:][filled] - 1], 1, 2)
    pieces = np.empty(2 * n + owners, dtype=np.int64)
    at = 2 * np.arange(n) + kv.owners
    pieces[at] = fragment
    pieces[at + 1] = pick
    ends = 2 * kv.offsets[1:] + np.arange(owners)
    pieces[ends] = size + len(fragments) + closing
    everything = pa.concat_arrays([*pool, pa.array(fragments), pa.array(closings)])
    joined = everything.take(pa.array(pieces))
    bounds, _ = text_bounds(joined)
    offsets = np.concatenate([bounds[:1], bounds[ends + 1]]).astype(np.int32)
    return series(pa.StringArray.from_buffers(owners, pa.py_buffer(offsets), joined.buffers()[2]))


def lifted_rows(kv: KeyValues, keys: Iterable[str]) -> Index:
    """Return, for each owner, the attribute that holds the first of some keys, or -1."""
    code_of = {name: code for code, name in enumerate(kv.names)}
    found = np.full(kv.n_owners, -1, dtype=np.int64)
    for key in reversed(list(keys)):
        code = code_of.get(key)
        if code is not None:
            rows = np.flatnonzero(kv.codes == code)
            found[kv.owners[rows]] = rows
    return found


def _array_text(text: str) -> str:
    value: Any = json.loads(text)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return text


def lift_texts(kv: KeyValues, keys: Iterable[str]) -> pl.Series:
    """Read one attribute of each owner as text.

    Parameters
    ----------
    kv : KeyValues
        Attributes without repeated keys.
    keys : Iterable[str]
        Spellings of the key, the preferred one first.

    Returns
    -------
    pl.Series
        String; numbers and booleans as JSON writes them, an array of strings (a header's
        values) joined by commas, null where no key stands.

    Raises
    ------
    Nothing of its own.
    """
    found = lifted_rows(kv, keys)
    here = found >= 0
    if not here.any():
        return pl.Series(values=[], dtype=pl.String).extend_constant(None, kv.n_owners)
    pick = pa.array(np.where(here, found, 0), mask=~here)
    texts = series(kv.strings.take(pick))
    rest = here & texts.is_null().to_numpy()
    if not rest.any():
        return texts
    part = pa.array(found[rest])
    other = pl.select(
        pl.coalesce(
            series(kv.integers.take(part)).cast(pl.String),
            series(kv.doubles.take(part)).cast(pl.String),
            series(kv.booleans.take(part)).cast(pl.String),
            series(kv.texts.take(part)),
        )
    ).to_series()
    arrays = other.str.starts_with("[").fill_null(False)
    if arrays.any():
        distinct = other.filter(arrays).unique().to_list()
        other = other.replace({text: _array_text(text) for text in distinct})
    return texts.scatter(np.flatnonzero(rest), other)


def lift_integers(kv: KeyValues, keys: Iterable[str]) -> pl.Series:
    """Read one attribute of each owner as an integer; text of digits counts as one.

    Parameters
    ----------
    kv : KeyValues
        Attributes without repeated keys.
    keys : Iterable[str]
        Spellings of the key, the preferred one first.

    Returns
    -------
    pl.Series
        Int64; null where no key stands or its value is no integer.

    Raises
    ------
    Nothing of its own.
    """
    found = lifted_rows(kv, keys)
    here = found >= 0
    if not here.any():
        return pl.Series(values=[], dtype=pl.Int64).extend_constant(None, kv.n_owners)
    pick = pa.array(np.where(here, found, 0), mask=~here)
    numbers = series(kv.integers.take(pick))
    rest = here & numbers.is_null().to_numpy()
    if not rest.any():
        return numbers
    texts = lift_texts(kv, keys)
    parsed = texts.str.strip_chars().str.replace(r"\.0$", "").cast(pl.Int64, strict=False)
    return pl.select(pl.coalesce(numbers, parsed)).to_series()


def lift(
    kv: KeyValues, wanted: Mapping[str, tuple[str, ...]], integers: set[str]
) -> list[pl.Series]:
    """Read several columns out of the attributes.

    Parameters
    ----------
    kv : KeyValues
        Attributes without repeated keys.
    wanted : Mapping[str, tuple of str]
        Column name to spellings of its key, the preferred one first.
    integers : set of str
        Columns that are Int64; the others are text.

    Returns
    -------
    list of pl.Series
        One series per column, one row per owner.

    Raises
    ------
    Nothing of its own.
    """
    return [
        (lift_integers if column in integers else lift_texts)(kv, keys).alias(column)
        for column, keys in wanted.items()
    ]
