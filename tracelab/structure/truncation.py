"""Texts that were cut: value lengths that pile up at a constant.

An SDK cuts every attribute value at one length and leaves no mark; back ends do the same. Cut
values all have that length, differ in content or break off where whole ones do not end, and none
is longer.
"""

from dataclasses import dataclass
from typing import Final

import polars as pl

from tracelab import schema
from tracelab.structure.skeleton import Skeleton, verdicts
from tracelab.structure.spine import Spine
from tracelab.traceset import TraceSet

MIN_LENGTH: Final = 48
"""Shorter values are names, numbers and ids; no sensible limit is below."""

_MEMBER: Final = r'"[^"\\]+":"(?:[^"\\]|\\.){48,}"'
_ESCAPE: Final = r"\\u[0-9a-fA-F]{4}|\\."

_GO_STACK: Final = 2048

_TAIL: Final = 6
"""Characters in which texts of one kind end alike, if they do: a clause, a bracket, a quote."""

_FEW: Final = 3
"""Least values of one length that are no accident."""

_LONG: Final = 1000
"""From here on hardly any length is a common limit: a text that always is the same and has just
such a length by nature is no likelihood any more."""

_SEVERED: Final = (
    # Python: nothing but frames, which are indented, and no line that names the exception.
    r"Traceback \(most recent call last\):\n(?:[ \t][^\n]*\n|\n)*(?:[ \t][^\n]*)?$",
    # Java, JavaScript, .NET: a frame that ends before its place in the code.
    r"\n\s+at [^\n]*[./(:][^\n]*[^\n\s)>\]\d]$",
)
"""Stack traces that break off within a frame."""

_FINISHED: Final = r"\n\s+at [^\n]+(?:\)|:line \d+)\s*$|\.go:\d+(?: \+0x[0-9a-f]+)?\s*$"
"""Stack traces whose last frame is whole, as a cut seldom leaves it."""

LENGTHS: Final = pl.Schema(
    {
        "service_name": pl.String,
        "name": pl.String,
        "length": pl.UInt32,
        "count": pl.Int64,
        "content_low": pl.UInt64,
        "content_high": pl.UInt64,
        "wordy": pl.Boolean,
        "ragged": pl.Int64,
        "severed": pl.Int64,
        "finished": pl.Int64,
        "tail_low": pl.UInt64,
        "tail_high": pl.UInt64,
    }
)
LONGEST: Final = pl.Schema(
    {"service_name": pl.String, "name": pl.String, "length": pl.UInt32, "key": pl.UInt64}
)


@dataclass(frozen=True, slots=True)
class ValueLengths:
    """Lengths of long texts in a bucket.

    Parameters
    ----------
    lengths : pl.DataFrame
        Schema LENGTHS: how many values of each length each attribute of a service has.
    longest : pl.DataFrame
        Schema LONGEST: which spans carry the longest value.
    """

    lengths: pl.DataFrame
    longest: pl.DataFrame


def measure_lengths(traces: TraceSet, spine: Spine) -> ValueLengths:
    """Measure the long texts of a bucket: attributes of spans, and exceptions.

    Parameters
    ----------
    traces : TraceSet
        The bucket.
    spine : Spine
        Its spine, rows in the order of ``traces.spans``.

    Returns
    -------
    ValueLengths
        What `find_truncated_values` needs.

    Raises
    ------
    SchemaError
        Never for a `TraceSet`.
    """
    values = pl.concat([_attribute_values(traces, spine), _event_values(traces, spine)])
    lengths = values.group_by("service_name", "name", "length").agg(
        pl.len().cast(pl.Int64).alias("count"),
        pl.col("content").min().alias("content_low"),
        pl.col("content").max().alias("content_high"),
        pl.col("wordy").any(),
        pl.col("ragged", "severed", "finished").sum().cast(pl.Int64),
        tail_low=pl.col("tail").min(),
        tail_high=pl.col("tail").max(),
    )
    longest = values.filter(pl.col("length") == pl.col("length").max().over("service_name", "name"))
    return ValueLengths(
        schema.conform(lengths, LENGTHS), schema.conform(longest.select(LONGEST.names()), LONGEST)
    )


def _attribute_values(traces: TraceSet, spine: Spine) -> pl.DataFrame:
    table = traces.spans.select("service_name", "attributes").hstack(spine.spans.select("key"))
    members = (
        table.filter(pl.col("attributes").str.contains(_MEMBER))
        .with_columns(pl.col("attributes").str.extract_all(_MEMBER))
        .explode("attributes")
    )
    name_value = (
        pl.col("attributes").str.strip_prefix('"').str.strip_suffix('"').str.splitn('":"', 2)
    )
    parts = members.with_columns(name_value.struct.rename_fields(["name", "value"])).unnest(
        "attributes"
    )
    return _measured(parts.with_columns(pl.col("value").str.replace_all(_ESCAPE, "_")))


def _event_values(traces: TraceSet, spine: Spine) -> pl.DataFrame:
    texts = traces.events.select(
        "trace_id", "span_id", "exception_message", "exception_stacktrace"
    ).unpivot(index=["trace_id", "span_id"], variable_name="name", value_name="value")
    texts = texts.filter(pl.col("value").str.len_bytes() >= MIN_LENGTH)
    owners = (
        traces.spans.select("trace_id", "span_id", "service_name")
        .hstack(spine.spans.select("key"))
        .join(texts, on=["trace_id", "span_id"], how="semi")
        .unique(["trace_id", "span_id"], keep="first", maintain_order=True)
    )
    return _measured(
        texts.join(
            owners,
            on=["trace_id", "span_id"],
            how="inner",
            maintain_order="left",
        ).with_columns(pl.col("name").str.replace("_", "."))
    )


def _measured(values: pl.DataFrame) -> pl.DataFrame:
    # runtime.Stack writes into a buffer of 2048 bytes: Go's recorded stacks always end there.
    go_stack = (
        (pl.col("name") == "exception.stacktrace")
        & (pl.col("value").str.len_bytes() == _GO_STACK)
        & pl.col("value").str.starts_with("goroutine ")
    )
    return (
        values.filter(~go_stack.fill_null(value=False))
        .select(
            pl.col("service_name").fill_null(""),
            "name",
            pl.col("value").str.len_chars().alias("length"),
            "key",
            pl.col("value").hash(3).alias("content"),
            pl.col("value").str.contains(r"[\s/?&=,;:]").alias("wordy"),
            _unclosed(pl.col("value")).alias("ragged"),
            _of_stacks(*_SEVERED).alias("severed"),
            _of_stacks(_FINISHED).alias("finished"),
            pl.col("value").str.tail(_TAIL).hash(4).alias("tail"),
        )
        .filter(pl.col("length") >= MIN_LENGTH)
    )


def _unclosed(text: pl.Expr) -> pl.Expr:
    """Whether brackets are left open: what a cut in the middle of a statement leaves."""
    return pl.any_horizontal(
        text.str.count_matches(left, literal=True) > text.str.count_matches(right, literal=True)
        for left, right in ("()", "[]", "{}")
    )


def _of_stacks(*patterns: str) -> pl.Expr:
    """Whether a stack trace looks like one of these; False for other texts."""
    like = pl.any_horizontal(pl.col("value").str.contains(pattern) for pattern in patterns)
    stack = pl.col("name") == "exception.stacktrace"
    return pl.when(stack).then(like).otherwise(pl.lit(value=False)).fill_null(value=False)


def find_truncated_values(skeleton: Skeleton, measured: list[ValueLengths]) -> pl.DataFrame:
    """Find spans with texts that were cut at a length limit.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    measured : list of ValueLengths
        Of all buckets.

    Returns
    -------
    pl.DataFrame
        Schema `VERDICTS`, one row per span.

    Raises
    ------
    SchemaError
        Never.
    """
    nothing = verdicts(pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String}))
    if not measured:
        return nothing
    limits = _limits(pl.concat([bucket.lengths for bucket in measured]))
    cut = pl.concat([bucket.longest for bucket in measured]).join(
        limits, on=["service_name", "name", "length"], how="inner"
    )
    if not cut.height:
        return nothing
    found = (
        cut.join(skeleton.rows_of(cut["key"]), on="key", how="inner")
        .sort("row", "name")
        .group_by("row", maintain_order=True)
        .agg(
            pl.col("name").unique().sort().str.join(", ").alias("names"),
            pl.col("length").max(),
            pl.col("count").sum(),
            pl.col("sure", "severed").max(),
        )
    )
    return verdicts(
        found.with_columns(
            kind=pl.lit("truncated_value"),
            boundary=pl.lit("same"),
            confidence="sure",
            evidence=pl.concat_list(
                pl.format(
                    "{}: {} at exactly {} characters, none is longer",
                    "names",
                    pl.when(pl.col("count") == 1)
                    .then(pl.lit("1 value of this service ends"))
                    .otherwise(pl.format("{} values of this service end", "count")),
                    "length",
                ),
                pl.when("severed").then(pl.lit("stack traces break off within a frame")),
            ).list.drop_nulls(),
            alternatives=pl.lit(["values that naturally have one length"], pl.List(pl.String)),
        )
    )


def _limits(lengths: pl.DataFrame) -> pl.DataFrame:
    """Lengths at which the values of an attribute are cut, with the probability that they are."""
    group, below = ["service_name", "name"], pl.col("length") < pl.col("top")
    table = (
        lengths.group_by(*group, "length")
        .agg(
            pl.col("count", "ragged", "severed", "finished").sum(),
            pl.col("content_low", "tail_low").min(),
            pl.col("content_high", "tail_high").max(),
            pl.col("wordy").any(),
        )
        .sort(*group, "length")
        .with_columns(top=pl.col("length").max().over(group))
        .with_columns(
            other=pl.col("count").filter(below).max().over(group).fill_null(0),
            kinds=pl.col("length").filter(below).n_unique().over(group),
            whole=pl.col("count").filter(below).sum().over(group),
            ragged_below=pl.col("ragged").filter(below).sum().over(group),
            end_low=pl.col("tail_low").filter(below).min().over(group),
            end_high=pl.col("tail_high").filter(below).max().over(group),
        )
        .filter(pl.col("length") == pl.col("top"))
    )
    shared = pl.col("name").n_unique().over("service_name", "length")
    common = pl.col("length").is_in(_COMMON)
    many = pl.col("count") >= _FEW
    pile = many & (pl.col("count") >= 3 * pl.col("other")) & (pl.col("kinds") >= 3)
    several = (shared >= 2) & (pl.col("count") >= 2) & common
    # Shorter ones close their brackets, those of just this length do not: cut, even if all the
    # same or one only.
    broken = common & (pl.col("ragged") == pl.col("count")) & (pl.col("whole") >= 3)
    broken &= pl.col("ragged_below") == 0
    severed = 2 * pl.col("severed") >= pl.col("count")
    severed &= (pl.col("severed") >= 2) | (common & (pl.col("severed") == 1))
    differ = pl.col("content_low") != pl.col("content_high")
    finished = 2 * pl.col("finished") > pl.col("count")
    found = (
        table.with_columns(severed=severed, common=common)
        .with_columns(
            sure=pl.when(
                ~pl.col("wordy")
                | finished
                | ~(differ | broken | _ends_elsewhere() | pl.col("severed"))
            )
            .then(None)
            .when(pile & common & (differ | broken))
            .then(0.98)
            .when(several | (broken & many))
            .then(0.95)
            .when((pile & ((shared >= 2) | _ends_elsewhere())) | pl.col("severed"))
            .then(0.9)
            .when((common & many) | broken)
            .then(0.85)
        )
        # One limit cuts an attribute wherever it is recorded.
        .with_columns(elsewhere=pl.col("sure").max().over("name", "length"))
        .with_columns(pl.col("sure").fill_null(pl.when("common", "wordy").then("elsewhere")))
    )
    return found.drop_nulls("sure").select(*group, "length", "count", "sure", "severed")


def _ends_elsewhere() -> pl.Expr:
    """Whether all shorter texts end alike, and those of a common length that is long do not."""
    alike = (pl.col("end_low") == pl.col("end_high")) & (pl.col("kinds") >= 3)
    same = (pl.col("tail_low") == pl.col("end_low")) & (pl.col("tail_high") == pl.col("end_low"))
    long = pl.col("length").is_in(_COMMON) & (pl.col("length") >= _LONG)
    return (alike & ~same & long).fill_null(value=False)


_COMMON: Final = sorted(
    {2**power for power in range(6, 17)}
    | {2**power - 1 for power in range(6, 17)}
    | {step * 10**power for power in (2, 3, 4) for step in (1, 2, 3, 4, 5, 8)}
    | {1250, 1500, 2500, 12000, 12500, 25000}
)
"""Lengths that people choose as limits; a longest value of just such a length is no accident
if it comes several times."""
