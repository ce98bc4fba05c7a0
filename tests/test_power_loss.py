"""What was said to be done survives a power cut (benchmarks/power_loss.py cuts after each call)."""

import shutil

import power_loss
import pytest

pytestmark = [
    pytest.mark.strace,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]


def test_a_power_cut_costs_nothing_that_was_said_to_be_done(tmp_path):
    calls, states, wrong = power_loss.cut_all("ingest", tmp_path, every=5)
    assert calls > 20
    assert states >= 18
    assert wrong == []


def test_a_store_that_did_not_sync_would_be_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(power_loss.Disk, "sync", lambda disk, path: None)
    _, _, wrong = power_loss.cut_all("ingest", tmp_path, every=100)
    assert [why for *_, why in wrong if why == "said done, and is not"]
