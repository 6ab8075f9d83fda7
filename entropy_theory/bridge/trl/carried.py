"""What was decided on a generation batch, and how it travels with the rows it belongs to.

TRL shuffles and splits the tensors of a generation batch. A decision is therefore packed into TRL's dictionary as one
tensor per quantity, with the rows in its first dimension, and unpacked once where a micro-batch is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from entropy_theory.control import TokenBatch
from entropy_theory.control.flow import Decided

CARRIED = "entropy_control_"
"""What all keys of ours in TRL's dictionaries begin with."""

ROWS = CARRIED + "rows"
"""The place of each row in the order of sampling, (B,): random draws and ties do not depend on the shuffle."""

REWARDS, GROUPS, JUDGED = CARRIED + "rewards", CARRIED + "group_ids", CARRIED + "judged"
"""Of each row its reward, the number of its prompt, and whether any reward function judged it, (B, 1)."""

MARKS = CARRIED + "marks"
"""A number of each row's tokens, (B,): whether what travels with a row still belongs to it."""

OLD = CARRIED + "old_log_probs"
"""The log-probabilities of the policy that sampled, (B, T), where TRL keeps their sum only."""

_SCORED, _DECIDED = CARRIED + "scored_", CARRIED + "decided_"
_COUNTED, _SCALE, _COEFFICIENTS = CARRIED + "counted", CARRIED + "scale", CARRIED + "coefficients"


def valid_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """The tokens that TRL trains on, (B, T): those of the completion that no tool wrote."""
    mask: Tensor = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask


def marks(inputs: Mapping[str, Any]) -> Tensor:
    """Make a number of each row's tokens, (B,), the same whatever the padding."""
    ids = inputs["completion_ids"]
    places = 2 * torch.arange(ids.shape[1], device=ids.device) + 1
    completion = ((ids + 1) * inputs["completion_mask"] * places).sum(1)
    return completion * 2654435761 + ((inputs["prompt_ids"] + 1) * inputs["prompt_mask"]).sum(1)  # wraps, as it may


def old_log_probs(inputs: Mapping[str, Any]) -> Tensor | None:
    """The log-probabilities of the policy that sampled, (B, T), as TRL computed them; None where it did not."""
    return inputs.get("old_per_token_logps", inputs.get(OLD))


@dataclass(frozen=True, eq=False)
class BatchDecision:
    """What was decided on a generation batch, of all of its rows or of those of a micro-batch.

    Attributes:
        rows: The place of each row in the order of sampling, (B,).
        scored: The batch as the policy that sampled it saw it.
        decided: What the batch part of the rule made of it; None when the rule has no batch part.
        counted: The tokens over all ranks that the rule counts, 0-d.
        scale: What per-token terms are multiplied by so that TRL's divisor yields the rule's own, (B, 1); None for 1.
        coefficients: g of a rule without a ratio-based part, (B, T), where TRL's loss cannot read it; else None.
    """

    rows: Tensor
    scored: TokenBatch
    decided: Decided | None
    counted: Tensor
    scale: Tensor | None
    coefficients: Tensor | None = None

    def pack(self) -> dict[str, Tensor]:
        """Write the decision as tensors for TRL's dictionary."""
        packed = {
            ROWS: self.rows,
            _COUNTED: self.counted,
            _SCALE: self.scale,
            _COEFFICIENTS: self.coefficients,
        }
        packed |= {_SCORED + f.name: getattr(self.scored, f.name) for f in fields(TokenBatch)}
        if self.decided is not None:
            packed |= {_DECIDED + f.name: getattr(self.decided, f.name) for f in fields(Decided)}
        return {name: value for name, value in packed.items() if value is not None}

    @classmethod
    def unpack(cls, inputs: Mapping[str, Any]) -> BatchDecision | None:
        """Read what `pack` wrote; None where no decision travels."""
        if _COUNTED not in inputs:
            return None

        def read(start: str) -> dict[str, Any]:
            return {name.removeprefix(start): value for name, value in inputs.items() if name.startswith(start)}

        decided = read(_DECIDED)
        return cls(
            rows=inputs[ROWS],
            scored=TokenBatch(**read(_SCORED)),
            decided=Decided(**decided) if decided else None,
            counted=inputs[_COUNTED],
            scale=inputs.get(_SCALE),
            coefficients=inputs.get(_COEFFICIENTS),
        )

    def present(self, inputs: Mapping[str, Any], log_probs: Tensor, entropy: Tensor, **scores: Tensor) -> TokenBatch:
        """Build the batch of the present policy: its own log-probabilities and entropies, the rest as it was decided.

        Where TRL stores no old log-probabilities the batch is used once, by the policy that sampled it: the ratio is 1.
        The centred scores, unless given, stay those of that policy; they serve the shares of the quadrants.

        Args:
            inputs: TRL's dictionary, with the old log-probabilities where it stores them.
            log_probs: log p of the present policy, (B, T).
            entropy: Its H, (B, T).
            **scores: Those of its scores that need its whole distribution.
        """
        old = old_log_probs(inputs)
        changed: dict[str, Any] = {"log_probs": log_probs, "entropy": entropy}
        changed["old_log_probs"] = log_probs.detach() if old is None else old
        stale: dict[str, Any] = dict.fromkeys(
            ("discriminant", "baseline", "sum_squared_discriminant", "grpo_curvature")
        )
        return replace(self.scored, **changed, **(stale | scores))


def sorted_rows(parts: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], Tensor]:
    """Join micro-batches with their rows in the order of sampling, whatever TRL's shuffle.

    Returns:
        The joined dictionary, and the place of each joined row among the rows as they came.
    """
    order = torch.cat([part[ROWS] for part in parts]).argsort()
    joined = {
        name: torch.cat([part[name] for part in parts])[order] if isinstance(value, Tensor) and value.dim() else value
        for name, value in parts[0].items()
    }
    return joined, order
