"""What `control_contest.py` does with the small decoder: GRPO runs of two tasks, policies on held-out prompts."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_grpo
import grpo_runs
import numpy as np
import real_model
from rich.console import Console
from sweep import rounded

from entropy_theory.testbed import arithmetic, sum_task

GENERATIONS = 16  # completions of a prompt
ROWS = 2048  # prompts of a training set, drawn with the run's seed
BATCHES = 5  # a curve is recorded as means over so many neighbouring batches
KS = (1, 4, 16)

COLUMNS = {n: grpo_runs.COLUMNS[n] for n in ("entropy", "reward", "distinct_right", "dropped_share", "slope")}

HELD_OUT_SUMS = tuple(target for target in sum_task.TARGETS if target % 5 == 0)
NUMBERS, LARGEST = 4, 9  # of the expressions of arithmetic in steps
HELD_OUT_EXPRESSIONS = 24

WARMUP = gpu_grpo.GpuGrpoConfig(
    hidden_size=64,
    layers=2,
    heads=4,
    numbers=NUMBERS,
    largest=LARGEST,
    warmup_steps=3000,
    warmup_batch=128,
    warmup_rate=2e-3,
)
"""The decoder that starts on arithmetic; the sum task starts from the testbed's."""
TINY_WARMUP = gpu_grpo.GpuGrpoConfig(**gpu_grpo.QUICK)


@dataclass(frozen=True)
class ContestRun:
    """One GRPO run of the decoder.

    Attributes:
        task: A name of `TASKS`.
        rule: The rule; none for no control.
        seed: Of prompts, sampling and random masks.
        steps: Updates.
        num_iterations: Updates per batch.
        samples: Completions of each held-out prompt.
        tiny: Whether to start from a decoder that is warmed up in seconds.
        prompts: Prompts of a batch.
        learning_rate: Constant rate of AdamW.
    """

    task: str
    rule: str
    seed: int
    steps: int
    num_iterations: int = 1
    samples: int = 64
    tiny: bool = False
    prompts: int = 16
    learning_rate: float = 6e-4


@dataclass(frozen=True)
class TaskOfDecoder:
    """A task: its prompts and its judge.

    Attributes:
        column: The column of the prompts that reward and judge read.
        reward: The reward function, as module:function; it logs the distinct right answers of a group.
        length: Tokens of a completion at most.
        start: The folder of the decoder that starts.
        draw: Draws the column's values of a training set.
        held_out: The column's values that GRPO never shows.
        is_right: The judge of (value, answer).
    """

    column: str
    reward: str
    length: int
    start: Callable[[bool], Path]
    draw: Callable[[int], list[Any]]
    held_out: tuple[Any, ...]
    is_right: Callable[[Any, str], bool]


def sum_reward(completions: Sequence[str], target: Sequence[int], **extra: Any) -> list[float]:
    """Reward function of the sum task in TRL's form; logs the distinct right answers of a group."""
    if extra.get("log_metric") is not None:
        extra["log_metric"]("distinct_right", sum_task.mean_distinct_right(target, completions, GENERATIONS))
    return sum_task.reward(completions, target)


def _sums(seed: int) -> list[Any]:
    shown = [target for target in sum_task.TARGETS if target not in HELD_OUT_SUMS]
    return np.random.default_rng(seed).choice(shown, ROWS).tolist()


@functools.cache
def _held_out_expressions() -> tuple[str, ...]:
    generator = np.random.default_rng(10_000)
    drawn: dict[str, None] = {}
    while len(drawn) < HELD_OUT_EXPRESSIONS:
        drawn[arithmetic.draw(generator, NUMBERS, LARGEST)] = None
    return tuple(drawn)


def _expressions(seed: int) -> list[Any]:
    generator = np.random.default_rng(seed)
    kept: list[Any] = []
    while len(kept) < ROWS:
        expression = arithmetic.draw(generator, NUMBERS, LARGEST)
        if expression not in _held_out_expressions():
            kept.append(expression)
    return kept


def _arithmetic_start(tiny: bool) -> Path:
    """The folder of the decoder that is warmed up on arithmetic, made by the first process that needs it."""
    from entropy_theory.testbed import decoder

    config = TINY_WARMUP if tiny else WARMUP
    return decoder.cached_model("arithmetic-decoder", config, lambda: gpu_grpo.warm_up(config, Console(quiet=True)))


TASKS = {
    "sum": TaskOfDecoder(
        "target", f"{__name__}:sum_reward", 8, grpo_runs.warmed_up, _sums, HELD_OUT_SUMS, sum_task.is_right
    ),
    "arithmetic": TaskOfDecoder(
        "expression",
        f"{arithmetic.__name__}:reward",
        28,
        _arithmetic_start,
        _expressions,
        _held_out_expressions(),
        arithmetic.is_right,
    ),
}


def train(run: ContestRun, smoothed: int = BATCHES) -> dict[str, Any]:
    """Train, and measure the trained policy.

    Args:
        run: The run.
        smoothed: Neighbouring batches whose mean is a point of a curve.

    Returns:
        ``curves``: means over neighbouring batches, by name; ``final``: means over the last ten updates; ``held_out``:
        pass@k and the distinct right answers of 16 on held-out prompts, means over the prompts.
    """
    from entropy_theory.records import read_lines
    from entropy_theory.training.config import TrainConfig
    from entropy_theory.training.run import train as train_with

    task = TASKS[run.task]
    start = task.start(run.tiny)
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.jsonl")
        rows = [{"prompt": f"{value}=", task.column: value} for value in task.draw(run.seed)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = TrainConfig(
            model=str(start),
            dataset=str(prompts),
            reward=task.reward,
            rule=run.rule,
            steps=run.steps,
            num_iterations=run.num_iterations,
            prompts_per_step=run.prompts,
            generations=GENERATIONS,
            max_completion_length=task.length,
            learning_rate=run.learning_rate,
            save_every=10**6,
            seed=run.seed,
            out=Path(folder, "run"),
        )
        final = train_with(config)["final"]
        lines = read_lines(config.out / "metrics.jsonl")
        held_out = measure_policy(config.out / "model", run)
    batches = [line for line in lines if line.get("reward") is not None]  # later updates of a batch have none
    curves: dict[str, Any] = {}
    for name, logged in COLUMNS.items():
        values = [line.get(logged) for line in batches]
        if all(value is not None for value in values):
            curves[name] = rounded(smooth(values, smoothed), 4)
    return {"curves": curves, "final": rounded(final), "held_out": held_out}


def smooth(values: Sequence[Any], batches: int = BATCHES) -> list[float]:
    """Means over so many neighbouring batches, over fewer where that does not divide their number."""
    return grpo_runs.thinned(values, -(-len(values) // batches))


def measure_policy(folder: Path, run: ContestRun) -> dict[str, float]:
    """pass@k and the distinct right answers of the first sixteen samples, means over the held-out prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    from entropy_theory.testbed import decoder

    task, tokenizer = TASKS[run.task], decoder.build_tokenizer()
    policy = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
    measured: dict[str, list[float]] = {name: [] for name in (*(f"pass@{k}" for k in KS), "distinct_right")}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(run.seed)
        for value in task.held_out:
            answers = grpo_runs.sampled_answers(policy, tokenizer, f"{value}=", run.samples, task.length)
            right = [task.is_right(value, answer) for answer in answers]
            for k in KS:
                measured[f"pass@{k}"].append(grpo_runs.pass_at(k, sum(right), run.samples))
            measured["distinct_right"].append(len({a.strip() for a, r in zip(answers[:16], right, strict=False) if r}))
    return {name: round(float(np.mean(values)), 5) for name, values in measured.items()}


def model_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """A run of the real model (`real_model_runs.ModelRun`) in the form of the decoder's."""
    task, result = entry["task"], entry["result"]
    curves = {name: result["curves"][name] for name in ("entropy", "reward", "distinct_right", "dropped_share")}
    batches = [values for values in zip(*curves.values(), strict=True) if values[1] is not None]
    kept = dict(zip(curves, zip(*batches, strict=True), strict=True))
    two = task["num_iterations"] == 2
    return {
        "task": task | {"task": "addition", "method": task["rule"] + (", two updates" if two else "")},
        "result": {
            "curves": {name: smooth(values) for name, values in kept.items()},
            "final": {name: real_model.final(entry, name) for name in curves},
            "held_out": dict(result["policy"]["held_out"]),
        },
    }
