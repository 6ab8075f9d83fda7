"""What a simulation draws random numbers for; each draw has a generator of its own."""

from __future__ import annotations

from enum import IntEnum

import torch

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
