"""The readable reference: plain torch, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from entropy_theory.vocab.accumulators import merge

# Elements of logits handled at once: 16 MiB in float32, small beside any model, large enough to keep the cores busy.
BLOCK_ELEMENTS = 1 << 22


def accumulate(logits: Tensor, temperature: float, second_order: bool, into: Tensor | None = None) -> Tensor:
    """Compute the accumulators of every row of logits; see `kernels`."""
    flat = logits.reshape(-1, logits.shape[-1])
    sums = torch.cat([_block(flat[rows], temperature, second_order) for rows in _blocks(flat)])
    return sums if into is None else merge(torch.stack([into, sums]), temperature)


def gradient(logits: Tensor, temperature: float, top: Tensor, level: Tensor, slope: Tensor) -> Tensor:
    """Compute e^{x/T} (level + slope · x), x = z − top, for every logit; see `kernels`."""
    flat = logits.reshape(-1, logits.shape[-1])
    out = torch.empty_like(flat)
    for rows in _blocks(flat):
        block = flat[rows].to(torch.promote_types(logits.dtype, torch.float32))
        x = block - top[rows, None].to(block.dtype)
        e = (x / temperature).exp()
        x = torch.where(e == 0, 0.0, x)  # slope · x may be infinite, and 0 · ∞ is NaN
        out[rows] = (e * (level[rows, None].to(block.dtype) + slope[rows, None].to(block.dtype) * x)).to(out.dtype)
    return out.reshape(logits.shape)


def _blocks(flat: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK_ELEMENTS // flat.shape[-1])
    return (slice(i, i + rows) for i in range(0, max(flat.shape[0], 1), rows))


def _block(logits: Tensor, temperature: float, second_order: bool) -> Tensor:
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = z.amax(dim=-1, keepdim=True)
    x = z - torch.where(top == -torch.inf, 0.0, top)
    maxima = x == 0
    d = x.div_(temperature)
    # e^d is set to zero at the maxima, d to zero at −inf (0 · −inf is NaN).
    weight = torch.where(maxima, 0.0, d.exp())
    d = torch.where(d == -torch.inf, 0.0, d)
    squared = weight * weight
    sums = [torch.where(top == torch.inf, torch.nan, top).squeeze(-1).double(), maxima.sum(-1).double()]
    sums += [_total(weight), _total(weight * d), _total(squared), _total(squared * d)]
    if second_order:
        cubed = squared * weight
        sums += [_total(squared * d * d), _total(cubed), _total(cubed * d)]
    return torch.stack(sums, dim=-1)


def _total(x: Tensor) -> Tensor:
    return x.sum(-1, dtype=torch.float64)
