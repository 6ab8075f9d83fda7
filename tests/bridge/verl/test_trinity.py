"""The Trinity-RFT snippet of docs/trinity.md against what Trinity's own functions produced, without Trinity."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from parity_fixtures import CLIP_B, CLIP_V, REGIMES, SMALL_REGIMES, load

DOCS = Path(__file__).parents[3] / "docs"
SNIPPET = DOCS / "examples" / "trinity_advantage.py"
CASES = [("small", regime) for regime in SMALL_REGIMES] + [("full", regime) for regime in REGIMES]


@pytest.fixture(scope="module")
def snippet():
    spec = importlib.util.spec_from_file_location("trinity_advantage", SNIPPET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def experiences(data: dict, *, rollout: bool) -> SimpleNamespace:
    """The fields that Trinity's trainer hands to an advantage function, under Trinity's names."""
    tensor = {name: torch.from_numpy(value.copy()) for name, value in data.items() if "." not in name}
    scores = torch.zeros_like(tensor["log_probs"])
    scores[:, 0] = tensor["rewards"]
    return SimpleNamespace(
        batch={
            "old_log_probs": tensor["log_probs"],
            "rollout_log_probs": tensor["old_log_probs"] if rollout else tensor["log_probs"],
            "entropys": tensor["entropies"],
            "necs": tensor["baselines_official"],
            "advantages": tensor["advantages"],
            "response_mask": tensor["response_mask"],
            "token_level_rewards": scores,
        }
    )


@pytest.mark.parametrize(("source", "regime"), CASES)
@pytest.mark.parametrize("variant", [*CLIP_B, *CLIP_V])
def test_mask_and_advantages_are_the_official_ones(snippet, source: str, regime: str, variant: str) -> None:
    data = load(source, regime)
    mu = float(data[f"{variant}.hp.mu"])
    spec = f"clip-b(mu={mu!r})"
    if variant in CLIP_V:
        spec = f"clip-v(mu={mu!r}, max_fraction={float(data[f'{variant}.hp.max_frac'])!r})"
    exps = experiences(data, rollout=variant == "clip_b@rollout_lp")
    before = exps.batch["advantages"].clone()
    returned, metrics = snippet.RuleAdvantage(spec, base=None)(exps)
    keep = torch.from_numpy(data[f"{variant}.keep"])
    assert returned is exps
    assert torch.equal(exps.batch["response_mask"].bool(), keep)
    assert torch.equal(exps.batch["advantages"], before * keep)
    assert metrics["dropped_share_negative"] == pytest.approx(
        float(data[f"{variant}.metrics.frac_clipped_neg"]), abs=1e-6
    )


def test_a_rule_of_the_live_ratio_is_refused(snippet) -> None:
    with pytest.raises(ValueError, match="belongs into the policy loss"):
        snippet.RuleAdvantage("ppo-clip", base=None)


def test_the_page_shows_the_files_as_they_are() -> None:
    page = (DOCS / "trinity.md").read_text()
    assert SNIPPET.read_text().strip() in page
    assert (DOCS / "examples" / "trinity_entropys.patch").read_text().strip() in page
