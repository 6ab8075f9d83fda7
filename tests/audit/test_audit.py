"""The whole audit on a tiny decoder: what it leaves behind, taken up after a kill, and refused before any work."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from entropy_theory import cli
from entropy_theory.audit import config as audit_config
from entropy_theory.audit import run as audit_run
from entropy_theory.audit.config import AuditConfig
from entropy_theory.audit.run import audit
from entropy_theory.audit.step import read_step
from entropy_theory.testbed import decoder, sum_task


def small(model: Path, out: Path, **changes: object) -> AuditConfig:
    settings = {"arms": ("adamw", "sgd-output"), "at": (2, 4), "seeds": (0,), "max_completion_length": 8}
    settings |= {"prompts_per_step": 4, "generations": 8, "positions": 8, "resamples": 20, "learning_rate": 1e-3}
    settings |= {"precision": "float64"}
    return AuditConfig(**settings | changes, model=str(model), out=out)


def measured(config: AuditConfig) -> dict[str, dict[str, np.ndarray]]:
    return {path.name: read_step(path)[0] for path in sorted((config.out / "steps").iterdir())}


@pytest.fixture(scope="module")
def finished(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditConfig, dict]:
    config = small(tiny_decoder, tmp_path_factory.mktemp("audit") / "run")
    return config, audit(config)


def test_every_step_is_measured_and_holds_its_checks(finished: tuple[AuditConfig, dict]) -> None:
    config, result = finished
    assert [row["arm"] for row in result["steps"]] == [arm for arm in config.arms for _ in config.at]
    # a batch of four prompts may have no gradient: then the next one is measured
    assert all(row["step"] >= at for row, at in zip(result["steps"], config.at * 2, strict=True))
    for row in result["steps"]:
        assert row["sum_error"] < 1e-9
        assert row["output_error"] < 1e-9
        assert row["gradient_gap"] < 1e-4  # the trainer's gradient is float32
        assert row["noise_floor"] < 1e-14
        rate = 1e-3 if row["arm"] == "adamw" else config.sgd_learning_rate
        assert row["learning_rate"] == rate
        if row["arm"] == "sgd-output":
            assert row["step_size"] == pytest.approx(rate, rel=1e-4)  # float32 weights
            assert row["cosine"] == pytest.approx(1, abs=1e-4)
    output = result["arms"]["sgd-output"]
    # on one matrix a small step is its first order, and what a token does to itself is S_c times ‖h‖²
    assert output["predictors"]["parameters"]["r2_fitted"]["value"] > 0.99
    assert output["own_effect"]["token"]["sign_agreement"]["value"] > 0.99
    assert (
        sum(row["positions"] for row in output["quadrants"].values() for row in [row["token"]]) == output["positions"]
    )
    assert sum(decile["token"]["positions"] for decile in output["deciles"]) == output["positions"]
    assert not (config.out / "runs" / "adamw-0").exists()


def test_a_killed_audit_goes_on_and_ends_with_the_same_numbers(
    finished: tuple[AuditConfig, dict], tiny_decoder: Path, tmp_path: Path
) -> None:
    config = small(tiny_decoder, tmp_path / "run")
    steps = []

    def kill(done: int, total: int, words: str) -> None:
        if "measuring step 4" in words:
            raise KeyboardInterrupt
        steps.append(done)

    with pytest.raises(KeyboardInterrupt):
        audit(config, kill)
    assert [path.name for path in (config.out / "steps").iterdir()] == ["adamw-0-2.safetensors"]
    steps.clear()
    result = audit(config, lambda done, total, words: steps.append(done))
    assert steps[0] >= 2  # behind the step that was measured before
    expected = measured(finished[0])
    for name, arrays in measured(config).items():
        for key, values in arrays.items():
            assert np.array_equal(values, expected[name][key]), (name, key)
    assert result["arms"] == finished[1]["arms"]


def test_the_command_prints_draws_and_does_not_repeat(
    finished: tuple[AuditConfig, dict], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = finished
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(audit_run, "run_arm", lambda *_: pytest.fail("a finished audit was repeated"))
    words = ["--arms", *config.arms, "--at", "2", "4", "--seeds", "0", "--max-completion-length", "8"]
    words += ["--prompts-per-step", "4", "--generations", "8", "--positions", "8", "--resamples", "20"]
    words += ["--learning-rate", "1e-3", "--precision", "float64"]
    words += ["--model", str(config.model), "--out", str(config.out)]
    assert cli.main(["audit", *words]) == 0
    out = capsys.readouterr().out
    assert "first order in" in out
    assert "sharing with other contexts" in " ".join(out.split())
    written = json.loads((config.out / "audit.json").read_text())
    assert written["arms"] == json.loads(json.dumps(result["arms"]))
    assert len(written["findings"]) == 4  # of positions and of tokens, for each arm
    for name in ("audit.png", "audit_tokens.png"):
        assert (config.out / name).stat().st_size > 20_000


def test_steps_without_a_gradient_are_waited_out_and_then_named(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_config, "PATIENCE", 2)
    monkeypatch.setattr(audit_run, "PATIENCE", 2)
    calls = []

    def reward(completions: list[str], **extra: object) -> list[float]:
        calls.append(1)
        return [float(len(calls) > 2 and i % 2) for i in range(len(completions))]

    monkeypatch.setattr(sum_task, "reward", reward)
    config = small(tiny_decoder, tmp_path / "late", arms=("adamw",), at=(1,))
    assert [row["step"] for row in audit(config)["steps"]] == [3]
    monkeypatch.setattr(sum_task, "reward", lambda completions, **_: [1.0] * len(completions))
    config = small(tiny_decoder, tmp_path / "never", arms=("adamw",), at=(1,))
    with pytest.raises(ValueError, match="at: expected steps with a gradient within 2 more"):
        audit(config)


def test_a_measured_step_that_was_changed_is_refused(finished: tuple[AuditConfig, dict], tmp_path: Path) -> None:
    config = replace(finished[0], out=tmp_path / "copy")
    shutil.copytree(finished[0].out, config.out)
    (config.out / "result.json").unlink()
    assert audit(config)["arms"] == finished[1]["arms"]
    (config.out / "result.json").unlink()
    path = config.file("adamw", 0, 4)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"expected a file as this program wrote it, received {path}, whose digest"):
        audit(config)


def test_a_tied_output_matrix_cannot_be_trained_alone() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="the model's output matrix is also its embedding"):
        audit_run.train_output_matrix_only(model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--at", "0"], "at: expected steps >= 1"),
        (["--at", "2", "2"], "at: expected one or more different steps"),
        (["--seeds", "1", "1"], "seeds: expected one or more different integers"),
        (["--arms", "rmsprop"], "rmsprop"),
        (["--positions", "0"], "positions: expected an integer >= 1"),
        (["--sgd-learning-rate", "-1"], "sgd_learning_rate: expected a finite number > 0"),
        (["--generations", "1"], "generations"),
        (["--rule", "ppo-clip"], "rule: expected a rule that acts through advantages"),
        (["--rule", "entropy-bonus"], "rule: expected a rule that acts through advantages"),
        (["--rule", "clip-x"], "did you mean"),
        (["--dataset", "x.jsonl"], "reward: expected module:function"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_status_2_and_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoder, "cached_checkpoint", lambda *_, **__: pytest.fail("work began"))
    assert cli.main(["audit", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("runs").exists()
