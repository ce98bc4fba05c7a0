"""Attribute columns back to OTLP's key-value lists, without a loop per span.

Texts whose values are plain are cut into pairs by a native regular expression and put
together again as OTLP; only texts with arrays, maps or bytes are parsed one distinct text
at a time.
"""

import json
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracelab.io.attributes import Index, arrow_text, double_text, quote, series

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_PAIR: Final = rf'{_STRING}:(?:{_STRING}|[^,{{}}\[\]"]+)'
_SPLIT: Final = rf"(?s)^({_STRING}):(.*)$"


def _value(value: Any) -> dict[str, Any]:
    """Turn one value of an attribute column into a canonical AnyValue."""
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    if isinstance(value, dict):
        encoded = value.get("bytes")
        if len(value) == 1 and isinstance(encoded, str):
            return {"bytesValue": encoded}
        return {"kvlistValue": {"values": key_value_list(value)}}
    return {}


def key_value_list(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn one parsed attribute column value into canonical OTLP JSON.

    Parameters
    ----------
    attributes : dict
        What the column's text says.

    Returns
    -------
    list of dict
        OTLP key-values. A map whose only key is ``bytes`` with a text is taken for bytes.

    Raises
    ------
    Nothing of its own.
    """
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class AttributePairs:
    """Attributes of many owners, still as JSON text but cut into pairs.

    Parameters
    ----------
    texts : pl.Series
        JSON objects, one per owner; null counts as empty.

    Raises
    ------
    ValueError
        If a text is no JSON object.
    """

    def __init__(self, texts: pl.Series) -> None:
        texts = texts.fill_null("{}").alias("text")
        pairs = texts.str.extract_all(_PAIR)
        whole = pl.select(pl.lit("{") + pairs.list.join(",") + pl.lit("}")).to_series()
        self.odd = (whole != texts).arg_true().to_numpy().astype(np.int64)
        if self.odd.size:
            texts, pairs = self._with_odd_ones(texts, pairs)
        arrow = pairs.to_arrow(compat_level=pl.CompatLevel.oldest())
        lengths = pairs.list.len().to_numpy().astype(np.int64)
        self.offsets: Index = np.concatenate([[0], np.cumsum(lengths)])
        flat = series(arrow.flatten()) if len(arrow) else pl.Series(values=[], dtype=pl.String)
        parts = flat.str.extract_groups(_SPLIT).struct.unnest()
        self.keys, self.values = parts.to_series(0), parts.to_series(1)

    @staticmethod
    def _with_odd_ones(texts: pl.Series, pairs: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Cut the texts that hold nested values by the standard parser, distinct ones once."""
        odd = pl.select(pl.lit("{") + pairs.list.join(",") + pl.lit("}")).to_series() != texts
        cut = {}
        for text in texts.filter(odd).unique().to_list():
            parsed = json.loads(text)
            if not isinstance(parsed, dict):
                raise ValueError(f"attributes are no JSON object: {text[:100]}")
            cut[text] = [f"{quote(key)}:{_written(value)}" for key, value in parsed.items()]
        rows = odd.arg_true().to_list()
        replaced = pl.Series([cut[texts[row]] for row in rows], dtype=pl.List(pl.String))
        pool = pl.concat([pairs, replaced])
        pick = np.arange(len(pairs))
        pick[rows] = len(pairs) + np.arange(len(rows))
        return texts, pool.gather(pick)

    def otlp_json(self) -> pl.Series:
        """Write each owner's attributes as an OTLP JSON array."""
        if len(self.keys) == 0:
            return pl.repeat("[]", len(self.offsets) - 1, dtype=pl.String, eager=True)
        first = self.values.str.slice(0, 1)
        frame = pl.DataFrame({"key": self.keys, "value": self.values, "first": first})
        value, begin = pl.col("value"), pl.col("first")
        written = frame.select(
            pl.concat_str(
                pl.lit('{"key":'),
                "key",
                pl.lit(',"value":{'),
                pl.when(begin == '"')
                .then(pl.lit('"stringValue":') + value)
                .when(begin.is_in(["t", "f"]))
                .then(pl.lit('"boolValue":') + value)
                .when(begin.is_in(["[", "{"]))
                .then(value.replace(self._nested()))
                .when(begin == "n")
                .then(pl.lit(""))
                .when(value.str.contains("[.eE]"))
                .then(pl.lit('"doubleValue":') + value)
                .otherwise(pl.lit('"intValue":"') + value + pl.lit('"')),
                pl.lit("}}"),
            )
        ).to_series()
        return _joined(written, self.offsets)

    def _nested(self) -> dict[str, str]:
        """Return the OTLP JSON of each distinct nested value, without its braces."""
        nested = self.values.filter(self.values.str.contains(r"^[\[{]")).unique().to_list()
        return {text: _dumps(_value(json.loads(text)))[1:-1] for text in nested}

    def nested_values(self) -> dict[str, dict[str, Any]]:
        """Return the canonical AnyValue of each distinct nested value."""
        nested = self.values.filter(self.values.str.contains(r"^[\[{]")).unique().to_list()
        return {text: _value(json.loads(text)) for text in nested}


def _written(value: Any) -> str:
    """Write a parsed value as attribute columns do."""
    if isinstance(value, float):
        return double_text(value)
    if isinstance(value, dict):
        return f"{{{','.join(f'{quote(key)}:{_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(_written(item) for item in value)}]"
    return _dumps(value)


def _joined(texts: pl.Series, offsets: Index) -> pl.Series:
    lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), arrow_text(texts))
    return series(pc.binary_join_element_wise("[", pc.binary_join(lists, ","), "]", ""))


def joined_arrays(texts: pl.Series, owners: Index, n_owners: int) -> pl.Series:
    """Join texts of each owner into a JSON array.

    Parameters
    ----------
    texts : pl.Series
        JSON texts, those of one owner together, owners in order.
    owners : ndarray of int64
        Owner of each text.
    n_owners : int
        Number of owners.

    Returns
    -------
    pl.Series
        One JSON array per owner, ``[]`` where it has none.

    Raises
    ------
    Nothing of its own.
    """
    counts = np.bincount(owners, minlength=n_owners)
    return _joined(texts, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
