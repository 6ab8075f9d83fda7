"""The one-sided sign theorem certified directly on boxes of policies and steps, for two and for three tokens.

Its proof is not used. With y_ij = (z_i − z_j) + t (d_i − d_j) the gap of the moved logits and e_ij = d_i − d_j,

    S_c = Σ_{i<j} p_i p_j e_ij (z_i − z_j),   H'(t) = −Σ_{i<j} q_i q_j e_ij y_ij,
    H''(t) = −Σ_{i<j} q_i q_j e_ij [(δ_i + δ_j) y_ij + e_ij],   δ_i = d_i − E_q[d].

A box of logits and t is decided when no fall is predicted anywhere in it, or entropy falls everywhere in it, or, where
both vanish (S_c = 0 at t = 0), the second derivative is negative from 0 to t.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from entropy_theory.theory.certificates.balls import Ball, Box, Certificate, branch_and_bound, flint, interval, joined

_ALIKE = 0.2  # logits closer than this are treated as nearly equal


@dataclass(frozen=True)
class _Pair:
    """Two tokens: e = d_i − d_j, the gap z_i − z_j, and for two others that are alike e = −gap · mean."""

    i: int
    j: int
    e: Ball
    gap: Ball
    mean: Ball | None
    square: Ball | None

    def product(self, step: Ball) -> Ball:
        """Enclose e_ij y_ij at a step; for two of the others that are alike it is gap² m (t m − 1)."""
        if self.mean is None:
            return self.e * (self.gap + step * self.e)
        return self.square * self.mean * (step * self.mean - 1)


def sign_theorem_two_tokens(largest_gap: float = 20.0, largest_step: float = 50.0) -> Certificate:
    """Certify the theorem at V = 2: gaps of the two logits and steps up to the given sizes."""
    region = f"V = 2, |z_1 - z_2| <= {largest_gap:g}, |alpha| <= {largest_step:g}"
    boxes = [
        ((-largest_gap, largest_gap), (0.0, largest_step)),
        ((-largest_gap, largest_gap), (-largest_step, 0.0)),
    ]
    return joined([branch_and_bound(box, _holds, region, [1.0, 2.0]) for box in boxes], region)


def sign_theorem_three_tokens(
    largest_gap: float = 2.0, largest_step: float = 3.0, workers: int | None = None
) -> Certificate:
    """Certify the theorem at V = 3: gaps of the others' logits to the sampled token's, and steps, up to given sizes.

    The two other tokens are interchangeable: half the square of gaps is enough.

    Args:
        largest_gap: Largest |z_i − z_k|.
        largest_step: Largest |α|.
        workers: Processes; default: up to two.
    """
    region = f"V = 3, |z_i - z_k| <= {largest_gap:g}, |alpha| <= {largest_step:g}"
    cells = 8
    edges = [largest_gap * (2.0 * n / cells - 1.0) for n in range(cells + 1)]
    sides = list(pairwise(edges))
    boxes: list[Box] = [
        (sides[i], sides[j], steps)
        for i in range(cells)
        for j in range(i, cells)
        for steps in ((0.0, largest_step), (-largest_step, 0.0))
    ]
    workers = min(2, os.cpu_count() or 1) if workers is None else workers
    if workers == 1:
        return joined([_certify(box) for box in boxes], region)
    with ProcessPoolExecutor(max_workers=workers) as pool:
        return joined(list(pool.map(_certify, boxes)), region)


def _certify(box: Box) -> Certificate:
    return branch_and_bound(box, _holds, "", [1.0, 1.0, 2.0])


def _holds(box: Box) -> str | None:
    """Decide one box: gaps of the other tokens' logits to the sampled one's, then the step."""
    arb = flint().arb
    *gaps, (start, end) = box
    logits = [arb(0), *(interval(arb, *gap) for gap in gaps)]
    size = len(logits)
    probs = [_share(logits, i) for i in range(size)]
    # Differences d_i − d_j of d = e_k − p, k first; 1 − p_k + p_j is the sum of the other probabilities, p_j twice.
    pairs: list[_Pair] = []
    for j in range(1, size):
        e = sum((probs[i] for i in range(1, size) if i != j), 2 * probs[j])
        pairs.append(_Pair(0, j, e, -logits[j], None, None))
    for i in range(1, size):
        for j in range(i + 1, size):
            # p_j − p_i = v m with v = z_j − z_i and m = p_i (e^v − 1)/v, a mean of p_i e^s over s from 0 to v.
            low, high = gaps[j - 1][0] - gaps[i - 1][1], gaps[j - 1][1] - gaps[i - 1][0]
            if max(-low, high) > _ALIKE:
                pairs.append(_Pair(i, j, probs[j] - probs[i], -interval(arb, low, high), None, None))
                continue
            mean = probs[i] * interval(arb, min(low, 0.0), max(high, 0.0)).exp()
            least = 0.0 if low <= 0.0 <= high else min(low**2, high**2)
            square = arb(least).union(arb(max(low**2, high**2)))
            pairs.append(_Pair(i, j, probs[j] - probs[i], -interval(arb, low, high), mean, square))
    score = sum((probs[pair.i] * probs[pair.j] * pair.product(arb(0)) for pair in pairs), arb(0))
    forward = end > 0.0
    if (score < 0) if forward else (score > 0):
        return "outside"
    step = interval(arb, start, end)
    slope = _slope(arb, logits, probs, pairs, step)[0]
    if (slope < 0) if forward else (slope > 0):
        return "value"
    if start == 0.0 or end == 0.0:
        return "derivative" if _slope(arb, logits, probs, pairs, step, curvature=True)[1] < 0 else None
    whole = step.union(arb(0))
    if abs(end - start) >= 0.5 * max(abs(start), abs(end)):  # near 0 only: the hull with 0 is wide elsewhere
        return "derivative" if _slope(arb, logits, probs, pairs, whole, curvature=True)[1] < 0 else None
    return None


def _share(logits: Sequence[Ball], token: int) -> Ball:
    """Softmax of one token, each logit entering once."""
    return 1 / sum((((other - logits[token]).exp()) for i, other in enumerate(logits) if i != token), logits[0] * 0 + 1)


def _slope(
    arb: Any,
    logits: Sequence[Ball],
    probs: Sequence[Ball],
    pairs: Sequence[_Pair],
    step: Ball,
    curvature: bool = False,
) -> tuple[Ball, Ball]:
    """Enclose H' and, on request, H'' along the ray."""
    moved = {(pair.i, pair.j): pair.gap + step * pair.e for pair in pairs}
    size = len(logits)
    q = []
    for token in range(size):
        ratios = arb(1)
        for other in range(size):
            if other != token:
                gap = -moved[token, other] if token < other else moved[other, token]
                ratios += gap.exp()
        q.append(1 / ratios)
    slope = -sum((q[pair.i] * q[pair.j] * pair.product(step) for pair in pairs), arb(0))
    if not curvature:
        return slope, slope
    spread = [arb(0)] * size  # δ_i = Σ_j q_j (d_i − d_j)
    for pair in pairs:
        spread[pair.i] = spread[pair.i] + q[pair.j] * pair.e
        spread[pair.j] = spread[pair.j] - q[pair.i] * pair.e
    bend = -sum(
        (
            q[i] * q[j] * pair.e * ((spread[i] + spread[j]) * moved[i, j] + pair.e)
            for pair in pairs
            for i, j in ((pair.i, pair.j),)
        ),
        arb(0),
    )
    return slope, bend
