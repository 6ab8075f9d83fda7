"""The runs of an audit: TRL's trainer with a probe that measures the optimizer's step at chosen steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from entropy_theory import records
from entropy_theory.audit import held_out
from entropy_theory.audit import step as audit_step
from entropy_theory.audit.config import PATIENCE, Arm, AuditConfig
from entropy_theory.audit.step import write_step
from entropy_theory.audit.summary import summarise
from entropy_theory.audit.tokens import measure_tokens
from entropy_theory.bridge.trl import checkpoints
from entropy_theory.bridge.trl.step_batch import step_batch_of
from entropy_theory.errors import invalid, reading
from entropy_theory.influence import StepBatch, gradient_only_update, preconditioner, step_parts
from entropy_theory.influence.model_view import inner_product
from entropy_theory.training.config import TrainConfig
from entropy_theory.training.inputs import Progress, check_chat, check_weights, load_task, load_tokenizer, model_folder
from entropy_theory.training.run import load_libraries, sampling_of, silence, trainer_arguments

SMALL = 1_000_000  # parameters below which the work of an operation is not worth a second thread


def audit(config: AuditConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run what is missing of an audit and return its summary, which is also in ``result.json``.

    Args:
        config: The audit.
        progress: Called with (training steps done, steps in all, a word).

    Returns:
        As `summarise`, with ``configuration`` and ``environment``.

    Raises:
        ValueError: The model, dataset, reward or rule cannot be used, another audit is in the folder, or torchrun
            started several processes.
        ImportError: The extra ``train`` is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise invalid("audit", "one process (a step is measured on the whole batch)", os.environ["WORLD_SIZE"])
    with records.run_folder(config.out, config) as finished:
        if finished:
            return records.read_record(config.out / "result.json", "arms", "steps")
        runs, last = [(arm, seed) for arm in config.arms for seed in config.seeds], max(config.at)
        for number, (arm, seed) in enumerate(runs):

            def moved(done: int, words: str, before: int = number * last) -> None:
                if progress is not None:
                    progress(before + done, len(runs) * last, words)

            run_arm(config, arm, seed, moved)
        result = {"configuration": records.to_data(config), "environment": records.environment()} | summarise(config)
        records.write_json(config.out / "result.json", result)
        return result


def run_arm(config: AuditConfig, arm: Arm, seed: int, progress: Callable[[int, str], None] | None = None) -> None:
    """Train one arm with one seed and write the measured steps; nothing is done when they are all there.

    Args:
        config: The audit.
        arm: The optimizer.
        seed: Of sampling and data order.
        progress: Called with (steps done, a word).
    """
    if all(config.file(arm, seed, step).exists() for step in config.at):
        return
    load_libraries()
    from entropy_theory.training.failures import explained

    run = config.run(arm, seed)
    trainer = _build(config, arm, run, progress)
    silence(trainer)
    checkpoint = checkpoints.latest_checkpoint(run.out / "trainer")
    threads = torch.get_num_threads()
    if sum(p.numel() for p in trainer.model.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        with explained(trainer, run.out / "trainer"):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        torch.set_num_threads(threads)
    missing = [step for step in config.at if not config.file(arm, seed, step).exists()]
    if missing:
        raise invalid("at", f"steps with a gradient within {PATIENCE} more ({arm}, seed {seed})", missing)
    shutil.rmtree(run.out)


def _build(config: AuditConfig, arm: Arm, run: TrainConfig, progress: Any) -> Any:
    """Build the trainer, with a callback that measures."""
    from entropy_theory.bridge.trl import EntropyControlledGRPOConfig, EntropyControlledGRPOTrainer

    class Audited(EntropyControlledGRPOTrainer):
        """Hands the batches of the chosen steps on."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            if self.model.training and probe.due(self.state.global_step + 1) is not None:
                probe.batch = step_batch_of(output, self.num_generations, float(self.temperature))
                probe.prompts = [example["prompt"] for example in inputs]
            return output

    arguments = trainer_arguments(run, 1) | {"save_strategy": "no", "save_total_limit": 1}
    if arm != "adamw":
        arguments["optim"] = "sgd"

    def warming(done: int, total: int, words: str) -> None:
        if progress is not None:
            progress(0, f"warm-up: {done}/{total}, {words}")

    tokenizer = load_tokenizer(run)
    data, reward = load_task(run, tokenizer)
    check_chat(data, tokenizer, run)
    model = model_folder(run, warming)
    with reading("model", "a causal language model in safetensors", model):
        trainer = Audited(
            model=model,
            reward_funcs=reward,
            args=EntropyControlledGRPOConfig(**arguments),
            train_dataset=data,
            processing_class=tokenizer,
        )
        check_weights(trainer.model, model)
    if arm == "sgd-output":
        train_output_matrix_only(trainer.model)
    probe = _probe(config, arm, run.seed, trainer, progress)
    trainer.add_callback(probe)
    return trainer


def _probe(config: AuditConfig, arm: Arm, seed: int, trainer: Any, progress: Any) -> Any:
    from transformers import TrainerCallback

    precision, positions = cast(str, config.precision), cast(int, config.positions)  # AuditConfig fills them in

    class Probe(TrainerCallback):
        """Looks at the parameters on both sides of the optimizer's step."""

        batch: StepBatch | None = None
        prompts: Sequence[Any] = ()
        twin: Any = None  # the model before the step

        def due(self, step: int) -> int | None:
            """The earliest of the chosen steps that is not behind us."""
            return next(
                (at for at in sorted(config.at) if at <= step and not config.file(arm, seed, at).exists()), None
            )

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.gradient = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
            self.twin = None
            if self.due(state.global_step + 1) is not None and any(bool(g.any()) for g in self.gradient.values()):
                self.twin = audit_step.measurable(trainer.model, precision)
                self.rollouts = self.sample(torch.Generator().manual_seed(seed + 1_000_003 * state.global_step))

        def sample(self, generator: torch.Generator) -> StepBatch:
            prompts = held_out.other_prompts(
                trainer.train_dataset["prompt"], self.prompts, config.run(arm, seed).prompts_per_step, generator
            )
            return held_out.sample_rollouts(
                trainer.model,
                held_out.prompt_tokens(prompts, trainer.processing_class),
                cast(int, config.held_out),
                trainer.max_completion_length,
                sampling_of(trainer).end_token_ids or [],
                float(trainer.temperature),
                generator,
            )

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.twin is None:
                return
            step = state.global_step + 1
            if progress is not None:
                progress(state.global_step, f"{arm}, seed {seed}: measuring step {step}")
            parameters = dict(trainer.model.named_parameters())
            before = {name: p for name, p in self.twin.named_parameters() if name in self.gradient}
            after = {name: parameters[name].detach() for name in before}
            assert self.batch is not None  # this step's, set when it was generated
            arrays, scalars = audit_step.measure_step(
                self.twin,
                before,
                after,
                self.gradient,
                self.batch,
                alone={
                    name: gradient_only_update(trainer.optimizer, parameters, {name: g})[name].to(before[name].dtype)
                    for name, g in self.gradient.items()  # one by one: the update is in float64
                },
                positions=positions,
                seed=seed,
            )
            of_tokens, numbers = measure_tokens(
                self.twin,
                before,
                self.batch,
                None if arm != "adamw" else self.metric(parameters, before),
                partial(first_order_parts, trainer.optimizer, parameters, before, self.gradient),
            )
            numbers |= held_out.measure_held_out(self.twin, before, after, self.rollouts)
            numbers |= {"step": step, "learning_rate": float(trainer.optimizer.param_groups[0]["lr"])}
            at = self.due(step)
            assert at is not None
            write_step(config.file(arm, seed, at), arrays | of_tokens, scalars | numbers)

        def metric(self, parameters: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: preconditioner(trainer.optimizer, {name: parameters[name]})[name].to(value.dtype)
                for name, value in like.items()  # one by one, as above
            }

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if progress is not None:
                progress(min(state.global_step, max(config.at)), f"{arm}, seed {seed}")
            control.should_save = self.twin is not None
            self.twin, self.gradient = None, {}  # copies of the weights
            control.should_training_stop |= self.due(max(config.at)) is None

    return Probe()


def train_output_matrix_only(model: Any) -> None:
    """Freeze everything but the output matrix; a matrix that is also the embedding is refused."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight:
        raise invalid("arms", "no sgd-output: the model's output matrix is also its embedding", "sgd-output")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is head.weight)


def first_order_parts(
    optimizer: Any,
    parameters: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    slope: Mapping[str, Tensor],
) -> dict[str, float]:
    """Compute ⟨slope, part⟩ for the parts of the step that the optimizer has made: now, momentum, decay.

    Args:
        optimizer: As for `step_parts`, like the next three.
        parameters: Likewise.
        before: Likewise.
        gradient: Likewise.
        slope: By name.
    """
    along = {"now": 0.0, "momentum": 0.0, "decay": 0.0}
    for name in gradient:  # one by one: the parts are in float64
        parts = step_parts(optimizer, parameters, {name: before[name]}, {name: gradient[name]})
        for part in along:
            along[part] += inner_product({name: slope[name]}, getattr(parts, part))
    return along
