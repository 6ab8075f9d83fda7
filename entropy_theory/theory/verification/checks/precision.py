"""Checks against the definitions at 50 digits and more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import floor, log10

import mpmath as mp
import numpy as np

from entropy_theory.theory import categorical, discriminant
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.verification.checks import oracle
from entropy_theory.theory.verification.checks.policies import trial_logits, trial_tokens
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

high_precision = partial(check, Kind.HIGH_PRECISION)

# float64 holds 15.9 digits. A discriminant near its zero, or a sum over tokens of both signs, may lose a few of them;
# ten is the promise of the package, made for every policy tried here.
REQUIRED_DIGITS = 10
STEPS = (1e-8, -1e-8, 1e-4, 0.3, -2.0, 20.0)


@high_precision("p_k (e_k − p) against slopes of the softmax", discriminant.grpo_direction)
def softmax_slopes(budget: Budget) -> Evidence:
    """Lemma 3.1: p_k (e_k − p) against the slopes of the softmax."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        claimed = np.exp(categorical.log_softmax(logits)[token]) * discriminant.grpo_direction(logits, token)
        for value, reference in zip(claimed, oracle.probability_slopes(z, token), strict=True):
            yield oracle.relative_error(value, reference)

    return compare(budget, errors)


@high_precision("S_k against the slope of H", discriminant.discriminant)
def discriminant_is_slope(budget: Budget) -> Evidence:
    """Theorem 3.2: S_k against −dH/dz_k."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        reference = -oracle.entropy_slope(z, oracle.unit(len(z), token))
        yield oracle.relative_error(float(discriminant.discriminant(logits, token)), reference)

    return compare(budget, errors)


@high_precision("S_k − N against the slope of H along e_k − p", discriminant.centered_discriminant)
def centered_discriminant_is_slope(budget: Budget) -> Evidence:
    """Theorem 3.3: S_k − N against −dH/dα along e_k − p."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        reference = -oracle.entropy_slope(z, oracle.policy_gradient(z, token))
        yield oracle.relative_error(float(discriminant.centered_discriminant(logits, token)), reference)

    return compare(budget, errors)


@high_precision("N against the mean slope of H", discriminant.baseline)
def baseline_is_mean_slope(budget: Budget) -> Evidence:
    """Corollary 3.4: N against minus the slope of H along p itself, which is E_p[S]."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        reference = -oracle.entropy_slope(z, oracle.probabilities(z))
        yield oracle.relative_error(float(discriminant.baseline(logits)), reference)

    return compare(budget, errors, tokens_per_policy=1)


@high_precision("−Σ S_i d_i against the slope of H along d", discriminant.first_order_change)
def first_order_is_slope(budget: Budget) -> Evidence:
    """Section B.1: −Σ S_i d_i against dH/dt along random directions."""
    rng = np.random.default_rng(budget.seed)

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        direction = rng.normal(size=logits.shape)
        reference = oracle.entropy_slope(z, oracle.exact(direction))
        yield oracle.relative_error(float(discriminant.first_order_change(logits, direction, 1.0)), reference)

    return compare(budget, errors, tokens_per_policy=1)


@high_precision("steps from 1e-8 to 20 against the two entropies", categorical.entropy_change)
def exact_change(budget: Budget) -> Evidence:
    """Section B.3: the entropy, and its change at steps from 1e-8 to 20 against the two entropies, subtracted."""
    rng = np.random.default_rng(budget.seed)

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        yield oracle.relative_error(float(categorical.entropy(logits)), oracle.entropy(z))
        single = (np.arange(logits.size) == token).astype(np.float64)
        for direction in (single, discriminant.grpo_direction(logits, token), rng.normal(size=logits.shape)):
            for step in STEPS:
                delta = step * direction
                reference = oracle.entropy_change(z, oracle.exact(delta))
                yield oracle.relative_error(float(categorical.entropy_change(logits, delta)), reference)

    # Beyond probabilities of 1e-45 a large step meets rounding of the logits themselves, which is no error of the form.
    return compare(budget, errors, largest_gap=100.0, tokens_per_policy=1)


def compare(
    budget: Budget,
    errors: Callable[[FloatArray, int], Iterator[float]],
    largest_gap: float = 690.0,
    tokens_per_policy: int = 3,
) -> Evidence:
    """Collect relative errors over policies and tokens, in a working precision that fits each policy."""
    rng = np.random.default_rng(budget.seed)
    worst, cases, at = 0.0, 0, {"vocab_size": 0, "token": 0}
    for vocab_size in budget.precise_vocab_sizes:
        logits = trial_logits(vocab_size, budget.precise_policies, rng, largest_gap)
        tokens = trial_tokens(logits, rng)
        for row, choices in zip(logits, tokens.T, strict=True):
            with mp.workdps(oracle.digits_for(row)):
                for token in dict.fromkeys(int(choice) for choice in choices[:tokens_per_policy]):
                    for error in errors(row, token):
                        cases += 1
                        if not error <= worst:  # also true of NaN
                            worst, at = error, {"vocab_size": vocab_size, "token": token}
    digits = digits_of(worst)
    passed = digits >= REQUIRED_DIGITS
    return Evidence(
        passed,
        f"worst relative error {worst:.1e} over {cases} comparisons, {REQUIRED_DIGITS} digits required",
        {
            "digits": digits,
            "required_digits": REQUIRED_DIGITS,
            "worst_relative_error": worst,
            "cases": cases,
            "at": at,
            "region": f"seeded random policies and corners, V in {budget.precise_vocab_sizes},"
            f" probabilities down to e^-{largest_gap:g}",
        },
    )


def digits_of(error: float) -> int:
    """Decimal digits that agree at a relative error, at most the 16 that float64 holds."""
    return floor(-log10(max(error, 1e-16))) if error < 1.0 else 0
