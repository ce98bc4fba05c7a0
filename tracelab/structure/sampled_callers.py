"""Orphans whose usual caller is whole, while a rarer one was sampled out.

The service of a missing parent is taken to be the one that mostly calls the operation. Where a
sampler takes most traces of another caller, few of its calls are left, and the wrong service
would be blamed. What tells the two apart is the trace id: calls of the one that was sampled are
there on one side of a threshold, and the orphans lie on the other.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from tracelab.structure.codes import entries_by_code
from tracelab.structure.missing import Missing
from tracelab.structure.sampling import MIN_TRACES, parted_by_id
from tracelab.structure.skeleton import FAR, Ints, Skeleton
from tracelab.structure.spine import INTACT

_MOSTLY: Final = 0.9
"""Least share of the orphans' traces in which the other caller has no span at all."""


def blame_sampled_callers(skeleton: Skeleton, missing: Missing) -> Missing:
    """Give orphans to the caller of their operation that a trace-id threshold took, if one did.

    Parameters
    ----------
    skeleton : Skeleton
        The capture.
    missing : Missing
        What is missing, each with the service that mostly calls the operation.

    Returns
    -------
    Missing
        The same entries; those given to another service have its usual operation and no process.

    Raises
    ------
    ValueError
        Never.
    """
    service, op, process = missing.service.copy(), missing.op.copy(), missing.process.copy()
    afar = ~missing.call & ~missing.local & (missing.service >= 0)
    for code, orphans in entries_by_code(skeleton.op[missing.row], afar):
        if orphans.size < MIN_TRACES:
            continue
        calls = skeleton.by_op.rows(code)
        calls = calls[(skeleton.state[calls] == INTACT) & FAR[skeleton.crossing[calls]]]
        usual = missing.service[orphans]
        callers = skeleton.service[skeleton.parent[calls]]
        absent = np.unique(skeleton.trace[missing.row[orphans]])
        for other in np.setdiff1d(callers, usual).tolist():
            theirs = calls[callers == other]
            present = np.unique(skeleton.trace[theirs])
            if _may_be_sampled(skeleton, present, absent, other):
                names, many = np.unique(skeleton.op[skeleton.parent[theirs]], return_counts=True)
                service[orphans], op[orphans] = other, names[many.argmax()]
                process[orphans] = -1
                break
    return replace(missing, service=service, op=op, process=process)


def _may_be_sampled(skeleton: Skeleton, present: Ints, absent: Ints, service: int) -> bool:
    """Tell whether a threshold parts traces that a service called in from those that lack it."""
    rows = skeleton.rows_in(absent)
    without = np.setdiff1d(absent, skeleton.trace[rows[skeleton.service[rows] == service]])
    if without.size < _MOSTLY * absent.size or min(present.size, without.size) < MIN_TRACES:
        return False
    return parted_by_id(skeleton, present, without)
