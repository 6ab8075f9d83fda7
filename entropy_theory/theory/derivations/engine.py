"""What a derivation is, and how sums over a vocabulary of any size are taken.

V is never written out. A sum over tokens is a linear operator: the summand is a polynomial in the symbols that carry
the index (p_i, L_i = log p_i, a direction d_i), and each monomial's sum is one unknown, Σ p_i = 1, Σ p_i L_i = −H,
Σ p_i² = M_2, Σ p_i² (H + L_i) = N. What SymPy then shows about the unknowns holds for any V.

A derivation differentiates the softmax and the entropy and compares with the claim; it never assumes it. It counts as
derived when every step's difference, and the residual of the claim, simplify to exactly 0. An inequality is a step
when what it claims to be non-negative is shown equal to sums and products of what is non-negative by itself.

Example:
    >>> from entropy_theory.theory.derivations import paper
    >>> derivation = paper.theorem_3_2()
    >>> derivation.derived, len(derivation.steps)
    (True, 8)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy as sp

ENTROPY, BASELINE, COLLISION = sp.symbols("H N M_2", positive=True)
CUBE, CUBIC = sp.symbols("M_3 N_3", real=True)
PROB_K, PROB_I = sp.symbols("p_k p_i", positive=True)
LOG_K, LOG_I = sp.symbols("L_k L_i", real=True)
SCORE_I, SCORE_K, GAIN_I = sp.symbols("S_i S_k A_i", real=True)
MOVE_I = sp.Symbol("d_i", real=True)
STEP = sp.Symbol("t", real=True)

Sums = Mapping[Any, sp.Expr]  # by the exponents of the carriers

# Sums over all tokens of p_i^m L_i^n, from Σ p = 1, Σ p L = −H, Σ p² = M_2 and N = Σ p² (H + L); M_3 and N_3 likewise.
SUMS: dict[Any, sp.Expr] = {
    (1, 0): sp.Integer(1),
    (1, 1): -ENTROPY,
    (2, 0): COLLISION,
    (2, 1): BASELINE - ENTROPY * COLLISION,
    (3, 0): CUBE,
    (3, 1): CUBIC - ENTROPY * CUBE,
}


@dataclass(frozen=True)
class Step:
    """One step of a derivation: a quantity, worked out from the definitions, and what it is claimed to be.

    Attributes:
        text: What is done, in words.
        quantity: The quantity, in LaTeX.
        computed: What the definitions give.
        claimed: What the step says it is.
    """

    text: str
    quantity: str
    computed: sp.Expr
    claimed: sp.Expr

    @cached_property
    def difference(self) -> sp.Expr:
        """Computed minus claimed, simplified; exactly 0 when the step holds."""
        return simplified(self.computed - self.claimed)

    @property
    def latex(self) -> str:
        """The step as one LaTeX equation."""
        return f"{self.quantity} = {sp.latex(self.claimed)}"


@dataclass(frozen=True)
class Derivation:
    """The steps that lead to a statement, and what is left of its claim at the end.

    Attributes:
        statement: Identifier of the statement.
        steps: The steps, in order.
        residual: Left side minus right side of the claim, simplified; exactly 0 when it is derived.
    """

    statement: str
    steps: tuple[Step, ...]
    residual: sp.Expr

    @property
    def open_steps(self) -> tuple[Step, ...]:
        """The steps whose difference does not simplify to 0."""
        return tuple(step for step in self.steps if step.difference != 0)

    @property
    def derived(self) -> bool:
        """Whether every step and the claim itself are closed."""
        return self.residual == 0 and not self.open_steps

    def to_latex(self) -> str:
        """The derivation as LaTeX: an enumerated list of sentences and equations."""
        items = "\n".join(rf"\item {step.text} \[ {step.latex} \]" for step in self.steps)
        return f"\\begin{{enumerate}}\n{items}\n\\end{{enumerate}}"


def simplified(expression: sp.Expr) -> sp.Expr:
    """Simplify; what is 0 as a rational function of its symbols, logarithms and exponentials is found at once."""
    numerator = sp.fraction(sp.together(expression))[0]
    return sp.Integer(0) if sp.expand(numerator) == 0 else sp.simplify(expression)


def taylor(expression: sp.Expr, symbol: sp.Symbol, order: int) -> sp.Expr:
    """Taylor's polynomial about 0 of what is analytic there, up to symbol^order."""
    slopes = [sp.diff(expression, symbol, n).subs(symbol, 0) for n in range(order + 1)]
    return sum((slope * symbol**n / sp.factorial(n) for n, slope in enumerate(slopes)), sp.Integer(0))


def sum_by_monomials(summand: sp.Expr, carriers: tuple[sp.Symbol, ...], sums: Sums) -> sp.Expr:
    """Sum over tokens of a polynomial in the symbols that carry the index; each monomial's sum is looked up."""
    terms = sp.Poly(sp.expand(summand), *carriers).terms()
    return sum((coefficient * sums[monomial] for monomial, coefficient in terms if coefficient != 0), sp.Integer(0))


def sum_over_all(summand: sp.Expr) -> sp.Expr:
    """Sum over all tokens of a polynomial in p_i and L_i."""
    return sum_by_monomials(summand, (PROB_I, LOG_I), SUMS)


def sum_over_rest(summand: sp.Expr) -> sp.Expr:
    """Sum over all tokens but k of a polynomial in p_i and L_i."""
    rest = {(m, n): value - PROB_K**m * LOG_K**n for (m, n), value in SUMS.items()}
    return sum_by_monomials(summand, (PROB_I, LOG_I), rest)


def sum_apart(move_k: sp.Expr, move_i: sp.Expr) -> Callable[[sp.Expr], sp.Expr]:
    """Build the sum over tokens for a direction with d_k at token k and d_i, a polynomial in p_i, at all others."""

    def total(summand: sp.Expr) -> sp.Expr:
        at_k = summand.subs({PROB_I: PROB_K, LOG_I: LOG_K, MOVE_I: move_k}, simultaneous=True)
        return at_k + sum_over_rest(summand.subs(MOVE_I, move_i))

    return total


def slope_of(
    total: Callable[[sp.Expr], sp.Expr], normaliser: sp.Expr, cross_entropy: sp.Expr
) -> tuple[tuple[Step, ...], sp.Expr]:
    """Differentiate the entropy of softmax(z + t d) at t = 0.

    The moved policy is q_i = p_i e^{t d_i}/T with T(t) = Σ p_i e^{t d_i}, and with U(t) = Σ p_i e^{t d_i} (L_i + t d_i)
    its entropy is log T − U/T.

    Args:
        total: Summation over all tokens of a summand in p_i, L_i, d_i.
        normaliser: What T'(0) is claimed to be.
        cross_entropy: What U'(0) is claimed to be.

    Returns:
        The steps, and dH/dt at 0 as they give it.
    """
    tilted, log_tilted, logit_i, all_weights = sp.symbols("a_i b_i z_i W", positive=True)
    moved = sp.exp(logit_i + STEP * MOVE_I) / (all_weights * _T)  # Σ e^{z_j + t d_j} = W Σ p_j e^{t d_j}, W = Σ e^{z_j}
    entropy_of_moved = sum_by_monomials(
        -(tilted / _T) * (log_tilted - sp.log(_T)), (tilted, log_tilted), {(1, 0): _T, (1, 1): _U}
    )
    at_zero = _derivatives_at_zero(total, 1)
    steps = (
        Step("Move the logits.", "q_i", moved, _WEIGHT.subs(PROB_I, sp.exp(logit_i) / all_weights) / _T),
        Step("Entropy of the moved policy, summed over its tokens.", "H(t)", entropy_of_moved, _ENTROPY_OF_MOVED),
        *_at_rest(at_zero),
        Step("Differentiate under the sum.", "T'(0)", at_zero[sp.diff(_T, STEP)], normaliser),
        Step("Likewise.", "U'(0)", at_zero[sp.diff(_U, STEP)], cross_entropy),
    )
    return steps, sp.diff(_ENTROPY_OF_MOVED, STEP).subs(at_zero)


def curvature_of(total: Callable[[sp.Expr], sp.Expr]) -> tuple[tuple[Step, ...], sp.Expr]:
    """Differentiate the entropy log T − U/T of softmax(z + t d) twice at t = 0; steps and result as in `slope_of`."""
    at_zero = _derivatives_at_zero(total, 2)
    curvature = sp.diff(_ENTROPY_OF_MOVED, STEP, 2)
    t1, t2, u0, u1, u2 = sp.symbols("T' T'' U U' U''", real=True)
    names = {sp.diff(_T, STEP, 2): t2, sp.diff(_U, STEP, 2): u2, sp.diff(_T, STEP): t1, sp.diff(_U, STEP): u1, _U: u0}
    steps = (
        *_at_rest(at_zero),
        Step(
            "Differentiate H(t) = log T − U/T twice.",
            "H''(0)",
            curvature.subs(names).subs(_T, 1),
            t2 - t1**2 - u2 + 2 * u1 * t1 + u0 * t2 - 2 * u0 * t1**2,
        ),
    )
    return steps, sp.expand(curvature.subs(at_zero))


_T, _U = sp.Function("T")(STEP), sp.Function("U")(STEP)
_WEIGHT = PROB_I * sp.exp(STEP * MOVE_I)
_ENTROPY_OF_MOVED = sp.log(_T) - _U / _T


def _derivatives_at_zero(total: Callable[[sp.Expr], sp.Expr], order: int) -> dict[sp.Expr, sp.Expr]:
    """T, U and their derivatives at t = 0, highest order first, so that substitution meets a derivative before T."""
    return {
        sp.diff(function, STEP, n): total(sp.diff(summand, STEP, n).subs(STEP, 0))
        for n in range(order, -1, -1)
        for function, summand in ((_T, _WEIGHT), (_U, _WEIGHT * (LOG_I + STEP * MOVE_I)))
    }


def _at_rest(at_zero: Mapping[sp.Expr, sp.Expr]) -> tuple[Step, Step]:
    return (
        Step("At rest the normaliser is 1 ...", "T(0)", at_zero[_T], sp.Integer(1)),
        Step("... and the other sum is minus the entropy.", "U(0)", at_zero[_U], -ENTROPY),
    )
