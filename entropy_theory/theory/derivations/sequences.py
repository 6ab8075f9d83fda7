"""Derivations about many positions: biased means, influence through shared parameters, and the shift of contexts."""

from __future__ import annotations

import sympy as sp

from entropy_theory.theory.derivations.engine import (
    BASELINE,
    COLLISION,
    ENTROPY,
    GAIN_I,
    LOG_I,
    PROB_I,
    PROB_K,
    SCORE_I,
    SCORE_K,
    Derivation,
    Step,
    simplified,
    sum_by_monomials,
    taylor,
)

_U_I, _U_K, _MEAN_U = sp.symbols("u_i u_k E_p[u]", real=True)
_HIT = sp.Symbol("\\delta_{ik}", real=True)


def token_mean_bias() -> Derivation:
    """Derive the bias of a token mean whose denominator is sampled, too.

    Part D of the theory notes, on section B.13 and Corollary 3.5.

    Formula: E[Σ S_c/Σ L] = −Cov(X, L)/(B E[L]²) + …, X = Σ S_c of one sequence; a fixed denominator has no bias.

    Symbols: B sequences; l = E[L]; x, y are X and L − l summed over the batch, with E[x] = 0 by Corollary 3.5 and
    E[xy] = B σ_XL, the covariance, since sequences are independent; a small number orders the expansion.
    """
    B, length, order = sp.symbols("B l \\epsilon", positive=True)
    x, y, covariance = sp.symbols("x y \\sigma_{XL}", real=True)
    ratio = order * x / (B * length + order * y)
    second = taylor(ratio, order, 2).subs(order, 1)
    mean = sum_by_monomials(sp.expand(second), (x, y), {(1, 0): sp.Integer(0), (1, 1): B * covariance})
    claim = -covariance / (B * length**2)
    steps = (
        Step(
            "Expand the ratio about E[L].", r"\frac{x}{B l + y}", second, x / (B * length) - x * y / (B * length) ** 2
        ),
        Step("Take the mean: the first order vanishes.", r"E\Big[\tfrac{\sum S_c}{\sum L}\Big]", mean, claim),
    )
    return Derivation("corollary-3.5", steps, simplified(mean - claim))


def sampled_elsewhere() -> Derivation:
    """Derive the mean of S_c under a distribution other than the policy, and an exact case in which it is not zero.

    Section B.13 of the theory notes.

    Formula: E_{p̃}[S_c] = Σ (p̃ − p) S; for V = 2 and greedy decoding, 2 p (1 − p)² logit p > 0.

    Symbols: q_i is p̃_i; p > ½ the likelier token's probability; ℓ = logit p.
    """
    q_i, moved, logit = sp.symbols("q_i C_q \\ell", real=True)
    sums = {(1, 0, 0): sp.Integer(1), (1, 0, 1): moved, (0, 1, 1): BASELINE}
    mean = sum_by_monomials(q_i * (SCORE_I - BASELINE), (q_i, PROB_I, SCORE_I), sums)
    difference = sum_by_monomials((q_i - PROB_I) * SCORE_I, (q_i, PROB_I, SCORE_I), sums)
    p = sp.Symbol("p", positive=True)
    first, second = p * (1 - p) * logit, -p * (1 - p) * logit  # section B.2
    greedy = first - (p * first + (1 - p) * second)
    steps = (
        Step("The baseline is the mean of S under p.", r"E_{\tilde p}[S_c]", mean, difference),
        Step(
            "Two tokens, the likelier always taken.",
            r"S_{c,1}",
            sp.expand(greedy),
            sp.expand(2 * p * (1 - p) ** 2 * logit),
        ),
    )
    return Derivation("when-corollary-3.5-holds", steps, sp.expand(mean - difference))


def influence() -> Derivation:
    """Derive which token moves mean entropy through shared parameters.

    Part E of the theory notes.

    Formula: ΔH̄ = (η/n) Σ_t g_t D_t + O(η²), D_t = ⟨∇H̄, ∇log p_t⟩; free logits: D_t = −S_c,t/n.

    Symbols: V_j, X_j are entries of ∇H̄ and of ∇log p_t, summed over the parameters; t is η.
    """
    eta, n, gain, inner = sp.symbols("\\eta n g_t D_t", real=True)
    slope, score = sp.symbols("V_j X_j", real=True)
    other = sp.Symbol("R", real=True)  # the other tokens' part of the step
    step = eta / n * (gain * score + other)
    entropy_change = sum_by_monomials(
        slope * step, (slope, score, other), {(1, 1, 0): inner, (1, 0, 1): sp.Symbol("D_R")}
    )
    # Free logits: the mean over n contexts has gradient −S/n at this one, and ∇log p is e_k − p.
    free = sum_by_monomials(
        -SCORE_I / n * (_HIT - PROB_I), (SCORE_I, _HIT, PROB_I), {(1, 1, 0): SCORE_K, (1, 0, 1): BASELINE}
    )
    steps = (
        Step(
            "The chain rule, each token's part of the step apart.",
            r"\frac{d\bar H}{d\eta}",
            sp.expand(sp.diff(entropy_change, eta)),
            sp.expand((gain * inner + sp.Symbol("D_R")) / n),
        ),
        Step("Free logits: the tabular theory.", "D_t", free, -(SCORE_K - BASELINE) / n),
    )
    return Derivation("influence", steps, simplified(free + (SCORE_K - BASELINE) / n))


def tangent_logits() -> Derivation:
    """Derive the influence of every token of a vocabulary from one tangent, and that it is centred.

    Part E of the theory notes.

    Formula: D_t(y) = u_y − E_p[u], u = J_t ∇H̄; so E_{y~p} D_t = 0 and E[A D_t] = Cov_p(A, u); a baseline changes
    nothing, a group mean that includes the own reward multiplies by 1 − 1/G.

    Symbols: Ā = E_p[A], Q = E_p[A u]; ∇H̄ does not depend on y_t.
    """
    mean_gain, product, size, base = sp.symbols("\\bar{A} Q_A G b", real=True)
    sums = {
        (1, 0, 0): sp.Integer(1),
        (1, 0, 1): _MEAN_U,
        (1, 1, 0): mean_gain,
        (1, 1, 1): product,
    }
    inner = sum_by_monomials(_U_I * (_HIT - PROB_I), (_U_I, _HIT, PROB_I), {(1, 1, 0): _U_K, (1, 0, 1): _MEAN_U})

    def mean(value: sp.Expr) -> sp.Expr:
        return sum_by_monomials(PROB_I * value, (PROB_I, GAIN_I, _U_I), sums)

    centred = _U_I - _MEAN_U
    covariance = product - mean_gain * _MEAN_U
    # Rewards of the group's other members are independent of y_t: their part of the group mean is a constant.
    own = mean((GAIN_I - GAIN_I / size - (size - 1) / size * mean_gain) * centred)
    steps = (
        Step("⟨v, Jᵀ(e_y − p)⟩ needs only u = J v.", "D_t(y)", inner, _U_K - _MEAN_U),
        Step("It is centred.", r"E_{y \sim p}[D_t]", mean(centred), sp.Integer(0)),
        Step("Its mean with an advantage is a covariance.", r"E[A D_t]", mean(GAIN_I * centred), covariance),
        Step("A baseline leaves it alone.", r"E[(A - b) D_t]", mean((GAIN_I - base) * centred), covariance),
        Step(
            "The mean of a group of G includes the own reward.",
            r"E[(A - \bar A_G) D_t]",
            sp.expand(own),
            sp.expand((1 - 1 / size) * covariance),
        ),
    )
    return Derivation("tangent-logits", steps, sp.expand(inner - _U_K + _MEAN_U))


def state_shift() -> Derivation:
    """Derive the gradient of on-policy mean entropy in the logits of one context, for three ways of taking the mean.

    Part F of the theory notes.

    Formula: ∂M/∂z_k = (ρ/E[L]) {−S_k + p_k [(Q_k − MΛ_k) − E_p(Q − MΛ)]}: fixed contexts, and the state shift.

    Symbols: ρ, the probability of the context; Q_i and Λ_i, the entropy and the number of tokens to come after i; A and
    B collect E[Σ h] and E[L] over sequences that do not meet the context; W_i, the mean of Σ h/L after i without the
    context's own h, and R_i that of 1/L. By Lemma 3.1, dp_i = p_i (δ_ik − p_k), and dH = −S_k.
    """
    rho, A, B, H = sp.symbols("\\rho A B H", positive=True)
    Q_i, Q_k, L_i, L_k, mean_Q, mean_L = sp.symbols("Q_i Q_k \\Lambda_i \\Lambda_k E_p[Q] E_p[\\Lambda]", real=True)
    W_i, W_k, R_i, R_k, mean_W, mean_R = sp.symbols("W_i W_k R_i R_k E_p[W] E_p[R]", real=True)

    def slope(value_i: sp.Symbol, value_k: sp.Symbol, mean: sp.Symbol) -> sp.Expr:
        """Derivative of E_p[value] in z_k."""
        moved = PROB_I * (_HIT - PROB_K) * value_i
        return sum_by_monomials(moved, (PROB_I, _HIT, value_i), {(1, 1, 1): PROB_K * value_k, (1, 0, 1): mean})

    entropies, lengths = A + rho * (H + mean_Q), B + rho * (1 + mean_L)
    rise = {H: -SCORE_K, mean_Q: slope(Q_i, Q_k, mean_Q), mean_L: slope(L_i, L_k, mean_L)}
    rise |= {mean_W: slope(W_i, W_k, mean_W), mean_R: slope(R_i, R_k, mean_R)}

    def gradient(mean: sp.Expr) -> sp.Expr:
        return sum((sp.diff(mean, name) * speed for name, speed in rise.items()), sp.Integer(0))

    M = entropies / lengths
    shift = PROB_K * (Q_k - M * L_k - mean_Q + M * mean_L)
    token_claim = rho / lengths * (-SCORE_K + shift)
    by_sequence = A + rho * (mean_W + H * mean_R)
    sequence_claim = rho * (-SCORE_K * mean_R + PROB_K * ((W_k + H * R_k) - (mean_W + H * mean_R)))
    steps = (
        Step(
            "Probabilities move what comes after.",
            r"\partial E_p[Q]/\partial z_k",
            slope(Q_i, Q_k, mean_Q),
            PROB_K * (Q_k - mean_Q),
        ),
        Step(
            "The sum of entropies.",
            r"\partial E[\Sigma h]/\partial z_k",
            gradient(entropies),
            sp.expand(rho * (-SCORE_K + PROB_K * (Q_k - mean_Q))),
        ),
        Step("The token mean.", r"\partial M/\partial z_k", gradient(M), token_claim),
        Step(
            "The mean of every sequence.", r"\partial E[\Sigma h/L]/\partial z_k", gradient(by_sequence), sequence_claim
        ),
    )
    return Derivation("state-shift", steps, simplified(gradient(M) - token_claim))


def tabular_state_shift() -> Derivation:
    """Derive the exact change of summed entropy when one context moves, and the discriminant that goes with it.

    Part F of the theory notes.

    Formula: ΔJ = ρ [−Σ (q − p)(log p − Q) − KL(q‖p)]; S_i^tot = p_i (log p_i − Q_i + H + E_p Q).

    Symbols: J = E[Σ h]; ρ, the probability of the context; Q_i, the entropy to come after token i.
    """
    q_i = sp.Symbol("q_i", positive=True)
    Q_i, mean_Q = sp.symbols("Q_i E_p[Q]", real=True)
    before = -PROB_I * sp.log(PROB_I) + PROB_I * Q_i
    after = -q_i * sp.log(q_i) + q_i * Q_i
    divergence = q_i * (sp.log(q_i) - sp.log(PROB_I))
    claim = -(q_i - PROB_I) * (sp.log(PROB_I) - Q_i) - divergence
    own = PROB_I * (ENTROPY + LOG_I)
    total = PROB_I * (LOG_I - Q_i + ENTROPY + mean_Q)
    sums = {
        (1, 0, 0): sp.Integer(1),
        (1, 1, 0): -ENTROPY,
        (1, 0, 1): mean_Q,
        (2, 0, 0): COLLISION,
    }
    steps = (
        Step(
            "Compare the summands.",
            r"q_i (Q_i - \log q_i) - p_i (Q_i - \log p_i)",
            sp.expand(after - before),
            sp.expand(claim),
        ),
        Step(
            "The slope: S less the advantage of what follows.",
            r"S_i^{tot}",
            sp.expand(own - PROB_I * (Q_i - mean_Q)),
            sp.expand(total),
        ),
        Step(
            "They sum to zero.",
            r"\textstyle\sum_i S_i^{tot}",
            sum_by_monomials(total, (PROB_I, LOG_I, Q_i), sums),
            sp.Integer(0),
        ),
    )
    return Derivation("tabular-state-shift", steps, simplified(after - before - claim))
