"""What a check is, what it may cost, and what it brings back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from entropy_theory.errors import invalid


class Kind(StrEnum):
    """How a statement is held. The kind is part of every verdict, so that a sample is never taken for a proof."""

    SYMBOLIC = "symbolic"
    HIGH_PRECISION = "high-precision"
    PROPERTY = "property"
    CONVERGENCE_ORDER = "convergence-order"
    CERTIFICATE = "certificate"
    MONTE_CARLO = "monte-carlo"
    COUNTEREXAMPLE_SEARCH = "counterexample-search"
    KERNEL = "kernel"


STRENGTH = (
    Kind.KERNEL,
    Kind.SYMBOLIC,
    Kind.CERTIFICATE,
    Kind.HIGH_PRECISION,
    Kind.CONVERGENCE_ORDER,
    Kind.PROPERTY,
    Kind.MONTE_CARLO,
    Kind.COUNTEREXAMPLE_SEARCH,
)
"""Strongest evidence first: proofs for every V, then regions, then points and samples."""


@dataclass(frozen=True)
class Budget:
    """How much work the checks may do.

    Attributes:
        name: "quick", "default" or "thorough".
        policies: Random policies per vocabulary size in a property or slope check; the corners come on top.
        vocab_sizes: Vocabulary sizes of those policies.
        entries: Logits per batch in a slope check, so that a wide vocabulary gets few policies.
        precise_policies: Random policies per vocabulary size in a check at 50 digits.
        precise_vocab_sizes: Vocabulary sizes of those.
        tokens: Tokens drawn per seed in a Monte Carlo check.
        seeds: Seeds of a Monte Carlo check.
        seed: Seed of every other check.
        chains: Starts of a counterexample search, all climbing at once.
        rounds: Moves of each.
        exact_rays: Rays evaluated at 50 digits in the search for a breach of the step bound.
        wide: Whether a slope check also takes policies of V = 151,936.
    """

    name: str
    policies: int
    vocab_sizes: tuple[int, ...]
    entries: int
    precise_policies: int
    precise_vocab_sizes: tuple[int, ...]
    tokens: int
    seeds: tuple[int, ...]
    seed: int = 20260203
    chains: int = 200
    rounds: int = 120
    exact_rays: int = 40
    wide: bool = True


BUDGETS: dict[str, Budget] = {
    "quick": Budget("quick", 6, (2, 3, 17, 300), 20_000, 1, (2, 3), 10_000, tuple(range(3)), wide=False),
    "default": Budget(
        "default",
        100,
        (2, 3, 5, 17, 128, 1000),
        320_000,
        4,
        (2, 3, 12, 60),
        200_000,
        tuple(range(8)),
        chains=1500,
        rounds=300,
        exact_rays=400,
    ),
    "thorough": Budget(
        "thorough",
        1000,
        (2, 3, 5, 17, 128, 1000),
        3_200_000,
        40,
        (2, 3, 12, 60),
        2_000_000,
        tuple(range(16)),
        chains=12_000,
        rounds=750,
        exact_rays=12_000,
    ),
}


def budget_named(name: str) -> Budget:
    """Look up a budget by its name.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> budget_named("quick").vocab_sizes
        (2, 3, 17, 300)
    """
    if name not in BUDGETS:
        raise invalid("budget", f"one of {', '.join(BUDGETS)}", repr(name))
    return BUDGETS[name]


@dataclass(frozen=True)
class Evidence:
    """What a check found.

    Attributes:
        passed: Whether the statement survived the check.
        summary: One sentence with the figures that matter.
        data: The figures themselves, ready for JSON. The verdict reads `digits` (high-precision), `cases` and
            `failures` (property), `slope` and `interval` (convergence-order), `z` (monte-carlo), `region`
            (certificate), `tries` and `found` (counterexample-search), `steps` (symbolic), `versions`, `rerun` and
            `edited` (kernel).
    """

    passed: bool
    summary: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One way in which a statement is held. Calling it runs it.

    Attributes:
        kind: The kind of check.
        name: What it compares, in a few words.
        function: The check itself.
        subject: The public function, derivation or certificate that it holds to account, as a dotted path.
    """

    kind: Kind
    name: str
    function: Callable[[Budget], Evidence]
    subject: str

    def __call__(self, budget: Budget) -> Evidence:
        """Run the check within a budget."""
        return self.function(budget)


def check(kind: Kind, name: str, subject: Callable[..., Any]) -> Callable[[Callable[[Budget], Evidence]], Check]:
    """Make a check of the function below, which holds another one to account.

    Example:
        >>> from entropy_theory.theory.discriminant import baseline
        >>> @check(Kind.PROPERTY, "made up", baseline)
        ... def never_fails(budget: Budget) -> Evidence:
        ...     return Evidence(True, "")
        >>> never_fails.subject
        'entropy_theory.baseline'
    """
    return lambda function: Check(kind, name, function, dotted_path(subject))


def dotted_path(function: Callable[..., Any]) -> str:
    """Name a function by where users find it: the package itself if it is public there, else its module."""
    package, name = __name__.partition(".")[0], function.__qualname__
    public = getattr(sys.modules[package], name, None) is function
    return f"{package}.{name}" if public else f"{function.__module__}.{name}"


@dataclass(frozen=True)
class Statement:
    """One lemma, theorem, corollary or law.

    Attributes:
        identifier: What `verify(only=...)` takes.
        title: A few words.
        source: Where it stands: the paper and its number, or "beyond the paper".
        text: The statement in words.
        formula: The statement in LaTeX.
        assumptions: What it needs.
        checks: How it is held.
    """

    identifier: str
    title: str
    source: str
    text: str
    formula: str
    assumptions: tuple[str, ...]
    checks: tuple[Check, ...]


def verdict(kind: Kind, evidence: Evidence) -> str:
    """Say what was found in words that claim no more than the kind of check allows.

    Example:
        >>> verdict(Kind.PROPERTY, Evidence(True, "", {"cases": 1200, "failures": 0}))
        'held in 1200 cases'
        >>> verdict(Kind.SYMBOLIC, Evidence(True, "", {}))
        'derived'
    """
    data, passed = evidence.data, evidence.passed
    if "error" in data:
        return f"failed: {data['error']}"
    match kind:
        case Kind.SYMBOLIC:
            return "derived" if passed else "not derived"
        case Kind.HIGH_PRECISION:
            digits = data.get("digits", 0)
            return f"agrees to {digits} digits" if passed else f"differs: only {digits} digits agree"
        case Kind.PROPERTY:
            cases, failures = data.get("cases", 0), data.get("failures", 0)
            return f"held in {cases} cases" if passed else f"failed in {failures} of {cases} cases"
        case Kind.CONVERGENCE_ORDER:
            figure = f"slope {data.get('slope', float('nan')):.3f} ± {data.get('interval', float('nan')):.3f}"
            return figure if passed else f"{figure}, expected {data.get('expected', '?')}"
        case Kind.MONTE_CARLO:
            figure = f"|z| = {abs(data.get('z', float('nan'))):.2f}"
            return figure if passed else f"{figure}, limit {data.get('limit', '?')}"
        case Kind.CERTIFICATE:
            return f"enclosed over {data.get('region', '?')}" if passed else "not enclosed"
        case Kind.KERNEL:
            if passed:
                return "proved by a kernel, " + ("re-run" if data.get("rerun") else "not re-run")
            edited = data.get("edited")
            return f"not proved: edited since the kernel's check: {', '.join(edited)}" if edited else "not proved"
        case Kind.COUNTEREXAMPLE_SEARCH:
            tries, found = data.get("tries", 0), data.get("found", 0)
            if found:
                return f"known counterexample found in {tries} tries" if passed else "counterexample found"
            return f"no counterexample in {tries} tries" if passed else f"known counterexample missed in {tries} tries"
