"""Token statistics from hidden states and the output matrix; the logits never exist all at once.

The logits are computed in tiles of rows × vocabulary that stay in the cache, and each tile is read into the
accumulators of its rows before the next one overwrites it. The backward pass computes the tiles again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.errors import invalid, number_in
from entropy_theory.vocab.accumulators import empty, gradient_coefficients
from entropy_theory.vocab.implementations import Implementation, kernels, resolve
from entropy_theory.vocab.statistics import (
    TEMPERATURES,
    TokenStatistics,
    as_statistics,
    assemble,
    check_token_range,
    check_tokens,
    fake_statistics,
    keep_for_gradient,
    once,
    refuse_tangents,
)

# Memory of one tile of logits on a CPU, and on a GPU, where only a larger product fills the device.
TILE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}

# Rows of a tile at most: beyond it a tile would be too narrow for a good matrix product.
TILE_ROWS = {"cpu": 2048, "cuda": 1 << 14}

SOFTCAPS = (1e-6, 1e6)
"""Beyond these, κ tanh(z/κ) leaves the numbers of float32."""


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

    the product and b in the dtype of ``hidden``, the cap in float32 or wider, as TRL computes them. Extra memory is a
    tile of logits and a few numbers per token, whatever V is.

    Args:
        hidden: h, shape (..., d), any floating dtype and device.
        output_matrix: W, shape (V, d), of the same dtype and device (``lm_head.weight``).
        tokens: y, integer ids of shape (...).
        bias: b, shape (V,), of the same dtype and device.
        softcap: κ in [1e-6, 1e6], the final soft cap of the logits, as in Gemma 2.
        temperature: T in [1e-6, 1e6], the temperature the tokens were sampled at; it divides the capped logits.
        second_order: Also return Σ S² and the curvature of the GRPO direction.
        impl: What reads the tiles, as in ``token_statistics``.

    Returns:
        The statistics, in nats. If any of ``hidden``, ``output_matrix`` and ``bias`` requires a gradient, log_probs and
        entropy carry it, once.

    Raises:
        ValueError: The shapes, dtypes or devices do not fit, a token id, T or κ is out of range, or the implementation
            is unknown or cannot run here.
        ImportError: The implementation needs a package that is not installed.
        RuntimeError: The gradient is differentiated again, or the statistics in forward mode.

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
    _check(hidden, output_matrix, bias)
    check_tokens(tokens, hidden.shape[:-1], hidden.device, "that of hidden without d")
    refuse_tangents(hidden, output_matrix, bias)
    temperature = number_in("temperature", temperature, *TEMPERATURES)
    softcap = None if softcap is None else number_in("softcap", softcap, *SOFTCAPS)
    count = hidden.shape[:-1].numel() * output_matrix.shape[0]
    name = resolve(impl, hidden.device, _tile_dtype(hidden.dtype, softcap), count)
    values = _statistics(hidden, output_matrix, bias, tokens, softcap, temperature, second_order, name)
    return as_statistics(values, name)


def _tile_dtype(dtype: torch.dtype, softcap: float | None) -> torch.dtype:
    return dtype if softcap is None else torch.promote_types(dtype, torch.float32)


@torch.library.custom_op(
    "entropy_theory::token_statistics_from_hidden",
    mutates_args=(),
    schema="(Tensor hidden, Tensor matrix, Tensor? bias, Tensor tokens, float? softcap, float temperature, "
    "bool second_order, str impl) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _statistics(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    softcap: float | None,
    temperature: float,
    second_order: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tile by tile: log p_y, H, the other fields stacked, and for the gradient the accumulators and z_y."""
    check_token_range(tokens, matrix.shape[0])
    flat = hidden.detach().reshape(-1, hidden.shape[-1])
    tiled = TiledStatistics(tokens, flat.dtype, temperature=temperature, second_order=second_order, impl=impl)
    for rows, start, logits in _Tiles(flat, matrix.detach(), None if bias is None else bias.detach(), softcap):
        tiled.add(rows, start, logits)
    return tiled.values()


@_statistics.register_fake
def _(
    hidden: Tensor,
    matrix: Tensor,
    bias: Any,
    tokens: Tensor,
    softcap: Any,
    temperature: float,
    second_order: bool,
    _: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_statistics(hidden, tokens, second_order, torch.promote_types(hidden.dtype, torch.float32))


@torch.library.custom_op(
    "entropy_theory::token_statistics_from_hidden_gradient",
    mutates_args=(),
    schema="(Tensor hidden, Tensor matrix, Tensor? bias, Tensor tokens, Tensor sums, Tensor token_logits, "
    "Tensor? log_prob_grad, Tensor? entropy_grad, bool[] needed, float? softcap, float temperature, str impl) -> "
    "Tensor[]",
)
def _gradient(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    sums: Tensor,
    token_logits: Tensor,
    log_prob_grad: Tensor | None,
    entropy_grad: Tensor | None,
    needed: list[bool],
    softcap: float | None,
    temperature: float,
    impl: str,
) -> list[Tensor]:
    """The tiles again, each turned into its gradient and multiplied on the spot; those of the three that are needed."""
    module = kernels(impl)
    flat, matrix, ids = hidden.detach().reshape(-1, hidden.shape[-1]), matrix.detach(), tokens.reshape(-1).long()
    given = (None if g is None else g.reshape(-1) for g in (log_prob_grad, entropy_grad))
    top, level, slope, at_token = gradient_coefficients(sums, token_logits, temperature, *given)
    wide = torch.promote_types(flat.dtype, torch.float32)  # sums over many tiles, in more than 16 bits
    for_hidden, for_matrix, for_bias = (
        torch.zeros(shape, dtype=dtype, device=flat.device) if want else None
        for want, shape, dtype in zip(
            needed, (flat.shape, matrix.shape, matrix.shape[:1]), (wide, matrix.dtype, wide), strict=True
        )
    )
    for rows, start, logits in _Tiles(flat, matrix, None if bias is None else bias.detach(), softcap):
        gradient = module.gradient(logits, temperature, top[rows], level[rows], slope[rows])
        local = ids[rows] - start
        where = ((local >= 0) & (local < logits.shape[-1])).nonzero().squeeze(-1)
        gradient[where, local[where]] = at_token[rows][where].to(gradient.dtype)
        if softcap is not None:  # the cap's own derivative is 1 − (z/κ)²
            gradient *= 1 - (logits / softcap) ** 2
        gradient = gradient.to(flat.dtype)
        words = slice(start, start + logits.shape[-1])
        if for_hidden is not None:
            for_hidden[rows] += gradient @ matrix[words]
        if for_matrix is not None:
            for_matrix[words].addmm_(gradient.T, flat[rows])
        if for_bias is not None:
            for_bias[words] += gradient.sum(0, dtype=wide)
    found = [None if for_hidden is None else for_hidden.to(hidden.dtype).reshape(hidden.shape), for_matrix]
    found.append(None if for_bias is None else for_bias.to(hidden.dtype))
    return [gradient for gradient in found if gradient is not None]


@_gradient.register_fake
def _(hidden: Tensor, matrix: Tensor, bias: Any, tokens: Tensor, *arguments: Any) -> list[Tensor]:
    shapes = (hidden.shape, matrix.shape, matrix.shape[:1])
    return [hidden.new_empty(shape) for want, shape in zip(arguments[4], shapes, strict=True) if want]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, matrix, bias, tokens, softcap, temperature, _, impl = inputs
    keep_for_gradient(ctx, output, hidden, matrix, bias, tokens)
    ctx.softcap, ctx.temperature, ctx.impl = softcap, temperature, impl


def _backward(ctx: Any, log_prob_grad: Tensor | None, entropy_grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    saved, needed = ctx.saved_tensors, list(ctx.needs_input_grad[:3])
    tensors = (None if tensor is None else tensor.detach() for tensor in (*saved, log_prob_grad, entropy_grad))
    gradients = iter(_gradient(*tensors, needed, ctx.softcap, ctx.temperature, ctx.impl))
    leaf = next(tensor for tensor, want in zip(saved, needed, strict=False) if want)
    return (*(once(next(gradients), leaf) if want else None for want in needed), *[None] * 5)


_statistics.register_autograd(_backward, setup_context=_setup)


class TiledStatistics:
    """Token statistics of logits that come tile by tile, the tiles of a row in the order of the vocabulary.

    Args:
        tokens: y, integer ids of any shape; their flat index is the row.
        dtype: Of the hidden states or the product.
        temperature: T; it divides the logits.
        second_order: Also Σ S² and the curvature.
        impl: The implementation that reads the tiles, by its name.

    Example:
        >>> import torch
        >>> from entropy_theory.vocab import token_statistics
        >>> logits, tokens = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([2])
        >>> tiled = TiledStatistics(tokens, logits.dtype, impl="eager")
        >>> tiled.add(slice(0, 1), 0, logits[:, :3])
        >>> tiled.add(slice(0, 1), 3, logits[:, 3:])
        >>> torch.allclose(tiled.statistics().entropy, token_statistics(logits, tokens).entropy)
        True
    """

    def __init__(
        self, tokens: Tensor, dtype: torch.dtype, *, temperature: float = 1.0, second_order: bool = False, impl: str
    ) -> None:
        self.shape, self.dtype, self.impl = tokens.shape, dtype, impl
        self.temperature, self.second_order = temperature, second_order
        self._ids, self._accumulate = tokens.reshape(-1).long(), kernels(impl).accumulate
        self._sums = empty(len(self._ids), second_order, tokens.device)
        wide = torch.promote_types(dtype, torch.float32)
        self._token_logits = torch.zeros(len(self._ids), dtype=wide, device=tokens.device)

    def add(self, rows: slice, start: int, logits: Tensor) -> None:
        """Read a tile: the logits of some rows for the tokens from ``start`` on, (rows, words)."""
        part = self._sums[rows]
        before = part if start else None  # the first tile of a row has nothing to be merged with
        result = self._accumulate(logits, self.temperature, self.second_order, into=before)
        if result is not part:
            part.copy_(result)
        local = self._ids[rows] - start
        inside = (local >= 0) & (local < logits.shape[-1])
        own = logits.gather(-1, torch.where(inside, local, 0).unsqueeze(-1)).squeeze(-1)
        kept = self._token_logits[rows]
        kept.copy_(torch.where(inside, own.to(kept.dtype), kept))

    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Finish: log p_y, H, the other fields stacked, the accumulators and z_y."""
        order = self.second_order
        return assemble(self._sums, self._token_logits, self.temperature, order, self.shape, self.dtype)

    def statistics(self) -> TokenStatistics:
        """The statistics, without a gradient."""
        return as_statistics(self.values(), self.impl)


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
                    logits = logits.to(_tile_dtype(logits.dtype, self.softcap))  # 16 bits would round the cap itself
                    logits.div_(self.softcap).tanh_().mul_(self.softcap)
                yield rows, start, logits


def _check(hidden: object, matrix: object, bias: object) -> None:
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
