"""Checks about many positions: whole batches enumerated, influence through shared weights, the shift of contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import mpmath as mp
import numpy as np
from numpy.typing import NDArray

from entropy_theory.theory import categorical, discriminant, on_policy, updates
from entropy_theory.theory._policy import FloatArray
from entropy_theory.theory.on_policy import END, SequenceTree
from entropy_theory.theory.verification.checks import oracle
from entropy_theory.theory.verification.checks.policies import plain_entropy, plain_softmax
from entropy_theory.theory.verification.checks.precision import REQUIRED_DIGITS, digits_of
from entropy_theory.theory.verification.checks.slopes import fitted
from entropy_theory.theory.verification.evidence import Budget, Evidence, Kind, check

_MEANS: tuple[on_policy.Mean, ...] = ("sum", "token", "sequence")
_DIGITS = 60


@check(
    Kind.HIGH_PRECISION,
    "every sequence enumerated: sums, fixed and sampled denominators",
    discriminant.centered_discriminant,
)
def enumerated_means(budget: Budget) -> Evidence:
    """Corollary 3.5 and its limit: E[Σ S_c] = 0 exactly, and the bias of a mean over a sampled number of tokens.

    A policy of three tokens, one of which stops, up to four tokens long. With m(l) = E[Σ S_c; L = l], the token mean of
    B sequences is B Σ m(l) P(L_2 + … + L_B = r)/(l + r). It is compared with −Cov(Σ S_c, L)/(B E[L]²), which it
    approaches as B grows.
    """
    batches = (1, 2, 8, 64)
    tree = _stopping_tree(3, 4)
    logits = np.random.default_rng(budget.seed).normal(size=tree.following.shape) * 2.0
    scores = discriminant.centered_discriminant(logits)
    longest = int(tree.depth.max()) + 1
    mass, moments, mean_size = np.zeros(longest + 1), np.zeros(longest + 1), 0.0
    for prob, path in _paths(tree, plain_softmax(logits)):
        total = sum(float(scores[context, token]) for context, token in path)
        mass[len(path)] += prob
        moments[len(path)] += prob * total
        mean_size += prob * abs(total)
    lengths = np.arange(longest + 1)
    mean, mean_length = float(moments.sum()), float(mass @ lengths)
    biases, others = [], np.array([1.0])  # others: the distribution of the summed length of the other sequences
    for batch in range(1, max(batches) + 1):
        if batch in batches:
            denominators = lengths[1:, np.newaxis] + np.arange(len(others))
            biases.append(float(batch * (moments[1:, np.newaxis] * others / denominators).sum()))
        others = np.convolve(others, mass)
    leading = [-float(moments @ (lengths - mean_length)) / (batch * mean_length**2) for batch in batches]
    errors = [abs(bias / first - 1.0) for bias, first in zip(biases, leading, strict=True)]
    digits = digits_of(abs(mean) / mean_size)
    return Evidence(
        # The next order is smaller by 1/B: eight times the batch leaves an eighth of the error, and 2 % at B = 64.
        digits >= REQUIRED_DIGITS and errors[3] < 0.25 * errors[2] and errors[3] < 0.02,
        f"E[sum of S_c] is {mean:.0e}; the bias of the token mean is "
        + ", ".join(f"{bias:+.1e} (B = {batch})" for bias, batch in zip(biases, batches, strict=True)),
        {
            "digits": digits,
            "mean_of_sums": mean,
            "batches": list(batches),
            "token_mean_bias": biases,
            "leading_order": leading,
            "region": "one policy of V = 3 with a stop token, up to 4 tokens: every sequence",
        },
    )


@check(
    Kind.CONVERGENCE_ORDER, "remainder of a step on small networks, plain and preconditioned", updates.tangent_influence
)
def influence(budget: Budget) -> Evidence:
    """Part E: ΔH̄ − (η/n) Σ g_t D_t after one step of all weights falls with the square of η; v = P ∇H̄ for P ≠ 1."""
    steps = np.geomspace(1e-4, 1e-2, 7)
    rng = np.random.default_rng(budget.seed)
    rows = []
    for number in range(max(4, budget.policies // 5)):
        network = _Network(rng)
        gains = rng.normal(size=len(network.inputs))
        entropy_gradient, score_gradients = network.gradients(lambda z: _complex_entropy(z).mean()), network.scores()
        scale = np.exp(rng.normal(size=network.weights.size)) if number % 2 else np.ones(network.weights.size)
        direction = scale * (gains @ score_gradients) / len(gains)
        values = network.influence(scale * entropy_gradient)
        before = _complex_entropy(network.logits(network.weights)).mean().real
        predicted = (gains * values[np.arange(len(gains)), network.tokens]).mean()
        after = [_complex_entropy(network.logits(network.weights + step * direction)).mean().real for step in steps]
        rows.append(np.array(after) - before - steps * predicted)
    return fitted(
        budget, steps, np.stack(rows), 2, "random networks of two layers, V = 7, 5 contexts, plain and preconditioned"
    )


@check(Kind.HIGH_PRECISION, "every token's D from one tangent, against all gradients", updates.tangent_influence)
def tangent(budget: Budget) -> Evidence:
    """Part E: D_t(y) = u_y − E_p[u] against ⟨∇H̄, ∇log p_t(y)⟩ for every token of the vocabulary, by complex steps.

    Also free logits (D = −S_c/n), and a trained output layer alone (D = −(φ_y − E φ), φ = Φ h, Φ = (1/n) Σ S hᵀ).
    """
    rng = np.random.default_rng(budget.seed)
    worst, cases = 0.0, 0
    for _ in range(max(2, budget.policies // 10)):
        network = _Network(rng)
        gradient = network.gradients(lambda z: _complex_entropy(z).mean())
        values = network.influence(gradient)
        z = network.logits(network.weights).real
        n, size = z.shape
        direct = np.stack([network.scores(np.full(n, y)) @ gradient for y in range(size)], axis=-1)
        pairs = [(values, direct)]
        free = updates.tangent_influence(z, -discriminant.discriminant(z) / n)
        pairs.append((free, -discriminant.centered_discriminant(z) / n))
        hidden = network.hidden(network.weights).real
        outer = discriminant.discriminant(z).T @ hidden / n
        last = np.where(np.arange(network.weights.size) >= network.first, gradient, 0.0)
        pairs.append((network.influence(last), updates.tangent_influence(z, -(hidden @ outer.T))))
        for left, right in pairs:
            worst = max(worst, float(np.abs(left - right).max() / np.abs(right).max()))
            cases += left.size
    digits = digits_of(worst)
    return Evidence(
        digits >= REQUIRED_DIGITS,
        f"worst error {worst:.1e} of the largest value over {cases} tokens",
        {
            "digits": digits,
            "cases": cases,
            "region": "random networks of two layers, V = 7, 5 contexts; free logits; one layer",
        },
    )


@check(Kind.PROPERTY, "means over the policy and over groups, enumerated", updates.tangent_influence)
def tangent_means(budget: Budget) -> Evidence:
    """Part E: E_p[D] = 0, E_p[A D] = Cov_p(A, u), and (1 − 1/G) of it for a group mean that includes the own reward."""
    rng = np.random.default_rng(budget.seed)
    worst, cases = 0.0, 0
    for _ in range(budget.policies):
        z, u, rewards = rng.normal(size=4) * 2.0, rng.normal(size=4), rng.normal(size=4)
        p, D = plain_softmax(z), updates.tangent_influence(z, u)
        covariance = p @ (rewards * u) - (p @ rewards) * (p @ u)
        errors = [abs(p @ D), abs(p @ (rewards * D) - covariance), abs(D[2] - updates.tangent_influence(z, u, 2))]
        for size in (2, 3):
            mean = sum(
                np.prod(p[list(drawn)]) * (rewards[drawn[0]] - rewards[list(drawn)].mean()) * D[drawn[0]]
                for drawn in product(range(4), repeat=size)
            )
            errors.append(abs(mean - (1.0 - 1.0 / size) * covariance))
        worst, cases = max(worst, *map(float, errors)), cases + len(errors)
    tolerance = 1e-13  # round-off of sums of at most 64 terms of order 1
    return Evidence(
        worst <= tolerance,
        f"worst error {worst:.1e} over {cases} cases",
        {"cases": cases, "failures": int(worst > tolerance), "region": "random policies of V = 4, groups of 2 and 3"},
    )


@check(
    Kind.HIGH_PRECISION,
    "both parts of the gradient, against differences of enumerated means",
    on_policy.on_policy_gradient,
)
def shift_gradient(budget: Budget) -> Evidence:
    """Part F: tabular and shared logits, three ways of taking the mean, against slopes of the mean at 60 digits.

    The oracle lists every sequence with its probability and entropies. Its fixed part keeps the probabilities.
    """
    rng = np.random.default_rng(budget.seed)
    worst, cases = 0.0, 0
    for _ in range(max(2, budget.precise_policies)):
        tree = _random_tree(rng, contexts=5, vocab_size=3)
        logits = rng.normal(size=tree.following.shape) * rng.choice([0.5, 2.0])
        # The logits one by one, then three parameters that share them.
        units = list(np.eye(logits.size).reshape(-1, *logits.shape))
        directions = [*units, *rng.normal(size=(3, *logits.shape))]
        slopes = [oracle_slopes(tree, logits, direction) for direction in directions]
        for place, mean in enumerate(_MEANS):
            parts = on_policy.on_policy_gradient(tree, logits, mean)
            size = float(np.abs(parts[0]).max() + np.abs(parts[1]).max())
            for direction, of_means in zip(directions, slopes, strict=True):
                kept, both = of_means[place]
                for value, reference in zip(parts, (kept, both - kept), strict=True):
                    worst = max(worst, float(abs(mp.mpf(float((value * direction).sum())) - reference)) / size)
                    cases += 1
    digits = digits_of(worst)
    return Evidence(
        digits >= REQUIRED_DIGITS,
        f"worst error {worst:.1e} of the gradient's size over {cases} slopes",
        {
            "digits": digits,
            "cases": cases,
            "region": "random trees of 5 contexts, V = 3, tabular and shared logits, three means",
        },
    )


@check(Kind.HIGH_PRECISION, "a case in which fixed contexts have the wrong sign", on_policy.on_policy_entropy)
def wrong_sign(budget: Budget) -> Evidence:
    """Part F: a uniform two-way token whose branches have entropy log 2 and .05, one step α = 1 towards the first.

    On fixed contexts mean entropy falls by .055; with the contexts it rises by .019. By the exact change of the token
    mean, and from h(σ(1)) alone.
    """
    low = mp.findroot(lambda x: -x * mp.log(x) - (1 - x) * mp.log(1 - x) - mp.mpf("0.05"), mp.mpf("0.01"))
    tree = SequenceTree(np.array([[1, 2], [END, END], [END, END]]))
    logits = np.array([[0.0, 0.0], [0.0, 0.0], [float(mp.log(low / (1 - low))), 0.0]])
    moved = logits.copy()
    moved[0] += discriminant.grpo_direction(logits[0], 0)
    total = on_policy.on_policy_entropy(tree, moved) - on_policy.on_policy_entropy(tree, logits)
    entropies = np.asarray(categorical.entropy(moved)) - np.asarray(categorical.entropy(logits))
    fixed = float(entropies[0] / 2.0)  # both contexts of the second token keep their entropy
    with mp.workdps(_DIGITS):
        q = 1 / (1 + mp.exp(-1))
        by_hand = (-q * mp.log(q) - (1 - q) * mp.log(1 - q) - mp.log(2)) / 2
        with_shift = by_hand + (q - mp.mpf(1) / 2) * (mp.log(2) - mp.mpf("0.05")) / 2
        errors = [oracle.relative_error(fixed, by_hand), oracle.relative_error(total, with_shift)]
    digits = digits_of(max(errors))
    return Evidence(
        digits >= REQUIRED_DIGITS and fixed < 0.0 < total,
        f"on fixed contexts {fixed:+.3f}, in all {total:+.3f}",
        {
            "digits": digits,
            "fixed_contexts": fixed,
            "on_policy": total,
            "region": "two tokens of V = 2, one step of size 1",
        },
    )


@check(Kind.PROPERTY, "old rollouts under new weights, enumerated, any step", on_policy.on_policy_entropy)
def reweighted(budget: Budget) -> Evidence:
    """Part F: E_π[Σ ρ_{<t} h'_t] = E_{π'}[Σ h'_t] and E_π[Σ ρ_{<t}] = E_{π'}[L], ρ_{<t} = Π_{s<t} π'/π."""
    rng = np.random.default_rng(budget.seed)
    worst, cases = 0.0, 0
    for _ in range(max(4, budget.policies // 5)):
        tree = _random_tree(rng, contexts=6, vocab_size=3)
        old = rng.normal(size=tree.following.shape)
        new = old + rng.normal(size=old.shape) * rng.choice([0.1, 1.0, 5.0])
        p, q = plain_softmax(old), plain_softmax(new)
        h = plain_entropy(q)
        sums = np.zeros(2)
        for prob, path in _paths(tree, p):
            ratio = 1.0
            for context, token in path:
                sums += prob * ratio * np.array([h[context], 1.0])
                ratio *= q[context, token] / p[context, token]
        token_mean = on_policy.on_policy_entropy(tree, new, "token")
        total = on_policy.on_policy_entropy(tree, new, "sum")
        for value, reference in ((sums[0], total), (sums[0] / sums[1], token_mean)):
            worst, cases = max(worst, abs(value / reference - 1.0)), cases + 1
    tolerance = 1e-12  # round-off of sums of tens of terms
    return Evidence(
        worst <= tolerance,
        f"worst error {worst:.1e} over {cases} means",
        {
            "cases": cases,
            "failures": int(worst > tolerance),
            "region": "random trees of 6 contexts, V = 3, moves up to 5",
        },
    )


@check(Kind.PROPERTY, "one context moved by any amount, and its slope", on_policy.total_discriminant)
def tabular_change(budget: Budget) -> Evidence:
    """Part F: ΔJ = ρ [−Σ (q − p)(log p − Q) − KL], J and Q by enumeration; S^tot is minus the slope of J over ρ."""
    rng = np.random.default_rng(budget.seed)
    worst, cases = 0.0, 0
    for _ in range(max(4, budget.policies // 5)):
        tree = _random_tree(rng, contexts=6, vocab_size=3)
        logits = rng.normal(size=tree.following.shape) * 1.5
        context = int(rng.integers(len(logits)))
        p = plain_softmax(logits)
        reach = sum(prob for prob, path in _paths(tree, p) if context in [c for c, _ in path])
        future = np.array([_to_come(tree, p, int(after)) for after in tree.following[context]])
        fixed, shift = on_policy.on_policy_gradient(tree, logits, "sum")
        slope = -reach * on_policy.total_discriminant(logits[context], future)
        worst = max(worst, float(np.abs(fixed[context] + shift[context] - slope).max()))
        for size in (1e-3, 1.0, 10.0):
            moved = logits.copy()
            moved[context] += size * rng.normal(size=logits.shape[1])
            q = plain_softmax(moved[context])
            change = on_policy.on_policy_entropy(tree, moved, "sum") - on_policy.on_policy_entropy(tree, logits, "sum")
            log_p = np.log(p[context])
            exact = reach * (-((q - p[context]) * (log_p - future)).sum() - (q * (np.log(q) - log_p)).sum())
            worst, cases = max(worst, abs(change - exact)), cases + 2
    tolerance = 1e-12  # round-off of sums of tens of terms of order 1
    return Evidence(
        worst <= tolerance,
        f"worst error {worst:.1e} over {cases} cases",
        {
            "cases": cases,
            "failures": int(worst > tolerance),
            "region": "random trees of 6 contexts, V = 3, moves up to 10",
        },
    )


class _Network:
    """Logits from two layers, z = W₂ tanh(W₁ x), with every weight in one vector; differentiated by complex steps."""

    def __init__(self, rng: np.random.Generator, contexts: int = 5, width: int = 4, vocab_size: int = 7) -> None:
        self.inputs = rng.normal(size=(contexts, 3))
        self.tokens = rng.integers(vocab_size, size=contexts)
        self.first = width * 3  # weights of the first layer
        self.shape = (vocab_size, width)
        self.weights = rng.normal(size=self.first + vocab_size * width)

    def hidden(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Hidden states, shape (T, D)."""
        result: NDArray[Any] = np.tanh(self.inputs @ weights[: self.first].reshape(-1, 3).T)
        return result

    def logits(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Logits, shape (T, V)."""
        result: NDArray[Any] = self.hidden(weights) @ weights[self.first :].reshape(self.shape).T
        return result

    def gradients(self, function: Callable[[NDArray[Any]], Any]) -> FloatArray:
        """Gradient in the weights of a function of the logits; shape (P,) or (P, ...)."""
        tiny = 1e-30  # a complex step has no difference to round
        units = np.eye(self.weights.size) * 1j * tiny
        return np.stack([np.imag(function(self.logits(self.weights + unit))) / tiny for unit in units])

    def scores(self, tokens: NDArray[np.int64] | None = None) -> FloatArray:
        """∇ log p_t of one token per context, shape (T, P)."""
        chosen = self.tokens if tokens is None else tokens
        return self.gradients(lambda z: _complex_log_probs(z)[np.arange(len(chosen)), chosen]).T

    def influence(self, direction: FloatArray) -> FloatArray:
        """D of every token from the tangent logits J v, shape (T, V)."""
        tangent = np.imag(self.logits(self.weights + 1e-30j * direction)) / 1e-30
        return updates.tangent_influence(self.logits(self.weights).real, tangent)


def _complex_log_probs(z: NDArray[Any]) -> NDArray[Any]:
    shifted = z - z.real.max(axis=-1, keepdims=True)
    result: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _complex_entropy(z: NDArray[Any]) -> NDArray[Any]:
    log_probs = _complex_log_probs(z)
    result: NDArray[Any] = -(np.exp(log_probs) * log_probs).sum(axis=-1)
    return result


def _stopping_tree(vocab_size: int, longest: int) -> SequenceTree:
    """Token 0 stops; any other one goes on, up to a number of tokens."""
    rows: list[list[int]] = []
    level, free = [0], 1
    for depth in range(longest):
        following = []
        for _ in level:
            inner = depth < longest - 1
            row = [END] + [free + i if inner else END for i in range(vocab_size - 1)]
            following += [after for after in row if after != END]
            free += (vocab_size - 1) * inner
            rows.append(row)
        level = following
    return SequenceTree(np.array(rows))


def _random_tree(rng: np.random.Generator, contexts: int, vocab_size: int) -> SequenceTree:
    """Attach contexts one by one to a free token of a random earlier one."""
    table = np.full((contexts, vocab_size), END)
    for context in range(1, contexts):
        free = np.argwhere(table[:context] == END)
        table[tuple(free[rng.integers(len(free))])] = context
    return SequenceTree(table)


def _paths(tree: SequenceTree, probs: Any) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
    """List every sequence: its probability, and the contexts and tokens on its way."""

    def continued(prob: Any, path: list[tuple[int, int]], context: int) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
        for token, after in enumerate(tree.following[context]):
            longer = [*path, (context, token)]
            if after == END:
                yield prob * probs[context][token], longer
            else:
                yield from continued(prob * probs[context][token], longer, int(after))

    yield from continued(1, [], 0)


def _to_come(tree: SequenceTree, probs: FloatArray, context: int) -> float:
    """Entropy to come from a context on, summed."""
    if context == END:
        return 0.0
    rest = sum(
        p * _to_come(tree, probs, int(after)) for p, after in zip(probs[context], tree.following[context], strict=True)
    )
    return float(plain_entropy(probs[context]) + rest)


def oracle_slopes(tree: SequenceTree, logits: FloatArray, direction: FloatArray) -> list[tuple[Any, Any]]:
    """Slopes along a direction of every mean of `_MEANS` by listing the sequences: on fixed contexts, and in all."""
    with mp.workdps(_DIGITS):
        start = [oracle.exact(row) for row in logits]
        move = [oracle.exact(row) for row in direction]
        fixed = _sequences(tree, start)

        def means(t: oracle.Number) -> list[oracle.Number]:
            moved = [[z + t * d for z, d in zip(*rows, strict=True)] for rows in zip(start, move, strict=True)]
            entropies = [oracle.entropy(row) for row in moved]
            return [*_means(fixed, entropies), *_means(_sequences(tree, moved), entropies)]

        slopes = oracle.slopes(means)
    return list(zip(slopes[: len(_MEANS)], slopes[len(_MEANS) :], strict=True))


def _sequences(tree: SequenceTree, rows: list[list[oracle.Number]]) -> list[tuple[Any, list[int]]]:
    """The probability of every sequence under these logits, and the contexts on its way."""
    listed = _paths(tree, [oracle.probabilities(row) for row in rows])
    return [(prob, [context for context, _ in path]) for prob, path in listed]


def _means(sequences: list[tuple[Any, list[int]]], entropies: list[oracle.Number]) -> list[oracle.Number]:
    """Mean entropy of the sequences in the order of `_MEANS`: summed, by token, by sequence."""
    visited = [mp.fsum(entropies[context] for context in path) for _, path in sequences]
    total = mp.fsum(prob * entropy for (prob, _), entropy in zip(sequences, visited, strict=True))
    length = mp.fsum(prob * len(path) for prob, path in sequences)
    by_sequence = mp.fsum(prob * e / len(path) for (prob, path), e in zip(sequences, visited, strict=True))
    return [total, total / length, by_sequence]
