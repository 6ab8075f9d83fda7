"""Independent oracles for the tests: definitions in many digits, automatic differentiation, fitted slopes.

Nothing here imports the package. Each quantity is written as the paper defines it, or obtained by differentiating the
entropy, so that agreement with the package is evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np
import torch

Number = Any  # mpmath.mpf


def working_digits(logits: np.ndarray) -> int:
    """Digits that leave 50 when answers are as small as p_min squared."""
    finite = np.asarray(logits, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return 90 + int(2.0 * (finite.max() - finite.min()) / np.log(10.0))


@dataclass(frozen=True)
class ExactPolicy:
    """A softmax policy in many digits; tokens may stand for several equal ones."""

    probs: tuple[Number, ...]
    counts: tuple[int, ...]
    digits: int

    @classmethod
    def of(cls, logits: np.ndarray, counts: tuple[int, ...] | None = None) -> ExactPolicy:
        values = np.asarray(logits, dtype=np.float64)
        digits = working_digits(values)
        counts = counts or (1,) * len(values)
        with mp.workdps(digits):
            return cls.of_exact([mp.mpf(float(z)) for z in values], counts, digits)

    @classmethod
    def of_exact(cls, logits: list[Number], counts: tuple[int, ...], digits: int) -> ExactPolicy:
        weights = [mp.exp(z) for z in logits]
        total = mp.fsum(n * w for n, w in zip(counts, weights, strict=True))
        return cls(tuple(w / total for w in weights), counts, digits)

    def total(self, function: Any) -> Number:
        return mp.fsum(n * function(p) for n, p in zip(self.counts, self.probs, strict=True) if p > 0)

    @property
    def entropy(self) -> Number:
        with mp.workdps(self.digits):
            return -self.total(lambda p: p * mp.log(p))

    @property
    def discriminants(self) -> list[Number]:
        """S_i = p_i (H + log p_i), as the paper writes it."""
        with mp.workdps(self.digits):
            H = self.entropy
            return [p * (H + mp.log(p)) if p > 0 else mp.mpf(0) for p in self.probs]

    @property
    def baseline(self) -> Number:
        """N = Σ p_i S_i, as the paper writes it."""
        with mp.workdps(self.digits):
            H = self.entropy
            return self.total(lambda p: p * p * (H + mp.log(p)))


def exact_entropy_change(logits: np.ndarray, delta: np.ndarray, counts: tuple[int, ...] | None = None) -> Number:
    """H(softmax(z + δ)) − H(softmax(z)) of the float64 values given, in many digits."""
    counts = counts or (1,) * len(logits)
    digits = max(working_digits(np.asarray(logits)), working_digits(np.asarray(logits) + np.asarray(delta)))
    with mp.workdps(digits):
        z = [mp.mpf(float(value)) for value in logits]
        moved = [value + mp.mpf(float(step)) for value, step in zip(z, delta, strict=True)]
        after, before = (ExactPolicy.of_exact(values, counts, digits).entropy for values in (moved, z))
        return after - before


def relative_error(value: float, reference: Number) -> float:
    """|value − reference| / |reference|, with 0 for an exact 0 and for what float64 cannot hold."""
    error = abs(mp.mpf(float(value)) - reference)
    scale = max(abs(reference), mp.mpf(2.3e-308))
    return float(error / scale)


def autograd_entropy_gradient(logits: np.ndarray) -> np.ndarray:
    """∂H/∂z by reverse-mode automatic differentiation in float64; logits (..., V), finite."""
    z = torch.tensor(np.asarray(logits, dtype=np.float64), requires_grad=True)
    log_probs = torch.log_softmax(z, dim=-1)
    H = -(log_probs.exp() * log_probs).sum()
    (gradient,) = torch.autograd.grad(H, z)
    return gradient.numpy()


def fitted_slope(steps: np.ndarray, remainders: np.ndarray) -> float:
    """Slope of log |remainder| against log |step|, by least squares."""
    return float(np.polyfit(np.log(np.abs(steps)), np.log(np.abs(remainders)), 1)[0])


def exact_curvature(logits: np.ndarray, direction: list[Number], digits: int) -> Number:
    """Second derivative of the entropy along a direction, by central differences over five points in many digits."""
    with mp.workdps(digits):
        z = [mp.mpf(float(value)) for value in logits]
        step = mp.mpf(10) ** -(digits // 5)

        def entropy(t: int) -> Number:
            moved = [value + t * step * d for value, d in zip(z, direction, strict=True)]
            return ExactPolicy.of_exact(moved, (1,) * len(z), digits).entropy

        return (-entropy(2) + 16 * entropy(1) - 30 * entropy(0) + 16 * entropy(-1) - entropy(-2)) / (12 * step**2)


def exact_grpo_direction(logits: np.ndarray, token: int, digits: int) -> list[Number]:
    """e_k − p in many digits."""
    with mp.workdps(digits):
        probs = ExactPolicy.of_exact([mp.mpf(float(z)) for z in logits], (1,) * len(logits), digits).probs
        return [(i == token) - p for i, p in enumerate(probs)]
