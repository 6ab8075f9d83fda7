"""Data for the pictures of the step bound, of the pass rate and of the contexts that an update shifts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from entropy_theory.theory import categorical, discriminant, finite_steps
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.on_policy import END, SequenceTree, on_policy_entropy, on_policy_gradient


@dataclass(frozen=True)
class BoundedRay:
    """One GRPO ray of both signs, with the bound of section T1.

    Attributes:
        probs: The policy; the first token is sampled.
        score: Its centred discriminant: positive where a step α > 0 is predicted to lower entropy.
        steps: Step sizes α, shape (m,).
        change: Exact ΔH, shape (m,), nats.
        bound: Upper bound of ΔH, shape (m,), nats.
    """

    probs: FloatArray
    score: float
    steps: FloatArray
    change: FloatArray
    bound: FloatArray


@dataclass(frozen=True)
class PassRateCurve:
    """Entropy of one policy as it is sharpened on right answers.

    Attributes:
        right_entropy: Entropy given a right answer, nats.
        wrong_entropy: Entropy given a wrong answer, nats.
        rates: Pass rates, shape (m,).
        entropy: Entropy of the whole policy at each, shape (m,), nats.
        peak: Pass rate at which entropy is largest, σ(H_right − H_wrong).
        peak_entropy: Entropy there, log(e^H_right + e^H_wrong).
    """

    right_entropy: float
    wrong_entropy: float
    rates: FloatArray
    entropy: FloatArray
    peak: float
    peak_entropy: float


@dataclass(frozen=True)
class ShiftedContexts:
    """Token-mean entropy with and without the shift of contexts.

    Attributes:
        steps: Step sizes α of the constructed example, shape (m,).
        fixed: Change on the contexts that were visited before the step, shape (m,), nats.
        total: Change of on-policy mean entropy, shape (m,), nats.
        fixed_slope: Slope of `fixed` at α = 0.
        total_slope: Slope of `total` at α = 0.
        fixed_slopes: The same for steps on the first token of random trees, shape (n,).
        total_slopes: Shape (n,).
    """

    steps: FloatArray
    fixed: FloatArray
    total: FloatArray
    fixed_slope: float
    total_slope: float
    fixed_slopes: FloatArray
    total_slopes: FloatArray


def bounded_rays(reach: float = 12.0, count: int = 121) -> list[BoundedRay]:
    """Follow three GRPO rays from α = −reach to α = reach: exact change of entropy, and its bound.

    T1 in part D of the theory notes.

    Args:
        reach: Largest |α|.
        count: Number of step sizes.

    Example:
        >>> all((ray.change <= ray.bound + 1e-12).all() for ray in bounded_rays(count=25))
        True
    """
    steps = np.linspace(-reach, reach, count)
    rays = []
    for probs in ([0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1]):
        logits = np.log(probs)
        direction = discriminant.grpo_direction(logits, 0)
        change = categorical.entropy_change(logits, steps[:, np.newaxis] * direction)
        score = float(discriminant.centered_discriminant(logits, 0))
        bound = finite_steps.step_bound(logits, 0, steps)
        rays.append(BoundedRay(np.asarray(probs), score, steps, np.asarray(change), bound))
    return rays


def pass_rate_curves(count: int = 201) -> list[PassRateCurve]:
    """Sharpen three policies on right answers: as varied as wrong ones, less varied, more varied.

    T4 in part D of the theory notes. The peak is computed apart from the curve.

    Args:
        count: Number of pass rates.

    Example:
        >>> [round(curve.peak, 3) for curve in pass_rate_curves()]
        [0.5, 0.119, 0.881]
    """
    rates = np.linspace(0.0, 1.0, count)
    return [
        PassRateCurve(
            right,
            wrong,
            rates,
            finite_steps.pass_rate_entropy(rates, right, wrong),
            float(1.0 / (1.0 + np.exp(wrong - right))),
            float(np.logaddexp(right, wrong)),
        )
        for right, wrong in ((4.0, 4.0), (2.0, 4.0), (4.0, 2.0))
    ]


def shifted_contexts(count: int = 400, seed: int = 0) -> ShiftedContexts:
    """Compute the part of a step that acts on fixed contexts, and the whole, where the two have opposite signs.

    Part F of the theory notes. In the constructed example the first of two tokens is uniform, and the contexts that it
    leads to have entropy log 2 and .05.

    Args:
        count: Number of random trees of seven contexts and two tokens, each with a step on one first token.
        seed: Seed of the draw.

    Example:
        >>> shift = shifted_contexts(count=10)
        >>> at_1 = int(np.argmin(abs(shift.steps - 1.0)))
        >>> print(f"{shift.fixed[at_1]:+.3f} {shift.total[at_1]:+.3f}")
        -0.055 +0.019
    """
    tree = SequenceTree(np.array([[1, 2], [END, END], [END, END]]))
    logits = np.zeros((3, 2))
    logits[2, 0] = -4.7341918  # entropy .05
    direction = np.zeros_like(logits)
    direction[0] = discriminant.grpo_direction(logits[0], 0)
    steps = np.linspace(-3.0, 3.0, 121)
    total = [on_policy_entropy(tree, logits + step * direction) - on_policy_entropy(tree, logits) for step in steps]
    moved = categorical.entropy_change(logits[0], steps[:, np.newaxis] * direction[0])
    slopes = _slopes(tree, logits, direction)

    rng = np.random.default_rng(seed)
    deep = SequenceTree(np.array([[1, 2], [3, 4], [5, 6], *[[END, END]] * 4]))
    drawn = []
    for _ in range(count):
        rows = rng.normal(size=deep.following.shape) * 2.0
        along = np.zeros_like(rows)
        along[0] = discriminant.grpo_direction(rows[0], rng.integers(2))
        drawn.append(_slopes(deep, rows, along))
    fixed_slopes, total_slopes = np.array(drawn).T
    # Every sequence has two tokens, so the first one is half of the token mean.
    return ShiftedContexts(steps, np.asarray(moved) / 2.0, np.array(total), *slopes, fixed_slopes, total_slopes)


def _slopes(tree: SequenceTree, logits: FloatArray, direction: FloatArray) -> tuple[float, float]:
    fixed, shift = on_policy_gradient(tree, logits)
    kept = float((fixed * direction).sum())
    return kept, kept + float((shift * direction).sum())
