"""Corollary 3.5 along a GRPO run: the mean of S_c over on-policy tokens, against its own standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.dynamics import bank
from entropy_theory.dynamics.config import SimulationConfig
from entropy_theory.dynamics.draws import Draw, generator
from entropy_theory.dynamics.engine import Simulation


@dataclass(frozen=True, eq=False)
class Centering:
    """Means over sampled tokens, step by step and over the whole run.

    Attributes:
        sampler: "on-policy", or "top-p 0.9" and the like.
        tokens_per_step: B G.
        mean_discriminant: Mean of S at each step, (steps,).
        mean_centered: Mean of S_c at each step, (steps,).
        standard_error: Of `mean_centered` under on-policy sampling, from the policies, (steps,).
        z: mean_centered / standard_error at each step, (steps,); 0 where both are 0.
        overall_discriminant: Mean of S over all tokens of the run.
        overall_centered: Mean of S_c over all tokens of the run.
        overall_error: Its standard error under on-policy sampling.
        overall_z: overall_centered / overall_error.
        ratio: |overall_centered| / |overall_discriminant|.
    """

    sampler: str
    tokens_per_step: int
    mean_discriminant: NDArray[np.float64]
    mean_centered: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    z: NDArray[np.float64]
    overall_discriminant: float
    overall_centered: float
    overall_error: float
    overall_z: float
    ratio: float


def centering(config: SimulationConfig, *, top_p: float = 0.9) -> tuple[Centering, Centering]:
    """Measure how well S_c is centred along a GRPO run, with the right sampler and with a wrong one.

    Corollary 3.5 of arXiv 2602.03392; section B.13 of the theory notes. Over n on-policy tokens the mean of S_c is
    zero in expectation with the standard error

        √(Σ_t Var_{p_t} S)/n,

    computed here from the policies, not from the sample. It holds along the run too: each step's policies depend on
    earlier tokens only (martingale). At every step the on-policy numbers are those of the very tokens that the
    policies are then trained on. Beside them other tokens are drawn from the same policies by top-p sampling, and
    measured with the same statistics: that is not on-policy, and its mean of S_c is not zero.

    Args:
        config: The run; nothing is written. One step measures the initial policies alone.
        top_p: The wrong sampler keeps the likeliest tokens up to this probability, in (0, 1]; 1 is on-policy again.

    Returns:
        On-policy, and top-p.

    Raises:
        ValueError: top_p outside (0, 1].

    Example:
        >>> right, wrong = centering(SimulationConfig(policies=200, vocab_size=50, steps=5), top_p=0.8)
        >>> abs(right.overall_z) < 3, abs(wrong.overall_z) > 10
        (True, True)
    """
    bank.truncated(torch.ones(1, 1), top_p)  # a wrong value is refused before any work
    simulation = Simulation(config)
    totals = np.zeros((3, config.steps, 2))  # Σ S, Σ S_c, Σ Var S; by step and sampler
    uniforms = torch.empty(0)

    def observe(rows: slice, policy: bank.PolicyStatistics, tokens: Tensor) -> None:
        other = bank.sample_tokens(bank.truncated(policy.probs, top_p), uniforms[rows].to(tokens.device))
        variance = float(policy.discriminant_variance().sum()) * config.group_size
        for sampler, drawn in enumerate((tokens, other)):
            scores = policy.at(drawn)
            sums = float(scores.discriminant.sum()), float(scores.centered_discriminant.sum()), variance
            totals[:, simulation.completed, sampler] += sums

    with bank.threads_for(min(config.block_elements, config.policies * config.vocab_size)):
        for step in range(config.steps):
            source = generator(config.seed, Draw.TRUNCATED, step)
            uniforms = torch.rand(config.policies, config.group_size, generator=source, dtype=torch.float64)
            simulation.step(observe)
    n = config.policies * config.group_size
    return _centering("on-policy", totals[..., 0], n), _centering(f"top-p {top_p:g}", totals[..., 1], n)


def _centering(sampler: str, totals: NDArray[np.float64], n: int) -> Centering:
    discriminant, centered, variance = totals
    everywhere = n * centered.size
    mean, mean_centered = float(discriminant.sum()) / everywhere, float(centered.sum()) / everywhere
    error = math.sqrt(float(variance.sum())) / everywhere
    errors = np.sqrt(variance) / n
    return Centering(
        sampler=sampler,
        tokens_per_step=n,
        mean_discriminant=discriminant / n,
        mean_centered=centered / n,
        standard_error=errors,
        z=np.divide(centered / n, errors, out=np.zeros_like(errors), where=errors > 0),
        overall_discriminant=mean,
        overall_centered=mean_centered,
        overall_error=error,
        overall_z=mean_centered / error if error else 0.0,
        ratio=abs(mean_centered) / abs(mean) if mean else 0.0,
    )
