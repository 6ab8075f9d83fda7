"""Exact global reductions over masked tokens: one process or many give the same answer.

A statistic of a rule (mean, deviation, quantile, top-k) is taken over the valid tokens of *all* ranks. A
`Reducer` offers the two collectives that this takes, a sum and a gather; the functions here build the statistics
from them. A rank may hold no valid token at all. The global token order, which breaks ties and numbers random
draws, is: rank by rank, then row by row, then left to right, counting valid tokens only; padding has no part in it.

Sums run in float64. Their last bits depend on how the tokens are split over ranks (relative 1e-16), so a decision
may differ between layouts only for a token that lies within that distance of a threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_theory.errors import invalid


@runtime_checkable
class Reducer(Protocol):
    """What a rule needs from the outside to make its statistics global.

    Every rank calls the same methods in the same order with tensors of the same dtype.
    """

    @property
    def rank(self) -> int:
        """The place of this process in the global token order."""
        ...

    @property
    def world_size(self) -> int:
        """The number of processes."""
        ...

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Add the tensors of all ranks, elementwise; float64 for floats, int64 for the rest."""
        ...

    def gather(self, values: Shaped[Tensor, " local"]) -> Shaped[Tensor, " total"]:
        """Concatenate the 1-D tensors of all ranks in rank order; their lengths may differ and may be 0."""
        ...


def _wide(values: Tensor) -> Tensor:
    return values.detach().to(torch.float64 if values.is_floating_point() else torch.int64)


@dataclass(frozen=True)
class LocalReducer:
    """The reducer of a single process: every collective is the identity.

    Example:
        >>> LocalReducer().sum(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    @property
    def rank(self) -> int:
        """Always 0."""
        return 0

    @property
    def world_size(self) -> int:
        """Always 1."""
        return 1

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the values in double precision (int64 for integers)."""
        return _wide(values)

    def gather(self, values: Shaped[Tensor, " local"]) -> Shaped[Tensor, " total"]:
        """Return the values as they are."""
        return values.detach()


@dataclass(frozen=True)
class DistributedReducer:
    """The reducer over a `torch.distributed` process group (gloo or nccl).

    Tensors travel on the device that the backend serves (gloo: CPU, nccl: the current CUDA device) and come back
    on the device they came from. Lengths may differ between ranks in `gather`: they are exchanged first, and the
    data are padded to the longest.

    Args:
        group: The process group; None is the default group.

    Raises:
        ValueError: `torch.distributed` is not initialised.

    Example:
        >>> DistributedReducer()
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: group: expected an initialised process group ...
    """

    group: Any = None

    def __post_init__(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise invalid(
                "group", "an initialised process group (torch.distributed.init_process_group)", repr(self.group)
            )

    @property
    def rank(self) -> int:
        """The rank of this process in the group."""
        return int(dist.get_rank(self.group))

    @property
    def world_size(self) -> int:
        """The size of the group."""
        return int(dist.get_world_size(self.group))

    def _travel(self, values: Tensor) -> Tensor:
        backend = str(dist.get_backend(self.group))
        if backend == "nccl":
            return values.to(torch.device("cuda", torch.cuda.current_device()))
        return values.cpu() if backend == "gloo" else values

    def sum(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Add over the ranks in double precision (int64 for integers)."""
        total = self._travel(_wide(values).clone()).contiguous()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self.group)
        return total.to(values.device)

    def gather(self, values: Shaped[Tensor, " local"]) -> Shaped[Tensor, " total"]:
        """Concatenate 1-D tensors of different lengths in rank order."""
        # bool is sent as bytes: not every backend gathers it
        sent = values.detach().to(torch.uint8) if values.dtype == torch.bool else values.detach()
        sent = self._travel(sent).contiguous()
        length = torch.tensor([sent.numel()], dtype=torch.int64, device=sent.device)
        lengths = [torch.zeros_like(length) for _ in range(self.world_size)]
        dist.all_gather(lengths, length, group=self.group)
        sizes = [int(size.item()) for size in lengths]
        longest = max(sizes)
        if longest == 0:
            return values.detach()
        padded = sent.new_zeros(longest)
        padded[: sent.numel()] = sent
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded, group=self.group)
        joined = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return joined.to(values.device, values.dtype)


LOCAL = LocalReducer()
"""The default of every `reducer` argument."""


def _nonempty(count: int) -> int:
    if count == 0:
        raise invalid("mask", "at least one valid token over all ranks", "none")
    return count


def is_full(mask: Bool[Tensor, "*shape"]) -> bool:
    """Whether a mask has every token; a count is three times as fast as torch's `all`.

    Example:
        >>> is_full(torch.tensor([True, False])), is_full(torch.tensor([True, True]))
        (False, True)
    """
    return int(torch.count_nonzero(mask)) == mask.numel()


def selected(values: Shaped[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Shaped[Tensor, " n"]:
    """Take the values of a mask, in order; a mask of everything costs no search for its places.

    Example:
        >>> selected(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, False], [True, True]])).tolist()
        [1, 3, 4]
    """
    return values.reshape(-1) if is_full(mask) else values[mask]


def masked_count(mask: Bool[Tensor, "*shape"], reducer: Reducer = LOCAL) -> int:
    """Count the tokens of a mask over all ranks.

    Example:
        >>> masked_count(torch.tensor([[True, False], [True, True]]))
        3
    """
    return int(reducer.sum(torch.count_nonzero(mask)).item())


def masked_moments(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], reducer: Reducer = LOCAL
) -> tuple[int, float, float]:
    """Count, mean and population standard deviation over all ranks.

    x̄ = (1/n) Σ_t x_t,  σ = √((1/n) Σ_t (x_t − x̄)²), the sum over the tokens of the mask.

    Two passes in float64: the one-pass form Σx² − n x̄² would cancel. Values outside the mask are never read.

    Raises:
        ValueError: no token in the mask on any rank.

    Example:
        >>> masked_moments(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        (2, 2.0, 1.0)
    """
    inside = selected(values.detach(), mask).to(torch.float64)
    head = reducer.sum(torch.stack([inside.new_tensor(inside.numel()), inside.sum()]))
    count = _nonempty(int(head[0].item()))
    mean = float(head[1].item()) / count
    variance = float(reducer.sum((inside - mean).square_().sum()).item()) / count
    return count, mean, math.sqrt(variance)


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], reducer: Reducer = LOCAL) -> float:
    """Mean over the tokens of the mask, over all ranks; ValueError when there is none.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        2.0
    """
    inside = selected(values.detach(), mask).to(torch.float64)
    head = reducer.sum(torch.stack([inside.new_tensor(inside.numel()), inside.sum()]))
    return float(head[1].item()) / _nonempty(int(head[0].item()))


def masked_min_max(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], reducer: Reducer = LOCAL
) -> tuple[float, float]:
    """Smallest and largest value in the mask, over all ranks; ValueError when there is none.

    Example:
        >>> masked_min_max(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        (1.0, 3.0)
    """
    inside = values.detach()[mask].to(torch.float64)
    # a rank without tokens contributes nothing, so no ±inf is needed to stand in for it
    ends = torch.stack([inside.min(), inside.max()]) if inside.numel() else inside
    gathered = reducer.gather(ends)
    _nonempty(gathered.numel())
    return float(gathered.min().item()), float(gathered.max().item())


def masked_quantile(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], q: float, reducer: Reducer = LOCAL
) -> float:
    """Exact global quantile with linear interpolation between order statistics.

    x₍₀₎ ≤ … ≤ x₍ₙ₋₁₎ sorted, ρ = q (n − 1):  Q = x₍⌊ρ⌋₎ + (ρ − ⌊ρ⌋)(x₍⌊ρ⌋₊₁₎ − x₍⌊ρ⌋₎).

    A rank ρ within 1e-9 n of an integer counts as that integer, so that q = 1 − .2 meets its order statistic.

    Raises:
        ValueError: q outside [0, 1], or no token in the mask on any rank.

    Example:
        >>> masked_quantile(torch.tensor([4.0, 1.0, 2.0, 7.0]), torch.tensor([True, True, True, False]), 0.75)
        3.0
    """
    if not 0.0 <= q <= 1.0:
        raise invalid("q", "a number in [0, 1]", q)
    everywhere = reducer.gather(values.detach()[mask])
    count = _nonempty(everywhere.numel())
    position = q * (count - 1)
    if abs(position - round(position)) <= 1e-9 * count:
        position = float(round(position))
    below = math.floor(position)
    lower = float(everywhere.kthvalue(below + 1).values.item())
    if position == below:
        return lower
    upper = float(everywhere.kthvalue(below + 2).values.item())
    return lower + (position - below) * (upper - lower)


def _largest(values: Tensor, k: int) -> Tensor:
    """Mark the k largest of a 1-D tensor; of equal values the earlier ones."""
    if k >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    cut = values.topk(k).values[-1]
    chosen = values > cut
    # topk leaves the order of ties open: fill the remaining places with the first tokens at the cut
    at_cut = (values == cut).nonzero().squeeze(-1)
    chosen[at_cut[: k - int(chosen.sum().item())]] = True
    return chosen


def masked_top_k(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], k: int, reducer: Reducer = LOCAL
) -> Bool[Tensor, "*shape"]:
    """Mark the k largest values of the mask over all ranks; equal values in global token order.

    Each rank sends at most k values. The result is exact and does not depend on how tokens are split over ranks.

    Args:
        values: What is ranked; no NaN inside the mask.
        mask: The candidates.
        k: How many to take in all; with fewer candidates, all of them. The same on every rank.
        reducer: The collectives.

    Returns:
        The chosen tokens of this rank, False outside the mask.

    Raises:
        ValueError: k negative.

    Example:
        >>> masked_top_k(torch.tensor([5.0, 7.0, 5.0, 9.0]), torch.tensor([True, True, True, False]), 2).tolist()
        [True, True, False, False]
    """
    if k < 0:
        raise invalid("k", "a number of tokens ≥ 0", k)
    chosen = torch.zeros(mask.shape, dtype=torch.bool, device=mask.device)  # contiguous, whatever the mask is
    if k == 0:
        return chosen
    places = mask.reshape(-1).nonzero().squeeze(-1)
    candidates = values.detach().reshape(-1)[places]
    local = _largest(candidates, k) if candidates.numel() else torch.ones_like(places, dtype=torch.bool)
    places, sent = places[local], candidates[local]
    offset, _ = token_offset(sent.numel(), reducer)
    everywhere = reducer.gather(sent)
    if everywhere.numel():
        won = _largest(everywhere, k)[offset : offset + sent.numel()]
        chosen.view(-1)[places[won]] = True
    return chosen


def token_offset(count: int, reducer: Reducer = LOCAL) -> tuple[int, int]:
    """Say where this rank's tokens start in the global token order, and how many tokens there are.

    Returns:
        The tokens on lower ranks, and the tokens on all ranks.

    Example:
        >>> token_offset(5)
        (0, 5)
    """
    counts = [int(c) for c in reducer.gather(torch.tensor([count], dtype=torch.int64)).tolist()]
    return sum(counts[: reducer.rank]), sum(counts)
