"""Derivations of what holds along whole rays: the step bound, concavity, many small steps, directions of two values.

Along the ray q_t ∝ p e^{t d}, d = e_k − λ p with 0 ≤ λ ≤ 1, sums run over the tokens i ≠ k with the weights
e_i = p_i e^{t d_i}: B_m = Σ e_i p_i^m, B[f] = Σ e_i f_i, T = e_k + B_0. A test function f has f_k = 0.
"""

from __future__ import annotations

import sympy as sp

from entropy_theory.theory.derivations.engine import (
    BASELINE,
    COLLISION,
    CUBE,
    PROB_I,
    PROB_K,
    STEP,
    Derivation,
    Step,
    simplified,
    sum_by_monomials,
)

SHARE = sp.Symbol("\\lambda", nonnegative=True)
_E, _B0, _B1, _B2 = sp.symbols("e_k B_0 B_1 B_2", positive=True)
_F, _PF, _P2F = sp.symbols("B[f] B[pf] B[p^2f]", real=True)
_DK = 1 - SHARE * PROB_K  # d_k
_T = _E + _B0
# Along the ray e_k' = d_k e_k, B_m' = −λ B_{m+1} and, for a fixed f, B[p^m f]' = −λ B[p^{m+1} f].
_VELOCITY = {_E: _DK * _E, _B0: -SHARE * _B1, _B1: -SHARE * _B2, _F: -SHARE * _PF, _PF: -SHARE * _P2F}


def _along(expression: sp.Expr) -> sp.Expr:
    """Differentiate in t an expression in e_k, B_0, B_1, B[f] and B[pf]."""
    return sum((sp.diff(expression, name) * speed for name, speed in _VELOCITY.items()), sp.Integer(0))


_T1 = _along(_T)
_PSI = SHARE * _T * _PF + _T1 * _F
_C1 = SHARE * _B1 + _DK * _B0
_C2 = _DK**2 * _B0 - SHARE**2 * _B2
_TOKEN, _OTHER, _GAP = sp.symbols("p_i p_j g", positive=True)


def _shared_steps() -> tuple[Step, ...]:
    """What the step bound and concavity share: covariances along the ray, and Chebyshev's inequality twice."""
    mean_d, mean_f, mean_df = _T1 / _T, _F / _T, -SHARE * _PF / _T
    slack = sp.Symbol("y_i", nonnegative=True)
    other = 1 - PROB_K - slack  # p_i, because p_i + p_k ≤ 1
    second = _along(_T1)
    return (
        Step(
            "Only tokens i ≠ k enter.", r"\operatorname{Cov}_{q_t}(d, -f)", -(mean_df - mean_d * mean_f), _PSI / _T**2
        ),
        Step(
            "Differentiate for a fixed f.",
            r"\Psi_f'",
            sp.expand(_along(_PSI)),
            sp.expand(second * _F - SHARE**2 * _T * _P2F),
        ),
        Step("The sampled token's probability increases with t.", "q_k'", _along(_E / _T), _E * _C1 / _T**2),
        Step("Its weight grows.", "(e_k c_1)'", sp.expand(_along(_E * _C1)), sp.expand(_E * _C2)),
        Step(
            "c_2 is a sum of products of non-negative factors, because λ ≤ 1.",
            r"(1 - \lambda p_k)^2 - \lambda^2 p_i^2",
            sp.expand(_DK**2 - SHARE**2 * other**2),
            sp.expand((1 - SHARE + SHARE * slack) * (_DK + SHARE * other)),
        ),
        Step(
            "Where f falls with p, Chebyshev's sum bounds Ψ_f ...",
            r"e_k c_1 B[f] - B_0 \Psi_f",
            sp.expand(_E * _C1 * _F - _B0 * _PSI),
            sp.expand(SHARE * _T * (_B1 * _F - _B0 * _PF)),
        ),
        Step(
            "... and its derivative the other way ...",
            r"B_0 \Psi_f' - e_k c_2 B[f]",
            sp.expand(_B0 * _along(_PSI) - _E * _C2 * _F),
            sp.expand(SHARE**2 * _T * (_B2 * _F - _B0 * _P2F)),
        ),
        Step(
            "... each by half a sum over pairs of weights times minus this.",
            r"B_1 B[f] - B_0 B[pf]",
            _pair_sum(1),
            _B1 * _F - _B0 * _PF,
        ),
        Step("Likewise.", r"B_2 B[f] - B_0 B[p^2 f]", _pair_sum(2), _B2 * _F - _B0 * _P2F),
        Step(
            "So the ratio Ψ_f/(e_k c_1) increases with t: put both bounds into its derivative.",
            r"(e_k c_1)^2 \left(\frac{\Psi_f}{e_k c_1}\right)'",
            sp.expand(_along(_PSI) * _E * _C1 - _PSI * _along(_E * _C1)),
            sp.expand((_along(_PSI) - _E * _C2 * _F / _B0) * _E * _C1 + (_E * _C1 * _F / _B0 - _PSI) * _E * _C2),
        ),
    )


def _pair_sum(power: int) -> sp.Expr:
    """−½ Σ_ij e_i e_j (p_i^m − p_j^m)(f_i − f_j), each pair ≥ 0 where f falls with p."""
    a, f, b, g = sp.symbols("a f b g_j", real=True)
    single = {(0, 0): _B0, (power, 0): _B1 if power == 1 else _B2, (0, 1): _F, (power, 1): _PF if power == 1 else _P2F}
    table = {(*x, *y): single[x] * single[y] for x in single for y in single}
    return sum_by_monomials(-(a**power - b**power) * (f - g) / 2, (a, f, b, g), table)


def step_bound() -> Derivation:
    """Derive the bound of the change of entropy for every step of either sign.

    T1 in part D of the theory notes.

    Formula: ΔH ≤ −S_d (q_k − p_k)/D₀ − KL(q_α‖p), D₀ = p_k [λ Σ_{i≠k} p_i² + (1 − λp_k)(1 − p_k)].

    Symbols: f = log(p_k/p_i), which falls with p, so that Cov_{q_t}(d, log p) = Ψ_f/T² = (Ψ_f/(e_k c_1)) q_k'. At t = 0
    the ratio is S_d/D₀; it increases and q_k' > 0, so Σ (q − p) log p = ∫ (Ψ_f/(e_k c_1)) dq_k ≥ (S_d/D₀)(q_k − p_k)
    forward and backward. The exact identity gives the bound.
    """
    start = {_E: PROB_K, _B0: 1 - PROB_K, _B1: COLLISION - PROB_K**2}
    mean_at_rest = PROB_K * _DK - SHARE * (COLLISION - PROB_K**2)  # E_p[d]
    covariance = PROB_K * _DK - PROB_K * mean_at_rest  # Cov_p(d, 1_k)
    denominator = PROB_K * (SHARE * (COLLISION - PROB_K**2) + _DK * (1 - PROB_K))
    larger = _OTHER * sp.exp(_GAP)  # p_i = p_j e^g
    log_gap = sp.expand_log(sp.log(PROB_K / larger) - sp.log(PROB_K / _OTHER), force=True)
    one_logit = (_PSI / (_E * _C1)).subs(SHARE, 0)
    steps = (
        *_shared_steps(),
        Step(
            "f = log(p_k/p_i) falls with p: with p_i = p_j e^g each pair is",
            "(p_i - p_j)(f_i - f_j)",
            sp.expand((larger - _OTHER) * log_gap),
            sp.expand(-_GAP * _OTHER * (sp.exp(_GAP) - 1)),
        ),
        Step("At rest the denominator is a covariance.", "D_0", (_E * _C1).subs(start), sp.expand(covariance)),
        Step("Equally, a sum of non-negative terms.", r"\operatorname{Cov}_p(d, 1_k)", covariance, denominator),
        Step(
            "A GRPO step.",
            "D_0",
            sp.expand(denominator.subs(SHARE, 1)),
            sp.expand(PROB_K * (1 - 2 * PROB_K + COLLISION)),
        ),
        Step(
            "For λ = 0 the ratio is the mean of f, which does not move: equality.",
            r"\left(\frac{\Psi_f}{e_k c_1}\right)'",
            sp.simplify(_along(one_logit).subs(SHARE, 0)),
            sp.Integer(0),
        ),
    )
    return Derivation("step-bound", steps, sp.expand(_along(_E * _C1) - _E * _C2))


def concavity() -> Derivation:
    """Derive that entropy is a strictly concave function of the sampled token's probability along the ray.

    T2 in part D of the theory notes.

    Formula: d²H/dq_k² < 0 while t λ max_{i≠k} p_i ≤ 1: every t < 0 and every t ≤ 1.

    Symbols: f = log(q_k/q_i) = log(p_k/p_i) + t (d_k + λp_i), which moves with t at the speed f' = d_k + λp_i; it falls
    with p exactly while t λ p ≤ 1. H'(t) = −Ψ_f/T², so dH/dq_k = −Ψ_f/(e_k c_1).
    """
    speed = {_F: _DK * _B0 + SHARE * _B1, _PF: _DK * _B1 + SHARE * _B2}
    moved = _PSI.subs(speed, simultaneous=True)
    variance = _T * _along(_T1) - _T1**2  # T² Var(d)
    own_f = sp.log(PROB_K) - sp.log(PROB_I) + STEP * (_DK + SHARE * PROB_I)
    steps = (
        *_shared_steps(),
        Step(
            "f falls with p while t λ p ≤ 1.",
            r"-p_i\,\partial f/\partial p_i",
            sp.expand(-PROB_I * sp.diff(own_f, PROB_I)),
            1 - STEP * SHARE * PROB_I,
        ),
        Step(
            "The part that f's own motion adds is a variance, positive: hence strictly.",
            r"\Psi_{f'} = T^2 \operatorname{Var}_{q_t}(d)",
            sp.expand(moved),
            sp.expand(variance),
        ),
    )
    return Derivation("concavity", steps, sp.expand(moved - variance))


def unimodal_rise() -> Derivation:
    """Derive where a rise under a negative step ends, and that some never end.

    T2 in part D of the theory notes.

    Formula: for α < 0 and S_c > 0 entropy rises and then falls at most once; it returns to its start exactly if
    log m < H(p), m the number of tokens i ≠ k that share the largest p_i.

    Symbols: concavity in q_k leaves one maximum; q_i/q_j is the odds of two other tokens along the ray; P is the common
    probability of the m tokens. The example is p = (.8, .1, .1).
    """
    more, less = sp.symbols("p_i p_j", positive=True)
    tokens, rest = sp.symbols("m R", positive=True)
    odds = sp.log(more * sp.exp(-STEP * more)) - sp.log(less * sp.exp(-STEP * less))
    against_k = sp.log(more * sp.exp(-STEP * more)) - sp.log(PROB_K * sp.exp(STEP * (1 - PROB_K)))
    share = sp.symbols("x", positive=True)  # weight of one of the m tokens, R that of all others
    q = share / (tokens * share + rest)
    entropy_of_limit = sp.limit(-tokens * q * sp.log(q), share, sp.oo)
    start = sp.Rational(4, 5), sp.Rational(1, 10), sp.Rational(1, 10)
    before = -sum(p * sp.log(p) for p in start)
    steps = (
        Step(
            "As t → −∞ the odds of a likelier other token grow without bound ...",
            r"\tfrac{d}{d(-t)} \log \tfrac{q_i}{q_j}",
            -sp.diff(sp.expand_log(odds, force=True), STEP),
            more - less,
        ),
        Step(
            "... as do those against the sampled token ...",
            r"\tfrac{d}{d(-t)} \log \tfrac{q_i}{q_k}",
            -sp.diff(sp.expand_log(against_k, force=True), STEP),
            more + 1 - PROB_K,
        ),
        Step("... so the policy ends uniform on the m likeliest others.", r"\lim H", entropy_of_limit, sp.log(tokens)),
        Step(
            "An example without a flip: with m = 2 the limit lies above the start.",
            r"\log 2 - H(.8, .1, .1)",
            sp.expand_log(sp.log(2) - before, force=True),
            sp.expand_log(sp.log(2) + sp.Rational(4, 5) * sp.log(sp.Rational(4, 5)) - sp.log(10) / 5, force=True),
        ),
        Step(
            "Its sign: e to this times 10 is an integer comparison.",
            r"2^{10} 4^{8} - 5^{8} 10^{2}",
            sp.sign(sp.Integer(2) ** 10 * 4**8 - 5**8 * 10**2),
            sp.Integer(1),
        ),
    )
    return Derivation("unimodal-rise", steps, simplified(entropy_of_limit - sp.log(tokens)))


def many_small_steps() -> Derivation:
    """Derive that many small steps on one token never cross from falling to rising entropy.

    T3 in part D of the theory notes.

    Formula: along z' = a(t)(e_k − p(z)), a ≥ 0, the region S_c ≥ 0 is never left (a ≤ 0: S_c ≤ 0). On its boundary
    dS_c/dt = (1 − p_k) G + Var_p(d) + Cov_p(p, S), each ≥ 0.

    Symbols: d = e_k − p and L = log p both move: d' = −p (d − E d), L' = d − E d. S_c = Cov_p(d, L) = (1 − p_k) F, and
    at fixed d and L its slope is (1 − p_k) F' = (1 − p_k) G where F = 0, with G ≥ 0 there by the sign theorem's steps
    (i) and (ii). M_n = Σ p^n; Q = Σ p² S; μ is the policy's square, normalised. A speed a(t) ≥ 0 only rescales time.
    """
    S_k, squares = sp.symbols("S_k Q", real=True)
    score = sp.Symbol("S_i", real=True)
    sums = {
        (1, 0): sp.Integer(1),
        (2, 0): COLLISION,
        (3, 0): CUBE,
        (0, 1): sp.Integer(0),
        (1, 1): BASELINE,
        (2, 1): squares,
    }

    def total(at_k: sp.Expr, everywhere: sp.Expr) -> sp.Expr:
        """Sum over tokens of a term that only token k has, and of a polynomial in p_i and S_i."""
        return at_k + sum_by_monomials(everywhere, (PROB_I, score), sums)

    mean_d = total(PROB_K, -(PROB_I**2))
    # Cov_p(d', L) = Σ p d' (H + L) = −Σ p (d − E d) S
    slope_d = -total(PROB_K * S_k, PROB_I * (-PROB_I - mean_d) * score)
    centred = S_k - BASELINE
    spread = squares - COLLISION * BASELINE  # Cov_p(p, S)
    q, F = sp.Function("q")(STEP), sp.Function("F")(STEP)
    mean_p, mean_u, excess = sp.symbols("E_\\mu[p] E_\\mu[u] C_\\mu", nonnegative=True)
    steps = (
        Step("The mean of d.", "E_p[d]", mean_d, PROB_K - COLLISION),
        Step(
            "L' = d − E d sums to zero under p, so Cov_p(d, L') is the variance of d.",
            r"E_p[L']",
            total(PROB_K, -PROB_I * (PROB_I + mean_d)),
            sp.Integer(0),
        ),
        Step(
            "At fixed d and L the slope of (1 − q_k) F is that of F, where F = 0.",
            r"(1 - p_k) F'",
            sp.diff((1 - q) * F, STEP).subs(F.diff(STEP), sp.Symbol("G")).subs(F, 0),
            sp.Symbol("G") * (1 - q),
        ),
        Step(
            "The part by which d itself moves.",
            r"\operatorname{Cov}_p(d', L)",
            sp.expand(slope_d),
            sp.expand(-PROB_K * centred + spread),
        ),
        Step(
            "On the boundary S_c = 0 a covariance is left.",
            r"\operatorname{Cov}_p(d', L)",
            sp.expand(slope_d.subs(S_k, BASELINE)),
            sp.expand(spread),
        ),
        Step(
            "It is not negative: with μ ∝ p², Cov_p(p, S) = M_2 (E_μ[pu] − M_2 E_μ[u]) and E_μ[pu] = E_μ[p] E_μ[u] + C,"
            " C ≥ 0 by Chebyshev, E_μ[u] = N/M_2 ≥ 0.",
            r"\operatorname{Cov}_p(p, S)",
            sp.expand(
                (squares - COLLISION * BASELINE)
                .subs(squares, COLLISION * (mean_p * mean_u + excess))
                .subs(BASELINE, COLLISION * mean_u)
            ),
            sp.expand(COLLISION * (mean_u * (mean_p - COLLISION) + excess)),
        ),
        Step(
            "E_μ[p] = M_3/M_2 ≥ M_2, because M_3 − M_2² is the variance of p.",
            r"\operatorname{Var}_p(p)",
            sum_by_monomials(
                PROB_I * (PROB_I - COLLISION) ** 2, (PROB_I,), {(1,): sp.Integer(1), (2,): COLLISION, (3,): CUBE}
            ),
            CUBE - COLLISION**2,
        ),
    )
    return Derivation("many-small-steps", steps, sp.expand(slope_d + PROB_K * centred - spread))


def two_valued_directions() -> Derivation:
    """Derive the exact law of a set of tokens that moves together, and entropy in the pass rate.

    T4 in part D of the theory notes.

    Formula: d = 1_K: Σ_{i∈K} S_i = P (1 − P) x, x = logit P + H_W − H_K; H peaks at ε = −x with the value
    log(e^{H_K} + e^{H_W}); ΔH = −(Q − P) x − KL. In the pass rate Q: dH/dQ = H_K − H_W − logit Q.

    Symbols: P and Q are the probability of K before and after; H_K and H_W the entropies given K and given not K, which
    the step leaves alone; t is ε.
    """
    P = sp.Symbol("P", positive=True)
    inside, outside = sp.symbols("H_K H_W", nonnegative=True)
    D = 1 + P * (sp.exp(STEP) - 1)
    Q = P * sp.exp(STEP) / D

    def entropy(q: sp.Expr, log_q: sp.Expr, log_rest: sp.Expr) -> sp.Expr:
        return -q * log_q - (1 - q) * log_rest + q * inside + (1 - q) * outside

    tilt = sp.log(P) - sp.log(1 - P) + outside - inside
    before = entropy(P, sp.log(P), sp.log(1 - P))
    after = entropy(Q, sp.log(P) + STEP - sp.log(D), sp.log(1 - P) - sp.log(D))
    of_set = P * before + P * (sp.log(P) - inside)  # Σ_{i∈K} p_i (H + log p_i), p_i = P r_i
    divergence = Q * STEP - sp.log(D)
    peak = sp.exp(inside) / (sp.exp(inside) + sp.exp(outside))
    log_sum = sp.log(sp.exp(inside) + sp.exp(outside))
    rate = sp.Symbol("Q", positive=True)
    by_rate = entropy(rate, sp.log(rate), sp.log(1 - rate))
    reward, beta = sp.symbols("r \\beta", positive=True)
    tilted = P * sp.exp(reward / beta) / (P * sp.exp(reward / beta) + 1 - P)
    steps = (
        Step(
            "Entropy splits at the set; sum S over it.",
            r"\textstyle\sum_{i\in K} S_i",
            sp.expand(of_set),
            sp.expand(P * (1 - P) * tilt),
        ),
        Step(
            "All tokens of K share one log-ratio, all others another.",
            r"\Delta H",
            sp.expand(sp.expand(after - before) * D),
            sp.expand(sp.expand(-(Q - P) * tilt - divergence) * D),
        ),
        Step(
            "The slope along the ray.", r"\frac{dH}{d\varepsilon}", sp.diff(after, STEP), -Q * (1 - Q) * (STEP + tilt)
        ),
        Step(
            "At ε = −x the entropy is",
            r"H_{\max}",
            sp.expand(entropy(peak, inside - log_sum, outside - log_sum)),
            log_sum,
        ),
        Step(
            "A predicted fall is a fall: q − p has the sign of ε, KL ≥ 0.",
            "Q - P",
            Q - P,
            P * (1 - P) * (sp.exp(STEP) - 1) / D,
        ),
        Step(
            "In the pass rate entropy rises while Q < σ(H_K − H_W).",
            r"\frac{dH}{dQ}",
            sp.diff(by_rate, rate),
            inside - outside - (sp.log(rate) - sp.log(1 - rate)),
        ),
        Step(
            "The optimum π ∝ π₀ e^{R/β} for a reward r on K moves along this ray, ε = r/β.",
            "Q",
            tilted,
            Q.subs(STEP, reward / beta),
        ),
    )
    return Derivation("two-valued-directions", steps, simplified(sp.diff(after, STEP) + Q * (1 - Q) * (STEP + tilt)))
