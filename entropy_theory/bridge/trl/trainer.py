"""Entropy control for TRL's GRPO trainer.

TRL calls, in this order, and entropy control acts in three of these places, chosen by the rule:

1. `_generate_and_score_completions`, once per generation batch, before any update: the sampled tokens are scored with
   the current policy, the rule is applied to the batch of all ranks and micro-batches at once, and per-token advantages
   are handed back to TRL. They survive TRL's shuffle and split, so the statistics are global and fixed before the
   updates, and TRL's own loss, clipping, KL and logging stay as they are.
2. `_compute_loss`, once per micro-batch. In one pass, taken where that is exact, the batch is scored in the middle of
   it, by the training forward itself.
3. In the same place ratio-based rules and entropy terms are evaluated at every update; see `live_loss`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from torch import Tensor
from transformers import ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from entropy_theory.bridge.metrics import PREFIX
from entropy_theory.bridge.trl import checkpoints
from entropy_theory.bridge.trl.carried import ROWS
from entropy_theory.bridge.trl.compatibility import (
    against_one_pass,
    check_supported,
    check_trl_version,
    own_seam,
    warn_untested,
)
from entropy_theory.bridge.trl.config import OPTIONS, EntropyControlledGRPOConfig
from entropy_theory.bridge.trl.generation import GROUPS, JUDGED, REWARDS, GenerationControl, RuleRun
from entropy_theory.bridge.trl.live_loss import LiveLoss
from entropy_theory.bridge.trl.scoring import Scorer
from entropy_theory.control import Rule
from entropy_theory.control import rule as build_rule
from entropy_theory.control.denominators import TRL_DIVISORS, Divisor, reduce_as_trl
from entropy_theory.errors import invalid

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from entropy_theory.vocab import TokenStatistics

    _Trainer = Any  # the mixin reads what the GRPOTrainer behind it has
else:
    _Trainer = object


class EntropyControlMixin(checkpoints.SafeCheckpoints, _Trainer):
    """Put before a ``GRPOTrainer`` class to control its updates with an entropy-control rule.

    Per generation batch it logs, under ``entropy_control/`` and over all ranks: ``entropy``, the mean H; ``slope`` =
    −mean(g · S_c), the predicted direction and relative size of the entropy change at ratio 1;
    ``mean_discriminant`` and ``mean_centered_discriminant``; what the rule reports, among it ``dropped_share`` and the
    shares of the quadrants, ``quadrant_share_q1`` to ``quadrant_share_q4``; every ``realised_change_every``
    generations ``realised_change``, the mean over the same tokens of H after the update minus H before it; and for
    each rule of ``observe`` the share it would have dropped, ``observed/RULE/dropped_share``. What a ratio-based rule
    reports is of the optimizer step. ``slope`` is not a ΔH: a model with shared parameters has no step size in logit
    space.

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
        _check_processor(kwargs.get("processing_class", args[5] if len(args) > 5 else None))
        super().__init__(*args, **kwargs)
        self._start_control()

    def _prepare_control(self, config: GRPOConfig, rule: str | Rule | None) -> None:
        """Read the rule and the options, and check what they ask for: before any model is loaded."""
        self.rule = build_rule(rule if rule is not None else getattr(config, "rule", "none"))
        self.observed = [build_rule(spec) for spec in getattr(config, "observe", [])]
        self._scoring = getattr(config, "scoring", "auto")
        check_supported(self.rule, config, version("trl"), self._scoring)
        for name in ("realised_change_every", "save_batches"):
            if int(getattr(config, name, 0)) < 0:
                raise invalid(name, "an integer >= 0", getattr(config, name))
        self.batches_folder = Path(config.output_dir or "trainer_output") / "batches"

    def _start_control(self) -> None:
        args = self.args
        _check_processor(self.processing_class)
        warn_untested(args, self.accelerator)
        realised_every = int(getattr(args, "realised_change_every", 0))
        self._run = RuleRun(self, self.rule, self.observed, int(getattr(args, "rule_seed", 0)))
        self._scorer = Scorer(self)
        self._generation = GenerationControl(
            self,
            self._run,
            self._scorer,
            save_every=int(getattr(args, "save_batches", 0)),
            realised_every=realised_every,
        )
        self._live = LiveLoss(self, self._run, self._scorer, self._generation)
        self._one_pass = self._takes_one_pass()
        self._live.one_pass = self._one_pass
        self._generating = False  # while TRL generates and scores
        self._captured: TokenStatistics | None = None  # in TRL's own forward over the generation batch
        self._rewards: Tensor | None = None
        if realised_every:
            self.add_callback(_RealisedChange(self._generation))

    def _takes_one_pass(self) -> bool:
        """Say whether the generation batch can be scored in the training forward without changing a result."""
        if self._scoring == "batch" or against_one_pass(self.rule, self.args) is not None:
            return False
        dropout = self._scorer.dropout()
        if self._scoring == "one-pass" and dropout:
            expected = "'batch', or a model without dropout (disable_dropout)"
            raise invalid("scoring", expected, f"'one-pass' with {dropout}")
        # Whoever works on the batch before the loss is to find it controlled.
        return not dropout and (self._scoring == "one-pass" or own_seam(type(self), EntropyControlMixin) is None)

    # -- the generation batch -----------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._captured, self._rewards, self._generating = None, None, True
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._generating = False
        if not self.model.training:
            return output
        rows = len(output["completion_ids"])
        output |= self._rewards_of_rows(rows)
        if self._one_pass and self._hidden_states_are_read(output):
            return output | {ROWS: torch.arange(rows, device=output["completion_ids"].device)}
        captured = self._captured if "old_per_token_logps" in output else None
        return output | self._generation.decide(output, captured)

    def _hidden_states_are_read(self, output: dict[str, Any]) -> bool:
        """Settle on the first batch whether one pass can score from hidden states."""
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention_mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        obstacle = self._scorer.obstacle(ids, attention_mask)
        if obstacle and self._scoring == "one-pass":
            raise invalid("scoring", f"'batch': {obstacle}", "'one-pass'")
        self._one_pass = self._live.one_pass = not obstacle
        return self._one_pass

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _rewards_of_rows(self, rows: int) -> dict[str, Tensor]:
        """Rewards and groups of this rank's rows, where a rule reads them or a batch is saved.

        A completion that no reward function would judge is left out of the batch; TRL gives it no advantage.
        """
        if self._rewards is None or not (self._run.needs("rewards", "group_ids") or self._generation.saves_now):
            return {}
        first = self.accelerator.process_index * rows
        here = slice(first, first + rows)
        weights = self.reward_weights.to(self._rewards.device).unsqueeze(0)
        return {
            REWARDS: (self._rewards * weights).nansum(dim=1)[here].float(),
            GROUPS: torch.arange(first, first + rows, device=self._rewards.device) // self.num_generations,
            JUDGED: ~self._rewards.isnan().all(dim=1, keepdim=True)[here],
        }

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        completion_ids, *rest = super()._generate_single_turn(*args, **kwargs)
        empty = sum(len(ids) == 0 for ids in completion_ids)
        if empty:
            expected = "at least one token each, the end token where nothing else was written"
            raise invalid("completion_ids", expected, f"{empty} empty of {len(completion_ids)}")
        return completion_ids, *rest

    # -- TRL's forwards and loss --------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        method = super()._get_per_token_logps_and_entropies

        def forward() -> Any:
            return method(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

        if self._live.call is not None:
            with self._entropies_with_gradient():
                return self._live.forward(forward)
        # While generating, TRL runs the policy before the reference: the first forward of the policy, where there is
        # one at all, is that for the old log-probabilities.
        first = self._generating and self.model.training and self._captured is None and model is self.model
        if not first or self._one_pass or not self._stores_old_log_probs():
            return forward()
        output, self._captured = self._scorer.beside(
            forward, input_ids, attention_mask, logits_to_keep, self._generation.second_order
        )
        # TRL before 1.7 returns two values.
        return output[: 3 if "compute_aux_loss" in inspect.signature(method).parameters else 2]

    @contextmanager
    def _entropies_with_gradient(self) -> Iterator[None]:
        """Have TRL keep the gradient of its entropies: before 1.16 it does so for its own entropy bonus only."""
        before = getattr(self, "_entropy_bonus_enabled", None)
        if before is not None and self.rule.entropy_term:
            self._entropy_bonus_enabled = True
        try:
            yield
        finally:
            if before is not None:
                self._entropy_bonus_enabled = before

    def _stores_old_log_probs(self) -> bool:
        """Say whether TRL scores the batch with the policy that sampled it; it does so before any other forward."""
        period = self.args.steps_per_generation * self.num_iterations
        corrected = self.use_vllm and getattr(self, "vllm_importance_sampling_correction", False)
        return bool(self.args.gradient_accumulation_steps % period or corrected)

    def get_high_entropy_mask(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return TRL's mask, and keep it for the loss of a ratio-based rule."""
        mask: Tensor = super().get_high_entropy_mask(*args, **kwargs)
        if self._live.call is not None:
            self._live.call.entropy_mask = mask
        return mask

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self.model.training or ROWS not in inputs:
            return super()._compute_loss(model, inputs)
        return self._live.loss(partial(super()._compute_loss, model, inputs), inputs)

    # -- what the scorer and the losses read, besides TRL's public names: `host.HostTrainer` --------------------------

    @property
    def rule_state(self) -> Any:
        """What the rule remembers from one step to the next; None when it remembers nothing."""
        return self._run.state

    @property
    def micro_step(self) -> int:
        """Micro-batches trained on since training began."""
        return int(self._step)

    @property
    def micro_batches(self) -> list[dict[str, Any]]:
        """The micro-batches of the current generation batch."""
        return list(self._buffered_inputs)

    @property
    def accumulation(self) -> int:
        """The micro-batches of an optimizer step that the loss is divided by in TRL's loss itself."""
        return int(self.current_gradient_accumulation_steps)

    @property
    def loss_divisor(self) -> Divisor:
        """What the loss type divides by: all tokens, those of each sequence, or a constant."""
        return TRL_DIVISORS[self.loss_type]

    def reduce_loss(self, per_token: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Reduce a loss per token, (B, T), as TRL does for the loss type."""
        mask = inputs["completion_mask"]
        mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
        items = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if Version(version("trl")) >= Version("1.9.1"):  # from then on rescaled from the generation batch to the step
            items = items * self.accumulation / self.args.steps_per_generation
        return reduce_as_trl(
            per_token, mask, self.loss_type, steps=self.accumulation, items=items, longest=self.max_completion_length
        )

    def log_metrics(self, values: dict[str, float]) -> None:
        """Log numbers of the optimizer step."""
        for name, value in values.items():
            self._metrics["train"][PREFIX + name].append(float(value))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _control_state(self) -> dict[str, Any]:
        return {"rule": str(self.rule), "rule_state": self._run.state, "generations": self._generation.count}

    def _restore_control(self, manifest: Mapping[str, Any], other: bool) -> list[str]:
        """Take up the rule's memory; return in words what is lost, where another rule may take over."""
        self._generation.count = manifest["generations"]
        written = manifest["rule"]
        if written == str(self.rule):
            self._run.state = manifest["rule_state"]
        elif not other:
            expected = f"{written!r}, the checkpoint's (resume_with_new_rule=True resumes under another)"
            raise invalid("rule", expected, repr(str(self.rule)))
        elif written is not None:
            memory = "" if manifest["rule_state"] is None else ", and its memory is lost"
            return [f"the rule was {written!r} and is {str(self.rule)!r}{memory}"]
        return []


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
            would be controlled in part; an option is unknown; or what `EntropyControlMixin` raises.

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


class _RealisedChange(TrainerCallback):
    """Measures the realised change after the first optimizer step on a batch."""

    def __init__(self, generation: GenerationControl) -> None:
        self._generation = generation

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._generation.measure_realised_change()


def _check_processor(processing_class: Any) -> None:
    if isinstance(processing_class, ProcessorMixin):
        raise invalid("processing_class", "a tokenizer (images are not scored yet)", "a multimodal processor")
