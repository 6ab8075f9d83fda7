"""Laws of every rule: what must never matter does not, and masks behave like masks.

Thresholds come from float64 sums whose last bits depend on the order of the tokens, so laws that reorder tokens are
asked only where no score lies within 1e-9 of a threshold; ties at Clip_V's cap go by token order and are left out of
the permutation law.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from control_batches import EVERY_METHOD, batches, map_tokens, spoil_masked
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from entropy_theory.control import RuleOutput, TokenBatch, rule

pytestmark = pytest.mark.no_cover  # laws on many inputs: counting lines takes as long, and adds none

SPECS = (
    "none",
    "clip-b(mu=0.73)",
    "clip-b(mu=0.73, side='both', advantages='all', denominator='valid')",
    "clip-v(mu=0.73, max_fraction=None)",
    "clip-v(mu=0.31, max_fraction=0.2)",
    "keep-sign(samples='all', denominator='kept')",
    "ppo-clip",
    "clip-higher(dual_clip=1.5)",
    "clip-b(mu=0.73)|clip-v(mu=0.31, max_fraction=None, statistics='kept')|ppo-clip",
    "random-mask(fraction=0.4)|ppo-clip",
    "random-mask(match='clip-b(mu=0.31)', advantages='negative')",
)
few = settings(max_examples=25)


def apply(spec: str, batch: TokenBatch) -> RuleOutput:
    return rule(spec).apply(batch, generator=torch.Generator().manual_seed(0))


def assume_off_thresholds(out: RuleOutput, batch: TokenBatch) -> None:
    """No score within 1e-9 of a threshold that the metrics report."""
    for key, value in out.metrics.items():
        if "threshold_" in key:
            own = key.rpartition("/")[0]
            centered = own == "clip-v" or (not own and "over_threshold" in out.metrics)
            score = batch.centered_scores() if centered else batch.scores()
            assume(bool(((score[batch.completion_mask] - value).abs() > 1e-9).all()))


def solver_slack(spec: str, batch: TokenBatch) -> float:
    """How far two solutions of a budget may lie apart when sums are taken in another order; 0 for other rules.

    The solver stops within 1e-14 · Σ |g S_c| of the budget. Two such multipliers λ differ by δ with
    |δ| Σ v S_c² ≤ 2e-14 · Σ |g S_c| over the tokens at no bound, and a coefficient by |δ v S_c|, so by no more than
    2e-14 · Σ |g S_c| / min |S_c|; then the ratio of PPO multiplies it, and the gradient once more.
    """
    score = batch.centered_scores()[batch.completion_mask].double().abs()
    if "entropy-budget" not in spec or not score.any():
        return 0.0
    effects = batch.token_advantages[batch.completion_mask].double().abs() * score
    ratio = (batch.log_probs - batch.old_log_probs)[batch.completion_mask].exp().max().clamp(min=1.0)
    return float(2e-14 * effects.sum() / score[score > 0].min() * ratio**2)


def same(a: RuleOutput, b: RuleOutput, pick=lambda value: value, *, moved: bool = False, slack: float = 0.0) -> None:
    """Equal tensors, up to `pick` of the second; equal metrics up to the order of float64 sums.

    With `moved`, tokens stand elsewhere in their rows, where a vectorised exp may round the last bit differently, and
    a solver may end `slack` away.
    """
    for one, other in ((a.coefficients, b.coefficients), (a.objective.detach(), b.objective.detach())):
        if moved:
            torch.testing.assert_close(one, pick(other), rtol=4e-15, atol=slack)
        else:
            assert torch.equal(one, pick(other))
    assert torch.equal(a.counted_mask, pick(b.counted_mask))
    assert int(a.denominator) == int(b.denominator)
    assert (a.keep_mask is None) == (b.keep_mask is None)
    if a.keep_mask is not None:
        assert torch.equal(a.keep_mask, pick(b.keep_mask))
    assert a.metrics == pytest.approx(b.metrics, rel=1e-12, abs=1e-12)
    torch.testing.assert_close(a.loss(), b.loss(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", [*SPECS, *EVERY_METHOD])
@settings(max_examples=12)
@given(
    batch=batches(),
    garbage=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e300, -7.0]),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)),
)
def test_masked_positions_and_padding_never_matter(
    spec: str, batch: TokenBatch, garbage: float, pads: tuple[int, int, int]
) -> None:
    def with_gradient(b: TokenBatch) -> tuple[RuleOutput, torch.Tensor]:
        log_probs = b.log_probs.clone().requires_grad_()
        out = apply(spec, replace(b, log_probs=log_probs))
        if out.objective is not None and out.objective.requires_grad:
            out.loss().backward()
        return out, torch.zeros_like(log_probs) if log_probs.grad is None else log_probs.grad

    (left, right, below), (height, width) = pads, batch.log_probs.shape
    valid, spoiled = batch.completion_mask, spoil_masked(batch, garbage)

    def pad(value: torch.Tensor) -> torch.Tensor:
        filler = 0 if value.dtype == torch.bool else garbage
        return torch.nn.functional.pad(value, (left, right, 0, below), value=filler)

    padded = map_tokens(spoiled, pad, lambda value: torch.nn.functional.pad(value, (0, below), value=garbage))
    clean, gradient = with_gradient(spoil_masked(batch, 0.0))
    for other, own_gradient, back in (
        (*with_gradient(spoiled), lambda value: value),
        (*with_gradient(padded), lambda value: value[:height, left : left + width]),
    ):
        moved = spec in EVERY_METHOD and other.coefficients.shape != clean.coefficients.shape
        slack = solver_slack(spec, batch) if moved else 0.0
        same(clean, other, back, moved=moved, slack=slack)
        torch.testing.assert_close(gradient, back(own_gradient), rtol=4e-15 if moved else 0, atol=slack)
        if clean.entropy_coefficients is not None:
            assert torch.equal(clean.entropy_coefficients, back(other.entropy_coefficients))
    keep = valid if clean.keep_mask is None else clean.keep_mask
    assert torch.isfinite(clean.coefficients).all()
    assert not (keep & ~valid).any()
    assert not (clean.counted_mask & ~valid).any()
    for values in (clean.coefficients, clean.objective, gradient):
        assert not values[~valid].any()
    assert clean.entropy_coefficients is None or not clean.entropy_coefficients[~clean.counted_mask].any()
    assert clean.metrics["dropped"] == int((valid & ~keep).sum())


@pytest.mark.parametrize("spec", [s for s in SPECS if "random" not in s and "max_fraction=0.2" not in s])
@few
@given(batch=batches(), data=st.data())
def test_the_order_of_rows_does_not_matter(spec: str, batch: TokenBatch, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(batch.log_probs.shape[0])))
    out = apply(spec, batch)
    assume_off_thresholds(out, batch)
    permuted = map_tokens(batch, lambda value: value[order], lambda value: value[order])
    back = torch.tensor(order).argsort()
    same(out, apply(spec, permuted), lambda value: value[back])


@pytest.mark.parametrize("spec", [s for s in SPECS if "random" not in s and "kept" not in s])
@few
@given(batch=batches())
def test_masks_are_idempotent(spec: str, batch: TokenBatch) -> None:
    once, twice = rule(spec).apply(batch), rule(f"{spec}|{spec}").apply(batch)
    assert torch.equal(once.coefficients, twice.coefficients)
    assert torch.equal(once.counted_mask, twice.counted_mask)
    assert once.metrics["dropped"] == twice.metrics["dropped"]


@pytest.mark.parametrize("name", ["clip-b", "clip-v"])
@given(
    batch=batches(),
    mus=st.tuples(st.floats(0, 3), st.floats(0, 3)).map(sorted),
    side=st.sampled_from(["lower", "upper", "both"]),
    advantages=st.sampled_from(["negative", "positive", "all"]),
)
def test_a_larger_mu_keeps_more(name: str, batch: TokenBatch, mus: list[float], side: str, advantages: str) -> None:
    small, large = (rule(name, mu=mu, side=side, advantages=advantages).apply(batch).keep_mask for mu in mus)
    assert not (small & ~large).any()


@given(batch=batches(), fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_a_larger_cap_keeps_less(batch: TokenBatch, fractions: list[float]) -> None:
    small, large = (rule("clip-v", mu=0.1, max_fraction=f).apply(batch).keep_mask for f in fractions)
    assert not (large & ~small).any()


@given(batch=batches(), bounds=st.tuples(st.floats(0, 2), st.floats(0, 2)).map(sorted))
def test_wider_bounds_keep_more(batch: TokenBatch, bounds: list[float]) -> None:
    tight, wide = (
        rule("ppo-clip", epsilon_low=e, epsilon_high=e, dual_clip=None).apply(batch).keep_mask for e in bounds
    )
    assert not (tight & ~wide).any()


@given(batch=batches())
def test_ppo_never_promises_more_than_the_unclipped_gradient(batch: TokenBatch) -> None:
    """J ≤ r A, the pessimistic bound of PPO; the dual clip lifts it for A < 0 only."""
    free = rule("none").apply(batch).objective
    assert (rule("ppo-clip(dual_clip=None)").apply(batch).objective <= free).all()
    assert (rule("ppo-clip").apply(batch).objective >= 3.0 * batch.token_advantages.clamp(max=0)).all()


@given(batch=batches())
def test_clip_v_of_the_official_side_drops_q4_only(batch: TokenBatch) -> None:
    out = rule("clip-v(mu=0.1, max_fraction=None, zero_advantages='kept')").apply(batch)
    dropped = batch.completion_mask & ~out.keep_mask
    assert (batch.quadrants()[dropped] == 4).all()
