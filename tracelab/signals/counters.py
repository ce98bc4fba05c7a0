"""RED out of counters: what OTLP metric points, or any samples of counters, add per bin."""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from tracelab import schema, semconv
from tracelab.exceptions import ParameterError
from tracelab.signals.grid import bins_between, duration_ns
from tracelab.traceset import TraceSet

SERVER_DURATIONS: Final = (
    "http.server.request.duration",
    "http.server.duration",
    "rpc.server.call.duration",
    "rpc.server.duration",
    "traces.span.metrics.duration",
    "duration",
)
"""OTLP histograms of served requests: semantic conventions old and new, spanmetrics."""

_UNITS_NS: Final = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0}
SAMPLES: Final = pl.Schema(
    {
        "service_name": pl.String,
        "span_name": pl.String,
        "series": pl.UInt64,
        "time": pl.Int64,
        "start": pl.Int64,
        "delta": pl.Boolean,
        "error": pl.Boolean,
        "error_5xx": pl.Boolean,
        "edge": pl.Int64,
        "value": pl.Float64,
    }
)
"""One sample of one counter: requests where `edge` is null, else requests below that edge."""

_GAP: Final = 2.5  # a counter unseen for this many intervals grew at an unknown time


def red_from_metrics(
    metrics: pl.DataFrame | TraceSet,
    *,
    every: str = "1m",
    durations: Sequence[str] = SERVER_DURATIONS,
) -> pl.DataFrame:
    """Count requests, errors and durations from OTLP histograms of served requests.

    Parameters
    ----------
    metrics : pl.DataFrame or TraceSet
        Schema `METRIC_POINTS`, or a capture that holds such points. Explicit and exponential
        histograms, delta and cumulative, with resets.
    every : str
        Bin; not shorter than the interval of the points.
    durations : sequence of str
        Names of the histograms; each counts requests and their durations. Points that carry
        ``span.kind`` count only if it is a server's or a consumer's.

    Returns
    -------
    pl.DataFrame
        Schema `RED`. The bucket edges are those that all histograms of a service share;
        exponential ones are read at tracelab's own edges. A bin in which a service exported
        nothing is null.

    Raises
    ------
    SchemaError
        If a column is missing.
    ParameterError
        If `every` is no duration or shorter than the interval of the points.
    """
    points = metrics.metrics if isinstance(metrics, TraceSet) else metrics
    schema.require_columns(points, schema.METRIC_POINTS, name="metrics")
    bin_ns = duration_ns(every, name="every")
    live = points.filter((pl.col("flags").fill_null(0) & 1) == 0, pl.col("time").is_not_null())
    spoke = live.select(
        "service_name", ((pl.col("time").cast(pl.Int64) - 1) // bin_ns).alias("bin")
    ).unique()
    wanted = live.filter(
        pl.col("metric_name").is_in(list(durations)),
        pl.col("metric_type").is_in(["histogram", "exponential_histogram"]),
    )
    kind = pl.col("attributes").str.extract(r'"span\.kind"\s*:\s*"(?:SPAN_KIND_)?([A-Za-z]+)"', 1)
    wanted = wanted.filter(
        kind.is_null() | kind.str.to_uppercase().is_in(["SERVER", "CONSUMER"])
    ).with_row_index("_point")
    base = wanted.select(
        "_point",
        "service_name",
        _first_of("http.route", "span.name", "rpc.method").alias("span_name"),
        pl.struct(
            "service_name",
            "service_namespace",
            "service_instance_id",
            "metric_name",
            "scope_name",
            "attributes",
            "resource_attributes",
        )
        .hash()
        .alias("series"),
        pl.col("time").cast(pl.Int64),
        pl.col("start_time").cast(pl.Int64).alias("start"),
        (pl.col("temporality") == "DELTA").fill_null(False).alias("delta"),
        *_outcome(),
    )
    counts = base.with_columns(
        pl.lit(None, pl.Int64).alias("edge"), wanted["count"].cast(pl.Float64).alias("value")
    )
    below = pl.concat([_explicit_below(wanted), _exponential_below(wanted)])
    edges = base.join(below, on="_point")
    samples = pl.concat([counts, edges.select(counts.columns)]).drop("_point")
    return assemble(schema.conform(samples, SAMPLES), bin_ns, spoke)


def _first_of(*keys: str) -> pl.Expr:
    return pl.coalesce(
        pl.col("attributes").str.extract(rf'"{re.escape(key)}"\s*:\s*"((?:[^"\\]|\\.)*)"', 1)
        for key in keys
    )


def _outcome() -> tuple[pl.Expr, pl.Expr]:
    text = pl.col("attributes")
    status = text.str.extract(r'"http\.(?:response\.)?status_code"\s*:\s*"?(\d+)', 1).cast(
        pl.Int64, strict=False
    )
    rpc = text.str.extract(
        r'"rpc\.(?:grpc|response)\.status_code"\s*:\s*"?([A-Za-z_]+|\d+)', 1
    ).str.to_uppercase()
    faults = [*map(str, semconv.GRPC_SERVER_ERRORS), *semconv.GRPC_SERVER_ERRORS.values()]
    failed = text.str.contains(r'"status\.code"\s*:\s*"(?:STATUS_CODE_)?ERROR"').fill_null(False)
    http = status.is_between(semconv.HTTP_SERVER_ERROR_MIN, semconv.HTTP_SERVER_ERROR_MAX)
    fault = http.fill_null(False) | rpc.is_in(faults).fill_null(False)
    # spanmetrics without a dimension for the status: a server span is in error for a 5xx.
    fault = fault | (failed & status.is_null() & rpc.is_null())
    named = text.str.contains(r'"error\.type"\s*:').fill_null(False)
    return (fault | failed | named).alias("error"), fault.alias("error_5xx")


def _unit() -> pl.Expr:
    by_name = pl.when(pl.col("metric_name") == "http.server.request.duration").then(1e9)
    return (
        pl.col("unit")
        .replace_strict(_UNITS_NS, default=None, return_dtype=pl.Float64)
        .fill_null(by_name.otherwise(1e6))
    )


def _explicit_below(points: pl.DataFrame) -> pl.DataFrame:
    """Return how many requests lay below each bound, one row per point and bound."""
    part = points.filter(
        pl.col("metric_type") == "histogram",
        pl.col("bucket_counts").list.len() == pl.col("explicit_bounds").list.len() + 1,
        pl.col("explicit_bounds").list.len() > 0,
    )
    return (
        part.select(
            "_point",
            _unit().alias("_unit"),
            pl.col("explicit_bounds").alias("_bound"),
            pl.col("bucket_counts")
            .list.head(pl.col("explicit_bounds").list.len())
            .list.eval(pl.element().cum_sum())
            .alias("value"),
        )
        .explode("_bound", "value", empty_as_null=True)
        .select(
            "_point",
            (pl.col("_bound") * pl.col("_unit")).round().cast(pl.Int64).alias("edge"),
            pl.col("value").cast(pl.Float64),
        )
    )


def _exponential_below(points: pl.DataFrame) -> pl.DataFrame:
    """Read exponential histograms at tracelab's edges, log-linear within a bucket."""
    part = points.filter(
        pl.col("metric_type") == "exponential_histogram", pl.col("scale").is_not_null()
    ).with_columns(_unit().alias("_unit"))
    edges = np.asarray(schema.DURATION_EDGES_NS, float)
    below = np.repeat(part["zero_count"].fill_null(0).to_numpy()[:, None], len(edges), axis=1)
    below = below.astype(float)
    cells = (
        part.with_row_index("_row")
        .select(
            "_row",
            "scale",
            "_unit",
            pl.col("positive_offset").fill_null(0).alias("_offset"),
            pl.col("positive_bucket_counts").alias("_count"),
            pl.int_ranges(0, pl.col("positive_bucket_counts").list.len()).alias("_bucket"),
        )
        .explode("_count", "_bucket", empty_as_null=True)
        .filter(pl.col("_count") > 0)
    )
    if cells.height:
        width = np.exp2(-cells["scale"].to_numpy().astype(float))  # log2 of the base
        low = (cells["_offset"].to_numpy() + cells["_bucket"].to_numpy()) * width
        low = low + np.log2(cells["_unit"].to_numpy())
        share = ((np.log2(edges)[None, :] - low[:, None]) / width[:, None]).clip(0, 1)
        np.add.at(below, cells["_row"].to_numpy(), share * cells["_count"].to_numpy()[:, None])
    return pl.DataFrame(
        {
            "_point": np.repeat(part["_point"].to_numpy(), len(edges)),
            "edge": np.tile(np.asarray(schema.DURATION_EDGES_NS), part.height),
            "value": below.reshape(-1),
        },
        schema={"_point": pl.UInt32, "edge": pl.Int64, "value": pl.Float64},
    )


def _increments(samples: pl.DataFrame, bin_ns: int) -> pl.DataFrame:
    """Return what each sample adds; null where the time of the growth is unknown."""
    by = ["series", "edge"]
    ordered = samples.sort(*by, "time", nulls_last=False)
    previous = {n: pl.col(n).shift(1).over(by) for n in ("value", "time", "start")}
    ordered = ordered.with_columns(
        previous["value"].alias("_value"),
        (pl.col("time") - previous["time"]).alias("_step"),
        (pl.col("start") != previous["start"]).fill_null(False).alias("_restarted"),
    )
    steps = ordered.filter(pl.col("edge").is_null())["_step"].drop_nulls().to_numpy()
    step = float(np.median(steps)) if len(steps) else float(bin_ns)
    if step > 1.5 * bin_ns:
        raise ParameterError(f"points come every {step / 1e9:.0f} s; pass every= of at least that")
    first_seen = samples["time"].min()
    fresh = pl.col("start") > pl.lit(first_seen)
    reset = pl.col("_restarted") | (pl.col("value") < pl.col("_value"))
    grown = (
        pl.when("delta")
        .then("value")
        .when(pl.col("_value").is_null())
        .then(pl.when(fresh).then("value"))
        .when(pl.col("_step") > _GAP * step)
        .then(None)
        .when(reset)
        .then("value")
        .otherwise(pl.col("value") - pl.col("_value"))
    )
    return ordered.with_columns(grown.alias("grown"), ((pl.col("time") - 1) // bin_ns).alias("bin"))


def assemble(samples: pl.DataFrame, bin_ns: int, spoke: pl.DataFrame) -> pl.DataFrame:
    """Return RED out of samples of counters.

    Parameters
    ----------
    samples : pl.DataFrame
        Schema `SAMPLES`.
    bin_ns : int
        Width of a bin.
    spoke : pl.DataFrame
        Columns service_name and bin: where a service exported anything at all.

    Returns
    -------
    pl.DataFrame
        Schema `RED`.

    Raises
    ------
    ParameterError
        If a bin is shorter than the interval of the samples.
    """
    if not samples.height:
        return schema.empty(schema.RED)
    grown = _increments(samples, bin_ns)
    known = grown.filter(pl.col("grown").is_not_null())
    # A service whose samples of a bin all have an unknown growth is silent in that bin.
    unknown = grown.group_by("service_name", "bin").agg(pl.col("grown").is_null().all().alias("no"))
    spoke = (
        spoke.join(unknown, on=["service_name", "bin"], how="left", nulls_equal=True)
        .filter(~pl.col("no").fill_null(False))
        .select("service_name", "bin")
    )
    whole = known.with_columns(pl.lit(None, pl.String).alias("span_name"))
    rows = pl.concat([whole, known.filter(pl.col("span_name").is_not_null())])
    key = ["service_name", "span_name", "bin"]
    counts = (
        rows.filter(pl.col("edge").is_null())
        .group_by(key)
        .agg(
            pl.col("grown").sum().alias("requests"),
            pl.col("grown").filter("error").sum().alias("errors"),
            pl.col("grown").filter("error_5xx").sum().alias("errors_5xx"),
        )
    )
    histogram = _histograms(rows)
    bins = pl.Series("bin", bins_between(grown["bin"].to_numpy(), bin_ns))
    grid = rows.select(key[:2]).unique().join(bins.to_frame(), how="cross")
    grid = (
        grid.join(counts, on=key, how="left", nulls_equal=True)
        .join(histogram, on=key, how="left", nulls_equal=True)
        .join(
            spoke.with_columns(pl.lit(True).alias("_spoke")),
            on=["service_name", "bin"],
            how="left",
            nulls_equal=True,
        )
    )
    edges = pl.col("bucket_edges_ns").drop_nulls().first().over(key[:2])
    zeros = pl.lit(0.0).repeat_by(edges.list.len() + 1)
    heard = pl.col("_spoke").fill_null(False)
    table = grid.select(
        "service_name",
        "span_name",
        (pl.col("bin") * bin_ns).cast(schema.TIME).alias("time"),
        pl.lit(bin_ns).alias("bin_ns"),
        *(
            pl.when(heard).then(pl.col(n).fill_null(0.0)).alias(n)
            for n in ("requests", "errors", "errors_5xx")
        ),
        pl.when(heard & edges.is_not_null())
        .then(pl.coalesce("duration_counts", zeros))
        .alias("duration_counts"),
        edges.alias("bucket_edges_ns"),
        pl.when(heard).then(pl.col("requests").fill_null(0.0)).alias("sampled_requests"),
    )
    return schema.conform(table, schema.RED).sort(
        "service_name", "span_name", "time", nulls_last=False
    )


def _histograms(rows: pl.DataFrame) -> pl.DataFrame:
    """Turn counts below edges into counts per bucket, at the edges that a service shares."""
    key = ["service_name", "span_name", "bin"]
    below = rows.filter(pl.col("edge").is_not_null())
    per_edge = below.group_by("service_name", "edge").agg(pl.col("series").n_unique().alias("n"))
    shared = per_edge.filter(pl.col("n") == pl.col("n").max().over("service_name"))
    if below.height and rows.filter(pl.col("edge").is_null())["series"].n_unique() == 0:
        return pl.DataFrame(
            schema={
                "service_name": pl.String,
                "span_name": pl.String,
                "bin": pl.Int64,
                "duration_counts": pl.List(pl.Float64),
                "bucket_edges_ns": pl.List(pl.Int64),
            }
        )
    totals = (
        rows.filter(pl.col("edge").is_null()).group_by(key).agg(pl.col("grown").sum().alias("_all"))
    )
    sums = (
        below.join(
            shared.select("service_name", "edge"), on=["service_name", "edge"], nulls_equal=True
        )
        .group_by([*key, "edge"])
        .agg(pl.col("grown").sum())
    )
    lists = (
        sums.sort("edge")
        .group_by(key, maintain_order=True)
        .agg(pl.col("edge").alias("bucket_edges_ns"), pl.col("grown").alias("_below"))
    )
    joined = lists.join(totals, on=key, nulls_equal=True)
    upper = pl.concat_list("_below", "_all")
    lower = pl.concat_list(pl.lit(0.0).repeat_by(1), "_below")
    return joined.select(
        *key,
        (upper - lower).list.eval(pl.element().clip(lower_bound=0.0)).alias("duration_counts"),
        "bucket_edges_ns",
    )
