"""The statements of the paper, and what they need first: the gradient and the exact identity."""

from __future__ import annotations

from entropy_theory.theory.verification.checks import precision, properties, sampling, slopes, symbolic
from entropy_theory.theory.verification.evidence import Check, Kind, Statement

PAPER = "arXiv 2602.03392"
BEYOND = "beyond the paper"

_NUMERIC = "entropy_theory"
_DERIVED = "entropy_theory.theory.derivations.paper"
_TEST_CATEGORICAL = "tests/theory/test_categorical.py"
_TEST_DISCRIMINANT = "tests/theory/test_discriminant.py"
_TEST_DERIVATIONS = "tests/theory/derivations/test_derivations.py"
_TEST_STATEMENTS = "tests/theory/verification/test_catalogue.py"

_POSITIVE = "p_i > 0 for every token"
_OWN_LOGITS = "one position's logits are the parameters"
_SMALL_STEP = "a small step: the error is of second order in it"

PAPER_STATEMENTS: tuple[Statement, ...] = (
    Statement(
        identifier="lemma-3.1",
        title="How probabilities answer to one moved logit",
        source=f"{PAPER}, Lemma 3.1",
        text="Raising one logit takes probability from every other token in proportion to what it has.",
        formula=r"\delta z = \varepsilon e_k \;\Rightarrow\; \delta p_k = \varepsilon p_k (1 - p_k),\quad"
        r" \delta p_i = -\varepsilon p_i p_k \;(i \neq k)",
        assumptions=(_POSITIVE, _SMALL_STEP),
        checks=(
            Check(
                Kind.SYMBOLIC,
                "derivative of the softmax",
                symbolic.derivation("lemma_3_1"),
                f"{_DERIVED}.lemma_3_1",
                f"{_TEST_DERIVATIONS}::test_every_derivation_closes",
            ),
            Check(
                Kind.HIGH_PRECISION,
                "p_k (e_k − p) against slopes of the softmax",
                precision.softmax_slopes,
                f"{_NUMERIC}.grpo_direction",
                f"{_TEST_DISCRIMINANT}::test_grpo_direction_matches_mpmath",
            ),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder of the probabilities",
                slopes.probabilities,
                f"{_NUMERIC}.log_softmax",
                f"{_TEST_DISCRIMINANT}::test_remainders_fall_with_the_square_of_the_step",
            ),
        ),
    ),
    Statement(
        identifier="theorem-3.2",
        title="Entropy under one moved logit",
        source=f"{PAPER}, Theorem 3.2",
        text="Raising the logit of a token lowers entropy if its probability is above e^{-H} and raises it if below.",
        formula=r"\delta z = \varepsilon e_k \;\Rightarrow\; \Delta H = -\varepsilon S_k + O(\varepsilon^2),\quad"
        r" S_k = p_k (H + \log p_k),\quad \operatorname{sign} S_k = \operatorname{sign}(p_k - e^{-H})",
        assumptions=(_POSITIVE, _SMALL_STEP),
        checks=(
            Check(
                Kind.SYMBOLIC,
                "derivative of the entropy along e_k",
                symbolic.derivation("theorem_3_2"),
                f"{_DERIVED}.theorem_3_2",
                f"{_TEST_DERIVATIONS}::test_every_derivation_closes",
            ),
            Check(
                Kind.HIGH_PRECISION,
                "S_k against the slope of H",
                precision.discriminant_is_slope,
                f"{_NUMERIC}.discriminant",
                f"{_TEST_DISCRIMINANT}::test_discriminant_matches_mpmath",
            ),
            Check(
                Kind.PROPERTY,
                "sign of S_k, and its lower bound",
                properties.threshold_and_bound,
                f"{_NUMERIC}.discriminant",
                f"{_TEST_DISCRIMINANT}::test_sign_of_the_discriminant",
            ),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder of one logit",
                slopes.single_logit,
                f"{_NUMERIC}.discriminant",
                f"{_TEST_DISCRIMINANT}::test_remainders_fall_with_the_square_of_the_step",
            ),
        ),
    ),
    Statement(
        identifier="theorem-3.3",
        title="Entropy under one GRPO step",
        source=f"{PAPER}, Theorem 3.3",
        text="A policy-gradient step on a sampled token changes entropy by its discriminant above the policy's mean.",
        formula=r"\delta z = \alpha (e_k - p) \;\Rightarrow\; \Delta H = -\alpha (S_k - N) + O(\alpha^2),\quad"
        r" N = \textstyle\sum_i p_i S_i,\quad \alpha = \eta r A",
        assumptions=(_POSITIVE, _OWN_LOGITS, _SMALL_STEP, "no KL or entropy term, and the ratio is not clipped"),
        checks=(
            Check(
                Kind.SYMBOLIC,
                "derivative of the entropy along e_k − p",
                symbolic.derivation("theorem_3_3"),
                f"{_DERIVED}.theorem_3_3",
                f"{_TEST_DERIVATIONS}::test_every_derivation_closes",
            ),
            Check(
                Kind.HIGH_PRECISION,
                "S_k − N against the slope of H along e_k − p",
                precision.centered_discriminant_is_slope,
                f"{_NUMERIC}.centered_discriminant",
                f"{_TEST_DISCRIMINANT}::test_centered_discriminant_matches_mpmath",
            ),
            Check(
                Kind.PROPERTY,
                "the forms of the centred discriminant agree",
                properties.centred_forms_agree,
                f"{_NUMERIC}.first_order_change",
                f"{_TEST_DISCRIMINANT}::test_first_order_change_of_a_grpo_step",
            ),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder of a GRPO step",
                slopes.grpo_step,
                f"{_NUMERIC}.centered_discriminant",
                f"{_TEST_DISCRIMINANT}::test_remainders_fall_with_the_square_of_the_step",
            ),
        ),
    ),
    Statement(
        identifier="corollary-3.4",
        title="The centred discriminant has mean zero",
        source=f"{PAPER}, Corollary 3.4",
        text="Under the policy itself the expected first-order change at a constant advantage is zero.",
        formula=r"E_{k \sim p}[S_k - N] = 0",
        assumptions=(_POSITIVE, "tokens drawn from p itself"),
        checks=(
            Check(
                Kind.SYMBOLIC,
                "mean of S and of N",
                symbolic.derivation("corollary_3_4"),
                f"{_DERIVED}.corollary_3_4",
                f"{_TEST_DERIVATIONS}::test_every_derivation_closes",
            ),
            Check(
                Kind.HIGH_PRECISION,
                "N against the mean slope of H",
                precision.baseline_is_mean_slope,
                f"{_NUMERIC}.baseline",
                f"{_TEST_DISCRIMINANT}::test_baseline_matches_mpmath",
            ),
            Check(
                Kind.PROPERTY,
                "Σ p S_c = 0",
                properties.centred_mean_is_zero,
                f"{_NUMERIC}.centered_discriminant",
                f"{_TEST_DISCRIMINANT}::test_centered_discriminant_has_mean_zero",
            ),
        ),
    ),
    Statement(
        identifier="corollary-3.5",
        title="The centred discriminant of a batch has mean zero",
        source=f"{PAPER}, Corollary 3.5",
        text="Over a batch sampled on-policy the mean of S_c is zero in expectation; its standard error is known.",
        formula=r"E\Big[\tfrac1n \textstyle\sum_t S_{c,t}\Big] = 0,\quad"
        r" \mathrm{SE} = \tfrac1n \sqrt{\textstyle\sum_t \operatorname{Var}_{p_t} S}",
        assumptions=(
            "every token drawn from the very distribution that is scored: same temperature, no top-p or top-k",
            "weights do not depend on the drawn tokens, nor on the advantage",
        ),
        checks=(
            Check(
                Kind.SYMBOLIC,
                "mean and variance of the sum, token after token",
                symbolic.derivation("corollary_3_5", "updates"),
                "entropy_theory.theory.derivations.updates.corollary_3_5",
                f"{_TEST_DERIVATIONS}::test_every_derivation_closes",
            ),
            Check(
                Kind.MONTE_CARLO,
                "mean of S_c over drawn tokens",
                sampling.on_policy_mean,
                f"{_NUMERIC}.centered_discriminant",
                f"{_TEST_STATEMENTS}::test_every_check_passes_on_the_quick_budget",
            ),
        ),
    ),
    Statement(
        identifier="gradient",
        title="The discriminant is minus the gradient of entropy",
        source=f"{BEYOND}: section B.1 of the theory notes",
        text="Each logit moves entropy by minus its discriminant; the discriminants sum to zero, and in logits each is"
        " the token's probability times its logit above the policy's mean logit.",
        formula=r"\frac{\partial H}{\partial z_i} = -S_i = -p_i (z_i - E_p[z]),\quad \textstyle\sum_i S_i = 0",
        assumptions=(_POSITIVE,),
        checks=(
            Check(
                Kind.SYMBOLIC,
                "derivative of the entropy along any direction",
                symbolic.derivation("gradient"),
                f"{_DERIVED}.gradient",
                f"{_TEST_DERIVATIONS}::test_every_derivation_closes",
            ),
            Check(
                Kind.HIGH_PRECISION,
                "−Σ S_i d_i against the slope of H along d",
                precision.first_order_is_slope,
                f"{_NUMERIC}.first_order_change",
                f"{_TEST_DISCRIMINANT}::test_discriminant_matches_autograd",
            ),
            Check(
                Kind.PROPERTY,
                "Σ S_i = 0",
                properties.sum_is_zero,
                f"{_NUMERIC}.discriminant",
                f"{_TEST_DISCRIMINANT}::test_discriminants_sum_to_zero",
            ),
            Check(
                Kind.CONVERGENCE_ORDER,
                "remainder along random directions",
                slopes.any_direction,
                f"{_NUMERIC}.first_order_change",
                f"{_TEST_DISCRIMINANT}::test_remainders_fall_with_the_square_of_the_step",
            ),
        ),
    ),
    Statement(
        identifier="exact-identity",
        title="The exact change of entropy",
        source=f"{BEYOND}: section B.3 of the theory notes",
        text="The change of entropy between any two policies is a linear term minus a Kullback-Leibler divergence, so"
        " the linear term alone is an upper bound.",
        formula=r"H(q) - H(p) = -\textstyle\sum_i (q_i - p_i) \log p_i - \mathrm{KL}(q \,\|\, p)",
        assumptions=("q_i = 0 where p_i = 0",),
        checks=(
            Check(
                Kind.SYMBOLIC,
                "the summands, token by token",
                symbolic.derivation("exact_identity"),
                f"{_DERIVED}.exact_identity",
                f"{_TEST_DERIVATIONS}::test_every_derivation_closes",
            ),
            Check(
                Kind.HIGH_PRECISION,
                "steps from 1e-8 to 20 against the two entropies",
                precision.exact_change,
                f"{_NUMERIC}.entropy_change",
                f"{_TEST_CATEGORICAL}::test_entropy_change_keeps_its_digits_at_small_steps",
            ),
            Check(
                Kind.PROPERTY,
                "there and back, and the upper bound",
                properties.change_reverses,
                f"{_NUMERIC}.entropy_change",
                f"{_TEST_CATEGORICAL}::test_entropy_change_is_reversible",
            ),
        ),
    ),
    Statement(
        identifier="four-conditions",
        title="Four conditions, four signs",
        source=f"{PAPER}, Section 4.1; the covariance argument is {BEYOND}",
        text="Training on positive samples, keeping tokens of high S lowers entropy in expectation and keeping tokens"
        " of low S raises it; on negative samples both reverse. Token by token this need not hold.",
        formula=r"E_{k \sim p}[\mathbf 1\{S_k > \tau\} (S_k - N)] = \operatorname{Cov}_p(S, \mathbf 1\{S > \tau\})"
        r" \ge 0 \quad \text{for every } \tau",
        assumptions=("tokens drawn from p itself", "a constant advantage", _OWN_LOGITS, _SMALL_STEP),
        checks=(
            Check(
                Kind.SYMBOLIC,
                "the covariance, split at the threshold",
                symbolic.derivation("four_conditions"),
                f"{_DERIVED}.four_conditions",
                f"{_TEST_DERIVATIONS}::test_every_derivation_closes",
            ),
            Check(
                Kind.PROPERTY,
                "signs of the covariance and of the exact expected change",
                properties.four_signs,
                f"{_NUMERIC}.centered_discriminant",
                f"{_TEST_STATEMENTS}::test_four_conditions_hold_in_expectation_not_token_by_token",
            ),
        ),
    ),
)
