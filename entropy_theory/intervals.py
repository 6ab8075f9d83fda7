"""Intervals for a mean over few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from entropy_theory.errors import invalid


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
