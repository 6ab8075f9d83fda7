"""The one-sided sign theorem for GRPO steps, step by step, for every vocabulary size at once.

Along the ray q_t ∝ p e^{t d}, d = e_k − λ p with 0 ≤ λ ≤ 1 (λ = 1: a GRPO step; λ = 0: one moved logit), r is q_t given
that the token is not k, and w_i = log(p_k/p_i). Sums over the other tokens are means under r, one unknown each; V is
never written out.
"""

from __future__ import annotations

import sympy as sp

from entropy_theory.theory.derivations.engine import PROB_K, STEP, Derivation, Step, simplified, sum_by_monomials

SHARE = sp.Symbol("\\lambda", nonnegative=True)
MOVED_K = sp.Symbol("q_k", positive=True)
_P, _W, _PJ, _WJ = sp.symbols("p_i w_i p_j w_j", real=True)
MEAN_P, MEAN_P2, MEAN_W, MEAN_PW, MEAN_P2W = sp.symbols("E[p] E[p^2] E[w] E[pw] E[p^2w]", real=True)

# Means under r of p_i^m w_i^n.
_MEANS = {
    (0, 0): sp.Integer(1),
    (1, 0): MEAN_P,
    (2, 0): MEAN_P2,
    (0, 1): MEAN_W,
    (1, 1): MEAN_PW,
    (2, 1): MEAN_P2W,
}


def _mean(summand: sp.Expr) -> sp.Expr:
    return sum_by_monomials(summand, (_P, _W), _MEANS)


def slope_along_a_ray() -> Derivation:
    """Derive the slope of entropy along a ray of the logits, and what the linear term of the exact change is.

    Section B.8 of the theory notes, first part.

    Formula: H'(t) = −C − t Var_{q_t}(d), C = Cov_{q_t}(d, log p); Σ (q_α − p) log p = ∫₀^α C dt.

    Symbols: means under q_t of d and L = log p, one unknown each.
    """
    q, d, L, log_T = sp.symbols("q_i d_i L_i \\log{T}", real=True)
    D1, D2, L1, DL, DDL = sp.symbols("E[d] E[d^2] E[L] E[dL] E[d^2L]", real=True)
    sums = {
        (1, 0, 0): sp.Integer(1),
        (1, 1, 0): D1,
        (1, 2, 0): D2,
        (1, 0, 1): L1,
        (1, 1, 1): DL,
        (1, 2, 1): DDL,
    }

    def total(summand: sp.Expr) -> sp.Expr:
        return sum_by_monomials(summand, (q, d, L), sums)

    log_q = L + STEP * d - log_T
    T = sp.Function("T")(STEP)
    weight, p = sp.exp(STEP * d), sp.Symbol("p_i", positive=True)
    velocity = q * (d - D1)
    growth = sp.Symbol("T'/T", real=True)
    log_slope = sp.diff(sp.log(p * weight / T), STEP).subs(sp.diff(T, STEP) / T, growth)
    slope = -total(velocity * log_q)
    covariance, variance = DL - D1 * L1, D2 - D1**2
    steps = (
        Step("The log-probability of a token moves with its d, less the mean.", r"(\log q_i)'", log_slope, d - growth),
        Step(
            "No probability is made or lost, so T'/T is the mean of d.",
            r"\textstyle\sum_i q_i'",
            total(velocity),
            sp.Integer(0),
        ),
        Step("Differentiate −Σ q log q; the terms Σ q' vanish.", "H'(t)", slope, -covariance - STEP * variance),
        Step(
            "The mean of log p moves with the covariance alone.",
            r"\tfrac{d}{dt} E_{q_t}[L]",
            total(velocity * L),
            covariance,
        ),
    )
    return Derivation("one-sided-sign-theorem", steps, simplified(slope + covariance + STEP * variance))


def one_sided_sign_theorem() -> Derivation:
    """Derive that a predicted fall of a GRPO step is a fall at any step size.

    Section B.8 of the theory notes.

    Formula: α S_c ≥ 0, α ≠ 0 ⇒ H falls strictly from 0 to α, and ΔH ≤ −KL(q_α‖p) < 0.

    Symbols: b = −E_{q_t} d; F = E_r[(λp − b) w]; C = (1 − q_k) F; G = E_{q_t}[d²] E_r w − λ² E_r[p² w];
    y_i = 1 − p_k − p_i ≥ 0, because p_i and p_k are two of the probabilities that sum to 1. C, H' and ∫ C are those of
    `slope_along_a_ray`.
    """
    lam, s, p_k = SHARE, MOVED_K, PROB_K
    d_k, d_i = 1 - lam * p_k, -lam * _P
    b = -(s * d_k + (1 - s) * _mean(d_i))
    # w_k = 0, and Cov(d, L) = −Cov(d, w): only the other tokens contribute.
    covariance = -(1 - s) * (_mean(d_i * _W) + b * MEAN_W)
    F = _mean((lam * _P - b) * _W)
    square = s * d_k**2 + (1 - s) * _mean(d_i**2)
    variance = square - b**2
    G = square * MEAN_W - lam**2 * MEAN_P2W
    # r_i' = r_i λ (E_r p − p_i), because r_i ∝ p_i e^{−t λ p_i}; b' = −Var(d).
    r_slope = lam * (MEAN_P - _P)
    F_slope = _mean(r_slope * (lam * _P - b) * _W) + variance * MEAN_W
    drift = b + lam * MEAN_P
    cov_pw = MEAN_PW - MEAN_P * MEAN_W

    chebyshev = _pairs((_P**2 - _PJ**2) * (_W - _WJ)) / 2
    chebyshev_1 = _pairs((_P - _PJ) * (_W - _WJ)) / 2
    smaller, gap = sp.symbols("p_j g", positive=True)  # p_i = p_j e^g
    larger = smaller * sp.exp(gap)
    log_gap = sp.expand_log(sp.log(p_k / larger) - sp.log(p_k / smaller), force=True)
    slack = sp.Symbol("y_i", nonnegative=True)
    other = 1 - p_k - slack
    room = (1 - lam * p_k) ** 2 - lam**2 * other**2
    factors = (1 - lam + lam * slack) * (1 - lam * p_k + lam * other)

    f, g, h = (sp.Function(name)(STEP) for name in ("F", "G", "a"))
    primitive = sp.Function("A")(STEP)
    product_slope = sp.diff(sp.exp(-primitive) * f, STEP)
    product_slope = product_slope.subs({sp.diff(f, STEP): h * f + g, sp.diff(primitive, STEP): h})
    steps = (
        Step("The covariance is that of the other tokens.", "C", covariance, (1 - s) * F),
        Step("Differentiate F along the ray.", "F'", sp.expand(F_slope), sp.expand(drift * F + G)),
        Step(
            "(i) Chebyshev's sum: the difference of means is half a sum over pairs.",
            r"E_r[p^2 w] - E_r[p^2] E_r[w]",
            sp.expand(chebyshev),
            MEAN_P2W - MEAN_P2 * MEAN_W,
        ),
        Step(
            "(i) Each pair is at most 0: with p_i = p_j e^g, w_i − w_j = −g.",
            r"(p_i^2 - p_j^2)(w_i - w_j)",
            sp.expand((larger**2 - smaller**2) * log_gap),
            sp.expand(-gap * smaller**2 * (sp.exp(2 * gap) - 1)),
        ),
        Step(
            "(i) The mean square of d exceeds λ² E_r[p²] by q_k times a mean ...",
            r"E_{q_t}[d^2] - \lambda^2 E_r[p^2]",
            square - lam**2 * MEAN_P2,
            s * ((1 - lam * p_k) ** 2 - lam**2 * MEAN_P2),
        ),
        Step(
            "(i) ... of products of non-negative factors, because λ ≤ 1.",
            r"(1 - \lambda p_k)^2 - \lambda^2 p_i^2",
            sp.expand(room),
            sp.expand(factors),
        ),
        Step(
            "(i) So G is a sum of two terms, both non-negative where E_r w ≥ 0.",
            "G",
            G,
            (square - lam**2 * MEAN_P2) * MEAN_W + lam**2 * (MEAN_P2 * MEAN_W - MEAN_P2W),
        ),
        Step(
            "(ii) F splits into a covariance under r and a multiple of E_r w ...",
            "F",
            sp.expand(F),
            sp.expand(lam * cov_pw + s * (1 - lam * p_k + lam * MEAN_P) * MEAN_W),
        ),
        Step(
            "(ii) ... the covariance is half a sum over pairs ...",
            r"\operatorname{Cov}_r(p, w)",
            sp.expand(chebyshev_1),
            cov_pw,
        ),
        Step(
            "(ii) ... each at most 0: so E_r w < 0 implies F < 0 (for λ = 0, F = q_k E_r w).",
            r"(p_i - p_j)(w_i - w_j)",
            sp.expand((larger - smaller) * log_gap),
            sp.expand(-gap * smaller * (sp.exp(gap) - 1)),
        ),
        Step("(iii) E_r w does not fall along the ray.", r"(E_r w)'", _mean(r_slope * _W), -lam * cov_pw),
        Step(
            "With a = b + λ E_r p and A' = a, F' = aF + G keeps the sign of F(0) while G ≥ 0. So F ≥ 0 forward and"
            " F ≤ 0 backward; H' = −(1 − q_k) F − t Var(d) is a fall, and the exact identity with ∫ C ≥ 0 gives"
            " ΔH ≤ −KL.",
            r"(e^{-A} F)'",
            sp.simplify(product_slope),
            sp.exp(-primitive) * g,
        ),
    )
    return Derivation("one-sided-sign-theorem", steps, sp.expand(F_slope - drift * F - G))


def _pairs(summand: sp.Expr) -> sp.Expr:
    """Mean over two independent draws from r of a polynomial in (p_i, w_i) and (p_j, w_j)."""
    table = {(*a, *b): _MEANS[a] * _MEANS[b] for a in _MEANS for b in _MEANS}
    return sum_by_monomials(summand, (_P, _W, _PJ, _WJ), table)
