"""A search for counterexamples over grouped vocabularies and every step size.

A policy is a few atoms: a logit and a number of tokens that share it, up to 10⁶. Many chains climb at once, each
from its own start, by random moves whose size adapts. What float64 finds is only a hit; it counts when exact arithmetic
of 50 digits, on the very numbers of the hit, agrees. What is asked of a ray is a `Question`.
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
EXACT = mp.mpf(10) ** -DIGITS  # what 50 digits leave of an equality

Number = Any  # mpmath.mpf
Ray = dict[str, Any]


@dataclass(frozen=True)
class Rays:
    """Many rays at once: rows of atoms, each with a direction and a step.

    Attributes:
        logits: Logit of each atom's tokens, shape (n, atoms).
        counts: Number of tokens in each atom, shape (n, atoms).
        gains: Free numbers of the direction, one per atom; the question says what they mean. Shape (n, atoms).
        size: |α|, shape (n,).
    """

    logits: FloatArray
    counts: FloatArray
    gains: FloatArray
    size: FloatArray

    def policy(self) -> tuple[FloatArray, FloatArray]:
        """Probabilities and log-probabilities of each atom's tokens, shape (n, atoms) each."""
        top = self.logits.max(axis=-1, keepdims=True)
        total = (self.counts * np.exp(self.logits - top)).sum(axis=-1, keepdims=True)
        log_probs = self.logits - top - np.log(total)
        return np.exp(log_probs), log_probs

    def row(self, index: int) -> Ray:
        """One ray as plain numbers."""
        return {
            "logits": self.logits[index].tolist(),
            "counts": [int(n) for n in self.counts[index]],
            "gains": self.gains[index].tolist(),
            "size": float(self.size[index]),
        }


@dataclass(frozen=True)
class Question:
    """What a search looks for.

    Attributes:
        name: What the rays are.
        score: Score of many rays in float64, shape (n,): above the threshold is a hit, −inf is a ray to leave aside.
        exact: The same score of one ray, evaluated with as many digits as mpmath is set to.
        threshold: Score of an exception in float64, with room for rounding.
        bar: Score of an exception at 50 digits.
    """

    name: str
    score: Callable[[Rays], FloatArray]
    exact: Callable[[Ray], Number]
    threshold: float
    bar: Number


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search.

    Attributes:
        family: Name of the question.
        tries: Rays evaluated.
        best: Largest score met in float64.
        hits: Chains that ended above the threshold in float64.
        confirmed: Those that 50 digits confirmed, out of the ones rechecked.
        rechecked: How many were evaluated at 50 digits.
        closest: Largest score among those.
        example: The best confirmed ray, or the best ray when none is.
    """

    family: str
    tries: int
    best: float
    hits: int
    confirmed: int
    rechecked: int
    closest: float
    example: Ray


def search(question: Question, chains: int, rounds: int, seed: int, recheck: int = 1) -> SearchResult:
    """Look for a ray that answers a question.

    Args:
        question: What is looked for.
        chains: Starts, all climbing at once.
        rounds: Moves of each.
        seed: Seed of the draws.
        recheck: Rays with the largest scores that are evaluated at 50 digits in any case; of the hits, up to 20 are.
    """
    rays, scores = _climb(question.score, chains, rounds, seed)
    order = np.argsort(-scores)
    hits = int((scores > question.threshold).sum())
    confirmed, closest, example = 0, -np.inf, rays.row(int(order[0]))
    chosen = [int(index) for index in order[: max(recheck, min(hits, 20))] if np.isfinite(scores[index])]
    for index in chosen:
        ray = rays.row(index)
        with mp.workdps(DIGITS + 30):
            value = question.exact(ray)
            closest = max(closest, float(value))
            if value > question.bar:
                example = example if confirmed else ray | {"score": float(value)}
                confirmed += 1
    return SearchResult(
        question.name, chains * (rounds + 1), float(scores.max()), hits, confirmed, len(chosen), closest, example
    )


def exact_policy(ray: Ray) -> tuple[list[Number], list[Number]]:
    """Counts and probabilities of a ray's atoms, exactly."""
    counts = [mp.mpf(n) for n in ray["counts"]]
    weights = [mp.exp(mp.mpf(z)) for z in ray["logits"]]
    total = mp.fsum(n * w for n, w in zip(counts, weights, strict=True))
    return counts, [w / total for w in weights]


def exact_entropy(counts: list[Number], probs: list[Number]) -> Number:
    """Entropy of atoms of equal tokens."""
    return -mp.fsum(n * p * mp.log(p) for n, p in zip(counts, probs, strict=True) if p > 0)


def exact_move(counts: list[Number], probs: list[Number], direction: list[Number], alpha: Number) -> list[Number]:
    """Probabilities after a step of the logits."""
    weights = [p * mp.exp(alpha * v) for p, v in zip(probs, direction, strict=True)]
    total = mp.fsum(n * w for n, w in zip(counts, weights, strict=True))
    return [w / total for w in weights]


def exact_divergence(counts: list[Number], moved: list[Number], probs: list[Number]) -> Number:
    """KL(q‖p) of atoms of equal tokens."""
    return mp.fsum(n * q * mp.log(q / p) for n, q, p in zip(counts, moved, probs, strict=True) if q > 0)


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
