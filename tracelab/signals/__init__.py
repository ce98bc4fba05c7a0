"""Series of requests, errors and latency, and what precedes what."""

from tracelab.signals.bursts import detect_error_bursts
from tracelab.signals.counters import red_from_metrics
from tracelab.signals.leads import find_lead_lags, neighbour_pairs
from tracelab.signals.percentiles import detect_percentile_rises
from tracelab.signals.prometheus import red_from_prometheus
from tracelab.signals.red import merge_red, red_series
from tracelab.signals.rises import detect_latency_rises

__all__ = [
    "detect_error_bursts",
    "detect_latency_rises",
    "detect_percentile_rises",
    "find_lead_lags",
    "merge_red",
    "neighbour_pairs",
    "red_from_metrics",
    "red_from_prometheus",
    "red_series",
]
