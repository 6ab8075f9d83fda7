"""The ledger of on-policy entropy: an account of why the entropy in a trainer's log moved.

M_k is the token mean of H over generation batch k under the policy that sampled it, which is what trainers plot. M'_k
is the mean over the same tokens under the weights after all updates on that batch. Then

    fixed_k = M'_k − M_k          what the updates did at contexts that were held fixed
    remainder_k = M_{k+1} − M'_k  the visit of other contexts (state shift), and the sampling of prompts and completions
    M_k = M_0 + Σ_{i<k} fixed_i + Σ_{i<k} remainder_i                                          (exact)

The contexts of fixed_k are those that the step was made from. What the updates do to them beyond fresh contexts of the
same policy is therefore in fixed_k, and with the opposite sign in the remainder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from entropy_theory.control import LocalReducer, Reducer
from entropy_theory.errors import invalid

PREFIX = "entropy_control/ledger/"
"""What the ledger's metrics begin with in a run's log."""

_ROUNDING = 1e-9  # far above that of float64 sums over a million batches, far below a part that is missing


@dataclass(frozen=True)
class BatchEntropy:
    """The entropies of a batch's tokens, summed by prompt group.

    Attributes:
        sums: Σ H over the tokens of each group, in nats.
        counts: The tokens of each group, at least 1.

    Raises:
        ValueError: There is no group, the lengths differ, a sum is not finite, or a count is below 1.

    Example:
        >>> batch = BatchEntropy((2.0, 3.0), (4, 1))
        >>> batch.mean, round(batch.standard_error, 12)
        (1.0, 0.8)
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.counts or len(self.sums) != len(self.counts) or min(self.counts) < 1:
            raise invalid("counts", f"a count >= 1 for each of {len(self.sums)} groups, at least one", self.counts)
        if not all(map(math.isfinite, self.sums)):
            raise invalid("entropy", "finite numbers at valid tokens", "NaN or infinity")

    @classmethod
    def from_tokens(
        cls, entropy: Tensor, mask: Tensor, group_ids: Tensor | None, reducer: Reducer | None = None
    ) -> BatchEntropy:
        """Sum the entropies of tokens over all ranks.

        Args:
            entropy: H, (B, T), in nats; values outside the mask are not read.
            mask: The tokens that count, (B, T) bool.
            group_ids: The prompt group of each row, integers (B,), global; None: one group, without a standard error.
            reducer: The collectives; default: one process.

        Raises:
            ValueError: Shapes do not fit, the mask is not bool, the groups are not integers, no token counts on any
                rank, or an entropy is not finite.

        Example:
            >>> entropy, mask = torch.tensor([[1.0, 9.0], [2.0, 3.0]]), torch.tensor([[True, False], [True, True]])
            >>> BatchEntropy.from_tokens(entropy, mask, torch.tensor([7, 8]))
            BatchEntropy(sums=(1.0, 5.0), counts=(1, 2))
        """
        if mask.shape != entropy.shape or mask.dim() != 2 or mask.dtype is not torch.bool:
            raise invalid("mask", f"bool of shape {tuple(entropy.shape)}", f"{mask.dtype} of shape {tuple(mask.shape)}")
        if group_ids is not None and (group_ids.shape != mask.shape[:1] or group_ids.is_floating_point()):
            received = f"{group_ids.dtype} of shape {tuple(group_ids.shape)}"
            raise invalid("group_ids", f"integers of shape {tuple(mask.shape[:1])}", received)
        reducer = reducer or LocalReducer()
        rows = torch.where(mask, entropy.double(), 0.0).sum(1)
        groups = torch.zeros_like(mask[:, 0], dtype=torch.int64) if group_ids is None else group_ids.to(torch.int64)
        sums, counts, groups = (reducer.gather(each).cpu() for each in (rows, mask.sum(1), groups))
        held = counts > 0
        numbers, place = torch.unique(groups[held], return_inverse=True)
        if not len(numbers):
            raise invalid("mask", "at least one valid token over all ranks", "none")
        total = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, place, sums[held])
        count = torch.zeros(len(numbers), dtype=torch.int64).index_add_(0, place, counts[held])
        return cls(tuple(total.tolist()), tuple(count.tolist()))

    @property
    def mean(self) -> float:
        """M = Σ H / Σ 1, in nats."""
        return math.fsum(self.sums) / sum(self.counts)

    @property
    def standard_error(self) -> float | None:
        """The standard error of M over prompt groups; None with one group.

        √(G/(G−1) Σ_j e_j²) / Σ_j n_j with e_j = s_j − M n_j, s_j and n_j the sum and count of group j of G: the
        linearised error of a ratio of means over clusters.
        """
        groups = len(self.counts)
        if groups < 2:
            return None
        mean = self.mean
        squares = math.fsum((s - mean * n) ** 2 for s, n in zip(self.sums, self.counts, strict=True))
        return math.sqrt(groups / (groups - 1) * squares) / sum(self.counts)

    def change_since(self, before: BatchEntropy) -> BatchEntropy:
        """The change of H of the same tokens, summed by group: its mean is M' − M, its error that of the pairs.

        Raises:
            ValueError: The groups have other counts.
        """
        if before.counts != self.counts:
            raise invalid("before", f"the same tokens, by group {self.counts}", before.counts)
        return replace(self, sums=tuple(a - b for a, b in zip(self.sums, before.sums, strict=True)))


@dataclass(frozen=True)
class FirstOrder:
    """First-order parts of a fixed-context change in nats: Σ over the updates of ⟨∇H̄, Δθ_part⟩, ∇H̄ at each one's start.

    Attributes:
        now: Of what the optimizer made of the present gradient.
        momentum: Of what earlier gradients left.
        decay: Of weight decay.

    Example:
        >>> FirstOrder(1.0, 2.0, 3.0) + FirstOrder(1.0, 1.0, 1.0)
        FirstOrder(now=2.0, momentum=3.0, decay=4.0)
    """

    now: float = 0.0
    momentum: float = 0.0
    decay: float = 0.0

    def __add__(self, other: FirstOrder) -> FirstOrder:
        """Add the parts of another update on the same contexts."""
        return FirstOrder(self.now + other.now, self.momentum + other.momentum, self.decay + other.decay)

    @property
    def total(self) -> float:
        """The first-order change."""
        return self.now + self.momentum + self.decay


@dataclass(frozen=True)
class LedgerEntry:
    """A line of the ledger, written when batch k + 1 has been sampled; in nats, None where a number is not known.

    Attributes:
        entropy: M_{k+1}.
        cumulative_fixed: Σ_{i≤k} fixed_i.
        cumulative_remainder: Σ_{i≤k} remainder_i.
        cumulative_remainder_se: Its standard error. The errors of M_{k+1} and M'_{k+1}, of the same tokens, nearly
            cancel in the sum: it is √(se(M'_0)² + Σ_{0<i≤k} se(fixed_i)² + se(M_{k+1})²), batches taken as independent.
        closing_error: M_{k+1} − (M_0 + Σ fixed_i + Σ remainder_i): rounding.
        fixed: fixed_k = M'_k − M_k; None for the first batch, as are the following.
        fixed_se: Its standard error over prompt groups, from the change of each token.
        remainder: remainder_k = M_{k+1} − M'_k.
        remainder_se: √(se(M_{k+1})² + se(M'_k)²).
        first_order: The first-order parts of fixed_k, where asked for.
    """

    entropy: float
    cumulative_fixed: float = 0.0
    cumulative_remainder: float = 0.0
    cumulative_remainder_se: float | None = None
    closing_error: float = 0.0
    fixed: float | None = None
    fixed_se: float | None = None
    remainder: float | None = None
    remainder_se: float | None = None
    first_order: FirstOrder | None = None

    def metrics(self) -> dict[str, float]:
        """The numbers that are known, by name; of the first order ``now``, ``momentum``, ``decay`` and ``curvature``.

        ``curvature`` = fixed_k − now − momentum − decay: what is not first order, and the rounding of the weights.
        """
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "first_order"}
        if self.first_order is not None and self.fixed is not None:
            named |= {f.name: getattr(self.first_order, f.name) for f in fields(FirstOrder)}
            named["curvature"] = self.fixed - self.first_order.total
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Ledger:
    """The state of a run's ledger between two events; `records.to_data` makes JSON of it, `from_data` reads it.

    Attributes:
        batches: Generation batches with a valid token so far.
        start: M_0.
        sampled: The last batch under the policy that sampled it.
        updated: The same tokens under later weights.
        first_order: The first-order parts of the updates since; None when they are not asked for.
        cumulative_fixed: Σ fixed_i of the finished entries.
        cumulative_remainder: Σ remainder_i.
        variance: se(M'_0)² + Σ_{i>0} se(fixed_i)², of the finished entries; None when an error is not known.

    Example:
        >>> ledger, first = Ledger().with_batch(BatchEntropy((2.0, 2.0), (2, 2)))
        >>> ledger = ledger.with_updated(BatchEntropy((1.5, 1.5), (2, 2)))
        >>> ledger, entry = ledger.with_batch(BatchEntropy((0.5, 1.5), (2, 2)))
        >>> entry.entropy, entry.fixed, entry.remainder, entry.closing_error
        (0.5, -0.25, -0.25, 0.0)
    """

    batches: int = 0
    start: float | None = None
    sampled: BatchEntropy | None = None
    updated: BatchEntropy | None = None
    first_order: FirstOrder | None = None
    cumulative_fixed: float = 0.0
    cumulative_remainder: float = 0.0
    variance: float | None = 0.0

    def with_update(self, parts: FirstOrder) -> Ledger:
        """Add the first-order parts of an update, where they are asked for."""
        return self if self.first_order is None else replace(self, first_order=self.first_order + parts)

    def with_updated(self, batch: BatchEntropy) -> Ledger:
        """Take up M'_k: the last batch's tokens under the present weights."""
        if self.sampled is None:
            raise invalid("ledger", "a sampled batch before its updates", None)
        batch.change_since(self.sampled)  # the same tokens
        return replace(self, updated=batch)

    def with_batch(self, batch: BatchEntropy, split: bool = False) -> tuple[Ledger, LedgerEntry]:
        """Take up a freshly sampled batch; this finishes the entry of the batch before.

        Args:
            batch: Under the policy that sampled it.
            split: Whether the first-order parts of its updates will be given.

        Returns:
            The ledger after, and the entry; that of the first batch has its entropy only.

        Raises:
            ValueError: M' of the batch before is missing.
        """
        first_order = FirstOrder() if split else None
        begun = replace(self, batches=self.batches + 1, sampled=batch, updated=None, first_order=first_order)
        own_error = batch.standard_error
        if self.start is None or self.sampled is None:
            return replace(begun, start=batch.mean), LedgerEntry(batch.mean)
        if self.updated is None:
            raise invalid("ledger", "the last batch's entropy after its updates", None)
        change = self.updated.change_since(self.sampled)
        change_error, updated_error = change.standard_error, self.updated.standard_error
        # se(M'_0) in the first entry: M_0 and fixed_0 are of the same tokens
        variance = _add_squares(self.variance, updated_error if self.batches == 1 else change_error)
        fixed, remainder = self.updated.mean - self.sampled.mean, batch.mean - self.updated.mean
        after = replace(
            begun,
            cumulative_fixed=self.cumulative_fixed + fixed,
            cumulative_remainder=self.cumulative_remainder + remainder,
            variance=variance,
        )
        entry = LedgerEntry(
            entropy=batch.mean,
            cumulative_fixed=after.cumulative_fixed,
            cumulative_remainder=after.cumulative_remainder,
            cumulative_remainder_se=_root(_add_squares(variance, own_error)),
            closing_error=batch.mean - (self.start + after.cumulative_fixed + after.cumulative_remainder),
            fixed=fixed,
            fixed_se=change_error,
            remainder=remainder,
            remainder_se=_root(_add_squares(_add_squares(0.0, own_error), updated_error)),
            first_order=self.first_order,
        )
        return after, entry

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Ledger:
        """Read what `records.to_data` made of a ledger.

        Raises:
            ValueError: It is not such data.

        Example:
            >>> from entropy_theory import records
            >>> ledger, _ = Ledger().with_batch(BatchEntropy((2.0, 2.0), (2, 2)), split=True)
            >>> Ledger.from_data(records.to_data(ledger)) == ledger
            True
        """
        try:
            content = dict(data)
            for name in ("sampled", "updated"):
                if (held := content[name]) is not None:
                    content[name] = BatchEntropy(tuple(held["sums"]), tuple(held["counts"]))
            if content["first_order"] is not None:
                content["first_order"] = FirstOrder(**content["first_order"])
            ledger = cls(**content)
            optional = [x for x in (ledger.start, ledger.variance) if x is not None]
            parts = vars(ledger.first_order).values() if ledger.first_order is not None else ()
            known = (ledger.batches, ledger.cumulative_fixed, ledger.cumulative_remainder, *optional, *parts)
            if not all(map(math.isfinite, known)) or (ledger.sampled is None) != (ledger.start is None):
                raise invalid("ledger", "the data of a ledger", "a number that is missing or not finite")
            return ledger
        except (KeyError, TypeError) as error:
            raise invalid("ledger", "the data of a ledger", str(error)) from None


def run_summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the ledger in the lines of a run's log.

    Args:
        lines: A dict for each step, with ``step`` and the metrics under `PREFIX` where an entry was written.

    Returns:
        ``start`` and ``end``, M at the first and the last entry; ``first_step``, ``last_step``, ``batches``; the
        parts ``now``, ``momentum``, ``decay`` and ``curvature`` summed over the ``split_batches`` that have them, and
        ``fixed`` of the others; ``remainder`` with ``remainder_se`` (or None); ``closing_error`` = end − start − the
        sum of the parts; and ``curves``, columns of numbers by name, among them ``step``.

    Raises:
        ValueError: There is no entry, one of its numbers is not finite, steps do not increase, or the parts do not add
            up, as when lines are missing or each is a mean over several batches.

    Example:
        >>> lines = [{"step": 1, PREFIX + "entropy": 2.0}, {"step": 2, PREFIX + "entropy": 1.0, PREFIX + "fixed": -0.75,
        ...           PREFIX + "remainder": -0.25, PREFIX + "cumulative_fixed": -0.75}]
        >>> summary = run_summary(lines)
        >>> summary["start"], summary["end"], summary["fixed"], summary["remainder"], summary["closing_error"]
        (2.0, 1.0, -0.75, -0.25, 0.0)
    """
    entries = [line for line in lines if PREFIX + "entropy" in line]
    if not entries:
        raise invalid("run", "a run with ledger entries, as train --ledger writes them", f"none in {len(lines)} lines")
    rows = [_numbers(line) for line in entries]
    first, last, later = rows[0], rows[-1], rows[1:]
    for earlier, row in pairwise(rows):
        if row["step"] <= earlier["step"]:
            raise invalid("run", f"steps that increase, after {earlier['step']:g}", f"{row['step']:g}")
    split = [row for row in later if "curvature" in row]
    parts = {name: math.fsum(row.get(name, 0.0) for row in split) for name in ("now", "momentum", "decay", "curvature")}
    parts["fixed"] = math.fsum(row.get("fixed", 0.0) for row in later if "curvature" not in row)
    parts["remainder"] = math.fsum(row.get("remainder", 0.0) for row in later)
    closing = last["entropy"] - first["entropy"] - math.fsum(parts.values())
    if abs(closing) > _ROUNDING:
        expected = f"a ledger whose parts add up to the change of entropy within {_ROUNDING:g}, one entry in each line"
        raise invalid("run", expected, f"{closing:.3g} nats that no part explains")
    names = ("step", "entropy", "cumulative_fixed", "cumulative_remainder", "cumulative_remainder_se")
    return {
        "start": first["entropy"],
        "end": last["entropy"],
        "first_step": int(first["step"]),
        "last_step": int(last["step"]),
        "batches": len(rows),
        "split_batches": len(split),
        **parts,
        "remainder_se": last.get("cumulative_remainder_se"),
        "closing_error": closing,
        "curves": {name: [row.get(name) for row in rows] for name in names},
    }


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    numbers = {"step": line.get("step")} | {
        name.removeprefix(PREFIX): value for name, value in line.items() if name.startswith(PREFIX)
    }
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise invalid(f"{PREFIX}{name}", "a finite number", repr(value))
    return numbers  # type: ignore[return-value]  # checked above


def _add_squares(variance: float | None, error: float | None) -> float | None:
    return None if variance is None or error is None else variance + error**2


def _root(variance: float | None) -> float | None:
    return None if variance is None else math.sqrt(variance)
