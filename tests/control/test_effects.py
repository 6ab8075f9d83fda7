"""The predicted effect against the exact change of entropy of softmax policies, for small steps."""

from __future__ import annotations

import pytest
import torch

from entropy_theory.control.effects import predicted_effects


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


@pytest.mark.parametrize("seed", range(3))
def test_prediction_is_the_slope_of_the_entropy(seed: int) -> None:
    """Autograd gives the ascent direction of g log p_k + c H; the oracle is the entropy after a step along it."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(8, 11, generator=generator, dtype=torch.float64)).requires_grad_()
    g, c = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    tokens = torch.randint(11, (8, 1), generator=generator)
    log_p, H = logits.log_softmax(-1), entropy(logits)
    (direction,) = torch.autograd.grad((g * log_p.gather(-1, tokens)[:, 0] + c * H).sum(), logits)
    (gradient_of_h,) = torch.autograd.grad(entropy(logits).sum(), logits)
    S = -gradient_of_h
    S_c = S.gather(-1, tokens)[:, 0] - (log_p.exp() * S).sum(-1).detach()
    effects = predicted_effects(g, S_c, entropy_coefficients=c, sum_squared_discriminant=S.square().sum(-1))
    step = 1e-5
    realised = (entropy(logits + step * direction) - entropy(logits - step * direction)) / (2 * step)
    # central difference: O(step²) of the third derivative, and 1e-16/step of round-off
    torch.testing.assert_close(effects.total, realised.detach(), rtol=1e-6, atol=1e-8)
    assert torch.equal(effects.total, effects.gradient + effects.entropy)


def test_without_an_entropy_term_its_part_is_zero() -> None:
    effects = predicted_effects(torch.ones(2, 3), torch.full((2, 3), 0.5))
    assert torch.equal(effects.entropy, torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="sum_squared_discriminant: expected Σ S²"):
        predicted_effects(torch.ones(2), torch.ones(2), entropy_coefficients=torch.ones(2))
