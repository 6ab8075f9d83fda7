"""Influence and ledger, measured: the parts of a probe on made-up tokens, and the quick run on the decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from simulation_scripts import load

pytest.importorskip("trl", reason="needs the extra 'train'")
script = load("influence_and_ledger")


def test_tokens_that_carry_half() -> None:
    assert script.tokens_with_half(np.array([3.0, -1.0, 1.0, 1.0])) == 1
    assert script.tokens_with_half(np.array([1.0, -1.0, 1.0, 1.0])) == 2
    assert script.tokens_with_half(np.zeros(3)) == 0


def test_what_dropping_takes() -> None:
    x, D, g = np.array([1.0, -1.0, 2.0]), np.array([-2.0, -1.0, 1.0]), np.array([1.0, 1.0, 0.0])
    out = np.array([True, False, True])
    measured = script.dropped(out, x, D, g)
    assert measured["count"] == 2
    assert measured["influence"] == {"share_falling": 1.0, "taken": -2 / 3, "batch": -1.0}
    assert measured["tabular"] == {"share_falling": 0.0, "taken": 0.5, "batch": 0.0}


def test_stages_and_seeds_are_averaged_apart() -> None:
    """Means over the batches of a stage, then an interval over seeds; what no batch knows is left out."""
    probes = [
        {"0": {"same": {"half": 2, "plain": {"pearson": 0.5}}}, "1": {"same": {"half": 4, "plain": {"pearson": None}}}},
        {"0": {"same": {"half": 6, "plain": {"pearson": 0.1}}}},
    ]
    rows = script.stage_summary(probes, ["0", "1"], "same")
    assert rows["half"]["values"] == [3.0, 6.0]
    assert rows["plain/pearson"]["values"] == [0.5, 0.1]
    assert script.stage_summary(probes, ["0", "1"], "adamw") is None


def test_a_ledger_adds_up() -> None:
    ledger = {"entropy": [0.8, 0.75], "fixed": [-0.3, -0.1], "remainder": [0.1, 0.05], "remainder_se": [0.1, 0.05]}
    rows = script.ledger_summary([{"ledger": ledger}])
    assert rows["start"]["mean"] == pytest.approx(1.0)
    assert rows["fixed_share_of_change"]["mean"] == pytest.approx(1.6)
    assert rows["closing_error"]["mean"] < 1e-12
    assert rows["remainder_over_error"]["mean"] == pytest.approx(1.0)


def test_the_quick_run(tmp_path: Path) -> None:
    config = script.InfluenceConfig(quick=True, seeds=(0,), runs=tmp_path)
    record = script.main(config)
    summary = record["summary"]["decoder"]
    start = summary["stages"]["start"]["same"]
    assert start["check"]["mean"] < 1e-4  # float32: the sum against reverse mode
    assert abs(start["kinds/digits/share_of_tokens"]["mean"] - 0.5) < 0.1
    assert summary["stages"]["middle"]["same"] is None
    for updates in ("1", "4"):
        assert summary["ledgers"][updates]["closing_error"]["mean"] < 1e-6  # seven digits are recorded
