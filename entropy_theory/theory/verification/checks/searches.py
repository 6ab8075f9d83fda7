"""Checks that look for counterexamples: where a law claims none, and where the known ones must be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from entropy_theory.theory.verification import search
from entropy_theory.theory.verification.evidence import Budget, Evidence

_REGION = (
    f"{search.ATOMS} atoms of up to {search.LARGEST_COUNT:.0e} tokens, logits within ±{search.LARGEST_LOGIT:g},"
    f" steps up to {search.LARGEST_STEP:g}; hits rechecked at {search.DIGITS} digits"
)


def inside(*names: int) -> Callable[[Budget], Evidence]:
    """Build the check that finds no counterexample in the covered families of these numbers."""

    def check(budget: Budget) -> Evidence:
        found = [_run(search.INSIDE[number], budget) for number in names]
        confirmed = sum(one.confirmed for one in found)
        hits = sum(one.hits for one in found)
        return Evidence(
            confirmed == 0,
            f"closest approach of ΔH/KL to its bound −1: {max(one.best for one in found) + 1.0:.1e} from below;"
            f" {hits} hits in floating point, {confirmed} of them confirmed",
            _data(found, found=confirmed),
        )

    return check


def outside(number: int) -> Callable[[Budget], Evidence]:
    """Build the check that finds the known counterexample in one family that the theorem does not cover."""

    def check(budget: Budget) -> Evidence:
        found = _run(search.OUTSIDE[number], budget)
        return Evidence(
            found.confirmed > 0,
            f"{found.hits} chains reached a rise where a fall was predicted; {found.confirmed} of {found.rechecked}"
            " rechecked at 50 digits are confirmed",
            _data([found], found=found.confirmed),
        )

    return check


def unimodal(budget: Budget) -> Evidence:
    """Open statement of section B.8: for α < 0 the predicted rise rises once and falls once."""
    found = search.search_unimodal(budget.chains, budget.rounds, budget.seed)
    return Evidence(
        found.confirmed == 0,
        f"largest slope after the first fall {found.best:.3f} of its terms; above 0 would be an exception",
        _data([found], found=found.confirmed),
    )


def _run(family: search.Family, budget: Budget) -> search.Found:
    return search.search_sign(family, budget.chains, budget.rounds, budget.seed)


def _data(results: list[search.Found], found: int) -> dict[str, object]:
    return {
        "tries": sum(one.tries for one in results),
        "found": found,
        "families": [asdict(one) for one in results],
        "region": _REGION,
    }
