"""Small codes: the quick ways over few codes say what the slow ones over many do."""

import numpy as np
import pytest

from tracelab.structure.codes import AT_ONCE, Groups, entries_by_code, ranked


@pytest.mark.parametrize("largest", [0, 5, 70_000, AT_ONCE + 10])
def test_codes_are_numbered_in_their_order_without_gaps(largest):
    codes = np.random.default_rng(largest).integers(0, largest + 1, 500)
    codes[7] = largest
    assert (ranked(codes) == np.searchsorted(np.unique(codes), codes)).all()
    assert ranked(np.zeros(0, np.int64)).size == 0


@pytest.mark.parametrize("largest", [3, 70_000])
def test_rows_of_a_code_stay_in_order(largest):
    codes = np.random.default_rng(largest).integers(0, largest + 1, 2_000)
    some = np.flatnonzero(np.arange(2_000) % 3 != 0)
    for groups, rows in ((Groups(codes), np.arange(2_000)), (Groups(codes, some), some)):
        for code in (*codes[:20], 0, largest, largest + 1):
            assert (groups.rows(int(code)) == rows[codes[rows] == code]).all()


def test_entries_are_given_by_code_where_they_are_asked_about():
    codes, asked = np.array([3, 1, 3, 0, 1]), np.array([True, True, True, False, True])
    found = [(code, entries.tolist()) for code, entries in entries_by_code(codes, asked)]
    assert found == [(1, [1, 4]), (3, [0, 2])]
    assert list(entries_by_code(codes, np.zeros(5, bool))) == []
