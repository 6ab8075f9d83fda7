"""What the rules compute: against autograd, against a plain NumPy reading of the formulas, and through pipes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from control_batches import EVERY_METHOD, random_batch

from entropy_theory.control import Flow, LocalReducer, Pipe, Rule, TokenBatch, aggregate, rule

SPECS = (
    "none",
    "clip-b(mu=0.5)",
    "clip-b(mu=0.5, side='both', advantages='all', denominator='valid')",
    "clip-v(mu=0.3, max_fraction=None)",
    "clip-v(mu=0.3, side='upper', advantages='positive')",
    "ppo-clip",
    "ppo-clip(dual_clip=None)",
    "ppo-clip(dual_clip=1.3)",
    "clip-higher",
    "clip-b(mu=0.5)|ppo-clip",
    "ppo-clip|clip-b(mu=0.5, denominator='valid')",
    "random-mask(fraction=0.3)|ppo-clip",
    "random-mask(match='clip-b(mu=0.5)')",
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("spec", SPECS + EVERY_METHOD)
@pytest.mark.parametrize("seed", range(3))
def test_coefficients_are_the_derivative_of_the_objective(spec: str, seed: int) -> None:
    """Autograd oracle, float64; random ratios lie off the kinks. Round-off: a few ulps of each factor."""
    batch = random_batch(seed)
    log_probs = batch.log_probs.clone().requires_grad_()
    out = rule(spec).apply(replace(batch, log_probs=log_probs), generator=generator())
    out.objective.sum().backward()
    assert not out.coefficients.requires_grad
    torch.testing.assert_close(log_probs.grad, out.coefficients, rtol=1e-14, atol=0)


@pytest.mark.parametrize("spec", SPECS + EVERY_METHOD)
def test_its_parts_one_after_the_other_do_what_the_pipe_does(spec: str) -> None:
    """What a trainer does with `split`: the batch part once, its output before the live part at every update."""
    batch, whole = random_batch(4), rule(spec)
    expected = whole.apply(batch, generator=generator())
    batch_part, live_part = whole.split()
    assert str(whole) == "|".join(str(part) for part in (batch_part, live_part) if part is not None)
    source, out, state, metrics = generator(), None, {}, {}
    for part, phase in ((batch_part, "batch"), (live_part, "live")):
        if part is not None:
            assert part.phase == phase
            out = part.apply(batch, generator=source, after=out)
            state |= out.state or {}
            metrics |= out.metrics
    for name in ("coefficients", "advantages", "unmasked_advantages", "objective", "counted_mask", "denominator"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name), rtol=1e-14, atol=0)
    assert (out.keep_mask is None) == (expected.keep_mask is None)
    assert out.keep_mask is None or torch.equal(out.keep_mask, expected.keep_mask)
    assert (out.entropy_coefficients is None) == (expected.entropy_coefficients is None)
    assert (state or None) == expected.state
    assert metrics == pytest.approx(expected.metrics)


@pytest.mark.parametrize("spec", EVERY_METHOD)
def test_state_is_plain_data(spec: str) -> None:
    import json

    state = rule(spec).apply(random_batch(4), generator=generator()).state
    assert json.loads(json.dumps(state, allow_nan=False)) == state


@pytest.mark.parametrize("spec", [s for s in SPECS if rule(s).phase == "batch"])
def test_on_policy_objective_has_the_advantage_as_derivative(spec: str) -> None:
    batch = replace(random_batch(1), old_log_probs=None)
    log_probs = batch.log_probs.clone().requires_grad_()
    out = rule(spec).apply(replace(batch, log_probs=log_probs), generator=generator())
    out.objective.sum().backward()
    assert torch.equal(log_probs.grad, out.coefficients)
    assert torch.equal(out.objective.detach(), out.coefficients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_none_returns_the_advantages_to_the_bit(dtype: torch.dtype) -> None:
    batch = replace(random_batch(2, dtype=torch.float32), old_log_probs=None)
    batch = replace(batch, advantages=batch.advantages.to(dtype), log_probs=batch.log_probs.requires_grad_())
    out = rule("none").apply(batch)
    assert out.coefficients.dtype == dtype
    assert torch.equal(out.coefficients, batch.token_advantages.masked_fill(~batch.completion_mask, 0))
    assert out.keep_mask is None
    assert out.entropy_coefficients is None
    assert out.state is None
    assert int(out.denominator) == int(batch.completion_mask.sum())


def test_a_mask_that_drops_nothing_changes_no_bit() -> None:
    batch = replace(random_batch(2, dtype=torch.float32), old_log_probs=None)
    plain, masked = rule("none").apply(batch), rule("clip-b(mu=100)").apply(batch)
    assert torch.equal(plain.coefficients, masked.coefficients)
    assert torch.equal(masked.keep_mask, batch.completion_mask)
    assert float(plain.loss()) == float(masked.loss())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", ["lower", "upper", "both"])
@pytest.mark.parametrize("advantages", ["negative", "positive", "all"])
def test_clip_b_against_a_plain_reading(seed: int, side: str, advantages: str) -> None:
    batch = random_batch(seed)
    valid = batch.completion_mask.numpy()
    S, A = batch.discriminant.numpy(), batch.token_advantages.numpy()
    z = (S - S[valid].mean()) / S[valid].std()
    out_of_bounds = {"lower": z < -0.5, "upper": z > 0.5, "both": np.abs(z) > 0.5}[side]
    chosen = {"negative": A < 0, "positive": A > 0, "all": A == A}[advantages]
    out = rule("clip-b", mu=0.5, side=side, advantages=advantages).apply(batch)
    assert np.array_equal(out.keep_mask.numpy(), valid & ~(out_of_bounds & chosen))
    assert out.metrics["dropped"] == (valid & out_of_bounds & chosen).sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", ["lower", "upper", "both"])
def test_clip_v_against_a_plain_reading(seed: int, side: str) -> None:
    batch = random_batch(seed, rows=8)
    valid = batch.completion_mask.numpy()
    S_c, A = batch.centered_discriminant.numpy(), batch.token_advantages.numpy()
    x = S_c / S_c[valid].std()
    distance = {"lower": -x, "upper": x, "both": np.abs(x)}[side]
    over = valid & (distance > 0.2) & (A < 0)
    out = rule("clip-v", mu=0.2, side=side, max_fraction=0.05).apply(batch)
    cap = max(int(0.05 * valid.sum()), 1)
    far = sorted(distance[over], reverse=True)[:cap]
    expected = over & (distance >= (far[-1] if far else np.inf))
    assert np.array_equal(out.keep_mask.numpy(), valid & ~expected)
    assert out.metrics["over_threshold"] == over.sum()


def test_clip_v_and_tokens_without_advantage() -> None:
    """Official: the cap neither counts nor restores them."""
    x = torch.zeros(1, 6)
    S_c = torch.tensor([[0.1, -0.5, -0.6, -0.7, -0.8, 0.1]])
    A = torch.tensor([[-1.0, -1.0, -1.0, 0.0, 0.0, -1.0]])
    batch = TokenBatch(x, x, A, x + 1, centered_discriminant=S_c)
    assert rule("clip-v(mu=1)").apply(batch).keep_mask.tolist() == [[True, True, False, False, False, True]]
    kept = rule("clip-v(mu=1, zero_advantages='kept')").apply(batch)
    assert kept.keep_mask.tolist() == [[True, True, False, True, True, True]]
    counted = rule("clip-v(mu=1, advantages='all')").apply(batch)
    assert counted.keep_mask.tolist() == [[True, True, True, True, False, True]]


def test_clip_v_ties_at_the_cap_go_in_token_order() -> None:
    x = torch.zeros(2, 3)
    S_c = torch.tensor([[0.3, -0.5, 0.3], [-0.5, 0.3, -0.5]])
    batch = TokenBatch(x, x, -torch.ones(2), x + 1, centered_discriminant=S_c)
    out = rule("clip-v(mu=0.1, max_fraction=0.34)").apply(batch)  # ⌊.34 · 6⌋ = 2
    assert out.keep_mask.tolist() == [[True, False, True], [False, True, True]]


def test_a_second_cap_sees_all_tokens_or_those_that_are_left() -> None:
    """By default the same tokens are found again; with statistics="kept" the cap is filled with new ones."""
    x = torch.zeros(1, 6)
    S_c = torch.tensor([[0.1, -0.5, -0.6, -0.7, -0.8, 0.1]])
    batch = TokenBatch(x, x, -torch.ones(1), x + 1, centered_discriminant=S_c)
    first = "clip-v(mu=0.5)"
    assert rule(first).apply(batch).keep_mask.tolist() == [[True, True, True, True, False, True]]
    again = rule(f"{first}|{first}").apply(batch)
    assert again.keep_mask.tolist() == [[True, True, True, True, False, True]]
    further = rule(f"{first}|clip-v(mu=0.5, statistics='kept')").apply(batch)
    assert further.keep_mask.tolist() == [[True, True, True, False, False, True]]


def test_a_dropped_token_has_not_lost_the_sign_of_its_advantage() -> None:
    """Its effective advantage is 0, but Clip_V must not take it for one of the uncapped tokens with A = 0."""
    x = torch.zeros(1, 6)
    S_c = torch.tensor([[0.1, -0.5, -0.6, -0.7, -0.8, 0.1]])
    batch = TokenBatch(x, x, -torch.ones(1), x + 1, centered_discriminant=S_c)
    out = rule("clip-v(mu=0.5, max_fraction=None, denominator='valid')|clip-v(mu=0.5)").apply(batch)
    assert int(out.denominator) == 5


@pytest.mark.parametrize("spec", ["clip-b(mu=0)", "clip-v(mu=0, max_fraction=1)"])
def test_a_constant_score_keeps_every_token(spec: str) -> None:
    x = torch.full((2, 3), -0.4)
    batch = TokenBatch(x, -x, -torch.ones(2), x * 0 + 1, baseline=-x)
    assert rule(spec).apply(batch).keep_mask.all()


def test_where_clip_b_reads_p() -> None:
    batch = random_batch(5)
    rollout = replace(batch, rollout_log_probs=batch.old_log_probs)

    def mean(b: TokenBatch, source: str) -> float:
        return rule("clip-b", log_probs_source=source).apply(b).metrics["score_mean"]

    assert mean(batch, "auto") == mean(batch, "current") == mean(rollout, "current")
    assert mean(rollout, "auto") == mean(rollout, "rollout") == mean(batch, "old")
    assert mean(rollout, "auto") != mean(batch, "auto")
    with pytest.raises(ValueError, match=r"rollout_log_probs: .* which clip-b\(log_probs_source='rollout'\) needs"):
        mean(batch, "rollout")


@pytest.mark.parametrize("seed", range(4))
def test_the_four_conditions_share_the_tokens_out(seed: int) -> None:
    batch = random_batch(seed)
    rows = torch.zeros(batch.log_probs.shape, dtype=torch.long)
    signs = {"positive": 1, "negative": -1}
    for discriminant, sign in signs.items():
        for samples, of_advantage in signs.items():
            out = rule("keep-sign", discriminant=discriminant, samples=samples).apply(batch)
            rows += out.keep_mask
            assert (batch.scores()[out.keep_mask].sign() == sign).all()
            assert (batch.token_advantages[out.keep_mask].sign() == of_advantage).all()
            assert int(out.denominator) == int(batch.completion_mask.sum())
    assert torch.equal(rows, (batch.completion_mask & (batch.scores() != 0) & (batch.token_advantages != 0)).long())


@pytest.mark.parametrize(("spec", "counted"), [("kept", False), ("valid", True)])
def test_denominator(spec: str, counted: bool) -> None:
    batch = random_batch(6)
    out = rule("clip-b", mu=0.3, denominator=spec).apply(batch)
    dropped = batch.completion_mask & ~out.keep_mask
    assert dropped.any()
    assert torch.equal(out.counted_mask, batch.completion_mask if counted else out.keep_mask)
    assert int(out.denominator) == int(out.counted_mask.sum())
    assert not out.coefficients[dropped].any()
    assert float(out.loss()) == pytest.approx(-float(out.coefficients.sum()) / int(out.denominator))


def test_the_loss_is_zero_when_nothing_is_counted() -> None:
    out = rule("random-mask(fraction=1)").apply(random_batch(0), generator=generator())
    assert int(out.denominator) == 0
    assert float(out.loss()) == 0.0
    assert out.metrics["dropped_share"] == 1.0


def test_log_ratios_beyond_twenty_have_no_gradient() -> None:
    old = torch.full((1, 4), -30.0, dtype=torch.float64)
    log_probs = (old + torch.tensor([[19.0, 20.0, 20.5, 29.0]])).requires_grad_()
    batch = TokenBatch(log_probs, -old, torch.ones(1), torch.ones(1, 4), old_log_probs=old)
    out = rule("none").apply(batch)
    out.objective.sum().backward()
    assert torch.equal(log_probs.grad, out.coefficients)
    assert (out.coefficients[0] != 0).tolist() == [True, True, False, False]
    assert float(out.objective.detach().max()) == pytest.approx(np.exp(20.0))


def test_statistics_of_kept_tokens() -> None:
    batch = random_batch(7, rows=10)
    first = rule("clip-v(mu=0.2, max_fraction=1, side='both', advantages='all')")
    kept = first.apply(batch).keep_mask
    S, A = batch.discriminant, batch.token_advantages
    for statistics, population in (("valid", batch.completion_mask), ("kept", kept)):
        out = (first | rule("clip-b", mu=0.5, statistics=statistics)).apply(batch)
        inside = S[population]
        z = (S - inside.mean()) / inside.std(correction=0)
        assert torch.equal(out.keep_mask, kept & ~((z < -0.5) & (A < 0)))
        assert out.metrics["clip-b/score_mean"] == pytest.approx(float(inside.mean()))


def test_statistics_of_kept_tokens_when_none_is_left() -> None:
    spec = "random-mask(fraction=1)|clip-b(mu=0, statistics='kept')|clip-v(statistics='kept')"
    out = rule(spec).apply(random_batch(1), generator=generator())
    assert not out.keep_mask.any()


def test_pipes_intersect_and_report_each_member() -> None:
    batch = random_batch(8, rows=12)
    b, v = rule("clip-b(mu=0.3)"), rule("clip-v(mu=0.3, max_fraction=1)")
    one, two, both = b.apply(batch), v.apply(batch), (b | v).apply(batch)
    assert torch.equal(both.keep_mask, one.keep_mask & two.keep_mask)
    assert both.metrics["clip-b/dropped"] == one.metrics["dropped"]
    assert both.metrics["clip-b/dropped"] + both.metrics["clip-v/dropped"] == both.metrics["dropped"]
    assert both.metrics["clip-v/score_std"] == two.metrics["score_std"]
    again = (b | b).apply(batch).metrics
    assert (again["clip-b/dropped"], again["clip-b#2/dropped"]) == (one.metrics["dropped"], 0.0)


def test_two_surrogates_multiply_coefficients_and_leave_no_objective() -> None:
    batch = random_batch(9)
    narrow, wide = rule("ppo-clip(epsilon_low=0.1, epsilon_high=0.1)"), rule("ppo-clip")
    out = (narrow | wide).apply(batch)
    assert torch.equal(out.coefficients, narrow.apply(batch).coefficients)
    with pytest.raises(ValueError, match="objective: expected a per-token objective"):
        out.loss()


def test_dropped_shares_by_sign_and_quadrant() -> None:
    batch = random_batch(10, rows=20)
    out = rule("clip-b(mu=0.2)").apply(batch)
    m, n = out.metrics, int(batch.completion_mask.sum())
    dropped = batch.completion_mask & ~out.keep_mask
    for q in (1, 2, 3, 4):
        here = batch.quadrants() == q
        assert m[f"quadrant_share_q{q}"] == pytest.approx(int(here.sum()) / n)
        assert m[f"dropped_share_q{q}"] == pytest.approx(int((here & dropped).sum()) / max(int(here.sum()), 1))
    negative = batch.completion_mask & (batch.token_advantages < 0)
    assert m["dropped_share_negative"] == pytest.approx(int(dropped.sum()) / int(negative.sum()))
    assert (m["dropped_share_positive"], m["dropped_share"]) == (0.0, pytest.approx(int(dropped.sum()) / n))
    without = replace(batch, baseline=None, centered_discriminant=None)
    assert not any("q4" in name for name in rule("clip-b").apply(without).metrics)


@pytest.mark.parametrize(
    ("spec", "field", "how"),
    [
        ("clip-v", "centered_discriminant", "token_statistics"),
        ("ppo-clip", "old_log_probs", "before the update"),
        ("clip-b|clip-higher", "old_log_probs", "before the update"),
        ("random-mask(match='clip-v')", "centered_discriminant", "token_statistics"),
    ],
)
def test_a_missing_input_is_named_before_any_work(spec: str, field: str, how: str) -> None:
    batch = replace(random_batch(0), baseline=None, centered_discriminant=None, old_log_probs=None)

    class Untouchable(LocalReducer):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("work has begun")

    with pytest.raises(
        ValueError, match=rf"^{field}: expected a tensor, which .*{spec.split('(')[0].split('|')[0]}.*{how}"
    ):
        rule(spec).apply(batch, reducer=Untouchable())


def test_an_empty_mask_is_refused() -> None:
    x = torch.full((2, 2), -1.0)
    with pytest.raises(ValueError, match="completion_mask: expected at least one valid token over all ranks"):
        rule("none").apply(TokenBatch(x, -x, torch.ones(2), torch.zeros(2, 2)))


def test_aggregate_refuses_what_it_does_not_know() -> None:
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="horizon: expected a length ≥ 1, received 0"):
        aggregate(x, x, "seq-mean-token-sum-norm", horizon=0)
    nan = torch.tensor([[1.0, float("nan")]])
    assert float(aggregate(nan, torch.tensor([[1, 0]]), "seq-mean-token-sum-norm", horizon=4)) == 0.25
    assert float(aggregate(nan, torch.zeros(1, 2), "seq-mean-token-mean")) == 0.0


# What later rules build on: weights, factors and state go down the pipe.


@dataclass(frozen=True)
class Weight(Rule):
    name: ClassVar[str] = "test-weight"
    factor: float = 2.0

    def transform(self, flow, context, state):
        steps = 1 if state is None else state["steps"] + 1
        weight = torch.where(flow.advantages < 0, -self.factor, self.factor)
        return flow.weighted(weight.masked_fill(~flow.valid, float("nan"))), {"steps": float(steps)}, {"steps": steps}


@dataclass(frozen=True)
class Square(Rule):
    """J = r² Â / 2: a surrogate with a derivative of its own, g = r² Â."""

    name: ClassVar[str] = "test-square"

    def transform(self, flow, context, state):
        return flow.replaced(flow.ratio**2 * flow.advantages / 2, derivative=flow.ratio**2), {}, None


@pytest.mark.parametrize("spec", [(Weight(),), (Square(),), (Weight(), Square()), (Square(), Weight())])
def test_weights_and_factors_multiply_through(spec: tuple[Rule, ...]) -> None:
    batch = random_batch(11)
    log_probs = batch.log_probs.clone().requires_grad_()
    one = spec[0] if len(spec) == 1 else Pipe(spec)
    out = (one | rule("clip-b(mu=0.5)")).apply(replace(batch, log_probs=log_probs))
    out.objective.sum().backward()
    torch.testing.assert_close(log_probs.grad, out.coefficients, rtol=1e-13, atol=0)
    signs = batch.token_advantages * torch.where(batch.token_advantages < 0, -2.0, 2.0) if Weight() in spec else None
    if signs is not None:  # weights that flip a sign decide what later rules see as negative
        assert torch.equal(out.keep_mask, batch.completion_mask)


def test_state_comes_back_to_its_member() -> None:
    pipe = Pipe((rule("none"), Weight(), Weight(factor=3.0)))
    first = pipe.apply(random_batch(0))
    second = pipe.apply(random_batch(0), state=first.state)
    assert first.state == {"1": {"steps": 1}, "2": {"steps": 1}}
    assert second.metrics["test-weight#2/steps"] == 2.0


def test_flow_starts_from_clean_values() -> None:
    batch = random_batch(3)
    flow = Flow.start(batch)
    outside = ~batch.completion_mask
    assert torch.equal(flow.ratio[outside], torch.ones(int(outside.sum()), dtype=torch.float64))
    assert not flow.coefficients[outside].any()


def test_an_unfinished_rule_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Rule does not implement transform"):
        Rule().apply(random_batch(0))
