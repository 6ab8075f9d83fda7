"""The policies that the checks try: seeded random ones and the corners where formulas break."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from entropy_theory.theory._policy import FloatArray

SCALES = (1e-6, 0.1, 1.0, 5.0, 20.0)
OFFSETS = (0.0, 0.0, 1e4, -1e4)
GAPS = (5.0, 15.0, 27.6, 100.0, 690.0)  # 27.6: 1 − p_max near 1e-12; 690: probabilities near 1e-300


def random_logits(vocab_size: int, count: int, rng: np.random.Generator) -> FloatArray:
    """Draw normal logits, shape (count, V), from nearly uniform to nearly deterministic and with offsets of ±10⁴."""
    index = np.arange(count)
    scale = np.asarray(SCALES)[index % len(SCALES), np.newaxis]
    offset = np.asarray(OFFSETS)[index % len(OFFSETS), np.newaxis]
    return rng.normal(size=(count, vocab_size)) * scale + offset


def corner_logits(vocab_size: int, largest_gap: float = GAPS[-1]) -> FloatArray:
    """Build the corners, shape (n, V): uniform, nearly one-hot, one-hot, tied maxima, tokens of probability 0, Zipf."""
    ranks = np.arange(vocab_size, dtype=np.float64)
    rows = [np.zeros(vocab_size), np.full(vocab_size, 1e4), -np.log1p(ranks)]
    for gap in GAPS:
        if gap <= largest_gap:
            rows.append(np.where(ranks == 0, 0.0, -gap))
            rows.append(np.where(ranks == vocab_size - 1, 0.0, -gap - ranks / vocab_size))
    rows.append(np.where(ranks == 0, 3.0, -np.inf))
    if vocab_size > 2:
        rows.append(np.where(ranks < 2, 1.0, -30.0 - ranks / vocab_size))
        rows.append(np.where(ranks % 2 == 1, -np.inf, np.cos(ranks)))
    return np.stack(rows)


def trial_logits(vocab_size: int, count: int, rng: np.random.Generator, largest_gap: float = GAPS[-1]) -> FloatArray:
    """Corners first, then random ones, shape (n, V)."""
    return np.concatenate([corner_logits(vocab_size, largest_gap), random_logits(vocab_size, count, rng)])


def trial_tokens(logits: FloatArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose the likeliest token of each policy, the least likely possible one and a random possible one: (3, n)."""
    possible = np.isfinite(logits)
    lowest = np.where(possible, logits, np.inf).argmin(axis=-1)
    random_tokens = np.where(possible, rng.random(logits.shape), -1.0).argmax(axis=-1)
    return np.stack([logits.argmax(axis=-1), lowest, random_tokens])


def plain_softmax(logits: FloatArray) -> FloatArray:
    """Softmax as the textbook writes it, for use as an oracle; good to 1e-15 of each probability."""
    weights: FloatArray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def plain_log(probs: FloatArray) -> FloatArray:
    """Logarithm with log 0 read as 0, since it is always multiplied by that 0."""
    result: FloatArray = np.log(np.where(probs > 0.0, probs, 1.0))
    return result


def plain_entropy(probs: FloatArray) -> FloatArray:
    """Entropy as the textbook writes it, −Σ p log p."""
    result: FloatArray = -(probs * plain_log(probs)).sum(axis=-1)
    return result
