"""Checks by ball arithmetic: they hold for every real number of a stated region. They need the extra `certify`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

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


def _evidence(certificate: Certificate) -> Evidence:
    open_part = "" if certificate.undecided is None else f"; undecided: {certificate.undecided}"
    return Evidence(
        certificate.certified,
        f"{certificate.parts} boxes, {certificate.by_derivative} of them next to a zero, by its derivative{open_part}",
        asdict(certificate) | {"boxes": certificate.parts},
    )
