"""Run as a program, alone or under torchrun: optimizer steps on recorded completions, the updates to a file.

python replay.py MODEL FOLDER ACCUMULATION[,ACCUMULATION] RULES.json

RULES.json is a list of specifications, of RLOO's trainer where one begins with "RLOO ". What the policy answers is
recorded once, in the folder, by the process that comes first. A ratio-based rule, or one with an entropy term, takes
two steps on the same batch, any other one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback
from trl import RLOOTrainer
from trl_runs import arguments, build, closeness

from entropy_theory.bridge.trl import (
    EntropyControlledGRPOConfig,
    EntropyControlledGRPOTrainer,
    EntropyControlledRLOOConfig,
    EntropyControlledRLOOTrainer,
)
from entropy_theory.control import rule as build_rule
from entropy_theory.ranks import leave_ranks

PROMPTS, GENERATIONS = 8, 8
WORLD = int(os.environ.get("WORLD_SIZE", "1"))


def trainer_for(model: str, folder: Path, accumulation: int, rule: str) -> EntropyControlledGRPOTrainer:
    rloo = rule.startswith("RLOO ")
    rule = rule.removeprefix("RLOO ")
    parsed = build_rule(rule)
    passes = 2 if parsed.phase == "live" or parsed.entropy_term else 1
    changes = {
        "per_device_train_batch_size": PROMPTS * GENERATIONS // (WORLD * accumulation),
        "gradient_accumulation_steps": accumulation,
        "num_generations": GENERATIONS,
        "num_iterations": passes,
        "max_steps": passes,
        "learning_rate": 0.5,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "shuffle_dataset": False,
    }
    changes["save_batches"] = int(rule == "none")
    config, kind = EntropyControlledGRPOConfig, EntropyControlledGRPOTrainer
    if rloo:
        config, kind = EntropyControlledRLOOConfig, EntropyControlledRLOOTrainer
        changes["beta"] = 0.0  # the divergence in the reward would take a reference model per trainer
    args = config(**arguments(folder / "trainer", **changes))
    trainer = build(kind, Path(model), args, rule=rule, reward_funcs=closeness)
    trainer.batches_folder = folder / f"batches{WORLD}x{accumulation}"
    return trainer


def record(model: str, path: Path) -> None:
    """Let the real policy answer the prompts once and keep what it wrote."""
    trainer = trainer_for(model, path.parent, 1, "none")
    kept: dict[str, list[list[int]]] = {}
    generate = trainer._generate_single_turn

    def watch(prompt_ids: list[list[int]], *args: object) -> tuple[list[list[int]], object]:
        completion_ids, log_probs = generate(prompt_ids, *args)
        for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
            kept.setdefault(json.dumps(list(prompt)), []).append(list(completion))
        return completion_ids, log_probs

    trainer._generate_single_turn = watch
    trainer.train()
    path.write_text(json.dumps(kept))


class Watch(TrainerCallback):
    """Keeps the parameters after every step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.after = [self.now()]

    def now(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.model.parameters()])

    def on_step_end(self, *_: object, **__: object) -> None:
        self.after.append(self.now())


def replay(model: str, folder: Path, accumulation: int, rules: list[str]) -> None:
    """Take the steps of each rule on the recorded completions and save the last update and the shares dropped."""
    kept = json.loads((folder / "completions.json").read_text())
    updates = {}
    for rule in rules:
        trainer = trainer_for(model, folder, accumulation, rule)
        taken: dict[str, int] = {}

        def answer(
            prompt_ids: list[list[int]], *_: object, taken: dict[str, int] = taken, trainer: object = trainer
        ) -> tuple[list[list[int]], None] | list[list[int]]:
            completions = []
            for prompt in prompt_ids:
                key = json.dumps(list(prompt))
                completions.append(kept[key][taken.get(key, 0)])
                taken[key] = taken.get(key, 0) + 1
            return completions if isinstance(trainer, RLOOTrainer) else (completions, None)

        trainer._generate_single_turn = answer
        assert trainer.accelerator.num_processes == WORLD
        watch = Watch(trainer.model)
        trainer.add_callback(watch)
        trainer.train()
        name = "entropy_control/dropped_share"  # of the generation batch, or of each step
        dropped = [line[name] for line in trainer.state.log_history if name in line]
        updates[rule] = (watch.after[-1] - watch.after[-2], dropped[-1])
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(updates, folder / f"{WORLD}x{accumulation}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, specifications = Path(sys.argv[2]), json.loads(Path(sys.argv[4]).read_text())
    if not (place / "completions.json").exists():
        record(sys.argv[1], place / "completions.json")
    for parts in map(int, sys.argv[3].split(",")):
        replay(sys.argv[1], place, parts, specifications)
    leave_ranks()
