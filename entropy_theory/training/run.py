"""One GRPO run from a frozen configuration: any causal LM, any TRL dataset and reward, one entropy-control rule."""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from typing import Any

from entropy_theory import records
from entropy_theory.bridge.trl import checkpoints
from entropy_theory.errors import RunError, invalid, missing_extra, reading
from entropy_theory.sampling import Sampling
from entropy_theory.testbed import sum_task
from entropy_theory.training.config import TrainConfig
from entropy_theory.training.inputs import (
    Progress,
    check_chat,
    check_same_prompts,
    check_weights,
    load_task,
    load_tokenizer,
    model_folder,
)
from entropy_theory.training.memory import check_memory

METRICS = "metrics.jsonl"
_TESTBED_RATE = 6e-4  # from the recipe of the demo; 1e-3 wrecks the warm start
_USUAL_RATE = 1e-6


def load_libraries() -> None:
    """Import TRL and what it stands on, and keep their progress bars and warnings out of ours.

    Raises:
        ImportError: The extra ``train`` is not installed.
    """
    try:
        import datasets
        import transformers
        import trl  # noqa: F401  (a missing one is named before any work)
    except ImportError as error:
        raise missing_extra(error.name or "trl", "train") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def train(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run GRPO and return the summary that is also in ``result.json``.

    The run's folder holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (a line per step), ``model/`` and,
    at the end, ``result.json``. A finished run with the same configuration is not repeated.

    Args:
        config: The run.
        progress: Called with (steps done, steps in all, entropy and reward).

    Returns:
        ``final``: the means of entropy, reward and, on the sum task, distinct right answers over the last ten steps;
        ``steps`` and ``seconds``.

    Raises:
        ValueError: The configuration, model, dataset, reward or rule cannot be used, found before any training.
        ImportError: The extra ``train`` is not installed.
        RunError: The run broke off (a reward that raised, a loss that is not a number, a full disk, SIGTERM); the same
            configuration resumes from the last checkpoint.
    """
    load_libraries()
    import accelerate
    import trl

    from entropy_theory.bridge.trl import EntropyControlledGRPOConfig, check_supported, check_trl_version
    from entropy_theory.control import rule as build_rule

    rule = build_rule(config.rule)  # a wrong rule is named before a model is loaded
    for observed in config.observe:
        build_rule(observed)
    process = accelerate.PartialState(cpu=_no_gpu())
    check_trl_version(trl.__version__)
    arguments = EntropyControlledGRPOConfig(**trainer_arguments(config, process.num_processes))
    check_supported(rule, arguments, trl.__version__, config.scoring)
    with process.main_process_first():
        tokenizer = load_tokenizer(config)
    data, reward = load_task(config, tokenizer)
    check_chat(data, tokenizer, config)

    # The checkpoint schedule does not change the result: a run may be resumed with another.
    opened = records.run_folder(config.out, config, ignore=("out", "save_every"))
    with opened if process.is_main_process else nullcontext(False) as finished:
        if accelerate.utils.broadcast_object_list([finished])[0]:
            return records.read_record(config.out / "result.json", "final", "steps", "seconds")
        with process.main_process_first():
            model = model_folder(config, _prefixed(progress, "warm-up: "))
        return _run(config, arguments, model, tokenizer, data, reward, progress)


def _run(
    config: TrainConfig,
    arguments: Any,
    model: str,
    tokenizer: Any,
    data: Any,
    reward: Any,
    progress: Progress | None,
) -> dict[str, Any]:
    from entropy_theory.bridge.trl import EntropyControlledGRPOTrainer
    from entropy_theory.training.failures import explained
    from entropy_theory.training.metrics import Recorder, cut_back, final_means

    start = time.monotonic()
    with reading("model", "a causal language model in safetensors", model):
        trainer = EntropyControlledGRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Recorder(config.out / METRICS, config.steps, progress)],
        )
        check_weights(trainer.model, model)
    check_memory(trainer, data[:16]["prompt"])
    trainer.batches_folder = config.out / "batches"
    silence(trainer)
    first = trainer.is_world_process_zero()
    if first and config.log_completions:
        sampling_of(trainer).write(config.out / "trainer" / "completions")
    checkpoint = checkpoints.latest_checkpoint(config.out / "trainer")
    check_same_prompts(data, config, resumes=checkpoint is not None)
    if first:
        cut_back(config.out / METRICS, checkpoint)
    with explained(trainer, config.out / "trainer"):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step < config.steps:
            raise RunError(f"training ended before step {config.steps}", status=1 if trainer.state.global_step else 2)
        trainer.save_model(str(config.out / "model"))
    lines = records.read_lines(config.out / METRICS) if first else []
    if lines and all(line.get("entropy_control/empty_batch") == 1 for line in lines):
        raise RunError(f"no completion was judged in any of {len(lines)} steps, so nothing was trained")
    result = {
        "final": final_means(lines),
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - start, 1),
    }
    if first:
        records.write_json(config.out / "result.json", result)
    return result


def sampling_of(trainer: Any) -> Sampling:
    """Describe how a GRPO trainer samples, for `inspect`."""
    ends = getattr(trainer, "eos_token_ids", None) or [trainer.processing_class.eos_token_id]
    return Sampling(
        temperature=float(trainer.temperature),
        max_completion_length=trainer.max_completion_length,
        end_token_ids=list(ends),
        chat_template_kwargs=dict(getattr(trainer, "chat_template_kwargs", None) or {}),
        reward_columns=list(trainer.reward_func_names),
        reward_weights=trainer.reward_weights.tolist(),
        scale_rewards=str(trainer.scale_rewards),
    )


def silence(trainer: Any) -> None:
    """Take transformers' own printing and progress bars out of a trainer."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def trainer_arguments(config: TrainConfig, processes: int) -> dict[str, Any]:
    """Translate a run into the arguments of TRL's configuration.

    Args:
        config: The run.
        processes: Processes that share a generation batch.

    Raises:
        ValueError: The batch does not divide among processes and micro-batches.
    """
    batch, parts = config.prompts_per_step * config.generations, processes * config.gradient_accumulation
    if batch % parts:
        raise invalid(
            "prompts_per_step",
            f"prompts_per_step * generations to be a multiple of processes * gradient_accumulation = {parts}",
            batch,
        )
    small = config.model is None
    own = sum_task.ANSWER_LENGTH + 1 if config.task is None else 64
    completion = config.max_completion_length or (own if config.dataset is None else 256)
    return {
        "output_dir": str(config.out / "trainer"),
        "rule": config.rule,
        "rule_seed": config.seed,
        "observe": list(config.observe),
        "realised_change_every": config.realised_every,
        "ledger": config.ledger,
        "influence_every": config.influence_every,
        "scoring": config.scoring,
        "save_batches": config.save_batches,
        "max_steps": config.steps,
        "per_device_train_batch_size": batch // parts,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "num_generations": config.generations,
        "num_iterations": config.num_iterations,
        "max_completion_length": completion,
        "temperature": config.temperature,
        "learning_rate": config.learning_rate or (_TESTBED_RATE if small else _USUAL_RATE),
        "lr_scheduler_type": "constant",
        "beta": config.beta,
        "loss_type": config.loss_type,
        "bf16": config.bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "model_init_kwargs": {"use_safetensors": True, "dtype": "float32"},
        "use_cpu": _no_gpu(),
        "report_to": config.report_to,
        "log_completions": config.log_completions,
        "num_completions_to_print": 0,
        "logging_steps": 1,
        "save_strategy": "steps",
        # Whole generation batches: between them a resumed run repeats the undisturbed one to the bit.
        "save_steps": -(-config.save_every // config.num_iterations) * config.num_iterations,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "seed": config.seed,
    }


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _prefixed(progress: Progress | None, prefix: str) -> Progress | None:
    return None if progress is None else lambda done, total, word: progress(done, total, prefix + word)
