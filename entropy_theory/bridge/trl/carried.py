"""What was decided on a generation batch, as tensors that TRL shuffles and splits with the tokens they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from entropy_theory.control import RuleOutput, TokenBatch

CARRIED = "entropy_control_"
MASK = CARRIED + "batch_completion_mask"
_OF_THE_OUTPUT = ("advantages", "unmasked_advantages", "keep_mask", "counted_mask", "entropy_coefficients")


def valid_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """The tokens that TRL trains on: those of the completion that no tool wrote."""
    mask: Tensor = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask


def pack(batch: TokenBatch, first: RuleOutput | None, scale: float | Tensor | None) -> dict[str, Tensor]:
    """Write a scored batch, and what the batch part of the rule made of it, as tensors for TRL's inputs.

    Args:
        batch: The whole generation batch of this rank.
        first: The output of the batch part; None when the rule has none.
        scale: What expresses the batch part's denominator, see `shrinkage`.
    """
    kept = {f.name: getattr(batch, f.name) for f in fields(batch)}
    packed = {CARRIED + "batch_" + name: value for name, value in kept.items() if value is not None}
    rows = torch.arange(batch.log_probs.shape[0], device=batch.log_probs.device)
    packed[CARRIED + "rows"] = rows
    if scale is not None:
        packed[CARRIED + "scale"] = torch.as_tensor(scale).to(batch.log_probs).expand(len(rows), 1)
    if first is not None:
        values = {name: getattr(first, name) for name in _OF_THE_OUTPUT}
        packed |= {CARRIED + "first_" + name: value for name, value in values.items() if value is not None}
        packed[CARRIED + "counted"] = first.denominator.to(batch.log_probs.device)
    return packed


def unpack(inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], RuleOutput | None]:
    """Read back what `pack` wrote: the fields of the batch, and the output of the batch part."""
    start = CARRIED + "batch_"
    batch = {key.removeprefix(start): value for key, value in inputs.items() if key.startswith(start)}
    if CARRIED + "first_advantages" not in inputs:
        return batch, None
    values: dict[str, Any] = {name: inputs.get(CARRIED + "first_" + name) for name in _OF_THE_OUTPUT}
    unused: dict[str, Any] = {"coefficients": values["advantages"], "objective": None}
    return batch, RuleOutput(**values, **unused, denominator=inputs[CARRIED + "counted"])


def present_batch(inputs: Mapping[str, Any], log_probs: Tensor, entropy: Tensor, **scores: Tensor | None) -> TokenBatch:
    """Build the batch of the present policy: its own log-probabilities and entropies, the rest as it travelled.

    Without stored old log-probabilities the batch is used once, by the policy that sampled it: the ratio is 1, as TRL
    has it. The centred scores, unless given, are those of that policy; they serve the shares of the quadrants.
    """
    batch = unpack(inputs)[0]
    old = inputs.get("old_per_token_logps")
    batch |= {
        "log_probs": log_probs,
        "entropy": entropy,
        "old_log_probs": log_probs.detach() if old is None else old,
    }
    for name in ("discriminant", "baseline", "sum_squared_discriminant", "grpo_curvature"):
        batch.pop(name, None)  # of the policy that sampled; S follows from log p and H
    batch |= {name: value for name, value in scores.items() if value is not None}
    return TokenBatch(**batch)


def sorted_window(window: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], Tensor]:
    """Join micro-batches in the order in which their rows were sampled, whatever the shuffle.

    Random rules and ties then fall alike for every number of ranks and micro-batches.

    Returns:
        The joined tensors, and the place of each joined row among the rows as they came.
    """
    order = torch.cat([part[CARRIED + "rows"] for part in window]).argsort()
    merged = {
        name: torch.cat([part[name] for part in window])[order] if isinstance(value, Tensor) and value.dim() else value
        for name, value in window[0].items()
    }
    return merged, order
