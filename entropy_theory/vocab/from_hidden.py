"""Token statistics from hidden states and the output matrix; the logits never exist all at once.

The logits are computed in tiles of rows × vocabulary that stay in the cache, and each tile is read into the
accumulators of its rows before the next one overwrites it. The backward pass computes the tiles again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.errors import invalid
from entropy_theory.vocab.accumulators import columns, empty, finish, gradient_coefficients
from entropy_theory.vocab.statistics import (
    Implementation,
    TokenStatistics,
    as_statistics,
    assemble,
    check_temperature,
    check_tokens,
    resolve,
)

# Memory of one tile of logits on a CPU, and on a GPU, where only a larger product fills the device.
TILE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}

# Rows of a tile at most: beyond it a tile would be too narrow for a good matrix product.
TILE_ROWS = {"cpu": 2048, "cuda": 1 << 14}


def token_statistics_from_hidden(
    hidden: Float[Tensor, "*batch d"],
    output_matrix: Float[Tensor, "V d"],
    tokens: Int[Tensor, "*batch"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    second_order: bool = False,
    impl: Implementation = "auto",
) -> TokenStatistics:
    """Compute log p_y, H, S_y, N and S_y − N at the output layer of a language model, without its logits.

    The statistics are those of ``token_statistics`` for the logits (section C of the theory notes)

        z = h Wᵀ + b,    then z ← κ tanh(z/κ) if there is a soft cap

    computed in the dtype of ``hidden``, as the model itself would. Extra memory is a tile of logits and a few numbers
    per token, whatever V is.

    Args:
        hidden: h, shape (..., d), any floating dtype and device.
        output_matrix: W, shape (V, d), of the same dtype and device (``lm_head.weight``).
        tokens: y, integer ids of shape (...).
        bias: b, shape (V,), of the same dtype and device.
        softcap: κ > 0, the final soft cap of the logits, as in Gemma 2.
        temperature: T > 0, the temperature the tokens were sampled at; it divides the capped logits.
        second_order: Also return Σ S² and the curvature of the GRPO direction.
        impl: What reads the tiles, as in ``token_statistics``.

    Returns:
        The statistics, in nats. If any of ``hidden``, ``output_matrix`` and ``bias`` requires a gradient, log_probs and
        entropy carry it, once.

    Raises:
        ValueError: The shapes, dtypes or devices do not fit, a token id is out of range, T or κ is not a positive
            finite number, or the implementation is unknown or cannot run here.
        ImportError: The implementation needs a package that is not installed.

    Example:
        >>> import torch
        >>> from entropy_theory.vocab import token_statistics
        >>> hidden, matrix = torch.eye(2, 3), torch.tensor([[2.0, 0, 1], [1.0, 0, 1], [0.0, 0, 1]])
        >>> stats = token_statistics_from_hidden(hidden, matrix, torch.tensor([0, 2]))
        >>> stats.entropy
        tensor([0.8324, 1.0986])
        >>> torch.equal(stats.entropy, token_statistics(hidden @ matrix.T, torch.tensor([0, 2])).entropy)
        True
    """
    _check(hidden, output_matrix, tokens, bias, softcap)
    check_temperature(temperature)
    count = hidden.shape[:-1].numel() * output_matrix.shape[0]
    name, module = resolve(impl, hidden.device, hidden.dtype, count)
    options = (softcap, float(temperature), second_order, module)
    return as_statistics(_FromHidden.apply(hidden, output_matrix, bias, tokens, options), name)


class _FromHidden(torch.autograd.Function):
    """Tile by tile forward; backward the tiles again, each turned into its gradient and multiplied on the spot."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, bias: Tensor | None, tokens: Tensor, options: tuple[Any, ...]
    ) -> Any:
        softcap, temperature, second_order, module = options
        flat = hidden.detach().reshape(-1, hidden.shape[-1])
        ids = tokens.reshape(-1).long()
        sums = empty(flat.shape[0], second_order, flat.device)
        token_logits = torch.zeros(flat.shape[0], dtype=torch.promote_types(flat.dtype, torch.float32)).to(flat.device)
        tiles = _Tiles(flat, matrix.detach(), bias if bias is None else bias.detach(), softcap)
        for rows, start, logits in tiles:
            part = sums[rows]
            before = part if start else None  # the first tile of a row has nothing to be merged with
            result = module.accumulate(logits, temperature, second_order, into=before)
            if result is not part:
                part.copy_(result)
            local = ids[rows] - start
            inside = (local >= 0) & (local < logits.shape[-1])
            found = logits.gather(-1, torch.where(inside, local, 0).unsqueeze(-1)).squeeze(-1)
            token_logits[rows] = torch.where(inside, found.to(token_logits.dtype), token_logits[rows])
        out = assemble(finish(sums, token_logits, temperature, second_order), tokens.shape, hidden.dtype)
        ctx.mark_non_differentiable(*(v for v in out[2:] if v is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, matrix, bias, ids, sums[:, : columns(False)].contiguous(), token_logits)
        ctx.softcap, ctx.temperature, ctx.module = softcap, temperature, module
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        hidden, matrix, bias, ids, sums, token_logits = ctx.saved_tensors
        flat = hidden.reshape(-1, hidden.shape[-1])
        given = (None if g is None else g.reshape(-1) for g in gradients[:2])
        top, level, slope, at_token = gradient_coefficients(sums, token_logits, ctx.temperature, *given)
        wide = torch.promote_types(flat.dtype, torch.float32)  # sums over many tiles, in more than 16 bits
        for_hidden, for_matrix, for_bias = (
            torch.zeros(shape, dtype=dtype, device=flat.device) if needed else None
            for needed, shape, dtype in zip(
                ctx.needs_input_grad,
                (flat.shape, matrix.shape, matrix.shape[:1]),
                (wide, matrix.dtype, wide),
                strict=False,
            )
        )
        for rows, start, logits in _Tiles(flat, matrix, bias, ctx.softcap):
            gradient = ctx.module.gradient(logits, ctx.temperature, top[rows], level[rows], slope[rows])
            local = ids[rows] - start
            where = ((local >= 0) & (local < logits.shape[-1])).nonzero().squeeze(-1)
            gradient[where, local[where]] = at_token[rows][where].to(gradient.dtype)
            if ctx.softcap is not None:  # the cap's own derivative is 1 − (z/κ)²
                gradient *= 1 - (logits / ctx.softcap) ** 2
            words = slice(start, start + logits.shape[-1])
            if for_hidden is not None:
                for_hidden[rows] += gradient @ matrix[words]
            if for_matrix is not None:
                for_matrix[words].addmm_(gradient.T, flat[rows])
            if for_bias is not None:
                for_bias[words] += gradient.sum(0, dtype=wide)
        if for_hidden is not None:
            for_hidden = for_hidden.to(hidden.dtype).reshape(hidden.shape)
        return for_hidden, for_matrix, None if for_bias is None else for_bias.to(bias.dtype), None, None


class _Tiles:
    """The logits, tile after tile in one buffer: (rows, first token, logits of these rows and tokens)."""

    def __init__(self, hidden: Tensor, matrix: Tensor, bias: Tensor | None, softcap: float | None) -> None:
        self.hidden, self.matrix, self.bias, self.softcap = hidden, matrix, bias, softcap
        kind = "cuda" if hidden.is_cuda else "cpu"
        elements = TILE_BYTES[kind] // hidden.element_size()
        self.rows = max(1, min(hidden.shape[0], TILE_ROWS[kind]))
        # Few rows take wide tiles: a matrix product needs about as much work whichever way the tile lies.
        self.words = max(1, min(matrix.shape[0], elements // self.rows))

    def __iter__(self) -> Iterator[tuple[slice, int, Tensor]]:
        count, vocab_size = self.hidden.shape[0], self.matrix.shape[0]
        buffer = torch.empty(self.rows * self.words, dtype=self.hidden.dtype, device=self.hidden.device)
        for start in range(0, vocab_size, self.words):
            words = slice(start, min(start + self.words, vocab_size))
            for first in range(0, count, self.rows):
                rows = slice(first, min(first + self.rows, count))
                shape = (rows.stop - rows.start, words.stop - words.start)
                logits = buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(self.hidden[rows], self.matrix[words].T, out=logits)
                if self.bias is not None:
                    logits += self.bias[words]
                if self.softcap is not None:
                    logits.div_(self.softcap).tanh_().mul_(self.softcap)
                yield rows, start, logits


def _check(hidden: object, matrix: object, tokens: object, bias: object, softcap: object) -> None:
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point() or hidden.ndim < 1:
        raise invalid("hidden", "a floating-point tensor (..., d)", getattr(hidden, "dtype", type(hidden).__name__))
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or matrix.shape[0] < 2 or matrix.shape[1] != hidden.shape[-1]:
        received = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise invalid("output_matrix", f"shape (V, {hidden.shape[-1]}) with V of at least 2", received)
    for name, value in (("output_matrix", matrix), ("bias", bias)):
        if isinstance(value, Tensor) and (value.dtype, value.device) != (hidden.dtype, hidden.device):
            raise invalid(name, f"{hidden.dtype} on {hidden.device}, as hidden", f"{value.dtype} on {value.device}")
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != matrix.shape[:1]):
        received = tuple(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
        raise invalid("bias", f"shape ({matrix.shape[0]},)", received)
    if softcap is not None and (
        isinstance(softcap, bool)
        or not isinstance(softcap, int | float)
        or not (softcap > 0 and math.isfinite(softcap))
    ):
        raise invalid("softcap", "a finite number > 0", softcap)
    check_tokens(tokens, hidden.shape[:-1], matrix.shape[0], hidden.device, "that of hidden without d")
