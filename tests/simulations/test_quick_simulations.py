"""Every simulation at its smallest, from its command line: it runs, and shows what it shows at full size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tyro
from simulation_scripts import FOLDER, load

CONFIGS = {
    "first_order_accuracy": "AccuracyConfig",
    "sign_phase_diagram": "PhaseConfig",
    "noise_drift": "NoiseConfig",
    "scaling": "ScalingConfig",
    "clipping_methods": "ClippingConfig",
    "hyperparameter_sweep": "ThresholdConfig",
    "unified_lens": "LensConfig",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")  # shared: some real runs belong to several sweeps


def quick(name: str, runs: Path, *words: str) -> dict[str, Any]:
    module = load(name)
    config = tyro.cli(getattr(module, CONFIGS[name]), args=["--quick", "--runs", str(runs), *words])
    record: dict[str, Any] = module.main(config)
    assert json.loads((runs / f"{name}-quick.json").read_text()) == record
    return record


def test_first_order_accuracy(runs: Path) -> None:
    summary = quick("first_order_accuracy", runs)["summary"]
    assert len(summary) == 6
    for row in summary.values():
        # over .001 to .1 the next order changes a log-log slope by less than a hundredth
        assert row["first_order"]["mean"] == pytest.approx(2, abs=0.01)
        assert row["second_order"]["mean"] == pytest.approx(3, abs=0.02)
        assert sum(row["wrong_falls"]) == 0  # the one-sided sign theorem


def test_sign_phase_diagram(runs: Path) -> None:
    summary = quick("sign_phase_diagram", runs)["summary"]
    for row in summary["agreement"].values():
        assert row["single_falls"]["mean"] == 1.0
    assert summary["agreement"]["+3"]["single_rises"]["mean"] < 1.0
    # bisection resolves steps to 30 / 2^60, entropies of about 1 to 1e-16, and a change has slope of about 1e-2
    assert summary["flips"] > 50
    assert summary["largest_relative_error_of_flip"] < 1e-9


def test_noise_drift(runs: Path) -> None:
    summary = quick("noise_drift", runs)["summary"]
    assert summary["largest_falling_prob"]["2"] == 0.8  # the boundary is at .823959, the next grid point is .85
    # uniform policies have no first order, so two seeds are enough to see the second
    uniform = summary["runs"]["uniform"]
    assert uniform["change"]["mean"] == pytest.approx(uniform["predicted"]["mean"], rel=0.1)
    assert summary["runs"]["peaked"]["predicted"]["mean"] > 0 > uniform["predicted"]["mean"]


def test_scaling(runs: Path) -> None:
    record = quick("scaling", runs)
    for one in record["results"]:
        for impl in ("eager", "fused-cpu"):
            error = one["result"][impl]["error"]
            assert error["entropy"] < 2e-6  # float32 lanes, some 1e-7
            # S − N cancels where S is near N: (|S| + N)/|S_c| is 170 at the worst of these tokens
            assert error["centered_discriminant"] < 170 * 5e-7
            assert one["result"][impl]["ns_per_logit"] > 0
    assert len(record["summary"]) == 8


@pytest.mark.slow
def test_clipping_methods(runs: Path) -> None:
    summary = quick("clipping_methods", runs)["summary"]
    entropy = {rule: row["entropy"]["mean"] for rule, row in summary["bank"].items()}
    assert len(entropy) == 25
    assert entropy["entropy-budget"] > entropy["clip-b(drop_fraction=0.02)"] > entropy["none"]
    assert summary["bank"]["clip-v(drop_fraction=0.02)"]["dropped_share"]["mean"] == pytest.approx(0.02, abs=0.002)
    assert set(summary["real"]) == {"none", "clip-b(mu=1)"}
    assert set(summary["live"]) == {"clip-higher"}
    assert summary["real"]["clip-b(mu=1)"]["dropped_share"]["mean"] > 0


@pytest.mark.usefixtures("shapes_unchecked")
def test_hyperparameter_sweep(runs: Path) -> None:
    summary = quick("hyperparameter_sweep", runs)["summary"]
    for row in summary["drops"].values():
        assert row["clip-b(mu=0.5)"] > row["clip-b(mu=1)"] > row["clip-b(mu=2.5)"]
        assert row["clip-v(mu=1, max_fraction=None)"] > row["clip-v(mu=8.5)"]
    bank = summary["bank"]
    assert bank["clip-b(mu=0.5)"]["entropy"]["mean"] > bank["clip-b(mu=2.5)"]["entropy"]["mean"]


@pytest.mark.usefixtures("shapes_unchecked")
def test_unified_lens(runs: Path) -> None:
    record = quick("unified_lens", runs)
    summary = record["summary"]
    cut = summary["cut_in_bank"]
    assert cut["low"]["median_p"]["mean"] < cut["all"]["median_p"]["mean"]
    assert (
        summary["ratio_clipping"]["ppo-clip"]["entropy"]["mean"] > summary["ratio_clipping"]["none"]["entropy"]["mean"]
    )
    for one in record["results"]:
        if "high" in one["result"]:
            found = one["result"]
            assert found["cut"]["count"] == found["high"]["count"] + found["low"]["count"]
            assert found["back"]["count"] <= found["high"]["count"]
            assert sum(found["all"]["histogram"]) == found["all"]["count"] <= found["tokens"]
    assert any("prompts" in one["task"] and "rule" not in one["task"] for one in record["results"])


@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_results_are_of_this_configuration(name: str) -> None:
    """What is recorded came from the defaults of today's script, from several seeds, and is small."""
    path = FOLDER / "results" / f"{name}.json"
    record, module = json.loads(path.read_text()), load(name)
    config = getattr(module, CONFIGS[name])()
    sweep = load("sweep")
    data = {k: v for k, v in sweep.records.to_data(config).items() if k == "quick" or k not in sweep.OPTIONS}
    assert record["configuration"] == json.loads(json.dumps(data))
    assert [one["task"] for one in record["results"]] == json.loads(
        json.dumps([sweep.records.to_data(task) for task in module.tasks(config)])
    )
    assert record["environments"]
    assert path.stat().st_size < 600_000
