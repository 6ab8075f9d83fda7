"""Oracles and rows for the tests of the token statistics; nothing here imports the package."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import torch
from torch import Tensor

FIELDS = (
    "log_probs",
    "entropy",
    "discriminant",
    "baseline",
    "centered_discriminant",
    "sum_squared_discriminant",
    "grpo_curvature",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# float32: each e^d carries about one unit in the last place of d ≲ 16, 16 · 6e-8 = 1e-6, the exponential's own 1e-7.
# float64 likewise, less a digit that the curvature loses where its terms have both signs.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6, torch.float64: 1e-11}


def high_precision(logits: list[float], token: int, temperature: float = 1.0) -> dict[str, float]:
    """Every field from its definition at 50 digits; the curvature as −Σ p δ² (1 + H + log p)."""
    with mpmath.workdps(50):
        z = [mpmath.mpf(x) / mpmath.mpf(temperature) for x in logits]
        top = max(z)
        e = [mpmath.exp(x - top) if x != -mpmath.inf else mpmath.mpf(0) for x in z]
        normaliser = mpmath.fsum(e)
        p = [x / normaliser for x in e]
        log_p = [mpmath.log(x) if x > 0 else mpmath.mpf(0) for x in p]
        entropy = -mpmath.fsum(a * b for a, b in zip(p, log_p, strict=True))
        s = [a * (entropy + b) for a, b in zip(p, log_p, strict=True)]
        n = mpmath.fsum(a * b for a, b in zip(p, s, strict=True))
        d = [(1 if i == token else 0) - x for i, x in enumerate(p)]
        mean = mpmath.fsum(a * b for a, b in zip(p, d, strict=True))
        curvature = -mpmath.fsum(a * (b - mean) ** 2 * (1 + entropy + c) for a, b, c in zip(p, d, log_p, strict=True))
        values = (log_p[token], entropy, s[token], n, s[token] - n, mpmath.fsum(x * x for x in s), curvature)
        return {name: float(value) for name, value in zip(FIELDS, values, strict=True)}


def long_double(logits: Tensor, token: int) -> dict[str, float]:
    """log p_y, H, S_y, N and S_y − N of one row from their definitions, with the 64-bit mantissa of x86.

    log Z is log1p of what lies beside one maximum: 1e-19 in it would be 1e-6 of S_c at 1 − p = 1e-7.
    """
    z = logits.double().numpy().astype(np.longdouble)
    top = int(np.argmax(z))
    d = z - z[top]
    rest = np.exp(np.delete(d, top)).sum()
    log_p = d - np.log1p(rest)
    p = np.exp(log_p)
    entropy = -(p * log_p).sum()
    s = p * (entropy + log_p)
    n = (p * s).sum()
    values = (log_p[token], entropy, s[token], n, s[token] - n)
    return {name: float(value) for name, value in zip(FIELDS[:5], values, strict=True)}


def autograd(logits: Tensor, tokens: Tensor, temperature: float, g: Tensor, h: Tensor) -> Tensor:
    """Gradient of Σ g log p_y + h H by float64 autograd through torch's log-softmax."""
    z = logits.detach().double().requires_grad_()
    log_p = (z / temperature).log_softmax(-1)
    p = log_p.exp()
    # −inf · 0 in the backward pass would be NaN: the masked tokens are taken out of the graph.
    plogp = torch.where(p > 0, p, 0.0) * torch.where(p > 0, log_p, 0.0)
    chosen = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    loss = (g.double() * chosen).sum() - (h.double() * plogp.sum(-1)).sum()
    (gradient,) = torch.autograd.grad(loss, z)
    return gradient


def llm_like(rows: int, vocab_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows as of a trained model: certain, forking and diffuse ones in turn; y the argmax or any token."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab_size, generator=generator) * 2.5
    first = torch.randint(0, vocab_size, (rows,), generator=generator)
    gaps = torch.tensor([24.0, 18.0, 14.0, 11.0])[torch.arange(rows) % 4]
    logits.scatter_(-1, first[:, None], gaps[:, None])
    logits.scatter_(-1, ((first + 1) % vocab_size)[:, None], gaps[:, None] - 1.5)
    other = torch.randint(0, vocab_size, (rows,), generator=generator)
    return logits, torch.where(torch.arange(rows) % 8 < 5, first, other)


def nearly_certain(rest: float, vocab_size: int) -> Tensor:
    """One row whose first token has probability 1 − rest, up to rounding; the others differ."""
    logits = torch.linspace(-1, 1, vocab_size)
    logits[0] = math.log((vocab_size - 1) / rest)
    return logits
