"""Derivations of the exact laws: what surrounds a token, one moved logit at any step, and their bounds."""

from __future__ import annotations

import sympy as sp

from entropy_theory.theory.derivations.engine import (
    BASELINE,
    COLLISION,
    ENTROPY,
    LOG_I,
    LOG_K,
    PROB_I,
    PROB_K,
    STEP,
    Derivation,
    Step,
    simplified,
    sum_by_monomials,
    sum_over_rest,
    taylor,
)

REST = sp.Symbol("H_{rest}", nonnegative=True)
OTHERS = sp.Symbol("(V-1)", positive=True)  # how many other tokens there are


def discriminant_gradient() -> Derivation:
    """Derive how the discriminants and their baseline move with the logits, and the lower bound of S.

    Section B.1 of the theory notes.

    Formula: ∂S_y/∂z_k = p_y [δ_yk (1 + u_y) − p_k (1 + u_y + u_k)],
    ∂N/∂z_k = p_k [p_k (1 + 2u_k) − 2N − M_2 (1 + u_k)], and S ≥ −e^{−(1+H)}.

    Symbols: u = z − E_p[z]; δ is 1 for y = k and 0 otherwise.
    """
    logit_i, logit_k, mean, same, u_k, u_i = sp.symbols("z_i z_k \\bar{z} \\delta u_k u_i", real=True)
    p_y, u_y = sp.symbols("p_y u_y", real=True)
    # dp_i/dz_k = p_i (δ_ik − p_k) by Lemma 3.1; the δ picks the term i = k out of the sum.
    by_probs = PROB_K * logit_k - PROB_K * sum_by_monomials(
        PROB_I * logit_i, (PROB_I, logit_i), {(1, 0): sp.Integer(1), (1, 1): mean}
    )
    mean_slope = by_probs + PROB_K
    excess_slope = same - PROB_K * (1 + u_k)
    score_slope = p_y * (same - PROB_K) * u_y + p_y * excess_slope
    score_claim = p_y * (same * (1 + u_y) - PROB_K * (1 + u_y + u_k))
    table = {(2, 0): COLLISION, (2, 1): BASELINE}
    baseline_slope = 2 * PROB_K**2 * u_k + PROB_K**2  # the terms with δ
    baseline_slope -= sum_by_monomials(
        2 * PROB_K * PROB_I**2 * u_i + PROB_I**2 * PROB_K * (1 + u_k), (PROB_I, u_i), table
    )
    baseline_claim = PROB_K * (PROB_K * (1 + 2 * u_k) - 2 * BASELINE - COLLISION * (1 + u_k))
    positive = sp.Symbol("p", positive=True)
    score = positive * (ENTROPY + sp.log(positive))
    least = sp.exp(-(1 + ENTROPY))
    steps = (
        Step(
            "The mean logit follows its largest weights.",
            r"\frac{\partial E_p[z]}{\partial z_k}",
            mean_slope.subs(logit_k, mean + u_k),
            PROB_K * (1 + u_k),
        ),
        Step("Differentiate S = p u.", r"\frac{\partial S_y}{\partial z_k}", score_slope, score_claim),
        Step("Sum p S over the tokens.", r"\frac{\partial N}{\partial z_k}", baseline_slope, baseline_claim),
        Step(
            "At a given entropy S is stationary in p at one point ...",
            r"\frac{\partial S}{\partial p}",
            sp.diff(score, positive).subs(positive, least),
            sp.Integer(0),
        ),
        Step("... and convex ...", r"\frac{\partial^2 S}{\partial p^2}", sp.diff(score, positive, 2), 1 / positive),
        Step("... so this is its least value.", r"\min_p S", score.subs(positive, least), -least),
    )
    residual = (score_slope - score_claim) ** 2 + (baseline_slope - baseline_claim) ** 2
    return Derivation("discriminant-gradient", steps, simplified(residual))


def what_surrounds_the_token() -> Derivation:
    """Derive S from the token's probability and the entropy of the rest, and the envelope that follows.

    Section B.2 of the theory notes.

    Formula: S_k = p_k (1 − p_k)(logit p_k + H_rest), 0 ≤ H_rest ≤ log(V − 1), H_rest = (H − h(p_k))/(1 − p_k).
    """
    p = PROB_K
    within = sp.Symbol("\\log(1-p_k)", real=True)
    # −Σ_{i≠k} r_i log r_i with r_i = p_i/(1 − p_k)
    of_rest = -sum_over_rest(PROB_I * (LOG_I - within)) / (1 - p)
    by_chain = (ENTROPY - (-p * LOG_K - (1 - p) * within)) / (1 - p)
    total = -p * sp.log(p) - (1 - p) * sp.log(1 - p) + (1 - p) * REST
    score = p * (total + sp.log(p))
    logit = sp.log(p) - sp.log(1 - p)
    claim = p * (1 - p) * (logit + REST)
    share = sp.Symbol("r_i", positive=True)
    steps = (
        Step("Entropy of the policy given that the token is not k.", r"H_{rest}", of_rest, by_chain),
        Step("Insert H = h(p) + (1 − p) H_rest into S.", "S_k", score, claim),
        Step(
            "S grows with what surrounds the token ...",
            r"\partial S/\partial H_{rest}",
            sp.diff(claim, REST),
            p * (1 - p),
        ),
        Step("... from all other probability on one token ...", "S_k", claim.subs(REST, 0), p * (1 - p) * logit),
        Step(
            "... to all other tokens alike ...",
            r"H_{rest}",
            sp.expand_log(OTHERS * (-1 / OTHERS * sp.log(1 / OTHERS)), force=True),
            sp.log(OTHERS),
        ),
        Step(
            "... which is the most, by a divergence from that even share, term by term.",
            r"r_i \log \tfrac{r_i}{1/(V-1)}",
            sp.expand_log(share * sp.log(share / (1 / OTHERS)), force=True),
            share * sp.log(share) + share * sp.log(OTHERS),
        ),
    )
    return Derivation("what-surrounds-the-token", steps, simplified(sp.expand(score - claim)))


def exact_single_logit_law() -> Derivation:
    """Derive the exact change of entropy under one moved logit, and its series.

    Section B.4 of the theory notes.

    Formula: ΔH = −(u/D) S_k − KL, KL = ε q_k − log D, u = e^ε − 1, D = 1 + p_k u, q_k = p_k e^ε/D.

    Symbols: p_k, L_k and H; the rest of the policy enters only through H. t is ε.
    """
    p, H, L = PROB_K, ENTROPY, LOG_K
    u = sp.exp(STEP) - 1
    D = 1 + p * u
    q = p * sp.exp(STEP) / D
    normaliser = sum_over_rest(PROB_I) + p * sp.exp(STEP)
    surprise = sum_over_rest(PROB_I * LOG_I) + p * sp.exp(STEP) * (L + STEP)
    change = sp.log(D) - surprise / D - H
    score = p * (H + L)
    divergence = STEP * q - sp.log(D)
    claim = -(u / D) * score - divergence
    series = taylor(claim, STEP, 2)
    second = -STEP * score - STEP**2 / 2 * (p * (1 - p) + score * (1 - 2 * p))
    log_q = L + STEP - sp.log(D)
    log_rest = sp.Symbol("\\log(1-p_k)", real=True)
    binary = -q * log_q - (1 - q) * (log_rest - sp.log(D)) + p * L + (1 - p) * log_rest
    of_rest = (H + p * L + (1 - p) * log_rest) / (1 - p)
    steps = (
        Step("Only the token's weight changes.", r"\textstyle\sum_i p_i e^{t [i = k]}", normaliser, D),
        Step(
            "Entropy of the moved policy, log D − U/D, minus H.",
            r"\Delta H",
            sp.expand(change * D),
            sp.expand(claim * D),
        ),
        Step(
            "All other tokens share one log-ratio: KL in two terms.",
            r"\mathrm{KL}",
            q * (sp.log(sp.simplify(q * D / p)) - sp.log(D))
            + (1 - q) * (sp.log(sp.simplify((1 - q) * D / (1 - p))) - sp.log(D)),
            divergence,
        ),
        Step("At rest KL is 0 ...", r"\mathrm{KL}(0)", divergence.subs(STEP, 0), sp.Integer(0)),
        Step("... and it grows away from there.", r"\mathrm{KL}'", sp.diff(divergence, STEP), STEP * q * (1 - q)),
        Step("By what surrounds the token.", r"\Delta H", binary - (q - p) * of_rest, claim),
        Step("Its series.", r"\Delta H + O(t^3)", sp.expand(series), sp.expand(second)),
    )
    return Derivation("exact-single-logit-law", steps, simplified(sp.expand((change - claim) * D)))


def sign_law_of_one_logit() -> Derivation:
    """Derive that a predicted fall is a fall at any step of one logit, where entropy peaks, and the flip radius.

    Section B.5 of the theory notes.

    Formula: dΔH/dε = −q (1 − q)(ε + x), x = logit p + H_rest; the peak is at ε = −x with value log(1 + e^{H_rest});
    |x| < ε* ≤ 2|x| where S < 0, |ε*| ≥ 2x where S > 0; ε* = −2x − (2/3) tanh(H_rest/2) x² + O(x³).

    Symbols: t is ε; y = ε + x, so that logit q = y − H_rest and H falls away from y = 0 on both sides.
    """
    p, a, t = PROB_K, REST, STEP
    logit_p = sp.log(p) - sp.log(1 - p)
    D = 1 + p * (sp.exp(t) - 1)
    q, rest_q = p * sp.exp(t) / D, (1 - p) / D
    moved = -q * (sp.log(p) + t - sp.log(D)) - rest_q * (sp.log(1 - p) - sp.log(D)) + rest_q * a
    slope = sp.diff(moved, t)
    claim = -q * rest_q * (t + logit_p + a)
    y, b = sp.symbols("y b", positive=True)
    peak_q, peak_rest = 1 / (1 + sp.exp(a)), sp.exp(a) / (1 + sp.exp(a))
    peak = peak_q * sp.log(1 + sp.exp(a)) + peak_rest * (sp.log(1 + sp.exp(a)) - a) + peak_rest * a
    weight = lambda v: 1 / (2 + sp.exp(v) + sp.exp(-v))  # noqa: E731  q (1 − q) at logit v
    asymmetry = weight(y - b) - weight(y + b)
    product = (sp.exp(y) - sp.exp(-y)) * (sp.exp(b) - sp.exp(-b)) * weight(y - b) * weight(y + b)
    # ∫ y w(y − a) dy with w expanded at −a: w₀ (1 + c y + ...), c = tanh(a/2).
    x, c = sp.symbols("x c", real=True)
    primitive = lambda v: v**2 / 2 + c * v**3 / 3  # noqa: E731
    reached = sp.expand(primitive(x - 2 * x - sp.Rational(2, 3) * c * x**2) - primitive(x))
    third = sum(reached.coeff(x, n) * x**n for n in range(4))
    v = sp.Symbol("v", real=True)
    curvature = sp.diff(sp.log(weight(v)), v)
    limit = REST - (-p * sp.log(p) - (1 - p) * sp.log(1 - p) + (1 - p) * REST)
    H = sp.Symbol("H", positive=True)
    binary = sp.Symbol("h", positive=True)
    steps = (
        Step("Differentiate the moved policy's entropy.", r"\frac{dH}{dt}", slope, claim),
        Step("It vanishes at t = −x only; there the entropy is", r"H_{\max}", sp.expand(peak), sp.log(1 + sp.exp(a))),
        Step(
            "Forward along a predicted fall both terms are falls: q − p has the sign of t, and KL ≥ 0.",
            "q - p",
            q - p,
            p * (1 - p) * (sp.exp(t) - 1) / D,
        ),
        Step(
            "Entropy falls faster on the side y > 0 of its peak: with w = q(1 − q), w(y − a) − w(y + a) is a product of"
            " non-negative factors, so the way back is at most the mirror image where S < 0, and at least where S > 0.",
            r"w(y - a) - w(y + a)",
            sp.simplify(asymmetry / product),
            sp.Integer(1),
        ),
        Step(
            "For t → −∞ entropy tends to H_rest, which is above H exactly when h ≤ p H: then no step flips the sign.",
            r"H_{rest} - H",
            (H - binary) / (1 - p) - H,
            (p * H - binary) / (1 - p),
        ),
        Step("The same limit from p and H_rest.", r"H_{rest} - H", limit, p * a + p * logit_p + sp.log(1 - p)),
        Step(
            "The slope of log w at −a ...",
            r"c",
            sp.simplify(curvature.subs(v, -a) - sp.tanh(a / 2).rewrite(sp.exp)),
            sp.Integer(0),
        ),
        Step("... gives the flip radius near S = 0, to third order.", r"\Delta H / w_0", third, sp.Integer(0)),
    )
    return Derivation("sign-law-of-one-logit", steps, simplified(slope - claim))


def divergence_lemma() -> Derivation:
    """Derive the two-sided bound of the divergence of one moved logit.

    Section B.5 of the theory notes, as used by the certificates.

    Formula: 2 KL/(ε² p (1 − p)) ∈ [e^{−|ε|}, e^{|ε|}].

    Symbols: w = q (1 − q), so that KL = ∫₀^ε s w(s) ds and w(0) = p (1 − p); t is ε.
    """
    p, t = PROB_K, STEP
    D = 1 + p * (sp.exp(t) - 1)
    q = p * sp.exp(t) / D
    divergence = t * q - sp.log(D)
    w = q * (1 - q)
    s, e = sp.symbols("s \\varepsilon", positive=True)
    steps = (
        Step("KL starts at 0 ...", r"\mathrm{KL}(0)", divergence.subs(t, 0), sp.Integer(0)),
        Step("... and is the integral of s w(s).", r"\mathrm{KL}'", sp.diff(divergence, t), t * w),
        Step("The logarithm of w has slope at most 1 ...", r"1 - (\log w)'", 1 - sp.diff(sp.log(w), t), 2 * q),
        Step(
            "... and at least −1, so e^{−|s|} ≤ w(s)/w(0) ≤ e^{|s|}.",
            r"1 + (\log w)'",
            1 + sp.diff(sp.log(w), t),
            2 * (1 - q),
        ),
        Step(
            "The weight 2s/ε² integrates to 1, and |s| ≤ |ε|.",
            r"\int_0^\varepsilon 2s/\varepsilon^2\,ds",
            sp.integrate(2 * s / e**2, (s, 0, e)),
            sp.Integer(1),
        ),
    )
    return Derivation("divergence-lemma", steps, simplified(sp.diff(divergence, t) - t * w))


def baseline_boundary() -> Derivation:
    """Derive that the baseline is a covariance, never negative, and where the centred discriminant changes sign.

    Section B.14 of the theory notes.

    Formula: N = Cov_p(p, log p) ≥ 0; S_c > 0 ⇔ p_k > p_N = N/W(N e^H) ≥ e^{−H}; the likeliest token has S_c ≥ 0.

    Symbols: y = log(p_i/p_j); W(x) e^{W(x)} = x.
    """
    p_j, L_j = sp.symbols("p_j L_j", real=True)
    one = {(1, 0): sp.Integer(1), (1, 1): -ENTROPY, (2, 0): COLLISION, (2, 1): BASELINE - ENTROPY * COLLISION}
    pairs = {(*a, *b): one[a] * one[b] for a in one for b in one}
    covariance = sum_by_monomials(PROB_I**2 * LOG_I, (PROB_I, LOG_I), one) - COLLISION * -ENTROPY
    double = sum_by_monomials(PROB_I * p_j * (PROB_I - p_j) * (LOG_I - L_j) / 2, (PROB_I, LOG_I, p_j, L_j), pairs)
    x, w = sp.symbols("x w", nonnegative=True)
    boundary = sp.exp(w - ENTROPY)  # with w = W(N e^H), so that N = w e^{w − H}
    p, floor = sp.symbols("p m", positive=True)
    score = p * (ENTROPY + sp.log(p))
    steps = (
        Step(
            "The baseline is the covariance of p and log p.", r"\operatorname{Cov}_p(p, \log p)", covariance, BASELINE
        ),
        Step(
            "Over pairs of tokens it is a sum of terms (p_i − p_j)(log p_i − log p_j) ≥ 0.",
            r"\tfrac12 \textstyle\sum_{ij} p_i p_j (p_i - p_j)(L_i - L_j)",
            sp.expand(double),
            BASELINE,
        ),
        Step(
            "At the boundary S equals N.",
            r"p_N (H + \log p_N)",
            boundary * (ENTROPY + sp.log(boundary)),
            w * sp.exp(w - ENTROPY),
        ),
        Step("The boundary lies above e^{−H}, because W ≥ 0.", r"\log p_N + H", sp.log(boundary) + ENTROPY, w),
        Step(
            "Above e^{−H} (and there only S is positive) S increases with p: the boundary is crossed once.",
            r"\partial S/\partial p",
            sp.diff(score, p).subs(p, sp.exp(x - ENTROPY)),
            1 + x,
        ),
        Step(
            "S_c of the likeliest token is a mean of S_k − S_i, none negative.",
            r"S_k - N",
            floor * sum_by_monomials(PROB_I, (PROB_I,), {(1,): sp.Integer(1)}) - BASELINE,
            floor - BASELINE,
        ),
    )
    return Derivation("baseline-boundary", steps, simplified(covariance - BASELINE))
