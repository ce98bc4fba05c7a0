"""Spells in which a service loses spans: calls of all kinds go unanswered, and orphans appear."""

from typing import Final

import numpy as np
import polars as pl

from tracelab.structure.boundaries import orphan_boundaries
from tracelab.structure.skeleton import Bools, Floats, Ints, Skeleton

_AROUND: Final = 10
"""Visits of a service to either side in which a loss makes a spell."""

_CHANCE: Final = 1e-3
"""Highest probability that a service's unanswered calls avoid the time outside of spells by
chance. Whether a call is answered has no part in whether it lies in a spell."""

_LEAST: Final = 3
"""Least calls of a class outside of spells from which it is known how they are answered."""


def find_spells(
    skeleton: Skeleton, clients: Ints, callee: Ints, *, most_open: float = 0.1
) -> Bools:
    """Find unanswered calls in spells in which their peer lost spans, and only then.

    A peer of which some instances are not instrumented leaves calls unanswered at all times.
    One that loses spans does so in spells, for all who call it; orphans in its own process tell
    of them as well. Where calls of a class are answered outside of spells, at first, those
    within that are not answered lack a server span. Calls of one trace, which may all go
    to one instance, do not tell of each other.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    clients : ndarray of int64
        Rows of calls, in order of time.
    callee : ndarray of int64
        By caller class, the service that usually answers; -1 where none does.
    most_open : float
        Most calls outside of spells that may be unanswered.

    Returns
    -------
    ndarray of bool
        By row of the capture.

    Raises
    ------
    IndexError
        If a row does not exist.
    """
    found = np.zeros(skeleton.n, bool)
    classes = skeleton.caller_class
    size = callee.size
    many = np.bincount(classes[clients], minlength=size)
    good = np.bincount(classes[clients[skeleton.served[clients]]], minlength=size)
    # A peer normally answers if it does in half of the cases.
    asked = (callee >= 0) & (good >= _LEAST)
    asked &= 2 * good >= many
    wanted = np.zeros(len(skeleton.services) + 1, bool)
    wanted[callee[asked]] = True
    rows = clients[wanted[callee[classes[clients]]] & asked[classes[clients]]]
    if not rows.size:
        return found
    orphans = skeleton.orphans
    orphans = orphans[skeleton.once(orphan_boundaries)["local"].to_numpy()]
    orphans = orphans[wanted[skeleton.service[orphans]] & skeleton.timed[orphans]]
    visits = np.concatenate([rows, orphans])
    service = np.concatenate([callee[classes[rows]], skeleton.service[orphans]])
    open_ = np.concatenate([~skeleton.served[rows], np.ones(orphans.size, bool)])
    near = _losses_near(service, skeleton.start[visits], open_, skeleton.trace[visits])
    spell, codes, answered = near[: rows.size] > 0, classes[rows], skeleton.served[rows]
    calm = np.bincount(codes[~spell], minlength=size)
    lacking = np.bincount(codes[~spell & ~answered], minlength=size)
    usual = (calm >= _LEAST) & (lacking <= most_open * calm)
    usual &= _fewer_than_due(callee, calm, lacking, calm * (1 - good / np.maximum(many, 1)))
    # What answers only from some time on may have been instrumented then.
    heard = ~spell & answered
    first = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(first, codes[heard], skeleton.start[rows[heard]])
    found[rows[usual[codes] & spell & ~answered & (skeleton.start[rows] > first[codes])]] = True
    return found


def _fewer_than_due(callee: Ints, calm: Ints, lacking: Ints, due: Floats) -> Bools:
    """Whether far fewer calls of a class's peer go unanswered outside of spells than over all.

    Chernoff's bound on the lower tail of a Poisson distribution, for all classes of the peer.
    """
    size = int(callee.max(initial=-1)) + 2
    seen = np.bincount(callee + 1, weights=lacking * (calm > 0), minlength=size)
    mean = np.bincount(callee + 1, weights=due, minlength=size)
    bound = mean - seen + seen * np.log(np.maximum(seen, 1e-300) / np.maximum(mean, 1e-300))
    fewer: Bools = ((seen < mean) & (bound >= -np.log(_CHANCE)))[callee + 1]
    return fewer


def _losses_near(service: Ints, moment: Ints, lost: Bools, trace: Ints) -> Ints:
    """Losses of other traces among the visits of a service around each visit."""
    order = pl.DataFrame({"s": service, "m": moment}).select(pl.arg_sort_by("s", "m")).to_series()
    place = order.to_numpy()
    service, lost, trace = service[place], lost[place], trace[place]
    count = np.zeros(place.size, np.int64)
    for step in range(1, min(_AROUND, place.size - 1) + 1):
        other = (service[step:] == service[:-step]) & (trace[step:] != trace[:-step])
        count[step:] += other & lost[:-step]
        count[:-step] += other & lost[step:]
    near = np.empty(place.size, np.int64)
    near[place] = count
    return near
