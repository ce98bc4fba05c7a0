"""What the native protobuf decoder returns, laid out in levels."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracelab.io.attributes import (
    Index,
    KeyValues,
    arrow_text,
    attribute_texts,
    double_texts,
    escape_texts,
    series,
    several,
    text_bounds,
)
from tracelab.io.lean import decoder
from tracelab.io.levels import Level, Problems

MAX_DEPTH: Final = 100
"""Arrays and maps nested deeper are not followed; protobuf's own readers stop at 100 too."""


@dataclass
class _Reader:
    """Turns native columns into series, noting what is not valid text."""

    problems: Problems

    def text(self, array: pa.Array, message: Index, noun: str) -> pa.StringArray:
        """Read bytes as UTF-8; invalid bytes become U+FFFD and a reject row."""
        texts = pa.StringArray.from_buffers(len(array), *_text_buffers(array))
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid:
            return self._mended(array, message, noun)
        return texts

    def _mended(self, array: pa.Array, message: Index, noun: str) -> pa.StringArray:
        texts = []
        for row, value in enumerate(array.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(value.decode(errors="replace"))
                self.problems.add(
                    message[row],
                    f"invalid UTF-8 in {noun}; the bytes in question became U+FFFD",
                    value.decode(errors="replace"),
                )
        return pa.array(texts, pa.string())


def _text_buffers(array: pa.Array) -> tuple[pa.Buffer, pa.Buffer, pa.Buffer | None, int, int]:
    validity, offsets, content = array.buffers()
    return offsets, content, validity, array.null_count, array.offset


def hex_ids(array: pa.Array) -> pl.Series:
    """Write binary ids of any length as lower-case hex."""
    bounds, content = text_bounds(array)
    used = content[bounds[0] : bounds[-1]]
    digits = _HEX[used]
    offsets = ((bounds - bounds[0]) * 2).astype(np.int32)
    return series(
        pa.StringArray.from_buffers(len(array), pa.py_buffer(offsets), pa.py_buffer(digits))
    )


_HEX: Final = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype=np.uint16)


def items_and_owners(column: pa.ListArray) -> tuple[pa.Array, Index]:
    """Return the items of a list column and the row that holds each."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.values, np.repeat(np.arange(len(column)), np.diff(offsets))


def member(struct: pa.StructArray, name: str) -> pa.Array:
    """Return a field of a struct array, whatever the struct's own nulls."""
    return struct.field(struct.type.get_field_index(name))


_TYPES: Final = (
    "string_value",
    "bool_value",
    "int_value",
    "double_value",
    "array_value",
    "kvlist_value",
    "bytes_value",
)


class _Values:
    """AnyValues of one block, decoded level by level."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader

    def key_values(
        self, column: pa.ListArray, message: Index, noun: str, depth: int = 0
    ) -> KeyValues:
        """Read a column of attribute lists; `message` is that of each owner."""
        offsets = column.offsets.to_numpy().astype(np.int64)
        pairs = column.values
        of_pair = np.repeat(message, np.diff(offsets))
        keys = self.reader.text(member(pairs, "key"), of_pair, f"an attribute key of {noun}")
        return KeyValues(offsets, keys, *self.columns(member(pairs, "value"), of_pair, noun, depth))

    def columns(
        self, values: pa.StructArray, message: Index, noun: str, depth: int = 0
    ) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array, pa.Array]:
        """Split AnyValues by type; bytes, arrays and maps become JSON text."""
        values = self._single(values, message, noun)
        strings = self.reader.text(
            member(values, "string_value"), message, f"an attribute value of {noun}"
        )
        texts = pa.nulls(len(values), pa.string())
        for name, write in (
            ("bytes_value", self._bytes_texts),
            ("array_value", self._array_texts),
            ("kvlist_value", self._map_texts),
        ):
            column = member(values, name)
            if column.null_count == len(column):
                continue
            rows = np.flatnonzero(pc.is_valid(column).to_numpy(zero_copy_only=False))
            written = write(column.take(pa.array(rows)), message[rows], noun, depth)
            pick = np.zeros(len(values), dtype=np.int64)
            pick[rows] = np.arange(rows.size)
            absent = np.ones(len(values), dtype=np.bool_)
            absent[rows] = False
            texts = pc.coalesce(texts, written.take(pa.array(pick, mask=absent)))
        return (
            strings,
            member(values, "bool_value"),
            member(values, "int_value"),
            member(values, "double_value"),
            texts,
        )

    def _single(self, values: pa.StructArray, message: Index, noun: str) -> pa.StructArray:
        """Keep one type of each value: damage can set several, and the decoder hands on all."""
        columns = [member(values, name) for name in _TYPES]
        rows = several(columns)
        if not rows.size:
            return values
        for row in rows.tolist():
            self.reader.problems.add(
                message[row], f"a value of {noun} has several types; the first of them is kept"
            )
        taken = np.zeros(len(values), dtype=np.bool_)
        kept = []
        for column in columns:
            kept.append(pc.if_else(pa.array(taken), pa.scalar(None, column.type), column))
            taken |= column.is_valid().to_numpy(zero_copy_only=False)
        return pa.StructArray.from_arrays(kept, names=list(_TYPES))

    def texts(
        self, values: pa.StructArray, message: Index, noun: str, depth: int
    ) -> pa.StringArray:
        """Write AnyValues as JSON."""
        strings, booleans, integers, doubles, texts = self.columns(values, message, noun, depth)
        quoted = pc.binary_join_element_wise('"', escape_texts(strings), '"', "")
        return pc.coalesce(
            quoted,
            booleans.cast(pa.string()),
            integers.cast(pa.string()),
            arrow_text(double_texts(series(doubles))),
            texts,
            "null",
        )

    def _bytes_texts(
        self, column: pa.Array, _message: Index, _noun: str, _depth: int
    ) -> pa.StringArray:
        encoded = series(column).bin.encode("base64")
        return arrow_text(pl.select(pl.lit('{"bytes":"') + encoded + pl.lit('"}')).to_series())

    def _array_texts(
        self, column: pa.Array, message: Index, noun: str, depth: int
    ) -> pa.StringArray:
        lists, good = self._decoded("common.v1.ArrayValue", column, message, noun, depth)
        if lists is None:
            return pa.nulls(len(column), pa.string())
        items, owner = items_and_owners(lists)
        texts = self.texts(items, message[good][owner], noun, depth + 1)
        joined = pc.binary_join(pa.ListArray.from_arrays(lists.offsets, texts), ",")
        return _spread(pc.binary_join_element_wise("[", joined, "]", ""), good, len(column))

    def _map_texts(self, column: pa.Array, message: Index, noun: str, depth: int) -> pa.StringArray:
        lists, good = self._decoded("common.v1.KeyValueList", column, message, noun, depth)
        if lists is None:
            return pa.nulls(len(column), pa.string())
        pairs = self.key_values(lists, message[good], noun, depth + 1)
        repeated = pairs.repeated()
        if repeated.size:
            pairs = pairs.without(repeated)
        return _spread(arrow_text(attribute_texts(pairs)), good, len(column))

    def _decoded(
        self, name: str, column: pa.Array, message: Index, noun: str, depth: int
    ) -> tuple[pa.ListArray | None, Index]:
        """Decode nested values; those that are broken or too deep are left out and noted."""
        problems = self.reader.problems
        if depth >= MAX_DEPTH:
            for row in message:
                problems.add(row, f"a value of {noun} is nested deeper than {MAX_DEPTH}; null")
            return None, np.empty(0, dtype=np.int64)
        good = np.arange(len(column))
        try:
            batch = decoder(name)(column)
        except ValueError:
            kept = []
            for row, value in enumerate(column.to_pylist()):
                try:
                    decoder(name)([value])
                    kept.append(row)
                except ValueError as error:
                    problems.add(message[row], f"a value of {noun} is broken: {error}; null")
            good = np.array(kept, dtype=np.int64)
            batch = decoder(name)(column.take(pa.array(good)))
        return batch.column(0), good


def _spread(texts: pa.StringArray, rows: Index, size: int) -> pa.StringArray:
    if len(rows) == size:
        return texts
    pick = np.zeros(size, dtype=np.int64)
    absent = np.ones(size, dtype=np.bool_)
    pick[rows] = np.arange(len(rows))
    absent[rows] = False
    return texts.take(pa.array(pick, mask=absent))


class NativeLevels:
    """Builds the levels of one native batch."""

    def __init__(self, problems: Problems) -> None:
        self.reader = _Reader(problems)
        self.values = _Values(self.reader)

    def level(
        self,
        rows: pa.StructArray,
        parent: Index,
        message: Index,
        noun: str,
        *,
        texts: tuple[str, ...] = (),
        ids: tuple[str, ...] = (),
        numbers: dict[str, str] | None = None,
        attributes: pa.Array | None = None,
    ) -> Level:
        """Read some fields of a struct array; `numbers` maps column to field."""
        columns = {
            name: series(self.reader.text(member(rows, name), message, f"{name} of {noun}"))
            for name in texts
        }
        columns.update({name: hex_ids(member(rows, name)) for name in ids})
        columns.update({name: series(member(rows, of)) for name, of in (numbers or {}).items()})
        lists = member(rows, "attributes") if attributes is None else attributes
        return Level(parent, message, columns, self.values.key_values(lists, message, noun))

    def envelope(
        self, batch: pa.RecordBatch, scopes_name: str, leaves_name: str, sources: Index
    ) -> tuple[Level, Level, pa.Array, Index]:
        """Read resources and scopes; return the leaves and the scope of each too."""
        owners, message = items_and_owners(batch.column(0))
        message = sources[message]
        resource = member(owners, "resource")
        resources = self.level(
            owners,
            message,
            message,
            "a resource",
            texts=("schema_url",),
            attributes=member(resource, "attributes"),
        )
        resources.columns["dropped_attributes_count"] = series(
            member(resource, "dropped_attributes_count")
        )
        groups, owner = items_and_owners(member(owners, scopes_name))
        scope = member(groups, "scope")
        of_scope = message[owner]
        scopes = self.level(
            scope,
            owner,
            of_scope,
            "a scope",
            texts=("name", "version"),
            numbers={"dropped_attributes_count": "dropped_attributes_count"},
        )
        scopes.columns["schema_url"] = series(
            self.reader.text(member(groups, "schema_url"), of_scope, "schema_url of a scope")
        )
        leaves, group = items_and_owners(member(groups, leaves_name))
        return resources, scopes, leaves, group
