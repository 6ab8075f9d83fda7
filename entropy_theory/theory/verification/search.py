"""A search for counterexamples to the sign theorem, over grouped vocabularies and every step size.

A policy is a few atoms: a logit and a number of tokens that share it, up to 10⁶. Many chains climb at once, each
from its own start, by random moves whose size adapts. What float64 finds is only a hit; it counts when exact arithmetic
of 50 digits, on the very numbers found, agrees.

The sign theorem (section B.8 of the theory notes) says that ΔH ≤ −KL wherever α S_d ≥ 0, S_d = Σ S_i d_i. A ray is
scored by ΔH/KL, which the theorem keeps at or below −1: a value above −1 breaks its bound, a value above 0 its sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np

from entropy_theory.theory._policy import FloatArray

ATOMS = 4  # the sampled token, a second single one, and two groups
LARGEST_COUNT, LARGEST_STEP, LARGEST_LOGIT = 1e6, 1e3, 20.0
DIGITS = 50
_EXACT = mp.mpf(10) ** -DIGITS  # a uniform policy meets the bound −1 with equality


@dataclass(frozen=True)
class Rays:
    """Many rays at once: rows of atoms, each with a direction and a step.

    Attributes:
        logits: Logit of each atom's tokens, shape (n, atoms).
        counts: Number of tokens in each atom, shape (n, atoms).
        gains: Free numbers of the direction, one per atom; the family says what they mean. Shape (n, atoms).
        size: |α|, shape (n,).
    """

    logits: FloatArray
    counts: FloatArray
    gains: FloatArray
    size: FloatArray


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


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search in one family.

    Attributes:
        family: Its name.
        tries: Rays evaluated.
        best: Largest ΔH/KL met in float64.
        hits: Chains that ended above the threshold in float64.
        confirmed: Those that 50 digits confirmed, out of the ones rechecked.
        rechecked: How many were rechecked.
        example: The best confirmed ray, or the best ray when none is.
    """

    family: str
    tries: int
    best: float
    hits: int
    confirmed: int
    rechecked: int
    example: dict[str, Any]


def search_sign(family: Family, chains: int, rounds: int, seed: int) -> SearchResult:
    """Look for a ray of a family on which entropy rises although a fall is predicted.

    Args:
        family: The directions.
        chains: Starts, all climbing at once.
        rounds: Moves of each.
        seed: Seed of the draws.
    """
    # Inside its reach the theorem also bounds ΔH by −KL: there a hit is a breach of that.
    threshold = -1.0 + 1e-6 if family.covered else 1e-6
    rays, scores = _climb(lambda rays: sign_score(family, rays), chains, rounds, seed)
    order = np.argsort(-scores)
    hits = int((scores > threshold).sum())
    confirmed, rechecked, example = 0, 0, _ray(rays, int(order[0]))
    for index in order[: min(hits, 20)]:
        ray = _ray(rays, int(index))
        outcome = recheck_sign(family, ray)
        rechecked += 1
        broken = outcome["score"] > (_EXACT - 1 if family.covered else _EXACT)
        if outcome["predicted_fall"] and broken:
            if confirmed == 0:
                example = ray | {"score": float(outcome["score"]), "change": float(outcome["change"])}
            confirmed += 1
    return SearchResult(family.name, chains * (rounds + 1), float(scores.max()), hits, confirmed, rechecked, example)


def search_unimodal(chains: int, rounds: int, seed: int) -> SearchResult:
    """Look for a GRPO step with α < 0 whose predicted rise rises, falls and rises again.

    Open in section B.8 of the theory notes. A ray is scored by the largest slope after the first clear fall, in units
    of the slope's own terms; above 0 the entropy rises again.
    """
    rays, scores = _climb(unimodal_score, chains, rounds, seed)
    order = np.argsort(-scores)
    hits = int((scores > 1e-9).sum())
    confirmed, rechecked, example = 0, 0, _ray(rays, int(order[0]))
    for index in order[: min(hits, 20)]:
        ray = _ray(rays, int(index))
        rechecked += 1
        if recheck_unimodal(ray):
            example = ray if confirmed == 0 else example
            confirmed += 1
    return SearchResult(
        "e_k − p, α < 0", chains * (rounds + 1), float(scores.max()), hits, confirmed, rechecked, example
    )


def sign_score(family: Family, rays: Rays) -> FloatArray:
    """ΔH/KL at α = ±size, of the sign for which a fall is predicted; shape (n,)."""
    probs, log_probs = _policy(rays)
    columns = [list(np.moveaxis(values, -1, 0)) for values in (probs, rays.counts, rays.gains)]
    d = np.stack(family.direction(*columns), axis=-1)
    entropy = -(rays.counts * probs * log_probs).sum(axis=-1)
    excess = log_probs + entropy[:, np.newaxis]
    slope = (rays.counts * probs * excess * d).sum(axis=-1)
    alpha = np.where(slope >= 0.0, rays.size, -rays.size)
    move = alpha[:, np.newaxis] * d
    shifted = log_probs + move
    top = shifted.max(axis=-1, keepdims=True)
    log_total = top + np.log((rays.counts * np.exp(shifted - top)).sum(axis=-1, keepdims=True))
    ratio = move - log_total
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        moved = np.exp(log_probs + ratio)
        gained = np.where(np.abs(ratio) < 0.5, probs * np.expm1(np.clip(ratio, -1, 1)), moved - probs)
        linear = -(rays.counts * gained * excess).sum(axis=-1)
        divergence = (rays.counts * (moved * ratio - gained)).sum(axis=-1)
        score = linear / divergence - 1.0
    return np.where(np.isfinite(score) & (divergence > 1e-9), score, -np.inf)


def unimodal_score(rays: Rays) -> FloatArray:
    """Largest slope of entropy after its first clear fall along α < 0, in units of its terms; shape (n,)."""
    probs, log_probs = _policy(rays)
    named = np.arange(probs.shape[-1]) == 0
    d = named - probs
    entropy = -(rays.counts * probs * log_probs).sum(axis=-1, keepdims=True)
    excess = log_probs + entropy
    rises = (rays.counts * probs * excess * d).sum(axis=-1) > 0.0
    fallen = np.zeros(len(probs), dtype=bool)
    best = np.full(len(probs), -1.0)
    for factor in np.geomspace(1e-2, 1e2, 48):
        t = -factor * rays.size[:, np.newaxis]
        shifted = log_probs + t * d
        weights = rays.counts * np.exp(shifted - shifted.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        spread = d - (weights * d).sum(axis=-1, keepdims=True)
        covariance = (weights * spread * excess).sum(axis=-1)
        variance = -t[:, 0] * (weights * spread**2).sum(axis=-1)
        slope = (covariance - variance) / (np.abs(covariance) + variance + 1e-300)  # of H in −t
        alive = np.abs(covariance) + variance > 1e-12
        best = np.where(fallen & alive, np.maximum(best, slope), best)
        fallen |= alive & (slope < -1e-6)
    return np.where(rises, best, -np.inf)


def recheck_sign(family: Family, ray: dict[str, Any]) -> dict[str, Any]:
    """Evaluate one ray exactly: the definitions of entropy and S, at 50 digits, on the very numbers of the ray."""
    with mp.workdps(DIGITS + 30):
        counts, probs = _exact_policy(ray)
        d = family.direction(probs, counts, [mp.mpf(a) for a in ray["gains"]])
        H = _exact_entropy(counts, probs)
        slope = mp.fsum(n * p * (H + mp.log(p)) * v for n, p, v in zip(counts, probs, d, strict=True))
        alpha = mp.mpf(ray["size"]) if slope >= 0 else -mp.mpf(ray["size"])
        weights = [p * mp.exp(alpha * v) for p, v in zip(probs, d, strict=True)]
        total = mp.fsum(n * w for n, w in zip(counts, weights, strict=True))
        moved = [w / total for w in weights]
        change = _exact_entropy(counts, moved) - H
        divergence = mp.fsum(n * q * mp.log(q / p) for n, q, p in zip(counts, moved, probs, strict=True) if q > 0)
        return {"predicted_fall": alpha * slope >= 0, "change": change, "score": change / divergence, "alpha": alpha}


def recheck_unimodal(ray: dict[str, Any]) -> bool:
    """Whether the exact slope of entropy along α < 0 rises, falls and rises again."""
    with mp.workdps(DIGITS + 30):
        counts, probs = _exact_policy(ray)
        d = [(1 if i == 0 else 0) - p for i, p in enumerate(probs)]
        signs = []
        for factor in np.geomspace(1e-3, 1e2, 400):
            t = -mp.mpf(float(factor)) * mp.mpf(ray["size"])
            weights = [n * p * mp.exp(t * v) for n, p, v in zip(counts, probs, d, strict=True)]
            total = mp.fsum(weights)
            mean = mp.fsum(w * v for w, v in zip(weights, d, strict=True)) / total
            log_mean = mp.fsum(w * mp.log(p) for w, p in zip(weights, probs, strict=True)) / total
            covariance = mp.fsum(
                w * (v - mean) * (mp.log(p) - log_mean) for w, v, p in zip(weights, d, probs, strict=True)
            )
            variance = mp.fsum(w * (v - mean) ** 2 for w, v in zip(weights, d, strict=True))
            signs.append(covariance + t * variance > 0)
        changes = [i for i in range(1, len(signs)) if signs[i] != signs[i - 1]]
        return signs[0] and len(changes) >= 2


def _policy(rays: Rays) -> tuple[FloatArray, FloatArray]:
    top = rays.logits.max(axis=-1, keepdims=True)
    total = (rays.counts * np.exp(rays.logits - top)).sum(axis=-1, keepdims=True)
    log_probs = rays.logits - top - np.log(total)
    return np.exp(log_probs), log_probs


def _exact_policy(ray: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    counts = [mp.mpf(n) for n in ray["counts"]]
    weights = [mp.exp(mp.mpf(z)) for z in ray["logits"]]
    total = mp.fsum(n * w for n, w in zip(counts, weights, strict=True))
    return counts, [w / total for w in weights]


def _exact_entropy(counts: list[Any], probs: list[Any]) -> Any:
    return -mp.fsum(n * p * mp.log(p) for n, p in zip(counts, probs, strict=True) if p > 0)


def _ray(rays: Rays, index: int) -> dict[str, Any]:
    return {
        "logits": rays.logits[index].tolist(),
        "counts": [int(n) for n in rays.counts[index]],
        "gains": rays.gains[index].tolist(),
        "size": float(rays.size[index]),
    }


def _climb(score: Callable[[Rays], FloatArray], chains: int, rounds: int, seed: int) -> tuple[Rays, FloatArray]:
    """Climb from many starts at once; the worst quarter restarts beside the best four times on the way."""
    rng = np.random.default_rng(seed)
    width = 3 * ATOMS + 1

    def rays(genes: FloatArray) -> Rays:
        logits = np.clip(genes[:, :ATOMS], -LARGEST_LOGIT, LARGEST_LOGIT)
        counts = np.asarray(
            np.round(np.exp(np.clip(genes[:, ATOMS : 2 * ATOMS], 0.0, np.log(LARGEST_COUNT)))), np.float64
        )
        counts[:, :2] = 1.0
        gains: FloatArray = np.clip(genes[:, 2 * ATOMS : 3 * ATOMS], -3.0, 3.0)
        size: FloatArray = np.exp(np.clip(genes[:, -1], np.log(1e-4), np.log(LARGEST_STEP)))
        return Rays(logits, counts, gains, size)

    genes = rng.normal(size=(chains, width)) * np.repeat([4.0, 5.0, 1.0, 2.0], [ATOMS, ATOMS, ATOMS, 1])
    genes[:, ATOMS : 2 * ATOMS] = np.abs(genes[:, ATOMS : 2 * ATOMS])
    scores = score(rays(genes))
    scale = np.full(chains, 0.5)
    for number in range(rounds):
        mask = rng.random((chains, width)) < 0.4
        trial = genes + scale[:, np.newaxis] * mask * rng.normal(size=genes.shape)
        values = score(rays(trial))
        better = values > scores
        genes[better], scores[better] = trial[better], values[better]
        scale = np.clip(np.where(better, scale * 1.3, scale * 0.95), 1e-7, 3.0)
        if number % max(1, rounds // 5) == rounds // 5 - 1:
            order = np.argsort(scores)
            lost, leaders = order[: chains // 4], order[-max(1, chains // 20) :]
            parents = rng.choice(leaders, size=len(lost))
            genes[lost] = genes[parents] + 0.1 * rng.normal(size=(len(lost), width))
            scores[lost] = score(rays(genes[lost]))
            scale[lost] = 0.1
    return rays(genes), scores
