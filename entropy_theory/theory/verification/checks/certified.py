"""Checks by ball arithmetic: they hold for every real number of a stated region. They need the extra `certify`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import mpmath as mp
import numpy as np

from entropy_theory.theory import discriminant
from entropy_theory.theory.certificates import rays, sign_theorem, single_logit
from entropy_theory.theory.certificates.balls import Certificate, joined
from entropy_theory.theory.verification.checks import oracle
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

certificate = partial(check, Kind.CERTIFICATE)

# For each κ: the ε₀ that is certified, and a larger step at which one policy is shown to break the 10 %.
ACCURACY = ((1.0, 0.0953, 0.0954), (0.1, 0.0167, 0.01671), (0.01, 0.001802, 0.001803))
# Largest gap of the logits and largest step; a longer step needs boxes finer than two cores can halve in minutes.
THREE_TOKENS = ((5.0, 6.0), (3.0, 10.0))


@certificate("the law in factored form, and both bounds, over a box", single_logit.one_logit)
def one_logit(budget: Budget) -> Evidence:
    """Section B.5: the sign law of one logit and the bound of its divergence, for every policy of every V."""
    return _evidence(single_logit.one_logit())


@certificate("ε₀ for κ = 1, .1, .01, and that it cannot be larger", single_logit.first_order_accuracy)
def accuracy(budget: Budget) -> Evidence:
    """Theorem 3.2 is within 10 % of the truth for |x| ≥ κ and |ε| ≤ ε₀(κ), and ε₀ cannot be larger by a thousandth."""
    parts = [single_logit.first_order_accuracy(kappa, step) for kappa, step, _ in ACCURACY]
    sharp = [single_logit.accuracy_fails(kappa, beyond) for kappa, _, beyond in ACCURACY]
    pairs = ", ".join(f"{step:g} at |x| >= {kappa:g}" for kappa, step, _ in ACCURACY)
    region = f"every policy of every V with |step| <= {pairs}"
    return Evidence(
        all(part.certified for part in parts) and all(sharp),
        f"{sum(part.parts for part in parts)} boxes; a policy breaks the 10 % at "
        + ", ".join(f"{beyond:g}" for _, _, beyond in ACCURACY),
        {
            "region": region,
            "certificates": [asdict(part) for part in parts],
            "fails_at": [beyond for _, _, beyond in ACCURACY],
            "boxes": sum(part.parts for part in parts),
        },
    )


@certificate("two tokens, without the proof", sign_theorem.sign_theorem_two_tokens)
def two_tokens(budget: Budget) -> Evidence:
    """Section B.8 at V = 2, without its proof."""
    return _evidence(sign_theorem.sign_theorem_two_tokens())


@certificate("three tokens, without the proof", sign_theorem.sign_theorem_three_tokens)
def three_tokens(budget: Budget) -> Evidence:
    """Section B.8 at V = 3, without its proof."""
    parts = [sign_theorem.sign_theorem_three_tokens(*sizes) for sizes in THREE_TOKENS]
    return _evidence(joined(parts, "; ".join(part.region for part in parts)))


@certificate("enclosures of the first-order remainder", rays.remainder_enclosure)
def remainder(budget: Budget) -> Evidence:
    """Enclosures of the first-order remainder of a few policies, and exact remainders that must lie inside them."""
    rng = np.random.default_rng(budget.seed)
    outside, cases, widest = 0, 0, 0.0
    for size in (2, 5, 50):
        for scale in (0.1, 1.0, 4.0):
            logits = np.round(rng.normal(size=size) * scale, 3)
            token = int(rng.integers(size))
            direction = discriminant.grpo_direction(logits, token)
            end = 0.5
            enclosure = rays.remainder_enclosure(logits, direction, -end, end)
            widest = max(widest, enclosure.high - enclosure.low)
            with mp.workdps(60):
                z, d = oracle.exact(logits), oracle.exact(direction)
                slope = oracle.entropy_slope(z, d)
                for t in (-end, -0.01, 0.003, 0.2, end):
                    left = oracle.entropy_change(z, [mp.mpf(t) * v for v in d]) - mp.mpf(t) * slope
                    bend = 2 * left / mp.mpf(t) ** 2
                    cases += 1
                    outside += not enclosure.low <= bend <= enclosure.high
    return Evidence(
        outside == 0,
        f"{cases} exact remainders, {outside} outside their enclosure; widest enclosure of H'' {widest:.2g}",
        {"region": "9 GRPO rays of V = 2, 5, 50, |alpha| <= 0.5", "cases": cases, "outside": outside, "widest": widest},
    )


@dataclass(frozen=True)
class Example:
    """One policy and one step that break the sign outside the reach of the theorem.

    Attributes:
        name: What the direction is.
        probs: One decimal per atom of equal tokens.
        counts: Number of tokens in each atom.
        direction: p → d, on balls.
        alpha: α, a decimal.
        future: Entropy to come after each token, if any.
    """

    name: str
    probs: tuple[str, ...]
    counts: tuple[int, ...]
    direction: Callable[[list[Any]], list[Any]]
    alpha: str
    future: tuple[str, ...] | None = None

    def enclosure(self) -> rays.StepEnclosure:
        """Enclose what the step does."""
        return rays.step_enclosure(self.probs, self.direction, self.alpha, self.counts, self.future)


def _scaled(numerator: int, denominator: int) -> Callable[[list[Any]], list[Any]]:
    """Build d = e_k − λ p with λ = numerator/denominator, k first."""
    return lambda p: [int(i == 0) - v * numerator / denominator for i, v in enumerate(p)]


def _two_tokens(p: list[Any]) -> list[Any]:
    return [int(i < 2) - 2 * v for i, v in enumerate(p)]


def _expected_gradient(p: list[Any]) -> list[Any]:
    advantages = (2, -1, -2)
    mean = sum(a * v for a, v in zip(advantages, p, strict=True))
    return [v * (a - mean) for a, v in zip(advantages, p, strict=True)]


# A point of each family of part D of the theory notes, more than one where λ has more to show.
SHARPNESS = (
    Example("λ = −1/2", ("2e-6", "0.999997", "1e-6"), (1, 1, 1), _scaled(-1, 2), "-27.6"),
    Example("λ = −1/10", ("5e-7", "0.9999985", "1e-6"), (1, 1, 1), _scaled(-1, 10), "-138"),
    Example("λ = −1", ("1e-9", "0.00101", "0.00099"), (1, 500, 500), _scaled(-1, 1), "13.829"),
    Example("λ = −2", ("1e-9", "0.00101", "0.00099"), (1, 500, 500), _scaled(-2, 1), "13.843"),
    Example("λ = 21/20", ("0.96", "0.02", "1e-15"), (1, 2, 10**6), _scaled(21, 20), "10000"),
    Example("λ = 2", ("0.51", "0.245", "1e-12"), (1, 2, 10**6), _scaled(2, 1), "3000"),
    Example("two sampled tokens", ("0.735", "0.001", "0.264"), (1, 1, 1), _two_tokens, "5"),
    Example("expected policy gradient", ("0.011", "0.96", "0.029"), (1, 1, 1), _expected_gradient, "100"),
)
WITH_FUTURE = Example(
    "α = −20", ("0.004", "0.521", "0.475"), (1, 1, 1), _scaled(1, 1), "-20", future=("0.7", "1.4", "0.1")
)


@certificate("a policy of each family on which a predicted fall is a rise", rays.step_enclosure)
def sharpness(budget: Budget) -> Evidence:
    """Part D: for λ < 0, for λ > 1, for two tokens and for the expected policy gradient, at points of the families."""
    return _broken(SHARPNESS)


@certificate("a predicted fall of summed entropy that is a rise", rays.step_enclosure)
def future_breaks_the_sign(budget: Budget) -> Evidence:
    """Part F: the sign theorem does not carry over to the entropy of a context and of what follows it."""
    return _broken((WITH_FUTURE,))


def _broken(examples: Sequence[Example]) -> Evidence:
    outcomes = {example.name: example.enclosure() for example in examples}
    broken = {name: outcome.breaks_the_sign for name, outcome in outcomes.items()}
    rises = {name: float(outcome.change.mid()) for name, outcome in outcomes.items()}
    return Evidence(
        all(broken.values()),
        "rises enclosed at " + ", ".join(f"{rise:+.3g} ({name})" for name, rise in rises.items()),
        {"region": "; ".join(broken), "points": len(broken), "rises": rises, "broken": broken},
    )


@certificate("signs of the change beside each of the three roots", rays.step_enclosure)
def rises_come_and_go(budget: Budget) -> Evidence:
    """Section B.8: p = (1e-6, .13, .869999) has a root in each of three intervals, by the signs at their ends."""
    roots = ("5.24343", "8.49445", "12.10728")
    signs = []
    for root, after in zip(roots, (-1, 1, -1), strict=True):
        for side in (-1, 1):
            alpha = str(Decimal(root) + side * Decimal("0.00001"))
            change = rays.step_enclosure(("1e-6", "0.13", "0.869999"), _scaled(1, 1), alpha).change
            signs.append(bool(change * side * after > 0))
    return Evidence(
        all(signs),
        f"{sum(signs)} of {len(signs)} signs enclosed",
        {"region": "alpha within 1e-5 of " + ", ".join(roots), "roots": list(roots)},
    )


def _evidence(certificate: Certificate) -> Evidence:
    open_part = "" if certificate.undecided is None else f"; undecided: {certificate.undecided}"
    return Evidence(
        certificate.certified,
        f"{certificate.parts} boxes, {certificate.by_derivative} of them next to a zero, by its derivative{open_part}",
        asdict(certificate) | {"boxes": certificate.parts},
    )
