"""Intervals: Student's for a mean over few seeds, and the bootstrap over clusters of tokens.

Tokens that share a prompt group, a sequence or an update are resampled together. Every estimate is a function of sums
over clusters, so a resample is a weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropy_theory.errors import invalid

Array = NDArray[np.float64]

LEVEL = 0.95
"""Coverage of the bootstrap intervals."""


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its interval.

    Attributes:
        mean: The mean.
        half_width: Half the width of the interval; None for a single value, which has none.
        values: What was averaged.
    """

    mean: float
    half_width: float | None
    values: tuple[float, ...]

    @property
    def low(self) -> float | None:
        """The lower end."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The upper end."""
        return None if self.half_width is None else self.mean + self.half_width

    def apart_from(self, other: Interval) -> bool:
        """Whether the two intervals have no point in common; False when one of them is a single value.

        Example:
            >>> t_interval([1.0, 1.1, 0.9]).apart_from(t_interval([2.0, 2.1, 1.9]))
            True
        """
        if self.half_width is None or other.half_width is None:
            return False
        return abs(self.mean - other.mean) > self.half_width + other.half_width


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Compute Student's t-interval of a mean.

    Formula: x̄ ± t_{(1+level)/2, n−1} s/√n, s the sample standard deviation.

    Args:
        values: One number per independent run.
        level: Coverage in (0, 1), exact for normal values.

    Raises:
        ValueError: No values, one that is not finite, or a level outside (0, 1).

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0])
        >>> interval.mean, round(interval.half_width, 4)
        (2.0, 2.4841)
    """
    if not values or not all(math.isfinite(v) for v in values):
        raise invalid("values", "one or more finite numbers", list(values))
    if not 0 < level < 1:
        raise invalid("level", "a number in (0, 1)", level)
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, tuple(values))
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    half_width = float(t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, half_width, tuple(values))


@dataclass(frozen=True, eq=False)
class Resampling:
    """Clusters of observations, and how often each resample takes them.

    Attributes:
        clusters: Index of each observation's cluster, (n,).
        weights: How often each resample has each cluster; the first row is the data itself, (1 + R, C).
    """

    clusters: NDArray[np.int64]
    weights: Array

    @classmethod
    def of_clusters(cls, names: NDArray[Any], resamples: int, seed: int) -> Resampling:
        """Draw a one-stage bootstrap: as many clusters as there are, with replacement.

        Args:
            names: The cluster of each observation, (n,), n ≥ 1.
            resamples: R ≥ 1.
            seed: Of the draw.

        Example:
            >>> drawn = Resampling.of_clusters(np.array([7, 7, 9]), resamples=4, seed=0)
            >>> drawn.clusters.tolist(), drawn.weights.shape, drawn.weights.sum(axis=1).tolist()
            ([0, 0, 1], (5, 2), [2.0, 2.0, 2.0, 2.0, 2.0])
        """
        if not len(names) or resamples < 1:
            raise invalid("names, resamples", "at least one of each", f"{len(names)} and {resamples}")
        import torch  # report and demo read t-intervals without it

        places = np.unique(names, return_inverse=True)[1].astype(np.int64)
        size = int(places.max()) + 1
        picks = torch.randint(size, (resamples, size), generator=torch.Generator().manual_seed(seed)).numpy()
        rows = np.arange(resamples)[:, np.newaxis] * size
        drawn = np.bincount((picks + rows).ravel(), minlength=resamples * size).reshape(resamples, size)
        return cls(places, np.concatenate([np.ones((1, size)), drawn]))

    @classmethod
    def draw(cls, steps: Sequence[NDArray[Any]], resamples: int, seed: int) -> Resampling:
        """Draw a two-stage bootstrap: steps first, then as many clusters within each as it has.

        Args:
            steps: For each step the cluster of each of its observations.
            resamples: R ≥ 1.
            seed: Of the draw.

        Example:
            >>> drawn = Resampling.draw([np.array([0, 0, 1]), np.array([5])], resamples=2, seed=0)
            >>> drawn.clusters.tolist(), drawn.weights.shape, drawn.weights[0].tolist()
            ([0, 0, 1, 2], (3, 3), [1.0, 1.0, 1.0])
        """
        if not steps or resamples < 1:
            raise invalid("steps, resamples", "at least one of each", f"{len(steps)} and {resamples}")
        generator = np.random.default_rng(seed)
        taken = generator.multinomial(len(steps), np.full(len(steps), 1 / len(steps)), size=resamples)
        clusters, weights, offset = [], [], 0
        for groups, times in zip(steps, taken.T, strict=True):
            names, places = np.unique(groups, return_inverse=True)
            size = len(names)
            clusters.append(places + offset)
            weights.append(generator.multinomial(times * size, np.full(size, 1 / size)))
            offset += size
        drawn = np.concatenate(weights, axis=1).astype(np.float64)
        return cls(np.concatenate(clusters), np.concatenate([np.ones((1, offset)), drawn]))

    def totals(self, values: Array) -> Array:
        """Sum a number per observation over the data and each resample, (1 + R,)."""
        sums = np.bincount(self.clusters, weights=values, minlength=self.weights.shape[1])
        total: Array = self.weights @ sums
        return total


def percentile_interval(resampled: Array) -> tuple[float, float]:
    """The ends of the central 95 % of the resamples' values.

    Example:
        >>> [round(end, 12) for end in percentile_interval(np.array([0.0, 2.0]))]
        [0.05, 1.95]
    """
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
