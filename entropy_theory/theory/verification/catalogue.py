"""All statements of the theory, by identifier: what the verification, the report and the tests read."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from entropy_theory.errors import invalid
from entropy_theory.theory.verification.evidence import Statement
from entropy_theory.theory.verification.statements.finite import FINITE_STATEMENTS
from entropy_theory.theory.verification.statements.laws import LAW_STATEMENTS
from entropy_theory.theory.verification.statements.paper import PAPER_STATEMENTS
from entropy_theory.theory.verification.statements.steps import STEP_STATEMENTS

STATEMENTS: tuple[Statement, ...] = (
    *PAPER_STATEMENTS,
    *LAW_STATEMENTS,
    *FINITE_STATEMENTS,
    *STEP_STATEMENTS,
)


def identifiers() -> tuple[str, ...]:
    """List the identifiers of all statements, in order.

    Example:
        >>> identifiers()[:2]
        ('lemma-3.1', 'theorem-3.2')
    """
    return tuple(statement.identifier for statement in STATEMENTS)


def statement(identifier: str) -> Statement:
    """Look up a statement by its identifier.

    Raises:
        ValueError: If there is none; the message offers the closest ones.

    Example:
        >>> statement("theorem-3.3").title
        'Entropy under one GRPO step'
    """
    for candidate in STATEMENTS:
        if candidate.identifier == identifier:
            return candidate
    close = get_close_matches(str(identifier), identifiers(), n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise invalid("statement", f"one of {', '.join(identifiers())}", f"{identifier!r}{hint}")


def select(only: str | Iterable[str] | None) -> tuple[Statement, ...]:
    """Pick statements by identifier, in the order of the list; all of them when None.

    Raises:
        ValueError: If an identifier is unknown, or none is given.

    Example:
        >>> [chosen.title for chosen in select("corollary-3.4")]
        ['The centred discriminant has mean zero']
    """
    if only is None:
        return STATEMENTS
    wanted = [only] if isinstance(only, str) else list(only)
    if not wanted:
        raise invalid("only", "at least one statement, or None for all", "nothing")
    chosen = {statement(identifier).identifier for identifier in wanted}
    return tuple(candidate for candidate in STATEMENTS if candidate.identifier in chosen)
