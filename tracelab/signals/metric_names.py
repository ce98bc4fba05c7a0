"""Names of the metrics that a rule reads, for the common exporters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tracelab.exceptions import ParameterError


@dataclass(frozen=True)
class MetricNames:
    """Where requests, failures and durations stand in Prometheus.

    Parameters
    ----------
    requests : str
        Counter of requests.
    service_label, operation_label : str
        Labels with the service and the operation.
    server : str
        Matchers that keep the serving side, such as ``reporter="destination"``; may be empty.
    failures : mapping of str to str
        Kind of trigger to the matchers that keep its failures. A kind that is not in it cannot
        be exported.
    duration_bucket, duration_count : str
        Classic histogram of durations.
    unit_s : float
        Seconds per unit of its ``le``.
    traces, broken_traces, undetermined_traces : str
        Counters for the chain-integrity SLI.
    """

    requests: str
    service_label: str
    operation_label: str
    server: str
    duration_bucket: str
    duration_count: str
    unit_s: float
    failures: Mapping[str, str] = field(default_factory=dict)
    traces: str = "tracelab_traces_total"
    broken_traces: str = "tracelab_broken_traces_total"
    undetermined_traces: str = "tracelab_undetermined_traces_total"


METRIC_NAMES: Final[dict[str, MetricNames]] = {
    "istio": MetricNames(
        requests="istio_requests_total",
        service_label="destination_service_name",
        operation_label="request_operation",
        server='reporter="destination"',
        duration_bucket="istio_request_duration_milliseconds_bucket",
        duration_count="istio_request_duration_milliseconds_count",
        unit_s=1e-3,
        failures={"5xx": 'response_code=~"5.."', "error": 'response_code=~"[45].."'},
    ),
    "spanmetrics": MetricNames(
        requests="traces_span_metrics_calls_total",
        service_label="service_name",
        operation_label="span_name",
        server='span_kind=~"SPAN_KIND_SERVER|SPAN_KIND_CONSUMER"',
        duration_bucket="traces_span_metrics_duration_milliseconds_bucket",
        duration_count="traces_span_metrics_duration_milliseconds_count",
        unit_s=1e-3,
        # The connector has no status code of HTTP unless told to; a server span is in error
        # for a 5xx only.
        failures={
            "5xx": 'status_code="STATUS_CODE_ERROR"',
            "error": 'status_code="STATUS_CODE_ERROR"',
        },
    ),
    "http_server": MetricNames(
        requests="http_server_request_duration_seconds_count",
        service_label="job",
        operation_label="http_route",
        server="",
        duration_bucket="http_server_request_duration_seconds_bucket",
        duration_count="http_server_request_duration_seconds_count",
        unit_s=1.0,
        failures={"5xx": 'http_response_status_code=~"5.."', "error": 'error_type!=""'},
    ),
}
"""Presets: Istio, the Collector's spanmetrics connector, HTTP server semantic conventions."""


def metric_names(preset: str | MetricNames) -> MetricNames:
    """Return a preset, or the names as given.

    Parameters
    ----------
    preset : str or MetricNames
        A key of `METRIC_NAMES`, or own names.

    Returns
    -------
    MetricNames
        The names.

    Raises
    ------
    ParameterError
        If there is no such preset.
    """
    if isinstance(preset, MetricNames):
        return preset
    if not isinstance(preset, str) or preset not in METRIC_NAMES:
        raise ParameterError(
            f"metrics={preset!r} is none of {', '.join(METRIC_NAMES)}; or pass MetricNames(...)"
        )
    return METRIC_NAMES[preset]
