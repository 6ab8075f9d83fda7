"""The matched random control: as many, uniformly, and the same however tokens are laid out."""

from __future__ import annotations

import math

import pytest
import torch
from control_batches import random_batch

from entropy_theory.control import TokenBatch, rule

pytestmark = pytest.mark.no_cover  # laws on many inputs: counting lines takes as long, and adds none


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "match",
    [
        "none",
        "clip-b(mu=0.4)",
        "clip-b(mu=0.4, denominator='valid')",
        "clip-v(mu=0.4, max_fraction=None)",
        "ppo-clip",
        "clip-b(mu=0.4)|ppo-clip",
        "random-mask(fraction=0.25)",
    ],
)
def test_it_drops_and_uncounts_as_many_as_the_matched_rule(match: str) -> None:
    batch = random_batch(0, rows=12)
    original = rule(match).apply(batch, generator=seeded(1))
    control = rule("random-mask", match=match).apply(batch, generator=seeded(1))
    assert control.metrics["dropped"] == original.metrics["dropped"] == control.metrics["requested"]
    assert int(control.denominator) == int(original.denominator)
    assert control.metrics["dropped"] > 0 or match == "none"


@pytest.mark.parametrize(("denominator", "leaves"), [("kept", True), ("valid", False)])
def test_denominator_can_be_chosen(denominator: str, leaves: bool) -> None:
    batch = random_batch(0, rows=12)
    out = rule("random-mask", match="ppo-clip", denominator=denominator).apply(batch, generator=seeded(1))
    n = int(batch.completion_mask.sum())
    assert int(out.denominator) == (n - out.metrics["dropped"] if leaves else n)


@pytest.mark.parametrize("sign", ["negative", "positive"])
def test_it_can_be_restricted_to_a_sign_of_the_advantage(sign: str) -> None:
    batch = random_batch(1, rows=12)
    eligible = batch.completion_mask & (batch.token_advantages * (1 if sign == "positive" else -1) > 0)
    out = rule("random-mask", fraction=0.5, advantages=sign).apply(batch, generator=seeded(0))
    dropped = batch.completion_mask & ~out.keep_mask
    assert not (dropped & ~eligible).any()
    assert int(dropped.sum()) == round(0.5 * int(eligible.sum()))
    # more are asked for than are eligible: all of those
    everything = rule("random-mask", match="random-mask(fraction=1)", advantages=sign)
    out = everything.apply(batch, generator=seeded(0))
    assert torch.equal(batch.completion_mask & ~out.keep_mask, eligible)


def test_it_can_draw_among_the_tokens_that_are_left() -> None:
    batch = random_batch(2, rows=12)
    first = "clip-v(mu=0.1, max_fraction=None)"
    kept = rule(first).apply(batch).keep_mask
    out = rule(f"{first}|random-mask(fraction=0.5, statistics='kept')").apply(batch, generator=seeded(0))
    assert out.metrics["random-mask/dropped"] == round(0.5 * int(kept.sum()))


def test_every_token_is_dropped_equally_often() -> None:
    """600 draws of 3 of 10 tokens: each count is binomial, σ = √(600 · .3 · .7) = 11.2; 4.5 σ for ten of them."""
    x = torch.full((2, 6), -1.0)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 1]])
    batch = TokenBatch(x, -x, torch.ones(2), mask)
    generator, counts = seeded(123), torch.zeros(2, 6)
    for _ in range(600):
        out = rule("random-mask", fraction=0.3).apply(batch, generator=generator)
        counts += batch.completion_mask & ~out.keep_mask
    deviation = (counts[batch.completion_mask] - 180).abs() / math.sqrt(600 * 0.3 * 0.7)
    assert float(deviation.max()) < 4.5
    assert float(deviation.max()) > 0


def test_draws_differ_from_call_to_call_and_repeat_with_the_seed() -> None:
    batch, one = random_batch(3, rows=12), rule("random-mask", fraction=0.5)
    generator = seeded(7)
    first, second = (one.apply(batch, generator=generator).keep_mask for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, one.apply(batch, generator=seeded(7)).keep_mask)


def test_a_generator_is_required() -> None:
    with pytest.raises(ValueError, match=r"generator: expected a torch.Generator, .* for random-mask\(fraction=0.5\)"):
        rule("random-mask", fraction=0.5).apply(random_batch(0))
    with pytest.raises(ValueError, match="generator: expected"):
        rule("clip-b|random-mask(match='clip-b')").apply(random_batch(0))
