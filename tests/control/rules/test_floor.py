"""The entropy floor: what its docstring guarantees, on batches made to be awkward."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from control_batches import batches, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_theory.control import TokenBatch, rule

pytestmark = pytest.mark.no_cover  # laws on many inputs: counting lines takes as long, and adds none

gains = st.sampled_from([0.0, 0.03, 1.0])


def parts(batch: TokenBatch) -> tuple[np.ndarray, float]:
    """e = −g S_c of the valid tokens, and their mean entropy."""
    valid = batch.completion_mask
    g = rule("none").apply(batch).coefficients[valid].double().numpy()
    return -g * batch.centered_scores()[valid].double().numpy(), float(batch.entropy[valid].double().mean())


@settings(max_examples=100)
@given(batch=batches(), gap=st.floats(-1.0, 1.0), gain=gains)
def test_nothing_above_and_enough_below_the_floor(batch: TokenBatch, gap: float, gain: float) -> None:
    effects, mean = parts(batch)
    floor = max(0.0, mean + gap)
    out = rule("entropy-floor", floor=floor, gain=gain).apply(batch)
    kept = out.keep_mask[batch.completion_mask].numpy()
    if floor <= mean - 1e-9:
        assert kept.all()
        assert torch.equal(out.coefficients, rule("none").apply(batch).coefficients)
    need = gain * max(0.0, floor - mean) * effects.size
    slack = 1e-9 * (1 + np.abs(effects).sum())
    if floor >= mean + 1e-9:
        assert effects[kept].sum() >= need - slack or not (effects[kept] < 0).any()
        assert (
            bool(out.metrics["feasible"]) == (effects[effects > 0].sum() >= need)
            or abs(effects[effects > 0].sum() - need) < slack
        )
    assert (effects[~kept] < 0).all()
    assert out.denominator == effects.size
    assert out.metrics["predicted_after"] * effects.size == pytest.approx(effects[kept].sum(), abs=slack)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), gain=gains)
def test_no_smaller_set_does_it(seed: int, gain: float) -> None:
    batch = random_batch(seed, rows=2, width=5)
    effects, mean = parts(batch)
    out = rule("entropy-floor", floor=mean + 0.3, gain=gain).apply(batch)
    need = gain * 0.3 * effects.size
    dropped = int(out.metrics["dropped"])
    if not dropped:
        assert effects.sum() >= need - 1e-12 or not (effects < 0).any()
        return
    for chosen in combinations(range(effects.size), dropped - 1):  # every smaller number is covered by the largest
        assert np.delete(effects, chosen).sum() < need


@settings(max_examples=60)
@given(batch=batches(), data=st.randoms(use_true_random=False))
def test_rows_may_come_in_any_order(batch: TokenBatch, data) -> None:
    _, mean = parts(batch)
    floor = rule("entropy-floor", floor=mean + 0.2)
    order = torch.tensor(data.sample(range(len(batch.log_probs)), len(batch.log_probs)))
    from control_batches import map_tokens

    moved = map_tokens(batch, lambda value: value[order], lambda value: value[order])
    first, second = floor.apply(batch), floor.apply(moved)
    assert first.metrics["dropped"] == second.metrics["dropped"]
    if len(set(parts(batch)[0])) == batch.completion_mask.sum():  # equal effects are dropped in token order
        assert torch.equal(first.keep_mask[order], second.keep_mask)


def test_effects_that_cancel_leave_nothing_to_drop() -> None:
    """.1 + .1 + .1 - .1 is not .2 in binary; the two tokens that are left add up to 0."""
    S_c = torch.tensor([[0.1, 0.1, 0.1, -0.1]]).double()
    batch = TokenBatch(0 * S_c, 0 * S_c + 0.3, torch.ones(1).double(), S_c != 0, centered_discriminant=S_c)
    assert rule("entropy-floor(floor=0.5, gain=0)").apply(batch).metrics["dropped"] == 2.0
    many = torch.tensor([0.1, 0.07]).double().repeat(2500)
    S_c = torch.cat([many, -many])[None]
    batch = TokenBatch(0 * S_c, 0 * S_c + 0.3, torch.ones(1).double(), S_c != 0, centered_discriminant=S_c)
    output = rule("entropy-floor(floor=0.5, gain=0)").apply(batch)
    assert output.metrics["dropped"] == output.metrics["predicted_before"] == 0.0


def test_a_bound_on_the_share_is_met_where_it_is_a_whole_number() -> None:
    S_c = torch.full((1, 100), 0.1)
    batch = TokenBatch(0 * S_c, 0 * S_c, torch.ones(1), S_c != 0, centered_discriminant=S_c)
    for percent in range(1, 101):
        bound = rule(f"entropy-floor(max_share={percent / 100})").apply(batch)
        assert bound.metrics["dropped"] == percent


def test_a_bound_on_the_share() -> None:
    batch = random_batch(1, rows=20)
    effects, mean = parts(batch)
    free = rule("entropy-floor", floor=mean + 1, gain=1).apply(batch)
    bound = rule("entropy-floor", floor=mean + 1, gain=1, max_share=0.05).apply(batch)
    assert free.metrics["dropped"] > bound.metrics["dropped"] == int(0.05 * effects.size)
    assert bound.metrics["feasible"] == 0.0
    kept = bound.keep_mask[batch.completion_mask].numpy()
    assert effects[~kept].max() <= effects[kept].min()


def test_hysteresis_is_remembered() -> None:
    batch = random_batch(2)
    _, mean = parts(batch)
    floor = rule("entropy-floor", floor=mean - 0.05, gain=0.0, hysteresis=0.1)
    above = floor.apply(batch)
    assert (above.metrics["below"], above.state) == (0.0, {"below": False})
    assert floor.apply(batch, state={"below": True}).metrics["below"] == 1.0
    assert rule("entropy-floor", floor=mean - 0.05).apply(batch).state is None


def test_observed_without_its_memory_it_is_refused() -> None:
    from entropy_theory.bridge.verl import advantages_under_rule

    x = torch.zeros(1, 2)
    given = {"centered_discriminant": x + 0.1, "observe": ("entropy-floor(hysteresis=0.1)",)}
    with pytest.raises(ValueError, match="observe: expected rules that remember nothing from batch to batch, received"):
        advantages_under_rule("none", x, x + 0.3, torch.ones(1), torch.ones(1, 2), **given)
    given["observe"] = ("entropy-floor",)
    out = advantages_under_rule("none", x, x + 0.3, torch.ones(1), torch.ones(1, 2), **given)
    assert out.metrics["entropy_control/observed/entropy-floor/dropped_share"] == 1.0


def test_a_batch_without_the_score_names_what_is_missing() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="centered_discriminant"):
        rule("entropy-floor").apply(TokenBatch(x, x, torch.ones(1), torch.ones(1, 2)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("entropy-floor(floor=-0.1)", "entropy-floor floor: expected a number in"),
        ("entropy-floor(hysteresis=-1)", "entropy-floor hysteresis: expected a number in"),
        ("entropy-floor(max_share=0)", "entropy-floor max_share: expected a number in"),
        ("entropy-floor(max_share=1.5)", "entropy-floor max_share: expected a number in"),
    ],
)
def test_wrong_parameters(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(spec)


def test_a_floor_above_log_v_is_named() -> None:
    from entropy_theory.dynamics import SimulationConfig

    with pytest.raises(ValueError, match="entropy-floor floor: expected at most log V = "):
        rule("clip-b|entropy-floor(floor=2.4)").check_vocabulary(10)
    with pytest.raises(ValueError, match="at most log V"):
        SimulationConfig(policies=4, vocab_size=10, rule="entropy-floor(floor=2.4)")
    rule("clip-b|entropy-floor(floor=2.3)").check_vocabulary(10)


def test_the_pipe_with_ppo_clip_masks_both() -> None:
    """What the floor decided at the batch stays; PPO's clip acts on the present ratio."""
    batch = random_batch(3)
    _, mean = parts(replace(batch, old_log_probs=None))
    spec = f"entropy-floor(floor={mean + 0.2}, gain=1)"
    both, clip, floor = (rule(s).apply(batch) for s in (f"{spec}|ppo-clip", "ppo-clip", spec))
    valid = batch.completion_mask
    assert floor.metrics["dropped"] > 0
    expected = torch.where(floor.keep_mask, clip.coefficients, 0.0)
    assert torch.equal(both.coefficients[valid], expected[valid])


def test_after_a_rule_that_drops_every_token_it_does_nothing_and_remembers() -> None:
    kept_only = rule('keep-sign|entropy-floor(floor=5.0, hysteresis=0.5, statistics="kept")')
    batch = random_batch(0)
    below = kept_only.apply(batch)
    nothing = kept_only.apply(replace(batch, advantages=torch.zeros_like(batch.advantages)), state=below.state)
    assert not nothing.keep_mask.any()
    assert nothing.state == below.state
