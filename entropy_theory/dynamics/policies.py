"""What a simulation asks of its policies, whichever implementation evaluates and moves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.dynamics.bank import PolicyStatistics, TokenScores
from entropy_theory.dynamics.grpo import Update

Observer = Callable[[slice, PolicyStatistics, Tensor], None]
"""Called for each block of policies with its place, statistics and sampled tokens, before the first update on them."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What is read of the policies before an update.

    Attributes:
        tokens: k, the sampled tokens, (B, G).
        scores: Their scores.
        policies: Per-policy statistics under the names of `TokenBatch`, (B,) each.
        means: The means of S and S_c over each policy's tokens, (B,) each.
        rewards: R of tokens that were sampled now, (B, G); otherwise None.
        advantages: Their A, (B, G); otherwise None.
    """

    tokens: Int[Tensor, "B G"]
    scores: TokenScores
    policies: dict[str, Float[Tensor, " B"]]
    means: tuple[Float[Tensor, " B"], Float[Tensor, " B"]]
    rewards: Float[Tensor, "B G"] | None = None
    advantages: Float[Tensor, "B G"] | None = None


class Policies(Protocol):
    """The policies of a simulation: what evaluates and moves their logits."""

    def read(
        self, logits: Tensor, correct: Tensor, step: int, tokens: Tensor | None, observe: Observer | None, squares: bool
    ) -> Reading:
        """Evaluate the policies; without tokens, also sample a group from each and reward it.

        Args:
            logits: z, (B, V).
            correct: Where the reward is 1, (B, V).
            step: The step, which decides the random numbers.
            tokens: k, (B, G), or None to sample.
            observe: Sees each block of policies and its tokens.
            squares: Whether Σ S² is asked for.
        """
        ...

    def move(
        self, logits: Tensor, tokens: Tensor, update: Update, count: int, *, measure: bool
    ) -> tuple[Tensor, ...] | None:
        """Move the logits; return each policy's change of entropy and its first two orders if they are asked for.

        The orders are those of the move that was taken: after the optimizer, and as the logits' dtype stored it.

        Args:
            logits: z as it was read, (B, V); moved.
            tokens: k, (B, G).
            update: What the rule made of the gradient.
            count: The update's number from 1, for Adam.
            measure: Whether the changes are asked for.
        """
        ...
