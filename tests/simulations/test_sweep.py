"""Sweeps give the same results in one process, in several and as shares of a cluster's, and resume where they ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from simulation_scripts import FOLDER, load

from entropy_theory import program

sweep, noise = load("sweep"), load("noise_drift")
SMALL = noise.NoiseConfig(vocab_sizes=(2, 5), probs=(0.4, 0.9), starts=("zipf",), seeds=(0, 1), policies=4, steps=3)


def test_same_record_whichever_way(tmp_path: Path) -> None:
    ways = {
        "one": replace(SMALL, runs=tmp_path / "one"),
        "two": replace(SMALL, runs=tmp_path / "two", processes=2),
        "shares": replace(SMALL, runs=tmp_path / "shares"),
    }
    for part in ("1/3", "0/3", "2/3"):
        assert noise.main(replace(ways["shares"], task=part)) is None
    for name, config in ways.items():
        noise.main(replace(config, out=tmp_path / f"{name}.json"))
    records = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ways]
    assert records[0]["results"] == records[1]["results"] == records[2]["results"]
    assert records[0]["summary"] == records[1]["summary"] == records[2]["summary"]
    assert records[0]["configuration"] == records[1]["configuration"] == records[2]["configuration"]
    assert records[0]["configuration"]["seeds"] == [0, 1]
    assert "packages" in records[0]["environments"][0]


def test_shares_are_a_partition() -> None:
    parts = [sweep.share(list(range(10)), f"{i}/4") for i in range(4)]
    assert sorted(n for part in parts for n in part) == list(range(10))
    assert sweep.share([1, 2], None) == [1, 2]


@pytest.mark.parametrize("which", ["4/4", "x", "-1/2", "1/0", "1"])
def test_wrong_share_is_refused(which: str) -> None:
    with pytest.raises(ValueError, match="task: expected i/n"):
        sweep.share([1], which)


def test_failed_task_leaves_the_others_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, done = replace(SMALL, runs=tmp_path), []

    def work(task: object) -> dict[str, object]:
        if not done and isinstance(task, noise.NoiseRun):
            raise ArithmeticError("as a full disk would")
        done.append(task)
        return noise.work(task)

    tasks = noise.tasks(SMALL)
    fails_first = [task for task in tasks if isinstance(task, noise.NoiseRun)] + tasks[:2]
    with pytest.raises(ValueError, match="2 that failed, the first with ArithmeticError"):
        sweep.run("noise_drift", config, fails_first, work, lambda results: {})
    assert len(done) == 2
    assert not list(tmp_path.glob("*.json.tmp"))
    done_before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("noise-steps-*.json")}
    record = sweep.run("noise_drift", replace(config, out=tmp_path / "r.json"), tasks, noise.work, noise.summarise)
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
    assert len(record["results"]) == 4


def test_another_configuration_is_another_file(tmp_path: Path) -> None:
    first = noise.main(replace(SMALL, runs=tmp_path, out=tmp_path / "a.json"))
    files = set(tmp_path.glob("noise-run-*.json"))
    second = noise.main(replace(SMALL, runs=tmp_path, steps=4, out=tmp_path / "b.json"))
    assert len(set(tmp_path.glob("noise-run-*.json")) - files) == 2
    assert first["results"] != second["results"]


def test_a_record_gives_the_files_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the environment of its own run; a record that does not say whose is refused."""
    first, again = replace(SMALL, runs=tmp_path / "first"), replace(SMALL, runs=tmp_path / "again")
    tasks = noise.tasks(SMALL)
    noise.main(replace(first, out=tmp_path / "noise.json"))
    other = sweep.file_of(tasks[1], first)
    changed = json.loads(other.read_text())
    changed["environment"]["cpus"] = -1
    other.write_text(json.dumps(changed))
    noise.main(replace(first, out=tmp_path / "noise.json"))
    monkeypatch.setattr(sweep, "RESULTS", tmp_path)
    sweep.restore("noise", again, tasks)
    before, after = (
        [json.loads(sweep.file_of(task, config).read_text()) for task in tasks] for config in (first, again)
    )
    assert [part["result"] for part in after] == [part["result"] for part in before]
    assert [part["environment"]["cpus"] == -1 for part in after] == [task == tasks[1] for task in tasks]
    record = json.loads((tmp_path / "noise.json").read_text())
    del record["results"][0]["environment"]
    (tmp_path / "noise.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"noise.json: expected the environment of each result, received 2 of all"):
        sweep.restore("noise", replace(again, runs=tmp_path / "third"), tasks)


def test_quick_keeps_what_the_user_gave_and_stays_out_of_the_results(tmp_path: Path) -> None:
    config = sweep.with_quick_settings(noise.NoiseConfig(quick=True, steps=7, runs=tmp_path), noise.QUICK)
    assert (config.steps, config.seeds) == (7, noise.QUICK["seeds"])
    assert sweep.with_quick_settings(noise.NoiseConfig(), noise.QUICK) == noise.NoiseConfig()
    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "results").iterdir()}
    noise.main(replace(SMALL, quick=True, runs=tmp_path))
    assert (tmp_path / "noise_drift-quick.json").exists()
    assert {path: path.stat().st_mtime_ns for path in (FOLDER / "results").iterdir()} == before


def test_command_line_says_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["noise_drift.py", "--quick", "--task", "2/2"])
    with pytest.raises(SystemExit) as ended:
        program.run_script(noise.main, noise.NoiseConfig)
    assert ended.value.code == 2
    said = "noise_drift.py: task: expected i/n with 0 <= i < n, such as 0/4, received '2/2'\n"
    assert capsys.readouterr().err == said
