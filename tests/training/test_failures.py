"""What breaks a run from outside: the outcome is said in one line, and nothing that was whole is lost."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from entropy_theory import records
from entropy_theory.bridge import trl as bridge
from entropy_theory.bridge.trl import checkpoints
from entropy_theory.cli import main
from entropy_theory.errors import RunError
from entropy_theory.testbed import decoder, sum_task
from entropy_theory.training import run

Capture = pytest.CaptureFixture[str]


def words(model: Path, out: Path, *more: str) -> list[str]:
    size = ["--prompts-per-step", "4", "--generations", "4", "--steps", "6", "--save-every", "2"]
    how = ["--learning-rate", "1e-3", "--rule", "clip-b(mu=0.5)", *size, *more]
    return ["train", "--model", str(model), *how, "--out", str(out)]


def assert_same_run(one: Path, other: Path) -> None:
    weights, again = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    lines, lines_again = (
        [{k: v for k, v in line.items() if k != "step_time"} for line in records.read_lines(run / "metrics.jsonl")]
        for run in (one, other)
    )
    assert lines == lines_again


def one_line(capsys: Capture) -> str:
    said = capsys.readouterr().err
    assert said.startswith("entropy-theory: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def whole(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(words(tiny_decoder, out)) == 0
    return out


# -- rewards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A dataset and a reward module in the current folder; the module fails as long as the file `fault` says how."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "{n}=", "target": {n}}}\n' for n in range(10, 18)))
    Path("fragile_reward.py").write_text(
        "from pathlib import Path\n"
        "from entropy_theory.testbed import sum_task\n"
        "calls = 0\n"
        "def reward(completions, target, **_):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    rewards = sum_task.reward(completions, target)\n"
        "    fault = Path('fault').read_text() if Path('fault').exists() and calls == 4 else ''\n"
        "    if fault == 'raise':\n"
        "        return {}['the grader did not answer']\n"
        "    if fault == 'nan':\n"
        "        rewards[0] = float('nan')\n"
        "    return rewards\n"
    )
    sys.modules.pop("fragile_reward", None)
    yield ["--dataset", "prompts.jsonl", "--reward", "fragile_reward:reward", "--max-completion-length", "8"]
    sys.modules.pop("fragile_reward", None)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", "reward fragile_reward:reward raised KeyError: 'the grader did not answer' ("),
        ("nan", "reward fragile_reward:reward returned nan, 1 of 16 rewards are not finite"),
    ],
)
def test_a_reward_that_fails(
    tiny_decoder: Path, tmp_path: Path, own_reward: list[str], capsys: Capture, fault: str, message: str
) -> None:
    Path("fault").write_text(fault)
    command = words(tiny_decoder, tmp_path / "run", *own_reward)
    assert main(command) == 1
    said = one_line(capsys)
    assert f"after 3 steps: {message}" in said
    assert said.endswith("; the same command resumes from checkpoint-2\n")
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert [line["step"] for line in records.read_lines(metrics)] == [1, 2, 3]
    Path("fault").unlink()
    # Metrics that are not those of the checkpoint are not continued: the run would pass for the undisturbed one.
    whole = metrics.read_bytes()
    for spoiled in (None, whole.replace(b'"step": 2', b'"step": 7'), whole[:40]):
        metrics.unlink() if spoiled is None else metrics.write_bytes(spoiled)
        assert main(command) == 2
        assert "metrics.jsonl: expected the lines that were there when checkpoint-2 was written" in one_line(capsys)
    metrics.write_bytes(whole)
    assert main(command) == 0
    assert main(words(tiny_decoder, tmp_path / "undisturbed", *own_reward)) == 0
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")


# -- numbers ------------------------------------------------------------------------------------------------------


def trainer_for(model: Path, out: Path, rule: str = "clip-b(mu=0.5)", kind: Any = None, **changes: Any) -> Any:
    options = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 8,
        "max_steps": 6,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return (kind or bridge.EntropyControlledGRPOTrainer)(
        model=str(model),
        reward_funcs=sum_task.reward,
        args=GRPOConfig(**(options | changes)),
        train_dataset=sum_task.dataset(64, 0),
        processing_class=decoder.build_tokenizer(),
        rule=rule,
    )


class Poison(TrainerCallback):
    """Makes weights not numbers before the fourth step, as a fault of hardware or arithmetic would."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 3:
            next(model.parameters()).data.fill_(float("nan"))


def finite(folder: Path) -> bool:
    return all(bool(torch.isfinite(w).all()) for w in load_file(folder / "model.safetensors").values())


def test_a_loss_that_is_not_a_number_stops_the_run(tiny_decoder: Path, tmp_path: Path) -> None:
    # The second pass over a batch: no sampling and no scoring comes between the fault and the loss.
    trainer = trainer_for(tiny_decoder, tmp_path, num_iterations=2)
    trainer.add_callback(Poison())
    with pytest.raises(RunError, match="loss: nan in step 4; nothing of this step was saved"):
        trainer.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    again = trainer_for(tiny_decoder, tmp_path, num_iterations=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert finite(tmp_path / "checkpoint-6")


def test_a_gradient_that_is_not_a_number_is_never_saved(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(tiny_decoder, tmp_path)
    clip = trainer.accelerator.clip_grad_norm_

    def overflow(parameters: Any, *rest: Any) -> Any:
        parameters = list(parameters)
        if trainer.state.global_step == 3:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, *rest)

    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", overflow)
    with pytest.raises(RunError, match="gradient norm: nan in step 4"):
        trainer.train()
    assert checkpoints.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert finite(tmp_path / "checkpoint-2")


def test_weights_that_are_not_numbers_stop_the_run(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_decoder, tmp_path)
    trainer.add_callback(Poison())
    with pytest.raises((RuntimeError, ValueError), match="nan"):  # torch refuses to sample from NaN
        trainer.train()
    assert checkpoints.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


# -- completions --------------------------------------------------------------------------------------------------


class EmptyCompletions(GRPOTrainer):
    """An engine whose first completions of every batch hold these tokens and no others."""

    rows, written = 0, (decoder.SPECIAL_TOKENS.index("<eos>"),)

    def _generate_single_turn(self, *arguments: Any) -> Any:
        completions, *rest = super()._generate_single_turn(*arguments)
        return [list(self.written)] * self.rows + completions[self.rows :], *rest


class ControlledEmptyCompletions(bridge.EntropyControlMixin, EmptyCompletions):
    pass


@pytest.mark.parametrize("rule", ["clip-b(mu=0.5)", "entropy-budget"])
@pytest.mark.parametrize("rows", [5, 16], ids=["some", "all"])
def test_completions_that_end_at_once(tiny_decoder: Path, tmp_path: Path, rule: str, rows: int) -> None:
    trainer = trainer_for(tiny_decoder, tmp_path, rule, ControlledEmptyCompletions, max_steps=2, save_strategy="no")
    trainer.rows = rows
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    assert trainer.state.log_history[0]["entropy_control/valid_tokens"] >= 16


def test_completions_without_a_token_are_named(tiny_decoder: Path, tmp_path: Path) -> None:
    # TRL itself would end with an IndexError.
    trainer = trainer_for(tiny_decoder, tmp_path, "none", ControlledEmptyCompletions, save_strategy="no")
    trainer.rows, trainer.written = 5, ()
    with pytest.raises(
        ValueError, match=r"completion_ids: expected at least one token each, .* received 5 empty of 16"
    ):
        trainer.train()


# -- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path, whole: Path) -> Iterator[Path]:
    """A disk that holds one checkpoint and not two."""
    place = tmp_path / "disk"
    place.mkdir()
    room = sum(p.stat().st_size for p in checkpoints.latest_checkpoint(whole / "trainer").rglob("*") if p.is_file())
    options = f"size={int(1.6 * room)}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode
    if mounted:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_while_saving(tiny_decoder: Path, small_disk: Path, whole: Path, capsys: Capture) -> None:
    out = small_disk / "run"
    assert main(words(tiny_decoder, out)) == 1
    said = one_line(capsys)
    assert "after 4 steps: " in said
    assert "checkpoint-4 could not be written" in said
    assert "bytes free" in said
    assert said.endswith("; the same command resumes from checkpoint-2\n")
    checkpoints.open_checkpoint(out / "trainer" / "checkpoint-2")
    assert not (out / "trainer" / "checkpoint-4").exists()  # the room is given back
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert main(words(tiny_decoder, out)) == 0
    assert_same_run(whole, out)


def test_a_file_that_cannot_grow(tiny_decoder: Path, tmp_path: Path, whole: Path, capsys: Capture) -> None:
    # The same without root: no file beyond the limit, as with a quota.
    out, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    biggest = max(p.stat().st_size for p in checkpoints.latest_checkpoint(whole / "trainer").iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (biggest // 2, limits[1]))
    try:
        assert main(words(tiny_decoder, out)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = one_line(capsys)
    assert "checkpoint-2 could not be written" in said
    assert said.endswith("; there is no checkpoint yet\n")
    assert main(words(tiny_decoder, out)) == 0
    assert_same_run(whole, out)


# -- signals and folders ------------------------------------------------------------------------------------------


def test_sigterm_saves_and_stops(tiny_decoder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    more = ["--steps", "300", "--save-every", "300", "--num-iterations", "2"]
    command = words(tiny_decoder, tmp_path / "run", *more)
    process = subprocess.Popen(
        [sys.executable, "-m", "entropy_theory", *command], env=environment, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        time.sleep(0.01)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    last = checkpoints.latest_checkpoint(tmp_path / "run" / "trainer")
    assert last is not None
    step = checkpoints.checkpoint_step(last)
    assert step % 2 == 0  # between two generation batches
    assert said.splitlines()[-1] == (
        f"entropy-theory: after {step} steps: stopped by SIGTERM; the same command resumes from checkpoint-{step}"
    )
    assert [line["step"] for line in records.read_lines(metrics)] == list(range(1, step + 1))
    assert not (tmp_path / "run" / "model").exists()


def test_two_runs_in_one_folder(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with records.exclusive(tmp_path / "run"):
        monkeypatch.setattr(run.records, "exclusive", functools.partial(records.exclusive, patience=0.1))
        assert main(words(tiny_decoder, tmp_path / "run")) == 2
    assert "out: expected a folder in which no other run is at work" in one_line(capsys)


def test_a_checkpoint_of_another_release(whole: Path, tmp_path: Path) -> None:
    manifest = records.read_json(checkpoints.latest_checkpoint(whole / "trainer") / checkpoints.MANIFEST)
    records.write_json(tmp_path / checkpoints.MANIFEST, manifest | {"version": "0.0.1"})
    with pytest.raises(ValueError, match=r"a checkpoint of entropy_theory .*, received .*: 0.0.1"):
        checkpoints.open_checkpoint(tmp_path)
    records.write_json(tmp_path / checkpoints.MANIFEST, manifest | {"format": 99})
    with pytest.raises(ValueError, match=r"a checkpoint of format \d+, received .*: 99"):
        checkpoints.open_checkpoint(tmp_path)
