"""What an audit is asked to do: the runs, the steps to measure, and where everything is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from entropy_theory.control import rule as build_rule
from entropy_theory.errors import at_least, finite_number, invalid
from entropy_theory.testbed.pretrained import SMOLLM2
from entropy_theory.training.config import TrainConfig

Arm = Literal["sgd", "adamw", "sgd-output"]

SMALL_DECODER: dict[str, Any] = {
    "arms": get_args(Arm),
    "at": (5, 15, 30, 60),
    "seeds": (0, 1, 2),
    "prompts_per_step": 16,
    "generations": 16,
    "positions": 256,
    "held_out": 128,
    "precision": "float64",
}
"""Defaults for the small decoder, which takes some minutes."""

GIVEN_MODEL: dict[str, Any] = {
    "arms": ("sgd", "adamw"),
    "at": (2, 4),
    "seeds": (0,),
    "prompts_per_step": 4,
    "generations": 8,
    "positions": 8,
    "held_out": 8,
    "precision": "float32",
    "max_completion_length": 16,
    "learning_rate": 2e-5,
}
"""Defaults for a given model; a model of 135 million parameters takes a quarter of an hour on two cores."""

PATIENCE = 20  # steps to wait for a gradient: there is none while every group's rewards are equal


@dataclass(frozen=True)
class AuditConfig:
    """Measure how well the tabular theory predicts the entropy of your model, whose positions share their parameters.

    The theory gives every position logits of its own; in a model, a step on one token moves all others. The audit
    trains by GRPO, and at the steps of --at it holds the batch fixed and compares, position by position, the change of
    entropy that the optimizer's step makes with three predictions: "token", the theory's −η A S_c of the position's own
    token; "context", the same for all tokens sampled at equal prefixes; "parameters", the first order in the weights,
    exact but for curvature. On --positions positions the step is also taken apart into the position's own token, its
    context, sharing with other contexts, preconditioning and momentum. From the tokens' side it compares the tabular
    −S_c with the influence D, which says what each token of the step does to mean entropy, exactly to first order in
    the weights. Rollouts of other prompts, which did not make the step, say how the step moves entropy at fixed
    contexts and how by other contexts being visited. Intervals resample steps and prompt groups.

      entropy-theory audit                                    # the demo's decoder, SGD and AdamW, some minutes
      entropy-theory audit --model smollm2                    # a real model, a quarter of an hour on two cores
      entropy-theory audit --arms adamw --model my-model --dataset prompts.jsonl --reward my_module:reward

    Attributes:
        arms: sgd; adamw; sgd-output, SGD on the output matrix alone, whose first order has a closed form. Default: all
            for the small decoder, the first two for a given --model.
        at: Optimizer steps to measure, or the next one that has a gradient; the runs end with the last. AdamW's first
            step is far larger than its later ones. Default: 5 15 30 60; 2 4 for a given model.
        seeds: Seeds of sampling and data order; each is a run of each arm. Default: 0 1 2; 0 for a given model.
        model: Folder or hub name of a causal language model, or smollm2; default: the small decoder of the demo.
        task: Task by name with its verifier as the reward, as for train; default: addition for smollm2.
        dataset: File, folder or hub name with a "prompt" column; default: the sum task.
        dataset_split: Split of the dataset.
        reward: Reward function in TRL's form as module:function; needed with --dataset.
        rule: Entropy-control rule that is fixed once per generation batch.
        prompts_per_step: Prompts in one generation batch; default: 16; 4 for a given model.
        generations: Completions per prompt; default: 16; 8 for a given model.
        max_completion_length: Tokens per completion; default: as for train; 16 for a given model.
        learning_rate: Rate of AdamW; default: as for train; 2e-5 for a given model.
        sgd_learning_rate: Rate of SGD. At ten times the default the first order no longer holds for the demo's decoder.
        temperature: Sampling temperature; all entropies are those of the tempered policy.
        positions: Positions of each measured step at which it is taken apart; default: 256; 8 for a given model.
        held_out: Rollouts per prompt that do not make the step, from as many prompts as the batch has; default: 128; 8
            for a given model.
        precision: Arithmetic of the measurement; the training is in float32. The noise floor is reported. Default:
            float64; float32 for a given model.
        resamples: Bootstrap resamples.
        out: Folder for audit.json, audit.png, audit_tokens.png and the measured steps.
    """

    arms: tuple[Arm, ...] = ()
    at: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    model: str | None = None
    task: str | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    reward: str | None = None
    rule: str = "none"
    prompts_per_step: int | None = None
    generations: int | None = None
    max_completion_length: int | None = None
    learning_rate: float | None = None
    sgd_learning_rate: float = 1e-3
    temperature: float = 1.0
    positions: int | None = None
    held_out: int | None = None
    precision: Literal["float64", "float32"] | None = None
    resamples: int = 1000
    out: Path = Path("runs/audit")

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on the model, and refuse values that no audit can use."""
        for name, default in (SMALL_DECODER if self.model is None else GIVEN_MODEL).items():
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, default)
        if self.model == SMOLLM2 and self.task is None and self.dataset is None:
            object.__setattr__(self, "task", "addition")
        for name, kind in (("arms", "arms"), ("at", "steps >= 1"), ("seeds", "integers")):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise invalid(name, f"one or more different {kind}", values)
        for seed in self.seeds:
            self.run("adamw", seed)
        if min(self.at) < 1:
            raise invalid("at", "steps >= 1", self.at)
        at_least(self, 1, "positions", "held_out", "resamples")
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
            prompts_per_step=cast(int, self.prompts_per_step),  # filled in above
            generations=cast(int, self.generations),
            # A micro-batch for each prompt: the activations of a given model take far more memory than its weights.
            gradient_accumulation=1 if self.model is None else cast(int, self.prompts_per_step),
            max_completion_length=self.max_completion_length,
            learning_rate=self.learning_rate if arm == "adamw" else self.sgd_learning_rate,
            temperature=self.temperature,
            seed=seed,
            out=self.out / "runs" / f"{arm}-{seed}",
        )

    def file(self, arm: Arm, seed: int, step: int) -> Path:
        """Where a measured step is kept."""
        return self.out / "steps" / f"{arm}-{seed}-{step}.safetensors"
