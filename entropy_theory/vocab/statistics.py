"""What the theory needs to know about each sampled token, and the one dispatcher that computes it."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.errors import invalid, missing_extra
from entropy_theory.vocab.accumulators import finish, gradient_coefficients, put_at_tokens

Implementation = Literal["auto", "eager", "fused-cpu", "triton"]

FIELDS = ("log_probs", "entropy", "discriminant", "baseline", "centered_discriminant")
"""The statistics that are always computed, as `TokenStatistics` and `TokenBatch` name them."""

SECOND_ORDER_FIELDS = ("sum_squared_discriminant", "grpo_curvature")
"""Those that are computed on request."""

_ALL_FIELDS = FIELDS + SECOND_ORDER_FIELDS
_MODULES = {"eager": "eager", "fused-cpu": "fused_cpu", "triton": "fused_triton"}
_FUSED_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Below this many logits the milliseconds saved do not pay for loading the compiled loops.
SMALL = 1 << 20


@dataclass(frozen=True)
class TokenStatistics:
    """Per-token statistics of a policy and the token it sampled.

    p = softmax(z/T), H = −Σ p_i log p_i, S_i = p_i (H + log p_i), N = Σ p_i S_i. Every tensor has the shape of the
    tokens, is in nats where it has a unit and is float32 (float64 for float64 logits). When the logits require a
    gradient, ``log_probs`` and ``entropy`` carry it; the others never do.

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
        impl: ``"eager"`` is plain torch, a block of rows at a time; ``"fused-cpu"`` and ``"triton"`` read the logits
            once, on the CPU and on an NVIDIA GPU; ``"auto"`` is the fastest that runs here (``choose_implementation``).

    Returns:
        The statistics, in nats. With logits that require a gradient, log_probs and entropy are differentiable, once:

            ∂ log p_y/∂z_i = (1{i = y} − p_i)/T    ∂H/∂z_i = −S_i/T

        A row with a NaN or +inf logit gives NaN; a row without any finite logit gives log-probability −inf, zeros
        and a zero gradient.

    Raises:
        ValueError: The shapes, dtypes or devices do not fit, a token id is out of range, T is not a positive finite
            number, or the implementation is unknown or cannot run on these logits.
        ImportError: The implementation needs a package that is not installed.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> stats = token_statistics(logits, torch.tensor([0, 2]))
        >>> stats.entropy
        tensor([0.8324, 1.0986])
        >>> stats.centered_discriminant  # zero on a uniform policy
        tensor([0.1418, 0.0000])
    """
    _check(logits, tokens, temperature)
    name, module = resolve(impl, logits.device, logits.dtype, logits.numel())
    return as_statistics(_Statistics.apply(logits, tokens, float(temperature), second_order, module), name)


def choose_implementation(logits: Tensor) -> tuple[str, str]:
    """Say which implementation ``impl="auto"`` takes for these logits, and why.

    Args:
        logits: z, shape (..., V).

    Returns:
        The name and the reason.

    Example:
        >>> import torch
        >>> choose_implementation(torch.zeros(2, 5))
        ('eager', '10 logits: too few to pay for loading the compiled loops')
    """
    return choose_for(logits.device, logits.dtype, logits.numel())


def choose_for(device: torch.device, dtype: torch.dtype, count: int) -> tuple[str, str]:
    """Choose for logits that need not exist yet: ``count`` of them of this type, there."""
    if device.type == "cuda":
        reason = _cannot_run("triton", device, dtype)
        return ("triton", "one read of the logits on the GPU") if reason is None else ("eager", str(reason))
    reason = _cannot_run("fused-cpu", device, dtype)
    if reason is not None:
        return "eager", str(reason)
    if count < SMALL:
        return "eager", f"{count} logits: too few to pay for loading the compiled loops"
    return "fused-cpu", "one read of the logits on the CPU"


def resolve(impl: str, device: torch.device, dtype: torch.dtype, count: int) -> tuple[str, Any]:
    """Return the name and the module of an implementation; a request that cannot run fails with the reason.

    Raises:
        ValueError: The name is unknown, or not for this device or type.
        ImportError: The implementation needs a package that is not installed.
    """
    if impl not in get_args(Implementation):
        raise invalid("impl", f"one of {', '.join(get_args(Implementation))}", repr(impl))
    name = choose_for(device, dtype, count)[0] if impl == "auto" else impl
    reason = _cannot_run(name, device, dtype)
    if reason is not None:
        raise reason
    return name, importlib.import_module(f"entropy_theory.vocab.kernels.{_MODULES[name]}")


def _cannot_run(name: str, device: torch.device, dtype: torch.dtype) -> Exception | None:
    """Return why an implementation cannot take such logits, as the error to raise."""
    if name == "fused-cpu":
        if device.type != "cpu":
            return invalid("impl", f"an implementation for {device.type}", repr(name))
        if dtype not in _FUSED_CPU_DTYPES:
            return invalid("impl", f"an implementation for {dtype}", repr(name))
    elif name == "triton":
        if importlib.util.find_spec("triton") is None:
            return missing_extra("triton", "gpu")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return invalid("impl", f"an implementation for {device.type}", repr(name))
        if dtype not in _TRITON_DTYPES:
            return invalid("impl", f"an implementation for {dtype}", repr(name))
    return None


def assemble(values: dict[str, Tensor | None], shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Give the finished fields their shape and their type: float32, or float64 for float64 logits."""
    dtype = torch.promote_types(dtype, torch.float32)
    return tuple(None if (v := values[name]) is None else v.to(dtype).reshape(shape) for name in _ALL_FIELDS)


def as_statistics(values: tuple[Tensor | None, ...], name: str) -> TokenStatistics:
    """Build the result from all fields in order."""
    return TokenStatistics(**dict(zip(_ALL_FIELDS, values, strict=True)), impl=name)  # type: ignore[arg-type]


class _Statistics(torch.autograd.Function):
    """The statistics over any implementation: its read forward, its write backward, the formulas of accumulators."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, second_order: bool, module: Any) -> Any:
        logits = logits.detach()
        ids = tokens.long().unsqueeze(-1)
        sums = module.accumulate(logits, temperature, second_order)
        token_logits = logits.gather(-1, ids).reshape(-1)
        out = assemble(finish(sums, token_logits, temperature, second_order), tokens.shape, logits.dtype)
        ctx.mark_non_differentiable(*(v for v in out[2:] if v is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, ids, sums, token_logits)
        ctx.temperature, ctx.module = temperature, module
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        logits, ids, sums, token_logits = ctx.saved_tensors
        flat = (None if g is None else g.reshape(-1) for g in gradients[:2])
        top, level, slope, at_token = gradient_coefficients(sums, token_logits, ctx.temperature, *flat)
        gradient = ctx.module.gradient(logits, ctx.temperature, top, level, slope)
        put_at_tokens(gradient, ids.reshape(-1), at_token)
        return gradient, None, None, None, None


def _check(logits: object, tokens: object, temperature: object) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise invalid("logits", "a floating-point tensor (..., V)", getattr(logits, "dtype", type(logits).__name__))
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise invalid("logits", "a last dimension V of at least 2", f"shape {tuple(logits.shape)}")
    check_tokens(tokens, logits.shape[:-1], logits.shape[-1], logits.device, "the logits' without V")
    check_temperature(temperature)


def check_tokens(tokens: object, shape: torch.Size, vocab_size: int, device: torch.device, whose: str) -> None:
    """Refuse token ids of the wrong type, shape, device or range.

    Raises:
        ValueError: As said.
    """
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        raise invalid("tokens", "an integer tensor (...)", getattr(tokens, "dtype", type(tokens).__name__))
    if tokens.shape != shape:
        raise invalid("tokens", f"shape {tuple(shape)}, {whose}", tuple(tokens.shape))
    if tokens.device != device:
        raise invalid("tokens", f"the logits' device {device}", tokens.device)
    if tokens.numel():
        low, high = (int(x) for x in torch.aminmax(tokens))
        if low < 0 or high >= vocab_size:
            raise invalid("tokens", f"ids in [0, {vocab_size})", low if low < 0 else high)


def check_temperature(temperature: object) -> None:
    """Refuse a temperature that is not a positive finite number.

    Raises:
        ValueError: As said.
    """
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, int | float)
        or not (temperature > 0 and math.isfinite(temperature))
    ):
        raise invalid("temperature", "a finite number > 0", temperature)
