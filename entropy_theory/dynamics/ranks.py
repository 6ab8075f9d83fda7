"""Policies divided among the processes that torchrun starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from entropy_theory.control import DistributedReducer, Reducer
from entropy_theory.control.reducers import LOCAL
from entropy_theory.errors import invalid
from entropy_theory.ranks import leave_ranks

CHUNK = 1 << 20
"""At most so many numbers travel from each rank at once, which bounds memory."""


@contextmanager
def torchrun_ranks() -> Iterator[Reducer]:
    """Join the other processes of a `torchrun` and leave them at the end; alone when there are none.

    The group speaks gloo on every device: what travels are statistics of tokens and, for checkpoints, logits on their
    way to disk.

    Example:
        >>> with torchrun_ranks() as reducer:
        ...     reducer.world_size
        1
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield LOCAL
        return
    dist.init_process_group("gloo")
    try:
        yield DistributedReducer()
    except BaseException:
        leave_ranks(together=False)
        raise
    leave_ranks()


def share_of(rank: int, policies: int, world_size: int) -> range:
    """Say which policies are a rank's: neighbours, the shares as equal as they can be.

    Args:
        rank: The rank.
        policies: B.
        world_size: How many ranks share them.

    Raises:
        ValueError: There are fewer policies than ranks.

    Example:
        >>> [share_of(rank, 10, 3) for rank in range(3)]
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    if policies < world_size:
        raise invalid("policies", f"at least one for each of {world_size} ranks", policies)
    return range(rank * policies // world_size, (rank + 1) * policies // world_size)


def collect(rows: Tensor, policies: int, reducer: Reducer) -> Tensor | None:
    """Bring the rows of all policies to rank 0.

    Args:
        rows: Those of this rank's share, (b, V).
        policies: B, over all ranks.
        reducer: The ranks.

    Returns:
        All rows, on the CPU, (B, V), on rank 0; None on the others.

    Example:
        >>> collect(torch.eye(2), 2, LOCAL).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    ranks, size = reducer.world_size, rows.shape[1]
    if ranks == 1:
        return rows.cpu().contiguous()
    shares = [share_of(rank, policies, ranks) for rank in range(ranks)]
    whole = torch.empty(policies, size, dtype=rows.dtype) if reducer.rank == 0 else None
    at_once = max(1, CHUNK // size)
    for start in range(0, max(map(len, shares)), at_once):
        joined = reducer.gather(rows[start : start + at_once].reshape(-1).cpu()).view(-1, size)
        if whole is None:
            continue
        parts = [share[start : start + at_once] for share in shares]
        for part, values in zip(parts, joined.split([len(part) for part in parts]), strict=True):
            whole[part.start : part.stop] = values
    return whole
