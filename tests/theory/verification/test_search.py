"""The search finds what is there, and nothing where the theorem says there is nothing."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from oracles import ExactPolicy

from entropy_theory.theory.verification import search


@pytest.mark.statement("sharpness-of-the-sign-theorem")
@pytest.mark.parametrize("family", search.OUTSIDE, ids=lambda family: family.name)
def test_the_known_counterexamples_are_found(family):
    found = search.search_sign(family, chains=200, rounds=120, seed=3)
    assert found.confirmed > 0
    assert found.best > 0.0
    ray = found.example
    # Checked again by an oracle that shares no code with the search.
    with mp.workdps(80):
        exact = ExactPolicy.of(np.array(ray["logits"]), tuple(ray["counts"]))
        d = family.direction(list(exact.probs), [mp.mpf(n) for n in ray["counts"]], [mp.mpf(a) for a in ray["gains"]])
        slope = mp.fsum(n * S * v for n, S, v in zip(ray["counts"], exact.discriminants, d, strict=True))
        alpha = mp.mpf(ray["size"]) * (1 if slope >= 0 else -1)
        moved = [mp.log(p) + alpha * v for p, v in zip(exact.probs, d, strict=True)]
        after = ExactPolicy.of_exact(moved, tuple(ray["counts"]), 80).entropy
        assert alpha * slope >= 0
        assert after > exact.entropy


@pytest.mark.statement("one-sided-sign-theorem", "sign-law-of-one-logit")
@pytest.mark.parametrize("family", search.INSIDE, ids=lambda family: family.name)
def test_nothing_is_found_inside(family):
    found = search.search_sign(family, chains=300, rounds=200, seed=5)
    assert found.confirmed == 0
    assert found.best > -1.0 - 1e-2  # the bound is approached: the search does look where it is tight


@pytest.mark.statement("unimodal-rise")
def test_the_open_statement_has_no_exception_here():
    found = search.search_unimodal(chains=150, rounds=100, seed=2)
    assert found.confirmed == 0
    assert found.tries == 150 * 101


def test_a_search_is_reproducible():
    first, second = (search.search_sign(search.OUTSIDE[2], 50, 30, seed=9) for _ in range(2))
    assert first == second


def test_a_false_hit_is_not_confirmed():
    """A uniform policy: the fall is certain, whatever float64 says."""
    ray = {"logits": [0.0] * 4, "counts": [1, 1, 5, 1000], "gains": [0.0] * 4, "size": 1e-4}
    outcome = search.recheck_sign(search.INSIDE[0], ray)
    assert outcome["change"] < 0
    with mp.workdps(80):
        assert outcome["score"] < -1 + mp.mpf(10) ** -60  # the bound −KL is met: along a uniform policy it is ΔH
    assert not search.recheck_unimodal(ray)
