"""GRPO runs of the small decoder on the sum task, as tasks that several sweeps share."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from sweep import interval, rounded, shown

COLUMNS = {
    "entropy": "entropy",
    "reward": "reward",
    "distinct_right": "distinct_right",
    "dropped_share": "entropy_control/dropped_share",
    "slope": "entropy_control/slope",
    "mean_discriminant": "entropy_control/mean_discriminant",
    "mean_centered_discriminant": "entropy_control/mean_centered_discriminant",
}
FINALS = ("entropy", "reward", "distinct_right", "dropped_share")
POINTS = 40  # a curve is recorded as so many means over neighbouring steps


@dataclass(frozen=True)
class GrpoRun:
    """One run."""

    rule: str
    seed: int
    steps: int  # 0 only samples from the warmed-up decoder
    num_iterations: int = 1
    prompts: int = 16
    generations: int = 16
    samples: int = 64  # completions per sum, to measure the trained policy
    tiny: bool = False  # start from a decoder that is warmed up in a second


def train(run: GrpoRun) -> dict[str, Any]:
    """Train, and measure the trained policy.

    Returns:
        ``curves``: means over neighbouring steps, by name; ``final``: means over the last ten steps; ``policy``: pass
        rate and distinct right answers for each sum.
    """
    from entropy_theory.records import read_lines
    from entropy_theory.training.config import TrainConfig
    from entropy_theory.training.run import train as train_with

    start = warmed_up(run.tiny)
    if run.steps == 0:
        return {"curves": {}, "final": {}, "policy": measure_policy(start, run)}
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model=str(start),
            rule=run.rule,
            steps=run.steps,
            num_iterations=run.num_iterations,
            prompts_per_step=run.prompts,
            generations=run.generations,
            max_completion_length=8,
            learning_rate=6e-4,
            save_every=10**6,
            seed=run.seed,
            out=Path(folder),
        )
        final = train_with(config)["final"]
        lines = read_lines(config.out / "metrics.jsonl")
        policy = measure_policy(config.out / "model", run)
    curves: dict[str, Any] = {"step": thinned([line["step"] for line in lines])}
    for name, logged in COLUMNS.items():
        values = [line.get(logged) for line in lines]
        if all(value is not None for value in values):
            curves[name] = thinned(values)
    return {"curves": curves, "final": rounded(final), "policy": policy}


def train_observed(
    kind: type[Any], *, tiny: bool, steps: int, prompts: int, generations: int, seed: int, **options: Any
) -> Any:
    """Train the decoder on the sum task with a trainer class that observes; nothing is kept on disk.

    Args:
        kind: The trainer's class.
        tiny: Whether to start from the decoder that is warmed up in a second.
        steps: Optimizer steps.
        prompts: Prompts in a generation batch.
        generations: Completions per prompt.
        seed: Seed of sampling and data order.
        **options: Further options of TRL's configuration.

    Returns:
        The trainer.
    """
    from entropy_theory.bridge.trl import EntropyControlledGRPOConfig
    from entropy_theory.testbed import decoder, sum_task
    from entropy_theory.training.config import TrainConfig
    from entropy_theory.training.inputs import load_task
    from entropy_theory.training.run import load_libraries, silence, trainer_arguments

    load_libraries()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            steps=steps, prompts_per_step=prompts, generations=generations, seed=seed, out=Path(folder)
        )
        prompts_of_task, _ = load_task(config, decoder.build_tokenizer())
        trainer = kind(
            model=str(warmed_up(tiny)),
            reward_funcs=sum_task.reward,
            args=EntropyControlledGRPOConfig(**trainer_arguments(config, 1) | {"save_strategy": "no"} | options),
            train_dataset=prompts_of_task,
            processing_class=decoder.build_tokenizer(),
        )
        silence(trainer)
        trainer.train()
    return trainer


def thinned(values: Sequence[Any], points: int = POINTS) -> list[float]:
    """Average neighbouring values, so that at most ``points`` are left."""
    parts = np.array_split(np.array(values, dtype=float), min(points, len(values)))
    measured: list[float] = rounded([float(part.mean()) for part in parts])
    return measured


def warmed_up(tiny: bool) -> Path:
    """The folder of the decoder to start from."""
    from entropy_theory.testbed import decoder

    small = decoder.WarmupConfig(hidden_size=32, layers=1, heads=2, steps=250, batch_size=64, learning_rate=5e-3)
    return decoder.cached_checkpoint(small if tiny else decoder.WarmupConfig())


def measure_policy(model: Path, run: GrpoRun) -> dict[str, list[float]]:
    """Sample answers to every sum: the share that is right, and the distinct right answers."""
    import torch
    from transformers import AutoModelForCausalLM

    from entropy_theory.testbed import decoder, sum_task

    tokenizer = decoder.build_tokenizer()
    policy = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True, dtype=torch.float32).eval()
    measured: dict[str, list[float]] = {"pass_rate": [], "distinct_right": []}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(run.seed)
        for target in sum_task.TARGETS:
            prompt, length = sum_task.prompt(target), sum_task.ANSWER_LENGTH + 1
            answers = sampled_answers(policy, tokenizer, prompt, run.samples, length)
            right = [answer.strip() for answer in answers if sum_task.is_right(target, answer)]
            measured["pass_rate"].append(len(right) / run.samples)
            measured["distinct_right"].append(float(len(set(right))))
    return measured


def sampled_answers(policy: Any, tokenizer: Any, prompt: str, samples: int, length: int) -> list[str]:
    """Sample answers of at most so many tokens to a prompt."""
    inputs = tokenizer([prompt] * samples, return_tensors="pt")
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    ids = policy.generate(**given, do_sample=True, top_k=0, max_new_tokens=length)
    answers: list[str] = tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def pass_at(k: int, right: int, samples: int) -> float:
    """The unbiased pass@k, 1 − C(n−c, k)/C(n, k) with c of n samples right (arXiv 2107.03374).

    Example:
        >>> pass_at(1, 1, 4), pass_at(4, 1, 4)
        (0.25, 1.0)
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def final_intervals(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Final numbers by rule, means over seeds with intervals: bank runs, real runs, those of two updates a batch."""
    summary: dict[str, Any] = {}
    for name, belongs in (
        ("bank", lambda task: "policies" in task),
        ("real", lambda task: task.get("num_iterations") == 1),
        ("live", lambda task: task.get("num_iterations", 1) > 1),
    ):
        rules: dict[str, list[dict[str, float]]] = {}
        for entry in results:
            if "rule" in entry["task"] and entry["task"]["steps"] and belongs(entry["task"]):
                rules.setdefault(entry["task"]["rule"], []).append(entry["result"]["final"])
        summary[name] = {
            rule: {key: interval([entry[key] for entry in finals]) for key in FINALS} for rule, finals in rules.items()
        }
        base = rules.get("none") or next(iter(rules.values()), [])
        for rule, finals in rules.items():
            if len(finals) == len(base):  # the same seeds, in the same order
                pairs = [entry["entropy"] - other["entropy"] for entry, other in zip(finals, base, strict=True)]
                summary[name][rule]["entropy_over_base"] = interval(pairs)
    return summary


def print_finals(summary: dict[str, Any]) -> None:
    """Print the tables of `final_intervals`."""
    places = (
        ("bank", "bank of forking policies"),
        ("real", "real GRPO loop"),
        ("live", "real loop, two updates a batch"),
    )
    for name, words in places:
        if not summary.get(name):
            continue
        print(f"\n{words}: means over seeds ± 95 % t-intervals")
        keys = (*FINALS, "entropy_over_base")  # the last by seed, over no control, or else over the first rule
        print(f"{'rule':48}" + "".join(f"{key.replace('_', ' '):>18}" for key in keys))
        for rule, row in summary[name].items():
            print(f"{rule:48}" + "".join(f"{shown(row[key]) if key in row else '':>18}" for key in keys))
