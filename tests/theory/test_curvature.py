"""The second order of the change of entropy, against differences of the entropy in many digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import entropy_theory as et
from entropy_theory.theory import curvature


@pytest.mark.statement("second-order-grpo")
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


@pytest.mark.statement("second-order")
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


@pytest.mark.statement("noise-drift")
def test_boundary_of_the_noise_drift():
    """Section B.10: for V = 2 the sign changes at (2p − 1) logit p = 1."""
    p = brentq(lambda p: (2 * p - 1) * np.log(p / (1 - p)) - 1.0, 0.6, 0.99, xtol=1e-14)
    assert p == pytest.approx(0.823959, abs=1e-6)
    for q, sign in ((p - 1e-6, -1.0), (p + 1e-6, 1.0)):
        assert np.sign(curvature.mean_grpo_curvature(np.log([q, 1 - q]))) == sign
    for size in (2, 5, 1000):
        assert curvature.mean_grpo_curvature(np.zeros(size)) == pytest.approx(-(1 / size) * (1 - 1 / size), rel=1e-13)


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
