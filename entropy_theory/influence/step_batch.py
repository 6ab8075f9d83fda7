"""The tokens of an optimizer step, held fixed."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, fields

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
        ValueError: Shapes, dtypes or devices do not fit, an id is negative, a mask holds other values than 0 and 1, a
            trained token lies outside the completion or follows padding, an advantage of a trained token or the
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
        self._check_tensors()
        rows, shape = self.prompt_ids.shape[0], self.completion_ids.shape
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
            if name.endswith("ids") and bool((value < 0).any()):
                raise invalid(name, "token ids >= 0, at padding too", int(value.min()))
        if self.group_ids.shape != (rows,):
            raise invalid("group_ids", f"shape ({rows},)", tuple(self.group_ids.shape))
        if self.advantages.shape not in (shape, shape[:1]):
            raise invalid("advantages", f"shape {tuple(shape)} or ({rows},)", tuple(self.advantages.shape))
        advantages = self.advantages.detach()
        object.__setattr__(
            self, "advantages", advantages if advantages.dim() == 2 else advantages[:, None].expand(shape)
        )
        self._check_context()
        if not bool(torch.isfinite(self.advantages[self.valid]).all()):
            raise invalid("advantages", "finite numbers at the trained tokens", "NaN or infinity")
        if not isinstance(self.temperature, numbers.Real) or not 0 < self.temperature < float("inf"):
            raise invalid("temperature", "a finite number > 0", repr(self.temperature))

    def _check_tensors(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "temperature" or (value is None and name in ("trained_mask", "contexts")):
                continue
            if not isinstance(value, Tensor):
                raise invalid(name, "a tensor", type(value).__name__)
            if value.is_meta or value.device != self.prompt_ids.device:
                raise invalid(name, "a tensor with data, all on one device", f"one on {value.device}")
            integer = not value.is_floating_point() and not value.is_complex()
            if name in ("prompt_ids", "completion_ids", "group_ids", "contexts"):
                if not integer or value.dtype is torch.bool:
                    raise invalid(name, "integers", value.dtype)
            elif value.is_complex():
                raise invalid(name, "real numbers", value.dtype)

    def _check_context(self) -> None:
        """The logits of a trained token are those at the token before it, which must not be padding."""
        if bool((self.valid & ~self.completion_mask.bool()).any()):
            raise invalid("trained_mask", "trained tokens inside the completion mask", "one outside it")
        if bool(self.valid.any()) and not self.prompt_ids.shape[1]:
            raise invalid("prompt_ids", "at least one token before the completion", "none")
        before = torch.cat([self.prompt_mask[:, -1:].bool(), self.completion_mask[:, :-1].bool()], dim=1)
        if bool(self.valid.any()) and not bool(before[self.valid].all()):
            name, side = (
                ("prompt_mask", "left") if bool((self.valid & ~before)[:, 0].any()) else ("completion_mask", "right")
            )
            raise invalid(
                name, f"padding on the {side}, a token before each trained one", "padding before a trained token"
            )

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
