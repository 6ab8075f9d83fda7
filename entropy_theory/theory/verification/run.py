"""Run the statements' checks and return what they found, as data. Rendering is left to others."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from entropy_theory.errors import invalid
from entropy_theory.records import write_json
from entropy_theory.theory.verification.catalogue import select
from entropy_theory.theory.verification.evidence import (
    STRENGTH,
    Budget,
    Check,
    Evidence,
    Kind,
    Statement,
    budget_named,
    verdict,
)
from entropy_theory.theory.verification.kernel import Run, check_again, kernel_checks
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
    processes: int = 1,
) -> Report:
    """Run the checks of the statements and report what each found.

    All statements of arXiv 2602.03392 and of the theory notes that the package lists.

    Symbols: `only` names the statements by identifier, None for all; `budget` is "quick" (seconds), "default" (under
    two minutes) or "thorough" (ten times the work); `progress` is called as progress(done, total, label); `certify`
    adds the certificates, which need python-flint; `kernel` compiles the Coq proofs of a checkout again, which needs
    Coq, and without it their record is reported; `processes` share the checks, and find the same. A script that asks
    for several must be guarded by ``if __name__ == "__main__"``.

    Domain: a check that raises is a failed check with the exception in its evidence. Nothing is printed.

    Raises:
        ValueError: If an identifier or the budget is unknown, `processes` is below 1, or the kernel is asked for and
            Coq is not installed.
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
    if processes < 1:
        raise invalid("processes", "at least 1", processes)
    run = check_again() if kernel else None
    started = perf_counter()
    jobs = [job for statement in chosen for job in _jobs(statement, certify, run)]
    outcomes: dict[str, list[CheckResult]] = {statement.identifier: [] for statement in chosen}
    with _Helpers(processes - 1, allowance) if processes > 1 else nullcontext() as helpers:
        if helpers is not None:
            helpers.offer(jobs)
        for done, job in enumerate(jobs):
            if progress is not None:
                progress(done, len(jobs), f"{job.identifier}: {job.check.kind.value}")
            outcome = None if helpers is None else helpers.outcome(job)
            outcomes[job.identifier].append(outcome or _run(job.check, allowance, job.test))
    results = [
        StatementResult(
            statement.identifier,
            statement.title,
            statement.source,
            statement.text,
            statement.formula,
            statement.assumptions,
            tuple(outcomes[statement.identifier]),
            holding(statement.identifier),
        )
        for statement in chosen
    ]
    if progress is not None:
        progress(len(jobs), len(jobs), "done")
    return Report(allowance.name, tuple(results), perf_counter() - started, _environment(), certify, kernel)


@dataclass(frozen=True)
class _Job:
    """A check to run: its statement, its place in the statement's list (None for the kernel's), the test to name."""

    identifier: str
    place: int | None
    check: Check
    test: str


def _jobs(statement: Statement, certify: bool, run: Run | None) -> list[_Job]:
    identifier, test = statement.identifier, next(iter(holding(statement.identifier)), "")
    listed = [
        _Job(identifier, place, check, test)
        for place, check in enumerate(statement.checks)
        if certify or check.kind is not Kind.CERTIFICATE
    ]
    return [*listed, *(_Job(identifier, None, check, test) for check in kernel_checks(identifier, run))]


class _Helpers:
    """Processes that take checks from the end of the list while this one takes them from the front."""

    def __init__(self, processes: int, budget: Budget) -> None:
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
        self._budget = budget
        self._futures: dict[tuple[str, int], Future[CheckResult]] = {}

    def __enter__(self) -> _Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def offer(self, jobs: Sequence[_Job]) -> None:
        """Let them have the listed checks; the kernel's report what this process found."""
        for job in reversed(jobs):
            if job.place is not None:
                place, arguments = (job.identifier, job.place), (job.identifier, job.place, self._budget, job.test)
                self._futures[place] = self._pool.submit(_run_listed, *arguments)

    def outcome(self, job: _Job) -> CheckResult | None:
        """What they found, or None where they have not begun, and will not."""
        future = None if job.place is None else self._futures[job.identifier, job.place]
        return None if future is None or future.cancel() else future.result()


def _run_listed(identifier: str, place: int, budget: Budget, test: str) -> CheckResult:
    """Run a check by its place in the catalogue: the check itself does not travel between processes."""
    return _run(select(identifier)[0].checks[place], budget, test)


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
