"""Updates with more than one term, against the exact change of entropy under the update itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import entropy_theory as et
from entropy_theory.theory import updates

STEP = 1e-6  # the second order is then 1e-6 of the first


def exact_slope(logits, direction):
    """dH along a direction by symmetric exact changes: its error is of second order in the step."""
    ahead, behind = (et.entropy_change(logits, sign * STEP * np.asarray(direction)) for sign in (1, -1))
    return (ahead - behind) / (2 * STEP)


@pytest.fixture
def logits():
    return np.random.default_rng(9).normal(size=12) * 1.5


def test_expected_change(logits):
    probs = np.exp(et.log_softmax(logits))
    advantages = np.random.default_rng(1).normal(size=12)
    update = probs * (advantages - (probs * advantages).sum())  # Σ_k p_k A_k (e_k − p)
    assert updates.expected_change(logits, advantages, 1.0) == pytest.approx(exact_slope(logits, update), rel=1e-8)
    centred = (probs * advantages * et.centered_discriminant(logits)).sum()
    assert updates.expected_change(logits, advantages, 0.3) == pytest.approx(-0.3 * centred, rel=1e-12)


def test_score_covariances(logits):
    probs, log_probs = np.exp(et.log_softmax(logits)), et.log_softmax(logits)
    advantages = np.random.default_rng(1).normal(size=12) + 0.4
    by_score, by_log = updates.score_covariances(logits, advantages)
    plain = (probs * log_probs * probs * advantages).sum() - (probs * log_probs).sum() * (probs**2 * advantages).sum()
    assert by_log == pytest.approx(plain, rel=1e-12)
    assert by_log == pytest.approx(by_score + (probs * advantages).sum() * et.baseline(logits), rel=1e-12)
    assert updates.score_covariances(logits, advantages - (probs * advantages).sum())[1] == pytest.approx(by_score)
    flat = updates.score_covariances(np.zeros(12), advantages)
    assert flat == (pytest.approx(0.0, abs=1e-16), pytest.approx(0.0, abs=1e-16))


def test_entropy_bonus(logits):
    assert updates.entropy_bonus_change(logits, 0.2) == pytest.approx(
        exact_slope(logits, -0.2 * et.discriminant(logits)), rel=1e-8
    )


@pytest.mark.parametrize(("temperature", "loss_temperature"), [(0.6, None), (2.0, None), (0.7, 1.0), (1.3, 0.5)])
def test_temperature(logits, temperature, loss_temperature):
    trained = temperature if loss_temperature is None else loss_temperature
    for token in (0, 5, int(np.argmax(logits))):
        update = et.grpo_direction(logits / trained, token) / trained
        slope = exact_slope(logits / temperature, update / temperature)
        claimed = updates.temperature_change(logits, token, 1.0, temperature, loss_temperature)
        assert claimed == pytest.approx(slope, rel=1e-7)


def test_temperature_one_is_theorem_3_3(logits):
    plain = et.first_order_change(logits, et.grpo_direction(logits, 3), 0.5)
    assert updates.temperature_change(logits, 3, 0.5, 1.0) == pytest.approx(plain, rel=1e-12)
    assert updates.temperature_change(logits, 3, 0.5, 1.0, 1.0) == pytest.approx(plain, rel=1e-12)


def test_baseline_boundary():
    rng = np.random.default_rng(0)
    for scale in (1e-4, 0.5, 2.0, 6.0):
        for size in (2, 5, 300):
            logits = rng.normal(size=size) * scale
            probs, boundary = np.exp(et.log_softmax(logits)), updates.baseline_boundary(logits)
            assert boundary >= np.exp(-et.entropy(logits)) * (1 - 1e-14)
            assert boundary * (et.entropy(logits) + np.log(boundary)) == pytest.approx(et.baseline(logits), abs=1e-15)
            decided = np.abs(probs / boundary - 1.0) > 1e-9
            positive = et.centered_discriminant(logits) > 0.0
            assert np.array_equal(positive[decided], (probs > boundary)[decided])
    assert updates.baseline_boundary(np.zeros((2, 4))) == pytest.approx(0.25)


def test_output_matrix_change_matches_a_real_step():
    """One step on the output matrix of a linear model, by autograd, and the entropies after it."""
    rng = np.random.default_rng(3)
    hidden, weights = rng.normal(size=(5, 3)), rng.normal(size=5)
    matrix, tokens = rng.normal(size=(7, 3)), rng.integers(7, size=5)
    W = torch.tensor(matrix, requires_grad=True)
    log_probs = torch.log_softmax(torch.tensor(hidden) @ W.T, dim=-1)
    objective = (torch.tensor(weights) * log_probs[torch.arange(5), torch.tensor(tokens)]).sum()
    (gradient,) = torch.autograd.grad(objective, W)
    logits = hidden @ matrix.T
    slope = exact_slope(logits, hidden @ gradient.numpy().T)
    claimed = updates.output_matrix_change(logits, hidden, tokens, weights, 1.0)
    assert np.allclose(claimed, slope, rtol=1e-7, atol=1e-9)


def test_shapes_broadcast(logits):
    rows = np.stack([logits, -logits])
    assert updates.expected_change(rows, np.ones((3, 1, 12)), 0.1).shape == (3, 2)
    assert updates.temperature_change(rows, np.zeros((4, 2), dtype=int), 0.1, [1.0, 2.0]).shape == (4, 2)
    assert updates.entropy_bonus_change(rows, [0.1, 0.2]).shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: updates.temperature_change([0.0, 1.0], 0, 1.0, 0.0), "temperature: expected finite values > 0"),
        (lambda: updates.temperature_change([0.0, 1.0], 0, 1.0, 1.0, -1.0), "loss_temperature: expected finite values"),
        (lambda: updates.temperature_change([0.0, 1.0], 2, 1.0, 1.0), "token: expected ids in 0..1, received 2"),
        (lambda: updates.expected_change([0.0, 1.0], [1.0, np.nan], 1.0), "advantages: expected finite values"),
        (lambda: updates.expected_change([0.0, 1.0], [1.0, 2.0, 3.0], 1.0), "advantages: expected shape (..., 2)"),
        (lambda: updates.entropy_bonus_change([0.0, 1.0], np.inf), "coefficient: expected finite values"),
        (lambda: updates.baseline_boundary([np.nan, 0.0]), "logits: expected finite values or -inf, received NaN"),
        (lambda: updates.output_matrix_change([0.0, 1.0], [[1.0]], [0], [1.0], 1.0), "logits: expected shape (T, V)"),
        (lambda: updates.output_matrix_change([[0.0, 1.0]], [1.0], [0], [1.0], 1.0), "hidden: expected 1 rows"),
        (lambda: updates.output_matrix_change([[0.0, 1.0]], [[1.0]], [0], [np.inf], 1.0), "weights: expected finite"),
        (lambda: updates.output_matrix_change([[0.0, 1.0]], [[1.0]], 0, [1.0], 1.0), "tokens: expected shape (1,)"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        call()
    assert message in str(caught.value)
