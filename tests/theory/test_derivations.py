"""The derivations close, for symbolic V, and a wrong claim does not."""

from __future__ import annotations

import pytest
import sympy as sp

from entropy_theory.theory import derivations
from entropy_theory.theory.checks.symbolic import derivation
from entropy_theory.theory.evidence import BUDGETS

ALL = {
    "lemma_3_1": "lemma-3.1",
    "theorem_3_2": "theorem-3.2",
    "theorem_3_3": "theorem-3.3",
    "corollary_3_4": "corollary-3.4",
    "gradient": "gradient",
    "exact_identity": "exact-identity",
    "four_conditions": "four-conditions",
}


@pytest.mark.parametrize("name", ALL)
def test_every_derivation_closes(name):
    result = getattr(derivations, name)()
    assert result.statement == ALL[name]
    assert len(result.steps) >= 3
    for step in result.steps:
        assert step.difference == 0, step.text
    assert result.residual == 0
    assert result.derived


@pytest.mark.parametrize("name", ALL)
def test_every_derivation_prints_as_latex(name):
    result = getattr(derivations, name)()
    text = result.to_latex()
    assert text.startswith(r"\begin{enumerate}")
    assert text.count(r"\item") == len(result.steps)
    assert text.count("{") == text.count("}")


def test_the_vocabulary_size_appears_nowhere():
    for name in ALL:
        for step in getattr(derivations, name)().steps:
            assert "V" not in {symbol.name for symbol in (step.computed - step.claimed).free_symbols}


def test_the_claims_are_those_of_the_paper():
    p, L, H, N = derivations.PROB_K, derivations.LOG_K, derivations.ENTROPY, derivations.BASELINE
    slopes = {d.statement: d.steps for d in (derivations.theorem_3_2(), derivations.theorem_3_3())}
    single = next(step for step in slopes["theorem-3.2"] if "dH" in step.quantity)
    grpo = next(step for step in slopes["theorem-3.3"] if "dH" in step.quantity)
    assert sp.expand(single.computed + p * (H + L)) == 0
    assert sp.expand(grpo.computed + p * (H + L) - N) == 0


def test_a_wrong_step_stays_open():
    x = sp.Symbol("x", positive=True)
    right = derivations.Step("right", "a", sp.log(x**2), 2 * sp.log(x))
    wrong = derivations.Step("wrong", "b", sp.log(x**2), sp.log(x))
    assert derivations.Derivation("made-up", (right,), sp.Integer(0)).derived
    broken = derivations.Derivation("made-up", (right, wrong), sp.Integer(0))
    assert not broken.derived
    assert broken.open_steps == (wrong,)
    assert not derivations.Derivation("made-up", (right,), x).derived


@pytest.mark.parametrize("name", ["theorem_3_3", "corollary_3_4"])
def test_a_wrong_sum_is_noticed(monkeypatch, name):
    """Claim Σ p² log p = N, forgetting H M_2: neither derivation may close."""
    table = {"_ALL": dict(derivations._ALL), "_REST": dict(derivations._REST)}
    table["_ALL"][2, 1] = derivations.BASELINE
    table["_REST"][2, 1] = derivations.BASELINE - derivations.PROB_K**2 * derivations.LOG_K
    for attribute, wrong in table.items():
        monkeypatch.setattr(derivations, attribute, wrong)
    result = getattr(derivations, name)()
    assert not result.derived
    evidence = derivation(name)(BUDGETS["quick"])
    assert not evidence.passed
    assert evidence.data["open_steps"]
