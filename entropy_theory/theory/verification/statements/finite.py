"""Statements beyond the paper about GRPO steps of any size, and about tokens that move together."""

from __future__ import annotations

from entropy_theory.theory.verification import questions
from entropy_theory.theory.verification.checks import certified, exactness, finite_steps, laws, searches, symbolic
from entropy_theory.theory.verification.evidence import Statement
from entropy_theory.theory.verification.statements import ONE_TOKEN, OWN_LOGITS, POSITIVE, beyond, part

_SHARE = "0 <= λ <= 1; λ = 1 is a GRPO step, λ = 0 one moved logit"

FINITE_STATEMENTS: tuple[Statement, ...] = (
    Statement(
        identifier="one-sided-sign-theorem",
        title="A predicted fall of a GRPO step is a fall",
        source=beyond("B.8"),
        text="If the first order of a GRPO step predicts no rise, entropy falls at every step size, by at least the"
        " divergence of the new policy from the old. Only predicted rises can fail. For λ > 0 the divergence is met"
        " exactly by uniform policies alone, for λ = 0 where S_k = 0.",
        formula=r"\alpha S_c \ge 0,\; \alpha \ne 0 \;\Rightarrow\; \Delta H \le -\mathrm{KL}(q_\alpha \,\|\, p) < 0,"
        r"\quad q_t \propto p\, e^{t (e_k - \lambda p)},\; 0 \le \lambda \le 1",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN),
        checks=(
            symbolic.derivation("sign_theorem.slope_along_a_ray", "slope of H along a ray"),
            symbolic.derivation("sign_theorem.one_sided_sign_theorem", "each identity and inequality of the proof"),
            laws.grpo_falls,
            searches.inside("climbing towards a rise, λ = 1 and ½", *questions.INSIDE[:2]),
            certified.two_tokens,
            certified.three_tokens,
        ),
    ),
    Statement(
        identifier="step-bound",
        title="A bound for every step, rises included",
        source=part("D, T1"),
        text="The first order, with the step measured by the sampled token's probability, less the divergence, bounds"
        " the change of entropy at every step size of either sign. The sign theorem is the case of a predicted fall.",
        formula=r"\Delta H \le -S_d \frac{q_k - p_k}{D_0} - \mathrm{KL}(q_\alpha \,\|\, p),\quad"
        r" D_0 = \operatorname{Cov}_p(d, 1_k),\quad d = e_k - \lambda p",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN, _SHARE),
        checks=(
            symbolic.derivation("finite_steps.step_bound", "covariances along the ray, Chebyshev's sum twice, D₀"),
            finite_steps.bound_value,
            finite_steps.bound_holds,
            searches.step_bound,
        ),
    ),
    Statement(
        identifier="concavity",
        title="Entropy is concave in the sampled token's probability",
        source=part("D, T2"),
        text="Along the ray, at every negative step and at every step up to 1, entropy is a strictly concave function"
        " of the probability that the sampled token has reached.",
        formula=r"\frac{d^2 H}{d q_k^2} < 0 \text{ while } \alpha \lambda \max_{i \ne k} p_i \le 1",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN, _SHARE),
        checks=(
            symbolic.derivation("finite_steps.concavity", "the slope in q_k falls, by Chebyshev's sum and a variance"),
            finite_steps.concave,
        ),
    ),
    Statement(
        identifier="unimodal-rise",
        title="For α < 0 a predicted rise rises once",
        source=part("D, T2"),
        text="Under a negative step a predicted rise grows, then shrinks at most once. It ends at the logarithm of the"
        " number of likeliest other tokens: where that is above the start, no step flips the sign.",
        formula=r"\alpha < 0,\; S_c > 0:\; \Delta H = 0 \text{ at one } \alpha^* \iff \log m < H(p);\quad"
        r" p = (.8, .1, .1):\; \Delta H \to \log 2 - H = +.0541",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN, "m tokens other than k share the largest probability"),
        checks=(
            symbolic.derivation("finite_steps.concavity", "entropy is concave in q_k for every α < 0"),
            symbolic.derivation("finite_steps.unimodal_rise", "where the ray ends, and an example without a flip"),
            finite_steps.unimodal,
            searches.second_rise,
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
            certified.rises_come_and_go,
        ),
    ),
    Statement(
        identifier="sharpness-of-the-sign-theorem",
        title="The sign theorem reaches no further",
        source=part("D"),
        text="For every λ outside [0, 1], for two sampled tokens and for the expected policy gradient there are"
        " policies on which a predicted fall is a rise.",
        formula=r"\alpha\, \textstyle\sum_i S_i d_i \ge 0 \;\not\Rightarrow\; \Delta H < 0 \text{ for }"
        r" d = e_k - \lambda p,\; \lambda \notin [0, 1];\quad d = e_1 + e_2 - 2p;\quad d = p (A - E_p A)",
        assumptions=(POSITIVE, OWN_LOGITS),
        checks=(
            symbolic.derivation(
                "sharpness.small_negative_share", "a family for every −1 < λ < 0: entropy ends at log 2"
            ),
            symbolic.derivation("sharpness.negative_share", "a family for every λ < 0: from log V to log(V + 1)"),
            symbolic.derivation("sharpness.large_share", "a family for every λ > 1: entropy ends at log M"),
            certified.sharpness,
            searches.outside("λ = 1.05", questions.OUTSIDE[0]),
            searches.outside("λ = −.1", questions.OUTSIDE[1]),
            searches.outside("two sampled tokens", questions.OUTSIDE[2]),
            searches.outside("expected policy gradient", questions.OUTSIDE[3]),
        ),
    ),
    Statement(
        identifier="many-small-steps",
        title="Many small steps on one token",
        source=part("D, T3"),
        text="Under many small steps on one token, each along its own policy gradient, the half of S_c in which entropy"
        " falls is never left: entropy rises at most once and then falls for good.",
        formula=r"z' = a(t)(e_k - p(z)),\; a \ge 0,\; S_c(0) \ge 0 \;\Rightarrow\; S_c(t) \ge 0;\quad"
        r" S_c = 0:\; \frac{dS_c}{dt} = (1 - p_k) G + \operatorname{Var}_p(d) + \operatorname{Cov}_p(p, S)",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN, "for a <= 0 the same with S_c <= 0"),
        checks=(
            symbolic.derivation("finite_steps.many_small_steps", "the slope of S_c on its boundary, term by term"),
            symbolic.derivation("sign_theorem.one_sided_sign_theorem", "G >= 0 where S_c = 0: steps (i) and (ii)"),
            finite_steps.small_steps,
        ),
    ),
    Statement(
        identifier="one-step-keeps-its-half",
        title="One step of any size keeps its half, too",
        source=part("D, T3 (a conjecture there)"),
        text="Where S_c = 0, raising the sampled token's logit against any other one raises S_c. So no step of any"
        " size, and no sequence of steps on the token, even of stale policies, leads from the half of S_c in which"
        " entropy falls to the other.",
        formula=r"S_c = 0 \;\Rightarrow\; \frac{\partial S_c}{\partial z_k} > \frac{\partial S_c}{\partial z_j}"
        r" \;(j \ne k);\quad \alpha S_c(p) \ge 0 \;\Rightarrow\; \alpha S_c(q_\alpha) \ge 0",
        assumptions=(POSITIVE, OWN_LOGITS, ONE_TOKEN, _SHARE),
        checks=(
            symbolic.derivation("halves.one_step_keeps_its_half", "the slope against each other logit, term by term"),
            finite_steps.boundary_slopes,
            searches.other_half,
        ),
    ),
    Statement(
        identifier="two-valued-directions",
        title="Sets of tokens that move together, and the pass rate",
        source=part("D, T4"),
        text="When the logits of a set of tokens move alike, three numbers decide the change of entropy, and a"
        " predicted fall is a fall at any size. On whole sequences with a 0/1 reward this is KL-regularised"
        " reinforcement learning: entropy rises with the pass rate Q exactly while Q < σ(H_right - H_wrong).",
        formula=r"\Delta H = -(Q - P)\, x - \mathrm{KL},\; x = \operatorname{logit} P + H_W - H_K;\quad"
        r" \pi \propto \pi_0 e^{R/\beta}:\; H = h(Q) + Q H_{right} + (1 - Q) H_{wrong}",
        assumptions=(POSITIVE, "the logits of a set K move alike, all others stay; or rewards are 0 and 1"),
        checks=(
            symbolic.derivation(
                "finite_steps.two_valued_directions", "the exact law, its peak, and the slope in the pass rate"
            ),
            finite_steps.set_change,
            finite_steps.sets_of_tokens,
            finite_steps.pass_rate,
        ),
    ),
)
