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


@pytest.mark.statement("temperature")
def test_temperature_one_is_theorem_3_3(logits):
    plain = et.first_order_change(logits, et.grpo_direction(logits, 3), 0.5)
    assert updates.temperature_change(logits, 3, 0.5, 1.0) == pytest.approx(plain, rel=1e-12)
    assert updates.temperature_change(logits, 3, 0.5, 1.0, 1.0) == pytest.approx(plain, rel=1e-12)


@pytest.mark.statement("shared-output-matrix")
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
