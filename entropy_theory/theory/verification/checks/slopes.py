"""Checks that fit the order of a remainder: |exact − order n| must fall with the power n + 1 of the step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from entropy_theory.theory import categorical, curvature, discriminant, updates
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.verification.checks.policies import (
    plain_entropy,
    plain_log,
    plain_softmax,
    random_logits,
    trial_logits,
    trial_tokens,
)
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

order = partial(check, Kind.CONVERGENCE_ORDER)

# Two decades. At 1e-5 the remainder is still 1e5 times the round-off of the exact change; at 1e-3 the third order is
# a thousandth of the second.
STEPS = np.geomspace(1e-5, 1e-3, 9)
TOLERANCE = 0.02
WIDE = 151_936
LARGEST_GAP = 100.0  # beyond, the remainder of a step of 1e-5 leaves the float64 range

Tokens = NDArray[np.int64]
Directions = Callable[[FloatArray, Tokens, np.random.Generator], FloatArray]
Remainder = Callable[[FloatArray, Tokens, FloatArray, float], FloatArray]


@order("remainder of one logit", discriminant.discriminant)
def single_logit(budget: Budget) -> Evidence:
    """Theorem 3.2: ΔH + ε S_k for δz = ε e_k."""

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        return exact + step * discriminant.discriminant(logits, tokens)

    return fit(budget, _unit_directions, remainder)


@order("remainder of a GRPO step", discriminant.centered_discriminant)
def grpo_step(budget: Budget) -> Evidence:
    """Theorem 3.3: ΔH + α (S_k − N) for δz = α (e_k − p)."""

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        return exact + step * discriminant.centered_discriminant(logits, tokens)

    return fit(budget, _policy_gradients, remainder)


@order("remainder along random directions", discriminant.first_order_change)
def any_direction(budget: Budget) -> Evidence:
    """Section B.1: ΔH + t Σ S_i d_i for δz = t d, d random."""

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        return exact - discriminant.first_order_change(logits, direction, step)

    return fit(budget, _random_directions, remainder)


@order("remainder of a bonus", updates.entropy_bonus_change)
def entropy_bonus(budget: Budget) -> Evidence:
    """Section B.11: ΔH − β Σ S² for δz = −β S, S as the paper writes it."""

    def directions(logits: FloatArray, tokens: Tokens, rng: np.random.Generator) -> FloatArray:
        probs = plain_softmax(logits)
        return -probs * (plain_log(probs) + plain_entropy(probs)[..., np.newaxis])

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        return exact - updates.entropy_bonus_change(logits, step)

    return fit(budget, directions, remainder, largest_gap=5.0)


@order("remainder of the expected update", updates.expected_change)
def expected_update(budget: Budget) -> Evidence:
    """Section B.9: ΔH + η Cov_p(A, S) for the expected policy gradient; here A is the direction's own draw."""
    drawn: dict[int, FloatArray] = {}

    def directions(logits: FloatArray, tokens: Tokens, rng: np.random.Generator) -> FloatArray:
        probs, advantages = plain_softmax(logits), rng.normal(size=logits.shape)
        drawn[0] = advantages
        relative = advantages - np.take_along_axis(advantages, logits.argmax(axis=-1)[:, np.newaxis], axis=-1)
        return probs * (relative - (probs * relative).sum(axis=-1, keepdims=True))

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        return categorical.entropy_change(logits, step * direction) - updates.expected_change(logits, drawn[0], step)

    return fit(budget, directions, remainder, largest_gap=5.0)


@order("remainder of a step on random linear models", updates.output_matrix_change)
def output_matrix(budget: Budget) -> Evidence:
    """Section B.15: a step on the output matrix of a small linear model, the entropies of all positions after it."""
    rng = np.random.default_rng(budget.seed)
    rows = []
    for _ in range(max(4, budget.policies // 5)):
        positions, width, vocab_size = 6, 4, int(rng.choice([3, 17, 200]))
        hidden, matrix = rng.normal(size=(positions, width)), rng.normal(size=(vocab_size, width))
        tokens, weights = rng.integers(vocab_size, size=positions), rng.normal(size=positions)
        logits = hidden @ matrix.T
        gradient = (
            weights[:, np.newaxis] * ((np.arange(vocab_size) == tokens[:, np.newaxis]) - plain_softmax(logits))
        ).T
        move = hidden @ (gradient @ hidden).T
        for_steps = [
            categorical.entropy_change(logits, step * move)
            - updates.output_matrix_change(logits, hidden, tokens, weights, float(step))
            for step in STEPS / 10.0  # positions share one matrix: moves are ten times those of one logit
        ]
        rows.append(np.stack(for_steps, axis=-1))
    return fitted(
        budget,
        STEPS / 10.0,
        np.concatenate(rows),
        2,
        "random linear models: 6 positions, 4 hidden dimensions, V in 3, 17, 200",
    )


def fitted(budget: Budget, steps: FloatArray, remainders: FloatArray, order: int, region: str) -> Evidence:
    """Fit the slope of root mean square remainders, one row per case, and its 95 % interval over resampled rows."""
    slope, interval = _slope_and_interval(steps, remainders**2, np.random.default_rng(budget.seed))
    return Evidence(
        abs(slope - order) <= TOLERANCE,
        f"log |exact − order {order - 1}| against log step over {len(remainders)} cases",
        {
            "slope": slope,
            "interval": interval,
            "expected": f"{order:.2f} ± {TOLERANCE:.2f}",
            "rays": len(remainders),
            "steps": [float(steps[0]), float(steps[-1])],
            "region": region,
        },
    )


# The third order needs larger steps to stay above the round-off of the first; at 1e-2 the fourth is a hundredth of it.
THIRD_ORDER_STEPS = np.geomspace(1e-4, 1e-2, 9)
THIRD_ORDER_TOLERANCE = 0.05


@order("remainder of one logit, third order", curvature.second_order_change)
def second_order_single_logit(budget: Budget) -> Evidence:
    """Sections B.4 and B.6: ΔH minus the second-order change, for δz = ε e_k."""
    return _third_order(budget, _unit_directions)


@order("remainder along random directions, third order", curvature.second_order_change)
def second_order_any_direction(budget: Budget) -> Evidence:
    """Section B.6: ΔH minus the second-order change, along random directions."""
    return _third_order(budget, _random_directions)


@order("remainder of a GRPO step, third order", curvature.grpo_curvature)
def second_order_grpo(budget: Budget) -> Evidence:
    """Section B.7: ΔH + α S_c − ½ α² H'' for δz = α (e_k − p)."""

    def remainder(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        first = exact + step * discriminant.centered_discriminant(logits, tokens)
        return first - 0.5 * step**2 * curvature.grpo_curvature(logits, tokens)

    return _third_order(budget, _policy_gradients, remainder)


def _third_order(budget: Budget, directions: Directions, remainder: Remainder | None = None) -> Evidence:
    def of_direction(logits: FloatArray, tokens: Tokens, direction: FloatArray, step: float) -> FloatArray:
        exact = categorical.entropy_change(logits, step * direction)
        return exact - curvature.second_order_change(logits, direction, step)

    return fit(
        budget,
        directions,
        remainder or of_direction,
        steps=THIRD_ORDER_STEPS,
        order=3,
        tolerance=THIRD_ORDER_TOLERANCE,
        largest_gap=15.0,
    )


@order("remainder of the probabilities", categorical.log_softmax)
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
    return fit(budget, _unit_directions, remainder, steps=10.0 * STEPS, normalised=False)


def _unit_directions(logits: FloatArray, tokens: Tokens, rng: np.random.Generator) -> FloatArray:
    return (np.arange(logits.shape[-1]) == tokens[:, np.newaxis]).astype(np.float64)


def _policy_gradients(logits: FloatArray, tokens: Tokens, rng: np.random.Generator) -> FloatArray:
    return discriminant.grpo_direction(logits, tokens)


def _random_directions(logits: FloatArray, tokens: Tokens, rng: np.random.Generator) -> FloatArray:
    return rng.normal(size=logits.shape)


def _sizes(logits: FloatArray, direction: FloatArray, order: int) -> tuple[FloatArray, FloatArray]:
    """Summed sizes of the terms of first order, Σ p |δ u|, and of order n, Σ p |δ|ⁿ (1 + |u|), δ = d − E_p[d]."""
    probs = plain_softmax(logits)
    excess = np.abs(plain_log(probs) + plain_entropy(probs)[..., np.newaxis])
    anchor = np.take_along_axis(direction, logits.argmax(axis=-1)[:, np.newaxis], axis=-1)
    relative = direction - anchor
    centred = np.abs(relative - (probs * relative).sum(axis=-1, keepdims=True))
    return (probs * centred * excess).sum(axis=-1), (probs * centred**order * (1.0 + excess)).sum(axis=-1)


def fit(
    budget: Budget,
    directions: Directions,
    remainder: Remainder,
    *,
    steps: FloatArray = STEPS,
    normalised: bool = True,
    order: int = 2,
    tolerance: float = TOLERANCE,
    largest_gap: float = LARGEST_GAP,
) -> Evidence:
    """Fit the slope of the root mean square remainder, and its 95 % interval over resampled policies."""
    rng = np.random.default_rng(budget.seed)
    rows: list[FloatArray] = []
    wide: list[FloatArray] = []
    left_out = 0
    vocab_sizes = (*budget.vocab_sizes, WIDE) if budget.wide else budget.vocab_sizes
    for vocab_size in vocab_sizes:
        count = max(1, min(budget.policies, budget.entries // vocab_size))
        draw = random_logits if vocab_size == WIDE else partial(trial_logits, largest_gap=largest_gap)
        logits = draw(vocab_size, count, rng)
        for tokens in trial_tokens(logits, rng):
            direction = directions(logits, tokens, rng)
            left = np.stack([remainder(logits, tokens, direction, float(step)) for step in steps], axis=-1)
            if normalised:
                # So that every policy weighs alike. On a nearly one-hot one a GRPO step's second order can lie below
                # the round-off of its first: such rays say nothing about the order and are left out.
                first, size = _sizes(logits, direction, order)
                kept = size * steps[0] ** (order - 1) > 1e4 * np.finfo(np.float64).eps * first
                left = left[kept] / size[kept, np.newaxis]
                left_out += int((~kept).sum())
            rows.append(left)
            if vocab_size == WIDE:
                wide.append(left)
    squares = np.concatenate(rows) ** 2
    slope, interval = _slope_and_interval(steps, squares, rng)
    # A wide vocabulary has few rays among many: its slope must be right by itself.
    wide_slope = _slope(steps, (np.concatenate(wide) ** 2).mean(axis=0)) if wide else slope
    passed = abs(slope - order) <= tolerance and abs(wide_slope - order) <= tolerance  # False for NaN
    return Evidence(
        passed,
        f"log |exact − order {order - 1}| against log step over {len(squares)} rays, V up to {vocab_sizes[-1]}",
        {
            "slope": slope,
            "slope_of_widest": wide_slope,
            "interval": interval,
            "expected": f"{order:.2f} ± {tolerance:.2f}",
            "rays": len(squares),
            "rays_below_round_off": left_out,
            "steps": [float(steps[0]), float(steps[-1])],
            "vocab_sizes": list(vocab_sizes),
            "region": f"seeded random policies and corners, probabilities down to e^-{largest_gap:g}",
        },
    )


def _slope_and_interval(steps: FloatArray, squares: FloatArray, rng: np.random.Generator) -> tuple[float, float]:
    resampled = [_slope(steps, squares[rng.integers(len(squares), size=len(squares))].mean(axis=0)) for _ in range(200)]
    return _slope(steps, squares.mean(axis=0)), 1.96 * float(np.std(resampled))


def _slope(steps: FloatArray, mean_squares: FloatArray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):  # a remainder of exactly 0 has no slope: NaN fails the check
        return float(np.polyfit(np.log(steps), 0.5 * np.log(mean_squares), 1)[0])
