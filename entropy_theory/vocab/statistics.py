"""What the theory needs to know about each sampled token, from the logits of the whole vocabulary.

The statistics are a custom operator of torch, so that ``torch.compile`` and ``torch.export`` take a call as one opaque
step and the compiled loops run inside it as they do outside. Its gradient is a second operator. An operator adds about
0.1 ms to a call (benchmarks/operator_cost.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.errors import invalid, number_in
from entropy_theory.vocab.accumulators import columns, finish, gradient_coefficients, put_at_tokens
from entropy_theory.vocab.implementations import Implementation, kernels, resolve

FIELDS = ("log_probs", "entropy", "discriminant", "baseline", "centered_discriminant")
"""The statistics that are always computed, as `TokenStatistics` and `TokenBatch` name them."""

SECOND_ORDER_FIELDS = ("sum_squared_discriminant", "grpo_curvature")
"""Those that are computed on request."""

TEMPERATURES = (1e-6, 1e6)
"""Beyond these, 1/T² or T² times a gradient leaves the numbers of float32."""


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
        temperature: T in [1e-6, 1e6], the temperature the tokens were sampled at.
        second_order: Also return Σ S² and the curvature of the GRPO direction.
        impl: ``"eager"`` is plain torch, a block of rows at a time; ``"fused-cpu"`` and ``"triton"`` read the logits
            once, on the CPU and on an NVIDIA GPU; ``"auto"`` is the fastest that runs here (``choose_implementation``).

    Returns:
        The statistics, in nats. With logits that require a gradient, log_probs and entropy are differentiable, once:

            ∂ log p_y/∂z_i = (1{i = y} − p_i)/T    ∂H/∂z_i = −S_i/T

        In reverse mode or in forward mode (``torch.func.jvp``), which reads the logits three times. A row with a NaN or
        +inf logit gives NaN; a row without any finite logit gives log-probability −inf, zeros and a zero gradient.

    Raises:
        ValueError: The shapes, dtypes or devices do not fit, a token id or T is out of range, or the implementation is
            unknown or cannot run on these logits.
        ImportError: The implementation needs a package that is not installed.
        RuntimeError: The gradient is differentiated again, in reverse or in forward mode.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> stats = token_statistics(logits, torch.tensor([0, 2]))
        >>> stats.entropy
        tensor([0.8324, 1.0986])
        >>> stats.centered_discriminant  # zero on a uniform policy
        tensor([0.1418, 0.0000])
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise invalid("logits", "a floating-point tensor (..., V)", getattr(logits, "dtype", type(logits).__name__))
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise invalid("logits", "a last dimension V of at least 2", f"shape {tuple(logits.shape)}")
    check_tokens(tokens, logits.shape[:-1], logits.device, "the logits' without V")
    temperature = number_in("temperature", temperature, *TEMPERATURES)
    name = resolve(impl, logits.device, logits.dtype, logits.numel())
    if not has_tangent(logits):
        return as_statistics(_statistics(logits, tokens, temperature, second_order, name), name)
    logits, tangent = forward_ad.unpack_dual(logits)
    return as_statistics(_with_tangents(logits, tangent, tokens, temperature, second_order, name), name)


# Schemas are written out: torch reads annotations only where no run-time type checker has wrapped the function.
@torch.library.custom_op(
    "entropy_theory::token_statistics",
    mutates_args=(),
    schema="(Tensor logits, Tensor tokens, float temperature, bool second_order, str impl) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _statistics(
    logits: Tensor, tokens: Tensor, temperature: float, second_order: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log p_y, H, the other fields stacked, and for the gradient the accumulators and z_y."""
    check_token_range(tokens, logits.shape[-1])
    logits = logits.detach()
    sums = kernels(impl).accumulate(logits, temperature, second_order)
    token_logits = logits.gather(-1, tokens.long().unsqueeze(-1)).reshape(-1)
    return assemble(sums, token_logits, temperature, second_order, tokens.shape, logits.dtype)


@_statistics.register_fake
def _(
    logits: Tensor, tokens: Tensor, temperature: float, second_order: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_statistics(logits, tokens, second_order, logits.dtype)


@torch.library.custom_op(
    "entropy_theory::token_statistics_gradient",
    mutates_args=(),
    schema="(Tensor logits, Tensor tokens, Tensor sums, Tensor token_logits, Tensor? log_prob_grad, "
    "Tensor? entropy_grad, float temperature, str impl) -> Tensor",
)
def _gradient(
    logits: Tensor,
    tokens: Tensor,
    sums: Tensor,
    token_logits: Tensor,
    log_prob_grad: Tensor | None,
    entropy_grad: Tensor | None,
    temperature: float,
    impl: str,
) -> Tensor:
    """The gradient of the logits for the gradients of log p_y and H."""
    flat = (None if g is None else g.reshape(-1) for g in (log_prob_grad, entropy_grad))
    top, level, slope, at_token = gradient_coefficients(sums, token_logits, temperature, *flat)
    gradient: Tensor = kernels(impl).gradient(logits.detach(), temperature, top, level, slope)
    put_at_tokens(gradient, tokens.reshape(-1).long(), at_token)
    return gradient


@_gradient.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, tokens, temperature, _, impl = inputs
    keep_for_gradient(ctx, output, logits, tokens)
    ctx.temperature, ctx.impl = temperature, impl


def _backward(ctx: Any, log_prob_grad: Tensor | None, entropy_grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    logits, tokens, sums, token_logits = ctx.saved_tensors
    gradients = (None if g is None else g.detach() for g in (log_prob_grad, entropy_grad))
    gradient = _gradient(logits.detach(), tokens, sums, token_logits, *gradients, ctx.temperature, ctx.impl)
    return once(gradient, logits), None, None, None, None


_statistics.register_autograd(_backward, setup_context=_setup)


def _with_tangents(logits: Tensor, tangent: Tensor, tokens: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    """Run the operator, then its gradient operator once for log p_y and once for H: ⟨gradient, tangent⟩ by rows."""
    temperature, _, impl = settings
    log_probs, entropy, others, sums, token_logits = _statistics(logits, tokens, *settings)
    ones, duals = torch.ones_like(log_probs), []
    for value, wanted in ((log_probs, (ones, None)), (entropy, (None, ones))):
        gradient = _gradient(logits, tokens, sums, token_logits, *wanted, temperature, impl).to(value.dtype)
        duals.append(forward_ad.make_dual(value, (gradient * tangent).sum(-1)))
    return (*duals, others, sums, token_logits)


# -- what the relatives of `token_statistics` share -------------------------------------------------------------------


def assemble(
    sums: Tensor, token_logits: Tensor, temperature: float, second_order: bool, shape: torch.Size, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Finish accumulators: log p_y, H and the other fields stacked, in float32 or wider; then sums and z_y as given."""
    dtype = torch.promote_types(dtype, torch.float32)
    fields = finish(sums, token_logits, temperature, second_order)
    log_probs, entropy, *others = (value.to(dtype).reshape(shape) for value in fields.values() if value is not None)
    return log_probs, entropy, torch.stack(others), sums, token_logits


def fake_statistics(
    like: Tensor, tokens: Tensor, second_order: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tensors of the shapes and types of `assemble`, for tracing."""
    wide = torch.promote_types(dtype, torch.float32)
    others = len(FIELDS) - 2 + (len(SECOND_ORDER_FIELDS) if second_order else 0)
    return (
        like.new_empty(tokens.shape, dtype=wide),
        like.new_empty(tokens.shape, dtype=wide),
        like.new_empty((others, *tokens.shape), dtype=wide),
        like.new_empty((tokens.numel(), columns(second_order)), dtype=torch.float64),
        like.new_empty((tokens.numel(),), dtype=dtype),
    )


def as_statistics(values: tuple[Tensor, ...], name: str) -> TokenStatistics:
    """Build the result from log p_y, H and the other fields stacked."""
    log_probs, entropy, others = values[:3]
    fields: dict[str, Any] = dict.fromkeys((*FIELDS, *SECOND_ORDER_FIELDS))
    fields.update(zip(fields, (log_probs, entropy, *others.unbind(0)), strict=False))
    return TokenStatistics(**fields, impl=name)


def keep_for_gradient(ctx: Any, output: tuple[Tensor, ...], *inputs: Tensor | None) -> None:
    """Save what the gradient needs; of the outputs only log p_y and H are differentiable."""
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output[3:])


def has_tangent(*inputs: Tensor | None) -> bool:
    """Say whether forward-mode differentiation runs through an input; an operator would take it for a constant.

    Raises:
        RuntimeError: It does, and an input requires a gradient, too.
    """
    given = [value for value in inputs if value is not None]
    found = any(forward_ad.unpack_dual(value).tangent is not None for value in given)
    if found and torch.is_grad_enabled() and any(value.requires_grad for value in given):
        raise RuntimeError("token statistics are differentiable once: in forward mode no input may require a gradient")
    return found


def refuse_tangents(*inputs: Tensor | None) -> None:
    """Raise RuntimeError where forward-mode differentiation would run through an input."""
    if has_tangent(*inputs):
        raise RuntimeError("only token_statistics can be differentiated in forward mode: give it the whole logits")


def once(gradient: Tensor, leaf: Tensor) -> Tensor:
    """Tie a gradient that may be differentiated again to an error: left alone, it would count as a constant."""
    return _Once.apply(gradient, leaf) if torch.is_grad_enabled() else gradient


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, leaf: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("token statistics are differentiable once; their second derivative is not implemented")


def check_tokens(tokens: object, shape: torch.Size, device: torch.device, whose: str) -> None:
    """Check the type, shape and device of token ids.

    Raises:
        ValueError: One of them does not fit.
    """
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        raise invalid("tokens", "an integer tensor (...)", getattr(tokens, "dtype", type(tokens).__name__))
    if tokens.shape != shape:
        raise invalid("tokens", f"shape {tuple(shape)}, {whose}", tuple(tokens.shape))
    if tokens.device != device:
        raise invalid("tokens", f"the logits' device {device}", tokens.device)


def check_token_range(tokens: Tensor, vocab_size: int) -> None:
    """Check that token ids lie in the vocabulary; this looks at their values, so it runs inside the operators.

    Raises:
        ValueError: One of them does not.
    """
    if tokens.numel():
        low, high = (int(x) for x in torch.aminmax(tokens))
        if low < 0 or high >= vocab_size:
            raise invalid("tokens", f"ids in [0, {vocab_size})", low if low < 0 else high)
