"""Checks of the Triton kernels under its interpreter; a process of its own, because the switch is read at import."""

from __future__ import annotations

import torch
from vocab_oracles import FIELDS, autograd, llm_like

from entropy_theory.vocab import token_statistics
from entropy_theory.vocab.kernels import fused_triton


def compare(logits: torch.Tensor, tokens: torch.Tensor, temperature: float, device: str) -> None:
    logits, tokens = logits.to(device), tokens.to(device)
    expected = token_statistics(logits.double(), tokens, temperature=temperature, second_order=True, impl="eager")
    stats = token_statistics(logits, tokens, temperature=temperature, second_order=True, impl="triton")
    assert stats.impl == "triton"
    for name in FIELDS:
        # e^d from x · log₂(e)/T rounded once: |d| ≤ 20 gives 1e-6; the curvature's terms have both signs.
        rtol = 1e-5 if name == "grpo_curvature" else 3e-6
        ours, theirs = getattr(stats, name).double(), getattr(expected, name)
        # S_c off the maximum is the difference of S and N.
        slack = 3e-6 * expected.discriminant.abs().nan_to_num() if name == "centered_discriminant" else 1e-37
        bad = (
            ~((ours - theirs).abs() <= rtol * theirs.abs() + slack)
            & ~(ours == theirs)
            & ~(ours.isnan() & theirs.isnan())
        )
        assert not bad.any(), (name, ours[bad], theirs[bad])


def main(device: str = "cpu", vocab_size: int = 1000) -> None:
    if device == "cpu":
        fused_triton.BLOCK = 128  # several steps of a small vocabulary
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits, tokens = llm_like(8, vocab_size, seed=2)
        logits[0, : vocab_size // 2] = -torch.inf
        logits[1] = -torch.inf
        logits[2, 5] = torch.nan
        logits[3, vocab_size - 1] = torch.inf
        logits[4] = torch.linspace(-9, 9, vocab_size)  # the maximum moves in every block
        logits[5, 3::7] = 12.0  # ties, in several blocks
        logits[6] -= 500
        tokens[0] = vocab_size - 3
        for parts in (1, 64):
            fused_triton.PROGRAMS = parts
            compare(logits.to(dtype), tokens, 1.0, device)
            compare(logits.to(dtype), tokens, 0.7, device)
    # Strides: a slice of the middle dimension of (2, 5, V), as logits shifted by one position are.
    logits = torch.randn(2, 5, vocab_size, generator=torch.Generator().manual_seed(0)).to(device)
    tokens = torch.randint(0, vocab_size, (2, 4), generator=torch.Generator().manual_seed(1)).to(device)
    assert fused_triton._rows(logits[:, :-1])[0].data_ptr() == logits.data_ptr()
    for view in (logits[:, :-1], logits[:, 1:]):
        plain = token_statistics(view.contiguous(), tokens, impl="triton")
        assert torch.equal(plain.baseline, token_statistics(view, tokens, impl="triton").baseline)
    for shape in ((vocab_size,), (2, 2, 2, vocab_size), (0, vocab_size)):
        assert (
            token_statistics(
                torch.zeros(shape, device=device),
                torch.zeros(shape[:-1], dtype=torch.int64, device=device),
                impl="triton",
            ).entropy.shape
            == shape[:-1]
        )
    for dtype in (torch.float32, torch.bfloat16):
        logits, tokens = (x.to(device) for x in llm_like(4, vocab_size, seed=3))
        logits = logits.to(dtype)
        logits[0, 7] = -torch.inf
        logits.requires_grad_()
        g, h = torch.linspace(-1, 1, 4, device=device), torch.linspace(1, -0.5, 4, device=device)
        stats = token_statistics(logits, tokens, temperature=0.8, impl="triton")
        (gradient,) = torch.autograd.grad((g * stats.log_probs + h * stats.entropy).sum(), logits)
        expected = autograd(logits, tokens, 0.8, g, h)
        error = (gradient.double() - expected).abs().amax(-1)
        assert (error <= (3e-6 if dtype == torch.float32 else 5e-3) * expected.abs().amax(-1) + 2e-14).all(), error
    print("agrees")


if __name__ == "__main__":
    main()
