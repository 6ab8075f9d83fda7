"""The step bound and directions of two values, against many digits and by their own laws."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import ExactPolicy, exact_entropy_change, exact_grpo_direction

import entropy_theory as et
from entropy_theory.testing import logits_and_token
from entropy_theory.theory import finite_steps

STEPS = st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 5.0, 30.0, 300.0])


@pytest.mark.statement("step-bound")
@pytest.mark.parametrize("alpha", [-200.0, -3.0, -1e-5, 1e-5, 0.4, 3.0, 200.0])
def test_the_bound_lies_above_the_change_at_every_step(alpha):
    rng = np.random.default_rng(7)
    for size in (2, 3, 8):
        for scale in (1e-3, 1.0, 6.0):
            logits = rng.normal(size=size) * scale
            for token in range(size):
                exact = ExactPolicy.of(logits)
                with mp.workdps(exact.digits + 200):
                    direction = exact_grpo_direction(logits, token, exact.digits + 200)
                    moved = ExactPolicy.of_exact(
                        [mp.mpf(float(z)) + mp.mpf(alpha) * d for z, d in zip(logits, direction, strict=True)],
                        (1,) * size,
                        exact.digits + 200,
                    )
                    change = moved.entropy - exact.entropy
                    divergence = mp.fsum(
                        q * mp.log(q / p) for p, q in zip(exact.probs, moved.probs, strict=True) if q > 0
                    )
                bound = float(et.step_bound(logits, token, alpha))
                # The bound's two terms, each of the size of KL or smaller than the bound, round at 1e-15.
                assert bound - float(change) >= -1e-13 * (abs(bound) + float(divergence))
                if size == 2:  # one other token: equality
                    assert bound == pytest.approx(float(change), abs=1e-12 * (abs(bound) + float(divergence)))


@given(logits_and_token(impossible=False, offsets=False, max_scale=30.0), STEPS, st.sampled_from([1.0, -1.0]))
def test_a_predicted_fall_has_a_bound_below_zero(case, size, side):
    logits, token = case
    score = et.centered_discriminant(logits, token)
    if side * score > 1e-12:
        assert et.step_bound(logits, token, side * size) < 0.0


def test_corners_of_the_bound():
    assert et.step_bound([0.0, -np.inf], 0, 3.0) == 0.0  # certain: nothing moves
    assert et.step_bound(np.zeros(4), 1, 0.0) == 0.0
    assert et.step_bound([1e4, 1e4 - 30.0, 1e4 - 31.0], 0, 1e-3) == pytest.approx(
        et.step_bound([0.0, -30.0, -31.0], 0, 1e-3), rel=1e-9
    )
    assert et.step_bound([0.0, -1.0, -800.0], 2, 1e6) == np.inf  # a rise predicted of a token of probability e^-800
    assert et.step_bound(np.zeros((2, 5)), np.zeros((3, 2), dtype=int), [0.1, -0.2]).shape == (3, 2)
    assert isinstance(et.step_bound([0.0, 1.0], 0, 0.5), np.float64)


@pytest.mark.statement("two-valued-directions")
def test_a_set_of_tokens_moves_together():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=9) * 2.0
    inside = np.arange(9) < 4
    probs = np.exp(et.log_softmax(logits))
    mass = probs[inside].sum()
    entropies = [float(et.entropy(logits[keep])) for keep in (inside, ~inside)]
    for step in (1e-6, 0.5, -4.0, 40.0):
        whole = float(exact_entropy_change(logits, step * inside))
        alone = finite_steps.two_valued_entropy_change(mass, *entropies, step)
        assert alone == pytest.approx(whole, rel=1e-9, abs=1e-15)
    one = finite_steps.two_valued_entropy_change(probs[0], 0.0, et.entropy(logits[1:]), 0.7)
    assert one == pytest.approx(et.single_logit_entropy_change(probs[0], et.entropy(logits), 0.7), rel=1e-11)


@pytest.mark.statement("two-valued-directions")
def test_entropy_peaks_where_the_odds_are_the_difference_of_the_entropies():
    rates = np.linspace(0.0, 1.0, 100_001)
    for right, wrong in ((0.0, 0.0), (3.0, 1.0), (0.5, 6.0)):
        values = finite_steps.pass_rate_entropy(rates, right, wrong)
        assert rates[values.argmax()] == pytest.approx(1.0 / (1.0 + np.exp(wrong - right)), abs=1e-5)
        assert values.max() == pytest.approx(np.logaddexp(right, wrong), rel=1e-9)
        assert values[[0, -1]].tolist() == [wrong, right]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: et.step_bound([0.0, 1.0], 2, 1.0), "token: expected ids in 0..1, received 2"),
        (lambda: et.step_bound([0.0, 1.0], 0, np.nan), "alpha: expected finite values, received NaN"),
        (lambda: et.step_bound([0.0, 1.0], 0, 1j), "alpha: expected an array of real numbers"),
        (lambda: et.step_bound(np.zeros((2, 3)), 0, [1.0] * 3), "alpha: expected a leading shape that broadcasts"),
        (lambda: et.step_bound([np.nan, 1.0], 0, 1.0), "logits: expected finite values or -inf"),
        (lambda: finite_steps.two_valued_entropy_change(0.0, 1.0, 1.0, 1.0), "mass: expected values between 0 and 1"),
        (lambda: finite_steps.two_valued_entropy_change(0.5, -1.0, 1.0, 1.0), "inside_entropy: expected finite values"),
        (lambda: finite_steps.two_valued_entropy_change(0.5, 1.0, np.inf, 1.0), "outside_entropy: expected finite"),
        (lambda: finite_steps.two_valued_entropy_change(0.5, 1.0, 1.0, np.inf), "step: expected finite values"),
        (lambda: finite_steps.pass_rate_entropy(1.5, 1.0, 1.0), "pass_rate: expected values between 0 and 1"),
        (lambda: finite_steps.pass_rate_entropy([0.5, 0.1], [1.0] * 3, 1.0), "right_entropy: expected a leading shape"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        call()
    assert message in str(caught.value)
