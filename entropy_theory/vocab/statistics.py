"""What the theory needs to know about each sampled token, and the one dispatcher that computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.errors import invalid
from entropy_theory.vocab import eager

Implementation = Literal["auto", "eager"]


@dataclass(frozen=True)
class TokenStatistics:
    """Per-token statistics of a policy and the token it sampled.

    p = softmax(z/T), H = −Σ p_i log p_i, S_i = p_i (H + log p_i), N = Σ p_i S_i. Every tensor has the shape of the
    tokens, is in nats where it has a unit, is float32 (float64 for float64 logits) and carries no gradient.

    Attributes:
        log_probs: log p_y of the token y.
        entropy: H.
        discriminant: S_y.
        baseline: N.
        centered_discriminant: S_y − N, with its digits kept on nearly deterministic rows.
        sum_squared_discriminant: Σ_i S_i², the first-order effect of an entropy bonus; None unless asked for.
        grpo_curvature: H'' along e_y − p, the second-order coefficient of a GRPO step; None unless asked for.
        impl: The implementation that ran.
    """

    log_probs: Tensor
    entropy: Tensor
    discriminant: Tensor
    baseline: Tensor
    centered_discriminant: Tensor
    sum_squared_discriminant: Tensor | None
    grpo_curvature: Tensor | None
    impl: str


def token_statistics(
    logits: Float[Tensor, "*batch V"],
    tokens: Int[Tensor, "*batch"],
    *,
    temperature: float = 1.0,
    second_order: bool = False,
    impl: Implementation = "auto",
) -> TokenStatistics:
    """Compute log p_y, H, S_y, N and S_y − N for every position.

    Definitions of arXiv 2602.03392 for the tempered policy p = softmax(z/T), in the stable form
    S_i = p_i (z_i/T − E_p[z/T]), in which the normaliser cancels:

        log p_y = d_y − log Z    H = log Z − a    S_y = p_y (d_y − a)    N = Σ p_i² (d_i − a)

    with d = (z − max z)/T, Z = Σ e^d and a = Σ e^d d / Z.

    Args:
        logits: z, shape (..., V), any floating dtype and device. −inf logits are tokens of probability zero.
        tokens: y, integer ids of shape (...).
        temperature: T > 0, the temperature the tokens were sampled at.
        second_order: Also return Σ S² and the curvature of the GRPO direction.
        impl: ``"eager"`` is plain torch, a block of rows at a time; ``"auto"`` picks the fastest that runs here.

    Returns:
        The statistics, detached, in nats. A row with a NaN or +inf logit gives NaN; a row without any finite
        logit gives log-probability −inf and zeros.

    Raises:
        ValueError: The shapes, dtypes or devices do not fit, a token id is out of range, T is not a positive finite
            number, or the implementation is unknown.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> stats = token_statistics(logits, torch.tensor([0, 2]))
        >>> stats.entropy
        tensor([0.8324, 1.0986])
        >>> stats.centered_discriminant  # zero on a uniform policy
        tensor([0.1418, 0.0000])
    """
    _check(logits, tokens, temperature, impl)
    fields: dict[str, Any] = eager.compute(logits.detach(), tokens, float(temperature), second_order)
    return TokenStatistics(**fields, impl="eager")


def _check(logits: object, tokens: object, temperature: object, impl: object) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise invalid("logits", "a floating-point tensor (..., V)", getattr(logits, "dtype", type(logits).__name__))
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise invalid("logits", "a last dimension V of at least 2", f"shape {tuple(logits.shape)}")
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        raise invalid("tokens", "an integer tensor (...)", getattr(tokens, "dtype", type(tokens).__name__))
    if tokens.shape != logits.shape[:-1]:
        raise invalid("tokens", f"shape {tuple(logits.shape[:-1])}, the logits' without V", tuple(tokens.shape))
    if tokens.device != logits.device:
        raise invalid("tokens", f"the logits' device {logits.device}", tokens.device)
    vocab_size = logits.shape[-1]
    if tokens.numel():
        low, high = (int(x) for x in torch.aminmax(tokens))
        if low < 0 or high >= vocab_size:
            raise invalid("tokens", f"ids in [0, {vocab_size})", low if low < 0 else high)
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, int | float)
        or not (temperature > 0 and math.isfinite(temperature))
    ):
        raise invalid("temperature", "a finite number > 0", temperature)
    if impl not in get_args(Implementation):
        raise invalid("impl", f"one of {', '.join(get_args(Implementation))}", repr(impl))
