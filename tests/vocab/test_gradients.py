"""Gradients of log_probs and entropy: finite differences → float64 autograd → every implementation."""

from __future__ import annotations

import math

import pytest
import torch
from vocab_oracles import DTYPES, autograd, llm_like, nearly_certain

from entropy_theory.vocab import token_statistics

IMPLEMENTATIONS = ("eager", "fused-cpu")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_finite_differences(impl: str, temperature: float) -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, 9, (2, 3), generator=torch.Generator().manual_seed(1))

    def both(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stats = token_statistics(z, tokens, temperature=temperature, impl=impl)
        return stats.log_probs, stats.entropy

    assert torch.autograd.gradcheck(both, logits)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [2, 3, 507, 50_257])
def test_float64_autograd(impl: str, dtype: torch.dtype, vocab_size: int) -> None:
    # The largest entries of a row set the scale on which a gradient is used; bf16 and float16 round each entry.
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]
    logits, tokens = llm_like(6, vocab_size, seed=vocab_size)
    logits = logits.to(dtype)
    logits[0, tokens[0] ^ 1 if vocab_size > 3 else (tokens[0] + 1) % vocab_size] = -torch.inf
    g, h = torch.linspace(-1, 1, 6), torch.linspace(2, -0.5, 6)
    logits.requires_grad_()
    stats = token_statistics(logits, tokens, temperature=0.8, impl=impl)
    loss = (g.to(stats.log_probs) * stats.log_probs).sum() + (h.to(stats.entropy) * stats.entropy).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.dtype == dtype
    expected = autograd(logits, tokens, 0.8, g, h)
    error = (gradient.double() - expected).abs().amax(-1)
    # Autograd's 1 − p_y is off by float64 rounding; float16 numbers below 6e-5 have a fixed step of 6e-8.
    assert torch.all(error <= tolerance * expected.abs().amax(-1) + (6e-8 if dtype == torch.float16 else 2e-14))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_certain_token_keeps_its_gradient(impl: str) -> None:
    # 1 − p_y = 1e-7: as a float32 difference it would be off by half.
    logits = nearly_certain(1e-7, 1000)[None].requires_grad_()
    token_statistics(logits, torch.tensor([0]), impl=impl).log_probs.sum().backward()
    z = logits.detach()[0].tolist()
    rest = math.fsum(math.exp(x - z[0]) for x in z[1:])
    assert float(logits.grad[0, 0]) == pytest.approx(rest / (1 + rest), rel=2e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_only_what_training_needs_is_differentiable(impl: str) -> None:
    logits, tokens = torch.randn(2, 5, requires_grad=True), torch.tensor([0, 1])
    stats = token_statistics(logits, tokens, impl=impl, second_order=True)
    assert stats.log_probs.requires_grad
    assert stats.entropy.requires_grad
    for name in ("discriminant", "baseline", "centered_discriminant", "sum_squared_discriminant", "grpo_curvature"):
        assert not getattr(stats, name).requires_grad
    with torch.no_grad():
        assert not token_statistics(logits, tokens, impl=impl).log_probs.requires_grad
    assert not token_statistics(logits.detach(), tokens, impl=impl).entropy.requires_grad
    (first,) = torch.autograd.grad(stats.entropy.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), logits)  # once: a second derivative is refused, not wrong


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_rows_without_a_policy(impl: str) -> None:
    logits = torch.zeros(3, 6)
    logits[0], logits[1, 2], logits[2, 4] = -torch.inf, torch.nan, -torch.inf
    logits.requires_grad_()
    stats = token_statistics(logits, torch.tensor([0, 0, 4]), impl=impl)
    stats.entropy.sum().backward(retain_graph=True)
    assert torch.equal(logits.grad[0], torch.zeros(6))  # no policy, nothing to learn
    assert torch.all(logits.grad[1].isnan())
    assert torch.all(logits.grad[2] == 0)  # uniform over the rest: entropy is at its highest
    logits.grad = None
    stats.log_probs.sum().backward()
    assert torch.equal(logits.grad[0], torch.zeros(6))
    # log p_y = −inf: the derivative is that of z_y − log Z all the same, as for log-softmax.
    torch.testing.assert_close(logits.grad[2], torch.tensor([-0.2, -0.2, -0.2, -0.2, 1.0, -0.2]))


def test_strided_logits_receive_their_gradient() -> None:
    base = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(2), requires_grad=True)
    tokens = torch.randint(0, 40, (3, 4), generator=torch.Generator().manual_seed(3))
    gradients = []
    for impl in IMPLEMENTATIONS:
        stats = token_statistics(base.transpose(0, 1)[..., 5:45], tokens, impl=impl)
        gradients.append(torch.autograd.grad(stats.log_probs.sum() - stats.entropy.sum(), base)[0])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert torch.all(gradients[0][..., :5] == 0)
