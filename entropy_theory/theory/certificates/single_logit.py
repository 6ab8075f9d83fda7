"""Rigorous enclosures by ball arithmetic: what is certified holds for every real number of a stated region.

Needs python-flint (the extra `certify`), loaded when a certificate is first asked for. A statement is certified on a
box by branch and bound: the box is halved until an enclosure of the statement, wider than the truth by what rounding
and the width of the box add, decides each part. Where the statement touches a zero, an enclosure of its derivative
there decides; no part is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from entropy_theory.errors import invalid, missing_extra
from entropy_theory.theory._policy import as_direction, as_logits

Ball = Any  # flint.arb, which has no type stubs
Box = tuple[tuple[float, float], ...]
_BITS = 128  # for one policy, where sums over tokens cancel


@dataclass(frozen=True)
class Certificate:
    """Outcome of a branch and bound.

    Attributes:
        certified: Whether every part of the region was decided.
        region: The region, in words and numbers.
        parts: Boxes that were decided, or shown to lie outside the assumptions.
        by_derivative: Those decided by the derivative, next to a zero of the statement.
        undecided: A box that stayed open, if any.
    """

    certified: bool
    region: str
    parts: int
    by_derivative: int
    undecided: Box | None


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


def flint() -> Any:
    """Load python-flint, or raise the ImportError that names the extra.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return import_module("flint")
    except ImportError:
        raise missing_extra("python-flint", "certify") from None


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
    module = flint()
    arb, context = module.arb, module.ctx
    before, context.prec = context.prec, _BITS
    try:
        possible = np.isfinite(z)
        weights = [arb(float(value)).exp() for value in z[possible] - z.max()]
        moves = [arb(float(value)) for value in d[possible]]
        first, last = min(0.0, float(start)), max(0.0, float(end))
        edges = np.linspace(first, last, pieces + 1)
        edges[0], edges[-1] = first, last
        hull = None
        for low, high in pairwise(edges):
            curvature = _curvature(arb, weights, moves, arb(float(low)).union(arb(float(high))))
            hull = curvature if hull is None else hull.union(curvature)
        return RemainderEnclosure(_down(hull), _up(hull), first, last)
    finally:
        context.prec = before


def _curvature(arb: Any, weights: Sequence[Ball], moves: Sequence[Ball], t: Ball) -> Ball:
    tilted = [weight * (t * move).exp() for weight, move in zip(weights, moves, strict=True)]
    total = sum(tilted, arb(0))
    probs = [value / total for value in tilted]
    logs = [prob.log() for prob in probs]
    H = -sum((p * log for p, log in zip(probs, logs, strict=True)), arb(0))
    mean = sum((p * move for p, move in zip(probs, moves, strict=True)), arb(0))
    return -sum((p * (d - mean) ** 2 * (1 + H + log) for p, d, log in zip(probs, moves, logs, strict=True)), arb(0))


def one_logit(largest_step: float = 10.0) -> Certificate:
    """Certify the sign law of one logit (section B.5) and the bound of its divergence, for every policy of every V.

    With w(t) = e^t/(1 + p (e^t − 1))², g = (1/ε) ∫₀^ε w and k = (1/ε²) ∫₀^ε s w, the exact law is
    ΔH = −ε p (1 − p)(x g + ε k). So the sign law is g > 0 and k > 0, whatever x, and the lemma is
    e^{−|ε|} ≤ 2k ≤ e^{|ε|}. At ε = 0 the lemma touches its zero: there |d log k/dε| < 1 decides.
    Only ε ≥ 0 is looked at, because exchanging p for 1 − p and ε for −ε changes neither g nor k.

    Args:
        largest_step: Largest |ε|.
    """
    arb = flint().arb

    def holds(box: Box) -> str | None:
        (low, high), (p_low, p_high) = box
        p = _interval(arb, p_low, p_high)
        step = _interval(arb, low, high)
        if low == 0.0:
            weight = _weight(arb, p, step)
            q = p * step.exp() / (1 + p * (step.exp() - 1))
            change = weight * (1 - 2 * q) / 3  # dk/dε
            return "derivative" if weight > 0 and abs(change) < weight / 2 else None
        _, k = _means(arb, p, step, max(12, int(4 * high)))
        # The exponential of the smaller step bounds both sides from within.
        bound = arb(low).exp()
        return "value" if k > 0 and 2 * k * bound > 1 and 2 * k < bound else None

    region = f"every policy of every V, |step| <= {largest_step:g}"
    return _branch_and_bound(((0.0, largest_step), (0.0, 1.0)), holds, region)


def first_order_accuracy(kappa: float, largest_step: float) -> Certificate:
    """Certify that Theorem 3.2 has the right sign and is within 10 % of the truth, for every policy of every V.

    Prediction over truth is 1/ρ with ρ = g + (ε/x) k. The claim is 1/1.1 ≤ ρ ≤ 1/0.9 for all 0 ≤ p ≤ 1, |ε| ≤ ε₀ and
    |x| ≥ κ; ρ is linear in 1/x, so its two ends are looked at.

    Args:
        kappa: κ, the least |x| = |logit p + H_rest|.
        largest_step: ε₀.
    """
    if not kappa > 0:
        raise invalid("kappa", "a number > 0", kappa)
    arb = flint().arb
    least, most = 1 / arb("1.1"), 1 / arb("0.9")

    def holds(box: Box) -> str | None:
        (low, high), (p_low, p_high) = box
        p, step = _interval(arb, p_low, p_high), _interval(arb, low, high)
        g, k = _means_by_series(arb, p, step)
        tilt = step / arb(kappa) * k
        inside = g - tilt > least and g + tilt > least and g - tilt < most and g + tilt < most
        return "value" if inside else None

    region = f"every policy of every V with |x| >= {kappa:g} and |step| <= {largest_step:g}"
    halves = (((-largest_step, 0.0), (0.0, 1.0)), ((0.0, largest_step), (0.0, 1.0)))
    parts = [_branch_and_bound(half, holds, region) for half in halves]
    return joined(parts, region)


def accuracy_fails(kappa: float, step: float, prob: float = 1e-9) -> bool:
    """Whether, rigorously, one policy with x = κ breaks the 10 % at the step −|ε|: that ε₀ cannot be larger.

    The policy has the given probability and H_rest = κ − logit p, which some vocabulary has.

    Args:
        kappa: κ.
        step: |ε|.
        prob: Probability of the token.
    """
    module = flint()
    arb, context = module.arb, module.ctx
    before, context.prec = context.prec, _BITS
    try:
        p, e = arb(prob), -arb(abs(step))
        u = e.exp() - 1
        D = 1 + p * u
        divergence = e * p * e.exp() / D - D.log()
        score = p * (1 - p) * arb(kappa)
        truth = -(u / D) * score - divergence
        return bool(abs(-e * score - truth) > abs(truth) / 10)
    finally:
        context.prec = before


def _weight(arb: Any, p: Ball, step: Ball) -> Ball:
    """Hull of w over steps from 0 to ε."""
    t = step.union(arb(0)).exp()
    return t / (1 - p + p * t) ** 2


def _means(arb: Any, p: Ball, step: Ball, pieces: int) -> tuple[Ball, Ball]:
    """Enclose g = ∫₀¹ w(εs) ds and k = ∫₀¹ s w(εs) ds, part by part."""
    g, k = arb(0), arb(0)
    for part in range(pieces):
        low, high = arb(part) / pieces, arb(part + 1) / pieces
        t = (step * low.union(high)).exp()
        weight = t / (1 - p + p * t) ** 2
        g += weight * (high - low)
        k += weight * (high**2 - low**2) / 2
    return g, k


def _means_by_series(arb: Any, p: Ball, step: Ball) -> tuple[Ball, Ball]:
    """Enclose the same g and k by Taylor's formula in ε, with the fourth derivative of w over the whole range.

    With W = q (1 − q), the derivatives of w relative to it are 1 − 2q, 1 − 6W, (1 − 2q)(1 − 12W), 1 − 30W + 120W².
    The enclosure narrows with the box, which parts of an integral do not.
    """
    W = p * (1 - p)
    t = step.union(arb(0)).exp()
    moved = p * t / (1 - p + p * t)
    W_moved = moved * (1 - moved)
    last = _weight(arb, p, step) * (1 - 30 * W_moved + 120 * W_moved**2)
    g, k, factorial = arb(0), arb(0), 1
    for order, slope in enumerate((arb(1), 1 - 2 * p, 1 - 6 * W, (1 - 2 * p) * (1 - 12 * W), last)):
        factorial *= max(order, 1)
        term = slope * step**order / factorial
        g += term / (order + 1)
        k += term / (order + 2)
    return g, k


def _interval(arb: Any, low: float, high: float) -> Ball:
    return arb(low).union(arb(high))


def _branch_and_bound(
    start: Box,
    holds: Callable[[Box], str | None],
    region: str,
    weights: Sequence[float] | None = None,
    most: int = 3_000_000,
) -> Certificate:
    """Halve boxes along their widest side until each is decided.

    Args:
        start: The whole region.
        holds: How a box was decided ("value", "derivative", "outside"), or None.
        region: The region in words.
        weights: Scale of each side, for choosing the widest; default: the sides of the start.
        most: Boxes looked at before giving up.
    """
    scale = weights or [high - low or 1.0 for low, high in start]
    stack, parts, by_derivative = [start], 0, 0
    for _ in range(most):
        if not stack:
            return Certificate(True, region, parts, by_derivative, None)
        box = stack.pop()
        outcome = holds(box)
        if outcome is not None:
            parts += 1
            by_derivative += outcome == "derivative"
            continue
        side = max(range(len(box)), key=lambda i: (box[i][1] - box[i][0]) / scale[i])
        low, high = box[side]
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return Certificate(False, region, parts, by_derivative, box)
        stack.append((*box[:side], (low, middle), *box[side + 1 :]))
        stack.append((*box[:side], (middle, high), *box[side + 1 :]))
    return Certificate(not stack, region, parts, by_derivative, stack[-1] if stack else None)


def joined(parts: Sequence[Certificate], region: str) -> Certificate:
    """Join certificates of several boxes into one of their union."""
    undecided = next((part.undecided for part in parts if part.undecided is not None), None)
    return Certificate(
        all(part.certified for part in parts),
        region,
        sum(part.parts for part in parts),
        sum(part.by_derivative for part in parts),
        undecided,
    )


def _down(ball: Ball) -> float:
    return float(np.nextafter(float(ball.lower()), -np.inf))


def _up(ball: Ball) -> float:
    return float(np.nextafter(float(ball.upper()), np.inf))
