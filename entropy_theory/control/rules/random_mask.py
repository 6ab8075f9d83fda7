"""The matched random control: drop as many tokens as another rule does, but at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from entropy_theory.control.base import Rule, Step
from entropy_theory.control.flow import Context, Flow, State, Statistics
from entropy_theory.control.random import uniform_keys
from entropy_theory.control.reducers import masked_count, masked_top_k
from entropy_theory.control.registry import register, rule
from entropy_theory.control.rules.clip_bv import Advantages, selected_advantages
from entropy_theory.errors import invalid

RandomDenominator = Literal["auto", "kept", "valid"]


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
            on what earlier rules of a pipe left.
        fraction: The share of eligible tokens to drop, in [0, 1], instead of `match`.
        advantages: The eligible tokens: "all" valid ones, or those with "negative" or "positive" advantages, to
            match a rule that touches only these. With fewer than k, all of them are dropped.
        denominator: "kept": dropped tokens leave the token mean's count; "valid": they stay; "auto": as many leave
            it as with the matched rule, and for a fraction all.
        statistics: "valid": drawn among all valid tokens; "kept": among those that earlier rules kept.

    A matched rule that is "live" makes the control "live", and what it needs is needed here.

    Quadrants: scales all four alike, by 1 − k/n in expectation.

    Raises:
        ValueError: not exactly one of `match` and `fraction`, or a parameter out of range; in `apply`, no generator.

    Example:
        >>> import torch
        >>> from entropy_theory.control import TokenBatch
        >>> x = torch.full((1, 8), -1.0)
        >>> batch = TokenBatch(x, -x, torch.tensor([1.0]), torch.ones(1, 8))
        >>> out = RandomMask(fraction=0.25).apply(batch, generator=torch.Generator().manual_seed(0))
        >>> out.metrics["dropped"], out.denominator.item()
        (2.0, 6)
        >>> print(rule("random-mask", match="clip-b(mu=1.0)"))
        random-mask(match='clip-b(mu=1)')
    """

    name: ClassVar[str] = "random-mask"
    kind: ClassVar[str] = "random mask"
    quadrants: ClassVar[str] = "scales all four alike"

    match: str | Rule | None = None
    fraction: float | None = None
    advantages: Advantages = "all"
    denominator: RandomDenominator = "auto"
    statistics: Statistics = "valid"

    def __post_init__(self) -> None:
        if (self.match is None) == (self.fraction is None):
            received = "neither" if self.match is None else "both"
            raise invalid(f"{self.name} match, fraction", "exactly one of the two", received)
        if self.fraction is not None:
            self._number("fraction", 0.0, 1.0)
            self._narrow(threshold_parameter="fraction")
        if self.match is not None:
            if not isinstance(self.match, str | Rule):
                raise invalid(f"{self.name} match", "a rule or its specification", repr(self.match))
            matched = rule(self.match)
            # kept as canonical text, so that the rule prints and compares by it
            self._narrow(match=str(matched), phase=matched.phase, needs=matched.needs)
        self._choice("advantages", get_args(Advantages))
        self._choice("denominator", get_args(RandomDenominator))
        self._choice("statistics", get_args(Statistics))

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Draw the tokens to drop.

        Example:
            >>> import torch
            >>> from entropy_theory.control import TokenBatch
            >>> x = torch.full((1, 2), -1.0)
            >>> RandomMask(fraction=0.5).apply(TokenBatch(x, -x, torch.tensor([1.0]), torch.ones(1, 2)))
            Traceback (most recent call last):
            ...
            ValueError: generator: expected a torch.Generator, ... for random-mask(fraction=0.5), received None
        """
        if context.generator is None:
            raise invalid("generator", f"a torch.Generator, in the same state on every rank, for {self}", None)
        reducer = context.reducer
        eligible = flow.population(self.statistics) & selected_advantages(flow.unmasked_advantages, self.advantages)
        leave = 0
        if self.match is not None:
            matched, _, state = rule(self.match).transform(Flow.start(context.batch), context, state)
            gone = torch.stack([(flow.valid & ~left).sum() for left in (matched.kept, matched.counted)])
            number, leave = (int(count) for count in reducer.sum(gone).tolist())
        else:
            number = round((self.fraction or 0.0) * masked_count(eligible, reducer))
        keys = uniform_keys(flow.valid, context.generator, reducer)
        drop = masked_top_k(keys, eligible, number, reducer)
        if self.match is None or self.denominator != "auto":
            out = flow.masked(flow.valid & ~drop, "valid" if self.denominator == "valid" else "kept")
        else:
            # a pipe may take only some of its dropped tokens out of the denominator: take out as many
            out = flow.masked(flow.valid & ~drop, "valid").uncounted(masked_top_k(keys, drop, leave, reducer))
        return out, {"requested": float(number)}, state
