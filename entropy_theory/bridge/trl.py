"""Entropy control for TRL's GRPO trainer.

The seam is ``_generate_and_score_completions``: once per generation batch, before any update, the mixin scores the
sampled tokens with the current policy, applies a rule to the batch of all ranks and micro-batches at once, and hands
per-token advantages back to TRL. The tensor survives TRL's shuffle and split, so the rule's statistics are global and
fixed before the updates, and TRL's own loss, clipping, KL and logging stay as they are.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor
from transformers import ProcessorMixin, TrainerCallback
from transformers.trainer_utils import SaveStrategy
from trl import GRPOConfig, GRPOTrainer

from entropy_theory.bridge import checkpoints
from entropy_theory.control import DistributedReducer, LocalReducer, Rule, RuleOutput, TokenBatch
from entropy_theory.control import rule as build_rule
from entropy_theory.errors import invalid
from entropy_theory.vocab import TokenStatistics, token_statistics

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from entropy_theory.control import Reducer

    _Trainer = Any  # the mixin reads what the GRPOTrainer behind it has
else:
    _Trainer = object

SUPPORTED_TRL = ">=1.0,<2,!=1.15.*"
PREFIX = "entropy_control/"

# How each loss divides, which decides how a rule that shrinks the denominator is expressed in advantages.
_TOKEN_MEAN = frozenset({"dapo", "cispo", "bnpo", "vespo"})
_SEQUENCE_MEAN = frozenset({"grpo", "sapo"})
_CONSTANT = frozenset({"dr_grpo", "luspo"})
SUPPORTED_LOSSES = _TOKEN_MEAN | _SEQUENCE_MEAN | _CONSTANT

# Logits that the scoring forward may hold at once, in bytes of float32.
LOGITS_BUDGET = 1 << 28


@dataclass
class EntropyControlledGRPOConfig(GRPOConfig):
    """TRL's GRPOConfig with the rule and what is measured about it.

    Attributes:
        rule: The rule's specification, such as ``clip-b(mu=1)`` or ``clip-b|random-mask(fraction=0.01)``.
        rule_seed: Seed of rules that draw at random; every rank draws the same numbers.
        realised_change_every: Measure the realised change of entropy on the batch's own tokens at every k-th
            generation, at the price of one more forward; 0 never does.
        observe: Rules that are asked what they would drop, and change nothing.
    """

    rule: str = field(default="none", metadata={"help": "Entropy-control rule, e.g. 'clip-b(mu=1)'."})
    rule_seed: int = field(default=0, metadata={"help": "Seed of rules that draw at random."})
    realised_change_every: int = field(
        default=0, metadata={"help": "Measure the realised entropy change every k generations; 0: never."}
    )
    observe: list[str] = field(
        default_factory=list, metadata={"help": "Rules that are asked what they would drop, and change nothing."}
    )


def check_trl_version(installed: str) -> None:
    """Refuse a TRL release outside the range the seam was read and run on.

    Raises:
        ValueError: The release is not in ``SUPPORTED_TRL``.

    Example:
        >>> check_trl_version("1.16.0")
        >>> check_trl_version("0.29.0")
        Traceback (most recent call last):
        ...
        ValueError: trl: expected a release in >=1.0,<2,!=1.15.*, received 0.29.0
    """
    release = Version(installed)
    # Compared by hand: SpecifierSet would refuse the pre-releases and dev builds of a supported release.
    if not (Version("1.0.dev0") <= release < Version("2.dev0")) or release.release[:2] == (1, 15):
        raise invalid("trl", f"a release in {SUPPORTED_TRL}", installed)


def check_supported(rule: Rule, args: GRPOConfig) -> None:
    """Refuse what this seam cannot carry, before any work.

    Args:
        rule: The control rule.
        args: The trainer's configuration.

    Raises:
        ValueError: The rule needs the live ratio; or the loss would ignore per-token advantages; or an option replaces
            the code that reads them.
    """
    if rule.phase != "batch":
        raise invalid(
            "rule",
            "a rule that is fixed once per generation batch (TRL itself clips the live ratio: epsilon, epsilon_high)",
            f"{str(rule)!r}, which needs the ratio at every update",
        )
    if rule.entropy_term:
        raise invalid(
            "rule",
            "a rule that acts through advantages (TRL has its own entropy bonus: entropy_coef, use_adaptive_entropy)",
            f"{str(rule)!r}, which adds ∂J/∂H",
        )
    if args.loss_type not in SUPPORTED_LOSSES:
        raise invalid("loss_type", f"one of {', '.join(sorted(SUPPORTED_LOSSES))}", repr(args.loss_type))
    for option in ("use_liger_kernel", "use_liger_loss"):
        if getattr(args, option, False):
            raise invalid(option, "False: Liger's loss reads one advantage per sequence, not per token", True)


class EntropyControlMixin(checkpoints.SafeCheckpoints, _Trainer):
    """Put before a ``GRPOTrainer`` class to apply an entropy-control rule to its advantages.

    Per generation batch it logs, under ``entropy_control/`` and over all ranks: ``entropy``, the mean H; ``slope`` =
    −mean(g · S_c), the predicted direction and relative size of the entropy change; ``mean_discriminant`` and
    ``mean_centered_discriminant``; what the rule reports, among it ``dropped_share`` and the shares of the quadrants,
    ``quadrant_share_q1`` to ``quadrant_share_q4``; and every ``realised_change_every`` generations
    ``realised_change``, the mean over the same tokens of H after the update minus H before it; and for each rule of
    ``observe`` the share it would have dropped, ``observed/RULE/dropped_share``. ``slope`` is not a ΔH:
    a model with shared parameters has no step size in logit space.

    Args:
        rule: A rule or its specification; the default is ``args.rule`` or ``"none"``.
        *args: As for the trainer.
        **kwargs: As for the trainer.

    Raises:
        ValueError: TRL's version, the loss, an option or the rule's phase is not supported.
    """

    def __init__(self, *args: Any, rule: str | Rule | None = None, **kwargs: Any) -> None:
        check_trl_version(version("trl"))
        config = kwargs.get("args", args[2] if len(args) > 2 else None) or EntropyControlledGRPOConfig(
            "entropy-control"
        )
        if len(args) <= 2:
            kwargs["args"] = config
        self.rule = build_rule(rule if rule is not None else getattr(config, "rule", "none"))
        self.observed = [build_rule(one) for one in getattr(config, "observe", [])]
        for one in (self.rule, *self.observed):
            check_supported(one, config)
        if isinstance(kwargs.get("processing_class", args[5] if len(args) > 5 else None), ProcessorMixin):
            raise invalid("processing_class", "a tokenizer (images are not scored yet)", "a multimodal processor")
        self.rule_state: Any = None
        self._realised_every = int(getattr(config, "realised_change_every", 0))
        if self._realised_every < 0:
            raise invalid("realised_change_every", "an integer >= 0", self._realised_every)
        self._generations = 0
        _round_save_steps(config)
        self._before_update: tuple[dict[str, Tensor], Tensor, Tensor] | None = None
        super().__init__(*args, **kwargs)
        if isinstance(self.processing_class, ProcessorMixin):
            raise invalid("processing_class", "a tokenizer (images are not scored yet)", "a multimodal processor")
        if self._realised_every:
            self.add_callback(_RealisedChange(self))

    # -- the seam -----------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        mask = output["completion_mask"].bool()
        if "tool_mask" in output:
            mask &= output["tool_mask"].bool()
        reducer = self._reducer()
        if not reducer.sum(mask.sum().double()) > 0:
            # Nothing to learn from and nothing to control: TRL's loss is zero on this batch.
            self._log_entropy_control({"empty_batch": 1.0})
            return output
        statistics = self._score(output)
        rollout = output.get("sampling_per_token_logps")
        if rollout is not None:  # an engine may leave single tokens unscored; there the trainer's own value serves
            rollout = torch.where(torch.isfinite(rollout), rollout, statistics.log_probs)
        batch = TokenBatch(
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
        )
        result = self.rule.apply(batch, reducer=reducer, generator=self._generator(), state=self.rule_state)
        self.rule_state = result.state
        for one in self.observed:
            share = one.apply(batch, reducer=reducer, generator=self._generator()).metrics["dropped_share"]
            self._log_entropy_control({f"observed/{one}/dropped_share": share})
        advantages = self._advantages(result, mask, reducer)
        self._log_entropy_control(_metrics(batch, advantages, reducer) | result.metrics)
        if not torch.equal(advantages, batch.token_advantages.masked_fill(~mask, 0.0)):
            # A rule that changed nothing leaves TRL its own tensor: a (B, T) one of equal numbers can still round
            # differently where TRL works per sequence.
            output["advantages"] = advantages
        if self._realised_every and self._generations % self._realised_every == 0:
            self._before_update = ({k: output[k] for k in _MODEL_INPUTS}, statistics.entropy, mask)
        self._generations += 1
        return output

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        completion_ids, *rest = super()._generate_single_turn(*args, **kwargs)
        empty = sum(len(ids) == 0 for ids in completion_ids)
        if empty:
            expected = "at least one token each, the end token where nothing else was written"
            raise invalid("completion_ids", expected, f"{empty} empty of {len(completion_ids)}")
        return completion_ids, *rest

    def _advantages(self, result: RuleOutput, mask: Tensor, reducer: Reducer) -> Tensor:
        """Express g_t and the rule's denominator as per-token advantages for TRL's fixed denominator."""
        coefficients = result.coefficients
        if self.loss_type in _CONSTANT or reducer.sum((mask != result.counted_mask).sum().double()) == 0:
            return coefficients
        if self.loss_type in _TOKEN_MEAN:
            return coefficients * (reducer.sum(mask.sum().double()) / result.denominator.clamp(min=1)).to(coefficients)
        rows = mask.sum(1) / result.counted_mask.sum(1).clamp(min=1)
        return coefficients * rows.unsqueeze(1).to(coefficients)

    # -- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _score(self, batch: dict[str, Tensor]) -> TokenStatistics:
        """Compute the token statistics of the completions under the current policy, a few rows of logits at a time."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        length = batch["completion_ids"].shape[1]
        model = self.accelerator.unwrap_model(self.model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        keep = {"logits_to_keep": length + 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
        vocab_size = base.config.get_text_config().vocab_size
        # The block must be the same on every rank, whatever its longest completion: wrapped models meet in a forward.
        rows = max(1, min(self.args.per_device_train_batch_size, LOGITS_BUDGET // (4 * vocab_size * (length + 1))))
        if self.accelerator.num_processes > 1:
            rows = int(self.accelerator.gather(torch.tensor([rows], device=ids.device)).min())
        parts = []
        was_training = self.model.training
        self.model.eval()  # dropout would score another policy than the one that sampled, and consume random numbers
        try:
            for start in range(0, ids.shape[0], rows):
                block = slice(start, start + rows)
                with self.accelerator.autocast():
                    logits = self.model(
                        input_ids=ids[block], attention_mask=attention_mask[block], use_cache=False, **keep
                    ).logits
                parts.append(
                    token_statistics(
                        logits[:, -length - 1 : -1], batch["completion_ids"][block], temperature=float(self.temperature)
                    )
                )
        finally:
            self.model.train(was_training)
        fields = ("log_probs", "entropy", "discriminant", "baseline", "centered_discriminant")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
        return TokenStatistics(**joined, sum_squared_discriminant=None, grpo_curvature=None, impl=parts[0].impl)

    def measure_realised_change(self) -> None:
        """Log the mean change of entropy since the batch was scored, on that batch's own tokens; once per batch."""
        if self._before_update is None:
            return
        inputs, entropy, mask = self._before_update
        self._before_update = None
        reducer = self._reducer()
        change = torch.where(mask, self._score(inputs).entropy.double() - entropy.double(), 0.0).sum()
        self._log_entropy_control({"realised_change": float(reducer.sum(change) / reducer.sum(mask.sum().double()))})

    # -- plumbing -----------------------------------------------------------------------------------------------------

    def _reducer(self) -> Reducer:
        return DistributedReducer() if self.accelerator.num_processes > 1 else LocalReducer()

    def _generator(self) -> torch.Generator:
        # From the step, not from a running generator: a resumed run draws what the undisturbed one would have drawn.
        # Mixed, because torch's CPU generator reads 32 bits of its seed.
        seed = np.random.SeedSequence([int(getattr(self.args, "rule_seed", 0)), self.state.global_step])
        return torch.Generator().manual_seed(int(seed.generate_state(1)[0]))

    def _log_entropy_control(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][PREFIX + name].append(float(value))


class EntropyControlledGRPOTrainer(EntropyControlMixin, GRPOTrainer):
    """TRL's ``GRPOTrainer`` with an entropy-control rule: ``EntropyControlledGRPOTrainer(..., rule="clip-b")``."""


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


_MODEL_INPUTS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def _metrics(batch: TokenBatch, advantages: Tensor, reducer: Reducer) -> dict[str, float]:
    """Summarise a batch over all ranks; ``advantages`` are the per-token ones after the rule."""
    mask = batch.completion_mask.bool()

    def mean(x: Tensor) -> float:
        return float(reducer.sum(torch.where(mask, x.double(), 0.0).sum()) / count)

    count = reducer.sum(mask.sum().double())
    centered = batch.centered_scores()
    return {
        "entropy": mean(batch.entropy),
        "slope": -mean(torch.where(mask, advantages, 0.0).double() * centered.double()),
        "mean_discriminant": mean(batch.scores()),
        "mean_centered_discriminant": mean(centered),
    }
