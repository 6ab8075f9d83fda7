"""Rules of the live importance ratio: PPO clipping and clip-higher.

They need the ratio of the policy being updated, so they run inside the loss ("live"), not once per batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from entropy_theory.control.flow import Context, Flow, State
from entropy_theory.control.rule import Phase, Rule, Step, register


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
        epsilon_low: ε_l ≥ 0.
        epsilon_high: ε_h ≥ 0.
        dual_clip: c > 1, or None for no dual clip.

    Needs `old_log_probs`. The keep-mask holds the tokens that are not clipped; clipped ones keep the value of their
    objective and stay in the denominator. At a kink (r exactly at a bound) the gradient of the unclipped side is
    taken.

    Quadrants: it cuts by r, not by S_c. Tokens with A > 0 cut above are mostly unlikely ones (Q2, which raise
        entropy); those with A < 0 cut below are mostly unlikely too (Q4, which lower it). An observation of the
        paper, not a law.
    Departures: none from verl. Trinity-RFT's PPO loss is the same function.

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old, A = torch.full((1, 3), -1.0), torch.tensor([1.0])
        >>> log_probs = old + torch.tensor([[0.0, 0.1, 0.5]])
        >>> batch = TokenBatch(log_probs, -old, A, torch.ones(1, 3), old_log_probs=old)
        >>> out = PPOClip().apply(batch)
        >>> out.keep_mask.tolist(), [round(v, 3) for v in out.objective[0].tolist()]
        ([[True, True, False]], [1.0, 1.105, 1.2])
    """

    name: ClassVar[str] = "ppo-clip"
    phase: ClassVar[Phase] = "live"
    needs: ClassVar[tuple[str, ...]] = ("old_log_probs",)
    paper: ClassVar[str] = "arXiv 1707.06347, 1912.09729"
    quadrants: ClassVar[str] = "cuts by the ratio: in practice the unlikely tokens of Q2 and Q4"

    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    dual_clip: float | None = 3.0

    def __post_init__(self) -> None:
        self._number("epsilon_low", 0.0)
        self._number("epsilon_high", 0.0)
        if self.dual_clip is not None:
            self._number("dual_clip", 1.0, above=True)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Clip the objective and zero the coefficients of clipped tokens.

        Example:
            >>> from entropy_theory.control import TokenBatch
            >>> x = torch.full((1, 1), -1.0)
            >>> batch = TokenBatch(x, -x, torch.tensor([-1.0]), torch.ones(1, 1), old_log_probs=x - 2)
            >>> PPOClip().apply(batch).loss().item()  # r = e² is beyond c = 3
            3.0
        """
        advantages, ratio = flow.advantages, flow.ratio
        low, high = 1.0 - self.epsilon_low, 1.0 + self.epsilon_high
        objective = torch.minimum(advantages * ratio, advantages * ratio.clamp(low, high))
        r = ratio.detach()
        cut = ((advantages > 0) & (r > high)) | ((advantages < 0) & (r < low))
        if self.dual_clip is not None:
            floor = torch.maximum(objective, advantages * self.dual_clip)
            objective = torch.where(advantages < 0, floor, objective)
            cut = cut | ((advantages < 0) & (r > self.dual_clip))
        return flow.replaced(objective, keep=flow.valid & ~cut), {}, None


@register
@dataclass(frozen=True)
class ClipHigher(PPOClip):
    """PPO's clipped objective with a wider upper bound (DAPO, arXiv 2503.14476).

    The formula of `PPOClip` with ε_h = .28 and c = 10, the values of DAPO's scripts.

    Quadrants: lets more of the positive, unlikely tokens through (Q2, which raise entropy) than ε_h = .2.

    Example:
        >>> str(ClipHigher()), ClipHigher().epsilon_high
        ('clip-higher', 0.28)
    """

    name: ClassVar[str] = "clip-higher"
    paper: ClassVar[str] = "arXiv 2503.14476"
    quadrants: ClassVar[str] = "as ppo-clip, sparing more of Q2"

    epsilon_high: float = 0.28
    dual_clip: float | None = 10.0
