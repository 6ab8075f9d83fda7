"""Statements beyond the paper that concern GRPO steps at any size, the second order, and whole updates."""

from __future__ import annotations

from entropy_theory.theory.verification import search
from entropy_theory.theory.verification.checks import certified, exactness, laws, sampling, searches, slopes, symbolic
from entropy_theory.theory.verification.evidence import Statement
from entropy_theory.theory.verification.statements import ONE_TOKEN, OWN_LOGITS, PAPER, POSITIVE, SMALL_STEP, beyond

STEP_STATEMENTS: tuple[Statement, ...] = (
    Statement(
        identifier="one-sided-sign-theorem",
        title="A predicted fall of a GRPO step is a fall",
        source=beyond("B.8"),
        text="If the first order of a GRPO step predicts no rise, entropy falls at every step size, by at least the"
        " divergence of the new policy from the old. Only predicted rises can fail.",
        formula=r"\alpha S_c \ge 0,\; \alpha \ne 0 \;\Rightarrow\; \Delta H \le -\mathrm{KL}(q_\alpha \,\|\, p) < 0,"
        r"\quad q_t \propto p\, e^{t (e_k - \lambda p)},\; 0 \le \lambda \le 1",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN),
        checks=(
            symbolic.derivation("sign_theorem.slope_along_a_ray", "slope of H along a ray"),
            symbolic.derivation("sign_theorem.one_sided_sign_theorem", "each identity and inequality of the proof"),
            laws.grpo_falls,
            searches.inside("climbing towards a rise, λ = 1 and ½", *search.INSIDE[:2]),
            certified.two_tokens,
            certified.three_tokens,
        ),
    ),
    Statement(
        identifier="sharpness-of-the-sign-theorem",
        title="The sign theorem reaches no further",
        source=beyond("B.8"),
        text="Just outside its reach there are policies on which a predicted fall is a rise: λ = 1.05, λ = -.1, two"
        " sampled tokens, the expected policy gradient.",
        formula=r"\alpha\, \textstyle\sum_i S_i d_i \ge 0 \;\not\Rightarrow\; \Delta H < 0 \text{ for }"
        r" d = e_k - 1.05 p,\; e_k + 0.1 p,\; e_1 + e_2 - 2p,\; p (A - E_p A)",
        assumptions=(POSITIVE, OWN_LOGITS),
        checks=(
            searches.outside("λ = 1.05", search.OUTSIDE[0]),
            searches.outside("λ = −.1", search.OUTSIDE[1]),
            searches.outside("two sampled tokens", search.OUTSIDE[2]),
            searches.outside("expected policy gradient", search.OUTSIDE[3]),
        ),
    ),
    Statement(
        identifier="rises-come-and-go",
        title="Predicted rises of a GRPO step need not form an interval",
        source=beyond("B.8"),
        text="Along one ray the entropy can return to its start three times. For two tokens there is one return.",
        formula=r"p = (10^{-6}, .13, .869999):\; \Delta H = 0 \text{ at } \alpha = 5.24343,\, 8.49445,\, 12.10728;\quad"
        r" V = 2:\; \alpha^* = -\frac{\operatorname{logit} p}{1 - p}",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN),
        checks=(
            symbolic.derivation("sign_theorem.slope_along_a_ray", "slope of H along a ray"),
            exactness.known_roots,
        ),
    ),
    Statement(
        identifier="unimodal-rise",
        title="Open: for α < 0 the predicted rise rises once",
        source=beyond("B.8, open"),
        text="No exception is known to this: under a negative step a predicted rise grows, then shrinks, and does not"
        " grow again. It is a conjecture; the search looks for an exception.",
        formula=r"\alpha < 0,\; S_c > 0 \;\Rightarrow\; H \text{ is unimodal along the ray (conjecture)}",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN),
        checks=(searches.unimodal,),
    ),
    Statement(
        identifier="second-order",
        title="The second order along any direction",
        source=beyond("B.6"),
        text="The second derivative of the entropy along a direction of the logits.",
        formula=r"H''(0) = -\textstyle\sum_i p_i \delta_i^2 (1 + H + \log p_i),\quad \delta_i = d_i - E_p[d]",
        assumptions=(POSITIVE,),
        checks=(
            symbolic.derivation("updates.second_order", "second derivative of log T − U/T"),
            exactness.curvature_along_direction,
            slopes.second_order_single_logit,
            slopes.second_order_any_direction,
            certified.remainder,
        ),
    ),
    Statement(
        identifier="second-order-grpo",
        title="The second order of a GRPO step",
        source=beyond("B.7"),
        text="From the power sums of the policy, and in a form that keeps its digits on peaked rows.",
        formula=r"H'' = -\{c^2 - 2c(M_2 + N) + M_3 + N_3 + (p_k + S_k)(1 + 2(c - p_k))\},\quad c = M_2 - p_k",
        assumptions=(POSITIVE, OWN_LOGITS),
        checks=(
            symbolic.derivation("updates.second_order_grpo", "second derivative along e_k − p, and its peaked form"),
            exactness.grpo_curvature,
            laws.curvature_forms,
            slopes.second_order_grpo,
        ),
    ),
    Statement(
        identifier="expected-change",
        title="Collapse is a covariance",
        source=beyond("B.9"),
        text="The expected first-order change under the policy gradient is minus the covariance of advantage and"
        " discriminant.",
        formula=r"E_{k \sim p}[A_k S_{c,k}] = \operatorname{Cov}_p(A, S)",
        assumptions=(POSITIVE, OWN_LOGITS, SMALL_STEP, "tokens drawn from p itself"),
        checks=(
            symbolic.derivation("updates.expected_change", "the expectation as a covariance"),
            slopes.expected_update,
        ),
    ),
    Statement(
        identifier="two-covariances",
        title="The covariance of log-probability and advantage",
        source=beyond("B.9"),
        text="The covariance used by arXiv 2505.22617 exceeds that of the discriminant by the mean advantage times N.",
        formula=r"\operatorname{Cov}_p(\log p, p A) = \operatorname{Cov}_p(A, S) + E_p[A]\, N",
        assumptions=(POSITIVE, "equal iff the mean advantage is 0 or p is uniform"),
        checks=(
            symbolic.derivation("updates.expected_change", "both covariances from the same sums"),
            laws.covariance_forms,
        ),
    ),
    Statement(
        identifier="noise-drift",
        title="Drift under advantages that are noise",
        source=beyond("B.10"),
        text="With advantages that know nothing of the token the first order vanishes; what drifts is the second, down"
        " for spread policies and up for some peaked ones.",
        formula=r"E[\Delta H] = \tfrac12 E[\alpha^2] E_k[H''_k],\quad"
        r" E_k[H''_k] = 2M_3 + 3N_3 - M_2 - M_2^2 - N(1 + 2M_2)",
        assumptions=(POSITIVE, OWN_LOGITS, SMALL_STEP, "E α = 0, α independent of the token"),
        checks=(
            symbolic.derivation("updates.noise_drift", "mean curvature, uniform policies, two tokens"),
            exactness.mean_grpo_curvature,
            laws.mean_curvature,
            sampling.noise_drift,
        ),
    ),
    Statement(
        identifier="entropy-bonus",
        title="What an entropy bonus does",
        source=beyond("B.11"),
        text="A bonus raises entropy by the sum of the squared discriminants.",
        formula=r"\delta z = -\beta S \;\Rightarrow\; \Delta H = \beta \textstyle\sum_i S_i^2 + O(\beta^2)",
        assumptions=(POSITIVE, OWN_LOGITS, SMALL_STEP),
        checks=(
            symbolic.derivation("updates.entropy_bonus", "the slope along minus S"),
            slopes.entropy_bonus,
        ),
    ),
    Statement(
        identifier="temperature",
        title="Temperatures of the loss and of the entropy",
        source=beyond("B.12"),
        text="How the first order changes when loss, entropy, or both are taken at a temperature.",
        formula=r"\Delta H_T = -\frac{\alpha}{T\,T_L} \Big[ S_k(\pi_T) - \textstyle\sum_i \pi_{T_L,i} S_i(\pi_T) \Big]",
        assumptions=(POSITIVE, OWN_LOGITS, SMALL_STEP, "temperatures > 0"),
        checks=(
            symbolic.derivation("updates.temperature", "both chain rules"),
            exactness.temperature_slope,
        ),
    ),
    Statement(
        identifier="when-corollary-3.5-holds",
        title="What breaks Corollary 3.5",
        source=beyond("B.13"),
        text="Tokens drawn by top-p are not drawn from the policy that is scored: the mean of S_c is then far from"
        " zero, in units of its standard error.",
        formula=r"E_{k \sim \tilde p}[S_{c,k}] = \textstyle\sum_k \tilde p_k S_{c,k} \ne 0"
        r" \text{ in general for } \tilde p \ne p",
        assumptions=("the standard error is that of the distribution that was sampled",),
        checks=(sampling.off_policy_mean,),
    ),
    Statement(
        identifier="shared-output-matrix",
        title="Positions that share an output matrix",
        source=beyond("B.15"),
        text="A step on the output matrix moves the entropy of every position, through the inner products of the hidden"
        " states.",
        formula=r"\Delta H_s = -\eta \textstyle\sum_t g_t \langle h_s, h_t \rangle"
        r" \Big[ S^s_{y_t} - \textstyle\sum_i p_{t,i} S^s_i \Big] + O(\eta^2)",
        assumptions=(POSITIVE, "only the output matrix is trained", "plain gradient ascent", SMALL_STEP),
        checks=(
            symbolic.derivation("updates.shared_output_matrix", "the move of a position's logits, summed over tokens"),
            slopes.output_matrix,
        ),
    ),
    Statement(
        identifier="quadrants",
        title="The four quadrants of advantage and centred discriminant",
        source=f"{PAPER}, Section 3; part A of the theory notes",
        text="Entropy falls where the advantage and the centred discriminant agree in sign, else rises.",
        formula=r"\operatorname{sign} \Delta H = -\operatorname{sign} (A\, S_c)",
        assumptions=(POSITIVE, OWN_LOGITS, SMALL_STEP),
        checks=(
            symbolic.derivation("paper.theorem_3_3", "slope along e_k − p"),
            laws.quadrants,
        ),
    ),
)
