"""Advantages of GRPO: rewards compared within their group, as TRL computes them (arXiv 2402.03300).

A_j = (R_j − R̄)/(σ + 1e-4),   σ the sample standard deviation (n − 1 in the denominator)
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.errors import invalid

Normalisation = Literal["std", "mean"]
ScaleRewards = Literal["group", "batch", "none"]

STD_OFFSET = 1e-4
"""Added to the standard deviation before dividing, as TRL does; equal rewards then give A = 0."""


def group_advantages(rewards: Float[Tensor, "B G"], normalisation: Normalisation) -> Float[Tensor, "B G"]:
    """Compare the samples of equal groups.

    Args:
        rewards: R, one group per row, (B, G), G ≥ 2.
        normalisation: "std" divides by σ + 1e-4; "mean" only subtracts R̄.

    Returns:
        A, (B, G).

    Raises:
        ValueError: Another normalisation, or groups of fewer than two.

    Example:
        >>> import torch
        >>> group_advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), "mean").tolist()
        [[0.5, -0.5], [0.0, 0.0]]
    """
    if normalisation not in get_args(Normalisation):
        raise invalid("advantage", f"one of {', '.join(get_args(Normalisation))}", repr(normalisation))
    if rewards.shape[-1] < 2:
        raise invalid("rewards", "groups of at least 2", f"shape {tuple(rewards.shape)}")
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    if normalisation == "mean":
        return centred
    sigma = (centred.square().sum(dim=-1, keepdim=True) / (rewards.shape[-1] - 1)).sqrt_()
    return centred.div_(sigma.add_(STD_OFFSET))


def ragged_group_advantages(
    rewards: NDArray[np.float64], group_ids: NDArray[np.integer], scale: ScaleRewards = "group"
) -> NDArray[np.float64]:
    """Compare completions of groups of any size, some of them without a reward.

    Args:
        rewards: R, (n,); NaN where there is none, but not everywhere.
        group_ids: The group of each completion, integers from 0, (n,).
        scale: What σ is taken over: the "group", the whole "batch", or "none" for no division.

    Returns:
        A, (n,); 0 for a completion without a reward or alone in its group.

    Raises:
        ValueError: Another scale, or no group has two rewards.

    Example:
        >>> ragged_group_advantages(np.array([1.0, 0.0, np.nan, 3.0]), np.array([0, 0, 0, 1]), "none").tolist()
        [0.5, -0.5, 0.0, 0.0]
    """
    if scale not in get_args(ScaleRewards):
        raise invalid("scale_rewards", f"one of {', '.join(get_args(ScaleRewards))}", repr(scale))
    known = ~np.isnan(rewards)
    count = np.bincount(group_ids[known], minlength=group_ids.max() + 1)
    if count.max() < 2:
        raise invalid("rewards", "at least two in one group", f"{known.sum()} in {count.size} groups")
    sums = np.bincount(group_ids[known], rewards[known], count.size)
    centred = np.where(known, rewards - (sums / np.maximum(count, 1))[group_ids], 0.0)
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (rewards[known].std(ddof=1) + STD_OFFSET)
    sigma = np.sqrt(np.bincount(group_ids, centred**2, count.size) / np.maximum(count - 1, 1))
    return centred / (sigma[group_ids] + STD_OFFSET)
