"""The tables of docs/findings.md on entropy control are those of the records that they quote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / "docs" / "findings.md"


def record(name: str) -> dict:
    return json.loads((ROOT / "simulations" / "results" / f"{name}.json").read_text())["summary"]


def table(before: str) -> list[list[str]]:
    """The rows, as cells, of the first table after the words."""
    lines = FINDINGS.read_text().split(before, 1)[1].splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("| ---"))
    rows = [line.strip("| ").split(" | ") for line in lines[first + 1 :]]
    return rows[: next(place for place, line in enumerate(lines[first + 1 :]) if not line.startswith("|"))]


def figures(interval: dict, digits: int = 2) -> str:
    return f"{interval['mean']:.{digits}f} ± {interval['half_width']:.{digits}f}"


def setting(method: str, row: dict) -> str:
    return f"`{row['rule']}`" + (", two updates" if row["updates"] == 2 else "")


@pytest.mark.parametrize(("task", "heading"), [("sum", "*Sum task.*"), ("arithmetic", "*Arithmetic in steps.*")])
def test_the_contest(task: str, heading: str) -> None:
    methods = record("control_contest_contest")[task]["methods"]

    def lost(row: dict) -> str:
        ends = {name: round(sum(row[name]["values"])) for name in ("collapsed", "exploded")}
        return ", ".join(f"{runs} {name}" for name, runs in ends.items() if runs)

    expected = [
        [
            setting(method, row),
            figures(row["entropy"]),
            figures(row["reward"]),
            figures(row["distinct_right"], 1),
            figures(row["pass@16"]),
            figures(row["reward_at_entropy"]),
            f"{row['dropped_share']['mean']:.1%}".replace("%", " %"),
            lost(row),
        ]
        for method, row in methods.items()
    ]
    shown = [[*row, ""][:8] for row in table(heading)]
    assert len(expected) == 17
    assert [[cell.strip(" |") for cell in row] for row in shown] == expected


def test_the_long_runs() -> None:
    rows = record("control_contest_long")["methods"]
    expected = [
        [
            f"`{row['rule']}`" + (", two updates" if method in two_updates() else ""),
            *(
                f"{row[f'{name}_at_third']:.{digits}f}, {row[name]:.{digits}f}"
                for name, digits in (("entropy", 2), ("reward", 2), ("distinct_right", 1))
            ),
            f"{row['pass@16']:.2f}",
        ]
        for method, row in rows.items()
    ]
    shown = table("First number after 320 updates")
    assert [[*cells[:4], cells[4].split(", ")[1]] for cells in shown] == expected
    assert len(expected) == 17


def two_updates() -> list[str]:
    methods = record("control_contest_contest")["sum"]["methods"]
    return [method for method, row in methods.items() if row["updates"] == 2]


def test_the_control_loop() -> None:
    settings = record("floor_control")["settings"]
    rates = {"0.0006": "6e-4", "0.0018": "1.8e-3", "0.0002": "2e-4"}
    expected: dict[tuple[str, str], list[str]] = {}
    for name, row in settings.items():
        where, options = re.fullmatch(r"(.*), (?:entropy-floor\(floor=[\d.]+, (.*)\)|gain .*)", name).groups()
        where = re.sub(r"0\.\d{4}", lambda rate: rates[rate[0]], where)
        columns = {"offset": 3, "lowest": 3, "shortfall": 3, "reward": 2}
        means = [f"{row[column]['mean']:.{digits}f}" for column, digits in columns.items()]
        dropped = f"{row['dropped_share']['mean']:.1%}".replace("%", " %")
        expected[where, options or name.rsplit(", ", 1)[1].replace(" ", "=")] = [*means, dropped]
    shown = {(where, options): cells for where, options, *cells in table("### What holds a floor")}
    assert shown == {key: expected[key] for key in shown}
    # Of the bank the page leaves out gains between those that it shows.
    assert {key for key in expected if key[0].startswith("decoder")} <= shown.keys()
    assert len(shown) == 31
