"""What goes down a pipe of rules, and what comes out of it.

The flow starts from the unmodified policy gradient of the sampled tokens,

    J_t = r_t A_t,   g_t = ∂J_t/∂ log p_t = r_t A_t,   r_t = exp(log p_t − log p_old,t),

with every valid token counted in the token mean. Each rule returns a changed flow. The changes are:

- a mask (`masked`): the objective, the coefficients and the effective advantages of dropped tokens become 0;
- a gate (`gated`): the coefficients become 0, the objective keeps its value without a gradient;
- a weight (`weighted`): objective, coefficients and effective advantages are multiplied by it;
- other advantages (`with_advantages`), before any surrogate;
- a surrogate (`replaced`): a new objective, computed from the effective advantages and the ratio, and what it makes
  of the coefficients;
- an entropy term (`with_entropy`): ∂J/∂H per token.

Statistics never carry a gradient; the objective does when `log_probs` requires one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_theory.control.batch import TokenBatch
from entropy_theory.control.reducers import Reducer, is_full
from entropy_theory.errors import invalid

MAX_LOG_RATIO = 20.0
"""The log-ratio is clamped to ±20 before it is exponentiated, as verl does; beyond, the gradient is 0."""

Statistics = Literal["valid", "kept"]
Denominator = Literal["kept", "valid"]
State = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Context:
    """What every rule of a pipe may read besides the flow.

    Args:
        batch: The statistics of this rank's tokens.
        reducer: The collectives that make statistics global.
        generator: The source of random draws, seeded alike on every rank; None when the caller gave none.
        valid_tokens: The number of valid tokens on all ranks, at least 1.
    """

    batch: TokenBatch
    reducer: Reducer
    generator: torch.Generator | None
    valid_tokens: int

    def generator_for(self, rule: object) -> torch.Generator:
        """The generator, for a rule that draws.

        Raises:
            ValueError: the caller gave none.

        Example:
            >>> from entropy_theory.control import rule
            >>> x = torch.full((1, 2), -1.0)
            >>> rule("random-mask(fraction=0.5)").apply(TokenBatch(x, -x, torch.tensor([1.0]), torch.ones(1, 2)))
            Traceback (most recent call last):
            ...
            entropy_theory.errors.InputError: generator: expected a torch.Generator, ... for ...
        """
        if self.generator is None:
            raise invalid("generator", f"a torch.Generator, in the same state on every rank, for {rule}", None)
        return self.generator


@dataclass(frozen=True, eq=False)
class Flow:
    """The policy gradient on its way through a pipe of rules.

    Args:
        valid: The valid tokens, (B, T).
        ratio: r, 1 without old log-probabilities; differentiable in log p when `log_probs` is.
        advantages: The effective advantages Â: A times the masks and weights so far.
        unmasked_advantages: A times the weights so far; rules that choose tokens by the sign of A read it, since
            Â is 0 where an earlier rule dropped the token.
        log_probs: log p, differentiable when the batch's are.
        log_ratio: log p − log p_old, not clamped; 0 without old log-probabilities.
        coefficients: g = ∂J/∂ log p, without gradient.
        objective: J per token, or None when the pipe has no closed form of it.
        kept: Tokens that no rule has dropped.
        counted: Tokens that the token mean counts.
        entropy_coefficients: ∂J/∂H per token, or None for 0.
        masks: Whether any rule has offered a keep-mask.
        surrogates: How many rules have replaced the objective.

    Shapes: (B, T). All values are 0, False or 1 (ratio) at masked positions.

    A flow also begins where an earlier one ended (`start` with `after`): what a batch rule decided stays, and the
    ratio is that of the present policy.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> Flow.start(TokenBatch(x, x, torch.tensor([2.0]), torch.tensor([[1, 0]]))).coefficients.tolist()
        [[2.0, 0.0]]
    """

    valid: Bool[Tensor, "B T"]
    ratio: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    unmasked_advantages: Float[Tensor, "B T"]
    log_probs: Float[Tensor, "B T"]
    log_ratio: Float[Tensor, "B T"]
    coefficients: Float[Tensor, "B T"]
    objective: Float[Tensor, "B T"] | None
    kept: Bool[Tensor, "B T"]
    counted: Bool[Tensor, "B T"]
    entropy_coefficients: Float[Tensor, "B T"] | None = None
    masks: bool = False
    surrogates: int = 0

    @classmethod
    def start(cls, batch: TokenBatch, after: Decided | None = None) -> Flow:
        """Begin with g = J = r A; without old log-probabilities r = 1 and g has the very bits of A.

        Args:
            batch: The statistics of the present policy.
            after: The output of the batch rules that came before, on the same tokens: their effective advantages,
                masks, counts and entropy coefficients are taken up.
        """
        valid = batch.completion_mask
        # masked positions are replaced before any arithmetic: a NaN there must reach neither value nor gradient
        advantages, log_probs = batch.token_advantages.detach(), batch.log_probs
        if is_full(valid):
            # an output never shares memory with the batch, and is contiguous
            advantages = advantages.clone(memory_format=torch.contiguous_format)
        else:
            advantages, log_probs = advantages.masked_fill(~valid, 0.0), log_probs.masked_fill(~valid, 0.0)
        unmasked, kept, counted = advantages, valid, valid
        if after is not None:
            if after.advantages.shape != valid.shape:
                raise invalid("after", f"the output of a rule on tokens of shape {tuple(valid.shape)}", "another shape")
            advantages, counted = after.advantages, after.counted_mask
            kept = valid if after.keep_mask is None else after.keep_mask
            unmasked = advantages if after.unmasked_advantages is None else after.unmasked_advantages
        if batch.old_log_probs is not None:
            log_ratio = log_probs - batch.old_log_probs.detach().masked_fill(~valid, 0.0)
            ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
            inside = log_ratio.detach().abs() <= MAX_LOG_RATIO
            coefficients = (advantages * ratio.detach()).masked_fill(~inside, 0.0)
            objective = advantages * ratio
        elif log_probs.requires_grad:
            # the value is exactly 1; written out only so that its derivative in log p is there
            log_ratio = log_probs - log_probs.detach()
            ratio = log_ratio.exp()
            coefficients, objective = advantages, advantages * ratio
        else:  # views of one number: pages of memory would cost more than the rest of a rule
            log_ratio, ratio = (log_probs.new_tensor(value).expand(valid.shape) for value in (0.0, 1.0))
            coefficients = objective = advantages
        return cls(
            valid,
            ratio,
            advantages,
            unmasked,
            log_probs,
            log_ratio,
            coefficients,
            objective,
            kept=kept,
            counted=counted,
            entropy_coefficients=None if after is None else after.entropy_coefficients,
            masks=after is not None and after.keep_mask is not None,
        )

    def old_log_probs(self, context: Context) -> Float[Tensor, "B T"]:
        """Log p before the update as it was given, without gradient; log p itself when the batch has none."""
        old = context.batch.old_log_probs
        return (self.log_probs if old is None else old.masked_fill(~self.valid, 0.0)).detach()

    def population(self, statistics: Statistics) -> Bool[Tensor, "B T"]:
        """The tokens that a rule looks at: all valid ones, or those that earlier rules kept."""
        return self.kept if statistics == "kept" else self.valid

    def masked(self, keep: Bool[Tensor, "B T"], denominator: Denominator) -> Flow:
        """Drop tokens; with denominator "kept" they also leave the token mean's count, and their entropy term."""
        dropped = ~keep
        advantages = self.advantages.masked_fill(dropped, 0.0)

        def filled(values: Tensor) -> Tensor:  # without a ratio they are the advantages themselves
            return advantages if values is self.advantages else values.masked_fill(dropped, 0.0)

        out = replace(
            self,
            advantages=advantages,
            coefficients=filled(self.coefficients),
            objective=None if self.objective is None else filled(self.objective),
            kept=self.kept & keep,
            masks=True,
        )
        return out.uncounted(dropped) if denominator == "kept" else out

    def gated(self, keep: Bool[Tensor, "B T"]) -> Flow:
        """Take the gradient from tokens that stay in the objective's value and in the count."""
        dropped = ~keep
        objective = self.objective
        return replace(
            self,
            advantages=self.advantages.masked_fill(dropped, 0.0),
            coefficients=self.coefficients.masked_fill(dropped, 0.0),
            objective=None if objective is None else torch.where(keep, objective, objective.detach()),
            kept=self.kept & keep,
            masks=True,
        )

    def uncounted(self, tokens: Bool[Tensor, "B T"]) -> Flow:
        """Take tokens out of the token mean's count, and their entropy term with them."""
        entropy = self.entropy_coefficients
        return replace(
            self,
            counted=self.counted & ~tokens,
            entropy_coefficients=None if entropy is None else entropy.masked_fill(tokens, 0.0),
        )

    def weighted(self, weight: Float[Tensor, "B T"]) -> Flow:
        """Multiply objective, coefficients and effective advantages by a weight that carries no gradient.

        The weight may hold anything at masked positions.
        """
        weight = weight.detach().masked_fill(~self.valid, 1.0)
        return replace(
            self,
            advantages=self.advantages * weight,
            unmasked_advantages=self.unmasked_advantages * weight,
            coefficients=self.coefficients * weight,
            objective=None if self.objective is None else self.objective * weight,
        )

    def with_advantages(self, advantages: Float[Tensor, "B T"], by: str) -> Flow:
        """Put other advantages in place of A; dropped tokens stay dropped.

        Args:
            advantages: The new A; may hold anything at masked positions.
            by: The rule, for the message.

        Raises:
            ValueError: a surrogate came before: it has used the old advantages up.
        """
        if self.surrogates:
            raise invalid("rule", f"{by} before the rules that replace the objective", "a pipe in another order")
        unmasked = advantages.detach().to(self.advantages.dtype).masked_fill(~self.valid, 0.0)
        effective = unmasked.masked_fill(~self.kept, 0.0)
        inside = self.log_ratio.detach().abs() <= MAX_LOG_RATIO
        return replace(
            self,
            advantages=effective,
            unmasked_advantages=unmasked,
            coefficients=(effective * self.ratio.detach()).masked_fill(~inside, 0.0),
            objective=effective * self.ratio,
        )

    def with_entropy(self, coefficients: Float[Tensor, "B T"]) -> Flow:
        """Add an entropy term: ∂J/∂H of each counted token."""
        coefficients = coefficients.detach().masked_fill(~self.counted, 0.0)
        if self.entropy_coefficients is not None:
            coefficients = coefficients + self.entropy_coefficients
        return replace(self, entropy_coefficients=coefficients)

    def replaced(
        self,
        objective: Float[Tensor, "B T"],
        *,
        keep: Bool[Tensor, "B T"] | None = None,
        derivative: Float[Tensor, "B T"] | None = None,
        added: Float[Tensor, "B T"] | None = None,
    ) -> Flow:
        """Put a surrogate objective in place, and say what it makes of the coefficients.

        A second surrogate in one pipe still multiplies the coefficients, but the product is not the derivative of
        a per-token objective that could be written down here, so the objective becomes None.

        Args:
            objective: J per token, computed from `advantages`, `ratio`, `log_ratio` and `log_probs`.
            keep: Tokens that have a gradient; the others keep their objective and stay counted.
            derivative: ∂J/∂log p per unit of Â, where that is not r: g = Â · derivative.
            added: What is then added to the coefficients of tokens that are still kept.
        """
        coefficients = self.coefficients
        if derivative is not None:
            derivative = derivative.detach().masked_fill(~self.valid, 0.0)
            if self.surrogates == 0:
                coefficients = self.advantages * derivative
            else:
                coefficients = coefficients * (derivative / self.ratio.detach())
        if keep is not None:
            coefficients = coefficients.masked_fill(~keep, 0.0)
        if added is not None:
            coefficients = coefficients + added.detach().masked_fill(~self.kept, 0.0)
        return replace(
            self,
            coefficients=coefficients,
            objective=objective.masked_fill(~self.valid, 0.0) if self.surrogates == 0 else None,
            kept=self.kept if keep is None else self.kept & keep,
            masks=self.masks or keep is not None,
            surrogates=self.surrogates + 1,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Decided:
    """What the rules of a pipe made of the tokens so far, all that later rules of the pipe start from (`Flow.start`).

    Args:
        advantages: The effective advantages, A times all masks and weights, before any surrogate, (B, T).
        unmasked_advantages: A times all weights, (B, T): what later rules read the sign of A from; None for
            `advantages`.
        keep_mask: Tokens that no rule dropped, (B, T), False at masked positions; None when no rule masks.
        counted_mask: Tokens that the token mean counts, (B, T).
        entropy_coefficients: ∂J/∂H_t, (B, T); None when no rule has an entropy term.
    """

    advantages: Float[Tensor, "B T"]
    unmasked_advantages: Float[Tensor, "B T"] | None = None
    keep_mask: Bool[Tensor, "B T"] | None = None
    counted_mask: Bool[Tensor, "B T"]
    entropy_coefficients: Float[Tensor, "B T"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class RuleOutput(Decided):
    """What a rule makes of a batch; the fields of `Decided` besides these.

    Args:
        coefficients: g_t = ∂J/∂ log p_t, (B, T), 0 at masked positions.
        objective: J_t with its entropy term, (B, T); differentiable when `log_probs` (and for the entropy term
            `entropy`) requires a gradient; None where the pipe has no closed form of it.
        denominator: The number of tokens over all ranks that the token mean counts, 0-d int64.
        metrics: Global numbers for the log.
        state: What the rule wants back at the next step; None when it keeps nothing.

    Example:
        >>> from entropy_theory.control import rule
        >>> x = torch.zeros(1, 2)
        >>> output = rule("none").apply(TokenBatch(x, x, torch.tensor([2.0]), torch.tensor([[1, 0]])))
        >>> output.coefficients.tolist(), output.denominator.item(), output.loss().item()
        ([[2.0, 0.0]], 1, -2.0)
    """

    coefficients: Float[Tensor, "B T"]
    objective: Float[Tensor, "B T"] | None
    denominator: Shaped[Tensor, ""]
    metrics: dict[str, float] = field(default_factory=dict)
    state: State | None = None

    def loss(self) -> Float[Tensor, ""]:
        """This rank's part of the token-mean loss.

        −(1/n) Σ_t J_t over this rank's counted tokens, n = `denominator`, counted over all ranks.

        The parts of all ranks add up to the loss. When no token is counted the loss is 0, where the official codes
        give NaN or 0 depending on their version.

        Raises:
            ValueError: the pipe has no per-token objective.

        Example:
            >>> from entropy_theory.control import rule
            >>> x = torch.zeros(1, 2)
            >>> rule("none").apply(TokenBatch(x, x, torch.tensor([[1.0, 2.0]]), x + 1)).loss().item()
            -1.5
        """
        if self.objective is None:
            raise invalid("objective", "a per-token objective; use the coefficients of this rule instead", None)
        total = self.objective.masked_fill(~self.counted_mask, 0.0).sum()
        return -total / self.denominator.clamp_min(1)
