"""Entropy control inside verl's V1 trainer: an external module that verl loads by itself.

    export VERL_USE_EXTERNAL_MODULES=entropy_theory.bridge.verl_trainer

registers, in every process that imports verl,

- the trainer modes `entropy_theory_sync`, `entropy_theory_colocate_async`, `entropy_theory_separate_async`: verl's own
  trainers, which after verl's `_compute_advantage` apply the batch part of a rule to the whole batch of all ranks;
- an FSDP engine that scores N, S and S_c in the forward that verl makes for old log-probabilities anyway, chosen by
  `VERL_ENGINE_VENDOR=entropy_theory`;
- the ratio-based rules at their defaults as policy losses, `entropy_theory:NAME`, and those of `ENTROPY_THEORY_RULES`
  (specifications joined by `;`) with their parameters.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from torch import Tensor

from entropy_theory import records
from entropy_theory.bridge.verl import apply_to_batch, check_batch_rule
from entropy_theory.bridge.verl.losses import MICRO_BATCH, loss_name, register_loss
from entropy_theory.control import Pipe, Rule, rule_class, rule_names
from entropy_theory.control import rule as build_rule
from entropy_theory.control.random import seeded_generator
from entropy_theory.errors import invalid, missing_extra
from entropy_theory.vocab import token_statistics

SUPPORTED_VERL = ">=0.9,<0.10"


def check_verl_version(installed: str) -> None:
    """Check that the verl release is one that the trainer was read and run on.

    Raises:
        ValueError: The release is not in ``SUPPORTED_VERL``.
    """
    if not Version("0.9.dev0") <= Version(installed) < Version("0.10.dev0"):
        raise invalid("verl", f"a release in {SUPPORTED_VERL}", installed)


try:
    check_verl_version(version("verl"))
except PackageNotFoundError as error:
    raise missing_extra("verl", "verl") from error

try:
    import transfer_queue as tq
    from omegaconf import DictConfig, OmegaConf, open_dict
    from tensordict import TensorDict
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import register_trainer
    from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
    from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.utils.padding import response_from_nested
except ImportError as error:
    raise missing_extra(error.name or "verl", "verl") from error

if TYPE_CHECKING:
    _Trainer = Any  # the mixin reads what the PPOTrainer behind it has
else:
    _Trainer = object

OPTIONS = "entropy_theory"
CHECKPOINT = "entropy_control.json"
RULES_VARIABLE = "ENTROPY_THEORY_RULES"
STATISTICS = ("baseline", "discriminant", "centered_discriminant")
_FIELDS = ("uid", "response_mask", "rm_scores", "rollout_log_probs", "old_log_probs", "entropy")


class EntropyControlMixin(_Trainer):
    """Put before a V1 trainer class to apply the rule of `trainer.v1.entropy_theory` to its advantages.

    The options are `rule`, `rule_seed` (0) and `observe` ([]), rules that are asked what they would drop. The trainer
    process holds the whole batch, so the statistics are those of all ranks and micro-batches. A ratio-based part of the
    rule is verl's policy loss: `actor.policy_loss.loss_mode` must name it.

    Args:
        config: verl's configuration; `trainer.v1.trainer_mode` is set to the mode of the class behind, which is what
            verl's buffers, checkpoints and batch sizes go by.

    Raises:
        ValueError: an option is unknown, or the rule cannot be carried.
    """

    base_mode = "sync"

    def __init__(self, config: DictConfig) -> None:
        self.rule, self.observed, self.rule_seed = _options(config)
        self.batch_rule = self.rule.split()[0]
        self.rule_state: Any = None
        _check_config(config, self.rule, self.batch_rule)
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.base_mode
        super().__init__(config)

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_old_log_prob(batch, metrics)
        data = tq.kv_batch_get(batch.keys, batch.partition_id, select_fields=["response_mask", *STATISTICS])
        scored = {name: response_from_nested(data[name], data["response_mask"]) for name in STATISTICS if name in data}
        if not scored:
            return batch
        return tq.kv_batch_put(batch.keys, batch.partition_id, fields=TensorDict(scored, batch_size=len(batch)))

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        if self.batch_rule is None and not self.observed:
            return batch
        data = tq.kv_batch_get(batch.keys, batch.partition_id, select_fields=[*_FIELDS, "advantages", *STATISTICS])
        rule = self.batch_rule or build_rule("none")
        for asked in (rule, *self.observed):
            if "centered_discriminant" in asked.needs and "centered_discriminant" not in data:
                how = "VERL_ENGINE_VENDOR=entropy_theory in the environment of every worker (FSDP engines)"
                raise invalid("centered_discriminant", f"a tensor, which {asked} needs: set {how}", None)
        result = apply_to_batch(
            rule,
            data,
            loss_agg_mode=self.config.actor_rollout_ref.actor.loss_agg_mode,
            generator=self._generator(),
            state=self.rule_state,
            observe=tuple(self.observed),
        )
        self.rule_state = result.state
        metrics.update(result.metrics)
        changed = TensorDict({"advantages": data["advantages"]}, batch_size=len(batch))
        return tq.kv_batch_put(batch.keys, batch.partition_id, fields=changed)

    def _generator(self) -> torch.Generator:
        return seeded_generator(self.rule_seed, self.global_steps, self.local_trigger_step)

    def _save_checkpoint(self) -> None:
        # Before verl's own files: it marks the checkpoint as the latest one last.
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        records.write_json(folder / CHECKPOINT, {"format": 1, "rule": str(self.rule), "rule_state": self.rule_state})
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if not self.global_steps:
            return
        trainer = self.config.trainer
        named = trainer.resume_from_path if trainer.resume_mode == "resume_path" else None
        folder = Path(named or Path(trainer.default_local_dir) / f"global_step_{self.global_steps}")
        self.rule_state = read_rule_state(folder, self.rule)


def read_rule_state(folder: Path, rule: Rule) -> Any:
    """Read the rule's state from a checkpoint of verl.

    Args:
        folder: `global_step_N`.
        rule: The rule of the run that resumes.

    Raises:
        ValueError: the checkpoint has no state of ours, is of another format, or of another rule.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise invalid("resume_mode", f"a checkpoint written under a rule, with {CHECKPOINT}", folder)
    content = records.read_json(path)
    if content.get("format") != 1:
        raise invalid("resume_mode", "a checkpoint of format 1", f"{path}: {content.get('format')}")
    if content["rule"] != str(rule):
        raise invalid("rule", f"{content['rule']!r}, the checkpoint's", repr(str(rule)))
    return content["rule_state"]


def _options(config: DictConfig) -> tuple[Rule, list[Rule], int]:
    given = OmegaConf.to_container(OmegaConf.create(config.trainer.v1.get(OPTIONS) or {}), resolve=True)
    assert isinstance(given, dict)
    for name in given:
        if name not in ("rule", "rule_seed", "observe"):
            raise invalid(f"trainer.v1.{OPTIONS}", "only rule, rule_seed and observe", name)
    if not given.get("rule"):
        raise invalid(f"trainer.v1.{OPTIONS}.rule", "a rule, such as 'clip-b(mu=1)'", given.get("rule"))
    observed = [build_rule(spec) for spec in given.get("observe") or []]
    for asked in observed:
        check_batch_rule(asked)
    return build_rule(given["rule"]), observed, int(given.get("rule_seed") or 0)


def _check_config(config: DictConfig, rule: Rule, batch_rule: Rule | None) -> None:
    """Check, before any worker starts, that nothing would run otherwise than the rule says."""
    if batch_rule is not None:
        check_batch_rule(batch_rule)
        if "centered_discriminant" in batch_rule.needs and config.actor_rollout_ref.model.get("use_fused_kernels"):
            raise invalid("use_fused_kernels", f"False: {batch_rule} needs statistics of the logits", True)
    live, mode = rule.split()[1], config.actor_rollout_ref.actor.policy_loss.get("loss_mode", "vanilla")
    if live is None:
        return
    names = [loss_name(live), loss_name(live, True)]
    if mode not in names:
        raise invalid("policy_loss.loss_mode", f"{names[0]!r}, the ratio-based part of {rule}", repr(mode))
    if mode not in POLICY_LOSS_REGISTRY:
        register_loss(mode.partition(":")[2])  # says why it was not registered
        raise invalid(RULES_VARIABLE, f"{mode.partition(':')[2]!r} in the environment of every worker", "not there")
    kinds = [member.kind for member in (live.rules if isinstance(live, Pipe) else (live,))]
    if batch_rule is not None and "penalty" in kinds:
        raise invalid("rule", "no penalty after a batch rule: dropped tokens reach the loss as A = 0 only", str(rule))


@register_trainer("entropy_theory_sync")
class EntropyControlledTrainerSync(EntropyControlMixin, PPOTrainerSync):
    """verl's synchronous trainer with an entropy-control rule."""

    base_mode = "sync"


@register_trainer("entropy_theory_colocate_async")
class EntropyControlledTrainerColocateAsync(EntropyControlMixin, PPOTrainerColocateAsync):
    """verl's colocated asynchronous trainer with an entropy-control rule."""

    base_mode = "colocate_async"


@register_trainer("entropy_theory_separate_async")
class EntropyControlledTrainerSeparateAsync(EntropyControlMixin, PPOTrainerSeparateAsync):
    """verl's separate asynchronous trainer with an entropy-control rule."""

    base_mode = "separate_async"


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"], vendor="entropy_theory"
)
class StatisticsEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine; where it scores entropy without a loss, it scores N, S and S_c too, from the same logits."""

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        """Add the statistics to verl's own outputs, as nested tensors over the whole sequences.

        Raises:
            ValueError: fused kernels hide the logits, or the temperatures of a micro-batch differ.
        """
        outputs = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)

        def option(key: str, default: Any) -> Any:
            return tu.get_non_tensor_data(data=micro_batch, key=key, default=default)

        if not option("calculate_entropy", False) or option("compute_loss", True):
            return outputs
        if option("use_fused_kernels", False):
            raise invalid("use_fused_kernels", "False: the statistics are taken from the logits", True)
        temperature = torch.as_tensor(micro_batch["temperature"], dtype=torch.float64).unique()
        if temperature.numel() != 1:
            raise invalid("temperature", "one temperature per micro-batch", temperature.tolist())
        offsets = micro_batch["input_ids"].offsets()
        logits = output.logits.full_tensor() if hasattr(output.logits, "full_tensor") else output.logits
        packed = option("use_remove_padding", True)
        lengths = offsets.diff().tolist()
        rows = logits.squeeze(0) if packed else torch.cat([row[:n] for row, n in zip(logits, lengths, strict=True)])
        scored = token_statistics(
            rows.detach(), output_args["input_ids_rmpad_rolled"], temperature=float(temperature.item())
        )
        for name in STATISTICS:
            values = getattr(scored, name)
            if packed:
                values = self._gather_and_unpad_packed(values, output_args["pad_size"])
            outputs[name] = torch.nested.nested_tensor_from_jagged(values, offsets)
        return outputs


def register_losses() -> list[str]:
    """Register each ratio-based rule that verl can carry at its defaults, and those of `ENTROPY_THEORY_RULES`."""
    names = []
    for name in rule_names():
        if rule_class(name).phase == "live":
            try:
                names.append(register_loss(name))
            except ValueError:
                continue  # asked for by name, it raises the reason
    for spec in filter(None, os.environ.get(RULES_VARIABLE, "").split(";")):
        live = build_rule(spec.strip().removesuffix(MICRO_BATCH)).split()[1]
        if live is not None:
            names.append(register_loss(str(live) + (MICRO_BATCH if spec.strip().endswith(MICRO_BATCH) else "")))
    return names


register_losses()
