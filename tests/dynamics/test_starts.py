"""Initial policies: their laws, their independence of the bank, and files of saved logits what can be wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from entropy_theory.dynamics import Simulation, SimulationConfig, bank, run, simulate, starts


def saved(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "saved.safetensors")
    return folder / "saved.safetensors"


def test_uniform() -> None:
    simulation = Simulation(SimulationConfig(policies=3, vocab_size=11, initialisation="uniform"))
    assert (simulation.logits == 0).all()
    assert bank.policy_statistics(simulation.logits).entropy.tolist() == pytest.approx([math.log(11)] * 3, rel=1e-15)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 2.0])
def test_zipf(exponent: float) -> None:
    config = SimulationConfig(policies=2, vocab_size=50, initialisation="zipf", zipf_exponent=exponent)
    weights = [i**-exponent for i in range(1, 51)]
    probs = config.initial_logits().softmax(-1)
    for row in probs.tolist():
        assert row == pytest.approx([w / sum(weights) for w in weights], rel=1e-12)


@pytest.mark.parametrize("initialisation", ["gaussian", "uniform", "zipf", "forking"])
def test_parts_of_a_bank(initialisation: str) -> None:
    config = SimulationConfig(policies=150, vocab_size=8, initialisation=initialisation)  # type: ignore[arg-type]
    whole, right = config.initial_logits(), starts.correct_tokens(150, 8, 0.3, 0)
    for start, stop in ((0, 64), (63, 65), (64, 128), (100, 150), (149, 150)):
        assert config.initial_logits(start, stop).equal(whole[start:stop])
        assert starts.correct_tokens(stop - start, 8, 0.3, 0, start).equal(right[start:stop])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    logits = torch.randn(70, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    config = SimulationConfig(logits=saved(tmp_path, logits=logits), steps=2)
    assert (config.initialisation, config.policies, config.vocab_size) == ("saved", 70, 6)
    assert Simulation(config).logits.equal(logits.double())
    assert config.initial_logits(65, 69).equal(logits[65:69].double())
    assert replace(config, seed=3).policies == 70
    assert simulate(config).steps["entropy_before"][0] == pytest.approx(
        torch.distributions.Categorical(logits=logits.double()).entropy().mean().item(), rel=1e-12
    )


def test_saved_logits_count_by_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    config = SimulationConfig(logits=saved(tmp_path / "a", logits=torch.eye(4)), steps=2, out=tmp_path / "run")
    first = run(config)
    elsewhere = replace(config, logits=saved(tmp_path / "b", logits=torch.eye(4)))
    assert run(elsewhere).summary == first.summary  # the finished run, read back
    other = replace(config, logits=saved(tmp_path / "b", logits=2 * torch.eye(4)))
    with pytest.raises(ValueError, match="which differs in logits_digest"):
        run(other)


@pytest.mark.parametrize(
    ("tensors", "received"),
    [
        ({"probs": torch.zeros(2, 3)}, "with probs"),
        ({"logits": torch.zeros(2, 3, 4)}, r"with shape \(2, 3, 4\), F32"),
        ({"logits": torch.zeros(5)}, r"with shape \(5,\), F32"),
        ({"logits": torch.zeros(2, 1)}, r"with shape \(2, 1\), F32"),
        ({"logits": torch.zeros(0, 4)}, r"with shape \(0, 4\), F32"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, r"with shape \(2, 3\), I64"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor], received: str) -> None:
    path = saved(tmp_path, **tensors)
    with pytest.raises(ValueError, match=rf"logits: expected a safetensors file with .* received .*{received}"):
        SimulationConfig(logits=path)


def test_logits_out_of_range_are_named_before_the_first_step(tmp_path: Path) -> None:
    config = SimulationConfig(
        logits=saved(tmp_path, logits=torch.full((2, 3), 1e300, dtype=torch.float64)), dtype="float32"
    )
    with pytest.raises(ValueError, match="logits: expected numbers in the range of float32, received NaN or infinite"):
        simulate(config)


def test_other_bad_saved_logits(tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"logits: expected a safetensors file .* received .*torn"):
        SimulationConfig(logits=torn)
    logits = torch.zeros(70, 4)
    logits[66, 1] = -math.inf
    config = SimulationConfig(logits=saved(tmp_path, logits=logits))
    with pytest.raises(ValueError, match=r"logits: expected finite logits, received -inf at \(66, 1\) of"):
        simulate(config)
    with pytest.raises(ValueError, match="logits: expected a file that can be read"):
        starts.file_digest(tmp_path / "none")
    path = saved(tmp_path, logits=torch.zeros(3, 4))
    for name, value, has in (("policies", 5, 3), ("vocab_size", 9, 4), ("initialisation", "zipf", "'saved'")):
        with pytest.raises(ValueError, match=rf"{name}: expected {has} as .* has, or none, received {value!r}"):
            SimulationConfig(logits=path, **{name: value})  # type: ignore[arg-type]
