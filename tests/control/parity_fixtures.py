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

from entropy_theory.control import TokenBatch

REGIMES = ("diffuse", "peaked", "mixed", "offpolicy", "edge")
SMALL_REGIMES = ("peaked", "offpolicy", "edge")
CLIP_B = ("clip_b", "clip_b@mu1", "clip_b@mu0.5", "clip_b@mu0.25", "clip_b@rollout_lp")
CLIP_V = ("clip_v", "clip_v@mu2", "clip_v@uncapped", "clip_v@uncapped_low_mu", "clip_v@capped", "clip_v@cap_loose")
PPO = ("vanilla", "clip_higher", "dual_clip")
MODES = ("token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
INPUTS = ("log_probs", "old_log_probs", "entropies", "baselines_official", "advantages", "response_mask")

SMALL = Path(__file__).parent / "parity_small.npz"
FULL = Path(os.environ.get("ENTROPY_THEORY_PARITY") or Path(__file__).parents[2] / ".." / "shared" / "parity")


def used_keys(names: list[str]) -> list[str]:
    """The keys that the tests of this folder read."""
    aggregated = tuple(f"vanilla@{mode}" for mode in MODES)
    methods = (*CLIP_B, *CLIP_V, *PPO, *aggregated)
    outputs = ("keep", "S", "D", "mean", "std", "loss", "grad_log_prob", "token_loss")
    outputs += ("cap_in_effect", "n_over_threshold_neg", "metrics.frac_clipped_neg")
    wanted = {*INPUTS, *(f"{m}.{o}" for m in methods for o in outputs)}
    return [n for n in names if n in wanted or any(n.startswith(f"{m}.hp.") for m in methods)]


@cache
def load(source: str, regime: str) -> dict[str, np.ndarray]:
    if source == "small":
        with np.load(SMALL, allow_pickle=False) as data:
            prefix = f"{regime}/"
            return {name.removeprefix(prefix): data[name] for name in data.files if name.startswith(prefix)}
    path = FULL / f"{regime}.npz"
    if not path.exists():
        pytest.skip(f"the parity fixtures are not here ({path.name} missing; set ENTROPY_THEORY_PARITY)")
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in used_keys(data.files)}


def batch_of(data: dict[str, np.ndarray], *, rollout: bool = False, requires_grad: bool = False) -> TokenBatch:
    """The stored inputs as the official functions were given them."""
    tensor = {name: torch.from_numpy(data[name].copy()) for name in INPUTS}
    return TokenBatch(
        log_probs=tensor["log_probs"].requires_grad_(requires_grad),
        entropy=tensor["entropies"],
        advantages=tensor["advantages"],
        completion_mask=tensor["response_mask"],
        old_log_probs=tensor["old_log_probs"],
        rollout_log_probs=tensor["old_log_probs"] if rollout else None,
        baseline=tensor["baselines_official"],
    )


def write_small() -> None:
    """Copy what pins each rule; what follows from the rest, and most gradients, are left to the full source."""
    kept: dict[str, np.ndarray] = {}
    gradients = ("clip_b@mu0.25", "clip_v@uncapped", *PPO)
    for regime in SMALL_REGIMES:
        for key, value in load("full", regime).items():
            method, _, output = key.rpartition(".")
            if output in ("S", "D", "token_loss") or (output == "grad_log_prob" and method not in gradients):
                continue
            kept[f"{regime}/{key}"] = value
    np.savez_compressed(SMALL, **kept)


if __name__ == "__main__":
    write_small()
    print(SMALL.stat().st_size)
