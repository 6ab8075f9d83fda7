"""Batches for the tests of rules: a seeded one of any size, and a Hypothesis strategy for small awkward ones."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from hypothesis import strategies as st

from entropy_theory.control import TokenBatch

PER_TOKEN = (
    "log_probs",
    "entropy",
    "advantages",
    "old_log_probs",
    "rollout_log_probs",
    "old_entropy",
    "baseline",
    "discriminant",
    "centered_discriminant",
    "sum_squared_discriminant",
)


EVERY_METHOD = (
    "clip-b(drop_fraction=0.3)",
    "clip-v(drop_fraction=0.3, side='both')",
    "clip-low",
    "keep-sign(discriminant='negative', samples='negative')",
    "high-entropy(share=0.5)",
    "high-entropy(scope='sequence', strict=True, denominator='kept')",
    "clip-cov(fraction=0.3, lower=0.05)",
    "clip-cov(fraction=0.3, lower=0.05, ratio_clip=False)|ppo-clip",
    "kl-cov(fraction=0.3)",
    "steer",
    "steer(form='linear', frozen=True)|ppo-clip",
    "stare(target=None, variant='C2', share=0.4)|clip-higher",
    "stare(target=1.0, adaptive=True)",
    "entropy-flow",
    "entropy-flow(score='uncentered', strength=0.5)|ppo-clip",
    "advantage-reweighting",
    "advantage-reweighting(form='linear-positive', negative_weight=0.5)",
    "advantage-reweighting(form='sigmoid')",
    "advantage-reweighting(form='sigmoid-negative')",
    "advantage-reweighting(form='mask')",
    "advantage-reweighting(form='raft')",
    "entropy-bonus(coefficient=0.1)|ppo-clip",
    "high-entropy(share=0.5)|entropy-bonus(coefficient=0.1, over='kept')|clip-b(mu=0.5)",
    "adaptive-entropy(initial=0.1)",
    "adaptive-entropy(variant='trl', initial=0.1)|clip-b(mu=0.5)",
    "w-reinforce|ppo-clip(dual_clip=None)",
    "w-reinforce(samples='positive')",
    "w-reinforce(samples='negative', across_holes=True)",
    "w-reinforce(samples='advantage')",
    "entropy-advantage",
    "lopti(portion=0.4)",
    "ce-gppo",
    "ppo-clip|entropy-ratio",
    "entropy-ratio(drop_fraction=0.3)|ppo-clip",
    "cispo",
    "cispo(epsilon_low=None)",
    "gspo(epsilon_low=0.1, epsilon_high=0.1)",
    "sapo",
    "gpg",
    "dppo",
    "dppo(divergence='kl')",
    "gmpo",
    "dro",
    "dcpo",
    "bapo",
    "clip-b(mu=0.5)|cispo",
    "steer|kl-cov(fraction=0.2)",
    "entropy-budget(floor=0.01)|ppo-clip",
    "entropy-budget(floor=0.05, maximum=2, distance='relative')",
    "entropy-budget(floor=None, ceiling=-0.01)",
    "entropy-floor(floor=3, gain=0)",
    "entropy-floor(floor=3, gain=0.1)",
    "entropy-floor(floor=3, max_share=0.2)|ppo-clip",
    "entropy-floor(floor=3, hysteresis=0.1)",
)
"""A specification of every rule and form, beyond those that each file of tests lists by itself."""


def random_batch(seed: int, rows: int = 6, width: int = 9, dtype: torch.dtype = torch.float64) -> TokenBatch:
    """Logits over 7 ids, two policies, tokens of the older one, right-padded; row 1 is fully masked."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old_logits = 2.5 * normal(rows, width, 7)
    logits = old_logits + 0.4 * normal(rows, width, 7)
    old, new = old_logits.log_softmax(-1), logits.log_softmax(-1)
    tokens = torch.multinomial(old.exp().flatten(0, 1), 1, generator=generator).view(rows, width, 1)
    H = -(new.exp() * new).sum(-1)
    S_all = new.exp() * (H[..., None] + new)
    S, N = S_all.gather(-1, tokens)[..., 0], (new.exp() * S_all).sum(-1)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[min(1, rows - 1)] = 0
    lengths[0] = width
    values = {
        "log_probs": new.gather(-1, tokens)[..., 0],
        "old_log_probs": old.gather(-1, tokens)[..., 0],
        "entropy": H,
        "old_entropy": -(old.exp() * old).sum(-1),
        "advantages": normal(rows),
        "baseline": N,
        "discriminant": S,
        "centered_discriminant": S - N,
        "rewards": (normal(rows) > 0).double(),
        "sum_squared_discriminant": S_all.square().sum(-1),
    }
    return TokenBatch(
        **{name: value.to(dtype) for name, value in values.items()},
        completion_mask=torch.arange(width) < lengths[:, None],
        group_ids=torch.arange(rows) // 2,
    )


def batches(max_rows: int = 4, max_width: int = 5) -> st.SearchStrategy[TokenBatch]:
    """Small batches with any mask that has a valid token, ties, zeros and extremes of finite range."""
    number = st.floats(-3, 3, width=32)
    special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-20])

    @st.composite
    def build(draw: st.DrawFn) -> TokenBatch:
        rows, width = draw(st.integers(1, max_rows)), draw(st.integers(1, max_width))

        def matrix(elements: st.SearchStrategy[float], shape: tuple[int, ...] = (rows, width)) -> torch.Tensor:
            size = int(torch.Size(shape).numel())
            drawn = draw(st.lists(elements, min_size=size, max_size=size))
            return torch.tensor(drawn, dtype=torch.float64).view(shape)

        mask = matrix(st.sampled_from([0.0, 1.0, 1.0]))
        mask.view(-1)[draw(st.integers(0, rows * width - 1))] = 1.0
        log_probs = -matrix(number).abs()
        per_token = draw(st.booleans())
        return TokenBatch(
            log_probs=log_probs,
            old_log_probs=torch.clamp(log_probs - matrix(number | special), max=0.0),
            entropy=matrix(number).abs(),
            advantages=matrix(number | special, (rows, width) if per_token else (rows,)),
            completion_mask=mask,
            baseline=matrix(number).abs(),
            centered_discriminant=matrix(number | special),
            old_entropy=matrix(number).abs(),
            rewards=matrix(st.sampled_from([0.0, 1.0, -1.0]), (rows,)),
        )

    return build()


def map_tokens(batch: TokenBatch, change, per_row=lambda value: value) -> TokenBatch:
    """Apply a change to every (B, T) field, and another to every (B,) field."""
    changed = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if value is not None:
            changed[f.name] = change(value) if value.dim() == 2 else per_row(value)
    return replace(batch, **changed)


def spoil_masked(batch: TokenBatch, garbage: float) -> TokenBatch:
    """Put garbage at every masked position of every field, and in the rows without valid tokens."""
    rows = batch.completion_mask.any(dim=1)
    changed = {}
    for name in (*PER_TOKEN, "rewards"):
        value = getattr(batch, name)
        if value is not None:
            where = batch.completion_mask if value.dim() == 2 else rows
            changed[name] = torch.where(where, value, torch.full_like(value, garbage))
    return replace(batch, **changed)
