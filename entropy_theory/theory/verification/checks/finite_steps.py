"""Checks of part D of the theory notes: what holds for steps of any size, on one token and on a set of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import mpmath as mp
import numpy as np

from entropy_theory.theory import categorical, discriminant, finite_steps
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.verification.checks import oracle
from entropy_theory.theory.verification.checks.policies import plain_entropy, plain_log, plain_softmax, trial_tokens
from entropy_theory.theory.verification.checks.precision import STEPS, compare
from entropy_theory.theory.verification.checks.properties import ROUND_OFF, Excess, at_least, hold
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

_SIZES = (1e-3, 0.1, 1.0, 10.0, 300.0)
_WIDEST = 128  # of the policies that are followed along a ray step by step


@check(Kind.HIGH_PRECISION, "the bound from its definition, steps from 1e-8 to 20", finite_steps.step_bound)
def bound_value(budget: Budget) -> Evidence:
    """T1: S_c as a slope of the entropy, D₀ as a covariance and KL as a sum, at 50 digits and more."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        z = oracle.exact(logits)
        p, d = oracle.probabilities(z), oracle.policy_gradient(z, token)
        if p[token] == 0:
            return
        slope = oracle.entropy_slope(z, d)  # −S_c
        covariance = p[token] * (d[token] - mp.fsum(v * move for v, move in zip(p, d, strict=True)))
        for step in STEPS:
            q = oracle.probabilities([v + mp.mpf(step) * move for v, move in zip(z, d, strict=True)])
            divergence = mp.fsum(b * mp.log(b / a) for a, b in zip(p, q, strict=True) if b > 0)
            linear = slope * (q[token] - p[token]) / covariance if covariance else mp.mpf(0)
            value = mp.mpf(float(finite_steps.step_bound(logits, token, step)))
            # The two terms of a predicted rise may cancel: digits are those of the terms.
            size = max(abs(linear) + divergence, mp.mpf(10) ** -(mp.mp.dps - 40), mp.mpf(2.3e-308))
            yield float(abs(value - linear + divergence) / size)

    return compare(budget, errors, largest_gap=100.0)


@check(Kind.PROPERTY, "against the exact change, both signs, steps up to 300", finite_steps.step_bound)
def bound_holds(budget: Budget) -> Evidence:
    """T1: ΔH ≤ bound, and equality where all tokens but k are alike."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        start = logits - logits.max(axis=-1, keepdims=True)
        for tokens in trial_tokens(start, rng):
            direction = discriminant.grpo_direction(start, tokens)
            for size in (*_SIZES, *(-size for size in _SIZES)):
                change = categorical.entropy_change(start, size * direction)
                bound = finite_steps.step_bound(start, tokens, size)
                moved, probs = plain_softmax(start + size * direction), plain_softmax(start)
                divergence = (moved * np.abs(plain_log(moved) - plain_log(probs))).sum(axis=-1)
                # The two terms of the bound, of the size of KL, cancel where a predicted rise has failed.
                yield (change - bound) / at_least(np.abs(change) + np.abs(bound) + divergence + ROUND_OFF)
        top = np.minimum(np.abs(logits[:, 0] % 17.0), 17.0)
        alike = np.where(np.arange(logits.shape[-1]) == 0, top[:, np.newaxis], 0.0)
        direction = discriminant.grpo_direction(alike, 0)
        for size in (0.5, -3.0):
            change = categorical.entropy_change(alike, size * direction)
            yield np.abs(change - finite_steps.step_bound(alike, 0, size)) / (10.0 * at_least(np.abs(change) + 1.0))

    return hold(budget, excess)


@check(Kind.PROPERTY, "slopes of chords of H over q_k, α from −50 to 1", categorical.entropy_change)
def concave(budget: Budget) -> Evidence:
    """T2: while α ≤ 1 the entropy is a concave function of the sampled token's probability."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        if logits.shape[-1] > _WIDEST:
            return
        start = np.maximum(logits - logits.max(axis=-1, keepdims=True), -30.0)
        for tokens in trial_tokens(start, rng):
            direction = discriminant.grpo_direction(start, tokens)
            moves = np.array([-50.0, -20.0, -8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.3, 0.6, 1.0])[
                :, np.newaxis, np.newaxis
            ]
            change = categorical.entropy_change(start, moves * direction)
            moved = plain_softmax(start + moves * direction)
            q = np.take_along_axis(moved, np.broadcast_to(tokens, moved.shape[:-1])[..., np.newaxis], axis=-1)[..., 0]
            width = np.diff(q, axis=0)
            clear = (width[1:] > 1e-5) & (width[:-1] > 1e-5)
            slope = np.diff(change, axis=0) / np.maximum(width, 1e-5)
            # ΔH and q round at 1e-15 and are divided by the width of the chord.
            room = 1e-14 * (1.0 + np.abs(slope).max(axis=0)) / np.maximum(np.minimum(width[1:], width[:-1]), 1e-5)
            yield (np.diff(slope, axis=0) / room)[clear]

    return hold(budget, excess)


@check(Kind.PROPERTY, "one maximum along α < 0, and where the ray ends", categorical.entropy_change)
def unimodal(budget: Budget) -> Evidence:
    """T2: H rises at most once along α < 0; its limit is log m, m the number of likeliest other tokens."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        if logits.shape[-1] > _WIDEST:
            return
        start = np.maximum(logits - logits.max(axis=-1, keepdims=True), -30.0)
        probs = plain_softmax(start)
        for tokens in trial_tokens(start, rng):
            direction = discriminant.grpo_direction(start, tokens)
            sizes = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 60)])[:, np.newaxis, np.newaxis]
            change = np.diff(categorical.entropy_change(start, -sizes * direction), axis=0)
            fallen = np.maximum.accumulate(change < -1e-10, axis=0)
            yield np.where(fallen[:-1] & (change[1:] > 1e-10), np.inf, 0.0)
            others = np.where(np.arange(start.shape[-1]) == tokens[:, np.newaxis], -1.0, probs)
            top = others.max(axis=-1, keepdims=True)
            ties = (others > top - 1e-12).sum(axis=-1)
            runner_up = np.where(others > top - 1e-12, -1.0, others).max(axis=-1)
            clear = (top[:, 0] > 1e-3) & (top[:, 0] - np.maximum(runner_up, 0.0) > 1e-3)
            end = categorical.entropy_change(start, -1e5 * direction)
            yield (np.abs(end - (np.log(ties) - plain_entropy(probs))) / 1e-8)[clear]

    return hold(budget, excess)


@check(Kind.PROPERTY, "the flow of many small steps on one token, both signs", discriminant.centered_discriminant)
def small_steps(budget: Budget) -> Evidence:
    """T3: along z' = ±(e_k − p(z)) the half of S_c where entropy falls is never left, and after a fall no rise comes.

    The flow is followed by the classical Runge-Kutta method; its error of 1e-8 is the allowance.
    """
    step, count = 0.1, 80

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        if logits.shape[-1] > _WIDEST:
            return
        start = np.maximum(logits - logits.max(axis=-1, keepdims=True), -30.0)
        # The likeliest and the least likely token, forwards and back, at once.
        tokens = np.tile(np.concatenate(trial_tokens(start, rng)[:2]), 2)
        z, sides = np.tile(start, (4, 1)), np.repeat([step, -step], len(tokens) // 2)
        side = sides[:, np.newaxis]
        inside = fallen = np.zeros(len(z), dtype=bool)
        before = plain_entropy(plain_softmax(z))
        for _ in range(count):
            centred = np.sign(sides) * discriminant.centered_discriminant(z, tokens)
            yield np.where(inside, -centred / 1e-8, 0.0)
            inside = inside | (centred > 1e-8)
            a = discriminant.grpo_direction(z, tokens)
            b = discriminant.grpo_direction(z + 0.5 * side * a, tokens)
            c = discriminant.grpo_direction(z + 0.5 * side * b, tokens)
            d = discriminant.grpo_direction(z + side * c, tokens)
            z = z + side * (a + 2.0 * b + 2.0 * c + d) / 6.0
            after = plain_entropy(plain_softmax(z))
            yield np.where(fallen, (after - before) / 1e-8, 0.0)
            fallen, before = fallen | (after < before - 1e-8), after

    return hold(budget, excess)


@check(Kind.PROPERTY, "slopes of S_c against every other logit where S_c = 0", discriminant.centered_discriminant)
def boundary_slopes(budget: Budget) -> Evidence:
    """T3: on the boundary, found by bisection in z_k, S_c rises along e_k − e_j for every j, by differences of S_c."""
    step = 1e-5

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        size = logits.shape[-1]
        if size > 17:
            return
        z = np.maximum(logits - logits.max(axis=-1, keepdims=True), -20.0)
        low, high = np.full(len(z), -60.0), np.full(len(z), 1.0)  # unlikely: S_c < 0; the likeliest: S_c > 0
        for _ in range(60):
            z[:, 0] = 0.5 * (low + high)
            above = discriminant.centered_discriminant(z, 0) > 0.0
            low, high = np.where(above, low, z[:, 0]), np.where(above, z[:, 0], high)
        probs = plain_softmax(z)
        scores = probs * (plain_log(probs) + plain_entropy(probs)[:, np.newaxis])
        yield np.abs(scores[:, 0] - (probs * scores).sum(axis=-1)) / 1e-13  # it is the boundary, as the paper writes it
        clear = (probs[:, 0] > 1e-4) & (probs[:, 0] < 1.0 - 1e-4)  # beyond, differences of S_c are its rounding
        for other in range(1, size):
            move = step * ((np.arange(size) == 0) * 1.0 - (np.arange(size) == other))
            ahead, behind = (discriminant.centered_discriminant(z + sign * move, 0) for sign in (1.0, -1.0))
            yield np.where(ahead <= behind, np.inf, 0.0)[clear]

    return hold(budget, excess)


@check(Kind.HIGH_PRECISION, "steps from 1e-8 to 20 against two entropies", finite_steps.two_valued_entropy_change)
def set_change(budget: Budget) -> Evidence:
    """T4: from (P, H_K, H_W) as the float64 numbers they are, against h(Q) + Q H_K + (1 − Q) H_W before and after."""

    def errors(logits: FloatArray, token: int) -> Iterator[float]:
        p = oracle.probabilities(oracle.exact(logits))
        inside, outside = p[: logits.size // 2], p[logits.size // 2 :]
        mass = float(mp.fsum(inside))
        if not 0.0 < mass < 1.0:
            return
        parts = [
            float(-mp.fsum(v / mp.fsum(part) * mp.log(v / mp.fsum(part)) for v in part if v > 0))
            for part in (inside, outside)
        ]

        def entropy(Q: oracle.Number) -> oracle.Number:
            return -Q * mp.log(Q) - (1 - Q) * mp.log(1 - Q) + Q * mp.mpf(parts[0]) + (1 - Q) * mp.mpf(parts[1])

        P = mp.mpf(mass)
        logit = mp.log(P / (1 - P))
        tilt = logit + mp.mpf(parts[1]) - mp.mpf(parts[0])
        for step in STEPS:
            weight = P * mp.exp(mp.mpf(step))
            Q = weight / (weight + 1 - P)
            change = entropy(Q) - entropy(P)
            divergence = -change - (Q - P) * tilt
            # x may be the small rest of its terms, and the linear term cancel with KL: digits are those of the terms.
            size = abs(Q - P) * (abs(logit) + mp.mpf(sum(parts))) + divergence
            value = mp.mpf(float(finite_steps.two_valued_entropy_change(mass, parts[0], parts[1], step)))
            yield float(abs(value - change) / size)

    return compare(budget, errors, largest_gap=30.0, tokens_per_policy=1)


@check(
    Kind.PROPERTY,
    "sets of tokens: S summed, the whole policy's change, the sign",
    finite_steps.two_valued_entropy_change,
)
def sets_of_tokens(budget: Budget) -> Evidence:
    """T4: Σ_{i∈K} S_i = P (1 − P) x; the change from three numbers is that of the policy; predicted falls are falls."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        start = np.maximum(logits - logits.max(axis=-1, keepdims=True), -30.0)
        probs = plain_softmax(start)
        chosen = rng.random(start.shape) < 0.4
        chosen[:, 0], chosen[:, -1] = True, False
        mass = (probs * chosen).sum(axis=-1)
        rest = (probs * ~chosen).sum(axis=-1)
        inside, outside = (
            plain_entropy(np.where(keep, probs, 0.0) / total[:, np.newaxis])
            for keep, total in ((chosen, mass), (~chosen, rest))
        )
        clear = (rest > 1e-6) & (mass > 1e-12)  # nearer to 1 the rounded P no longer says what is left
        P = np.where(clear, mass, 0.5)
        tilt = np.log(P) - np.log1p(-P) + outside - inside
        size = 1.0 + np.abs(tilt) + inside + outside
        scores = (discriminant.discriminant(start) * chosen).sum(axis=-1)
        yield (np.abs(scores - P * (1.0 - P) * tilt) / (ROUND_OFF * size))[clear]
        for step in (1e-3, -1e-3, 1.0, -1.0, 20.0, -20.0):
            whole = categorical.entropy_change(start, step * chosen)
            alone = finite_steps.two_valued_entropy_change(P, inside, outside, step)
            yield (np.abs(whole - alone) / (1e-9 * size))[clear]  # P rounds at 1e-16 and 1 − P may be 1e-6
            fall = clear & (step * tilt > 1e-9)
            yield np.where(whole >= 0.0, np.inf, 0.0)[fall]

    return hold(budget, excess)


@check(Kind.PROPERTY, "sharpening on right answers, step by step", finite_steps.pass_rate_entropy)
def pass_rate(budget: Budget) -> Evidence:
    """T4: π ∝ π₀ e^{R/β} over whole sequences: its entropy by the definition, and where it peaks."""

    def excess(logits: FloatArray, rng: np.random.Generator) -> Iterator[Excess]:
        start = np.maximum(logits - logits.max(axis=-1, keepdims=True), -20.0)
        right = rng.random(start.shape) < 0.5
        right[:, 0], right[:, -1] = True, False
        probs = plain_softmax(start)
        entropies = [
            plain_entropy(np.where(keep, probs, 0.0) / (probs * keep).sum(axis=-1, keepdims=True))
            for keep in (right, ~right)
        ]
        peak = plain_softmax(np.stack(entropies, axis=-1))[:, 0]  # σ(H_right − H_wrong)
        at_peak = finite_steps.pass_rate_entropy(peak, *entropies)
        for inverse in (0.0, 0.5, 2.0, 8.0, -3.0):
            policy = plain_softmax(start + inverse * right)
            rate = (policy * right).sum(axis=-1)
            value = finite_steps.pass_rate_entropy(np.minimum(rate, 1.0), *entropies)
            size = ROUND_OFF * (1.0 + entropies[0] + entropies[1])
            yield np.abs(value + (policy * plain_log(policy)).sum(axis=-1)) / size
            yield (value - at_peak) / size

    return hold(budget, excess)
