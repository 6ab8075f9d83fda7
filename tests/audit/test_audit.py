"""The whole audit on a tiny decoder: what it leaves behind, taken up after a kill, and refused before any work."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

from entropy_theory import cli
from entropy_theory.audit import config as audit_config
from entropy_theory.audit import run as audit_run
from entropy_theory.audit.config import AuditConfig
from entropy_theory.audit.run import audit
from entropy_theory.audit.step import read_step
from entropy_theory.report import tables
from entropy_theory.report.figures.audit_tokens import audit_tokens_figure
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
    # rollouts of the policy before the step are of nearly the policy after it
    assert all(0.5 < row["held_out_effective_sample_size"] / row["held_out_tokens"] <= 1 for row in result["steps"])
    for row in result["steps"]:
        parts = sum(row[f"first_order_{name}"] for name in ("now", "momentum", "decay"))
        # the step's own parts in float64 against the rounded float32 weights that it left
        assert parts == pytest.approx(row["mean_parameters"], rel=1e-2)
        factor = row["learning_rate"] * row["clip_factor"]
        if row["arm"] == "adamw":
            factor *= (1 - 0.9) / (1 - 0.9 ** row["step"])
        assert row["first_order_now"] == pytest.approx(factor * row["influence_total"], rel=1e-3)
    for over in ("same", "crossed"):
        summary = output["tokens"][over]["plain"]
        assert summary["overall"]["tokens"] == output["positions"]
        assert sum(decile["tokens"] for decile in summary["deciles"]) == output["positions"]
    assert output["means"]["steps"] == 2
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


def test_measuring_does_not_touch_the_run(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights after step 4 are the same to the bit, whether step 2 was measured or not."""
    monkeypatch.setattr(audit_run.shutil, "rmtree", lambda *_, **__: None)  # keep the checkpoints
    weights = []
    for at in ((2, 4), (4,)):
        config = small(tiny_decoder, tmp_path / str(len(at)), arms=("adamw",), at=at)
        audit_run.run_arm(config, "adamw", 0)
        weights.append((config.out / "runs/adamw-0/trainer/checkpoint-4/model.safetensors").read_bytes())
        assert len(list((config.out / "steps").iterdir())) == len(at)
    assert weights[0] == weights[1]


def test_one_group_leaves_the_crossed_view_and_the_errors_out(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sum_task, "reward", lambda completions, **_: [float(i % 2) for i in range(len(completions))])
    words = ["--model", str(tiny_decoder), "--arms", "sgd", "--at", "1", "--seeds", "0", "--prompts-per-step", "1"]
    words += ["--resamples", "5", "--positions", "2", "--out", str(tmp_path / "run")]
    assert cli.main(["audit", *words]) == 0
    assert "Influence on crossed contexts was left out" in " ".join(capsys.readouterr().out.split())
    record = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert record["arms"]["sgd"]["tokens"]["crossed"] is None
    assert record["arms"]["sgd"]["means"]["held_out"]["shift"]["error"] is None
    assert record["configuration"]["precision"] == "float32"


def test_tables_and_figure_of_the_tokens(finished: tuple[AuditConfig, dict]) -> None:
    _, result = finished
    console = Console(width=80, record=True, file=io.StringIO())
    for table in (tables.audit_tokens_table(result), tables.audit_means_table(result)):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "decay" not in text.split("adamw")[1].split("tabular:")[0]  # the runs have none
    assert f"{result['arms']['adamw']['tokens']['crossed']['plain']['overall']['sign_agreement']['value']:.0%}" in text
    figure = audit_tokens_figure(result)
    (legend,) = figure.legends
    assert {"AdamW", "SGD, output matrix only", "crossed contexts"} <= {t.get_text() for t in legend.get_texts()}
    shown = figure.axes[4].lines
    realised = [row["mean_realised"] for row in result["steps"] if row["arm"] == "adamw"]
    unit = np.sqrt(np.mean(np.square(realised)))
    assert any(np.allclose(line.get_ydata(), np.array(realised) / unit) for line in shown)


def test_defaults_are_those_of_the_small_decoder_or_of_a_given_model() -> None:
    small, real = AuditConfig(), AuditConfig(model="smollm2")
    assert (small.at, small.seeds, small.precision, small.task) == ((5, 15, 30, 60), (0, 1, 2), "float64", None)
    assert (real.at, real.seeds, real.precision, real.task) == ((2, 4), (0,), "float32", "addition")
    run = real.run("adamw", 0)
    assert (run.prompts_per_step, run.generations, run.max_completion_length, run.learning_rate) == (4, 8, 16, 2e-5)
    assert real.run("sgd", 0).learning_rate == 1e-3
    assert "sgd-output" not in real.arms  # a matrix that is also the embedding cannot be trained alone
    given = AuditConfig(model="smollm2", dataset="prompts.jsonl", reward="module:function", at=(1,), held_out=3)
    assert (given.task, given.at, given.held_out) == (None, (1,), 3)


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
        (["--held-out", "0"], "held_out: expected an integer >= 1"),
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
