"""One moved logit, for every policy of every vocabulary: its sign law, and where the first order is accurate."""

from __future__ import annotations

from typing import Any

from entropy_theory.errors import invalid
from entropy_theory.theory.certificates.balls import (
    Ball,
    Box,
    Certificate,
    branch_and_bound,
    flint,
    interval,
    joined,
    precision,
)


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
        p = interval(arb, p_low, p_high)
        step = interval(arb, low, high)
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
    return branch_and_bound(((0.0, largest_step), (0.0, 1.0)), holds, region)


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
        p, step = interval(arb, p_low, p_high), interval(arb, low, high)
        g, k = _means_by_series(arb, p, step)
        tilt = step / arb(kappa) * k
        inside = g - tilt > least and g + tilt > least and g - tilt < most and g + tilt < most
        return "value" if inside else None

    region = f"every policy of every V with |x| >= {kappa:g} and |step| <= {largest_step:g}"
    halves = (((-largest_step, 0.0), (0.0, 1.0)), ((0.0, largest_step), (0.0, 1.0)))
    parts = [branch_and_bound(half, holds, region) for half in halves]
    return joined(parts, region)


def accuracy_fails(kappa: float, step: float, prob: float = 1e-9) -> bool:
    """Whether, rigorously, one policy with x = κ breaks the 10 % at the step −|ε|: that ε₀ cannot be larger.

    The policy has the given probability and H_rest = κ − logit p, which some vocabulary has.

    Args:
        kappa: κ.
        step: |ε|.
        prob: Probability of the token.
    """
    with precision(128) as arb:
        p, e = arb(prob), -arb(abs(step))
        u = e.exp() - 1
        D = 1 + p * u
        divergence = e * p * e.exp() / D - D.log()
        score = p * (1 - p) * arb(kappa)
        truth = -(u / D) * score - divergence
        return bool(abs(-e * score - truth) > abs(truth) / 10)


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
