"""Peers whose spans cease for a while, or for good, while they go on answering their callers."""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.codes import pair_codes, sorted_by_code
from tracelab.structure.skeleton import Bools, Ints, Skeleton

MOST_PAUSED: Final = 0.8
"""Most calls that may lack their server span where it paused: a peer that answers fewer is not
one that normally answers."""

MOST_OFTEN_PAUSED: Final = 0.95
"""The same where it answered again and again, everything for a while."""

_OFTEN: Final = 4
"""Stretches with answers from which a peer answers again and again."""

_NEAR: Final = 8
"""Calls to either side over which the share of unanswered ones is taken."""

_MUTE: Final = 0.25
"""Least share of unanswered calls in a stretch: one replica of four is silent."""

_LEAST: Final = 8
"""Least answered and unanswered calls from which stretches are told from chance."""


def find_pauses(skeleton: Skeleton, clients: Ints) -> Bools:
    """Find calls in a stretch without answers, before which calls were answered.

    Behind it calls are answered again, or all but none is: what answers only from some time on
    may have been instrumented then, but nobody takes instrumentation away.

    A peer of which some instances are not instrumented, or not sampled, leaves its unanswered
    calls strewn evenly over the traces; a peer whose spans got lost leaves stretches of them
    (Wald and Wolfowitz, 1940: too few runs), or of which many go unanswered, if one of several
    replicas is silent. One call per trace is taken, because the calls of a trace may all go to
    one instance.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    clients : ndarray of int64
        Rows of calls, in order of time.

    Returns
    -------
    ndarray of bool
        By row of the capture.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    classes = int(skeleton.caller_class.max(initial=0)) + 1
    key = pair_codes(skeleton.trace[clients], skeleton.caller_class[clients], classes)
    first = pl.Series(key).is_first_distinct().to_numpy()
    every = skeleton.caller_class
    size = int(every.max(initial=-1)) + 1
    rows = clients[first]
    rows = rows[sorted_by_code(every[rows])]
    codes, answered = every[rows], skeleton.served[rows]
    same = codes[1:] == codes[:-1]
    many = np.bincount(codes, minlength=size)
    good = np.bincount(codes, weights=answered, minlength=size)
    turns = np.bincount(codes[1:], weights=same & (answered[1:] != answered[:-1]), minlength=size)
    due = 1 + 2 * good * (many - good) / np.maximum(many, 1)
    spread = np.sqrt(np.maximum((due - 1) * (due - 2), 0) / np.maximum(many - 1, 1))
    start = np.cumsum(many) - many
    place = np.arange(rows.size)
    uneven = (turns + 1 < due - 4 * spread) | _clumped(codes, place - start[codes], answered, many)
    few = (good >= _LEAST) & (many - good >= _LEAST) & uneven
    # On either side of a stretch there are somewhere three calls in a row with an answer.
    row = np.zeros(rows.size, bool)
    row[2:] = answered[2:] & answered[1:-1] & answered[:-2] & same[1:] & same[:-1]
    before = np.cumsum(row) - row
    offset = np.append(before, before[-1:] + row[-1:])
    earlier = before - offset[start[codes]]
    behind = offset[start[codes] + many[codes]] - before
    again = row.copy()
    again[1:] &= ~row[:-1]
    often = np.bincount(codes, weights=again, minlength=size) >= _OFTEN
    # Where answers all but end, what came before tells whether the peer answers normally.
    until = np.zeros(size, np.int64)
    np.maximum.at(until, codes[row], (place - start[codes] + 1)[row])
    last = place - start[codes] >= until[codes]
    quiet = np.bincount(codes, weights=last & ~answered, minlength=size)
    ends = (quiet >= _LEAST) & (quiet >= MOST_PAUSED * (many - until))
    heard = np.where(ends, np.bincount(codes, weights=answered & ~last, minlength=size), good)
    lacking = 1 - heard / np.maximum(np.where(ends, until, many), 1)
    few &= lacking <= np.where(often, MOST_OFTEN_PAUSED, MOST_PAUSED)
    # Of several replicas one may be silent: the calls to the others are answered in between.
    open_before = np.append(0, np.cumsum(~answered))
    low = np.maximum(place - _NEAR, start[codes])
    high = np.minimum(place + _NEAR + 1, start[codes] + many[codes])
    mute = ~answered & (open_before[high] - open_before[low] >= _MUTE * (high - low))
    found = np.zeros(skeleton.n, bool)
    # What ceased and came back several times had probably ceased when the capture began.
    inside = few[codes] & mute & ((earlier > 0) | often[codes]) & ((behind > 0) | ends[codes])
    chosen = pl.Series(key[first]).filter(pl.Series(np.isin(clients[first], rows[inside])))
    found[clients] = pl.Series(key).is_in(chosen.implode()).to_numpy()
    return found


def _clumped(codes: Ints, place: Ints, answered: Bools, many: Ints) -> Bools:
    """Whether a class's unanswered calls gather in some stretches of its calls.

    Pearson's test of homogeneity over stretches of equal length, at four standard deviations.
    """
    stretch = place // (2 * _NEAR)
    counted = (
        pl.DataFrame({"code": codes, "stretch": stretch, "open": ~answered})
        .group_by("code", "stretch")
        .agg(pl.len().alias("n"), pl.col("open").sum())
        .with_columns(share=pl.col("open").sum().over("code") / pl.col("n").sum().over("code"))
        .with_columns(
            ((pl.col("open") - pl.col("n") * pl.col("share")) ** 2)
            / (pl.col("n") * pl.col("share") * (1 - pl.col("share")))
        )
        .group_by("code")
        .agg(pl.col("open").sum().alias("sum"), (pl.len() - 1).alias("free"))
    )
    clumped = np.zeros(many.size, bool)
    free = counted["free"].to_numpy().astype(float)
    found = counted["sum"].to_numpy() > free + 4 * np.sqrt(2 * free)
    clumped[counted["code"].to_numpy()[found]] = True
    return clumped
