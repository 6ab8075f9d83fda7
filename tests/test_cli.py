"""The command line: help that teaches, one line and status 2 for what is wrong, status 1 for a failed check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from entropy_theory import cli
from entropy_theory.theory import discriminant

BATCH = Path(__file__).parent / "control" / "grpo_batch.safetensors"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_help_of_a_command_explains_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"entropy-theory {name}" in out
    assert "--out" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verfy"], "no command 'verfy'; there are demo, llm, verify"),
        (["simulate"], "no command 'simulate'; there are"),
        (["verify", "--only", "theorem-9.9"], "theorem-9.9"),
        (["verify", "--quick", "--thorough"], "quick: expected at most one of --quick and --thorough"),
        (["verify", "--fast"], "fast"),
        (["simulate", "toy", "--vocab-size", "1"], "vocab_size: expected an integer >= 2, received 1"),
        (["simulate", "toy", "--rule", "clip-bb"], "did you mean 'clip-b'"),
        (["lens", "no-such.safetensors"], "expected a TokenBatch file"),
        (["lens", str(BATCH), "--rules", "clip-bb"], "did you mean 'clip-b'"),
        (["lens", str(BATCH), "--step-size", "-1"], "step_size: expected a finite number > 0"),
        (["lens"], "lens:"),
        (
            ["ledger", "no-such-run"],
            "run: expected a folder of train --ledger, with metrics.jsonl, received no-such-run",
        ),
        (["train", "--influence-every", "2"], "ledger: expected --ledger beside --influence-every"),
        (["lens", str(BATCH), "--influence"], "influence: expected a tensor, which lens needs (entropy-theory inspect"),
        (["demo", "--steps", "0"], "steps: expected an integer >= 1"),
        (["demo", "--seeds", "1", "1"], "seeds: expected one or more different integers"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_wrong_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert cli.main(words) == 2
    finally:
        os.chdir(before)
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_verify_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--quick", "--only", "theorem-3.3", "--out", str(tmp_path)]) == 0
    assert "theorem-3.3" in capsys.readouterr().out
    assert json.loads((tmp_path / "verification.json").read_text())["passed"] is True


def test_a_failed_check_ends_with_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(discriminant, "centered_discriminant", discriminant.discriminant)
    assert cli.main(["verify", "--quick", "--only", "theorem-3.3"]) == 1
    assert "✗" in capsys.readouterr().out


def test_simulate_toy_ends_with_a_table_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "toy", "--policies", "20", "--vocab-size", "10", "--steps", "5"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert "realised on predicted, slope" in capsys.readouterr().out
    assert (tmp_path / "run" / "simulation.png").stat().st_size > 1000


def test_simulate_vocab_is_the_same_at_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "vocab", "--policies", "3", "--steps", "2", "--optimizer", "natural", "--out", str(tmp_path)]
    assert cli.main([*words, "--vocab-size", "5000"]) == 0
    assert "second order in the prediction" in capsys.readouterr().out
    configuration = json.loads((tmp_path / "config.json").read_text())["configuration"]
    assert (configuration["dtype"], configuration["initialisation"]) == ("float32", "forking")
    assert (tmp_path / "simulation.png").stat().st_size > 1000


def test_lens_prints_and_plots_all_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["lens", str(BATCH), "--resamples", "50", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("clip-b", "entropy-budget", "vs none", "random", "groups resampled"))
    table = json.loads((tmp_path / "lens.json").read_text())
    assert table["tokens"] == 511
    assert {"none", "clip-v", "stare", "w-reinforce"} <= {row["rule"] for row in table["rows"]}
    assert (tmp_path / "lens.png").stat().st_size > 5000


def test_lens_of_chosen_rules(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--rules", "clip-b(mu=0.5)", "clip-v(drop_fraction=0.02)|ppo-clip", "--resamples", "20"]
    assert cli.main(["lens", str(BATCH), *words]) == 0
    out = capsys.readouterr().out
    assert "clip-b(mu=0.5)" in out
    assert "entropy-budget" not in out


def test_lens_with_influence(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """On an old file with the field added: for D = −S_c/n both predictions are the same."""
    from entropy_theory.control import TokenBatch

    monkeypatch.setenv("COLUMNS", "80")
    batch = TokenBatch.load(BATCH)
    assert batch.influence is None
    replace(batch, influence=-batch.centered_scores() / 511).save(tmp_path / "b.safetensors")
    words = ["--rules", "clip-b(mu=1)", "entropy-bonus", "--resamples", "20", "--influence", "--out", str(tmp_path)]
    assert cli.main(["lens", str(tmp_path / "b.safetensors"), *words]) == 0
    out = capsys.readouterr().out
    assert all(words in out for words in ("by S_c", "by D", "learning rate 1", "has no D here"))
    lines = [line.split() for line in out.split("by S_c")[1].splitlines()]
    for name, (value, share, *others) in (
        (line[0], line[1:5]) for line in lines if line[:1] in (["none"], ["clip-b(mu=1)"])
    ):
        assert [value, share] == others
        assert value != "+0"
        assert (share == "100%") is (name == "none")
    rows = json.loads((tmp_path / "lens.json").read_text())["rows"]
    assert [row["influence"] is None for row in rows] == [False, False, True]


def test_a_part_ends_with_the_process_that_started_it() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "os.environ['ENTROPY_THEORY_PARENT'] = str(os.getpid())\n"
        "child = subprocess.Popen([sys.executable, '-c', 'from entropy_theory import program; import time; "
        "program.end_with_parent(); print(1, flush=True); time.sleep(60)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); os._exit(0)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] if Path("/proc").exists() else ""
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":  # ended; nobody is left to reap it
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent")
