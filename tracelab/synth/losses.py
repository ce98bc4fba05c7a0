"""Spans that ended, or should have, and never reached the capture."""

from collections import deque

import numpy as np
import numpy.typing as npt
import polars as pl

from tracelab.synth.plot import ENTRIES, Flags, Ints, Plot

_KEEPS_OLDEST = ("go", "java", "nodejs", "dotnet", "rust", "webjs", "cpp", "ruby", "php")
"""SDKs whose full queue refuses the newest span. Python's throws out the oldest."""


def leave_unended(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Let some operations never end their span: always, or on one path only.

    Entry spans, which a framework ends, are left open on one path at most; so are calls, and
    there on the error path alone.
    """
    has_kids = np.zeros(plot.n, bool)
    has_kids[plot.up[plot.up >= 0]] = True
    error = _below_error(plot)
    calls = np.isin(plot.kind, ("CLIENT", "PRODUCER"))
    ops = np.unique(plot.op[has_kids & (plot.up >= 0) & (~calls | error)])
    only_errors = np.unique(plot.op[calls])
    entries = np.unique(plot.op[entry_rows(plot)])
    for op in _pick(ops, rate, rng):
        rows = np.flatnonzero(plot.op == op)
        if error[rows].any() and (op in only_errors or rng.random() < 0.5):
            plot.lose(rows[error[rows]], "span_never_ended", "error path")
        elif op not in entries and rng.random() < 0.6:
            plot.lose(rows, "span_never_ended", "always")
        else:
            kids = np.flatnonzero((plot.up >= 0) & np.isin(plot.up, rows))
            path = rng.choice(np.unique(plot.op[kids]))
            plot.lose(np.unique(plot.up[kids[plot.op[kids] == path]]), "span_never_ended", "path")


def _below_error(plot: Plot) -> Flags:
    failed = (plot.spans["status_code"] == "ERROR").fill_null(value=False).to_numpy().copy()
    for level in reversed(plot.levels()[1:]):
        bad = level[failed[level]]
        failed[plot.up[bad]] = True
    return failed


def remove_hops(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Let some services export nothing, though they pass fresh span ids on."""
    hop = (plot.up >= 0) & (plot.boundary != "same")
    below = np.unique(plot.service[plot.up[hop & (plot.service != plot.service[plot.up])]])
    middle = np.setdiff1d(below, _fronts(plot))
    for service in _pick(middle, rate, rng):
        plot.lose(np.flatnonzero(plot.service == service), "uninstrumented_hop", "service")


def sample_out(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Let some services sample by trace id, whatever their caller decided.

    The services below follow the caller's decision (then the branch is gone) or keep all
    (then its spans name a parent that was never exported).
    """
    inner = np.setdiff1d(np.unique(plot.service), _fronts(plot))
    follows = rng.random(int(plot.service.max(initial=0)) + 1) < 0.5
    for service in _pick(inner, rate, rng):
        keep = float(rng.uniform(0.1, 0.8))
        mine = np.flatnonzero(plot.service == service)
        language = plot.spans["sdk_language"][int(mine[0])] if len(mine) else None
        dropped = np.zeros(plot.n, bool)
        dropped[mine] = _id_fraction(plot, mine, language) >= keep
        for level in plot.levels()[1:]:
            above = dropped[plot.up[level]]
            same = plot.service[level] == plot.service[plot.up[level]]
            dropped[level] |= above & (same | follows[plot.service[level]])
        plot.lose(np.flatnonzero(dropped), "sampled_out", f"ratio {keep:.3f}")


def _fronts(plot: Plot) -> Ints:
    """Give the services at which at least half of what enters them begins its trace."""
    enters = entry_rows(plot)
    many = int(plot.service.max(initial=0)) + 1
    begun = np.bincount(plot.service[plot.up < 0], minlength=many)
    entered = np.bincount(plot.service[enters], minlength=many)
    return np.flatnonzero(2 * begun >= np.maximum(entered, 1))


def _id_fraction(plot: Plot, rows: Ints, language: str | None) -> npt.NDArray[np.float64]:
    """Tell where each trace id stands between 0 and 1 for the ratio sampler of a language."""
    text = plot.ids["trace_id"].gather(rows)

    def number(offset: int, length: int) -> npt.NDArray[np.uint64]:
        part = text.str.slice(offset, length)
        value = part.str.to_integer(base=16, dtype=pl.UInt64, strict=False).fill_null(0)
        out: npt.NDArray[np.uint64] = value.to_numpy()
        return out

    if language == "nodejs":  # the four words of the id, folded
        folded = number(0, 8) ^ number(8, 8) ^ number(16, 8) ^ number(24, 8)
        return folded.astype(np.float64) / 2**32
    low = number(16, 16)
    if language in ("go", "rust"):
        return (low >> np.uint64(1)).astype(np.float64) / 2**63
    if language in ("java", "dotnet"):
        return (low & np.uint64(2**63 - 1)).astype(np.float64) / 2**63
    return low.astype(np.float64) / 2**64


def overflow_queues(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Let the span queues of some processes run full while their exporter is slow.

    A queue holds four batches, as by default; sizes are scaled down with the traffic.
    """
    for process in _pick(np.unique(plot.process), rate, rng):
        rows = _by_end(plot, process)
        for _ in range(int(rng.integers(1, 4))):
            batch = int(min(512, max(3, len(rows) // int(rng.integers(20, 120)))))
            many = batch * int(rng.integers(8, 16))
            if len(rows) < many:
                continue
            first = int(rng.integers(len(rows) - many + 1))
            burst = rows[first : first + many]
            newest = plot.spans["sdk_language"][int(burst[0])] in _KEEPS_OLDEST
            pace = (plot.end[burst[-1]] - plot.end[burst[0]]) / many
            gone = _overflow(
                plot.end[burst],
                batch=batch,
                interval=float(batch * pace / rng.uniform(0.3, 0.8)),
                newest=newest,
            )
            plot.lose(burst[gone], "queue_overflow", "newest" if newest else "oldest")


def _overflow(ends: Ints, *, batch: int, interval: float, newest: bool) -> Ints:
    """Run a queue of four batches that is drained by one batch per interval."""
    queue: deque[int] = deque()
    lost: list[int] = []
    drain = float(ends[0]) + interval
    for number, moment in enumerate(ends.tolist()):
        while moment >= drain:
            for _ in range(min(batch, len(queue))):
                queue.popleft()
            drain += max(interval, 1.0)
        if len(queue) >= 4 * batch:
            if newest:
                lost.append(number)
                continue
            lost.append(queue.popleft())
        queue.append(number)
    return np.array(lost, np.int64)


def fail_exports(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Lose whole export batches: runs of one process that are contiguous by end time."""
    for process in np.unique(plot.process):
        rows = _by_end(plot, process)
        size = int(min(512, max(8, len(rows) // int(rng.integers(8, 40)))))
        for first in range(int(rng.integers(size)), len(rows) - size + 1, size):
            if rng.random() < rate:
                plot.lose(rows[first : first + size], "export_failure", f"batch of {size}")


def kill_processes(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Kill some processes: open spans and the last unsent batch die, a successor takes over."""
    table = plot.spans
    for process in _pick(np.unique(plot.process), rate, rng):
        rows = np.flatnonzero(plot.process == process)
        low, high = int(plot.start[rows].min()), int(plot.end[rows].max())
        moment = low + int((high - low) * rng.uniform(0.2, 0.85))
        unsent = int(rng.uniform(0, min(5e9, (high - low) / 20)))
        died = (plot.start[rows] < moment) & (plot.end[rows] >= moment - unsent)
        plot.lose(rows[died], "process_exit", f"at {moment}")
        after = rows[plot.start[rows] >= moment]
        if len(after):
            table = _succeed(table, after, rng)
            plot.process[after] = int(plot.process.max()) + 1
    plot.spans = table


def _succeed(spans: pl.DataFrame, rows: Ints, rng: np.random.Generator) -> pl.DataFrame:
    """Give rows a new pid and instance id, in the columns and in the resource text."""
    part = spans.select("process_pid", "service_instance_id", "resource_attributes")[
        rows[:1].tolist()
    ]
    pid, instance, text = part.row(0)
    new_pid = int(rng.integers(60_001, 99_000)) if pid is not None else None
    new_instance = rng.bytes(16).hex() if instance is not None else None
    if text is not None and pid is not None:
        text = text.replace(f'"process.pid":{pid}', f'"process.pid":{new_pid}')
    if text is not None and instance is not None:
        text = text.replace(str(instance), str(new_instance))
    return spans.with_columns(
        spans["process_pid"].scatter(rows, new_pid),
        spans["service_instance_id"].scatter(rows, new_instance),
        spans["resource_attributes"].scatter(rows, text),
    )


def drop_spans(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Lose spans at random, for no cause that anything could tell."""
    plot.lose(np.flatnonzero(rng.random(plot.n) < rate), "unknown", "at random")


def cut_window(plot: Plot, *, rate: float, rng: np.random.Generator) -> None:
    """Start the capture late and stop it early: spans that end outside never came in."""
    low, high = int(plot.end.min()), int(plot.end.max())
    first = np.quantile(plot.end, rate * rng.uniform(0.3, 0.7))
    last = np.quantile(plot.end, 1 - rate * rng.uniform(0.3, 0.7))
    outside = (plot.end < max(first, low)) | (plot.end > min(last, high))
    plot.lose(np.flatnonzero(outside), "capture_edge", "window")


def _by_end(plot: Plot, process: int) -> Ints:
    rows = np.flatnonzero(plot.process == process)
    return rows[np.argsort(plot.end[rows], kind="stable")]


def _pick(choices: Ints, rate: float, rng: np.random.Generator) -> Ints:
    """Draw a share of some codes, at least one where the rate is above zero."""
    if rate <= 0 or not len(choices):
        return choices[:0]
    many = max(1, round(rate * len(choices)))
    picked: Ints = rng.choice(choices, size=min(many, len(choices)), replace=False)
    return picked


def entry_rows(plot: Plot) -> Flags:
    """Mark spans at which a request enters a service."""
    return np.isin(plot.kind, ENTRIES) | (plot.up < 0)
