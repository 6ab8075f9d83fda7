"""The tokens of an optimizer step, held fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_theory.errors import invalid


@dataclass(frozen=True, eq=False)
class StepBatch:
    """The tokens of an optimizer step, held fixed; n of them are trained on.

    Attributes:
        prompt_ids: (B, P), padded on the left.
        prompt_mask: (B, P), 1 at tokens and 0 at padding.
        completion_ids: (B, T), padded on the right.
        completion_mask: (B, T), likewise.
        advantages: g = ∂J/∂log p_t up to the loss's denominator n, after the rule, (B, T), or (B,) for one of each
            completion. Values at masked positions are not read.
        group_ids: The prompt group of each completion, integers (B,).
        temperature: T of the policy π_T whose entropy is meant and whose log-probabilities the loss has.
        trained_mask: Tokens that are trained on, (B, T); default: the completion mask.
        contexts: Which positions have the same logits, (B, T) integers; default: those with the same tokens before.

    Raises:
        ValueError: Shapes do not fit, a mask holds other values than 0 and 1, an advantage of a trained token or the
            temperature is not finite.

    Example:
        >>> ones = torch.ones(2, 3, dtype=torch.long)
        >>> batch = StepBatch(ones, ones, ones, ones, torch.tensor([1.0, -1.0]), torch.tensor([0, 0]))
        >>> batch.valid.sum().item(), batch.advantages.shape
        (6, torch.Size([2, 3]))
    """

    # a run-time type checker leaves the constructor's arguments to __post_init__, which says more about them
    __no_type_check__ = True

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    advantages: Tensor
    group_ids: Tensor
    temperature: float = 1.0
    trained_mask: Tensor | None = None
    contexts: Tensor | None = None

    def __post_init__(self) -> None:
        rows = self.prompt_ids.shape[0] if self.prompt_ids.dim() == 2 else None
        for name, like in (
            ("prompt_ids", self.prompt_ids),
            ("prompt_mask", self.prompt_ids),
            ("completion_ids", self.completion_ids),
            ("completion_mask", self.completion_ids),
            ("trained_mask", self.completion_ids),
            ("contexts", self.completion_ids),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if value.dim() != 2 or value.shape != like.shape or value.shape[0] != rows:
                raise invalid(name, f"shape {(rows, *like.shape[1:])}", tuple(value.shape))
            if name.endswith("mask") and not bool(((value == 0) | (value == 1)).all()):
                raise invalid(name, "values 0 and 1", "others")
        if self.group_ids.shape != (rows,):
            raise invalid("group_ids", f"shape ({rows},)", tuple(self.group_ids.shape))
        shape = self.completion_ids.shape
        if self.advantages.shape not in (shape, shape[:1]):
            raise invalid("advantages", f"shape {tuple(shape)} or ({rows},)", tuple(self.advantages.shape))
        if self.advantages.dim() == 1:
            object.__setattr__(self, "advantages", self.advantages[:, None].expand(shape))
        if not bool(torch.isfinite(self.advantages[self.valid]).all()):
            raise invalid("advantages", "finite numbers at the trained tokens", "NaN or infinity")
        if not 0 < self.temperature < float("inf"):
            raise invalid("temperature", "a finite number > 0", self.temperature)

    @property
    def valid(self) -> Tensor:
        """Tokens that are trained on, (B, T) bool."""
        return (self.completion_mask if self.trained_mask is None else self.trained_mask).bool()

    def context_numbers(self) -> Tensor:
        """Number the contexts, (B, T): equal numbers where the tokens before are equal, padding left out."""
        if self.contexts is not None:
            return self.contexts
        numbers: dict[bytes, int] = {}
        rows = []
        for ids, inside, completion in zip(
            self.prompt_ids.cpu(), self.prompt_mask.bool().cpu(), self.completion_ids.cpu(), strict=True
        ):
            words = torch.cat([ids[inside], completion]).numpy()
            start = int(inside.sum())
            keys = (words[: start + time].tobytes() for time in range(len(completion)))
            rows.append([numbers.setdefault(key, len(numbers)) for key in keys])
        return torch.tensor(rows, device=self.completion_ids.device)
