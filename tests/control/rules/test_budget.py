"""Our own rule: what its docstring guarantees, on batches made to be awkward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from control_batches import batches, random_batch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from entropy_theory.control import TokenBatch, rule

pytestmark = pytest.mark.no_cover  # laws on many inputs: counting lines takes as long, and adds none

floors = st.floats(-1.0, 1.0)
caps = st.sampled_from([1.0, 1.5, 4.0])
distances = st.sampled_from(["uniform", "relative"])


def parts(batch: TokenBatch, out) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """g, g' and S_c of the valid tokens."""
    valid = batch.completion_mask
    g = rule("none").apply(batch).coefficients[valid].numpy()
    return g, out.coefficients[valid].numpy(), batch.centered_scores()[valid].numpy()


@settings(max_examples=80)
@given(batch=batches(), floor=floors, maximum=caps, distance=distances)
def test_the_budget_is_kept_or_cannot_be(batch: TokenBatch, floor: float, maximum: float, distance: str) -> None:
    out = rule("entropy-budget", floor=floor, maximum=maximum, distance=distance).apply(batch)
    g, new, S = parts(batch, out)
    slack = 1e-12 * (1 + maximum * np.abs(g * S).sum())
    assert (new * g >= 0).all()
    assert (np.abs(new) <= maximum * np.abs(g) * (1 + 1e-12)).all()
    best = np.where(g * S > 0, 0.0, -maximum * g * S).sum()  # no lowering token, every raising one at its largest
    if out.metrics["feasible"]:
        assert -(new * S).sum() >= floor * g.size - slack
    else:
        assert best < floor * g.size + slack
        assert -(new * S).sum() == pytest.approx(best, abs=slack)
    if -(g * S).sum() >= floor * g.size + slack:
        assert np.array_equal(new, g)
    if maximum == 1.0:
        assert np.array_equal(new[g * S <= 0], g[g * S <= 0])


@settings(max_examples=60)
@given(batch=batches(), ceiling=floors, distance=distances)
def test_a_ceiling_is_the_mirror_image(batch: TokenBatch, ceiling: float, distance: str) -> None:
    out = rule("entropy-budget", floor=None, ceiling=ceiling, distance=distance).apply(batch)
    mirrored = replace(batch, centered_discriminant=-batch.centered_discriminant)
    other = rule("entropy-budget", floor=-ceiling, distance=distance).apply(mirrored)
    assert torch.equal(out.coefficients, other.coefficients)
    assert out.metrics["multiplier"] == -other.metrics["multiplier"]


@settings(max_examples=60)
@given(batch=batches(), floor=floors, maximum=caps, distance=distances, data=st.randoms(use_true_random=False))
def test_no_other_gradient_that_keeps_the_budget_is_closer(batch, floor, maximum, distance, data) -> None:
    out = rule("entropy-budget", floor=floor, maximum=maximum, distance=distance).apply(batch)
    assume(out.metrics["feasible"] == 1.0)
    g, new, S = parts(batch, out)
    v = np.ones_like(g) if distance == "uniform" else np.abs(g)
    v[v == 0] = 1.0
    mine = ((new - g) ** 2 / v).sum()
    for _ in range(20):
        other = g * np.array([data.uniform(0, maximum) for _ in g])
        reached, target = -(other * S).sum(), floor * g.size
        if reached < target:  # towards our own, which keeps it, until it does too
            own = -(new * S).sum()
            share = (target - reached) / (own - reached) if own > reached else 1.0
            other = other + min(max(share, 0.0), 1.0) * (new - other)
        assert ((other - g) ** 2 / v).sum() >= mine * (1 - 1e-9) - 1e-12


def test_closed_form_where_no_bound_binds() -> None:
    batch = replace(random_batch(0, rows=20), old_log_probs=None)
    before = rule("entropy-budget(floor=-100)").apply(batch).metrics["predicted_before"]
    floor = before + 1e-4
    out = rule("entropy-budget", floor=floor, maximum=1e9).apply(batch)
    g, new, S = parts(batch, out)
    multiplier = (floor - before) * g.size / (S**2).sum()
    if (g * (g - multiplier * S) > 0).all():
        np.testing.assert_allclose(new, g - multiplier * S, rtol=1e-9)
    assert out.metrics["predicted_after"] == pytest.approx(floor, rel=1e-9)


@pytest.mark.parametrize("maximum", [1.0, 2.0])
def test_the_floor_holds_to_second_order(maximum: float) -> None:
    a = 0.8
    for seed in range(20):
        batch = replace(random_batch(seed, rows=8), old_log_probs=None)
        curvature = torch.randn(batch.log_probs.shape, generator=torch.Generator().manual_seed(seed)).double()
        batch = replace(batch, grpo_curvature=curvature)
        out = rule("entropy-budget", floor=0.0, maximum=maximum, second_order_step=a).apply(batch)
        _, new, S = parts(batch, out)
        second = -(new * S).sum() + 0.5 * a * (new**2 * curvature[batch.completion_mask].numpy()).sum()
        if out.metrics["feasible"] and out.metrics["multiplier"]:
            assert second >= -1e-12


def test_a_target_lets_entropy_fall_at_most_exponentially() -> None:
    batch = random_batch(2)
    mean = float(batch.entropy[batch.completion_mask].mean())
    out = rule("entropy-budget", target=mean - 0.5, gain=0.2).apply(batch)
    assert out.metrics["floor"] == pytest.approx(-0.1)
    assert rule("entropy-budget", target=mean + 0.5, gain=0.2).apply(batch).metrics["floor"] == pytest.approx(0.1)


def test_tokens_dropped_before_stay_dropped_and_do_not_count() -> None:
    batch = replace(random_batch(3, rows=12), old_log_probs=None)
    first = "clip-v(drop_fraction=0.3, advantages='all', side='upper')"
    out = rule(f"{first}|entropy-budget(floor=0.001)").apply(batch)
    kept = rule(first).apply(batch).keep_mask
    assert not out.coefficients[~kept].any()
    assert -(out.coefficients * batch.centered_discriminant)[kept].sum() >= 0.0009 * int(batch.completion_mask.sum())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entropy-budget(floor=None)", "entropy-budget floor, ceiling, target: expected at least one"),
        ("entropy-budget(floor=1, ceiling=0)", "entropy-budget ceiling: expected a number ≥ floor=1, received 0"),
        ("entropy-budget(distance='l1')", "entropy-budget distance: expected one of"),
        ("clip-b(mu=1, drop_fraction=0.1)", "clip-b drop_fraction: expected no mu beside it, received mu=1"),
        ("entropy-ratio(low=0.5, drop_fraction=0.1)", "entropy-ratio drop_fraction: expected no low or high"),
        ("stare(target=None, adaptive=True)", "stare target: expected a number for adaptive=True, received None"),
        ("w-reinforce(samples='some')", "w-reinforce samples: expected one of 'weighted'"),
        ("clip-cov(lower=3, upper=2)", "clip-cov upper: expected a number > lower=3, received 2"),
        ("bapo(lower=0.9)", "bapo lower_max: expected a number ≥ lower=0.9, received 0.8"),
    ],
)
def test_wrong_parameters(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(text)


@pytest.mark.parametrize("spec", ["clip-b", "clip-v(side='both', advantages='all')", "clip-v"])
def test_a_share_to_drop_is_met_while_tokens_are_out(spec: str) -> None:
    batch = random_batch(4, rows=30)
    n = int(batch.completion_mask.sum())
    drops = [rule(spec.replace(")", ", ") + "(" * (")" not in spec) + f"drop_fraction={f})") for f in (0.02, 0.1, 1.0)]
    small, large, most = (one.apply(batch) for one in drops)
    assert small.metrics["dropped"] == round(0.02 * n)
    assert large.metrics["dropped"] == round(0.1 * n)
    assert (small.keep_mask | ~large.keep_mask).all()
    assert most.metrics["dropped"] <= n
