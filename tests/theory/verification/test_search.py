"""The search finds what is there, and nothing where the theorem says there is nothing."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from oracles import ExactPolicy

from entropy_theory.theory.verification import questions
from entropy_theory.theory.verification.search import search


@pytest.mark.statement("sharpness-of-the-sign-theorem")
@pytest.mark.parametrize("family", questions.OUTSIDE, ids=lambda family: family.name)
def test_the_known_counterexamples_are_found(family):
    result = search(questions.sign(family), chains=200, rounds=120, seed=3)
    assert result.confirmed > 0
    assert result.best > 0.0
    ray = result.example
    # Checked again by an oracle that shares no code with the search.
    with mp.workdps(80):
        exact = ExactPolicy.of(np.array(ray["logits"]), tuple(ray["counts"]))
        d = family.direction(list(exact.probs), [mp.mpf(n) for n in ray["counts"]], [mp.mpf(a) for a in ray["gains"]])
        slope = mp.fsum(n * S * v for n, S, v in zip(ray["counts"], exact.discriminants, d, strict=True))
        alpha = mp.mpf(ray["size"]) * (1 if slope >= 0 else -1)
        moved = [mp.log(p) + alpha * v for p, v in zip(exact.probs, d, strict=True)]
        assert ExactPolicy.of_exact(moved, tuple(ray["counts"]), 80).entropy > exact.entropy


@pytest.mark.statement("one-sided-sign-theorem", "sign-law-of-one-logit")
@pytest.mark.parametrize("family", questions.INSIDE, ids=lambda family: family.name)
def test_nothing_is_found_inside(family):
    result = search(questions.sign(family), chains=300, rounds=200, seed=5)
    assert result.confirmed == 0
    assert result.best > -1.0 - 1e-2  # the bound is approached: the search does look where it is tight


@pytest.mark.statement("unimodal-rise")
def test_no_second_rise_is_found():
    result = search(questions.second_rise(), chains=150, rounds=100, seed=2)
    assert result.confirmed == 0
    assert result.tries == 150 * 101


@pytest.mark.statement("step-bound")
def test_the_step_bound_is_approached_and_never_exceeded():
    result = search(questions.bound(), chains=150, rounds=100, seed=4, recheck=60)
    assert result.confirmed == 0
    assert result.rechecked == 60
    assert -1e-6 < result.closest <= 1e-50


@pytest.mark.statement("one-step-keeps-its-half")
def test_no_step_that_leaves_its_half_is_found():
    result = search(questions.other_half(), chains=150, rounds=100, seed=6, recheck=20)
    assert result.confirmed == 0
    assert result.closest < 0.0


@pytest.mark.parametrize("question", [questions.bound, questions.other_half, questions.second_rise])
def test_float_and_exact_scores_agree(question):
    """The climb and the verdict must ask the same thing: a ray's two scores agree as far as float64 reaches."""
    asked = question()
    result = search(asked, chains=60, rounds=3, seed=8)
    with mp.workdps(60):
        assert float(asked.exact(result.example)) == pytest.approx(
            result.best, abs=0.1 if question is questions.second_rise else 1e-6
        )


def test_a_search_is_reproducible():
    first, second = (search(questions.sign(questions.OUTSIDE[2]), 50, 30, seed=9) for _ in range(2))
    assert first == second


def test_a_false_hit_is_not_confirmed():
    """A uniform policy: the fall is certain, whatever float64 says."""
    ray = {"logits": [0.0] * 4, "counts": [1, 1, 5, 1000], "gains": [0.0] * 4, "size": 1e-4}
    with mp.workdps(80):
        for question in (questions.sign(questions.INSIDE[0]), questions.bound(), questions.second_rise()):
            assert question.exact(ray) <= question.bar  # the bounds are met with equality
