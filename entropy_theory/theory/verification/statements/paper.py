"""The statements of the paper, and what they need first: the gradient and the exact identity."""

from __future__ import annotations

from entropy_theory.theory.verification.checks import precision, properties, sampling, sequences, slopes, symbolic
from entropy_theory.theory.verification.evidence import Statement
from entropy_theory.theory.verification.statements import OWN_LOGITS, PAPER, POSITIVE, SMALL_STEP, beyond

PAPER_STATEMENTS: tuple[Statement, ...] = (
    Statement(
        identifier="lemma-3.1",
        title="How probabilities answer to one moved logit",
        source=f"{PAPER}, Lemma 3.1",
        text="Raising one logit takes probability from every other token in proportion to what it has.",
        formula=r"\delta z = \varepsilon e_k \;\Rightarrow\; \delta p_k = \varepsilon p_k (1 - p_k),\quad"
        r" \delta p_i = -\varepsilon p_i p_k \;(i \neq k)",
        assumptions=(POSITIVE, SMALL_STEP),
        checks=(
            symbolic.derivation("paper.lemma_3_1", "derivative of the softmax"),
            precision.softmax_slopes,
            slopes.probabilities,
        ),
    ),
    Statement(
        identifier="theorem-3.2",
        title="Entropy under one moved logit",
        source=f"{PAPER}, Theorem 3.2",
        text="Raising the logit of a token lowers entropy if its probability is above e^{-H} and raises it if below.",
        formula=r"\delta z = \varepsilon e_k \;\Rightarrow\; \Delta H = -\varepsilon S_k + O(\varepsilon^2),\quad"
        r" S_k = p_k (H + \log p_k),\quad \operatorname{sign} S_k = \operatorname{sign}(p_k - e^{-H})",
        assumptions=(POSITIVE, SMALL_STEP),
        checks=(
            symbolic.derivation("paper.theorem_3_2", "derivative of the entropy along e_k"),
            precision.discriminant_is_slope,
            properties.threshold_and_bound,
            slopes.single_logit,
        ),
    ),
    Statement(
        identifier="theorem-3.3",
        title="Entropy under one GRPO step",
        source=f"{PAPER}, Theorem 3.3",
        text="A policy-gradient step on a sampled token changes entropy by its discriminant above the policy's mean.",
        formula=r"\delta z = \alpha (e_k - p) \;\Rightarrow\; \Delta H = -\alpha (S_k - N) + O(\alpha^2),\quad"
        r" N = \textstyle\sum_i p_i S_i,\quad \alpha = \eta r A",
        assumptions=(POSITIVE, OWN_LOGITS, SMALL_STEP, "no KL or entropy term, and the ratio is not clipped"),
        checks=(
            symbolic.derivation("paper.theorem_3_3", "derivative of the entropy along e_k − p"),
            precision.centered_discriminant_is_slope,
            properties.centred_forms_agree,
            slopes.grpo_step,
        ),
    ),
    Statement(
        identifier="corollary-3.4",
        title="The centred discriminant has mean zero",
        source=f"{PAPER}, Corollary 3.4",
        text="Under the policy itself the expected first-order change at a constant advantage is zero.",
        formula=r"E_{k \sim p}[S_k - N] = 0",
        assumptions=(POSITIVE, "tokens drawn from p itself"),
        checks=(
            symbolic.derivation("paper.corollary_3_4", "mean of S and of N"),
            precision.baseline_is_mean_slope,
            properties.centred_mean_is_zero,
        ),
    ),
    Statement(
        identifier="corollary-3.5",
        title="The centred discriminant of a batch has mean zero",
        source=f"{PAPER}, Corollary 3.5",
        text="Over a batch sampled on-policy the mean of S_c is zero in expectation; its standard error is known."
        " That is so for sums and fixed denominators: with a stop token, the mean over tokens divides by a sampled"
        " length, and is biased by the covariance of the sum and the length.",
        formula=r"E\Big[\tfrac1n \textstyle\sum_t S_{c,t}\Big] = 0,\quad"
        r" \mathrm{SE} = \tfrac1n \sqrt{\textstyle\sum_t \operatorname{Var}_{p_t} S}",
        assumptions=(
            "every token drawn from the very distribution that is scored: same temperature, no top-p or top-k",
            "weights do not depend on the drawn tokens, nor on the advantage",
        ),
        checks=(
            symbolic.derivation("updates.corollary_3_5", "mean and variance of the sum, token after token"),
            symbolic.derivation("sequences.token_mean_bias", "the bias of a mean over a sampled number of tokens"),
            sequences.enumerated_means,
            sampling.on_policy_mean,
        ),
    ),
    Statement(
        identifier="gradient",
        title="The discriminant is minus the gradient of entropy",
        source=beyond("B.1"),
        text="Each logit moves entropy by minus its discriminant; the discriminants sum to zero, and in logits each is"
        " the token's probability times its logit above the policy's mean logit.",
        formula=r"\frac{\partial H}{\partial z_i} = -S_i = -p_i (z_i - E_p[z]),\quad \textstyle\sum_i S_i = 0",
        assumptions=(POSITIVE,),
        checks=(
            symbolic.derivation("paper.gradient", "derivative of the entropy along any direction"),
            precision.first_order_is_slope,
            properties.sum_is_zero,
            slopes.any_direction,
        ),
    ),
    Statement(
        identifier="exact-identity",
        title="The exact change of entropy",
        source=beyond("B.3"),
        text="The change of entropy between any two policies is a linear term minus a Kullback-Leibler divergence, so"
        " the linear term alone is an upper bound.",
        formula=r"H(q) - H(p) = -\textstyle\sum_i (q_i - p_i) \log p_i - \mathrm{KL}(q \,\|\, p)",
        assumptions=("q_i = 0 where p_i = 0",),
        checks=(
            symbolic.derivation("paper.exact_identity", "the summands, token by token"),
            precision.exact_change,
            properties.change_reverses,
        ),
    ),
    Statement(
        identifier="four-conditions",
        title="Four conditions, four signs",
        source=f"{PAPER}, Section 4.1; the covariance argument is beyond the paper",
        text="Training on positive samples, keeping tokens of high S lowers entropy in expectation and keeping tokens"
        " of low S raises it; on negative samples both reverse. Token by token this need not hold.",
        formula=r"E_{k \sim p}[\mathbf 1\{S_k > \tau\} (S_k - N)] = \operatorname{Cov}_p(S, \mathbf 1\{S > \tau\})"
        r" \ge 0 \quad \text{for every } \tau",
        assumptions=("tokens drawn from p itself", "a constant advantage", OWN_LOGITS, SMALL_STEP),
        checks=(
            symbolic.derivation("paper.four_conditions", "the covariance, split at the threshold"),
            properties.four_signs,
        ),
    ),
)
