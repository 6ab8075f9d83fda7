"""Statements beyond the paper that concern one moved logit, the discriminant and its baseline."""

from __future__ import annotations

from entropy_theory.theory.verification import questions
from entropy_theory.theory.verification.checks import certified, exactness, laws, searches, symbolic
from entropy_theory.theory.verification.evidence import Statement
from entropy_theory.theory.verification.statements import ONE_LOGIT, POSITIVE, beyond

LAW_STATEMENTS: tuple[Statement, ...] = (
    Statement(
        identifier="discriminant-gradient",
        title="How discriminants and baseline move",
        source=beyond("B.1"),
        text="The derivatives of S and N in a logit, and the least value of S at a given entropy.",
        formula=r"\frac{\partial S_y}{\partial z_k} = p_y [\delta_{yk}(1 + u_y) - p_k (1 + u_y + u_k)],\quad"
        r" \frac{\partial N}{\partial z_k} = p_k [p_k(1 + 2u_k) - 2N - M_2(1 + u_k)],\quad S \ge -e^{-(1+H)}",
        assumptions=(POSITIVE,),
        checks=(
            symbolic.derivation("laws.discriminant_gradient", "derivatives of p u, and the stationary point of S"),
            laws.discriminant_slopes,
        ),
    ),
    Statement(
        identifier="what-surrounds-the-token",
        title="What surrounds the token",
        source=beyond("B.2"),
        text="The discriminant depends on the token's probability and on the entropy of the policy given any other"
        " token, which gives its least and greatest value at any vocabulary size.",
        formula=r"S_k = p_k(1 - p_k)(\operatorname{logit} p_k + H_{rest}),\quad"
        r" p(1-p)\operatorname{logit} p \le S \le p(1-p)(\operatorname{logit} p + \log(V-1))",
        assumptions=(POSITIVE, "the lower end is an infimum for V > 2"),
        checks=(
            symbolic.derivation("laws.what_surrounds_the_token", "chain rule of entropy, and the two ends"),
            laws.envelope,
        ),
    ),
    Statement(
        identifier="exact-single-logit-law",
        title="One moved logit, exactly",
        source=beyond("B.4"),
        text="The token's probability and the entropy decide the change of entropy under a move of its logit, whatever"
        " the vocabulary and however large the move.",
        formula=r"\Delta H = -\frac{u}{D} S_k - \mathrm{KL},\quad u = e^\varepsilon - 1,\; D = 1 + p_k u,\;"
        r" \mathrm{KL} = \varepsilon q_k - \log D \ge 0",
        assumptions=(POSITIVE, ONE_LOGIT),
        checks=(
            symbolic.derivation("laws.exact_single_logit_law", "the moved policy's entropy, and the series of the law"),
            exactness.single_logit_change,
            laws.two_numbers_decide,
        ),
    ),
    Statement(
        identifier="sign-law-of-one-logit",
        title="A predicted fall of one logit is a fall",
        source=beyond("B.5"),
        text="If the first order predicts no rise, entropy falls at every step, however large. Entropy peaks at -x.",
        formula=r"\varepsilon S_k \ge 0,\; \varepsilon \ne 0 \;\Rightarrow\; \Delta H < 0;\quad"
        r" \max_\varepsilon H = \log(1 + e^{H_{rest}}) \text{ at } \varepsilon = -x,\;"
        r" x = \operatorname{logit} p_k + H_{rest}",
        assumptions=(POSITIVE, ONE_LOGIT),
        checks=(
            symbolic.derivation("laws.sign_law_of_one_logit", "slope of H along the logit, its peak and its asymmetry"),
            laws.one_logit_falls,
            searches.inside("climbing towards a rise, λ = 0", questions.INSIDE[2]),
            certified.one_logit,
        ),
    ),
    Statement(
        identifier="sign-flip-radius",
        title="How far a predicted rise reaches",
        source=beyond("B.5"),
        text="A predicted rise is a rise up to one step size and a fall beyond it; for likely tokens in a policy that"
        " is spread enough without them, lowering the logit raises entropy at any step.",
        formula=r"S_k < 0:\; |x| < \varepsilon^* \le 2|x|;\quad S_k > 0:\; |\varepsilon^*| \ge 2x;\quad"
        r" \varepsilon^* = -2x - \tfrac23 \tanh(H_{rest}/2)\, x^2 + O(x^3)",
        assumptions=(POSITIVE, ONE_LOGIT, "no flip where S_k > 0 and h(p_k) <= p_k H"),
        checks=(
            symbolic.derivation("laws.sign_law_of_one_logit", "asymmetry about the peak, limit, series of the root"),
            exactness.flip_radius_is_root,
            laws.flip_radius,
        ),
    ),
    Statement(
        identifier="divergence-lemma",
        title="The divergence of one moved logit",
        source=beyond("B.5"),
        text="Up to a factor e^{|ε|} either way, KL is half the square of the step times p (1 - p).",
        formula=r"\frac{2\,\mathrm{KL}}{\varepsilon^2 p (1 - p)} \in [e^{-|\varepsilon|}, e^{|\varepsilon|}]",
        assumptions=("0 < p_k < 1", ONE_LOGIT),
        checks=(
            symbolic.derivation("laws.divergence_lemma", "KL as an integral, and the slope of log q(1 - q)"),
            laws.divergence_bounds,
            certified.one_logit,
        ),
    ),
    Statement(
        identifier="first-order-accuracy",
        title="Where Theorem 3.2 is within 10 %",
        source="beyond the paper",
        text="For every policy of every vocabulary the first order has the right sign and is within 10 % of the truth"
        " for steps up to ε₀, which depends on how far the token is from S = 0. At S = 0 no step works.",
        formula=r"|x| \ge \kappa,\; |\varepsilon| \le \varepsilon_0(\kappa) \;\Rightarrow\;"
        r" |\varepsilon S_k + \Delta H| \le 0.1\,|\Delta H|;\quad \varepsilon_0(1) = \log 1.1",
        assumptions=(POSITIVE, ONE_LOGIT),
        checks=(
            symbolic.derivation("laws.exact_single_logit_law", "ΔH = −(u/D) S − KL, which the region is computed from"),
            laws.ten_percent,
            certified.accuracy,
        ),
    ),
    Statement(
        identifier="baseline-boundary",
        title="The boundary of the quadrants",
        source=beyond("B.14"),
        text="The baseline is a covariance and never negative, so the centred discriminant changes sign at a"
        " probability above e^{-H}; the likeliest token has a positive one unless the policy is uniform.",
        formula=r"N = \operatorname{Cov}_p(p, \log p) \ge 0,\quad S_c > 0 \iff"
        r" p_k > p_N = \frac{N}{W(N e^H)} \ge e^{-H}",
        assumptions=(POSITIVE, "W is Lambert's function; at N = 0, p_N means its limit e^{-H}"),
        checks=(
            symbolic.derivation("laws.baseline_boundary", "the covariance as a sum over pairs, and the boundary"),
            exactness.boundary,
            laws.boundary_of_quadrants,
        ),
    ),
)
