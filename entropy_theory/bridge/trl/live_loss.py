"""Ratio-based rules and entropy terms, inside TRL's loss.

A ratio-based rule is evaluated at every update. At every micro-batch it is applied to the present log p and H, and its
objective J takes the place of TRL's surrogate:

    loss = Σ_t m_t (−J_t u_t + β KL_t) / D − Σ_t c_t H_t / n

m the mask; u TRL's own weights of the surrogate (high-entropy mask, importance-sampling correction) and the share by
which the rule shrinks its denominator; D the divisor of TRL's loss type; c = ∂J/∂H; n the tokens that the rule counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from entropy_theory.bridge.trl.carried import CARRIED, MARKS, ROWS, BatchDecision, marks, old_log_probs, sorted_rows
from entropy_theory.bridge.trl.generation import GenerationControl, RuleRun
from entropy_theory.bridge.trl.host import HostTrainer
from entropy_theory.bridge.trl.scoring import Scorer
from entropy_theory.control import RuleOutput
from entropy_theory.control.denominators import shrinkage
from entropy_theory.errors import invalid


@dataclass
class LossCall:
    """One call of TRL's loss in training: what it is given, and what TRL computes on its way.

    Attributes:
        inputs: TRL's micro-batch.
        decision: What was decided for it; None when its loss stays TRL's.
        forward: log p and H of the present policy with their gradients, (B, T), and the router's loss or None; None
            before the forward.
        hidden: The last hidden states of that forward with their gradient, (B, P + T, d), where H is asked for.
        entropy_mask: TRL's high-entropy mask, where it has one.
    """

    inputs: dict[str, Any]
    decision: BatchDecision | None
    forward: tuple[Tensor, Tensor, Tensor | None] | None = None
    hidden: Tensor | None = None
    entropy_mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Surrogate:
    """What the rule makes of one micro-batch.

    Attributes:
        objective: J_t without its entropy term, (B, T), differentiable in log p.
        scale: What J is multiplied by to express the rule's denominator, (B, 1) or a number; None for 1.
        entropy_coefficients: ∂J/∂H_t, (B, T), or None.
        counted: The number of tokens, over all ranks, that the entropy term is averaged over.
        spans: The micro-batches per rank that ``counted`` is of.
    """

    objective: Tensor
    scale: float | Tensor | None
    entropy_coefficients: Tensor | None
    counted: Tensor
    spans: int


def linear(value: Tensor, coefficients: Tensor, log_probs: Tensor) -> Tensor:
    """An objective with a given value and gradient: J_t + g_t (log p_t − sg log p_t)."""
    inside = coefficients != 0  # log p may be anything at masked positions
    return value.detach() + torch.where(inside, coefficients.detach() * (log_probs - log_probs.detach()), 0.0)


def own_objective(output: RuleOutput, log_probs: Tensor, entropy: Tensor) -> Tensor:
    """The objective without its entropy term; from the coefficients where the pipe has no closed form of it."""
    if output.objective is None:
        return linear(output.coefficients, output.coefficients, log_probs)
    if output.entropy_coefficients is None:
        return output.objective
    return output.objective - output.entropy_coefficients * entropy.detach()


class LiveLoss:
    """The loss of a controlled trainer, one micro-batch after another.

    Args:
        host: The trainer.
        run: The rule.
        scorer: Scores a batch under the present policy.
        generation: Applies the rule to a generation batch; from here in one pass.
    """

    def __init__(self, host: HostTrainer, run: RuleRun, scorer: Scorer, generation: GenerationControl) -> None:
        self._host, self._run, self._scorer, self._generation = host, run, scorer, generation
        self.one_pass = False  # whether the generation batch is scored in the training forward
        self.calls = 0  # of TRL's loss in training
        self.call: LossCall | None = None  # while TRL's loss runs
        self._step: list[tuple[Any, ...]] = []  # what was decided for the micro-batches of this optimizer step
        self._reports: list[dict[str, float]] = []

    def loss(self, trl_loss: Callable[[], Tensor], inputs: dict[str, Any]) -> Tensor:
        """Run TRL's loss on a micro-batch and return the controlled one.

        TRL's loss runs first and whole, because nothing else logs TRL's metrics. Its forward is intercepted
        (`forward`), so that the policy is run once; the loss of a ratio-based rule is formed from its results.
        """
        self.calls += 1
        if MARKS in inputs and not torch.equal(inputs[MARKS], marks(inputs)):
            expected = f"'none' for {type(self._host).__name__}, which replaces rows after the rule was applied to them"
            raise invalid("rule", expected, repr(str(self._run.rule)))
        if ROWS not in inputs:
            if self._generation.travels:
                expected = f"'none' for {type(self._host).__name__}, which drops the keys of TRL's dictionary that "
                expected += f"begin with {CARRIED!r}: carry them with their rows"
                raise invalid("rule", expected, repr(str(self._run.rule)))
            return trl_loss()
        self.call = call = LossCall(inputs, BatchDecision.unpack(inputs))
        try:
            loss = trl_loss()
        finally:
            self.call = None
        if call.forward is None:
            raise invalid("rule", "'none' for a loss that does not run TRL's forward", repr(str(self._run.rule)))
        if call.decision is None:
            return loss
        decision = self._with_present_advantages(call.decision, inputs)
        log_probs, entropy, aux_loss = call.forward
        entropy = self._finite_entropy(call, decision, entropy)
        self._observe(decision, inputs, log_probs.detach(), entropy.detach())
        if self._run.live_part is not None:
            loss = self._ratio_based_loss(call, decision, log_probs, entropy)
        else:
            if decision.coefficients is not None:
                loss = self._host.loss_of_coefficients(decision.coefficients, log_probs, inputs)
            decided, spans = decision.decided, self._host.args.steps_per_generation
            if decided is not None and decided.entropy_coefficients is not None:
                loss = loss + self._entropy_loss(entropy, decided.entropy_coefficients, decision.counted, spans)
            if decision.coefficients is None:
                return loss  # TRL's own, which has the router's loss in it
        if aux_loss is not None:
            loss = loss + self._host.router_aux_loss_coef * aux_loss / self._host.accumulation
        return loss

    def _ratio_based_loss(self, call: LossCall, decision: BatchDecision, log_probs: Tensor, entropy: Tensor) -> Tensor:
        inputs, surrogate = call.inputs, self._surrogate(decision, call.inputs, log_probs, entropy)
        per_token = -surrogate.objective
        for weight in (surrogate.scale, call.entropy_mask, inputs.get("importance_sampling_ratio")):
            if weight is not None:
                per_token = per_token * weight
        # RLOO has the divergence in its rewards, and no reference in the inputs of its loss.
        if self._host.beta != 0.0 and inputs.get("ref_per_token_logps") is not None:
            per_token = per_token + self._host.beta * self._divergence(inputs, log_probs)
        loss = self._host.reduce_loss(per_token, inputs)
        if surrogate.entropy_coefficients is None:
            return loss
        return loss + self._entropy_loss(entropy, surrogate.entropy_coefficients, surrogate.counted, surrogate.spans)

    def _with_present_advantages(self, decision: BatchDecision, inputs: dict[str, Any]) -> BatchDecision:
        """Take up advantages that a class of somebody's own changed since the batch was decided on."""
        advantages, scored = inputs["advantages"], decision.scored
        replaces = self._run.live_part is not None or decision.coefficients is not None
        if not replaces or torch.equal(advantages, scored.advantages):
            return decision
        if decision.decided is not None or self._run.live_needs_step:
            expected = f"the advantages that {str(self._run.rule)!r} was applied to"
            raise invalid("advantages", expected, "others, changed after the generation batch was controlled")
        return replace(decision, scored=replace(scored, advantages=advantages))

    def forward(self, run_forward: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Run the forward that TRL's loss asks for, and hand its results on.

        Under a ratio-based rule TRL gets them without gradient: its loss then serves its metrics only, and no graph of
        it is kept.
        """
        call = self.call
        assert call is not None
        watched: AbstractContextManager[list[Tensor]]
        watched = self._scorer.layer.watch(detach=False) if self._run.reads_entropy_at_updates else nullcontext([])
        with watched as seen:
            results = self._forward_in_one_pass(call, run_forward) if self.one_pass else run_forward()
        call.hidden = seen[-1] if seen else None
        call.forward = (results[0], results[1], results[2] if len(results) > 2 else None)
        if self._run.live_part is None:
            return results
        return tuple(None if value is None else value.detach() for value in results)

    def _forward_in_one_pass(self, call: LossCall, run_forward: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Score the batch and decide in the middle of TRL's loss, which reads the advantages after its forward.

        TRL has shuffled the rows by then; the rule sees them in the order of sampling, as it does before the updates.
        """
        inputs = call.inputs
        batch, order = sorted_rows([inputs])
        tokens, mask = batch["completion_ids"], batch["completion_mask"]
        second_order = self._generation.second_order
        product = self._scorer.shared_product(tokens, order, batch["prompt_ids"].shape[1], second_order)
        with self._scorer.layer.watch() as seen, product.reading():
            results = run_forward()
        statistics = product.statistics(results[0][order], mask)
        if self._run.reducer().sum(torch.tensor(int(statistics is None))):  # ranks may meet to gather the matrix
            hidden = seen[-1][order, -tokens.shape[1] - 1 : -1]
            statistics = self._scorer.from_hidden(hidden, tokens, second_order)
        assert statistics is not None
        back = order.argsort()
        for name, value in self._generation.decide(batch, statistics).items():
            inputs[name] = value[back] if value.dim() else value
        call.decision = BatchDecision.unpack(inputs)
        return results

    def _finite_entropy(self, call: LossCall, decision: BatchDecision, entropy: Tensor) -> Tensor:
        """H of the present policy: TRL's, or where some logits are −inf, of which TRL makes NaN, our own."""
        if not self._run.reads_entropy_at_updates:
            return decision.scored.entropy  # nothing reads it
        wrong = ~torch.isfinite(entropy.detach()) & decision.scored.completion_mask
        if not self._run.reducer().sum(wrong.sum()) > 0:
            return entropy
        inputs, tokens = call.inputs, call.inputs["completion_ids"]
        if obstacle := self._scorer.obstacle(inputs):
            raise invalid("model", f"finite entropies from TRL, because {obstacle}", "entropies that are not finite")
        assert call.hidden is not None
        return self._scorer.from_hidden(call.hidden[:, -tokens.shape[1] - 1 : -1], tokens, gradient=True).entropy

    def _divergence(self, inputs: dict[str, Any], log_probs: Tensor) -> Tensor:
        """TRL's estimate of the divergence from the reference, e^x − x − 1 with x = log p_ref − log p."""
        reference = inputs["ref_per_token_logps"]
        # The difference is formed twice, as TRL does: gradients are then added in its order, and equal its to the bit.
        kl = torch.exp(reference - log_probs) - (reference - log_probs) - 1
        if getattr(self._host.args, "use_bias_correction_kl", False):
            old = old_log_probs(inputs)
            kl = kl * torch.exp(log_probs - (log_probs.detach() if old is None else old))
        return kl

    def _entropy_loss(self, entropy: Tensor, coefficients: Tensor, counted: Tensor, spans: int) -> Tensor:
        """−Σ c_t H_t / n, n this rank's share of the counted tokens of one optimizer step; for every loss type."""
        if not entropy.requires_grad:
            raise invalid("trl", "a release whose entropies carry a gradient", version("trl"))
        share = self._host.accumulation / (self._host.accelerator.num_processes * spans)
        inside = coefficients != 0  # H may be anything at masked positions
        return -torch.where(inside, coefficients * entropy, 0.0).sum() / (counted.clamp(min=1) * share)

    # -- the rule at every update -------------------------------------------------------------------------------------

    def _surrogate(
        self, decision: BatchDecision, inputs: dict[str, Any], log_probs: Tensor, entropy: Tensor
    ) -> Surrogate:
        spans = self._host.args.steps_per_generation
        if self._run.live_needs_step:
            return self._surrogate_of_step(log_probs, entropy)
        if not self._run.reducer().sum(decision.scored.completion_mask.sum()) > 0:
            nothing = torch.zeros_like(log_probs)
            self._report({}, whole=False)
            return Surrogate(linear(nothing, nothing, log_probs), decision.scale, None, decision.counted, spans)
        batch = decision.present(inputs, log_probs, entropy.detach())
        output = self._run.apply_live_part(batch, decision.decided)
        self._report(output.metrics, whole=False)
        objective = own_objective(output, log_probs, entropy)
        return Surrogate(objective, decision.scale, output.entropy_coefficients, decision.counted, spans)

    def _surrogate_of_step(self, log_probs: Tensor, entropy: Tensor) -> Surrogate:
        """Decide on all micro-batches of the optimizer step at its first one, by the policy that all of them see."""
        host = self._host
        steps = host.current_gradient_accumulation_steps
        begin = host.micro_step % host.args.steps_per_generation
        if begin % steps == 0:
            window = host.micro_batches[begin : begin + steps]
            self._step = self._decide_step(window, log_probs.detach(), entropy.detach())
        value, coefficients, entropy_coefficients, scale, counted = self._step[begin % steps]
        return Surrogate(linear(value, coefficients, log_probs), scale, entropy_coefficients, counted, steps)

    def _decide_step(
        self, window: Sequence[dict[str, Any]], log_probs: Tensor, entropy: Tensor
    ) -> list[tuple[Any, ...]]:
        """Apply the rule to the joined micro-batches of an optimizer step, and take the outcome apart again.

        Returns:
            For each micro-batch J, g, ∂J/∂H or None, the scale or None, and the number of counted tokens.
        """
        reducer = self._run.reducer()
        inputs, order = sorted_rows(window)
        decision = BatchDecision.unpack(inputs)
        assert decision is not None
        mask = decision.scored.completion_mask
        sizes = [len(part["completion_ids"]) for part in window]
        if not reducer.sum(mask.sum()) > 0:
            self._report({}, whole=True)
            nothing = torch.zeros(mask.shape, device=mask.device).split(sizes)
            return [(part, part, None, None, reducer.sum(mask.sum())) for part in nothing]
        names = ("log_probs", "entropy", *self._run.live_scores)
        if self._host.state.global_step == self._generation.scored_at:
            present = {name: getattr(decision.scored, name) for name in names}
            if self._generation.just_sampled and (old := old_log_probs(inputs)) is not None:
                present["log_probs"] = old  # the ratio is 1 to the bit: sgn(log r) would make a sign of rounding
        elif len(window) == 1 and not self._run.live_scores:
            present = {"log_probs": log_probs[order], "entropy": entropy[order]}
        else:
            scored = [self._scorer.score(part, self._generation.second_order) for part in window]
            present = {name: torch.cat([getattr(part, name) for part in scored])[order] for name in names}
        batch = decision.present(inputs, **present)
        output = self._run.apply_live_part(batch, decision.decided)
        self._report(output.metrics, whole=True)
        scale = shrinkage(mask, output.counted_mask, self._host.loss_divisor, reducer)

        def as_they_came(joined: Any) -> list[Any]:
            if not isinstance(joined, Tensor):
                return [joined] * len(window)
            back = torch.empty_like(joined)
            back[order] = joined
            return list(back.split(sizes))

        value = own_objective(output, batch.log_probs, batch.entropy).detach()
        pieces = (value, output.coefficients, output.entropy_coefficients, scale)
        return list(zip(*map(as_they_came, pieces), [output.denominator] * len(window), strict=True))

    def _observe(self, decision: BatchDecision, inputs: dict[str, Any], log_probs: Tensor, entropy: Tensor) -> None:
        """Ask the observed ratio-based rules about this micro-batch."""
        if not any(rule.phase == "live" for rule in self._run.observed):
            return
        if self._run.reducer().sum(decision.scored.completion_mask.sum()) > 0:
            self._run.observe(decision.present(inputs, log_probs, entropy), "live")

    def _report(self, metrics: dict[str, float], whole: bool) -> None:
        """Log what the rule reports of the optimizer step: at its end, where it was asked per micro-batch."""
        if metrics:
            self._reports.append(metrics)
        if not (whole or self._host.accelerator.sync_gradients):
            return
        reports, self._reports = self._reports, []
        weights = [report["valid_tokens"] for report in reports]
        for name in reports[0] if reports else ():
            values = [report[name] for report in reports]
            total = sum(value * weight for value, weight in zip(values, weights, strict=True))
            counts = name.rpartition("/")[2] in ("valid_tokens", "dropped")
            self._host.log_metrics({name: sum(values) if counts else total / sum(weights)})
