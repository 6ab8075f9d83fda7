"""The rule interface, and pipes of rules.

A rule turns the statistics of a batch into a coefficient g_t = ∂J/∂ log p_t per token, J being the objective to
be maximised. To first order, and where positions share no parameters, one update then changes entropy by
ΔH_t = −(η/n) g_t S_c,t (arXiv 2602.03392, Theorem 3.3; n the loss denominator), which is how rules are compared.

A new rule is a frozen dataclass that derives from `Rule`, is decorated with `registry.register`, and implements
`transform`. Its fields are its hyper-parameters, all with defaults; see `parameters` for their ranges.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch

from entropy_theory.control.batch import TokenBatch, signs
from entropy_theory.control.flow import Context, Decided, Flow, RuleOutput, State
from entropy_theory.control.parameters import decided
from entropy_theory.control.reducers import LOCAL, Reducer, masked_count, selected
from entropy_theory.control.spec import format_value
from entropy_theory.errors import invalid

Phase = Literal["batch", "live"]
"""When a rule decides: once per generation batch, or at every update, because it reads the current ratio."""

Scope = Literal["token", "sequence", "batch"]
"""How much a rule must see at once, from the narrowest to the widest."""
Step = tuple[Flow, dict[str, float], State | None]
"""What `transform` returns: the changed flow, metrics of the rule's own, and its next state."""


@dataclass(frozen=True)
class Rule:
    """An entropy-control rule; the base class of all of them.

    Class attributes; some depend on parameters (`parameters.decided`):
        name: How it is found and printed.
        phase: "batch" when it is fixed once per generation batch; "live" when it needs the current ratio and is
            evaluated at every update.
        scope: How much it must see at once: "token" decides token by token, "sequence" needs whole rows, "batch" takes
            statistics over all tokens of an optimizer step. The narrower two may be evaluated per micro-batch.
        needs: The `TokenBatch` fields that it reads besides `log_probs`, `advantages` and `completion_mask`.
        paper: Its source.
        kind: What it does to the gradient: mask, weight, advantages, surrogate, penalty, entropy term, control.
        quadrants: Which quadrants it acts on, in words.
        parity: Against which official code it is tested, in words.
        departures: Where it differs from that code or the paper.
        entropy_term: Whether it adds ∂J/∂H, which a trainer must carry besides the coefficients.
        threshold_parameter: Of a mask, the parameter along which its drops are nested (`scan_threshold`); or empty.

    Raises:
        ValueError: a parameter is outside its range.

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
    departures: ClassVar[str] = ""
    entropy_term: ClassVar[bool] = False
    threshold_parameter: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            if "check" in f.metadata:
                value = f.metadata["check"](f"{self.name} {f.name}", getattr(self, f.name))
                object.__setattr__(self, f.name, value)  # equal numbers are kept, and printed, alike

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
            denominator=reducer.sum(torch.count_nonzero(flow.counted)),
            counted_mask=flow.counted,
            metrics={**_drop_metrics(flow, context), **metrics},
            state=state,
            unmasked_advantages=flow.unmasked_advantages,
        )

    @property
    def members(self) -> tuple[Rule, ...]:
        """The rules of a pipe, or this one rule."""
        return (self,)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InputError for a parameter that no policy over so many tokens can meet; most rules have none."""
        for member in self.members:
            if member is not self:
                member.check_vocabulary(vocab_size)

    def threshold_end(self, batch: TokenBatch) -> float | None:
        """Where the settings of `scan_threshold` end on a batch; None for where the rule drops nothing."""
        return None

    def split(self) -> tuple[Rule | None, Rule | None]:
        """Separate what is fixed once per generation batch from what is evaluated at every update.

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
        return Pipe((*self.members, *other.members))

    def __str__(self) -> str:
        shown = [
            f"{f.name}={format_value(getattr(self, f.name))}"
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        ]
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def _in_order(self, *names: str, strict: bool = False) -> None:
        """Check that parameters do not fall from each to the next, or rise when `strict`; None counts as any number."""
        for low, high in pairwise(name for name in names if getattr(self, name) is not None):
            a, b = getattr(self, low), getattr(self, high)
            if b < a or (strict and a == b):
                raise invalid(f"{self.name} {high}", f"a number {'>' if strict else '≥'} {low}={a:g}", format_value(b))

    def _instead_of(self, share: str, *names: str) -> None:
        """Check that with a share given, the thresholds that it takes the place of are left at their defaults."""
        defaults = {f.name: f.default for f in fields(self)}
        given = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) != defaults[name]]
        if getattr(self, share) is not None and given:
            raise invalid(f"{self.name} {share}", f"no {' or '.join(names)} beside it", ", ".join(given))


def observed_share(rule: Rule, batch: TokenBatch, reducer: Reducer, generator: torch.Generator | None) -> float:
    """The share of the valid tokens that a rule would drop, for trainers that only observe it.

    Raises:
        ValueError: the rule remembers earlier batches: on this one alone it would do something else.

    Example:
        >>> from entropy_theory.control import rule
        >>> x = torch.zeros(1, 4)
        >>> batch = TokenBatch(x, x, torch.ones(1), torch.ones(1, 4), centered_discriminant=x - 1)
        >>> observed_share(rule("clip-v"), batch, LOCAL, None)
        0.0
    """
    output = rule.apply(batch, reducer, generator)
    if output.state is not None:
        raise invalid("observe", "rules that remember nothing from batch to batch", str(rule))
    return output.metrics["dropped_share"]


def _drop_metrics(flow: Flow, context: Context) -> dict[str, float]:
    """Count what was dropped, by sign of A and by quadrant, in one collective."""
    batch, valid = context.batch, flow.valid
    classified = batch.available("centered_discriminant")
    sign = signs(batch.token_advantages)
    quadrant = batch.quadrants() if classified else torch.zeros_like(sign)
    # one number for each of 3 signs, 5 quadrants (0 for none) and 2 fates
    numbers = 10 * sign + 2 * quadrant + ~flow.kept + 10
    table = context.reducer.sum(torch.bincount(selected(numbers, valid), minlength=30)).view(3, 5, 2).cpu()
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
        rules: At least two rules, or one in a part of a pipe.
        before: Of a part of a pipe, which `split` makes: the names of the members before its own. They decide how
            metrics and states of the part are named. None for a whole pipe.

    Raises:
        ValueError: too few rules, or something else than rules.

    Example:
        >>> from entropy_theory.control import rule
        >>> pipe = rule("clip-v") | rule("ppo-clip")
        >>> pipe.phase, pipe.needs, pipe == rule("clip-v|ppo-clip")
        ('live', ('centered_discriminant', 'old_log_probs'), True)
    """

    rules: tuple[Rule, ...] = ()
    before: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        least = 2 if self.before is None else 1
        if len(self.rules) < least or not all(isinstance(member, Rule) for member in self.rules):
            raise invalid("rules", "at least two rules", self.rules)

    def __str__(self) -> str:
        return "|".join(map(str, self.rules))

    @property
    def members(self) -> tuple[Rule, ...]:
        """The rules, left to right."""
        return self.rules

    @decided
    def name(self) -> str:
        """The names of the members, joined by `|`."""
        return "|".join(member.name for member in self.rules)

    @decided
    def phase(self) -> Phase:
        """Live when a member is."""
        return "live" if any(member.phase == "live" for member in self.rules) else "batch"

    @decided
    def scope(self) -> Scope:
        """The widest of the members'."""
        return max((member.scope for member in self.rules), key=get_args(Scope).index, default="token")

    @decided
    def needs(self) -> tuple[str, ...]:
        """What any member needs."""
        return tuple(dict.fromkeys(name for member in self.rules for name in member.needs))

    @decided
    def paper(self) -> str:
        """The sources of the members."""
        return "; ".join(dict.fromkeys(member.paper for member in self.rules if member.paper))

    @decided
    def entropy_term(self) -> bool:
        """Whether a member adds one."""
        return any(member.entropy_term for member in self.rules)

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
        earlier = tuple(member.name for member in self.rules[:cut])
        return Pipe(self.rules[:cut], before=()), Pipe(self.rules[cut:], before=earlier)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Apply the members in order."""
        metrics: dict[str, float] = {}
        states: dict[str, Any] = {}
        names = list(self.before or ())
        for member in self.rules:
            position, kept = str(len(names)), flow.kept
            flow, own, own_state = member.transform(flow, context, None if state is None else state.get(position))
            own["dropped"] = float(masked_count(kept & ~flow.kept, context.reducer))
            names.append(member.name)
            count = names.count(member.name)
            prefix = member.name if count == 1 else f"{member.name}#{count}"
            metrics.update({f"{prefix}/{key}": value for key, value in own.items()})
            if own_state is not None:
                states[position] = own_state
        return flow, metrics, states or None
