"""Requests, errors and durations per service and time bin, out of spans."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from tracelab import schema, semconv
from tracelab.exceptions import ParameterError
from tracelab.signals.grid import bins_between, duration_ns
from tracelab.traceset import TraceSet

_GRPC_CODE: Final = (
    r'"(?:rpc\.grpc\.status_code|rpc\.response\.status_code|grpc\.status_code)"'
    r'\s*:\s*"?([A-Za-z_]+|\d+)'
)
_SAMPLING: Final = r"(?:^|,)\s*ot=(?:[^,]*;)?th:([0-9a-fA-F]{1,14})"
_KEY: Final = ["service_name", "span_name"]
_QUIET_SHARE: Final = 0.2
_IMPROBABLE: Final = 14.0
_AT_ONCE: Final = 8

_SERVES: Final = pl.col("kind").is_in(["SERVER", "CONSUMER"])


def red_series(
    traces: TraceSet,
    *,
    every: str = "30s",
    max_operations: int = 20,
    breaks: pl.DataFrame | None = None,
    hops: pl.DataFrame | None = None,
    serving: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """Count requests, errors, 5xx and durations per service, operation and time bin.

    Requests are SERVER and CONSUMER spans; a service with neither counts its local roots
    (spans whose parent is not one of its own). A request lies in the bin of its start.

    Parameters
    ----------
    traces : TraceSet
        The capture.
    every : str
        Bin, 5 seconds to 5 minutes.
    max_operations : int
        Operations with a series of their own, per service, the busiest first; names with an
        id in them would make millions.
    breaks, hops : pl.DataFrame, optional
        Schemas `BREAKS` and `ERROR_HOPS`; if given, breaks and swallowed errors are counted
        per service as further triggers.
    serving : sequence of str or None, optional
        Services with SERVER or CONSUMER spans in other parts of the capture, where `traces` is
        a part of one: local roots do not count for them.

    Returns
    -------
    pl.DataFrame
        Schema `RED` on one grid. Counts are weighted by the sampling threshold of the trace
        state (``ot=th``); `sampled_requests` is not. Where a feed was silent the counts are
        null: nothing at all came for so long that a pause is out of the question at a fifth of
        the mean traffic (below one in a million). A silence of all services that lasts over a
        day has no rows.

    Raises
    ------
    ParameterError
        If `traces` is no TraceSet, `every` is no duration between 5 s and 5 min, or
        `max_operations` is negative.
    SchemaError
        If a table lacks a column.
    """
    given: object = traces
    if not isinstance(given, TraceSet):
        raise ParameterError(
            f"traces must be a TraceSet, not a {type(given).__name__}; read one with read_traces"
        )
    bin_ns = duration_ns(every, name="every")
    if not 5 * 10**9 <= bin_ns <= 300 * 10**9:
        raise ParameterError(f"every={every!r} must lie between '5s' and '5m'")
    if max_operations < 0:
        raise ParameterError(f"max_operations={max_operations} must not be negative")
    requests = _requests(traces.spans, bin_ns, serving)
    whole = requests.with_columns(pl.lit(None, pl.String).alias("span_name"))
    busiest = (
        requests.group_by(_KEY)
        .len()
        .sort("len", "span_name", descending=[True, False])
        .group_by("service_name", maintain_order=True)
        .head(max_operations)
        .select(_KEY)
    )
    single = requests.join(busiest, on=_KEY, nulls_equal=True).filter(
        pl.col("span_name").is_not_null()
    )
    counts = _counts(pl.concat([whole, single]))
    if not counts.height:
        return schema.empty(schema.RED)
    counts = counts.with_columns(pl.lit(bin_ns).alias("bin_ns"))
    further = _further(traces.spans, breaks, hops, bin_ns)
    grid = _fill_grid(counts, bin_ns)
    grid = grid.join(further, on=["service_name", "time"], how="left", nulls_equal=True)
    for name, given in (("breaks", breaks), ("swallowed", hops), ("retries", traces.spans)):
        whole_service = pl.col("span_name").is_null() & pl.lit(given is not None)
        grid = grid.with_columns(
            pl.when(whole_service).then(pl.col(name).fill_null(0.0)).alias(name)
        )
    return _silence(schema.conform(grid, schema.RED))


def merge_red(*tables: pl.DataFrame) -> pl.DataFrame:
    """Add up RED tables of parts of one capture, such as the buckets of a store.

    Parameters
    ----------
    *tables : pl.DataFrame
        Schema `RED`, of one bin width and one set of bucket edges per series.

    Returns
    -------
    pl.DataFrame
        Schema `RED`: sums; which bins were silent is decided anew, since a part sees less
        traffic than the whole.

    Raises
    ------
    SchemaError
        If a table lacks a column.
    ParameterError
        If bin widths differ.
    """
    rows = add_red(*tables)
    if not rows.height:
        return rows
    filled = _fill_grid(rows, int(rows["bin_ns"][0]))
    return _silence(schema.conform(filled, schema.RED))


def add_red(*tables: pl.DataFrame) -> pl.DataFrame:
    """Add up RED tables whose sums will be added to others: no silence is decided.

    Parameters
    ----------
    *tables : pl.DataFrame
        As for `merge_red`.

    Returns
    -------
    pl.DataFrame
        Schema `RED`, bins with counts only, in any order.

    Raises
    ------
    SchemaError
        If a table lacks a column.
    ParameterError
        If bin widths differ.
    """
    total = schema.empty(schema.RED)
    for table in tables:
        schema.require_columns(table, schema.RED, name="red")
    # A few at a time: hundreds of tables would stand in memory twice.
    for begin in range(0, len(tables), _AT_ONCE):
        some = [
            schema.conform(table.select(schema.RED.names()), schema.RED).filter(
                pl.col("requests").is_not_null()
            )
            for table in tables[begin : begin + _AT_ONCE]
        ]
        total = _summed(pl.concat([total, *some]))
    return total


def _summed(rows: pl.DataFrame) -> pl.DataFrame:
    if rows["bin_ns"].n_unique() > 1:
        raise ParameterError(
            f"cannot add bins of {rows['bin_ns'].unique().to_list()} ns; use one width"
        )
    rows = rows.with_row_index("_row")
    by = [*_KEY, "time", "bin_ns", "bucket_edges_ns"]
    sums = (
        rows.group_by(by, maintain_order=True)
        .agg(
            pl.col("requests", "errors", "errors_5xx", "sampled_requests").sum(),
            *(
                pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name)
                for name in ("breaks", "swallowed", "retries")
            ),
            "_row",
        )
        .with_row_index("_sum")
    )
    belongs = sums.select("_sum", "_row").explode("_row", empty_as_null=True)
    counted = rows.select("_row", "duration_counts").join(belongs, on="_row", maintain_order="left")
    durations = [pl.DataFrame(schema={"_sum": pl.UInt32, "duration_counts": pl.List(pl.Float64)})]
    width = pl.col("duration_counts").list.len()
    for (n_buckets,), alike in counted.filter(width > 0).group_by(width, maintain_order=True):
        place, owner = np.unique(alike["_sum"].to_numpy(), return_inverse=True)
        table = np.zeros((place.size, n_buckets))
        cells = alike["duration_counts"].explode(empty_as_null=True).to_numpy()
        np.add.at(table, owner, cells.reshape(-1, n_buckets))
        durations.append(
            pl.DataFrame(
                {
                    "_sum": pl.Series(place, dtype=pl.UInt32),
                    "duration_counts": pl.Series(table).cast(pl.List(pl.Float64)),
                }
            )
        )
    added = sums.join(pl.concat(durations), on="_sum", how="left", maintain_order="left")
    return schema.conform(added.select(schema.RED.names()), schema.RED)


def serving_services(traces: TraceSet) -> list[str | None]:
    """List the services that have SERVER or CONSUMER spans.

    Parameters
    ----------
    traces : TraceSet
        A capture, or a part of one.

    Returns
    -------
    list of str or None
        Their names, sorted, the unnamed last.

    Raises
    ------
    SchemaError
        Never for a `TraceSet`.
    """
    return traces.spans.filter(_SERVES)["service_name"].unique().sort(nulls_last=True).to_list()


def _requests(
    spans: pl.DataFrame, bin_ns: int, serving: Sequence[str | None] | None
) -> pl.DataFrame:
    served = spans.lazy().group_by("service_name").agg(_SERVES.any().alias("_serves")).collect()
    elsewhere = pl.Series(serving or [], dtype=pl.String).implode()
    rest = served.filter(
        ~pl.col("_serves") & ~pl.col("service_name").is_in(elsewhere, nulls_equal=True)
    )["service_name"]
    chosen = spans.filter(_SERVES)
    if len(rest):
        own = spans.filter(pl.col("service_name").is_in(rest.implode(), nulls_equal=True))
        parents = own.select("trace_id", pl.col("span_id").alias("parent_span_id"), "service_name")
        roots = own.join(
            parents,
            on=["trace_id", "parent_span_id", "service_name"],
            how="anti",
            nulls_equal=False,
        )
        chosen = pl.concat([chosen, roots])
    status = pl.col("http_response_status_code")
    http = status.is_between(semconv.HTTP_SERVER_ERROR_MIN, semconv.HTTP_SERVER_ERROR_MAX)
    code = pl.col("attributes").str.extract(_GRPC_CODE, 1)
    faults = [*map(str, semconv.GRPC_SERVER_ERRORS), *semconv.GRPC_SERVER_ERRORS.values()]
    # The key is sought only where a span speaks RPC, or a proxy's tag stands in for it.
    rpc = pl.col("attributes").str.contains("status_code", literal=True) & (
        pl.col("rpc_system").is_not_null() | pl.col("attributes").str.contains("grpc", literal=True)
    )
    # A client span's 5xx is its peer's; it can be a local root.
    answers = ~pl.col("kind").is_in(["CLIENT", "PRODUCER", "CONSUMER"])
    threshold = pl.col("trace_state").str.extract(_SAMPLING, 1).str.pad_end(14, "0")
    rejected = threshold.str.to_integer(base=16, strict=False).fill_null(0)
    start = pl.col("start_time").cast(pl.Int64)
    return chosen.filter(pl.col("start_time").is_not_null()).select(
        "service_name",
        pl.col("name").alias("span_name"),
        (start - start % bin_ns).alias("time"),
        "duration_ns",
        (pl.col("status_code") == "ERROR").fill_null(False).alias("error"),
        (
            answers.fill_null(True)
            & (
                http.fill_null(False)
                | (rpc.fill_null(False) & code.str.to_uppercase().is_in(faults).fill_null(False))
            )
        ).alias("error_5xx"),
        (float(2**56) / (2**56 - rejected).cast(pl.Float64)).alias("weight"),
    )


def _counts(requests: pl.DataFrame) -> pl.DataFrame:
    """Return one row per series and bin that has a request."""
    edges = np.asarray(schema.DURATION_EDGES_NS)
    durations = requests["duration_ns"].fill_null(-1).to_numpy()
    rows = requests.with_columns(
        # An upper edge belongs to its bucket, as Prometheus' le does.
        pl.Series("_bucket", np.searchsorted(edges, durations, side="left")),
        pl.Series("_timed", durations >= 0),
    )
    keys = [*_KEY, "time"]
    sums = rows.group_by(keys).agg(
        pl.col("weight").sum().alias("requests"),
        pl.col("weight").filter("error").sum().alias("errors"),
        pl.col("weight").filter("error_5xx").sum().alias("errors_5xx"),
        pl.len().cast(pl.Float64).alias("sampled_requests"),
    )
    sums = sums.sort(keys, nulls_last=False).with_row_index("_row")
    cells = (
        rows.filter("_timed")
        .group_by([*keys, "_bucket"])
        .agg(pl.col("weight").sum())
        .join(sums.select("_row", *keys), on=keys, nulls_equal=True)
    )
    table = np.zeros((sums.height, len(edges) + 1))
    table[cells["_row"].to_numpy(), cells["_bucket"].to_numpy()] = cells["weight"].to_numpy()
    return sums.drop("_row").with_columns(
        pl.col("time").cast(schema.TIME),
        pl.Series("duration_counts", table).cast(pl.List(pl.Float64))
        if sums.height
        else pl.lit(None, pl.List(pl.Float64)).alias("duration_counts"),
        pl.lit(list(edges), dtype=pl.List(pl.Int64)).alias("bucket_edges_ns"),
    )


def _fill_grid(counts: pl.DataFrame, bin_ns: int) -> pl.DataFrame:
    """Add the bins without a request, as zeros."""
    bins = bins_between(counts["time"].cast(pl.Int64).to_numpy() // bin_ns, bin_ns)
    times = pl.Series("time", bins * bin_ns).cast(schema.TIME)
    series = counts.group_by(_KEY).agg(pl.col("bucket_edges_ns").drop_nulls().first())
    series = series.sort(_KEY, nulls_last=False)
    grid = series.join(times.to_frame(), how="cross")
    zeros = pl.lit(0.0).repeat_by(pl.col("bucket_edges_ns").list.len() + 1)
    joined = grid.join(
        counts.drop("bucket_edges_ns"), on=[*_KEY, "time"], how="left", nulls_equal=True
    )
    empty = pl.col("requests").is_null()
    return joined.with_columns(
        pl.lit(bin_ns).alias("bin_ns"),
        *(
            pl.col(n).fill_null(0.0)
            for n in ("requests", "errors", "errors_5xx", "sampled_requests")
        ),
        pl.when(empty & pl.col("bucket_edges_ns").is_not_null())
        .then(zeros)
        .otherwise("duration_counts")
        .alias("duration_counts"),
    )


def _further(
    spans: pl.DataFrame, breaks: pl.DataFrame | None, hops: pl.DataFrame | None, bin_ns: int
) -> pl.DataFrame:
    """Count the further triggers per service and bin."""

    def per_bin(table: pl.DataFrame, service: str, time: str, name: str) -> pl.DataFrame:
        moment = pl.col(time).cast(pl.Int64)
        return (
            table.filter(pl.col(time).is_not_null())
            .group_by(
                pl.col(service).alias("service_name"),
                (moment - moment % bin_ns).cast(schema.TIME).alias("time"),
            )
            .agg(pl.len().cast(pl.Float64).alias(name))
        )

    retried = per_bin(
        spans.filter(pl.col("resend_count") > 0), "service_name", "start_time", "retries"
    )
    broken = schema.empty(schema.BREAKS) if breaks is None else breaks
    schema.require_columns(broken, ("service_name", "time", "severity"), name="breaks")
    lost = schema.empty(schema.ERROR_HOPS) if hops is None else hops
    schema.require_columns(lost, ("parent_service", "time", "verdict"), name="hops")
    keys = ["service_name", "time"]
    return retried.join(
        per_bin(broken.filter(pl.col("severity") != "info"), "service_name", "time", "breaks"),
        on=keys,
        how="full",
        coalesce=True,
        nulls_equal=True,
    ).join(
        per_bin(
            lost.filter(pl.col("verdict") == "swallowed"), "parent_service", "time", "swallowed"
        ),
        on=keys,
        how="full",
        coalesce=True,
        nulls_equal=True,
    )


def _silence(red: pl.DataFrame) -> pl.DataFrame:
    """Set the counts of bins to null in which a feed was silent."""
    red = red.sort(*_KEY, "time", nulls_last=False)
    whole = red.filter(pl.col("span_name").is_null())
    together = whole.group_by("time").agg(pl.col("sampled_requests").sum()).sort("time")
    nobody = together.filter(_improbable(together["sampled_requests"].to_numpy()))["time"]
    marks = [
        pl.DataFrame(
            {"service_name": [], "time": []},
            schema={"service_name": pl.String, "time": schema.TIME},
        )
    ]
    for part in whole.partition_by("service_name"):
        quiet = _improbable(part["sampled_requests"].to_numpy())
        if quiet.any():
            marks.append(part.filter(pl.Series(quiet)).select("service_name", "time"))
    silent = pl.concat(marks).with_columns(pl.lit(True).alias("_silent"))
    names = ["requests", "errors", "errors_5xx", "duration_counts", "sampled_requests"]
    names += ["breaks", "swallowed", "retries"]
    spoke = pl.col("_silent").is_null() & ~pl.col("time").is_in(nobody.implode())
    return (
        red.join(
            silent, on=["service_name", "time"], how="left", nulls_equal=True, maintain_order="left"
        )
        .with_columns(pl.when(spoke).then(pl.col(name)).alias(name) for name in names)
        .drop("_silent")
    )


def _improbable(counts: np.ndarray) -> np.ndarray:
    """Mark runs of zeros too long for a fifth of the mean rate (Poisson, below 1e-6)."""
    zero = counts <= 0
    edges = np.diff(np.concatenate(([0], zero.astype(np.int8), [0])))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    out = np.zeros(len(counts), bool)
    least = _IMPROBABLE / max(_QUIET_SHARE * float(counts.mean()), 1e-12)
    for low, high in zip(first, last, strict=True):
        if high - low >= least:
            out[low:high] = True
    return out
