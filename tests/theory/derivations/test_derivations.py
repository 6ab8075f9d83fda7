"""The derivations close, for symbolic V, and a wrong claim does not."""

from __future__ import annotations

import inspect

import pytest
import sympy as sp

from entropy_theory.theory.derivations import (
    engine,
    finite_steps,
    halves,
    laws,
    paper,
    sequences,
    sharpness,
    sign_theorem,
    updates,
)
from entropy_theory.theory.verification.catalogue import identifiers
from entropy_theory.theory.verification.checks.symbolic import derivation
from entropy_theory.theory.verification.evidence import BUDGETS

MODULES = (paper, laws, updates, sign_theorem, finite_steps, halves, sharpness, sequences)
ALL = {
    name: function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}


@pytest.mark.parametrize("name", ALL)
def test_every_derivation_closes_and_prints(name):
    result = ALL[name]()
    assert result.statement in identifiers()
    assert len(result.steps) >= 2
    for step in result.steps:
        assert step.difference == 0, step.text
    assert result.residual == 0
    assert result.derived
    text = result.to_latex()
    assert text.startswith(r"\begin{enumerate}")
    assert text.count(r"\item") == len(result.steps)
    assert text.count("{") == text.count("}")


def test_the_vocabulary_size_appears_nowhere():
    # Three derivations name V where the statement does: the largest entropy of V − 1 tokens, and uniform policies.
    for name in set(ALL) - {"what_surrounds_the_token", "noise_drift", "negative_share"}:
        for step in ALL[name]().steps:
            assert "V" not in {symbol.name for symbol in (step.computed - step.claimed).free_symbols}


def test_a_step_of_the_sign_theorem_that_is_wrong_stays_open(monkeypatch):
    """Take E_r[p² w] for E_r[p w]: the derivative of F no longer has its form."""
    table = dict(sign_theorem._MEANS)
    table[1, 1] = sign_theorem.MEAN_P2W
    monkeypatch.setattr(sign_theorem, "_MEANS", table)
    result = sign_theorem.one_sided_sign_theorem()
    assert not result.derived
    assert result.open_steps


@pytest.mark.parametrize("derive", [finite_steps.step_bound, finite_steps.concavity])
def test_a_wrong_motion_along_the_ray_is_noticed(monkeypatch, derive):
    """Let B_0 move with the sign of λ exchanged: neither derivation may close."""
    wrong = {**finite_steps._VELOCITY, finite_steps._B0: finite_steps.SHARE * finite_steps._B1}
    monkeypatch.setattr(finite_steps, "_VELOCITY", wrong)
    assert not derive().derived


def test_the_claims_are_those_of_the_paper():
    p, L, H, N = engine.PROB_K, engine.LOG_K, engine.ENTROPY, engine.BASELINE
    slopes = {d.statement: d.steps for d in (paper.theorem_3_2(), paper.theorem_3_3())}
    single = next(step for step in slopes["theorem-3.2"] if "dH" in step.quantity)
    grpo = next(step for step in slopes["theorem-3.3"] if "dH" in step.quantity)
    assert sp.expand(single.computed + p * (H + L)) == 0
    assert sp.expand(grpo.computed + p * (H + L) - N) == 0


def test_a_wrong_step_stays_open():
    x = sp.Symbol("x", positive=True)
    right = engine.Step("right", "a", sp.log(x**2), 2 * sp.log(x))
    wrong = engine.Step("wrong", "b", sp.log(x**2), sp.log(x))
    assert engine.Derivation("made-up", (right,), sp.Integer(0)).derived
    broken = engine.Derivation("made-up", (right, wrong), sp.Integer(0))
    assert not broken.derived
    assert broken.open_steps == (wrong,)
    assert not engine.Derivation("made-up", (right,), x).derived


@pytest.mark.parametrize("name", ["theorem_3_3", "corollary_3_4"])
def test_a_wrong_sum_is_noticed(monkeypatch, name):
    """Claim Σ p² log p = N, forgetting H M_2: neither derivation may close."""
    monkeypatch.setitem(engine.SUMS, (2, 1), engine.BASELINE)
    evidence = derivation(f"paper.{name}", "made up")(BUDGETS["quick"])
    assert not evidence.passed
    assert evidence.data["open_steps"]
