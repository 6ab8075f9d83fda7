"""Statements beyond the paper that concern GRPO steps at any size, the second order, and whole updates."""

from __future__ import annotations

from entropy_theory.theory.verification.checks import certified, exactness, laws, sampling, searches, slopes, symbolic
from entropy_theory.theory.verification.evidence import Check, Kind, Statement

_BEYOND = "beyond the paper: section {} of the theory notes"
_THEORY = "entropy_theory.theory"
_TESTS = "tests/theory"
_DERIVATIONS = f"{_TESTS}/derivations/test_derivations.py::test_every_derivation_closes"
_CURVATURE = f"{_TESTS}/test_curvature.py"
_UPDATES = f"{_TESTS}/test_updates.py"
_SEARCH = f"{_TESTS}/verification/test_search.py"
_STATEMENTS = f"{_TESTS}/verification/test_catalogue.py::test_every_check_passes_on_the_quick_budget"
_CERTIFIED = f"{_TESTS}/certificates/test_certificates.py"
_POSITIVE = "p_i > 0 for every token"
_OWN_LOGITS = "one position's logits are the parameters"
_SMALL = "a small step"
_ONE_TOKEN = "one sampled token at the position"


def _derived(name: str, words: str, module: str = "updates") -> Check:
    return Check(
        Kind.SYMBOLIC, words, symbolic.derivation(name, module), f"{_THEORY}.derivations.{module}.{name}", _DERIVATIONS
    )


def _outside(number: int, words: str) -> Check:
    return Check(
        Kind.COUNTEREXAMPLE_SEARCH,
        words,
        searches.outside(number),
        f"{_THEORY}.verification.search.search_sign",
        f"{_SEARCH}::test_the_known_counterexamples_are_found",
    )


STEP_STATEMENTS: tuple[Statement, ...] = (
    Statement(
        identifier="one-sided-sign-theorem",
        title="A predicted fall of a GRPO step is a fall",
        source=_BEYOND.format("B.8"),
        text="If the first order of a GRPO step predicts no rise, entropy falls at every step size, by at least the"
        " divergence of the new policy from the old. Only predicted rises can fail.",
        formula=r"\alpha S_c \ge 0,\; \alpha \ne 0 \;\Rightarrow\; \Delta H \le -\mathrm{KL}(q_\alpha \,\|\, p) < 0,"
        r"\quad q_t \propto p\, e^{t (e_k - \lambda p)},\; 0 \le \lambda \le 1",
        assumptions=(_POSITIVE, _OWN_LOGITS, _ONE_TOKEN),
        checks=(
            _derived("slope_along_a_ray", "slope of H along a ray", "sign_theorem"),
            _derived("one_sided_sign_theorem", "each identity and inequality of the proof", "sign_theorem"),
            Check(
                Kind.PROPERTY,
                "exact change where a fall is predicted, steps up to 300",
                laws.grpo_falls,
                "entropy_theory.centered_discriminant",
                f"{_TESTS}/test_laws.py::test_a_predicted_fall_of_a_grpo_step_is_a_fall",
            ),
            Check(
                Kind.COUNTEREXAMPLE_SEARCH,
                "climbing towards a rise, λ = 1 and ½",
                searches.inside(0, 1),
                f"{_THEORY}.verification.search.search_sign",
                f"{_SEARCH}::test_nothing_is_found_inside",
            ),
            Check(
                Kind.CERTIFICATE,
                "two tokens, without the proof",
                certified.two_tokens,
                f"{_THEORY}.certificates.sign_theorem.sign_theorem_two_tokens",
                f"{_CERTIFIED}::test_the_sign_theorem_is_certified_for_two_tokens",
            ),
            Check(
                Kind.CERTIFICATE,
                "three tokens, without the proof",
                certified.three_tokens,
                f"{_THEORY}.certificates.sign_theorem.sign_theorem_three_tokens",
                f"{_CERTIFIED}::test_the_sign_theorem_is_certified_for_three_tokens",
            ),
        ),
    ),
    Statement(
        identifier="sharpness-of-the-sign-theorem",
        title="The sign theorem reaches no further",
        source=_BEYOND.format("B.8"),
        text="Just outside its reach there are policies on which a predicted fall is a rise: λ = 1.05, λ = -.1, two"
        " sampled tokens, the expected policy gradient.",
        formula=r"\alpha\, \textstyle\sum_i S_i d_i \ge 0 \;\not\Rightarrow\; \Delta H < 0 \text{ for }"
        r" d = e_k - 1.05 p,\; e_k + 0.1 p,\; e_1 + e_2 - 2p,\; p (A - E_p A)",
        assumptions=(_POSITIVE, _OWN_LOGITS),
        checks=(
            _outside(0, "λ = 1.05"),
            _outside(1, "λ = −.1"),
            _outside(2, "two sampled tokens"),
            _outside(3, "expected policy gradient"),
        ),
    ),
    Statement(
        identifier="rises-come-and-go",
        title="Predicted rises of a GRPO step need not form an interval",
        source=_BEYOND.format("B.8"),
        text="Along one ray the entropy can return to its start three times. For two tokens there is one return.",
        formula=r"p = (10^{-6}, .13, .869999):\; \Delta H = 0 \text{ at } \alpha = 5.24343,\, 8.49445,\, 12.10728;\quad"
        r" V = 2:\; \alpha^* = -\frac{\operatorname{logit} p}{1 - p}",
        assumptions=(_POSITIVE, _OWN_LOGITS, _ONE_TOKEN),
        checks=(
            _derived("slope_along_a_ray", "slope of H along a ray", "sign_theorem"),
            Check(
                Kind.HIGH_PRECISION,
                "the roots, and the signs between them",
                exactness.known_roots,
                "entropy_theory.entropy_change",
                f"{_TESTS}/test_laws.py::test_a_predicted_rise_can_come_and_go",
            ),
        ),
    ),
    Statement(
        identifier="unimodal-rise",
        title="Open: for α < 0 the predicted rise rises once",
        source=_BEYOND.format("B.8, open"),
        text="No exception is known to this: under a negative step a predicted rise grows, then shrinks, and does not"
        " grow again. It is a conjecture; the search looks for an exception.",
        formula=r"\alpha < 0,\; S_c > 0 \;\Rightarrow\; H \text{ is unimodal along the ray (conjecture)}",
        assumptions=(_POSITIVE, _OWN_LOGITS, _ONE_TOKEN),
        checks=(
            Check(
                Kind.COUNTEREXAMPLE_SEARCH,
                "climbing towards a second rise",
                searches.unimodal,
                f"{_THEORY}.verification.search.search_unimodal",
                f"{_SEARCH}::test_the_open_statement_has_no_exception_here",
            ),
        ),
    ),
    Statement(
        identifier="second-order",
        title="The second order along any direction",
        source=_BEYOND.format("B.6"),
        text="The second derivative of the entropy along a direction of the logits.",
        formula=r"H''(0) = -\textstyle\sum_i p_i \delta_i^2 (1 + H + \log p_i),\quad \delta_i = d_i - E_p[d]",
        assumptions=(_POSITIVE,),
        checks=(
            _derived("second_order", "second derivative of log T − U/T"),
            Check(
                Kind.HIGH_PRECISION,
                "against second differences of the entropy",
                exactness.curvature_along_direction,
                f"{_THEORY}.curvature.entropy_curvature",
                f"{_CURVATURE}::test_entropy_curvature_matches_autograd",
            ),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder of one logit, third order",
                slopes.second_order_single_logit,
                "entropy_theory.second_order_change",
                f"{_CURVATURE}::test_second_order_remainders_fall_with_the_cube_of_the_step",
            ),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder along random directions, third order",
                slopes.second_order_any_direction,
                "entropy_theory.second_order_change",
                f"{_CURVATURE}::test_second_order_remainders_fall_with_the_cube_of_the_step",
            ),
            Check(
                Kind.CERTIFICATE,
                "enclosures of the first-order remainder",
                certified.remainder,
                f"{_THEORY}.certificates.single_logit.remainder_enclosure",
                f"{_CERTIFIED}::test_remainders_lie_in_their_enclosure",
            ),
        ),
    ),
    Statement(
        identifier="second-order-grpo",
        title="The second order of a GRPO step",
        source=_BEYOND.format("B.7"),
        text="From the power sums of the policy, and in a form that keeps its digits on peaked rows.",
        formula=r"H'' = -\{c^2 - 2c(M_2 + N) + M_3 + N_3 + (p_k + S_k)(1 + 2(c - p_k))\},\quad c = M_2 - p_k",
        assumptions=(_POSITIVE, _OWN_LOGITS),
        checks=(
            _derived("second_order_grpo", "second derivative along e_k − p, and its peaked form"),
            Check(
                Kind.HIGH_PRECISION,
                "against second differences of the entropy",
                exactness.grpo_curvature,
                f"{_THEORY}.curvature.grpo_curvature",
                f"{_CURVATURE}::test_grpo_curvature_matches_many_digits",
            ),
            Check(
                Kind.PROPERTY,
                "power sums against the sum over tokens",
                laws.curvature_forms,
                f"{_THEORY}.curvature.grpo_curvature_from_sums",
                f"{_CURVATURE}::test_the_two_forms_agree_where_the_sums_do_not_cancel",
            ),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder of a GRPO step, third order",
                slopes.second_order_grpo,
                f"{_THEORY}.curvature.grpo_curvature",
                f"{_CURVATURE}::test_second_order_remainders_fall_with_the_cube_of_the_step",
            ),
        ),
    ),
    Statement(
        identifier="expected-change",
        title="Collapse is a covariance",
        source=_BEYOND.format("B.9"),
        text="The expected first-order change under the policy gradient is minus the covariance of advantage and"
        " discriminant.",
        formula=r"E_{k \sim p}[A_k S_{c,k}] = \operatorname{Cov}_p(A, S)",
        assumptions=(_POSITIVE, _OWN_LOGITS, _SMALL, "tokens drawn from p itself"),
        checks=(
            _derived("expected_change", "the expectation as a covariance"),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder of the expected update",
                slopes.expected_update,
                f"{_THEORY}.updates.expected_change",
                f"{_UPDATES}::test_expected_change",
            ),
        ),
    ),
    Statement(
        identifier="two-covariances",
        title="The covariance of log-probability and advantage",
        source=_BEYOND.format("B.9"),
        text="The covariance used by arXiv 2505.22617 exceeds that of the discriminant by the mean advantage times N.",
        formula=r"\operatorname{Cov}_p(\log p, p A) = \operatorname{Cov}_p(A, S) + E_p[A]\, N",
        assumptions=(_POSITIVE, "equal iff the mean advantage is 0 or p is uniform"),
        checks=(
            _derived("expected_change", "both covariances from the same sums"),
            Check(
                Kind.PROPERTY,
                "both by their definitions",
                laws.covariance_forms,
                f"{_THEORY}.updates.score_covariances",
                f"{_UPDATES}::test_score_covariances",
            ),
        ),
    ),
    Statement(
        identifier="noise-drift",
        title="Drift under advantages that are noise",
        source=_BEYOND.format("B.10"),
        text="With advantages that know nothing of the token the first order vanishes; what drifts is the second, down"
        " for spread policies and up for some peaked ones.",
        formula=r"E[\Delta H] = \tfrac12 E[\alpha^2] E_k[H''_k],\quad"
        r" E_k[H''_k] = 2M_3 + 3N_3 - M_2 - M_2^2 - N(1 + 2M_2)",
        assumptions=(_POSITIVE, _OWN_LOGITS, _SMALL, "E α = 0, α independent of the token"),
        checks=(
            _derived("noise_drift", "mean curvature, uniform policies, and the boundary for two tokens"),
            Check(
                Kind.HIGH_PRECISION,
                "mean of second differences of the entropy",
                exactness.mean_grpo_curvature,
                f"{_THEORY}.curvature.mean_grpo_curvature",
                f"{_CURVATURE}::test_mean_grpo_curvature_matches_many_digits",
            ),
            Check(
                Kind.PROPERTY,
                "against the curvature of every token",
                laws.mean_curvature,
                f"{_THEORY}.curvature.mean_grpo_curvature",
                f"{_CURVATURE}::test_the_two_forms_agree_where_the_sums_do_not_cancel",
            ),
            Check(
                Kind.MONTE_CARLO,
                "mean exact change under random advantages",
                sampling.noise_drift,
                f"{_THEORY}.curvature.noise_drift",
                _STATEMENTS,
            ),
        ),
    ),
    Statement(
        identifier="entropy-bonus",
        title="What an entropy bonus does",
        source=_BEYOND.format("B.11"),
        text="A bonus raises entropy by the sum of the squared discriminants.",
        formula=r"\delta z = -\beta S \;\Rightarrow\; \Delta H = \beta \textstyle\sum_i S_i^2 + O(\beta^2)",
        assumptions=(_POSITIVE, _OWN_LOGITS, _SMALL),
        checks=(
            _derived("entropy_bonus", "the slope along minus S"),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder of a bonus",
                slopes.entropy_bonus,
                f"{_THEORY}.updates.entropy_bonus_change",
                f"{_UPDATES}::test_entropy_bonus",
            ),
        ),
    ),
    Statement(
        identifier="temperature",
        title="Temperatures of the loss and of the entropy",
        source=_BEYOND.format("B.12"),
        text="How the first order changes when loss, entropy, or both are taken at a temperature.",
        formula=r"\Delta H_T = -\frac{\alpha}{T\,T_L} \Big[ S_k(\pi_T) - \textstyle\sum_i \pi_{T_L,i} S_i(\pi_T) \Big]",
        assumptions=(_POSITIVE, _OWN_LOGITS, _SMALL, "temperatures > 0"),
        checks=(
            _derived("temperature", "both chain rules"),
            Check(
                Kind.HIGH_PRECISION,
                "against the slope of the entropy at T",
                exactness.temperature_slope,
                f"{_THEORY}.updates.temperature_change",
                f"{_UPDATES}::test_temperature",
            ),
        ),
    ),
    Statement(
        identifier="when-corollary-3.5-holds",
        title="What breaks Corollary 3.5",
        source=_BEYOND.format("B.13"),
        text="Tokens drawn by top-p are not drawn from the policy that is scored: the mean of S_c is then far from"
        " zero, in units of its standard error.",
        formula=r"E_{k \sim \tilde p}[S_{c,k}] = \textstyle\sum_k \tilde p_k S_{c,k} \ne 0"
        r" \text{ in general for } \tilde p \ne p",
        assumptions=("the standard error is that of the distribution that was sampled",),
        checks=(
            Check(
                Kind.MONTE_CARLO,
                "mean of S_c under top-p sampling",
                sampling.off_policy_mean,
                "entropy_theory.centered_discriminant",
                _STATEMENTS,
            ),
        ),
    ),
    Statement(
        identifier="shared-output-matrix",
        title="Positions that share an output matrix",
        source=_BEYOND.format("B.15"),
        text="A step on the output matrix moves the entropy of every position, through the inner products of the hidden"
        " states.",
        formula=r"\Delta H_s = -\eta \textstyle\sum_t g_t \langle h_s, h_t \rangle"
        r" \Big[ S^s_{y_t} - \textstyle\sum_i p_{t,i} S^s_i \Big] + O(\eta^2)",
        assumptions=(_POSITIVE, "only the output matrix is trained", "plain gradient ascent", _SMALL),
        checks=(
            _derived("shared_output_matrix", "the move of a position's logits, and the sum over tokens"),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder of a step on random linear models",
                slopes.output_matrix,
                f"{_THEORY}.updates.output_matrix_change",
                f"{_UPDATES}::test_output_matrix_change_matches_a_real_step",
            ),
        ),
    ),
    Statement(
        identifier="quadrants",
        title="The four quadrants of advantage and centred discriminant",
        source="arXiv 2602.03392, Section 3; part A of the theory notes",
        text="Entropy falls where the advantage and the centred discriminant agree in sign, else rises.",
        formula=r"\operatorname{sign} \Delta H = -\operatorname{sign} (A\, S_c)",
        assumptions=(_POSITIVE, _OWN_LOGITS, _SMALL),
        checks=(
            _derived("theorem_3_3", "slope along e_k − p", "paper"),
            Check(
                Kind.PROPERTY,
                "sign of the exact change, all four quadrants",
                laws.quadrants,
                "entropy_theory.centered_discriminant",
                f"{_TESTS}/test_laws.py::test_the_four_quadrants",
            ),
        ),
    ),
)
