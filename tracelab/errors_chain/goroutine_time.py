"""When a goroutine profile was taken, and which words lead from functions to spans."""

from datetime import datetime, timedelta
from typing import Final

import polars as pl

from tracelab import schema

FOREIGN: Final = (
    r"^(?:runtime|net|net/http|internal/.*|sync|time|os|io|bufio|syscall|testing|reflect|context"
    r"|database/sql|golang\.org/.*|google\.golang\.org/.*|go\.opentelemetry\.io/.*)[./]"
)
"""Packages that every goroutine passes through: their functions tell nothing."""

_MIN_WORD: Final = 4
_COMMON: Final = ("main", "func", "handler", "serve", "http", "server")
_MIN_SHARE: Final = 0.8
"""Least share of the good moments that one stretch of time must hold to be believed."""

_LASTING: Final = 3.0
"""Times the usual duration of the spans that a stretch must last."""


def words_of(table: pl.DataFrame, text: pl.Expr, key: list[str]) -> pl.DataFrame:
    """Split a text into lower-case words, with the stem by which words are joined."""
    return (
        table.select(*key, text.str.replace_all(r"([a-z0-9])([A-Z])", "$1 $2").alias("text"))
        .with_columns(pl.col("text").str.to_lowercase().str.extract_all(r"[a-z]+").alias("word"))
        .explode("word")
        .filter(pl.col("word").str.len_bytes() >= _MIN_WORD, ~pl.col("word").is_in(_COMMON))
        .select(*key, "word", pl.col("word").str.slice(0, _MIN_WORD).alias("stem"))
        .unique()
    )


def function_words(goroutines: pl.DataFrame) -> pl.DataFrame:
    """Words of the functions that are the program's own."""
    functions = (
        goroutines.select("goroutine", "functions")
        .explode("functions")
        .filter(~pl.col("functions").str.contains(FOREIGN))
    )
    return words_of(functions, pl.col("functions").str.extract(r"([^/]*)$", 1), ["goroutine"])


def join_words(mine: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    """Join words that are equal, or of which one begins with the other (user, users)."""
    return mine.join(theirs, on="stem", how="inner", suffix="_named").filter(
        pl.col("word").str.starts_with(pl.col("word_named"))
        | pl.col("word_named").str.starts_with(pl.col("word"))
    )


def infer_time(goroutines: pl.DataFrame, spans: pl.DataFrame) -> datetime | None:
    """Find the one moment at which the spans that were open explain the profile best.

    Each span's name calls for some goroutines, by words; at the moment sought as many spans
    of each name were open as goroutines of the profile. None where several moments do as well.
    """
    named = spans.with_columns(
        pl.concat_str("name", "http_route", "rpc_method", separator=" ", ignore_nulls=True).alias(
            "told"
        ),
    )
    names = named.select("told").unique()
    wanted = (
        join_words(function_words(goroutines), words_of(names, pl.col("told"), ["told"]))
        .select("goroutine", "told")
        .unique()
        .join(goroutines.select("goroutine", "count"), on="goroutine")
        .group_by("told")
        .agg(pl.col("count").sum().alias("wanted"))
    )
    ours = named.join(wanted, on="told", how="inner").filter(
        pl.col("end_time") > pl.col("start_time")
    )
    if ours.is_empty():
        return None
    moments = (
        pl.concat(
            [
                ours.select("told", "wanted", pl.col(column).alias("at"), pl.lit(sign).alias("by"))
                for column, sign in (("start_time", 1), ("end_time", -1))
            ]
        )
        .sort("at", "by")
        .with_columns(pl.min_horizontal(pl.col("by").cum_sum().over("told"), "wanted").alias("met"))
        .with_columns(pl.col("met").diff().fill_null(pl.col("met")).over("told").alias("change"))
        .with_columns(pl.col("change").cum_sum().alias("explained"))
        .group_by("at", maintain_order=True)
        .agg(pl.col("explained").last())
        .with_columns((pl.col("at").shift(-1) - pl.col("at")).alias("lasting"))
        .filter(pl.col("lasting").is_not_null())
    )
    usual = ours.select((pl.col("end_time") - pl.col("start_time")).median()).item()
    return _steady(moments, _LASTING * usual)


def _steady(moments: pl.DataFrame, least: timedelta) -> datetime | None:
    """Find the middle of the one stretch that explains most and lasts.

    Requests that come and go add to it here and there, each for as long as it runs: what is
    explained for less than `least` is no better than what is explained next to it.
    """
    best = int(moments["explained"].max() or 0)  # type: ignore[arg-type]
    levels = sorted({best - round(best * part / 20) for part in range(11)}, reverse=True)
    for level in levels:
        stretches = (
            moments.filter(pl.col("explained") >= max(level, 1))
            .with_columns(
                (pl.col("at") != (pl.col("at") + pl.col("lasting")).shift(1))
                .fill_null(value=True)
                .cum_sum()
                .alias("stretch")
            )
            .group_by("stretch")
            .agg(pl.col("at").min(), pl.col("lasting").sum())
            .sort("lasting", "at")
        )
        if stretches.is_empty():
            return None
        longest = stretches.tail(1)
        lasting = longest["lasting"].item()
        alone = lasting >= _MIN_SHARE * stretches["lasting"].sum()  # type: ignore[operator]
        if alone and (lasting >= least or level == levels[-1]):
            middle = longest.select((pl.col("at") + pl.col("lasting") / 2).cast(schema.TIME)).item()
            return middle if isinstance(middle, datetime) else None
    return None
