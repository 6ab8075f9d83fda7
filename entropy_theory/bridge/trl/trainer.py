"""Entropy control for TRL's GRPO trainer.

Three seams, chosen by the rule:

1. ``_generate_and_score_completions``: once per generation batch, before any update, the sampled tokens are scored with
   the current policy, the rule is applied to the batch of all ranks and micro-batches at once, and per-token advantages
   are handed back to TRL. They survive TRL's shuffle and split, so the statistics are global and fixed before the
   updates, and TRL's own loss, clipping, KL and logging stay as they are.
2. One pass: the same inside the loss, from the training forward itself; taken where that is exact.
3. Rules of the live ratio and entropy terms: inside the loss at every micro-batch; see `bridge.trl_live`.
"""

from __future__ import annotations

import inspect
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor
from transformers import ProcessorMixin, TrainerCallback
from transformers.trainer_utils import SaveStrategy
from trl import GRPOConfig, GRPOTrainer

from entropy_theory.bridge.trl import checkpoints
from entropy_theory.bridge.trl.batches import metrics_of_batch, save_gathered
from entropy_theory.bridge.trl.carried import CARRIED, pack, valid_tokens
from entropy_theory.bridge.trl.compatibility import (
    CONSTANT,
    SUPPORTED_LOSSES,
    SUPPORTED_TRL,
    TOKEN_MEAN,
    against_one_pass,
    check_supported,
    check_trl_version,
    own_seam,
    warn_untested,
)
from entropy_theory.bridge.trl.config import OPTIONS, EntropyControlledGRPOConfig
from entropy_theory.bridge.trl.live_loss import LiveLoss, shrinkage
from entropy_theory.bridge.trl.scoring import Scorer
from entropy_theory.control import DistributedReducer, LocalReducer, Rule, TokenBatch
from entropy_theory.control import rule as build_rule
from entropy_theory.errors import invalid

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from entropy_theory.control import Reducer
    from entropy_theory.vocab import TokenStatistics

    _Trainer = Any  # the mixin reads what the GRPOTrainer behind it has
else:
    _Trainer = object

__all__ = [
    "SUPPORTED_LOSSES",
    "SUPPORTED_TRL",
    "EntropyControlMixin",
    "EntropyControlledGRPOConfig",
    "EntropyControlledGRPOTrainer",
    "attach",
    "check_supported",
    "check_trl_version",
]

PREFIX = "entropy_control/"

_SECOND_ORDER = {"sum_squared_discriminant", "grpo_curvature"}


class EntropyControlMixin(checkpoints.SafeCheckpoints, _Trainer):
    """Put before a ``GRPOTrainer`` class to control its updates with an entropy-control rule.

    Per generation batch it logs, under ``entropy_control/`` and over all ranks: ``entropy``, the mean H; ``slope`` =
    −mean(g · S_c), the predicted direction and relative size of the entropy change at ratio 1;
    ``mean_discriminant`` and ``mean_centered_discriminant``; what the rule reports, among it ``dropped_share`` and the
    shares of the quadrants, ``quadrant_share_q1`` to ``quadrant_share_q4``; every ``realised_change_every``
    generations ``realised_change``, the mean over the same tokens of H after the update minus H before it; and for
    each rule of ``observe`` the share it would have dropped, ``observed/RULE/dropped_share``. With a rule of the live
    ratio what the rule reports is of the optimizer step. ``slope`` is not a ΔH: a model with shared parameters has no
    step size in logit space.

    Args:
        rule: A rule or its specification; the default is ``args.rule`` or ``"none"``.
        *args: As for the trainer.
        **kwargs: As for the trainer.

    Raises:
        ValueError: TRL's version, the loss, an option, or rule and options together are not supported.
    """

    def __init__(self, *args: Any, rule: str | Rule | None = None, **kwargs: Any) -> None:
        check_trl_version(version("trl"))
        config = kwargs.get("args", args[2] if len(args) > 2 else None) or EntropyControlledGRPOConfig(
            "entropy-control"
        )
        if len(args) <= 2:
            kwargs["args"] = config
        self._prepare_control(config, rule)
        _refuse_processor(kwargs.get("processing_class", args[5] if len(args) > 5 else None))
        super().__init__(*args, **kwargs)
        self._start_control()

    def _prepare_control(self, config: GRPOConfig, rule: str | Rule | None) -> None:
        """Read the rule and the options, and refuse what cannot be done: before any model is loaded."""
        self.rule = build_rule(rule if rule is not None else getattr(config, "rule", "none"))
        self.observed = [build_rule(one) for one in getattr(config, "observe", [])]
        self._scoring = getattr(config, "scoring", "auto")
        check_supported(self.rule, config, version("trl"), self._scoring)
        self._one_pass = self._scoring != "batch" and against_one_pass(self.rule, config) is None
        if self._scoring == "auto" and own_seam(type(self), EntropyControlMixin):
            self._one_pass = False  # whoever works on the batch finds it controlled
        for name in ("realised_change_every", "save_batches"):
            if int(getattr(config, name, 0)) < 0:
                raise invalid(name, "an integer >= 0", getattr(config, name))
        self._realised_every = int(getattr(config, "realised_change_every", 0))
        self._save_every = int(getattr(config, "save_batches", 0))
        self.batches_folder = Path(config.output_dir or "trainer_output") / "batches"
        _round_save_steps(config)
        self.rule_state: Any = None
        self._batch_part, self._live_part = self.rule.split()
        self._generations = 0
        self._before_update: tuple[dict[str, Tensor], Tensor, Tensor] | None = None
        self._stage = ""  # which of TRL's calls we are in: "generation", "loss" or neither
        self._captured: TokenStatistics | None = None
        self._rewards: Tensor | None = None

    def _start_control(self) -> None:
        _refuse_processor(self.processing_class)
        warn_untested(self.args, self.accelerator)
        self._scorer = Scorer(self)
        self._live = LiveLoss(self, rescaled=Version(version("trl")) >= Version("1.9.1"))
        if self._one_pass and (name := self._scorer.dropout()):
            if self._scoring == "one-pass":
                raise invalid(
                    "scoring", "'batch', or a model without dropout (disable_dropout)", f"'one-pass' with {name}"
                )
            self._one_pass = False
        if self._realised_every:
            self.add_callback(_RealisedChange(self))

    # -- the generation batch -----------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._captured, self._stage = None, "generation"
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._stage = ""
        if self.model.training:
            rows = output["completion_ids"]
            output |= self._groups(len(rows))
            if self._one_pass:
                output[CARRIED + "rows"] = torch.arange(len(rows), device=rows.device)
            else:
                captured = self._captured if "old_per_token_logps" in output else None
                self._control(output, captured)
        self._captured = self._rewards = None
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _groups(self, rows: int) -> dict[str, Tensor]:
        """Rewards and groups of this rank's rows, where a rule reads them or a batch is saved.

        A completion that no reward function would judge is left out of the batch; TRL gives it no advantage.
        """
        wanted = {"rewards", "group_ids"} & {name for one in (self.rule, *self.observed) for name in one.needs}
        if self._rewards is None or not (wanted or self._saves_now()):
            return {}
        first = self.accelerator.process_index * rows
        weights = self.reward_weights.to(self._rewards.device).unsqueeze(0)
        rewards = (self._rewards * weights).nansum(dim=1)[first : first + rows]
        group_ids = torch.arange(first, first + rows, device=rewards.device) // self.num_generations
        found = {CARRIED + "batch_rewards": rewards.float(), CARRIED + "batch_group_ids": group_ids}
        judged = ~self._rewards.isnan().all(dim=1)[first : first + rows]
        return found | {CARRIED + "rewarded": judged.unsqueeze(1)}

    def _saves_now(self) -> bool:
        return bool(self._save_every) and self._generations % self._save_every == 0

    def _control(self, output: dict[str, Any], statistics: TokenStatistics | None) -> None:
        """Apply the rule to a whole batch and write what follows into TRL's dictionary."""
        mask = valid_tokens(output) & output.get(CARRIED + "rewarded", True)
        reducer = self._reducer()
        if not reducer.sum(mask.sum().double()) > 0:
            # Nothing to learn from and nothing to control: TRL's loss is zero on this batch.
            self._log_entropy_control({"empty_batch": 1.0})
            return
        if statistics is None:
            statistics = self._scorer.score(output, self._second_order())
        batch = self._token_batch(output, statistics, mask)
        first = None
        if self._batch_part is not None:
            first = self._batch_part.apply(batch, reducer, self._generator(), self.rule_state)
            self._keep_state(first.state)
        advantages = batch.token_advantages.masked_fill(~mask, 0.0) if first is None else first.coefficients
        scale = None
        if first is not None:
            scale = shrinkage(mask, first.counted_mask, self.loss_divisor, reducer)
            advantages = advantages if scale is None else advantages * torch.as_tensor(scale).to(advantages)
        reported = {} if first is None else first.metrics
        if self._live_part is not None:  # what the whole rule drops is counted where it is decided
            reported = {name: value for name, value in reported.items() if "/" in name}
        self._log_entropy_control(metrics_of_batch(batch, advantages, reducer) | reported)
        watched = [one for one in self.observed if one.phase == "batch"]
        for one in watched:
            share = one.apply(batch, reducer=reducer, generator=self._generator()).metrics["dropped_share"]
            self._log_entropy_control({f"observed/{one}/dropped_share": share})
        if self._live_part is None and not torch.equal(advantages, batch.token_advantages.masked_fill(~mask, 0.0)):
            # A rule that changed nothing leaves TRL its own tensor: a (B, T) one of equal numbers can still round
            # differently where TRL works per sequence.
            output["advantages"] = advantages
        if self._live_part is not None or self.rule.entropy_term or len(watched) < len(self.observed):
            output |= pack(batch, first, scale)
            self._live.scored_at = self.state.global_step
        if self._realised_every and self._generations % self._realised_every == 0:
            self._before_update = ({k: output[k] for k in _MODEL_INPUTS}, statistics.entropy, mask)
        if self._saves_now():
            save_gathered(batch, self.accelerator, self.batches_folder, self.state.global_step)
        self._generations += 1

    def _token_batch(self, output: dict[str, Any], statistics: TokenStatistics, mask: Tensor) -> TokenBatch:
        rollout = output.get("sampling_per_token_logps")
        if rollout is not None:  # an engine may leave single tokens unscored; there the trainer's own value serves
            rollout = torch.where(torch.isfinite(rollout), rollout, statistics.log_probs)
        return TokenBatch(
            log_probs=statistics.log_probs,
            entropy=statistics.entropy,
            advantages=output["advantages"],
            completion_mask=mask,
            old_log_probs=statistics.log_probs,  # the batch was just sampled: the ratio is 1
            rollout_log_probs=rollout,
            old_entropy=statistics.entropy,
            baseline=statistics.baseline,
            discriminant=statistics.discriminant,
            centered_discriminant=statistics.centered_discriminant,
            sum_squared_discriminant=statistics.sum_squared_discriminant,
            grpo_curvature=statistics.grpo_curvature,
            rewards=output.get(CARRIED + "batch_rewards"),
            group_ids=output.get(CARRIED + "batch_group_ids"),
        )

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        completion_ids, *rest = super()._generate_single_turn(*args, **kwargs)
        empty = sum(len(ids) == 0 for ids in completion_ids)
        if empty:
            expected = "at least one token each, the end token where nothing else was written"
            raise invalid("completion_ids", expected, f"{empty} empty of {len(completion_ids)}")
        return completion_ids, *rest

    def _second_order(self) -> bool:
        return self._saves_now() or any(_SECOND_ORDER & set(one.needs) for one in (self.rule, *self.observed))

    def _keep_state(self, state: Any) -> None:
        """Keep what a part of the rule wants back; parts of one pipe have entries of their own."""
        if state is not None:
            both = isinstance(self.rule_state, dict) and self._batch_part is not None and self._live_part is not None
            self.rule_state = {**self.rule_state, **state} if both else state

    # -- TRL's forwards and loss --------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        method = super()._get_per_token_logps_and_entropies

        def forward() -> Any:
            return method(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

        if self._stage == "loss":
            return self._live.forward(forward)
        first = self._stage == "generation" and self.model.training and self._captured is None
        if not first or self._one_pass or not self._stores_old_log_probs() or model is not self.model:
            return forward()
        output, self._captured = self._scorer.along(
            forward, input_ids, attention_mask, logits_to_keep, self._second_order()
        )
        # TRL before 1.7 returns two values
        return output[: 3 if "compute_aux_loss" in inspect.signature(method).parameters else 2]

    def _stores_old_log_probs(self) -> bool:
        """Say whether TRL scores the batch with the policy that sampled it; if so, before any other forward."""
        period = self.args.steps_per_generation * self.num_iterations
        corrected = self.use_vllm and getattr(self, "vllm_importance_sampling_correction", False)
        return bool(self.args.gradient_accumulation_steps % period or corrected)

    def get_high_entropy_mask(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return TRL's mask, and keep it for the live loss."""
        self._live.entropy_mask = super().get_high_entropy_mask(*args, **kwargs)
        return self._live.entropy_mask

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self.model.training or not (self._one_pass or CARRIED + "rows" in inputs):
            return super()._compute_loss(model, inputs)
        self._stage = "loss"
        self._live.begin(inputs)
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._stage = ""
        return self._live.finish(loss)

    def measure_realised_change(self) -> None:
        """Log the mean change of entropy since the batch was scored, on that batch's own tokens; once per batch."""
        if self._before_update is None:
            return
        inputs, entropy, mask = self._before_update
        self._before_update = None
        reducer = self._reducer()
        change = torch.where(mask, self._scorer.score(inputs).entropy.double() - entropy.double(), 0.0).sum()
        self._log_entropy_control({"realised_change": float(reducer.sum(change) / reducer.sum(mask.sum().double()))})

    # -- plumbing -----------------------------------------------------------------------------------------------------

    @property
    def loss_divisor(self) -> str:
        """What the loss type divides by: all tokens, those of each sequence, or a constant."""
        return "constant" if self.loss_type in CONSTANT else "token" if self.loss_type in TOKEN_MEAN else "sequence"

    def _reducer(self) -> Reducer:
        return DistributedReducer() if self.accelerator.num_processes > 1 else LocalReducer()

    def _generator(self, *part: int) -> torch.Generator:
        # From the step, not from a running generator: a resumed run draws what the undisturbed one would have drawn.
        # Mixed, because torch's CPU generator reads 32 bits of its seed.
        seed = np.random.SeedSequence([int(getattr(self.args, "rule_seed", 0)), self.state.global_step, *part])
        return torch.Generator().manual_seed(int(seed.generate_state(1)[0]))

    def _log_entropy_control(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][PREFIX + name].append(float(value))


class EntropyControlledGRPOTrainer(EntropyControlMixin, GRPOTrainer):
    """TRL's ``GRPOTrainer`` with an entropy-control rule: ``EntropyControlledGRPOTrainer(..., rule="clip-b")``."""


def attach(trainer: GRPOTrainer, rule: str | Rule | None = None, **options: Any) -> GRPOTrainer:
    """Put a trainer that exists under entropy control; for those who have trainers of their own.

    The trainer's class becomes one that derives from `EntropyControlMixin` and from what it was.

    Args:
        trainer: A ``GRPOTrainer`` or one of a class derived from it.
        rule: A rule or its specification; the default is ``trainer.args.rule`` or ``"none"``.
        **options: As in `EntropyControlledGRPOConfig`: ``rule_seed``, ``observe`` and so on.

    Returns:
        The same trainer.

    Raises:
        ValueError: It is no GRPO trainer, is under control already, or is in the middle of a generation batch, which
            would be controlled in part; an option is unknown; or what `EntropyControlMixin` refuses.

    Example:
        >>> attach("a trainer", "clip-b")
        Traceback (most recent call last):
        ...
        ValueError: trainer: expected a GRPOTrainer, received str
    """
    check_trl_version(version("trl"))
    if not isinstance(trainer, GRPOTrainer):
        raise invalid("trainer", "a GRPOTrainer", type(trainer).__name__)
    if isinstance(trainer, EntropyControlMixin):
        raise invalid(
            "trainer", "one that is not yet under entropy control", f"one with the rule {str(trainer.rule)!r}"
        )
    period = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer._step % period:
        received = f"one at micro-step {trainer._step % period} of {period}"
        raise invalid("trainer", "one between two generation batches", received)
    for name, value in options.items():
        if name not in OPTIONS or name == "rule":
            raise invalid(name, f"an option among {', '.join(OPTIONS[1:])}", repr(value))
    before = {name: getattr(trainer.args, name) for name in options if hasattr(trainer.args, name)}
    kind = type(trainer)
    try:
        for name, value in options.items():
            setattr(trainer.args, name, value)
        trainer.__class__ = type(f"EntropyControlled{kind.__name__}", (EntropyControlMixin, kind), {})
        trainer._prepare_control(trainer.args, rule)
        trainer._start_control()
    except Exception:
        trainer.__class__ = kind
        for name in options:
            setattr(trainer.args, name, before[name]) if name in before else delattr(trainer.args, name)
        raise
    return trainer


def _round_save_steps(config: GRPOConfig) -> None:
    """Let checkpoints fall between generation batches: only there does a resumed run repeat the undisturbed one."""
    if config.save_strategy != SaveStrategy.STEPS:
        return
    period = checkpoints.boundary(config)
    if config.save_steps < 1:
        raise invalid("save_steps", "a number of steps (a share of the run is not supported)", config.save_steps)
    rounded = -(-int(config.save_steps) // period) * period
    if rounded != config.save_steps:
        warnings.warn(
            f"save_steps: {config.save_steps} rounded to {rounded}, a multiple of the {period} optimizer steps of a "
            "generation batch; a checkpoint inside a batch could not be resumed exactly",
            stacklevel=3,
        )
        config.save_steps = rounded


class _RealisedChange(TrainerCallback):
    """Measures the realised change after the first optimizer step on a batch."""

    def __init__(self, trainer: EntropyControlMixin) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.measure_realised_change()


def _refuse_processor(processing_class: Any) -> None:
    if isinstance(processing_class, ProcessorMixin):
        raise invalid("processing_class", "a tokenizer (images are not scored yet)", "a multimodal processor")


_MODEL_INPUTS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
