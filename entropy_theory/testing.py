"""Hypothesis strategies for policies, logits, steps and token batches, for tests of your own rules and formulas.

They reach the corners: nearly uniform and nearly one-hot policies, exact ties, tokens of probability 0, offsets of
±10⁴, steps from 1e-8 to 30, batches with padded rows and constant advantages. Needs the extra `testing` (Hypothesis).

Example:
    >>> from hypothesis import given, settings
    >>> from entropy_theory import entropy
    >>> from entropy_theory.testing import logits
    >>> @settings(database=None, max_examples=20, derandomize=True, deadline=None)
    ... @given(logits())
    ... def entropy_is_not_negative(z):
    ...     assert entropy(z) >= 0.0
    >>> entropy_is_not_negative()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from entropy_theory.errors import invalid, missing_extra

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["logits", "logits_and_move", "logits_and_token", "policies", "steps", "token_batches"]

GRID = 2.0**-30
"""Entries are multiples of this below 2^15: sums and differences of a few are exact, so a law of real numbers can be
asked for without an allowance for rounded inputs."""

_SCALES = (0.0, 1e-6, 0.1, 1.0, 5.0, 30.0, 300.0)
_VOCAB_SIZES = (2, 3, 5, 17, 128)


def _hypothesis() -> tuple[Any, Any]:
    try:
        from hypothesis import strategies
        from hypothesis.extra import numpy as arrays
    except ImportError:
        raise missing_extra("hypothesis", "testing") from None
    return strategies, arrays


def logits(
    *,
    vocab_sizes: tuple[int, ...] = _VOCAB_SIZES,
    offsets: bool = True,
    impossible: bool = True,
    max_scale: float = 300.0,
) -> SearchStrategy[np.ndarray]:
    """Strategy for the logits of one policy: float64, shape (V,).

    Args:
        vocab_sizes: The V to choose from.
        offsets: Whether to add ±10⁴ to all logits at times.
        impossible: Whether some logits may be −inf; one is always finite.
        max_scale: Largest |logit| before the offset.

    Raises:
        ValueError: A vocabulary size is below 2, or max_scale is negative.
        ImportError: Hypothesis is not installed.

    Example:
        >>> logits(vocab_sizes=(3,)).example().shape  # doctest: +SKIP
        (3,)
    """
    st, hnp = _hypothesis()
    if not vocab_sizes or min(vocab_sizes) < 2:
        raise invalid("vocab_sizes", "sizes of at least 2", vocab_sizes)
    if not max_scale >= 0:
        raise invalid("max_scale", "a number >= 0", max_scale)

    @st.composite
    def rows(draw: Any) -> np.ndarray:
        size = draw(st.sampled_from(vocab_sizes))
        scale = draw(st.sampled_from([scale for scale in _SCALES if scale <= max_scale]))
        unit = draw(hnp.arrays(np.float64, size, elements=st.floats(-1.0, 1.0, allow_subnormal=False)))
        values = np.round(unit * scale / GRID) * GRID
        if offsets:
            values = values + draw(st.sampled_from([0.0, 0.0, 1e4, -1e4]))
        if impossible and draw(st.integers(0, 3)) == 0:
            hidden = draw(hnp.arrays(np.bool_, size))
            hidden[draw(st.integers(0, size - 1))] = False
            values = np.where(hidden, -np.inf, values)
        return values

    return rows()


def logits_and_token(**options: Any) -> SearchStrategy[tuple[np.ndarray, int]]:
    """Strategy for the logits of one policy and a token id."""
    st, _ = _hypothesis()
    return logits(**options).flatmap(lambda row: st.tuples(st.just(row), st.integers(0, len(row) - 1)))


def logits_and_move(**options: Any) -> SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Strategy for the logits of one policy and a move of them, shapes (V,) and (V,), of sizes from 1e-8 to 30."""
    st, hnp = _hypothesis()

    @st.composite
    def pairs(draw: Any) -> tuple[np.ndarray, np.ndarray]:
        row = draw(logits(**options))
        scale = draw(st.sampled_from([1e-8, 1e-4, 1.0, 30.0]))
        unit = draw(hnp.arrays(np.float64, len(row), elements=st.floats(-1.0, 1.0, allow_subnormal=False)))
        return row, np.round(unit * scale / GRID) * GRID

    return pairs()


def policies(**options: Any) -> SearchStrategy[np.ndarray]:
    """Strategy for the probabilities of one policy, shape (V,), summing to 1 within rounding."""

    def softmax(row: np.ndarray) -> np.ndarray:
        weights: np.ndarray = np.exp(row - row.max())
        return weights / weights.sum()

    return logits(**options).map(softmax)


def steps(smallest: float = 1e-8, largest: float = 30.0) -> SearchStrategy[float]:
    """Strategy for a step of either sign, its size spread evenly in the logarithm."""
    st, _ = _hypothesis()
    if not 0.0 < smallest <= largest < np.inf:
        raise invalid("smallest, largest", "0 < smallest <= largest", f"{smallest}, {largest}")
    sizes = st.floats(float(np.log(smallest)), float(np.log(largest))).map(lambda size: float(np.exp(size)))
    return st.builds(lambda size, sign: sign * size, sizes, st.sampled_from([1.0, -1.0]))


def token_batches(
    *, max_sequences: int = 5, max_tokens: int = 8, per_token_advantages: bool = False
) -> SearchStrategy[dict[str, np.ndarray]]:
    """Strategy for the fields of a batch of sampled tokens, as a dict of float64 and boolean arrays.

    Every token is drawn from a small policy, so its log-probability, entropy, baseline and discriminant belong
    together. Rows may be partly or wholly padded; advantages may all be equal or zero; old log-probabilities put the
    ratio on both sides of 1. Turn the arrays into tensors for `TokenBatch(**fields)`.

    Args:
        max_sequences: Most rows B.
        max_tokens: Most columns T.
        per_token_advantages: Shape (B, T) instead of (B,).

    Returns:
        A dict of log_probs, old_log_probs, entropy, baseline, discriminant, centered_discriminant (B, T),
        advantages (B,) or (B, T), completion_mask (B, T).

    Raises:
        ValueError: A size is below 1.
        ImportError: Hypothesis is not installed.
    """
    st, hnp = _hypothesis()
    for name, value in (("max_sequences", max_sequences), ("max_tokens", max_tokens)):
        if value < 1:
            raise invalid(name, "at least 1", value)

    @st.composite
    def fields(draw: Any) -> dict[str, np.ndarray]:
        from entropy_theory.theory.categorical import entropy, log_softmax
        from entropy_theory.theory.discriminant import baseline, centered_discriminant, discriminant

        shape = (draw(st.integers(1, max_sequences)), draw(st.integers(1, max_tokens)))
        size = draw(st.sampled_from([2, 3, 17]))
        scale = draw(st.sampled_from([0.0, 1.0, 5.0, 20.0]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        rows = rng.normal(size=(*shape, size)) * scale
        tokens = rng.integers(size, size=shape)
        pick = lambda values: np.take_along_axis(values, tokens[..., np.newaxis], axis=-1)[..., 0]  # noqa: E731
        log_probs = pick(log_softmax(rows))
        lengths = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1])))
        leading = shape if per_token_advantages else shape[:1]
        advantages = draw(
            st.one_of(
                st.just(np.zeros(leading)),
                st.just(np.ones(leading)),
                hnp.arrays(np.float64, leading, elements=st.floats(-3.0, 3.0, allow_subnormal=False)),
            )
        )
        return {
            "log_probs": log_probs,
            "old_log_probs": np.minimum(
                log_probs + rng.normal(size=shape) * draw(st.sampled_from([0.0, 0.1, 1.0])), 0.0
            ),
            "entropy": np.asarray(entropy(rows)),
            "baseline": np.asarray(baseline(rows)),
            "discriminant": discriminant(rows, tokens),
            "centered_discriminant": centered_discriminant(rows, tokens),
            "advantages": advantages,
            "completion_mask": np.arange(shape[1]) < lengths[:, np.newaxis],
        }

    return fields()
