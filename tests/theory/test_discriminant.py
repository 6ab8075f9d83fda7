"""S, N and S_c against many digits, SymPy, autograd and measured remainders, and the laws they obey."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st
from oracles import ExactPolicy, autograd_entropy_gradient, relative_error

from entropy_theory.testing import logits as logits_rows
from entropy_theory.testing import logits_and_token
from entropy_theory.theory.derivations import engine, paper
from entropy_theory.theory.discriminant import (
    baseline,
    centered_discriminant,
    discriminant,
    first_order_change,
    grpo_direction,
)

# Round-off of float64 sums over up to 128 tokens, relative to the summed size of their terms.
TIGHT = 1e-13


def policies(vocab_sizes=(2, 3, 12, 40)):
    rng = np.random.default_rng(3)
    for size in vocab_sizes:
        for scale in (1e-6, 1e-2, 1.0, 8.0):
            yield rng.normal(size=size) * scale
            yield rng.normal(size=size) * scale + 1e4
        for gap in (5.0, 15.0, 20.0, 27.6, 100.0, 300.0):
            yield np.where(np.arange(size) == 1, 0.0, -gap - np.arange(size) / size)
        yield np.where(np.arange(size) == 0, -np.inf, rng.normal(size=size))
        if size > 2:
            yield np.where(np.arange(size) < 2, 0.0, -25.0)


@pytest.mark.statement("theorem-3.2")
def test_discriminant_matches_mpmath():
    for logits in policies():
        exact = ExactPolicy.of(logits)
        excess = np.abs(logits - logits[np.isfinite(logits)].max())
        for value, reference, prob, gap in zip(
            discriminant(logits), exact.discriminants, exact.probs, excess, strict=True
        ):
            # 1e-13 of S, or 1e-15 of its terms p (|d| + |E d|) where the token sits next to its own zero.
            terms = float(prob) * (gap if np.isfinite(gap) else 0.0)
            assert abs(float(value - reference)) <= 1e-13 * abs(float(reference)) + 1e-15 * terms


@pytest.mark.statement("corollary-3.4")
def test_baseline_matches_mpmath():
    for logits in policies():
        assert relative_error(baseline(logits), ExactPolicy.of(logits).baseline) < 1e-13


@pytest.mark.statement("theorem-3.3")
def test_centered_discriminant_matches_mpmath():
    for logits in policies():
        exact = ExactPolicy.of(logits)
        values = centered_discriminant(logits)
        with mp.workdps(exact.digits):
            references = [S - exact.baseline for S in exact.discriminants]
        for value, reference, S in zip(values, references, exact.discriminants, strict=True):
            # Where S and N nearly agree the difference is good to 1e-14 of S; at the likeliest token see below.
            assert abs(float(value - reference)) <= 1e-12 * abs(float(reference)) + 1e-14 * abs(float(S))


@pytest.mark.parametrize("gap", [5.0, 12.0, 20.0, 27.6, 30.0, 100.0, 300.0])
@pytest.mark.parametrize("ties", [1, 2])
def test_centered_discriminant_of_the_likeliest_token_keeps_its_digits(gap, ties):
    # 1 − p_max reaches 1e-12 at a gap of 27.6; S − N would have lost every digit by 36.
    logits = np.where(np.arange(6) < ties, 1.5, 1.5 - gap - np.arange(6) / 7.0)
    exact = ExactPolicy.of(logits)
    with mp.workdps(exact.digits):
        reference = exact.discriminants[0] - exact.baseline
    for value in (centered_discriminant(logits)[0], centered_discriminant(logits, 0)):
        assert relative_error(value, reference) < 1e-13


@pytest.mark.statement("lemma-3.1")
def test_grpo_direction_matches_mpmath():
    for logits in policies():
        exact = ExactPolicy.of(logits)
        for token in range(len(logits)):
            direction = grpo_direction(logits, token)
            with mp.workdps(exact.digits):
                for i, prob in enumerate(exact.probs):
                    # Also 1 − p_k, however certain the token is.
                    assert relative_error(direction[i], (i == token) - prob) < 1e-14


@pytest.mark.statement("gradient", "theorem-3.3")
def test_discriminant_matches_autograd():
    rng = np.random.default_rng(8)
    logits = rng.normal(size=(5, 30)) * np.array([[0.1], [1.0], [2.0], [4.0], [8.0]])
    gradient = autograd_entropy_gradient(logits)
    # The entropy itself is of order 1, so its float64 gradient is good to about 1e-15 absolutely.
    assert np.allclose(-gradient, discriminant(logits), rtol=0.0, atol=1e-14)
    direction = rng.normal(size=logits.shape)
    along = (gradient * direction).sum(axis=-1)
    assert np.allclose(first_order_change(logits, direction, 0.5), 0.5 * along, rtol=0.0, atol=1e-14)
    tokens = np.array([0, 7, 29, 3, 3])
    grpo = (gradient * grpo_direction(logits, tokens)).sum(axis=-1)
    assert np.allclose(centered_discriminant(logits, tokens), -grpo, rtol=0.0, atol=1e-14)


@pytest.mark.statement("theorem-3.3")
def test_the_derived_formula_is_the_computed_one():
    """The right side of the derivation of Theorem 3.3, evaluated with the policy's own p_k, H and N."""
    claimed = paper.theorem_3_3().steps[-1].claimed
    rng = np.random.default_rng(21)
    for size in (2, 5, 64):
        logits = rng.normal(size=size)
        exact = ExactPolicy.of(logits)
        for token in range(size):
            values = {
                engine.PROB_K: exact.probs[token],
                engine.LOG_K: mp.log(exact.probs[token]),
                engine.ENTROPY: exact.entropy,
                engine.BASELINE: exact.baseline,
            }
            slope = sp.lambdify(list(values), claimed, "mpmath")(*values.values())
            assert centered_discriminant(logits, token) == pytest.approx(float(-slope), rel=1e-11, abs=1e-15)


@given(logits_rows(offsets=False), st.integers(-10_000, 10_000))
def test_a_common_shift_changes_nothing(logits, shift):
    # Exact, because the shifted logits are: entries are multiples of 2^-30.
    for function in (discriminant, baseline, centered_discriminant, lambda z: grpo_direction(z, 1)):
        assert np.array_equal(function(logits), function(logits + shift))


@given(logits_rows(), st.randoms(use_true_random=False))
def test_a_permuted_vocabulary_permutes_the_result(logits, random):
    order = list(range(len(logits)))
    random.shuffle(order)
    size = np.abs(discriminant(logits)).max()
    for function in (discriminant, centered_discriminant):
        assert np.allclose(function(logits[order]), function(logits)[order], rtol=1e-13, atol=1e-14 * size)
    assert baseline(logits[order]) == pytest.approx(baseline(logits), rel=TIGHT, abs=1e-300)


@given(logits_and_token())
def test_grpo_direction_sums_to_zero(case):
    logits, token = case
    direction = grpo_direction(logits, token)
    assert abs(direction.sum()) <= 1e-15 * len(logits) * np.abs(direction).sum()
    assert direction[token] >= 0.0
    assert (np.delete(direction, token) <= 0.0).all()


def test_uniform_and_one_hot_policies_are_exactly_zero():
    for logits in (np.full(7, 3.25), np.array([1.0, -np.inf, -np.inf])):
        assert (discriminant(logits) == 0.0).all()
        assert (centered_discriminant(logits) == 0.0).all()
        assert baseline(logits) == 0.0


@pytest.mark.statement("four-conditions", "quadrants")
def test_positive_discriminant_does_not_imply_a_positive_centred_one():
    logits = np.log([0.5, 0.45, 0.05])
    assert discriminant(logits, 1) == pytest.approx(0.0257, abs=5e-5)
    assert centered_discriminant(logits, 1) == pytest.approx(-0.0211, abs=5e-5)


def test_tokens_broadcast_against_the_leading_shape():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(3, 5))
    tokens = rng.integers(5, size=(4, 3))
    picked = centered_discriminant(logits, tokens)
    assert picked.shape == (4, 3)
    assert picked[2, 1] == centered_discriminant(logits)[1, tokens[2, 1]]
    assert grpo_direction(logits, tokens).shape == (4, 3, 5)
    assert np.array_equal(grpo_direction(logits, tokens)[2, 1], grpo_direction(logits[1], tokens[2, 1]))
    assert discriminant(logits, 2).shape == (3,)
    assert isinstance(discriminant(logits[0], 2), np.float64)
    assert first_order_change(logits, np.ones((2, 1, 5)), np.ones((2, 3))).shape == (2, 3)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (5, "token: expected ids in 0..4, received 5"),
        (-1, "token: expected ids in 0..4, received -1"),
        ([0, 9, 1], "token: expected ids in 0..4, received 9"),
        (1.0, "token: expected integers, received dtype float64"),
        (True, "token: expected integers, received dtype bool"),
        ("a", "token: expected integers, received dtype <U1"),
        ([0, 1], "token: expected a leading shape that broadcasts with (3,), received (2,)"),
        ([[0, 1], [2]], "token: expected integers, received nested sequences of unequal length"),
        (np.uint64(2**63), "token: expected ids in 0..4, received 9223372036854775808"),
    ],
)
@pytest.mark.parametrize("function", [discriminant, centered_discriminant, grpo_direction])
def test_bad_tokens_are_refused(function, token, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        function(np.zeros((3, 5)), token)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("direction", "step", "message"),
    [
        ([0.0, 1.0], 1.0, "direction: expected shape (..., 3) as the logits have, received shape (2,)"),
        ([0.0, 1.0, np.inf], 1.0, "direction: expected finite values, received NaN or an infinity"),
        (np.zeros((5, 3)), 1.0, "direction: expected a leading shape that broadcasts with (2,), received (5,)"),
        (np.zeros(3), np.nan, "step: expected finite values, received NaN or an infinity"),
        (np.zeros(3), "big", "step: expected an array of real numbers, received dtype <U3"),
        (np.zeros(3), [1.0, 2.0, 3.0], "step: expected a leading shape that broadcasts with (2,), received (3,)"),
    ],
)
def test_bad_directions_and_steps_are_refused(direction, step, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        first_order_change(np.zeros((2, 3)), direction, step)
    assert str(caught.value) == message
