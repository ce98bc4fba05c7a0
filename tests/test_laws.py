"""The onset of a delay law that is learnt from guessed pairs."""

import numpy as np
import pytest

from tracelab.structure.laws import Law

MS = 1e6


def mass_before(law: Law, at_ms: float) -> float:
    """Share of a law's delays from zero up to a time."""
    delay = (np.arange(20_000) + 0.5) * at_ms * MS / 20_000
    return float(np.exp(law.log_at(delay)).mean() * at_ms * MS)


def hard_edged(n: int) -> np.ndarray:
    return 0.5 * MS + np.random.default_rng(1).exponential(2 * MS, n)


def test_nothing_is_left_before_an_onset_that_the_delays_show_to_be_hard():
    delay = hard_edged(1_500)
    assert mass_before(Law.fit(delay), 0.49) > 0.01
    sharp = Law.fit(delay, rises=True)
    assert mass_before(sharp, 0.49) < 0.003
    assert mass_before(sharp, 0.6) == pytest.approx(0.05, abs=0.02)


def test_a_few_delays_are_no_proof_that_none_comes_earlier():
    few = hard_edged(20)
    assert mass_before(Law.fit(few, rises=True), few.min() / MS) > 0.01


def test_no_edge_is_invented_where_the_onset_is_smooth():
    rng = np.random.default_rng(2)
    learnt = 2 * MS * np.exp(rng.normal(0, 0.5, 1_500))
    others = 2 * MS * np.exp(rng.normal(0, 0.5, 1_500))
    blurred, rising = Law.fit(learnt), Law.fit(learnt, rises=True)
    assert rising.log_at(others).mean() == pytest.approx(blurred.log_at(others).mean(), abs=0.02)
    assert rising.log_at(others).min() > blurred.log_at(others).min() - 1.5


def test_what_is_done_at_once_keeps_its_hump_before_a_late_onset():
    rng = np.random.default_rng(3)
    at_once = 0.1 * MS * np.exp(rng.normal(0, 0.2, 75))
    late = 3 * MS * np.exp(rng.normal(0, 0.3, 1_425))
    law = Law.fit(np.concatenate([at_once, late]), rises=True)
    assert mass_before(law, 0.2) == pytest.approx(0.05, abs=0.01)
