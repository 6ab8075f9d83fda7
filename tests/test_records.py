"""Records: whole or not at all, and never mixed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from entropy_theory import records


@dataclass(frozen=True)
class Config:
    seed: int = 0
    out: Path = Path("x")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records.write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(path, {"value": float("nan")})
    assert records.read_json(path) == {"value": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_line_cut_short_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    records.append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "entr')
    assert records.read_lines(path) == [{"step": 1}]
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"m.jsonl, line 2: expected a JSON object"):
        records.read_lines(path)


def test_a_run_is_taken_up_finished_or_refused(tmp_path: Path) -> None:
    assert not records.open_run(tmp_path, Config())
    assert not records.open_run(tmp_path, Config(out=Path("elsewhere")))  # where it lies does not change the result
    records.write_json(tmp_path / "result.json", {})
    assert records.open_run(tmp_path, Config())
    with pytest.raises(ValueError, match="differs in seed"):
        records.open_run(tmp_path, Config(seed=1))


def test_a_run_without_its_configuration_is_refused(tmp_path: Path) -> None:
    """Nobody can tell whether what is there was made under the present one."""
    assert not records.open_run(tmp_path, {"steps": 2})
    (tmp_path / "config.json").unlink()  # killed before it was written: nothing else is there
    assert not records.open_run(tmp_path, {"steps": 2})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"out: expected a new folder, or one .*, received .* without config\.json"):
        records.open_run(tmp_path, {"steps": 2})


def test_environment_names_versions_and_device() -> None:
    found = records.environment()
    assert {"python", "packages", "commit", "device", "threads"} <= found.keys()
    assert "numpy" in found["packages"]
