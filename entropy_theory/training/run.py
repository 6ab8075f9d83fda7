"""One GRPO run from a frozen configuration: any causal LM, any TRL dataset and reward, one entropy-control rule."""

from __future__ import annotations

import importlib
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from entropy_theory import records
from entropy_theory.bridge.trl import checkpoints
from entropy_theory.errors import invalid, missing_extra
from entropy_theory.testbed import decoder, sum_task

if TYPE_CHECKING:
    from datasets import Dataset

Progress = Callable[[int, int, str], None]

LAST = 10  # steps that "final" averages over
_TESTBED_RATE = 6e-4  # from the recipe of the demo; 1e-3 wrecks the warm start
_USUAL_RATE = 1e-6


@dataclass(frozen=True)
class TrainConfig:
    """A GRPO run with an entropy-control rule.

    Without --model, the policy is a small decoder that is trained from scratch on the sum task in half a minute and
    cached. Without --dataset, the task is the sum task: the prompt is "17=" and any four digits "a+b+c+d" with that sum
    are right, so there are many right answers and diversity can be counted.

    Attributes:
        model: Folder or hub name of a causal language model; default: the small decoder.
        dataset: File (.jsonl, .json, .csv, .parquet), folder or hub name with a "prompt" column; default: the sum task.
        dataset_split: Split of the dataset.
        reward: Reward function in TRL's form as module:function; needed with --dataset.
        rule: Entropy-control rule, such as clip-b, "clip-b(mu=1)", "clip-b|clip-higher" or none.
        observe: Further rules that are asked at every step what they would drop, and change nothing.
        steps: Optimizer steps.
        prompts_per_step: Prompts in one generation batch.
        generations: Completions per prompt, the group of GRPO.
        gradient_accumulation: Micro-batches per optimizer step and process; the batch stays the same.
        num_iterations: Passes over one generation batch (the ratio is clipped from the second on: by TRL, or by a rule
            of the live ratio such as clip-higher).
        max_completion_length: Tokens per completion; default: 8 on the sum task, else 256.
        learning_rate: Constant rate of AdamW; default: 6e-4 for the small decoder, else 1e-6.
        temperature: Sampling temperature; the statistics are those of the tempered policy.
        beta: Weight of the KL penalty towards the initial policy.
        loss_type: TRL's loss.
        bf16: Mixed precision with bfloat16.
        gradient_checkpointing: Recompute activations in the backward pass.
        realised_every: Measure the realised entropy change on the same tokens every k generations; 0: never.
        scoring: "auto" scores inside the training forward where that is exact; "batch" never, "one-pass" always.
        save_batches: Save the token statistics of every k-th generation batch to OUT/batches, for the lens; 0: never.
        save_every: Steps between checkpoints; a run that was killed goes on from the last one and ends with the same
            numbers. Rounded up to whole generation batches.
        log_completions: Keep each step's completions, rewards and advantages in trainer/completions, for `inspect`.
        report_to: TRL's loggers, such as tensorboard or wandb.
        seed: Seed of sampling, data order and random rules.
        out: Folder of the run.
    """

    model: str | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    reward: str | None = None
    rule: str = "none"
    observe: tuple[str, ...] = ()
    steps: int = 200
    prompts_per_step: int = 16
    generations: int = 16
    gradient_accumulation: int = 1
    num_iterations: int = 1
    max_completion_length: int | None = None
    learning_rate: float | None = None
    temperature: float = 1.0
    beta: float = 0.0
    loss_type: str = "dapo"
    bf16: bool = False
    gradient_checkpointing: bool = False
    realised_every: int = 0
    scoring: Literal["auto", "batch", "one-pass"] = "auto"
    save_batches: int = 0
    save_every: int = 50
    log_completions: bool = False
    report_to: str = "none"
    seed: int = 0
    out: Path = Path("runs/train")

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        for name in ("steps", "prompts_per_step", "gradient_accumulation", "num_iterations", "save_every"):
            if getattr(self, name) < 1:
                raise invalid(name, "an integer >= 1", getattr(self, name))
        if self.generations < 2:
            raise invalid("generations", "an integer >= 2 (GRPO compares the completions of a group)", self.generations)
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise invalid("max_completion_length", "an integer >= 1", self.max_completion_length)
        if self.learning_rate is not None and not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise invalid("learning_rate", "a finite number > 0", self.learning_rate)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise invalid("temperature", "a finite number > 0", self.temperature)
        if not (self.beta >= 0 and math.isfinite(self.beta)):
            raise invalid("beta", "a finite number >= 0", self.beta)
        for name in ("realised_every", "save_batches"):
            if getattr(self, name) < 0:
                raise invalid(name, "an integer >= 0", getattr(self, name))
        if self.dataset is not None and self.reward is None:
            raise invalid("reward", "module:function, because --dataset is given", None)
        if self.dataset is None and self.reward is not None:
            raise invalid("dataset", "a dataset for the given --reward", None)


def load_reward(spec: str) -> Callable[..., list[float]]:
    """Import a reward function from ``module:function``; the current folder is on the path.

    Raises:
        ValueError: The form is wrong, the module cannot be imported, or the name is not callable.

    Example:
        >>> load_reward("entropy_theory.testbed.sum_task:reward")(["1+2+3+4"], [10])
        [1.0]
    """
    module_name, separator, name = spec.partition(":")
    if not separator or not module_name or not name:
        raise invalid("reward", "module:function", repr(spec))
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise invalid("reward", "an importable module:function", f"{spec!r} ({error})") from None
    if not callable(function):
        raise invalid("reward", "a callable", f"{spec!r}, a {type(function).__name__}")
    return function


def load_prompts(name: str, split: str) -> Dataset:
    """Load a dataset with a ``prompt`` column from a file, a folder or the hub.

    Raises:
        ValueError: It cannot be loaded, has no rows or lacks the column.
    """
    import datasets

    path = Path(name)
    builders = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    try:
        if path.is_file():
            if path.suffix not in builders:
                raise invalid("dataset", f"a file ending in {', '.join(builders)}", name)
            data = datasets.load_dataset(builders[path.suffix], data_files=name, split="train")
        elif path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            data = datasets.load_from_disk(name)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(name, split=split)
    except (OSError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise invalid("dataset", "a file, folder or hub name that loads", f"{name!r} ({_one_line(error)})") from None
    if "prompt" not in data.column_names:
        raise invalid("dataset", "a column named prompt", f"{name!r} with {', '.join(data.column_names)}")
    if not len(data):
        raise invalid("dataset", "at least one row", f"{name!r} with none")
    return data


def train(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run GRPO and return the summary that is also in ``result.json``.

    The run's folder holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (a line per step), ``model/`` and,
    at the end, ``result.json``. A finished run with the same configuration is not repeated.

    Args:
        config: The run.
        progress: Called with (steps done, steps in all, a word on entropy and reward).

    Returns:
        ``final``: the means of entropy, reward and, on the sum task, distinct right answers over the last ten steps;
        ``steps`` and ``seconds``.

    Raises:
        ValueError: The configuration, model, dataset, reward or rule cannot be used; said before any training.
        ImportError: The extra ``train`` is not installed.
        RunError: The run broke off (a reward that raised, a loss that is not a number, a full disk, SIGTERM); the same
            configuration goes on from the last checkpoint.
    """
    try:
        import accelerate
        import datasets
        import transformers
        import trl
    except ImportError as error:
        raise missing_extra(error.name or "trl", "train") from None

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from entropy_theory.control import rule as build_rule

    rule = build_rule(config.rule)  # a wrong rule is said before a model is loaded
    process = accelerate.PartialState(cpu=_no_gpu())
    _check_batch(config, process.num_processes)
    from entropy_theory.bridge.trl import EntropyControlledGRPOConfig, check_supported, check_trl_version

    check_trl_version(trl.__version__)

    arguments = EntropyControlledGRPOConfig(**_trainer_arguments(config, process.num_processes))
    for one in config.observe:
        build_rule(one)
    check_supported(rule, arguments, trl.__version__, config.scoring)
    if config.dataset is None:
        data = sum_task.dataset(2048, config.seed)
        reward: Callable[..., list[float]] = _SumReward(config.generations)
    else:
        data, reward = load_prompts(config.dataset, config.dataset_split), load_reward(str(config.reward))
    tokenizer = decoder.build_tokenizer() if config.model is None else _tokenizer(config.model, config)

    with records.exclusive(config.out) if process.is_main_process else nullcontext():
        # The checkpoint schedule does not change the result: a run may be taken up with another.
        finished = [process.is_main_process and records.open_run(config.out, config, ignore=("out", "save_every"))]
        if accelerate.utils.broadcast_object_list(finished)[0]:
            return records.read_json(config.out / "result.json")
        with process.main_process_first():
            model = config.model or str(decoder.cached_checkpoint(progress=_prefixed(progress, "warm-up: ")))
        return _run(config, arguments, model, tokenizer, data, reward, progress)


def _run(
    config: TrainConfig,
    arguments: Any,
    model: str,
    tokenizer: Any,
    data: Dataset,
    reward: Callable[..., list[float]],
    progress: Progress | None,
) -> dict[str, Any]:
    from transformers import PrinterCallback, ProgressCallback

    from entropy_theory.bridge.trl import EntropyControlledGRPOTrainer
    from entropy_theory.training.failures import explained, guarded_reward

    start = time.monotonic()
    try:
        trainer = EntropyControlledGRPOTrainer(
            model=model,
            reward_funcs=guarded_reward(reward, config.reward or "sum task"),
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[_recorder(config, progress)],
        )
    except OSError as error:
        raise invalid("model", "a causal language model in safetensors", f"{model!r} ({_one_line(error)})") from None
    trainer.batches_folder = config.out / "batches"
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    with explained(trainer, config.out / "trainer"):
        trainer.train(resume_from_checkpoint=_go_on_from(config, trainer))
        trainer.save_model(str(config.out / "model"))
    result = {
        "final": _final(records.read_lines(config.out / "metrics.jsonl")) if trainer.is_world_process_zero() else {},
        "steps": config.steps,
        "seconds": round(time.monotonic() - start, 1),
    }
    if trainer.is_world_process_zero():
        records.write_json(config.out / "result.json", result)
    return result


def _go_on_from(config: TrainConfig, trainer: Any) -> str | None:
    """Find the last checkpoint of a run that was stopped, and take back the metrics written after it."""
    checkpoint = checkpoints.latest_checkpoint(config.out / "trainer")
    step = 0 if checkpoint is None else checkpoints.checkpoint_step(checkpoint)
    if trainer.is_world_process_zero():
        path = config.out / "metrics.jsonl"
        if path.exists():
            records.write_lines(path, [line for line in records.read_lines(path) if line["step"] <= step])
    return None if checkpoint is None else str(checkpoint)


def _trainer_arguments(config: TrainConfig, processes: int) -> dict[str, Any]:
    small = config.model is None
    completion = config.max_completion_length or (sum_task.ANSWER_LENGTH + 1 if config.dataset is None else 256)
    per_process = config.prompts_per_step * config.generations // (processes * config.gradient_accumulation)
    return {
        "output_dir": str(config.out / "trainer"),
        "rule": config.rule,
        "rule_seed": config.seed,
        "observe": list(config.observe),
        "realised_change_every": config.realised_every,
        "scoring": config.scoring,
        "save_batches": config.save_batches,
        "max_steps": config.steps,
        "per_device_train_batch_size": per_process,
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


def _check_batch(config: TrainConfig, processes: int) -> None:
    batch, parts = config.prompts_per_step * config.generations, processes * config.gradient_accumulation
    if batch % parts:
        raise invalid(
            "prompts_per_step",
            f"prompts_per_step * generations to be a multiple of processes * gradient_accumulation = {parts}",
            batch,
        )


def _tokenizer(model: str, config: TrainConfig) -> Any:
    """Load the model's tokenizer; a model without one can still do the sum task with the testbed's."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        vocab_size = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config().vocab_size
    except (OSError, ValueError) as error:
        raise invalid(
            "model", "a folder or hub name of a causal language model", f"{model!r} ({_one_line(error)})"
        ) from None
    has_tokenizer = not Path(model).is_dir() or any(Path(model).glob("tokenizer*")) or any(Path(model).glob("*vocab*"))
    if has_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, padding_side="left")
    elif config.dataset is None:
        tokenizer = decoder.build_tokenizer()
    else:
        raise invalid("model", "a folder that also holds a tokenizer", f"{model!r}")
    if len(tokenizer) > vocab_size:
        raise invalid(
            "model", f"a tokenizer of at most {vocab_size} ids, the model's vocabulary", f"{len(tokenizer)} ids"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class _SumReward:
    """The sum task's reward, which also reports the distinct right answers of each group."""

    __name__ = "sum_task"

    def __init__(self, generations: int) -> None:
        self._generations = generations

    def __call__(self, completions: Sequence[str], target: Sequence[int], **extra: Any) -> list[float]:
        log_metric = extra.get("log_metric")
        if log_metric is not None and len(completions) % self._generations == 0:
            log_metric("distinct_right", sum_task.mean_distinct_right(target, completions, self._generations))
        return sum_task.reward(completions, target)


def _recorder(config: TrainConfig, progress: Progress | None) -> Any:
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        """Writes a line per step and moves the progress bar."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if not state.is_world_process_zero or not logs or "loss" not in logs:
                return
            numbers = {k: v for k, v in logs.items() if isinstance(v, int | float)}
            # JSON has no NaN: a metric that is not a number is recorded as null, not left out.
            line = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
            records.append_line(config.out / "metrics.jsonl", {"step": state.global_step, **line})
            if progress is not None:
                word = f"entropy {logs.get('entropy', math.nan):.3f}, reward {logs.get('reward', math.nan):.2f}"
                progress(state.global_step, config.steps, word)

    return Recorder()


def _final(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Average the last steps."""
    last = lines[-LAST:]
    final = {}
    names = ["entropy", "reward", "distinct_right", "entropy_control/dropped_share", "entropy_control/slope"]
    names += sorted({name for line in last for name in line if name.startswith("entropy_control/observed/")})
    for name in names:
        values = [line[name] for line in last if line.get(name) is not None]
        if values:
            final[name.removeprefix("entropy_control/")] = sum(values) / len(values)
    return final


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _prefixed(progress: Progress | None, prefix: str) -> Progress | None:
    return None if progress is None else lambda done, total, word: progress(done, total, prefix + word)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
