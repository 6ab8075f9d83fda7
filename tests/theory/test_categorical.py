"""Entropy and its exact change against many digits, and the laws they obey."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import ExactPolicy, exact_entropy_change, relative_error

from entropy_theory.testing import logits as logits_rows
from entropy_theory.testing import logits_and_move
from entropy_theory.theory import categorical, discriminant

# Round-off of float64 sums with a little room; a wrong formula misses by orders of magnitude more.
TIGHT = 1e-13


def policies(vocab_sizes=(2, 3, 12, 40)):
    """Seeded random policies from nearly uniform to nearly one-hot, with offsets, ties, −inf and p near 1e-300."""
    rng = np.random.default_rng(11)
    for size in vocab_sizes:
        yield np.zeros(size)
        for scale in (1e-6, 1e-2, 1.0, 8.0):
            yield rng.normal(size=size) * scale
            yield rng.normal(size=size) * scale + 1e4
            yield rng.normal(size=size) * scale - 1e4
        for gap in (20.0, 27.6, 100.0, 690.0):
            yield np.where(np.arange(size) == 1, 0.0, -gap)
        yield np.where(np.arange(size) == 0, -np.inf, rng.normal(size=size))


def test_log_softmax_matches_mpmath():
    for logits in policies():
        exact = ExactPolicy.of(logits)
        with mp.workdps(exact.digits):
            for value, prob in zip(categorical.log_softmax(logits), exact.probs, strict=True):
                if prob == 0:
                    assert value == -np.inf
                else:
                    # Absolute: a log-probability near 0 keeps its digits only at the maxima, which are tested below.
                    assert abs(value - mp.log(prob)) <= 1e-15 * max(1.0, abs(value))


def test_log_softmax_of_a_nearly_certain_token_keeps_its_digits():
    logits = np.array([0.0, -27.6, -40.0])
    exact = ExactPolicy.of(logits)
    with mp.workdps(exact.digits):
        assert relative_error(categorical.log_softmax(logits)[0], mp.log(exact.probs[0])) < 1e-15


def test_entropy_matches_mpmath():
    for logits in policies():
        # 3e-15: H is a sum of two non-negative terms, each good to a few units in the last place.
        assert relative_error(categorical.entropy(logits), ExactPolicy.of(logits).entropy) < 3e-15


@pytest.mark.statement("exact-identity")
@pytest.mark.parametrize("step", [1e-8, -1e-8, 1e-10])
def test_entropy_change_keeps_its_digits_at_small_steps(step):
    rng = np.random.default_rng(5)
    for logits in policies():
        size = len(logits)
        for token in {0, size - 1, int(np.argmax(logits))}:
            single = step * (np.arange(size) == token)
            for delta in (single, step * discriminant.grpo_direction(logits, token), step * rng.normal(size=size)):
                reference = exact_entropy_change(logits, delta)
                # Promised: 1e-10 of ΔH, near-uniform policies and p near 1e-300 included.
                assert relative_error(categorical.entropy_change(logits, delta), reference) < 1e-10


@pytest.mark.statement("exact-identity")
@pytest.mark.parametrize("step", [1e-3, 0.3, -2.0, 20.0, -50.0, 700.0])
def test_entropy_change_matches_mpmath_at_large_steps(step):
    for logits in policies((2, 3, 12)):
        for token in range(0, len(logits), 2):
            delta = step * (np.arange(len(logits)) == token)
            reference = exact_entropy_change(logits, delta)
            # 1e-10 of ΔH, or 1e-14 of the entropies where the move maps the policy onto its mirror image.
            error = abs(float(categorical.entropy_change(logits, delta) - reference))
            assert error <= 1e-10 * abs(float(reference)) + 1e-14 * float(categorical.entropy(logits))


@pytest.mark.parametrize("vocab_size", [1000, 1_000_000])
def test_entropy_change_in_a_wide_vocabulary(vocab_size):
    for top in (0.0, 1e-6, 3.0, 20.0):
        logits = np.zeros(vocab_size)
        logits[0] = top
        for step in (1e-8, 1.0):
            delta = np.zeros(vocab_size)
            delta[0] = step
            reference = exact_entropy_change(np.array([top, 0.0]), np.array([step, 0.0]), (1, vocab_size - 1))
            assert relative_error(categorical.entropy_change(logits, delta), reference) < 1e-10


def test_entropy_change_of_a_one_hot_policy():
    logits = np.array([2.0, -np.inf, -np.inf])
    assert categorical.entropy(logits) == 0.0
    assert categorical.entropy_change(logits, [1.0, 5.0, -3.0]) == 0.0


def test_moving_a_token_of_probability_zero_changes_nothing():
    assert categorical.entropy_change([1.0, 0.0, -np.inf], [0.0, 0.0, 100.0]) == 0.0


def test_huge_logits_and_moves_stay_finite():
    assert categorical.entropy([1e308, -1e308]) == 0.0
    assert categorical.entropy_change([0.0, -1e308], [0.0, 1e308]) == pytest.approx(np.log(2.0), rel=1e-15)


@given(logits_rows())
def test_entropy_is_bounded(logits):
    H = categorical.entropy(logits)
    support = np.isfinite(logits).sum()
    assert 0.0 <= H <= np.log(support) + TIGHT


@given(logits_rows(offsets=False), st.integers(-10_000, 10_000))
def test_a_common_shift_changes_nothing(logits, shift):
    # Exact, because the shifted logits are: entries are multiples of 2^-30.
    assert np.array_equal(categorical.log_softmax(logits), categorical.log_softmax(logits + shift))
    assert categorical.entropy(logits) == categorical.entropy(logits + shift)


@given(logits_and_move(offsets=False), st.integers(-1000, 1000))
def test_a_common_shift_of_the_move_changes_nothing(case, shift):
    logits, delta = case
    assert categorical.entropy_change(logits, delta) == categorical.entropy_change(logits, delta + shift)


@given(logits_and_move(), st.randoms(use_true_random=False))
def test_the_order_of_the_vocabulary_does_not_matter(case, random):
    logits, delta = case
    order = list(range(len(logits)))
    random.shuffle(order)
    assert categorical.entropy(logits[order]) == pytest.approx(categorical.entropy(logits), rel=TIGHT, abs=1e-300)
    assert np.allclose(categorical.log_softmax(logits[order]), categorical.log_softmax(logits)[order], rtol=1e-14)
    size = np.abs(delta).max() * (1.0 + np.ptp(logits[np.isfinite(logits)]))
    change = categorical.entropy_change(logits, delta)
    assert categorical.entropy_change(logits[order], delta[order]) == pytest.approx(change, rel=1e-11, abs=TIGHT * size)


def test_leading_shapes_broadcast():
    rng = np.random.default_rng(2)
    logits, delta = rng.normal(size=(4, 1, 6)), rng.normal(size=(3, 6))
    change = categorical.entropy_change(logits, delta)
    assert change.shape == (4, 3)
    assert change[2, 1] == pytest.approx(categorical.entropy_change(logits[2, 0], delta[1]), rel=1e-14)
    assert categorical.entropy(np.zeros((0, 5))).shape == (0,)
    assert categorical.entropy_change(np.zeros((0, 5)), np.ones(5)).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8])
def test_other_real_types_are_converted_to_float64(dtype):
    logits = np.array([1, 0, 2], dtype=dtype)
    for value in (categorical.entropy(logits), categorical.log_softmax(logits)):
        assert value.dtype == np.float64
    assert categorical.entropy(logits) == categorical.entropy(logits.astype(np.float64))


BAD_LOGITS = [
    ([1.0], r"logits: expected shape (..., V) with V >= 2, received shape (1,)"),
    (3.0, r"logits: expected shape (..., V) with V >= 2, received shape ()"),
    ([1.0, np.nan], "logits: expected finite values or -inf, received NaN"),
    ([1.0, np.inf], "logits: expected finite values or -inf, received +inf"),
    ([[0.0, 1.0], [-np.inf, -np.inf]], "logits: expected at least one finite logit in every row, received a row of"),
    ([1j, 0.0], "logits: expected an array of real numbers, received dtype complex128"),
    (["a", "b"], "logits: expected an array of real numbers, received dtype <U1"),
    ([None, 1.0], "logits: expected an array of real numbers, received dtype object"),
    ([True, False], "logits: expected an array of real numbers, received dtype bool"),
    ([[1.0, 2.0], [1.0]], "logits: expected an array of real numbers, received nested sequences of unequal length"),
]


@pytest.mark.parametrize(("logits", "message"), BAD_LOGITS)
@pytest.mark.parametrize(
    "function",
    [
        categorical.log_softmax,
        categorical.entropy,
        lambda z: categorical.entropy_change(z, [0.0, 0.0]),
        discriminant.discriminant,
        discriminant.baseline,
        discriminant.centered_discriminant,
        lambda z: discriminant.grpo_direction(z, 0),
        lambda z: discriminant.first_order_change(z, [0.0, 0.0], 1.0),
    ],
)
def test_bad_logits_are_refused(function, logits, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        function(logits)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ([0.0, 1.0], "delta: expected shape (..., 3) as the logits have, received shape (2,)"),
        (0.5, "delta: expected shape (..., 3) as the logits have, received shape ()"),
        ([0.0, np.nan, 0.0], "delta: expected finite values, received NaN or an infinity"),
        ([0.0, -np.inf, 0.0], "delta: expected finite values, received NaN or an infinity"),
        (np.zeros((5, 3)), "delta: expected a leading shape that broadcasts with (2,), received (5,)"),
        ([1j, 0.0, 0.0], "delta: expected an array of real numbers, received dtype complex128"),
        ([1e308, -1e308, 0.0], "delta: expected entries whose differences are finite, received"),
    ],
)
def test_bad_moves_are_refused(delta, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        categorical.entropy_change(np.zeros((2, 3)), delta)
    assert message in str(caught.value)
