"""A run that is killed and started again ends with the numbers of the undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from entropy_theory import records
from entropy_theory.bridge.trl import checkpoints
from entropy_theory.cli import main

SIZE = ["--prompts-per-step", "4", "--generations", "4", "--save-every", "3", "--ledger", "--influence-every", "2"]


# The last one remembers: its weights move at every generation.
RULE = "clip-b(mu=0.5)|random-mask(fraction=0.1)|stare(target=2.0, adaptive=True)"
# Inside the loss, with a coefficient that moves at every step.
LIVE = "adaptive-entropy(variant='trl', target=2.0, step=0.02)|clip-higher"
ONE, TWO = pytest.param("1", RULE, id="one pass"), pytest.param("2", LIVE, id="two passes")
CASES = pytest.mark.parametrize(("iterations", "rule"), [ONE, TWO])


def words(model: Path, out: Path, *more: str, rule: str = RULE) -> list[str]:
    size = ["--learning-rate", "1e-3", *SIZE]
    return ["train", "--model", str(model), "--rule", rule, *size, *more, "--out", str(out)]


def outcome(out: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    lines = [
        {k: v for k, v in line.items() if k not in ("step_time", "train_runtime")}
        for line in records.read_lines(out / "metrics.jsonl")
    ]
    return load_file(out / "model" / "model.safetensors"), lines


def assert_same(one: Path, other: Path) -> None:
    weights, lines = outcome(one)
    weights_again, lines_again = outcome(other)
    assert lines == lines_again
    for name in weights:
        assert torch.equal(weights[name], weights_again[name]), name


def run_until_killed(command: list[str], path: Path, lines: int, delay: float = 0.0) -> None:
    """Start a run and kill it when it has written that many lines of metrics, or let it end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-m", "entropy_theory", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if lines == 0 or (path.exists() and path.read_bytes().count(b"\n") >= lines):
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)


@pytest.mark.parametrize(("iterations", "rule"), [ONE])  # two passes: killed twenty times in the slow tests
def test_killed_and_started_again(tiny_decoder: Path, tmp_path: Path, iterations: str, rule: str) -> None:
    more = ["--steps", "10", "--num-iterations", iterations]
    assert main(words(tiny_decoder, tmp_path / "whole", *more, rule=rule)) == 0
    broken = tmp_path / "broken"
    run_until_killed(words(tiny_decoder, broken, *more, rule=rule), broken / "metrics.jsonl", lines=5)
    assert not (broken / "result.json").exists()
    # What a kill in the middle of a line and of a checkpoint leaves behind.
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "entr')
    checkpoints.begin(broken / "trainer" / "checkpoint-90")
    assert main(words(tiny_decoder, broken, *more, rule=rule)) == 0
    assert_same(tmp_path / "whole", broken)
    assert not (broken / "trainer" / "checkpoint-90").exists()


@CASES
def test_killed_after_the_last_checkpoint(tiny_decoder: Path, tmp_path: Path, iterations: str, rule: str) -> None:
    """While the model is written: no step is left, and none is added."""
    command = words(tiny_decoder, tmp_path / "whole", "--steps", "6", "--num-iterations", iterations, rule=rule)
    assert main(command) == 0
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole", broken)
    (broken / "result.json").unlink()
    shutil.rmtree(broken / "model")
    assert main([*command[:-1], str(broken)]) == 0
    assert_same(tmp_path / "whole", broken)
    results = [records.read_json(out / "result.json") for out in (tmp_path / "whole", broken)]
    assert results[0]["steps"] == results[1]["steps"] == 6
    assert results[0]["final"] == results[1]["final"]


@pytest.mark.slow
@CASES
def test_killed_at_twenty_random_moments(tiny_decoder: Path, tmp_path: Path, iterations: str, rule: str) -> None:
    more = ["--steps", "60", "--num-iterations", iterations]
    assert main(words(tiny_decoder, tmp_path / "whole", *more, rule=rule)) == 0
    broken, draws = tmp_path / "broken", random.Random(0)
    metrics = broken / "metrics.jsonl"
    # Start-up takes seconds and a step hundredths: moments are drawn by steps, then spread within the step.
    for step in sorted(draws.randint(0, 55) for _ in range(20)):
        run_until_killed(words(tiny_decoder, broken, *more, rule=rule), metrics, step, delay=draws.uniform(0.0, 0.1))
        assert not (broken / "result.json").exists()
    assert main(words(tiny_decoder, broken, *more, rule=rule)) == 0
    assert_same(tmp_path / "whole", broken)
    _, lines = outcome(broken)
    assert [line["step"] for line in lines] == list(range(1, 61))


def test_rule_state_goes_on(tiny_decoder: Path, tmp_path: Path) -> None:
    assert main(words(tiny_decoder, tmp_path / "run", "--steps", "4")) == 0
    _, lines = outcome(tmp_path / "run")
    moved = [line["entropy_control/stare/up"] for line in lines]
    assert moved == pytest.approx([1.11, 1.12, 1.13, 1.14])  # 1.1 and the rate 0.01 at each step below the target
    manifest = records.read_json(tmp_path / "run" / "trainer" / "checkpoint-3" / checkpoints.MANIFEST)
    assert manifest["rule_state"]["2"]["up"] == pytest.approx(1.13)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        records.exclusive(tmp_path),
        pytest.raises(ValueError, match="out: expected a folder in which no other run is at work"),
        records.exclusive(tmp_path, patience=0.2),
    ):
        pass
