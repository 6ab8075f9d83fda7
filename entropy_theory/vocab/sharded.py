"""Token statistics with the vocabulary split across ranks, as tensor parallelism leaves it.

Every rank reads its own logits into accumulators, and the accumulators are all that travels: 8 numbers per token and
rank (11 for the second order), in one gather. A gather is taken and not an all-reduce, because the sums of two ranks
only add up once they refer to the same maximum: that would be one all-reduce for the maximum and a second for the
sums, each waiting for the slowest rank, while a gather of so little costs hardly more than its latency. It also hands
every rank the same parts in the same order, so that all ranks get the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.errors import invalid, number_in
from entropy_theory.vocab.accumulators import columns, gradient_coefficients, merge
from entropy_theory.vocab.implementations import Implementation, kernels, resolve
from entropy_theory.vocab.statistics import (
    TEMPERATURES,
    TokenStatistics,
    as_statistics,
    assemble,
    check_token_range,
    check_tokens,
    keep_for_gradient,
    once,
)

P = ParamSpec("P")
T = TypeVar("T")


def _untraced(function: Callable[P, T]) -> Callable[P, T]:
    """Let a compiled program call a function as it is: traced collectives would wait for ranks that are not there."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # at import it would load the compiler
        return function(*args, **kwargs)

    return call


@_untraced
def token_statistics_sharded(
    local_logits: Float[Tensor, "*batch V_local"],
    tokens: Int[Tensor, "*batch"],
    *,
    group: dist.ProcessGroup | None,
    temperature: float = 1.0,
    second_order: bool = False,
    impl: Implementation = "auto",
    vocab_start: int | None = None,
) -> TokenStatistics:
    """Compute log p_y, H, S_y, N and S_y − N when each rank holds a contiguous part of the vocabulary.

    The statistics are those of ``token_statistics`` for the logits of all ranks side by side (section C of the theory
    notes). With m the maximum over the ranks and Δ_r = (m − m_r)/T, the sums of rank r enter the whole as

        Z = Σ_r e^{−Δ_r} Z_r    A = Σ_r e^{−Δ_r} (A_r − Δ_r Z_r)    P₂ = Σ_r e^{−2Δ_r} P₂_r    and so on

    Every rank of the group calls this with the same tokens and options, and gets the same result.

    Args:
        local_logits: This rank's logits, shape (..., V_local); V_local may differ between ranks.
        tokens: y, ids in the whole vocabulary, shape (...), the same on every rank.
        group: The ranks that share the vocabulary, in the order of its parts; None for all ranks.
        temperature: T in [1e-6, 1e6].
        second_order: Also return Σ S² and the curvature of the GRPO direction.
        impl: What reads the local logits, as in ``token_statistics``.
        vocab_start: The first token of this rank. If omitted, the ranks tell each other their sizes, in one more
            small gather.

    Returns:
        The statistics of the whole vocabulary, in nats. With logits that require a gradient, log_probs and entropy
        carry it to the local logits without further communication: the gradient that arrives must be the same on
        every rank, as it is when all compute the same loss.

    Raises:
        ValueError: An argument does not fit as in ``token_statistics``, or a token belongs to no rank or to several.
        RuntimeError: The default process group was not initialised.

    Example:
        One process that holds the whole vocabulary; under ``torchrun`` every rank passes its own part.

        >>> import tempfile, torch, torch.distributed as dist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        ...     logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        ...     stats = token_statistics_sharded(logits, torch.tensor([0, 2]), group=None)
        ...     dist.destroy_process_group()
        >>> stats.entropy
        tensor([0.8324, 1.0986])
    """
    if not isinstance(local_logits, Tensor) or not local_logits.is_floating_point() or local_logits.ndim < 1:
        received = getattr(local_logits, "dtype", type(local_logits).__name__)
        raise invalid("local_logits", "a floating-point tensor (..., V_local)", received)
    size = local_logits.shape[-1]
    if size < 1:
        raise invalid("local_logits", "at least one token of the vocabulary on every rank", 0)
    temperature = number_in("temperature", temperature, *TEMPERATURES)
    name = resolve(impl, local_logits.device, local_logits.dtype, local_logits.numel())
    check_tokens(tokens, local_logits.shape[:-1], local_logits.device, "the logits' without V_local")
    if vocab_start is None:
        vocab_start, whole = _place(size, local_logits.device, group)
    elif isinstance(vocab_start, bool) or not isinstance(vocab_start, int) or vocab_start < 0:
        raise invalid("vocab_start", "an integer >= 0", repr(vocab_start))
    else:
        whole = torch.iinfo(torch.int64).max
    check_token_range(tokens, whole)
    options = (vocab_start, temperature, second_order, kernels(name), group)
    return as_statistics(_Sharded.apply(local_logits, tokens, options), name)


def _place(size: int, device: torch.device, group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Return this rank's first token and the size of the whole vocabulary."""
    parts = _gather(torch.tensor([size], device=device), group).flatten().tolist()
    return sum(parts[: dist.get_rank(group)]), sum(parts)


def _gather(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return what every rank has, stacked in the order of the ranks."""
    everyone = own.new_empty(dist.get_world_size(group), *own.shape)
    dist.all_gather(list(everyone), own.contiguous(), group=group)
    return everyone


class _Sharded(torch.autograd.Function):
    """One read and one gather forward; backward one read and write of the local part, nothing to communicate."""

    @staticmethod
    def forward(ctx: Any, local_logits: Tensor, tokens: Tensor, options: tuple[Any, ...]) -> Any:
        start, temperature, second_order, module, group = options
        logits = local_logits.detach()
        local = tokens.long() - start
        inside = (local >= 0) & (local < logits.shape[-1])
        chosen = logits.gather(-1, torch.where(inside, local, 0).unsqueeze(-1)).squeeze(-1).double()
        sums = module.accumulate(logits, temperature, second_order)
        # The owner's logit by selection, not by a sum with zeros of the others: it may be −inf or NaN.
        message = torch.cat([sums, chosen.reshape(-1, 1), inside.reshape(-1, 1).double()], dim=-1)
        parts = _gather(message, group)
        owners = parts[..., -1].sum(0)
        if not bool((owners == 1).all()):
            raise invalid("tokens", "ids that belong to exactly one rank", f"{int((owners != 1).sum())} that do not")
        owner = parts[..., -1].argmax(0, keepdim=True)
        token_logits = parts[..., -2].gather(0, owner).squeeze(0)
        sums = merge(parts[..., : columns(second_order)], temperature)
        out = assemble(sums, token_logits, temperature, second_order, tokens.shape, logits.dtype)
        keep_for_gradient(ctx, out, local_logits, local, inside)
        ctx.temperature, ctx.module = temperature, module
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        logits, local, inside, sums, token_logits = ctx.saved_tensors
        flat = (None if g is None else g.detach().reshape(-1) for g in gradients[:2])
        top, level, slope, at_token = gradient_coefficients(sums, token_logits, ctx.temperature, *flat)
        gradient = ctx.module.gradient(logits.detach(), ctx.temperature, top, level, slope)
        own = inside.reshape(-1)
        part = gradient.view(-1, gradient.shape[-1])
        rows = own.nonzero().squeeze(-1)
        part[rows, local.reshape(-1)[rows]] = at_token[rows].to(part.dtype)
        return once(gradient, logits), None, None
