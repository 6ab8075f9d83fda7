"""Runs in a folder: finished ones are skipped, killed ones resume to the same bits, others are refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from entropy_theory import records
from entropy_theory.dynamics import Simulation, SimulationConfig, SimulationResult, results, run, simulate

pytestmark = pytest.mark.usefixtures("implementation")


SMALL = SimulationConfig(
    policies=30,
    vocab_size=12,
    steps=20,
    iterations=2,
    rule="clip-b(mu=1)|random-mask(fraction=0.1)",
    checkpoint_every=3,
)


def assert_same(one: SimulationResult, other: SimulationResult) -> None:
    for mine, theirs in ((one.steps, other.steps), (one.pairs, other.pairs)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert np.array_equal(mine[name], theirs[name]), name


def test_a_run_leaves_its_records(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run")
    result = run(config)
    assert_same(result, simulate(config))
    found = {path.name for path in config.out.iterdir()}
    assert found == {
        *(".lock", "config.json", "environment.json", "checkpoint.safetensors"),
        *("steps.npz", "pairs.npz", "result.json"),
    }
    content = records.read_json(config.out / "result.json")
    assert content["summary"] == result.summary
    assert content["hash"] == records.read_json(config.out / "config.json")["hash"]
    assert {"commit", "packages", "python"} <= content["environment"].keys()
    with np.load(config.out / "steps.npz", allow_pickle=False) as arrays:
        assert len(arrays["entropy_before"]) == 40


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, out=tmp_path)
    first = run(config)
    monkeypatch.setattr(Simulation, "step", lambda *_: pytest.fail("the run was repeated"))
    again = run(replace(config, checkpoint_every=7, block_elements=50))
    assert_same(first, again)
    assert first.summary == again.summary


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    run(replace(SMALL, out=tmp_path))
    with pytest.raises(ValueError, match=r"out: expected a new folder.* differs in seed, step_size"):
        run(replace(SMALL, out=tmp_path, seed=1, step_size=1.0))


class StoppedError(Exception):
    pass


def run_until(config: SimulationConfig, step: int) -> None:
    """Run, and fail before that step."""
    original = Simulation.step

    def stopping(self: Simulation) -> None:
        if self.completed == step:
            raise StoppedError
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Simulation, "step", stopping)
        with pytest.raises(StoppedError):
            run(config)


@pytest.mark.parametrize(
    ("step", "changed"), [(2, {}), (3, {}), (11, {"optimizer": "adam", "dtype": "float32"}), (19, {})]
)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, step: int, changed: dict[str, str]) -> None:
    config = replace(SMALL, out=tmp_path, **changed)
    run_until(config, step)
    assert (tmp_path / "checkpoint.safetensors").exists() == (step >= 3)
    assert not (tmp_path / "result.json").exists()
    resumed = run(replace(config, block_elements=40, checkpoint_every=5))
    undisturbed = run(replace(config, out=tmp_path / "whole"))
    assert_same(resumed, undisturbed)
    ends = [load_file(folder / "checkpoint.safetensors") for folder in (tmp_path, tmp_path / "whole")]
    assert ends[0].keys() == ends[1].keys()
    for name in ("logits", *(("adam.first", "adam.second") if changed else ())):
        assert ends[0][name].equal(ends[1][name])
        assert str(ends[0][name].dtype) == f"torch.{config.dtype}"


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("implementation", [pytest.param("eager", marks=pytest.mark.slow), "fused-cpu"], indirect=True)
def test_killed_and_started_again(tmp_path: Path, implementation: str) -> None:
    """SIGKILL at random moments after the first checkpoint, twice; then to the end."""
    config = replace(SMALL, steps=300, policies=100, out=tmp_path / "killed", checkpoint_every=40)
    code = (
        "from pathlib import Path; from entropy_theory.dynamics import SimulationConfig, implementations, run; "
        f"implementations.SMALL = {0 if implementation == 'fused-cpu' else 1 << 62}; "
        f"run(SimulationConfig(policies=100, vocab_size=12, steps=300, iterations=2, rule={config.rule!r}, "
        f"checkpoint_every=40, out=Path({str(config.out)!r})))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    moments, kills = random.Random(0), 0
    for _ in range(2):
        checkpoint = config.out / "checkpoint.safetensors"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", code], env=environment)
        while process.poll() is None:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                time.sleep(moments.uniform(0.0, 0.05))
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            time.sleep(0.002)
    assert kills == 2
    assert not (config.out / "result.json").exists()
    (config.out / ".checkpoint.safetensors-torn.safetensors").write_bytes(b"torn")  # what a kill while writing leaves
    fresh = Simulation(config)
    results.load_checkpoint(config.out / "checkpoint.safetensors", fresh)
    assert 40 <= fresh.completed < 300
    assert_same(run(config), simulate(config))


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path)
    run_until(config, 5)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="expected a whole checkpoint of this configuration; delete it to start over"):
        run(config)
    other = Simulation(replace(config, seed=9))
    results.save_checkpoint(path, other, 0.0)
    with pytest.raises(ValueError, match="expected a whole checkpoint of this configuration"):
        run(config)
    other.config, other.impl = config, "another"
    results.save_checkpoint(path, other, 0.0)
    with pytest.raises(ValueError, match=r"expected a checkpoint of the implementation '[\w-]+', received 'another'"):
        run(config)
    path.unlink()
    assert_same(run(config), simulate(config))


def test_broken_results_are_named(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path)
    run(config)
    (tmp_path / "pairs.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"pairs.npz: expected the arrays step, iteration"):
        run(config)
    with pytest.raises(ValueError, match="folder: expected the result of this configuration"):
        SimulationResult.load(tmp_path, replace(config, seed=5))


def test_the_state_of_a_rule_survives(tmp_path: Path) -> None:
    simulation = Simulation(SMALL)
    simulation.rule_state = {"0": {"coefficient": 0.25}}
    results.save_checkpoint(tmp_path / "c.safetensors", simulation, 1.5)
    other = Simulation(SMALL)
    assert results.load_checkpoint(tmp_path / "c.safetensors", other) == 1.5
    assert other.rule_state == {"0": {"coefficient": 0.25}}
    simulation.rule_state = {"0": object()}
    with pytest.raises(ValueError, match="rule: expected a rule whose state JSON can hold"):
        results.save_checkpoint(tmp_path / "c.safetensors", simulation, 1.5)
