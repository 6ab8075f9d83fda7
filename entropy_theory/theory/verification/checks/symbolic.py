"""Checks that run a derivation and ask whether every step closed. SymPy loads when the first one runs."""

from __future__ import annotations

from importlib import import_module

from entropy_theory.theory.verification.evidence import Budget, Check, Evidence, Kind

_DERIVATIONS = "entropy_theory.theory.derivations"


def derivation(path: str, name: str) -> Check:
    """Build the check that runs one derivation.

    Args:
        path: Its module in `derivations` and its function, as "paper.theorem_3_3".
        name: What it derives, in a few words.
    """
    module, _, function = path.rpartition(".")

    def check(budget: Budget) -> Evidence:
        result = getattr(import_module(f"{_DERIVATIONS}.{module}"), function)()
        left_open = [step.text for step in result.open_steps]
        summary = (
            f"{len(result.steps)} steps, each difference exactly 0, for every V"
            if result.derived
            else f"residual {result.residual}; open steps: {left_open or 'none'}"
        )
        return Evidence(
            result.derived,
            summary,
            {
                "steps": [{"text": step.text, "latex": step.latex} for step in result.steps],
                "open_steps": left_open,
                "residual": str(result.residual),
                "region": "every V >= 2, every policy with p_i > 0",
            },
        )

    return Check(Kind.SYMBOLIC, name, check, f"{_DERIVATIONS}.{path}")
