"""Mutants of all forms are read without harm (benchmarks/mutants.py reads many)."""

import random
import sys
from dataclasses import replace

import containers_of_mutants as containers
import differential
import mutants
import polars as pl
import pytest
from mutations import Seeds
from store_mutants import Memory

from tracelab.exceptions import StoreError
from tracelab.io import SourceReader
from tracelab.io.chunk import ROW
from tracelab.io.decode import decode_block
from tracelab.store.parts import read_parts, write_batch

FAKE = """
import os, sys, time
first, end, *only = map(int, sys.argv[1:])
low, high = only or (0, 1000)
for number in range(first, end):
    print("next", number, flush=True)
    if number == 2 and low <= 700 < high: os.abort()
    if number == 4 and not only: time.sleep(60)
    print("wrong 3-3 sums" if number == 5 else "read 10 form", flush=True)
    print("peak 1")
print("end")
"""


def test_mutants_of_each_kind_are_read_without_harm(monkeypatch, tmp_path):
    monkeypatch.setattr(mutants, "MUTANTS", 60)
    monkeypatch.setattr(mutants, "FEWER", {"folder": 20, "alone": 10})
    for kind in mutants.KINDS:
        judge = mutants.Judge(7, [kind], tmp_path)
        for batch in range(2):
            assert judge.read(batch).total() > 0 or kind == "proto"


@pytest.mark.parametrize("form", [*containers.PROTO_FORMS, *containers.JSON_FORMS])
def test_mutants_in_each_form_are_accounted_for(form):
    for seed, torn in ((1, False), (2, True)):
        rng = random.Random(f"{form} {seed}")
        packing = rng.choice(list(containers.PACKINGS))
        containers.read_and_judge(containers.make_file(rng, form, packing, mutants=60, torn=torn))


def test_the_same_number_makes_the_same_mutant_alone_and_among_others():
    def file(only):
        rng = random.Random("same")
        return containers.make_file(
            rng, "json lines", "none", mutants=40, only=only, torn=False
        ).plain.split(b"\n")

    everything, one = file(range(40)), file(range(17, 18))
    assert set(one) < set(everything)
    assert file(range(40)) == everything


def test_the_program_says_what_it_read():
    program = [sys.executable, mutants.__file__, "--seed", "7", "--kinds", "store", "--work"]
    watch = mutants.Watch(program)
    watch.run(0, 1)
    assert watch.wrong == []
    assert watch.read.total() == mutants.MUTANTS
    assert 0 < watch.peak < 1500


def test_a_death_a_hang_and_a_wrong_sum_are_counted_and_the_rest_is_read():
    watch = mutants.Watch([sys.executable, "-c", FAKE], hang_s=0.5)
    watch.run(0, 8)
    assert watch.read == {"form": 50}
    told = dict(watch.wrong)
    assert told[2].startswith("death: ")
    assert told[2].endswith("mutants 700-700")
    assert told[4].startswith("hang: ")
    assert told[5] == "3-3 sums"
    assert len(told) == 3


# --- the judges can fail ------------------------------------------------------------------


def test_a_message_that_vanishes_is_missed(monkeypatch):
    rng = random.Random(1)
    file = containers.make_file(rng, "proto frames", "none", mutants=9, torn=False)
    assert file.bounds is not None
    whole = SourceReader.chunks

    def without_messages(self):
        for chunk in whole(self):
            chunk.messages.extend(chunk.messages.clear())
            yield type(chunk)(spans=chunk.spans, events=chunk.events, links=chunk.links)

    monkeypatch.setattr(SourceReader, "chunks", without_messages)
    with pytest.raises(AssertionError):
        containers.read_and_judge(file)


def test_a_field_that_is_read_otherwise_is_a_difference(monkeypatch):
    rng = random.Random(3)
    messages = Seeds(rng, 5, traces_only=True).bodies
    assert differential.compare(messages, "proto") == 5

    def renamed(block, **knobs):
        chunk = decode_block(block, **knobs)
        names = chunk.spans["name"].to_list()
        names[-1] += "x"
        spans = chunk.spans.with_columns(name=pl.Series(names))
        return replace(chunk, spans=spans)

    monkeypatch.setattr(differential, "decode_block", renamed)
    with pytest.raises(differential.DifferenceError, match="message 4: name"):
        differential.compare(messages, "proto")


def test_a_silent_loss_in_json_is_a_difference(monkeypatch):
    rng = random.Random(3)
    messages = Seeds(rng, 5, traces_only=True, protobuf=False).bodies
    messages[2] = messages[2].replace(b'"kind":', b'"kind":"ODD","kinds":', 1)
    messages[2] = messages[2].replace(b'"name":', b'"kind":"ODD","name":', 1)
    assert differential.compare(messages, "json") == 5

    def silent(block, **knobs):
        chunk = decode_block(block, **knobs)
        return replace(chunk, rejects=chunk.rejects.clear())

    monkeypatch.setattr(differential, "decode_block", silent)
    with pytest.raises(differential.DifferenceError, match="message 2"):
        differential.compare(messages, "json")


@pytest.mark.parametrize("column", ["kind", "start_time", ROW])
def test_a_part_whose_columns_are_of_other_types_is_named_though_its_digests_fit(column):
    rng = random.Random(3)
    seeds = Seeds(rng, 24, traces_only=True, protobuf=True)
    messages = [seeds.mutant(rng, whole=1.0) for _ in range(9)]
    chunk = decode_block(differential.block_of(messages, "proto"), source="x")
    shelf = Memory({})
    whole = write_batch(shelf, chunk, 2)["spans"]
    assert read_parts(shelf, [whole], table="spans").height == chunk.spans.height > 0
    spans = chunk.spans.with_columns(pl.col(column).cast(pl.String).cast(pl.Binary))
    part = write_batch(shelf, replace(chunk, spans=spans), 2)["spans"]
    with pytest.raises(StoreError, match=f"{part.path} cannot be read: {column} is of type"):
        read_parts(shelf, [part], table="spans")
