"""Numbers that the official implementations produced, in two sources with the same keys.

"small" is committed next to this file. "full" is the folder of parity fixtures, ../shared/parity seen from the root
of the repository, or wherever ENTROPY_THEORY_PARITY points; tests over it skip when it is absent.

Run this file to write the small source anew from the full one.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from entropy_theory.control import RuleOutput, TokenBatch

Data = dict[str, np.ndarray]
EPS = 2.0**-23

REGIMES = ("diffuse", "peaked", "mixed", "offpolicy", "edge")
SMALL_REGIMES = ("peaked", "offpolicy", "edge")
CLIP_B = ("clip_b", "clip_b@mu1", "clip_b@mu0.5", "clip_b@mu0.25", "clip_b@rollout_lp")
CLIP_V = ("clip_v", "clip_v@mu2", "clip_v@uncapped", "clip_v@uncapped_low_mu", "clip_v@capped", "clip_v@cap_loose")
PPO = ("vanilla", "clip_higher", "dual_clip")
CLIP_COV = ("clip_cov", "clip_cov@dense", "clip_cov@all")
KL_COV = ("kl_cov", "kl_cov@2pct", "kl_cov@20pct")
HIGH_ENTROPY = ("high_entropy", "high_entropy@q0.5", "high_entropy@q0.05", "high_entropy@q0")
SURROGATES = ("cispo", "cispo@upper_only", "gpg", "dppo_tv", "dppo_kl", "dro")
STEER = ("steer", "steer@linear", "steer@exp_min0.5", "steer@linear_wide")
STARE = ("stare", "stare@C2", "stare@C2_p0.3", "stare@gate_off", "stare@ctrl")
CE_GPPO = ("ce_gppo", "ce_gppo@b0.75", "ce_gppo@b0.25")
REWEIGHTING = ("ar", "ar@0.2", "ar@neg_sigmoid_balance1", "ar@both_sigmoid", "ar@mask_prob_lower0.25")
REWEIGHTING += ("ar@raft_linear", "ar@both_linear_balance1")
LOPTI = ("lopti", "lopti@high_first", "lopti@portion0.2")
BAPO = ("bapo", "bapo@script", "bapo@midway", "bapo@unreachable")
OTHERS = ("gspo", "gspo@wide", "sapo", "geo_mean", "erc", "erc@wide", "erc_gppo", "dcpo", "dcpo@seq-mean-token-mean")
OTHERS += ("psr", "nsr", "w_reinforce", "pos_weight_loss", "entropy_bonus")
TRL = ("trl_grpo", "trl_dapo", "trl_dr_grpo", "trl_delta", "trl_cispo", "trl_sapo", "trl_gspo", "trl_8020")
TRL += ("trl_entropy_bonus", "trl_8020_entropy_bonus")
METHODS = CLIP_COV + KL_COV + HIGH_ENTROPY + SURROGATES + STEER + STARE + CE_GPPO + REWEIGHTING + LOPTI + BAPO
METHODS += OTHERS + TRL
MODES = ("token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
INPUTS = ("log_probs", "old_log_probs", "entropies", "baselines_official", "advantages", "response_mask")
MORE_INPUTS = ("old_entropies", "rewards")

SMALL = Path(__file__).parent / "parity_small.npz"
FULL = Path(os.environ.get("ENTROPY_THEORY_PARITY") or Path(__file__).parents[3] / ".." / "shared" / "parity")


def used_keys(names: list[str]) -> list[str]:
    """The keys that the tests of this folder read."""
    methods = (*CLIP_B, *CLIP_V, *PPO, *(f"vanilla@{mode}" for mode in MODES), *METHODS)
    skipped = ("metrics.", "stats.", "agg", "perm", "selected_idx", "selected_flat_idx", "returns")
    found = []
    for name in names:
        method = max((m for m in methods if name.startswith(f"{m}.")), key=len, default=None)
        output = "" if method is None else name[len(method) + 1 :]
        plain = name in (*INPUTS, *MORE_INPUTS, "logits")
        if plain or (method and (output == "metrics.frac_clipped_neg" or not output.startswith(skipped))):
            found.append(name)
    return found


@cache
def load(source: str, regime: str) -> Data:
    if source == "small":
        with np.load(SMALL, allow_pickle=False) as data:
            prefix = f"{regime}/"
            found = {name.removeprefix(prefix): data[name] for name in data.files if name.startswith(prefix)}
        numbers = dict(zip(bytes(found.pop("names")).decode().split("\n"), found.pop("numbers"), strict=True))
        return found | {name: np.asarray(value) for name, value in numbers.items()}
    path = FULL / f"{regime}.npz"
    if not path.exists():
        pytest.skip(f"the parity fixtures are not here ({path.name} missing; set ENTROPY_THEORY_PARITY)")
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in used_keys(data.files)}


def batch_of(data: Data, *, rollout: bool = False, requires_grad: bool = False) -> TokenBatch:
    """The stored inputs as the official functions were given them."""
    tensor = {name: torch.from_numpy(data[name].copy()) for name in INPUTS + MORE_INPUTS}
    return TokenBatch(
        log_probs=tensor["log_probs"].requires_grad_(requires_grad),
        entropy=tensor["entropies"],
        advantages=tensor["advantages"],
        completion_mask=tensor["response_mask"],
        old_log_probs=tensor["old_log_probs"],
        rollout_log_probs=tensor["old_log_probs"] if rollout else None,
        baseline=tensor["baselines_official"],
        old_entropy=tensor["old_entropies"],
        rewards=tensor["rewards"],
    )


def hyper(data: Data, method: str, name: str) -> float:
    """A hyper-parameter that the official code was given."""
    return float(data[f"{method}.hp.{name}"])


def named(data: Data, method: str, **names: str) -> dict[str, float]:
    """Hyper-parameters under our names."""
    return {ours: hyper(data, method, official) for ours, official in names.items()}


def check_loss_and_gradient(data: Data, method: str, batch: TokenBatch, out: RuleOutput, absolute: float = 0.0) -> None:
    """Token-mean loss and gradient, to the tolerances that `test_rule_parity` explains."""
    loss = out.loss()
    size = float(out.objective.detach().abs().sum() / out.denominator)
    assert abs(float(loss.detach()) - float(data[f"{method}.loss"])) <= 16 * EPS * size
    if f"{method}.grad_log_prob" not in data:
        return  # this gradient is in the full source only
    expected = data[f"{method}.grad_log_prob"]
    ours = (-out.coefficients / out.denominator).numpy()
    np.testing.assert_allclose(ours, expected, rtol=8 * EPS, atol=absolute)
    loss.backward()
    np.testing.assert_allclose(batch.log_probs.grad.numpy(), expected, rtol=8 * EPS, atol=absolute)


CONTROLLERS = Path(__file__).parent / "parity_controllers.npz"
RICH = "offpolicy"
"""The regime of which the small source has gradients and advantages of every method."""


@cache
def controllers(source: str) -> Data:
    path = CONTROLLERS if source == "small" else FULL / "adaptive_entropy.npz"
    if not path.exists():
        pytest.skip(f"the parity fixtures are not here ({path.name} missing; set ENTROPY_THEORY_PARITY)")
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files if name != "meta.json"}


def write_small() -> None:
    """Copy what pins each rule; what follows from the rest, and most gradients, are left to the full source."""
    kept: dict[str, np.ndarray] = {}
    first = ("clip_b@mu0.25", "clip_v@uncapped", *PPO)
    for regime in SMALL_REGIMES:
        numbers: dict[str, float] = {}
        for key, value in load("full", regime).items():
            if value.ndim == 0 and value.dtype.kind in "fib":
                numbers[key] = float(value)  # one vector: a file of their own costs each a hundred times its size
                continue
            method, _, output = key.rpartition(".")
            plain = value.ndim == 0 or value.dtype == bool or not method
            gradient = output == "grad_log_prob" and (method in first or (regime == RICH and method in METHODS))
            gradient = gradient or (output == "grad_entropies" and regime == RICH)
            advantages = output == "advantages" and regime == RICH
            if key != "logits" and (plain or gradient or advantages):
                kept[f"{regime}/{key}"] = value
        kept[f"{regime}/numbers"] = np.array(list(numbers.values()))
        kept[f"{regime}/names"] = np.frombuffer("\n".join(numbers).encode(), dtype=np.uint8)
    np.savez_compressed(SMALL, **kept)
    np.savez_compressed(CONTROLLERS, **{k: v for k, v in controllers("full").items() if "loss" not in k})


if __name__ == "__main__":
    write_small()
    print(SMALL.stat().st_size, CONTROLLERS.stat().st_size)
