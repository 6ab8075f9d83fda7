"""What a simulation draws random numbers for, and the numbers: a generator for each draw, a counter for each sample.

Tokens are sampled with counter-based numbers, Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random
numbers: as easy as 1, 2, 3" (SC 2011). A number is a function of seed, purpose, step, policy and sample, so whoever
needs it computes it: any thread, rank or implementation. Everything else is drawn from generators.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.control.random import seeded_generator


class Draw(IntEnum):
    """What a draw is for."""

    LOGITS = 0
    CORRECT = 1
    TOKENS = 2
    RULE = 3
    PAIRS = 4
    TRUNCATED = 5
    ADVANTAGES = 6
    FORKING = 7


def generator(seed: int, purpose: Draw, *counters: int) -> torch.Generator:
    """Make the generator of one draw: `control.random.seeded_generator` with the purpose as first counter.

    Example:
        >>> first, again = (torch.rand(3, generator=generator(0, Draw.TOKENS, 7)) for _ in range(2))
        >>> bool((first == again).all())
        True
    """
    return seeded_generator(seed, int(purpose), *counters)


def distinct_places(total: int, count: int, source: torch.Generator) -> NDArray[np.int64]:
    """Choose `count` different places of `total`, in order: Floyd's algorithm, whose memory does not grow with `total`.

    Example:
        >>> distinct_places(10**12, 3, generator(0, Draw.PAIRS)).size, distinct_places(2, 2, generator(0, Draw.PAIRS))
        (3, array([0, 1]))
    """
    last = range(total - count, total)
    chosen: set[int] = set()
    for end, uniform in zip(last, torch.rand(count, dtype=torch.float64, generator=source).tolist(), strict=True):
        place = int(uniform * (end + 1))
        chosen.add(end if place in chosen else place)
    return np.array(sorted(chosen), dtype=np.int64)


_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_LOW, _HALF, _SPARE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(11)
ROUNDS = 10


def philox(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix counters with a key by Philox4x32-10: neighbouring counters give independent words.

    A round multiplies the words 0 and 2 by constants, to 64 bits each, and forms

        (high(M₁ c₂) ⊕ c₁ ⊕ k₀, low(M₁ c₂), high(M₀ c₀) ⊕ c₃ ⊕ k₁, low(M₀ c₀));

    after each of the ten rounds the key moves on by (W₀, W₁), modulo 2^32.

    Args:
        counter: c, words of 32 bits, (..., 4).
        key: k, words of 32 bits, (2,).

    Returns:
        Words of 32 bits, (..., 4).

    Example:
        >>> [f"{word:08x}" for word in philox(np.zeros(4, np.uint64), np.zeros(2, np.uint64))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = np.moveaxis(counter, -1, 0)
    for number in range(ROUNDS):
        k0, k1 = (key + np.uint64(number) * _WEYL) & _LOW
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (second >> _HALF) ^ c1 ^ k0, second & _LOW, (first >> _HALF) ^ c3 ^ k1, first & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def policy_uniforms(seed: int, purpose: Draw, step: int, policies: range, group_size: int) -> Float[Tensor, "B G"]:
    """Give the uniform numbers of a step of some policies.

    The key is (seed, purpose). The counter (m, b, t, 0) of step t and policy b, its place in the whole bank, gives the
    samples 2m and 2m + 1: the first 53 bits of two words each, divided by 2^53.

    Args:
        seed: In [0, 2^32).
        purpose: What the draw is for.
        step: t in [0, 2^32).
        policies: The places b of the policies, in [0, 2^32).
        group_size: G, samples of each.

    Returns:
        Numbers in [0, 1), float64, (B, G), on the CPU.

    Example:
        >>> whole = policy_uniforms(0, Draw.TOKENS, 3, range(10), 4)
        >>> bool((policy_uniforms(0, Draw.TOKENS, 3, range(6, 8), 4) == whole[6:8]).all())
        True
    """
    pairs = -(-group_size // 2)
    counter = np.zeros((len(policies), pairs, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(pairs)
    counter[..., 1] = np.arange(policies.start, policies.stop)[:, np.newaxis]
    counter[..., 2] = step
    words = philox(counter, np.array([seed, purpose], dtype=np.uint64))
    bits = (words[..., 0::2] << _HALF | words[..., 1::2]) >> _SPARE
    return torch.from_numpy(bits.astype(np.float64) * 2.0**-53).reshape(len(policies), -1)[:, :group_size]
