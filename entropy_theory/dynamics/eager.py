"""A step of a bank of policies as torch operations over blocks of them."""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_theory.control.group_advantages import group_advantages
from entropy_theory.dynamics import bank, grpo
from entropy_theory.dynamics.config import SimulationConfig
from entropy_theory.dynamics.draws import Draw, policy_uniforms
from entropy_theory.dynamics.optimizers import AdamMoments, natural_move
from entropy_theory.dynamics.policies import Observer, Reading

KEPT_ELEMENTS = 1 << 22
"""Up to so many logits, the policies evaluated for sampling are kept for the update; beyond, evaluated again."""


class EagerPolicies:
    """The policies of a simulation, evaluated and moved block by block.

    Args:
        config: The run.
        share: The places of these policies in the whole bank.
        moments: What Adam remembers, or None for another optimizer.
    """

    def __init__(self, config: SimulationConfig, share: range, moments: AdamMoments | None) -> None:
        self.config, self.share, self.moments = config, share, moments
        rows = max(1, config.block_elements // config.vocab_size)
        self._blocks = [slice(start, start + rows) for start in range(0, len(share), rows)]
        self._kept: list[bank.PolicyStatistics | None] = [None] * len(self._blocks)

    def read(
        self, logits: Tensor, correct: Tensor, step: int, tokens: Tensor | None, observe: Observer | None, squares: bool
    ) -> Reading:
        """Evaluate the policies; without tokens, also sample and reward. See `policies.Policies`."""
        if tokens is None:
            uniforms = policy_uniforms(self.config.seed, Draw.TOKENS, step, self.share, self.config.group_size)
            uniforms = uniforms.to(logits.device)
        keep = logits.numel() <= KEPT_ELEMENTS
        drawn, scores, entropy, baseline, sums = [], [], [], [], []
        for block, rows in enumerate(self._blocks):
            policy = bank.policy_statistics(logits[rows])
            drawn.append(bank.sample_tokens(policy.probs, uniforms[rows]) if tokens is None else tokens[rows])
            if observe is not None:
                observe(rows, policy, drawn[-1])
            scores.append(policy.at(drawn[-1]))
            entropy.append(policy.entropy)
            baseline.append(policy.baseline)
            if squares:
                sums.append(policy.sum_squared_discriminant())
            # Replacing the old block only now lets its memory serve the next one: fresh pages cost more than the sums.
            self._kept[block] = policy if keep else None
        policies = {"entropy": torch.cat(entropy), "baseline": torch.cat(baseline)}
        if squares:
            policies["sum_squared_discriminant"] = torch.cat(sums)
        joined = bank.TokenScores.cat(scores)
        means = joined.discriminant.mean(dim=-1), joined.centered_discriminant.mean(dim=-1)
        if tokens is not None:
            return Reading(tokens, joined, policies, means)
        sampled = torch.cat(drawn)
        rewards = correct.gather(-1, sampled).double()
        return Reading(sampled, joined, policies, means, rewards, group_advantages(rewards, self.config.advantage))

    def move(
        self, logits: Tensor, tokens: Tensor, update: grpo.Update, count: int, *, measure: bool
    ) -> tuple[Tensor, ...] | None:
        """Move the logits and measure what that does; see `policies.Policies`."""
        changes = []
        for block, rows in enumerate(self._blocks):
            part = logits[rows]
            policy = self._kept[block] or bank.policy_statistics(part)
            move = self._move_of(policy, rows, tokens, update, count)
            if part.dtype == torch.float64:
                part += move
            else:
                before = part.double()
                part.copy_(before + move)
                move = part.double() - before
            if measure:
                changes.append(bank.entropy_orders(policy, move))
        return tuple(torch.cat(parts) for parts in zip(*changes, strict=True)) if measure else None

    def _move_of(
        self, policy: bank.PolicyStatistics, rows: slice, tokens: Tensor, update: grpo.Update, count: int
    ) -> Tensor:
        bonus = update.entropy_coefficients
        gradient = tokens[rows], update.coefficients[rows]
        bonus = None if bonus is None else bonus[rows]
        if self.config.optimizer == "natural":
            return natural_move(policy, *gradient, update.scale, bonus)
        if self.moments is None:
            return grpo.move_of_logits(policy, *gradient, update.scale, bonus)
        step_size = self.config.step_size
        move = grpo.move_of_logits(policy, *gradient, update.scale / step_size, bonus)
        return self.moments.move(rows, move, count=count, step_size=step_size)
