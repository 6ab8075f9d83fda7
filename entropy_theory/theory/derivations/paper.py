"""Derivations of the paper's results, and of the gradient and the exact identity that they rest on."""

from __future__ import annotations

import sympy as sp

from entropy_theory.theory.derivations.engine import (
    BASELINE,
    COLLISION,
    ENTROPY,
    LOG_I,
    LOG_K,
    MOVE_I,
    PROB_I,
    PROB_K,
    STEP,
    Derivation,
    Step,
    Sums,
    simplified,
    slope_of,
    sum_apart,
    sum_by_monomials,
    sum_over_all,
)


def lemma_3_1() -> Derivation:
    """Derive how the probabilities answer to one moved logit.

    Lemma 3.1 of arXiv 2602.03392.

    Formula: δz = ε e_k ⇒ δp_k = ε p_k (1 − p_k), δp_i = −ε p_i p_k for i ≠ k, to first order.

    Symbols: w_k = e^{z_k}, w_i = e^{z_i}, R = Σ_{j≠k} e^{z_j}, one unknown for all V; t is ε.
    """
    weight_k, weight_i, rest = sp.symbols("w_k w_i R", positive=True)
    total = weight_k * sp.exp(STEP) + rest
    moved_k, moved_i = weight_k * sp.exp(STEP) / total, weight_i / total
    p_k, p_i = moved_k.subs(STEP, 0), moved_i.subs(STEP, 0)
    slope_k, slope_i = (sp.diff(moved, STEP).subs(STEP, 0) for moved in (moved_k, moved_i))
    all_others = slope_i / weight_i * rest  # the slope of token i is linear in w_i, and the w_i sum to R
    steps = (
        Step("The moved token's own probability grows.", r"\frac{dp_k}{d\varepsilon}", slope_k, p_k * (1 - p_k)),
        Step("Every other one pays in proportion.", r"\frac{dp_i}{d\varepsilon}", slope_i, -p_i * p_k),
        Step("Together nothing is lost.", r"\sum_i \frac{dp_i}{d\varepsilon}", slope_k + all_others, sp.Integer(0)),
    )
    claim = (slope_k - p_k * (1 - p_k)) ** 2 + (slope_i + p_i * p_k) ** 2  # squares: two errors must not cancel
    return Derivation("lemma-3.1", steps, simplified(claim))


def gradient() -> Derivation:
    """Derive the slope of the entropy along any direction, and that the discriminants sum to zero.

    Section B.1 of the theory notes.

    Formula: dH = −Σ_i S_i d_i for δz = t d, so ∂H/∂z_i = −S_i; d = (1, ..., 1) moves nothing, so Σ_i S_i = 0. With
    log p_i = z_i − log Z, H + log p_i = z_i − E_p[z].

    Symbols: G = Σ p_i d_i, K = Σ p_i L_i d_i, one unknown each for all V.
    """
    mean_move, mean_log_move, mean_logit, log_total, logit = sp.symbols("G K \\bar{z} \\log{Z} z_i", real=True)

    def total(summand: sp.Expr) -> sp.Expr:
        sums: Sums = {
            (1, 0, 0): sp.Integer(1),
            (1, 1, 0): -ENTROPY,
            (1, 0, 1): mean_move,
            (1, 1, 1): mean_log_move,
        }
        return sum_by_monomials(summand, (PROB_I, LOG_I, MOVE_I), sums)

    steps, slope = slope_of(total, normaliser=mean_move, cross_entropy=mean_log_move + mean_move)
    score_i = PROB_I * (ENTROPY + LOG_I)
    linear = -total(score_i * MOVE_I)
    entropy_from_logits = log_total - mean_logit  # −Σ p (z − log Z)
    steps += (
        Step("Collect the terms: each logit moves entropy by its S.", r"\frac{dH}{dt}\Big|_0", slope, linear),
        Step("The discriminants sum to zero.", r"\sum_i S_i", total(score_i), sp.Integer(0)),
        Step(
            "In logits the normaliser cancels.",
            r"H + \log p_i",
            entropy_from_logits + (logit - log_total),
            logit - mean_logit,
        ),
    )
    return Derivation("gradient", steps, simplified(slope - linear))


def theorem_3_2() -> Derivation:
    """Derive the first-order change of entropy under one moved logit.

    Theorem 3.2 of arXiv 2602.03392.

    Formula: δz = ε e_k ⇒ ΔH = −ε S_k + O(ε²), S_k = p_k (H + log p_k), and S_k has the sign of p_k − e^{−H}.

    Symbols: p_k, L_k = log p_k and H; the rest of the policy enters only through H. t is ε.
    """
    steps, slope = slope_of(
        sum_apart(move_k=sp.Integer(1), move_i=sp.Integer(0)),
        normaliser=PROB_K,
        cross_entropy=PROB_K * (1 + LOG_K),
    )
    score = PROB_K * (ENTROPY + LOG_K)
    threshold = sp.exp(-ENTROPY)
    by_threshold = sp.expand_log(PROB_K * sp.log(PROB_K / threshold), force=True)
    steps += (
        Step("Collect the terms.", r"\frac{dH}{d\varepsilon}\Big|_0", slope, -score),
        Step(
            "The sign is that of the logarithm, so of p_k against e^{-H}.",
            "S_k",
            score.subs(LOG_K, sp.log(PROB_K)),
            by_threshold,
        ),
    )
    return Derivation("theorem-3.2", steps, simplified(slope + score))


def theorem_3_3() -> Derivation:
    """Derive the first-order change of entropy under one GRPO step.

    Theorem 3.3 of arXiv 2602.03392.

    Formula: δz = α (e_k − p) ⇒ ΔH = −α (S_k − N) + O(α²), N = Σ p_i S_i.

    Symbols: p_k, L_k = log p_k, H, M_2 = Σ p_i² and N, one unknown each for all V. t is α.
    """
    rest, logit_k, logit_i = sp.symbols("R z_k z_i", real=True)
    total = sp.exp(logit_k) + sp.exp(logit_i) + rest  # R: the weights of all tokens but k and i
    log_prob_k = logit_k - sp.log(total)
    direction = (
        Step(
            "The direction is the gradient of log p_k: the sampled token ...",
            "d_k",
            sp.diff(log_prob_k, logit_k),
            1 - sp.exp(logit_k) / total,
        ),
        Step("... and any other token.", "d_i", sp.diff(log_prob_k, logit_i), -sp.exp(logit_i) / total),
    )
    steps, slope = slope_of(
        sum_apart(move_k=1 - PROB_K, move_i=-PROB_I),
        normaliser=PROB_K - COLLISION,
        cross_entropy=PROB_K * (1 + LOG_K) - COLLISION - (BASELINE - ENTROPY * COLLISION),
    )
    centred = PROB_K * (ENTROPY + LOG_K) - BASELINE
    final = Step("Collect the terms.", r"\frac{dH}{d\alpha}\Big|_0", slope, -centred)
    return Derivation("theorem-3.3", (*direction, *steps, final), simplified(slope + centred))


def corollary_3_4() -> Derivation:
    """Derive that the centred discriminant has mean zero under the policy itself.

    Corollary 3.4 of arXiv 2602.03392.

    Formula: E_{k~p}[S_k − N] = 0, so the expected first-order change of entropy at a constant advantage is 0.

    Symbols: H, M_2 = Σ p_i² and N, one unknown each for all V.
    """
    score = PROB_I * (ENTROPY + LOG_I)
    mean_score = sum_over_all(PROB_I * score)
    mean_baseline = sum_over_all(PROB_I) * BASELINE
    mean_centred = sum_over_all(PROB_I * (score - BASELINE))
    steps = (
        Step("The mean of S is the baseline, by its definition.", r"\sum_k p_k S_k", mean_score, BASELINE),
        Step("The baseline is a constant.", r"\sum_k p_k N", mean_baseline, BASELINE),
        Step("Subtract.", r"\sum_k p_k (S_k - N)", mean_centred, sp.Integer(0)),
    )
    return Derivation("corollary-3.4", steps, simplified(mean_centred))


def exact_identity() -> Derivation:
    """Derive the exact change of entropy between two policies.

    Section B.3 of the theory notes.

    Formula: H(q) − H(p) = −Σ_i (q_i − p_i) log p_i − KL(q‖p). It holds token by token under the sum, so for any V.

    Symbols: p_i and q_i, the token's probability under each policy.
    """
    q_i = sp.Symbol("q_i", positive=True)
    of_change = -q_i * sp.log(q_i) + PROB_I * sp.log(PROB_I)
    of_divergence = q_i * sp.log(q_i / PROB_I)
    of_form = -(q_i - PROB_I) * sp.log(PROB_I) - of_divergence
    excess = of_divergence - (q_i - PROB_I)
    steps = (
        Step(
            "Compare the summands.",
            r"-q_i \log q_i + p_i \log p_i",
            of_change,
            sp.expand(sp.expand_log(of_form, force=True)),
        ),
        Step(
            "KL is a sum of terms q log(q/p) − q + p, each zero where q = p ...",
            r"\left. q_i \log\tfrac{q_i}{p_i} - q_i + p_i \right|_{q_i = p_i}",
            excess.subs(q_i, PROB_I),
            sp.Integer(0),
        ),
        Step(
            "... stationary there ...",
            r"\frac{\partial}{\partial q_i}\Big|_{q_i = p_i}",
            sp.diff(excess, q_i).subs(q_i, PROB_I),
            sp.Integer(0),
        ),
        Step(
            "... and convex, so KL ≥ 0 and the linear term is an upper bound of the change.",
            r"\frac{\partial^2}{\partial q_i^2}",
            sp.diff(excess, q_i, 2),
            1 / q_i,
        ),
    )
    return Derivation("exact-identity", steps, simplified(sp.expand_log(of_change - of_form, force=True)))


def four_conditions() -> Derivation:
    """Derive the sign of the expected change of entropy when only tokens above (or below) a threshold of S are kept.

    Section 4.1 of arXiv 2602.03392; part A of the theory notes.

    Formula: E_{k~p}[1{S_k > τ} (S_k − N)] = Cov_p(S, 1{S > τ}) = m (1 − m) (s₊ − s₋) ≥ 0, with m = P(S > τ) and s₊, s₋
    the means of S above τ and at or below it.

    Symbols: m, s₊, s₋; the gaps x = s₊ − τ ≥ 0 and y = τ − s₋ ≥ 0 hold by the definition of the two sides.
    """
    kept, upper, lower, threshold = sp.symbols("m s_+ s_- \\tau", real=True)
    above, below = sp.symbols("x y", nonnegative=True)
    mean = kept * upper + (1 - kept) * lower  # N, split by the two sides
    masked = kept * upper - kept * mean  # E[1 (S − N)]
    closed = kept * (1 - kept) * (upper - lower)
    gaps = {upper: threshold + above, lower: threshold - below}
    steps = (
        Step("Split the mean of S by the threshold.", r"E_p[1\{S>\tau\}(S-N)]", masked, closed),
        Step(
            "Both gaps to the threshold are non-negative.",
            r"s_+ - s_-",
            (upper - lower).subs(gaps),
            above + below,
        ),
        Step(
            "Keeping the other side gives the opposite sign, since the whole has mean zero.",
            r"E_p[1\{S\le\tau\}(S-N)]",
            (1 - kept) * (lower - mean),
            -closed,
        ),
    )
    return Derivation("four-conditions", steps, simplified(masked - closed))
