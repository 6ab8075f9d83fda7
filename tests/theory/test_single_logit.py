"""The exact law of one logit and its sign-flip radius, against 60 digits and more, and the laws they obey."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from oracles import relative_error

import entropy_theory as et
from entropy_theory.theory import single_logit
from entropy_theory.theory._extended import log_plus

DIGITS = 420  # the change of a token of probability 1e-300 needs more than 300


def exact_change(p, H, step):
    """Section B.4 in many digits, of the float64 numbers given."""
    p, H, step = mp.mpf(float(p)), mp.mpf(float(H)), mp.mpf(float(step))
    D = 1 + p * mp.expm1(step)
    q = p * mp.exp(step) / D
    moved = q * (mp.log(p) + step - mp.log(D)) if q > 0 else 0
    rest = (H + p * mp.log(p) + (1 - p) * mp.log(1 - p)) / (1 - p)
    return -moved - (1 - q) * mp.log(1 - q) + (1 - q) * rest - H


def pairs(seed=0, count=60):
    """(p, H): anywhere, tiny, nearly 1, next to S = 0 at every scale, and uniform policies."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        for p in (rng.random(), 10 ** -rng.uniform(0, 300), 1 - 10 ** -rng.uniform(1, 6)):
            h = -p * np.log(p) - (1 - p) * np.log1p(-p)
            yield p, h + (1 - p) * rng.choice([0.01, 1.0, 11.0])
        p = rng.uniform(1e-6, 0.49)
        yield p, -np.log(p) * (1.0 + rng.choice([1, -1]) * 10 ** -rng.uniform(2, 16))
    for size in (2, 3, 7, 151_936, 10**6):
        yield 1.0 / size, np.log(size)


@pytest.mark.statement("exact-single-logit-law")
@pytest.mark.parametrize("step", [1e-8, -1e-8, 1e-10, 1e-5, -1e-3])
def test_small_steps_keep_their_digits(step):
    for p, H in pairs():
        with mp.workdps(DIGITS):
            # Promised: 1e-10. Uniform policies included, where S is the rounding error of log V.
            assert (
                relative_error(single_logit.single_logit_entropy_change(p, H, step), exact_change(p, H, step)) < 1e-13
            )


@pytest.mark.statement("exact-single-logit-law")
@pytest.mark.parametrize("step", [0.3, -2.0, 20.0, -50.0, 300.0, 800.0, -800.0])
def test_large_steps_match_many_digits(step):
    for p, H in pairs(1):
        with mp.workdps(DIGITS):
            reference = exact_change(p, H, step)
        # 1e-12 of ΔH, or 1e-14 of what is subtracted: H, and H_rest = (H − h)/(1 − p).
        size = H + single_logit.rest_entropy(p, H) + abs(H - 1.0) * 1e-2 / (1.0 - p)
        error = abs(float(single_logit.single_logit_entropy_change(p, H, step) - reference))
        assert error <= 1e-12 * abs(float(reference)) + 1e-14 * size


def test_log_plus_is_exact_where_the_sum_cancels():
    rng = np.random.default_rng(0)
    for p in np.concatenate([rng.random(200), 10.0 ** -rng.uniform(0, 307, 200), [5e-324, 0.5, 1.0]]):
        addend = float(-np.log(p))
        with mp.workdps(60):
            reference = mp.log(mp.mpf(float(p))) + mp.mpf(addend)
            # 1e-31 of log p is left of it.
            assert abs(float(log_plus(np.array(p), np.array(addend)) - reference)) <= 1e-30 * max(1.0, addend)


@pytest.mark.statement("sign-flip-radius")
def test_the_flip_radius_is_the_root():
    for p, H in pairs(2):
        radius = single_logit.sign_flip_radius(p, H)
        if not np.isfinite(radius) or radius == 0.0:
            continue
        with mp.workdps(DIGITS):
            before, after = (exact_change(p, H, radius * (1 + side)) for side in (-1e-8, 1e-8))
        assert before > 0 > after, (p, H, radius)


@pytest.mark.statement("sign-flip-radius")
def test_two_tokens_flip_at_the_mirror_image():
    p = np.array([0.001, 0.2, 0.49, 0.51, 0.9])
    H = -p * np.log(p) - (1 - p) * np.log1p(-p)
    # h(p) is rounded at 1e-16; its H_rest is that over 1 − p instead of 0.
    assert np.allclose(single_logit.sign_flip_radius(p, H), -2 * (np.log(p) - np.log1p(-p)), rtol=1e-9)


@pytest.mark.statement("sign-flip-radius")
@pytest.mark.parametrize("rest", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("x", [-1e-3, 1e-3, -1e-5])
def test_the_asymptote_of_the_flip_radius(x, rest):
    p = 1.0 / (1.0 + np.exp(rest - x))
    H = -p * np.log(p) - (1 - p) * np.log1p(-p) + (1 - p) * rest
    claimed = -2 * x - 2 / 3 * np.tanh(rest / 2) * x**2
    # The first term left out is x³ times a number of order 1; p and H are rounded at 1e-16.
    assert single_logit.sign_flip_radius(p, H) == pytest.approx(claimed, abs=2 * abs(x) ** 3 + 1e-14)


def test_no_flip_and_no_rise():
    assert single_logit.sign_flip_radius(0.9, 1.0) == -np.inf
    assert single_logit.sign_flip_radius(0.5, np.log(2.0)) == pytest.approx(0.0, abs=1e-15)
    assert single_logit.single_logit_entropy_change(0.9, 1.0, -700.0) > 0.0
    assert single_logit.single_logit_entropy_change(0.5, np.log(2.0), [1e-4, -1e-4, 30.0]).max() < 0.0


def test_certain_and_impossible_tokens_change_nothing():
    assert single_logit.single_logit_entropy_change(1.0, 0.0, 3.0) == 0.0
    assert single_logit.single_logit_entropy_change(0.0, 2.0, 3.0) == 0.0
    assert single_logit.rest_entropy(1.0, 0.0) == 0.0
    assert single_logit.rest_entropy(0.0, 2.0) == 2.0


def test_shapes_broadcast():
    p, H = np.array([0.1, 0.2]), np.array([[2.0], [3.0], [4.0]])
    assert single_logit.single_logit_entropy_change(p, H, np.ones((4, 1, 1))).shape == (4, 3, 2)
    assert single_logit.sign_flip_radius(p, H).shape == (3, 2)
    assert single_logit.discriminant_bounds(p, np.array([[5], [6]]))[0].shape == (2, 2)
    assert isinstance(single_logit.sign_flip_radius(0.1, 2.0), np.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: et.single_logit_entropy_change(1.5, 1.0, 0.1), "prob: expected values with 0 <= p <= 1, received 1.5"),
        (lambda: et.single_logit_entropy_change(np.nan, 1.0, 0.1), "prob: expected values with 0 <= p <= 1, received"),
        (lambda: et.single_logit_entropy_change(0.5, -1.0, 0.1), "entropy: expected values with 0 <= H <= 709, rec"),
        (lambda: et.sign_flip_radius(0.5, 1e308), "entropy: expected values with 0 <= H <= 709, received 1e+308"),
        (lambda: et.single_logit_entropy_change(0.5, 0.5, 0.1), "entropy: expected at least the binary entropy"),
        (lambda: et.single_logit_entropy_change(0.5, 1.0, np.inf), "step: expected finite values, received"),
        (lambda: et.single_logit_entropy_change([0.5, 0.4], 1.0, [1.0] * 3), "step: expected a shape that broadcasts"),
        (
            lambda: et.single_logit_entropy_change([0.5, 0.4], [1.0] * 3, 1.0),
            "entropy: expected a shape that broadcasts",
        ),
        (lambda: et.sign_flip_radius(0.0, 1.0), "prob: expected values with 0 < p < 1, received 0.0"),
        (lambda: et.sign_flip_radius("a", 1.0), "prob: expected an array of real numbers, received dtype <U1"),
        (lambda: et.discriminant_bounds(0.5, 1), "vocab_size: expected at least 2, received 1"),
        (lambda: et.discriminant_bounds(0.5, 2.0), "vocab_size: expected integers, received dtype float64"),
        (lambda: et.discriminant_bounds([0.5, 0.1], [2, 3, 4]), "vocab_size: expected a shape that broadcasts"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        call()
    assert message in str(caught.value)
