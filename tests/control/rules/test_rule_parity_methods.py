"""The methods of ranks 4 to 18 against the numbers of their official implementations; tolerances as for the others.

ε = 2⁻²³. Beyond the products of `test_rule_parity`, weights add an exponential or a square root and a division of
float32 inputs, officially in float32 and here in float64: their own error is a few ε of the weight, and of Ω the
cancellation in log p + H, an ulp of either. A covariance is a product of two differences with float32 means: 4 ε of the
factors' sizes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import parity_fixtures as fixtures
import pytest
import torch
from test_rule_parity import EPS, check_loss_and_gradient, hyper

from entropy_theory.control import Rule, RuleOutput, TokenBatch, aggregate, rule

pytestmark = pytest.mark.parametrize(
    ("source", "regime"),
    [*(("small", regime) for regime in fixtures.SMALL_REGIMES), *(("full", regime) for regime in fixtures.REGIMES)],
)


def ppo(data: dict[str, np.ndarray], method: str) -> Rule:
    low, high, c = (hyper(data, method, name) for name in ("clip_low", "clip_high", "clip_c"))
    return rule("ppo-clip", epsilon_low=low, epsilon_high=high, dual_clip=c)


def seeded(data: dict[str, np.ndarray], method: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(hyper(data, method, "manual_seed")))


def near(ours: torch.Tensor, official: np.ndarray, tolerance: float, absolute: float = 0.0) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), official, rtol=tolerance, atol=absolute)


def check_rows(
    data: dict[str, np.ndarray], method: str, batch: TokenBatch, out: RuleOutput, all_rows: bool, ulps: float = 16
) -> None:
    """Loss and gradient of the mean of rows; with `all_rows` fully masked rows are counted, as zeros."""
    mode = "seq-mean-token-mean"
    rows = out.counted_mask.any(dim=1)
    share = float(rows.double().mean()) if all_rows else 1.0
    loss = share * aggregate(-out.objective, out.counted_mask, mode)
    size = share * float(aggregate(out.objective.detach().abs(), out.counted_mask, mode))
    assert abs(float(loss.detach()) - float(data[f"{method}.loss"])) <= ulps * EPS * size
    lengths = out.counted_mask.sum(dim=1, keepdim=True).clamp_min(1)
    count = rows.numel() if all_rows else int(rows.sum())
    expected = data.get(f"{method}.grad_log_prob")
    if expected is None:
        return
    near(-out.coefficients / lengths / count, expected, ulps * EPS)
    loss.backward()
    near(batch.log_probs.grad, expected, ulps * EPS)


def test_covariance_is_the_official_one(source: str, regime: str) -> None:
    from entropy_theory.control import Context, Flow, LocalReducer
    from entropy_theory.control.rules.covariance import covariances

    data = fixtures.load(source, regime)
    if "kl_cov.cov" not in data:
        pytest.skip("in the full source only")
    batch = fixtures.batch_of(data)
    count = int(batch.completion_mask.sum())
    ours = covariances(Flow.start(batch), Context(batch, LocalReducer(), None, count)).numpy()
    valid = batch.completion_mask.numpy()
    scale = np.abs(data["advantages"]).max() * np.abs(data["log_probs"][valid]).max()
    np.testing.assert_allclose(ours[valid], data["kl_cov.cov"][valid], rtol=0, atol=8 * EPS * scale)


@pytest.mark.parametrize("method", fixtures.CLIP_COV)
def test_clip_cov(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    names = {"fraction": "clip_cov_ratio", "lower": "clip_cov_lb", "upper": "clip_cov_ub"}
    names |= {"epsilon_low": "clip_low", "epsilon_high": "clip_high"}
    clip = rule("clip-cov", **{ours: hyper(data, method, official) for ours, official in names.items()})
    out = clip.apply(batch, generator=seeded(data, method))
    assert out.metrics["candidates"] == data[f"{method}.candidates"].sum()
    assert out.metrics["limit"] == float(data[f"{method}.n_clip"])
    # official .keep knows the drawn tokens only, ours also those that PPO clips
    keep = data[f"{method}.keep"] & ~data[f"{method}.clip_by_origin"]
    assert np.array_equal(out.keep_mask.numpy(), keep)
    check_loss_and_gradient(data, method, batch, out)


@pytest.mark.parametrize("method", fixtures.KL_COV)
def test_kl_cov(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    penalty = rule("kl-cov", fraction=hyper(data, method, "kl_cov_ratio"), beta=hyper(data, method, "ppo_kl_coef"))
    assert penalty.apply(batch).metrics["selected"] == float(data[f"{method}.k"])
    if float(data[f"{method}.gap_at_cut"]) == 0:  # a tie: which tokens win follows torch.topk; the count is defined
        return
    # r A and β may cancel
    size = float(batch.advantages.abs().max()) * 4 + penalty.beta
    check_loss_and_gradient(
        data, method, batch, penalty.apply(batch), absolute=8 * EPS * size / int(batch.completion_mask.sum())
    )


@pytest.mark.parametrize("method", fixtures.HIGH_ENTROPY)
def test_high_entropy(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    out = rule("high-entropy", share=hyper(data, method, "top_entropy_quantile")).apply(fixtures.batch_of(data))
    assert np.array_equal(out.keep_mask.numpy(), data[f"{method}.keep"])
    # officially the rank, up to n, is a float32: rounding it moves the threshold by that much of a gap of entropies
    slack = EPS * int(out.denominator) * float(data["entropies"].max())
    assert out.metrics["threshold"] == pytest.approx(float(data[f"{method}.threshold"]), rel=4 * EPS, abs=slack)
    assert int(out.denominator) == int(data["response_mask"].sum())


@pytest.mark.parametrize("method", fixtures.SURROGATES)
def test_token_surrogates(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    if method.startswith("cispo"):
        one = rule("cispo", epsilon_low=hyper(data, method, "clip_low"), epsilon_high=hyper(data, method, "clip_high"))
    elif method == "gpg":
        one = rule("gpg")
    elif method == "dro":
        one = rule("dro", beta=hyper(data, method, "dro_beta"))
    else:
        names = {"low": "clip_low", "high": "clip_high", "truncation": "clip_c"}
        one = rule("dppo", divergence=method[-2:], **{k: hyper(data, method, v) for k, v in names.items()})
    # the log-ratio of dro is a difference of rounded numbers on both sides, the same one
    check_loss_and_gradient(data, method, batch, one.apply(batch))


@pytest.mark.parametrize("method", ["gspo", "gspo@wide", "sapo", "trl_gspo", "trl_sapo"])
def test_sequence_means(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    if "gspo" in method:
        low, high = ("eps_low", "eps_high") if method.startswith("trl") else ("clip_low", "clip_high")
        one = rule("gspo", epsilon_low=hyper(data, method, low), epsilon_high=hyper(data, method, high))
    else:
        taus = {"tau_positive": hyper(data, method, "tau_pos"), "tau_negative": hyper(data, method, "tau_neg")}
        one = rule("sapo", **taus)
    # a sequence ratio is the exponential of a float32 mean of up to 32 terms, a gate that of a rounded product
    check_rows(data, method, batch, one.apply(batch), all_rows=method.startswith("trl"), ulps=32)


def test_gmpo(source: str, regime: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    names = {"epsilon_low": "clip_low", "epsilon_high": "clip_high"}
    one = rule("gmpo", **{k: hyper(data, "geo_mean", v) for k, v in names.items()})
    check_rows(data, "geo_mean", batch, one.apply(batch), all_rows=True, ulps=32)


@pytest.mark.parametrize("method", fixtures.STEER)
def test_steer(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    form = "linear" if float(data[f"{method}.w.hp.linear"]) else "exponential"
    least, most = float(data[f"{method}.w.hp.token_weight_min"]), float(data[f"{method}.w.hp.token_weight_max"])
    one = rule("steer", form=form, minimum=least, maximum=most)
    weight = one.apply(replace(batch, advantages=batch.advantages, old_log_probs=batch.old_log_probs))
    valid = batch.completion_mask & (batch.advantages != 0)
    if f"{method}.weight" in data:
        ours = (weight.advantages / batch.advantages)[valid]
        near(ours, data[f"{method}.weight"][valid.numpy()], 8 * EPS)
    check_loss_and_gradient(data, method, batch, (one | ppo(data, method)).apply(batch))


@pytest.mark.parametrize("method", fixtures.STARE)
def test_stare(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    settings = {name: float(data[f"{method}.w.hp.{name}"]) for name in ("top_p_ratio", "reweight_w", "reweight_m")}
    one = rule(
        "stare",
        variant="C2" if float(data[f"{method}.w.hp.variant_is_c2"]) else "O1",
        share=settings["top_p_ratio"],
        up=settings["reweight_w"],
        down=settings["reweight_m"],
        target=None if float(data[f"{method}.w.hp.gate_on"]) else -1.0,
    )
    weight = (one.apply(batch).advantages / batch.advantages).nan_to_num(1.0)
    valid = batch.completion_mask & (batch.advantages != 0)
    if min(float(data[f"{method}.gap_at_cut_{side}"]) for side in ("plus", "minus")) == 0:
        # a tie: only the counts are defined
        for side, value in (("l_plus", settings["reweight_w"]), ("l_minus", settings["reweight_m"])):
            assert int(((weight - value).abs() < 1e-5)[valid].sum()) == int(data[f"{method}.{side}"].sum())
        return
    if f"{method}.weight" in data:
        near(weight[valid], data[f"{method}.weight"][valid.numpy()], 4 * EPS)
    check_loss_and_gradient(data, method, batch, (one | ppo(data, method)).apply(batch))


@pytest.mark.parametrize("method", fixtures.CE_GPPO)
def test_ce_gppo(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    names = {"beta_low": "beta1", "beta_high": "beta2", "epsilon_low": "clip_low", "epsilon_high": "clip_high"}
    one = rule(
        "ce-gppo", dual_clip=hyper(data, method, "clip_c"), **{k: hyper(data, method, v) for k, v in names.items()}
    )
    check_loss_and_gradient(data, method, batch, one.apply(batch))


@pytest.mark.parametrize("method", ["erc", "erc@wide", "erc_gppo"])
def test_entropy_ratio(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    band = {"low": hyper(data, method, "entropy_ratio_low"), "high": hyper(data, method, "entropy_ratio_high")}
    gate = rule("entropy-ratio", **band)
    assert np.array_equal(gate.apply(batch).keep_mask.numpy(), data[f"{method}.keep"])
    if method == "erc_gppo":
        low, high, c = (hyper(data, method, name) for name in ("clip_low", "clip_high", "clip_c"))
        inner = rule("ce-gppo", epsilon_low=low, epsilon_high=high, dual_clip=c, beta_low=1.0, beta_high=1.0)
    else:
        inner = ppo(data, method)
    check_loss_and_gradient(data, method, batch, (inner | gate).apply(batch))


REWEIGHTING = {
    "both_linear_normal": "linear",
    "both_linear_balance1": "linear-positive",
    "both_sigmoid": "sigmoid",
    "negative_sigmoid_balance1": "sigmoid-negative",
    "mask_prob_lower0.25": "mask",
    "RAFT_linear": "raft",
}


@pytest.mark.parametrize("method", fixtures.REWEIGHTING)
def test_advantage_reweighting(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    if f"{method}.advantages" not in data:
        pytest.skip("in the full source only")
    form, alpha = REWEIGHTING[str(data[f"{method}.method"])], hyper(data, method, "alpha_k")
    given = {"slope": alpha, "center": hyper(data, method, "tau")} if "sigmoid" in form else {"alpha": alpha}
    one = rule("advantage-reweighting", form=form, negative_weight=hyper(data, method, "neg_adv_weight"), **given)
    out = one.apply(fixtures.batch_of(data))
    valid = data["response_mask"].astype(bool)
    # the balance of sigmoid-negative is a quotient of two float32 sums of all tokens
    ulps = 64 if form == "sigmoid-negative" else 8
    near(out.advantages[torch.from_numpy(valid)], data[f"{method}.advantages"][valid], ulps * EPS)


@pytest.mark.parametrize("method", fixtures.LOPTI)
def test_lopti(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch, eta = fixtures.batch_of(data), hyper(data, method, "eta")
    portion = hyper(data, method, "portion") or None
    settings = {"order": "high-first" if eta < 0 else "low-first", "portion": portion}
    if portion is None:
        settings["threshold"] = abs(eta)
    for which in ("first", "second") if f"{method}.advantages_first" in data else ():
        out = rule("lopti", which=which, **settings).apply(batch)
        assert np.array_equal(out.advantages.numpy(), data[f"{method}.advantages_{which}"] * data["response_mask"])
    first = rule("lopti", **settings).apply(batch)
    assert np.array_equal(first.keep_mask.numpy(), data[f"{method}.low_prob"])
    assert int(first.denominator) == int(data["response_mask"].sum())
    assert first.metrics["threshold"] == pytest.approx(float(data[f"{method}.sep_prob"]), rel=4 * EPS)


@pytest.mark.parametrize(("method", "samples"), [("psr", "positive"), ("nsr", "negative"), ("w_reinforce", "weighted")])
def test_w_reinforce(source: str, regime: str, method: str, samples: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    weight = float(data[f"{method}.adv.hp.positive_advantage_weight"])
    one = rule("w-reinforce", samples=samples, positive_weight=weight)
    if f"{method}.advantages" in data:
        near(one.apply(batch).advantages, data[f"{method}.advantages"], EPS)
    cliprange = hyper(data, method, "cliprange")
    clip = rule("ppo-clip", epsilon_low=cliprange, epsilon_high=cliprange, dual_clip=None)
    check_loss_and_gradient(data, method, batch, (one | clip).apply(batch))


def test_positive_learning_weight(source: str, regime: str) -> None:
    data, method = fixtures.load(source, regime), "pos_weight_loss"
    batch = fixtures.batch_of(data, requires_grad=True)
    cliprange = hyper(data, method, "cliprange")
    clip = rule("ppo-clip", epsilon_low=cliprange, epsilon_high=cliprange, dual_clip=None)
    one = rule("w-reinforce", samples="advantage", positive_weight=hyper(data, method, "positive_learning_weight"))
    out = (one | clip).apply(batch)
    check_loss_and_gradient(data, method, batch, out)


@pytest.mark.parametrize("method", ["dcpo", "dcpo@seq-mean-token-mean"])
def test_dcpo(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    names = {"epsilon_low": "clip_low", "epsilon_high": "clip_high", "dual_clip": "clip_c"}
    one = rule("dcpo", **{k: hyper(data, method, v) for k, v in names.items()})
    if method == "dcpo":
        check_loss_and_gradient(data, method, batch, one.apply(batch))
    elif np.isfinite(data[f"{method}.loss"]):  # NaN officially where a row is fully masked
        check_rows(data, method, batch, one.apply(batch), all_rows=False)


@pytest.mark.parametrize("method", fixtures.BAPO)
def test_bapo(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    names = {"target": "adv_ratio_target", "dual_clip": "clip_c"}
    for side in ("lower", "upper"):
        names |= {side: f"ratio_{side}_start", f"{side}_max": f"ratio_{side}_max", f"{side}_step": f"ratio_{side}_step"}
    out = rule("bapo", **{k: hyper(data, method, v) for k, v in names.items()}).apply(batch)
    assert out.metrics["lower"] == float(data[f"{method}.clip_low"])
    assert out.metrics["upper"] == float(data[f"{method}.clip_high"])
    assert out.metrics["contribution_ratio"] == pytest.approx(float(data[f"{method}.pos_neg_ratio"]), rel=32 * EPS)
    check_loss_and_gradient(data, method, batch, out)


@pytest.mark.parametrize("method", ["trl_grpo", "trl_dapo", "trl_dr_grpo", "trl_delta", "trl_cispo", "trl_8020"])
def test_trl_losses(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    if method == "trl_cispo":
        one = rule("cispo", epsilon_low=None, epsilon_high=hyper(data, method, "eps_high") - 1.0)
    else:
        low, high = hyper(data, method, "eps_low"), hyper(data, method, "eps_high")
        dual = hyper(data, method, "delta") if method == "trl_delta" else None
        one = rule("ppo-clip", epsilon_low=low, epsilon_high=high, dual_clip=dual)
    if method == "trl_8020":
        one = one | rule("high-entropy", share=hyper(data, method, "top_entropy_quantile"))
    out = one.apply(batch)
    if method == "trl_grpo":
        check_rows(data, method, batch, out, all_rows=True)
        return
    if method == "trl_dr_grpo":
        rows, horizon = batch.log_probs.shape[0], int(hyper(data, method, "max_completion_length"))
        out = replace(out, denominator=torch.tensor(rows * horizon))
    check_loss_and_gradient(data, method, batch, out)


@pytest.mark.parametrize("method", ["trl_entropy_bonus", "trl_8020_entropy_bonus"])
def test_trl_entropy_bonus(source: str, regime: str, method: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data, requires_grad=True)
    entropy = batch.entropy.clone().requires_grad_()
    batch = replace(batch, entropy=entropy)
    low, high = hyper(data, method, "eps_low"), hyper(data, method, "eps_high")
    pipe = rule("ppo-clip", epsilon_low=low, epsilon_high=high, dual_clip=None)
    if "8020" in method:
        pipe = pipe | rule("high-entropy", share=hyper(data, method, "top_entropy_quantile"))
    pipe = pipe | rule("entropy-bonus", coefficient=hyper(data, method, "entropy_coef"), over="kept")
    if "8020" not in method:
        # PPO's clipped tokens are not dropped from TRL's mean entropy
        pipe = rule("entropy-bonus", coefficient=hyper(data, method, "entropy_coef")) | pipe.rules[0]
    out = pipe.apply(batch)
    if "8020" in method:
        kept = rule("high-entropy", share=hyper(data, method, "top_entropy_quantile")).apply(batch).keep_mask
        first = rule("high-entropy", share=hyper(data, method, "top_entropy_quantile"))
        bonus = rule("entropy-bonus", coefficient=hyper(data, method, "entropy_coef"), over="kept")
        out = (first | bonus | rule("ppo-clip", epsilon_low=low, epsilon_high=high, dual_clip=None)).apply(batch)
        assert torch.equal(out.entropy_coefficients != 0, kept)
    if f"{method}.grad_entropies" not in data:
        pytest.skip("in the full source only")
    near(-out.entropy_coefficients / out.denominator, data[f"{method}.grad_entropies"], 8 * EPS)
    loss = out.loss()
    size = float(out.objective.detach().abs().sum() / out.denominator)
    assert abs(float(loss.detach()) - float(data[f"{method}.loss"])) <= 16 * EPS * size
    loss.backward()
    near(entropy.grad, data[f"{method}.grad_entropies"], 8 * EPS)
    if f"{method}.grad_log_prob" in data:
        near(batch.log_probs.grad, data[f"{method}.grad_log_prob"], 8 * EPS)


def test_entropy_bonus(source: str, regime: str) -> None:
    data = fixtures.load(source, regime)
    batch = fixtures.batch_of(data)
    out = rule("entropy-bonus", coefficient=1.0).apply(replace(batch, advantages=torch.zeros_like(batch.advantages)))
    size = float(aggregate(batch.entropy.abs(), batch.completion_mask))
    assert abs(float(out.loss()) + float(data["entropy_bonus.entropy_agg"])) <= 16 * EPS * size
    for mode in fixtures.MODES[1:]:
        ours = float(aggregate(out.objective, out.counted_mask, mode))
        size = float(aggregate(batch.entropy.abs(), batch.completion_mask, mode))
        assert abs(ours - float(data[f"entropy_bonus.entropy_agg@{mode}"])) <= 16 * EPS * size
    if "entropy_bonus.grad_logits" in data and "logits" in data:
        # ∂H/∂z = −S, section B.1 of the theory notes, with the coefficients that the rule gives
        logits = torch.from_numpy(data["logits"]).double()
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        S = p * (log_p - (p * log_p).sum(-1, keepdim=True))
        ours = -S * (out.entropy_coefficients / out.denominator)[..., None]
        # officially p times a difference of float32 logits of size up to 60, relative to n
        bound = 64 * EPS * float(logits.abs().max()) / int(out.denominator)
        near(ours, data["entropy_bonus.grad_logits"], 64 * EPS, bound)
