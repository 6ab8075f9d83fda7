"""The report says what was found."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from entropy_theory.theory.verification import Report, catalogue, verify
from entropy_theory.theory.verification.evidence import BUDGETS, Budget, Check, Evidence, Kind

TINY = Budget("tiny", 6, (2, 3, 17), 1_000, 1, (2, 3), 20_000, (0, 1), chains=100, rounds=80, wide=False)


@pytest.fixture(autouse=True)
def _tiny_budget(monkeypatch):
    monkeypatch.setitem(BUDGETS, "tiny", TINY)


def test_only_runs_what_was_asked():
    report = verify(only="corollary-3.4", budget="tiny")
    assert [result.identifier for result in report.results] == ["corollary-3.4"]
    report = verify(only=("corollary-3.5", "lemma-3.1"), budget="tiny")
    assert [result.identifier for result in report.results] == ["lemma-3.1", "corollary-3.5"]


def test_progress_counts_every_check():
    calls = []
    verify(only=["corollary-3.4", "four-conditions"], budget="tiny", progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(8))
    assert {total for _, total, _ in calls} == {7}
    assert calls[0][2] == "corollary-3.4: symbolic"
    assert calls[-1][2] == "done"


def test_processes_find_the_same():
    chosen = ["lemma-3.1", "corollary-3.4", "four-conditions"]
    alone, shared = (verify(only=chosen, budget="tiny", processes=n) for n in (1, 3))

    def outcomes(report: Report) -> list[tuple[object, ...]]:
        return [(s.identifier, c.name, c.verdict, c.evidence) for s in report.results for c in s.checks]

    assert outcomes(shared) == outcomes(alone)
    with pytest.raises(ValueError, match="processes: expected at least 1, received 0"):
        verify(only="lemma-3.1", processes=0)


def test_nothing_is_printed(capsys):
    verify(only="four-conditions", budget="tiny")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_wrong_arguments_are_refused_before_any_work():
    with pytest.raises(ValueError, match=r"budget: expected one of quick, default, thorough.*, received 'huge'"):
        verify(budget="huge")
    with pytest.raises(ValueError, match=r"did you mean lemma-3\.1"):
        verify(only="lemma-3.2.1")


def _with_check(monkeypatch, function):
    check = Check(Kind.PROPERTY, "made up", function, "math.log")
    entry = catalogue.Statement("made-up", "t", "s", "x", "f", ("a",), (check,))
    monkeypatch.setattr(catalogue, "STATEMENTS", (entry, catalogue.statement("corollary-3.4")))


def test_a_check_that_raises_is_a_failed_check(monkeypatch):
    def broken(budget):
        raise ZeroDivisionError("no luck")

    _with_check(monkeypatch, broken)
    report = verify(budget="tiny")
    assert not report.passed
    failed, other = report.results
    assert failed.checks[0].verdict == "failed: ZeroDivisionError: no luck"
    assert failed.checks[0].evidence.data == {"error": "ZeroDivisionError: no luck"}
    assert other.passed  # the run goes on


def test_the_report_is_plain_json(tmp_path, monkeypatch):
    figures = {
        "worst": math.inf,
        "mean": np.float64(0.5),
        "sizes": (np.int64(2), 3),
        "row": np.arange(2),
        "x": math.nan,
    }
    _with_check(monkeypatch, lambda budget: Evidence(True, "ok", figures))
    report = verify(budget="tiny")
    path = report.save(tmp_path / "deep" / "verification.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data == report.to_dict()
    assert data["passed"] is True
    assert data["results"][0]["checks"][0]["evidence"]["data"] == {
        "worst": "inf",
        "mean": 0.5,
        "sizes": [2, 3],
        "row": [0, 1],
        "x": "nan",
    }
    check = data["results"][1]["checks"][0]
    assert check["kind"] == "symbolic"
    assert {"name", "passed", "verdict", "evidence", "seconds", "subject", "test"} <= set(check)
    assert {"identifier", "title", "source", "text", "formula", "assumptions", "passed"} <= set(data["results"][1])
    assert set(data["environment"]) >= {"python", "numpy", "sympy", "mpmath"}


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "verification.json"
    path.write_text("before", encoding="utf-8")

    def fails(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        Report("tiny", (), 0.0, {}).save(path)
    assert path.read_text(encoding="utf-8") == "before"
    assert list(tmp_path.iterdir()) == [path]
