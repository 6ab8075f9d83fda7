"""Which numeric columns of a completion log make up the reward: a log does not say, but its advantages can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from entropy_theory.control.group_advantages import ScaleRewards, ragged_group_advantages
from entropy_theory.errors import invalid

Array = NDArray[np.float64]
Evidence = Literal["given", "only", "advantages", "none"]

MOST_COLUMNS = 8
"""Up to so many columns, every sum of some of them is held against the advantages."""


@dataclass(frozen=True)
class RewardColumns:
    """The columns whose weighted sum is the reward.

    Attributes:
        names: The columns.
        weights: The weight of each; empty: 1.
        evidence: "given" by the user or the log; the "only" candidate; their sum gives the recorded "advantages"; or
            "none": the recorded advantages, if there are any, are not those of this sum.
        others: Numeric columns that are not among them.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] = ()
    evidence: Evidence = "only"
    others: tuple[str, ...] = ()

    def total(self, values: Mapping[str, Array]) -> Array:
        """Σ w_i R_i over the functions that apply, NaN where none does, as TRL adds them."""
        columns = np.stack([values[name] for name in self.names])
        weights = np.array(self.weights or [1.0] * len(self.names))[:, np.newaxis]
        return np.where(np.isnan(columns).all(axis=0), math.nan, np.nansum(weights * columns, axis=0))

    def __str__(self) -> str:
        """Write the sum.

        Example:
            >>> print(RewardColumns(("right", "length"), (1.0, -0.5)))
            1 · right − 0.5 · length
        """
        if not self.weights:
            return " + ".join(self.names)
        terms = [
            f"{'−' if w < 0 else '+'} {abs(w):g} · {name}" for name, w in zip(self.names, self.weights, strict=True)
        ]
        return " ".join(terms).removeprefix("+ ")


REWARD = RewardColumns(("reward",))
"""The reward of JSON lines."""


def choose_reward_columns(
    values: Mapping[str, Array],
    source: str,
    names: Sequence[str] = (),
    weights: Sequence[float] = (),
    advantages: Array | None = None,
    groups: Sequence[str] = (),
) -> RewardColumns:
    """Choose the columns that make up the reward.

    What the user or the log names comes first, then a column ``reward``. Otherwise every numeric column may be a reward
    function or something else that was logged: the sum of those is taken whose advantages are the recorded ones.

    Args:
        values: The numeric columns, NaN where a function did not apply.
        source: The file, for messages.
        names: The columns, when they are known.
        weights: Their weights; default: 1.
        advantages: The recorded advantages, or None.
        groups: The group of each row.

    Raises:
        ValueError: A name is not a numeric column, there is none, or the weights are not one finite number for each.
    """
    unknown = [name for name in names if name not in values]
    if unknown or not values:
        raise invalid("rewards", f"numeric columns of {source}", ", ".join(unknown) or "none there")
    if weights and (len(weights) != len(names) or not all(math.isfinite(w) for w in weights)):
        raise invalid("reward_weights", f"a finite number for each of --rewards {' '.join(names)}", list(weights))
    if names:
        return RewardColumns(tuple(names), tuple(weights), "given", _others(values, names))
    everything = ("reward",) if "reward" in values else tuple(values)
    if len(values) == 1:
        return RewardColumns(everything)
    chosen = RewardColumns(everything, (), "none", _others(values, everything))
    if advantages is None or not np.isfinite(advantages).all() or not advantages.any():
        return chosen
    sizes = range(len(values), 0, -1) if len(values) <= MOST_COLUMNS else ()
    subsets = [everything, *(subset for size in sizes for subset in combinations(values, size))]
    for subset in subsets:  # equal evidence: the named or larger sum
        candidate = RewardColumns(subset, (), "advantages", _others(values, subset))
        if _gives(candidate.total(values), advantages, groups):
            return candidate
    return chosen


def _others(values: Mapping[str, Array], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in values if name not in names)


def _gives(rewards: Array, advantages: Array, groups: Sequence[str]) -> bool:
    """Whether rewards have these advantages, within float32 and for any scale and either reading of the groups."""
    if np.isnan(rewards).all():
        return False
    seen: dict[str, int] = {}
    by_name = np.array([seen.setdefault(group, len(seen)) for group in groups])
    # A prompt that was drawn twice has two groups of one name; a log keeps groups together, all of one size.
    size = math.gcd(*np.bincount(by_name).tolist())
    for group_ids in (by_name, np.arange(len(groups)) // size):
        for scale in get_args(ScaleRewards):
            known = ~np.isnan(rewards)
            if np.bincount(group_ids[known]).max() < 2:
                continue
            if np.allclose(ragged_group_advantages(rewards, group_ids, scale), advantages, rtol=1e-3, atol=1e-3):
                return True
    return False
