"""What the seams into verl share: rules without an entropy, and a rule's output as advantages."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from entropy_theory.bridge.trl.live_loss import shrinkage
from entropy_theory.control import LocalReducer, Reducer, RuleOutput, TokenBatch
from entropy_theory.errors import invalid

PREFIX = "entropy_control/"

# How each of verl's aggregations divides.
_DIVISORS = {
    "token-mean": "token",
    "seq-mean-token-mean": "sequence",
    "token-sum": "constant",
    "seq-mean-token-sum": "constant",
    "seq-mean-token-sum-norm": "constant",
}


class SealedBatch(TokenBatch):
    """A batch for rules that do not read the entropy; one that does is told what is missing."""

    __no_type_check__ = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_sealed", True)

    def __getattribute__(self, name: str) -> Any:
        if name == "entropy" and object.__getattribute__(self, "__dict__").get("_sealed"):
            raise invalid("entropy", "a tensor, because the rule reads it (verl passes none here)", None)
        return super().__getattribute__(name)


def effective_advantages(
    output: RuleOutput, mask: Tensor, loss_agg_mode: str = "token-mean", reducer: Reducer | None = None
) -> Tensor:
    """Express a rule's coefficients and its smaller token count as advantages for a loss that counts all tokens.

        token-mean           Â_t = g_t · n / n_counted, over all ranks
        seq-mean-token-mean  Â_t = g_t · |row| / |row counted|
        otherwise            Â_t = g_t

    Args:
        output: What the rule made of the batch.
        mask: The trainer's valid tokens, (B, T).
        loss_agg_mode: One of verl's five names.
        reducer: The collectives for the counts; None is one process.

    Returns:
        Â, (B, T), 0 at masked positions.

    Raises:
        ValueError: an unknown aggregation.

    Example:
        >>> import torch
        >>> from entropy_theory.control import rule
        >>> x, A = torch.tensor([[-0.1, -0.1, -1.5, -0.1]]), torch.tensor([-1.0])
        >>> out = rule("clip-b(mu=1)").apply(TokenBatch(x, x * 0 + 0.5, A, x * 0 + 1))
        >>> [round(a, 3) for a in effective_advantages(out, x < 0)[0].tolist()]
        [-1.333, -1.333, 0.0, -1.333]
    """
    if loss_agg_mode not in _DIVISORS:
        raise invalid("loss_agg_mode", f"one of {', '.join(_DIVISORS)}", repr(loss_agg_mode))
    scale = shrinkage(mask, output.counted_mask, _DIVISORS[loss_agg_mode], reducer or LocalReducer())
    return output.coefficients if scale is None else output.coefficients * scale
