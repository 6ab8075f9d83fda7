"""The simulations of this room at their smallest: they run, and say what they say at full size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from simulation_scripts import FOLDER, load


def test_predictions_come_true(tmp_path: Path) -> None:
    module = load("lens_against_realised")
    summary = module.main(module.LensCheckConfig(quick=True, out=tmp_path / "r.json"))
    assert summary["pearson"]["mean"] > 0.98
    assert summary["spearman"]["mean"] > 0.9
    assert summary["predicted_falls_that_rose"] == 0
    noise = 0.02 * max(abs(pair["realised"]) for pair in json.loads((tmp_path / "r.json").read_text())["pairs"])
    assert all(abs(miss["predicted"]) < 5 * noise for miss in summary["misses"])


def test_recorded_predictions_are_of_this_configuration() -> None:
    module = load("lens_against_realised")
    recorded = json.loads((FOLDER / "results" / "lens_against_realised.json").read_text())
    assert recorded["configuration"]["rules"] == list(module.RULES)
    assert recorded["summary"]["pairs"] == len(module.RULES) * 5


def test_comparison_is_taken_up_again(tmp_path: Path) -> None:
    module = load("control_comparison")
    arms = ("none", "entropy-budget", "clip-b(drop_fraction=0.02)")
    config = module.ComparisonConfig(arms=arms, quick=True, runs=tmp_path / "runs", out=tmp_path / "r.json")
    first = module.main(config)
    assert module.main(replace(config, out=tmp_path / "again.json")) == first
    entropy = {arm: row["final_entropy"]["mean"] for arm, row in first["arms"].items()}
    assert entropy["entropy-budget"] > entropy["clip-b(drop_fraction=0.02)"] > entropy["none"]
    assert (tmp_path / "r.png").exists()
