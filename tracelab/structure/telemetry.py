"""What SDKs and Collectors count of their own work: where spans were accepted and lost."""

from typing import Final

import polars as pl

from tracelab import schema
from tracelab.traceset import TraceSet

BALANCE: Final = pl.Schema(
    {  # type: ignore[arg-type]
        "stage": pl.String,
        "component": pl.String,
        "service_name": pl.String,
        "outcome": pl.String,
        "reason": pl.String,
        "spans": pl.Float64,
        "resets": pl.Int64,
        "first_time": schema.TIME,
        "last_time": schema.TIME,
        "lost": pl.Boolean,
    }
)
"""The table of `reconcile_telemetry`."""

COLLECTOR_NAME: Final = (
    r"^(?:otel_?col(?:lector)?_)?(receiver|processor|exporter)_"
    r"(?:memory_limiter_)?"
    r"(accepted|refused|failed|dropped|sent|send_failed|enqueue_failed|incoming|outgoing)"
    r"_(?:spans|items)(?:__?spans_?)?(?:_total)?$"
)
"""Names since 2022 with points, slashes and dashes turned into underscores: with and without
prefix, with a unit and ``_total`` behind."""

SDK_NAME: Final = r"^otel_sdk_(processor|exporter)_span_(processed|exported)(?:_total)?$"

LOSSES: Final = ("refused", "failed", "dropped", "send_failed", "enqueue_failed")


def reconcile_telemetry(traces: TraceSet) -> pl.DataFrame:
    """Balance what SDKs and Collectors say they accepted, sent and lost.

    Counters are followed through resets (a fall of the value, or another start time), deltas
    are added up. All name variants of the Collector's history are read: slashes, with and
    without ``otelcol_``, ``_total``, units.

    Parameters
    ----------
    traces : TraceSet
        A capture with METRIC_POINTS; other metrics are passed over.

    Returns
    -------
    pl.DataFrame
        Schema `BALANCE`: per stage (``sdk processor``, ``sdk exporter``, ``receiver``,
        ``processor``, ``exporter``), component and outcome the spans counted while the capture
        ran, sorted. ``lost`` marks outcomes by which spans were lost. Empty without such metrics.

    Raises
    ------
    SchemaError
        Never for a `TraceSet`.
    """
    return balance_of(traces.metrics)


def balance_of(metrics: pl.DataFrame) -> pl.DataFrame:
    """Do what `reconcile_telemetry` does, on a table of metric points.

    Parameters
    ----------
    metrics : pl.DataFrame
        Schema METRIC_POINTS.

    Returns
    -------
    pl.DataFrame
        Schema `BALANCE`.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    schema.require_columns(metrics, schema.METRIC_POINTS, name="metrics")
    points = _named(metrics)
    if not points.height:
        return schema.empty(BALANCE)
    series = ["stage", "component", "service_name", "outcome", "reason", "identity", "temporality"]
    counted = points.sort(*series, "time", nulls_last=True).with_columns(
        before=pl.col("value").shift(1).over(series),
        begun=pl.col("start_time").shift(1).over(series),
    )
    fresh = pl.col("before").is_null()
    reset = ~fresh & (
        (pl.col("value") < pl.col("before"))
        | (pl.col("start_time") != pl.col("begun")).fill_null(value=False)
    )
    delta = pl.col("temporality") == "DELTA"
    # A counter that began with the capture has counted nothing else.
    first = pl.when(pl.col("start_time").is_not_null()).then(pl.col("value")).otherwise(0.0)
    increase = (
        pl.when(delta | reset)
        .then(pl.col("value"))
        .when(fresh)
        .then(first)
        .otherwise(pl.col("value") - pl.col("before"))
    )
    table = (
        counted.with_columns(increase=increase, reset=reset & ~delta)
        .group_by("stage", "component", "service_name", "outcome", "reason")
        .agg(
            spans=pl.col("increase").sum(),
            resets=pl.col("reset").sum().cast(pl.Int64),
            first_time=pl.col("time").min(),
            last_time=pl.col("time").max(),
        )
        .with_columns(
            lost=(pl.col("outcome").is_in(LOSSES) & (pl.col("spans") > 0)).fill_null(value=False)
        )
        .sort("stage", "component", "service_name", "outcome", "reason")
    )
    return schema.conform(table, BALANCE)


_PLAIN_NAME: Final = pl.col("metric_name").str.to_lowercase().str.replace_all(r"[./-]", "_")


def select_telemetry(metrics: pl.DataFrame) -> pl.DataFrame:
    """Return the points that SDKs and Collectors wrote of their own work.

    Parameters
    ----------
    metrics : pl.DataFrame
        Schema METRIC_POINTS.

    Returns
    -------
    pl.DataFrame
        Schema METRIC_POINTS.

    Raises
    ------
    ColumnNotFoundError
        If there is no ``metric_name``.
    """
    return metrics.filter(
        _PLAIN_NAME.str.contains(COLLECTOR_NAME) | _PLAIN_NAME.str.contains(SDK_NAME)
    )


def _named(metrics: pl.DataFrame) -> pl.DataFrame:
    """Points of self-telemetry, with the parts of their names and attributes."""
    attribute = pl.col("attributes").fill_null("{}")

    def read(key: str) -> pl.Expr:
        return attribute.str.json_path_match(f"$['{key}']")

    named = select_telemetry(metrics).with_columns(_name=_PLAIN_NAME)
    collector = pl.col("_name").str.extract(COLLECTOR_NAME, 1)
    sdk = pl.col("_name").str.extract(SDK_NAME, 1)
    signal = pl.coalesce(read("otel.signal"), read("otel_signal"), pl.lit("traces"))
    error = pl.coalesce(read("error.type"), read("error_type"))
    kind = pl.coalesce(collector, sdk)
    return named.with_columns(
        stage=pl.when(sdk.is_not_null()).then(pl.lit("sdk ") + sdk).otherwise(collector),
        component=pl.coalesce(
            pl.when(kind == "receiver").then(read("receiver")),
            pl.when(kind == "processor").then(read("processor")),
            pl.when(kind == "exporter").then(read("exporter")),
            read("otel.component.name"),
            pl.lit(""),
        ),
        outcome=pl.when(sdk.is_not_null() & error.is_not_null())
        .then(pl.when(sdk == "processor").then(pl.lit("dropped")).otherwise(pl.lit("send_failed")))
        .when(sdk.is_not_null())
        .then(pl.when(sdk == "processor").then(pl.lit("accepted")).otherwise(pl.lit("sent")))
        .otherwise(pl.col("_name").str.extract(COLLECTOR_NAME, 2)),
        reason=error.fill_null(""),
        identity=pl.concat_str(
            attribute, pl.col("resource_attributes").fill_null(""), pl.col("metric_name")
        ),
        value=pl.coalesce("value", pl.col("sum")).fill_null(0.0),
        temporality=pl.col("temporality").fill_null("CUMULATIVE"),
        service_name=pl.col("service_name").fill_null(""),
    ).filter(signal == "traces")


def loss_hints(metrics: pl.DataFrame) -> dict[str, tuple[set[str], bool]]:
    """Tell which causes of loss the self-telemetry proves.

    Parameters
    ----------
    metrics : pl.DataFrame
        Schema METRIC_POINTS.

    Returns
    -------
    dict of str to (set of str, bool)
        By cause (queue_overflow, export_failure): services whose own SDK counted such losses,
        and whether a Collector did, for all services.

    Raises
    ------
    SchemaError
        If a column is missing.
    """
    lost = balance_of(metrics).filter("lost")
    hints: dict[str, tuple[set[str], bool]] = {}
    full = pl.col("outcome").is_in(["dropped", "enqueue_failed", "refused"])
    for cause, rows in (
        ("queue_overflow", lost.filter(full & (pl.col("reason") != "already_shutdown"))),
        ("export_failure", lost.filter(pl.col("outcome").is_in(["send_failed", "failed"]))),
    ):
        own = rows.filter(pl.col("stage").str.starts_with("sdk"))
        hints[cause] = (set(own["service_name"]), own.height < rows.height)
    return hints
