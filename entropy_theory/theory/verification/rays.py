"""Data for the picture of the one-sided sign theorem: many GRPO steps, predicted and exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from entropy_theory.theory import categorical, discriminant
from entropy_theory.theory._policy import FloatArray


@dataclass(frozen=True)
class RayOutcomes:
    """Exact changes of entropy along many GRPO rays, on a common grid of step sizes.

    Attributes:
        sizes: Step sizes |α|, shape (m,).
        rises: Exact ΔH over the entropy before, where the first order predicts a rise, shape (n, m).
        falls: The same where it predicts a fall, shape (n, m).
    """

    sizes: FloatArray
    rises: FloatArray
    falls: FloatArray


def sample_rays(count: int = 400, vocab_size: int = 20, seed: int = 0) -> RayOutcomes:
    """Draw policies and tokens and follow both signs of the GRPO step, |α| from 0.01 to 100.

    Section B.8 of the theory notes.

    Args:
        count: Number of policies, each with one sampled token.
        vocab_size: V.
        seed: Seed of the draw.

    Example:
        >>> outcomes = sample_rays(count=20)
        >>> bool((outcomes.falls < 0).all()), bool((outcomes.rises < 0).any())
        (True, True)
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, vocab_size)) * rng.uniform(0.3, 3.0, size=(count, 1))
    tokens = rng.integers(vocab_size, size=count)
    sign = np.sign(discriminant.centered_discriminant(logits, tokens))[:, np.newaxis]
    direction = discriminant.grpo_direction(logits, tokens)
    before = np.asarray(categorical.entropy(logits))
    sizes = np.geomspace(0.01, 100.0, 81)
    falls, rises = (
        np.stack([categorical.entropy_change(logits, side * size * sign * direction) / before for size in sizes], -1)
        for side in (1.0, -1.0)
    )
    return RayOutcomes(sizes, rises, falls)
