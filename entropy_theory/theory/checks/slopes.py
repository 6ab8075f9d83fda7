"""Checks that fit the order of a remainder: |exact − first order| must fall with the square of the step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from entropy_theory.theory import categorical, discriminant
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.checks.policies import (
    plain_entropy,
    plain_log,
    plain_softmax,
    random_logits,
    trial_logits,
    trial_tokens,
)
from entropy_theory.theory.evidence import Budget, Evidence

# Two decades. At 1e-5 the remainder is still 1e5 times the round-off of the exact change; at 1e-3 the third order is
# a thousandth of the second.
STEPS = np.geomspace(1e-5, 1e-3, 9)
EXPECTED, TOLERANCE = 2.0, 0.02
WIDE = 151_936
LARGEST_GAP = 100.0  # beyond, the remainder of a step of 1e-5 leaves the float64 range

Tokens = NDArray[np.int64]
Directions = Callable[[FloatArray, Tokens, np.random.Generator], FloatArray]
Remainder = Callable[[FloatArray, Tokens, FloatArray, float], FloatArray]


def single_logit(budget: Budget) -> Evidence:
    """Theorem 3.2: ΔH + ε S_k for δz = ε e_k."""

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        return exact + step * discriminant.discriminant(logits, tokens)

    return _fit(budget, _unit_directions, remainder)


def grpo_step(budget: Budget) -> Evidence:
    """Theorem 3.3: ΔH + α (S_k − N) for δz = α (e_k − p)."""

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        return exact + step * discriminant.centered_discriminant(logits, tokens)

    return _fit(budget, _policy_gradients, remainder)


def any_direction(budget: Budget) -> Evidence:
    """Section B.1: ΔH + t Σ S_i d_i for δz = t d, d random."""

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        return exact - discriminant.first_order_change(logits, direction, step)

    return _fit(budget, _random_directions, remainder)


def probabilities(budget: Budget) -> Evidence:
    """Lemma 3.1: the change of all probabilities minus ε p_k (e_k − p)."""

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        centred = logits - logits.max(axis=-1, keepdims=True)  # so that an offset does not swallow the step
        probs = np.exp(categorical.log_softmax(centred))
        moved = np.exp(categorical.log_softmax(centred + step * direction))
        at_token = np.take_along_axis(probs, tokens[:, np.newaxis], axis=-1)
        first = step * at_token * discriminant.grpo_direction(centred, tokens)
        result: FloatArray = np.abs(moved - probs - first).sum(axis=-1)
        return result

    # A difference of probabilities rounds at 1e-16 of 1, so the steps are ten times larger and nothing is divided out:
    # policies that hardly move must not fill the fit with round-off.
    return _fit(budget, _unit_directions, remainder, steps=10.0 * STEPS, normalised=False)


def _unit_directions(logits: FloatArray, tokens: Tokens, rng: np.random.Generator) -> FloatArray:
    return (np.arange(logits.shape[-1]) == tokens[:, np.newaxis]).astype(np.float64)


def _policy_gradients(logits: FloatArray, tokens: Tokens, rng: np.random.Generator) -> FloatArray:
    return discriminant.grpo_direction(logits, tokens)


def _random_directions(logits: FloatArray, tokens: Tokens, rng: np.random.Generator) -> FloatArray:
    return rng.normal(size=logits.shape)


def _sizes(logits: FloatArray, direction: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Summed sizes of the terms of first order, Σ p |δ u|, and of second, Σ p δ² (1 + |u|), with δ = d − E_p[d]."""
    probs = plain_softmax(logits)
    excess = np.abs(plain_log(probs) + plain_entropy(probs)[..., np.newaxis])
    anchor = np.take_along_axis(direction, logits.argmax(axis=-1)[:, np.newaxis], axis=-1)
    relative = direction - anchor
    centred = np.abs(relative - (probs * relative).sum(axis=-1, keepdims=True))
    return (probs * centred * excess).sum(axis=-1), (probs * centred**2 * (1.0 + excess)).sum(axis=-1)


def _fit(
    budget: Budget, directions: Directions, remainder: Remainder, *, steps: FloatArray = STEPS, normalised: bool = True
) -> Evidence:
    """Fit the slope of the root mean square remainder, and its 95 % interval over resampled policies."""
    rng = np.random.default_rng(budget.seed)
    rows: list[FloatArray] = []
    left_out = 0
    for vocab_size in (*budget.vocab_sizes, WIDE):
        count = max(1, min(budget.policies, budget.entries // vocab_size))
        draw = random_logits if vocab_size == WIDE else partial(trial_logits, largest_gap=LARGEST_GAP)
        logits = draw(vocab_size, count, rng)
        for tokens in trial_tokens(logits, rng):
            direction = directions(logits, tokens, rng)
            left = np.stack([remainder(logits, tokens, direction, float(step)) for step in steps], axis=-1)
            if normalised:
                # So that every policy weighs alike. On a nearly one-hot one a GRPO step's second order can lie below
                # the round-off of its first: such rays say nothing about the order and are left out.
                first, second = _sizes(logits, direction)
                kept = second * steps[0] > 1e4 * np.finfo(np.float64).eps * first
                left = left[kept] / second[kept, np.newaxis]
                left_out += int((~kept).sum())
            rows.append(left)
    squares = np.concatenate(rows) ** 2
    slope = _slope(steps, squares.mean(axis=0))
    resampled = [_slope(steps, squares[rng.integers(len(squares), size=len(squares))].mean(axis=0)) for _ in range(200)]
    interval = 1.96 * float(np.std(resampled))
    passed = abs(slope - EXPECTED) <= TOLERANCE  # False for NaN
    return Evidence(
        passed,
        f"log |exact − first order| against log step over {len(squares)} rays, V up to {WIDE}",
        {
            "slope": slope,
            "interval": interval,
            "expected": f"{EXPECTED:.2f} ± {TOLERANCE:.2f}",
            "rays": len(squares),
            "rays_below_round_off": left_out,
            "steps": [float(steps[0]), float(steps[-1])],
            "vocab_sizes": [*budget.vocab_sizes, WIDE],
        },
    )


def _slope(steps: FloatArray, mean_squares: FloatArray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):  # a remainder of exactly 0 has no slope: NaN fails the check
        return float(np.polyfit(np.log(steps), 0.5 * np.log(mean_squares), 1)[0])
