"""The laws of finite steps, by examples and by properties that do not share code with the checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import entropy_theory as et
from entropy_theory.theory import updates


@pytest.mark.statement("discriminant-gradient")
def test_the_jacobian_of_the_discriminant_matches_autograd():
    rng = np.random.default_rng(1)
    z = torch.tensor(rng.normal(size=9), requires_grad=True)

    def scores(z):
        log_probs = torch.log_softmax(z, dim=-1)
        H = -(log_probs.exp() * log_probs).sum()
        return log_probs.exp() * (H + log_probs)

    def baseline(z):
        return (torch.softmax(z, dim=-1) * scores(z)).sum()

    jacobian = torch.autograd.functional.jacobian(scores, z).numpy()
    slope = torch.autograd.functional.jacobian(baseline, z).numpy()
    logits = z.detach().numpy()
    p, u, N = np.exp(et.log_softmax(logits)), et.log_softmax(logits) + et.entropy(logits), et.baseline(logits)
    same = np.eye(9)
    claimed = p[:, None] * (same * (1 + u)[:, None] - p * (1 + u[:, None] + u))
    assert np.allclose(jacobian, claimed, atol=1e-14)
    assert np.allclose(slope, p * (p * (1 + 2 * u) - 2 * N - (p**2).sum() * (1 + u)), atol=1e-14)


@pytest.mark.statement("one-sided-sign-theorem")
def test_at_a_zero_of_the_centred_discriminant_every_step_lowers_entropy():
    for logits in (np.zeros(5), np.zeros(2)):
        for alpha in (-30.0, -1e-3, 1e-3, 30.0):
            assert et.entropy_change(logits, alpha * et.grpo_direction(logits, 1)) < 0.0


@pytest.mark.statement("quadrants", "baseline-boundary")
def test_a_token_of_low_probability_can_lie_in_the_first_quadrant():
    """Part A: p = .15 over a uniform tail of 50,000 has S_c = +.98."""
    logits = np.zeros(50_001)
    logits[0] = np.log(0.15 / 0.85 * 50_000)
    assert et.centered_discriminant(logits, 0) == pytest.approx(0.98, abs=0.01)
    assert np.exp(et.log_softmax(logits)[0]) == pytest.approx(0.15)
    assert updates.baseline_boundary(logits) < 0.15
