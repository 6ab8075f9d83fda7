"""The definitions in arbitrary precision.

Slopes are central differences of the entropy itself, so no formula for the discriminant enters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp
import numpy as np

from entropy_theory.theory._policy import FloatArray

Number = Any  # mpmath.mpf, which has no type stubs
_DIFFERENCE_DIGITS = 15  # differences over five points of step 1e-15: an error of order 1e-60


def digits_for(logits: FloatArray) -> int:
    """Decimal digits that leave 50 after the worst cancellation: answers shrink as far as the square of p_min."""
    finite = logits[np.isfinite(logits)]
    return 50 + 2 * _DIFFERENCE_DIGITS + int(2.0 * np.ptp(finite) / np.log(10.0))


def exact(values: FloatArray) -> list[Number]:
    """The float64 values themselves, without rounding."""
    return [mp.mpf(float(value)) for value in values]


def probabilities(logits: Sequence[Number]) -> list[Number]:
    """p_i = e^{z_i} / Σ e^{z_j}."""
    weights = [mp.exp(z) for z in logits]
    total = mp.fsum(weights)
    return [weight / total for weight in weights]


def entropy(logits: Sequence[Number]) -> Number:
    """H = −Σ p log p."""
    return -mp.fsum(p * mp.log(p) for p in probabilities(logits) if p > 0)


def entropy_change(logits: Sequence[Number], delta: Sequence[Number]) -> Number:
    """H(softmax(z + δ)) − H(softmax(z))."""
    return entropy([z + d for z, d in zip(logits, delta, strict=True)]) - entropy(logits)


def entropy_slope(logits: Sequence[Number], direction: Sequence[Number]) -> Number:
    """Slope of the entropy along a direction of the logits."""
    return slopes(lambda t: [entropy([z + t * d for z, d in zip(logits, direction, strict=True)])])[0]


def probability_slopes(logits: Sequence[Number], token: int) -> list[Number]:
    """Slopes of all probabilities in one logit."""
    return slopes(lambda t: probabilities([z + t * (i == token) for i, z in enumerate(logits)]))


def slopes(function: Callable[[Number], list[Number]]) -> list[Number]:
    """Slopes at 0 of every value of a function, by central differences over five points."""
    step = mp.mpf(10) ** -_DIFFERENCE_DIGITS
    values = [function(multiple * step) for multiple in (-2, -1, 1, 2)]
    return [(8 * (c - b) - (d - a)) / (12 * step) for a, b, c, d in zip(*values, strict=True)]


def unit(size: int, token: int) -> list[Number]:
    """The direction e_k."""
    return [mp.mpf(int(i == token)) for i in range(size)]


def policy_gradient(logits: Sequence[Number], token: int) -> list[Number]:
    """The direction e_k − p."""
    return [e - p for e, p in zip(unit(len(logits), token), probabilities(logits), strict=True)]


def relative_error(value: float, reference: Number) -> float:
    """|value − reference| / |reference|; a reference below what the working precision resolves counts as 0 ± that."""
    # Where the answer is exactly 0 the reference is what the differences leave, some 1e-60 of the largest answers.
    floor = mp.mpf(10) ** -(mp.mp.dps - 40)
    # Below the smallest normal float64 nothing can be relative any more.
    scale = max(abs(reference), floor, mp.mpf(2.3e-308))
    return float(abs(mp.mpf(float(value)) - reference) / scale)


def entropy_curvature(logits: Sequence[Number], direction: Sequence[Number]) -> Number:
    """Second derivative of the entropy along a direction, by central differences over five points.

    The step is 1e-15 and the working precision is raised, so the error is of order 1e-60 of the fourth derivative.
    """
    digits = mp.mp.dps
    with mp.workdps(digits + 2 * _DIFFERENCE_DIGITS + 60):
        step = mp.mpf(10) ** -(_DIFFERENCE_DIGITS + 10)
        a, b, c, d, e = (
            entropy([z + n * step * v for z, v in zip(logits, direction, strict=True)]) for n in (-2, -1, 0, 1, 2)
        )
        return (-a + 16 * b - 30 * c + 16 * d - e) / (12 * step**2)
