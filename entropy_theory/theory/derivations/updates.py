"""Derivations of the second order and of whole updates."""

from __future__ import annotations

import sympy as sp

from entropy_theory.theory.derivations.engine import (
    BASELINE,
    COLLISION,
    CUBE,
    CUBIC,
    ENTROPY,
    GAIN_I,
    LOG_I,
    LOG_K,
    MOVE_I,
    PROB_I,
    PROB_K,
    SCORE_I,
    SCORE_K,
    SUMS,
    Derivation,
    Step,
    curvature_of,
    simplified,
    slope_of,
    sum_apart,
    sum_by_monomials,
)

_SQUARES = sp.Symbol("\\Sigma_{S^2}", positive=True)


def corollary_3_5() -> Derivation:
    """Derive that the batch mean of the centred discriminant is zero in expectation, and its standard error.

    Corollary 3.5 of arXiv 2602.03392; section B.13 of the theory notes.

    Formula: E[(1/n) Σ_t S_c,t] = 0 and E[((1/n) Σ_t S_c,t)²] = (1/n²) E Σ_t Var_{p_t} S, tokens drawn on-policy, one
    after the other.

    Symbols: X is the sum over the tokens drawn so far, Q its mean square, Σ_{S²} = Σ p S².
    """
    drawn, square = sp.symbols("X Q", real=True)
    sums = {(1, 0): sp.Integer(1), (1, 1): BASELINE, (1, 2): _SQUARES}

    def mean(value: sp.Expr) -> sp.Expr:
        return sum_by_monomials(PROB_I * value, (PROB_I, SCORE_I), sums)

    centred = SCORE_I - BASELINE
    variance = _SQUARES - BASELINE**2
    grown = sp.expand(mean((drawn + centred) ** 2))
    steps = (
        Step("Given the past, the next token's S_c has mean zero.", r"E_{p_t}[S_{c,t}]", mean(centred), sp.Integer(0)),
        Step("Its variance is that of S.", r"E_{p_t}[S_{c,t}^2]", mean(centred**2), variance),
        Step(
            "Given the past, the square of the sum grows by that variance: the cross term is the past times zero.",
            r"E_{p_t}[(X + S_{c,t})^2]",
            grown,
            drawn**2 + variance,
        ),
        Step(
            "Start from the empty sum, average over the past, divide by n²: the standard error.",
            r"E[X^2] + \operatorname{Var}_{p_t} S",
            grown.subs(drawn**2, square),
            square + variance,
        ),
    )
    return Derivation("corollary-3.5", steps, simplified(mean(centred)))


def second_order() -> Derivation:
    """Derive the second derivative of the entropy along any direction.

    Section B.6 of the theory notes.

    Formula: H''(0) = −Σ p_i δ_i² (1 + H + L_i), δ_i = d_i − E_p[d].

    Symbols: G_n = Σ p_i d_iⁿ, K_n = Σ p_i L_i d_iⁿ, one unknown each for all V.
    """
    G, G2, K, K2 = sp.symbols("G G_2 K K_2", real=True)
    sums = {
        (1, 0, 0): sp.Integer(1),
        (1, 1, 0): -ENTROPY,
        (1, 0, 1): G,
        (1, 1, 1): K,
        (1, 0, 2): G2,
        (1, 1, 2): K2,
    }

    def total(summand: sp.Expr) -> sp.Expr:
        return sum_by_monomials(summand, (PROB_I, LOG_I, MOVE_I), sums)

    claim = -total(PROB_I * (MOVE_I - G) ** 2 * (1 + ENTROPY + LOG_I))
    steps, curvature = curvature_of(total)
    steps = (*steps, Step("Collect the terms.", "H''(0)", curvature, claim))
    return Derivation("second-order", steps, simplified(curvature - claim))


def second_order_grpo() -> Derivation:
    """Derive the second derivative of the entropy along a GRPO step, from power sums, and its peaked form.

    Section B.7 of the theory notes.

    Formula: H'' = −{c² − 2c (M_2 + N) + M_3 + N3 + (p_k + S_k)(1 + 2(c − p_k))}, c = M_2 − p_k; at the likeliest token
    δ_k = ρ² + M2r and c = M2r − p_k ρ with ρ = 1 − p_k, M2r = Σ_{i≠k} p_i².
    """
    steps, curvature = curvature_of(sum_apart(move_k=1 - PROB_K, move_i=-PROB_I))
    claim = _grpo_claim(PROB_K, PROB_K * (ENTROPY + LOG_K))
    rho, others = sp.symbols("\\rho M_{2r}", positive=True)
    peaked = {PROB_K: 1 - rho, COLLISION: (1 - rho) ** 2 + others}
    c = COLLISION - PROB_K
    steps = (
        *steps,
        Step("Collect the terms.", "H''", curvature, claim),
        Step(
            "At the likeliest token, from the rest alone.", r"\delta_k", (1 - PROB_K + c).subs(peaked), rho**2 + others
        ),
        Step("Likewise.", "c", c.subs(peaked), others - (1 - rho) * rho),
    )
    return Derivation("second-order-grpo", steps, simplified(curvature - claim))


def noise_drift() -> Derivation:
    """Derive the mean curvature over the policy's own tokens, the uniform case and the boundary at V = 2.

    Section B.10 of the theory notes.

    Formula: E_k[H''_k] = 2M_3 + 3N3 − M_2 − M_2² − N (1 + 2M_2).
    """
    sums = {
        (1, 0): sp.Integer(1),
        (2, 0): COLLISION,
        (3, 0): CUBE,
        (1, 1): BASELINE,
        (2, 1): CUBIC,
    }
    curvature = _grpo_claim(PROB_I, SCORE_I)
    mean = sum_by_monomials(PROB_I * curvature, (PROB_I, SCORE_I), sums)
    claim = 2 * CUBE + 3 * CUBIC - COLLISION - COLLISION**2 - BASELINE * (1 + 2 * COLLISION)
    spread = (COLLISION - PROB_K - PROB_I) ** 2
    at_i = {PROB_K: PROB_I}
    square = sum_by_monomials(PROB_K * spread, (PROB_K,), {(1,): sp.Integer(1), (2,): COLLISION, (3,): CUBE})
    square += PROB_I * ((COLLISION - 2 * PROB_I + 1) ** 2 - spread.subs(at_i))
    stable = CUBE - COLLISION**2 + PROB_I * (1 - PROB_I) + 2 * PROB_I * (COLLISION - PROB_I)
    size, p, logit = sp.symbols("V p \\ell", positive=True)
    r = 1 - p
    two_scores = (p * r * logit, -p * r * logit)  # S of the two tokens, by section B.2
    two = {
        COLLISION: p**2 + r**2,
        CUBE: p**3 + r**3,
        BASELINE: p * two_scores[0] + r * two_scores[1],
        CUBIC: p**2 * two_scores[0] + r**2 * two_scores[1],
    }
    uniform = {COLLISION: 1 / size, CUBE: 1 / size**2, BASELINE: 0, CUBIC: 0}
    steps = (
        Step("Average the curvature over the sampled token.", r"E_k[H''_k]", mean, claim),
        Step("The mean square of δ_i, as it is computed.", r"E_k[\delta_i^2]", sp.expand(square), sp.expand(stable)),
        Step("Uniform policies.", r"E_k[H''_k]", claim.subs(uniform), -(1 / size) * (1 - 1 / size)),
        Step(
            "Two tokens: the sign changes where (2p − 1) logit p = 1.",
            r"E_k[H''_k]",
            sp.expand(claim.subs(two)),
            sp.expand(-4 * p**2 * r**2 * (1 - (2 * p - 1) * logit)),
        ),
    )
    return Derivation("noise-drift", steps, simplified(mean - claim))


def expected_change() -> Derivation:
    """Derive the expected change of entropy under the policy gradient as a covariance, and compare it with another.

    Section B.9 of the theory notes.

    Formula: E_{k~p}[A_k S_c,k] = Cov_p(A, S); Cov_p(log p, p A) = Cov_p(A, S) + E_p[A] N.

    Symbols: Ā = Σ p A, C = Σ p A S, one unknown each for all V.
    """
    mean_gain, product, weighted = sp.symbols("\\bar{A} C Q_A", real=True)
    sums = {(1, 1, 0): mean_gain, (1, 0, 1): BASELINE, (1, 1, 1): product}
    expected = sum_by_monomials(PROB_I * GAIN_I * (SCORE_I - BASELINE), (PROB_I, GAIN_I, SCORE_I), sums)
    covariance = product - mean_gain * BASELINE
    # p² A log p = p A (S − p H)
    with_log = sum_by_monomials(
        PROB_I * GAIN_I * (SCORE_I - PROB_I * ENTROPY),
        (PROB_I, GAIN_I, SCORE_I),
        {(1, 1, 1): product, (2, 1, 0): weighted},
    )
    by_log = with_log - (-ENTROPY) * weighted
    score = PROB_I * (ENTROPY + LOG_I)
    steps = (
        Step("The definition of S, solved for p log p.", r"p_i \log p_i", score - PROB_I * ENTROPY, PROB_I * LOG_I),
        Step("The expectation is the covariance of A and S.", r"E_p[A S_c]", expected, covariance),
        Step("The covariance of log p and p A ...", r"\operatorname{Cov}_p(\log p, p A)", by_log, product),
        Step(
            "... is larger by the mean advantage times the baseline.",
            r"\operatorname{Cov}_p(\log p, p A) - \operatorname{Cov}_p(A, S)",
            by_log - covariance,
            mean_gain * BASELINE,
        ),
    )
    return Derivation("expected-change", steps, simplified(expected - covariance))


def entropy_bonus() -> Derivation:
    """Derive the first-order effect of an entropy bonus.

    Section B.11 of the theory notes.

    Formula: δz = −β S ⇒ ΔH = β Σ S_i², a sum of squares.

    Symbols: Q = Σ p² L², one unknown for all V; t is the step.
    """
    beta = sp.Symbol("\\beta", positive=True)
    squared_logs = sp.Symbol("Q", positive=True)
    sums = {**SUMS, (2, 2): squared_logs}
    scores = PROB_I * (ENTROPY + LOG_I)

    def total(summand: sp.Expr) -> sp.Expr:
        return sum_by_monomials(summand.subs(MOVE_I, -beta * scores), (PROB_I, LOG_I), sums)

    steps, slope = slope_of(
        total,
        normaliser=-beta * BASELINE,
        cross_entropy=-beta * (BASELINE + ENTROPY * sums[2, 1] + squared_logs),
    )
    claim = beta * total(scores**2)
    return Derivation(
        "entropy-bonus",
        (*steps, Step("Collect the terms: a sum of squares.", r"dH", slope, claim)),
        simplified(slope - claim),
    )


def temperature() -> Derivation:
    """Derive the change of entropy at one temperature under a loss at another.

    Section B.12 of the theory notes.

    Formula: ΔH_T = −(α/(T T_L)) [S_k(π_T) − Σ_i π_{T_L,i} S_i(π_T)].

    Symbols: R, the weights of all other tokens; X = Σ π_{T_L,i} S_i(π_T).
    """
    T, T_L, R = sp.symbols("T T_L R", positive=True)
    z_k, z_i, z, alpha, cross = sp.symbols("z_k z_i z \\alpha X", real=True)
    total = sp.exp(z_k / T_L) + sp.exp(z_i / T_L) + R
    log_prob = z_k / T_L - sp.log(total)
    slope = sp.Symbol("dH/d(z/T)", real=True)
    chained = sp.diff(z / T, z) * slope
    probs = sp.Symbol("\\pi_i", positive=True)
    hit = sp.Symbol("\\delta_{ik}", real=True)
    change = -sum_by_monomials(
        SCORE_I / T * alpha * (hit - probs) / T_L, (SCORE_I, hit, probs), {(1, 1, 0): SCORE_K, (1, 0, 1): cross}
    )
    steps = (
        Step(
            "The loss moves the sampled token's logit ...",
            "d_k",
            sp.diff(log_prob, z_k),
            (1 - sp.exp(z_k / T_L) / total) / T_L,
        ),
        Step("... and the others'.", "d_i", sp.diff(log_prob, z_i), -(sp.exp(z_i / T_L) / total) / T_L),
        Step("The entropy at T sees a logit divided by T.", r"\partial H_T/\partial z_i", chained, slope / T),
        Step(
            "Insert ∂H_T/∂(z/T) = −S(π_T) and sum over the tokens.",
            r"\Delta H_T",
            change,
            -alpha * (SCORE_K - cross) / (T * T_L),
        ),
        Step(
            "Equal temperatures: the sum is the baseline.",
            r"\Delta H_T",
            change.subs({T_L: T, cross: BASELINE}),
            -alpha / T**2 * (SCORE_K - BASELINE),
        ),
    )
    return Derivation("temperature", steps, simplified(change + alpha * (SCORE_K - cross) / (T * T_L)))


def shared_output_matrix() -> Derivation:
    """Derive how a step on the output matrix at one position moves the entropy of another.

    Section B.15 of the theory notes.

    Formula: ΔH_s = −η g_t ⟨h_s, h_t⟩ [S^s_{y_t} − Σ_i p_{t,i} S^s_i] for every pair of positions, summed over t.

    Symbols: h_s, h_t are entries of the hidden states, summed over their index; X = Σ p_t S^s.
    """
    h_s, h_t, inner, eta, gain, cross, hit = sp.symbols("h_s h_t \\langle\\,\\rangle \\eta g X \\delta_{iy}", real=True)
    w = sp.Symbol("W_{ij}", real=True)
    others, R = sp.symbols("z_{rest} R", positive=True)
    logit = w * h_t + others
    log_prob = logit - sp.log(sp.exp(logit) + R)
    prob = sp.exp(logit) / (sp.exp(logit) + R)
    move = sum_by_monomials(eta * gain * (hit - PROB_I) * h_t * h_s, (h_t, h_s), {(1, 1): inner})
    change = -sum_by_monomials(SCORE_I * move, (SCORE_I, hit, PROB_I), {(1, 1, 0): SCORE_K, (1, 0, 1): cross})
    steps = (
        Step(
            "Gradient of log p_t at the drawn token in one entry of its row.",
            r"\partial \log p_t / \partial W_{yj}",
            sp.diff(log_prob, w),
            (1 - prob) * h_t,
        ),
        Step(
            "The move reaches position s through its own hidden state.",
            r"\delta z_{s,i}",
            move,
            eta * gain * inner * (hit - PROB_I),
        ),
        Step("Sum −S^s_i δz_{s,i} over the tokens.", r"\Delta H_s", change, -eta * gain * inner * (SCORE_K - cross)),
        Step(
            "Orthonormal hidden states: Theorem 3.3.",
            r"\Delta H_s",
            change.subs({inner: 1, cross: BASELINE}),
            -eta * gain * (SCORE_K - BASELINE),
        ),
    )
    return Derivation("shared-output-matrix", steps, simplified(change + eta * gain * inner * (SCORE_K - cross)))


def _grpo_claim(p: sp.Expr, S: sp.Expr) -> sp.Expr:
    """Section B.7: the second derivative along e_k − p, from power sums."""
    c = COLLISION - p
    return -(c**2 - 2 * c * (COLLISION + BASELINE) + CUBE + CUBIC + (p + S) * (1 + 2 * (c - p)))
