"""What an audit is asked to do: the runs, the steps to measure, and where everything is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from entropy_theory.control import rule as build_rule
from entropy_theory.errors import at_least, finite_number, invalid
from entropy_theory.training.config import TrainConfig

Arm = Literal["sgd", "adamw", "sgd-output"]

PATIENCE = 20  # steps to wait for a gradient: there is none while every group's rewards are equal


@dataclass(frozen=True)
class AuditConfig:
    """Measure how well the tabular theory predicts the entropy of your model, whose positions share their parameters.

    The theory gives every position logits of its own; in a model, a step on one token moves all others. The audit
    trains by GRPO, and at the steps of --at it holds the batch fixed and compares, position by position, the change of
    entropy that the optimizer's step makes with three predictions: "token", the theory's −η A S_c of the position's own
    token; "context", the same for all tokens sampled at equal prefixes; "parameters", the first order in the weights,
    exact but for curvature. On --positions positions the step is also taken apart into the position's own token, its
    context, sharing with other contexts, preconditioning and momentum. Intervals resample steps and prompt groups.

      entropy-theory audit                                    # the demo's decoder, SGD and AdamW, some minutes
      entropy-theory audit --arms adamw --model my-model --dataset prompts.jsonl --reward my_module:reward

    Attributes:
        arms: sgd; adamw; sgd-output, SGD on the output matrix alone, whose first order has a closed form.
        at: Optimizer steps to measure, or the next one that has a gradient; the runs end with the last. AdamW's first
            step is far larger than its later ones.
        seeds: Seeds of sampling and data order; each is a run of each arm.
        model: Folder or hub name of a causal language model, or smollm2; default: the small decoder of the demo.
        task: Task by name with its verifier as the reward, as for train.
        dataset: File, folder or hub name with a "prompt" column; default: the sum task.
        dataset_split: Split of the dataset.
        reward: Reward function in TRL's form as module:function; needed with --dataset.
        rule: Entropy-control rule that is fixed once per generation batch.
        prompts_per_step: Prompts in one generation batch.
        generations: Completions per prompt.
        max_completion_length: Tokens per completion; default as for train.
        learning_rate: Rate of AdamW; default as for train.
        sgd_learning_rate: Rate of SGD. At ten times the default the first order no longer holds for the demo's decoder.
        temperature: Sampling temperature; all entropies are those of the tempered policy.
        positions: Positions of each measured step at which it is taken apart.
        precision: Arithmetic of the measurement; the training is in float32. The noise floor is reported.
        resamples: Bootstrap resamples.
        out: Folder for audit.json, audit.png and the measured steps.
    """

    arms: tuple[Arm, ...] = get_args(Arm)
    at: tuple[int, ...] = (5, 15, 30, 60)
    seeds: tuple[int, ...] = (0, 1, 2)
    model: str | None = None
    task: str | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    reward: str | None = None
    rule: str = "none"
    prompts_per_step: int = 16
    generations: int = 16
    max_completion_length: int | None = None
    learning_rate: float | None = None
    sgd_learning_rate: float = 1e-3
    temperature: float = 1.0
    positions: int = 256
    precision: Literal["float64", "float32"] = "float64"
    resamples: int = 1000
    out: Path = Path("runs/audit")

    def __post_init__(self) -> None:
        """Refuse values that no audit can use; those of the runs are checked by TrainConfig."""
        for name, kind in (("arms", "arms"), ("at", "steps >= 1"), ("seeds", "integers")):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise invalid(name, f"one or more different {kind}", values)
        for seed in self.seeds:
            self.run("adamw", seed)
        if min(self.at) < 1:
            raise invalid("at", "steps >= 1", self.at)
        at_least(self, 1, "positions", "resamples")
        finite_number(self, "sgd_learning_rate")
        rule = build_rule(self.rule)
        if rule.phase != "batch" or rule.entropy_term:
            raise invalid(
                "rule", "a rule that acts through advantages fixed once per generation batch", repr(self.rule)
            )

    def run(self, arm: Arm, seed: int) -> TrainConfig:
        """The configuration of one run."""
        return TrainConfig(
            model=self.model,
            task=self.task,
            dataset=self.dataset,
            dataset_split=self.dataset_split,
            reward=self.reward,
            rule=self.rule,
            steps=max(self.at) + PATIENCE,
            prompts_per_step=self.prompts_per_step,
            generations=self.generations,
            max_completion_length=self.max_completion_length,
            learning_rate=self.learning_rate if arm == "adamw" else self.sgd_learning_rate,
            temperature=self.temperature,
            seed=seed,
            out=self.out / "runs" / f"{arm}-{seed}",
        )

    def file(self, arm: Arm, seed: int, step: int) -> Path:
        """Where a measured step is kept."""
        return self.out / "steps" / f"{arm}-{seed}-{step}.safetensors"
