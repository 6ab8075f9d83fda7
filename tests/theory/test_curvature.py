"""The second order of the change of entropy, against differences of the entropy in many digits."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
from oracles import exact_curvature, exact_entropy_change, exact_grpo_direction, fitted_slope, relative_error
from scipy.optimize import brentq

import entropy_theory as et
from entropy_theory.theory import curvature

GAPS = (0.0, 1.0, 5.0, 12.0, 20.0, 30.0)


def peaked(gap, size, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(np.arange(size) == 1, 0.0, -gap - rng.random(size))


def digits_for(gap):
    return 150 + int(
        4 * gap
    )  # differences of step 10^(−digits/5) err at its fourth power, beside answers of e^{−3 gap}


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("size", [2, 3, 6])
def test_grpo_curvature_matches_many_digits(gap, size):
    logits = peaked(gap, size)
    for token in range(size):
        direction = exact_grpo_direction(logits, token, digits_for(gap))
        reference = exact_curvature(logits, direction, digits_for(gap))
        # No term cancels: a few units in the last place, also where the power sums are useless.
        assert relative_error(curvature.grpo_curvature(logits, token), reference) < 1e-13


@pytest.mark.parametrize("gap", [0.0, 1.0, 5.0])
def test_the_two_forms_agree_where_the_sums_do_not_cancel(gap):
    for size in (2, 5, 400):
        logits = peaked(gap, size)
        p, S, N = np.exp(et.log_softmax(logits)), et.discriminant(logits), et.baseline(logits)
        u = et.log_softmax(logits) + et.entropy(logits)
        sums = (N, (p**2).sum(), (p**3).sum(), (p**3 * u).sum())
        by_sums = curvature.grpo_curvature_from_sums(p, S, *sums)
        by_token = curvature.grpo_curvature(logits, np.arange(size)) if size < 100 else None
        if by_token is None:
            by_token = np.array([curvature.grpo_curvature(logits, token) for token in range(size)])
        assert np.allclose(by_sums, by_token, rtol=1e-9, atol=1e-15)
        assert curvature.mean_grpo_curvature(logits) == pytest.approx((p * by_token).sum(), rel=1e-11)


def test_the_power_sums_cancel_on_peaked_rows():
    """Section B.7: the stable form is needed, and where."""
    errors = {}
    for gap in (12.0, 20.0):
        logits = np.array([gap, 0.0, -0.3, -1.0])
        p, S, N = np.exp(et.log_softmax(logits)), et.discriminant(logits), et.baseline(logits)
        u = et.log_softmax(logits) + et.entropy(logits)
        by_sums = curvature.grpo_curvature_from_sums(p[0], S[0], N, (p**2).sum(), (p**3).sum(), (p**3 * u).sum())
        errors[gap] = abs(by_sums / curvature.grpo_curvature(logits, 0) - 1.0)
    assert 1e-9 < errors[12.0] < 1e-2
    assert errors[20.0] > 0.1


@pytest.mark.parametrize("gap", GAPS)
def test_mean_grpo_curvature_matches_many_digits(gap):
    for size in (2, 4):
        logits = peaked(gap, size)
        digits = digits_for(gap)
        with mp.workdps(digits):
            directions = [exact_grpo_direction(logits, token, digits) for token in range(size)]
            reference = mp.fsum(
                (1 - direction[token]) * exact_curvature(logits, direction, digits)  # d_k = 1 − p_k
                for token, direction in enumerate(directions)
            )
        # The mean may pass through its zero; away from it a few units in the last place remain.
        assert relative_error(curvature.mean_grpo_curvature(logits), reference) < 1e-12


def test_entropy_curvature_matches_autograd():
    rng = np.random.default_rng(4)
    logits, direction = rng.normal(size=(7, 20)) * 2.0, rng.normal(size=(7, 20))

    def entropy(t):
        log_probs = torch.log_softmax(torch.tensor(logits) + t * torch.tensor(direction), dim=-1)
        return -(log_probs.exp() * log_probs).sum(dim=-1)

    for row in range(7):
        second = torch.autograd.functional.hessian(
            lambda t, row=row: entropy(t)[row], torch.zeros((), dtype=torch.float64)
        )
        assert curvature.entropy_curvature(logits[row], direction[row]) == pytest.approx(float(second), rel=1e-11)


def test_boundary_of_the_noise_drift():
    """Section B.10: for V = 2 the sign changes at (2p − 1) logit p = 1."""
    p = brentq(lambda p: (2 * p - 1) * np.log(p / (1 - p)) - 1.0, 0.6, 0.99, xtol=1e-14)
    assert p == pytest.approx(0.823959, abs=1e-6)
    for q, sign in ((p - 1e-6, -1.0), (p + 1e-6, 1.0)):
        assert np.sign(curvature.mean_grpo_curvature(np.log([q, 1 - q]))) == sign
    for size in (2, 5, 1000):
        assert curvature.mean_grpo_curvature(np.zeros(size)) == pytest.approx(-(1 / size) * (1 - 1 / size), rel=1e-13)


@pytest.mark.parametrize("size", [3, 60])
@pytest.mark.parametrize("kind", ["single", "grpo"])
def test_second_order_remainders_fall_with_the_cube_of_the_step(size, kind):
    rng = np.random.default_rng(size)
    steps = np.geomspace(1e-5, 1e-3, 7)
    for scale in (0.5, 2.0):
        logits = rng.normal(size=size) * scale
        for token in (int(np.argmax(logits)), int(np.argmin(logits)), 1):
            unit = (np.arange(size) == token).astype(float)
            direction = unit if kind == "single" else et.grpo_direction(logits, token)
            exact = [
                float(exact_entropy_change(logits, step * direction))
                - float(et.second_order_change(logits, direction, step))
                for step in steps
            ]
            # The fourth order bends the line by 1e-3 of the third; a wrong second order gives slope 2. Round-off of
            # the prediction, 1e-16 of 1e-5, lies a factor 1e6 · size below.
            assert fitted_slope(steps, np.array(exact)) == pytest.approx(3.0, abs=0.05)


def test_corners_and_shapes():
    assert curvature.grpo_curvature([1.0, -np.inf, -np.inf], 0) == 0.0
    assert curvature.mean_grpo_curvature([1.0, -np.inf, -np.inf]) == 0.0
    assert curvature.grpo_curvature(np.zeros((3, 5)), np.zeros((4, 3), dtype=int)).shape == (4, 3)
    assert et.second_order_change(np.zeros((2, 1, 5)), np.ones(5), np.ones((2, 3))).shape == (2, 3)
    assert curvature.noise_drift(np.zeros((2, 5)), [0.1, 0.2]).shape == (2,)
    shifted = curvature.grpo_curvature(np.array([1.0, 0.5, -2.0]) + 1e4, 0)
    assert shifted == pytest.approx(curvature.grpo_curvature([1.0, 0.5, -2.0], 0), rel=1e-11)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: et.second_order_change([1.0], [1.0], 1.0), "logits: expected shape (..., V) with V >= 2"),
        (lambda: et.second_order_change([0.0, 1.0], [1.0], 1.0), "direction: expected shape (..., 2)"),
        (lambda: et.second_order_change([0.0, 1.0], [1.0, 0.0], np.nan), "step: expected finite values"),
        (lambda: curvature.entropy_curvature([0.0, 1.0], [1.0, np.inf]), "direction: expected finite values"),
        (lambda: curvature.grpo_curvature([0.0, 1.0], 2), "token: expected ids in 0..1, received 2"),
        (lambda: curvature.noise_drift([0.0, 1.0], -1.0), "mean_square_step: expected values >= 0, received -1.0"),
        (lambda: curvature.grpo_curvature_from_sums(np.nan, 0, 0, 0, 0, 0), "prob: expected finite values"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        call()
    assert message in str(caught.value)
