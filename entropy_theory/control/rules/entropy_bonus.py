"""The entropy bonus, with a fixed coefficient or with one of the controllers in use.

An entropy term changes no g_t: it adds ∂J/∂H_t = c, which to first order raises H at its position by η c Σ_i S_i²
(section B.11 of the theory notes): most where Σ S² is large, at middling entropy, and next to nothing on nearly
deterministic positions. A trainer must carry `RuleOutput.entropy_coefficients` besides the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from entropy_theory.control.base import Rule, Scope, Step
from entropy_theory.control.flow import Context, Flow, State
from entropy_theory.control.parameters import choice, decided, number
from entropy_theory.control.reducers import masked_mean
from entropy_theory.control.registry import register
from entropy_theory.errors import invalid

Over = Literal["counted", "kept"]
Variant = Literal["skywork", "trl"]
Signal = Literal["sampled", "entropy"]


@dataclass(frozen=True)
class _EntropyTerm(Rule):
    """What the two rules share: where the bonus goes."""

    kind = "entropy term"
    needs: ClassVar[tuple[str, ...]] = ("entropy",)
    entropy_term = True

    over: Over = choice("counted", Over)

    def _bonus(self, flow: Flow, context: Context, coefficient: float) -> Flow:
        counted = flow.counted
        if self.over == "kept":
            # the mean over kept tokens, written as part of a mean over the counted ones
            sizes = torch.stack([counted.sum(), (counted & flow.kept).sum()])
            whole, part = context.reducer.sum(sizes).tolist()
            coefficient = coefficient * whole / max(part, 1)
            counted = counted & flow.kept
        value = torch.full_like(flow.ratio.detach(), coefficient).masked_fill(~counted, 0.0)
        return flow.with_entropy(value)


@register
@dataclass(frozen=True)
class EntropyBonus(_EntropyTerm):
    """The entropy bonus: c times the mean entropy, added to the objective.

    Williams & Peng (1991), A3C (arXiv 1602.01783); official code: verl `compute_entropy_loss`, TRL `entropy_coef`.

        J += c H_t,   ∂J/∂H_t = c;   to first order ΔH_t = η c Σ_i S_i²

    Args:
        coefficient: c; a negative one lowers entropy.
        over: "counted": the mean over the tokens that the denominator counts; "kept": over those that no earlier rule
            of the pipe dropped, as TRL has it together with its high-entropy mask.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> H = torch.tensor([[0.5, 1.0]])
        >>> out = EntropyBonus(coefficient=0.1).apply(TokenBatch(-H, H, torch.zeros(1), torch.ones(1, 2)))
        >>> round(out.loss().item(), 6), out.coefficients.tolist()
        (-0.075, [[0.0, 0.0]])
    """

    name = "entropy-bonus"
    paper = "Williams & Peng 1991; arXiv 1602.01783"
    quadrants = "none: raises entropy at every position by c Σ S²"
    parity = "verl entropy loss (four aggregations), TRL entropy bonus"

    coefficient: float = number(1e-3)

    @decided
    def scope(self) -> Scope:
        """The tokens that are kept are counted over the step."""
        return "batch" if self.over == "kept" else "token"

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Add the term."""
        return self._bonus(flow, context, self.coefficient), {"coefficient": self.coefficient}, None


@register
@dataclass(frozen=True)
class AdaptiveEntropy(_EntropyTerm):
    """An entropy bonus whose coefficient follows the entropy.

    Skywork-OR1 (arXiv 2505.22312), official code `EntController`; TRL `use_adaptive_entropy`.

        skywork  used: c if the entropy of the previous step was < target (from the start: yes), else 0
                 then  c ← clamp(c + δ if H < target else c − δ, minimum, maximum)
        trl      used: c if the entropy of the previous step was ≤ target (from the start: no), else 0
                 then  c ← clamp(c + δ if H ≤ target else c − δ, minimum, maximum)

    H is the mean over the valid tokens of all ranks and micro-batches: Skywork's is the sampled estimate −mean log
    p_old, TRL's the analytic one.

    Args:
        over: As for `EntropyBonus`.
        variant: Whose controller.
        initial: c at the start; None is 0.
        minimum: Lower end of c; None is 0.
        maximum: Upper end; None is .005 for skywork, 1 for trl.
        step: δ; None is 1e-4 for skywork, .005 for trl.
        target: Nats; the entropy to keep.
        signal: "sampled" or "entropy"; None is the variant's own.

    State: `coefficient`, and `enabled` for the next step.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> H = torch.full((1, 2), 0.1)
        >>> batch, controller, state = TokenBatch(-H, H, torch.zeros(1), torch.ones(1, 2), -H), AdaptiveEntropy(), None
        >>> for _ in range(3):
        ...     out = controller.apply(batch, state=state)
        ...     state = out.state
        ...     print(round(out.metrics["coefficient"], 6), round(state["coefficient"], 6))
        0.0 0.0001
        0.0001 0.0002
        0.0002 0.0003
    """

    name = "adaptive-entropy"
    paper = "arXiv 2505.22312"
    quadrants = "none: as entropy-bonus, while entropy is below the target"
    parity = "Skywork EntController, TRL use_adaptive_entropy, 48 steps each"

    variant: Variant = choice("skywork", Variant)
    initial: float | None = number(None)
    minimum: float | None = number(None)
    maximum: float | None = number(None)
    step: float | None = number(None, 0.0)
    target: float = number(0.2)
    signal: Signal | None = choice(None, (None, "sampled", "entropy"))

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.minimum or 0.0, self.maximum
        if high is not None and high < low:
            raise invalid(f"{self.name} maximum", f"a number ≥ the minimum {low:g}", f"{high:g}")

    @decided
    def needs(self) -> tuple[str, ...]:
        """H, and the old log-probabilities for the sampled signal."""
        sampled = (self.signal or ("sampled" if self.variant == "skywork" else "entropy")) == "sampled"
        return ("entropy", "old_log_probs") if sampled else ("entropy",)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Add the term with the present coefficient, then move the coefficient."""
        skywork = self.variant == "skywork"
        step = (1e-4 if skywork else 5e-3) if self.step is None else self.step
        low = 0.0 if self.minimum is None else self.minimum
        high = (5e-3 if skywork else 1.0) if self.maximum is None else self.maximum
        now = {"coefficient": self.initial or 0.0, "enabled": skywork} if state is None else state
        used = now["coefficient"] if now["enabled"] else 0.0
        values = -flow.old_log_probs(context) if "old_log_probs" in self.needs else context.batch.entropy
        entropy = masked_mean(values, flow.valid, context.reducer)
        below = entropy < self.target if skywork else entropy <= self.target
        moved = min(max(now["coefficient"] + (step if below else -step), low), high)
        metrics = {"coefficient": used, "controlled_entropy": entropy, "next_coefficient": moved}
        return self._bonus(flow, context, used), metrics, {"coefficient": moved, "enabled": below}
