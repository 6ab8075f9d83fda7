"""Seeded random draws: generators that depend only on what they are for, and draws that do not depend on the layout.

A draw is never the continuation of an earlier one, so a run that resumes sees the numbers of the undisturbed one. And
tokens are drawn for in global token order, so a token gets the same number however tokens are split over ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_theory.control.reducers import LOCAL, Reducer, token_offset
from entropy_theory.errors import invalid


def seeded_generator(seed: int, *counters: int) -> torch.Generator:
    """Make the generator of one draw, such as that of one step of a run.

    It always lives on the CPU: the numbers are few and are then the same whatever device computes with them.

    Args:
        seed: The seed of the run, an integer ≥ 0.
        *counters: Which draw it is, such as its purpose and the step; integers ≥ 0.

    Returns:
        A fresh CPU generator.

    Raises:
        ValueError: A seed or counter is not an integer ≥ 0.

    Example:
        >>> first, again = (torch.rand(3, generator=seeded_generator(0, 2, 7)) for _ in range(2))
        >>> bool((first == again).all())
        True
    """
    for name, value in (("seed", seed), *(("counter", counter) for counter in counters)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise invalid(name, "an integer >= 0", repr(value))
    # The sequence mixes its entropy, so that neighbouring seeds and steps have nothing in common.
    # torch's CPU generator reads 32 bits of its seed.
    mixed = np.random.SeedSequence([seed, *counters]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def uniform_keys(
    mask: Bool[Tensor, "*shape"], generator: torch.Generator, reducer: Reducer = LOCAL
) -> Float[Tensor, "*shape"]:
    """Draw one uniform number per valid token, the same for the same token however tokens are split over ranks.

    Every rank draws the numbers of all valid tokens in global token order from its own copy of the generator and
    takes its slice; so the generators must be in the same state on every rank, which is checked.

    Args:
        mask: The valid tokens of this rank.
        generator: The source of randomness, seeded alike on every rank; advances by the number of valid tokens.
        reducer: The collectives.

    Returns:
        Numbers in [0, 1), float64, 0 outside the mask.

    Raises:
        ValueError: the ranks drew different numbers.

    Example:
        >>> mask = torch.tensor([[True, False], [True, True]])
        >>> keys = uniform_keys(mask, torch.Generator().manual_seed(0))
        >>> bool((keys[mask] == torch.rand(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).all())
        True
    """
    places = mask.reshape(-1).nonzero().squeeze(-1)
    offset, total = token_offset(places.numel(), reducer)
    drawn = torch.rand(total, generator=generator, device=generator.device, dtype=torch.float64)
    lasts = reducer.gather(drawn[-1:])
    if bool((lasts != lasts[:1]).any()):
        raise invalid("generator", "the same seed and state on every rank", "generators that differ")
    keys = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    keys.view(-1)[places] = drawn[offset : offset + places.numel()].to(mask.device)
    return keys


def random_tokens(
    candidates: Bool[Tensor, "*shape"], k: int, generator: torch.Generator, reducer: Reducer = LOCAL
) -> Bool[Tensor, "*shape"]:
    """Choose k candidates at random, the same ones however tokens are split over ranks.

    Every rank draws the same permutation of all candidates in global token order; the first k win.

    Args:
        candidates: The tokens to choose from, on this rank.
        k: How many in all; with fewer candidates, all of them.
        generator: The source of randomness, seeded alike on every rank.
        reducer: The collectives.

    Raises:
        ValueError: k negative, or the ranks drew different permutations.

    Example:
        >>> mask = torch.tensor([True, False, True, True])
        >>> random_tokens(mask, 2, torch.Generator().manual_seed(0)).sum().item()
        2
    """
    if k < 0:
        raise invalid("k", "a number of tokens ≥ 0", k)
    places = candidates.reshape(-1).nonzero().squeeze(-1)
    offset, total = token_offset(places.numel(), reducer)
    order = torch.randperm(total, generator=generator, device=generator.device)
    lasts = reducer.gather(order[-1:].to(candidates.device))
    if bool((lasts != lasts[:1]).any()):
        raise invalid("generator", "the same seed and state on every rank", "generators that differ")
    won = torch.zeros(total, dtype=torch.bool)
    won[order[:k].cpu()] = True
    chosen = torch.zeros(candidates.shape, dtype=torch.bool, device=candidates.device)  # contiguous
    chosen.view(-1)[places] = won[offset : offset + places.numel()].to(candidates.device)
    return chosen
