"""A softmax policy laid out so that no later formula has to cancel, and the checks on what users pass in.

Everything is measured from the largest logit: d = z − max z. Exact maxima are counted, not summed, so that what is
left over (1 − p_max on a nearly deterministic row) keeps its own digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy_theory.errors import invalid

FloatArray = NDArray[np.float64]
"""Float64 values; a function that reduces a single policy returns a NumPy scalar instead."""


@dataclass(frozen=True)
class Policy:
    """p = softmax(z) over the last axis, with the quantities that the formulas share.

    Attributes:
        gaps: d = z − max z, −inf where the logit is −inf. Shape (..., V).
        maxima: Where d = 0. Shape (..., V).
        count: n, the number of maxima. Shape (..., 1).
        rest: Z_rest, the sum of e^d over all other tokens. Shape (..., 1).
        total: Z = n + Z_rest. Shape (..., 1).
        probs: p = e^d / Z. Shape (..., V).
        mean_gap: a = E_p[d] ≤ 0. Shape (..., 1).
        excess: u = z − E_p[z] = H + log p, and 0 where the logit is −inf. Shape (..., V).
    """

    gaps: FloatArray
    maxima: NDArray[np.bool_]
    count: FloatArray
    rest: FloatArray
    total: FloatArray
    probs: FloatArray
    mean_gap: FloatArray
    excess: FloatArray

    @property
    def log_total(self) -> FloatArray:
        """The normaliser log Z, exact to the last digit on a nearly deterministic row. Shape (..., 1)."""
        result: FloatArray = np.log(self.count) + np.log1p(self.rest / self.count)
        return result

    @property
    def entropy(self) -> FloatArray:
        """H = log Z − a, a sum of two terms that are never negative. Shape (...)."""
        result: FloatArray = (self.log_total - self.mean_gap)[..., 0]
        return result


def policy(logits: ArrayLike) -> Policy:
    """Read logits (..., V) into a `Policy`, or raise the ValueError that says what is wrong with them."""
    z = as_logits(logits)
    with np.errstate(over="ignore"):  # a gap beyond the float64 range is −inf: its probability is 0 either way
        gaps = z - z.max(axis=-1, keepdims=True)
    maxima = gaps == 0.0
    weights = np.exp(gaps)
    count = maxima.sum(axis=-1, keepdims=True).astype(np.float64)
    rest = np.where(maxima, 0.0, weights).sum(axis=-1, keepdims=True)
    total = count + rest
    possible = gaps > -np.inf
    known_gaps = np.where(possible, gaps, 0.0)
    mean_gap = (weights * known_gaps).sum(axis=-1, keepdims=True) / total
    excess = np.where(possible, known_gaps - mean_gap, 0.0)
    return Policy(gaps, maxima, count, rest, total, weights / total, mean_gap, excess)


def as_real(name: str, values: ArrayLike) -> FloatArray:
    """Convert integers or floats of any width to float64, and refuse everything else."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        raise invalid(name, "an array of real numbers", "nested sequences of unequal length") from None
    if array.dtype.kind not in "iuf":
        raise invalid(name, "an array of real numbers", f"dtype {array.dtype}")
    return array.astype(np.float64, copy=False)


def as_logits(logits: ArrayLike) -> FloatArray:
    """Check logits: real, (..., V) with V ≥ 2, finite or −inf, and a finite one in every row."""
    z = as_real("logits", logits)
    if z.ndim == 0 or z.shape[-1] < 2:
        raise invalid("logits", "shape (..., V) with V >= 2", f"shape {z.shape}")
    if np.isnan(z).any():
        raise invalid("logits", "finite values or -inf", "NaN")
    if np.isposinf(z).any():
        raise invalid("logits", "finite values or -inf", "+inf")
    if np.isneginf(z).all(axis=-1).any():
        raise invalid("logits", "at least one finite logit in every row", "a row of -inf")
    return z


def as_direction(name: str, values: ArrayLike, logits_shape: tuple[int, ...]) -> FloatArray:
    """Check a move of the logits: real, finite, (..., V) with the V of the logits, and broadcastable with them."""
    direction = as_real(name, values)
    if direction.ndim == 0 or direction.shape[-1] != logits_shape[-1]:
        raise invalid(name, f"shape (..., {logits_shape[-1]}) as the logits have", f"shape {direction.shape}")
    if not np.isfinite(direction).all():
        raise invalid(name, "finite values", "NaN or an infinity")
    joint_shape(name, direction.shape[:-1], logits_shape[:-1])
    return direction


def as_tokens(token: ArrayLike, logits_shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Check token ids: integers in 0..V−1, of a shape that broadcasts against the leading shape of the logits."""
    try:
        array = np.asarray(token)
    except (TypeError, ValueError):
        raise invalid("token", "integers", "nested sequences of unequal length") from None
    if array.dtype.kind not in "iu":
        raise invalid("token", "integers", f"dtype {array.dtype}")
    vocab_size = logits_shape[-1]
    outside = (array < 0) | (array >= vocab_size)
    if outside.any():
        raise invalid("token", f"ids in 0..{vocab_size - 1}", int(array[outside].flat[0]))
    joint_shape("token", array.shape, logits_shape[:-1])
    return array.astype(np.int64, copy=False)


def joint_shape(name: str, shape: tuple[int, ...], leading: tuple[int, ...]) -> tuple[int, ...]:
    """Broadcast a shape with the leading shape of the logits, or say which argument does not fit."""
    try:
        return np.broadcast_shapes(shape, leading)
    except ValueError:
        raise invalid(name, f"a leading shape that broadcasts with {leading}", f"{shape}") from None


def at_token(values: FloatArray, token: NDArray[np.int64]) -> FloatArray:
    """Pick the entry of each token from the last axis, leading shapes broadcast against each other."""
    leading = np.broadcast_shapes(values.shape[:-1], token.shape)
    rows = np.broadcast_to(values, (*leading, values.shape[-1]))
    index = np.broadcast_to(token, leading)[..., np.newaxis]
    result: FloatArray = np.take_along_axis(rows, index, axis=-1)[..., 0]
    return result
