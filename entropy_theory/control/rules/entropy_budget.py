"""Our own rule: the gradient closest to the unmodified one whose predicted change of entropy keeps to a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_theory.control.base import Rule, Step
from entropy_theory.control.batch import TokenBatch
from entropy_theory.control.effects import predicted_effects
from entropy_theory.control.flow import Context, Flow, State
from entropy_theory.control.parameters import choice, decided, number
from entropy_theory.control.reducers import Reducer, masked_mean
from entropy_theory.control.registry import register
from entropy_theory.errors import invalid

Distance = Literal["uniform", "relative"]

MAX_ITERATIONS = 500
"""Newton's iteration ends after as many steps as it crosses breakpoints, in practice fewer than twenty."""


@register
@dataclass(frozen=True)
class EntropyBudget(Rule):
    """Entropy budget: the least change of the gradient that keeps the predicted change of entropy within bounds.

    The projection that Theorem 3.3 of arXiv 2602.03392 asks for; this package's own, no paper.

        minimise ½ Σ_t (g'_t − g_t)²/v_t   subject to   −(1/n) Σ_t g'_t S_c,t ≥ floor,   g'_t/g_t ∈ [0, maximum]

    v = 1 ("uniform") or abs(g) ("relative"). With λ ≥ 0 the multiplier of the budget, the solution is

        g'_t = clamp(g_t − λ v_t S_c,t)  between 0 and maximum · g_t

    and λ the root of φ(λ) = −Σ g'_t(λ) S_c,t = n · floor: a one-dimensional dual. φ is concave, piecewise linear and
    increasing, so that Newton's iteration from λ = 0 rises monotonically and ends on the root after finitely many
    steps; each takes one global sum. Where no bound binds, λ = (n floor − φ(0))/Σ v S_c² in closed form. A ceiling is
    the same problem with the signs of S_c and of the budget turned.

    What it guarantees to first order, on the tokens it sees and in the tabular picture:

    1. If the budget is feasible, the predicted change of the mean entropy over a step η is at least η · floor, and at
       most η · ceiling. It is feasible when floor ≤ what remains after dropping every token whose step lowers entropy,
       so always for floor ≤ 0; otherwise those are dropped and the metric `feasible` is 0.
    2. Among all gradients of (1) that flip no sign and enlarge none beyond `maximum`, it is the one closest to g; if g
       keeps to the budget already, it is g to the bit.
    3. With maximum = 1 (the default) tokens that raise entropy are untouched, and only tokens in Q1 and Q4 shrink: what
       it takes away are predicted *falls*, and with one sampled token at a position a predicted fall is a fall at any
       step size (section B.8 of the theory notes). A predicted rise is no such promise: at a floor of 0 entropy still
       falls by what the second order takes.

    A budget for the mean says nothing about single positions, and later rules of a pipe may undo it.

    With `second_order_step` a, the size of α per unit of g, and H'' = `grpo_curvature`, the score S_c − ½ a maximum g
    min(H'', 0) takes the place of S_c (max for a ceiling): since w² ≤ maximum · w for a weight w in [0, maximum], the
    second-order prediction is at least the linear one in that score, and the floor holds to second order.

    Proof of the form of g'. The problem is a strictly convex quadratic one with one linear constraint and a box; its
    Lagrangian separates over tokens, ½ (g'_t − g_t)²/v_t + λ g'_t S_c,t, and is minimised by the clamp above. Strong
    duality gives λ. φ increases at the rate Σ v_t S_c,t² over the tokens not yet at a bound, and tokens only ever reach
    their bound as λ grows: hence piecewise linear and concave.

    Args:
        floor: Lower bound of the predicted change, nats per unit step; None for none.
        ceiling: Upper bound, likewise; None for none; ≥ floor.
        target: An entropy in nats: the floor is then gain · (target − mean H) instead of `floor`, so that under its
            control mean H approaches the target from above no faster than exponentially, dH/dt ≥ −gain (H − target),
            and rises again below it.
        gain: With `target`.
        maximum: The largest g'/g. Above 1, tokens that raise entropy (Q2, Q3) may be enlarged.
        distance: "uniform" or "relative"; the latter changes weights rather than coefficients: w = 1 − λ sgn(g) S_c.
        second_order_step: a, or None for first order.

    Metrics: `multiplier` λ (negative for a ceiling), `feasible`, `floor`, and `predicted_before`, `predicted_after`:
    −(1/n) Σ g S_c.

    Raises:
        ValueError: a parameter out of range, or neither floor, ceiling nor target.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x, S_c = torch.zeros(1, 3), torch.tensor([[0.3, 0.1, -0.2]])
        >>> batch = TokenBatch(x, x, torch.ones(1), torch.ones(1, 3), centered_discriminant=S_c)
        >>> out = EntropyBudget().apply(batch)
        >>> [round(g, 4) for g in out.coefficients[0].tolist()], round(out.metrics["multiplier"], 4)
        ([0.4, 0.8, 1.0], 2.0)
        >>> round(-float((out.coefficients * S_c).sum()), 6) + 0.0
        0.0
    """

    name = "entropy-budget"
    paper = "this package"
    kind = "weight"
    quadrants = "shrinks Q1 and Q4 just enough, the strongest first; never flips a sign"
    parity = "own rule: guarantees tested"

    floor: float | None = number(0.0, optional=True)
    ceiling: float | None = number(None)
    target: float | None = number(None)
    gain: float = number(0.1, 0.0, above=True)
    maximum: float = number(1.0, 1.0)
    distance: Distance = choice("uniform", Distance)
    second_order_step: float | None = number(None, 0.0, above=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.floor is None and self.ceiling is None and self.target is None:
            raise invalid(f"{self.name} floor, ceiling, target", "at least one of them", "none")
        if self.target is None:
            self._in_order("floor", "ceiling")

    @decided
    def needs(self) -> tuple[str, ...]:
        """S_c; H with a target; the curvature for the second order."""
        entropy = () if self.target is None else ("entropy",)
        curvature = () if self.second_order_step is None else ("grpo_curvature",)
        return (*entropy, "centered_discriminant", *curvature)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Project the gradient onto the budget."""
        batch, n = context.batch, context.valid_tokens
        g = flow.coefficients.double()
        score = batch.centered_scores().masked_fill(~flow.valid, 0.0).double()
        floor = self.floor
        if self.target is not None:
            floor = self.gain * (self.target - masked_mean(batch.entropy, flow.valid, context.reducer))
        before = float(context.reducer.sum(predicted_effects(g, score).total.sum()).item()) / n
        metrics = {"predicted_before": before, "predicted_after": before, "multiplier": 0.0, "feasible": 1.0}
        if floor is not None:
            metrics["floor"] = floor
        weight, multiplier, feasible = torch.ones_like(g), 0.0, True
        if floor is not None:
            careful = self._careful(score, g, batch, 1.0)
            weight, multiplier, feasible = self._solve(g, careful, n * floor, context.reducer)
        if self.ceiling is not None and multiplier == 0.0 and feasible:
            turned = -self._careful(score, g, batch, -1.0)
            weight, multiplier, feasible = self._solve(g, turned, -n * self.ceiling, context.reducer)
            multiplier = -multiplier
        metrics |= {"multiplier": multiplier, "feasible": float(feasible)}
        if multiplier == 0.0:
            return flow, metrics, None
        metrics["predicted_after"] = (
            float(context.reducer.sum(predicted_effects(weight * g, score).total.sum()).item()) / n
        )
        return flow.weighted(weight.to(flow.advantages.dtype)), metrics, None

    def _careful(self, score: Tensor, g: Tensor, batch: TokenBatch, sign: float) -> Tensor:
        """S_c, or with the second order its bound that is linear in the weight."""
        if self.second_order_step is None:
            return score
        assert batch.grpo_curvature is not None  # `needs` has seen to it
        curvature = batch.grpo_curvature.detach().double()
        curvature = torch.where(batch.completion_mask, curvature, torch.zeros_like(curvature))
        bad = curvature.clamp_max(0.0) if sign > 0 else curvature.clamp_min(0.0)
        return score - 0.5 * self.second_order_step * self.maximum * g * bad

    def _solve(
        self, g: Float[Tensor, "B T"], score: Float[Tensor, "B T"], budget: float, reducer: Reducer
    ) -> tuple[Float[Tensor, "B T"], float, bool]:
        """Weights w = g'/g with −Σ w g S = budget, the multiplier, and whether the budget could be met."""
        size, pull = g.abs(), g.sign() * score  # pull > 0: the token lowers entropy
        v = torch.ones_like(size) if self.distance == "uniform" else size
        rate, top = v * pull.square(), self.maximum * size

        def at(multiplier: float) -> Tensor:
            return torch.minimum((size - multiplier * v * pull).clamp_min(0.0), top)

        multiplier, current, feasible = 0.0, size, True
        for _ in range(MAX_ITERATIONS):
            free = torch.where(pull > 0, current > 0, current < top)
            sums = torch.stack([-(current * pull).sum(), torch.where(free, rate, 0.0).sum(), (size * pull.abs()).sum()])
            reached, slope, scale = reducer.sum(sums).tolist()
            if budget - reached <= 1e-14 * scale:
                break
            if slope <= 0.0:
                feasible = False
                break
            step = multiplier + (budget - reached) / slope
            if step == multiplier:
                break
            multiplier, current = step, at(step)
        weight = torch.where(size > 0, current / torch.where(size > 0, size, 1.0), 1.0)
        return weight, multiplier, feasible
