"""What is certified, and that a false claim is not."""

from __future__ import annotations

import sys

import mpmath as mp
import numpy as np
import pytest
from oracles import exact_curvature

from entropy_theory.theory.certificates.single_logit import sign_theorem, single_logit
from entropy_theory.theory.verification.checks import certified
from entropy_theory.theory.verification.evidence import BUDGETS

pytest.importorskip("flint")


def test_the_sign_law_of_one_logit_is_certified():
    certificate = single_logit.one_logit(5.0)
    assert certificate.certified
    assert certificate.by_derivative > 0


def test_the_accuracy_region_is_sharp():
    for kappa, step, beyond in certified.ACCURACY:
        assert single_logit.first_order_accuracy(kappa, step).certified
        assert single_logit.accuracy_fails(kappa, beyond)
        assert not single_logit.accuracy_fails(kappa, step)


def test_the_accuracy_at_kappa_one_is_log_1_1():
    assert certified.ACCURACY[0][1] < np.log(1.1) < certified.ACCURACY[0][2]


def test_a_region_that_is_too_large_is_not_certified(monkeypatch):
    bounded = single_logit._branch_and_bound
    monkeypatch.setattr(
        certificates, "_branch_and_bound", lambda start, holds, region: bounded(start, holds, region, most=3000)
    )
    certificate = single_logit.first_order_accuracy(1.0, 0.0954)
    assert not certificate.certified
    assert certificate.undecided is not None


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
        certificates_rays, "_slope", lambda *args, **options: tuple(-value for value in slope(*args, **options))
    )
    monkeypatch.setattr(
        certificates_rays,
        "_branch_and_bound",
        lambda *args: single_logit._branch_and_bound(*args, most=2000),
    )
    assert not sign_theorem.sign_theorem_two_tokens().certified
    assert not sign_theorem.sign_theorem_three_tokens(1.0, 2.0, workers=1).certified


def test_remainders_lie_in_their_enclosure():
    assert certified.remainder(BUDGETS["quick"]).passed
    logits, direction = np.array([1.0, 0.25, -2.0]), np.array([0.5, -1.0, 0.25])
    enclosure = single_logit.remainder_enclosure(logits, direction, -0.5, 0.5)
    for t in (-0.5, -0.1, 0.3, 0.5):
        bend = exact_curvature(logits + t * direction, [mp.mpf(float(v)) for v in direction], 60)
        assert enclosure.low <= bend <= enclosure.high
    finer = single_logit.remainder_enclosure(logits, direction, -0.5, 0.5, pieces=512)
    assert enclosure.low <= finer.low <= finer.high <= enclosure.high
    assert finer.high - finer.low < 2.0 * (enclosure.high - enclosure.low)
    certain = single_logit.remainder_enclosure([0.0, -np.inf], [1.0, 0.0], 0.0, 1.0)
    assert certain.low <= 0.0 <= certain.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: single_logit.remainder_enclosure([[0.0, 1.0]], [1.0, 0.0], 0, 1), "logits: expected shape (V,)"),
        (lambda: single_logit.remainder_enclosure([0.0, 1.0], [1.0], 0, 1), "direction: expected shape (..., 2)"),
        (lambda: single_logit.remainder_enclosure([0.0, 1.0], [1.0, 0.0], 1, 0), "start, end: expected finite numbers"),
        (lambda: single_logit.remainder_enclosure([0.0, 1.0], [1.0, 0.0], 0, 1, 0), "pieces: expected at least 1"),
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
