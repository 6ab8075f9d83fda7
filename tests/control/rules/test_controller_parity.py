"""The stateful controllers against trajectories of the official ones: 48 scripted entropies each.

Coefficients are sums of at most 48 steps in float64 on both sides: equal to 48 ulps of the largest, 1e-14 of 1.5.
"""

from __future__ import annotations

import numpy as np
import parity_fixtures as fixtures
import pytest
import torch

from entropy_theory.control import TokenBatch, rule

pytestmark = pytest.mark.parametrize("source", ["small", "full"])
SETTINGS = {"initial": "init", "minimum": "min", "maximum": "max", "step": "delta", "target": "target"}


def one_token(entropy: float) -> TokenBatch:
    H = torch.full((1, 1), entropy, dtype=torch.float64)
    return TokenBatch(-H, H, torch.ones(1), torch.ones(1, 1), old_log_probs=-H)


def trajectory(one, batches: list[TokenBatch], *names: str) -> dict[str, list[float]]:
    found, state = {name: [] for name in names}, None
    for batch in batches:
        out = one.apply(batch, state=state)
        state = out.state
        for name in names:
            found[name].append(out.metrics[name])
    return found


@pytest.mark.parametrize("settings", ["paper_script", "fast", "wide"])
@pytest.mark.parametrize("variant", ["skywork", "trl"])
def test_entropy_coefficient(source: str, variant: str, settings: str) -> None:
    data, key = fixtures.controllers(source), f"{variant}@{settings}"
    given = {ours: float(data[f"{key}.hp.{official}"]) for ours, official in SETTINGS.items()}
    one = rule("adaptive-entropy", variant=variant, **given)
    found = trajectory(one, [one_token(h) for h in data["entropy_seq"]], "coefficient", "next_coefficient")
    np.testing.assert_allclose(found["coefficient"], data[f"{key}.coef_used"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(found["next_coefficient"], data[f"{key}.coef_after"], rtol=0, atol=1e-14)


def test_fixed_coefficient(source: str) -> None:
    """With its adaptation off the official controller is the bonus of fixed coefficient."""
    data = fixtures.controllers(source)
    coefficient = float(data["skywork@fixed.hp.init"])
    out = rule("entropy-bonus", coefficient=coefficient).apply(one_token(0.3))
    assert (data["skywork@fixed.coef_used"] == out.entropy_coefficients.item()).all()


def test_entropy_is_that_of_all_micro_batches(source: str) -> None:
    data, key = fixtures.controllers(source), "trl@accum2"
    given = {ours: float(data[f"{key}.hp.{official}"]) for ours, official in SETTINGS.items()}
    one = rule("adaptive-entropy", variant="trl", **given)
    batches = []
    for entropies, masks in zip(data[f"{key}.entropies"], data[f"{key}.masks"], strict=True):
        H = torch.from_numpy(entropies.reshape(-1, entropies.shape[-1])).double()
        mask = torch.from_numpy(masks.reshape(H.shape))
        batches.append(TokenBatch(-H, H, torch.ones(H.shape[0]), mask))
    found = trajectory(one, batches, "coefficient", "next_coefficient", "controlled_entropy")
    np.testing.assert_allclose(
        found["controlled_entropy"], data[f"{key}.world_entropy"], rtol=2e-7
    )  # float32 sums officially
    np.testing.assert_allclose(found["next_coefficient"], data[f"{key}.coef_after"], rtol=0, atol=1e-14)
    for micro in range(2):
        np.testing.assert_allclose(found["coefficient"], data[f"{key}.coef_used"][:, micro], rtol=0, atol=1e-14)


@pytest.mark.parametrize("settings", ["static", "adaptive", "alpha0"])
def test_stare(source: str, settings: str) -> None:
    """Steps without a finite entropy leave the official controller as it was; no batch here can have one."""
    data, key = fixtures.controllers(source), f"stare@{settings}"
    names = {"target": "target", "up": "w0", "down": "m0", "rate": "alpha", "up_max": "w_max", "down_min": "m_min"}
    given = {ours: float(data[f"{key}.hp.{official}"]) for ours, official in names.items()}
    one = rule("stare", adaptive=bool(data[f"{key}.hp.adaptive"]), **given)
    finite = np.isfinite(data["stare.entropy_seq"])
    batches = [one_token(h) for h in data["stare.entropy_seq"][finite]]
    found = trajectory(one, batches, "gate", "up", "down")
    np.testing.assert_array_equal(found["gate"], data[f"{key}.gate_after"][finite])
    np.testing.assert_allclose(found["up"], data[f"{key}.w_after"][finite], rtol=0, atol=1e-14)
    np.testing.assert_allclose(found["down"], data[f"{key}.m_after"][finite], rtol=0, atol=1e-14)
