"""Checks that look for counterexamples: where a law claims none, and where the known ones must be found."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from entropy_theory.theory.verification import search
from entropy_theory.theory.verification.evidence import Budget, Check, Evidence, Kind, check

climb = partial(check, Kind.COUNTEREXAMPLE_SEARCH)

_REGION = (
    f"{search.ATOMS} atoms of up to {search.LARGEST_COUNT:.0e} tokens, logits within ±{search.LARGEST_LOGIT:g},"
    f" steps up to {search.LARGEST_STEP:g}; hits rechecked at {search.DIGITS} digits"
)


def inside(name: str, *families: search.Family) -> Check:
    """Build the check that finds no counterexample in families that the theorem covers."""

    @climb(name, search.search_sign)
    def run(budget: Budget) -> Evidence:
        found = [_run(family, budget) for family in families]
        confirmed = sum(result.confirmed for result in found)
        hits = sum(result.hits for result in found)
        return Evidence(
            confirmed == 0,
            f"closest approach of ΔH/KL to its bound −1: {max(result.best for result in found) + 1.0:.1e} from below;"
            f" {hits} hits in floating point, {confirmed} of them confirmed",
            _data(found, confirmed),
        )

    return run


def outside(name: str, family: search.Family) -> Check:
    """Build the check that finds the known counterexample in a family that the theorem does not cover."""

    @climb(name, search.search_sign)
    def run(budget: Budget) -> Evidence:
        found = _run(family, budget)
        return Evidence(
            found.confirmed > 0,
            f"{found.hits} chains reached a rise where a fall was predicted; {found.confirmed} of {found.rechecked}"
            " rechecked at 50 digits are confirmed",
            _data([found], found.confirmed),
        )

    return run


@climb("climbing towards a second rise", search.search_unimodal)
def unimodal(budget: Budget) -> Evidence:
    """Section B.8, open: for α < 0 the predicted rise rises once and falls once."""
    found = search.search_unimodal(budget.chains, budget.rounds, budget.seed)
    return Evidence(
        found.confirmed == 0,
        f"largest slope after the first fall {found.best:.3f} of its terms; above 0 would be an exception",
        _data([found], found.confirmed),
    )


def _run(family: search.Family, budget: Budget) -> search.SearchResult:
    return search.search_sign(family, budget.chains, budget.rounds, budget.seed)


def _data(results: list[search.SearchResult], found: int) -> dict[str, object]:
    return {
        "tries": sum(result.tries for result in results),
        "found": found,
        "families": [asdict(result) for result in results],
        "region": _REGION,
    }
