"""The list of statements is complete, linked and honest."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from entropy_theory.theory.verification import catalogue
from entropy_theory.theory.verification.catalogue import STATEMENTS, identifiers, select, statement
from entropy_theory.theory.verification.checks import certified
from entropy_theory.theory.verification.evidence import BUDGETS, STRENGTH, Check, Evidence, Kind, verdict
from entropy_theory.theory.verification.marked_tests import holding, nodes_by_identifier

ROOT = Path(__file__).resolve().parents[3]
CHECKS = [(entry, check) for entry in STATEMENTS for check in entry.checks]
NAMES = [f"{entry.identifier}:{check.kind.value}" for entry, check in CHECKS]


def test_part_a_of_the_theory_is_listed():
    assert {"lemma-3.1", "theorem-3.2", "theorem-3.3", "corollary-3.4", "corollary-3.5"} <= set(identifiers())
    assert {"gradient", "exact-identity", "four-conditions"} <= set(identifiers())
    assert len(set(identifiers())) == len(STATEMENTS)


@pytest.mark.parametrize("entry", STATEMENTS, ids=identifiers())
def test_every_statement_is_filled_in(entry):
    assert re.fullmatch(r"[a-z]+(-[a-z0-9.]+)*", entry.identifier)
    assert all((entry.title, entry.source, entry.text, entry.formula, entry.assumptions, entry.checks))
    assert entry.formula.count("{") == entry.formula.count("}")
    kinds = {check.kind for check in entry.checks}
    assert Kind.SYMBOLIC in kinds  # none is held by samples alone


def test_there_are_at_least_thirty_six_statements():
    assert len(STATEMENTS) >= 36
    assert {check.kind for _, check in CHECKS} == set(Kind) - {Kind.KERNEL}  # the index of the proofs brings those
    assert set(STRENGTH) == set(Kind)


@pytest.mark.parametrize(("entry", "check"), CHECKS, ids=NAMES)
def test_every_check_holds_a_function_that_is_there(entry, check):
    module, _, name = check.subject.rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_tests_name_statements_that_are_there():
    assert set(nodes_by_identifier(ROOT)) <= {*identifiers(), "*"}
    for identifier in identifiers():
        assert holding(identifier)[-1].endswith("::test_every_check_passes_on_the_quick_budget")
    assert holding("theorem-3.3")[0].endswith("::test_centered_discriminant_matches_mpmath")


@pytest.mark.statement("*")
@pytest.mark.no_cover  # test_verify_writes_its_report runs the same lines
@pytest.mark.parametrize(("entry", "check"), CHECKS, ids=NAMES)
def test_every_check_passes_on_the_quick_budget(entry, check):
    if check.kind is Kind.CERTIFICATE:
        pytest.importorskip("flint")
        if check.name in ("three tokens, without the proof", certified.one_logit.name):
            pytest.skip("takes long; smaller regions are certified in test_certificates.py")
    evidence = check(BUDGETS["quick"])
    assert evidence.passed, evidence.summary
    assert evidence.summary
    assert evidence.data["region"]


def test_checks_are_reproducible():
    for _, check in CHECKS:
        if check.kind in (Kind.MONTE_CARLO, Kind.COUNTEREXAMPLE_SEARCH) or "B.8" in check.name:
            assert check(BUDGETS["quick"]) == check(BUDGETS["quick"])


def test_an_unknown_statement_gets_a_helpful_error():
    with pytest.raises(ValueError, match=r"statement: expected one of lemma-3\.1, .*, received 'theorem-33'") as caught:
        statement("theorem-33")
    assert "did you mean theorem-3.3" in str(caught.value)
    with pytest.raises(ValueError, match=r"received 'zzz'$"):
        statement("zzz")


def test_select_keeps_the_order_of_the_list():
    assert select(None) == STATEMENTS
    assert [entry.identifier for entry in select("theorem-3.3")] == ["theorem-3.3"]
    picked = select(["gradient", "lemma-3.1", "gradient"])
    assert [entry.identifier for entry in picked] == ["lemma-3.1", "gradient"]
    with pytest.raises(ValueError, match="only: expected at least one statement"):
        select([])
    with pytest.raises(ValueError, match="did you mean gradient"):
        select(["lemma-3.1", "gradients"])


FIGURES = {
    Kind.SYMBOLIC: {},
    Kind.HIGH_PRECISION: {"digits": 13},
    Kind.PROPERTY: {"cases": 900, "failures": 3},
    Kind.CONVERGENCE_ORDER: {"slope": 2.0004, "interval": 0.001, "expected": "2.00 ± 0.02"},
    Kind.MONTE_CARLO: {"z": -1.5, "limit": 4.0},
    Kind.CERTIFICATE: {"region": "p in [0.1, 0.9]"},
    Kind.COUNTEREXAMPLE_SEARCH: {"tries": 5000},
    Kind.KERNEL: {"versions": "Coq 8", "rerun": False, "edited": ["Ray.v"]},
}
WORDS = {
    Kind.SYMBOLIC: ("derived", "not derived"),
    Kind.HIGH_PRECISION: ("agrees to 13 digits", "differs: only 13 digits agree"),
    Kind.PROPERTY: ("held in 900 cases", "failed in 3 of 900 cases"),
    Kind.CONVERGENCE_ORDER: ("slope 2.000 ± 0.001", "slope 2.000 ± 0.001, expected 2.00 ± 0.02"),
    Kind.MONTE_CARLO: ("|z| = 1.50", "|z| = 1.50, limit 4.0"),
    Kind.CERTIFICATE: ("enclosed over p in [0.1, 0.9]", "not enclosed"),
    Kind.COUNTEREXAMPLE_SEARCH: ("no counterexample in 5000 tries", "known counterexample missed in 5000 tries"),
    Kind.KERNEL: ("proved by a kernel, not re-run", "not proved: edited since the kernel's check: Ray.v"),
}


@pytest.mark.parametrize("kind", Kind)
def test_verdicts_claim_no_more_than_their_kind(kind):
    words = tuple(verdict(kind, Evidence(passed, "", FIGURES[kind])) for passed in (True, False))
    assert words == WORDS[kind]
    for text in words:
        assert kind is Kind.KERNEL or not re.search("verif|prove|proof|certain", text)
    assert verdict(kind, Evidence(False, "", {"error": "KeyError: 'x'"})) == "failed: KeyError: 'x'"


def test_a_search_that_finds_something_says_so():
    found = {"tries": 40, "found": 1}
    expected = verdict(Kind.COUNTEREXAMPLE_SEARCH, Evidence(True, "", found))
    assert expected == "known counterexample found in 40 tries"
    assert verdict(Kind.COUNTEREXAMPLE_SEARCH, Evidence(False, "", found)) == "counterexample found"


def test_the_list_loads_neither_sympy_nor_torch():
    code = "import sys, entropy_theory.theory.verification; print(sorted({'sympy', 'torch'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_a_new_check_needs_nothing_but_an_entry(monkeypatch):
    """A kind that no statement uses yet runs through the same list."""
    check = Check(Kind.CERTIFICATE, "made up", lambda budget: Evidence(True, "ok", {"region": "all"}), "math.log")
    entry = catalogue.Statement("made-up", "t", "s", "x", "f", ("a",), (check,))
    monkeypatch.setattr(catalogue, "STATEMENTS", (*STATEMENTS, entry))
    assert statement("made-up").checks[0](BUDGETS["quick"]).passed
