"""The lens command on a batch that a real GRPO run saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entropy_theory import cli

BATCH = Path(__file__).parent / "control" / "grpo_batch.safetensors"


def test_it_prints_and_plots_all_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["lens", str(BATCH), "--resamples", "50", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("clip-b", "entropy-budget", "against none", "groups resampled"))
    table = json.loads((tmp_path / "lens.json").read_text())
    assert table["tokens"] == 511
    assert {"none", "clip-v", "stare", "w-reinforce"} <= {row["rule"] for row in table["rows"]}
    assert (tmp_path / "lens.png").stat().st_size > 5000


def test_chosen_rules(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--rules", "clip-b(mu=0.5)", "clip-v(drop_fraction=0.02)|ppo-clip", "--resamples", "20"]
    assert cli.main(["lens", str(BATCH), *words]) == 0
    out = capsys.readouterr().out
    assert "clip-b(mu=0.5)" in out
    assert "entropy-budget" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lens", "no-such.safetensors"], "path: expected a TokenBatch file"),
        (["lens", str(BATCH), "--rules", "clip-bb"], "did you mean 'clip-b'"),
        (["lens", str(BATCH), "--step-size", "-1"], "step_size: expected a finite number > 0"),
        (["lens"], "lens:"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-2:]),
)
def test_wrong_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
