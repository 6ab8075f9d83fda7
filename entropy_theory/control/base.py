"""The rule interface, and pipes of rules.

A rule turns the statistics of a batch into a coefficient g_t = ∂J/∂ log p_t per token, J being the objective to
be maximised. To first order, and where positions share no parameters, one update then changes entropy by
ΔH_t = −(η/n) g_t S_c,t (arXiv 2602.03392, Theorem 3.3; n the loss denominator), which is how rules are compared.

A new rule is a frozen dataclass that derives from `Rule`, is decorated with `registry.register`, and implements
`transform`. Its fields are its hyper-parameters, all with defaults.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import torch

from entropy_theory.control.batch import TokenBatch
from entropy_theory.control.flow import Context, Decided, Flow, RuleOutput, State
from entropy_theory.control.reducers import LOCAL, Reducer, masked_count
from entropy_theory.control.spec import format_value
from entropy_theory.errors import invalid

Phase = Literal["batch", "live"]
Scope = Literal["token", "sequence", "batch"]
"""How much a rule must see at once, from the narrowest to the widest."""
Step = tuple[Flow, dict[str, float], State | None]
"""What `transform` returns: the changed flow, metrics of the rule's own, and its next state."""


@dataclass(frozen=True)
class Rule:
    """An entropy-control rule; the base class of all of them.

    Class attributes, which an instance may narrow when a parameter decides:
        name: How it is found and printed.
        phase: "batch" when it is fixed once per generation batch, "live" when it needs the current ratio.
        needs: The `TokenBatch` fields that it reads besides `log_probs`, `advantages` and `completion_mask`.
        scope: How much it must see at once: "token" decides token by token, "sequence" needs whole rows, "batch" takes
            statistics over all tokens of an optimizer step. The narrower two may be asked per micro-batch.
        paper: Its source.
        kind: What it does to the gradient: mask, weight, advantages, surrogate, penalty, entropy term, control.
        quadrants: Which quadrants it acts on, in words.
        parity: Against which official code it is tested, in words.
        entropy_term: Whether it adds ∂J/∂H, which a trainer must carry besides the coefficients.
        threshold_parameter: Of a mask, the parameter along which its drops are nested (`scan_threshold`); or empty.

    Example:
        >>> from entropy_theory.control import rule
        >>> clip = rule("clip-b", mu=1)
        >>> str(clip), clip.phase, clip.scope, clip.needs
        ('clip-b(mu=1)', 'batch', 'batch', ('entropy',))
        >>> print(clip | rule("ppo-clip"))
        clip-b(mu=1)|ppo-clip
    """

    # a run-time type checker leaves the constructors' arguments to __post_init__, which says more about them
    __no_type_check__ = True

    name: ClassVar[str] = ""
    phase: ClassVar[Phase] = "batch"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    quadrants: ClassVar[str] = ""
    parity: ClassVar[str] = "no official code"
    entropy_term: ClassVar[bool] = False
    threshold_parameter: ClassVar[str] = ""

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Change the flow. Implemented by each rule; callers use `apply`.

        Every rank calls the same collectives in the same order, whatever tokens it holds.

        Args:
            flow: The policy gradient as earlier rules left it.
            context: Batch, reducer, generator.
            state: What this rule returned at the last step.

        Returns:
            The changed flow, the rule's own metrics (global numbers), and its next state.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement transform")

    def apply(
        self,
        batch: TokenBatch,
        reducer: Reducer = LOCAL,
        generator: torch.Generator | None = None,
        state: State | None = None,
        *,
        after: Decided | None = None,
    ) -> RuleOutput:
        """Compute the coefficients g_t of this rank's tokens, with statistics over all ranks.

        Metrics: `valid_tokens`, `dropped` and `dropped_share` (tokens the keep-mask drops and their share of the
        valid ones); `dropped_share_positive`, `_negative`, and with S_c available `_q1` to `_q4`: the dropped share
        of the valid tokens with A > 0, with A < 0 and of each quadrant, 0 for an empty group (the official codes
        report 1); `quadrant_share_q1` to `_q4`: each quadrant's share of the valid tokens; and the rule's own.

        Args:
            batch: This rank's tokens: all those of one optimizer step, whatever its micro-batches.
            reducer: The collectives; the default serves one process.
            generator: For rules that draw at random; in the same state on every rank.
            state: What the last call returned, for rules that remember.
            after: What the batch part of a pipe decided on these tokens, when this is its live part; see `split`.

        Returns:
            Coefficients, masks, objective, denominator, metrics, state.

        Raises:
            ValueError: the batch lacks what the rule needs, no rank has a valid token, or a random rule has no
                generator. All are found before any work.

        Example:
            >>> from entropy_theory.control import rule
            >>> x = torch.full((1, 3), -1.0)
            >>> out = rule("none").apply(TokenBatch(x, -x, torch.tensor([2.0]), torch.tensor([[1, 1, 0]])))
            >>> out.coefficients.tolist(), out.denominator.item()
            ([[2.0, 2.0, 0.0]], 2)
        """
        batch.require(*self.needs, by=str(self))
        count = masked_count(batch.completion_mask, reducer)
        if count == 0:
            raise invalid("completion_mask", "at least one valid token over all ranks", "none")
        context = Context(batch, reducer, generator, count)
        flow, metrics, state = self.transform(Flow.start(batch, after), context, state)
        objective = flow.objective
        if objective is not None and flow.entropy_coefficients is not None:
            objective = objective + flow.entropy_coefficients * batch.entropy.masked_fill(~flow.valid, 0.0)
        return RuleOutput(
            coefficients=flow.coefficients,
            advantages=flow.advantages,
            keep_mask=flow.kept if flow.masks else None,
            entropy_coefficients=flow.entropy_coefficients,
            objective=objective,
            denominator=reducer.sum(flow.counted.sum()),
            counted_mask=flow.counted,
            metrics={**_drop_metrics(flow, context), **metrics},
            state=state,
            unmasked_advantages=flow.unmasked_advantages,
        )

    def split(self) -> tuple[Rule | None, Rule | None]:
        """Separate what is fixed once per generation batch from what must be asked at every update.

        The two parts, one after the other, do what the rule does: at the batch, `first = batch_part.apply(batch)`; at
        each update `live_part.apply(batch_now, after=first)`. Of a pipe, the batch part is its longest beginning
        without a live rule. Metrics and states of the parts have the names that they have in the whole.

        Returns:
            The batch part and the live part; None for one that is empty.

        Example:
            >>> from entropy_theory.control import rule
            >>> print(*rule("clip-b|steer|ppo-clip").split())
            clip-b steer|ppo-clip
            >>> print(*rule("clip-b").split())
            clip-b None
        """
        return (self, None) if self.phase == "batch" else (None, self)

    def __or__(self, other: Rule) -> Pipe:
        if not isinstance(other, Rule):
            return NotImplemented
        return Pipe((*_members(self), *_members(other)))

    def __str__(self) -> str:
        shown = [
            f"{f.name}={format_value(getattr(self, f.name))}"
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        ]
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def _narrow(self, **attributes: object) -> None:
        """Give this instance its own value of a class attribute or a normalised parameter."""
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def _number(self, name: str, low: float, high: float = math.inf, *, above: bool = False) -> None:
        """Check that a parameter is a finite number in [low, high] (or (low, high]) and keep it as a float."""
        value = getattr(self, name)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not low <= value <= high or (above and value == low):
            ends = [f"{'>' if above else '≥'} {low:g}"] if low > -math.inf else []
            ends += [f"≤ {high:g}"] if high < math.inf else []
            raise invalid(f"{self.name} {name}", " ".join(["a finite number", " and ".join(ends)]).strip(), repr(value))
        self._narrow(**{name: float(value)})

    def _fraction_instead_of(self, *names: str) -> None:
        """Check `drop_fraction`, and that the thresholds it stands in for are at their defaults."""
        if getattr(self, "drop_fraction", None) is None:
            return
        self._number("drop_fraction", 0.0, 1.0)
        defaults = {f.name: f.default for f in fields(self)}
        given = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) != defaults[name]]
        if given:
            raise invalid(f"{self.name} drop_fraction", f"no {' or '.join(names)} beside it", ", ".join(given))

    def _choice(self, name: str, choices: tuple[object, ...]) -> None:
        """Check that a parameter is one of a few values."""
        value = getattr(self, name)
        if not any(value is c or (isinstance(value, str) and value == c) for c in choices):
            raise invalid(f"{self.name} {name}", f"one of {', '.join(map(repr, choices))}", repr(value))


def _members(one: Rule) -> tuple[Rule, ...]:
    return one.rules if isinstance(one, Pipe) else (one,)


def _drop_metrics(flow: Flow, context: Context) -> dict[str, float]:
    """Count what was dropped, by sign of A and by quadrant, in one collective."""
    batch, valid = context.batch, flow.valid
    classified = batch.available("centered_discriminant")
    sign = batch.token_advantages.detach()[valid].sign().long() + 1
    quadrant = batch.quadrants()[valid] if classified else torch.zeros_like(sign)
    # one number for each of 3 signs, 5 quadrants (0 for none) and 2 fates
    numbers = 10 * sign + 2 * quadrant + ~flow.kept[valid]
    table = context.reducer.sum(torch.bincount(numbers, minlength=30)).view(3, 5, 2).cpu()
    by_sign, by_quadrant = table.sum(1).tolist(), table.sum(0).tolist()
    groups = {"positive": by_sign[2], "negative": by_sign[0]}
    if classified:
        groups |= {f"q{q}": by_quadrant[q] for q in (1, 2, 3, 4)}
    total = float(sum(lost for _, lost in by_sign))
    metrics = {
        "valid_tokens": float(context.valid_tokens),
        "dropped": total,
        "dropped_share": total / context.valid_tokens,
    }
    for name, (left, lost) in groups.items():
        metrics[f"dropped_share_{name}"] = lost / (left + lost) if lost else 0.0
        if name.startswith("q"):
            metrics[f"quadrant_share_{name}"] = (left + lost) / context.valid_tokens
    return metrics


@dataclass(frozen=True)
class Pipe(Rule):
    """Several rules, applied left to right.

    Coefficients multiply through and keep-masks are intersected. Statistics of a later rule see all valid tokens,
    or with `statistics="kept"` those that earlier rules kept. A pipe is "live" when one of its rules is, and its scope
    is the widest of theirs.

    Metrics of a member are prefixed `name/` (`name#2/` for the second of a name), among them `dropped`: the tokens
    that it dropped and no earlier member had. The state is a mapping with one entry per member, keyed by position.

    Args:
        rules: At least two rules.

    Raises:
        ValueError: fewer than two rules, or something else than rules.

    Example:
        >>> from entropy_theory.control import rule
        >>> pipe = rule("clip-v") | rule("ppo-clip")
        >>> pipe.phase, pipe.needs, pipe == rule("clip-v|ppo-clip")
        ('live', ('centered_discriminant', 'old_log_probs'), True)
    """

    _least: ClassVar[int] = 2
    _before: ClassVar[tuple[str, ...]] = ()

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if len(self.rules) < self._least or not all(isinstance(r, Rule) for r in self.rules):
            raise invalid("rules", "at least two rules", self.rules)
        self._narrow(
            name="|".join(r.name for r in self.rules),
            phase="live" if any(r.phase == "live" for r in self.rules) else "batch",
            scope=max((r.scope for r in self.rules), key=get_args(Scope).index),
            needs=tuple(dict.fromkeys(n for r in self.rules for n in r.needs)),
            paper="; ".join(dict.fromkeys(r.paper for r in self.rules if r.paper)),
            entropy_term=any(r.entropy_term for r in self.rules),
        )

    def __str__(self) -> str:
        return "|".join(map(str, self.rules))

    def split(self) -> tuple[Rule | None, Rule | None]:
        """Separate the longest beginning without a live rule from the rest; see `Rule.split`.

        Example:
            >>> from entropy_theory.control import rule
            >>> print(*rule("clip-b|clip-b(mu=1)|ppo-clip").split())
            clip-b|clip-b(mu=1) ppo-clip
        """
        cut = next((place for place, member in enumerate(self.rules) if member.phase == "live"), len(self.rules))
        if cut in (0, len(self.rules)):
            return (self, None) if cut else (None, self)
        return _part(self.rules[:cut], ()), _part(self.rules[cut:], tuple(r.name for r in self.rules[:cut]))

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Apply the members in order.

        Example:
            >>> from entropy_theory.control import rule
            >>> x = torch.full((1, 2), -1.0)
            >>> batch = TokenBatch(x, -x, torch.tensor([2.0]), x * 0 + 1)
            >>> rule("none|clip-b").apply(batch).metrics["clip-b/dropped"]
            0.0
        """
        metrics: dict[str, float] = {}
        states: dict[str, Any] = {}
        seen: dict[str, int] = {name: self._before.count(name) for name in self._before}
        for position, member in enumerate(self.rules, start=len(self._before)):
            before = flow.kept
            own_state = None if state is None else state.get(str(position))
            flow, own, own_state = member.transform(flow, context, own_state)
            own["dropped"] = float(masked_count(before & ~flow.kept, context.reducer))
            seen[member.name] = seen.get(member.name, 0) + 1
            prefix = member.name if seen[member.name] == 1 else f"{member.name}#{seen[member.name]}"
            metrics.update({f"{prefix}/{key}": value for key, value in own.items()})
            if own_state is not None:
                states[str(position)] = own_state
        return flow, metrics, states or None


@dataclass(frozen=True)
class _Part(Pipe):
    """A part of a pipe, of one rule or more, whose metrics and states are named as in the whole."""

    _least: ClassVar[int] = 1


def _part(rules: tuple[Rule, ...], before: tuple[str, ...]) -> _Part:
    part = _Part(rules)
    part._narrow(_before=before)
    return part
