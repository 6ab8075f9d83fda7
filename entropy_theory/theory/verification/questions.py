"""What the searches look for: breaches of the sign theorem and of the step bound, second rises, changes of half.

Each question scores rays twice, in float64 for the climb and at 50 digits for the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np

from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.verification.search import (
    EXACT,
    Number,
    Question,
    Ray,
    Rays,
    exact_divergence,
    exact_entropy,
    exact_move,
    exact_policy,
)


@dataclass(frozen=True)
class Family:
    """A family of updates of the logits, and whether the sign theorem covers it.

    Attributes:
        name: What it is.
        covered: Whether the theorem claims it.
        direction: (probs, counts, gains) → d, elementwise on arrays of atoms or on lists of exact numbers.
    """

    name: str
    covered: bool
    direction: Callable[[list[Any], list[Any], list[Any]], list[Any]]


def scaled_policy_gradient(share: float) -> Family:
    """Build the family d = e_k − λ p; λ = 1 is a GRPO step, λ = 0 one moved logit."""

    def direction(probs: list[Any], counts: list[Any], gains: list[Any]) -> list[Any]:
        return [float(i == 0) - share * p for i, p in enumerate(probs)]

    return Family(f"e_k − {share:g} p", 0.0 <= share <= 1.0, direction)


def two_tokens() -> Family:
    """Build the family d = e_1 + e_2 − 2p: two different tokens sampled at one position."""

    def direction(probs: list[Any], counts: list[Any], gains: list[Any]) -> list[Any]:
        return [float(i < 2) - 2.0 * p for i, p in enumerate(probs)]

    return Family("e_1 + e_2 − 2p", False, direction)


def expected_policy_gradient() -> Family:
    """Build the family d = p (A − E_p A): the policy gradient averaged over the sampled token."""

    def direction(probs: list[Any], counts: list[Any], gains: list[Any]) -> list[Any]:
        mean = sum(n * p * a for n, p, a in zip(counts, probs, gains, strict=True))
        return [p * (a - mean) for p, a in zip(probs, gains, strict=True)]

    return Family("p (A − E_p A)", False, direction)


INSIDE = (scaled_policy_gradient(1.0), scaled_policy_gradient(0.5), scaled_policy_gradient(0.0))
OUTSIDE = (scaled_policy_gradient(1.05), scaled_policy_gradient(-0.1), two_tokens(), expected_policy_gradient())


def sign(family: Family) -> Question:
    """Ask for a ray of a family on which entropy rises although a fall is predicted.

    The sign theorem (section B.8 of the theory notes) says ΔH ≤ −KL wherever α S_d ≥ 0, S_d = Σ S_i d_i. A ray is
    scored by ΔH/KL: above −1 breaks the bound, above 0 the sign.
    """

    def score(rays: Rays) -> FloatArray:
        probs, log_probs = rays.policy()
        columns = [list(np.moveaxis(values, -1, 0)) for values in (probs, rays.counts, rays.gains)]
        d = np.stack(family.direction(*columns), axis=-1)
        excess = log_probs - (rays.counts * probs * log_probs).sum(axis=-1, keepdims=True)
        slope = (rays.counts * probs * excess * d).sum(axis=-1)
        linear, divergence = _finite_step(rays, np.where(slope >= 0.0, rays.size, -rays.size), d)[:2]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = linear / divergence - 1.0
        return np.where(np.isfinite(ratio) & (divergence > 1e-9), ratio, -np.inf)

    def exact(ray: Ray) -> Number:
        counts, probs = exact_policy(ray)
        d = family.direction(probs, counts, [mp.mpf(a) for a in ray["gains"]])
        H = exact_entropy(counts, probs)
        slope = mp.fsum(n * p * (H + mp.log(p)) * v for n, p, v in zip(counts, probs, d, strict=True))
        moved = exact_move(counts, probs, d, mp.mpf(ray["size"]) * (1 if slope >= 0 else -1))
        return (exact_entropy(counts, moved) - H) / exact_divergence(counts, moved, probs)

    # A uniform policy meets the bound −1 with equality.
    return Question(family.name, score, exact, *((-1.0 + 1e-6, EXACT - 1) if family.covered else (1e-6, EXACT)))


def bound() -> Question:
    """Ask for a step that exceeds the step bound (T1 in part D of the theory notes), for any 0 ≤ λ ≤ 1 and either sign.

    A ray is scored by ΔH less the bound, over the size of the bound's two terms. λ and the sign of α are the first two
    free numbers.
    """

    def share_and_sign(gains: Any) -> tuple[Any, Any]:
        return np.clip(np.abs(gains[0]), 0.0, 1.0), np.where(gains[1] >= 0.0, 1.0, -1.0)

    def score(rays: Rays) -> FloatArray:
        probs, log_probs = rays.policy()
        share, side = share_and_sign(rays.gains.T)
        named = np.arange(probs.shape[-1]) == 0
        d = named - share[:, np.newaxis] * probs
        excess = log_probs - (rays.counts * probs * log_probs).sum(axis=-1, keepdims=True)
        slope = (rays.counts * probs * excess * d).sum(axis=-1)
        linear, divergence, gained = _finite_step(rays, side * rays.size, d)
        p_k, squares = probs[:, 0], np.where(named, 0.0, rays.counts * probs**2).sum(axis=-1)
        rest = np.where(named, 0.0, rays.counts * probs).sum(axis=-1)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            first = -slope * gained[:, 0] / (p_k * (share * squares + (1.0 - share * p_k) * rest))
            size = np.abs(first) + divergence
            ratio = (linear - first) / size
            # Where S_d is a difference of larger terms its rounding, 1e-15 of them, must not pass for a violation.
            terms = (rays.counts * probs * (1.0 + np.abs(excess)) * np.abs(d)).sum(axis=-1)
            clear = 1e-15 * (1.0 + np.abs(first / slope) * terms) < 1e-8 * size
        return np.where(np.isfinite(ratio) & clear, ratio, -np.inf)

    def exact(ray: Ray) -> Number:
        counts, probs = exact_policy(ray)
        share, side = (mp.mpf(float(value)) for value in share_and_sign(ray["gains"]))
        d = [(1 if i == 0 else 0) - share * p for i, p in enumerate(probs)]
        H = exact_entropy(counts, probs)
        slope = mp.fsum(n * p * (H + mp.log(p)) * v for n, p, v in zip(counts, probs, d, strict=True))
        moved = exact_move(counts, probs, d, side * mp.mpf(ray["size"]))
        divergence = exact_divergence(counts, moved, probs)
        mean = mp.fsum(n * p * v for n, p, v in zip(counts, probs, d, strict=True))
        first = -slope * (moved[0] - probs[0]) / (probs[0] * (d[0] - mean))  # D₀ = Cov_p(d, 1_k)
        return (exact_entropy(counts, moved) - H - first + divergence) / (abs(first) + divergence)

    return Question("e_k − λ p, 0 ≤ λ ≤ 1", score, exact, 1e-6, EXACT)


def second_rise() -> Question:
    """Ask for a GRPO step with α < 0 whose predicted rise rises, falls and rises again (T2: there is none).

    A ray is scored by the largest slope after the first clear fall, in units of the slope's own terms; above 0 the
    entropy rises again.
    """

    def score(rays: Rays) -> FloatArray:
        probs, log_probs = rays.policy()
        d = (np.arange(probs.shape[-1]) == 0) - probs
        excess = log_probs - (rays.counts * probs * log_probs).sum(axis=-1, keepdims=True)
        rises = (rays.counts * probs * excess * d).sum(axis=-1) > 0.0
        t = -np.geomspace(1e-2, 1e2, 48)[:, np.newaxis, np.newaxis] * rays.size[:, np.newaxis]
        shifted = log_probs + t * d
        weights = rays.counts * np.exp(shifted - shifted.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        spread = d - (weights * d).sum(axis=-1, keepdims=True)
        covariance = (weights * spread * excess).sum(axis=-1)
        variance = -t[..., 0] * (weights * spread**2).sum(axis=-1)
        slope = (covariance - variance) / (np.abs(covariance) + variance + 1e-300)  # of H in −t
        alive = np.abs(covariance) + variance > 1e-12
        fallen = np.logical_or.accumulate(alive & (slope < -1e-6), axis=0)
        best = np.where(fallen[:-1] & alive[1:], slope[1:], -1.0).max(axis=0)
        return np.where(rises, best, -np.inf)

    def exact(ray: Ray) -> Number:
        """Largest slope after the first fall along α < 0, in units of its terms, on a grid of 400 steps."""
        counts, probs = exact_policy(ray)
        d = [(1 if i == 0 else 0) - p for i, p in enumerate(probs)]
        fallen, best = False, mp.mpf(-1)
        for factor in np.geomspace(1e-3, 1e2, 400):
            t = -mp.mpf(float(factor)) * mp.mpf(ray["size"])
            q = [n * v for n, v in zip(counts, exact_move(counts, probs, d, t), strict=True)]
            mean = mp.fsum(w * v for w, v in zip(q, d, strict=True))
            covariance = mp.fsum(w * (v - mean) * mp.log(p) for w, v, p in zip(q, d, probs, strict=True))
            variance = -t * mp.fsum(w * (v - mean) ** 2 for w, v in zip(q, d, strict=True))
            slope = (covariance - variance) / (abs(covariance) + variance)
            best = max(best, slope) if fallen else best
            fallen = fallen or slope < 0
        return best

    return Question("e_k − p, α < 0", score, exact, 1e-9, EXACT)


def other_half() -> Question:
    """Ask for one GRPO step that crosses S_c = 0: from α S_c ≥ 0 to a policy with α S_c < 0.

    S_c = Σ_{i≠k} q_i (q_i + q_k − M_2) log(q_k/q_i), q_i + q_k − M_2 = Σ_{j≠k} q_j (q_i − q_j) + q_k (q_i + 1 − q_k); a
    ray is scored by −α S_c of the moved policy over the sizes of the terms. Steps with KL < 10⁻³ are left aside: there
    S_c hardly moves.
    """

    def score(rays: Rays) -> FloatArray:
        probs, log_probs = rays.policy()
        d = (np.arange(probs.shape[-1]) == 0) - probs
        side = np.where(_centred(rays.counts, probs, log_probs)[0] >= 0.0, 1.0, -1.0)
        shifted = log_probs + (side * rays.size)[:, np.newaxis] * d
        top = shifted.max(axis=-1, keepdims=True)
        moved = shifted - top - np.log((rays.counts * np.exp(shifted - top)).sum(axis=-1, keepdims=True))
        divergence = (rays.counts * np.exp(moved) * (moved - log_probs)).sum(axis=-1)
        value, size = _centred(rays.counts, np.exp(moved), moved)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = -side * value / size
        return np.where(np.isfinite(ratio) & (divergence > 1e-3), ratio, -np.inf)

    def exact(ray: Ray) -> Number:
        counts, probs = exact_policy(ray)
        d = [(1 if i == 0 else 0) - p for i, p in enumerate(probs)]
        side = 1 if _exact_centred(counts, probs)[0] >= 0 else -1
        # The step may leave 1 − q_max as small as e^{−2|α|}, which has to keep its digits beside 1.
        with mp.workdps(mp.mp.dps + int(4 * ray["size"] / np.log(10.0))):
            value, size = _exact_centred(counts, exact_move(counts, probs, d, side * mp.mpf(ray["size"])))
        return -side * value / size

    return Question("e_k − p, one step", score, exact, 1e-9, EXACT)


def _centred(counts: FloatArray, probs: FloatArray, log_probs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """S_c of the first atom, and the summed sizes of its terms; no difference from 1 is taken."""
    weights = counts[:, 1:] * probs[:, 1:]
    own, p_k = probs[:, 1:], probs[:, :1]
    gaps = own[:, :, np.newaxis] - own[:, np.newaxis, :]  # [i, j]: q_i − q_j
    factors = (weights[:, np.newaxis, :] * gaps).sum(axis=-1) + p_k * (own + weights.sum(axis=-1, keepdims=True))
    terms = weights * factors * (log_probs[:, :1] - log_probs[:, 1:])
    return terms.sum(axis=-1), np.abs(terms).sum(axis=-1)


def _exact_centred(counts: list[Number], probs: list[Number]) -> tuple[Number, Number]:
    collision = mp.fsum(n * p**2 for n, p in zip(counts, probs, strict=True))
    terms = [
        n * p * (p + probs[0] - collision) * mp.log(probs[0] / p) for n, p in zip(counts[1:], probs[1:], strict=True)
    ]
    return mp.fsum(terms), mp.fsum(abs(term) for term in terms)


def _finite_step(rays: Rays, alpha: FloatArray, d: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """−Σ (q − p) log p, KL(q‖p), and q − p of each atom's tokens, after the step α d."""
    probs, log_probs = rays.policy()
    # Measured from the likeliest token, so that on a peaked policy the move does not cancel against its normaliser.
    move = alpha[:, np.newaxis] * (d - np.take_along_axis(d, probs.argmax(axis=-1)[:, np.newaxis], axis=-1))
    shifted = log_probs + move
    top = shifted.max(axis=-1, keepdims=True)
    ratio = move - top - np.log((rays.counts * np.exp(shifted - top)).sum(axis=-1, keepdims=True))
    excess = log_probs - (rays.counts * probs * log_probs).sum(axis=-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.exp(log_probs + ratio)
        gained = np.where(np.abs(ratio) < 0.5, probs * np.expm1(np.clip(ratio, -1, 1)), moved - probs)
        linear = -(rays.counts * gained * excess).sum(axis=-1)
        divergence = (rays.counts * (moved * ratio - gained)).sum(axis=-1)
    return linear, divergence, gained
