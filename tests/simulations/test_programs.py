"""The programs around the bridge run from end to end, small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from entropy_theory import records

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(program: str, *words: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *words], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_statistics_are_compared_and_then_timed(tmp_path: Path) -> None:
    words = ["--rows", "7", "--vocab-size", "2001", "--hidden-rows", "20", "--dtypes", "float32", "bfloat16"]
    words += ["--rounds", "3", "--threads", "1", "--out", str(tmp_path / "record.json")]
    run("benchmarks/token_statistics.py", *words)
    tables = [table["rows"] for table in records.read_json(tmp_path / "record.json")["tables"]]
    floors = ["floor: one read", "floor: one read, one write"] * 2 + ["floor: product in tiles"] * 2
    assert [next(iter(rows)) for rows in tables] == floors  # multiples are of the first row
    for rows in tables:
        ours = [row for name, row in rows.items() if name.startswith("ours")]
        assert ours
        assert all(any(key.startswith("error_") for key in row) for row in ours)


def test_three_arms_on_arithmetic_in_steps(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("simulations/gpu_grpo.py", "--quick", "--out", str(out))
    arms = records.read_json(out / "result.json")["arms"]
    assert list(arms) == ["GRPO", "Clip_B", "random mask"]
    assert arms["GRPO"][0]["final"]["dropped_share"] == 0 < arms["Clip_B"][0]["final"]["dropped_share"]
    assert all(run["curves"]["distinct_right"][-1] is not None for runs in arms.values() for run in runs)
    assert "finished before" in run("simulations/gpu_grpo.py", "--quick", "--out", str(out))


def test_overhead_is_measured_and_recorded(tmp_path: Path) -> None:
    words = ["--quick", "--settings", "old", "live", "--threads", "1", "--out", str(tmp_path)]
    run("benchmarks/trainer_overhead.py", *words)
    record = records.read_json(tmp_path / "trainer_overhead_demo_cpu.json")  # quick: the demo alone
    assert [(row["setting"], row["rule"]) for row in record["measurements"]] == [
        ("old", "clip-b"),
        ("old", "plain TRL again"),
        ("live", "ppo-clip"),
    ]
    for row in record["measurements"]:
        assert row["neutral_rule_off"] == 0
        assert row["wall"]["quartiles"][0] <= row["wall"]["overhead"] <= row["wall"]["quartiles"][1]
        # Two processes that ran the same program: a second copy of anything large would show.
        if "memory" in row:
            assert row["memory"]["controlled"] < 1.1 * row["memory"]["plain"]
    assert ["memory" in row for row in record["measurements"]] == [True, False, True]


def test_the_parts_of_a_step_are_recorded(tmp_path: Path) -> None:
    run("benchmarks/step_parts.py", "--model", "demo", "--steps", "2", "--threads", "1", "--out", str(tmp_path))
    seconds = records.read_json(tmp_path / "step_parts_demo_cpu.json")["seconds"]
    assert not any(part.startswith("control") for part in seconds["plain"])
    assert seconds["one-pass"]["control: statistics of TRL's tiles"] > 0
    assert seconds["extra"]["control: separate forward"] > 0
    for parts in seconds.values():
        assert parts["sampling"] > 0
        assert parts["backward"] > 0
