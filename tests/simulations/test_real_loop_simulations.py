"""The experiments that have a real GRPO loop in them, at their smallest, and their records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from simulation_scripts import FOLDER, load

from entropy_theory.audit.config import AuditConfig


def test_s_c_is_centred_on_policy_and_not_under_top_p(tmp_path: Path) -> None:
    module = load("corollary_3_5")
    config = module.CorollaryConfig(
        seeds=(0,), top_p=0.7, steps=4, prompts=8, generations=8, policies=50, tabular_steps=4, tiny=True, runs=tmp_path
    )
    record = module.main(replace(config, out=tmp_path / "r.json"))
    for kind in ("tabular", "real"):
        right, wrong = record["summary"][kind]["on-policy"], record["summary"][kind]["top-p 0.7"]
        assert abs(right["z"]) < 4
        assert wrong["z"] > 6
        assert right["tokens"] > 1500
    assert json.loads((tmp_path / "r.json").read_text())["summary"] == record["summary"]


def test_four_conditions_run_in_the_real_loop(tmp_path: Path) -> None:
    module = load("four_conditions")
    config = module.FourConditionsConfig(
        seeds=(0,), steps=3, prompts=4, generations=8, policies=100, tabular_steps=10, tiny=True, runs=tmp_path
    )
    record = module.main(replace(config, out=tmp_path / "r.json"))
    assert all(row["agrees"] for row in record["summary"]["tabular"])
    assert len(record["summary"]["real"]) == 4  # three steps are no trend: the signs are those of the record
    assert all(0 < row["dropped_share"] < 1 for row in record["summary"]["real"])
    assert (tmp_path / "four_conditions.png").stat().st_size > 10_000


def test_the_recorded_audit_is_that_of_the_command() -> None:
    recorded, command = load("shared_parameters").SharedParametersConfig(), AuditConfig()
    assert (recorded.arms, recorded.seeds, recorded.at) == (command.arms, command.seeds, command.at)
    assert (recorded.prompts, recorded.generations) == (command.prompts_per_step, command.generations)
    assert recorded.positions == command.positions


@pytest.mark.parametrize("samples", ["positive", "negative"])
@pytest.mark.parametrize("discriminant", ["positive", "negative"])
def test_recorded_signs_are_those_of_the_theory(samples: str, discriminant: str) -> None:
    summary = json.loads((FOLDER / "results" / "four_conditions.json").read_text())["summary"]
    for kind in ("tabular", "real"):
        (row,) = [r for r in summary[kind] if (r["samples"], r["discriminant"]) == (samples, discriminant)]
        assert row["apart_from_zero"]
        assert all(value * row["predicted_sign"] > 0 for value in row["trend"]["values"])


def test_recorded_centring() -> None:
    summary = json.loads((FOLDER / "results" / "corollary_3_5.json").read_text())["summary"]
    for kind in ("tabular", "real"):
        assert abs(summary[kind]["on-policy"]["z"]) < 4
        assert summary[kind]["top-p 0.9"]["z"] > 10
