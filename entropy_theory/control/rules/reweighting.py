"""Rules that multiply the gradient of each token: STEER, STARE, on-policy entropy flow, advantage reweighting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from entropy_theory.control.base import Phase, Rule, Scope, Step
from entropy_theory.control.effects import predicted_effects
from entropy_theory.control.flow import MAX_LOG_RATIO, Context, Flow, State
from entropy_theory.control.parameters import choice, decided, flag, number
from entropy_theory.control.reducers import masked_count, masked_mean, masked_min_max, masked_top_k
from entropy_theory.control.registry import register
from entropy_theory.errors import invalid

SteerForm = Literal["exponential", "linear"]
StareVariant = Literal["O1", "C2"]
Score = Literal["centered", "uncentered"]
Reweighting = Literal["linear", "linear-positive", "sigmoid", "sigmoid-negative", "mask", "raft"]

STEER_FLOOR = 0.02
"""STEER's decay rate never takes the largest change of entropy for smaller than this."""


@register
@dataclass(frozen=True)
class Steer(Rule):
    """STEER: weigh tokens down by their estimated change of entropy.

    arXiv 2510.10150; official code: STEER `compute_token_weights`.

        Ω = abs(A (p/p_old)(1 − p)(log p + H))
        exponential  w = e^{−k Ω},  k = −ln(minimum) / max(Ω_max, .02)
        linear       w = maximum − (maximum − minimum)(Ω − Ω_min)/(Ω_max − Ω_min)

    with the extremes over the valid tokens of all ranks.

    Args:
        form: "exponential", the official default, or "linear".
        minimum: The smallest weight.
        maximum: The largest weight of the linear form, ≥ minimum; official 1.2. The exponential form has 1.
        frozen: True takes p/p_old = 1 in Ω: the weights are then fixed once per batch ("batch").

    p/p_old is the ratio with its log clamped to ±20. (1 − p)(log p + H) is S without the factor p and with 1 − p, so
    that unlikely tokens count for more than the theory gives them. Tokens with A = 0 get the largest weight.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x = torch.tensor([[-0.1, -3.0]])
        >>> batch = TokenBatch(x, torch.ones(1, 2), torch.ones(1), torch.ones(1, 2), old_log_probs=x)
        >>> weights = Steer().apply(batch).coefficients[0]
        >>> round(weights[1].item(), 6), bool(weights[0] > weights[1])
        (0.8, True)
    """

    name = "steer"
    paper = "arXiv 2510.10150"
    kind = "weight"
    quadrants = "shrinks all four alike, the strongest movers first"
    parity = "STEER, four settings"
    departures = "the official extremes are those of the micro-batch. Where all Ω agree the linear weight is `maximum`."

    form: SteerForm = choice("exponential", SteerForm)
    minimum: float = number(0.8, 0.0, 1.0, above=True)
    maximum: float = number(1.2, 0.0)
    frozen: bool = flag(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._in_order("minimum", "maximum")

    @decided
    def phase(self) -> Phase:
        """Batch when the ratio is left out."""
        return "batch" if self.frozen else "live"

    @decided
    def needs(self) -> tuple[str, ...]:
        """H, and the old log-probabilities for the ratio."""
        return ("entropy",) if self.frozen else ("entropy", "old_log_probs")

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Weigh the tokens."""
        log_p = flow.log_probs.detach().double()
        entropy = context.batch.entropy.detach().masked_fill(~flow.valid, 0.0).double()
        A = flow.unmasked_advantages.double()
        moved = (A * (1.0 - log_p.exp()) * (log_p + entropy)).abs()
        if not self.frozen:
            moved = moved * flow.log_ratio.detach().double().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        low, high = masked_min_max(moved, flow.valid, context.reducer)
        if self.form == "exponential":
            rate = -math.log(self.minimum) / max(high, STEER_FLOOR)
            weight = torch.exp(-rate * moved)
        else:
            place = (moved - low) / (high - low) if high > low else torch.zeros_like(moved)
            weight = self.maximum - (self.maximum - self.minimum) * place
        metrics = {"change_min": low, "change_max": high}
        return flow.weighted(weight.to(flow.advantages.dtype)), metrics, None


@register
@dataclass(frozen=True)
class Stare(Rule):
    """STARE: reinforce surprising right tokens more (and surprising wrong ones less) while entropy is low.

    arXiv 2606.19236; official code: STARE `compute_stare_token_weights`, `STAREController`.

        w = W on the ⌈share⌉ of the A > 0 tokens with the largest −log p
        C2 also: w = M on the ⌈share⌉ of the A < 0 tokens with the largest −log p
        gate: only while mean H < target
        closed loop, before the weights of the step are taken:
            W ← clamp(W + α s, 1, W_max),  M ← clamp(M − α s, M_min, 1),  s = sgn(target − mean H)

    ⌈share⌉ of m tokens is ⌊share · m + .999999⌋, at least 1. Sets and means are over the valid tokens of all ranks.

    Args:
        variant: "O1", positive tokens only, as official; "C2" both signs.
        share: Of the tokens of one sign of A.
        up: W, or where the closed loop starts.
        down: M, likewise.
        target: Entropy below which the gate is open, nats; None keeps it open (and needs `adaptive=False`).
        adaptive: Whether the closed loop moves W and M.
        rate: α.
        up_max: W_max, ≥ W for the closed loop.
        down_min: M_min, ≤ M for the closed loop.

    Surprisal stands in for S_c < 0. State of the closed loop: W and M.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x = torch.tensor([[-0.1, -3.0]])
        >>> batch = TokenBatch(x, torch.full((1, 2), 0.1), torch.ones(1), torch.ones(1, 2))
        >>> [round(g, 6) for g in Stare().apply(batch).coefficients[0].tolist()]
        [1.0, 1.1]
    """

    name = "stare"
    needs = ("entropy",)
    paper = "arXiv 2606.19236"
    kind = "weight"
    quadrants = "enlarges Q2; C2 also shrinks Q4"
    parity = "STARE, five settings, and its controller"
    departures = (
        "equal surprisals go in global token order. Fixed once per batch; the official code computes the weights in "
        "each micro-batch, from that micro-batch alone. A batch without a finite mean entropy does not exist here "
        "(inputs are validated), so the official skip of such steps never occurs."
    )

    variant: StareVariant = choice("O1", StareVariant)
    share: float = number(0.1, 0.0, 1.0, above=True)
    up: float = number(1.1, 1.0)
    down: float = number(0.9, 0.0, 1.0)
    target: float | None = number(0.3, optional=True)
    adaptive: bool = flag(False)
    rate: float = number(0.01, 0.0)
    up_max: float = number(1.5, 1.0)
    down_min: float = number(0.5, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive:
            self._in_order("up", "up_max")
            self._in_order("down_min", "down")
            if self.target is None:
                raise invalid(f"{self.name} target", "a number for adaptive=True", None)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Move the closed loop, and weigh the tokens if the gate is open."""
        reducer = context.reducer
        entropy = masked_mean(context.batch.entropy, flow.valid, reducer)
        up, down = self.up, self.down
        if self.adaptive:
            assert self.target is not None
            up, down = (state["up"], state["down"]) if state is not None else (up, down)
            toward = float(entropy < self.target) - float(entropy > self.target)
            up = min(max(up + self.rate * toward, 1.0), self.up_max)
            down = max(min(down - self.rate * toward, 1.0), self.down_min)
        metrics = {"entropy": entropy, "gate": float(self.target is None or entropy < self.target)}
        metrics |= {"up": up, "down": down}
        remembered = {"up": up, "down": down} if self.adaptive else None
        if not metrics["gate"]:
            return flow, metrics, remembered
        weight = torch.ones_like(flow.advantages)
        surprisal, A = -flow.log_probs.detach(), flow.unmasked_advantages
        for name, side, value in (("up", A > 0, up), ("down", A < 0, down)):
            if name == "down" and self.variant == "O1":
                continue
            candidates = flow.valid & side
            number = masked_count(candidates, reducer)
            number = max(int(number * self.share + 0.999999), 1)
            weight[masked_top_k(surprisal, candidates, number, reducer)] = value
        return flow.weighted(weight), metrics, remembered


@register
@dataclass(frozen=True)
class EntropyFlow(Rule):
    """On-policy entropy flow: weigh predicted rises and falls until they balance.

    arXiv 2605.11491 (no official code found).

        f_t = −g_t S_c,t,   F⁺ = Σ max(f, 0),   F⁻ = Σ min(f, 0),   λ = (abs F⁻ − F⁺)/(abs F⁻ + F⁺)
        w = 1 + λ where f > 0,  1 − λ where f < 0

    Sums over the valid tokens of all ranks. The weighted flow adds up to exactly (1 + λ) F⁺ + (1 − λ) F⁻ = 0: to first
    order the update leaves the total entropy as it is, whatever it was about to do.

    Args:
        score: "centered" uses S_c; "uncentered" S, for batches without a baseline.
        strength: λ is multiplied by it; 1 is the method.

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> x, S_c = torch.zeros(1, 2), torch.tensor([[0.3, -0.1]])
        >>> batch = TokenBatch(x, x, torch.ones(1), torch.ones(1, 2), centered_discriminant=S_c)
        >>> [round(g, 6) for g in EntropyFlow().apply(batch).coefficients[0].tolist()]
        [0.5, 1.5]
    """

    name = "entropy-flow"
    paper = "arXiv 2605.11491"
    kind = "weight"
    quadrants = "scales Q2 and Q3 against Q1 and Q4 until the prediction is 0"

    score: Score = choice("centered", Score)
    strength: float = number(1.0, 0.0, 1.0)

    @decided
    def needs(self) -> tuple[str, ...]:
        """What the score is made of."""
        return ("centered_discriminant",) if self.score == "centered" else ("entropy",)

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Balance the flow."""
        batch = context.batch
        score = batch.centered_scores() if self.score == "centered" else batch.scores()
        change = predicted_effects(flow.coefficients, score.masked_fill(~flow.valid, 0.0)).total
        sums = torch.stack([change.clamp_min(0).sum(), -change.clamp_max(0).sum()])
        rise, fall = context.reducer.sum(sums).tolist()
        balance = self.strength * (fall - rise) / (fall + rise) if fall + rise > 0 else 0.0
        weight = 1.0 + balance * change.sign()
        return flow.weighted(weight.to(flow.advantages.dtype)), {"rise": rise, "fall": fall, "balance": balance}, None


@register
@dataclass(frozen=True)
class AdvantageReweighting(Rule):
    """Advantage reweighting: less gradient for unlikely tokens.

    arXiv 2505.12929; official code: AR-Lopti `compute_reweight_advantage`. With p = exp(log p_old):

        linear            w = α p + 1 − α                     (official both_linear_normal)
        linear-positive   the same where A > 0, 1 elsewhere     (both_linear_balance1)
        sigmoid           w = 2 σ(k (p − τ))                    (both_sigmoid)
        sigmoid-negative  the same where A ≤ 0, then all of these scaled so that Σ A p over them balances that over A >
                          0 (negative_sigmoid_balance1)
        mask              w = 1 where 0 < p ≤ upper, 0 elsewhere  (mask_prob_lower...)
        raft              A = α p + 1 − α where A > 0, 0 elsewhere  (RAFT_linear)

    and in the first, second and fourth a further factor `negative_weight` where A ≤ 0.

    Args:
        form: One of the six.
        alpha: α. Paper .2, or .3 together with Lopti.
        slope: k.
        center: τ.
        negative_weight: The factor where A ≤ 0.
        upper: The largest p of "mask".

    Example:
        >>> from entropy_theory.control import TokenBatch
        >>> old = torch.tensor([[0.0, -30.0]])
        >>> batch = TokenBatch(old, -old, torch.ones(1), torch.ones(1, 2), old_log_probs=old)
        >>> [round(g, 6) for g in AdvantageReweighting().apply(batch).coefficients[0].tolist()]
        [1.0, 0.8]
    """

    name = "advantage-reweighting"
    needs = ("old_log_probs",)
    paper = "arXiv 2505.12929"
    kind = "weight"
    quadrants = "shrinks the unlikely tokens, Q2 and Q4, alike"
    parity = "AR-Lopti, seven settings"
    departures = 'the sums of "sigmoid-negative" are over all ranks.'

    form: Reweighting = choice("linear", Reweighting)
    alpha: float = number(0.2, 0.0, 1.0)
    slope: float = number(10.0)
    center: float = number(0.5)
    negative_weight: float = number(1.0, 0.0)
    upper: float = number(0.25, 0.0, 1.0, above=True)

    @decided
    def scope(self) -> Scope:
        """One form balances sums over all tokens."""
        return "batch" if self.form == "sigmoid-negative" else "token"

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Weigh the advantages."""
        p = flow.old_log_probs(context).double().exp()
        A, ones = flow.unmasked_advantages.double(), torch.ones_like(p)
        linear, positive = self.alpha * p + (1.0 - self.alpha), A > 0
        if self.form == "mask":
            return flow.masked(flow.valid & (p > 0) & (p <= self.upper), "valid"), {}, None
        if self.form == "raft":
            return flow.with_advantages(torch.where(positive, linear, 0.0), by=self.name), {}, None
        negative: float | Tensor = self.negative_weight
        if self.form == "linear":
            weight = linear * torch.where(positive, ones, negative)
        elif self.form == "linear-positive":
            weight = torch.where(positive, linear, negative)
        else:
            gate = 2.0 * torch.sigmoid(self.slope * (p - self.center))
            if self.form == "sigmoid-negative":
                mass = torch.where(flow.valid, A * p, 0.0)
                sums = torch.stack([mass[positive].sum(), -(gate * mass)[~positive].sum()])
                right, wrong = context.reducer.sum(sums).tolist()
                negative = negative * (right / wrong) if wrong else negative
                gate = torch.where(positive, ones, gate * negative)
            weight = gate
        return flow.weighted(weight.to(flow.advantages.dtype)), {}, None
