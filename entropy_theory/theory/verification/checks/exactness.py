"""Checks of the forms beyond the paper against the definitions at 50 digits and more."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import mpmath as mp
import numpy as np

from entropy_theory.theory import categorical, curvature, single_logit, updates
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.verification.checks import oracle
from entropy_theory.theory.verification.checks.precision import STEPS, compare
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

high_precision = partial(check, Kind.HIGH_PRECISION)


@high_precision("steps from 1e-8 to 20 against two entropies", single_logit.single_logit_entropy_change)
def single_logit_change(budget: Budget) -> Evidence:
    """Section B.4: from (p, H) as the float64 numbers they are, steps of 1e-8 to 20, uniform policies included.

    The oracle builds the policy of two groups that has this p and this H_rest, and subtracts two entropies.
    """

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        probs = oracle.probabilities(oracle.exact(logits))
        p, H = float(probs[token]), float(oracle.entropy(oracle.exact(logits)))
        if not 0.0 < p < 1.0 - 1e-9:  # nearer to 1, H_rest is the rounding of H
            return
        exact_p, exact_H = mp.mpf(p), mp.mpf(H)
        before = -exact_p * mp.log(exact_p) - (1 - exact_p) * mp.log(1 - exact_p)
        rest = (exact_H - before) / (1 - exact_p)
        if rest < 0:  # a two-token policy whose H was rounded below h(p) belongs to no policy
            return
        for step in STEPS:
            weight = exact_p * mp.exp(mp.mpf(step))
            q = weight / (weight + 1 - exact_p)
            after = -q * mp.log(q) - (1 - q) * mp.log(1 - q) + (1 - q) * rest
            change = after - exact_H
            value = float(single_logit.single_logit_entropy_change(p, H, step))
            # A large step may land beside the mirror image, where ΔH is a difference of equal entropies.
            if abs(change) > 1e-3 * exact_H or abs(step) < 1e-3:
                yield oracle.relative_error(value, change)

    return compare(budget, errors, largest_gap=100.0)


@high_precision("root of the exact change by bisection", single_logit.sign_flip_radius)
def flip_radius_is_root(budget: Budget) -> Evidence:
    """Section B.5: ε* against the root of ΔH in many digits, found by bisection from the bracket of the law."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        p = float(oracle.probabilities(oracle.exact(logits))[token])
        H = float(oracle.entropy(oracle.exact(logits)))
        if not 1e-30 < p < 0.999:
            return
        exact_p, exact_H = mp.mpf(p), mp.mpf(H)
        rest = (exact_H + exact_p * mp.log(exact_p) + (1 - exact_p) * mp.log(1 - exact_p)) / (1 - exact_p)
        x = mp.log(exact_p / (1 - exact_p)) + rest
        radius = float(single_logit.sign_flip_radius(p, H))
        if rest < mp.mpf(1e-9) or abs(x) < mp.mpf(1e-6) or not np.isfinite(radius):
            return

        def change(step: oracle.Number) -> oracle.Number:
            weight = exact_p * mp.exp(step)
            q = weight / (weight + 1 - exact_p)
            return -q * mp.log(q) - (1 - q) * mp.log(1 - q) + (1 - q) * rest - exact_H

        near, far = -x, -2 * x
        while change(far) > 0:
            far *= 2
            if abs(far) > 1e4:  # no root, although the radius claims one
                yield float("inf")
                return
        for _ in range(120):
            middle = (near + far) / 2
            near, far = (middle, far) if change(middle) > 0 else (near, middle)
        # ΔH crosses 0 at a slope that vanishes with x, and p, H are rounded: digits of x are lost, not of the root.
        yield oracle.relative_error(radius, far) if abs(x) > 1e-3 else 0.0

    return compare(budget, errors, largest_gap=60.0, tokens_per_policy=2)


@high_precision("against second differences of the entropy", curvature.entropy_curvature)
def curvature_along_direction(budget: Budget) -> Evidence:
    """Section B.6: H'' along random directions against second differences of the entropy."""
    rng = np.random.default_rng(budget.seed)

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        direction = rng.normal(size=logits.shape)
        reference = oracle.entropy_curvature(oracle.exact(logits), oracle.exact(direction))
        yield oracle.relative_error(float(curvature.entropy_curvature(logits, direction)), reference)

    return compare(budget, errors, largest_gap=30.0, tokens_per_policy=1)


@high_precision("against second differences of the entropy", curvature.grpo_curvature)
def grpo_curvature(budget: Budget) -> Evidence:
    """Section B.7: H'' along e_k − p against second differences of the entropy, peaked rows included."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        reference = oracle.entropy_curvature(z, oracle.policy_gradient(z, token))
        yield oracle.relative_error(float(curvature.grpo_curvature(logits, token)), reference)

    return compare(budget, errors, largest_gap=30.0)


@high_precision("mean of second differences of the entropy", curvature.mean_grpo_curvature)
def mean_grpo_curvature(budget: Budget) -> Evidence:
    """Section B.10: the mean over the sampled token of second differences of the entropy."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        if logits.size > 12:
            return
        z = oracle.exact(logits)
        probs = oracle.probabilities(z)
        reference = mp.fsum(
            p * oracle.entropy_curvature(z, oracle.policy_gradient(z, k)) for k, p in enumerate(probs) if p > 0
        )
        yield oracle.relative_error(float(curvature.mean_grpo_curvature(logits)), reference)

    return compare(budget, errors, largest_gap=20.0, tokens_per_policy=1)


@high_precision("root of p (H + log p) = N by bisection", updates.baseline_boundary)
def boundary(budget: Budget) -> Evidence:
    """Section B.14: p_N against the root of p (H + log p) = N by bisection, N from the slope of the entropy."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        H, N = oracle.entropy(z), -oracle.entropy_slope(z, oracle.probabilities(z))
        near, far = mp.exp(-H), mp.mpf(1)
        for _ in range(180):  # the bits of 50 digits, and some
            middle = (near + far) / 2
            near, far = (middle, far) if middle * (H + mp.log(middle)) < N else (near, middle)
        yield oracle.relative_error(float(updates.baseline_boundary(logits)), far)

    return compare(budget, errors, largest_gap=30.0, tokens_per_policy=1)


@high_precision("against the slope of the entropy at T", updates.temperature_change)
def temperature_slope(budget: Budget) -> Evidence:
    """Section B.12: against the slope of the entropy at T along the update of a loss at T_L."""
    rng = np.random.default_rng(budget.seed)

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        for T, loss in ((0.5, None), (2.0, None), (0.75, 1.0), (1.25, float(rng.uniform(0.3, 3.0)))):
            trained = T if loss is None else loss
            z = oracle.exact(logits)
            update = [d / mp.mpf(trained) for d in oracle.policy_gradient([v / mp.mpf(trained) for v in z], token)]
            reference = oracle.entropy_slope([v / mp.mpf(T) for v in z], [d / mp.mpf(T) for d in update])
            value = float(updates.temperature_change(logits, token, 1.0, T, loss))
            size = sum(abs(float(d)) for d in update)
            # With two temperatures the sum over tokens cancels: its round-off is that of its terms, p (1 + |u|).
            error = oracle.relative_error(value, reference)
            yield error if loss is None else min(error, abs(value - float(reference)) / max(size, 1e-300))

    return compare(budget, errors, largest_gap=30.0, tokens_per_policy=2)


@high_precision("the roots, and the signs between them", categorical.entropy_change)
def known_roots(budget: Budget) -> Evidence:
    """Section B.8: the three roots of a predicted rise that comes and goes, and the root of two tokens.

    p = (1e-6, .13, .869999), first token, α > 0: the entropy is above its start up to 5.24343, below it up to 8.49445,
    above it again up to 12.10728. Two tokens: α* = −logit p/(1 − p).
    """
    worst = 0.0
    with mp.workdps(50):
        probs = [mp.mpf("1e-6"), mp.mpf("0.13"), mp.mpf("0.869999")]
        logits = [mp.log(p) for p in probs]
        direction = oracle.policy_gradient(logits, 0)

        def change(alpha: oracle.Number) -> oracle.Number:
            return oracle.entropy_change(logits, [alpha * d for d in direction])

        roots = []
        for guess in ("5.24343", "8.49445", "12.10728"):
            root = mp.findroot(change, mp.mpf(guess))
            roots.append(float(root))
            worst = max(worst, abs(float(root) - float(guess)) / 1e-5)
        rounded = [np.array([float(value) for value in values]) for values in (logits, direction)]
        signs = [int(np.sign(categorical.entropy_change(rounded[0], at * rounded[1]))) for at in (1, 7, 10, 15)]
        for p in (mp.mpf("0.1"), mp.mpf("0.3"), mp.mpf("0.9")):
            pair = [mp.log(p), mp.log(1 - p)]
            alpha = -mp.log(p / (1 - p)) / (1 - p)
            moved = oracle.entropy_change(pair, [alpha * d for d in oracle.policy_gradient(pair, 0)])
            worst = max(worst, float(abs(moved)) / 1e-40)
    passed = worst <= 1.0 and signs == [1, -1, 1, -1]
    return Evidence(
        passed,
        f"roots {', '.join(f'{root:.5f}' for root in roots)}; signs between them {signs}",
        {
            "digits": 6 if passed else 0,
            "roots": roots,
            "signs": signs,
            "region": "p = (1e-6, .13, .869999), alpha up to 15; V = 2 at p = .1, .3, .9",
        },
    )
