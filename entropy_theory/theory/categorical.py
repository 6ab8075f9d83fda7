"""Log-softmax, entropy, and the exact change of entropy when the logits move.

Conventions: logits z ∈ R^V on the last axis, p = softmax(z), natural logarithms (nats), float64 throughout. A logit of
−inf is a token of probability 0, with 0 · log 0 = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import ArrayLike

from entropy_theory.errors import invalid
from entropy_theory.theory._policy import FloatArray, Policy, as_direction, policy

SERIES_RADIUS = 0.25
# Coefficients (n − 1)/n! of φ(r) = r eʳ − eʳ + 1 = Σ_{n ≥ 2} (n − 1) rⁿ/n!. Inside the radius the first term left out
# is below 1e-18 of the first one kept.
_SERIES = tuple((n - 1) / factorial(n) for n in range(2, 15))


def log_softmax(logits: ArrayLike) -> FloatArray:
    """Log-probabilities of the softmax policy.

    Definition in section 2 of arXiv 2602.03392 (notation of the theory notes).

    Formula: L_i = z_i − log Σ_j e^{z_j}.

    Symbols: z is `logits`; L is the result.

    Shapes: (..., V) in, (..., V) out. Nats, float64 (other real types are converted).

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row. L is −inf where the logit is.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> log_softmax([0.0, 0.0])
        array([-0.69314718, -0.69314718])
    """
    here = policy(logits)
    return here.gaps - here.log_total


def entropy(logits: ArrayLike) -> FloatArray:
    """Shannon entropy of the softmax policy.

    Definition in section 2 of arXiv 2602.03392 (notation of the theory notes).

    Formula: H = −Σ_i p_i log p_i = log Z − E_p[d], with d = z − max z and Z = Σ e^d. Both terms are ≥ 0, so nothing
    cancels however deterministic the policy is.

    Symbols: z is `logits`; H is the result.

    Shapes: (..., V) in, (...) out. Nats, float64 (other real types are converted).

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row. 0 ≤ H ≤ log V.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> entropy([[0.0, 0.0, 0.0, 0.0], [0.0, -60.0, -float("inf"), -float("inf")]])
        array([1.38629436e+00, 5.34147157e-25])
    """
    return policy(logits).entropy[()]


def entropy_change(logits: ArrayLike, delta: ArrayLike) -> FloatArray:
    """Exact change of entropy when the logits move by `delta`, however small or large the move.

    Section B.3 of the theory notes.

    Formula: H(q) − H(p) = −Σ_i (q_i − p_i) log p_i − KL(q‖p), with p = softmax(z), q = softmax(z + δ).

    The log-ratio r_i = log(q_i/p_i) carries the digits: q − p = p (eʳ − 1), log p may be replaced by
    u = z − E_p[z] because Σ (q − p) = 0, and KL = Σ p φ(r) with φ(r) = r eʳ − eʳ + 1 ≥ 0. So a step of 1e-8 keeps its
    digits. For a move that rebuilds the policy the two entropies are subtracted instead; each row takes whichever form
    has the smaller terms.

    Symbols: z is `logits`; δ is `delta`; H(q) − H(p) is the result.

    Shapes: (..., V) and (..., V), leading shapes broadcast; (...) out. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; δ finite.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> change = entropy_change([1.0, 0.0, -1.0], [1e-8, 0.0, 0.0])
        >>> print(f"{change:.6e}")
        -2.825875e-09
    """
    here = policy(logits)
    move = relative_move(here, "delta", delta)
    with np.errstate(over="ignore", invalid="ignore"):  # rows where a form overflows take the other one
        to = compare(here, move)
        linear = to.difference * here.excess
        change = -linear.sum(axis=-1) - to.divergence.sum(axis=-1)
        size = np.abs(linear).sum(axis=-1) + np.abs(to.divergence).sum(axis=-1)  # round-off is 1e-16 of that
        moved = policy(here.gaps + move).entropy
    before = here.entropy
    return np.where(size <= before + moved, change, moved - before)[()]


@dataclass(frozen=True)
class Comparison:
    """A moved policy q against p, token by token, each part to its own digits.

    Attributes:
        log_ratio: r = log(q/p). Shape (..., V).
        difference: q − p. Shape (..., V).
        divergence: The terms p φ(r) ≥ 0 of KL(q‖p). Shape (..., V).
    """

    log_ratio: FloatArray
    difference: FloatArray
    divergence: FloatArray


def relative_move(here: Policy, name: str, delta: ArrayLike) -> FloatArray:
    """Check a move of the logits and measure it from its entry at the likeliest token.

    A common shift of all logits changes nothing; measured so, only the small probabilities of a nearly deterministic
    row enter its normaliser.
    """
    move = as_direction(name, delta, here.gaps.shape)
    shape = np.broadcast_shapes(here.gaps.shape, move.shape)
    anchor = np.broadcast_to(here.gaps.argmax(axis=-1)[..., np.newaxis], (*shape[:-1], 1))
    with np.errstate(over="ignore"):
        relative: FloatArray = move - np.take_along_axis(np.broadcast_to(move, shape), anchor, axis=-1)
    if not np.isfinite(relative).all():
        raise invalid(name, "entries whose differences are finite", "differences beyond the float64 range")
    return relative


def compare(here: Policy, move: FloatArray) -> Comparison:
    """Compare softmax(z + δ) with softmax(z) for a move measured from the likeliest token."""
    log_probs = here.gaps - here.log_total
    # c = Σ p (e^δ − 1) = Z(q)/Z(p) − 1; its log1p is exact where c is small, log-sum-exp where it is not.
    growth = _difference(here.probs, log_probs, move).sum(axis=-1, keepdims=True)
    shifted = log_probs + move
    top = shifted.max(axis=-1, keepdims=True)
    log_sum = top + np.log(np.exp(shifted - top).sum(axis=-1, keepdims=True))
    log_growth = np.where(np.abs(growth) <= 0.5, np.log1p(np.maximum(growth, -0.5)), log_sum)
    ratio = move - log_growth

    difference = _difference(here.probs, log_probs, ratio)
    large = np.where(here.probs + difference > 0.0, (here.probs + difference) * ratio, 0.0) - difference
    divergence = np.where(np.abs(ratio) <= SERIES_RADIUS, here.probs * phi_series(ratio), large)
    return Comparison(ratio, difference, divergence)


def _difference(probs: FloatArray, log_probs: FloatArray, ratio: FloatArray) -> FloatArray:
    """Change of probability p (eʳ − 1), without overflow where p is tiny and r large."""
    small = np.clip(ratio, -1.0, 1.0)
    result: FloatArray = np.where(ratio == small, probs * np.expm1(small), np.exp(log_probs + ratio) - probs)
    return result


def phi_series(ratio: FloatArray) -> FloatArray:
    """φ(r) = r eʳ − eʳ + 1 by its series, for |r| up to the radius where the series holds every digit."""
    r = np.clip(ratio, -SERIES_RADIUS, SERIES_RADIUS)
    value = np.zeros_like(r)
    for coefficient in reversed(_SERIES):
        value = value * r + coefficient
    return value * r * r
