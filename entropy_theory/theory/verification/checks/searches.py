"""Checks that look for counterexamples: where a law claims none, and where the known ones must be found."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from entropy_theory.theory.verification import questions, search
from entropy_theory.theory.verification.evidence import Budget, Check, Evidence, Kind, check

climb = partial(check, Kind.COUNTEREXAMPLE_SEARCH)

_REGION = (
    f"{search.ATOMS} atoms of up to {search.LARGEST_COUNT:.0e} tokens, logits within ±{search.LARGEST_LOGIT:g},"
    f" steps up to {search.LARGEST_STEP:g}; hits rechecked at {search.DIGITS} digits"
)


def inside(name: str, *families: questions.Family) -> Check:
    """Build the check that finds no counterexample in families that the sign theorem covers."""

    @climb(name, questions.sign)
    def run(budget: Budget) -> Evidence:
        results = [_search(questions.sign(family), budget) for family in families]
        hits, confirmed = sum(result.hits for result in results), sum(result.confirmed for result in results)
        return Evidence(
            confirmed == 0,
            f"closest approach of ΔH/KL to its bound −1: {max(result.best for result in results) + 1.0:.1e} from below;"
            f" {hits} hits in floating point, {confirmed} of them confirmed",
            _data(*results),
        )

    return run


def outside(name: str, family: questions.Family) -> Check:
    """Build the check that finds a counterexample in a family that the sign theorem does not cover."""

    @climb(name, questions.sign)
    def run(budget: Budget) -> Evidence:
        result = _search(questions.sign(family), budget)
        return Evidence(
            result.confirmed > 0,
            f"{result.hits} chains reached a rise where a fall was predicted; {result.confirmed} of {result.rechecked}"
            " rechecked at 50 digits are confirmed",
            _data(result),
        )

    return run


@climb("climbing towards a breach of the bound, any λ in [0, 1], both signs", questions.bound)
def step_bound(budget: Budget) -> Evidence:
    """T1 of part D: ΔH never exceeds the bound; the rays that come nearest are all evaluated at 50 digits."""
    result = _search(questions.bound(), budget, recheck=budget.exact_rays)
    return Evidence(
        result.confirmed == 0,
        f"largest relative violation at {search.DIGITS} digits {result.closest:.1e}, over {result.rechecked} rays that"
        " the climb brought nearest",
        _data(result) | {"largest_relative_violation": result.closest, "cases_at_50_digits": result.rechecked},
    )


@climb("climbing towards a second rise", questions.second_rise)
def second_rise(budget: Budget) -> Evidence:
    """T2 of part D: for α < 0 the predicted rise rises once and falls once."""
    result = _search(questions.second_rise(), budget)
    return Evidence(
        result.confirmed == 0,
        f"largest slope after the first fall {result.best:.3f} of its terms; above 0 would be an exception",
        _data(result),
    )


@climb("climbing towards a step that crosses S_c = 0", questions.other_half)
def other_half(budget: Budget) -> Evidence:
    """T3 of part D: one finite step never leaves the half of S_c in which entropy falls."""
    result = _search(questions.other_half(), budget, recheck=20)
    return Evidence(
        result.confirmed == 0,
        f"closest approach {result.closest:.1e} of the terms of S_c; above 0 would be an exception",
        _data(result),
    )


def _search(question: search.Question, budget: Budget, recheck: int = 1) -> search.SearchResult:
    return search.search(question, budget.chains, budget.rounds, budget.seed, recheck)


def _data(*results: search.SearchResult) -> dict[str, object]:
    return {
        "tries": sum(result.tries for result in results),
        "found": sum(result.confirmed for result in results),
        "families": [asdict(result) for result in results],
        "region": _REGION,
    }
