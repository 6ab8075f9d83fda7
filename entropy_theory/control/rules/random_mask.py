"""The matched random control: drop as many tokens as another rule does, but at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from entropy_theory.control.base import Phase, Rule, Step
from entropy_theory.control.flow import Context, Flow, State, Statistics
from entropy_theory.control.parameters import choice, decided, number, parameter
from entropy_theory.control.random import uniform_keys
from entropy_theory.control.reducers import masked_count, masked_top_k
from entropy_theory.control.registry import register, rule
from entropy_theory.control.rules.clip_bv import Advantages, selected_advantages
from entropy_theory.errors import invalid

RandomDenominator = Literal["auto", "kept", "valid"]


def _canonical(name: str, value: object) -> str | None:
    """The specification of a rule as it is printed, so that the control prints and compares by it."""
    if value is None:
        return None
    if not isinstance(value, str | Rule):
        raise invalid(name, "a rule or its specification", repr(value))
    return str(rule(value))


@register
@dataclass(frozen=True)
class RandomMask(Rule):
    """Drop a given number of tokens uniformly at random.

    The control that belongs next to every mask: what a rule achieves beyond dropping that many tokens.

        drop the k tokens with the largest u_t,   u_t ~ U[0, 1) independent,
        k = #tokens that `match` drops on the same batch, or round(fraction · #eligible tokens)

    One number u is drawn per valid token in global token order, so the result does not depend on how the batch is
    split over ranks or padded. Needs a generator, in the same state on every rank.

    Args:
        match: The specification of the rule to match, or the rule. Its drops are counted on the whole batch, not
            on what earlier rules of a pipe left. Its phase and needs are those of this rule.
        fraction: The share of eligible tokens to drop, instead of `match`.
        advantages: The eligible tokens: "all" valid ones, or those with "negative" or "positive" advantages, to
            match a rule that touches only these. With fewer than k, all of them are dropped.
        denominator: "kept": dropped tokens leave the token mean's count; "valid": they stay; "auto": as many leave
            it as with the matched rule, and for a fraction all.
        statistics: "valid": drawn among all valid tokens; "kept": among those that earlier rules kept.

    Raises:
        ValueError: not exactly one of `match` and `fraction`; in `apply`, no generator.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x = torch.full((1, 8), -1.0)
        >>> batch = TokenBatch(x, -x, torch.tensor([1.0]), torch.ones(1, 8))
        >>> out = RandomMask(fraction=0.25).apply(batch, generator=torch.Generator().manual_seed(0))
        >>> out.metrics["dropped"], out.denominator.item()
        (2.0, 6)
        >>> print(rule("random-mask", match="clip-b(mu=1.0)"))
        random-mask(match='clip-b(mu=1)')
    """

    name = "random-mask"
    kind = "random mask"
    quadrants = "scales all four alike, by 1 − k/n in expectation"

    match: str | Rule | None = parameter(None, _canonical)
    fraction: float | None = number(None, 0.0, 1.0)
    advantages: Advantages = choice("all", Advantages)
    denominator: RandomDenominator = choice("auto", RandomDenominator)
    statistics: Statistics = choice("valid", Statistics)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.match is None) == (self.fraction is None):
            received = "neither" if self.match is None else "both"
            raise invalid(f"{self.name} match, fraction", "exactly one of the two", received)

    @decided
    def phase(self) -> Phase:
        """That of the matched rule."""
        return "batch" if self.match is None else rule(self.match).phase

    @decided
    def needs(self) -> tuple[str, ...]:
        """What the matched rule needs."""
        return () if self.match is None else rule(self.match).needs

    @decided
    def threshold_parameter(self) -> str:
        """The share, unless a rule is matched."""
        return "fraction" if self.match is None else ""

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Draw the tokens to drop."""
        generator, reducer = context.generator_for(self), context.reducer
        eligible = flow.population(self.statistics) & selected_advantages(flow.unmasked_advantages, self.advantages)
        leave = 0
        if self.match is not None:
            matched, _, state = rule(self.match).transform(Flow.start(context.batch), context, state)
            gone = torch.stack([(flow.valid & ~left).sum() for left in (matched.kept, matched.counted)])
            requested, leave = (int(count) for count in reducer.sum(gone).tolist())
        else:
            requested = round((self.fraction or 0.0) * masked_count(eligible, reducer))
        keys = uniform_keys(flow.valid, generator, reducer)
        drop = masked_top_k(keys, eligible, requested, reducer)
        if self.match is None or self.denominator != "auto":
            out = flow.masked(flow.valid & ~drop, "valid" if self.denominator == "valid" else "kept")
        else:
            # a pipe may take only some of its dropped tokens out of the denominator: take out as many
            out = flow.masked(flow.valid & ~drop, "valid").uncounted(masked_top_k(keys, drop, leave, reducer))
        return out, {"requested": float(requested)}, state
