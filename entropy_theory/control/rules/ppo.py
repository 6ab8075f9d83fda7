"""Rules of the importance ratio: PPO clipping and its relatives (clip-higher, clip-low, DCPO, BAPO, CE-GPPO).

They need the ratio of the policy being updated, so they are evaluated inside the loss ("live"), not once per batch.
They cut by r, not by S_c. Tokens with A > 0 cut above are mostly unlikely ones (Q2, which raise entropy); those with
A < 0 cut below are mostly unlikely too (Q4, which lower it). That is an observation of arXiv 2602.03392, not a law.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entropy_theory.control.base import Rule, Step
from entropy_theory.control.flow import Context, Flow, State
from entropy_theory.control.parameters import number
from entropy_theory.control.registry import register
from entropy_theory.errors import invalid

DCPO_CAP = 10.0
"""DCPO's upper bound of the ratio is at most this, or `dual_clip` if that is larger."""

MOST_STEPS = 1000
"""BAPO's search takes at most this many steps for each bound; every step is a sum over all ranks."""


def clipped_objective(
    advantages: Float[Tensor, "B T"],
    ratio: Float[Tensor, "B T"],
    low: float | Tensor,
    high: float | Tensor,
    dual_clip: float | None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """PPO's objective between two bounds of the ratio, and the tokens that lose their gradient.

    J = min(r Â, clamp(r, low, high) Â), and for Â < 0 further J ← max(J, c Â).

    Args:
        advantages: Â.
        ratio: r.
        low: The lower bound of r, a number or one per token.
        high: The upper bound, likewise.
        dual_clip: c, or None for no dual clip.

    Returns:
        J, and where the gradient is 0.

    Example:
        >>> J, cut = clipped_objective(torch.ones(1, 1), torch.full((1, 1), 1.5), 0.8, 1.25, None)
        >>> J.item(), cut.item()
        (1.25, True)
    """
    bounded = torch.clamp(ratio, low, high)  # type: ignore[arg-type]  # numbers or tensors, both alike
    objective = torch.minimum(advantages * ratio, advantages * bounded)
    r = ratio.detach()
    cut = ((advantages > 0) & (r > high)) | ((advantages < 0) & (r < low))
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, advantages * dual_clip), objective)
        cut = cut | ((advantages < 0) & (r > dual_clip))
    return objective, cut


@register
@dataclass(frozen=True)
class PPOClip(Rule):
    """PPO's clipped objective with dual clipping.

    arXiv 1707.06347 (clip), 1912.09729 (dual clip); official code: verl `compute_policy_loss_vanilla`.

        J = min(r Â, clamp(r, 1 − ε_l, 1 + ε_h) Â),  and for Â < 0 further  J ← max(J, c Â)
        g = r Â, and 0 where  Â > 0, r > 1 + ε_h;  Â < 0, r < 1 − ε_l;  or  Â < 0, r > c

    with r = exp(log p − log p_old), the log-ratio clamped to ±20 (no gradient beyond), Â the effective advantage:
    A times the masks and weights of earlier rules.

    Args:
        epsilon_low: ε_l.
        epsilon_high: ε_h.
        dual_clip: c, or None for no dual clip.

    The keep-mask holds the tokens that are not clipped; clipped ones keep the value of their objective and stay in the
    denominator. At a kink (r exactly at a bound) the gradient of the unclipped side is taken.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old, A = torch.full((1, 3), -1.0), torch.tensor([1.0])
        >>> log_probs = old + torch.tensor([[0.0, 0.1, 0.5]])
        >>> batch = TokenBatch(log_probs, -old, A, torch.ones(1, 3), old_log_probs=old)
        >>> out = PPOClip().apply(batch)
        >>> out.keep_mask.tolist(), [round(v, 3) for v in out.objective[0].tolist()]
        ([[True, True, False]], [1.0, 1.105, 1.2])
    """

    name = "ppo-clip"
    scope = "token"
    phase = "live"
    needs = ("old_log_probs",)
    paper = "arXiv 1707.06347, 1912.09729"
    kind = "mask"
    quadrants = "cuts by the ratio: in practice the unlikely tokens of Q2 and Q4"
    parity = "verl vanilla (five aggregations), TRL grpo, dapo, dr_grpo, delta"
    departures = (
        "none from verl. Trinity-RFT's PPO loss is the same function, and so is TRL's two-sided clip: its `delta` is "
        "`dual_clip`, as long as delta ≥ 1 + ε_h."
    )

    epsilon_low: float = number(0.2, 0.0)
    epsilon_high: float = number(0.2, 0.0)
    dual_clip: float | None = number(3.0, 1.0, above=True, optional=True)

    def _bounds(self, flow: Flow, context: Context) -> tuple[float | Tensor, float | Tensor, dict[str, float]]:
        """The bounds of the ratio and metrics about them."""
        return 1.0 - self.epsilon_low, 1.0 + self.epsilon_high, {}

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Clip the objective and zero the coefficients of clipped tokens."""
        low, high, metrics = self._bounds(flow, context)
        objective, cut = clipped_objective(flow.advantages, flow.ratio, low, high, self.dual_clip)
        return flow.replaced(objective, keep=flow.valid & ~cut), metrics, None


@register
@dataclass(frozen=True)
class ClipHigher(PPOClip):
    """PPO's clipped objective with a wider upper bound (DAPO, arXiv 2503.14476).

    The formula of `PPOClip` with ε_h = .28 and c = 10, the values of DAPO's scripts.

    Example:
        >>> str(ClipHigher()), ClipHigher().epsilon_high
        ('clip-higher', 0.28)
    """

    name = "clip-higher"
    paper = "arXiv 2503.14476"
    quadrants = "as ppo-clip, sparing more of Q2"
    parity = "verl vanilla with DAPO's bounds"
    departures = ""

    epsilon_high: float = number(0.28, 0.0)
    dual_clip: float | None = number(10.0, 1.0, above=True, optional=True)


@register
@dataclass(frozen=True)
class ClipLow(PPOClip):
    """PPO's clipped objective with a narrower lower bound (arXiv 2509.26114: clip-low raises entropy).

    The formula of `PPOClip` with ε_l = .1.

    Example:
        >>> ClipLow().epsilon_low, ClipLow().epsilon_high
        (0.1, 0.2)
    """

    name = "clip-low"
    paper = "arXiv 2509.26114"
    quadrants = "as ppo-clip, cutting more of Q4"
    parity = "the function of ppo-clip"
    departures = "the paper varies ε_l; this default is ours."

    epsilon_low: float = number(0.1, 0.0)


@register
@dataclass(frozen=True)
class DCPO(PPOClip):
    """DCPO: bounds of the ratio that widen where the old probability is small.

    arXiv 2509.02333; official code: DCPO `get_clip_low_high`, `compute_policy_loss_dcpo`.

        low_t  = (1 + √max(0, 1 − 4 ε_l / p_old)) / 2
        high_t = min((1 + √(1 + 4 ε_h / p_old)) / 2, max(c, 10))

    and then the objective of `PPOClip` between them, with dual clip c.

    Args:
        epsilon_low: ε_l. Official .2.
        epsilon_high: ε_h. Official .28.
        dual_clip: c, or None for no dual clip. Official 10.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.tensor([[-0.6, -4.5]])
        >>> batch = TokenBatch(old + 0.5, -old, torch.ones(1), torch.ones(1, 2), old_log_probs=old)
        >>> DCPO().apply(batch).keep_mask.tolist()  # r = 1.65: the likely token is cut
        [[False, True]]
    """

    name = "dcpo"
    paper = "arXiv 2509.02333"
    quadrants = "as ppo-clip, sparing the least likely tokens of Q2 and Q4"
    parity = "DCPO, two aggregations"
    departures = "the log-ratio is clamped to ±20, which the official code does not do."

    epsilon_high: float = number(0.28, 0.0)
    dual_clip: float | None = number(10.0, 1.0, above=True, optional=True)

    def _bounds(self, flow: Flow, context: Context) -> tuple[float | Tensor, float | Tensor, dict[str, float]]:
        p_old = flow.old_log_probs(context).double().exp()
        low = (1.0 + (1.0 - 4.0 * self.epsilon_low / p_old).clamp_min(0.0).sqrt()) / 2.0
        high = (1.0 + (1.0 + 4.0 * self.epsilon_high / p_old).sqrt()) / 2.0
        high = high.clamp_max(max(self.dual_clip or 0.0, DCPO_CAP))
        return low.to(flow.ratio.dtype), high.to(flow.ratio.dtype), {}


@register
@dataclass(frozen=True)
class BAPO(Rule):
    """BAPO: search the bounds of the ratio until positive tokens contribute enough.

    arXiv 2510.18927; official code: BAPO `compute_policy_loss_bapo`.

        ρ(low, high) = Σ_{A ≥ 0} min(r, high) A / (Σ_{A < 0} max(r, low) abs(A) + 1e-8),  ∞ if the lower sum is 0

    Starting from the lowest bounds, `lower` rises by its step while ρ < target and it is below its maximum; then
    `upper` likewise. The objective is that of `PPOClip` between the bounds found. Sums are over all valid tokens of
    all ranks.

    Args:
        target: The ratio of contributions to reach.
        lower: Where the lower bound starts, ≤ lower_max.
        lower_max: Where it ends at the latest.
        lower_step: By how much it rises; 0 leaves it. It reaches the maximum in at most 1000 steps.
        upper: Where the upper bound starts, ≥ lower and ≤ upper_max.
        upper_max: Where it ends at the latest.
        upper_step: As lower_step.
        dual_clip: c, or None for no dual clip.

    Metrics: `lower`, `upper`, `contribution_ratio`.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old, A = torch.full((1, 2), -1.0), torch.tensor([[1.0, -2.0]])
        >>> batch = TokenBatch(old, -old, A, torch.ones(1, 2), old_log_probs=old)
        >>> metrics = BAPO().apply(batch).metrics
        >>> metrics["lower"], metrics["upper"], round(metrics["contribution_ratio"], 6)
        (0.8, 2.0, 0.5)
    """

    name = "bapo"
    phase = "live"
    needs = ("old_log_probs",)
    paper = "arXiv 2510.18927"
    kind = "mask (bounds searched)"
    quadrants = "cuts more of Q4 and spares more of Q2 while negative tokens outweigh"
    parity = "BAPO, four settings"
    departures = (
        "none. In the official balance, which is kept, A < 0 ratios are clamped from below: raising the lower bound "
        "*increases* the negative sum and leads away from the target, so that loop, once entered, always ends at its "
        "maximum."
    )

    target: float = number(1.0, 0.0)
    lower: float = number(0.6, 0.0)
    lower_max: float = number(0.8, 0.0)
    lower_step: float = number(0.05, 0.0)
    upper: float = number(1.2, 0.0)
    upper_max: float = number(2.0, 0.0)
    upper_step: float = number(0.05, 0.0)
    dual_clip: float | None = number(3.0, 1.0, above=True, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._in_order("lower", "lower_max")
        self._in_order("lower", "upper", "upper_max")
        for bound in ("lower", "upper"):
            step, start, end = (getattr(self, bound + part) for part in ("_step", "", "_max"))
            if 0.0 < step < (end - start) / MOST_STEPS:
                expected = f"0, or at least {(end - start) / MOST_STEPS:g} to reach {bound}_max in {MOST_STEPS} steps"
                raise invalid(f"{self.name} {bound}_step", expected, f"{step:g}")

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Search the bounds, then clip."""
        ratio, advantages = flow.ratio.detach()[flow.valid].double(), flow.advantages[flow.valid].double()

        def balance(low: float, high: float) -> float:
            effective = torch.where(advantages >= 0, ratio.clamp_max(high), ratio.clamp_min(low)) * advantages
            sums = torch.stack([effective.clamp_min(0).sum(), -effective.clamp_max(0).sum()])
            positive, negative = context.reducer.sum(sums).tolist()
            return float("inf") if negative <= 0 else positive / (negative + 1e-8)

        low, high = self.lower, self.upper
        reached = balance(low, high)
        while reached < self.target and low < self.lower_max and self.lower_step > 0:
            low = min(low + self.lower_step, self.lower_max)
            reached = balance(low, high)
        while reached < self.target and high < self.upper_max and self.upper_step > 0:
            high = min(high + self.upper_step, self.upper_max)
            reached = balance(low, high)
        objective, cut = clipped_objective(flow.advantages, flow.ratio, low, high, self.dual_clip)
        metrics = {"lower": low, "upper": high, "contribution_ratio": min(reached, torch.finfo(torch.float64).max)}
        return flow.replaced(objective, keep=flow.valid & ~cut), metrics, None


@register
@dataclass(frozen=True)
class CEGPPO(Rule):
    """CE-GPPO: ratio-clipped tokens keep a bounded gradient instead of none.

    arXiv 2509.20712; official code: CE-GPPO `compute_gppo_loss_general_beta`.

        A > 0, r > 1 + ε_h:  J = β_h (1 + ε_h) (r / sg r) A,   g = β_h (1 + ε_h) A
        A < 0, r < 1 − ε_l:  J = β_l (1 − ε_l) (r / sg r) A,   g = β_l (1 − ε_l) A
        A < 0, r > c:        J = c A,  g = 0
        elsewhere            J = r A,  g = r A

    Args:
        epsilon_low: ε_l.
        epsilon_high: ε_h.
        beta_low: β_l, the official beta1: what Q4 gets back.
        beta_high: β_h, the official beta2: what Q2 gets back.
        dual_clip: c, or None for no dual clip.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.full((1, 1), -1.0)
        >>> batch = TokenBatch(old + 0.5, -old, torch.ones(1), torch.ones(1, 1), old_log_probs=old)
        >>> round(CEGPPO(beta_high=0.5).apply(batch).coefficients.item(), 4)
        0.6
    """

    name = "ce-gppo"
    scope = "token"
    phase = "live"
    needs = ("old_log_probs",)
    paper = "arXiv 2509.20712"
    kind = "weight"
    quadrants = "gives back part of what ppo-clip cuts of Q2 and Q4"
    parity = "CE-GPPO, three settings"
    departures = (
        "the log-ratio is clamped to ±20, which the official code does not do. The official entry point raises a "
        "NameError as published; this is its general-beta function."
    )

    epsilon_low: float = number(0.2, 0.0, 1.0)
    epsilon_high: float = number(0.2, 0.0)
    beta_low: float = number(0.75, 0.0)
    beta_high: float = number(1.0, 0.0)
    dual_clip: float | None = number(10.0, 1.0, above=True, optional=True)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Bound the ratio of clipped tokens and keep their gradient."""
        advantages, r = flow.advantages, flow.ratio.detach()
        high = (advantages > 0) & (r > 1.0 + self.epsilon_high)
        low = (advantages < 0) & (r < 1.0 - self.epsilon_low)
        bounded = torch.where(high, self.beta_high * (1.0 + self.epsilon_high), r)
        bounded = torch.where(low, self.beta_low * (1.0 - self.epsilon_low), bounded).to(r.dtype)
        # r / sg r has the value 1 and the derivative 1 in log p
        objective = bounded * (flow.ratio / r) * advantages
        cut = torch.zeros_like(flow.valid)
        if self.dual_clip is not None:
            cut = (advantages < 0) & (r > self.dual_clip)
            objective = torch.where(cut, advantages * self.dual_clip, objective)
        return flow.replaced(objective, keep=flow.valid & ~cut, derivative=bounded), {}, None
