"""The live seam: rules of the current ratio and entropy terms, inside TRL's loss.

What was decided on the generation batch travels in TRL's inputs, one tensor per field, so that it is shuffled and split
with the tokens it belongs to. At every micro-batch the live part of the rule is applied to the present log p and H, and
its objective J takes the place of TRL's surrogate:

    loss = Σ_t m_t (−J_t u_t + β KL_t) / D − Σ_t c_t H_t / n

m the mask; u TRL's own weights of the surrogate (high-entropy mask, importance-sampling correction) and the share by
which the rule shrinks its denominator; D the divisor of TRL's loss type; c = ∂J/∂H; n the tokens that the rule counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropy_theory.bridge.trl.carried import CARRIED, MASK, present_batch, sorted_window, unpack
from entropy_theory.control import Reducer, Rule, RuleOutput
from entropy_theory.control.base import Pipe
from entropy_theory.errors import invalid

# Live rules that look at one token or one sequence at a time. Any other, also one of a user's own, is given all tokens
# of the optimizer step at once.
LOCAL = frozenset(
    {"none", "ppo-clip", "clip-higher", "clip-low", "dcpo", "ce-gppo", "cispo", "gspo", "sapo", "gpg"}
) | {*("dppo", "gmpo", "dro", "entropy-ratio", "entropy-bonus", "advantage-reweighting", "w-reinforce")}
_SCORES = ("baseline", "discriminant", "centered_discriminant", "sum_squared_discriminant", "grpo_curvature")


def members(rule: Rule | None) -> tuple[Rule, ...]:
    """List the rules of a pipe, or the one rule."""
    if rule is None:
        return ()
    return rule.rules if isinstance(rule, Pipe) else (rule,)


def needs_window(rule: Rule) -> bool:
    """Say whether the live part takes statistics over all tokens of an optimizer step.

    Example:
        >>> from entropy_theory.control import rule
        >>> needs_window(rule("clip-b|ppo-clip")), needs_window(rule("kl-cov"))
        (False, True)
    """
    return any(
        one.name not in LOCAL
        or getattr(one, "drop_fraction", None) is not None
        or getattr(one, "over", "counted") == "kept"
        for one in members(rule.split()[1])
    )


def needs_scores(rule: Rule) -> bool:
    """Say whether the live part reads scores of the present policy that need its whole distribution."""
    return any(name in _SCORES for one in members(rule.split()[1]) for name in one.needs)


# -- what the rule decides --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What a live rule made of a micro-batch.

    Attributes:
        objective: J_t without its entropy term, (B, T), differentiable in log p.
        scale: What J is multiplied by to express the rule's denominator, see `shrinkage`.
        entropy_coefficients: ∂J/∂H_t, (B, T), or None.
        counted: The number of tokens, over all ranks, that the entropy term is averaged over.
        counted_steps: The micro-batches that ``counted`` spans.
    """

    objective: Tensor
    scale: float | Tensor | None
    entropy_coefficients: Tensor | None
    counted: Tensor
    counted_steps: int


def linear(value: Tensor, coefficients: Tensor, log_probs: Tensor) -> Tensor:
    """An objective with a given value and gradient: J_t + g_t (log p_t − sg log p_t)."""
    inside = coefficients != 0  # log p may be anything at masked positions
    return value.detach() + torch.where(inside, coefficients.detach() * (log_probs - log_probs.detach()), 0.0)


def own_objective(out: RuleOutput, log_probs: Tensor, entropy: Tensor) -> Tensor:
    """The objective without its entropy term; from the coefficients where the pipe has no closed form of it."""
    if out.objective is None:
        return linear(out.coefficients, out.coefficients, log_probs)
    if out.entropy_coefficients is None:
        return out.objective
    return out.objective - out.entropy_coefficients * entropy.detach()


def shrinkage(mask: Tensor, counted: Tensor, kind: str, reducer: Reducer) -> float | Tensor | None:
    """What per-token terms are multiplied by so that TRL's fixed divisor yields the rule's own.

    Args:
        mask: The valid tokens, (B, T).
        counted: Those that the rule counts.
        kind: "token": all tokens have one divisor; "sequence": each row has its own; "constant": none counts tokens.
        reducer: The collectives.

    Returns:
        None where nothing changes, a number, or one number per row, (B, 1).
    """
    sizes = reducer.sum(torch.stack([mask.sum(), counted.sum()]).double()).tolist()
    if kind == "constant" or sizes[0] == sizes[1]:
        return None
    if kind == "token":
        return float(sizes[0] / max(sizes[1], 1.0))
    return (mask.sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)).float()


# -- what TRL divides by ----------------------------------------------------------------------------------------------


def reduce_loss(per_token: Tensor, mask: Tensor, trainer: Any, inputs: Mapping[str, Any], rescaled: bool) -> Tensor:
    """Reduce a per-token loss as TRL's loss types do, for one micro-batch in training.

        dapo, cispo, vespo  Σ m x / n, n the tokens of the generation batch per rank and optimizer step
        grpo, sapo          mean over rows of Σ_t m x / Σ_t m
        bnpo                Σ m x / Σ m of the micro-batch
        dr_grpo             Σ m x / (B L), L the longest completion allowed
        luspo               mean over rows of Σ_t m x

    and all but the first divided by the micro-batches of the optimizer step.

    Args:
        per_token: x, (B, T).
        mask: m, (B, T).
        trainer: Whose loss type and layout.
        inputs: TRL's inputs.
        rescaled: Whether this TRL rescales n from the generation batch to the optimizer step (from 1.9.1).
    """
    steps, kind = trainer.current_gradient_accumulation_steps, trainer.loss_type
    if kind in ("dapo", "cispo", "vespo"):
        number = inputs["num_items_in_batch"]
        number = number.clamp(min=1.0) / trainer.accelerator.num_processes
        if rescaled:
            number = number * steps / trainer.args.steps_per_generation
        return (per_token * mask).sum() / number
    if kind in ("grpo", "sapo"):
        loss = ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    elif kind == "bnpo":
        loss = (per_token * mask).sum() / mask.sum().clamp(min=1.0)
    elif kind == "dr_grpo":
        loss = (per_token * mask).sum() / (per_token.size(0) * trainer.max_completion_length)
    else:
        loss = (per_token * mask).sum(-1).mean()
    return loss / steps


# -- the seam ---------------------------------------------------------------------------------------------------------


class LiveLoss:
    """What happens inside TRL's loss: the live part of the rule, entropy terms, one-pass scoring, observed live rules.

    Under a live rule TRL's own loss runs without gradient, for its metrics, and the rule's loss is returned.

    Args:
        trainer: The controlled trainer.
        rescaled: See `reduce_loss`.
    """

    def __init__(self, trainer: Any, rescaled: bool) -> None:
        self._trainer, self._rescaled = trainer, rescaled
        self.entropy_mask: Tensor | None = None  # TRL's high-entropy mask of this micro-batch
        self.scored_at = -1  # the optimizer step at which the travelling statistics were the present policy's
        self._inputs: dict[str, Any] = {}
        self._found: tuple[Any, ...] = ()
        self._window: list[Decision] = []
        self._reports: list[dict[str, float]] = []

    def begin(self, inputs: dict[str, Any]) -> None:
        """Remember the micro-batch that TRL's loss is about to work on."""
        self._inputs, self._found, self.entropy_mask = inputs, (), None

    def forward(self, forward: Callable[[], Any]) -> Any:
        """Run TRL's forward of the policy in training, and hand it on: without gradient under a live rule."""
        trainer = self._trainer
        before = getattr(trainer, "_entropy_bonus_enabled", None)
        if before is not None and trainer.rule.entropy_term:  # TRL before 1.16 gives entropies a gradient on demand
            trainer._entropy_bonus_enabled = True
        try:
            self._found = self._one_pass(forward) if trainer._one_pass else forward()
        finally:
            if before is not None:
                trainer._entropy_bonus_enabled = before
        if trainer._live_part is None:
            return self._found
        return tuple(None if value is None else value.detach() for value in self._found)

    def _one_pass(self, forward: Callable[[], Any]) -> Any:
        """Score and decide during the forward, on rows in the order in which they were sampled."""
        trainer, inputs = self._trainer, self._inputs
        batch, order = sorted_window([inputs])
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        obstacle = trainer._scorer.obstacle(ids, attention_mask)
        if obstacle and trainer._scoring == "one-pass":
            raise invalid("scoring", f"'batch': {obstacle}", "'one-pass'")
        with trainer._scorer.watch() as seen:
            output = forward()
        statistics = None  # scored apart
        if not obstacle:
            tokens = batch["completion_ids"]
            hidden = seen[-1][order, -tokens.shape[1] - 1 : -1]
            statistics = trainer._scorer.from_hidden(hidden, tokens, trainer._second_order())
        decided = dict(batch)
        trainer._control(decided, statistics)
        back = order.argsort()
        for name, value in decided.items():
            if value is not batch.get(name):
                inputs[name] = value[back] if value.dim() else value
        return output

    def finish(self, loss: Tensor) -> Tensor:
        """Turn TRL's loss into the controlled one."""
        trainer, inputs = self._trainer, self._inputs
        if trainer._one_pass and not self._found:
            raise invalid("scoring", "'batch' for a trainer whose loss does not run TRL's forward", "'one-pass'")
        if MASK not in inputs:
            return loss
        log_probs, entropy, *rest = self._found
        self._observe(log_probs.detach(), entropy.detach())
        if trainer._live_part is None:
            first = unpack(inputs)[1]
            if first is None or first.entropy_coefficients is None:
                return loss
            spans = trainer.args.steps_per_generation
            return loss + self._entropy_loss(entropy, first.entropy_coefficients, first.denominator, spans)
        decision = self._decide(log_probs, entropy)
        mask = inputs["completion_mask"]
        mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
        per_token = -decision.objective
        if decision.scale is not None:
            per_token = per_token * decision.scale
        if self.entropy_mask is not None:
            per_token = per_token * self.entropy_mask
        if inputs.get("importance_sampling_ratio") is not None:
            per_token = per_token * inputs["importance_sampling_ratio"]
        if trainer.beta != 0.0:
            per_token = per_token + trainer.beta * self._kl(log_probs)
        loss = reduce_loss(per_token, mask, trainer, inputs, self._rescaled)
        if decision.entropy_coefficients is not None:
            loss = loss + self._entropy_loss(
                entropy, decision.entropy_coefficients, decision.counted, decision.counted_steps
            )
        if getattr(trainer, "aux_loss_enabled", False):
            loss = loss + trainer.router_aux_loss_coef * rest[0] / trainer.current_gradient_accumulation_steps
        return loss

    def _kl(self, log_probs: Tensor) -> Tensor:
        """TRL's estimate of the divergence from the reference, e^x − x − 1 with x = log p_ref − log p."""
        reference = self._inputs["ref_per_token_logps"]
        # The difference is formed twice, as TRL does: gradients are then added in its order, and equal its to the bit.
        kl = torch.exp(reference - log_probs) - (reference - log_probs) - 1
        if getattr(self._trainer.args, "use_bias_correction_kl", False):
            old = self._inputs.get("old_per_token_logps")
            kl = kl * torch.exp(log_probs - (log_probs.detach() if old is None else old))
        return kl

    def _entropy_loss(self, entropy: Tensor, coefficients: Tensor, counted: Tensor, spans: int) -> Tensor:
        """−Σ c_t H_t / n, n this rank's share of the counted tokens of one optimizer step; for every loss type."""
        trainer = self._trainer
        share = trainer.current_gradient_accumulation_steps / (trainer.accelerator.num_processes * spans)
        inside = coefficients != 0  # H may be anything at masked positions
        return -torch.where(inside, coefficients * entropy, 0.0).sum() / (counted.clamp(min=1) * share)

    def _decide(self, log_probs: Tensor, entropy: Tensor) -> Decision:
        trainer, inputs = self._trainer, self._inputs
        if needs_window(trainer.rule) or needs_scores(trainer.rule):
            return self._decide_together(log_probs, entropy)
        mask, reducer, first = inputs[MASK], trainer._reducer(), unpack(inputs)[1]
        counted = inputs["num_items_in_batch"] if first is None else first.denominator
        settings = (inputs.get(CARRIED + "scale"), counted, trainer.args.steps_per_generation)
        if not reducer.sum(mask.sum()) > 0:
            nothing = torch.zeros_like(log_probs)
            self._report({}, whole=False)
            return Decision(linear(nothing, nothing, log_probs), settings[0], None, *settings[1:])
        batch = present_batch(inputs, log_probs, entropy.detach())
        out = trainer._live_part.apply(batch, reducer, trainer._generator(1), trainer.rule_state, after=first)
        self._report(out.metrics, whole=False)
        objective = own_objective(out, log_probs, entropy)
        return Decision(objective, settings[0], out.entropy_coefficients, *settings[1:])

    def _decide_together(self, log_probs: Tensor, entropy: Tensor) -> Decision:
        """Decide on all micro-batches of the optimizer step at its first one, by the policy that all of them see."""
        trainer = self._trainer
        steps = trainer.current_gradient_accumulation_steps
        begin = trainer._step % trainer.args.steps_per_generation
        if begin % steps == 0:
            window = trainer._buffered_inputs[begin : begin + steps]
            self._window = self._decide_window(window, log_probs.detach(), entropy.detach())
        value, coefficients, entropy_coefficients, scale, counted = self._window[begin % steps]
        return Decision(linear(value, coefficients, log_probs), scale, entropy_coefficients, counted, steps)

    def _decide_window(self, window: Sequence[dict[str, Any]], log_probs: Tensor, entropy: Tensor) -> list[Any]:
        trainer, reducer = self._trainer, self._trainer._reducer()
        inputs, order = sorted_window(window)
        mask = inputs[MASK]
        sizes = [part["completion_ids"].shape[0] for part in window]
        if not reducer.sum(mask.sum()) > 0:
            self._report({}, whole=True)
            nothing = torch.zeros(mask.shape, device=mask.device).split(sizes)
            return [(part, part, None, None, reducer.sum(mask.sum())) for part in nothing]
        present = self._present(window, log_probs, entropy)
        batch = present_batch(inputs, **{name: value[order] for name, value in present.items()})
        first = unpack(inputs)[1]
        out = trainer._live_part.apply(batch, reducer, trainer._generator(1), trainer.rule_state, after=first)
        trainer._keep_state(out.state)
        self._report(out.metrics, whole=True)
        scale = shrinkage(mask, out.counted_mask, trainer.loss_divisor, reducer)

        def as_they_came(value: Any) -> list[Any]:
            if not isinstance(value, Tensor):
                return [value] * len(window)
            back = torch.empty_like(value)
            back[order] = value
            return list(back.split(sizes))

        value = own_objective(out, batch.log_probs, batch.entropy).detach()
        pieces = (value, out.coefficients, out.entropy_coefficients, scale)
        return list(zip(*map(as_they_came, pieces), [out.denominator] * len(window), strict=True))

    def _present(self, window: Sequence[dict[str, Any]], log_probs: Tensor, entropy: Tensor) -> dict[str, Tensor]:
        """Statistics of the present policy on all micro-batches: known already, or from one more forward of each."""
        trainer = self._trainer
        names: tuple[str, ...] = ("log_probs", "entropy")
        if needs_scores(trainer.rule):
            names += ("baseline", "discriminant", "centered_discriminant")
            names += ("sum_squared_discriminant", "grpo_curvature") if trainer._second_order() else ()
        if trainer.state.global_step == self.scored_at:
            parts = [{name: part[CARRIED + "batch_" + name] for name in names} for part in window]
            for known, part in zip(parts, window, strict=True):  # the ratio is 1 to the bit: sgn(log r) is not noise
                known["log_probs"] = part.get("old_per_token_logps", known["log_probs"])
        elif len(window) == 1 and not needs_scores(trainer.rule):
            return {"log_probs": log_probs, "entropy": entropy}
        else:
            scored = [trainer._scorer.score(part, trainer._second_order()) for part in window]
            parts = [{name: getattr(one, name) for name in names} for one in scored]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def _observe(self, log_probs: Tensor, entropy: Tensor) -> None:
        """Ask the observed rules of the live ratio about this micro-batch."""
        trainer = self._trainer
        observed = [one for one in trainer.observed if one.phase == "live"]
        reducer = trainer._reducer()
        if not observed or not reducer.sum(self._inputs[MASK].sum()) > 0:
            return
        batch = present_batch(self._inputs, log_probs, entropy)
        for one in observed:
            share = one.apply(batch, reducer, trainer._generator(1)).metrics["dropped_share"]
            trainer._log_entropy_control({f"observed/{one}/dropped_share": share})

    def _report(self, metrics: dict[str, float], whole: bool) -> None:
        """Log what the rule reports of the optimizer step: at its end, where it was asked per micro-batch."""
        if metrics:
            self._reports.append(metrics)
        if not (whole or self._trainer.accelerator.sync_gradients):
            return
        reports, self._reports = self._reports, []
        weights = [report["valid_tokens"] for report in reports]
        for name in reports[0] if reports else ():
            values = [report[name] for report in reports]
            total = sum(value * weight for value, weight in zip(values, weights, strict=True))
            counts = name.rpartition("/")[2] in ("valid_tokens", "dropped")
            self._trainer._log_entropy_control({name: sum(values) if counts else total / sum(weights)})
