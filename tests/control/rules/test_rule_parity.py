"""Rules against the numbers of the official implementations: masks to the bit, the rest to float32 round-off.

Tolerances. ε = 2⁻²³. A coefficient is exp, two products and a division of the same float32 inputs: each is correct
to an ulp or so on either side, so elements agree to 8 ε relative. A loss is a mean of n such terms added in float32
in some order: pairwise sums lose at most log2(n) ≈ 9 ulps of the sum of the absolute values, so 16 ε times the mean of
those.
"""

from __future__ import annotations

import numpy as np
import parity_fixtures as fixtures
import pytest
import torch
from parity_fixtures import EPS, Data, check_loss_and_gradient, named

from entropy_theory.control import Rule, TokenBatch, aggregate, rule


@pytest.mark.parametrize("method", fixtures.CLIP_B)
def test_clip_b(data: Data, method: str) -> None:
    batch = fixtures.batch_of(data, rollout=method.endswith("rollout_lp"), requires_grad=True)
    clip = rule("clip-b", **named(data, method, mu="mu"))
    out = clip.apply(batch)
    assert np.array_equal(out.keep_mask.numpy(), data[f"{method}.keep"])
    assert int(out.denominator) == int(data[f"{method}.keep"].sum())
    if f"{method}.S" in data:
        # H + log p cancels: its rounding is that of H and of log p, times p
        scores = batch.scores(batch.rollout_log_probs).numpy()
        np.testing.assert_allclose(scores, data[f"{method}.S"], rtol=0, atol=4 * EPS)
    assert out.metrics["score_mean"] == pytest.approx(float(data[f"{method}.mean"]), rel=16 * EPS, abs=16 * EPS)
    assert out.metrics["score_std"] == pytest.approx(float(data[f"{method}.std"]), rel=16 * EPS)
    check_loss_and_gradient(data, method, batch, (clip | rule("ppo-clip")).apply(batch))


@pytest.mark.parametrize("method", fixtures.CLIP_V)
def test_clip_v(data: Data, batch: TokenBatch, method: str) -> None:
    clip = rule("clip-v", **named(data, method, mu="mu", max_fraction="max_frac"))
    out = clip.apply(batch)
    assert np.array_equal(out.keep_mask.numpy(), data[f"{method}.keep"])
    assert out.metrics["score_std"] == pytest.approx(float(data[f"{method}.std"]), rel=16 * EPS)
    assert out.metrics["over_threshold"] == float(data[f"{method}.n_over_threshold_neg"])
    assert out.metrics["dropped_share_negative"] == pytest.approx(
        float(data[f"{method}.metrics.frac_clipped_neg"]), abs=EPS
    )
    check_loss_and_gradient(data, method, batch, (clip | rule("ppo-clip")).apply(batch))
    # without the cap more tokens go exactly where the official code says that the cap is in effect
    free = rule("clip-v", max_fraction=None, **named(data, method, mu="mu")).apply(batch)
    assert (free.metrics["dropped"] > out.metrics["dropped"]) == bool(data[f"{method}.cap_in_effect"])


def ppo_rule(data: Data, method: str) -> Rule:
    bounds = named(data, method, epsilon_low="clip_low", epsilon_high="clip_high", dual_clip="clip_c")
    return rule("clip-higher" if method == "clip_higher" else "ppo-clip", **bounds)


@pytest.mark.parametrize("method", fixtures.PPO)
def test_ppo_clip(data: Data, batch: TokenBatch, method: str) -> None:
    out = ppo_rule(data, method).apply(batch)
    check_loss_and_gradient(data, method, batch, out)
    with_gradient = out.keep_mask & (batch.advantages != 0)
    assert np.array_equal(with_gradient.numpy(), data[f"{method}.grad_log_prob"] != 0)
    if f"{method}.token_loss" in data:
        valid = batch.completion_mask.numpy()
        ours, official = -out.objective.detach().numpy()[valid], data[f"{method}.token_loss"][valid]
        np.testing.assert_allclose(ours, official, rtol=8 * EPS, atol=0)


def test_defaults_are_the_official_settings(data: Data) -> None:
    assert rule("ppo-clip") == ppo_rule(data, "vanilla")
    assert rule("clip-higher") == ppo_rule(data, "clip_higher")
    assert rule("clip-b") == rule("clip-b", **named(data, "clip_b", mu="mu"))
    assert rule("clip-v") == rule("clip-v", **named(data, "clip_v", mu="mu", max_fraction="max_frac"))


@pytest.mark.parametrize("mode", fixtures.MODES)
def test_aggregation(data: Data, batch: TokenBatch, mode: str) -> None:
    method = f"vanilla@{mode}"
    out = ppo_rule(data, method).apply(batch)
    loss = aggregate(-out.objective, out.counted_mask, mode)
    size = float(aggregate(out.objective.detach().abs(), out.counted_mask, mode))
    assert abs(float(loss.detach()) - float(data[f"{method}.loss"])) <= 16 * EPS * size
    if f"{method}.grad_log_prob" not in data:
        return
    loss.backward()
    expected = data[f"{method}.grad_log_prob"]
    np.testing.assert_allclose(batch.log_probs.grad.numpy(), expected, rtol=8 * EPS, atol=0)


def test_token_mean_is_the_loss_of_the_rule(batch: TokenBatch) -> None:
    out = rule("clip-b(mu=0.5)|ppo-clip").apply(batch)
    torch.testing.assert_close(aggregate(-out.objective, out.counted_mask), out.loss(), rtol=16 * EPS, atol=EPS)
