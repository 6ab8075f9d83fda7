"""Random draws that depend only on what they are for: a seed, a purpose and a counter.

A draw is never the continuation of an earlier one. So a run that resumes, works in other blocks or skips recording
sees the very same numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch

from entropy_theory.errors import invalid


class Draw(IntEnum):
    """What a draw is for.

    Example:
        >>> Draw.TOKENS.name
        'TOKENS'
    """

    LOGITS = 0
    CORRECT = 1
    TOKENS = 2
    RULE = 3
    PAIRS = 4
    TRUNCATED = 5
    ADVANTAGES = 6
    FORKING = 7


def generator(seed: int, purpose: Draw, *counters: int) -> torch.Generator:
    """Make the generator of one draw.

    It always lives on the CPU: the numbers are few and are then the same whatever device computes with them.

    Args:
        seed: The seed of the run, an integer ≥ 0.
        purpose: What is drawn.
        *counters: Which draw of that kind, such as the step; integers ≥ 0.

    Returns:
        A fresh CPU generator.

    Raises:
        ValueError: A seed or counter is not an integer ≥ 0.

    Example:
        >>> one, again = (generator(0, Draw.TOKENS, 7) for _ in range(2))
        >>> bool((torch.rand(3, generator=one) == torch.rand(3, generator=again)).all())
        True
    """
    for name, value in (("seed", seed), *(("counter", counter) for counter in counters)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise invalid(name, "an integer >= 0", repr(value))
    # The sequence mixes its entropy, so that neighbouring seeds and steps have nothing in common.
    # torch's CPU generator reads 32 bits of its seed.
    mixed = np.random.SeedSequence([seed, int(purpose), *counters]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))
