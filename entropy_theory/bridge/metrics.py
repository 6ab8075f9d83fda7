"""The summary of a batch under a rule, for the logs of every trainer."""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_theory.control import Reducer, TokenBatch
from entropy_theory.control.effects import predicted_effects

PREFIX = "entropy_control/"


def batch_metrics(batch: TokenBatch, coefficients: Tensor, reducer: Reducer) -> dict[str, float]:
    """Summarise a batch over all ranks, in nats.

    Args:
        batch: The scored batch.
        coefficients: g of each token at ratio 1, (B, T).
        reducer: The collectives.

    Returns:
        ``entropy`` and ``mean_discriminant``, and where S_c is at hand ``slope`` = −mean(g S_c) and
        ``mean_centered_discriminant``.
    """
    mask = batch.completion_mask
    values = {"entropy": batch.entropy, "mean_discriminant": batch.scores()}
    if batch.available("centered_discriminant"):
        centered = values["mean_centered_discriminant"] = batch.centered_scores()
        values["slope"] = predicted_effects(torch.where(mask, coefficients, 0.0), centered).gradient
    sums = [torch.where(mask, value.double(), 0.0).sum() for value in values.values()]
    totals = reducer.sum(torch.stack([*sums, mask.sum().double()]))
    return dict(zip(values, (totals[:-1] / totals[-1]).tolist(), strict=True))
