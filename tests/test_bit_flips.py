"""A turned bit in a store is named, wherever it is (benchmarks/bit_flips.py turns thousands)."""

import pytest
from bit_flips import flip, flip_bits, is_named, make_store


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, exports=2, spans=200)


def test_a_flipped_bit_in_any_file_is_named_and_never_read_as_other_data(store):
    hits, unseen = flip_bits(store, flips=150, reads=30, seed=3)
    assert hits.total() == 150
    assert len(hits) > 1
    assert unseen == []


def test_every_byte_of_the_last_log_entry_counts(store):
    last = max((store / "log").glob("*.json"))
    for byte in range(0, last.stat().st_size, 40):
        flip(last, byte * 8)
        assert is_named(store, last)
        flip(last, byte * 8)


def test_an_emptied_file_is_named(store):
    for path in [path for path in store.rglob("*") if path.is_file() and path.stat().st_size]:
        data = path.read_bytes()
        path.write_bytes(b"")
        assert is_named(store, path)
        path.write_bytes(data)
