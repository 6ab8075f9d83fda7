"""Checks by drawing tokens: a mean is compared with its true standard error, not with zero."""

from __future__ import annotations

from functools import partial

import numpy as np

from entropy_theory.theory import categorical, curvature, discriminant
from entropy_theory.theory.verification.checks.policies import plain_entropy, plain_log, plain_softmax
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

drawn = partial(check, Kind.MONTE_CARLO)

POSITIONS, VOCAB_SIZE = 200, 50
LIMIT = 4.0  # a true statement exceeds it once in 16,000 draws of all seeds
VARIANCE_TOLERANCE = 0.1  # drawn against exact variance; its own error is about 1 % at 20,000 tokens


@drawn("mean of S_c over drawn tokens", discriminant.centered_discriminant)
def on_policy_mean(budget: Budget) -> Evidence:
    """Corollary 3.5: the mean of S_c over tokens drawn on-policy, in units of √(Σ_t Var_{p_t} S)/n.

    The variance is computed from p (H + log p) as the paper writes it; the drawn tokens are scored by the functions
    under test.
    """
    scores, ratios, mean_sizes = [], [], []
    draws = max(1, budget.tokens // POSITIONS)
    for seed in budget.seeds:
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(POSITIONS, VOCAB_SIZE)) * rng.uniform(0.5, 5.0, size=(POSITIONS, 1))
        probs = plain_softmax(logits)
        cumulative = np.cumsum(probs, axis=-1)
        uniform = rng.random((draws, POSITIONS)) * cumulative[:, -1]
        tokens = np.stack(
            [np.searchsorted(row, column, side="right") for row, column in zip(cumulative, uniform.T, strict=True)],
            axis=-1,
        )
        centred = discriminant.centered_discriminant(logits, tokens)
        plain = probs * (plain_entropy(probs)[:, np.newaxis] + plain_log(probs))
        mean = (probs * plain).sum(axis=-1, keepdims=True)
        variance = (probs * (plain - mean) ** 2).sum(axis=-1)
        standard_error = float(np.sqrt(draws * variance.sum()) / tokens.size)
        scores.append(float(centred.mean()) / standard_error)
        ratios.append(float((centred**2).mean() / variance.mean()))
        mean_sizes.append(abs(float(centred.mean())) / float(np.abs(np.take_along_axis(plain, tokens.T, -1)).mean()))
    z = float(np.sum(scores) / np.sqrt(len(scores)))
    variance_ratio = float(np.mean(ratios))
    passed = (
        abs(z) <= LIMIT and max(map(abs, scores)) <= LIMIT + 1.0 and abs(variance_ratio - 1.0) <= VARIANCE_TOLERANCE
    )
    return Evidence(
        passed,
        f"z = mean/SE = {z:.2f} over {len(scores)} seeds of {draws * POSITIONS} tokens; |mean S_c| is "
        f"{float(np.mean(mean_sizes)):.1e} of mean |S|",
        {
            "z": z,
            "limit": LIMIT,
            "z_per_seed": scores,
            "seeds": list(budget.seeds),
            "tokens_per_seed": draws * POSITIONS,
            "standard_error": standard_error,
            "drawn_over_exact_variance": variance_ratio,
            "region": f"{POSITIONS} normal policies of V = {VOCAB_SIZE} per seed, sampled at the temperature scored",
        },
    )


@drawn("mean exact change under random advantages", curvature.noise_drift)
def noise_drift(budget: Budget) -> Evidence:
    """Section B.10: the mean exact change of entropy under random advantages, in units of its standard error.

    Advantages come in pairs ±α for the same token, so that the first order leaves the mean; what is left is
    ½ α² E[H''] and the fourth order, which α = .05 keeps at a thousandth of it.
    """
    size, alpha = 12, 0.05
    scores = []
    draws = max(1, budget.tokens // 20)
    for seed in budget.seeds:
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=size) * rng.uniform(0.3, 2.5)
        probs = plain_softmax(logits)
        tokens = rng.choice(size, size=draws, p=probs)
        each = np.arange(size)
        directions = (each[:, np.newaxis] == each) - probs
        up, down = (categorical.entropy_change(logits, sign * alpha * directions) for sign in (1.0, -1.0))
        pairs = 0.5 * (up + down)
        drawn = pairs[tokens]
        error = float(drawn.std() / np.sqrt(draws))
        expected = float(curvature.noise_drift(logits, alpha**2))
        slack = 2e-3 * float(np.abs(pairs).max())  # the fourth order
        gap = max(0.0, abs(float(drawn.mean()) - expected) - slack)
        scores.append(gap / error)
    z = float(np.sqrt(np.mean(np.square(scores))))
    return Evidence(
        z <= LIMIT and max(scores) <= LIMIT + 1.0,
        f"root mean square z = {z:.2f} over {len(scores)} seeds of {draws} tokens",
        {
            "z": z,
            "limit": LIMIT,
            "z_per_seed": scores,
            "seeds": list(budget.seeds),
            "tokens_per_seed": draws,
            "region": f"normal policies of V = {size}, |alpha| = {alpha}",
        },
    )


@drawn("mean of S_c under top-p sampling", discriminant.centered_discriminant)
def off_policy_mean(budget: Budget) -> Evidence:
    """Section B.13: what breaks Corollary 3.5 is seen. Under top-p sampling the mean of S_c is not zero.

    The mean over drawn tokens is compared with its exact expectation under the distribution that was sampled, and that
    expectation must lie many standard errors from zero.
    """
    share, scores, distances = 0.7, [], []
    draws = max(1, budget.tokens // POSITIONS)
    for seed in budget.seeds:
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(POSITIONS, VOCAB_SIZE)) * 2.0
        probs = plain_softmax(logits)
        order = np.argsort(-probs, axis=-1)
        ranked = np.take_along_axis(probs, order, axis=-1)
        kept = np.zeros_like(probs)
        np.put_along_axis(kept, order, (np.cumsum(ranked, axis=-1) - ranked < share).astype(float), axis=-1)
        sampled = probs * kept
        sampled /= sampled.sum(axis=-1, keepdims=True)
        cumulative = np.cumsum(sampled, axis=-1)
        uniform = rng.random((draws, POSITIONS)) * cumulative[:, -1]
        tokens = np.stack(
            [np.searchsorted(row, column, side="right") for row, column in zip(cumulative, uniform.T, strict=True)],
            axis=-1,
        )
        centred = discriminant.centered_discriminant(logits, tokens)
        plain = probs * (plain_entropy(probs)[:, np.newaxis] + plain_log(probs))
        plain = plain - (probs * plain).sum(axis=-1, keepdims=True)
        mean = (sampled * plain).sum(axis=-1)
        variance = (sampled * (plain - mean[:, np.newaxis]) ** 2).sum(axis=-1)
        error = float(np.sqrt(draws * variance.sum()) / tokens.size)
        scores.append((float(centred.mean()) - float(mean.mean())) / error)
        distances.append(float(mean.mean()) / error)
    z = float(np.sum(scores) / np.sqrt(len(scores)))
    passed = abs(z) <= LIMIT and max(map(abs, scores)) <= LIMIT + 1.0 and min(distances) > 10.0
    return Evidence(
        passed,
        f"z = {z:.2f} about the exact mean of top-p sampling, itself {min(distances):.0f} standard errors above zero",
        {
            "z": z,
            "limit": LIMIT,
            "z_per_seed": scores,
            "seeds": list(budget.seeds),
            "tokens_per_seed": draws * POSITIONS,
            "distance_from_zero": distances,
            "region": f"{POSITIONS} normal policies of V = {VOCAB_SIZE} per seed, top-p {share}",
        },
    )
