"""Freed memory goes back to the system, and is kept only where that was asked for."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="asks the GNU C library, and reads /proc"
)

PRELUDE = """
import numpy as np
from tracelab.memory import give_back, reusing_arrays

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

def faults(count, megabytes):
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        np.ones(megabytes << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={"NUMPY_MADVISE_HUGEPAGE": "0", "PATH": "/usr/bin:/bin"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_what_many_arrays_leave_behind_is_given_back():
    code = """
    np.ones(31 << 20, np.uint8)  # from here on smaller arrays are kept by the library
    arrays = [np.ones(1 << 20, np.uint8) for _ in range(300)]
    some = arrays[9::10]  # between the others: the library cannot shrink its heap
    full = held()
    del arrays
    kept = held()
    give_back()
    print(full, kept, held())
    """
    full, kept, after = run(code)
    assert kept > full - 100  # else there is nothing to give back
    assert after < full - 200


def test_large_arrays_are_used_again_within_the_block_and_not_behind_it():
    code = """
    before = faults(20, 64)
    with reusing_arrays():
        faults(1, 64)
        inside = faults(20, 64)
    print(before, inside, faults(20, 64))
    """
    before, inside, behind = run(code)
    assert inside < before / 10
    assert behind > before / 2
