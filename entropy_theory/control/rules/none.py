"""No control: the unmodified policy gradient, which every other rule is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from entropy_theory.control.base import Rule, Step
from entropy_theory.control.flow import Context, Flow, State
from entropy_theory.control.registry import register


@register
@dataclass(frozen=True)
class NoControl(Rule):
    """The unmodified policy gradient: g = r A, and g = A to the bit when the batch has no old log-probabilities.

    Example:
        >>> import torch
        >>> from entropy_theory.control import TokenBatch
        >>> x = torch.tensor([[-0.7]])
        >>> NoControl().apply(TokenBatch(x, -x, x, x * 0 + 1)).metrics["dropped"]
        0.0
    """

    name = "none"
    scope = "token"
    kind = "control"
    quadrants = "all four unchanged"
    parity = "the unclipped policy gradient, to the bit"

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Return the flow as it came."""
        return flow, {}, None
