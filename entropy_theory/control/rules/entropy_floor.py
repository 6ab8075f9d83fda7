"""Our own rule: below a floor of mean entropy, the fewest tokens are dropped whose removal turns the prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_theory.control.base import Rule, Step
from entropy_theory.control.batch import TokenBatch
from entropy_theory.control.effects import predicted_effects
from entropy_theory.control.flow import Context, Denominator, Flow, State, Statistics
from entropy_theory.control.parameters import choice, number
from entropy_theory.control.reducers import Reducer, masked_count, masked_mean, masked_top_k
from entropy_theory.control.registry import register
from entropy_theory.errors import invalid


@register
@dataclass(frozen=True)
class EntropyFloor(Rule):
    """Entropy floor: while mean entropy is below a floor, drop the fewest tokens that keep it from falling further.

    This package's own, no paper. With the predicted effects e_t = −g_t S_c,t (Theorem 3.3 of arXiv 2602.03392) and the
    n valid tokens of all ranks:

        mean H ≥ floor:  nothing is dropped
        mean H < floor:  need = gain (floor − mean H) n;  drop the k tokens of smallest e_t, with e_t < 0,
                         k the least number with Σ_kept e_t ≥ need, or all of them if none suffices

    What it guarantees to first order, in the tabular picture:

    1. The kept tokens' Σ e_t is at least `need`, or every token that lowers entropy is dropped, or as many
       as `max_share` lets go (metric `feasible`).
    2. No smaller set of tokens does it: the k smallest effects have the largest sum that k tokens can take away.
    3. Only tokens of Q1 and Q4 are dropped; of equal effects the first in global token order.

    With gain 0 the rule only stops the predicted fall, which in a model with shared parameters is still a fall; a
    positive gain asks for a rise in proportion to what is missing. Entropy terms of a pipe's other rules are not in e.

    Args:
        floor: Mean entropy in nats under which the rule acts; at most log V, as TRL's trainer and the simulator check.
        gain: Predicted rise per token, unit step and nat below the floor.
        max_share: The largest share of the valid tokens that is dropped; None for no bound.
        hysteresis: Nats above the floor that mean H has to reach before the rule stops; it remembers that it acts.
        statistics: The tokens whose mean H is meant and that may be dropped: all "valid" ones, or those "kept" by
            earlier rules of a pipe.
        denominator: "valid": dropped tokens stay in the token mean's count; "kept": they leave it.

    State: `below`, with hysteresis alone.

    Metrics: `below` (1 while the rule acts), `need`, `feasible`, `threshold` (the largest e of a dropped token), and
    `predicted_before`, `predicted_after`: (1/n) Σ e over all and over the kept tokens.

    Raises:
        ValueError: a parameter is outside its range, or the batch has no S_c.

    Example:
        >>> import torch
        >>> from entropy_theory.control import TokenBatch
        >>> H, S_c = torch.full((1, 4), 0.4), torch.tensor([[0.3, 0.1, 0.2, -0.35]])
        >>> batch = TokenBatch(torch.zeros(1, 4), H, torch.ones(1), torch.ones(1, 4), centered_discriminant=S_c)
        >>> EntropyFloor(floor=0.5, gain=0.0).apply(batch).keep_mask.tolist()
        [[False, True, True, True]]
        >>> EntropyFloor(floor=0.3).apply(batch).metrics["dropped"]
        0.0
    """

    name = "entropy-floor"
    needs = ("entropy", "centered_discriminant")
    paper = "this package"
    kind = "mask"
    quadrants = "removes the strongest of Q1 and Q4, while entropy is below the floor"
    parity = "own rule: guarantees tested"
    threshold_parameter = "floor"

    floor: float = number(0.5, 0.0)
    gain: float = number(0.3, 0.0)
    max_share: float | None = number(None, 0.0, 1.0, above=True)
    hysteresis: float = number(0.0, 0.0)
    statistics: Statistics = choice("valid", Statistics)
    denominator: Denominator = choice("valid", Denominator)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InputError for a floor above log V, which no policy reaches."""
        if self.floor > math.log(vocab_size):
            expected = f"at most log V = {math.log(vocab_size):.4g} nats of {vocab_size} tokens"
            raise invalid(f"{self.name} floor", expected, f"{self.floor:g}")

    def threshold_end(self, batch: TokenBatch) -> float:
        """Half as much again as the floor or as mean H, whichever is more; 1 nat if both are 0."""
        return 1.5 * max(self.floor, masked_mean(batch.entropy, batch.completion_mask)) or 1.0

    def transform(self, flow: Flow, context: Context, state: State | None) -> Step:
        """Drop the strongest falls while mean entropy is below the floor."""
        batch, n, reducer = context.batch, context.valid_tokens, context.reducer
        population = flow.population(self.statistics)
        score = batch.centered_scores().masked_fill(~flow.valid, 0.0)
        effects = predicted_effects(flow.coefficients, score).total
        acts = bool(state and state.get("below"))
        some = masked_count(population, reducer) > 0  # earlier rules may have dropped every token
        mean = masked_mean(batch.entropy, population, reducer) if some else math.inf
        below = mean < self.floor + (self.hysteresis if acts else 0.0)
        remembered: State | None = {"below": below if some else acts} if self.hysteresis else None
        candidates = population & (effects < 0)
        falls = _ordered(effects, candidates, reducer)
        others = _ordered(effects, flow.valid & ~candidates, reducer).cumsum(0)
        # What is left is added up, not subtracted from a whole, and both signs from the smallest on: rises that are the
        # falls' mirror image leave exactly 0.
        rises = float(others[-1]) if len(others) else 0.0
        kept = rises + torch.cat([falls.flip(0).cumsum(0).flip(0), falls.new_zeros(1)])  # after 0, 1, ... drops
        before = float(kept[0])
        need = self.gain * max(0.0, self.floor - mean) * n
        metrics = {"below": float(below), "need": need / n, "feasible": 1.0, "threshold": 0.0}
        metrics |= {"predicted_before": before / n, "predicted_after": before / n}
        if not below or before >= need:
            return flow.masked(flow.valid, self.denominator), metrics, remembered
        enough = int((kept < need).sum())
        allowed = len(falls) if self.max_share is None else min(len(falls), int((self.max_share + 1e-9) * n))
        count = min(enough, allowed)
        drop = masked_top_k(-effects, candidates, count, reducer)
        metrics["feasible"] = float(enough <= allowed)
        if count:
            metrics |= {"threshold": float(falls[count - 1]), "predicted_after": float(kept[count]) / n}
        return flow.masked(flow.valid & ~drop, self.denominator), metrics, remembered


def _ordered(effects: Tensor, mask: Tensor, reducer: Reducer) -> Tensor:
    """The effects of the mask's tokens on all ranks, the smallest first: their sums depend on no layout."""
    return reducer.gather(effects[mask]).sort().values
