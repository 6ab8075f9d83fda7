"""Checks by drawing tokens: a mean is compared with its true standard error, not with zero."""

from __future__ import annotations

import numpy as np

from entropy_theory.theory import discriminant
from entropy_theory.theory.checks.policies import plain_entropy, plain_log, plain_softmax
from entropy_theory.theory.evidence import Budget, Evidence

POSITIONS, VOCAB_SIZE = 200, 50
LIMIT = 4.0  # a true statement exceeds it once in 16,000 draws of all seeds
VARIANCE_TOLERANCE = 0.1  # drawn against exact variance; its own error is about 1 % at 20,000 tokens


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
