"""Enclosures for one policy and one ray of its logits, in ball arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from entropy_theory.errors import invalid
from entropy_theory.theory._policy import as_direction, as_logits
from entropy_theory.theory.certificates.balls import Ball, interval, precision

_BITS = 256  # sums over tokens cancel


@dataclass(frozen=True)
class RemainderEnclosure:
    """Enclosure of ΔH minus its first order: it lies in ½ t² [low, high] for every step t of the interval.

    Attributes:
        low: Lower end of the second derivative of the entropy, rounded down.
        high: Upper end, rounded up.
        start: Start of the interval of steps, 0 included.
        end: End of it.
    """

    low: float
    high: float
    start: float
    end: float


def remainder_enclosure(
    logits: ArrayLike, direction: ArrayLike, start: float, end: float, pieces: int = 64
) -> RemainderEnclosure:
    """Enclose the remainder of the first-order change of entropy for one policy and an interval of steps.

    Sections B.6 and B.1 of the theory notes: ΔH + t Σ S_i d_i = ½ t² H''(ξ) with ξ between 0 and t.

    Formula: H''(t) = −Σ q_i δ_i² (1 + H + log q_i), q ∝ p e^{t d}, δ_i = d_i − E_q[d], enclosed over the interval in
    ball arithmetic of 128 bits, part by part.

    Symbols: z is `logits`; d is `direction`; t runs from `start` to `end`, and 0 is included.

    Shapes: (V,) and (V,). The numbers are taken as they are, without rounding.

    Domain: V ≥ 2; logits finite or −inf, with a finite one; start ≤ end, both finite; pieces ≥ 1.

    Raises:
        ValueError: If an argument is not real or not finite, or a shape is not the one above.
        ImportError: If python-flint is not installed.

    Example:
        >>> enclosure = remainder_enclosure([1.0, 0.0, -1.0], [1.0, 0.0, 0.0], 0.0, 0.1)
        >>> enclosure.low < -0.13 and enclosure.high < -0.10
        True
    """
    z = as_logits(logits)
    if z.ndim != 1:
        raise invalid("logits", "shape (V,)", f"shape {z.shape}")
    d = as_direction("direction", direction, z.shape)
    if d.ndim != 1:
        raise invalid("direction", "shape (V,)", f"shape {d.shape}")
    if not (np.isfinite([start, end]).all() and start <= end):
        raise invalid("start, end", "finite numbers, start <= end", f"{start}, {end}")
    if pieces < 1:
        raise invalid("pieces", "at least 1", pieces)
    with precision(_BITS) as arb:
        possible = np.isfinite(z)
        weights = [(arb(float(value)) - arb(float(z.max()))).exp() for value in z[possible]]
        moves = [arb(float(value)) for value in d[possible]]
        first, last = min(0.0, float(start)), max(0.0, float(end))
        edges = np.linspace(first, last, pieces + 1)
        edges[0], edges[-1] = first, last
        parts = [
            _curvature(arb, weights, moves, interval(arb, float(low), float(high))) for low, high in pairwise(edges)
        ]
        hull = parts[0]
        for part in parts[1:]:
            hull = hull.union(part)
        return RemainderEnclosure(_down(hull), _up(hull), first, last)


@dataclass(frozen=True)
class StepEnclosure:
    """Enclosures of what one step of one policy does; each is a ball that holds the true number.

    Attributes:
        predicted: −α Σ S_i d_i, the first order of the change.
        change: ΔH, or ΔJ with the entropy to come.
    """

    predicted: Ball
    change: Ball

    @property
    def breaks_the_sign(self) -> bool:
        """Whether, rigorously, a fall is predicted and the change is a rise."""
        return bool(self.predicted < 0 and self.change > 0)


def step_enclosure(
    probs: Sequence[str],
    direction: Callable[[list[Ball]], list[Ball]],
    alpha: str,
    counts: Sequence[int] | None = None,
    future: Sequence[str] | None = None,
) -> StepEnclosure:
    """Enclose the change of entropy under one step of one policy that is given by decimals, and its first order.

    Sections B.1 and B.8 and part F of the theory notes.

    Formula: ΔJ = H(q) − H(p) + Σ (q − p) Q, q ∝ p e^{α d}, and −α Σ p_i (H + log p_i − Q_i + E_p Q) d_i, with Q = 0 for
    the entropy of the position alone.

    Args:
        probs: p, one decimal per atom of equal tokens; normalised if it does not sum to 1.
        direction: p → d, on balls, one per atom.
        alpha: α, a decimal.
        counts: Number of tokens in each atom; one each when None.
        future: Q, one decimal per atom; 0 when None.

    Raises:
        ImportError: If python-flint is not installed.

    Example:
        >>> two_tokens = lambda p: [1 - 2 * p[0], 1 - 2 * p[1], -2 * p[2]]
        >>> outcome = step_enclosure(["0.735", "0.001", "0.264"], two_tokens, "5")
        >>> outcome.breaks_the_sign, bool(outcome.change > 0.27)
        (True, True)
    """
    with precision(_BITS) as arb:
        n = [arb(count) for count in counts or [1] * len(probs)]
        Q = [arb(value) for value in future or ["0"] * len(probs)]
        weights = [arb(value) for value in probs]
        p = _normalised(n, weights)
        d, step = direction(p), arb(alpha)
        q = _normalised(n, [value * (step * move).exp() for value, move in zip(p, d, strict=True)])
        before, after = (
            sum((c * v * (ahead - v.log()) for c, v, ahead in zip(n, values, Q, strict=True)), arb(0))
            for values in (p, q)
        )  # H + E[Q], which is also what S^tot adds to log p − Q
        slope = sum(
            (c * v * (before + v.log() - ahead) * move for c, v, ahead, move in zip(n, p, Q, d, strict=True)), arb(0)
        )
        return StepEnclosure(-step * slope, after - before)


def _normalised(counts: Sequence[Ball], weights: Sequence[Ball]) -> list[Ball]:
    total = sum(n * weight for n, weight in zip(counts, weights, strict=True))
    return [weight / total for weight in weights]


def _curvature(arb: Any, weights: Sequence[Ball], moves: Sequence[Ball], t: Ball) -> Ball:
    tilted = [weight * (t * move).exp() for weight, move in zip(weights, moves, strict=True)]
    total = sum(tilted, arb(0))
    probs = [value / total for value in tilted]
    logs = [prob.log() for prob in probs]
    H = -sum((p * log for p, log in zip(probs, logs, strict=True)), arb(0))
    mean = sum((p * move for p, move in zip(probs, moves, strict=True)), arb(0))
    return -sum((p * (d - mean) ** 2 * (1 + H + log) for p, d, log in zip(probs, moves, logs, strict=True)), arb(0))


def _down(ball: Ball) -> float:
    return float(np.nextafter(float(ball.lower()), -np.inf))


def _up(ball: Ball) -> float:
    return float(np.nextafter(float(ball.upper()), np.inf))
