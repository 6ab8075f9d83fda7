"""What happens once per generation batch: the rule is applied to all of its tokens at once, before any update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_theory.bridge.metrics import batch_metrics
from entropy_theory.bridge.trl.carried import GROUPS, JUDGED, MARKS, REWARDS, BatchDecision, marks, valid_tokens
from entropy_theory.bridge.trl.host import HostTrainer
from entropy_theory.bridge.trl.scoring import Scorer
from entropy_theory.control import DistributedReducer, LocalReducer, Reducer, Rule, RuleOutput, TokenBatch
from entropy_theory.control.base import observed_share
from entropy_theory.control.denominators import shrinkage
from entropy_theory.control.flow import Decided
from entropy_theory.control.random import seeded_generator
from entropy_theory.vocab import TokenStatistics
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS

MODEL_INPUTS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class RuleRun:
    """A rule at work in a trainer: its two parts, its state, and the collectives and draws that it is given.

    Args:
        host: The trainer.
        rule: The rule.
        observed: Rules that are asked what they would drop, and change nothing.
        seed: Of rules that draw at random.
    """

    def __init__(self, host: HostTrainer, rule: Rule, observed: list[Rule], seed: int) -> None:
        self._host, self.seed = host, seed
        self.rule, self.observed = rule, observed
        self.batch_part, self.live_part = rule.split()
        self.state: Any = None

    def needs(self, *names: str) -> bool:
        """Say whether the rule or an observed one reads any of these statistics."""
        return any(name in rule.needs for rule in (self.rule, *self.observed) for name in names)

    @property
    def reads_entropy_at_updates(self) -> bool:
        """Whether H of the present policy is asked for at every update."""
        live = [rule for rule in (self.live_part, *self.observed) if rule is not None and rule.phase == "live"]
        return self.rule.entropy_term or any("entropy" in rule.needs for rule in live)

    def reducer(self) -> Reducer:
        """The collectives over all ranks."""
        return DistributedReducer() if self._host.accelerator.num_processes > 1 else LocalReducer()

    @property
    def live_needs_step(self) -> bool:
        """Whether the ratio-based part must see all tokens of an optimizer step, or scores that need a forward."""
        return self.live_part is not None and (self.live_part.scope == "batch" or bool(self.live_scores))

    @property
    def live_scores(self) -> tuple[str, ...]:
        """Scores of the present policy that the ratio-based part reads and TRL's forward does not give."""
        beyond = [name for name in (*FIELDS, *SECOND_ORDER_FIELDS) if name not in ("log_probs", "entropy")]
        needed = set() if self.live_part is None else set(self.live_part.needs)
        if not needed & set(beyond):
            return ()
        return tuple(n for n in beyond if n not in SECOND_ORDER_FIELDS or needed & set(SECOND_ORDER_FIELDS))

    def draws(self, *part: int) -> torch.Generator:
        """The random draws of this optimizer step, equal on every rank."""
        return seeded_generator(self.seed, self._host.state.global_step, *part)

    def apply_batch_part(self, batch: TokenBatch) -> RuleOutput | None:
        """Apply what is fixed once per generation batch; None when nothing is."""
        if self.batch_part is None:
            return None
        output = self.batch_part.apply(batch, self.reducer(), self.draws(), self.state)
        self._keep(output.state)
        return output

    def apply_live_part(self, batch: TokenBatch, decided: Decided | None) -> RuleOutput:
        """Apply what is evaluated at every update to the present policy."""
        assert self.live_part is not None
        output = self.live_part.apply(batch, self.reducer(), self.draws(1), self.state, after=decided)
        self._keep(output.state)
        return output

    def observe(self, batch: TokenBatch, phase: str) -> None:
        """Log what the observed rules of a phase would drop of a batch."""
        for rule in self.observed:
            if rule.phase == phase:
                draws = self.draws() if phase == "batch" else self.draws(1)
                share = observed_share(rule, batch, self.reducer(), draws)
                self._host.log_metrics({f"observed/{rule}/dropped_share": share})

    def _keep(self, state: Any) -> None:
        """Keep what a part of the rule wants back; the parts of one pipe have entries of their own."""
        if state is not None:
            both = isinstance(self.state, dict) and self.batch_part is not None and self.live_part is not None
            self.state = {**self.state, **state} if both else state


class GenerationControl:
    """Applies the rule to generation batches, logs them, saves them, and measures what an update did to them.

    Args:
        host: The trainer.
        run: The rule.
        scorer: Scores a batch under the present policy.
        save_every: Save every k-th batch; 0 never does.
        realised_every: Measure the realised change of every k-th batch; 0 never does.
        account: Called with TRL's dictionary, H and the valid tokens of every batch that has any, once scored.
    """

    def __init__(
        self,
        host: HostTrainer,
        run: RuleRun,
        scorer: Scorer,
        *,
        save_every: int,
        realised_every: int,
        account: Callable[[Mapping[str, Any], Tensor, Tensor], None] | None = None,
    ) -> None:
        self._host, self._run, self._scorer = host, run, scorer
        self._save_every, self._realised_every, self._account = save_every, realised_every, account
        self.count = 0  # generation batches so far
        self.scored_at = -1  # the optimizer step at which the last batch's statistics were the present policy's
        self.just_sampled = True  # whether that policy sampled all rows, too
        self.travels = False  # whether the rule needs what travels with the rows of the last batch
        self._before_update: tuple[dict[str, Tensor], Tensor, Tensor] | None = None

    @property
    def saves_now(self) -> bool:
        """Whether the present batch is to be saved."""
        return bool(self._save_every) and self.count % self._save_every == 0

    @property
    def second_order(self) -> bool:
        """Whether Σ S² and the curvature are wanted."""
        return self.saves_now or self._run.needs(*SECOND_ORDER_FIELDS)

    def decide(self, output: Mapping[str, Any], statistics: TokenStatistics | None) -> dict[str, Tensor]:
        """Apply the rule to a whole generation batch.

        Args:
            output: TRL's dictionary, rows in the order of sampling.
            statistics: Of the completions under the present policy; None: in a forward of their own.

        Returns:
            What to write into TRL's dictionary.
        """
        host, run, reducer = self._host, self._run, self._run.reducer()
        self.travels = False
        mask = valid_tokens(output) & output.get(JUDGED, True)
        if not reducer.sum(mask.sum().double()) > 0:
            # Nothing to learn from and nothing to control: TRL's loss is zero on this batch.
            host.log_metrics({"empty_batch": 1.0})
            return {}
        statistics = statistics or self._scorer.score(output, self.second_order)
        batch = token_batch(output, statistics, mask)
        plain = batch.token_advantages.masked_fill(~mask, 0.0)
        first = run.apply_batch_part(batch)
        decision = self._decision(batch, first)
        coefficients = plain if first is None else first.coefficients
        if decision.scale is not None:
            coefficients = coefficients * decision.scale.to(coefficients)
        reported = {} if first is None else first.metrics
        if run.live_part is not None:  # what the whole rule drops is counted where that is decided
            reported = {name: value for name, value in reported.items() if "/" in name}
        host.log_metrics(batch_metrics(batch, coefficients, reducer) | reported)
        run.observe(batch, "batch")
        changes = {}
        acts_at_updates = run.live_part is not None or run.rule.entropy_term
        if run.live_part is None and not torch.equal(coefficients, plain):
            # A rule that changed nothing leaves TRL its own tensor: a (B, T) one of equal numbers can still round
            # differently where TRL works per sequence.
            if host.reads_token_advantages:
                changes["advantages"] = coefficients
            else:
                decision, acts_at_updates = replace(decision, coefficients=coefficients), True
        if acts_at_updates or any(rule.phase == "live" for rule in run.observed):
            changes |= decision.pack()
            self.travels = acts_at_updates
            self.scored_at = host.state.global_step
        if self._realised_every and self.count % self._realised_every == 0:
            self._before_update = ({name: output[name] for name in MODEL_INPUTS}, statistics.entropy, mask)
        if self._account is not None:
            self._account(output, statistics.entropy, mask)
        if self.saves_now:
            save_gathered(batch, host.accelerator, host.batches_folder, host.state.global_step)
        self.count += 1
        return changes | {MARKS: marks(output)} if changes else changes

    def _decision(self, batch: TokenBatch, first: RuleOutput | None) -> BatchDecision:
        mask, reducer = batch.completion_mask, self._run.reducer()
        rows = torch.arange(len(mask), device=mask.device)
        if first is None:
            return BatchDecision(rows, batch, None, reducer.sum(mask.sum()), None)
        scale = shrinkage(mask, first.counted_mask, self._host.loss_divisor, reducer)
        if scale is not None:
            scale = torch.as_tensor(scale).to(batch.log_probs).expand(len(rows), 1)
        decided = Decided(**{f.name: getattr(first, f.name) for f in fields(Decided)})
        return BatchDecision(rows, batch, decided, first.denominator.to(mask.device), scale)

    def measure_realised_change(self) -> None:
        """Log the mean change of entropy since the batch was scored, on that batch's own tokens; once per batch."""
        if self._before_update is None:
            return
        inputs, entropy, mask = self._before_update
        self._before_update = None
        reducer = self._run.reducer()
        change = torch.where(mask, self._scorer.score(inputs).entropy.double() - entropy.double(), 0.0).sum()
        self._host.log_metrics({"realised_change": float(reducer.sum(change) / reducer.sum(mask.sum().double()))})


def token_batch(output: Mapping[str, Any], statistics: TokenStatistics, mask: Tensor) -> TokenBatch:
    """Build the batch of TRL's dictionary under the policy that sampled it: the ratio is 1."""
    rollout = output.get("sampling_per_token_logps")
    if rollout is not None:  # an engine may leave single tokens unscored; there the trainer's own value serves
        rollout = torch.where(torch.isfinite(rollout), rollout, statistics.log_probs)
    return TokenBatch.from_statistics(
        statistics,
        advantages=output["advantages"],
        completion_mask=mask,
        old_log_probs=statistics.log_probs,
        rollout_log_probs=rollout,
        old_entropy=statistics.entropy,
        rewards=output.get(REWARDS),
        group_ids=output.get(GROUPS),
    )


def save_gathered(batch: TokenBatch, accelerator: Any, folder: Path, step: int) -> None:
    """Write the batch of all ranks to ``FOLDER/batch-STEP.safetensors``, whole or not at all.

    Args:
        batch: This rank's rows; every rank calls.
        accelerator: Brings the rows together, padded to the longest.
        folder: Where batches are kept.
        step: Optimizer steps done.
    """
    gathered = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if value is None:
            continue
        value = value.contiguous()
        if value.dim() == 2:  # padded with 0, which in the mask is False
            value = accelerator.pad_across_processes(value, dim=1, pad_index=0)
        gathered[f.name] = accelerator.gather(value)
    if accelerator.is_main_process:
        TokenBatch(**gathered).save(folder / f"batch-{step:06d}.safetensors")
