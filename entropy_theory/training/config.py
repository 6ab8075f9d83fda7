"""What a GRPO run with an entropy-control rule is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from entropy_theory.errors import at_least, finite_number, invalid


@dataclass(frozen=True)
class TrainConfig:
    """A GRPO run with an entropy-control rule.

    Without --model, the policy is a small decoder that is trained from scratch on the sum task in half a minute and
    cached. --model smollm2 is a real language model of 135 million parameters from an installed package (extra llm).
    Without --dataset and --task, the task is the sum task: the prompt is "17=" and any four digits "a+b+c+d" with that
    sum are right, so there are many right answers and diversity can be counted. Example:

      entropy-theory train --model smollm2 --task addition --learning-rate 2e-5 --prompts-per-step 4 --generations 8

    Attributes:
        model: Folder or hub name of a causal language model, or smollm2; default: the small decoder.
        task: Task by name with its verifier as the reward, NAME or NAME:key=value,...: sum, arithmetic, addition, or a
            dataset of reasoning-gym (extra llm) such as chain_sum:max_terms=2. The answer is the text in the last
            <answer>...</answer>, or the whole completion. Prompts are chats, or plain texts (with a warning) for a
            model without a chat template.
        dataset: File (.jsonl, .json, .csv, .parquet), folder or hub name with a "prompt" column; default: the sum task.
        dataset_split: Split of the dataset.
        reward: Reward function in TRL's form as module:function; needed with --dataset.
        rule: Entropy-control rule, such as clip-b, "clip-b(mu=1)", "clip-b|clip-higher" or none.
        observe: Further rules whose metrics are recorded at every step; they change nothing.
        steps: Optimizer steps.
        prompts_per_step: Prompts in one generation batch.
        generations: Completions per prompt, the group of GRPO.
        gradient_accumulation: Micro-batches per optimizer step and process; the batch stays the same.
        num_iterations: Optimizer passes over one generation batch. From the second on the importance ratio is no
            longer 1 and is clipped: by TRL, or by a ratio-based rule (one evaluated at every update) as clip-higher.
        max_completion_length: Tokens per completion; default: 8 on the sum task, 64 on a --task, else 256.
        learning_rate: Constant rate of AdamW; default: 6e-4 for the small decoder, else 1e-6.
        temperature: Sampling temperature; the statistics are those of the tempered policy.
        beta: Weight of the KL penalty towards the initial policy.
        loss_type: TRL's loss.
        bf16: Mixed precision with bfloat16.
        gradient_checkpointing: Recompute activations in the backward pass.
        realised_every: Measure the realised entropy change on the same tokens every k generations; 0: never.
        ledger: Account for the run's on-policy entropy: what the updates did at fixed contexts, and what visiting other
            contexts and sampling did; one more forward for each generation batch. `entropy-theory ledger OUT` draws it.
        influence_every: With --ledger, split the fixed-context change of every k-th generation batch to first order:
            present gradient, momentum, weight decay; one more forward and backward for each update; 0: never.
        scoring: Where token statistics are computed: "auto", inside the training forward where that is exact; "batch",
            in a forward of their own; "one-pass", always inside the training forward.
        save_batches: Save the token statistics of every k-th generation batch to OUT/batches, for the lens; 0: never.
        save_every: Steps between checkpoints; a run that was killed resumes from the last one and ends with the same
            numbers. Rounded up to whole generation batches.
        log_completions: Keep each step's completions, rewards and advantages in trainer/completions, for `inspect`.
        report_to: TRL's loggers, such as tensorboard or wandb.
        seed: Seed of sampling, data order and random rules.
        out: Folder of the run.
    """

    model: str | None = None
    task: str | None = None
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
    ledger: bool = False
    influence_every: int = 0
    scoring: Literal["auto", "batch", "one-pass"] = "auto"
    save_batches: int = 0
    save_every: int = 50
    log_completions: bool = False
    report_to: str = "none"
    seed: int = 0
    out: Path = Path("runs/train")

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        at_least(self, 1, "steps", "prompts_per_step", "gradient_accumulation", "num_iterations", "save_every")
        at_least(self, 1, "max_completion_length")
        at_least(self, 0, "realised_every", "influence_every", "save_batches", "seed")
        if self.influence_every and not self.ledger:
            raise invalid("ledger", "--ledger beside --influence-every, which splits its entries", False)
        if self.generations < 2:
            raise invalid("generations", "an integer >= 2 (GRPO compares the completions of a group)", self.generations)
        finite_number(self, "learning_rate", "temperature")
        finite_number(self, "beta", zero=True)
        if self.dataset is not None and self.reward is None:
            raise invalid("reward", "module:function, because --dataset is given", None)
        if self.dataset is not None and self.task is not None:
            raise invalid("task", "one of --task and --dataset", "both")
        if self.dataset is None and self.reward is not None:
            raise invalid("dataset", "a dataset for the given --reward", None)
