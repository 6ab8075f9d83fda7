"""Generation batches as data: their summary for the log, and files for the lens."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_theory.control import Reducer, TokenBatch


def metrics_of_batch(batch: TokenBatch, advantages: Tensor, reducer: Reducer) -> dict[str, float]:
    """Summarise a batch over all ranks.

    Args:
        batch: The scored batch.
        advantages: The per-token ones after the rule, (B, T).
        reducer: The collectives.

    Returns:
        ``entropy`` and ``mean_discriminant``, and where S_c is at hand ``slope`` = −mean(g S_c) and
        ``mean_centered_discriminant``, in nats.
    """
    mask = batch.completion_mask
    values = {"entropy": batch.entropy, "mean_discriminant": batch.scores()}
    if batch.available("centered_discriminant"):
        centered = values["mean_centered_discriminant"] = batch.centered_scores()
        values["slope"] = -torch.where(mask, advantages, 0.0).double() * centered.double()
    sums = [torch.where(mask, value.double(), 0.0).sum() for value in values.values()]
    totals = reducer.sum(torch.stack([*sums, mask.sum().double()]))
    return dict(zip(values, (totals[:-1] / totals[-1]).tolist(), strict=True))


def save_gathered(batch: TokenBatch, accelerator: Any, folder: Path, step: int) -> None:
    """Write the batch of all ranks to ``FOLDER/batch-STEP.safetensors``, whole or not at all.

    Args:
        batch: This rank's rows; every rank calls.
        accelerator: Brings the rows together, padded to the longest.
        folder: Where batches go.
        step: Optimizer steps done.
    """
    gathered = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if value is None:
            continue
        value = value.contiguous()
        if value.dim() == 2:  # padded with 0, which in the mask is False
            value = accelerator.pad_across_processes(value, dim=1, pad_index=0)
        gathered[f.name] = accelerator.gather(value)
    if accelerator.is_main_process:
        TokenBatch(**gathered).save(folder / f"batch-{step:06d}.safetensors")
