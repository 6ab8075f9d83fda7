"""The demo as a user starts it: whole, killed, started again."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from entropy_theory import demo, records

pytest.importorskip("trl", reason="needs the extra 'train'")
pytestmark = pytest.mark.slow

SIZE = ["--steps", "60", "--seeds", "0"]


def start(out: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "entropy_theory", "demo", *SIZE, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def final_table(output: str) -> str:
    """The last table and the sentences below it, without the folder and the time at the end."""
    return output[output.rindex("means of the last steps") : output.rindex("report:")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "whole"
    process = start(out)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    return out, output


def test_the_report_is_whole_and_self_contained(undisturbed: tuple[Path, str]) -> None:
    out, _ = undisturbed
    page = (out / "report.html").read_text()
    assert set(re.findall(r'(?:href|src|srcset)="(?!#|data:)([^"]*)', page)) == {"verification.html"}
    assert (out / "verification.html").exists()
    assert page.count("<math") > 10
    result = records.read_json(out / "result.json")
    assert set(result["arms"]) == set(demo.ARMS)
    # The table of the page holds this run's own numbers.
    for metrics in result["arms"].values():
        assert f"{metrics['entropy']['mean']:.2f}" in page
    conditions = records.read_json(out / "tabular.json")["conditions"]
    assert all(c["observed_sign"] == c["predicted_sign"] for c in conditions)
    slopes = [p["slope"] for p in records.read_json(out / "tabular.json")["predictions"].values()]
    assert slopes == pytest.approx([1.0, 1.0], abs=0.01)


def test_killed_at_five_random_moments(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    whole, output = undisturbed
    out, draws = tmp_path / "broken", random.Random(1)
    for _ in range(5):
        process = start(out)
        try:
            process.wait(timeout=draws.uniform(2, 25))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        time.sleep(0.3)
    process = start(out)
    again, _ = process.communicate(timeout=900)
    assert process.returncode == 0, again[-3000:]
    assert final_table(again) == final_table(output)
    for name in ("result.json", "tabular.json"):
        assert records.read_json(out / name) == records.read_json(whole / name), name


def test_a_folder_of_another_demo_is_refused(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = undisturbed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "entropy_theory", "demo", "--steps", "3", "--seeds", "0", "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "differs in steps" in done.stderr
