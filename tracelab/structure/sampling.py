"""Which services were sampled out of a trace: presence as a threshold of the trace id.

Ratio samplers decide by some bits of the trace id, each SDK by its own. Where a service is
present in one trace and missing from another that called it, and a threshold on such bits tells
the two apart, sampling is the cause; losses know nothing of trace ids.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from tracelab.structure.missing import Missing
from tracelab.structure.skeleton import Bools, Floats, Ints, Skeleton

Words = npt.NDArray[np.uint64]

MIN_SEPARATION: Final = 0.97
"""Least area under the curve: a few other losses among hundreds of traces may disturb it."""

MIN_TRACES: Final = 6
"""Least traces with a service, and without it: with six and six, seven readings and two
directions a perfect threshold comes about by chance once in 66."""

_BY_TIME: Final = 0.9
"""Ids that hold a time, or losses of one stretch of time, must not pass for sampling: where the
moment parts the traces as well as this, nothing is said."""

MIN_SURPRISE: Final = 25.0
"""Least surprise, in nats, of a threshold that other losses blur: one in a billion, after seven
readings, hundreds of thresholds and a hundred services."""

MIN_ABSENT: Final = 0.5
MAX_OTHER: Final = 0.3
"""Least share of traces without the service beyond such a threshold, and how much of that there
may be before it: other losses, and spans that another decision let through."""

_LOW_56: Final = np.uint64(2**56 - 1)
_LOW_63: Final = np.uint64(2**63 - 1)
_LOW_32: Final = np.uint64(2**32 - 1)


def _folded(hi: Words, lo: Words) -> Words:
    word = np.uint64(32)
    folded: Words = (hi >> word) ^ (hi & _LOW_32) ^ (lo >> word) ^ (lo & _LOW_32)
    return folded


def _magnitude(word: Words) -> Words:
    """Absolute value of a two's complement number, as Java and .NET take it."""
    signed: Ints = word.view(np.int64)
    magnitude: Words = np.abs(np.where(signed == np.iinfo(np.int64).min, 0, signed)).astype(
        np.uint64
    )
    return magnitude


READINGS: Final[dict[str, Callable[[Words, Words], Words]]] = {
    "low 64 bits": lambda _, lo: lo,
    "bits 8 to 15, shifted by one": lambda _, lo: lo >> np.uint64(1),
    "low 63 bits": lambda _, lo: lo & _LOW_63,
    "magnitude of the low 64 bits": lambda _, lo: _magnitude(lo),
    "magnitude of the high 64 bits": lambda hi, _: _magnitude(hi),
    "low 56 bits": lambda _, lo: lo & _LOW_56,
    "four words folded": _folded,
}
"""What samplers read of a trace id: Python, Go, Rust, Java, .NET, consistent sampling, Node."""


def separation(values: Words, absent: Bools) -> float:
    """Tell how well a threshold parts absent from present: area under the curve, either side.

    Parameters
    ----------
    values : ndarray of uint64
        What a sampler reads of each trace id.
    absent : ndarray of bool
        Where the service is missing.

    Returns
    -------
    float
        0.5 for chance, 1 for a perfect threshold.

    Raises
    ------
    ValueError
        If the arrays differ in length.
    """
    n_absent = int(absent.sum())
    n_present = absent.size - n_absent
    if not n_absent or not n_present:
        return 0.5
    # Equal values are no evidence either way: each counts half.
    ordered = np.sort(values[~absent])
    below = np.searchsorted(ordered, values[absent], side="left").sum()
    up_to = np.searchsorted(ordered, values[absent], side="right").sum()
    area = (float(below) + float(up_to)) / 2 / (n_absent * n_present)
    return float(max(area, 1 - area))


def parted_by_id(skeleton: Skeleton, present: Ints, absent: Ints) -> bool:
    """Tell whether a threshold of the trace id parts two sets of traces, and time does not.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    present, absent : ndarray of int64
        Traces, none of them in both.

    Returns
    -------
    bool
        True if some reading separates them by `MIN_SEPARATION`.

    Raises
    ------
    ValueError
        Never.
    """
    rows = np.concatenate([_row_of(skeleton, present), _row_of(skeleton, absent)])
    label = np.arange(rows.size) >= present.size
    if separation(_moments(skeleton, rows), label) > _BY_TIME:
        return False
    words = _words(skeleton, rows)
    return max(separation(value, label) for value in words.values()) >= MIN_SEPARATION


def _moments(skeleton: Skeleton, rows: Ints) -> Words:
    moments: Words = skeleton.start[rows].astype(np.uint64)
    return moments


def _words(skeleton: Skeleton, rows: Ints) -> dict[str, Words]:
    hi, lo = skeleton.trace_ids(rows)
    return {name: read(hi, lo) for name, read in READINGS.items()}


def sampled_out(skeleton: Skeleton, missing: Missing) -> tuple[Floats, list[str]]:
    """Weigh for each missing span whether its service was sampled out of the trace.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.

    Returns
    -------
    tuple of ndarray of float64 and list of str
        Separation per missing span (0 where it was not tested), and the reading that gave it.

    Raises
    ------
    ValueError
        Never.
    """
    found = np.zeros(missing.row.size)
    reading = [""] * missing.row.size
    traces = skeleton.trace[missing.row]
    for service in np.unique(missing.service[missing.service >= 0]).tolist():
        mine = np.flatnonzero(missing.service == service)
        seen = np.zeros(skeleton.traces.height, bool)
        seen[skeleton.trace[skeleton.rows_of_service(service)]] = True
        present, gone = np.flatnonzero(seen), mine[~seen[traces[mine]]]
        absent, first = np.unique(traces[gone], return_index=True)
        if min(present.size, absent.size) < MIN_TRACES:
            continue
        rows = np.concatenate([_row_of(skeleton, present), missing.row[gone[first]]])
        label = np.arange(rows.size) >= present.size
        moment = _moments(skeleton, rows)
        if separation(moment, label) > _BY_TIME:
            continue
        words = _words(skeleton, rows)
        scores = {name: separation(value, label) for name, value in words.items()}
        best = max(scores, key=lambda name: scores[name])
        lost = missing.row[gone]
        asked_hi, asked_lo = skeleton.trace_ids(lost)
        score = scores[best]
        if score >= MIN_SEPARATION:
            # Where the threshold says that the trace is kept, something else took the span.
            dropped = _dropped(words[best], label, READINGS[best](asked_hi, asked_lo))
        else:
            # Other losses beside it blur the threshold.
            splits = {name: _split(value, label) for name, value in words.items()}
            split = max(splits, key=lambda name: splits[name][0])
            surprise, beyond = splits[split]
            if surprise >= MIN_SURPRISE and separation(moment, beyond) <= _BY_TIME:
                best, score = split, MIN_SEPARATION
                reach = words[split][beyond]
                value = READINGS[split](asked_hi, asked_lo)
                dropped = (value >= reach.min()) & (value <= reach.max())
            else:
                dropped = np.ones(gone.size, bool)
        gone = gone[dropped]
        found[gone] = score
        for entry in gone:
            reading[entry] = best
    return found, reading


def _dropped(values: Words, absent: Bools, asked: Words) -> Bools:
    """Tell which values lie on the absent side of the threshold that parts best (Youden, 1950)."""
    order = np.argsort(values, kind="stable")
    ordered, gone = values[order], absent[order]
    n_gone = int(gone.sum())
    # Gain of a cut behind each value, with what is absent above it.
    gain = np.cumsum(~gone) / (gone.size - n_gone) - np.cumsum(gone) / n_gone
    last = np.append(ordered[1:] != ordered[:-1], [True])
    gain = np.where(last, gain, 0.0)
    above = gain.max() >= -gain.min()
    cut = ordered[int(gain.argmax() if above else gain.argmin())]
    dropped: Bools = (asked > cut) if above else (asked <= cut)
    return dropped


def _split(values: Words, absent: Bools) -> tuple[float, Bools]:
    """Part the values in two so that the service is mostly absent from one side only.

    Returns how surprising that is, in nats, were absence spread over the values evenly (the
    likelihood ratio of two shares against one), and which values lie on the absent side.
    """
    order = np.argsort(values, kind="stable")
    n, total = values.size, int(absent.sum())
    count = np.arange(1, n)
    best, beyond = 0.0, np.zeros(n, bool)
    for side in (order, order[::-1]):
        gone = np.cumsum(absent[side])[:-1]
        here, there = gone / count, (total - gone) / (n - count)
        surprise = count * _divergence(here, total / n)
        surprise += (n - count) * _divergence(there, total / n)
        # Equal values lie on one side.
        parts = values[side][1:] != values[side][:-1]
        parts &= (here >= MIN_ABSENT) & (there <= MAX_OTHER * here)
        surprise = np.where(parts, surprise, 0.0)
        run = int(surprise.argmax())
        if surprise[run] > best:
            best, beyond = float(surprise[run]), np.zeros(n, bool)
            beyond[side[: run + 1]] = True
    return best, beyond


def _divergence(share: Floats, usual: float) -> Floats:
    """Kullback and Leibler's divergence of coins with these shares from the usual one."""
    left = 1 - share
    heads = share * np.log(share / usual, where=share > 0, out=np.zeros(share.size))
    tails = left * np.log(left / (1 - usual), where=left > 0, out=np.zeros(share.size))
    return heads + tails


def _row_of(skeleton: Skeleton, traces: Ints) -> Ints:
    """Return the first row of each trace."""
    first: Ints = skeleton.once(_first_rows)[traces]
    return first


def _first_rows(skeleton: Skeleton) -> Ints:
    first = np.full(skeleton.traces.height, -1, np.int32)
    first[skeleton.trace[::-1]] = np.arange(skeleton.n - 1, -1, -1, dtype=np.int32)
    return first
