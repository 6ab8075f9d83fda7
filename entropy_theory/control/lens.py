"""The lens: what each rule would do to entropy, predicted from one recorded batch before any training.

Every rule is reduced to the coefficients g_t and ∂J/∂H_t that it lets through, and these to a predicted change of
entropy

    ΔH_t = −(η/n) g_t S_c,t + (η/n) c_t Σ_i S_i²,      n the rule's own loss denominator

(Theorem 3.3 of arXiv 2602.03392 and section B.11 of the theory notes): first order, position by position, as if
positions shared no parameters. With η = 1 the total Σ_t ΔH_t is the slope of the mean entropy along the update.

A batch that carries the influence D of its tokens also gives the change of mean entropy through the shared parameters,
(η/n) Σ_t g_t D_t, exact to first order for a plain gradient step of learning rate η. The tabular theory's prediction of
the same number is Σ_t ΔH_t over the number of valid tokens, `LensRow.per_token`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from entropy_theory.control.base import Rule
from entropy_theory.control.batch import TokenBatch
from entropy_theory.control.effects import Effects, influence_effects, predicted_effects
from entropy_theory.control.flow import RuleOutput
from entropy_theory.control.registry import rule, rule_class, rule_names
from entropy_theory.errors import invalid
from entropy_theory.intervals import Array, Resampling, percentile_interval

_QUADRANTS = ("q1", "q2", "q3", "q4", "none")


@dataclass(frozen=True)
class Estimate:
    """A number and its bootstrap interval.

    Attributes:
        value: The number on the batch itself.
        low: Lower end of the percentile interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LensRow:
    """What one rule would do.

    Attributes:
        rule: Its specification.
        phase: "batch" or "live".
        total: Σ_t ΔH_t, nats, with its interval.
        per_token: The mean ΔH_t over the valid tokens, nats.
        quadrants: The total split over q1 to q4, and "none" for tokens with A = 0 or S_c = 0.
        entropy_term: The part of the total that comes from ∂J/∂H.
        against_none: Total minus that of no control, on the same resamples.
        dropped_share: Share of the valid tokens that its keep-mask drops.
        random_total: Expected total of the matched random mask: as many tokens dropped at random, the same
            denominator. None when nothing is dropped.
        random_deviation: Standard deviation of that total over draws.
        against_random: (total − random_total)/random_deviation; None without a matched mask or spread.
        gradient_kept: Σ abs(g) over that of no control.
        distance: ‖g − g_none‖/‖g_none‖: how far the gradient is from the unmodified one.
        second_order: The total with ½ Σ_t (η g_t/n)² H''_t, when the batch carries the curvature.
        influence: (η/n) Σ_t g_t D_t, nats of mean entropy, where asked; beside ``per_token``. None for a rule with an
            entropy term, whose influence is not recorded.
        influence_against_none: The same minus that of no control, on the same resamples.
    """

    rule: str
    phase: str
    total: Estimate
    per_token: float
    quadrants: Mapping[str, float]
    entropy_term: float
    against_none: Estimate
    dropped_share: float
    random_total: float | None
    random_deviation: float | None
    against_random: float | None
    gradient_kept: float
    distance: float
    second_order: float | None
    influence: Estimate | None = None
    influence_against_none: Estimate | None = None


@dataclass(frozen=True)
class LensTable:
    """The comparison of rules on one batch.

    Attributes:
        rows: One per rule, in the order given; no control first.
        tokens: Valid tokens.
        clusters: What the bootstrap resamples: prompt groups when the batch has them, else sequences.
        cluster_kind: "groups" or "sequences".
        entropy: Mean entropy, nats.
        shares: Each quadrant's share of the valid tokens, and "none".
        step_size: η.
        resamples: Bootstrap resamples.
        skipped: Rules left out, and why.
    """

    rows: tuple[LensRow, ...]
    tokens: int
    clusters: int
    cluster_kind: str
    entropy: float
    shares: Mapping[str, float]
    step_size: float
    resamples: int
    skipped: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return asdict(self)


def default_rules() -> tuple[str, ...]:
    """Name every rule that a lens shows unasked: all with defaults that stand alone.

    Example:
        >>> "clip-b" in default_rules(), "random-mask" in default_rules()
        (True, False)
    """
    return tuple(name for name in rule_names() if name not in ("none", "random-mask"))


def lens(
    batch: TokenBatch,
    rules: Iterable[str | Rule] | None = None,
    *,
    step_size: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
    influence: bool = False,
) -> LensTable:
    """Predict what each rule would do to the entropy of the policy that a batch came from.

    Intervals are percentile bootstrap intervals over clusters, prompt groups or else sequences, because tokens of one
    sequence share their advantage. The rules' decisions are those on the whole batch; they are not taken again in each
    resample. The matched random mask is not drawn: the expectation and the deviation over draws without replacement of
    k of n tokens have closed forms, (1 − k/n) Σ x and √(k (n − k)/(n − 1)) σ(x) with x the effects without control.

    Args:
        batch: A recorded batch with S_c, or a baseline to rebuild it from.
        rules: Rules or specifications; None for every registered rule that the batch has the inputs for. No control is
            always shown, first.
        step_size: η > 0, of the logits; for the influence, the learning rate of the weights.
        resamples: Bootstrap resamples, ≥ 1.
        seed: Of the bootstrap and of rules that draw.
        influence: Predict with the batch's influence D beside S_c. Resamples take D as it is on the whole batch.

    Returns:
        The table. With `rules=None`, rules that lack an input are in `skipped`.

    Raises:
        ValueError: S_c, or with `influence` D, is not available, a rule that was named lacks an input (Σ S² for
            entropy terms among them), or an argument is out of range.

    Example:
        >>> S_c = torch.tensor([[0.3, -0.1], [0.2, -0.4]])
        >>> x = torch.full((2, 2), -1.0)
        >>> batch = TokenBatch(x, -x, torch.tensor([1.0, -1.0]), x * 0 + 1, centered_discriminant=S_c)
        >>> none, clip = lens(batch, ["clip-v(mu=1)"], resamples=50).rows
        >>> round(none.total.value, 4), round(none.quadrants["q4"], 4), abs(clip.total.value) < 1e-7
        (-0.1, -0.1, True)
    """
    batch.require("centered_discriminant", *(["influence"] if influence else []), by="lens")
    if isinstance(step_size, bool) or not isinstance(step_size, int | float) or not 0 < step_size < math.inf:
        raise invalid("step_size", "a finite number > 0", repr(step_size))
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise invalid("resamples", "an integer >= 1", repr(resamples))
    if not bool(batch.completion_mask.any()):
        raise invalid("completion_mask", "at least one valid token", "none")
    chosen, skipped = _choose(batch, rules)
    view = _View(batch, float(step_size), resamples, seed, influence)
    none = rule("none")
    base = view.measure(none.apply(batch))
    rows = [view.row(none, base, base)]
    for shown in chosen:
        out = shown.apply(batch, generator=torch.Generator().manual_seed(seed))
        rows.append(view.row(shown, view.measure(out), base))
    return LensTable(
        rows=tuple(rows),
        tokens=view.count,
        clusters=view.clusters,
        cluster_kind="groups" if batch.group_ids is not None else "sequences",
        entropy=float(batch.entropy.detach()[view.valid].double().mean()),
        shares={name: float((view.valid & where).sum()) / view.count for name, where in view.groups.items()},
        step_size=float(step_size),
        resamples=resamples,
        skipped=skipped,
    )


def _choose(batch: TokenBatch, rules: Iterable[str | Rule] | None) -> tuple[list[Rule], dict[str, str]]:
    """The rules to show, no control left out, and those that lack an input when the choice is ours."""
    explicit = rules is not None
    chosen, skipped = [], {}
    for spec in default_rules() if rules is None else rules:
        candidate = rule_class(spec)() if not explicit and isinstance(spec, str) else rule(spec)
        if str(candidate) == "none":
            continue
        needs = (*candidate.needs, "sum_squared_discriminant") if candidate.entropy_term else candidate.needs
        try:
            batch.require(*needs, by=str(candidate))
        except ValueError as error:
            if explicit:
                raise
            skipped[str(candidate)] = str(error)
            continue
        chosen.append(candidate)
    return chosen, skipped


@dataclass(frozen=True, eq=False)
class _Measured:
    """What one rule does, before the effects are divided by the denominator."""

    coefficients: Float[Tensor, "B T"]
    effects: Effects
    influence: Float[Tensor, "B T"] | None
    counted: Float[Tensor, " B"]
    dropped: int

    @property
    def denominator(self) -> float:
        return max(float(self.counted.sum()), 1.0)


class _View:
    """A batch prepared for looking at many rules: clusters, resamples, quadrants."""

    def __init__(self, batch: TokenBatch, step_size: float, resamples: int, seed: int, influence: bool) -> None:
        self.batch, self.step_size, self.valid = batch, step_size, batch.completion_mask
        self.count = int(self.valid.sum())
        self.score = batch.centered_scores().masked_fill(~self.valid, 0.0).double()
        self._influence = None
        if influence and batch.influence is not None:
            self._influence = batch.influence.detach().masked_fill(~self.valid, 0.0)
        numbers = batch.quadrants()
        self.groups = {f"q{q}": numbers == q for q in (1, 2, 3, 4)} | {"none": self.valid & (numbers == 0)}
        self._rows = self.valid.any(dim=1)
        ids = torch.arange(self._rows.numel()) if batch.group_ids is None else batch.group_ids.cpu()
        self._resampling = Resampling.of_clusters(ids[self._rows.cpu()].numpy(), resamples, seed)
        self.clusters = self._resampling.weights.shape[1]

    def measure(self, out: RuleOutput) -> _Measured:
        """The effects of each token, and what the rule counts."""
        squares = self.batch.sum_squared_discriminant
        effects = predicted_effects(
            out.coefficients,
            self.score,
            entropy_coefficients=out.entropy_coefficients,
            sum_squared_discriminant=None if squares is None else squares.masked_fill(~self.valid, 0.0),
        )
        influence, term = None, out.entropy_coefficients
        if self._influence is not None and (term is None or not bool(term.detach()[self.valid].any())):
            influence = influence_effects(out.coefficients, self._influence)
        counted = out.counted_mask.sum(dim=1).double()
        return _Measured(out.coefficients.detach().double(), effects, influence, counted, int(out.metrics["dropped"]))

    def _resampled(self, effects: Tensor, measured: _Measured) -> Array:
        sums, counted = (
            self._resampling.totals(values[self._rows].cpu().numpy())[1:]
            for values in (effects.sum(dim=1), measured.counted)
        )
        return self.step_size * sums / np.maximum(counted, 1.0)

    def _estimates(
        self, measured: _Measured, base: _Measured, effects: Tensor, unmodified: Tensor
    ) -> tuple[Estimate, Estimate]:
        """The sum of a rule's effects over its denominator, and the same minus that of no control."""
        value, none = (
            self.step_size / part.denominator * float(values.sum())
            for part, values in ((measured, effects), (base, unmodified))
        )
        resampled, resampled_none = self._resampled(effects, measured), self._resampled(unmodified, base)
        return (
            Estimate(value, *percentile_interval(resampled)),
            Estimate(value - none, *percentile_interval(resampled - resampled_none)),
        )

    def row(self, shown: Rule, measured: _Measured, base: _Measured) -> LensRow:
        """Everything the table says about one rule."""
        scale = self.step_size / measured.denominator
        estimate, against_none = self._estimates(measured, base, measured.effects.total, base.effects.total)
        total = estimate.value
        influence = influence_against_none = None
        if measured.influence is not None and base.influence is not None:
            influence, influence_against_none = self._estimates(measured, base, measured.influence, base.influence)
        random_total = random_deviation = against_random = None
        if measured.dropped:
            x, k, n = base.effects.total[self.valid], measured.dropped, self.count
            random_total = scale * (1 - k / n) * float(x.sum())
            spread = math.sqrt(k * (n - k) / (n - 1)) if n > 1 else 0.0
            random_deviation = scale * spread * float(x.std(correction=0))
            if random_deviation > 0:
                against_random = (total - random_total) / random_deviation
        second = None
        if self.batch.grpo_curvature is not None:
            curvature = self.batch.grpo_curvature.detach().masked_fill(~self.valid, 0.0).double()
            second = total + 0.5 * float(((scale * measured.coefficients) ** 2 * curvature).sum())
        g0 = base.coefficients
        norm, mass = float(g0.norm()), float(g0.abs().sum())
        return LensRow(
            rule=str(shown),
            phase=shown.phase,
            total=estimate,
            per_token=total / self.count,
            quadrants={name: scale * float(measured.effects.total[where].sum()) for name, where in self.groups.items()},
            entropy_term=scale * float(measured.effects.entropy.sum()),
            against_none=against_none,
            dropped_share=measured.dropped / self.count,
            random_total=random_total,
            random_deviation=random_deviation,
            against_random=against_random,
            gradient_kept=float(measured.coefficients.abs().sum()) / mass if mass else 0.0,
            distance=float((measured.coefficients - g0).norm()) / norm if norm else 0.0,
            second_order=second,
            influence=influence,
            influence_against_none=influence_against_none,
        )
