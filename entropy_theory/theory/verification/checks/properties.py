"""Checks of laws that every policy obeys, tried on seeded random policies and on the corners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from entropy_theory.theory import categorical, discriminant
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.verification.checks.policies import (
    plain_entropy,
    plain_log,
    plain_softmax,
    trial_logits,
    trial_tokens,
)
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

law = partial(check, Kind.PROPERTY)

# Round-off of a sum over V tokens: a few units of 1.1e-16 times the summed size of its terms, with room for the error
# of each term. A formula that is wrong is wrong by far more.
ROUND_OFF = 1e-13

Excess = FloatArray
"""How far each case violates its law, in units of the tolerance: a case holds when this is ≤ 1."""


@law("Σ S_i = 0", discriminant.discriminant)
def sum_is_zero(budget: Budget) -> Evidence:
    """Section B.1: Σ S_i = 0."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        scores = discriminant.discriminant(logits)
        yield np.abs(scores.sum(axis=-1)) / at_least(np.abs(scores).sum(axis=-1))

    return hold(budget, excess)


@law("sign of S_k, and its lower bound", discriminant.discriminant)
def threshold_and_bound(budget: Budget) -> Evidence:
    """Theorem 3.2 and section B.1: S_k has the sign of p_k − e^{−H}, and S_k ≥ −e^{−(1+H)}."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        scores = discriminant.discriminant(logits)
        H = categorical.entropy(logits)[:, np.newaxis]
        probs = plain_softmax(logits)
        margin = plain_log(probs) + H  # sign of p − e^{−H}
        # Closer to the threshold than 1e-12 the oracle's own sign is round-off; such tokens are not counted.
        decided = (np.abs(margin) > 1e-12) & (probs > 0.0)
        yield np.where(np.sign(scores) != np.sign(margin), np.inf, 0.0)[decided]
        bound = np.exp(-(1.0 + H))
        yield (-scores - bound) / (ROUND_OFF * bound)

    return hold(budget, excess)


@law("the forms of the centred discriminant agree", discriminant.first_order_change)
def centred_forms_agree(budget: Budget) -> Evidence:
    """Theorem 3.3: the change along e_k − p, −Σ S_i d_i, is −(S_k − N) with N = Σ p S summed plainly."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        probs = plain_softmax(logits)
        scores = discriminant.discriminant(logits)
        plain_baseline = (probs * scores).sum(axis=-1)
        size = at_least((probs * np.abs(scores)).sum(axis=-1))
        yield np.abs(discriminant.baseline(logits) - plain_baseline) / size
        for tokens in trial_tokens(logits, rng):
            change = discriminant.first_order_change(logits, discriminant.grpo_direction(logits, tokens), 1.0)
            at_token = np.take_along_axis(scores, tokens[:, np.newaxis], axis=-1)[:, 0]
            term = at_least(np.abs(scores).sum(axis=-1))  # what the sum over the direction adds up
            yield np.abs(change + (at_token - plain_baseline)) / term
            yield np.abs(discriminant.centered_discriminant(logits, tokens) - (at_token - plain_baseline)) / term

    return hold(budget, excess)


@law("Σ p S_c = 0", discriminant.centered_discriminant)
def centred_mean_is_zero(budget: Budget) -> Evidence:
    """Corollary 3.4: E_{k~p}[S_k − N] = 0."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        probs = plain_softmax(logits)
        weighted = probs * discriminant.centered_discriminant(logits)
        size = probs * (np.abs(discriminant.discriminant(logits)) + np.abs(weighted))
        yield np.abs(weighted.sum(axis=-1)) / at_least(size.sum(axis=-1))

    return hold(budget, excess)


@law("there and back, and the upper bound", categorical.entropy_change)
def change_reverses(budget: Budget) -> Evidence:
    """Section B.3: there and back is nothing, and −Σ (q − p) log p is an upper bound because KL ≥ 0."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        # The way back starts from rounded logits; without the offset, and with steps on a grid of 2^-40, it does not.
        grid = 2.0**-40
        start = np.round((logits - logits.max(axis=-1, keepdims=True)) / grid) * grid
        for scale in (1e-6, 1e-2, 1.0, 30.0):
            delta = np.round(rng.normal(size=start.shape) * scale / grid) * grid
            there = categorical.entropy_change(start, delta)
            back = categorical.entropy_change(start + delta, -delta)
            p, q = plain_softmax(start), plain_softmax(start + delta)
            linear = (q - p) * plain_log(p)
            size = at_least(np.abs(linear).sum(axis=-1) + plain_entropy(p) + plain_entropy(q))
            yield np.abs(there + back) / size
            # The textbook forms round at 1e-16 of 1, however small the entropies are.
            yield (there + linear.sum(axis=-1)) / (size + ROUND_OFF)
            yield np.abs(there - (plain_entropy(q) - plain_entropy(p))) / (size + ROUND_OFF)

    return hold(budget, excess)


@law("signs of the covariance and of the exact expected change", discriminant.centered_discriminant)
def four_signs(budget: Budget) -> Evidence:
    """Keep tokens with S > τ (or S ≤ τ), with a positive (or negative) advantage: four conditions, four signs.

    First by the formula, Cov_p(S, 1{S > τ}) ≥ 0; then by the exact change of entropy along the expected update
    Σ_k p_k 1{kept} (e_k − p), where the first order is at least ten times the second.
    """
    step = 1e-6

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        probs = plain_softmax(logits)
        scores = discriminant.discriminant(logits)
        centred = discriminant.centered_discriminant(logits)
        size = at_least((probs * (np.abs(scores) + np.abs(centred))).sum(axis=-1))
        thresholds = [np.zeros(len(logits))]
        thresholds += [np.take_along_axis(scores, t[:, np.newaxis], axis=-1)[:, 0] for t in trial_tokens(logits, rng)]
        for threshold in thresholds:
            above = scores > threshold[:, np.newaxis]
            for kept, sign in ((above, 1.0), (~above, -1.0)):
                expected = sign * (probs * kept * centred).sum(axis=-1)  # |Cov_p(S, 1{S > τ})|
                yield -expected / size
                share = (probs * kept).sum(axis=-1, keepdims=True)
                update = probs * (kept - share)
                spread = (probs * update**2 * (1.0 + np.abs(plain_log(probs)))).sum(axis=-1)
                clear = expected > np.maximum(10.0 * step * spread, size)
                for advantage in (1.0, -1.0):
                    change = categorical.entropy_change(logits, advantage * step * update)
                    yield np.where(np.sign(change) != -sign * advantage, np.inf, 0.0)[clear]

    evidence = hold(budget, excess)
    example = np.log([0.5, 0.45, 0.05])
    evidence.data["not_token_by_token"] = {
        "probs": [0.5, 0.45, 0.05],
        "token": 1,
        "S": float(discriminant.discriminant(example, 1)),
        "S_c": float(discriminant.centered_discriminant(example, 1)),
    }
    return evidence


def at_least(size: FloatArray) -> FloatArray:
    """The tolerance that goes with terms of this size; never 0, so that 0/0 cannot arise."""
    return np.maximum(ROUND_OFF * size, 1e-300)


def hold(budget: Budget, excess: Callable[[FloatArray, np.random.Generator], Iterator[Excess]]) -> Evidence:
    """Try a law on random policies and corners; a case holds when its violation is within the tolerance."""
    rng = np.random.default_rng(budget.seed)
    cases, failures, worst, failed_at = 0, 0, 0.0, set()
    for vocab_size in budget.vocab_sizes:
        logits = trial_logits(vocab_size, budget.policies, rng)
        for values in excess(logits, rng):
            broken = ~(values <= 1.0)  # NaN counts as broken
            cases += values.size
            failures += int(broken.sum())
            worst = max(worst, float(np.max(np.where(np.isnan(values), np.inf, values), initial=0.0)))
            if broken.any():
                failed_at.add(vocab_size)
    return Evidence(
        failures == 0,
        f"worst violation {worst:.2g} of the tolerance over {cases} cases, V in {budget.vocab_sizes}",
        {
            "cases": cases,
            "failures": failures,
            "worst_in_tolerances": worst,
            "round_off": ROUND_OFF,
            "failed_vocab_sizes": sorted(failed_at),
            "region": "seeded random policies and corners: uniform, one-hot, -inf logits, ties, offsets of 1e4",
        },
    )
