"""The ledger's figure and table, and the command that makes them from a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entropy_theory import cli, records
from entropy_theory.influence import BatchEntropy, FirstOrder, Ledger, run_summary
from entropy_theory.influence.ledger import PREFIX
from entropy_theory.report import figures, tables
from entropy_theory.report.figures.ledger import ledger_figure, shown_parts


def lines(every: int = 1, groups: int = 4, batches: int = 6) -> list[dict[str, Any]]:
    """A run's log: entropy falls at fixed contexts, and some of it comes back."""
    ledger, logged = Ledger(), []
    for k in range(batches):
        sums = tuple(10.0 - k + 0.3 * (g % 3) for g in range(groups))
        split = every > 0 and k % every == 0
        ledger, entry = ledger.with_batch(BatchEntropy(sums, (8,) * groups), split=split)
        ledger = ledger.with_update(FirstOrder(-0.2, -0.05, 0.01))
        ledger = ledger.with_updated(BatchEntropy(tuple(s - 1.5 - 0.1 * k for s in sums), (8,) * groups))
        logged.append({"step": 2 * k + 1, "entropy": entry.entropy, "reward": 0.5})
        logged[-1] |= {PREFIX + name: value for name, value in entry.metrics().items()}
        logged.append({"step": 2 * k + 2, "reward": 0.5})  # a second pass over the batch
    return logged


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("every", "groups"), [(1, 4), (2, 4), (0, 4), (1, 1)])
def test_the_bars_lead_from_start_to_end(tmp_path: Path, every: int, groups: int, theme: figures.Theme) -> None:
    logged = lines(every, groups)
    summary = run_summary(logged)
    figure = ledger_figure(summary, theme=theme)
    figures.save(figure, tmp_path / "ledger.png", theme)
    assert (tmp_path / "ledger.png").stat().st_size > 20_000
    start, *parts, end = figure.axes[0].patches
    assert start.get_height() == logged[0]["entropy"]
    assert end.get_height() == logged[-2]["entropy"]
    assert len(parts) == {1: 5, 2: 6, 0: 2}[every]
    level = start.get_height()
    for bar in parts:
        assert bar.get_y() == pytest.approx(level, abs=1e-12)
        level += bar.get_height()
    assert level == pytest.approx(end.get_height(), abs=1e-12)
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[1].get_lines()}
    total = curves["fixed contexts"] + curves["state shift and sampling"]
    assert list(total) == pytest.approx(list(curves["entropy"]), abs=1e-12)
    low, high = figure.axes[0].get_ylim()
    assert all(low <= edge <= high for bar in parts for edge in (bar.get_y(), bar.get_y() + bar.get_height()))
    bands = figure.axes[1].collections
    assert len(bands) == (groups > 1)  # one group has no standard error


def test_the_split_is_of_the_batches_that_have_one() -> None:
    every, second = (run_summary(lines(k)) for k in (1, 2))
    assert (every["split_batches"], second["split_batches"]) == (5, 3)
    assert every["now"] == pytest.approx(5 * -0.2)
    assert second["now"] == pytest.approx(3 * -0.2)
    labels = [label for label, *_ in shown_parts(second)]
    assert "fixed contexts, not split" in labels
    assert sum(value for _, value, *_ in shown_parts(second)) == pytest.approx(second["end"] - second["start"])


def test_one_batch_is_a_ledger_without_a_change(tmp_path: Path) -> None:
    summary = run_summary(lines(batches=1))
    assert summary["start"] == summary["end"]
    figures.save(ledger_figure(summary), tmp_path / "ledger.png")


def test_the_table_fits_a_terminal() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    summary = run_summary(lines(2))
    console.print(tables.ledger_table(summary))
    text = console.export_text()
    assert "…" not in text
    text = " ".join(text.split())
    for value in (f"{summary['start']:.4f}", f"{summary['remainder']:+.4f} ± ", "3 of 5 split", "closing"):
        assert value in text


def test_the_table_speaks_of_an_error_only_where_there_is_one() -> None:
    one_batch = tables.ledger_table(run_summary(lines(batches=1)))
    assert str(one_batch.caption).startswith("1 generation batch; closing error")
    assert "standard error" in str(tables.ledger_table(run_summary(lines())).caption)


def test_the_command_reads_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for line in lines():
        records.append_line(run / "metrics.jsonl", line)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "entr')  # a line that is being written
    assert cli.main(["ledger", str(run)]) == 0
    assert "state shift and sampling" in capsys.readouterr().out
    assert json.loads((run / "ledger.json").read_text())["batches"] == 6
    assert cli.main(["ledger", str(run), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "ledger.png").read_bytes() == (run / "ledger.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run: expected a folder of train --ledger, with metrics.jsonl"),
        ([{"step": 1, "entropy": 1.0}], "run: expected a run with ledger entries, as train --ledger writes them"),
        ([], "run: expected a run with ledger entries, as train --ledger writes them, received none in 0 lines"),
        ([{"step": 1, PREFIX + "entropy": None}], f"{PREFIX}entropy: expected a finite number"),
        ([{PREFIX + "entropy": 1.0}], f"{PREFIX}step: expected a finite number"),
        (lines()[:3] + lines()[5:], "run: expected a ledger whose parts add up"),
    ],
    ids=["no run", "no ledger", "no line", "null", "no step", "a line is missing"],
)
def test_a_folder_without_a_ledger_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: list[dict[str, Any]] | None, message: str
) -> None:
    run = tmp_path / "run"
    if content is not None:
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    assert cli.main(["ledger", str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
