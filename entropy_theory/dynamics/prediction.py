"""Predicted against realised change of entropy for single GRPO steps, at any vocabulary size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.control.effects import predicted_effects
from entropy_theory.dynamics import bank
from entropy_theory.dynamics.draws import Draw, generator
from entropy_theory.dynamics.fits import log_log_slope, slope_through_origin
from entropy_theory.errors import invalid

STEP_SIZES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted and realised changes of entropy of single-token GRPO steps, and what they say about the theory.

    Attributes:
        step_sizes: η, (K,).
        alpha: α = η A of each step, (K, B, G).
        predicted: −α S_c, nats, (K, B, G).
        realised: ΔH, exact, nats, (K, B, G).
        slopes: Realised on predicted, least squares through the origin, at each step size, (K,); the theory says 1.
        slope_errors: Their standard errors, (K,).
        mean_errors: Mean |realised − predicted| at each step size, (K,).
        order: The slope of log mean error on log step size; the theory says 2. NaN with fewer than three step sizes.
        order_error: Its standard error.
    """

    step_sizes: NDArray[np.float64]
    alpha: NDArray[np.float64]
    predicted: NDArray[np.float64]
    realised: NDArray[np.float64]
    slopes: NDArray[np.float64]
    slope_errors: NDArray[np.float64]
    mean_errors: NDArray[np.float64]
    order: float
    order_error: float


@torch.no_grad()
def predicted_against_realised(
    logits: Float[Tensor, "B V"],
    tokens: Int[Tensor, "B G"],
    advantages: Float[Tensor, "B G"],
    step_sizes: Sequence[float] = STEP_SIZES,
    *,
    block_elements: int = 1 << 20,
) -> Prediction:
    """Take every single-token GRPO step by itself and compare its first order with what happens.

    Theorem 3.3 of arXiv 2602.03392: δz = α (e_k − p), α = η A, gives ΔH = −α (S_k − N) + O(α²).

    Formula: realised H(softmax(z + δz)) − H(softmax(z)) by the exact identity of section B.3 of the theory notes.

    Args:
        logits: z, (B, V), finite, any floating dtype; all arithmetic is float64. V up to that of real models.
        tokens: k, G for each policy, each a step of its own, (B, G).
        advantages: A, (B, G).
        step_sizes: η, each > 0.
        block_elements: Logits handled at once, which bounds memory.

    Returns:
        The pairs and the fits, float64, in the order of `step_sizes`.

    Raises:
        ValueError: Shapes do not fit, a logit or advantage is not finite, a token is out of range, a step size is
            not a positive number, or no step predicts any change.

    Example:
        >>> from entropy_theory.dynamics.starts import gaussian_logits
        >>> logits = gaussian_logits(20, 50, 1.0, seed=0)
        >>> tokens, advantages = sample_steps(logits, 4, seed=0)
        >>> result = predicted_against_realised(logits, tokens, advantages)
        >>> bool(abs(result.slopes[0] - 1) < 1e-3), round(result.order, 2)
        (True, 2.0)
    """
    sizes = _check(logits, tokens, advantages, step_sizes, block_elements)
    rows = max(1, block_elements // logits.shape[-1])
    predicted = torch.empty(len(sizes), *tokens.shape, dtype=torch.float64)
    realised = torch.empty_like(predicted)
    alpha = torch.tensor(sizes, dtype=torch.float64).view(-1, 1, 1) * advantages.double().cpu()
    with bank.threads_for(min(block_elements, logits.numel())):
        for start in range(0, logits.shape[0], rows):
            block = slice(start, start + rows)
            policy = bank.policy_statistics(logits[block])
            k = tokens[block].long()
            centered = policy.at(k).centered_discriminant.cpu()
            predicted[:, block] = predicted_effects(alpha[:, block], centered.expand(len(sizes), -1, -1)).total
            for sample in range(k.shape[1]):
                direction = (-policy.probs).scatter_add_(-1, k[:, sample, None], torch.ones_like(policy.tail))
                for number in range(len(sizes)):
                    step = alpha[number, block, sample, None].to(direction.device)
                    realised[number, block, sample] = bank.entropy_change(policy, direction * step).cpu()
    x, y = predicted.numpy(), realised.numpy()
    fits = [slope_through_origin(x[number], y[number]) for number in range(len(sizes))]
    errors = np.abs(y - x).mean(axis=(1, 2))
    order = log_log_slope(sizes, errors) if len(set(sizes)) >= 3 and (errors > 0).all() else (math.nan, math.nan)
    return Prediction(
        np.array(sizes),
        alpha.numpy(),
        x,
        y,
        np.array([slope for slope, _ in fits]),
        np.array([error for _, error in fits]),
        errors,
        *order,
    )


def sample_steps(
    logits: Float[Tensor, "B V"], group_size: int, seed: int
) -> tuple[Int[Tensor, "B G"], Float[Tensor, "B G"]]:
    """Sample tokens from the policies, and advantages from a standard normal independent of them.

    Args:
        logits: z, (B, V), finite.
        group_size: G ≥ 1.
        seed: The seed of both.

    Returns:
        Tokens and advantages (float64), (B, G) each, on the device of the logits.

    Raises:
        ValueError: The group size or seed is out of range.

    Example:
        >>> tokens, advantages = sample_steps(torch.zeros(2, 5), 3, seed=0)
        >>> tokens.shape, advantages.shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise invalid("group_size", "an integer >= 1", repr(group_size))
    shape = (logits.shape[0], group_size)
    uniforms = torch.rand(shape, generator=generator(seed, Draw.TOKENS, 0), dtype=torch.float64)
    advantages = torch.randn(shape, generator=generator(seed, Draw.ADVANTAGES), dtype=torch.float64)
    tokens = [  # policy by policy: the vocabulary is large, the policies are few
        bank.sample_tokens(bank.policy_statistics(row).probs, u.to(row.device))
        for row, u in zip(logits.split(1), uniforms.split(1), strict=True)
    ]
    return torch.cat(tokens), advantages.to(logits.device)


def _check(
    logits: Tensor, tokens: Tensor, advantages: Tensor, step_sizes: Sequence[float], block_elements: int
) -> list[float]:
    if logits.shape[-1] < 2:
        raise invalid("logits", "a last dimension V of at least 2", f"shape {tuple(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise invalid("logits", "finite logits", "NaN or infinity")
    if tokens.numel() == 0:
        raise invalid("tokens", "at least one token", f"shape {tuple(tokens.shape)}")
    low, high = (int(x) for x in torch.aminmax(tokens))
    if low < 0 or high >= logits.shape[-1]:
        raise invalid("tokens", f"ids in [0, {logits.shape[-1]})", low if low < 0 else high)
    if not bool(torch.isfinite(advantages).all()):
        raise invalid("advantages", "finite numbers", "NaN or infinity")
    sizes = [float(x) for x in step_sizes]
    if not sizes or not all(math.isfinite(x) and x > 0 for x in sizes):
        raise invalid("step_sizes", "finite numbers > 0", step_sizes)
    if block_elements < 1:
        raise invalid("block_elements", "an integer >= 1", block_elements)
    return sizes
