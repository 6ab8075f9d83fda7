"""Slopes, the four signs and centring: what the theory says of a bank, measured to stated standard errors."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from dynamics_replay import discriminants_of, entropy_of

from entropy_theory.dynamics import (
    SimulationConfig,
    bank,
    centering,
    gaussian_logits,
    grpo,
    interventions,
    log_log_slope,
    predicted_against_realised,
    sample_steps,
    slope_through_origin,
)
from entropy_theory.theory.categorical import entropy_change

TOY, VOCABULARY = (200, 100, 1.0, 4), (4, 151_936, 3.0, 4)


@pytest.fixture(scope="module", params=[TOY, VOCABULARY], ids=["toy", "V=151936"])
def measured(request):
    policies, vocab_size, scale, group = request.param
    logits = gaussian_logits(policies, vocab_size, scale, seed=0).float()
    tokens, advantages = sample_steps(logits, group, seed=0)
    return logits, tokens, advantages, predicted_against_realised(logits, tokens, advantages)


def test_prediction_slope_is_one_at_small_steps(measured) -> None:
    *_, result = measured
    assert result.slopes == pytest.approx(np.ones(5), abs=0.01)
    assert abs(result.slopes[0] - 1) < 1e-3


def test_remainder_slope_is_two(measured) -> None:
    *_, result = measured
    assert result.order == pytest.approx(2.0, abs=0.02)


def test_theory_pairs(measured) -> None:
    """Predictions against autograd, realised changes against the theory room, on a few policies."""
    logits, tokens, advantages, result = measured
    for b in range(2):
        z = logits[b].double()
        gradient = oracles.autograd_entropy_gradient(z.numpy())
        p = z.softmax(-1).numpy()
        for j in range(2):
            direction = -p
            direction[int(tokens[b, j])] += 1
            for number, size in enumerate(result.step_sizes[[0, -1]]):
                alpha = size * advantages[b, j].item()
                place = (-number, b, j)
                assert result.alpha[place] == pytest.approx(alpha, rel=1e-12)
                assert result.predicted[place] == pytest.approx(alpha * float(gradient @ direction), rel=1e-8)
                assert result.realised[place] == pytest.approx(
                    float(entropy_change(z.numpy(), alpha * direction)), rel=1e-8
                )


def test_prediction_blocks_and_order_of_sizes() -> None:
    logits = gaussian_logits(7, 30, 1.0, seed=0)
    tokens, advantages = sample_steps(logits, 3, seed=1)
    whole = predicted_against_realised(logits, tokens, advantages, (1e-2, 1e-3))
    parts = predicted_against_realised(logits, tokens, advantages, (1e-2, 1e-3), block_elements=31)
    assert np.array_equal(whole.realised, parts.realised)
    assert np.array_equal(whole.predicted, parts.predicted)
    assert math.isnan(whole.order)  # two sizes fit no slope with an error


def test_slopes_and_their_errors() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=4000)
    slopes = [slope_through_origin(x, 2 * x + random.normal(size=4000) * np.abs(x)) for _ in range(200)]
    values, errors = np.array(slopes).T
    assert values.mean() == pytest.approx(2.0, abs=0.01)
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.15)
    assert slope_through_origin(x * 1e-200, 3e-200 * x)[0] == pytest.approx(3.0)
    sizes = np.array([1e-3, 1e-2, 1e-1])
    assert log_log_slope(sizes, 5 * sizes**2)[0] == pytest.approx(2.0, rel=1e-12)
    reference = np.polyfit(np.log(sizes), np.log([1.0, 9.0, 120.0]), 1)[0]
    assert log_log_slope(sizes, [1.0, 9.0, 120.0])[0] == pytest.approx(reference, rel=1e-12)


def test_four_signs_of_four() -> None:
    conditions = interventions(policies=500, steps=30, seeds=(0, 1))
    assert [(c.samples, c.keep, c.predicted_sign) for c in conditions] == [
        ("positive", "S>0", -1),
        ("positive", "S<0", 1),
        ("negative", "S>0", 1),
        ("negative", "S<0", -1),
    ]
    for condition in conditions:
        assert condition.agrees
        assert abs(condition.z) > 5
        assert condition.curve[-1] - condition.curve[0] == pytest.approx(condition.mean_change, rel=1e-9)
        assert condition.mean_change == pytest.approx(condition.expected_change, rel=0.05)
        steps = np.diff(condition.curve)
        assert (np.sign(steps) == condition.predicted_sign).mean() > 0.9
        assert condition.curve.shape == condition.curve_error.shape == (31,)
        assert 0.3 < condition.kept_share < 0.7


def test_enumerated_expectation_of_an_intervention() -> None:
    """One step in expectation, every token enumerated: the sign is that of a covariance, and the size is right."""
    z = gaussian_logits(6, 5, 1.0, seed=0)
    S, centered = discriminants_of(z, torch.arange(5).expand(6, 5))
    p = z.softmax(-1)
    (condition, *_) = interventions(policies=6, vocab_size=5, group_size=1, steps=1, step_size=1e-6, seeds=(0,))
    expected = -1e-6 * (p * centered * (S > 0)).sum(-1)
    assert (expected <= 0).all()
    assert condition.expected_change == pytest.approx(float(expected.mean()), rel=1e-9)
    # the same by brute force: the exact change of each token's step, weighted by its probability
    policy = bank.policy_statistics(z)
    total = torch.zeros(6, dtype=torch.float64)
    for k in range(5):
        tokens = torch.full((6, 1), k)
        move = grpo.move_of_logits(policy, tokens, (S[:, k : k + 1] > 0).double(), 1e-6)
        total += p[:, k] * (entropy_of(z + move) - entropy_of(z))
    assert float(total.mean()) == pytest.approx(float(expected.mean()), rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_centering_holds_on_policy_and_breaks_under_top_p(seed: int) -> None:
    right, wrong = centering(SimulationConfig(policies=300, vocab_size=100, steps=40, step_size=0.3, seed=seed))
    assert abs(right.overall_z) < 3
    assert right.ratio < 0.02
    assert abs(wrong.overall_z) > 10
    assert wrong.overall_error == right.overall_error
    assert (right.sampler, wrong.sampler) == ("on-policy", "top-p 0.9")
    # z of 40 steps: about standard normal, so its root mean square is near 1
    assert 0.6 < math.sqrt((right.z**2).mean()) < 1.5
    assert (np.abs(wrong.z) > 3).mean() > 0.5


def test_centering_measures_the_tokens_of_the_run() -> None:
    config = SimulationConfig(policies=40, vocab_size=20, steps=5, block_elements=100)
    right, _ = centering(config)
    from entropy_theory.dynamics import simulate

    columns = simulate(config).steps
    assert right.mean_centered == pytest.approx(columns["centered_discriminant"], rel=1e-9)
    assert right.mean_discriminant == pytest.approx(columns["discriminant"], rel=1e-9)
    # the standard error against its definition, at the first step
    z = config.initial_logits()
    S, _ = discriminants_of(z, torch.arange(20).expand(40, 20))
    p = z.softmax(-1)
    variance = (p * S**2).sum(-1) - (p * S).sum(-1) ** 2
    assert right.standard_error[0] == pytest.approx(math.sqrt(float(variance.sum()) * 16) / (40 * 16), rel=1e-9)


def test_top_p_of_one_is_on_policy() -> None:
    _, other = centering(SimulationConfig(policies=300, vocab_size=50, steps=10), top_p=1.0)
    assert abs(other.overall_z) < 3


LOGITS, TOKENS, ADVANTAGES = torch.zeros(1, 3), torch.tensor([[0, 2]]), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predicted_against_realised(LOGITS * math.nan, TOKENS, ADVANTAGES), "logits: expected finite logits"),
        (lambda: predicted_against_realised(LOGITS[:, :1], TOKENS, ADVANTAGES), "logits: expected a last dimension"),
        (
            lambda: predicted_against_realised(LOGITS, TOKENS + 1, ADVANTAGES),
            r"tokens: expected ids in \[0, 3\), rec.* 3",
        ),
        (lambda: predicted_against_realised(LOGITS, TOKENS[:, :0], ADVANTAGES[:, :0]), "tokens: expected at least one"),
        (
            lambda: predicted_against_realised(LOGITS, TOKENS, ADVANTAGES * math.inf),
            "advantages: expected finite numbers",
        ),
        (lambda: predicted_against_realised(LOGITS, TOKENS, ADVANTAGES, ()), "step_sizes: expected finite numbers > 0"),
        (
            lambda: predicted_against_realised(LOGITS, TOKENS, ADVANTAGES, (-1.0,)),
            "step_sizes: expected finite numbers",
        ),
        (
            lambda: predicted_against_realised(LOGITS, TOKENS, ADVANTAGES, block_elements=0),
            "block_elements: expected an",
        ),
        (
            lambda: predicted_against_realised(LOGITS, TOKENS, ADVANTAGES),
            "x: expected at least one number that is not 0",
        ),
        (lambda: sample_steps(LOGITS, 0, 0), "group_size: expected an integer >= 1, received 0"),
        (lambda: sample_steps(LOGITS, 1, -1), "seed: expected an integer >= 0, received -1"),
        (lambda: interventions(policies=1), "policies: expected an integer >= 2, received 1"),
        (lambda: interventions(vocab_size=1), "vocab_size: expected an integer >= 2, received 1"),
        (lambda: interventions(steps=0), "steps: expected an integer >= 1, received 0"),
        (lambda: interventions(group_size=0), "group_size: expected an integer >= 1, received 0"),
        (lambda: interventions(step_size=0.0), "step_size: expected a finite number > 0, received 0.0"),
        (lambda: interventions(logit_scale=0.0), "logit_scale: expected a finite number > 0, received 0.0"),
        (lambda: interventions(seeds=()), "seeds: expected at least one seed"),
        (lambda: centering(SimulationConfig(), top_p=0.0), r"top_p: expected a number in \(0, 1\], received 0.0"),
        (lambda: slope_through_origin([1.0], [1.0, 2.0]), "y: expected 1 numbers as x has, received 2"),
        (lambda: log_log_slope([1.0, 2.0], [1.0, 2.0]), "x, y: expected at least three numbers each"),
        (lambda: log_log_slope([1.0, 2.0, 3.0], [1.0, 0.0, 2.0]), "x, y: expected positive numbers, received 0.0"),
        (lambda: log_log_slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), "x: expected numbers that differ, received 1.0"),
        (lambda: grpo.group_advantages(torch.ones(1, 1), "std"), "rewards: expected groups of at least 2"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_long_runs_stay_centred_and_predicted() -> None:
    """The default run: 16 million tokens on-policy within three standard errors."""
    right, wrong = centering(SimulationConfig(steps=1000, seed=11), top_p=0.95)
    assert abs(right.overall_z) < 3
    assert right.ratio < 1e-2
    assert abs(wrong.overall_z) > 20
    conditions = interventions(steps=200, seeds=(0, 1, 2, 3))
    assert all(c.agrees and abs(c.z) > 20 for c in conditions)
