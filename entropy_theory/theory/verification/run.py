"""Run the statements' checks and return what they found, as data. Rendering is left to others."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from entropy_theory.records import write_json
from entropy_theory.theory.verification.catalogue import select
from entropy_theory.theory.verification.evidence import STRENGTH, Budget, Check, Evidence, Kind, budget_named, verdict
from entropy_theory.theory.verification.kernel import check_again, kernel_checks
from entropy_theory.theory.verification.marked_tests import holding

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, label) before each check, and once more when all are done."""


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Attributes:
        kind: The kind of check.
        name: What it compared.
        passed: Whether the statement survived it.
        verdict: The outcome in words that claim no more than the kind allows.
        evidence: The figures behind it.
        seconds: How long it took.
        subject: The public function, derivation or certificate held to account.
        test: The first test that names the statement; empty without a checkout.
    """

    kind: Kind
    name: str
    passed: bool
    verdict: str
    evidence: Evidence
    seconds: float
    subject: str
    test: str


@dataclass(frozen=True)
class StatementResult:
    """Outcome of one statement: what it says, what its checks found, and the tests of this checkout that name it."""

    identifier: str
    title: str
    source: str
    text: str
    formula: str
    assumptions: tuple[str, ...]
    checks: tuple[CheckResult, ...]
    tests: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def strongest(self) -> str:
        """The strongest kind of evidence among the checks that passed; empty when there is none."""
        kinds = {check.kind for check in self.checks if check.passed}
        return next((kind.value for kind in STRENGTH if kind in kinds), "")


@dataclass(frozen=True)
class Report:
    """Outcome of a verification.

    Attributes:
        budget: Name of the budget.
        results: One per statement, in order.
        seconds: How long all of it took.
        environment: Versions of what computed it.
        certified: Whether the certificates were run.
        kernel: Whether the proofs were compiled again.
    """

    budget: str
    results: tuple[StatementResult, ...]
    seconds: float
    environment: dict[str, str]
    certified: bool = False
    kernel: bool = False

    @property
    def passed(self) -> bool:
        """Whether every statement passed."""
        return all(result.passed for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that JSON can hold; an infinity or NaN becomes its name."""
        data = asdict(self)
        data["passed"] = self.passed
        for entry, result in zip(data["results"], self.results, strict=True):
            entry["passed"], entry["strongest"] = result.passed, result.strongest
        plain: dict[str, Any] = _plain(data)
        return plain

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON, whole or not at all, and return where it is.

        Args:
            path: The file; its folder is made if it is missing.

        Raises:
            OSError: If the file cannot be written.
        """
        target = Path(path)
        write_json(target, self.to_dict())
        return target


def verify(
    only: str | Iterable[str] | None = None,
    budget: str = "default",
    progress: Progress | None = None,
    certify: bool = False,
    kernel: bool = False,
) -> Report:
    """Run the checks of the statements and report what each found.

    All statements of arXiv 2602.03392 and of the theory notes that the package lists.

    Symbols: `only` names the statements by identifier, None for all; `budget` is "quick" (seconds), "default" (under
    two minutes) or "thorough" (ten times the work); `progress` is called as progress(done, total, label); `certify`
    adds the certificates, which need python-flint; `kernel` compiles the Coq proofs of a checkout again, which needs
    Coq. Without it their record is reported.

    Domain: a check that raises is a failed check with the exception in its evidence. Nothing is printed.

    Raises:
        ValueError: If an identifier or the budget is unknown, or the kernel is asked for and Coq is not installed.
        ImportError: If certificates are asked for and python-flint is not installed.

    Example:
        >>> report = verify(only="corollary-3.4", budget="quick")
        >>> report.passed
        True
        >>> [check.verdict for check in report.results[0].checks][0]
        'derived'
    """
    chosen = select(only)
    allowance = budget_named(budget)
    if certify:
        from entropy_theory.theory.certificates.balls import flint

        flint()  # its absence is one error, not one failed check per certificate
    run = check_again() if kernel else None
    wanted = [
        (
            *(check for check in statement.checks if certify or check.kind is not Kind.CERTIFICATE),
            *kernel_checks(statement.identifier, run),
        )
        for statement in chosen
    ]
    total = sum(map(len, wanted))
    done, results, started = 0, [], perf_counter()
    for statement, checks in zip(chosen, wanted, strict=True):
        outcomes, tests = [], holding(statement.identifier)
        for check in checks:
            if progress is not None:
                progress(done, total, f"{statement.identifier}: {check.kind.value}")
            outcomes.append(_run(check, allowance, tests[0] if tests else ""))
            done += 1
        results.append(
            StatementResult(
                statement.identifier,
                statement.title,
                statement.source,
                statement.text,
                statement.formula,
                statement.assumptions,
                tuple(outcomes),
                tests,
            )
        )
    if progress is not None:
        progress(done, total, "done")
    return Report(allowance.name, tuple(results), perf_counter() - started, _environment(), certify, kernel)


def _run(check: Check, budget: Budget, test: str) -> CheckResult:
    started = perf_counter()
    try:
        evidence = check(budget)
    except Exception as error:
        evidence = Evidence(False, "the check raised an exception", {"error": f"{type(error).__name__}: {error}"})
    seconds = perf_counter() - started
    words = verdict(check.kind, evidence)
    return CheckResult(check.kind, check.name, evidence.passed, words, evidence, seconds, check.subject, test)


def _environment() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "scipy", "sympy", "mpmath")}
    return {"python": platform.python_version(), "platform": platform.system(), **packages}


def _plain(value: Any) -> Any:
    """Turn tuples, NumPy values and enums into what JSON holds."""
    match value:
        case dict():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple() | set():
            return [_plain(entry) for entry in value]
        case np.ndarray():
            return _plain(value.tolist())
        case np.generic():
            return _plain(value.item())
        case float() if not math.isfinite(value):
            return str(value)
        case Kind():
            return value.value
        case _:
            return value
