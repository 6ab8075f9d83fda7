"""The tokens of a step, from what TRL's trainer holds of a generation batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from entropy_theory.influence import StepBatch


def step_batch_of(output: Mapping[str, Tensor], group_size: int, temperature: float) -> StepBatch:
    """Read a generation batch.

    Args:
        output: TRL's dictionary, rows in the order of sampling, with the advantages that a rule left.
        group_size: Completions of each prompt.
        temperature: The sampling temperature.
    """
    mask = output["completion_mask"]
    return StepBatch(
        prompt_ids=output["prompt_ids"],
        prompt_mask=output["prompt_mask"],
        completion_ids=output["completion_ids"],
        completion_mask=mask,
        advantages=output["advantages"].clone(),
        group_ids=torch.arange(len(mask), device=mask.device) // group_size,
        temperature=temperature,
        trained_mask=mask.bool() & output["tool_mask"].bool() if "tool_mask" in output else None,
    )
