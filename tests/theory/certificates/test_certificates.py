"""What is certified, and that a false claim is not."""

from __future__ import annotations

import sys

import mpmath as mp
import numpy as np
import pytest
from oracles import exact_curvature

from entropy_theory.theory.certificates import balls, rays, sign_theorem, single_logit
from entropy_theory.theory.verification.checks import certified
from entropy_theory.theory.verification.evidence import BUDGETS

pytest.importorskip("flint")


@pytest.mark.statement("sign-law-of-one-logit", "divergence-lemma")
def test_the_sign_law_of_one_logit_is_certified():
    certificate = single_logit.one_logit(5.0)
    assert certificate.certified
    assert certificate.by_derivative > 0


@pytest.mark.statement("first-order-accuracy")
def test_the_accuracy_region_is_sharp():
    for kappa, step, beyond in certified.ACCURACY:
        assert single_logit.first_order_accuracy(kappa, step).certified
        assert single_logit.accuracy_fails(kappa, beyond)
        assert not single_logit.accuracy_fails(kappa, step)


def test_the_accuracy_at_kappa_one_is_log_1_1():
    assert certified.ACCURACY[0][1] < np.log(1.1) < certified.ACCURACY[0][2]


def test_a_region_that_is_too_large_is_not_certified(monkeypatch):
    monkeypatch.setattr(single_logit, "branch_and_bound", lambda *args: balls.branch_and_bound(*args, most=3000))
    certificate = single_logit.first_order_accuracy(1.0, 0.0954)
    assert not certificate.certified
    assert certificate.undecided is not None


@pytest.mark.statement("one-sided-sign-theorem")
def test_the_sign_theorem_is_certified_for_two_tokens():
    assert sign_theorem.sign_theorem_two_tokens().certified


@pytest.mark.parametrize("workers", [1, 2])
def test_the_sign_theorem_is_certified_for_three_tokens(workers):
    certificate = sign_theorem.sign_theorem_three_tokens(1.0, 2.0, workers)
    assert certificate.certified
    assert certificate.by_derivative > 0


def test_a_planted_error_is_not_certified(monkeypatch):
    """Turn the slope of entropy round: no box of a predicted fall may then be decided by its value."""
    slope = sign_theorem._slope
    monkeypatch.setattr(
        sign_theorem, "_slope", lambda *args, **options: tuple(-value for value in slope(*args, **options))
    )
    monkeypatch.setattr(
        sign_theorem,
        "branch_and_bound",
        lambda *args: balls.branch_and_bound(*args, most=2000),
    )
    assert not sign_theorem.sign_theorem_two_tokens().certified
    assert not sign_theorem.sign_theorem_three_tokens(1.0, 2.0, workers=1).certified


@pytest.mark.statement("second-order")
def test_remainders_lie_in_their_enclosure():
    assert certified.remainder(BUDGETS["quick"]).passed
    logits, direction = np.array([1.0, 0.25, -2.0]), np.array([0.5, -1.0, 0.25])
    enclosure = rays.remainder_enclosure(logits, direction, -0.5, 0.5)
    for t in (-0.5, -0.1, 0.3, 0.5):
        bend = exact_curvature(logits + t * direction, [mp.mpf(float(v)) for v in direction], 60)
        assert enclosure.low <= bend <= enclosure.high
    finer = rays.remainder_enclosure(logits, direction, -0.5, 0.5, pieces=512)
    assert enclosure.low <= finer.low <= finer.high <= enclosure.high
    assert finer.high - finer.low < 2.0 * (enclosure.high - enclosure.low)
    certain = rays.remainder_enclosure([0.0, -np.inf], [1.0, 0.0], 0.0, 1.0)
    assert certain.low <= 0.0 <= certain.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rays.remainder_enclosure([[0.0, 1.0]], [1.0, 0.0], 0, 1), "logits: expected shape (V,)"),
        (lambda: rays.remainder_enclosure([0.0, 1.0], [1.0], 0, 1), "direction: expected shape (..., 2)"),
        (lambda: rays.remainder_enclosure([0.0, 1.0], [1.0, 0.0], 1, 0), "start, end: expected finite numbers"),
        (lambda: rays.remainder_enclosure([0.0, 1.0], [1.0, 0.0], 0, 1, 0), "pieces: expected at least 1"),
        (lambda: single_logit.first_order_accuracy(0.0, 0.1), "kappa: expected a number > 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        call()
    assert message in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(ImportError, match=r"entropy-theory\[certify\]"):
        single_logit.one_logit()
