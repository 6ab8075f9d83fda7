"""Statements beyond the paper that concern the second order, whole updates, and positions that share weights."""

from __future__ import annotations

from entropy_theory.theory.verification.checks import certified, exactness, laws, sampling, sequences, slopes, symbolic
from entropy_theory.theory.verification.evidence import Statement
from entropy_theory.theory.verification.statements import OWN_LOGITS, PAPER, POSITIVE, SMALL_STEP, beyond, part

STEP_STATEMENTS: tuple[Statement, ...] = (
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
        " zero, in units of its standard error. For two tokens and greedy decoding it is known exactly.",
        formula=r"E_{k \sim \tilde p}[S_{c,k}] = \textstyle\sum_k (\tilde p_k - p_k) S_k,\quad"
        r" V = 2,\; \tilde p = (1, 0):\; 2 p (1 - p)^2 \operatorname{logit} p",
        assumptions=("the standard error is that of the distribution that was sampled",),
        checks=(
            symbolic.derivation(
                "sequences.sampled_elsewhere", "the mean under another distribution, and greedy decoding"
            ),
            sampling.off_policy_mean,
        ),
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
        identifier="influence",
        title="Which token moves mean entropy",
        source=part("E"),
        text="With shared weights a token's part in the change of mean entropy is the inner product of two gradients;"
        " with free logits it is minus S_c.",
        formula=r"\Delta \bar H = \frac{\eta}{n} \textstyle\sum_t g_t D_t + O(\eta^2),\quad"
        r" D_t = \langle \nabla \bar H, \nabla \log p_t \rangle",
        assumptions=(
            "mean entropy over a fixed set of contexts",
            "one step of plain or preconditioned gradient ascent",
        ),
        checks=(
            symbolic.derivation("sequences.influence", "the chain rule, and free logits"),
            sequences.influence,
        ),
    ),
    Statement(
        identifier="tangent-logits",
        title="The influence of every token from one tangent",
        source=part("E"),
        text="The derivative of the logits along the gradient of mean entropy takes the place of S: less its policy"
        " mean it is the influence of every token of the vocabulary.",
        formula=r"D_t(y) = u_y - E_{p_t}[u],\; u = J_t \nabla \bar H;\quad E_{y \sim p_t}[D_t] = 0,\;"
        r" E[A D_t] = \operatorname{Cov}_{p_t}(A, u)",
        assumptions=("the gradient of mean entropy does not depend on the sampled token: other sequences' contexts",),
        checks=(
            symbolic.derivation("sequences.tangent_logits", "the inner product, its means, and a group's baseline"),
            sequences.tangent,
            sequences.tangent_means,
        ),
    ),
    Statement(
        identifier="state-shift",
        title="An update changes which contexts are visited",
        source=part("F"),
        text="The gradient of on-policy mean entropy has two parts: entropy on the contexts that are visited, and a"
        " policy gradient with future entropy as the return. The second can decide the sign.",
        formula=r"\nabla M = \frac{1}{E[L]} E\Big[\textstyle\sum_t \nabla h_t + \sum_t \nabla \log \pi(y_t | x_t)"
        r" \Big(\sum_{s > t} (h_s - M) - b_t\Big)\Big]",
        assumptions=("tokens drawn from the policy itself", "b_t does not depend on the token; M and E[L] as logged"),
        checks=(
            symbolic.derivation("sequences.state_shift", "the slope in the logits of one context, three means"),
            sequences.shift_gradient,
            sequences.wrong_sign,
            sequences.reweighted,
        ),
    ),
    Statement(
        identifier="tabular-state-shift",
        title="One context and what follows it, at any step",
        source=part("F"),
        text="With the entropy still to come in place of zero, the exact identity holds for all entropy that follows a"
        " context. The sign theorem does not carry over.",
        formula=r"\Delta J = \rho \Big[-\textstyle\sum_i (q_i - p_i)(\log p_i - Q_i) - \mathrm{KL}\Big],\quad"
        r" S_i^{tot} = p_i (\log p_i - Q_i + H + E_p Q)",
        assumptions=(POSITIVE, "the logits of one context move", "the context is visited at most once per sequence"),
        checks=(
            symbolic.derivation("sequences.tabular_state_shift", "the summands, and the slope"),
            sequences.tabular_change,
            certified.future_breaks_the_sign,
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
