"""Statements beyond the paper that concern one moved logit, the discriminant and its baseline."""

from __future__ import annotations

from entropy_theory.theory.verification.checks import certified, exactness, laws, searches, symbolic
from entropy_theory.theory.verification.evidence import Check, Kind, Statement

_BEYOND = "beyond the paper: section {} of the theory notes"
_THEORY = "entropy_theory.theory"
_DERIVED = f"{_THEORY}.derivations.laws"
_TESTS = "tests/theory"
_DERIVATIONS = f"{_TESTS}/derivations/test_derivations.py::test_every_derivation_closes"
_SINGLE = f"{_TESTS}/test_single_logit.py"
_CERTIFIED = f"{_TESTS}/certificates/test_certificates.py"
_POSITIVE = "p_i > 0 for every token"
_ONE_LOGIT = "one logit moves, all others stay"


def _derived(name: str, words: str) -> Check:
    return Check(Kind.SYMBOLIC, words, symbolic.derivation(name, "laws"), f"{_DERIVED}.{name}", _DERIVATIONS)


LAW_STATEMENTS: tuple[Statement, ...] = (
    Statement(
        identifier="discriminant-gradient",
        title="How discriminants and baseline move",
        source=_BEYOND.format("B.1"),
        text="The derivatives of S and N in a logit, and the least value of S at a given entropy.",
        formula=r"\frac{\partial S_y}{\partial z_k} = p_y [\delta_{yk}(1 + u_y) - p_k (1 + u_y + u_k)],\quad"
        r" \frac{\partial N}{\partial z_k} = p_k [p_k(1 + 2u_k) - 2N - M_2(1 + u_k)],\quad S \ge -e^{-(1+H)}",
        assumptions=(_POSITIVE,),
        checks=(
            _derived("discriminant_gradient", "derivatives of p u, and the stationary point of S"),
            Check(
                Kind.PROPERTY,
                "against differences of S and N",
                laws.discriminant_slopes,
                "entropy_theory.discriminant",
                f"{_TESTS}/test_laws.py::test_the_jacobian_of_the_discriminant_matches_autograd",
            ),
        ),
    ),
    Statement(
        identifier="what-surrounds-the-token",
        title="What surrounds the token",
        source=_BEYOND.format("B.2"),
        text="The discriminant depends on the token's probability and on the entropy of the policy given any other"
        " token, which gives its least and greatest value at any vocabulary size.",
        formula=r"S_k = p_k(1 - p_k)(\operatorname{logit} p_k + H_{rest}),\quad"
        r" p(1-p)\operatorname{logit} p \le S \le p(1-p)(\operatorname{logit} p + \log(V-1))",
        assumptions=(_POSITIVE, "the lower end is an infimum for V > 2"),
        checks=(
            _derived("what_surrounds_the_token", "chain rule of entropy, and the two ends"),
            Check(
                Kind.PROPERTY,
                "bounds of S, met where all other tokens are alike",
                laws.envelope,
                "entropy_theory.discriminant_bounds",
                f"{_SINGLE}::test_the_bounds_hold_and_are_met",
            ),
        ),
    ),
    Statement(
        identifier="exact-single-logit-law",
        title="One moved logit, exactly",
        source=_BEYOND.format("B.4"),
        text="The token's probability and the entropy decide the change of entropy under a move of its logit, whatever"
        " the vocabulary and however large the move.",
        formula=r"\Delta H = -\frac{u}{D} S_k - \mathrm{KL},\quad u = e^\varepsilon - 1,\; D = 1 + p_k u,\;"
        r" \mathrm{KL} = \varepsilon q_k - \log D \ge 0",
        assumptions=(_POSITIVE, _ONE_LOGIT),
        checks=(
            _derived("exact_single_logit_law", "the moved policy's entropy, and the series of the law"),
            Check(
                Kind.HIGH_PRECISION,
                "steps from 1e-8 to 20 against two entropies",
                exactness.single_logit_change,
                "entropy_theory.single_logit_entropy_change",
                f"{_SINGLE}::test_small_steps_keep_their_digits",
            ),
            Check(
                Kind.PROPERTY,
                "against the change of the whole policy",
                laws.two_numbers_decide,
                "entropy_theory.single_logit_entropy_change",
                f"{_SINGLE}::test_it_is_the_change_of_a_whole_policy",
            ),
        ),
    ),
    Statement(
        identifier="sign-law-of-one-logit",
        title="A predicted fall of one logit is a fall",
        source=_BEYOND.format("B.5"),
        text="If the first order predicts no rise, entropy falls at every step, however large. Entropy peaks at -x.",
        formula=r"\varepsilon S_k \ge 0,\; \varepsilon \ne 0 \;\Rightarrow\; \Delta H < 0;\quad"
        r" \max_\varepsilon H = \log(1 + e^{H_{rest}}) \text{ at } \varepsilon = -x,\;"
        r" x = \operatorname{logit} p_k + H_{rest}",
        assumptions=(_POSITIVE, _ONE_LOGIT),
        checks=(
            _derived("sign_law_of_one_logit", "slope of H along the logit, its peak and its asymmetry"),
            Check(
                Kind.PROPERTY,
                "exact change where a fall is predicted, steps up to 300",
                laws.one_logit_falls,
                "entropy_theory.discriminant",
                f"{_TESTS}/test_laws.py::test_a_predicted_fall_of_one_logit_is_a_fall",
            ),
            Check(
                Kind.COUNTEREXAMPLE_SEARCH,
                "climbing towards a rise, λ = 0",
                searches.inside(2),
                f"{_THEORY}.verification.search.search_sign",
                f"{_TESTS}/verification/test_search.py::test_nothing_is_found_inside",
            ),
            Check(
                Kind.CERTIFICATE,
                "the law in factored form over a box",
                certified.one_logit,
                f"{_THEORY}.certificates.single_logit.one_logit",
                f"{_CERTIFIED}::test_the_sign_law_of_one_logit_is_certified",
            ),
        ),
    ),
    Statement(
        identifier="sign-flip-radius",
        title="How far a predicted rise reaches",
        source=_BEYOND.format("B.5"),
        text="A predicted rise is a rise up to one step size and a fall beyond it; for likely tokens in a policy that"
        " is spread enough without them, lowering the logit raises entropy at any step.",
        formula=r"S_k < 0:\; |x| < \varepsilon^* \le 2|x|;\quad S_k > 0:\; |\varepsilon^*| \ge 2x;\quad"
        r" \varepsilon^* = -2x - \tfrac23 \tanh(H_{rest}/2)\, x^2 + O(x^3)",
        assumptions=(_POSITIVE, _ONE_LOGIT, "no flip where S_k > 0 and h(p_k) <= p_k H"),
        checks=(
            _derived("sign_law_of_one_logit", "asymmetry about the peak, the limit, and the series of the root"),
            Check(
                Kind.HIGH_PRECISION,
                "root of the exact change by bisection",
                exactness.flip_radius_is_root,
                "entropy_theory.sign_flip_radius",
                f"{_SINGLE}::test_the_flip_radius_is_the_root",
            ),
            Check(
                Kind.PROPERTY,
                "sign, bounds, and the change of the whole policy on both sides",
                laws.flip_radius,
                "entropy_theory.sign_flip_radius",
                f"{_SINGLE}::test_signs_and_bounds_of_the_flip_radius",
            ),
        ),
    ),
    Statement(
        identifier="divergence-lemma",
        title="The divergence of one moved logit",
        source=_BEYOND.format("B.5"),
        text="Up to a factor e^{|ε|} either way, KL is half the square of the step times p (1 - p).",
        formula=r"\frac{2\,\mathrm{KL}}{\varepsilon^2 p (1 - p)} \in [e^{-|\varepsilon|}, e^{|\varepsilon|}]",
        assumptions=("0 < p_k < 1", _ONE_LOGIT),
        checks=(
            _derived("divergence_lemma", "KL as an integral, and the slope of log q(1 - q)"),
            Check(
                Kind.PROPERTY,
                "divergence out of the change of two tokens",
                laws.divergence_bounds,
                "entropy_theory.entropy_change",
                f"{_TESTS}/test_laws.py::test_the_divergence_lemma",
            ),
            Check(
                Kind.CERTIFICATE,
                "both bounds over a box",
                certified.one_logit,
                f"{_THEORY}.certificates.single_logit.one_logit",
                f"{_CERTIFIED}::test_the_sign_law_of_one_logit_is_certified",
            ),
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
        assumptions=(_POSITIVE, _ONE_LOGIT),
        checks=(
            _derived("exact_single_logit_law", "ΔH = −(u/D) S − KL, which the region is computed from"),
            Check(
                Kind.PROPERTY,
                "random policies at ε₀",
                laws.ten_percent,
                "entropy_theory.first_order_change",
                f"{_CERTIFIED}::test_the_accuracy_region_is_sharp",
            ),
            Check(
                Kind.CERTIFICATE,
                "ε₀ for κ = 1, .1, .01, and that it cannot be larger",
                certified.accuracy,
                f"{_THEORY}.certificates.single_logit.first_order_accuracy",
                f"{_CERTIFIED}::test_the_accuracy_region_is_sharp",
            ),
        ),
    ),
    Statement(
        identifier="baseline-boundary",
        title="The boundary of the quadrants",
        source=_BEYOND.format("B.14"),
        text="The baseline is a covariance and never negative, so the centred discriminant changes sign at a"
        " probability above e^{-H}; the likeliest token has a positive one unless the policy is uniform.",
        formula=r"N = \operatorname{Cov}_p(p, \log p) \ge 0,\quad S_c > 0 \iff"
        r" p_k > p_N = \frac{N}{W(N e^H)} \ge e^{-H}",
        assumptions=(_POSITIVE, "W is Lambert's function"),
        checks=(
            _derived("baseline_boundary", "the covariance as a sum over pairs, and the boundary"),
            Check(
                Kind.HIGH_PRECISION,
                "root of p (H + log p) = N by bisection",
                exactness.boundary,
                f"{_THEORY}.updates.baseline_boundary",
                f"{_TESTS}/test_updates.py::test_baseline_boundary",
            ),
            Check(
                Kind.PROPERTY,
                "sign of S_c on both sides, N >= 0, the likeliest token",
                laws.boundary_of_quadrants,
                f"{_THEORY}.updates.baseline_boundary",
                f"{_TESTS}/test_updates.py::test_baseline_boundary",
            ),
        ),
    ),
)
