"""What a simulation asks of its policies, whichever implementation evaluates and moves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.control import Reducer, Rule
from entropy_theory.dynamics.bank import PolicyStatistics, TokenScores, policy_statistics
from entropy_theory.dynamics.grpo import Update
from entropy_theory.dynamics.kernels import layout

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


def show_blocks(observe: Observer, logits: Float[Tensor, "B V"], tokens: Int[Tensor, "B G"], elements: int) -> None:
    """Evaluate policies for an observer alone, in blocks of at most so many logits, or of one policy.

    Args:
        observe: Sees each block.
        logits: z, (B, V).
        tokens: k, (B, G).
        elements: Logits in a block.

    Example:
        >>> import torch
        >>> z, k = torch.zeros(5, 4), torch.zeros(5, 2, dtype=torch.int64)
        >>> show_blocks(lambda rows, policy, drawn: print(rows, policy.entropy.shape), z, k, elements=12)
        slice(0, 3, None) torch.Size([3])
        slice(3, 6, None) torch.Size([2])
    """
    rows = max(1, elements // logits.shape[-1])
    for start in range(0, len(logits), rows):
        block = slice(start, start + rows)
        observe(block, policy_statistics(logits[block]), tokens[block])


def reading_of(
    tokens: Int[Tensor, "B G"],
    scores: TokenScores,
    states: Float[Tensor, "B columns"],
    squares: Float[Tensor, " B"] | None,
    sampled: tuple[Tensor, ...],
) -> Reading:
    """Put together what a kernel found.

    Args:
        tokens: k.
        scores: log p, S and S_c of them.
        states: The columns of `kernels.layout`.
        squares: Σ S², where it was asked for.
        sampled: Rewards and advantages, where tokens were sampled.
    """
    policies = {"entropy": states[:, layout.ENTROPY].clone(), "baseline": states[:, layout.BASELINE].clone()}
    if squares is not None:
        policies["sum_squared_discriminant"] = squares
    means = states[:, layout.MEAN_S].clone(), states[:, layout.MEAN_S_C].clone()
    return Reading(tokens, scores, policies, means, *sampled)


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

        The orders are those of the move that was taken: after the optimizer, and as float32 logits stored it.

        Args:
            logits: z as it was read, (B, V); moved.
            tokens: k, (B, G).
            update: What the rule made of the gradient.
            count: The update's number from 1, for Adam.
            measure: Whether the changes are asked for.
        """
        ...


@runtime_checkable
class WholeSteps(Policies, Protocol):
    """Policies that also do a whole step by themselves under some rules."""

    def takes(self, rule: Rule) -> bool:
        """Say whether a step under this rule can be done, with one update on the batch and no observer."""
        ...

    def step(
        self, logits: Tensor, correct: Tensor, step: int, rule: Rule, reducer: Reducer, *, measure: bool
    ) -> tuple[Tensor, float]:
        """Do a whole step.

        Args:
            logits: z, (B, V); moved.
            correct: Where the reward is 1, (B, V).
            step: The step, which decides the random numbers.
            rule: A rule that `takes` accepts.
            reducer: The ranks that share the policies.
            measure: Whether the changes are asked for; without, three of the records are undefined.

        Returns:
            The numbers of `kernels.layout.RECORDS`, (RECORDS, B), overwritten by the next step; and the share of the
            tokens of all ranks that the rule dropped.
        """
        ...
