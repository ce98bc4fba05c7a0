"""Hops that nobody records: a proxy or a service without instrumentation in between."""

from typing import Final

import numpy as np

from tracelab.structure.case import MIN_ODDS, Case
from tracelab.structure.codes import pair_codes
from tracelab.structure.missing import Missing
from tracelab.structure.skeleton import CONSUMER, FAR, SERVER, Bools, Floats, Ints, Skeleton
from tracelab.structure.spine import INTACT
from tracelab.structure.unanswered import called_astray

_ENOUGH: Final = 50
"""Least hops from which a usual rate of loss is taken."""


def weigh_hops(skeleton: Skeleton, missing: Missing, case: Case) -> None:
    """Weigh whether remote parents are of a kind that no trace of the capture holds.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing.
    case : Case
        Weights and words, changed here.

    Raises
    ------
    IndexError
        If a row of `missing` does not exist.
    """
    intact = skeleton.intact
    far = intact[FAR[skeleton.crossing[intact]]]
    n_ops, n_services = skeleton.ops.height, len(skeleton.services)
    held_op = np.bincount(skeleton.op[far], minlength=n_ops)
    held_service = np.bincount(skeleton.service[far], minlength=n_services)
    kind = skeleton.kind[missing.row]
    remote = ~missing.call & ~missing.local & ((kind == SERVER) | (kind == CONSUMER))
    remote |= ~missing.call & ~missing.local & (skeleton.remote[missing.row] == 1)
    op, service = skeleton.op[missing.row], skeleton.service[missing.row]
    lost_op = np.bincount(op[remote], minlength=n_ops)
    lost_service = np.bincount(service[remote], minlength=n_services)
    alone = remote & (held_service[service] == 0)
    several = alone & (lost_service[service] >= 2)
    case.put(
        "uninstrumented_hop",
        several,
        np.where(lost_service[service] >= 5, 80.0, 25.0)[several],
        "no caller of this service stands in the capture",
    )
    # What strikes now and then cannot be why a caller is never there.
    never = remote & (held_op[op] == 0) & (lost_op[op] >= 3)
    case.put(
        "uninstrumented_hop",
        never,
        np.minimum(4.0 * lost_op[op][never], 120.0),
        "no caller of this operation stands in the capture",
    )
    case.put(
        "uninstrumented_hop",
        alone & (lost_service[service] == 1),
        1.5,
        "its only caller does not stand in the capture",
    )
    astray = called_astray(skeleton, missing.row[remote])
    case.put(
        "uninstrumented_hop",
        np.flatnonzero(remote)[astray > 0],
        12.0 * astray[astray > 0],
        "a call of its trace that it usually answers is there: something between them gave it "
        "a parent of its own",
    )
    rate = lost_op / np.maximum(lost_op + held_op, 1)
    usual = _usual_loss(skeleton, missing, lost_op, held_op)
    often = remote & (lost_op[op] >= 8) & (rate[op] > 4 * usual[op] + 0.1)
    case.put(
        "uninstrumented_hop",
        often & _mixed(skeleton, missing.row, op, often),
        5.0,
        "callers of this operation are missing far oftener than other spans",
    )
    here = _caller_loss(skeleton, missing, remote)
    # What a sampler took is no sign of a hop that nothing records.
    open_cases = remote & (case.weights["sampled_out"] < MIN_ODDS)
    lost_op = np.bincount(op[open_cases], minlength=n_ops)
    rate = lost_op / np.maximum(lost_op + held_op, 1)
    often = open_cases & (lost_op[op] >= 20) & (rate[op] >= 0.5) & (rate[op] > 8 * here + 0.1)
    case.put(
        "uninstrumented_hop",
        often & _mixed(skeleton, missing.row, op, often),
        8.0,
        "most callers of this operation are missing, other spans of the service that calls it "
        "are there",
    )


def _mixed(skeleton: Skeleton, rows: Ints, op: Ints, asked: Bools) -> Bools:
    """Whether calls of an operation without their caller stand among those with one.

    Losses come in stretches; what goes through a hop that nothing records, and what does not,
    take turns as chance has it (Wald and Wolfowitz, 1940), at four standard deviations.
    """
    mixed = np.zeros(rows.size, bool)
    for code in np.unique(op[asked]).tolist():
        mine = asked & (op == code)
        held = skeleton.by_op.rows(code)
        held = held[(skeleton.state[held] == INTACT) & FAR[skeleton.crossing[held]]]
        start = skeleton.start[np.concatenate([rows[mine], held])]
        lost = np.argsort(start, kind="stable") < mine.sum()
        a, b = int(mine.sum()), held.size
        due = 1 + 2 * a * b / (a + b)
        spread = np.sqrt((due - 1) * max(due - 2, 0) / max(a + b - 1, 1))
        mixed[mine] = 1 + (lost[1:] != lost[:-1]).sum() >= due - 4 * spread
    return mixed


def _caller_loss(skeleton: Skeleton, missing: Missing, remote: Bools) -> Floats:
    """Share of spans that a presumed caller's service lost for other operations, per entry.

    1 where the service is not known or has too few spans to tell.
    """
    known = missing.service >= 0
    size = len(skeleton.services)
    lost = np.bincount(missing.service[known & ~missing.call], minlength=size)
    held = np.bincount(skeleton.service, minlength=size)
    n_ops = skeleton.ops.height
    asked = np.flatnonzero(remote & known)
    share = np.ones(missing.row.size)
    hop = pair_codes(missing.service[asked], skeleton.op[missing.row[asked]], n_ops)
    _, slot, own = np.unique(hop, return_inverse=True, return_counts=True)
    service = missing.service[asked]
    others = lost[service] - own[slot]
    enough = held[service] >= _ENOUGH
    share[asked[enough]] = ((others + 1) / (others + held[service] + 1))[enough]
    return share


def _usual_loss(skeleton: Skeleton, missing: Missing, lost: Ints, held: Ints) -> Floats:
    """Share of parents that are missing elsewhere in the capture, per operation.

    The larger of the share of local parents, and of remote parents of other operations; 1 where
    neither is known, so that nothing stands out.
    """
    near_lost = int((missing.local & ~missing.call).sum())
    near = near_lost + int((~FAR[skeleton.crossing[skeleton.intact]]).sum())
    local = near_lost / near if near >= _ENOUGH else 0.0
    seen = lost + held
    others = seen.sum() - seen
    remote = np.where(others >= _ENOUGH, (lost.sum() - lost) / np.maximum(others, 1), 0.0)
    known = (near >= _ENOUGH) | (others >= _ENOUGH)
    usual: Floats = np.where(known, np.maximum(local, remote), 1.0)
    return usual
