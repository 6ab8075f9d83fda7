"""The report says what was found, and an error planted in any numeric form makes it fail."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from entropy_theory.theory import categorical, discriminant, verification
from entropy_theory.theory.verification import Report, catalogue, verify
from entropy_theory.theory.verification.evidence import BUDGETS, Budget, Check, Evidence, Kind

TINY = Budget("tiny", 6, (2, 3, 17), 1_000, 1, (2, 3), 20_000, (0, 1), chains=100, rounds=80, wide=False)


@pytest.fixture(autouse=True)
def _tiny_budget(monkeypatch):
    monkeypatch.setitem(BUDGETS, "tiny", TINY)


def test_the_quick_run_passes():
    report = verify(budget="quick")
    assert report.passed
    assert report.budget == "quick"
    assert [result.identifier for result in report.results] == list(catalogue.identifiers())
    for result in report.results:
        assert result.passed
        for check in result.checks:
            assert check.verdict
            assert check.seconds >= 0.0


def test_only_runs_what_was_asked():
    report = verify(only="corollary-3.4", budget="tiny")
    assert [result.identifier for result in report.results] == ["corollary-3.4"]
    report = verify(only=("corollary-3.5", "lemma-3.1"), budget="tiny")
    assert [result.identifier for result in report.results] == ["lemma-3.1", "corollary-3.5"]


def test_progress_counts_every_check():
    calls = []
    verify(only=["corollary-3.4", "four-conditions"], budget="tiny", progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(6))
    assert {total for _, total, _ in calls} == {5}
    assert calls[0][2] == "corollary-3.4: symbolic"
    assert calls[-1][2] == "done"


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
    check = Check(Kind.PROPERTY, "made up", function, "math.log", "none")
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


def test_an_empty_report_has_nothing_that_failed():
    assert verification.Report("tiny", (), 0.0, {}).passed


# Each line plants one error: where, what goes wrong, and which statements must notice.
S, N, C = discriminant.discriminant, discriminant.baseline, discriminant.centered_discriminant
D, F = discriminant.grpo_direction, discriminant.first_order_change
H, CHANGE, LOG = categorical.entropy, categorical.entropy_change, categorical.log_softmax


def _probs(logits):
    return np.exp(LOG(logits))


def _pick(values, token):
    return values if token is None else values[..., token] if values.ndim == 1 else _rows(values, token)


def _rows(values, token):
    leading = np.broadcast_shapes(values.shape[:-1], np.shape(token))
    index = np.broadcast_to(token, leading)[..., np.newaxis]
    return np.take_along_axis(np.broadcast_to(values, (*leading, values.shape[-1])), index, axis=-1)[..., 0]


def _units(logits, token):
    return (np.arange(np.shape(logits)[-1]) == np.asarray(token)[..., np.newaxis]).astype(float)


def _linear_change(logits, delta):
    p, q = _probs(logits), _probs(np.asarray(logits) + delta)
    return -((q - p) * np.where(p > 0.0, LOG(logits), 0.0)).sum(axis=-1)


PLANTED = {
    "S: sign": (discriminant, "discriminant", lambda z, k=None: -S(z, k), ["theorem-3.2"]),
    "S: factor p missing": (
        discriminant,
        "discriminant",
        lambda z, k=None: _pick(np.where(_probs(z) > 0.0, LOG(z), 0.0) + H(z)[..., np.newaxis], k),
        ["theorem-3.2", "gradient"],
    ),
    "S: H missing": (
        discriminant,
        "discriminant",
        lambda z, k=None: _pick(_probs(z) * np.where(_probs(z) > 0.0, LOG(z), 0.0), k),
        ["theorem-3.2", "gradient"],
    ),
    "S: S_c for S": (discriminant, "discriminant", C, ["theorem-3.2", "gradient"]),
    "N: weights missing": (discriminant, "baseline", lambda z: S(z).mean(axis=-1), ["corollary-3.4", "theorem-3.3"]),
    "N: sign": (discriminant, "baseline", lambda z: -N(z), ["corollary-3.4", "theorem-3.3"]),
    "S_c: baseline dropped": (
        discriminant,
        "centered_discriminant",
        S,
        ["theorem-3.3", "corollary-3.4", "corollary-3.5"],
    ),
    "S_c: baseline added": (
        discriminant,
        "centered_discriminant",
        lambda z, k=None: _pick(S(z) + N(z)[..., np.newaxis], k),
        ["theorem-3.3", "corollary-3.4", "corollary-3.5"],
    ),
    "S_c: sign": (
        discriminant,
        "centered_discriminant",
        lambda z, k=None: -C(z, k),
        ["theorem-3.3", "four-conditions"],
    ),
    "S_c: digits lost by S − N": (
        discriminant,
        "centered_discriminant",
        lambda z, k=None: _pick(S(z) - N(z)[..., np.newaxis], k),
        ["theorem-3.3"],
    ),
    "e_k − p: p dropped": (discriminant, "grpo_direction", _units, ["lemma-3.1", "theorem-3.3"]),
    "e_k − p: sign": (discriminant, "grpo_direction", lambda z, k: -D(z, k), ["lemma-3.1", "theorem-3.3"]),
    "first order: sign": (
        discriminant,
        "first_order_change",
        lambda z, d, t: -F(z, d, t),
        ["gradient", "theorem-3.3"],
    ),
    "first order: step missing": (discriminant, "first_order_change", lambda z, d, t: F(z, d, 1.0), ["gradient"]),
    "ΔH: sign": (
        categorical,
        "entropy_change",
        lambda z, d: -CHANGE(z, d),
        ["exact-identity", "theorem-3.2", "theorem-3.3", "four-conditions"],
    ),
    "ΔH: KL dropped": (categorical, "entropy_change", _linear_change, ["exact-identity"]),
    "ΔH: digits lost by H(q) − H(p)": (
        categorical,
        "entropy_change",
        lambda z, d: H(np.asarray(z) + d) - H(z),
        ["exact-identity"],
    ),
    "H: bits": (categorical, "entropy", lambda z: H(z) / np.log(2.0), ["exact-identity", "theorem-3.2"]),
    "log p: not normalised": (
        categorical,
        "log_softmax",
        lambda z: np.asarray(z) - np.max(z, axis=-1, keepdims=True),
        ["lemma-3.1"],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_fails_the_statements_it_concerns(name, monkeypatch):
    module, attribute, wrong, concerned = PLANTED[name]
    assert verify(only=concerned, budget="tiny").passed
    monkeypatch.setattr(module, attribute, wrong)
    report = verify(only=concerned, budget="tiny")
    assert not report.passed
    for result in report.results:
        assert not result.passed, f"{result.identifier} did not notice"
        for check in result.checks:
            assert "error" not in check.evidence.data, check.verdict  # the figures fail, not the plant's own code
            assert check.passed or check.kind is not Kind.SYMBOLIC  # a derivation does not depend on the code
