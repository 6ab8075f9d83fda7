"""Checks of the laws beyond the paper, tried on seeded random policies and on the corners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from entropy_theory.theory import categorical, curvature, discriminant, single_logit, updates
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.verification.checks.policies import plain_entropy, plain_log, plain_softmax, trial_tokens
from entropy_theory.theory.verification.checks.properties import ROUND_OFF, Excess, at_least, hold
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

law = partial(check, Kind.PROPERTY)

# The least S over all policies is −.22387160235, at V = 2 and p = .1760409; what round-off may add is far smaller.
LEAST_DISCRIMINANT = -0.2238716024
_STEPS = (1e-3, -1e-3, 0.5, -0.5, 5.0, -5.0, 60.0, -60.0)


def _at(values: FloatArray, tokens: NDArray[np.int64]) -> FloatArray:
    picked: FloatArray = np.take_along_axis(values, tokens[:, np.newaxis], axis=-1)[:, 0]
    return picked


def _units(logits: FloatArray, tokens: NDArray[np.int64]) -> FloatArray:
    return (np.arange(logits.shape[-1]) == tokens[:, np.newaxis]).astype(np.float64)


@law("bounds of S, met where all other tokens are alike", single_logit.discriminant_bounds)
def envelope(budget: Budget) -> Evidence:
    """Section B.2: every S lies between the bounds of its probability, and above −.22387161."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        probs = plain_softmax(logits)
        scores = discriminant.discriminant(logits)
        low, high = single_logit.discriminant_bounds(probs, logits.shape[-1])
        size = at_least(probs * (1.0 + np.abs(plain_log(probs)) + np.log(logits.shape[-1])))
        yield (low - scores) / size
        yield (scores - high) / size
        yield np.where(scores < LEAST_DISCRIMINANT, np.inf, 0.0)
        # The upper bound is met where all other tokens are alike.
        top = logits.max(axis=-1)
        alike = np.where(np.arange(logits.shape[-1]) == 0, np.minimum(np.abs(top), 30.0)[:, np.newaxis], 0.0)
        first = plain_softmax(alike)[:, 0]
        bound = single_logit.discriminant_bounds(first, logits.shape[-1])[1]
        yield np.abs(discriminant.discriminant(alike, 0) - bound) / (ROUND_OFF * 40.0)

    return hold(budget, excess)


@law("against differences of S and N", discriminant.discriminant)
def discriminant_slopes(budget: Budget) -> Evidence:
    """Section B.1: ∂S_y/∂z_k and ∂N/∂z_k against differences of S and N."""
    step = 1e-5

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        centred = np.maximum(logits - logits.max(axis=-1, keepdims=True), -30.0)
        probs = plain_softmax(centred)
        u = plain_log(probs) + plain_entropy(probs)[:, np.newaxis]
        for tokens in trial_tokens(centred, rng)[:2]:
            unit = _units(centred, tokens)
            p_k, u_k = _at(probs, tokens)[:, np.newaxis], _at(u, tokens)[:, np.newaxis]
            claimed = probs * (unit * (1.0 + u) - p_k * (1.0 + u + u_k))
            ahead, behind = (discriminant.discriminant(centred + sign * step * unit) for sign in (1.0, -1.0))
            # Central differences err at step² = 1e-10 and round at 1e-16/step = 1e-11 of terms p (1 + |u|)².
            yield np.abs((ahead - behind) / (2 * step) - claimed) / 1e-8
            N, P = (probs**2 * u).sum(axis=-1), (probs**2).sum(axis=-1)
            p, v = p_k[:, 0], u_k[:, 0]
            slope = p * (p * (1.0 + 2.0 * v) - 2.0 * N - P * (1.0 + v))
            ahead, behind = (discriminant.baseline(centred + sign * step * unit) for sign in (1.0, -1.0))
            yield np.abs((ahead - behind) / (2 * step) - slope) / 1e-8

    return hold(budget, excess)


@law("against the change of the whole policy", single_logit.single_logit_entropy_change)
def two_numbers_decide(budget: Budget) -> Evidence:
    """Section B.4: the change from (p, H) alone is that of the whole policy."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        start = logits - logits.max(axis=-1, keepdims=True)  # so that an offset does not swallow the step
        probs, H = plain_softmax(start), plain_entropy(plain_softmax(start))
        for tokens in trial_tokens(start, rng):
            p = _at(probs, tokens)
            for step in _STEPS:
                whole = categorical.entropy_change(start, step * _units(start, tokens))
                alone = single_logit.single_logit_entropy_change(p, np.maximum(H, _binary(p)), step)
                # p and H round at 1e-16, which is amplified where the token leaves with 1 − p of the probability.
                size = ROUND_OFF * (1.0 + abs(step)) * (1.0 + H) / np.maximum(1.0 - p, 1e-12)
                # Nearer to 1 than 1e-12, float64 holds 1 − p to a few digits or none: the two numbers, rounded, no
                # longer say what surrounds the token, and there is nothing to compare. p = 1 itself is compared.
                comparable = (p == 1.0) | (1.0 - p >= 1e-12)
                yield np.where(comparable, np.abs(whole - alone) / np.maximum(size, ROUND_OFF), 0.0)

    return hold(budget, excess)


@law("exact change where a fall is predicted, steps up to 300", discriminant.discriminant)
def one_logit_falls(budget: Budget) -> Evidence:
    """Section B.5: a predicted fall of one logit is a fall at every step, by the change of the whole policy."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        yield from _falls(logits, rng, _units, lambda z, k: discriminant.discriminant(z, k))

    return hold(budget, excess)


@law("exact change where a fall is predicted, steps up to 300", discriminant.centered_discriminant)
def grpo_falls(budget: Budget) -> Evidence:
    """Section B.8: a predicted fall of a GRPO step is a fall at every step, and at least KL(q‖p) deep."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        yield from _falls(
            logits, rng, discriminant.grpo_direction, lambda z, k: discriminant.centered_discriminant(z, k)
        )

    return hold(budget, excess)


_OfToken = Callable[[FloatArray, NDArray[np.int64]], FloatArray]


def _falls(logits: FloatArray, rng: np.random.Generator, direction: _OfToken, score: _OfToken) -> Iterator[Excess]:
    start = logits - logits.max(axis=-1, keepdims=True)
    probs = plain_softmax(start)
    for tokens in trial_tokens(start, rng):
        d, slope = direction(start, tokens), score(start, tokens)
        for size in (1e-3, 0.1, 1.0, 10.0, 300.0):
            alpha = np.where(slope >= 0.0, size, -size)
            delta = alpha[:, np.newaxis] * d
            change = categorical.entropy_change(start, delta)
            moved = plain_softmax(start + delta)
            ratio = np.where(moved > 0.0, plain_log(moved) - plain_log(probs), 0.0)
            divergence = (moved * ratio).sum(axis=-1)
            # The textbook divergence rounds at 1e-16 of its terms; the exact change has digits of its own.
            rounding = at_least((moved * np.abs(ratio)).sum(axis=-1)) + ROUND_OFF
            yield np.where(np.isfinite(divergence), (change + divergence) / rounding, 0.0)
            yield np.where((change > 0.0) & (np.abs(slope) > 1e-14), np.inf, 0.0)


@law("sign, bounds, and the change of the whole policy on both sides", single_logit.sign_flip_radius)
def flip_radius(budget: Budget) -> Evidence:
    """Section B.5: sign, bounds and root of the flip radius, by the change of the whole policy on both sides of it."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        start = np.maximum(logits - logits.max(axis=-1, keepdims=True), -30.0)
        probs, H = plain_softmax(start), plain_entropy(plain_softmax(start))
        for tokens in trial_tokens(start, rng):
            p = _at(probs, tokens)
            inner = p < 1.0 - 1e-6
            p_safe = np.where(inner, p, 0.5)
            H_safe = np.where(inner, np.maximum(H, _binary(p_safe)), 1.0)
            radius = single_logit.sign_flip_radius(p_safe, H_safe)
            x = (H_safe + np.log(p_safe)) / (1.0 - p_safe)
            clear = inner & (np.abs(x) > 1e-6)
            yield np.where(np.sign(radius) != -np.sign(x), np.inf, 0.0)[clear]
            # 1e-9: H_rest comes from H and p, which are rounded.
            yield ((np.abs(radius) - 2.0 * np.abs(x)) / (1e-9 * np.maximum(np.abs(x), 1e-300)))[clear & (x < 0.0)]
            yield ((np.abs(x) - np.abs(radius)) / (1e-9 * np.maximum(np.abs(x), 1e-300)))[clear & (x < 0.0)]
            yield ((2.0 * x - np.abs(radius)) / (1e-9 * np.maximum(np.abs(x), 1e-300)))[clear & (x > 0.0)]
            finite = clear & np.isfinite(radius) & (np.abs(radius) < 60.0)
            for factor, sign in ((0.999, 1.0), (1.001, -1.0)):
                step = np.where(finite, factor * radius, 1.0)
                change = categorical.entropy_change(start, step[:, np.newaxis] * _units(start, tokens))
                yield np.where((sign * change <= 0.0) & (np.abs(change) > 1e-13 * (1.0 + H)), np.inf, 0.0)[finite]
            endless = clear & np.isneginf(radius)
            change = categorical.entropy_change(start, -50.0 * _units(start, tokens))
            yield np.where(change <= 0.0, np.inf, 0.0)[endless & (p > 1e-3)]

    return hold(budget, excess)


@law("divergence out of the change of two tokens", categorical.entropy_change)
def divergence_bounds(budget: Budget) -> Evidence:
    """Section B.5: 2 KL/(ε² p (1 − p)) between e^{−|ε|} and e^{|ε|}, with KL from the change of a two-token policy."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        p = rng.uniform(0.01, 0.99, size=len(logits))
        pair = np.stack([np.log(p) - np.log1p(-p), np.zeros_like(p)], axis=-1)
        score = p * (1.0 - p) * pair[:, 0]
        for step in (0.01, -0.01, 0.3, -0.3, 2.0, -2.0, 8.0, -8.0):
            change = categorical.entropy_change(pair, np.array([step, 0.0]))
            u = np.expm1(step)
            divergence = -change - u / (1.0 + p * u) * score
            ratio = 2.0 * divergence / (step**2 * p * (1.0 - p))
            room = 1e-9  # round-off of the subtraction, 1e-16 over step²
            yield (np.exp(-abs(step)) - ratio) / room
            yield (ratio - np.exp(abs(step))) / room

    return hold(budget, excess)


@law("sign of S_c on both sides, N >= 0, the likeliest token", updates.baseline_boundary)
def boundary_of_quadrants(budget: Budget) -> Evidence:
    """Section B.14: S_c has the sign of p − p_N, p_N ≥ e^{−H}, N ≥ 0, and the likeliest token has S_c ≥ 0."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        probs, H = plain_softmax(logits), plain_entropy(plain_softmax(logits))
        boundary = updates.baseline_boundary(logits)
        yield (np.exp(-H) - boundary) / (1e-12 * boundary)
        centred = discriminant.centered_discriminant(logits)
        # Where p and p_N agree to 1e-9 the comparison itself is round-off.
        decided = np.abs(probs / boundary[:, np.newaxis] - 1.0) > 1e-9
        yield np.where(np.sign(centred) != np.sign(probs - boundary[:, np.newaxis]), np.inf, 0.0)[
            decided & (probs > 0.0) & (np.abs(centred) > 1e-15)
        ]
        yield np.where(discriminant.baseline(logits) < 0.0, np.inf, 0.0)
        yield np.where(centred[np.arange(len(logits)), logits.argmax(axis=-1)] < 0.0, np.inf, 0.0)
        covariance = (probs * (probs - (probs**2).sum(axis=-1, keepdims=True)) * plain_log(probs)).sum(axis=-1)
        size = at_least((probs * np.abs(plain_log(probs))).sum(axis=-1))
        yield np.abs(discriminant.baseline(logits) - covariance) / np.maximum(size, 1e-15)

    return hold(budget, excess)


@law("both by their definitions", updates.score_covariances)
def covariance_forms(budget: Budget) -> Evidence:
    """Section B.9: E_p[A S_c] = Cov_p(A, S), and Cov_p(log p, p A) exceeds it by E_p[A] N."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        probs = plain_softmax(logits)
        advantages = rng.normal(size=logits.shape) + 0.5
        by_score, by_log = updates.score_covariances(logits, advantages)
        log_probs, weighted = plain_log(probs), probs * advantages
        plain = (probs * log_probs * weighted).sum(-1) - (probs * log_probs).sum(-1) * (probs * weighted).sum(-1)
        size = at_least(
            (probs * np.abs(advantages) * (1.0 + np.abs(log_probs))).sum(axis=-1) * (1.0 + plain_entropy(probs))
        )
        yield np.abs(by_log - plain) / size
        expected = (weighted * discriminant.centered_discriminant(logits)).sum(axis=-1)
        yield np.abs(by_score - expected) / size
        mean = weighted.sum(axis=-1)
        yield (
            np.abs(by_log - by_score - mean * (probs**2 * (log_probs + plain_entropy(probs)[:, np.newaxis])).sum(-1))
            / size
        )

    return hold(budget, excess)


@law("against the curvature of every token", curvature.mean_grpo_curvature)
def mean_curvature(budget: Budget) -> Evidence:
    """Section B.10: the mean over tokens of the curvature, token by token; uniform ones; none up at max p ≤ ½."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        mean = curvature.mean_grpo_curvature(logits)
        probs = plain_softmax(logits)
        yield np.where((mean > 1e-16) & (probs.max(axis=-1) <= 0.5), np.inf, 0.0)
        size = logits.shape[-1]
        flat = curvature.mean_grpo_curvature(np.zeros(size))
        yield np.atleast_1d(np.abs(flat * size / (1.0 / size - 1.0) - 1.0)) / ROUND_OFF
        if size <= 17:
            each = curvature.grpo_curvature(logits[:, np.newaxis, :], np.arange(size)[np.newaxis, :])
            scale = at_least((probs * np.abs(each)).sum(axis=-1))
            yield np.abs(mean - (probs * each).sum(axis=-1)) / scale

    return hold(budget, excess)


@law("power sums against the sum over tokens", curvature.grpo_curvature_from_sums)
def curvature_forms(budget: Budget) -> Evidence:
    """Section B.7: the power sums and the sum over tokens agree where the sums do not cancel."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        probs = plain_softmax(logits)
        u = plain_log(probs) + plain_entropy(probs)[:, np.newaxis]
        sums = [(probs**2 * u).sum(-1), (probs**2).sum(-1), (probs**3).sum(-1), (probs**3 * u).sum(-1)]
        for tokens in trial_tokens(logits, rng):
            p, S = _at(probs, tokens), _at(probs * u, tokens)
            by_sums = curvature.grpo_curvature_from_sums(p, S, *sums)
            # The sums cancel from terms of order 1 + log V: that is their round-off, however small the answer.
            yield np.abs(by_sums - curvature.grpo_curvature(logits, tokens)) / (20.0 * ROUND_OFF)

    return hold(budget, excess)


@law("sign of the exact change, all four quadrants", discriminant.centered_discriminant)
def quadrants(budget: Budget) -> Evidence:
    """The four quadrants of (A, S_c): the exact change has the predicted sign at a small step."""
    step = 1e-6

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        start = logits - logits.max(axis=-1, keepdims=True)
        for tokens in trial_tokens(start, rng):
            direction = discriminant.grpo_direction(start, tokens)
            centred = discriminant.centered_discriminant(start, tokens)
            bend = np.abs(curvature.grpo_curvature(start, tokens))
            clear = np.abs(centred) > 10.0 * step * bend + 1e-300
            for advantage in (1.0, -1.0):
                change = categorical.entropy_change(start, advantage * step * direction)
                yield np.where(np.sign(change) != -np.sign(advantage * centred), np.inf, 0.0)[clear]

    return hold(budget, excess)


def _binary(p: FloatArray) -> FloatArray:
    inner = (p > 0.0) & (p < 1.0)
    q = np.where(inner, p, 0.5)
    result: FloatArray = np.where(inner, -q * np.log(q) - (1.0 - q) * np.log1p(-q), 0.0)
    return result


# ε₀(κ) a little inside what is certified, so that round-off of ΔH does not decide.
ACCURATE_STEPS = ((1.0, 0.095), (0.1, 0.0166), (0.01, 0.00179))


@law("random policies at ε₀", discriminant.first_order_change)
def ten_percent(budget: Budget) -> Evidence:
    """Where |x| ≥ κ the first order is within 10 % of the exact change for steps of ±ε₀(κ)."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        start = np.maximum(logits - logits.max(axis=-1, keepdims=True), -30.0)
        probs, H = plain_softmax(start), plain_entropy(plain_softmax(start))
        for tokens in trial_tokens(start, rng):
            p = _at(probs, tokens)
            unit = _units(start, tokens)
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.abs((H + np.log(p)) / (1.0 - p))
            for kappa, step in ACCURATE_STEPS:
                for signed in (step, -step):
                    truth = categorical.entropy_change(start, signed * unit)
                    first = discriminant.first_order_change(start, unit, signed)
                    clear = (x >= kappa) & (p < 1.0 - 1e-9)
                    yield (np.abs(first - truth) / (0.1 * np.abs(truth) + 1e-300))[clear]

    return hold(budget, excess)
