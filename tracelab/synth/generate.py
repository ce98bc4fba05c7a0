"""Make captures: in memory, or any size on disk."""

from datetime import datetime

from tracelab.exceptions import ParameterError
from tracelab.synth.failures import inject_errors
from tracelab.synth.traffic import build_stage, play_traffic, to_ns
from tracelab.traceset import TraceSet


def synthesize_traces(
    *,
    seed: int,
    traces: int = 1000,
    services: int = 12,
    concurrency: float = 4.0,
    handoff_ms: float = 0.3,
    queue_delay_s: float = 0.2,
    error_rate: float = 0.03,
    skew_ms: float = 0.05,
    start: datetime | None = None,
) -> TraceSet:
    """Play a random fleet: its topology, SDKs, processes and latencies all follow the seed.

    Parameters
    ----------
    seed : int
        The same seed and arguments give the same tables.
    traces : int
        How many requests and jobs enter the fleet. Consumers that start a trace of their own
        with a link come on top.
    services : int
        How many services the fleet has; 3 to 40 look natural.
    concurrency : float
        Mean number of traces in flight at once.
    handoff_ms : float
        Mean wait of a thread or task between being handed over and starting.
    queue_delay_s : float
        Median time that a message spends in a queue; the spread is wide.
    error_rate : float
        Share of traces in which something fails; use 0 and `inject_errors` to have the truth
        of each hop.
    skew_ms : float
        Standard deviation of the hosts' clock errors.
    start : datetime, optional
        When the capture begins; naive times are UTC.

    Returns
    -------
    TraceSet
        Spans, links, and events of the errors.

    Raises
    ------
    ParameterError
        If an argument is out of its range.
    """
    if traces < 1:
        raise ParameterError(f"traces is {traces}; at least one is needed")
    stage = build_stage(
        seed=seed,
        services=services,
        concurrency=concurrency,
        handoff_ms=handoff_ms,
        queue_delay_s=queue_delay_s,
        skew_ms=skew_ms,
    )
    clean = play_traffic(stage, traces=traces, start_ns=to_ns(start))
    return inject_errors(clean, seed=seed, rate=error_rate)[0] if error_rate else clean
