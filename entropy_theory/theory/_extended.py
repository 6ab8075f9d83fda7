"""Sums of two float64 numbers, for the one place where float64 alone loses every digit: H + log p near its zero.

A value is a pair (high, low) with |low| ≤ half a unit in the last place of high; the error-free transformations are
those of Dekker and Knuth. About 31 digits are carried.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from entropy_theory.theory._policy import FloatArray

Pair = tuple[FloatArray, FloatArray]

_SPLITTER = 134217729.0  # 2^27 + 1
# log 2 to 32 digits, as a pair.
_LOG_2 = (0.6931471805599453, 2.319046813846299558e-17)
_TERMS = 22  # s² ≤ .0295 after the reduction: the first term left out is below 1e-33


def log_plus(prob: FloatArray, addend: FloatArray) -> FloatArray:
    """Return log p + c, correct to float64's own digits even where the two cancel; p > 0, any shape."""
    mantissa, exponent = np.frexp(prob)
    low = mantissa < np.sqrt(0.5)
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = np.where(low, exponent - 1, exponent).astype(np.float64)
    # log m = 2 atanh s with s = (m − 1)/(m + 1); m − 1 is exact.
    numerator, denominator = mantissa - 1.0, _two_sum(mantissa, np.ones_like(mantissa))
    high = numerator / denominator[0]
    product = _times((high, np.zeros_like(high)), denominator)
    s = _quick_sum(high, (numerator - product[0] - product[1]) / denominator[0])
    square = _times(s, s)
    series = _constant(2 * _TERMS + 1, s[0])
    for n in range(_TERMS - 1, -1, -1):
        series = _plus(_times(series, square), _constant(2 * n + 1, s[0]))
    log_mantissa = _times(series, s)
    total = _plus((2.0 * log_mantissa[0], 2.0 * log_mantissa[1]), _times_number(_LOG_2, exponent))
    total = _plus(total, (addend, np.zeros_like(addend)))
    result: FloatArray = total[0] + total[1]
    return result


def _constant(n: int, like: FloatArray) -> Pair:
    """1/n as a pair."""
    high = 1.0 / n
    low = float(Fraction(1, n) - Fraction(high))
    return np.full_like(like, high), np.full_like(like, low)


def _two_sum(a: FloatArray, b: FloatArray) -> Pair:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _quick_sum(a: FloatArray, b: FloatArray) -> Pair:
    total = a + b
    return total, b - (total - a)


def _two_product(a: FloatArray, b: FloatArray) -> Pair:
    product = a * b
    a_high = _SPLITTER * a - (_SPLITTER * a - a)
    b_high = _SPLITTER * b - (_SPLITTER * b - b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _plus(a: Pair, b: Pair) -> Pair:
    total, error = _two_sum(a[0], b[0])
    low, low_error = _two_sum(a[1], b[1])
    total, error = _quick_sum(total, error + low)
    return _quick_sum(total, error + low_error)


def _times(a: Pair, b: Pair) -> Pair:
    product, error = _two_product(a[0], b[0])
    return _quick_sum(product, error + a[0] * b[1] + a[1] * b[0])


def _times_number(a: tuple[float, float], b: FloatArray) -> Pair:
    product, error = _two_product(np.full_like(b, a[0]), b)
    return _quick_sum(product, error + a[1] * b)
