"""The laws of finite steps, by examples and by properties that do not share code with the checks."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import exact_entropy_change

import entropy_theory as et
from entropy_theory.testing import logits_and_token
from entropy_theory.theory import updates

STEPS = st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 5.0, 30.0, 300.0])


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


@given(logits_and_token(impossible=False, offsets=False, max_scale=30.0), STEPS)
def test_a_predicted_fall_of_one_logit_is_a_fall(case, size):
    logits, token = case
    score = et.discriminant(logits, token)
    assume(abs(score) > 1e-12)  # nearer, the sign of S is that of its rounding
    delta = np.sign(score) * size * (np.arange(len(logits)) == token)
    # At large steps H can underflow the last digit of H itself, never rise.
    assert et.entropy_change(logits, delta) <= 0.0


@given(logits_and_token(impossible=False, offsets=False, max_scale=30.0), STEPS)
def test_a_predicted_fall_of_a_grpo_step_is_a_fall(case, size):
    logits, token = case
    score = et.centered_discriminant(logits, token)
    assume(abs(score) > 1e-12)
    delta = np.sign(score) * size * et.grpo_direction(logits, token)
    assert et.entropy_change(logits, delta) <= 0.0


def test_at_a_zero_of_the_centred_discriminant_every_step_lowers_entropy():
    for logits in (np.zeros(5), np.zeros(2)):
        for alpha in (-30.0, -1e-3, 1e-3, 30.0):
            assert et.entropy_change(logits, alpha * et.grpo_direction(logits, 1)) < 0.0


def test_a_predicted_rise_can_come_and_go():
    logits = np.log([1e-6, 0.13, 0.869999])
    signs = [
        np.sign(float(exact_entropy_change(logits, alpha * et.grpo_direction(logits, 0)))) for alpha in (1, 7, 10, 15)
    ]
    assert signs == [1, -1, 1, -1]


def test_the_divergence_lemma():
    with mp.workdps(60):
        for p in ("1e-12", "0.1", "0.5", "0.999999"):
            for step in ("-15", "-1", "-1e-6", "1e-6", "1", "15"):
                p_k, e = mp.mpf(p), mp.mpf(step)
                D = 1 + p_k * mp.expm1(e)
                ratio = 2 * (e * p_k * mp.exp(e) / D - mp.log(D)) / (e**2 * p_k * (1 - p_k))
                assert mp.exp(-abs(e)) <= ratio <= mp.exp(abs(e))


def test_the_four_quadrants():
    logits = np.log([0.7, 0.2, 0.1])
    likely, unlikely = (et.grpo_direction(logits, token) for token in (0, 2))
    assert et.centered_discriminant(logits, 0) > 0 > et.centered_discriminant(logits, 2)
    assert et.entropy_change(logits, 0.01 * likely) < 0 < et.entropy_change(logits, -0.01 * likely)
    assert et.entropy_change(logits, 0.01 * unlikely) > 0 > et.entropy_change(logits, -0.01 * unlikely)


def test_a_token_of_low_probability_can_lie_in_the_first_quadrant():
    """Part A: p = .15 over a uniform tail of 50,000 has S_c = +.98."""
    logits = np.zeros(50_001)
    logits[0] = np.log(0.15 / 0.85 * 50_000)
    assert et.centered_discriminant(logits, 0) == pytest.approx(0.98, abs=0.01)
    assert np.exp(et.log_softmax(logits)[0]) == pytest.approx(0.15)
    assert updates.baseline_boundary(logits) < 0.15
