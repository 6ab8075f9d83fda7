"""The paper's intervention: train on tokens of one sign of S only, and watch entropy go where the theory says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.dynamics import bank, grpo, starts
from entropy_theory.dynamics.draws import Draw, generator
from entropy_theory.errors import invalid

CONDITIONS = (("positive", "S>0"), ("positive", "S<0"), ("negative", "S>0"), ("negative", "S<0"))
"""Sign of the samples' advantage, and which tokens are kept."""


@dataclass(frozen=True, eq=False)
class Condition:
    """One of the four conditions.

    Attributes:
        samples: "positive" (A = 1) or "negative" (A = −1).
        keep: The tokens that are trained on, "S>0" or "S<0".
        predicted_sign: −1 or 1, of the change of entropy.
        expected_change: What the theory expects over the run: the first-order change of each step, exactly averaged
            over the policy's own draw of tokens, added up; mean over policies and seeds, nats.
        mean_change: The realised change over the run, mean over policies and seeds, nats.
        standard_error: Of `mean_change`, over policies and seeds, which are independent.
        z: mean_change / standard_error.
        observed_sign: The sign of `mean_change`.
        curve: Mean entropy before the first step and after each, (steps + 1,), nats.
        curve_error: Its standard error over policies and seeds, (steps + 1,).
        kept_share: The share of the sampled tokens that is trained on.
    """

    samples: str
    keep: str
    predicted_sign: int
    expected_change: float
    mean_change: float
    standard_error: float
    z: float
    observed_sign: int
    curve: NDArray[np.float64]
    curve_error: NDArray[np.float64]
    kept_share: float

    @property
    def agrees(self) -> bool:
        """Whether the sign came as predicted."""
        return self.observed_sign == self.predicted_sign


def interventions(
    *,
    policies: int = 1000,
    vocab_size: int = 100,
    group_size: int = 16,
    steps: int = 50,
    step_size: float = 0.1,
    logit_scale: float = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
) -> tuple[Condition, ...]:
    """Run the four conditions on banks of softmax policies.

    Section A of the theory notes (intervention experiment of arXiv 2602.03392). Every sample of a run has the same
    advantage A = ±1; only tokens with S > 0, or only those with S < 0, are trained on:

        δz = (η/G) Σ_j A 1{S_{k_j} > 0} (e_{k_j} − p),   k_j ~ p.

    In expectation ΔH ≈ −η A E_k[1{S_k > 0} S_c,k] = −η A Cov_p(S, 1{S > 0}), and the covariance is never negative. So
    entropy falls on positive samples that keep S > 0 and rises on those that keep S < 0; negative samples reverse
    both. On-policy and with constant A; not token by token.

    Args:
        policies: B, new ones for every seed, the same for the four conditions.
        vocab_size: V.
        group_size: G, samples per policy and step.
        steps: Steps, each on new samples.
        step_size: η.
        logit_scale: Standard deviation of the initial logits.
        seeds: One bank each.

    Returns:
        Four conditions, in the order of CONDITIONS.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> conditions = interventions(policies=200, vocab_size=20, steps=5, seeds=(0,))
        >>> [(c.samples, c.keep, c.observed_sign) for c in conditions]
        [('positive', 'S>0', -1), ('positive', 'S<0', 1), ('negative', 'S>0', 1), ('negative', 'S<0', -1)]
        >>> all(c.agrees for c in conditions)
        True
    """
    for name, value, low in (
        ("policies", policies, 2),
        ("vocab_size", vocab_size, 2),
        ("group_size", group_size, 1),
        ("steps", steps, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise invalid(name, f"an integer >= {low}", repr(value))
    for name, number in (("step_size", step_size), ("logit_scale", logit_scale)):
        if not (math.isfinite(number) and number > 0):
            raise invalid(name, "a finite number > 0", repr(number))
    if not seeds:
        raise invalid("seeds", "at least one seed", seeds)
    banks = [starts.gaussian_logits(policies, vocab_size, logit_scale, seed) for seed in seeds]
    with bank.threads_for(policies * vocab_size):
        return tuple(
            _condition(samples, keep, banks, seeds, group_size=group_size, steps=steps, step_size=step_size)
            for samples, keep in CONDITIONS
        )


@torch.no_grad()
def _condition(
    samples: str,
    keep: str,
    banks: Sequence[Float[Tensor, "B V"]],
    seeds: Sequence[int],
    *,
    group_size: int,
    steps: int,
    step_size: float,
) -> Condition:
    sign = 1.0 if samples == "positive" else -1.0
    entropies, expected, kept_tokens = [], [], 0
    for start, seed in zip(banks, seeds, strict=True):
        logits = start.clone()
        policy = bank.policy_statistics(logits)
        history = [policy.entropy]
        expectation = torch.zeros_like(policy.entropy)
        for step in range(steps):
            S = policy.discriminants()
            centered = S - policy.baseline.unsqueeze(-1)
            expectation -= step_size * sign * (policy.probs * centered * _kept(S, keep)).sum(dim=-1)
            source = generator(seed, Draw.TOKENS, step)
            uniforms = torch.rand(logits.shape[0], group_size, generator=source, dtype=torch.float64)
            tokens = bank.sample_tokens(policy.probs, uniforms)
            kept = _kept(S.gather(-1, tokens), keep)
            kept_tokens += int(kept.sum())
            move = grpo.move_of_logits(policy, tokens, sign * kept.double(), step_size / group_size)
            logits += move
            # the exact change of a step is added up: differences of entropies would lose the digits of small steps
            history.append(history[-1] + bank.entropy_change(policy, move))
            policy = bank.policy_statistics(logits)
        entropies.append(torch.stack(history))
        expected.append(expectation)
    curves = torch.cat(entropies, dim=-1).numpy()
    units = curves.shape[-1]
    change = curves[-1] - curves[0]
    mean, error = float(change.mean()), float(change.std(ddof=1)) / math.sqrt(units)
    return Condition(
        samples=samples,
        keep=keep,
        predicted_sign=int(-sign if keep == "S>0" else sign),
        expected_change=float(torch.cat(expected).mean()),
        mean_change=mean,
        standard_error=error,
        z=mean / error if error else math.copysign(math.inf, mean) if mean else 0.0,
        observed_sign=int(np.sign(mean)),
        curve=curves.mean(axis=-1),
        curve_error=curves.std(axis=-1, ddof=1) / math.sqrt(units),
        kept_share=kept_tokens / (units * steps * group_size),
    )


def _kept(discriminant: Float[Tensor, "B T"], keep: str) -> Bool[Tensor, "B T"]:
    return discriminant > 0 if keep == "S>0" else discriminant < 0
