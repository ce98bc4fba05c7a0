"""Mutants of all forms are read without harm (benchmarks/mutants.py reads many)."""

import sys

import mutants

FAKE = """
import os, sys, time
first, end = map(int, sys.argv[1:])
for number in range(first, end):
    print("next", number, flush=True)
    if number == 2: os.abort()
    if number == 4: time.sleep(60)
    print("wrong sums" if number == 5 else "read form", flush=True)
print("peak 1")
"""


def test_mutants_of_every_form_and_of_a_store_are_read_without_harm():
    program = [sys.executable, mutants.__file__, "--seed", "7", "--work"]
    read, wrong, peak = mutants.watch(program, 0, 160)
    assert wrong == []
    assert read.total() == 160
    assert read["store"] == 20
    assert len(read) >= 12
    assert 0 < peak < 1500


def test_a_death_a_hang_and_a_wrong_sum_are_counted_and_the_rest_is_read():
    read, wrong, _ = mutants.watch([sys.executable, "-c", FAKE], 0, 8, hang_s=0.5)
    assert read == {"form": 5}
    assert [(number, what.split()[0]) for number, what in wrong] == [
        (2, "death:"),
        (4, "hang:"),
        (5, "sums"),
    ]
