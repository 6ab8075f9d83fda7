"""Least-squares slopes with standard errors that do not assume equal scatter."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from entropy_theory.errors import invalid


def slope_through_origin(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Fit y = b x and give b with its standard error.

    Formula: b = Σ x y / Σ x²,  SE = √(Σ x² e²) / Σ x²  with e = y − b x. The remainder of a first-order prediction
    grows with x, so the error does not assume equal scatter (White's form).

    Args:
        x: The predictions, any shape.
        y: What came, of the same shape.

    Raises:
        ValueError: The shapes differ, or x is zero everywhere.

    Example:
        >>> slope_through_origin([1.0, 2.0], [2.0, 4.0])
        (2.0, 0.0)
    """
    x, y = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if x.shape != y.shape:
        raise invalid("y", f"{x.size} numbers as x has", y.size)
    scale = float(np.abs(x).max(initial=0.0))
    if scale == 0.0:
        raise invalid("x", "at least one number that is not 0", "none")
    x, y = x / scale, y / scale  # predictions may be so small that their squares vanish
    total = float(x @ x)
    slope = float(x @ y) / total
    return slope, math.sqrt(float(((x * (y - slope * x)) ** 2).sum())) / total


def log_log_slope(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Fit log y = a + b log x and give b with its standard error.

    Args:
        x: Positive numbers, at least three, not all equal.
        y: Positive numbers, as many.

    Raises:
        ValueError: Too few numbers, numbers of different count, or one that is not positive.

    Example:
        >>> slope, _ = log_log_slope([1.0, 10.0, 100.0], [1.0, 100.0, 10000.0])
        >>> round(slope, 12)
        2.0
    """
    x, y = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if x.size < 3 or x.shape != y.shape:
        raise invalid("x, y", "at least three numbers each, as many of one as of the other", f"{x.size} and {y.size}")
    if not ((x > 0).all() and (y > 0).all()):
        raise invalid("x, y", "positive numbers", min(float(x.min()), float(y.min())))
    if np.ptp(x) == 0.0:
        raise invalid("x", "numbers that differ", float(x[0]))
    a, b = np.log(x), np.log(y)
    a = a - a.mean()
    slope = float(a @ b) / float(a @ a)
    residual = b - b.mean() - slope * a
    return slope, math.sqrt(float(residual @ residual) / (x.size - 2) / float(a @ a))
