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
from parity_fixtures import EPS, Data, check_loss_and_gradient, hyper, named

from entropy_theory.control import Context, Flow, LocalReducer, Rule, RuleOutput, TokenBatch, aggregate, rule
from entropy_theory.control.rules.covariance import covariances

CLIP = {"epsilon_low": "clip_low", "epsilon_high": "clip_high"}
DUAL = CLIP | {"dual_clip": "clip_c"}
TRL_CLIP = {"epsilon_low": "eps_low", "epsilon_high": "eps_high"}


def ppo(data: Data, method: str) -> Rule:
    return rule("ppo-clip", **named(data, method, **DUAL))


def near(ours: torch.Tensor, official: np.ndarray, tolerance: float, absolute: float = 0.0) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), official, rtol=tolerance, atol=absolute)


def check_rows(data: Data, method: str, batch: TokenBatch, out: RuleOutput, all_rows: bool, ulps: float = 16) -> None:
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


def test_covariance_is_the_official_one(data: Data, batch: TokenBatch) -> None:
    if "kl_cov.cov" not in data:
        pytest.skip("in the full source only")
    count = int(batch.completion_mask.sum())
    ours = covariances(Flow.start(batch), Context(batch, LocalReducer(), None, count)).numpy()
    valid = batch.completion_mask.numpy()
    scale = np.abs(data["advantages"]).max() * np.abs(data["log_probs"][valid]).max()
    np.testing.assert_allclose(ours[valid], data["kl_cov.cov"][valid], rtol=0, atol=8 * EPS * scale)


@pytest.mark.parametrize("method", fixtures.CLIP_COV)
def test_clip_cov(data: Data, batch: TokenBatch, method: str) -> None:
    names = {"fraction": "clip_cov_ratio", "lower": "clip_cov_lb", "upper": "clip_cov_ub"}
    generator = torch.Generator().manual_seed(int(hyper(data, method, "manual_seed")))
    out = rule("clip-cov", **named(data, method, **names, **CLIP)).apply(batch, generator=generator)
    assert out.metrics["candidates"] == data[f"{method}.candidates"].sum()
    assert out.metrics["limit"] == float(data[f"{method}.n_clip"])
    # official .keep knows the drawn tokens only, ours also those that PPO clips
    keep = data[f"{method}.keep"] & ~data[f"{method}.clip_by_origin"]
    assert np.array_equal(out.keep_mask.numpy(), keep)
    check_loss_and_gradient(data, method, batch, out)


@pytest.mark.parametrize("method", fixtures.KL_COV)
def test_kl_cov(data: Data, batch: TokenBatch, method: str) -> None:
    penalty = rule("kl-cov", **named(data, method, fraction="kl_cov_ratio", beta="ppo_kl_coef"))
    assert penalty.apply(batch).metrics["selected"] == float(data[f"{method}.k"])
    if float(data[f"{method}.gap_at_cut"]) == 0:  # a tie: which tokens win follows torch.topk; the count is defined
        return
    # r A and β may cancel
    size = float(batch.advantages.abs().max()) * 4 + penalty.beta
    check_loss_and_gradient(
        data, method, batch, penalty.apply(batch), absolute=8 * EPS * size / int(batch.completion_mask.sum())
    )


@pytest.mark.parametrize("method", fixtures.HIGH_ENTROPY)
def test_high_entropy(data: Data, batch: TokenBatch, method: str) -> None:
    out = rule("high-entropy", **named(data, method, share="top_entropy_quantile")).apply(batch)
    assert np.array_equal(out.keep_mask.numpy(), data[f"{method}.keep"])
    # officially the rank, up to n, is a float32: rounding it moves the threshold by that much of a gap of entropies
    slack = EPS * int(out.denominator) * float(data["entropies"].max())
    assert out.metrics["threshold"] == pytest.approx(float(data[f"{method}.threshold"]), rel=4 * EPS, abs=slack)
    assert int(out.denominator) == int(data["response_mask"].sum())


DPPO = {"low": "clip_low", "high": "clip_high", "truncation": "clip_c"}
SURROGATES = {
    "cispo": ("cispo", CLIP),
    "cispo@upper_only": ("cispo", CLIP),
    "gpg": ("gpg", {}),
    "dppo_tv": ("dppo(divergence='tv')", DPPO),
    "dppo_kl": ("dppo(divergence='kl')", DPPO),
    "dro": ("dro", {"beta": "dro_beta"}),  # its log-ratio is a difference of rounded numbers on both sides, the same
    **dict.fromkeys(fixtures.CE_GPPO, ("ce-gppo", DUAL | {"beta_low": "beta1", "beta_high": "beta2"})),
    "dcpo": ("dcpo", DUAL),
}


@pytest.mark.parametrize("method", SURROGATES)
def test_surrogates(data: Data, batch: TokenBatch, method: str) -> None:
    spec, names = SURROGATES[method]
    check_loss_and_gradient(data, method, batch, rule(spec, **named(data, method, **names)).apply(batch))


TAUS = {"tau_positive": "tau_pos", "tau_negative": "tau_neg"}
ROWS = {
    # a sequence ratio is the exponential of a float32 mean of up to 32 terms, a gate that of a rounded product
    "gspo": ("gspo", CLIP, False, 32),
    "gspo@wide": ("gspo", CLIP, False, 32),
    "sapo": ("sapo", TAUS, False, 32),
    "trl_gspo": ("gspo", TRL_CLIP, True, 32),
    "trl_sapo": ("sapo", TAUS, True, 32),
    "geo_mean": ("gmpo", CLIP, True, 32),
    "dcpo@seq-mean-token-mean": ("dcpo", DUAL, False, 16),
}


@pytest.mark.parametrize("method", ROWS)
def test_means_of_rows(data: Data, batch: TokenBatch, method: str) -> None:
    name, names, all_rows, ulps = ROWS[method]
    if np.isfinite(data[f"{method}.loss"]):  # dcpo's is NaN officially where a row is fully masked
        out = rule(name, **named(data, method, **names)).apply(batch)
        check_rows(data, method, batch, out, all_rows, ulps)


@pytest.mark.parametrize("method", fixtures.STEER)
def test_steer(data: Data, batch: TokenBatch, method: str) -> None:
    form = "linear" if float(data[f"{method}.w.hp.linear"]) else "exponential"
    least, most = float(data[f"{method}.w.hp.token_weight_min"]), float(data[f"{method}.w.hp.token_weight_max"])
    one = rule("steer", form=form, minimum=least, maximum=most)
    valid = batch.completion_mask & (batch.advantages != 0)
    if f"{method}.weight" in data:
        ours = (one.apply(batch).advantages / batch.advantages)[valid]
        near(ours, data[f"{method}.weight"][valid.numpy()], 8 * EPS)
    check_loss_and_gradient(data, method, batch, (one | ppo(data, method)).apply(batch))


@pytest.mark.parametrize("method", fixtures.STARE)
def test_stare(data: Data, batch: TokenBatch, method: str) -> None:
    share, up, down = (float(data[f"{method}.w.hp.{name}"]) for name in ("top_p_ratio", "reweight_w", "reweight_m"))
    variant = "C2" if float(data[f"{method}.w.hp.variant_is_c2"]) else "O1"
    target = None if float(data[f"{method}.w.hp.gate_on"]) else -1.0
    one = rule("stare", variant=variant, share=share, up=up, down=down, target=target)
    weight = (one.apply(batch).advantages / batch.advantages).nan_to_num(1.0)
    valid = batch.completion_mask & (batch.advantages != 0)
    if min(float(data[f"{method}.gap_at_cut_{side}"]) for side in ("plus", "minus")) == 0:
        # a tie: only the counts are defined
        for side, value in (("l_plus", up), ("l_minus", down)):
            assert int(((weight - value).abs() < 1e-5)[valid].sum()) == int(data[f"{method}.{side}"].sum())
        return
    if f"{method}.weight" in data:
        near(weight[valid], data[f"{method}.weight"][valid.numpy()], 4 * EPS)
    check_loss_and_gradient(data, method, batch, (one | ppo(data, method)).apply(batch))


@pytest.mark.parametrize("method", ["erc", "erc@wide", "erc_gppo"])
def test_entropy_ratio(data: Data, batch: TokenBatch, method: str) -> None:
    gate = rule("entropy-ratio", **named(data, method, low="entropy_ratio_low", high="entropy_ratio_high"))
    assert np.array_equal(gate.apply(batch).keep_mask.numpy(), data[f"{method}.keep"])
    inner = rule("ce-gppo(beta_low=1)", **named(data, method, **DUAL)) if method == "erc_gppo" else ppo(data, method)
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
def test_advantage_reweighting(data: Data, batch: TokenBatch, method: str) -> None:
    if f"{method}.advantages" not in data:
        pytest.skip("in the full source only")
    form = REWEIGHTING[str(data[f"{method}.method"])]
    given = {"slope": "alpha_k", "center": "tau"} if "sigmoid" in form else {"alpha": "alpha_k"}
    names = given | {"negative_weight": "neg_adv_weight"}
    out = rule("advantage-reweighting", form=form, **named(data, method, **names)).apply(batch)
    valid = data["response_mask"].astype(bool)
    # the balance of sigmoid-negative is a quotient of two float32 sums of all tokens
    ulps = 64 if form == "sigmoid-negative" else 8
    near(out.advantages[torch.from_numpy(valid)], data[f"{method}.advantages"][valid], ulps * EPS)


@pytest.mark.parametrize("method", fixtures.LOPTI)
def test_lopti(data: Data, batch: TokenBatch, method: str) -> None:
    eta, portion = hyper(data, method, "eta"), hyper(data, method, "portion") or None
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


W_REINFORCE = {"psr": "positive", "nsr": "negative", "w_reinforce": "weighted", "pos_weight_loss": "advantage"}


@pytest.mark.parametrize("method", W_REINFORCE)
def test_w_reinforce(data: Data, batch: TokenBatch, method: str) -> None:
    learning = method == "pos_weight_loss"
    weight = data[f"{method}.hp.positive_learning_weight" if learning else f"{method}.adv.hp.positive_advantage_weight"]
    one = rule("w-reinforce", samples=W_REINFORCE[method], positive_weight=float(weight))
    if f"{method}.advantages" in data and not learning:
        near(one.apply(batch).advantages, data[f"{method}.advantages"], EPS)
    cliprange = named(data, method, epsilon_low="cliprange", epsilon_high="cliprange")
    out = (one | rule("ppo-clip", dual_clip=None, **cliprange)).apply(batch)
    check_loss_and_gradient(data, method, batch, out)


@pytest.mark.parametrize("method", fixtures.BAPO)
def test_bapo(data: Data, batch: TokenBatch, method: str) -> None:
    names = {"target": "adv_ratio_target", "dual_clip": "clip_c"}
    for side in ("lower", "upper"):
        names |= {side: f"ratio_{side}_start", f"{side}_max": f"ratio_{side}_max", f"{side}_step": f"ratio_{side}_step"}
    out = rule("bapo", **named(data, method, **names)).apply(batch)
    assert out.metrics["lower"] == float(data[f"{method}.clip_low"])
    assert out.metrics["upper"] == float(data[f"{method}.clip_high"])
    assert out.metrics["contribution_ratio"] == pytest.approx(float(data[f"{method}.pos_neg_ratio"]), rel=32 * EPS)
    check_loss_and_gradient(data, method, batch, out)


@pytest.mark.parametrize("method", ["trl_grpo", "trl_dapo", "trl_dr_grpo", "trl_delta", "trl_cispo", "trl_8020"])
def test_trl_losses(data: Data, batch: TokenBatch, method: str) -> None:
    if method == "trl_cispo":
        one = rule("cispo", epsilon_low=None, epsilon_high=hyper(data, method, "eps_high") - 1.0)
    else:
        dual = hyper(data, method, "delta") if method == "trl_delta" else None
        one = rule("ppo-clip", dual_clip=dual, **named(data, method, **TRL_CLIP))
    if method == "trl_8020":
        one = one | rule("high-entropy", **named(data, method, share="top_entropy_quantile"))
    out = one.apply(batch)
    if method == "trl_grpo":
        check_rows(data, method, batch, out, all_rows=True)
        return
    if method == "trl_dr_grpo":
        rows, horizon = batch.log_probs.shape[0], int(hyper(data, method, "max_completion_length"))
        out = replace(out, denominator=torch.tensor(rows * horizon))
    check_loss_and_gradient(data, method, batch, out)


@pytest.mark.parametrize("method", ["trl_entropy_bonus", "trl_8020_entropy_bonus"])
def test_trl_entropy_bonus(data: Data, batch: TokenBatch, method: str) -> None:
    entropy = batch.entropy.clone().requires_grad_()
    batch = replace(batch, entropy=entropy)
    clip = rule("ppo-clip", dual_clip=None, **named(data, method, **TRL_CLIP))
    coefficient = hyper(data, method, "entropy_coef")
    if "8020" in method:
        first = rule("high-entropy", **named(data, method, share="top_entropy_quantile"))
        out = (first | rule("entropy-bonus", coefficient=coefficient, over="kept") | clip).apply(batch)
        assert torch.equal(out.entropy_coefficients != 0, first.apply(batch).keep_mask)
    else:  # PPO's clipped tokens are not dropped from TRL's mean entropy
        out = (rule("entropy-bonus", coefficient=coefficient) | clip).apply(batch)
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


def test_entropy_bonus(data: Data, batch: TokenBatch) -> None:
    out = rule("entropy-bonus", coefficient=1.0).apply(replace(batch, advantages=torch.zeros_like(batch.advantages)))
    for mode in ("token-mean", *fixtures.MODES[1:]):
        key = "entropy_bonus.entropy_agg" + (f"@{mode}" if mode != "token-mean" else "")
        ours = float(aggregate(out.objective.detach(), out.counted_mask, mode))
        size = float(aggregate(batch.entropy.abs(), batch.completion_mask, mode))
        assert abs(ours - float(data[key])) <= 16 * EPS * size
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
